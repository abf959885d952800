"""A journal as it lies in a file, read back and checked, line by line.

It knows the shape of every line that journal.py writes.  The rule: what a replay is told has that shape, and what has
another, because the file was damaged or edited, is refused in a sentence with its line.
"""
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import orjson

from .. import ConfigError
from ..calls import journal
from ..dialects import SPOKEN

HEADER = {"opusagent": str, "dialect": str, "query": dict, "agent": str, "flow": str, "flow_text": str,
          "settings": dict}
NUMBER = (int, float)
PIECE = (str, dict)
ARGUMENTS = {                   # of an entry: their types
    journal.BEGIN: (dict,), journal.MESSAGE: (int, str), journal.TICK: (int,), journal.DRAINED: (), journal.FRAME: (),
    journal.LOST: (int, str), journal.WINDOW: (NUMBER, int, int, int), journal.PARTIAL: (int, str),
    journal.FINAL: (int, str, NUMBER), journal.FAILURE: (int, str), journal.SPEECH: (int, int, int, int, bool),
    journal.SPEECH_FAILED: (int, int, str), journal.TOOL: (int, int, str, dict, str, str), journal.LATE_TOOL: (dict,),
    journal.ANSWERED_BY: (str,), journal.NOT_HANDED_OVER: (), journal.CUT: (), journal.BACK: (bool,),
    journal.PARTED: (), journal.COMPLETE: (int, int, NUMBER), journal.EASED: (bool, bool), journal.ASKED: (int,),
    journal.PIECE: (int, PIECE), journal.ANSWERED: (int,), journal.BROKE: (int, bool, str),
}
ARGUMENTS |= {journal.BESIDE + kind: ARGUMENTS[kind] for kind in (
    journal.WINDOW, journal.PARTIAL, journal.FINAL, journal.FAILURE, journal.COMPLETE)}
ARGUMENTS |= {journal.RECORDED + kind: ARGUMENTS[kind] for kind in (journal.FINAL, journal.FAILURE)}
FEWER = {journal.BEGIN: 0, journal.FINAL: 2, journal.BESIDE + journal.FINAL: 2,     # arguments that there may be
         journal.RECORDED + journal.FINAL: 2}                                       # ... as well
LARGEST = 1 << 53               # a counter
LONGEST = 3_600_000_000_000     # ns between two readings of the clock, however idle a call is
PROMPT_SECONDS = 3600
NO_ENTRY = "this line is no entry of a journal"


@dataclass(slots=True)
class Entry:
    """A line: an input, or (kind "=") a decision."""

    line: int
    kind: str
    args: list
    readings: list
    at: int = 0                 # ns, by the last reading up to its end


@dataclass(slots=True)
class Tape:
    """A journal as it was read."""

    path: str
    header: dict[str, Any]
    entries: list[Entry]        # inputs and decisions, in the order of the lines
    prompts: dict[tuple, tuple]     # (voice, text, rate) -> (samples, lead), or () for one that was not rendered ahead
    whole: bool                 # the last line is a line

    @property
    def seconds(self) -> float:
        times = [entry.at for entry in self.entries if entry.at]
        return (times[-1] - times[0]) / 1e9 if times else 0.0


class Amiss(Exception):
    """What is wrong with a line, to follow its place."""


def load(path: str) -> Tape:
    """ConfigError where the file is no journal; one that ends in the middle of a line is used up to there."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"{path}: the journal cannot be read: {error.strerror}.") from None
    tape, number = Tape(path, {}, [], {}, lines[-1] == b""), 1
    try:
        tape.header = _header(lines[0])
        for number, line in enumerate(lines[1:-1], 2):
            _read(tape, number, line)
    except Amiss as amiss:
        raise ConfigError(f"{path}:{number}: {amiss}.") from None
    if not tape.entries:
        raise ConfigError(f"{path}:{number}: this journal ends before its call begins.")
    return tape


def _header(line: bytes) -> dict[str, Any]:
    try:
        header = orjson.loads(line)
        version = header["journal"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise Amiss("this is not the journal of a call") from None
    if version != journal.VERSION:
        raise Amiss(f"this journal has format {version!r}, and this version replays {journal.VERSION}")
    for key, kind in HEADER.items():
        if type(header.get(key)) is not kind:
            raise Amiss(f"the journal's header has no {key!r}, or a wrong one")
    if header["dialect"] not in SPOKEN:
        raise Amiss(f"there is no dialect {header['dialect'][:60]!r}")
    if not _texts(header["query"]):
        raise Amiss("the journal's header has a 'query' that is not of texts")
    try:
        date.fromisoformat(header.setdefault("today", "2000-01-01"))
    except (TypeError, ValueError):
        raise Amiss("the journal's header has a 'today' that is no date") from None
    return header


def _read(tape: Tape, number: int, line: bytes) -> None:
    """Puts a line where it belongs.  Amiss."""
    try:
        kind, args, readings = (*orjson.loads(line), [])[:3]
    except (ValueError, TypeError):
        raise Amiss(NO_ENTRY) from None
    if type(kind) is not str or type(args) is not list or type(readings) is not list:
        raise Amiss(NO_ENTRY)
    if kind == journal.PROMPT:
        return _read_prompt(tape, args)
    if not tape.entries and kind != journal.BEGIN:
        raise Amiss("something comes before the call begins")
    if kind != journal.DECISION:
        _check(kind, args)
    if not all(map(_is_reading, readings)):
        raise Amiss("no call has read that")
    steps = [each for each in readings if type(each) is int] + (args if kind == journal.TICK else [])
    before = tape.entries[-1].at if tape.entries else 0
    if before and any(abs(step) > LONGEST for step in steps):
        raise Amiss("more than an hour passes at once")
    tape.entries.append(Entry(number, kind, args, readings, before + sum(steps)))


def _read_prompt(tape: Tape, args: list) -> None:
    fits = _fit(args, (str, str, int)) or _fit(args, (str, str, int, int, int))
    if not fits or not all(0 <= samples <= PROMPT_SECONDS * args[2] for samples in args[3:]):
        raise Amiss("this is no prompt")
    tape.prompts[tuple(args[:3])] = tuple(args[3:])


def _check(kind: str, args: list) -> None:
    if kind not in ARGUMENTS:
        raise Amiss(f"nothing that a call is told is called {kind[:60]!r}")
    kinds = ARGUMENTS[kind]
    if not _fit(args, kinds[:max(len(args), FEWER.get(kind, len(kinds)))]):
        raise Amiss(f"{kind!r} has other arguments")
    if kind in (journal.TOOL, journal.LATE_TOOL) and not all(_texts(arg) for arg in args if type(arg) is dict):
        raise Amiss("a tool's facts are texts")
    if kind == journal.PIECE and type(args[1]) is dict and args[1] != journal.SPOKEN and not (
            args[1].keys() == {"name", "arguments", "id"} and _fit([args[1]["name"], args[1]["id"]], (str, str))):
        raise Amiss("this is no piece of a model's answer")


def _fit(values: list, kinds: tuple) -> bool:
    """They have these types, and no number is one that nothing can have been counted to."""
    return len(values) == len(kinds) and all(
        type(value) in (kind if type(kind) is tuple else (kind,)) and (type(value) is not int or abs(value) < LARGEST)
        for value, kind in zip(values, kinds))


def _is_reading(reading) -> bool:
    """A step of the clock, whether the connection is congested, its round trip, or where words end."""
    if type(reading) is not list:
        return type(reading) is bool or _fit([reading], (int,))
    ends = reading[0] if len(reading) == 1 and type(reading[0]) is list else reading
    return (ends is not reading or len(reading) == 1) and _fit(ends, (int,) * len(ends))


def _texts(values: dict) -> bool:
    return all(type(value) is str for value in values.values())
