"""Flows written in Python: the same states and checks as in TOML, and tools that are decorated coroutines.

    flow = Flow(start="day", name="the barber")
    flow.state("day", say="Which day?", on=[{"date": True, "fact": "day", "call": "book", "go": "bye"}])
    flow.state("bye", say="See you on {day}.", end=True)

    @flow.tool(effect="commit")
    async def book(day: date): ...

The rule: what is written here becomes the tree that a TOML file would be, each value with the line it was written in,
and goes the same way from there; nothing can be said here that a file could not say.
"""

import inspect
import sys
from contextlib import suppress
from typing import Literal, get_args, get_origin

from .expect import Waits
from .states import Flow as Compiled
from .tomlfile import Document
from .tools import KINDS

# the name of an argument's type -> its kind
TYPES = {"str": "text", "int": "number", "bool": "yes_no", "date": "date", "time": "time"}


def here() -> int:
    """The line that calls what calls this."""
    return sys._getframe(2).f_lineno


class State:
    """A state that belongs to no flow yet: State("day", say="Which day?", ...)."""

    __slots__ = ("name", "values", "line")

    def __init__(self, name: str, **values):
        self.name = name
        self.values = values            # as under [states.NAME]
        self.line = here()


class Flow:
    """A flow that is being written; `values` as at the top of a flow's file, `global_` for [[global]].

    compile() raises ConfigError: a sentence with its line for each thing that is wrong.
    """

    def __init__(self, **values):
        self.file = sys._getframe(1).f_code.co_filename
        if "global_" in values:
            values["global"] = values.pop("global_")
        self.values = values
        self.states: dict[str, dict] = {}
        self.tools: dict[str, dict] = {}
        self.functions: dict[str, object] = {}
        line = here()
        self.lines: dict[tuple, int] = {(key,): line for key in values}
        self.twice: list[tuple[int, str]] = []

    def state(self, name: str, **values) -> None:
        """Adds a state; `values` as under [states.NAME]."""
        self._add(name, values, here())

    def add(self, *states: State) -> None:
        """Adds states that were made before."""
        for state in states:
            self._add(state.name, state.values, state.line)

    def _add(self, name: str, values: dict, line: int) -> None:
        if name in self.states:
            self.twice.append((line, f"there are two states \"{name}\"."))
        self.states[name] = values
        self.lines["states", name] = line

    def tool(self, function=None, **values):
        """Decorates a coroutine function: a tool of its name, whose arguments have the types of their annotations.

        `values` as under [tools.NAME]; its `arguments` are those that the annotations do not say.  str is text, int a
        number, bool yes or no, datetime.date and datetime.time themselves, Literal["am", "pm"] these values, and
        "digits" or "amount" (as a string) those kinds.
        """
        def declare(function):
            line, name = function.__code__.co_firstlineno, function.__name__
            about = inspect.getdoc(function)
            found = {"about": about.partition("\n\n")[0].replace("\n", " ")} if about else {}
            found |= {"run": f"python:{name}"} | values
            given = values.get("arguments", {})
            if name in self.tools:
                self.twice.append((line, f"there are two tools \"{name}\"."))
            found["arguments"] = arguments(function) | given if isinstance(given, dict) else given
            self.tools[name] = found
            self.functions[name] = function
            self.lines["tools", name] = line
            if not inspect.iscoroutinefunction(function):
                self.twice.append((line, f"the tool \"{name}\" is no `async def` function."))
            return function
        return declare if function is None else declare(function)

    def document(self) -> Document:
        tree = {**self.values, "states": self.states}
        if self.tools:
            tree["tools"] = self.tools
        document = Document.of(plain(tree), self.lines, self.file)
        document.faults += self.twice
        return document

    def compile(self, waits: Waits = Waits()) -> Compiled:
        """The flow, checked; `waits` apply where it sets none.  Raises ConfigError."""
        return Compiled.of(self.document(), waits, self.functions)


def arguments(function) -> dict[str, object]:
    """The arguments of a tool, by its annotations: name -> kind, or the list of its values."""
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        kind = meant(parameter.annotation, function)
        if get_origin(kind) is Literal:
            found[name] = list(get_args(kind))
        elif kind is inspect.Parameter.empty:
            found[name] = "text"
        else:
            written = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
            found[name] = TYPES.get(written.rpartition(".")[2], written)
    return found


def meant(annotation: object, function) -> object:
    """What an annotation that is text stands for: with `from __future__ import annotations`, every one is."""
    if isinstance(annotation, str) and annotation not in KINDS:
        with suppress(Exception):
            return eval(annotation, function.__globals__)
    return annotation


def plain(value: object) -> object:
    """The same of tables and lists: tuples and sets are lists."""
    if isinstance(value, dict):
        return {str(key): plain(member) for key, member in value.items()}
    return [plain(member) for member in value] if isinstance(value, list | tuple | set) else value
