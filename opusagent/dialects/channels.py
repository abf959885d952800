"""Audio in binary messages, of one channel or of several interleaved: mu-law or 16-bit little-endian.  No dialect.

One of the channels is heard, and one is spoken.  The rule: messages are of any length; what comes of a sample of all
channels that is not whole yet waits for the rest.
"""
import numpy as np

from .._fastpath import ulaw_decode, ulaw_encode
from . import Audible, Audio

ROOM = 1600                 # samples that are taken without new memory: 200 ms at 8 kHz
SAMPLE_BYTES = {"PCMU": 1, "L16": 2}
SILENCE = {"PCMU": b"\xff", "L16": b"\0\0"}


class Channels:
    """`encoding`: PCMU or L16; `channels`: how many are interleaved; `at`: which of them is ours, from 0."""

    __slots__ = ("_encoding", "_channels", "_at", "_audible", "_rest")

    def __init__(self, encoding: str, channels: int = 1, at: int = 0):
        self._encoding = encoding
        self._channels = channels
        self._at = at
        self._audible = Audible(ROOM)
        self._rest = b""                # what came of a sample of all channels that is not whole yet

    def decode(self, payload) -> Audio | None:
        """What our channel says, valid until the next; None of no samples."""
        if self._channels > 1 or self._rest or len(payload) % SAMPLE_BYTES[self._encoding]:
            payload = self._separated(payload)
        size = len(payload)
        if size > len(self._audible.pcm):
            self._audible.reserve(size)
        if self._encoding == "L16":
            self._audible.memory[:size] = payload
            return self._audible.first(size // 2) if size else None
        return self._audible.first(ulaw_decode(payload, self._audible.pcm)) if size else None

    def _separated(self, payload) -> bytes:
        step = self._channels * SAMPLE_BYTES[self._encoding]
        data = self._rest + bytes(payload)
        whole = len(data) // step * step
        data, self._rest = data[:whole], data[whole:]
        if self._encoding == "PCMU":
            return data[self._at::self._channels]
        return np.frombuffer(data, "<i2")[self._at::self._channels].tobytes()

    def encode(self, pcm) -> bytes:
        """One channel."""
        if self._encoding == "L16":
            return np.asarray(pcm).astype("<i2").tobytes()
        codes = bytearray(len(pcm))
        ulaw_encode(pcm, codes)
        return bytes(codes)

    def interleaved(self, pcm) -> bytes:
        """All channels: ours says this, the others say nothing."""
        codes = self.encode(pcm)
        if self._channels == 1:
            return codes
        width = SAMPLE_BYTES[self._encoding]
        every = np.frombuffer(bytearray(SILENCE[self._encoding] * (len(pcm) * self._channels)), f"V{width}")
        every[self._at::self._channels] = np.frombuffer(codes, f"V{width}")
        return every.tobytes()
