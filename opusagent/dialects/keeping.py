"""What a dialect remembers of a call, as JSON: so that another process can go on speaking it.

It knows the parts that dialects are made of, and no dialect by name but those of OWN, whose parts share what they hold.
The rule: whatever another keeps in an attribute is a number, a text, bytes, a list or dict of those, or one of PARTS;
memory that only lends room is made anew.
"""
import base64
from collections import deque
from functools import cache
from typing import Any

from . import SPOKEN, Audible, Mark, Marks
from .asterisk import Format
from .channels import Channels
from .jambonz import Player
from .payload import Payload
from .realtime import OpenAIRealtime, kept
from .telnyx import Order

# part -> how it is made anew, from its state and the rate of the dialect
PARTS = {
    Channels: lambda state, rate: Channels(state["_encoding"], state["_channels"], state["_at"]),
    Format: lambda state, rate: Format(state["name"]),
    Marks: lambda state, rate: Marks(),
    Order: lambda state, rate: Order(),
    Payload: lambda state, rate: Payload(state["encoding"], state["_wire"] == "L16BE"),
    Player: lambda state, rate: Player(rate),
}
OWN = {OpenAIRealtime: kept}            # state_of(dialect), resumed(state)
BY_NAME = {part.__name__: part for part in PARTS}
LENT = (Audible, memoryview)            # room that the next message fills
PLAIN = frozenset((type(None), bool, int, float, str))      # JSON has these


def state_of(part: Any) -> dict[str, Any]:
    """Every attribute of a dialect or of one of PARTS, as JSON can hold it.  TypeError for what it cannot."""
    if type(part) in OWN:
        return OWN[type(part)].state_of(part)
    state = {}
    for name in _names(type(part)):
        value = getattr(part, name)
        if type(value) in PLAIN:
            state[name] = value
        elif not (isinstance(value, LENT) or callable(value)):
            state[name] = _written(value)
    return state


@cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(name for each in kind.__mro__ for name in getattr(each, "__slots__", ()))


def resumed(name: str, state: dict[str, Any]):
    """The dialect `name` as state_of() found it.  What this version does not know is left out."""
    if SPOKEN[name] in OWN:
        return OWN[SPOKEN[name]].resumed(state)
    dialect = SPOKEN[name]({})
    _fill(dialect, state, state.get("rate", dialect.rate))
    return dialect


def come_back(dialect, state: dict[str, Any]) -> None:
    """The platform goes on, over a new connection, with what was spoken up to `state`: where that needs no more than
    what it says again (a dialect without come_back), nothing."""
    if dialect.come_back is not None:
        _fill(dialect, state, state.get("rate", dialect.rate))
        dialect.come_back()


def _fill(part: Any, state: dict[str, Any], rate: int) -> None:
    known = _names(type(part))
    for name, written in state.items():
        if name in known:
            setattr(part, name, _read(written, rate))


def _written(value: Any) -> Any:
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind in WRITE:
        return WRITE[kind](value)
    if kind in PARTS:
        return {"part": kind.__name__, "state": state_of(value)}
    raise TypeError(f"a dialect cannot keep a {kind.__name__} of a call")


WRITE = {
    bytes: lambda value: {"bytes": base64.b64encode(value).decode()},
    Mark: lambda value: {"mark": value.name, "cleared": value.cleared},
    deque: lambda value: {"deque": [_written(each) for each in value], "most": value.maxlen},
    tuple: lambda value: {"tuple": [_written(each) for each in value]},
    list: lambda value: [_written(each) for each in value],
    dict: lambda value: {"dict": [[_written(name), _written(each)] for name, each in value.items()]},
}


def _read(written: Any, rate: int) -> Any:
    match written:
        case {"bytes": text}:
            return base64.b64decode(text)
        case {"mark": name, "cleared": cleared}:
            return Mark(name, cleared)
        case {"deque": values, "most": most}:
            return deque([_read(each, rate) for each in values], most)
        case {"tuple": values}:
            return tuple(_read(each, rate) for each in values)
        case {"dict": pairs}:
            return {_read(name, rate): _read(each, rate) for name, each in pairs}
        case {"part": name, "state": state}:
            part = PARTS[BY_NAME[name]](state, rate)
            _fill(part, state, rate)
            return part
        case list():
            return [_read(each, rate) for each in written]
    return written
