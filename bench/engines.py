"""The embedded engines: how much of what people say is recognised, how fast, and how soon each voice is heard.

    python bench/engines.py [--audio DIR] [--rounds 5] [--only recogniser,voices,memory] [--wrong] [--quick] [--json]
    python bench/engines.py --only recogniser --digits DIR

DIR (or OPUSAGENT_BENCH_AUDIO) has recordings with a manifest.json: what is said in each, its kind, a file at 16 kHz and
one at 8 kHz mu-law.  Clips go in as a call brings them: pieces of 20 ms, with silence around them, 400 ms of it before.
The second: more digits of six people, where DIR is the recordings of the Free Spoken Digit Dataset (8 kHz).
The peer of the recogniser is pocketsphinx with its own front end and the same grammars, the audio brought to 16 kHz.
The rule: an answer counts as right when every word of it is; a clip that gave no answer is told apart from a wrong one.
"""
import argparse
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from figures import median, median_interval, table
from subjects import BENCH, Absent, machine

from opusagent._fastpath import ulaw_decode, ulaw_encode
from opusagent.engines.embedded import recogniser as embedded, flite
from opusagent.engines.embedded.voices import Voices
from opusagent.flow import Flow
from opusagent.recording import read_wav, resample
from opusagent.speech.audio import first_voiced, voiced

FLOW = """
start = "one"
lead_ins = []
[lists]
rank = ["ace", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "jack", "queen", "king"]
suit = ["clubs", "diamonds", "hearts", "spades"]
number = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
[states.one]
say = "Go on."
on = [{ digits = 1, go = "four" }]
[states.four]
say = "Go on."
on = [{ digits = 4, go = "five" }]
[states.five]
say = "Go on."
on = [{ digits = 5, go = "fifteen" }]
[states.fifteen]
say = "Go on."
on = [{ digits = 14, go = "card" }]
[states.card]
say = "Go on."
on = [{ phrases = ["[<rank>] <rank> of <suit>", "go (forward | backward) <number> (meter | meters)"], go = "free" }]
[states.free]
say = "Go on."
on = [{ free = true, go = "end" }]
[states.end]
say = "Go on."
end = true
"""
DIGIT = "zero one two three four five six seven eight nine".split()
SENTENCES = ("Thank you. Your balance is forty two dollars.", "Please say your member number.",
             "I am sorry, I did not understand that.")
BEFORE_MS, AFTER_MS = 400, 150
PIECE_MS = 20
STRINGS = 20                    # of four digits, joined from single ones, of each speaker
PAUSES = (60, 100, 150, 250)    # ms between joined digits
TAKES = (2, 12, 22, 32, 42)     # of the dataset's 50 of each digit and speaker: none by which a setting was chosen


@dataclass
class Clip:
    kind: str
    state: str                  # of FLOW, whose search hears it
    text: str
    pcm: np.ndarray             # int16
    rate: int
    found: str = ""             # what was recognised
    confidence: float = 0.0


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


def recordings(directory: Path, rate: int) -> dict[str, tuple[dict, np.ndarray]]:
    """By name without suffix: the manifest's row and int16 at `rate` (8000: through mu-law)."""
    manifest = directory / "manifest.json"
    if not manifest.is_file():
        raise Absent(f"There are no recordings in {directory}: give --audio a directory with a manifest.json.")
    found = {}
    for row in json.loads(manifest.read_text()):
        pcm, its_rate = read_wav(directory / row["file" if rate == 16000 else "file_8k_ulaw"])
        found[row["file"].removesuffix(".wav")] = row, resample(pcm, its_rate, rate)
    return found


def clips(directory: Path, rate: int) -> Iterator[Clip]:
    found = recordings(directory, rate)
    digits = {}
    for name, (row, pcm) in found.items():
        text = row["transcript"].replace(" oh", " zero")
        if row["kind"] == "digit8k":                            # 0.3 s of zeros were put before and after it
            digits[name.split("_")[2], text] = pcm
            yield Clip("one digit", "one", text, pcm, rate)
        elif row["kind"] == "digits":
            yield Clip("digit strings", "five" if len(text.split()) == 5 else "fifteen", text, pcm, rate)
        elif row["kind"] == "command":
            yield Clip("commands", "card", text, pcm, rate)
        else:
            yield Clip("free speech", "free", text, pcm, rate)
            for state in ("one", "four", "five", "card"):
                yield Clip("unexpected", state, "", pcm, rate)
    yield from joined(digits, rate)


def joined(digits: dict[tuple[str, str], np.ndarray], rate: int) -> Iterator[Clip]:
    """Strings of four digits of each speaker: with pauses as in fluent speech, and with 0.6 s more between them."""
    dice, zeros = random.Random(5), rate * 3 // 10
    for speaker in sorted({speaker for speaker, _ in digits}):
        for _ in range(STRINGS):
            said = [dice.choice(DIGIT) for _ in range(4)]
            pauses = [np.zeros(rate * dice.choice(PAUSES) // 1000, np.int16) for _ in said]
            parts = [digits[speaker, digit] for digit in said]
            close = [pcm for part, pause in zip(parts, pauses) for pcm in (part[zeros:-zeros], pause)]
            apart = [pcm for part, pause in zip(parts, pauses) for pcm in (part, pause)]
            yield Clip("four digits", "four", " ".join(said), np.concatenate(close), rate)
            yield Clip("four digits, slowly", "four", " ".join(said), np.concatenate(apart), rate)


def dataset(directory: Path) -> Iterator[Clip]:
    """Digits and strings of four by each speaker, at 8 kHz through mu-law."""
    digits, silence = {}, np.zeros(2400, np.int16)
    for path in sorted(directory.glob("*_*_*.wav")):
        digit, speaker, take = path.stem.split("_")
        if int(take) in TAKES:
            coded = np.empty(len(pcm := read_wav(path)[0]), np.uint8)
            ulaw_encode(pcm, coded)
            ulaw_decode(coded, pcm)
            digits[f"{speaker} {take}", DIGIT[int(digit)]] = pcm = np.concatenate((silence, pcm, silence))
            yield Clip(f"one digit, {speaker}", "one", DIGIT[int(digit)], pcm, 8000)
    if not digits:
        raise Absent(f"{directory} has no recordings such as 0_george_{TAKES[0]}.wav.")
    for speaker in sorted({speaker.partition(" ")[0] for speaker, _ in digits}):
        own = {key: pcm for key, pcm in digits.items() if key[0].startswith(f"{speaker} ")}
        for clip in joined(own, 8000):
            if clip.kind == "four digits":
                clip.kind += f", {speaker}"
                yield clip


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
        return text, confidence, (time.perf_counter() - began) * 1e3


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
    silence = np.zeros(rate, np.int16)
    tallies: dict[str, Tally] = {}
    for number, clip in enumerate(spoken):
        if quick and number % 10 or kinds not in clip.kind:
            continue
        pcm = np.concatenate((silence[:rate * BEFORE_MS // 1000], clip.pcm, silence[:rate * AFTER_MS // 1000]))
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
            spoken = dataset(args.digits) if args.digits else clips(args.audio, rate)
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


PARTS = {"memory": memory, "recogniser": recogniser, "voices": voices}


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
