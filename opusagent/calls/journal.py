"""The journal of a call: every input of its decisions in the order in which they were taken in, and the decisions.

A file of JSON lines.  The first is an object, header(); then come arrays:

    [KIND, [argument, ...], [reading, ...]]     an input, and what the call read from the world while it took it in
    ["=", [WHAT, ...]]                          a decision that the entry before it led to

A reading is a number (of the clock: ns since the reading before), true or false (the connection is congested), or a
list of one (its round trip, ns; or after which samples the words of a segment end).  Nested entries (a window that is
scored while a message is taken in) stand after the one they happened in.  What concerns the other side of a
conversation that is only listened to begins with BESIDE.  Of what passes a call by (unattended.py) Notes make the same
lines, and a FRAME for each that went out so, of which a replay has to know.  The rule: whatever a call learns from
outside passes here, so that a replay can tell it the same again and get the same decisions, bit by bit.
"""
import base64
from collections.abc import AsyncIterator, Callable
from functools import wraps
from typing import Any

import orjson

from .. import EngineError, __version__
from .._fastpath import Notes
from ..dialects import BARE, TEXT
from ..engines.spoken import Spoken

VERSION = 1                     # of the format
DEADLINES = ("openai.first_token_seconds", "openai.filler_seconds", "openai.token_gap_seconds")
BUDGETS = ("limits.tokens", "limits.spoken_seconds")
DECISIVE = ("turns.", "history.", "targets", *DEADLINES, *BUDGETS)  # settings that decisions depend on begin so

# kinds of entries
BEGIN, MESSAGE, DRAINED, LOST, TICK = "begin", "message", "drained", "lost", "tick"
WINDOW, PARTIAL, FINAL, FAILURE = "window", "partial", "final", "failure"
SPEECH, SPEECH_FAILED, ANSWERED_BY = "speech", "speech_failed", "answered_by"
NOT_HANDED_OVER, CUT, BACK, PARTED = "not_handed_over", "cut", "back", "parted"
TOOL, LATE_TOOL, COMPLETE = "tool", "late_tool", "complete"
ASKED, PIECE, ANSWERED, BROKE = "asked", "piece", "answered", "broke"
EASED = "eased"
FRAME = "frame"                 # of the reply, which went out by itself
BESIDE = "beside "              # what kinds of entries and decisions of the other side begin with
RECORDED = "recorded "          # what kinds of entries begin with that are of audio in a client's items
PROMPT = "prompt"               # not an input: what is known of a prompt when the call first wants it
DECISION = "="
SPOKEN = {"spoken": True}       # a piece that is the model's own speech, which SPEECH tells of


def noted(kind: str):
    """For a method by which something comes from outside: it is noted in the call's journal, if it keeps one."""
    def decorate(method):
        @wraps(method)
        def taken_in(self, *args):
            journal = self.journal
            if journal is None:
                return method(self, *args)
            journal.open(kind, args)
            try:
                return method(self, *args)
            finally:
                journal.close()
        return taken_in
    return decorate


def entry(kind: str):
    """As noted(), for what others than the connection call: an error of ours ends this call, and no other notices."""
    def decorate(method):
        taken_in = noted(kind)(method)

        @wraps(method)
        def guarded(self, *args):
            try:
                return taken_in(self, *args)
            except Exception as error:
                self.connection.fault(error)
        return guarded
    return decorate


class Journal:
    """One call's, while it is held.  `file(call id)` opens what it is kept in: append(bytes), which must not block, and
    close().  A call that never starts leaves none."""

    __slots__ = ("today", "notes", "_text", "_file", "_kept", "_lines", "_open", "_loose", "_known", "_asked")

    def __init__(self, file: Callable, header: dict[str, Any]):
        self.today = header["today"]
        self._text = text_of(header["dialect"])
        self.notes = Notes()                    # for what passes the call by: see unattended.py
        self._file = file
        self._kept = None                       # the file; None until the call has an id
        self._lines: list[list] = [header]      # not yet written
        self._open: list[list] = []             # readings of the entries that are open, the innermost last
        self._loose = False                     # the open entry is over as soon as another begins
        self._known: set[tuple] = set()         # prompts that were noted
        self._asked = 0                         # questions to the model

    @property
    def beside(self) -> "Beside":
        """As the other side of a conversation has it."""
        return Beside(self)

    def open(self, kind: str, args: tuple) -> None:
        if self._loose:
            self.close()
        readings: list = []
        if kind == TICK:
            args = (self._since(args[0]),)
        elif kind == MESSAGE:
            opcode, payload = args
            args = (opcode, str(payload, "utf-8") if opcode == self._text else base64.b64encode(payload).decode())
        self.notes.ready = False
        self._lines.append([kind, args, readings])
        self._open.append(readings)

    def close(self) -> None:
        self._loose = False
        self._open.pop()
        if not self._open and self._kept is not None:
            self._kept.append(b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in self._lines))
            self._lines.clear()
            self.notes.ready = True

    def note(self, what: str, *details) -> None:
        """A decision."""
        self.notes.ready = False
        self._lines.append([DECISION, [what, *details]])

    def start(self, call_id: str) -> None:
        """The call has begun: what was noted until now, and all that follows, is kept."""
        self._kept = self._file(call_id)
        self.notes.append = self._kept.append

    def end(self) -> None:
        """Nothing more will come."""
        while self._open:
            self.close()
        self.notes.ready = False
        if self._kept is not None:
            self._kept.close()

    def _since(self, now: int) -> int:
        gone, self.notes.time = now - self.notes.time, now
        return gone

    def _told(self, now: int) -> None:
        """The clock was read; what nobody decides by (a page that shows the call) is not noted."""
        if self._open:
            self._read(self._since(now))

    def _read(self, value) -> None:
        if self._open:
            self._open[-1].append(value)

    def _headed(self) -> int:
        """Where a line goes that stands before the entry that is open: 1 after the header, while that is unwritten."""
        return int(bool(self._lines) and type(self._lines[0]) is dict)

    def words(self, segment, rate: int):
        """Where the words of a segment end: its sound is not kept, and what was heard hangs on that."""
        ends = segment.words(rate)
        self._read([[int(end) for end in ends]])
        return ends

    # -- the world, seen through the journal ---------------------------------------------------------------------------

    def seen(self, server, connection) -> tuple["_Server", "_Connection"]:
        return _Server(server, self), _Connection(connection, self)

    def watch(self, prompt: Callable, llm) -> tuple[Callable, "_Model"]:
        """The studio's prompts and its model."""
        def watched(*key):
            found = prompt(*key)
            if key not in self._known:
                self._known.add(key)
                self.notes.ready = False
                self._lines.insert(self._headed(), [PROMPT, [*key, *((len(found.pcm), found.lead) if found else ())]])
            return found
        return watched, self.watched(llm)

    def watched(self, llm) -> "_Model":
        """A model, of which what it answers is noted."""
        return _Model(llm, self)


class Beside:
    """The journal as the other side of a conversation has it: the same file, and what is of that side says so."""

    __slots__ = ("_journal", "close")
    notes = None                        # everything of that side passes through Python

    def __init__(self, journal: Journal):
        self._journal = journal
        self.close = journal.close

    def open(self, kind: str, args: tuple) -> None:
        self._journal.open(BESIDE + kind, args)

    def note(self, what: str, *details) -> None:
        self._journal.note(BESIDE + what, *details)


class _Server:
    """The worker; what is read of its clock is noted."""

    def __init__(self, server, journal: Journal):
        self._server = server
        self._journal = journal

    def __getattr__(self, name):
        return getattr(self._server, name)

    @property
    def now(self) -> int:
        return self._told(self._server.now)

    def clock(self) -> int:
        return self._told(self._server.clock())

    @property
    def today(self) -> str:
        return self._journal.today

    def _told(self, now: int) -> int:
        self._journal._told(now)
        return now


class _Connection:
    """The connection; what is read of its state is noted."""

    def __init__(self, connection, journal: Journal):
        self._connection = connection
        self._journal = journal

    def __getattr__(self, name):
        return getattr(self._connection, name)

    @property
    def congested(self) -> bool:
        congested = bool(self._connection.congested)
        self._journal._read(congested)
        return congested

    @property
    def rtt_ns(self) -> int:
        rtt = self._connection.rtt_ns
        self._journal._read([rtt])
        return rtt


class _Model:
    """The model's stage; what it answers is noted."""

    def __init__(self, llm, journal: Journal):
        self._llm = llm
        self._journal = journal

    async def reply(self, messages, *more) -> AsyncIterator:
        journal = self._journal
        number = journal._asked
        journal._asked += 1
        journal.open(ASKED, (number,))
        journal.close()
        try:
            async for piece in self._llm.reply(messages, *more):
                journal.open(PIECE, (number, SPOKEN if isinstance(piece, Spoken) else piece))
                try:
                    yield piece
                finally:
                    journal.close()
        except Exception as error:
            journal.open(BROKE, (number, isinstance(error, EngineError), str(error)))
            journal._loose = True
            raise
        journal.open(ANSWERED, (number,))
        journal._loose = True


def text_of(dialect: str) -> int | None:
    """The opcode of messages that are text; None where a message's kind stands in its place, and none is."""
    return None if dialect in BARE else TEXT


def header(dialect: str, query: dict[str, str], agent: str, flow, config, known, today: str) -> dict[str, Any]:
    """The first line.  `today` is the date of the call; `known` are all settings; only those that decisions depend on
    are told, and no secret."""
    settings = {key: config.get(key) for key, setting in known.items()
                if key.startswith(DECISIVE) and not setting.secret and config.get(key) != setting.default}
    query = {name: value for name, value in query.items() if name != "resume"}         # by which a client may come back
    return {"opusagent": __version__, "journal": VERSION, "dialect": dialect, "query": query, "agent": agent,
            "flow": flow.file, "flow_text": flow.source, "today": today, "settings": settings}
