"""The caller's audio as Realtime sessions take it, whatever they do with it."""
import base64
from collections.abc import Iterator

import numpy as np

from ..._fastpath import Resampler, ulaw_encode

PCM_RATE = 24000                # Hz of PCM in a session; what has 8000 goes as mu-law
MESSAGE_BYTES = 2048            # of audio in one message
BATCH_MS = 60                   # of audio that goes out together, while it comes
SHORTEST_MS = 100               # that can be committed


def form(rate: int) -> dict:
    """Audio at a slot's rate, as a session calls it."""
    return {"type": "audio/pcmu"} if rate == 8000 else {"type": "audio/pcm", "rate": PCM_RATE}


class Coder:
    """From int16 samples at a slot's rate (Hz) to the `audio` of one message after the other."""

    __slots__ = ("resampler",)

    def __init__(self, rate: int):
        self.resampler = None if rate == 8000 else Resampler(rate, PCM_RATE)

    def code(self, pcm: np.ndarray) -> Iterator[str]:
        if self.resampler is not None:
            data = self.resampler.push(pcm).astype("<i2").tobytes()
        else:
            data = bytearray(len(pcm))
            ulaw_encode(pcm, data)
        for at in range(0, len(data), MESSAGE_BYTES):
            yield base64.b64encode(data[at:at + MESSAGE_BYTES]).decode()
