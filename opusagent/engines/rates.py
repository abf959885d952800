"""Samples of a voice at a rate that no line has (22,050 Hz, say), on their way to one that lines have.

The compiled Resampler knows the rates of telephony; this one knows any, in numpy, where speech is made and not where
it is carried.  Windowed sinc, one row of taps for each phase: J. O. Smith, "Digital Audio Resampling Home Page".
The rule: it behaves as a Resampler does, and n samples in are n * out / in samples out.
"""
from functools import cache
from math import gcd

import numpy as np

from .._fastpath import RATES, Resampler

ZEROS = 16                      # of the sinc on each side
BETA = 8.0                      # of the Kaiser window: images below -70 dB
PASSED = 0.92                   # of the lower rate's band
SLOWEST, FASTEST = 6000, 192_000        # Hz, what is believed to be speech


@cache
def rows(up: int, down: int) -> np.ndarray:
    """Taps by phase, (up, 2 * half): what a sample between two others is made of."""
    band = PASSED * min(1.0, up / down)
    half = int(np.ceil(ZEROS / band))
    at = np.arange(1 - half, half + 1)[None, :] - np.arange(up)[:, None] / up
    taps = band * np.sinc(band * at) * np.i0(BETA * np.sqrt(np.maximum(0, 1 - (at / half) ** 2))) / np.i0(BETA)
    return (taps / taps.sum(1, keepdims=True)).astype(np.float32)


class AnyResampler:
    """A stream of int16 samples from one rate to another."""

    delay = 0                   # output samples: none comes before all that it is made of is there

    def __init__(self, rate_in: int, rate_out: int):
        common = gcd(rate_in, rate_out)
        self.up, self.down = rate_out // common, rate_in // common
        self.rows = rows(self.up, self.down)
        self.half = self.rows.shape[1] // 2
        self.held = np.zeros(self.half - 1, np.float32)     # inputs that later outputs are made of
        self.begin = 1 - self.half                          # number of the first of these
        self.made = 0                                       # outputs

    def push(self, pcm: np.ndarray) -> np.ndarray:
        held = np.concatenate((self.held, np.asarray(pcm, np.float32)))
        end = self.begin + len(held)                        # an output at input time t is made of t-half+1 ... t+half
        count = max(0, ((end - self.half) * self.up - 1) // self.down + 1 - self.made)
        steps = np.arange(self.made, self.made + count) * self.down
        first = steps // self.up - self.half + 1 - self.begin
        taps = held[first[:, None] + np.arange(2 * self.half)] if count else np.zeros((0, 2 * self.half), np.float32)
        out = np.einsum("ij,ij->i", taps, self.rows[steps % self.up])
        self.made += count
        keep = self.made * self.down // self.up - self.half + 1
        self.held, self.begin = held[keep - self.begin:], keep
        return np.clip(np.rint(out), -32768, 32767).astype(np.int16)

    def flush(self) -> np.ndarray:
        """The rest, as if silence followed."""
        rest = -(-(self.begin + len(self.held)) * self.up // self.down) - self.made
        return self.push(np.zeros(self.half + 1, np.int16))[:max(0, rest)]


def of_speech(rate: int) -> bool:
    return SLOWEST <= rate <= FASTEST


def resampler(rate_in: int, rate_out: int):
    """A stream from one rate to the other; ValueError where `rate_in` is none of speech."""
    if rate_in in RATES:
        return Resampler(rate_in, rate_out)
    if not of_speech(rate_in):
        raise ValueError(f"{rate_in} Hz is no rate of speech")
    return AnyResampler(rate_in, rate_out)
