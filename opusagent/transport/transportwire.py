"""A connection that stays on the event loop's transport, seen as a Wire: for TLS, which only the transport can read.

It cuts no frame and owns no connection.  The rule: a session cannot tell the two kinds of wire apart.
"""
import asyncio

from .._fastpath import build_frame


class Gone(asyncio.Transport):
    """What is left of a transport that was aborted."""

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data) -> None:
        pass

    close = abort = lambda self: None


GONE = Gone()


class TransportWire:
    """The functions of a Wire over an asyncio transport: for TLS, which only the transport can read."""

    __slots__ = ("transport", "lockstep")

    def __init__(self, transport: asyncio.Transport):
        self.transport = transport
        self.lockstep = False

    @property
    def backlog(self) -> int:
        return self.transport.get_write_buffer_size()

    @property
    def taken(self) -> int:
        return -self.backlog

    def send(self, opcode: int, payload) -> bool:
        return self.write(build_frame(opcode, payload))

    def write(self, data: bytes) -> bool:
        self.transport.write(data)
        return not self.backlog

    def flows(self, most: int) -> bool:
        """What came the connection's own parser knows: it has to be asked."""
        return False

    def shutdown(self) -> None:
        """TLS cannot be half closed: the transport closes when everything is out, and its close_notify behind that.

        Not from here: the transport may be reading, and has perhaps the peer's close_notify still before it.
        """
        asyncio.get_running_loop().call_soon(self.transport.close)

    def close(self) -> None:
        self.transport.abort()
        self.transport = GONE                   # it leads back to the connection, which is gone at once without it
