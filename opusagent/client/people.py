"""The caller of the demo and of latency-test: a person who has a parcel waiting.

It knows the demo flow's questions, and what to say to each.  The rule: recordings of people where they are installed,
one synthetic voice where they are not, never a mixture, and whoever listens is told which.
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..recording import read_raw, read_wav, resample
from .caller import Say

RECORDINGS = Path("/usr/share/pocketsphinx/test/data")      # Debian's pocketsphinx-testdata
VOICE = "kal16"                 # flite's; the clearest of those that the agent does not use


@dataclass(frozen=True, slots=True)
class Words:
    """What is said in one turn."""
    text: str
    file: str                           # under RECORDINGS
    synthetic: str                      # what is said where that is not there
    barge_in_ms: int | None = None      # into the agent's speech


# The welcome asks for a member number, then come two cards, and the way to the door.  Nobody listens to all of the
# speech about the second card.
TURNS = (
    Words("two nine three four zero", "tidigits/dhd.2934z.raw", "two nine three four zero"),
    Words("ten of clubs", "cards/001.wav", "ten of clubs"),
    Words("seven of clubs", "cards/003.wav", "queen of hearts", barge_in_ms=4000),
    Words("go forward ten meters", "goforward.raw", "go forward ten meters"),
)


def person(rate: int) -> tuple[str, list[Say]]:
    """Who calls, in words, and the turns at `rate`.  ConfigError where neither recordings nor a voice are installed."""
    recorded = all((RECORDINGS / words.file).is_file() for words in TURNS)
    who = "recordings of people, from pocketsphinx-testdata" if recorded else \
        "a synthetic voice, for there are no recordings here; apt install pocketsphinx-testdata brings some"
    speak = _recording if recorded else _synthesis
    return who, [speak(words, rate) for words in TURNS]


def _recording(words: Words, rate: int) -> Say:
    path = RECORDINGS / words.file
    pcm, its_rate = read_wav(path) if path.suffix == ".wav" else read_raw(path)
    return Say.of(telephone(resample(pcm, its_rate, rate), rate), rate, words.text, words.barge_in_ms)


def telephone(pcm: np.ndarray, rate: int) -> np.ndarray:
    """What a telephone line lets through of a studio recording: nothing of the rumble and breath far below 300 Hz,
    which would count as voice where no voice is.  A Butterworth high-pass of 4th order at 200 Hz (G.712 asks for
    more), without delay."""
    spectrum = np.fft.rfft(pcm)
    below = 200 / np.maximum(np.fft.rfftfreq(len(pcm), 1 / rate), 1e-3)
    return np.fft.irfft(spectrum / np.sqrt(1 + below**8), len(pcm)).clip(-32768, 32767).astype(np.int16)


def _synthesis(words: Words, rate: int) -> Say:
    from ..engines.embedded.voices import Voices
    pieces: list[np.ndarray] = []

    def write(pcm: np.ndarray) -> bool:
        pieces.append(pcm)
        return True

    Voices(VOICE).speak(VOICE, words.synthetic, rate, write)
    return Say.of(np.concatenate(pieces), rate, words.synthetic, words.barge_in_ms)
