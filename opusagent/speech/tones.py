"""Tones: keys as they sound, for platforms that press none for us (DTMF, ITU-T Q.23 and Q.24).

Pure.  The rule: a key sounds as long as any receiver wants, and so does the silence after it.
"""
from functools import lru_cache

import numpy as np

ROWS, COLUMNS = (697, 770, 852, 941), (1209, 1336, 1477)   # Hz
PAD = ("123", "456", "789", "*0#")
FREQUENCIES = {key: (low, high) for low, row in zip(ROWS, PAD) for high, key in zip(COLUMNS, row)}
TONE_MS, GAP_MS = 100, 80       # a receiver must take 40 of each
RAMP_MS = 2                     # up and down: no click
LEVEL = 0.2                     # of full scale, the lower tone; the higher one is 2 dB louder, as lines lose more there
TWIST = 10 ** (2 / 20)
HALF_SECOND_MS = 500


@lru_cache(256)
def tone(key: str, rate: int) -> np.ndarray:
    """A key and the silence after it, int16 at `rate` Hz.  KeyError for what is no key."""
    low, high = FREQUENCIES[key]
    at = np.arange(rate * TONE_MS // 1000) / rate
    sound = np.sin(2 * np.pi * low * at) + TWIST * np.sin(2 * np.pi * high * at)
    ramp = rate * RAMP_MS // 1000
    sound[:ramp] *= np.linspace(0, 1, ramp)
    sound[-ramp:] *= np.linspace(1, 0, ramp)
    return np.concatenate((sound * LEVEL * 32767, np.zeros(rate * GAP_MS // 1000))).astype(np.int16)


def tones(keys: str, rate: int) -> np.ndarray:
    """Keys one after another, int16 at `rate` Hz."""
    return np.concatenate([tone(key, rate) for key in keys]) if keys else np.zeros(0, np.int16)
