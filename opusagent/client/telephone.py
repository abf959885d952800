"""The simulated caller's telephone: a WebSocket to the server, and 20 ms of sound at a time.

It decides nothing (caller.py does) and prints nothing (commands.py does).  The rule: frames leave at absolute
deadlines from the start of the call, and how late one left is counted, for that is the caller's fault, not the
server's.
"""
import asyncio
import os
import secrets
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from urllib.parse import SplitResult, urlsplit

import numpy as np
import uvloop

from .. import ConfigError, ProtocolError
from ..dialects import BARE_CALLERS, CALLERS, TEXTUAL, Audio, Clear, Mark, Stop, dialect_of
from ..transport.http11 import ClientHandshake
from ..transport.websocket import ABNORMAL, CLOSED, WebSocket
from ..trust import signing
from .bareline import BareLine
from .caller import OVER, PATIENCE_MS, Ear, Measured, Say, Script

FRAME_NS = 20_000_000
REDIAL_SECONDS = 0.1        # before each attempt to come back
COME_BACK_SECONDS = 10      # for all of them
MAX_MESSAGE = 16 << 20
DIAL_SECONDS = 10
NAMED = ("pcm", "openai-realtime")      # dialects whose calls are named in the URL
HANG_UP_SECONDS = 2         # for the server's close frame


def address(url: str) -> SplitResult:
    """The parts of a WebSocket address; ConfigError for anything else."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("ws", "wss") and parts.hostname and parts.port != 0
        known = known and url.isascii() and url.isprintable() and " " not in url
    except ValueError:                  # a port that is no number, a bracket that stands alone
        known = False
    if not known:
        raise ConfigError(f"{url} is not a WebSocket address; one is written ws://HOST:PORT/ws/DIALECT[/AGENT].")
    return parts


def port_of(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "wss" else 80)


def spoken_to(url: str, name: str | None = None) -> str:
    """The dialect that `url` is to be called in: the one named, or the one its path names."""
    if name in BARE_CALLERS:
        raise ConfigError(f"{url} is called over TCP in the dialect {name}: write tcp://HOST:PORT.")
    name = name or dialect_of(address(url).path)
    if not name:
        raise ConfigError(f"{url} does not say what dialect to call in; --dialect does: {', '.join(CALLERS)}.")
    if name in TEXTUAL:
        raise ConfigError(f"{name} carries text, not audio: `opusagent call` speaks it, with --say WORDS.")
    if name not in CALLERS:
        raise ConfigError(f"There is no caller for the dialect {name}; there are {', '.join(CALLERS)}.")
    return name


def run(name: str, command: Coroutine[None, None, int]) -> int:
    """Runs a command that calls a server to its exit code; a call that fails becomes one sentence on stderr and 1."""
    try:
        return uvloop.run(command)
    except ProtocolError as error:
        sentence = f"The server refused the call with {error.code}: {error.reason}"
    except TimeoutError:
        sentence = "The server did not answer in time."
    except OSError as error:
        sentence = f"The server cannot be reached: {error.strerror or error}."
    print(f"opusagent {name}: {sentence}", file=sys.stderr)
    return 1


def samples_of(rate: int) -> int:
    """Of one frame."""
    return rate * FRAME_NS // 1_000_000_000


def line_rate(url: str, name: str) -> int:
    """Hz of the audio of such a call."""
    return CALLERS[name](address(url)).rate


def place(url: str, name: str):
    """A call with an id of its own: the address to dial, and the caller's side of the dialect `name`."""
    if name in BARE_CALLERS:
        return url, BARE_CALLERS[name]()
    identity = secrets.token_hex(16)
    if name in NAMED and "call_id=" not in url:
        url += ("&" if address(url).query else "?") + f"call_id={identity}"
    dialect = CALLERS[name](address(url))
    if name not in NAMED:
        dialect.call_id = dialect.call_id[:-len(identity)] + identity      # what its ids begin with stays
    return url, dialect


def shown(name: str, url: str, credentials: str) -> dict[str, str]:
    """The headers by which the platform says who calls; none without credentials."""
    if not credentials:
        return {}
    return signing.headers(name, address(url), credentials, int(time.time()), secrets.token_hex(16))


def answer(line: "Line", dialect) -> None:
    """Sends what the platform's protocol itself wants sent now, if it has anything of the kind."""
    if dialect.outbox:
        for message in dialect.outbox:
            line.send(*message)
        dialect.outbox.clear()


class Line(asyncio.Protocol):
    """The client's end of one WebSocket.  `heard(opcode, payload, now)` is called for each message, payload dying with
    the call; `lost(code, reason)` once, when it has ended."""

    def __init__(self, host: str, target: str, heard: Callable, lost: Callable[[int, str], None],
                 protocols: tuple[str, ...] = (), headers: dict[str, str] | None = None):
        self.heard = heard
        self.lost = lost
        self.protocols = protocols              # one of them must be chosen, as the platforms insist that have any
        self.handshake = ClientHandshake(host, target, os.urandom(16), (headers or {}).items(), protocols)
        self.ws = WebSocket(MAX_MESSAGE, mask=lambda: os.urandom(4))
        self.transport: asyncio.Transport | None = None
        self.opened: asyncio.Future = asyncio.get_running_loop().create_future()    # True, or why it was refused
        self.refusal: int | None = None         # status of an answer that is no 101
        self.said = b""                         # the body of it
        self._gone = asyncio.Event()            # the connection has ended

    @classmethod
    async def dial(cls, url: str, heard: Callable, lost: Callable[[int, str], None],
                   protocols: tuple[str, ...] = (), headers: dict[str, str] | None = None) -> "Line":
        """ConfigError for what is no WebSocket address, OSError where nobody listens, ProtocolError when refused."""
        parts = address(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        context = ssl.create_default_context() if parts.scheme == "wss" else None
        async with asyncio.timeout(DIAL_SECONDS):
            transport, line = await asyncio.get_running_loop().create_connection(
                lambda: cls(parts.netloc, target, heard, lost, protocols, headers), parts.hostname, port_of(parts),
                ssl=context)
            try:
                await line.opened
            except BaseException:
                transport.abort()
                raise
        return line

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        transport.write(self.handshake.request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        try:
            if not self.opened.done():
                data = self._open(data)
            for opcode, payload in self.ws.receive_bytes(data):
                self.heard(opcode, payload, now)
        except ProtocolError as error:
            self._fail(error)
        self.flush()
        if self.ws.state is CLOSED:
            self.transport.close()

    def _open(self, data: bytes) -> bytes:
        """Through the handshake; returns the frames that came behind it."""
        if self.refusal is None:
            answer = self.handshake.feed(data)
            if answer is None:
                return b""
            data = self.handshake.rest
            if answer.status == 101:
                if self.protocols and answer.get("sec-websocket-protocol") is None:
                    raise ProtocolError(400, "The server chose none of the subprotocols that were offered.")
                self.opened.set_result(True)
                return data
            self.refusal = answer.status
        self.said = (self.said + data)[:500]
        return b""

    def _fail(self, error: ProtocolError) -> None:
        if self.opened.done():
            self.ws.fail(error)
        else:
            self.opened.set_exception(error)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone.set()
        if self.opened.done():
            if not self.opened.cancelled() and self.opened.exception() is None:
                self.lost(self.ws.close_code, self.ws.close_reason)
        else:
            self.opened.set_exception(self._why_refused())

    def _why_refused(self) -> Exception:
        if self.refusal is None:
            return ConnectionError("it closed the connection during the handshake")
        return ProtocolError(self.refusal, printable(self.said.decode(errors="replace")))

    def send(self, opcode: int, payload: bytes) -> None:
        self.ws.send(opcode, payload)
        self.flush()

    def flush(self) -> None:
        if self.ws.outbox and not self.transport.is_closing():
            self.transport.write(b"".join(self.ws.outbox))
        self.ws.outbox.clear()

    async def hang_up(self) -> None:
        """Closes, and waits a while for the server to do so too."""
        self.ws.close()
        self.flush()
        try:
            await asyncio.wait_for(self._gone.wait(), HANG_UP_SECONDS)
        except TimeoutError:
            self.abort()

    def abort(self) -> None:
        self.transport.abort()


def ending(code: int, reason: str) -> str:
    """How a call ended, in words."""
    if code == ABNORMAL:
        return "the connection broke"
    return f"the call was ended with {code}" + (f", {printable(reason)}" if reason else "")


def printable(text: str) -> str:
    """What a server said, without what could steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


class Metronome:
    """Calls `tick` every 20 ms at absolute deadlines; a late one is followed by the next on time."""

    __slots__ = ("tick", "began", "beats", "late", "_timer")

    def __init__(self, tick: Callable[[], None]):
        self.tick = tick
        self.began = 0              # ns, monotonic
        self.beats = 0
        self.late: list[int] = []   # ns by which each beat was late
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self.began = time.monotonic_ns()
        self._arm()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        wait = self.began + (self.beats + 1) * FRAME_NS - time.monotonic_ns()
        self._timer = asyncio.get_running_loop().call_later(max(0, wait) / 1e9, self._beat)

    def _beat(self) -> None:
        late = time.monotonic_ns() - self.began - (self.beats + 1) * FRAME_NS
        if late >= 0:               # a loop that counts in milliseconds may call a little early
            self.late.append(late)
            self.beats += 1
            self._arm()
            self.tick()
        else:
            self._arm()


class Caller:
    """One call: a script spoken into a line, and an ear at its other end."""

    def __init__(self, url: str, dialect: str, says: list[Say], credentials: str = "", returns: int = 0):
        """`credentials`: SECRET or USER:SECRET, which the platform signs the call with, or shows.  `returns`: how often
        it dials again when its connection breaks, as its platform does; ConfigError for a dialect whose does not."""
        if returns < 0:
            raise ConfigError("--returns must be 0 or more: how often to dial again.")
        if returns and (CALLERS | BARE_CALLERS)[dialect].again is None:
            raise ConfigError(f"A call in {dialect} does not come back when its connection breaks.")
        if returns and dialect == "pcm" and "resume=" not in url:
            url += ("&" if address(url).query else "?") + f"resume={secrets.token_hex(16)}"
        self.url, self.dialect = place(url, dialect)
        self.returns = returns
        self.away: list[list[int]] = []         # ns: when the connection broke, and when the agent was heard again
        self._credentials = credentials
        self.rate: int = self.dialect.rate
        self.ear = Ear(self.rate)
        self.script = Script(says, self.ear, self.dialect.patience_ms or PATIENCE_MS)
        self.clock = Metronome(self._tick)
        self.over = False               # the conversation has ended
        self.closed = ""                # how, if we did not hang up
        self._dial = BareLine.dial if dialect in BARE_CALLERS else Line.dial
        self._line: Line | BareLine | None = None
        self._coming: asyncio.Future | None = None      # the attempt to come back
        self._samples = samples_of(self.rate)
        self._microphone = np.zeros(self._samples, np.int16)    # what leaves at the next beat
        self._told = 0                  # turns that have been passed on
        self._turns: asyncio.Queue[Measured | None] = asyncio.Queue()

    @property
    def call_id(self) -> str:
        return self.dialect.call_id

    async def converse(self) -> AsyncIterator[Measured]:
        """Dials, speaks, hangs up; yields each turn when it is finished.  Raises as Line.dial does."""
        self._line = await self._dial(self.url, self._heard, self._lost, self.dialect.protocols,
                                     shown(self.dialect.name, self.url, self._credentials))
        try:
            for message in self.dialect.open():
                self._line.send(*message)
            self.clock.start()
            while (turn := await self._turns.get()) is not None:
                yield turn
            if (message := self.dialect.stop()) is not None:
                self._line.send(*message)
            await self._line.hang_up()
        finally:
            self.clock.stop()
            self._line.abort()

    async def _come_back(self) -> None:
        """Another connection for the same call; what the platform had buffered is gone.

        No platform dials again in the same millisecond: the server is far away, and may not have noticed yet.
        """
        self.ear.clear(self._position(time.monotonic_ns()))
        for _ in range(int(COME_BACK_SECONDS / REDIAL_SECONDS)):
            await asyncio.sleep(REDIAL_SECONDS)
            try:
                line = await self._dial(self.url, self._heard, self._lost, self.dialect.protocols,
                                        shown(self.dialect.name, self.url, self._credentials))
            except (OSError, ProtocolError):
                continue
            for message in self.dialect.again():
                line.send(*message)
            self._line = line
            return
        self._end("nobody answers any more", self._position(time.monotonic_ns()))

    def hang_up(self) -> None:
        """Ends the conversation before its script does."""
        self._finish(self._position(time.monotonic_ns()))

    def _tick(self) -> None:
        position = self.clock.beats * self._samples
        if not self._line.transport.is_closing():
            if (message := self.dialect.audio(self._microphone)) is not None:
                self._line.send(*message)
            self._give_back(self.ear.reached(position))
            answer(self._line, self.dialect)
        self._microphone = self.script.frame(position, self._samples)
        self._tell()
        if self.script.phase is OVER:
            self._finish(position)

    def _heard(self, opcode: int, payload: memoryview, now: int) -> None:
        position = self._position(now)
        match self.dialect.receive(opcode, payload):
            case Audio(pcm=pcm):
                self.ear.hear(position, np.asarray(pcm))
                if self.away and len(self.away[-1]) == 1:
                    self.away[-1].append(now)
            case Mark(name=name):
                self.ear.mark(position, name)
            case Clear():
                self._give_back(self.ear.clear(position))
            case Stop():
                self._end("the agent hung up", position)
        answer(self._line, self.dialect)

    def _give_back(self, names: list[str]) -> None:
        """Marks; some platforms are silent about those that were cleared."""
        for name in names:
            if (message := self.dialect.mark(name)) is not None:
                self._line.send(*message)

    def _lost(self, code: int, reason: str) -> None:
        if code != 1000 and self.returns and not self.over:
            self.returns -= 1
            self.away.append([time.monotonic_ns()])
            self._coming = asyncio.ensure_future(self._come_back())
            return
        self._end(ending(code, reason), self._position(time.monotonic_ns()))

    def _end(self, how: str, position: int) -> None:
        """The other side has ended the call; what was queued is never heard."""
        if not self.over:
            self.closed = how
            self.ear.clear(position)
            self._finish(position)

    def _finish(self, position: int) -> None:
        if not self.over:
            self.over = True
            self.clock.stop()
            self.script.finish(position)
            self._tell()
            self._turns.put_nowait(None)

    def _tell(self) -> None:
        for turn in self.script.turns[self._told:]:
            late_from, late_to = self._late(turn.spoke_from), self._late(turn.spoke_to)
            self._turns.put_nowait(replace(turn, late_from=late_from, late_to=late_to))
        self._told = len(self.script.turns)

    def _late(self, position: int) -> int:
        """By how many samples that frame left late which carried the sample before `position`."""
        beat = max(0, position - 1) // self._samples
        return self.clock.late[beat] * self.rate // 1_000_000_000 if beat < len(self.clock.late) else 0

    def _position(self, now: int) -> int:
        """In the call's samples; 0 before it has begun."""
        return max(0, now - self.clock.began) * self.rate // 1_000_000_000 if self.clock.began else 0
