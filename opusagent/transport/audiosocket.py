"""A call that comes by AudioSocket: a TCP connection without HTTP and without WebSocket (see dialects/audiosocket.py).

It is to a Call what connection.py's Connection is, and takes its limits from the same place.  AudioSocket knows no
authentication, so it answers loopback peers only, unless the server is meant to be open to all.
The rule: whatever a message sets off is caught here, in `fault`, and ends this call only.
"""
import asyncio
import logging
import socket
from collections.abc import Callable

from .. import ProtocolError
from .._fastpath import LOST, framing_head, unsent_of
from ..dialects.audiosocket import HEAD, AudioSocket, Messages
from . import net
from .budget import spent
from .connection import LINGER, SECOND, STALLED

log = logging.getLogger("opusagent")

MOST_RECEIVED = 2048            # bytes received at once, six messages of a call: the others have their turn between
REFUSALS_TOLD = 1 * SECOND      # between two lines of the log about calls that did not begin


class BareWire:
    """What a Wire is to a WebSocket: the socket, cut into messages, and what it has not taken yet.

    `on_message(kind, payload)` may raise, which `on_fault(error)` hears of; `on_end(error or None)` says that the peer
    is gone; `on_drained()` that everything unsent has gone out.
    """

    __slots__ = ("sock", "keeper", "muted", "_on_message", "_on_fault", "_on_end", "_on_drained", "_messages",
                 "_unsent", "_kept", "_loop")

    def __init__(self, sock: socket.socket, on_message: Callable, on_fault: Callable, on_end: Callable,
                 on_drained: Callable):
        self.sock = sock
        self.keeper = None                  # the slot in which a successor finds what is not parsed and not sent
        self.muted = False                  # what comes is read and dropped
        self._on_message, self._on_fault, self._on_end, self._on_drained = on_message, on_fault, on_end, on_drained
        self._messages = Messages()
        self._unsent = bytearray()
        self._kept = False                  # there is something of it in that slot
        self._loop = asyncio.get_running_loop()
        sock.setblocking(False)

    def listen(self) -> None:
        """From now on what comes is read."""
        self._loop.add_reader(self.sock, self._readable)

    @property
    def fd(self) -> int:
        return self.sock.fileno()

    @property
    def backlog(self) -> int:
        """Bytes that the socket has not taken yet."""
        return len(self._unsent)

    def write(self, data: bytes) -> bool:
        """False when (part of) it waits, or the peer is gone."""
        if self._unsent:
            self._unsent += data
        else:
            sent = self._send(data)
            if sent == len(data):
                return True
            self._unsent += data[sent:]
            self._loop.add_writer(self.sock, self._writable)
        self._keep()
        return False

    def _send(self, data) -> int:
        try:
            return self.sock.send(data)
        except OSError:                     # it is full, or broken: then reading tells
            return 0

    def _writable(self) -> None:
        del self._unsent[:self._send(self._unsent)]
        self._keep()
        if not self._unsent:
            self._loop.remove_writer(self.sock)
            self._on_drained()

    def _readable(self) -> None:
        try:
            data = self.sock.recv(MOST_RECEIVED)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            return self._on_end(error)
        if not data:
            return self._on_end(None)
        if self.muted:
            return
        try:
            for kind, payload in self._messages.feed(data):
                if not self.muted:
                    self._on_message(kind, payload)
            self._keep()
        except Exception as error:
            self._on_fault(error)

    def _keep(self) -> None:
        """For a successor: nothing, as nearly always, or the bytes that this process alone has."""
        held = bool(self._unsent or self._messages.rest)
        if self.keeper is not None and (held or self._kept):
            self._kept = held
            if not self.keeper.keep_framing(self.framing() if held else b""):
                self.keeper.keep_framing(LOST)

    def flows(self, now: int) -> bool:
        """What came its connection counts: it has to be asked."""
        return False

    def framing(self) -> bytes:
        return framing_head(self.fd, len(self._unsent)) + self._unsent + self._messages.rest

    def restore(self, framing: bytes) -> None:
        """Go on where another process stood.  ValueError where that cannot be known."""
        if framing == LOST:
            raise ValueError("there was more on the wire than is kept")
        self._kept = bool(framing)
        if framing:
            unsent, end = unsent_of(self.fd, framing)
            self._messages.rest = framing[end:]
            self.write(unsent)

    def close(self) -> None:
        """Harmless when done twice."""
        if self.sock.fileno() >= 0:
            self._loop.remove_reader(self.sock)
            self._loop.remove_writer(self.sock)
            self.sock.close()


class AudioSocketConnection:
    """One call to the flow that the server was started with."""

    __slots__ = ("server", "wire", "peer", "session", "rtt_ns", "tenant", "_heard", "_due", "_swept", "_closing",
                 "_stalled", "_why")
    told = -REFUSALS_TOLD                   # ns: when the log was last told of one that was refused

    def __init__(self, server):
        self.server = server
        self.wire: BareWire | None = None
        self.peer: tuple = ()
        self.session = None                 # the call, until it is told of its end
        self.rtt_ns = 0                     # there is nothing to ask for it
        self.tenant = ""                    # ... nor for whose call it is
        self._heard = self._swept = server.tock()   # ns, monotonic, as are all times here: the last inbound byte;
        self._due = 0.0                     # received bytes that the budget has not covered yet,
                                            # ... and the last look at it
        self._closing = 0                   # when we wished to end; 0: not yet
        self._stalled = 0                   # since when the peer does not take what is sent; 0: it does
        self._why = (1006, "")              # the code and the reason that the call is told

    def accepted(self, sock: socket.socket) -> None:
        """Somebody has connected: the call begins when it is its turn, and is not read before."""
        self._open(sock)
        self.server.turnstile.enter(self._begin)

    def _begin(self) -> None:
        if self.wire.fd < 0:                # the server has ended meanwhile
            return
        self.wire.listen()
        if self._closing:
            return
        net.tune(self.wire.sock, self.server.config.net)
        try:
            self.session = self.server.routes.bare_session(self, AudioSocket({}))
        except Exception as error:
            self.fault(error)

    def go_on(self, fd: int, limits, framing: bytes) -> None:
        """Be the connection that another process has accepted, from the byte where it stood.  ValueError, OSError."""
        self._open(socket.socket(fileno=fd))
        try:
            self.wire.restore(framing)
        except ValueError:
            self.forget()
            raise
        self.wire.listen()

    def _open(self, sock: socket.socket) -> None:
        try:
            self.peer = sock.getpeername()
        except OSError:                     # it has gone at once
            sock.close()
            raise
        self.wire = BareWire(sock, self._message, self.fault, self.ended, self._drained)
        self.server.connections.add(self)

    # -- from the wire -------------------------------------------------------------------------------------------------

    def _message(self, kind: int, payload: memoryview) -> None:
        now = self._heard = self.server.tock()
        self._due = spent(self._due + HEAD + len(payload), self.server.routes.narrow.bytes_per_second, 0)
        if self.session is not None:
            self.session.on_message(kind, payload)
        self.server.measure(self.server.clock() - now)

    def _drained(self) -> None:
        self._stalled = 0
        if self._closing:
            self._shut()
        elif self.session is not None:
            self.session.drained()

    def ended(self, error: Exception | None) -> None:
        """The peer is gone, or has had long enough."""
        self.forget()
        self._tell()

    def forget(self) -> None:
        """Close the descriptor and leave nothing behind."""
        self.server.connections.discard(self)
        self.wire.close()

    def _tell(self) -> None:
        session, self.session = self.session, None
        if session is not None:
            session.lost(*self._why)

    # -- what a call uses ----------------------------------------------------------------------------------------------

    def send(self, opcode: int, payload: bytes) -> bool:
        """A whole message; False when the peer has not taken all of it, or the connection is closing."""
        if self._closing:
            return False
        taken = self.wire.write(payload)
        if not taken:
            self._stalled = self._stalled or self.server.clock()
        return taken

    @property
    def congested(self) -> bool:
        return self.wire.backlog > 0

    def close(self, code: int = 1000, reason: str = "") -> None:
        """What was sent goes out, then the connection ends."""
        if not self._closing:
            self._closing, self._why = self.server.clock(), (code, reason)
            self.wire.muted = True
            asyncio.get_running_loop().call_soon(self._tell)
            if not self.congested:
                self._shut()

    def _shut(self) -> None:
        """Send FIN, and read to the peer's: closing over unread bytes would reset what was just sent."""
        try:
            self.wire.sock.shutdown(socket.SHUT_WR)
        except OSError:                     # it is gone already
            pass

    def fault(self, error: Exception) -> None:
        """The one place where this connection's errors end."""
        if not isinstance(error, ProtocolError):
            log.exception("a connection ended by an error of ours", exc_info=error)
            error = ProtocolError(1011, "Something went wrong here.")
        elif self.session is not None or self._may_tell():
            log.warning("a call by AudioSocket was ended: %s", error.reason)
        self.server.metrics.count("protocol_errors", code=error.code)
        self.close(error.code, error.reason)

    def _may_tell(self) -> bool:
        """Strangers that are refused get a line of the log a second, however many they are."""
        now, told = self.server.clock(), AudioSocketConnection.told
        if now - told < REFUSALS_TOLD:
            return False
        AudioSocketConnection.told = now
        return True

    # -- what a server uses --------------------------------------------------------------------------------------------

    def sweep(self, now: int) -> None:
        """Looked at a few times a second: every deadline of this connection is here."""
        limits = self.server.routes.narrow
        if self._closing:
            if now - self._closing > LINGER:
                self.ended(None)
            return
        if self.session is None:            # its turn comes
            return
        seconds, self._swept = (now - self._swept) / SECOND, now
        self._due = spent(self._due, limits.bytes_per_second, seconds)      # what is too much was refused as it came
        if self._stalled and now - self._stalled > STALLED:
            self.fault(ProtocolError(1008, "the peer does not read"))
        elif now - self._heard > limits.idle_seconds * SECOND or self.session.overdue(now):
            self.fault(ProtocolError(1008, "nothing is heard of the call"))
