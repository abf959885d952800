"""A call that comes by AudioSocket: a TCP connection without HTTP and without WebSocket (see dialects/audiosocket.py).

It is to a Call what connection.py's Connection is, and takes its limits from the same place.  AudioSocket knows no
authentication, so it answers loopback peers only, unless the server is meant to be open to all.
The rule: whatever a message sets off is caught here, in `fault`, and ends this call only.
"""
import asyncio
import logging

from . import ProtocolError, net
from .connection import BURST_SECONDS, LINGER, SECOND, STALLED
from .dialects.audiosocket import AudioSocket, Messages

log = logging.getLogger("opusagent")


class AudioSocketConnection(asyncio.Protocol):
    """One call to the flow that the server was started with."""

    __slots__ = ("server", "transport", "peer", "session", "rtt_ns", "_messages", "_heard", "_due", "_swept",
                 "_closing", "_stalled", "_why")

    def __init__(self, server):
        self.server = server
        self.transport: asyncio.Transport | None = None
        self.peer: tuple = ()
        self.session = None                 # the call, until it is told of its end
        self.rtt_ns = 0                     # there is nothing to ask for it
        self._messages = Messages()
        self._heard = 0                     # ns, monotonic, as are all times here: the last inbound byte
        self._due = 0.0                     # received bytes that the budget has not covered yet
        self._swept = 0                     # the last look at it
        self._closing = 0                   # when we wished to end; 0: not yet
        self._stalled = 0                   # since when the peer does not take what is sent; 0: it does
        self._why = (1006, "")              # the code and the reason that the call is told

    # -- on the loop's transport ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.peer = transport.get_extra_info("peername") or ()
        self._heard = self._swept = self.server.tock()
        net.tune(transport.get_extra_info("socket"), self.server.config.net)
        transport.set_write_buffer_limits(high=0)
        self.server.connections.add(self)
        try:
            self.session = self.server.bare_session(self, AudioSocket({}))
        except Exception as error:
            self.fault(error)

    def data_received(self, data: bytes) -> None:
        now = self._heard = self.server.tock()
        self._due += len(data)
        try:
            for kind, payload in self._messages.feed(data):
                if self._closing:
                    return
                self.session.on_message(kind, payload)
        except Exception as error:
            self.fault(error)
        self.server.measure(self.server.clock() - now)

    def pause_writing(self) -> None:
        self._stalled = self.server.clock()

    def resume_writing(self) -> None:
        self._stalled = 0
        if self.session is not None:
            self.session.drained()

    def connection_lost(self, error: Exception | None) -> None:
        self.server.connections.discard(self)
        session, self.session = self.session, None
        if session is not None:
            session.lost(*self._why)

    # -- what a call uses ----------------------------------------------------------------------------------------------

    def send(self, opcode: int, payload: bytes) -> bool:
        """A whole message; False when the peer has not taken all of it, or the connection is closing."""
        if self._closing:
            return False
        self.transport.write(payload)
        return not self.congested

    @property
    def congested(self) -> bool:
        return self.transport.get_write_buffer_size() > 0

    def close(self, code: int = 1000, reason: str = "") -> None:
        """What was sent goes out, then the connection ends."""
        if not self._closing:
            self._closing, self._why = self.server.clock(), (code, reason)
            self.transport.close()

    def fault(self, error: Exception) -> None:
        """The one place where this connection's errors end."""
        if not isinstance(error, ProtocolError):
            log.exception("a connection ended by an error of ours", exc_info=error)
            error = ProtocolError(1011, "Something went wrong here.")
        else:
            log.warning("a call by AudioSocket was ended: %s", error.reason)
        self.server.metrics.count("protocol_errors", code=error.code)
        self.close(error.code, error.reason)

    # -- what a server uses --------------------------------------------------------------------------------------------

    def ended(self, error: Exception | None) -> None:
        """At once, whatever is still unsent."""
        self._closing = self._closing or self.server.clock()
        self.transport.abort()

    def sweep(self, now: int) -> None:
        """Looked at a few times a second: every deadline of this connection is here."""
        limits = self.server.narrow
        if self._closing:
            if now - self._closing > LINGER:
                self.ended(None)
            return
        self._due = max(0.0, self._due - limits.bytes_per_second * (now - self._swept) / SECOND)
        self._swept = now
        if self._due > limits.bytes_per_second * BURST_SECONDS:
            self.fault(ProtocolError(1008, "more comes than a call needs"))
        elif self._stalled and now - self._stalled > STALLED:
            self.fault(ProtocolError(1008, "the peer does not read"))
        elif now - self._heard > limits.idle_seconds * SECOND or self.session.overdue(now):
            self.fault(ProtocolError(1008, "nothing is heard of the call"))
