"""Audio as text inside JSON messages: base64 of mu-law, A-law or 16-bit samples.  No dialect; several carry it so.

The usual form goes through the compiled module, in one pass with the message around it.  What that will not
touch (no padding, bits left over, more than was expected) is read here, to the same samples.
The rule: a payload becomes samples or a ProtocolError(1007), and a message goes out in one encoding only.
"""
import binascii

import numpy as np

from .. import ProtocolError
from .._fastpath import alaw_decode, audiocodes_chunk, base64_decode, media_message, media_samples, ulaw_decode
from . import Audible, Audio

ROOM = 1600                 # samples that are taken without new memory: ten usual messages of 8 kHz
PCMU, PCMA, L16 = "PCMU", "PCMA", "L16"
EXPAND = {PCMU: ulaw_decode, PCMA: alaw_decode}


def part(message: dict, name: str, dialect: str) -> dict:
    """The object that an event carries under `name`."""
    value = message.get(name)
    if not isinstance(value, dict):
        raise ProtocolError(1007, f'{dialect}: "{name}" is not an object')
    return value


class Payload:
    """One encoding of audio, both ways."""

    __slots__ = ("encoding", "chunk", "_big_endian", "_expand", "_audible", "_bytes", "_codes")

    def __init__(self, encoding: str, big_endian: bool = False):
        self.encoding = encoding                # PCMU, PCMA or L16
        self.chunk = -1                         # number of the last message that was plain(); -1: it had none
        self._big_endian = big_endian           # of L16
        self._expand = EXPAND.get(encoding)     # bytes to samples; None of L16, which is samples
        self._reserve(ROOM)

    def _reserve(self, samples: int) -> None:
        self._audible = Audible(samples)
        self._bytes = memoryview(bytearray(samples)) if self._expand else self._audible.memory
        self._codes = self._bytes[:0]           # the part of it that the last payload filled

    def plain(self, message) -> Audio | None:
        """The audio of a whole media message like Twilio's, if it is one that can be read in one pass."""
        if self._big_endian:
            return None
        samples, self.chunk = media_samples(message, self._audible.pcm, self.encoding)
        return self._audible.first(samples) if samples > 0 else None

    def streamed(self, message, participant: bytes | None) -> Audio | None:
        """The same of a userStream.chunk like AudioCodes', of this participant."""
        samples = audiocodes_chunk(message, self._audible.pcm, self.encoding, participant)
        return self._audible.first(samples) if samples > 0 else None

    def decode(self, text, dialect: str) -> Audio | None:
        """The samples of a payload, valid until the next; None of no samples."""
        if not isinstance(text, str):
            raise ProtocolError(1007, f"{dialect}: a payload is not text")
        count = base64_decode(text, self._bytes)
        if count < 0:
            count = self._decode_unusual(text, dialect)
        if self._expand is None:
            return self._linear(count // 2)
        if len(self._codes) != count:
            self._codes = self._bytes[:count]
        return self._audible.first(self._expand(self._codes, self._audible.pcm)) if count else None

    def _decode_unusual(self, text: str, dialect: str) -> int:
        """Base64, padded or not, with bits left over or not; how many bytes it is."""
        try:
            codes = binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
        except ValueError:          # binascii.Error is one
            raise ProtocolError(1007, f"{dialect}: a payload is not base64") from None
        if len(codes) > len(self._bytes):
            self._reserve(len(codes))
        self._bytes[:len(codes)] = codes
        return len(codes)

    def _linear(self, samples: int) -> Audio | None:
        if self._big_endian:
            np.asarray(self._audible.pcm)[:samples].byteswap(inplace=True)
        return self._audible.first(samples) if samples else None

    def message(self, before: bytes, pcm, after: bytes) -> bytes:
        """A media message: int16 samples as a payload between its two ends."""
        if self._big_endian:
            pcm = np.asarray(pcm).byteswap()
        return media_message(before, pcm, after, self.encoding)
