"""Turn taking on recordings of people: the end of a turn against callers who hesitate, and interruptions.

    python bench/turns.py [--audio DIR] [--callers 40] [--partials oracle,embedded] [--model FILE.onnx] [--no-peer]
                          [--no-model] [--quick] [--plot turns.png] [--json]

DIR (or OPUSAGENT_BENCH_AUDIO) has recordings with a manifest.json.  Callers are made of them, at 8 kHz mu-law: digits
joined with pauses of 100 to 900 ms, commands, and, where anything may be said, sentences, commands and numbers with a
hesitation in their midst; clean and with noise at 20 and 10 dB.  The ear, the turn taking and the flow are the real
ones, on the clock of the samples.  `oracle` partials know each word when it has ended, so that turn taking alone is
judged; `embedded` ones are the recogniser's own.

A turn that ends before the caller's last voiced sample is a cut-in; the others have a delay from that sample to the
decision.  The peer is a fixed silence, on the same callers; of interruptions Pipecat's detector (interruptions.py).
The turn model is FILE, or smart-turn's as Pipecat's wheel has it; its row stands beside the same wait without it.
What the server itself adds to a delay: bench/calls.py.
"""
import argparse
import importlib.util
import json
import os
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from figures import percentile, table
from interruptions import TUNED, Overlap, asked, decisions, over, overlaps, sounds, theirs
from recordings import RATE, Caller, callers, listen, recognise
from subjects import Absent

from opusagent.config import Turns
from opusagent.engines.embedded import recogniser as embedded
from opusagent.engines.prosody import TurnModel, heard
from opusagent.flow import Flow, Waits
from opusagent.speech.audio import VadBatch
from opusagent.speech.turns import END_OF_TURN, PAUSE, PAUSED, TurnTaking

WAIT = re.compile(r"\d+ ms(, eager)?")
FLOW = """
start = "four"
[lists]
rank = ["ace", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "jack", "queen", "king"]
suit = ["clubs", "diamonds", "hearts", "spades"]
number = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
[states.four]
say = "Yes?"
on = [{ digits = 4, go = "five" }]
[states.five]
say = "Yes?"
on = [{ digits = 5, go = "card" }]
[states.card]
say = "Yes?"
on = [{ phrases = ["[<rank>] <rank> of <suit>", "go (forward | backward) <number> (meter | meters)"], go = "free" }]
[states.free]
say = "Yes?"
on = [{ free = true, go = "free" }, { phrases = ["goodbye"], go = "menu" }]
[states.menu]
say = "Yes?"
on = [{ phrases = ["balance", "payments"], go = "sure" }, { phrases = ["help", "agent", "goodbye"], go = "sure" }]
[states.sure]
say = "Yes?"
on = [{ yes = true, go = "end" }, { no = true, go = "end" }, { phrases = ["help", "agent", "goodbye"], go = "end" }]
[states.end]
say = "Yes?"
end = true
"""
COMPLETE_MS = (0, 60, 100, 140, 180, 240, 320)     # 0: eager, the turn ends with the answer's last word
FREE_MS = (200, 300, 400, 500, 700, 900)
FIXED_MS = (200, 300, 500, 700)
KINDS = {"digits": COMPLETE_MS, "commands": COMPLETE_MS, "sentences": FREE_MS, "commands and numbers": FREE_MS}
INCOMPLETE_MS = 1200
PREROLL_MS = Turns().preroll_ms
ANSWER_MS = 64                  # the turn model's answer is taken to come so long after the pause
WEIGHTS = "audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx"     # in Pipecat's wheel


# -- turns -------------------------------------------------------------------------------------------------------------

def end_of_turn(caller: Caller, expect, waits: Waits, partials: list[tuple[int, str]],
                model: TurnModel | None = None) -> int | None:
    """The sample at which the turn is ended; `model`: heard ANSWER_MS after each pause, if that still goes on."""
    turns = TurnTaking(RATE, waits)
    at, known, heard, answer_at = 0, iter((*partials, (1 << 60, ""))), "", None
    next_at, next_text = next(known)
    for score, samples, quiet in caller.windows:
        events = turns.push(score, samples, quiet)
        at += samples
        while next_at <= at:
            heard = next_text
            next_at, next_text = next(known)
            if heard:
                events += turns.judge(expect.judge(heard))
        if heard and any(event.kind == PAUSE for event in events):
            events += turns.judge(expect.judge(heard))
        if model is not None and any(event.kind == PAUSE for event in events):
            asked_at, answer_at = at, at + ANSWER_MS * RATE // 1000
        if answer_at is not None and at >= answer_at:
            answer_at = None
            if turns.state == PAUSED:
                events += turns.sway(completeness(caller, model, asked_at))
        if any(event.kind == END_OF_TURN for event in events):
            return at
    return None


def completeness(caller: Caller, model: TurnModel, position: int) -> float:
    """What the model makes of it in the pause at `position`; each is asked once."""
    if position not in caller.sounds:
        begin = max(0, caller.begins - PREROLL_MS * RATE // 1000)
        caller.sounds[position] = model.complete(caller.pcm[begin:position], RATE)
    return caller.sounds[position]


def fixed_silence(caller: Caller, ms: int) -> int | None:
    return end_of_turn(caller, None, Waits(ms, ms, ms, 60_000), [])


MODELLED = ", turn model"


@dataclass
class Row:
    """A setting, and what came of it."""

    name: str
    delays: list[float] = field(default_factory=list)       # ms
    cut_in: int = 0
    never: int = 0

    def add(self, caller: Caller, ended: int | None) -> None:
        if ended is None:
            self.never += 1
        elif ended < caller.ends:
            self.cut_in += 1
        else:
            self.delays.append((ended - caller.ends) * 1000 / RATE)

    @property
    def count(self) -> int:
        return len(self.delays) + self.cut_in + self.never

    def figures(self) -> dict:
        return {"setting": self.name, "turns": self.count, "p50_ms": percentile(self.delays, 50),
                "p95_ms": percentile(self.delays, 95), "cut_ins": self.cut_in / max(1, self.count), "never": self.never}


def curves(found: list[Caller], flow: Flow, source: str, model: TurnModel | None) -> dict[str, list[Row]]:
    """By kind of caller: our settings, with the turn model where it may be heard, then the fixed silences."""
    rows: dict[str, list[Row]] = {}
    for kind, settings in KINDS.items():
        mine = [caller for caller in found if caller.kind == kind]
        free = settings is FREE_MS
        for ms in settings:
            waits = Waits(140 if free else ms, ms if free else 400, INCOMPLETE_MS, 60_000)
            for hears in (None, model)[:1 + (free and model is not None)]:
                row = Row(("free" if free else "complete") + f" {ms} ms" + (", eager" if not ms else "")
                          + (MODELLED if hears else ""))
                for caller in mine:
                    row.add(caller, end_of_turn(caller, flow.states[caller.state].expect, waits,
                                                caller.partials[source], hears))
                rows.setdefault(kind, []).append(row)
        for ms in FIXED_MS:
            row = Row(f"fixed silence {ms} ms")
            for caller in mine:
                row.add(caller, fixed_silence(caller, ms))
            rows[kind].append(row)
    return rows


# -- the turn model ----------------------------------------------------------------------------------------------------

def weights(given: str | None) -> str | None:
    """The file of the turn model, if there is one."""
    if given is None and (found := importlib.util.find_spec("pipecat")) is not None:
        given = str(Path(found.submodule_search_locations[0], WEIGHTS))
    return given


def price(path: str, found: list[Caller]) -> tuple[TurnModel, dict]:
    """The model, loaded, and what it costs on this machine: ms, and MB of memory."""
    before, began = resident(), time.perf_counter()
    model = TurnModel(path)
    figures = {"load_ms": (time.perf_counter() - began) * 1000}
    prepares, answers = [], []
    for caller in found[:40]:
        began = time.perf_counter()
        given = model.picture.of(heard(caller.pcm, RATE)) if model.picture else heard(caller.pcm, RATE)
        prepared = time.perf_counter()
        model.session.run(None, {model.input: given[None]})
        prepares.append((prepared - began) * 1000)
        answers.append((time.perf_counter() - prepared) * 1000)
    return model, figures | {"mb": resident() - before, "features_p50_ms": percentile(prepares, 50),
                             "answer_least_ms": round(min(answers), 1), "answer_p50_ms": percentile(answers, 50),
                             "answer_p99_ms": percentile(answers, 99)}


def resident() -> float:
    """MB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


# -- what is told ------------------------------------------------------------------------------------------------------

@dataclass
class Told:
    """What is told beside the curves."""

    overlaps: dict[str, Overlap]
    decisions: dict[str, dict]                                  # of the interruptions whose words are known
    pipecat: dict[str, Overlap] = field(default_factory=dict)
    price: dict[str, float] = field(default_factory=dict)       # of the turn model
    absent: list[str] = field(default_factory=list)             # what was left out, and why


def plot(path: str, results: dict[str, dict[str, list[Row]]]) -> None:
    try:
        import matplotlib
    except ImportError:
        raise Absent("--plot needs matplotlib: pip install 'opusagent[bench]'.") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot
    kinds = next(iter(results.values()))
    figure, axes = pyplot.subplots(2, -(-len(kinds) // 2), figsize=(11, 8), constrained_layout=True)
    for axis, kind in zip(axes.flat, kinds):
        for source, rows in results.items():
            draw_curve(axis, f"the flow's waits, {source} partials", "o-",
                       [row for row in rows[kind] if not row.name.startswith("fixed")])
        draw_curve(axis, "a fixed silence", "s--",          # needs no words: the same for every source
                   [row for row in kinds[kind] if row.name.startswith("fixed")])
        axis.set(title=f"{kind} ({kinds[kind][0].count} turns)", xlabel="end of speech to end of turn, median, ms",
                 ylabel="turns cut off, %", xlim=(-20, 1300), ylim=(-3, 112))
        axis.grid(alpha=0.3)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=80)


def draw_curve(axis, label: str, style: str, rows: list[Row]) -> None:
    """A point for each wait; every other one says which."""
    points = [(percentile(row.delays, 50), 100 * row.cut_in / max(1, row.count)) for row in rows]
    line, = axis.plot(*zip(*points), style, label=label)
    for row, point in list(zip(rows, points))[::2]:
        if point[0] == point[0]:
            axis.annotate(WAIT.search(row.name).group(), point, fontsize=7, color=line.get_color(), rotation=45,
                          xytext=(2, 5), textcoords="offset points")


def tell(results: dict[str, dict[str, list[Row]]], told: Told) -> None:
    for source, rows in results.items():
        for kind, settings in rows.items():
            print(f"\n{kind}, {source} partials, {settings[0].count} turns")
            lines = [["", "p50 ms", "p95 ms", "cut-ins", "never"]]
            for row in settings:
                figures = row.figures()
                lines.append([row.name, *("" if ms != ms else f"{ms:.0f}"
                                           for ms in (figures["p50_ms"], figures["p95_ms"])),
                              f"{100 * figures['cut_ins']:.1f} %", str(row.never)])
            print(table(lines))
    if told.price:
        print("\nthe turn model: " + ", ".join(f"{name.replace('_', ' ')} {value:.1f}"
                                               for name, value in told.price.items()))
    print("\nover an agent that speaks, from the detector's first voiced window")
    tell_overlaps(told.overlaps)
    tell_decisions(told.decisions)
    if told.pipecat:
        print("\nthe same, Pipecat's detector")
        tell_overlaps(told.pipecat)
    for sentence in told.absent:
        print(sentence)


def tell_overlaps(found: dict[str, Overlap]) -> None:
    lines = [["", "sounds", "stopped", "late", "for good", "gone on after p50", "level down p99", "stop p50",
              "stop p99", "p50 from the onset"]]
    for kind, overlap in found.items():
        figures = overlap.figures()
        lines.append([kind, str(overlap.count), f"{100 * figures['stopped']:.1f} %",
                      f"{100 * figures['late']:.1f} %", f"{100 * figures['for_good']:.1f} %",
                      *("" if figures[key] != figures[key] else f"{figures[key]:.0f} ms" for key in (
                          "gone_on_p50_ms", "level_down_p99_ms", "stop_p50_ms", "stop_p99_ms",
                          "stop_from_onset_p50_ms"))])
    print(table(lines))


def tell_decisions(found: dict[str, dict]) -> None:
    print("\n... decisions that stood (stopped, or the level is back), in ms from there, words known when they end")
    lines = [["", "decisions", "p50", "p99", "words tell p50", "p99", "by a window p50", "p99", "level back before"]]
    for kind, row in found.items():
        lines.append([kind, str(row["decisions"]), *("" if row[key] != row[key] else f"{row[key]:.0f}" for key in (
            "p50_ms", "p99_ms", "told_p50_ms", "told_p99_ms", "told_window_p50_ms", "told_window_p99_ms")),
            str(row["raised_before"])])
    print(table(lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--audio", default=os.environ.get("OPUSAGENT_BENCH_AUDIO", "../shared/audio"))
    parser.add_argument("--callers", type=int, default=40, help="of digits, under each noise (default 40)")
    parser.add_argument("--partials", default="oracle,embedded")
    parser.add_argument("--model", metavar="FILE.onnx", help="the turn model (default: that of Pipecat's wheel)")
    parser.add_argument("--no-model", action="store_true", help="leave the turn model out")
    parser.add_argument("--no-peer", action="store_true", help="leave Pipecat out")
    parser.add_argument("--quick", action="store_true", help="two voices only, without the turn model and Pipecat")
    parser.add_argument("--plot", metavar="FILE.png")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.no_model, args.no_peer = args.no_model or args.quick, args.no_peer or args.quick
    try:
        results, told = measured(args)
        if args.plot:
            plot(args.plot, results)
    except Absent as absent:
        print(absent, file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({"turns": {source: {kind: [row.figures() for row in rows] for kind, rows in kinds.items()}
                                    for source, kinds in results.items()},
                          "overlaps": {kind: overlap.figures() for kind, overlap in told.overlaps.items()},
                          "pipecat": {kind: overlap.figures() for kind, overlap in told.pipecat.items()},
                          "decisions": told.decisions,
                          "model": told.price}))
    else:
        tell(results, told)
    return 0


def measured(args) -> tuple[dict[str, dict[str, list[Row]]], Told]:
    """All of it, as the command line wants it: the curves by source of the words, and the rest."""
    found, batch = callers(Path(args.audio), args.callers), VadBatch()
    flow, strict = Flow.parse(FLOW, "turns.toml"), Flow.parse('interrupt = "answers"\n' + FLOW, "answers.toml")
    for each in found:
        listen(each, batch)
        each.partials["oracle"] = each.words
    sources = args.partials.split(",")
    if "embedded" in sources:
        recogniser = embedded.Recogniser(flow.searches)
        for each in found:
            each.partials["embedded"] = recognise(each, recogniser, flow.states[each.state].expect.id)
    kinds = sounds(found, batch, 1 if args.quick else len(TUNED))
    found_over = overlaps(kinds, flow, strict)
    told, model = Told(found_over, decisions(kinds, found_over, flow)), None
    if "embedded" in sources:
        told.overlaps |= {f"{kind}, embedded words": over(heard, flow, recogniser=recogniser)
                          for kind, heard in asked(kinds).items()}
    if (path := None if args.no_model else weights(args.model)) is not None:
        model, told.price = price(path, found)
    elif not args.no_model:
        told.absent.append("The turn model is left out: give --model, or pip install '.[bench]'.")
    if not args.no_peer:
        try:
            told.pipecat = theirs(kinds)
        except Absent as absent:
            told.absent.append(str(absent))
    return {source: curves(found, flow, source, model) for source in sources}, told


if __name__ == "__main__":
    sys.exit(main())
