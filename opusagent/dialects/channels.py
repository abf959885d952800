"""Audio in binary messages, of one channel or of several interleaved: G.711 or 16-bit little-endian.  No dialect.

One of the channels is heard, or both of two, and one is spoken.  The rule: messages are of any length; what comes of a
sample of all channels that is not whole yet waits for the rest.
"""
import numpy as np

from .._fastpath import MediaIn, MediaOut, codes_of
from . import BINARY, Audible, Audio, Both

ROOM = 1600                 # samples that are taken without new memory: 200 ms at 8 kHz
SAMPLE_BYTES = {"PCMU": 1, "PCMA": 1, "L16": 2}
SILENCE = {"PCMU": b"\xff", "PCMA": b"\xd5", "L16": b"\0\0"}


class Channels:
    """`encoding`: PCMU, PCMA or L16; `channels`: how many are interleaved; `at`: which of them is ours, from 0."""

    __slots__ = ("_encoding", "_channels", "_at", "_audible", "_beside", "_rest")

    def __init__(self, encoding: str, channels: int = 1, at: int = 0):
        self._encoding = encoding
        self._channels = channels
        self._at = at
        self._audible = Audible(ROOM, encoding)
        self._beside = Audible(ROOM, encoding)      # the other one of two
        self._rest = b""                # what came of a sample of all channels that is not whole yet

    @property
    def single(self) -> bool:
        return self._channels == 1

    def decode(self, payload) -> Audio | None:
        """What our channel says, valid until the next; None of no samples."""
        if self._rest or (audio := self._audible.codes(payload, self._channels, self._at)) is None:
            return self._pieced(payload)
        return audio

    def both(self, payload) -> Both | None:
        """What both of two channels say, ours first; valid until the next; None of no samples."""
        data = self._whole(payload)
        audio = self._audible.codes(data, 2, self._at)
        return None if audio is None else Both(audio.pcm, self._beside.codes(data, 2, 1 - self._at).pcm)

    def _pieced(self, payload) -> Audio | None:
        return self._audible.codes(self._whole(payload), self._channels, self._at)

    def _whole(self, payload) -> bytes:
        """What is there of whole samples of all channels; the rest waits."""
        step = self._channels * SAMPLE_BYTES[self._encoding]
        data = self._rest + bytes(payload)
        whole = len(data) // step * step
        data, self._rest = data[:whole], data[whole:]
        return data

    def media_in(self, **more) -> MediaIn | None:
        """Messages of whole samples; none while one waits for its rest."""
        return None if self._rest else MediaIn(BINARY, self._encoding, self._channels, self._at, **more)

    def media_out(self, **more) -> MediaOut:
        """Those that encode() makes."""
        return MediaOut(BINARY, self._encoding, **more)

    def encode(self, pcm) -> bytes:
        """One channel."""
        return codes_of(pcm, self._encoding)

    def interleaved(self, pcm, other=None) -> bytes:
        """All channels: ours says this, the one of two beside it says `other`, or nothing, as any others do."""
        codes = self.encode(pcm)
        if self._channels == 1:
            return codes
        width = SAMPLE_BYTES[self._encoding]
        every = np.frombuffer(bytearray(SILENCE[self._encoding] * (len(pcm) * self._channels)), f"V{width}")
        every[self._at::self._channels] = np.frombuffer(codes, f"V{width}")
        if other is not None:
            every[1 - self._at::2] = np.frombuffer(self.encode(other), f"V{width}")
        return every.tobytes()
