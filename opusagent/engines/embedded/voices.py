"""The embedded voices: flite's, and espeak-ng where it is installed, as an engine process runs them.

A voice is asked for by the name of a manner (flow/manner.py): which one, how fast, in which language.  The rule: a
voice is loaded when it is first wanted, the default at once, so that one which is not installed is told of at the
start.
"""
from collections.abc import Callable

import numpy as np

from ... import EngineError
from ...flow.manner import manner_of
from . import espeak, flite

NAMES = (*flite.VOICES, "espeak")


class Voices:
    """All of a process."""

    def __init__(self, default: str):
        self.default = default
        self.flite: flite.Library | None = None
        self.loaded: dict[str, flite.Voice | espeak.Voice] = {}
        self.voice(default)

    def voice(self, name: str) -> "flite.Voice | espeak.Voice":
        """The voice of that name; "" is the default.  EngineError if there is none, ConfigError if it is not
        installed."""
        name = manner_of(name).voice or self.default
        if name not in self.loaded:
            if name not in NAMES:
                raise EngineError(f"There is no embedded voice {name!r}; there are {', '.join(NAMES)}.")
            if name == "espeak":
                self.loaded[name] = espeak.Voice()
            else:
                self.flite = self.flite or flite.Library()
                self.loaded[name] = self.flite.voice(name)
        return self.loaded[name]

    def speak(self, name: str, text: str, rate: int, write: Callable[[np.ndarray], bool]) -> bool:
        """speak() of that voice, in that manner."""
        manner = manner_of(name)
        return self.voice(name).speak(text, rate, write, manner.rate, manner.language)
