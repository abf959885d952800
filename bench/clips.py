"""What people say to a recogniser: clips, each with its words and with the state of FLOW that hears it.

It measures nothing itself.  Recordings of people come as they are, joined to strings of digits, and in states that
do not expect them; where there are none of an answer, synthetic voices say it, and the kind tells.  The rule: nothing
is random but by a seed, so that two recognisers, or two days, hear the same samples.
"""
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from interruptions import OTHERS, TUNED, said
from recordings import noise_below, through_mulaw
from subjects import Absent

from opusagent.recording import read_wav, resample

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
on = [{ phrases = ["[<rank>] <rank> of <suit>", "go (forward | backward) <number> (meter | meters)"], go = "sure" }]
[states.sure]
say = "Go on."
on = [{ yes = true, go = "menu" }, { no = true, go = "one" }]
[states.menu]
say = "Go on."
on = [
    { phrases = ["[my | the] balance"], go = "one" },
    { phrases = ["[my] payments", "a payment"], go = "four" },
    { phrases = ["[an] agent", "[an] operator"], go = "five" },
    { phrases = ["opening hours"], go = "free" },
]
[states.free]
say = "Go on."
on = [{ free = true, go = "end" }]
[states.end]
say = "Go on."
end = true
"""
DIGIT = "zero one two three four five six seven eight nine".split()
STRINGS = 20                    # of four digits, joined from single ones, of each speaker
PAUSES = (60, 100, 150, 250)    # ms between joined digits
TAKES = (2, 12, 22, 32, 42)     # of the dataset's 50 of each digit and speaker: none by which a setting was chosen
BEFORE_MS, AFTER_MS = 400, 150  # of silence around a clip
EXPECTING = ("one", "four", "five", "card", "sure", "menu")     # states that expect something, and no free speech
SPOKEN = {"sure": ("yes", "no", "yes please", "no thank you", "yeah", "that's right"),
          "menu": ("balance", "my balance", "payments", "an agent", "operator", "opening hours")}


@dataclass
class Clip:
    kind: str
    state: str                  # of FLOW, whose search hears it
    text: str
    pcm: np.ndarray             # int16
    rate: int
    found: str = ""             # what was recognised,
    alone: str = ""             # ... and what before it had to be certain
    confidence: float = 0.0


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


def people(directory: Path, rate: int) -> Iterator[Clip]:
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
            for state in EXPECTING:
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
            pcm = np.concatenate((silence, through_mulaw(read_wav(path)[0]), silence))
            digits[f"{speaker} {take}", DIGIT[int(digit)]] = pcm
            yield Clip(f"one digit, {speaker}", "one", DIGIT[int(digit)], pcm, 8000)
    if not digits:
        raise Absent(f"{directory} has no recordings such as 0_george_{TAKES[0]}.wav.")
    for speaker in sorted({speaker.partition(" ")[0] for speaker, _ in digits}):
        own = {key: pcm for key, pcm in digits.items() if key[0].startswith(f"{speaker} ")}
        for clip in joined(own, 8000):
            if clip.kind == "four digits":
                clip.kind += f", {speaker}"
                yield clip


def voices() -> Iterator[Clip]:
    """Answers of which there are no recordings, by synthetic voices, at 8 kHz."""
    for state, answers in SPOKEN.items():
        for voice in (*TUNED, *OTHERS):
            for text in answers:
                yield Clip(f"{state}, synthetic", state, text, through_mulaw(said(text, voice)), 8000)


def astray(answers: list[Clip]) -> Iterator[Clip]:
    """Single digits and commands where another answer is expected."""
    for clip in answers:
        if clip.kind in ("one digit", "commands"):
            for state in EXPECTING:
                if state != clip.state and not (clip.kind == "one digit" and state in ("four", "five")):
                    yield replace(clip, kind="answers of other states", state=state, text="")


def around(clip: Clip, noise: int | None = None, seed: int = 0) -> np.ndarray:
    """The clip as a call brings it, with silence around it; `noise`: dB below the voice, through mu-law."""
    pcm = np.concatenate((np.zeros(clip.rate * BEFORE_MS // 1000, np.int16), clip.pcm,
                          np.zeros(clip.rate * AFTER_MS // 1000, np.int16)))
    return pcm if noise is None else through_mulaw(noise_below(pcm, noise, seed))
