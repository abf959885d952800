"""A flow: the states of a conversation.  docs/flows.md describes the file that it is read from.

Nothing here changes once it is loaded, so all calls share it; what changes in a call is a Dialogue.  The rule: what
can be wrong with a flow is found while it is loaded (in reader.py what a value may be, in check.py what the states
are to one another), and all of it is said at once, one sentence with its line each.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from json import loads
from pathlib import Path

from .. import ConfigError
from .check import faults, reached, unknown_words, with_machine
from .expect import Answer, Expect, Search, Waits
from .manner import Manner
from .phrasing import Text
from .signals import Keys, Recording
from .tomlfile import Document
from .tools import FAILURE, TIMEOUT, Target, Tool, Use

ALWAYS, ANSWERS = "always", "answers"           # who may interrupt: anybody, an expected answer
HISTORY = 10                # exchanges a dialogue keeps
MOST_RENDERED = 1_000       # values of a fact that are rendered ahead
ALWAYS, ANSWERS, NEVER = "always", "answers", "never"       # who may interrupt: anybody, an expected answer, nobody
INTERRUPTS = (ALWAYS, ANSWERS, NEVER)
BACKCHANNELS = ("mm-hm", "mhm", "mm", "hm", "hmm", "uh-huh", "aha", "ah", "oh", "yes", "yeah", "yep", "yup", "ja",
                "okay", "ok", "right", "sure", "exactly", "I see", "good", "great", "fine", "all right", "of course",
                "got it")


@dataclass(frozen=True, slots=True)
class Transition:
    """One row: if the caller says or presses this, that follows."""

    answer: Answer
    line: int                       # of the file
    go: str | None = None           # the state it leads to; None: the same one, which stays as it is
    say: Text | None = None         # said first
    fact: str | None = None         # the fact that keeps the answer's value
    use: Use | None = None          # a tool that is called; its results lead elsewhere, or to `go`


@dataclass(frozen=True, slots=True)
class Branch:
    """A row of `enter`: if the facts are so when the state is entered, the call goes on elsewhere at once."""

    when: dict[str, str]            # fact -> its value; "" is not known, "*" anything known
    go: str
    line: int

    def holds(self, facts: dict[str, str]) -> bool:
        return all(bool(facts.get(name)) if value == "*" else facts.get(name, "") == value
                   for name, value in self.when.items())


@dataclass(frozen=True, slots=True)
class Ladder:
    """What is said when the caller gives no answer: the first text, then the second ..., then it goes elsewhere."""

    say: tuple[Text, ...]
    go: str | None = None           # None: after silence the call ends, otherwise the last text is said again
    line: int = 0


SILENCE = Ladder((Text("Are you still there?"), Text("I can not hear you. Please say something.")))
NO_MATCH = Ladder((Text("I am sorry, I did not understand that. Please say it again."),))
FAILED = Ladder((Text("I am sorry, something went wrong. Please say that again."),))


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """One state; `say` is spoken on entering it, or else a language model answers by `prompt`."""

    name: str
    line: int
    expect: Expect
    say: Text | None = None
    prompt: str = ""                # "" if no model is asked
    facts: tuple[str, ...] = ()     # the facts the model is told, and no others
    profile: bool = False           # it is told those of the flow's profile, too
    history: int = 0                # the latest exchanges it is told
    tools: tuple[Use, ...] = ()     # what it may call
    targets: tuple[Target, ...] = ()        # where it may go
    functions: tuple[dict, ...] = ()        # both, as it is told of them
    on: tuple[Transition, ...] = ()         # the state's own rows, then those of the whole flow
    own: int = 0                    # how many of them are its own
    enter: tuple[Branch, ...] = ()  # looked at before anything is said
    call: Use | None = None         # a tool that is called on entering, while `say` is spoken
    go: str | None = None           # then it goes on there at once, and listens to nothing here
    silence: Ladder = SILENCE
    no_match: Ladder = NO_MATCH
    failure: Ladder = FAILED
    interrupt: str = ALWAYS         # of INTERRUPTS
    backchannels: frozenset[tuple[str, ...]] = frozenset()      # words that do not interrupt
    overhear: int = -1              # the Search for what is said here while the agent speaks
    end: bool = False               # the call ends when it has been said
    transfer: str = ""              # ... or is put through to this destination
    voice: str = ""                 # the engine's name of the voice; "" is its own choice
    rate: float = 1.0               # of speaking; 1 is the voice's own
    language: str = ""              # as in "en-GB"; "" is the voice's own
    voice_line: int = 0             # where the voice is named, and the language
    language_line: int = 0
    play: Recording | None = None   # is heard on entering it, before anything is said
    keys: Keys | None = None        # ... and then these are pressed

    @property
    def interruptible(self) -> bool:
        return self.interrupt != NEVER

    @property
    def manner(self) -> str:
        """How it is spoken here, as engines are told."""
        return Manner(self.voice, self.rate, self.language).name

    @property
    def ladders(self) -> tuple[Ladder, ...]:
        return self.silence, self.no_match, self.failure

    def opening(self, facts: dict[str, str]) -> tuple[str, ...]:
        """The segments on entering it: a recording, keys, its script."""
        given = (text.fill(facts) for text in (self.keys, self.say) if text)
        return ((self.play.text,) if self.play else ()) + tuple(segment for texts in given for segment in texts)

    @property
    def passing(self) -> bool:
        """The call goes on from here without an answer."""
        return self.go is not None or self.call is not None

    def uses(self) -> Iterator[Use]:
        yield from self.tools
        yield from filter(None, (self.call, *(row.use for row in self.on)))

    def ways(self) -> Iterator[tuple[str, frozenset[str]]]:
        """(target, facts that are set on the way) of everything that leads out of here or back to here."""
        nothing = frozenset()
        yield from ((branch.go, nothing) for branch in self.enter)
        if self.end:
            return
        if self.call:
            yield from after(self.call, nothing, self.go)
        elif self.go:
            yield self.go, nothing
        for row in self.on:
            kept = frozenset([row.fact] if row.fact else ())
            if row.use:
                yield from after(row.use, kept, row.go)
            elif row.go:
                yield row.go, kept
        for target in self.targets:
            yield target.state, frozenset(typed.fact for typed in target.given)
        for use in self.tools:
            yield from after(use, nothing, None)
        yield from ((ladder.go, nothing) for ladder in self.heard_ladders() if ladder.go)

    def heard_ladders(self) -> tuple[Ladder, ...]:
        """Those that can be climbed here: a call that is only passing through can but fail."""
        return (self.failure,) if self.passing and not self.on else self.ladders

    def texts(self) -> Iterator[tuple[Text | Keys, str | None]]:
        """(text, fact that is known besides) of all that can be said here or on leaving."""
        yield from ((text, None) for text in (self.keys, self.say) if text)
        if not self.end:
            yield from ((row.say, row.fact) for row in self.on if row.say)
            yield from ((text, None) for ladder in self.heard_ladders() for text in ladder.say)


def after(use: Use, kept: frozenset[str], go: str | None) -> Iterator[tuple[str, frozenset[str]]]:
    """The ways that a tool's results lead; `go` is where the others do."""
    for result in (*use.tool.results, FAILURE, TIMEOUT):
        target = use.target(result) or (go if result in use.tool.results else None)
        if target:
            yield target, kept | {typed.fact for typed in use.tool.results.get(result, ())}


@dataclass(frozen=True, slots=True, eq=False)
class Flow:
    """The whole conversation.  Made by load() or parse(); one object serves any number of calls."""

    file: str                                   # where it was read, for sentences about it
    name: str = ""
    start: str = ""                             # the state a call begins in
    machine: str = ""                           # the state for a call that a machine has answered; "": as any other
    voice: str = ""                             # the engine's name of the voice; "" is its own choice
    rate: float = 1.0
    language: str = ""
    persona: str = ""                           # what a language model is told in every state
    filler: Text = Text("One moment please.")   # said when an answer is late
    parting: Text = Text("I am sorry, I have to end this call here. Goodbye.")      # when the server is stopped
    farewell: Text = Text("I can not hear you, so I will end the call. Goodbye.")   # after silence that leads nowhere
    facts: dict[str, str] = field(default_factory=dict)     # known from the start; a platform may bring other values
    profile: tuple[str, ...] = ()               # the facts that say who the caller is
    transfers: dict[str, str] = field(default_factory=dict)     # name -> where a call can be put through to
    sounds: dict[str, Recording] = field(default_factory=dict)  # segment -> the recording, of those that are played
    tools: dict[str, Tool] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    source: str = ""                            # the text it was read from
    lines: dict[str, int] = field(default_factory=dict)     # of the keys at its top
    searches: tuple[Search, ...] = ()           # a recogniser may be asked for; Expect.id, State.overhear
    functions: dict[str, object] = field(default_factory=dict)  # tool -> its coroutine function, of flows in Python

    @classmethod
    def load(cls, path, waits: Waits = Waits()) -> "Flow":
        """The flow in a file; `waits` apply where it sets none.

        Raises ConfigError: a sentence for each thing that is wrong, on a line of its own.
        """
        return cls.of(Document(text_of_file(path), str(path)), waits)

    @classmethod
    def parse(cls, text: str, name: str, waits: Waits = Waits()) -> "Flow":
        """The flow in `text`, TOML or the source of one that was written in Python; `name` stands for the file in
        sentences.  Raises ConfigError as load() does."""
        try:
            tree = loads(text) if text.startswith("{") else None
        except ValueError:
            tree = None                             # it is no TOML either, and told of as that
        return cls.of(Document(text, name) if tree is None else Document.of(tree, {}, name), waits)

    @classmethod
    def of(cls, document: Document, waits: Waits = Waits(), functions: dict | None = None) -> "Flow":
        """The flow in a document; `functions` are its tools that are at hand.  Raises ConfigError as load() does."""
        from .reader import Reader                  # it makes us
        reader = Reader(document, waits)
        flow = reader.flow()
        document.faults += faults(flow, reader.unread())
        if document.faults:
            raise ConfigError("\n".join(document.sentences()))
        return replace(flow, functions=functions or {})

    def check_words(self, known) -> None:
        """Raises ConfigError for every word of a grammar that is not in `known`, a recogniser's dictionary."""
        refuse(self.file, unknown_words(self, known))

    def check_voices(self, known) -> None:
        """Raises ConfigError for every voice that is not in `known`, the names of a speech engine's."""
        found = {(state.voice_line, state.voice) for state in self.states.values() if state.voice not in ("", *known)}
        refuse(self.file, ((line, f"the speech engine has no voice \"{voice}\"; it has {', '.join(known)}.")
                           for line, voice in found))

    def values(self) -> dict[str, tuple[str, ...] | None]:
        """What each fact can be, as far as that is known before a call: None is anything."""
        found: dict[str, tuple[str, ...] | None] = dict.fromkeys(self.facts)
        for state in self.states.values():
            found |= dict.fromkeys(fact for _, facts in state.ways() for fact in facts if fact not in self.facts
                                   and fact not in {row.fact for row in state.on})
        for state in self.states.values():
            for row in state.on:
                if row.fact and row.fact not in self.facts:
                    values, before = few(row.answer.values()), found.get(row.fact, ())
                    found[row.fact] = None if None in (values, before) else tuple(dict.fromkeys(before + values))
        return found

    def prompts(self, voice: str | None = None) -> tuple[str, ...]:
        """Every segment that can be rendered ahead, those that are needed first before the others; with a `voice`,
        those that it speaks."""
        return tuple(dict.fromkeys(text for name, text in self.renders() if voice is None or name == voice))

    def voices(self) -> tuple[str, ...]:
        """Those that speak in it, each with its rate and language."""
        return tuple(dict.fromkeys((self.manner, *(state.manner for state in self.states.values()))))

    @property
    def manner(self) -> str:
        """How it is spoken where no state says anything else, as engines are told."""
        return Manner(self.voice, self.rate, self.language).name

    def renders(self) -> Iterator[tuple[str, str]]:
        """(voice, segment) of all that can be rendered ahead, those that are needed first before the others."""
        values = self.values()
        first = self.states[self.start]
        texts = [(first.manner, text) for text in (first.say, self.filler, *first.failure.say)]
        graph = with_machine(self, {name: [*state.ways()] for name, state in self.states.items()})
        order = [self.states[name] for name in reached(self.start, graph)]
        for state in order:
            texts += [(state.manner, text) for text, _ in state.texts()]
            texts += [(state.manner, self.farewell)] if not state.end and not state.silence.go else []
        texts += [(voice, text) for voice in self.voices() for text in (self.filler, self.parting)]
        yield from dict.fromkeys((voice, segment) for voice, text in texts if text for segment in text.ahead(values))


def refuse(file: str, found) -> None:
    """ConfigError for what was found, unless that is nothing."""
    if lines := [f"{getattr(line, 'file', file)}:{line}: {sentence}" for line, sentence in sorted(set(found))]:
        raise ConfigError("\n".join(lines))


def text_of_file(path) -> str:
    """Raises ConfigError where there is none."""
    try:
        return Path(path).read_text("utf-8-sig")    # some editors put a mark before it
    except OSError as error:
        raise ConfigError(f"{path}: the flow cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: this is not text in UTF-8.") from None
    except ValueError:                              # of a name that is none
        raise ConfigError(f"{str(path)!r} is no name of a file.") from None


def few(values: Iterator[str] | None) -> tuple[str, ...] | None:
    """The values, unless there are more of them than anybody would render."""
    if values is None:
        return None
    found = tuple(value for value, _ in zip(values, range(MOST_RENDERED + 1)))
    return found if len(found) <= MOST_RENDERED else None
