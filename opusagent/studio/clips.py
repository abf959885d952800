"""Clips: the recordings that a flow plays, read, checked and brought to the rates at which prompts are kept.

It plays nothing and keeps nothing (prompts.py does).  The rule: what is wrong with a file is one sentence with the
line of the flow that names it, before any call.
"""
import hashlib
from math import gcd
from pathlib import Path

import numpy as np

from .. import ConfigError
from ..flow import Flow
from ..flow.states import refuse
from ..recording import read_wav

LONGEST_SECONDS = 300
EDGE = 8                        # of a second: of silence around what is resampled, so that its ends do not meet


def read(file: str) -> tuple[np.ndarray, int]:
    """(int16, Hz) of a WAV file.  ConfigError, one sentence."""
    pcm, rate = read_wav(file, rates=None)
    if len(pcm) > LONGEST_SECONDS * rate:
        raise ConfigError(f"{file} is {len(pcm) / rate:.0f} s long; {LONGEST_SECONDS} s are the most.")
    return pcm, rate


def check(flow: Flow) -> None:
    """Raises ConfigError for every recording that cannot be played."""
    found = []
    for recording in flow.sounds.values():
        try:
            if recording.file:
                read(recording.file)
        except ConfigError as error:
            found.append((recording.line, f"what `play` names cannot be played: {error}"))
    refuse(flow.file, found)


def digest(file: str) -> str:
    """Of its contents."""
    return hashlib.blake2b(Path(file).read_bytes(), digest_size=16).hexdigest()


def resampled(pcm: np.ndarray, rate_in: int, rate_out: int) -> np.ndarray:
    """All of a recording at another rate, whatever the two are: its spectrum, cut off at the lower one."""
    if rate_in == rate_out:
        return pcm
    step_in, step_out = rate_in // gcd(rate_in, rate_out), rate_out // gcd(rate_in, rate_out)
    edge = rate_in // EDGE // step_in + 1               # steps before it, and at least so many behind
    steps = edge * 2 + -(-len(pcm) // step_in)
    padded = np.zeros(steps * step_in)
    padded[edge * step_in:edge * step_in + len(pcm)] = pcm
    spectrum = np.fft.rfft(padded)[:steps * step_out // 2 + 1]
    wave = np.fft.irfft(spectrum, steps * step_out) * (step_out / step_in)
    begin, count = edge * step_out, -(-len(pcm) * rate_out // rate_in)
    return np.clip(np.round(wave[begin:begin + count]), -32768, 32767).astype(np.int16)
