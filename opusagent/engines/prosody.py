"""The turn model: whether what was said sounds finished, by an ONNX file of the kind smart-turn v3 is.

It knows samples, no calls and no processes.  The model hears the last 8 s at 16 kHz, with silence before what is
shorter: as a waveform [1, 128000], or as the log-mel picture [1, 80, 800] that Whisper is given
(https://github.com/pipecat-ai/smart-turn; the picture is that of https://github.com/openai/whisper, audio.py).  Its
first output is the probability that the turn is complete.  The rule: a file that is nothing of the kind is a
ConfigError.
"""
import importlib.util
import os

import numpy as np

from .. import ConfigError
from ..recording import resample

RATE = 16000                    # Hz
SAMPLES = 8 * RATE
WINDOW, HOP = 400, 160          # samples: 25 ms every 10 ms
BANDS, FRAMES = 80, SAMPLES // HOP
LOUDEST = 8.0                   # decades below the loudest that are told apart
INSTALL = "The turn model needs onnxruntime: pip install 'opusagent[turn]'."


def check(path: str, origin: str) -> None:
    """ConfigError where the file or the package is missing."""
    if not os.path.isfile(path):                # Path.is_file() raises where a directory above it is closed to us
        raise ConfigError(f"{origin}: there is no turn model {path}, or none that can be seen.")
    if not os.access(path, os.R_OK):
        raise ConfigError(f"{origin}: the turn model {path} cannot be read: Permission denied.")
    if importlib.util.find_spec("onnxruntime") is None:
        raise ConfigError(f"{origin}: {INSTALL}")


def bands() -> np.ndarray:
    """[201, 80]: how much of each frequency belongs to each band, on Slaney's mel scale, each band of the same area."""
    def hertz(mel):
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))

    highest = 15 + np.log(8.0) * 27 / np.log(6.4)           # of 8000 Hz
    edges = hertz(np.linspace(0, highest, BANDS + 2))
    frequencies = np.linspace(0, RATE / 2, WINDOW // 2 + 1)[:, None]
    rising = (frequencies - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - frequencies) / np.diff(edges)[1:]
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])


def heard(pcm: np.ndarray, rate: int) -> np.ndarray:
    """int16 at `rate` Hz as the last 8 s at 16 kHz, float32 in -1..1, silence in front."""
    wave = np.zeros(SAMPLES, np.float32)
    pcm = resample(pcm, rate, RATE)[-SAMPLES:]
    wave[SAMPLES - len(pcm):] = pcm / 32768
    return wave


class Picture:
    """Makes the log-mel picture of a wave."""

    def __init__(self):
        self.bands = bands().astype(np.float32)
        self.window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)

    def of(self, wave: np.ndarray) -> np.ndarray:
        """float32 [80, 800] of 8 s, which are brought to no mean and a variance of one before."""
        wave = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
        padded = np.pad(wave, WINDOW // 2, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][:FRAMES]
        power = np.abs(np.fft.rfft(frames * self.window)) ** 2
        levels = np.log10(np.maximum(power @ self.bands, 1e-10))
        levels = np.maximum(levels, levels.max() - LOUDEST)
        return np.ascontiguousarray((levels.T + 4) / 4, np.float32)


class TurnModel:
    """The model, loaded: complete(pcm, rate) is its answer."""

    def __init__(self, path: str):
        """ConfigError where that is no such model."""
        check(path, "turns.model")
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:              # the package's own kinds are not told
            reason = str(error).strip().splitlines()[0][:200]
            raise ConfigError(f"turns.model: {path} is no model that onnxruntime can load: {reason}") from None
        inputs = self.session.get_inputs()
        shape = inputs[0].shape[1:]
        if len(inputs) != 1 or shape not in ([BANDS, FRAMES], [SAMPLES]) or inputs[0].type != "tensor(float)":
            raise ConfigError(f"turns.model: {path} takes {[each.shape for each in inputs]}, and a turn model takes "
                              f"[1, {BANDS}, {FRAMES}] or [1, {SAMPLES}].")
        self.input = inputs[0].name
        self.picture = Picture() if len(shape) == 2 else None
        self.complete(np.zeros(0, np.int16), RATE)          # the first run takes longest

    def complete(self, pcm: np.ndarray, rate: int) -> float:
        """How probable it is, 0 to 1, that who said this (int16 at `rate` Hz, up to now) is done."""
        wave = heard(pcm, rate)
        given = wave if self.picture is None else self.picture.of(wave)
        answer = float(np.ravel(self.session.run(None, {self.input: given[None]})[0])[0])
        return min(1.0, max(0.0, answer)) if answer == answer else 0.5
