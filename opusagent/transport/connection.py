"""One TCP connection: a request head, then an answer, or a WebSocket whose messages go to a session.

It owns every way a connection ends.  It knows no route and no call: `Server` (worker.py) says what a head asks for.
The rule: whatever the parser, a session or a page raises is caught here and nowhere else, in `fault`.

A connection begins on the event loop's transport.  Once the 101 is flushed, a plain socket is duplicated, the
transport aborted, and the duplicate is served by the worker's EpollSet; a TLS connection stays on its transport.
Both ways the frames are cut by the same FrameParser and the session sees the same calls.
"""
import asyncio
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from .. import ProtocolError
from .._fastpath import Wire
from . import http11, net
from .budget import BURST_SECONDS, spent
from .inquiry import Inquiry
from .transportwire import TransportWire
from .websocket import CLOSED, CLOSING, OPEN, WebSocket

log = logging.getLogger("opusagent")

SECOND = 1_000_000_000
TLS_BACKLOG = 65536            # bytes written to a TLS connection and not taken, from which its peer counts as slow
LINGER = 1 * SECOND             # after our FIN, how long the peer may take to send its own
STALLED = 10 * SECOND           # a peer that takes nothing of what waits for it is gone
CLOSE_WAIT = 5 * SECOND         # after our close frame, how long the peer may take to answer it


@dataclass(frozen=True, slots=True)
class Limits:
    """What one route allows its peers."""

    max_message: int            # bytes
    max_fragments: int          # of a message, empty ones too
    message_seconds: float      # from a message's first byte to its last
    idle_seconds: float         # without an inbound byte
    bytes_per_second: int = 0   # received, on average over a few seconds; 0: as fast as they come
    controls_per_second: int = 0


class Connection(asyncio.BufferedProtocol):
    """`session` has on_message(opcode, payload), drained(), overdue(now) -> True if the peer should have begun by now,
    and lost(code, reason), which is called exactly once."""

    __slots__ = ("server", "pages", "transport", "wire", "peer", "head", "ws", "session", "limits",
                 "began", "_heard", "pinged", "pings", "partial_since", "ended_at", "lingers", "bytes_due",
                 "controls_due", "bodiless", "taken", "stalled_since", "rtt_ns", "tenant", "posted",
                 "inquiry")

    def __init__(self, server, pages: bool = True):
        self.server = server
        self.pages = pages                  # this listening address serves the pages, not only calls and health
        self.transport: asyncio.Transport | None = None     # None once handed over or lost
        self.wire: Wire | TransportWire | None = None       # set by the upgrade
        self.peer: tuple = ()
        self.head: http11.HeadParser | None = http11.HeadParser(server.routes.takes_post)   # until the head is whole
        self.bodiless = False               # it asked for a head only: a refusal has no body either
        self.ws: WebSocket | None = None
        self.session = None
        self.limits = None                  # of the route: see Limits
        self.began = 0                      # ns, monotonic, as are all times here
        self._heard = 0                     # the last inbound byte, but for the media that a wire knows of
        self.pinged = 0                     # the last ping
        self.pings = 0
        self.partial_since = 0              # since when an unfinished message waits for its rest; 0: none
        self.ended_at = 0                   # when the closing handshake, or lingering, began
        self.lingers = False                # FIN is sent; what still comes is dropped
        self.bytes_due = 0.0                # received bytes that the budget has not covered yet
        self.controls_due = 0.0             # ... and control frames
        self.taken = 0                      # of the wire, at the last look at which something waited
        self.stalled_since = 0              # since when the peer takes nothing of what waits for it; 0: nothing waits
        self.rtt_ns = 0                     # of the last ping that was answered
        self.tenant = ""                    # the account that its credentials are of; "": they say nothing of it
        self.posted: tuple | None = None    # (head, body so far) of a POST
        self.inquiry = Inquiry(server.continuity and server.continuity.registry)    # what it waits for

    # -- on the loop's transport: the head, and all of a TLS connection -----------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.peer = transport.get_extra_info("peername") or ()
        self.began = self._heard = self.server.clock()
        self.server.note_tuning(net.tune(transport.get_extra_info("socket"), self.server.config.net))
        transport.set_write_buffer_limits(high=0 if self._plain() else TLS_BACKLOG)
        self.server.connections.add(self)
        self.server.pending.enter(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.server.view

    def buffer_updated(self, n: int) -> None:
        now = self.server.tock()
        self._heard = now
        if self.lingers:
            return
        try:
            if self.ws is None:
                self._read_head(self.server.view[:n])
            else:
                self.ws.parser.feed(self.server.buffer, n)
                self._deliver()
        except Exception as error:
            self.fault(error)
        if self.ws is not None:
            self.server.measure(self.server.clock() - now)

    def eof_received(self) -> None:
        self.ended(None)

    def connection_lost(self, error: Exception | None) -> None:
        if self.transport is not None:      # not handed over
            self.transport = None
            self.ended(error)

    def pause_writing(self) -> None:
        if self.wire is not None:
            self.ws.congested = True
            if self.wire.lockstep:
                self.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.wire is not None and self.transport is not None and self.ws.congested:
            if self.wire.lockstep:
                self.transport.resume_reading()
            try:
                self.drained()
            except Exception as error:
                self.fault(error)

    def _plain(self) -> bool:
        return self.transport.get_extra_info("sslcontext") is None

    # -- the head ------------------------------------------------------------------------------------------------------

    def _read_head(self, data: memoryview) -> None:
        if self.posted is not None:
            return self._read_body(data)
        if self.head is None:
            raise ProtocolError(400, "Nothing may come before the answer.")
        head = self.head.feed(data)
        if head is None:
            return
        rest, self.head = self.head.rest, None
        self.bodiless = head.method == "HEAD"
        if head.upgrade:
            self.server.pending.leave(self)
            self._settle(partial(self._decide, head, bytes(rest)))
        elif head.method == "POST":
            self.server.routes.check_post(self, head)       # refuses what it can before it is read
            if head.get("expect", "").lower() == "100-continue":
                self.transport.write(http11.CONTINUE)
            self.posted = head, bytearray()
            self._read_body(rest)
        elif rest:
            raise ProtocolError(400, "A request here has no body and nothing behind it.")
        else:
            self._ask(head)

    def _read_body(self, data) -> None:
        head, body = self.posted
        body += data
        if len(body) > head.length:
            raise ProtocolError(400, "The body is longer than its Content-Length.")
        if len(body) == head.length:
            self.posted = None
            self._ask(head, bytes(body))

    def _ask(self, head: http11.Head, body: bytes = b"") -> None:
        """For a page, or for what answers a POST.  By TLS at once: asyncio ends that when its peer's half is closed."""
        self.server.pending.leave(self)
        act = partial(self._settle, lambda: partial(self._answer, self.server.routes.page(self, head, body)))
        self._enter(act) if self._plain() else act()

    def _settle(self, find: Callable[[], Callable]) -> None:
        """`find` gives what is to be done; if it has raised questions, it is asked once more when they are answered."""
        act = find()
        if self.inquiry.questions:
            self.server.continuity.task(self._settled(find))
        else:
            act()

    async def _settled(self, find: Callable[[], Callable]) -> None:
        await self.inquiry.settle()
        self._at_last(lambda: find()())

    def _at_last(self, act: Callable[[], None]) -> None:
        """Something could not be done at once: now it can, if the peer is still there."""
        if self.transport is None or self.lingers:
            return
        self.server.tock()
        try:
            act()
        except Exception as error:
            self.fault(error)

    def _answer(self, response: bytes) -> None:
        if not self.lingers:                # it has been answered, and our side is shut
            self.transport.resume_reading()     # it may have waited for its turn
            self.transport.write(response)
            self._linger()

    def _decide(self, head: http11.Head, rest: bytes) -> Callable:
        answer = http11.accept(head, self.server.routes.protocols(head))
        limits, begin = self.server.routes.session(self, head)     # refuses before anything is allocated
        return partial(self._enter, partial(self._upgrade, answer, limits, begin, rest))

    def _enter(self, act: Callable[[], None]) -> None:
        """What a request asks for waits for its turn, and what its peer sends meanwhile for that."""
        self.transport.pause_reading()
        self.server.turnstile.enter(partial(self._at_last, act))

    def _upgrade(self, answer: bytes, limits: Limits, begin: Callable, rest: bytes) -> None:
        self.limits = limits
        self.pinged = self.server.now
        fd = self._duplicate() if self._plain() else -1
        self.transport.write(answer)
        self.ws = WebSocket(limits.max_message, limits.max_fragments)
        self.wire = TransportWire(self.transport)
        self.ws.parser.feed_bytes(rest)
        if self._plain() and not self.transport.get_write_buffer_size():
            self._hand_over(fd)
            self.session = begin(self)
            self.wire.on_message = self.session.on_message
            self.server.epoll.again()
        else:
            if fd >= 0:
                os.close(fd)
            self.transport.resume_reading()
            self.session = begin(self)
            self._deliver()

    def _duplicate(self) -> int:
        """The socket once more.  ProtocolError(503) where there is no descriptor left: nobody was promised anything."""
        try:
            fd = os.dup(self.transport.get_extra_info("socket").fileno())
        except OSError:
            self.server.metrics.count("refused_connections")
            raise ProtocolError(503, "This server is full.") from None
        os.set_blocking(fd, False)
        return fd

    def _hand_over(self, fd: int) -> None:
        """Leave the loop's transport for the worker's EpollSet.  abort() sends nothing: the duplicate lives on."""
        transport, self.transport = self.transport, None
        transport.abort()
        self.wire = Wire(fd, self.ws.parser, None, self.on_control, self.fault, self.ended, self.drained)
        self.wire.quickack = self.server.config.net.quickack_rearm
        self.server.epoll.add(self.wire)        # before the session sends: what the socket will not take waits there

    def go_on(self, fd: int, limits, framing: bytes) -> None:
        """Be the connection that another process has upgraded, from the byte where it stood.  ValueError."""
        server, self.head = self.server, None
        self.began = self._heard = self.pinged = server.clock()
        self.limits = limits
        self.ws = WebSocket(limits.max_message, limits.max_fragments)
        self.wire = Wire(fd, self.ws.parser, None, self.on_control, self.fault, self.ended, self.drained)
        self.wire.quickack = server.config.net.quickack_rearm
        try:
            with socket.socket(fileno=os.dup(fd)) as sock:
                self.peer = sock.getpeername()
            self.wire.restore(framing)
            server.epoll.add(self.wire)
        except (OSError, ValueError):
            self.wire.close()
            raise
        server.connections.add(self)

    # -- frames --------------------------------------------------------------------------------------------------------

    def send(self, opcode: int, payload) -> bool:
        """Send a message now; False when it (or part of it) had to be queued, or the connection is closing."""
        return self.ws.state is OPEN and self.wire.send(opcode, payload)

    @property
    def heard(self) -> int:
        """When the last byte came, as the last look found it; ns."""
        return self._heard if self.wire is None else max(self._heard, self.wire.flowed)

    @property
    def congested(self) -> bool:
        """True while the peer has not taken what was sent."""
        return self.wire.backlog > 0

    def on_control(self, opcode: int, payload: memoryview) -> None:
        if self.wire.backlog:
            self.ws.congested = True
        if self.limits.controls_per_second and self.ws.controls > self.limits.controls_per_second * BURST_SECONDS:
            raise ProtocolError(1008, "more comes than a call needs")       # not even until the next sweep
        self.ws.on_control(opcode, payload)
        if opcode == 0xA and self.pinged and payload == b"%d" % self.pings:
            self.rtt_ns = self.server.clock() - self.pinged
        self._flush()

    def _flush(self) -> None:
        if self.ws.outbox:
            self.wire.write(b"".join(self.ws.outbox))
            self.ws.outbox.clear()
        if self.ws.state is CLOSED and not self.lingers:
            self._tell_session(self.ws.close_code, self.ws.close_reason)
            self._linger()

    def _deliver(self) -> None:
        """The messages that are whole, to the session (a Wire does the same for itself)."""
        self.ws.parser.deliver(self.session.on_message, self.on_control)

    def drained(self) -> None:
        self.ws.uncongested()
        self._flush()
        if self.lingers:
            self.wire.shutdown()
        if self.session is not None:
            self.session.drained()

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Our wish to end: the closing handshake, at most CLOSE_WAIT."""
        if self.ws is not None and self.ws.state is OPEN:
            self.ws.close(code, reason)
            self.ended_at = self.server.clock()
            self._flush()

    def fault(self, error: Exception) -> None:
        """The one place where a connection's errors end: its peer is told, the others never notice."""
        if not isinstance(error, ProtocolError):
            log.exception("a connection ended by an error of ours", exc_info=error)
            error = ProtocolError(500 if self.ws is None else 1011, "Something went wrong here.")
        self.server.metrics.count("protocol_errors", code=error.code)
        if self.ws is None:
            self.head = None
            if self.transport is not None:
                self._answer(http11.refusal(error, head_only=self.bodiless))
            return
        self.ws.fail(error)
        self._flush()

    def give_way(self) -> None:
        """Too many wait, and this one for longest."""
        self.fault(ProtocolError(503, "Too many connections wait here; this one said nothing for longest."))
        self.forget()

    def ended(self, error: Exception | None) -> None:
        """The peer is gone, or sent FIN."""
        if self.ws is not None:
            self._tell_session(self.ws.close_code, self.ws.close_reason or (str(error) if error else ""))
        self.forget()

    def forget(self) -> None:
        """Close the descriptor and leave nothing behind."""
        self.server.connections.discard(self)
        self.server.pending.leave(self)
        wire, transport, self.transport = self.wire, self.transport, None
        if wire is not None:
            wire.close()
        elif transport is not None:
            transport.abort()

    def _tell_session(self, code: int, reason: str) -> None:
        session, self.session = self.session, None
        if session is not None:
            try:
                session.lost(code, reason)
            except Exception as error:
                self.fault(error)

    def _linger(self) -> None:
        """FIN, then read to the peer's FIN for a moment: closing over unread bytes would reset what we just sent."""
        self.lingers = True
        self.ended_at = self.server.clock()
        if self.wire is not None:
            if not self.wire.backlog:       # otherwise drained() does
                self.wire.shutdown()
        elif self.transport is not None and not self._plain():
            TransportWire(self.transport).shutdown()
        elif self.transport is not None:
            with suppress(OSError):         # the peer is gone already
                self.transport.write_eof()

    # -- deadlines -----------------------------------------------------------------------------------------------------

    def sweep(self, now: int) -> None:
        """Looked at a few times a second, unless media flows: every deadline of a connection is here."""
        net_config = self.server.config.net
        if self.lingers:
            if now - self.ended_at > LINGER:
                self.forget()
        elif self.ws is None:
            if now - self.began > net_config.head_seconds * SECOND:
                self.fault(ProtocolError(408, "The request head took too long."))
        elif self.ws.state is CLOSING:
            if now - self.ended_at > CLOSE_WAIT:
                self.ended(None)
        else:
            try:
                self._sweep_open(now, net_config)
            except Exception as error:
                self.fault(error)

    def _sweep_open(self, now: int, net_config) -> None:
        parser, limits = self.ws.parser, self.limits
        if received := parser.take_received():
            self._heard = now
        self._spend(now, received, self.ws.take_controls())
        finished = parser.take_finished()
        if not parser.partial:
            self.partial_since = 0
        elif finished or not self.partial_since:        # a peer may always be in the middle of some message
            self.partial_since = now
        elif now - self.partial_since > limits.message_seconds * SECOND:
            raise ProtocolError(1008, "a message took too long to arrive")
        if self.session.overdue(now):
            raise ProtocolError(1008, "the call never started")
        if self._stalled(now) or self.transport is not None and self.wire.floods(received, now):
            log.info("a connection ended: its peer does not read, or sends much in which there is nothing")
            return self.ended(None)
        if now - self.heard > limits.idle_seconds * SECOND:
            log.info("a connection ended: nothing heard for %g s", limits.idle_seconds)
            return self.ended(None)
        if now - self.pinged >= net_config.ping_interval_seconds * SECOND:
            self.pings += 1
            self.pinged = now
            self.ws.ping(b"%d" % self.pings)
            self._flush()
        next_ping = self.pinged + net_config.ping_interval_seconds * SECOND
        waits = self.partial_since or self.stalled_since or self.bytes_due or self.controls_due
        calm = not (waits or self.session is None or self.session.overdue(next_ping))
        self.wire.calm(next_ping if calm else 0, now, limits.bytes_per_second)

    def _stalled(self, now: int) -> bool:
        """True when the peer has taken nothing for STALLED although something waits."""
        if not self.wire.backlog:
            self.stalled_since = 0
            return False
        taken, self.taken = self.taken, self.wire.taken
        if not self.stalled_since or taken != self.taken:
            self.stalled_since = now
        return now - self.stalled_since > STALLED

    def _spend(self, now: int, received: int, controls: int) -> None:
        """What came since the last look (see calm()) goes into two leaky buckets."""
        seconds = (now - (self.wire.looked or self.began)) / SECOND
        self.bytes_due = spent(self.bytes_due + received, self.limits.bytes_per_second, seconds)
        self.controls_due = spent(self.controls_due + controls, self.limits.controls_per_second, seconds)
