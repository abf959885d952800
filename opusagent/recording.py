"""Recordings: WAV files in, WAV files out, and the tape a call is recorded on.

It measures and plays nothing.  The rule: whatever is in the file, what comes out is `pcm` (int16, mono) or one
ConfigError that names the file and says what is wrong with it.
"""
import struct
from pathlib import Path

import numpy as np

from . import ConfigError
from ._fastpath import RATES, Resampler, alaw_decode, ulaw_decode

LOWEST, HIGHEST = 4000, 192_000                 # Hz, what any recording has
PCM, FLOAT, ALAW, ULAW, EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
KNOWN = "PCM of 8, 16, 24 or 32 bits, 32-bit float, mu-law and A-law are known"


def read_wav(path: str | Path, rates: tuple[int, ...] | None = RATES) -> tuple[np.ndarray, int]:
    """A WAV file as (pcm, rate in Hz), of these rates, or (None) any that is usual; channels are averaged.  ConfigError
    with one sentence for anything else."""
    data = _contents(path)
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise ConfigError(f"{path} is not a WAV file.")
    chunks = _chunks(data)
    if len(chunks.get(b"fmt ", b"")) < 16:
        raise ConfigError(f"{path} is not a WAV file that says its format.")
    kind, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", chunks[b"fmt "])
    if kind == EXTENSIBLE and len(chunks[b"fmt "]) >= 26:
        kind = struct.unpack_from("<H", chunks[b"fmt "], 24)[0]         # the first two bytes of the sub-format
    if rates is not None and rate not in rates:
        raise ConfigError(f"{path} has {rate} Hz; 8000, 16000, 24000 and 48000 are known.")
    if not LOWEST <= rate <= HIGHEST:
        raise ConfigError(f"{path} has {rate} Hz; {LOWEST} to {HIGHEST} are known.")
    if not channels or block != channels * ((bits + 7) // 8):
        raise ConfigError(f"{path} contradicts itself: {channels} channels of {bits} bits in {block} bytes.")
    body = chunks.get(b"data", b"")
    pcm = _decode(path, body[:len(body) // block * block], kind, bits)
    if not len(pcm):
        raise ConfigError(f"{path} holds no audio.")
    if channels > 1:
        pcm = pcm.reshape(-1, channels).mean(axis=1).round().astype(np.int16)
    return pcm, rate


def read_raw(path: str | Path, rate: int = 16000) -> tuple[np.ndarray, int]:
    """A headerless file of 16-bit little-endian mono samples, as (pcm, rate)."""
    data = _contents(path)
    return np.frombuffer(data[:len(data) & ~1], "<i2").astype(np.int16), rate


def resample(pcm: np.ndarray, rate_in: int, rate_out: int) -> np.ndarray:
    """The whole of a recording at another rate of RATES, the filter's delay taken off its front."""
    if rate_in == rate_out:
        return pcm
    resampler = Resampler(rate_in, rate_out)
    out = np.concatenate((resampler.push(np.ascontiguousarray(pcm)), resampler.flush()))
    return out[resampler.delay:]


def write_wav(path: str | Path, rate: int, *channels: np.ndarray) -> None:
    """16-bit WAV; shorter channels are filled with silence.  ConfigError where it cannot be written."""
    frames = np.zeros((max(len(pcm) for pcm in channels), len(channels)), "<i2")
    for i, pcm in enumerate(channels):
        frames[:len(pcm), i] = pcm
    data = frames.tobytes()
    block = 2 * len(channels)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, PCM, len(channels), rate, rate * block, block, 16)
    body = b"WAVE" + form + struct.pack("<4sI", b"data", len(data)) + data
    try:
        Path(path).write_bytes(struct.pack("<4sI", b"RIFF", len(body)) + body)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.") from None


class Tape:
    """Sound at sample positions from the start of a call; what nobody wrote is silence.  Grows with the call."""

    __slots__ = ("_pcm", "end")

    def __init__(self) -> None:
        self._pcm = np.zeros(8192, np.int16)
        self.end = 0                            # one past the last position written

    def write(self, position: int, pcm: np.ndarray) -> None:
        end = position + len(pcm)
        if end > len(self._pcm):
            self._pcm = np.concatenate((self._pcm, np.zeros(max(end - len(self._pcm), len(self._pcm)), np.int16)))
        self._pcm[position:end] = pcm
        self.end = max(self.end, end)

    def cut(self, position: int) -> None:
        """Silence from `position` on: it was queued and never heard."""
        self._pcm[position:self.end] = 0
        self.end = min(self.end, position)

    def read(self, start: int = 0, end: int | None = None) -> np.ndarray:
        """A view of what is on the tape between two positions; valid until the next write()."""
        return self._pcm[start:self.end if end is None else min(end, self.end)]


def _contents(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise ConfigError(f"{str(path)!r} is no name of a file.") from None


def _chunks(data: bytes) -> dict[bytes, bytes]:
    """The first chunk of each name; a length beyond the end (a file cut short, or a stream) means: the rest."""
    chunks: dict[bytes, bytes] = {}
    at = 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        chunks.setdefault(name, data[at + 8:at + 8 + size])
        at += 8 + size + size % 2
    return chunks


def _decode(path, body: bytes, kind: int, bits: int) -> np.ndarray:
    match kind, bits:
        case (1, 8):
            return ((np.frombuffer(body, np.uint8).astype(np.int16) - 128) << 8)
        case (1, 16):
            return np.frombuffer(body, "<i2").astype(np.int16)
        case (1, 24):
            return np.frombuffer(body, np.uint8).reshape(-1, 3)[:, 1:].copy().view("<i2")[:, 0].astype(np.int16)
        case (1, 32):
            return (np.frombuffer(body, "<i4") >> 16).astype(np.int16)
        case (3, 32):
            return (np.nan_to_num(np.frombuffer(body, "<f4")).clip(-1, 1) * 32767).round().astype(np.int16)
        case (6, 8) | (7, 8):
            pcm = np.empty(len(body), np.int16)
            (alaw_decode if kind == ALAW else ulaw_decode)(body, pcm)
            return pcm
    raise ConfigError(f"{path} is in format {kind:#x} with {bits} bits; {KNOWN}.")
