"""A connection that stays on the event loop's transport, seen as a Wire: for TLS, which only the transport can read.

It cuts no frame and owns no connection.  The rule: a session cannot tell the two kinds of wire apart.
"""
import asyncio
import fcntl
import socket
import struct
import termios

from .._fastpath import build_frame

TRAFFIC = struct.Struct("<120xQQ")      # of tcp_info: bytes that the peer has acknowledged, bytes that came of it
WORTH = 8                               # bytes on the line to each inside of TLS, a record around every small frame
EMPTY_PER_SECOND, EMPTY_AT_ONCE = 8 << 10, 64 << 10     # bytes on the line that nothing was in


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

    flowed = 0                          # ns: see flows()
    __slots__ = ("transport", "lockstep", "looked", "_came", "_empty")

    def __init__(self, transport: asyncio.Transport):
        self.transport = transport
        self.lockstep = False
        self.looked = 0                 # ns: the owner's last look
        self._came: int | None = None   # bytes on the line at the last look; None: it was not read from since
        self._empty = 0.0               # bytes on the line that nothing was in, beyond what is allowed

    @property
    def backlog(self) -> int:
        return self.transport.get_write_buffer_size()

    @property
    def taken(self) -> int:
        """What the peer has acknowledged: TLS may have more to say all the while that it takes nothing."""
        return self._traffic()[0]

    def floods(self, carried: int, now: int) -> bool:
        """Told a few times a second how many bytes inside of TLS have come since.  True where too much comes that has
        nothing in it, such as updates of the keys: the transport answers each, whether its peer reads or not."""
        before, self._came = self._came, self._traffic()[1] if self.transport.is_reading() else None
        seconds = (now - self.looked) / 1e9
        if before is not None and self._came is not None:
            empty = max(0, self._came - before - WORTH * carried)
            self._empty = max(0.0, self._empty + empty - EMPTY_PER_SECOND * seconds)
        return self._empty > EMPTY_AT_ONCE

    def _traffic(self) -> tuple[int, int]:
        """Bytes that the peer has acknowledged, and that the transport has read, ever, as far as the kernel tells."""
        sock = self.transport.get_extra_info("socket")
        if sock is None:                        # it is over, and the connection is not told before the next callback
            return -self.backlog, 0
        try:
            acknowledged, came = TRAFFIC.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TRAFFIC.size))
            unread = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))[0]
        except (OSError, ValueError, struct.error):
            return -self.backlog, 0
        return acknowledged, came - unread

    def send(self, opcode: int, payload) -> bool:
        return self.write(build_frame(opcode, payload))

    def write(self, data: bytes) -> bool:
        self.transport.write(data)
        return not self.backlog

    def calm(self, until: int, now: int, rate: int) -> None:
        """The owner has looked, at `now`."""
        self.looked = now

    def flows(self, now: int) -> bool:
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
