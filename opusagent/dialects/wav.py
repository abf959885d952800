"""WAV streams in base64, as AudioCodes offers them beside raw samples: a header of unknown length, then samples.

The rule: a header that says something else than the format that was agreed on ends the call.
"""
import binascii
import struct

from .. import ProtocolError
from .payload import L16, PCMU

CODECS = {"mulaw": (PCMU, 8000), "lpcm16": (L16, 16000), "lpcm16_8": (L16, 8000), "lpcm16_24": (L16, 24000)}
FORMATS = {f"{container}/{codec}": CODECS[codec] for container in ("raw", "wav") for codec in CODECS}
RIFF = "UklGR"                  # how a chunk that begins with a WAV header begins


def bytes_of(text: str) -> bytes:
    """Base64, padded or not; ProtocolError(1007) for what is none."""
    try:
        return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except ValueError:
        raise ProtocolError(1007, "audiocodes: a chunk is not base64") from None


def wav_header(media_format: str) -> bytes:
    """What a WAV stream of unknown length begins with; b"" for a raw format."""
    if media_format.startswith("raw/"):
        return b""
    encoding, rate = FORMATS[media_format]
    tag, width = (7, 1) if encoding == PCMU else (1, 2)
    head = struct.pack("<4sI4s4sIHHIIHHH", b"RIFF", 0xFFFFFFFF, b"WAVE", b"fmt ", 18, tag, 1, rate, rate * width, width,
                       8 * width, 0)
    return head + struct.pack("<4sI", b"data", 0xFFFFFFFF)


def wav_content(data: bytes, media_format: str) -> bytes:
    """The samples behind a WAV header; ProtocolError for a header that is broken, or of another format."""
    encoding, rate = FORMATS[media_format]
    at, described = 12, None
    while len(data) >= at + 8:
        name, size = struct.unpack_from("<4sI", data, at)
        at += 8
        if name == b"data" and described is not None:
            return data[at:]
        if name == b"fmt " and len(data) >= at + 16:
            tag, channels, its_rate = struct.unpack_from("<HHI", data, at)
            described = tag, channels, its_rate
            if described != (7 if encoding == PCMU else 1, 1, rate):
                raise ProtocolError(1008, f"audiocodes: a WAV header says something else than {media_format}")
        at += size + size % 2
    raise ProtocolError(1007, "audiocodes: a WAV header is not whole")
