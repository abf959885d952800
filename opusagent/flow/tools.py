"""Tools: what a flow may do beside talking, with the types of what goes in and what comes out.

Declarations and checks only; opusagent/studio/tools.py runs them.  The rules: a tool says what it is (pure, idempotent,
commit), because that decides when it may run; and what a model or a tool returns counts only if it is of the type
that was declared, whoever talked it into something else.
"""

import json
import re
from dataclasses import dataclass, field

from .numerals import AMOUNT, CURRENCIES, TIME, number_of_day

PURE = "pure"                   # it changes nothing: it may run before the turn is certain, and be thrown away
IDEMPOTENT = "idempotent"       # it may run again: it is cancelled with its turn
COMMIT = "commit"               # it changes the world: once in a call, once the turn is certain, never cancelled
EFFECTS = (PURE, IDEMPOTENT, COMMIT)

FAILURE = "failure"             # the result of a tool that failed, or gave what it had not declared
TIMEOUT = "timeout"             # of one that took too long; where no way is given for it, that of a failure
DONE = "done"                   # of one that declares no results

VALUE = 100                     # characters of a text value
ANSWER = 1_000                  # characters of what a tool returned that a model is told

# kind -> (JSON schema of it, what a value of it looks like)
KINDS = {
    "text": {"type": "string", "maxLength": VALUE},
    "digits": {"type": "string", "pattern": "^[0-9]+$"},
    "number": {"type": "integer"},
    "amount": {"type": "string", "description": "as in 23.50 EUR"},
    "date": {"type": "string", "format": "date", "description": "as in 2026-03-03"},
    "time": {"type": "string", "description": "as in 15:30"},
    "yes_no": {"type": "boolean"},
}


WORDS = {           # kind -> what a model is told that a value has to be
    "text": f"text of at most {VALUE} characters", "digits": "digits", "number": "a whole number",
    "amount": "an amount, as in 23.50 EUR", "date": "a day that there is, as in 2026-03-03",
    "time": "a time, as in 15:30", "yes_no": "true or false",
}


def text_of(value: object) -> str | None:
    if type(value) not in (str, int, float):
        return None
    text = " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", str(value)).split())
    return text if len(text) <= VALUE else None


def accepted(kind: str, value: object) -> str | None:
    """The value as a fact keeps it; None if it is not of this kind."""
    if kind == "yes_no":
        return {True: "yes", False: "no", "yes": "yes", "no": "no"}.get(value if type(value) in (bool, str) else None)
    if type(value) is float and value.is_integer():
        value = int(value)                          # some models write 4.0
    text = text_of(value)
    if text is None or type(value) is float and kind != "text":
        return None
    match kind:
        case "digits":
            return text if text.isascii() and text.isdecimal() else None
        case "number":
            return str(int(text)) if re.fullmatch(r"-?[0-9]{1,9}", text) else None
        case "amount":
            found = AMOUNT.match(text)
            return text if found and found[3] in CURRENCIES else None
        case "date":
            return text if number_of_day(text) is not None else None
        case "time":
            return text if TIME.match(text) else None
    return text or None


@dataclass(frozen=True, slots=True)
class Typed:
    """A named value of a kind: an argument of a function, or a fact that comes of its result."""

    name: str                       # as the function has it
    kind: str = "text"              # of KINDS
    choices: tuple[str, ...] = ()   # the only values, if there are any
    fact: str = ""                  # where it comes from, or is kept
    fixed: bool = False             # always that fact: a model neither gives it nor sees it

    def accept(self, value: object) -> str | None:
        found = accepted(self.kind, value)
        return found if not self.choices or found in self.choices else None

    @property
    def wanted(self) -> str:
        """What a value of it is, in words."""
        return f"one of {', '.join(self.choices)}" if self.choices else WORDS[self.kind]

    def schema(self) -> dict:
        return {"type": "string", "enum": list(self.choices)} if self.choices else KINDS[self.kind]


@dataclass(frozen=True, slots=True)
class Tool:
    """One [tools.NAME]."""

    name: str
    line: int
    effect: str = PURE              # of EFFECTS
    about: str = ""                 # what a model is told of it
    run: str = ""                   # "module:function", or FILE.py:function beside the flow's file
    url: str = ""                   # or else where the arguments are posted, as JSON
    folder: str = ""                # of the flow's file
    arguments: tuple[Typed, ...] = ()
    results: dict[str, tuple[Typed, ...]] = field(default_factory=dict)    # name -> the facts that come with it
    timeout_ms: int = 3_000

    def outcome(self, returned: object) -> "Outcome":
        """What came of it: a result's name, or a table of values with the name under "result"."""
        told = clipped(returned)
        values = returned if type(returned) is dict else {}
        name = returned if type(returned) is str and returned in self.results else values.get("result", DONE)
        if type(name) is not str or name not in self.results:
            return Outcome(FAILURE, {}, told, f"The tool {self.name} returned none of its results: "
                                              f"{', '.join(self.results)}.")
        facts = {}
        for typed in self.results[name]:
            value = typed.accept(values.get(typed.name))
            if value is None:
                return Outcome(FAILURE, {}, told, f"The tool {self.name} returned no {typed.kind} as `{typed.name}`, "
                                                  f"which has to be {typed.wanted}.")
            facts[typed.fact] = value
        return Outcome(name, facts, told)


def clipped(returned: object) -> str:
    """What a model is told of it: JSON, of bounded length."""
    try:
        text = returned if type(returned) is str else json.dumps(returned, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        text = ""
    return text[:ANSWER]


@dataclass(frozen=True, slots=True)
class Use:
    """A tool at a place of the flow, and where its results lead."""

    tool: Tool
    line: int
    results: dict[str, str] = field(default_factory=dict)       # result -> state

    def target(self, result: str) -> str | None:
        return self.results.get(result) or (self.results.get(FAILURE) if result == TIMEOUT else None)


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """What a model wants done.  Nothing in it is trusted."""

    name: str
    arguments: object               # a dict, if it is well formed
    id: str = ""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool with its arguments, checked: what is to be run."""

    tool: Tool
    arguments: tuple[tuple[str, str], ...]

    @property
    def key(self) -> tuple:
        """Two calls with the same key do the same."""
        return self.tool.name, self.tool.line, self.arguments


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it went."""

    result: str                     # a declared result, FAILURE or TIMEOUT
    facts: dict[str, str] = field(default_factory=dict)
    told: str = ""                  # what a model is told
    reason: str = ""                # of a failure, for the log

    @property
    def failed(self) -> bool:
        return self.result in (FAILURE, TIMEOUT)


@dataclass(frozen=True, slots=True)
class Target:
    """A state that a model may choose, and the facts that it gives for that."""

    state: str
    line: int
    function: str                   # what it calls to go there
    given: tuple[Typed, ...] = ()


def function(name: str, about: str, arguments: tuple[Typed, ...]) -> dict:
    """A function as models are offered it (OpenAI's form of it)."""
    asked = [typed for typed in arguments if not typed.fixed]
    return {"type": "function", "function": {
        "name": name, "description": about,
        "parameters": {"type": "object", "properties": {typed.name: typed.schema() for typed in asked},
                       "required": [typed.name for typed in asked], "additionalProperties": False}}}


def given(arguments: tuple[Typed, ...], values: object, facts: dict[str, str]) -> tuple[tuple[str, str], ...] | None:
    """The arguments of a function call, all and only those declared, of their kinds; None where they are not that.
    Fixed ones are the facts'."""
    names = {typed.name for typed in arguments if not typed.fixed}
    if type(values) is not dict or values.keys() != names:
        return None
    found = []
    for typed in arguments:
        value = typed.accept(facts.get(typed.fact) if typed.fixed else values[typed.name])
        if value is None:
            return None
        found.append((typed.name, value))
    return tuple(found)


def wrong(arguments: tuple[Typed, ...], values: object) -> str:
    """What a model is told of arguments that given() does not take; "" where they are not to blame."""
    asked = {typed.name: typed for typed in arguments if not typed.fixed}
    if type(values) is not dict or values.keys() != asked.keys():
        return f"Its arguments are {', '.join(asked)}, and no others." if asked else "It has no arguments."
    bad = next((typed for name, typed in asked.items() if typed.accept(values[name]) is None), None)
    return f"{bad.name} must be {bad.wanted}." if bad else ""


def known(arguments: tuple[Typed, ...], facts: dict[str, str]) -> tuple[tuple[str, str], ...] | None:
    """The same where the flow itself calls: every argument is a fact."""
    found = [(typed.name, typed.accept(facts.get(typed.fact))) for typed in arguments]
    return None if any(value is None for _, value in found) else tuple(found)


def unfit(tool: Tool, facts: dict[str, str]) -> str:
    """A sentence on what known() does not take.  The value may be anything that a caller said, and is not told."""
    bad = next(typed for typed in tool.arguments if typed.accept(facts.get(typed.fact)) is None)
    why = f"has to be {bad.wanted}" if facts.get(bad.fact) else "is not known"
    return f"The tool {tool.name} was not called: the fact \"{bad.fact}\" {why}."
