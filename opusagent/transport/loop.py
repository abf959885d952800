"""The worker's event loop: asyncio's own, except that it sleeps in the epoll set of its calls.

A frame that comes is served inside the selector's wait, so it costs the loop no turn, and one system call less than a
set that is nested in a loop.  Every other descriptor is asyncio's, in its own set, which is nested in that of the
calls.  The rule: whatever the loop has to do besides (a descriptor, a callback, a timer) ends the wait at once.
"""
import asyncio
import selectors

from .._fastpath import EpollSet


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

    def take(self, sock, protocol: asyncio.BaseProtocol) -> None:
        """A plain connection that was accepted: connect_accepted_socket() without a task and two turns of the loop."""
        sock.setblocking(False)
        self._make_socket_transport(sock, protocol)

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
