"""From one supervisor to the next: what a successor is given, and how it comes by it.

An upgrade (SIGUSR2) starts the program anew.  The successor gets the listening sockets and the arenas at once, and the
calls when its workers are warm.  A supervisor that systemd has started again finds the same descriptors among those
that it is passed.  The rule: whoever gives keeps what it gives until the other one says that it has it.
"""
import logging
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from .. import ConfigError
from ..board import LAYOUT
from ..continuity.returning import SHELF
from ..continuity.shelf import LAYOUT as SHELVED
from ..transport.net import FIRST_INHERITED
from .control import Control, adopted, close_all, pair, portions

log = logging.getLogger("opusagent")

VARIABLE = "OA_SUCCEEDS"        # in a successor's environment: the descriptor on which it is given everything
GIVEN_SECONDS = 10.0            # for the predecessor to pass sockets and arenas
WARM_SECONDS = 120.0            # for the successor to become warm


# -- the one that goes -------------------------------------------------------------------------------------------------

class Succession:
    """The supervisor's hand that gives."""

    def __init__(self, supervisor):
        self.supervisor = supervisor
        self.awaited: set[int] = set()              # seats whose worker has not stopped yet
        self.stopping = False                       # the server is to end, whichever of us it is
        self.done = False                           # it has taken over, and waits for us when it ends
        self.control, theirs = pair()
        environ = os.environ | supervisor.notify.environ | {VARIABLE: str(theirs.fileno())}
        environ.pop("WATCHDOG_PID", None)
        log.info("a successor is started")
        self.pid = started([sys.executable, *sys.orig_argv[1:]], theirs.fileno(), environ)     # 0: it could not be
        theirs.close()
        supervisor.selector.register(self.control, selectors.EVENT_READ, self._hear)
        self.control.send({"do": "sockets", "names": [name for name, _ in supervisor.sockets]},
                          [fd for _, fd in supervisor.sockets])
        for fd in supervisor.board.passed_on():
            self.control.send({"do": "board", "layout": LAYOUT}, [fd])
        self.control.send({"do": "shelf", "layout": SHELVED}, [SHELF.fd])
        for worker in self._movable():
            self.control.send({"do": "arena", "seat": worker.seat}, [worker.arena])
        self.control.send({"do": "begin"})
        supervisor.later(WARM_SECONDS, self._too_late)
        self.warm = False

    def _movable(self) -> list:
        return [worker for worker in self.supervisor.workers if not worker.retiring]

    def _hear(self) -> None:
        try:
            for message, _ in self.control.messages():
                if message["say"] == "warm" and not self.stopping:
                    self._freeze()
                elif message["say"] == "done":
                    self._done(message["pid"])
                elif message["say"] == "stop":
                    self._stopped(message["stops"])
        except EOFError:
            self.supervisor.selector.unregister(self.control)
            self.control.close()
            if not self.done:
                self._failed()

    def _stopped(self, times: int) -> None:
        """The server is to end, for the `times`-th time; we may have been told of that ourselves."""
        while self.supervisor.stops < times:
            self.supervisor.stop()

    def _freeze(self) -> None:
        """It is warm: every worker stops where it is, and says which of its calls can move."""
        self.warm = True
        for worker in self._movable():
            worker.retiring = worker.frozen = True
            self.awaited.add(worker.seat)
            self.supervisor.say(worker, do="freeze")

    def calls_of(self, worker, slots: list[int]) -> None:
        """A worker has stopped: its calls go to the successor; what could not move finishes here."""
        known = [slot for slot in slots if slot in worker.calls]
        for portion in portions(known):
            self.control.send({"do": "calls", "seat": worker.seat, "slots": portion},
                              [worker.calls[slot] for slot in portion])
        self.awaited.discard(worker.seat)
        if not self.awaited:
            self.control.send({"do": "end"})
        self.supervisor.flush(self.control)
        worker.given = known

    def died(self, worker) -> None:
        """A worker of ours is dead.  If it has not said which of its calls can move, all that were kept do."""
        if worker.seat in self.awaited:
            self.calls_of(worker, list(worker.calls))

    def _done(self, pid: int) -> None:
        """It has everything, and speaks to systemd from now on; we stay for what could not move."""
        supervisor = self.supervisor
        for worker in supervisor.workers:           # what stays is lost with us
            supervisor.forget(worker, worker.calls.keys() - worker.given, arena=not worker.frozen)
        supervisor.notify.tell("READY=1", f"MAINPID={pid}")     # in one: what it has said itself went unheard
        supervisor.notify.close()
        supervisor.reports.tell(True, f"Process {pid} has taken over from process {os.getpid()}.")
        supervisor.reports.leave()
        self.control.send({"do": "speak"})
        self.done, supervisor.successor = True, None
        for worker in list(supervisor.workers):
            if worker.frozen:
                worker.frozen = False
                for slot in worker.given:
                    os.close(worker.calls.pop(slot))
                if worker.control is None:
                    supervisor.end(worker)
        log.info("process %d has taken over; %d workers finish here", pid, len(supervisor.workers))
        for number, wanted in ((signal.SIGTERM, self.stopping), (signal.SIGHUP, supervisor.asked_again)):
            if wanted:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def _too_late(self) -> None:
        if not self.warm and self.supervisor.successor is self:
            self.stop()

    def stop(self) -> None:
        """Nobody is to follow us; one who has our calls already, or is about to, is told to end as we were."""
        self.stopping = True
        if not self.warm and self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _failed(self) -> None:
        """It is gone before it had everything: all goes on here."""
        supervisor = self.supervisor
        log.error("nothing is changed: the successor ended before it had taken over")
        supervisor.successor = None
        for worker in supervisor.workers:
            if worker.frozen:
                worker.frozen = worker.retiring = False
                if worker.control is None:
                    supervisor.replace(worker)
        supervisor.notify.tell("READY=1", "STATUS=Not upgraded.")
        supervisor.reports.tell(False, "The successor ended before it had taken over.")
        supervisor.reload_if_asked()


def started(words: list[str], fd: int, environ: dict[str, str]) -> int:
    """Start a program that has `fd` open, as an orphan: its process id, or 0.

    Process 1 has it for a child then, or the systemd of a user.  A main process that is another's child is one whose
    end systemd does not wait for: it would be killed as soon as it is told to stop.
    """
    told, tell = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if not child:
        try:
            signal.set_wakeup_fd(-1)                    # it is the supervisor's pipe
            os.write(tell, b"%d" % subprocess.Popen(words, pass_fds=[fd], env=environ).pid)
        finally:
            os._exit(0)
    os.close(tell)
    with open(told, "rb") as stream:
        pid = int(stream.read() or 0)
    os.waitpid(child, 0)
    return pid


# -- the one that comes ------------------------------------------------------------------------------------------------

@dataclass(slots=True)
class Estate:
    """What was one worker's."""

    arena: int
    calls: dict[int, int] = field(default_factory=dict)     # slot -> socket
    complete: bool = True                       # nobody else uses the arena any more
    worker: Any = None                          # whose it is now


class Inheritance:
    """What is passed to a supervisor that is not the first: `estates` by seat or arena, `sockets` by name."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ):
        self.estates: dict[str, Estate] = {}
        self.sockets: list[tuple[str, int]] = []
        self.boards: list[int] = []                     # of predecessors, whose calls are told of, too
        self.control: Control | None = None
        self.supervisor = None
        self.finishing = False                          # the predecessor is still there, for calls that could not move
        if VARIABLE in environ:
            self.control = adopted(int(environ.pop(VARIABLE)))
            self._receive()
        elif environ.get("LISTEN_PID") == str(os.getpid()):
            self._find(environ.get("LISTEN_FDNAMES", "").split(":"))
        self._left = list(self.estates.values())

    def _find(self, names: list[str]) -> None:
        """What systemd has kept of one that died: names are those of notify.stored()."""
        calls = []
        for fd, name in enumerate(names, FIRST_INHERITED):
            what, *rest = name.split("-")
            if what == "arena" and len(rest) == 1:
                os.set_inheritable(fd, False)
                self.estates[rest[0]] = Estate(fd)
            elif what == "call" and len(rest) == 2:
                os.set_inheritable(fd, False)
                calls.append((rest[0], int(rest[1]), fd))
        for arena, slot, fd in calls:
            if arena in self.estates:
                self.estates[arena].calls[slot] = fd
            else:                                       # nobody can go on with it; closed only, systemd would keep it
                with suppress(OSError), socket.socket(fileno=fd) as sock:
                    sock.shutdown(socket.SHUT_RDWR)

    def _receive(self) -> None:
        """Everything but the calls.  ConfigError if the predecessor does not pass it."""
        until = time.monotonic() + GIVEN_SECONDS
        while time.monotonic() < until:
            select.select([self.control], [], [], 0.5)
            try:
                for message, fds in self.control.messages():
                    if message["do"] == "sockets":
                        self.sockets = list(zip(message["names"], fds, strict=True))
                    elif message["do"] == "board":
                        self._see(message["layout"], fds[0])
                    elif message["do"] == "shelf":
                        self._share(message["layout"], fds[0])
                    elif message["do"] == "arena":
                        self.estates[str(message["seat"])] = Estate(fds[0], complete=False)
                    elif message["do"] == "begin":
                        return
            except EOFError:
                break
        raise ConfigError("The server that was to be succeeded has not passed its sockets.")

    def _see(self, layout: list, board: int) -> None:
        """One of another version cannot be read; it is told of nothing then."""
        if layout == LAYOUT:
            self.boards.append(board)
        else:
            os.close(board)

    @staticmethod
    def _share(layout: list, shelf: int) -> None:
        """Conversations that have lost their connection go on here.  Those of another version begin anew."""
        if layout == SHELVED:
            SHELF.share(shelf)
        else:
            os.close(shelf)

    def next(self) -> Estate | None:
        return self._left.pop(0) if self._left else None

    def named(self, name: str) -> list[int]:
        return [fd for each, fd in self.sockets if each == name]

    def warm(self, supervisor) -> None:
        """The workers are ready: the calls may come."""
        self.supervisor = supervisor
        if self.control is None:
            return supervisor.retire_surplus()
        supervisor.selector.register(self.control, selectors.EVENT_READ, self._hear)
        self.control.send({"say": "warm"})

    def _hear(self) -> None:
        try:
            for message, fds in self.control.messages():
                if message["do"] == "calls":
                    estate = self.estates[str(message["seat"])]
                    self.supervisor.give(estate.worker, dict(zip(message["slots"], fds, strict=True)), all=False)
                elif message["do"] == "end":
                    self.supervisor.retire_surplus()
                    self.control.send({"say": "done", "pid": os.getpid()})
                elif message["do"] == "speak":          # it has named us to systemd
                    self.finishing = True
                    self.supervisor.store()
                    self.stop()
        except EOFError:
            self.supervisor.selector.unregister(self.control)
            self.control.close()
            self.control, self.finishing = None, False
            self.supervisor.alone()
            if not self.supervisor.notify.heard:        # it may have named us with its last breath
                self.supervisor.store()

    def stop(self) -> None:
        """A predecessor's calls are to finish as ours are, if ours are to."""
        if self.finishing and self.supervisor.stops:
            self.control.send({"say": "stop", "stops": self.supervisor.stops})

    def close_in_child(self) -> None:
        """In a worker: what belongs to others, and is not theirs yet."""
        if self.control is not None:
            self.control.close()
        for estate in self._left:
            close_all((estate.arena, *estate.calls.values()))
