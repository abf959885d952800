"""The recogniser `sherpa`: a streaming model of sherpa-onnx, in engine processes as the embedded one is.

In the worker it is the embedded engine's channel to them (stages.py); Recogniser and Utterance are what such a process
runs.  The model is a directory of the user's, as sherpa-onnx's own downloads are.  The rule: it is loaded once for each
process, before the first call; an utterance is a stream of its own.
"""
import importlib.util
import math
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .. import ConfigError
from ..config import Config
from .embedded import stages
from .rates import resampler

INSTALL = "The recogniser sherpa needs sherpa-onnx: pip install 'opusagent[sherpa]'."
PARTS = ("tokens.txt", "encoder", "decoder", "joiner")      # of a transducer
POLL = 2                        # pieces decoded between two looks at a text
TAIL_MS = 400                   # of silence after an utterance: a model looks ahead
RATE = 16000                    # Hz that models are made for


class Stt(stages.Stt):
    """sherpa-onnx in engine processes."""

    def __init__(self, config: Config):
        if importlib.util.find_spec("sherpa_onnx") is None:
            raise ConfigError(INSTALL)
        try:
            files(config.sherpa.model)
        except ConfigError as error:
            raise ConfigError(f"{config.origin('sherpa.model', 'stt')}: {error}") from None
        super().__init__(config)
        self.model = config.sherpa.model

    async def open(self, arena, searches) -> None:
        await self.host.open(arena, {"recogniser": "sherpa", "model": self.model, "searches": []})


def files(model: str) -> dict[str, str]:
    """The files of a model by what they are.  ConfigError where they are not all there."""
    if not model:
        raise ConfigError("the recogniser sherpa needs a model: set sherpa.model to the directory of a streaming "
                          "transducer.")
    directory, found = Path(model), {}
    if not os.path.isdir(model):                # Path.is_dir() raises where a directory above it is closed to us
        raise ConfigError(f"there is no directory {model}, or none that can be seen.")
    if not os.access(model, os.R_OK | os.X_OK):
        raise ConfigError(f"the directory {model} cannot be read: Permission denied.")
    for part in PARTS:
        names = sorted(directory.glob(part if part == "tokens.txt" else f"{part}*.onnx"),
                       key=lambda path: (".int8." not in path.name, path.name))     # the smaller ones
        if not names:
            raise ConfigError(f"{model} has no {part if '.' in part else part + '*.onnx'}, "
                              "as a streaming transducer has.")
        if not os.access(names[0], os.R_OK):
            raise ConfigError(f"{names[0]} cannot be read: Permission denied.")
        found[part.removesuffix(".txt")] = str(names[0])
    return found


# -- in an engine process ----------------------------------------------------------------------------------------------

def recogniser(setup: dict, searches: Iterable) -> "Recogniser":
    return Recogniser(setup["model"])


class Recogniser:
    """One model, for all utterances of a process."""

    def __init__(self, model: str):
        try:
            from sherpa_onnx import OnlineRecognizer
        except ImportError as error:
            raise ConfigError(f"{INSTALL} ({error})") from None
        try:
            self.model = OnlineRecognizer.from_transducer(
                **files(model), num_threads=1, sample_rate=RATE, feature_dim=80, decoding_method="greedy_search",
                enable_endpoint_detection=False, provider="cpu")
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ConfigError(f"The model in {model} cannot be loaded: {str(error)[:200] or 'it is none'}.") from None

    def start(self, search: int, rate: int, level: float = 0.0) -> "Utterance":
        return Utterance(self.model, rate)

    def short(self) -> str:
        """Streams are made when they are wanted."""
        return ""

    def make(self, kind: str) -> None:
        """There is nothing to make ahead."""


class Utterance:
    """As the embedded recogniser's: feed() and step(), partial() on the way, finish() or abandon()."""

    level = 0.0                 # nothing is learned of a caller

    def __init__(self, model, rate: int):
        self.model = model
        # sherpa-onnx would do this as well, and write three lines to stderr about every utterance
        self.resampler = resampler(rate, RATE) if rate != RATE else None
        self.stream = model.create_stream()
        self.unseen = 0                         # pieces decoded since the last partial()

    def feed(self, pcm: np.ndarray) -> None:
        """More of it, int16; step() decodes it."""
        self._take(pcm if self.resampler is None else self.resampler.push(pcm))

    def _take(self, pcm: np.ndarray) -> None:
        self.stream.accept_waveform(RATE, pcm.astype(np.float32) / 32768)

    def step(self) -> bool:
        """Decode a piece, so that utterances share a process fairly; True while more are pending."""
        if self.model.is_ready(self.stream):
            self.model.decode_stream(self.stream)
            self.unseen += 1
        return self.model.is_ready(self.stream)

    def hurry(self) -> None:
        """What a model looks ahead at is not there yet: its text so far is what there is."""

    def partial(self) -> str:
        self.unseen = 0
        return plain(self.model.get_result(self.stream))

    @property
    def due(self) -> bool:
        return self.unseen >= POLL

    def finish(self) -> tuple[str, float]:
        """Nothing more follows: (text, confidence: the geometric mean of its tokens' probabilities)."""
        if self.resampler is not None:
            self._take(self.resampler.flush())
        self._take(np.zeros(RATE * TAIL_MS // 1000, np.int16))
        self.stream.input_finished()
        while self.step():
            pass
        logs = self.model.ys_probs(self.stream)
        return self.partial(), math.exp(min(0.0, sum(logs) / len(logs))) if logs else 0.0

    def abandon(self) -> None:
        """Nobody wants to know any more."""


def plain(text: str) -> str:
    """Models of capital letters shout."""
    text = text.strip()
    return text.lower() if text.isupper() else text
