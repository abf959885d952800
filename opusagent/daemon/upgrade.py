"""The command `upgrade`, and the supervisor's end of it: whether the successor has taken over, in one sentence.

A supervisor listens on an abstract Unix socket that has its process id in the name, and tells whoever is connected
what became of an upgrade.  The rule: the socket only reports.  What starts an upgrade is SIGUSR2, and the kernel
decides who may send that.
"""
import logging
import os
import re
import selectors
import signal
import socket
import struct
import time
from pathlib import Path

import orjson

from .. import ConfigError, EngineError

log = logging.getLogger("opusagent")

NAME = "opusagent-supervisor-"
LISTENING = re.compile(rf"@{NAME}(\d+)$", re.MULTILINE)
MOST_LISTENERS = 8              # of one supervisor's reports at once
REPORT_SECONDS = 180.0          # for the report: longer than a successor may take to become warm


# -- the supervisor's end ----------------------------------------------------------------------------------------------

class Reports:
    """Who waits to be told how an upgrade ends."""

    def __init__(self):
        self.listeners: list[socket.socket] = []
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.setblocking(False)
        try:
            self.sock.bind(f"\0{NAME}{os.getpid()}")
        except OSError as error:                # a container beside us has the same process id and the host's network
            log.warning("opusagent upgrade will not find this server: %s", error.strerror)
        else:
            self.sock.listen(MOST_LISTENERS)
        self.selector: selectors.BaseSelector | None = None

    def open(self, selector: selectors.BaseSelector) -> None:
        self.selector = selector
        selector.register(self.sock, selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        """The oldest listeners go when there are too many."""
        while True:
            try:
                listener, _ = self.sock.accept()
            except OSError:                     # nobody more
                return
            listener.setblocking(False)
            self.listeners.append(listener)
            if len(self.listeners) > MOST_LISTENERS:
                self.listeners.pop(0).close()

    def tell(self, done: bool, sentence: str) -> None:
        """To all who have connected before the upgrade ended."""
        if self.selector is None:
            return
        self._accept()
        for listener in self.listeners:
            try:
                listener.send(orjson.dumps({"done": done, "sentence": sentence}))
            except OSError:                     # it has gone, or does not read
                pass
            listener.close()
        self.listeners.clear()

    def leave(self) -> None:
        """Somebody else is the server now."""
        if self.selector is not None:
            self.selector.unregister(self.sock)
            self.selector = None
            self.close()

    def close(self) -> None:
        for sock in (self.sock, *self.listeners):
            sock.close()


# -- the command -------------------------------------------------------------------------------------------------------

def running(listed: str) -> list[int]:
    """The process ids of the supervisors in what /proc/net/unix says."""
    return sorted({int(number) for number in LISTENING.findall(listed)})


def which(pid: int | None) -> int:
    """The supervisor that is meant.  ConfigError where there is none, or more than one."""
    try:
        found = running(Path("/proc/net/unix").read_text())
    except OSError as error:
        raise ConfigError("/proc/net/unix cannot be read, which says what servers run here: "
                          f"{error.strerror}.") from None
    if pid is not None and pid not in found:
        raise ConfigError(f"Process {pid} is no supervisor of opusagent"
                          + (f"; there is {', '.join(map(str, found))}." if found else "."))
    if not found:
        raise ConfigError("No server runs here that could be upgraded: opusagent serve starts one.")
    if pid is None and len(found) > 1:
        raise ConfigError(f"Several servers run here: say which with --pid, of {', '.join(map(str, found))}.")
    return found[0] if pid is None else pid


def owner(sock: socket.socket) -> int:
    """The process that listens where `sock` is connected, as the kernel knows it; the name may be anybody's."""
    pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    if pid <= 0:
        raise ConfigError("The server runs in another container: run this where it runs.")
    return pid


def upgrade_command(pid: int | None = None) -> int:
    """Have the server start its successor, and say whether it has taken over: 0, or 1 where the old one goes on."""
    pid = which(pid)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(REPORT_SECONDS)
        try:
            sock.connect(f"\0{NAME}{pid}")
            os.kill(owner(sock), signal.SIGUSR2)
            began = time.monotonic()
            told = sock.recv(4096)
        except PermissionError:
            raise EngineError(f"Process {pid} belongs to another user: run this as that user or as root.") from None
        except TimeoutError:
            raise EngineError(f"Process {pid} has not said within {REPORT_SECONDS:.0f} s what became of the upgrade; "
                              "its log does.") from None
        except OSError as error:
            raise EngineError(f"Process {pid} cannot be reached: {error.strerror}.") from None
    if not told:
        raise EngineError(f"Process {pid} ended before the upgrade did; its log says why.")
    report = orjson.loads(told)
    if not report["done"]:
        raise EngineError(f"{report['sentence']} The old server goes on, and its log says why.")
    print(f"{report['sentence']} It took {time.monotonic() - began:.1f} s.")
    return 0
