"""Audio as text inside JSON messages: base64 of mu-law, A-law or 16-bit samples.  No dialect; several carry it so.

The usual form goes through the compiled module, in one pass with the message around it.  What that will not
touch (no padding, bits left over, more than was expected) is read here, to the same samples.
The rule: a payload becomes samples or a ProtocolError(1007), and a message goes out in one encoding only.
"""
import binascii

from .. import ProtocolError
from .._fastpath import MediaIn, MediaOut, media_message
from . import TEXT, Audible, Audio

ROOM = 1600                 # samples that are taken without new memory: ten usual messages of 8 kHz
PCMU, PCMA, L16 = "PCMU", "PCMA", "L16"
CODE_BYTES = {PCMU: 1, PCMA: 1, L16: 2}


def part(message: dict, name: str, dialect: str) -> dict:
    """The object that an event carries under `name`."""
    value = message.get(name)
    if not isinstance(value, dict):
        raise ProtocolError(1007, f'{dialect}: "{name}" is not an object')
    return value


def unusual(text: str, dialect: str) -> bytes:
    """Base64, padded or not, with bits left over or not."""
    try:
        return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except ValueError:              # binascii.Error is one
        raise ProtocolError(1007, f"{dialect}: a payload is not base64") from None


class Payload:
    """One encoding of audio, both ways: messages that are plain are read by `audible` itself."""

    __slots__ = ("encoding", "audible", "half", "_wire")

    def __init__(self, encoding: str, big_endian: bool = False):
        self.encoding = encoding                # PCMU, PCMA or L16
        self._wire = "L16BE" if encoding == L16 and big_endian else encoding
        self.audible = Audible(ROOM, self._wire)
        self.half = b""                         # of a sample: what follows() has had of it

    def decode(self, text, dialect: str) -> Audio | None:
        """The samples of a payload, valid until the next; None of no samples."""
        if not isinstance(text, str):
            raise ProtocolError(1007, f"{dialect}: a payload is not text")
        audio = self.audible.text(text)
        return audio if audio is not None else self._decode_unusual(text, dialect)

    def _decode_unusual(self, text: str, dialect: str) -> Audio | None:
        """What is there of half a sample is nothing."""
        codes = unusual(text, dialect)
        return self.audible.codes(codes[:len(codes) - len(codes) % CODE_BYTES[self.encoding]])

    def follows(self, text, dialect: str, usual: int) -> Audio | None:
        """As decode(), where a message may end in mid-sample and the next goes on there; one of more than `usual`
        characters is read into memory of its own."""
        if not isinstance(text, str):
            raise ProtocolError(1007, f"{dialect}: a payload is not text")
        audible = self.audible if len(text) <= usual else Audible(ROOM, self._wire)
        if not self.half and (audio := audible.text(text)) is not None:
            return audio
        codes = self.half + unusual(text, dialect)
        whole = len(codes) - len(codes) % CODE_BYTES[self.encoding]
        self.half = codes[whole:]
        return audible.codes(codes[:whole])

    def media_in(self, **more) -> MediaIn:
        """The messages that `audible` reads by itself."""
        return MediaIn(TEXT, self._wire, **more)

    def media_out(self, before: bytes, after: bytes) -> MediaOut:
        """Those that message() makes."""
        return MediaOut(TEXT, self._wire, before, after)

    def message(self, before: bytes, pcm, after: bytes) -> bytes:
        """A media message: int16 samples as a payload between its two ends."""
        return media_message(before, pcm, after, self._wire)
