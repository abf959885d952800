"""Turn taking on recordings of people: the end of a turn against callers who hesitate, and interruptions.

    python bench/turns.py [--audio DIR] [--callers 40] [--partials oracle,embedded] [--plot turns.png] [--json]

DIR (or OPUSAGENT_BENCH_AUDIO) has recordings with a manifest.json.  Callers are made of them, at 8 kHz mu-law: digits
joined with pauses of 100 to 900 ms, commands, sentences with a hesitation in their midst; clean and with noise at 20
and 10 dB.  The ear, the turn taking and the flow are the real ones, on the clock of the samples.  `oracle` partials
know each word when it has ended, so that turn taking alone is judged; `embedded` ones are the recogniser's own.

A turn that ends before the caller's last voiced sample is a cut-in; the others have a delay from that sample to the
decision.  The peer is a fixed silence, on the same callers.  What the server itself adds to a delay: bench/calls.py.
"""
import argparse
import json
import os
import random
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from figures import table
from subjects import Absent

from opusagent.acoustics import STRETCH_MS, Echo
from opusagent.audio import VadBatch, first_voiced, last_voiced, voiced
from opusagent._fastpath import Vad, ulaw_decode, ulaw_encode
from opusagent.config import Turns
from opusagent.engines import embedded
from opusagent.engines.voices import Voices
from opusagent.flow import Dialogue, Flow, Waits
from opusagent.recording import read_wav, resample
from opusagent.turns import BARGE_IN, DUCK, END_OF_TURN, PAUSE, RESTORE, SPEAKING, WEIGH, Settings, TurnTaking

RATE = 8000
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
on = [{ free = true, go = "free" }, { phrases = ["goodbye"], go = "end" }]
[states.end]
say = "Yes?"
end = true
"""
PAUSES_MS = (100, 200, 300, 400, 500, 600, 700, 800, 900)
HESITATION_MS = (300, 500, 700)
NOISES_DB = (None, 20, 10)
COMPLETE_MS = (0, 60, 100, 140, 180, 240, 320)     # 0: eager, the turn ends with the answer's last word
FREE_MS = (200, 300, 400, 500, 700, 900)
FIXED_MS = (200, 300, 500, 700)
INCOMPLETE_MS = 1200
LEAD_MS, TAIL_MS = 600, 2500
SETTINGS = Settings.of(Turns())         # the server's own
BACKCHANNELS = ("mm hm", "uh huh", "okay", "right", "I see")
INSIST_MS = (320, 400, 480, 560, 640)
BURST_MS = (30, 60, 120)        # noises: clicks, knocks, a cough's length
ECHO_DELAYS_MS = (50, 150, 250, 400)
ECHO_DB = -20


@dataclass
class Caller:
    kind: str                           # "digits", "commands", "sentences"
    noise: int | None                   # dB below the speech; None: clean
    state: str                          # of FLOW
    pcm: np.ndarray                     # int16 at 8 kHz, LEAD_MS of silence before, TAIL_MS after
    words: list[tuple[int, str]]        # (sample after it, all that was said up to there)
    begins: int = 0                     # first voiced sample
    ends: int = 0                       # after the last one
    windows: list[tuple] = field(default_factory=list)          # (score, samples, quiet), by the real ear
    partials: dict[str, list[tuple[int, str]]] = field(default_factory=dict)


def through_mulaw(pcm: np.ndarray) -> np.ndarray:
    codes, out = bytearray(len(pcm)), np.zeros(len(pcm), np.int16)
    ulaw_encode(np.ascontiguousarray(pcm, np.int16), codes)
    ulaw_decode(codes, out)
    return out


def trimmed(pcm: np.ndarray) -> np.ndarray:
    return pcm[first_voiced(pcm, RATE) or 0:last_voiced(pcm, RATE) or len(pcm)]


def silence(ms: int) -> np.ndarray:
    return np.zeros(ms * RATE // 1000, np.int16)


def caller(kind: str, state: str, parts: list[tuple[np.ndarray, str]], noise: int | None,
           dice: random.Random) -> Caller:
    """`parts`: sound, and the text that is complete with it; "" for a pause."""
    pieces, words, at, said = [silence(LEAD_MS)], [], LEAD_MS * RATE // 1000, ""
    for sound, text in parts:
        at += len(sound)
        pieces.append(sound)
        if text:
            said = f"{said} {text}".strip()
            words.append((at, said))
    begins, ends = LEAD_MS * RATE // 1000, at
    clean = np.concatenate([*pieces, silence(TAIL_MS)]).astype(np.float64)
    if noise is not None:
        power = np.mean(clean[voiced_samples(clean)] ** 2) / 10 ** (noise / 10)
        clean += np.random.default_rng(dice.randrange(1 << 30)).normal(0, np.sqrt(power), len(clean))
    return Caller(kind, noise, state, through_mulaw(np.clip(clean, -32768, 32767)), words, begins, ends)


def voiced_samples(pcm: np.ndarray) -> np.ndarray:
    return np.repeat(voiced(pcm.astype(np.int16), RATE), RATE // 100)[:len(pcm)].nonzero()[0]


def callers(directory: Path, count: int) -> list[Caller]:
    """`count` of digits, and every other recording, under each noise."""
    manifest = directory / "manifest.json"
    if not manifest.is_file():
        raise Absent(f"There are no recordings in {directory}: give --audio a directory with a manifest.json.")
    dice, digits, found = random.Random(7), {}, []
    clips = []
    for row in json.loads(manifest.read_text()):
        pcm, rate = read_wav(directory / row["file_8k_ulaw"])
        pcm = trimmed(resample(pcm, rate, RATE))
        if row["kind"] == "digit8k":
            digits.setdefault(row["file"].split("_")[2], {})[row["transcript"]] = pcm
        else:
            clips.append((row, pcm))
    for noise in NOISES_DB:
        for number in range(count):
            speaker = sorted(digits)[number % len(digits)]
            parts = []
            for place in range(4):
                digit = dice.choice(sorted(digits[speaker]))
                parts += [(silence(dice.choice(PAUSES_MS)), "")] if place else []
                parts.append((digits[speaker][digit], digit))
            found.append(caller("digits", "four", parts, noise, dice))
        for row, pcm in clips:
            if row["kind"] == "command":
                found.append(caller("commands", "card", spoken(pcm, row["transcript"]), noise, dice))
            elif row["kind"] in ("read", "speech"):
                for pause in HESITATION_MS:
                    found.append(caller("sentences", "free", hesitating(pcm, row["transcript"], pause), noise, dice))
    return found


def spoken(pcm: np.ndarray, text: str) -> list[tuple[np.ndarray, str]]:
    """The words, in proportion to their letters: nobody has marked them."""
    words = text.split()
    ends = np.cumsum([len(word) + 1 for word in words])
    places = [0, *(int(len(pcm) * end / ends[-1]) for end in ends)]
    return [(pcm[a:b], word) for a, b, word in zip(places, places[1:], words)]


def hesitating(pcm: np.ndarray, text: str, pause_ms: int) -> list[tuple[np.ndarray, str]]:
    """A pause where the speaker is quietest in the middle third, between two words."""
    size = RATE // 100
    levels = np.convolve([np.mean(pcm[at:at + size].astype(float) ** 2) for at in range(0, len(pcm) - size, size)],
                         np.ones(5) / 5, "same")
    third = len(levels) // 3
    cut = (third + int(np.argmin(levels[third:2 * third]))) * size
    parts, at = [], 0
    for sound, word in spoken(pcm, text):
        middle, at = at + len(sound) // 2, at + len(sound)
        if middle >= cut and not any(not said for _, said in parts):
            parts.append((silence(pause_ms), ""))
        parts.append((sound, word))
    return parts


# -- the real ear and the recogniser -----------------------------------------------------------------------------------

def listen(caller: Caller, batch: VadBatch, echo: Echo | None = None, sent: np.ndarray | None = None) -> None:
    def on_window(score, position, samples, quiet):
        if echo is not None and score >= 0.35 and echo.explains(caller.pcm[max(0, position - STRETCH_MS * 8):position]):
            score, quiet = 0.0, samples
        caller.windows.append((score, samples, quiet))

    ear = Vad(RATE, batch, on_window)
    for at in range(0, len(caller.pcm), 160):
        if sent is not None:
            echo.sent(sent[at:at + 160])
        ear.push(np.ascontiguousarray(caller.pcm[at:at + 160]))
        batch.run()
    ear.close()


def recognise(caller: Caller, recogniser: embedded.Recogniser, search: int) -> list[tuple[int, str]]:
    """(samples heard, text), whenever the text changes; the utterance begins 400 ms before the caller does."""
    utterance, texts, begin = recogniser.start(search, RATE), [], caller.begins - 400 * RATE // 1000
    for at in range(begin, caller.ends + RATE, 256):
        utterance.feed(caller.pcm[at:at + 256])
        while utterance.step():
            pass
        text = utterance.partial()
        if text and (not texts or texts[-1][1] != text):
            texts.append((at + 256, text))
    utterance.abandon()
    return texts


# -- turns -------------------------------------------------------------------------------------------------------------

def end_of_turn(caller: Caller, expect, waits: Waits, partials: list[tuple[int, str]]) -> int | None:
    """The sample at which the turn is ended."""
    turns = TurnTaking(RATE, waits)
    at, known, heard = 0, iter((*partials, (1 << 60, ""))), ""
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
        if any(event.kind == END_OF_TURN for event in events):
            return at
    return None


def fixed_silence(caller: Caller, ms: int) -> int | None:
    return end_of_turn(caller, None, Waits(ms, ms, ms, 60_000), [])


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


def percentile(values: list[float], p: float) -> float:
    return round(float(np.percentile(values, p)), 1) if values else float("nan")


def curves(found: list[Caller], flow: Flow, source: str) -> dict[str, list[Row]]:
    """By kind of caller: our settings, then the fixed silences."""
    rows: dict[str, list[Row]] = {}
    for kind, settings in (("digits", COMPLETE_MS), ("commands", COMPLETE_MS), ("sentences", FREE_MS)):
        mine = [caller for caller in found if caller.kind == kind]
        for ms in settings:
            free = kind == "sentences"
            waits = Waits(140 if free else ms, ms if free else 400, INCOMPLETE_MS, 60_000)
            row = Row(("free" if free else "complete") + f" {ms} ms" + (", eager" if not ms else ""))
            for caller in mine:
                row.add(caller, end_of_turn(caller, flow.states[caller.state].expect, waits, caller.partials[source]))
            rows.setdefault(kind, []).append(row)
        for ms in FIXED_MS:
            row = Row(f"fixed silence {ms} ms")
            for caller in mine:
                row.add(caller, fixed_silence(caller, ms))
            rows[kind].append(row)
    return rows


# -- interruptions -----------------------------------------------------------------------------------------------------

@dataclass
class Overlap:
    """What a kind of sound does to an agent that speaks; times in ms from the detector's first voiced window."""

    ducked: list[float] = field(default_factory=list)
    stopped: list[float] = field(default_factory=list)
    stopped_from_onset: list[float] = field(default_factory=list)       # from the labelled one
    gone_on: list[float] = field(default_factory=list)      # after how long a stop was taken back
    count: int = 0

    def add(self, caller: Caller, dialogue: Dialogue, answers_only: bool = False,
            settings: Settings = SETTINGS) -> None:
        turns, at, first, known = TurnTaking(RATE, dialogue.expect.waits, settings), 0, None, 0
        turns.agent_starts(answers_only=answers_only)
        self.count += 1
        windows = iter(caller.windows)
        for score, samples, quiet in windows:
            events = turns.push(score, samples, quiet)
            at += samples
            first = at if first is None and score >= settings.on else first
            if score < settings.off and turns.state == SPEAKING:
                first = None
            heard = [text for end, text in caller.words if end <= at]
            if len(heard) > known or any(event.kind == WEIGH for event in events) and heard:
                known = len(heard)
                events += turns.weigh(dialogue.interrupts(heard[-1]))
            for event in events:
                since = (at - (first or at)) * 1000 / RATE
                if event.kind == DUCK:
                    self.ducked.append(since)
                if event.kind == RESTORE:
                    first, known = None, 0
                if event.kind == BARGE_IN:
                    self.stopped.append(since)
                    self.stopped_from_onset.append((at - caller.begins) * 1000 / RATE)
                    return None if turns.meant else self._taken_back(turns, dialogue, caller, windows, at)

    def _taken_back(self, turns: TurnTaking, dialogue: Dialogue, caller: Caller, windows, stopped: int) -> None:
        """What interruption.py does with the rest: a murmur gives the floor back at its first pause, no words do at the
        turn's end, and other words are what the agent stopped for."""
        at = stopped
        for score, samples, quiet in windows:
            events = turns.push(score, samples, quiet)
            at += samples
            heard = [text for end, text in caller.words if end <= at]
            interrupts = dialogue.interrupts(heard[-1]) if heard else None
            silent = not turns.speaking and turns.onset is None
            if interrupts:
                return
            if interrupts is False and silent or any(event.kind == END_OF_TURN for event in events):
                self.gone_on.append((at - stopped) * 1000 / RATE)
                return

    def figures(self) -> dict:
        return {"sounds": self.count, "stopped": len(self.stopped) / max(1, self.count),
                "for_good": (len(self.stopped) - len(self.gone_on)) / max(1, self.count),
                "gone_on_p50_ms": percentile(self.gone_on, 50),
                "level_down_p99_ms": percentile(self.ducked, 99), "stop_p50_ms": percentile(self.stopped, 50),
                "stop_p99_ms": percentile(self.stopped, 99), "stop_from_onset_p50_ms":
                percentile(self.stopped_from_onset, 50)}


def sounds(found: list[Caller], batch: VadBatch) -> dict[str, list[Caller]]:
    """All that may be heard over an agent that speaks, by kind."""
    dice = random.Random(3)
    kinds = {"interruptions": [caller for caller in found if caller.noise is None]}
    kinds["backchannels (a voice's)"] = [caller("backchannels", "card", spoken(said(text, voice), text), noise, dice)
                             for text in BACKCHANNELS for voice in ("slt", "rms", "awb") for noise in NOISES_DB]
    kinds["noises"] = [burst(ms, db, seed) for ms in BURST_MS for db in (-10, -20, -30) for seed in range(5)]
    for sound in (*kinds["backchannels (a voice's)"], *kinds["noises"]):
        listen(sound, batch)
    kinds["echo of the agent"] = list(echoes(batch))
    return kinds


def over(heard: list[Caller], flow: Flow, settings: Settings = SETTINGS) -> Overlap:
    overlap = Overlap()
    for sound in heard:
        dialogue = Dialogue(flow)
        dialogue.state = sound.state
        overlap.add(sound, dialogue, flow is ANSWERS_ONLY, settings)
    return overlap


def overlaps(found: list[Caller], flow: Flow, batch: VadBatch) -> dict[str, Overlap]:
    """By kind and policy; then, as a curve, by how long a voice must last that nobody knows the words of."""
    results, kinds = {}, sounds(found, batch)
    for kind, heard in kinds.items():
        results[kind] = over(heard, flow)
        results[f'{kind}, interrupt = "answers"'] = over(heard, ANSWERS_ONLY)
    for ms in INSIST_MS:
        for kind in ("interruptions", "backchannels (a voice's)"):
            results[f"{kind}, insist_ms = {ms}"] = over(kinds[kind], flow, replace(SETTINGS, insist_ms=ms))
    return results


def said(text: str, voice: str) -> np.ndarray:
    pieces: list[np.ndarray] = []
    VOICES.speak(voice, text, RATE, lambda pcm: pieces.append(np.array(pcm)) or True)
    return trimmed(np.concatenate(pieces))


def burst(ms: int, db: int, seed: int) -> Caller:
    noise = np.random.default_rng(seed).normal(0, 32768 * 10 ** (db / 20) / 3, ms * RATE // 1000)
    fading = noise * np.linspace(1, 0, len(noise))
    return caller("noises", "card", [(np.clip(fading, -32768, 32767).astype(np.int16), "")], None, random.Random(seed))


def echoes(batch: VadBatch):
    """The agent's own sentences, back at ECHO_DB after a delay, with the echo known as the server knows it."""
    for voice in ("slt", "rms"):
        for text in ("Thank you. There is one parcel for you. Which playing card is printed on your parcel slip?",
                     "I am sorry, I did not understand that. Please say the card on your slip."):
            spoke = said(text, voice).astype(np.float64)
            for delay in ECHO_DELAYS_MS:
                sent = np.concatenate([spoke, np.zeros(RATE)]).astype(np.int16)
                back = np.concatenate([np.zeros(delay * 8), spoke * 10 ** (ECHO_DB / 20), np.zeros(RATE)])[:len(sent)]
                back += np.random.default_rng(1).normal(0, 12, len(back))
                sound = Caller("echo", None, "card", through_mulaw(back), [], delay * 8, len(sent))
                listen(sound, batch, Echo(RATE, RATE), sent)
                yield sound


VOICES = Voices("slt")
ANSWERS_ONLY = Flow.parse('interrupt = "answers"\n' + FLOW, "answers.toml")


# -- what is told ------------------------------------------------------------------------------------------------------

def plot(path: str, results: dict[str, dict[str, list[Row]]]) -> None:
    try:
        import matplotlib
    except ImportError:
        raise Absent("--plot needs matplotlib: pip install 'opusagent[bench]'.") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot
    kinds = next(iter(results.values()))
    figure, axes = pyplot.subplots(1, len(kinds), figsize=(5 * len(kinds), 4.2), constrained_layout=True)
    for axis, kind in zip(axes, kinds):
        for source, rows in results.items():
            for fixed in (False, True):
                points = [(percentile(row.delays, 50), 100 * row.cut_in / max(1, row.count), row.name)
                          for row in rows[kind] if row.name.startswith("fixed") == fixed]
                if fixed and source != next(iter(results)):
                    continue                            # a silence needs no words: the same for every source
                label = "a fixed silence" if fixed else f"the flow's waits, {source} partials"
                axis.plot([x for x, _, _ in points], [y for _, y, _ in points], "s--" if fixed else "o-", label=label)
                for x, y, name in points[::1 if fixed else 3]:
                    axis.annotate(name.replace("fixed silence ", "").replace("complete ", "").replace("free ", ""),
                                  (x, y), fontsize=7, xytext=(4, 4), textcoords="offset points")
        axis.set_title(f"{kind} ({rows[kind][0].count} turns)")
        axis.set_xlabel("end of speech to end of turn, median, ms")
        axis.set_ylabel("turns cut off, %")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def tell(results: dict[str, dict[str, list[Row]]], found: dict[str, Overlap]) -> None:
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
    print("\nover an agent that speaks, from the detector's first voiced window")
    lines = [["", "sounds", "stopped", "for good", "gone on after p50", "level down p99", "stop p50", "stop p99",
              "p50 from the onset"]]
    for kind, overlap in found.items():
        figures = overlap.figures()
        lines.append([kind, str(overlap.count), f"{100 * figures['stopped']:.1f} %",
                      f"{100 * figures['for_good']:.1f} %",
                      *("" if figures[key] != figures[key] else f"{figures[key]:.0f} ms" for key in (
                          "gone_on_p50_ms", "level_down_p99_ms", "stop_p50_ms", "stop_p99_ms",
                          "stop_from_onset_p50_ms"))])
    print(table(lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--audio", default=os.environ.get("OPUSAGENT_BENCH_AUDIO", "../shared/audio"))
    parser.add_argument("--callers", type=int, default=40, help="of digits, under each noise (default 40)")
    parser.add_argument("--partials", default="oracle,embedded")
    parser.add_argument("--plot", metavar="FILE.png")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        found = callers(Path(args.audio), args.callers)
        batch, flow = VadBatch(), Flow.parse(FLOW, "turns.toml")
        for each in found:
            listen(each, batch)
            each.partials["oracle"] = each.words
        sources = args.partials.split(",")
        if "embedded" in sources:
            recogniser = embedded.Recogniser(flow.searches)
            for each in found:
                each.partials["embedded"] = recognise(each, recogniser, flow.states[each.state].expect.id)
        results = {source: curves(found, flow, source) for source in sources}
        interrupted = overlaps(found, flow, batch)
        if args.plot:
            plot(args.plot, results)
    except Absent as absent:
        print(absent, file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({"turns": {source: {kind: [row.figures() for row in rows] for kind, rows in kinds.items()}
                                    for source, kinds in results.items()},
                          "overlaps": {kind: overlap.figures() for kind, overlap in interrupted.items()}}))
    else:
        tell(results, interrupted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
