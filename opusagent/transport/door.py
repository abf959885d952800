"""A listening socket that the workers share: the one with the fewest connections accepts.

All of them wake up when somebody connects; who has more than another steps back for a moment, and takes it after all
when the other one does not.  Of many who wait at once each worker takes its share without that.  The rule: whatever
accept() says, the calls that are here never notice, and the log gets a line a second at most.
"""
import asyncio
import errno
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from .loop import Loop

log = logging.getLogger("opusagent")

AT_ONCE = 32                    # connections accepted in one callback
AT_A_TURN = 4                   # calls that begin together: what their peers send next comes together, and costs
MOST_PENDING = 1000             # connections whose request is awaited, of a worker; and of TLS, whose handshake is
STEP_BACK = 0.002               # seconds for which another worker may take it
UNACKED = struct.Struct("24xI")  # of tcp_info
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
PAUSE = 0.02                    # seconds until accept() is tried again after that
HANDSHAKE_SECONDS = 10          # for TLS
REFUSAL = (b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 21\r\nConnection: close\r\n\r\n"
           b"This server is full.\n")


class Door:
    """`mine(waiting)` says whether one of so many is this worker's to take; what `protocol()` gives has it: an asyncio
    protocol, or where `bare`, what takes the socket itself (`accepted(socket)`)."""

    def __init__(self, sock: socket.socket, protocol: Callable, ssl, mine: Callable[[int], bool], refused: Callable,
                 bare: bool = False):
        self.sock = sock
        self.protocol = protocol
        self.ssl = ssl
        self.mine = mine
        self.refused = refused                      # called for each connection that could not be taken
        self.bare = bare
        self.loop = asyncio.get_running_loop()
        self.opening = Pending(asyncio.Task.cancel)     # connections that become one of the loop's
        self._later: asyncio.TimerHandle | None = None
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)   # a descriptor, for when there is none left
        self._warned = 0.0
        sock.setblocking(False)
        self.loop.add_reader(sock, self._knock)

    def close(self) -> None:
        """Nobody is let in any more; the others go on."""
        if self._later is not None:
            self._later.cancel()
        self.loop.remove_reader(self.sock)
        self.sock.close()
        if self._spare >= 0:
            os.close(self._spare)

    def _knock(self) -> None:
        if self.mine(waiting(self.sock)):
            self._accept()
        else:
            self._wait(STEP_BACK, self._accept)

    def _wait(self, seconds: float, then: Callable) -> None:
        """Look away from the socket, which stays readable."""
        self.loop.remove_reader(self.sock)

        def look_again():
            self._later = None
            self.loop.add_reader(self.sock, self._knock)
            then()
        self._later = self.loop.call_later(seconds, look_again)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                connection, _ = self.sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as error:
                return self._cannot(error)
            self._open(connection)
            if not self.mine(waiting(self.sock)):
                return

    def _open(self, connection: socket.socket) -> None:
        if self.bare:
            with suppress(OSError):                 # it has gone at once
                self.protocol().accepted(connection)
            return
        if self.ssl is None and isinstance(self.loop, Loop):
            protocol = self.protocol()
            self.loop.take(connection, protocol)
            self.opening.enter(protocol)
            self.loop.call_soon(self.opening.leave, protocol)   # by then it has been told of its transport
            return
        task = self.loop.create_task(self._take(connection))
        self.opening.enter(task)
        task.add_done_callback(self.opening.leave)

    async def _take(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        tls = {"ssl": self.ssl, "ssl_handshake_timeout": HANDSHAKE_SECONDS} if self.ssl else {}
        try:
            await self.loop.connect_accepted_socket(self.protocol, connection, **tls)
        except (OSError, asyncio.TimeoutError, asyncio.CancelledError):
            connection.close()                      # a handshake that failed is the peer's affair

    def _cannot(self, error: OSError) -> None:
        if self.loop.time() - self._warned >= 1:
            self._warned = self.loop.time()
            log.error("connections are turned away: %s", error.strerror)
        if error.errno in EXHAUSTED:
            self._refuse()
            if self._later is None:
                self._wait(PAUSE, lambda: None)

    def _refuse(self) -> None:
        """The spare descriptor is given up for a moment, so that those who wait are told at once."""
        if self._spare >= 0:
            os.close(self._spare)
        try:
            for _ in range(AT_ONCE):
                connection, _ = self.sock.accept()
                self.refused()
                with connection:
                    connection.setblocking(False)
                    if self.ssl is None:
                        connection.send(REFUSAL)
                    connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass                                    # nobody waits any more, or another thread has taken the descriptor
        try:
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._spare = -1


def waiting(sock: socket.socket) -> int:
    """Connections that nobody has accepted yet, as far as the kernel says: a listening socket's tcpi_unacked."""
    try:
        return UNACKED.unpack_from(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, UNACKED.size))[0]
    except OSError:                                 # one of another kind
        return 0


class Pending:
    """Who is still waited for: connections without a request, handshakes of TLS.  There are no more than MOST_PENDING:
    beyond that the one that has waited longest is made to `give_way`, so that a crowd that says nothing takes nobody's
    descriptor or memory."""

    __slots__ = ("_give_way", "_oldest_first")

    def __init__(self, give_way: Callable):
        self._give_way = give_way
        self._oldest_first: dict = {}               # no values

    def __len__(self) -> int:
        return len(self._oldest_first)

    def enter(self, each) -> None:
        self._oldest_first[each] = None
        if len(self) > MOST_PENDING:
            oldest = next(iter(self._oldest_first))
            self.leave(oldest)
            self._give_way(oldest)

    def leave(self, each) -> None:
        """It waits no longer; harmless when done twice."""
        self._oldest_first.pop(each, None)


class Turnstile:
    """Lets calls that were taken begin a few at a time, the next ones at another turn of the loop: frames that came
    meanwhile, ticks, and those who are to be refused are served in between, however many have come at once."""

    __slots__ = ("_waiting",)

    def __init__(self):
        self._waiting: deque[Callable[[], None]] = deque()      # what begins

    def enter(self, begin: Callable[[], None]) -> None:
        """`begin` is called soon, and must not raise."""
        self._waiting.append(begin)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        for _ in range(min(AT_A_TURN, len(self._waiting))):
            self._waiting[0]()
            self._waiting.popleft()             # only now: one that enters meanwhile is not the first
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._turn)
