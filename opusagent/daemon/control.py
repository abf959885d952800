"""What the supervisor and a worker say to one another: JSON objects, with descriptors beside them.

A Unix socket keeps the borders of messages and carries descriptors.  The rule: nobody waits for the other; what does
not fit now is sent as soon as there is room, in order.
"""
import array
import os
import socket
from collections import deque
from collections.abc import Iterable, Iterator

import orjson

LARGEST = 1 << 17               # bytes of a message
MOST_FDS = 200                  # descriptors of a message; the kernel's limit is 253


def pair() -> tuple["Control", "Control"]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Control(ours), Control(theirs)


def adopted(fd: int) -> "Control":
    """The end that another process has passed to us."""
    os.set_inheritable(fd, False)
    return Control(socket.socket(fileno=fd))


class Control:
    """One end."""

    def __init__(self, sock: socket.socket):
        sock.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, 1 << 21)
        self.sock = sock
        self.unsent: deque[tuple[bytes, tuple[int, ...]]] = deque()

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, message: dict, fds: Iterable[int] = ()) -> bool:
        """Now, or as soon as there is room; the descriptors may be closed at once: duplicates of them wait.

        True where it is the first that waits: then flush() has to be called until everything is out.
        """
        data, fds, waited = orjson.dumps(message), tuple(fds), bool(self.unsent)
        if waited or not self._put(data, fds):
            self.unsent.append((data, tuple(map(os.dup, fds))))
            self.flush()
        return bool(self.unsent) and not waited

    def flush(self) -> bool:
        """True when everything is out."""
        while self.unsent:
            if not self._put(*self.unsent[0]):
                return False
            close_all(self.unsent.popleft()[1])
        return True

    def _put(self, data: bytes, fds: tuple[int, ...]) -> bool:
        """False where there is no room.  Where the other one is gone, which messages() tells, there is."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self.sock.sendmsg([data], rights)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            pass
        return True

    def messages(self) -> Iterator[tuple[dict, list[int]]]:
        """(message, descriptors) of what has come.  Raises EOFError when the other end is gone."""
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.sock, LARGEST, MOST_FDS + 50, socket.MSG_CMSG_CLOEXEC)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data, fds = b"", []
            if not data:
                raise EOFError
            yield orjson.loads(data), fds

    def close(self) -> None:
        while self.unsent:
            close_all(self.unsent.popleft()[1])
        self.sock.close()


def portions(numbers: list[int]) -> Iterator[list[int]]:
    """So many as fit beside a message."""
    for at in range(0, len(numbers), MOST_FDS):
        yield numbers[at:at + MOST_FDS]


def close_all(fds: Iterable[int]) -> None:
    """Descriptors of ours."""
    for fd in fds:
        os.close(fd)
