"""What systemd is told, and what it keeps for us: sd_notify(3) in a few lines.

The rule: without systemd all of it is nothing, and no call ever waits for it.
"""
import array
import logging
import os
import socket
from collections import deque
from collections.abc import Iterable, MutableMapping

from .control import close_all

log = logging.getLogger("opusagent")

MOST_UNSENT = 100_000           # messages that wait for systemd to read
CLOSE_SECONDS = 3.0             # for each of those that wait when we are done, to be read
VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notify:
    """The socket of NOTIFY_SOCKET; the variables are taken out of `environ`, so that no child speaks for us."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ):
        self.environ = {name: environ.pop(name) for name in VARIABLES if name in environ}
        path = self.environ.get("NOTIFY_SOCKET", "")
        self.address = "\0" + path[1:] if path.startswith("@") else path
        pid = self.environ.get("WATCHDOG_PID", "")
        usec = self.environ.get("WATCHDOG_USEC", "")
        mine = pid in ("", str(os.getpid())) and usec.isascii() and usec.isdigit()
        self.watchdog_seconds = int(usec) / 1e6 if mine and self.address else 0.0     # 0: nobody watches
        self.unsent: deque[tuple[bytes, list[int]]] = deque()      # messages, duplicates of descriptors
        self.heard = True               # systemd listens to us: to a successor it does not before that was named
        self.sock = None
        if self.address:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self.sock.setblocking(False)

    def tell(self, *lines: str, fds: Iterable[int] = ()) -> None:
        """One message, such as tell("READY=1"): now, or as soon as there is room.  What a line says may have several:
        systemd would take each for a variable of its own."""
        if self.sock is not None and self.heard and not (self.unsent and lines[0] == "WATCHDOG=1"):
            told = "\n".join(" ".join(line.splitlines()) for line in lines)
            kept: list[int] = []
            try:
                kept += map(os.dup, fds)
            except OSError as error:            # no descriptors are left: better not kept than not served
                close_all(kept)
                return log.warning("systemd cannot be told %r: %s", told, error.strerror)
            if len(self.unsent) >= MOST_UNSENT:
                close_all(self.unsent.popleft()[1])
            self.unsent.append((told.encode(), kept))
            self.flush()

    def flush(self) -> None:
        """Called a few times a second."""
        while self.unsent and self.sock is not None:
            message, fds = self.unsent[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                self.sock.sendmsg([message], rights, 0, self.address)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                log.debug("systemd could not be told %r: %s", message, error.strerror)
            self.unsent.popleft()
            close_all(fds)

    def store(self, name: str, *fds: int) -> None:
        """systemd keeps a duplicate of each against our death, and passes them to our successor by this name."""
        self.tell("FDSTORE=1", "FDNAME=" + name, fds=fds)

    def forget(self, name: str) -> None:
        """What has not been told of it yet need not be: however long systemd reads nothing, what waits is bounded."""
        for waiting in [each for each in self.unsent if each[0].endswith(b"\nFDNAME=" + name.encode())]:
            self.unsent.remove(waiting)
            close_all(waiting[1])
        self.tell("FDSTOREREMOVE=1", "FDNAME=" + name)

    def close(self) -> None:
        """Somebody else speaks to systemd from now on, whom our last word names: for that, room is waited for."""
        if self.sock is not None:
            self.sock.settimeout(CLOSE_SECONDS)
            self.flush()
            self.sock.close()
        self.sock = None
        self.watchdog_seconds = 0.0


def stored(what: str, arena: int, *slot: int) -> str:
    """The name under which systemd keeps a descriptor: "arena" or "call", the arena's inode, and a call's slot.

    All who have had an arena give it the same name: what systemd keeps already, it does not keep once more by another.
    """
    return "-".join(map(str, (what, os.fstat(arena).st_ino, *slot)))
