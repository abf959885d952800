"""The worker's event loop: asyncio's own, except that it sleeps in the epoll set of its calls.

A frame that comes is served inside the selector's wait, so it costs the loop no turn, and one system call less than a
set that is nested in a loop.  Every other descriptor is asyncio's, in its own set, which is nested in that of the calls.
The rule: whatever the loop has to do besides (a descriptor, a callback, a timer) ends the wait at once.
"""
import asyncio
import errno
import logging
import os
import selectors
import socket
from collections.abc import Callable

from ._fastpath import EpollSet

log = logging.getLogger("opusagent")

ACCEPTS = 64                    # connections accepted per wake-up
COMPLAINT_SECONDS = 5.0         # between two lines of the log about connections that cannot be taken
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class CallSelector(selectors.EpollSelector):
    """asyncio's selector; while `wires` is set, the wait is theirs."""

    def __init__(self, on_error):
        super().__init__()
        self.wires: EpollSet | None = None
        self.on_error = on_error                # called with what a callback of the wires raised that nobody caught

    def select(self, timeout: float | None = None) -> list:
        if self.wires is None:
            return super().select(timeout)
        try:
            return super().select(0) if self.wires.wait(timeout) else []
        except Exception as error:
            self.on_error(error)
            return []


class Loop(asyncio.SelectorEventLoop):
    """`attach` gives it an EpollSet to sleep in; before that it is asyncio's loop and nothing else."""

    def __init__(self) -> None:
        self.calls = CallSelector(self._failed)
        super().__init__(self.calls)

    def _failed(self, error: Exception) -> None:
        self.call_exception_handler({"message": "a connection's callback failed", "exception": error})

    # What the public ways to give the loop work have in common: a wait that is going on must not outlast them.

    def call_soon(self, callback, *args, context=None):
        if self.calls.wires is not None:
            self.calls.wires.stirred = True
        return super().call_soon(callback, *args, context=context)

    def call_at(self, when, callback, *args, context=None):
        if self.calls.wires is not None:
            self.calls.wires.stirred = True
        return super().call_at(when, callback, *args, context=context)

    def stop(self) -> None:
        if self.calls.wires is not None:
            self.calls.wires.stirred = True
        super().stop()


def attach(wires: EpollSet) -> None:
    """The running loop serves `wires` from now on: from inside where it is a Loop, else as one of its descriptors."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, Loop):
        wires.join(loop.calls.fileno())
        loop.calls.wires = wires
    else:
        wires.on_again = lambda: loop.call_soon(wires.poll)
        loop.add_reader(wires.fileno(), wires.poll)


def detach(wires: EpollSet) -> None:
    """The running loop serves them no longer; closes the set."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, Loop):
        loop.calls.wires = None
    else:
        loop.remove_reader(wires.fileno())
    wires.close()


# -- accepting -------------------------------------------------------------------------------------------------------

async def listen(make: Callable[[], asyncio.BaseProtocol], sock: socket.socket, backlog: int, ssl=None):
    """Accept from now on what comes to a listening socket, each connection for a protocol of its own; close() ends it."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, Loop):
        return Listening(loop, make, sock)
    return await loop.create_server(make, sock=sock, backlog=backlog, ssl=ssl)


class Listening:
    """One listening socket on a Loop: asyncio's own way of accepting floods the log when descriptors run out.

    A descriptor is kept in reserve: without any other, a connection is taken with it and closed, so that its peer
    knows at once and the socket does not stay readable.
    """

    def __init__(self, loop: Loop, make: Callable[[], asyncio.BaseProtocol], sock: socket.socket):
        self.loop = loop
        self.make = make
        self.sock = sock
        self.reserve = spare()                  # -1: taken by somebody else
        self.complained = float("-inf")         # loop time of the last line in the log
        self.beginning: set[asyncio.Task] = set()
        loop.add_reader(sock, self.accept)

    def accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                accepted, _ = self.sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in EXHAUSTED:
                    continue                    # this one was gone before it was taken
                if not self.turn_away(error):
                    return
                continue
            accepted.setblocking(False)
            task = self.loop.create_task(self.begin(accepted))
            self.beginning.add(task)
            task.add_done_callback(self.beginning.discard)

    async def begin(self, accepted: socket.socket) -> None:
        try:
            await self.loop.connect_accepted_socket(self.make, accepted)
        except OSError:
            accepted.close()                    # it was gone already

    def turn_away(self, error: OSError) -> bool:
        """Close one connection that there is no descriptor for; False when even that cannot be done now."""
        if self.loop.time() - self.complained > COMPLAINT_SECONDS:
            self.complained = self.loop.time()
            log.error("connections are turned away: %s", error.strerror)
        if self.reserve >= 0:
            os.close(self.reserve)
            self.reserve = -1
        try:
            self.sock.accept()[0].close()
            return True
        except OSError:
            self.loop.remove_reader(self.sock)  # it stays readable: look again in a moment
            self.loop.call_later(0.1, self.resume)
            return False
        finally:
            self.reserve = spare()

    def resume(self) -> None:
        if self.sock.fileno() >= 0:
            self.loop.add_reader(self.sock, self.accept)

    def close(self) -> None:
        """Takes no more; what was taken goes on."""
        if self.sock.fileno() >= 0:
            self.loop.remove_reader(self.sock)
            self.sock.close()
        if self.reserve >= 0:
            os.close(self.reserve)
            self.reserve = -1


def spare() -> int:
    """A descriptor to give up when there is none left; -1 when there is none to begin with."""
    try:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
