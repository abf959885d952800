"""Callers made of recordings of people, at 8 kHz mu-law, and what our ear and the recogniser make of them.

It measures nothing itself.  The rule: a caller's words are known with the sample at which each has ended, by hand where
the recordings are of single words and in proportion to their letters where not; who made them hesitate knows where.
"""
import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from subjects import Absent

from opusagent._fastpath import Vad, ulaw_decode, ulaw_encode
from opusagent.engines.embedded import recogniser as embedded
from opusagent.recording import read_wav, resample
from opusagent.speech.acoustics import STRETCH_MS, Echo
from opusagent.speech.audio import VadBatch, first_voiced, last_voiced, voiced

RATE = 8000
PAUSES_MS = (100, 200, 300, 400, 500, 600, 700, 800, 900)
HESITATION_MS = (300, 500, 700)
NOISES_DB = (None, 20, 10)
LEAD_MS, TAIL_MS = 600, 2500
FREE_KINDS = {"read": "sentences", "speech": "sentences", "command": "commands and numbers",
              "digits": "commands and numbers"}        # of the recordings, where anything may be said


@dataclass
class Caller:
    kind: str                           # "digits", "commands", "sentences", "commands and numbers", or a sound's
    noise: int | None                   # dB below the speech; None: clean
    state: str                          # of FLOW
    pcm: np.ndarray                     # int16 at 8 kHz, LEAD_MS of silence before, TAIL_MS after
    words: list[tuple[int, str]]        # (sample after it, all that was said up to there)
    begins: int = 0                     # first voiced sample
    ends: int = 0                       # after the last one
    windows: list[tuple] = field(default_factory=list)          # (score, samples, quiet), by the real ear
    partials: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    sounds: dict[int, float] = field(default_factory=dict)      # pause -> how complete the turn model finds it


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
    pcm = np.concatenate([*pieces, silence(TAIL_MS)])
    if noise is not None:
        pcm = noise_below(pcm, noise, dice.randrange(1 << 30))
    return Caller(kind, noise, state, through_mulaw(pcm), words, begins, ends)


def noise_below(pcm: np.ndarray, db: int, seed: int) -> np.ndarray:
    """With white noise so far below its voiced parts, from its first sample to its last.  int16"""
    clean = pcm.astype(np.float64)
    power = np.mean(clean[voiced_samples(clean)] ** 2) / 10 ** (db / 10)
    clean += np.random.default_rng(seed).normal(0, np.sqrt(power), len(clean))
    return np.clip(clean, -32768, 32767).astype(np.int16)


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
            for pause in HESITATION_MS:
                found.append(caller(FREE_KINDS[row["kind"]], "free", hesitating(pcm, row["transcript"], pause), noise,
                                    dice))
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


def recognise(caller: Caller, recogniser: embedded.Recogniser, search: int,
              asked: int | None = None) -> list[tuple[int, str]]:
    """(samples heard, text), whenever the text changes; the utterance begins 400 ms before the caller does.  `asked`:
    the sample at which the best text is wanted, though the loudness is not certain."""
    utterance, texts, begin = recogniser.start(search, RATE), [], caller.begins - 400 * RATE // 1000
    for at in range(begin, caller.ends + RATE, 256):
        utterance.feed(caller.pcm[at:at + 256])
        if asked is not None and at + 256 >= asked:
            utterance.hurry()
            asked = None
        while utterance.step():
            pass
        text = utterance.partial()
        if text and (not texts or texts[-1][1] != text):
            texts.append((at + 256, text))
    utterance.abandon()
    return texts
