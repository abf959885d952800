"""pocketsphinx's en-us model, told what a telephone carries.

Its Gaussians describe 13 cepstra of 25 mel bands up to 6.8 kHz.  These are turned back into bands, those that no line
carries are left out, and what remains becomes 9 cepstra of 18 bands, which cepstra.py computes.  That is linear: so the
means go through the same map, of a frame and of its differences to others alike, and variances through its squares, for
the model knows of no correlation before and of none after.  Nothing is estimated of what was not heard, and nothing
had to be learned from recordings.
The rule: the model's files are read and not changed; the decoder is given others in their place.
"""
import struct
from pathlib import Path

import numpy as np

from ... import EngineError
from .cepstra import NARROWING

LEAST = 1e-4                # of a variance, as pocketsphinx has it
QUIET = -8.0                # first cepstrum up to which a frame may be silence: 17 dB below a loud one
AWAY = 200.0                # added to it where a Gaussian of silence is louder: nothing is near it
ORDER = 0x11223344          # begins a file's numbers, in their byte order


def narrowed(directory: Path) -> tuple[bytes, bytes]:
    """The files "means" and "variances" of the model in `directory`, narrowed.  EngineError where it is another one.

    The model's silence was taught with breath and hiss in it.  Over the telephone it swallows the "s" of a "six":
    so it keeps only what is quiet.
    """
    try:
        means, variances = _numbers(directory / "means"), _numbers(directory / "variances")
        silence = _silence(directory / "mdef")
    except (OSError, ValueError, struct.error) as error:
        raise EngineError(f"{directory}: pocketsphinx's model cannot be read: {error}") from None
    means = means @ NARROWING
    variances = np.maximum(variances, LEAST) @ NARROWING ** 2
    loudness = means[silence, 0, :, 0]
    loudness[loudness > QUIET] += AWAY
    return _file(means), _file(variances)


def _numbers(file: Path) -> np.ndarray:
    """What a file of Gaussians says.  float64 [phones, streams, Gaussians, cepstra]"""
    head, ends, data = file.read_bytes().partition(b"endhdr\n")
    order, phones, streams, gaussians = struct.unpack_from("<4i", data)
    lengths = struct.unpack_from(f"<{streams}i", data, 16)
    if order != ORDER or len(set(lengths)) != 1 or lengths[0] != len(NARROWING):
        raise ValueError(f"{file.name} is no file of Gaussians of {len(NARROWING)} cepstra.")
    count = phones * streams * gaussians * lengths[0]
    return np.frombuffer(data, "<f4", count, 20 + 4 * streams).reshape(phones, streams, gaussians, -1).astype(float)


def _file(gaussians: np.ndarray) -> bytes:
    phones, streams, count, cepstra = gaussians.shape
    return b"".join((b"s3\nversion 1.0\nendhdr\n", struct.pack("<4i", ORDER, phones, streams, count),
                     struct.pack(f"<{streams + 1}i", *[cepstra] * streams, gaussians.size),
                     gaussians.astype("<f4").tobytes()))


def _silence(file: Path) -> int:
    """Which of the phones is silence: the tenth number after the text that describes the file."""
    data = file.read_bytes()
    if data[:4] != b"BMDF":
        raise ValueError(f"{file.name} does not begin as a model's definition does.")
    text, = struct.unpack_from("<i", data, 8)
    return struct.unpack_from("<10i", data, 12 + text)[9]
