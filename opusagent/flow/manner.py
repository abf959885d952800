"""How a text is spoken: voice, rate and language, and all three in one name.

The rule: two texts that are spoken in the same manner have the same name for it, so that the name can stand for all
of it wherever speech is asked for, kept or told of; a manner without rate and language is just its voice.
"""
from typing import NamedTuple


class Manner(NamedTuple):
    """What a flow says about speaking, for all of it or for a state."""

    voice: str = ""                 # the engine's name of it; "" is its own choice
    rate: float = 1.0               # of speaking; 1 is the voice's own
    language: str = ""              # as in "en-GB"; "" is the voice's own

    @property
    def name(self) -> str:
        if self.rate == 1.0 and not self.language:
            return self.voice
        return f"{self.voice}|{self.rate:g}|{self.language}"


def manner_of(name: str) -> Manner:
    """What `name` made of it."""
    voice, _, rest = name.partition("|")
    rate, _, language = rest.partition("|")
    return Manner(voice, float(rate or 1.0), language)
