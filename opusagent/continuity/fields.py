"""Parts of a call as JSON can hold them, by the names of their attributes, and back."""
from functools import cache
from operator import attrgetter

from ..flow import Reply

REPLY = ("kind", "turn", "next", "say", "messages", "words", "facts", "caller", "rung", "end", "interruptible",
         "interrupt", "part", "transfer", "voice", "rate", "language")


def fields(part, names: tuple[str, ...]) -> dict:
    return dict(zip(names, _reader(names)(part)))


@cache
def _reader(names: tuple[str, ...]) -> attrgetter:
    return attrgetter(*names)


def fill(part, state: dict, names: tuple[str, ...]) -> None:
    for name in names:
        if name in state:
            setattr(part, name, state[name])


def reply_of(state: dict) -> Reply:
    known = {name: value for name, value in state.items() if name in REPLY}
    return Reply(**known | {name: tuple(known[name]) for name in ("say", "messages", "words")})
