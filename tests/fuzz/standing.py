"""What a Connection stands on, so that one can be fuzzed alone: a server, a session, and a transport that are not real.

On a plain connection only the head goes through this transport: behind it lies a socket pair, and after the 101 all
goes over that, through a real Wire in a real EpollSet.  With `tls` everything goes through the transport.
The rule: whatever escapes from the connection's callbacks fails the test, as it would end up in the event loop.
"""
import asyncio
import os
import select
import socket
from types import SimpleNamespace

from opusagent.config import Config
from opusagent.metrics import Metrics
from opusagent.server.worker import Server
from opusagent.transport import http11
from opusagent.transport.connection import Connection, Limits
from opusagent.transport.websocket import BINARY

SECOND = 1_000_000_000
UPGRADE = (b"GET /ws/echo HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
           b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
PIECE = 65536               # what a transport hands over at once, at most


METRICS = Metrics()


class Ground(Server):
    """A server without a loop: every route is the same session, and its clock is set by hand."""

    def __init__(self, begin, max_message: int = 500, max_fragments: int = 1 << 17):
        super().__init__(Config(), None, METRICS)
        self.time = SECOND              # ns
        self.clock = lambda: self.time
        self.tock()
        limits = Limits(max_message, max_fragments, 5.0, 20.0)
        self.routes = SimpleNamespace(
            takes_post=self.routes.takes_post, check_post=self.routes.check_post, protocols=lambda head: (),
            page=lambda connection, head, body=b"": http11.response(200, "a page\n", head_only=head.method == "HEAD"),
            session=lambda connection, head: (limits, begin))
        self.turnstile = SimpleNamespace(enter=lambda begin: begin())

    def serve(self) -> None:
        for _ in range(1000):
            if not self.epoll.poll() and not select.select([self.epoll], [], [], 0)[0]:
                return
        raise AssertionError("the set never comes to rest")


class Soon:
    """The event loop, as far as a connection needs it: what it shall do a turn later."""

    def __init__(self):
        self.waiting = []

    def call_soon(self, act) -> None:
        self.waiting.append(act)

    def turn(self) -> None:
        while self.waiting:
            self.waiting.pop(0)()


class Transport:
    """An asyncio transport to a peer that reads, or is deaf for a while.  `broken`: writing finds that it has gone."""

    def __init__(self, sock: socket.socket, tls: bool, broken: bool):
        self.sock = sock
        self.tls = tls
        self.broken = broken
        self.protocol: Connection | None = None
        self.written = bytearray()
        self.unread = 0                     # bytes of that which a deaf peer has not read yet
        self.deaf = self.paused = False
        self.high = 0                       # unread bytes above which the protocol is paused
        self.open = True

    def get_extra_info(self, name: str):
        return {"peername": ("127.0.0.1", 1), "socket": self.sock, "sslcontext": True if self.tls else None}[name]

    def set_write_buffer_limits(self, high: int) -> None:
        self.high = high

    def get_write_buffer_size(self) -> int:
        return self.unread

    def write(self, data: bytes) -> None:
        if self.broken:
            self.abort()
        if self.open:
            self.written += data
            self.unread += len(data) if self.deaf else 0
            if self.unread > self.high and not self.paused:
                self.paused = True
                self.protocol.pause_writing()

    def hear(self) -> None:
        """The peer reads again."""
        self.deaf, self.unread = False, 0
        if self.paused and self.open:
            self.paused = False
            self.protocol.resume_writing()

    def can_write_eof(self) -> bool:
        return not self.tls

    def write_eof(self) -> None:
        assert not self.tls

    def is_reading(self) -> bool:
        return self.open

    def pause_reading(self) -> None:
        assert self.open

    resume_reading = pause_reading

    def close(self) -> None:
        self.open = False

    def abort(self) -> None:
        self.open, self.unread = False, 0


class Recorder:
    """A session that keeps what it is told; `deeds`: what it does with the message of a number, or when it begins, is
    drained, is lost."""

    def __init__(self, connection, deeds):
        self.connection = connection
        self.deeds = deeds
        self.messages, self.drains, self.losses = [], 0, []
        self._do("begin")

    def _do(self, when, opcode: int = BINARY, payload=b"") -> None:
        if deed := self.deeds.get(when):
            deed(self.connection, opcode, payload)

    def on_message(self, opcode: int, payload: memoryview) -> None:
        assert not self.losses
        self.messages.append((opcode, bytes(payload)))
        self._do(len(self.messages), opcode, payload)

    def drained(self) -> None:
        self.drains += 1
        self._do("drained")

    def overdue(self, now: int) -> bool:
        return False

    def lost(self, code: int, reason: str) -> None:
        assert isinstance(reason, str)
        self.losses.append(code)
        self._do("lost")


class Call:
    """One connection between a peer of ours and a session."""

    def __init__(self, tls: bool = False, deeds=None, broken: bool = False, **limits):
        self.session: Recorder | None = None
        self.ground = Ground(self._begin, **limits)
        self.soon = Soon()
        asyncio._set_running_loop(self.soon)
        self.deeds = deeds or {}
        ours, self.peer = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.peer.setblocking(False)
        self.transport = Transport(ours, tls, broken)
        self.connection = self.transport.protocol = Connection(self.ground)
        self.heard = b""                    # what came to the peer over the socket
        self.connection.connection_made(self.transport)

    def _begin(self, connection) -> Recorder:
        session = Recorder(connection, self.deeds)
        self.session = session
        return session

    def give(self, data: bytes) -> None:
        """These bytes come from the peer, and everything that follows from them happens."""
        if self.connection.transport is not None:
            self._through_the_transport(data)
        elif self.peer.fileno() >= 0 and self.wired():
            self.peer.sendall(data)
        self.settle()

    def _through_the_transport(self, data: bytes) -> None:
        for at in range(0, len(data), PIECE):
            if self.transport.open:
                piece = data[at:at + PIECE]
                self.connection.get_buffer(-1)[:len(piece)] = piece
                self.connection.buffer_updated(len(piece))

    def settle(self) -> None:
        """All that the event loop would do now."""
        self.soon.turn()
        if not self.transport.open and self.transport.sock.fileno() >= 0:
            self.transport.sock.close()
            self.connection.connection_lost(None)
        self.ground.serve()
        for _ in range(100):
            heard = len(self.heard)
            self.hear()
            self.ground.serve()
            if len(self.heard) == heard:
                return
        raise AssertionError("there is no end to what it sends")

    def hear(self) -> None:
        """The peer reads what there is, unless it is deaf."""
        try:
            while not self.transport.deaf and self.peer.fileno() >= 0 and (piece := self.peer.recv(PIECE)):
                self.heard += piece
        except (BlockingIOError, ConnectionResetError):
            return

    @property
    def sent(self) -> bytes:
        """All that the peer was sent, the answer to its head too."""
        return bytes(self.transport.written) + self.heard

    def hang_up(self) -> None:
        """The peer goes."""
        self.hear()
        self.peer.close()
        if self.connection.transport is not None and self.transport.open:
            if not self.connection.eof_received():
                self.transport.close()
        self.settle()

    def later(self, seconds: float) -> None:
        self.ground.time += int(seconds * SECOND)
        if self.connection in self.ground.connections:
            self.connection.sweep(self.ground.tock())
        self.settle()

    def wired(self) -> bool:
        """True while it has a descriptor of its own, served by the EpollSet."""
        return getattr(self.connection.wire, "fd", -1) >= 0

    def over(self) -> bool:
        """True when nothing is left of it."""
        return not (self.ground.connections or self.wired() or len(self.ground.epoll))

    def finish(self) -> None:
        """The peer goes, and every deadline passes."""
        self.hang_up()
        self.later(60)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        """Whatever the test found, no descriptor is left."""
        asyncio._set_running_loop(None)
        if self.wired():
            self.connection.wire.close()
        self.peer.close()
        self.transport.sock.close()
        self.ground.epoll.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
