"""A flow: the states of a conversation, as they are read from a TOML file.  docs/flows.md describes the file.

Nothing here changes once it is loaded, so all calls share it; what changes in a call is a Dialogue.  The rule: what
can be wrong with a flow is found while it is loaded (here what a value may be, in check.py what the states are to
one another), and all of it is said at once, one sentence with its line each.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from .. import ConfigError
from .check import faults, reached, unknown_words, with_machine
from .expect import NO, SPOKEN_LEAD_INS, YES, Answer, Expect, Search, Waits, grammar, spoken_words
from .phrases import Digits, Group, pattern, words
from .phrasing import SLOT, Text
from .tomlfile import Document, Node, did_you_mean

ALWAYS, ANSWERS = "always", "answers"           # who may interrupt: anybody, an expected answer
HISTORY = 10                # exchanges a dialogue keeps
NAME = re.compile(r"[a-z_][a-z0-9_]*\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Transition:
    """One row: if the caller says or presses this, that follows."""

    answer: Answer
    line: int                       # of the file
    go: str | None = None           # the state it leads to; None: the same one, which stays as it is
    say: Text | None = None         # said first
    fact: str | None = None         # the fact that keeps the answer's value


@dataclass(frozen=True, slots=True)
class Ladder:
    """What is said when the caller gives no answer: the first text, then the second ..., then it goes elsewhere."""

    say: tuple[Text, ...]
    go: str | None = None           # None: after silence the call ends, otherwise the last text is said again
    line: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """One state; `say` is spoken on entering it, or else a language model answers by `prompt`."""

    name: str
    line: int
    say: Text | None
    prompt: str                     # "" if no model is asked
    facts: tuple[str, ...]          # the facts the model is told, and no others
    history: int                    # the latest exchanges it is told
    on: tuple[Transition, ...]      # the state's own rows, then those of the whole flow
    own: int                        # how many of them are its own
    silence: Ladder
    no_match: Ladder
    failure: Ladder
    interruptible: bool             # the caller may speak over what is said here
    end: bool                       # the call ends when it has been said
    expect: Expect

    @property
    def ladders(self) -> tuple[Ladder, ...]:
        return self.silence, self.no_match, self.failure

    def ways(self) -> Iterator[tuple[str, str | None]]:
        """(target, fact that is set on the way) of everything that leads out of here or back to here."""
        if not self.end:
            yield from ((row.go, row.fact) for row in self.on if row.go)
            yield from ((ladder.go, None) for ladder in self.ladders if ladder.go)

    def texts(self) -> Iterator[tuple[Text, str | None]]:
        """(text, fact that is known besides) of all that can be said here or on leaving."""
        if self.say:
            yield self.say, None
        if not self.end:
            yield from ((row.say, row.fact) for row in self.on if row.say)
            yield from ((text, None) for ladder in self.ladders for text in ladder.say)


SILENCE = Ladder((Text("Are you still there?"), Text("I can not hear you. Please say something.")))
NO_MATCH = Ladder((Text("I am sorry, I did not understand that. Please say it again."),))
FAILURE = Ladder((Text("I am sorry, something went wrong. Please say that again."),))


@dataclass(frozen=True, slots=True, eq=False)
class Flow:
    """The whole conversation.  Made by load() or parse(); one object serves any number of calls."""

    file: str                                   # where it was read, for sentences about it
    name: str = ""
    start: str = ""                             # the state a call begins in
    machine: str = ""                           # the state for a call that a machine has answered; "": as any other
    voice: str = ""                             # the engine's name of the voice; "" is its own choice
    persona: str = ""                           # what a language model is told in every state
    filler: Text = Text("One moment please.")   # said when an answer is late
    farewell: Text = Text("I can not hear you, so I will end the call. Goodbye.")   # after silence that leads nowhere
    facts: dict[str, str] = field(default_factory=dict)     # known from the start; a platform may bring other values
    states: dict[str, State] = field(default_factory=dict)
    source: str = ""                            # the text it was read from
    searches: tuple[Search, ...] = ()           # all that a recogniser may be asked for; Expect.id is the index

    @classmethod
    def load(cls, path, waits: Waits = Waits()) -> "Flow":
        """The flow in a file; `waits` apply where it sets none.

        Raises ConfigError: a sentence for each thing that is wrong, on a line of its own.
        """
        try:
            text = Path(path).read_text("utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: the flow cannot be read: {error.strerror}.") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: this is not text in UTF-8.") from None
        return cls.parse(text, str(path), waits)

    @classmethod
    def parse(cls, text: str, name: str, waits: Waits = Waits()) -> "Flow":
        """The flow in `text`; `name` stands for the file in sentences.  Raises ConfigError as load() does."""
        document = Document(text, name)
        flow = _Reader(document, waits).flow()
        unread = {path[1] for path in document.refused if path[0:1] == ("states",) and len(path) > 1}
        document.faults += faults(flow, unread)
        if document.faults:
            raise ConfigError("\n".join(document.sentences()))
        return flow

    def check_words(self, known) -> None:
        """Raises ConfigError for every word of a grammar that is not in `known`, a recogniser's dictionary."""
        found = sorted(unknown_words(self, known))
        if found:
            raise ConfigError("\n".join(f"{self.file}:{line}: {sentence}" for line, sentence in found))

    def values(self) -> dict[str, tuple[str, ...] | None]:
        """What each fact can be, as far as that is known before a call: None is anything."""
        found: dict[str, tuple[str, ...] | None] = dict.fromkeys(self.facts)
        for state in self.states.values():
            for row in state.on:
                if row.fact and row.fact not in self.facts:
                    values, before = few(row.answer.values()), found.get(row.fact, ())
                    found[row.fact] = None if None in (values, before) else tuple(dict.fromkeys(before + values))
        return found

    def prompts(self) -> tuple[str, ...]:
        """Every segment that can be rendered ahead, those that are needed first before the others."""
        values = self.values()
        texts = [self.states[self.start].say, self.filler, *self.states[self.start].failure.say]
        graph = with_machine(self, {name: [*state.ways()] for name, state in self.states.items()})
        for state in map(self.states.get, reached(self.start, graph)):
            texts += [text for text, _ in state.texts()]
            texts += [self.farewell] if not state.end and not state.silence.go else []
        return tuple(dict.fromkeys(segment for text in texts if text for segment in text.ahead(values)))


def few(values: Iterator[str] | None, limit: int = 1_000) -> tuple[str, ...] | None:
    """The values, unless there are more of them than anybody would render."""
    if values is None:
        return None
    found = tuple(value for value, _ in zip(values, range(limit + 1)))
    return found if len(found) <= limit else None


class _Reader:
    """Reads one document.  Each method is the reader of one kind of value: a Node in, the value or None out."""

    def __init__(self, document: Document, default_waits: Waits):
        self.document = document
        self.default_waits = default_waits
        self.lists: dict[str, tuple[Group, ...]] = {}
        self.ladder_keys = {"say": self.steps, "go": Node.text}
        self.row_keys = {
            "phrases": self.phrases, "digits": self.digits, "yes": Node.flag, "no": Node.flag, "free": Node.flag,
            "dtmf": self.keys, "fact": self.name, "say": self.script, "go": Node.text,
        }
        self.state_keys = {
            "say": self.script, "prompt": Node.text, "facts": Node.texts,
            "history": lambda node: node.whole(0, HISTORY), "on": self.rows, "silence": self.ladder,
            "no_match": self.ladder, "failure": self.ladder, "waits": self.waits, "interruptible": Node.flag,
            "end": Node.flag,
        }
        self.flow_keys = {
            "name": Node.text, "start": Node.text, "machine": Node.text, "voice": Node.text,
            "persona": Node.text, "filler": self.fixed,
            "farewell": self.fixed, "facts": self.initial, "lead_ins": self.lead_ins, "lists": self.read_lists,
            "waits": self.waits, "silence": self.ladder, "no_match": self.ladder, "failure": self.ladder,
            "global": self.rows, "states": Node.members,
        }

    def flow(self) -> Flow:
        """Where there are faults in the document afterwards, what is returned is good for checks only."""
        root = self.document.root
        members = root.members()
        if "lists" in members:                      # rows need them, wherever in the file they are
            self.read_lists(members["lists"])
        top = root.read({**self.flow_keys, "lists": lambda node: None})
        nodes = top.pop("states", {})
        if "states" not in members:
            root.fault("a flow needs states: a table [states.NAME] for each.")
        if "start" not in members:
            root.fault("a flow needs `start`: the name of the state that a call begins in.")
        elif nodes and top.get("start", next(iter(nodes))) not in nodes:
            members["start"].fault(f"`start` names \"{top['start']}\", which is no state"
                                   f"{did_you_mean(top['start'], nodes)}.")
        if nodes and top.get("machine", next(iter(nodes))) not in nodes:
            members["machine"].fault(f"`machine` names \"{top['machine']}\", which is no state"
                                     f"{did_you_mean(top['machine'], nodes)}.")
        shared = {key: top.pop(key, None) for key in ("waits", "silence", "no_match", "failure", "global", "lead_ins")}
        if shared["lead_ins"] is None:
            shared["lead_ins"] = SPOKEN_LEAD_INS
        if shared["waits"]:
            self.growing(members["waits"], replace(self.default_waits, **shared["waits"]))
        searches: dict[str, Search] = {}
        states = {name: self.state(name, node, shared, searches) for name, node in nodes.items()}
        return Flow(self.document.name, **top, source=self.document.text, states=states, searches=tuple(searches.values()))

    def state(self, name: str, node: Node, shared: dict, searches: dict[str, Search]) -> State:
        found = node.read(self.state_keys)
        end, own = found.get("end", False), found.get("on", ())
        if end and "on" in found:
            node.fault(f"state \"{name}\" ends the call, so its `on` would never be used.")
            own = ()
        on = () if end else (*own, *(shared["global"] or ()))
        waits = replace(self.default_waits, **{**(shared["waits"] or {}), **found.get("waits", {})})
        if "waits" in found:
            self.growing(node.members()["waits"], waits)
        return State(
            name, node.line, found.get("say"), found.get("prompt", ""), found.get("facts", ()), found.get("history", 0),
            on, len(own),
            silence=found.get("silence") or shared["silence"] or SILENCE,
            no_match=found.get("no_match") or shared["no_match"] or NO_MATCH,
            failure=found.get("failure") or shared["failure"] or FAILURE,
            interruptible=found.get("interruptible", not end),
            end=end,
            expect=expectation(tuple(row.answer for row in on), waits, shared["lead_ins"], searches),
        )

    def rows(self, node: Node) -> tuple[Transition, ...]:
        return tuple(row for row in map(self.row, node.items()) if row)

    def row(self, node: Node) -> Transition | None:
        if node.of(dict) is None:
            return None
        found = node.read(self.row_keys)
        spoken = found.pop("phrases", ()) + found.pop("digits", ())
        for key, group in (("yes", YES), ("no", NO)):
            if found.pop(key, False):
                spoken += (group,)
        answer = Answer(spoken, found.pop("free", False), found.pop("dtmf", ""))
        if all(node.value.get(key, False) is False for key in ("phrases", "digits", "yes", "no", "free", "dtmf")):
            node.fault("this row expects nothing: give it `phrases`, `digits`, `yes`, `no`, `free` or `dtmf`.")
        return Transition(answer, node.line, **found)

    def phrases(self, node: Node) -> tuple[Group, ...] | None:
        """["one", ["two", "too"]] or {value = ["one way", "another"]}: a group for each member."""
        if node.of(list, dict) is None:
            return None
        named = type(node.value) is dict
        groups = [self.group(member, key if named else None) for key, member in
                  (node.members().items() if named else enumerate(node.items()))]
        if named and not groups:
            node.fault(f"`{node.label}` is empty.")
        return tuple(group for group in groups if group) or None

    def group(self, node: Node, value: str | None) -> Group | None:
        forms = []
        for item in [node] if type(node.value) is str else node.items():
            text = item.text()
            try:
                forms += [pattern(text, self.lists)] if text else []
            except ValueError as error:
                item.fault(f"the phrase \"{text}\" {error}.")
        return Group(tuple(forms), value) if forms else None

    def read_lists(self, node: Node) -> None:
        for name, member in node.members().items():
            if self.name(Node(self.document, member.path, name)) and (groups := self.phrases(member)):
                self.lists[name] = groups

    def digits(self, node: Node) -> tuple[Digits] | None:
        if type(node.value) is dict:
            found = node.read({"min": lambda member: member.whole(1, 32), "max": lambda member: member.whole(1, 32)})
            low, high = found.get("min", 1), found.get("max", 32)
            if low > high:
                node.fault(f"`{node.label}` has a min of {low} above its max of {high}.")
            return (Digits(low, max(low, high)),)
        count = node.whole(1, 32)
        return (Digits(count, count),) if count else None

    def keys(self, node: Node) -> str | None:
        keys = node.text()
        if keys and keys.strip("0123456789*#"):
            node.fault(f"`{node.label}` may have the keys 0 to 9, * and #, not \"{keys}\".")
        return keys

    def name(self, node: Node) -> str | None:
        name = node.text()
        if name and not NAME.match(name):
            node.fault(f"\"{name}\" is no name for `{node.label}`: letters, digits and _ only, a letter first.")
            return None
        return name

    def script(self, node: Node) -> Text | None:
        text = node.text()
        if text is None:
            return None
        if re.search(r"[{}]", SLOT.sub("", text)):
            node.fault(f"`{node.label}` has a brace that is no slot; a slot is the name of a fact, as in {{member}}.")
        return Text(" ".join(text.split()), node.line)

    def fixed(self, node: Node) -> Text | None:
        text = self.script(node)
        if text and text.slots:
            slot = text.slots[0]
            node.fault(f"`{node.label}` is rendered before the call, so it can have no slot such as {{{slot}}}.")
        return text

    def steps(self, node: Node) -> tuple[Text, ...] | None:
        items = [node] if type(node.value) is str else node.items()
        return tuple(text for text in map(self.script, items) if text) or None

    def ladder(self, node: Node) -> Ladder | None:
        if type(node.value) in (str, list):         # texts alone, no `go`
            return Ladder(self.steps(node) or (), None, node.line)
        found = node.read(self.ladder_keys)
        if "say" not in node.members() and "go" not in node.members():
            node.fault(f"`{node.label}` does nothing: give it `say`, `go` or both.")
        return Ladder(found.get("say", ()), found.get("go"), node.line)

    def waits(self, node: Node) -> dict[str, int]:
        return node.read(dict.fromkeys(Waits.__slots__, lambda member: member.whole(0, 60_000)))

    def growing(self, node: Node, waits: Waits) -> None:
        if not waits.complete <= waits.free <= waits.incomplete:
            node.fault(f"`{node.label}` must grow from complete ({waits.complete} ms) over free ({waits.free} ms) to "
                       f"incomplete ({waits.incomplete} ms).")

    def initial(self, node: Node) -> dict[str, str]:
        for name, member in node.members().items():
            self.name(Node(self.document, member.path, name))
            member.of(str)
        return dict(node.value) if type(node.value) is dict else {}

    def lead_ins(self, node: Node) -> tuple[tuple[str, ...], ...]:
        return tuple(map(words, node.texts() or ())) if node.value != [] else ()


def expectation(answers: tuple[Answer, ...], waits: Waits, lead_ins: tuple, searches: dict[str, Search]) -> Expect:
    """What these rows expect; `searches` (JSGF -> Search, "" for the language model) gains what it lacks."""
    free = any(answer.free for answer in answers)
    jsgf = "" if free else grammar(answers, lead_ins)
    if not free and not jsgf:
        return Expect(-1, "none", waits, answers, lead_ins)
    kind = "free" if free else "grammar"
    search = searches.setdefault(jsgf, Search(len(searches), kind, jsgf, spoken_words(jsgf)))
    return Expect(search.id, kind, waits, answers, lead_ins)
