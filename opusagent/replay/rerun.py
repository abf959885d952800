"""Replay: a call once more from its journal, on the clock it had, with the real Call and nothing else that is real.

The connection sends nowhere, the engines say what the journal says they said.  The rule: every reading of the clock or
the connection is answered with what was read then; one that was not made then, or is left over, means that the
decisions have parted, and where is told.
"""
import asyncio
import base64
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson

from .. import ConfigError, EngineError, ProtocolError
from .._fastpath import Arena
from ..calls import journal
from ..calls.call import Call
from ..calls.departure import Departures
from ..calls.kinds import call_of
from ..config import Config
from ..continuity import resumption
from ..dialects import SPOKEN, TEXTUAL
from ..engines.spoken import Spoken
from ..flow import Flow, FunctionCall
from ..metrics import Metrics
from ..speech.audio import VadBatch
from ..studio.studio import waits
from .tape import Entry, Tape

PATIENCE = 200                  # turns of the loop in which a model's answer is taken in


class Parted(Exception):
    """What the call does now is not what it did then."""


@contextmanager
def at_line(tape: Tape, line: int) -> Iterator[None]:
    """What goes wrong in it is told with the line.  Parted, ConfigError."""
    try:
        yield
    except Parted as parted:
        raise Parted(f"{tape.path}:{line}: {parted}.") from None
    except ConfigError as error:
        raise ConfigError(f"{tape.path}:{line}: {error}") from None
    except Exception as error:                  # the shapes of lines are checked before; what they say together is not
        raise ConfigError(f"{tape.path}:{line}: the call cannot take this in ({type(error).__name__}: {error}).") \
            from error


class Rehearsal:
    """What a call has for a journal while it is replayed: it notes the decisions, and keeps them."""

    notes = None                    # nothing passes it by

    def __init__(self, readings: "Readings"):
        self.decisions: list[list] = []
        self.beside = journal.Beside(self)
        self._readings = readings

    def open(self, kind, args) -> None:
        """The replay knows: it is the one who tells."""

    def close(self) -> None:
        """As open()."""

    def start(self, call_id: str) -> None:
        """Nothing is written."""

    def end(self) -> None:
        """As start()."""

    def note(self, what: str, *details) -> None:
        self.decisions.append([what, *details])

    def words(self, segment, rate: int):
        return self._readings.words(segment, rate)

    def seen(self, server, connection) -> tuple:
        return server, connection

    def watch(self, prompt, llm) -> tuple:
        return prompt, llm

    def watched(self, llm):
        return llm


class Readings:
    """What the call reads from the world while it takes in the present entry, in the order in which it did then."""

    def __init__(self):
        self.time = 0                           # ns, the clock's last reading
        self.left: deque = deque()

    def take(self, kind: type):
        if not self.left or type(self.left[0]) is not kind:
            raise Parted("it reads what it did not read then")
        return self.left.popleft()

    def clock(self) -> int:
        self.time += self.take(int)
        return self.time

    def words(self, segment, rate: int):
        """Where the words of a segment ended."""
        return np.array(self.take(list)[0])


class Connection:
    """It sends nowhere."""

    def __init__(self, readings: Readings):
        self._readings = readings
        self.closed: tuple | None = None
        self.failed: Exception | None = None    # an error of ours, in what was told last
        self.earlier: dict | None = None        # where the call stood, if it was held elsewhere before

    @property
    def congested(self) -> bool:
        return self._readings.take(bool)

    @property
    def rtt_ns(self) -> int:
        return self._readings.take(list)[0]

    def send(self, opcode, message) -> bool:
        return True

    def close(self, code: int = 1000, reason: str = "") -> None:
        self.closed = (code, reason)

    def fault(self, error: Exception) -> None:
        """The call was closed for what its peer did then, too."""
        if not isinstance(error, ProtocolError):
            self.failed = self.failed or error


class Recogniser:
    """Its words are entries of the journal."""

    def listen(self, ear, position: int) -> None: ...
    def audio(self, call) -> None: ...
    def ask(self, call) -> None: ...
    def finish(self, call, position: int) -> None: ...
    def cancel(self, call) -> None: ...
    def forget(self, call) -> None: ...


class Voice:
    """Its speech is in the journal as lengths: what it sounded like decides nothing."""

    def speak(self, mouth, epoch: int, k: int, text: str, voice: str) -> None: ...
    def played(self, mouth, k: int) -> None: ...
    def cancel(self, mouth) -> None: ...


class Model:
    """Its answers are entries of the journal; `questions` are those that were put, each with its pieces' queue."""

    def __init__(self):
        self.questions: list[asyncio.Queue] = []
        self.hungry: list[asyncio.Queue] = []           # those that wait for their next piece

    async def reply(self, messages, *more) -> AsyncIterator:
        pieces: asyncio.Queue = asyncio.Queue()
        self.questions.append(pieces)
        while True:
            self.hungry.append(pieces)
            piece = await pieces.get()
            self.hungry.remove(pieces)
            if piece is None:
                return
            if isinstance(piece, Exception):
                raise piece
            yield piece


class World:
    """All that a call is made with."""

    def __init__(self, tape: Tape, config: Config):
        self.readings = Readings()
        self.config = config
        self.metrics = Metrics()
        self.today = tape.header["today"]
        self.flow = flow_of(tape, config)
        self.prompts = tape.prompts
        self.silence = np.zeros(max([samples for samples, *_ in filter(None, tape.prompts.values())], default=1),
                                np.int16)
        self.studio = SimpleNamespace(
            flows={tape.header["agent"]: self.flow}, arena=Arena(2), free=[1, 0], hearing=VadBatch("energy"),
            stt=Recogniser(), tts=Voice(), llm=Model(), prompt=self.prompt, search=lambda flow, number: number,
            toolbox=lambda *of: SimpleNamespace(start=lambda *call: SimpleNamespace(cancel=lambda: None)))
        self.connection = Connection(self.readings)
        self.departures = Departures(config, self.metrics)
        self.departures.soon = lambda told: None        # what the call was told of it is in the journal

    def prompt(self, voice: str, text: str, rate: int):
        found = self.prompts.get((voice, text, rate))
        return SimpleNamespace(pcm=self.silence[:found[0]], lead=found[1]) if found else None

    @property
    def now(self) -> int:
        return self.readings.clock()

    def clock(self) -> int:
        return self.readings.clock()

    def call_begins(self, call: Call, start) -> None: ...
    def call_ends(self, call: Call) -> None: ...


MUTE = SimpleNamespace(push=lambda pcm: None, close=lambda: None)      # an ear: the scores are in the journal


def deafen(call) -> None:
    """Nobody scores what its ears hear."""
    ear = getattr(call, "ear", None)                    # a call in text has none
    for each in filter(None, (ear, ear and ear.beside and ear.beside.ear)):
        each.vad = each.vad and MUTE


def refuse_text(tape: Tape) -> None:
    """ConfigError for a call in text: what if its turns had been taken otherwise is its platform's to say."""
    if tape.header["dialect"] in TEXTUAL:
        raise ConfigError(f"{tape.path}: the platform took the turns of this call ({tape.header['dialect']}), so no "
                          "setting would have changed them; replay it without --set.")


def config_of(tape: Tape, changes: dict[str, Any]) -> Config:
    """The settings that the call had, with `changes`.  ConfigError."""
    settings = tape.header["settings"]
    with at_line(tape, 1):
        Config.load(settings, {}, None)
    return Config.load({**settings, **changes}, {}, None)


def flow_of(tape: Tape, config: Config) -> Flow:
    with at_line(tape, 1):
        return Flow.parse(tape.header["flow_text"], tape.header["flow"], waits(config))


class Replay:
    """`run` takes in the whole tape; then `call` is as it was at its end, and `decisions` are those made."""

    def __init__(self, tape: Tape, world: World):
        self.tape = tape
        self.world = world
        self.rehearsal = Rehearsal(world.readings)
        self.call: Call | None = None

    @property
    def decisions(self) -> list[list]:
        return self.rehearsal.decisions

    async def run(self) -> None:
        """Raises Parted at the first entry that the call takes in otherwise than it did."""
        made = 0
        for entry in self.tape.entries:
            if entry.kind == journal.DECISION:
                if made >= len(self.decisions) or plain(self.decisions[made]) != entry.args:
                    now = plain(self.decisions[made]) if made < len(self.decisions) else "nothing"
                    raise Parted(f"{self.tape.path}:{entry.line}: then it decided {entry.args}, now {now}.")
                made += 1
                continue
            with at_line(self.tape, entry.line):
                await self.take_in(entry)
        if made < len(self.decisions) and self.tape.whole:
            raise Parted(f"{self.tape.path}: it decides once more than then: {plain(self.decisions[made])}.")

    async def take_in(self, entry: Entry) -> None:
        readings = self.world.readings
        if entry.kind == journal.TICK:
            readings.time += entry.args[0]
        readings.left.extend(entry.readings)
        await TAKE_IN[entry.kind](self, *entry.args)
        if self.world.connection.failed is not None:
            raise self.world.connection.failed
        deafen(self.call)

    async def _begin(self, earlier: dict | None = None) -> None:
        header = self.tape.header
        self.world.connection.earlier = earlier
        self.call = call_of(header["dialect"])(self.world, self.world.connection,
                                               SPOKEN[header["dialect"]](header["query"]), header["agent"],
                                               self.rehearsal)

    async def _message(self, opcode: int, payload: str) -> None:
        textual = opcode == journal.text_of(self.tape.header["dialect"])
        octets = payload.encode() if textual else base64.b64decode(payload)
        try:
            self.call.on_message(opcode, memoryview(octets))
        except ProtocolError as error:
            self.call.connection.fault(error)

    async def _tick(self, since: int) -> None:
        self.call.tick(self.world.readings.time)

    async def _frame(self) -> None:
        """A Stretch sent it then."""
        playout = self.call.mouth.playout
        if playout is None or playout.ahead(1) is None:
            raise Parted("there is no such frame of its reply")
        self.call.dialect.audio(playout.next_whole())

    async def _asked(self, number: int) -> None:
        await self._until(lambda: len(self.world.studio.llm.questions) > number)

    async def _piece(self, number: int, piece) -> None:
        model = self.world.studio.llm
        question = model.questions[number]
        await self._until(lambda: question in model.hungry)
        question.put_nowait(answered(piece))
        await asyncio.sleep(0)
        await self._until(lambda: question in model.hungry)

    async def _answered(self, number: int) -> None:
        await self._end(number, None)

    async def _broke(self, number: int, expected: bool, sentence: str) -> None:
        await self._end(number, EngineError(sentence) if expected else RuntimeError(sentence))

    async def _end(self, number: int, last: Exception | None) -> None:
        question = self.world.studio.llm.questions[number]
        question.put_nowait(last)
        await self._until(question.empty)
        for _ in range(10):                             # the turn takes note of it
            await asyncio.sleep(0)

    async def _until(self, reached) -> None:
        for _ in range(PATIENCE):
            if reached():
                return
            await asyncio.sleep(0)
        raise Parted("the model is not asked as it was then")


def told(method: str, of=lambda call: call):
    """Tells the call, or its ear or mouth, what it was told then."""
    async def tell(replay: Replay, *args) -> None:
        getattr(of(replay.call), method)(*args)
    return tell


def done_to(function):
    """Does to the call what was done then."""
    async def do(replay: Replay, *args) -> None:
        function(replay.call, *args)
    return do


EAR, MOUTH = attrgetter("ear"), attrgetter("mouth")
OTHER, OTHER_EAR = attrgetter("ear.beside"), attrgetter("ear.beside.ear")

TAKE_IN = {
    journal.BEGIN: Replay._begin, journal.MESSAGE: Replay._message, journal.TICK: Replay._tick,
    journal.DRAINED: told("drained"), journal.LOST: told("ends"), journal.WINDOW: told("on_window"),
    journal.PARTIAL: told("on_partial", EAR), journal.FINAL: told("on_final", EAR),
    journal.FAILURE: told("on_failure", EAR), journal.SPEECH: told("on_speech", MOUTH),
    journal.SPEECH_FAILED: told("on_speech_failed", MOUTH), journal.TOOL: told("on_tool", MOUTH),
    journal.LATE_TOOL: told("on_late_tool", MOUTH), journal.FRAME: Replay._frame,
    journal.ANSWERED_BY: told("answered_by"), journal.NOT_HANDED_OVER: told("not_handed_over"),
    journal.CUT: done_to(resumption.cut), journal.BACK: done_to(resumption.back), journal.PARTED: told("part"),
    journal.COMPLETE: told("on_complete", EAR), journal.EASED: told("ease", MOUTH),
    journal.ASKED: Replay._asked, journal.PIECE: Replay._piece, journal.ANSWERED: Replay._answered,
    journal.BROKE: Replay._broke,
} | {journal.BESIDE + kind: told(method, of) for kind, method, of in (
    (journal.WINDOW, "on_window", OTHER), (journal.PARTIAL, "on_partial", OTHER_EAR),
    (journal.FINAL, "on_final", OTHER_EAR), (journal.FAILURE, "on_failure", OTHER_EAR),
    (journal.COMPLETE, "on_complete", OTHER_EAR))} | {
    journal.RECORDED + kind: told(method, attrgetter("recorded")) for kind, method in (
        (journal.FINAL, "on_final"), (journal.FAILURE, "on_failure"))}


def answered(piece) -> str | FunctionCall | Spoken:
    """A piece of a model's answer, as it comes back from a file."""
    if piece == journal.SPOKEN:
        return Spoken()
    return FunctionCall(**piece) if type(piece) is dict else piece


def plain(value):
    """As it comes back from a file."""
    return orjson.loads(orjson.dumps(value))
