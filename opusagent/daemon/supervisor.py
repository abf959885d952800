"""The supervisor: starts the workers, replaces those that die, and outlives them all.

It serves no call itself.  It keeps a duplicate of every call's socket and of every worker's arena, so that whatever
happens to a worker, its calls go to another: one that it forks when a worker dies (SIGKILL and all), or a successor
of its own with newer code (SIGUSR2).  It alone talks to systemd, which keeps the same descriptors against its own
death.  The rules: it does nothing that could block, and a call's socket is closed here when its worker says so.
"""
import logging
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from .. import ConfigError
from .._fastpath import SLOT_SIZE
from ..board import DRAINING, SERVING, STARTING, Board
from . import control
from .control import Control, close_all, portions
from .notify import Notify, stored
from .succession import Inheritance, Succession
from .upgrade import Reports

log = logging.getLogger("opusagent")

RESTARTS_AT_ONCE = 5            # deaths within DEATHS_SECONDS, after which the next starts wait
DEATHS_SECONDS = 10.0
RESTART_SECONDS = 1.0           # then between two starts
GIVE_UP = 10                    # deaths within DEATHS_SECONDS mean that no worker can live here
HUNG_SECONDS = 4.0              # without a beat of its loop a worker is as good as dead
KILL_SECONDS = 1.0              # from SIGABRT, which leaves a trace, to SIGKILL
LOOK_SECONDS = 0.25             # between two looks at the beats


@dataclass(slots=True, eq=False)
class Worker:
    """One process, its seat on the board, and what outlives it."""

    seat: int
    arena: int                                  # the descriptor of its arena
    work: Callable                              # what its process runs, with the settings of its generation
    calls: dict[int, int] = field(default_factory=dict)     # slot -> our duplicate of the call's socket
    pid: int = 0
    control: Control | None = None
    ready: bool = False
    retiring: bool = False                      # its calls finish, and nobody replaces it when it exits
    frozen: bool = False                        # its calls are on their way to a successor
    given: list[int] = field(default_factory=list)          # slots of those that were sent there
    aborted: float = 0.0                        # when it was told to dump its stacks and die


class Supervisor:
    """`run` starts the workers and returns, when they have ended, the exit code."""

    def __init__(self, count: int, slots: int, work: Callable, reload: Callable, announce: Callable, notify: Notify,
                 sockets: list, inherited: Inheritance):
        self.wanted = count                     # workers, as configured
        self.count = max(count, len(inherited.estates))         # one for each arena, until its calls are here
        self.sockets = sockets                  # (name, descriptor) of what is listened on, for a successor
        self.inherited = inherited              # what a predecessor, or systemd, has passed to us
        self.successor: Succession | None = None
        self.reports = Reports()                # to who waits for the end of an upgrade
        self.slots = slots                      # of an arena, for workers to come
        self.work = work                        # (Worker, Board) in the child: runs a worker to its end, the exit code
        self.reload = reload                    # () -> the work of a new generation, its slots; ConfigError
        self.announce = announce                # everything is ready: said once
        self.notify = notify
        self.notify.heard = inherited.control is None
        self.board = Board(max(16, 4 * count), slots, inherited.boards)
        self.workers: list[Worker] = []
        self.coming: list[Worker] = []          # a generation that is not ready yet: those before it serve
        self.selector = selectors.DefaultSelector()
        self.timers: list[tuple[float, Callable]] = []
        self.deaths: list[float] = []           # monotonic seconds
        self.announced = False
        self.asked_again = False                # for a reload, while there was another, or an upgrade
        self.stops = 0                          # signals to end that came
        self.code = 0
        self.next_look = self._next_watchdog = 0.0

    # -- life ----------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda number, frame: None)       # the byte in the pipe says it
        self.selector.register(wake, selectors.EVENT_READ, lambda: self._signals(os.read(wake, 512)))
        self.reports.open(self.selector)
        self.board.past.put("started", time.monotonic_ns())
        for how in ("died", "hung"):
            self.board.count("worker_deaths", 0, how=how)
        self._start_generation(self.work)
        while self.workers or self.inherited.finishing and self.stops < 3:
            for key, _ in self.selector.select(self._timeout()):
                key.data()
            self._due()
        return self.code

    def _signals(self, numbers: bytes) -> None:
        for number in dict.fromkeys(numbers):
            SIGNALS[number](self)

    def _timeout(self) -> float:
        return max(0.0, min([self.next_look, *(at for at, _ in self.timers)]) - time.monotonic())

    def _due(self) -> None:
        now = time.monotonic()
        due = [timer for timer in self.timers if timer[0] <= now]
        self.timers = [timer for timer in self.timers if timer[0] > now]
        for _, call in due:
            call()
        if now >= self.next_look:
            self.next_look = now + LOOK_SECONDS
            self._look(now)

    def later(self, seconds: float, call: Callable) -> None:
        self.timers.append((time.monotonic() + seconds, call))

    # -- workers -------------------------------------------------------------------------------------------------------

    def _start_generation(self, work: Callable) -> None:
        """The first of its workers renders the prompts; the others follow when it is ready."""
        self.coming = []
        self.coming.append(self._new_worker(work))

    def _new_worker(self, work: Callable) -> Worker:
        seat = self.board.free_seat()
        if seat is None:
            raise ConfigError("There is no room for more workers: those before the last reloads still finish calls.")
        estate = self.inherited.next()
        worker = Worker(seat, self._arena(estate.arena if estate else None), work)
        self.workers.append(worker)
        self.notify.store(stored("arena", worker.arena), worker.arena)
        self._fork(worker)
        if estate is not None:
            estate.worker = worker
            self.give(worker, estate.calls, all=estate.complete)
        return worker

    def _arena(self, inherited: int | None) -> int:
        """With room for all calls; one that was inherited keeps those that it has."""
        arena = os.memfd_create("opusagent-arena", os.MFD_CLOEXEC) if inherited is None else inherited
        if os.fstat(arena).st_size < self.slots * SLOT_SIZE:
            os.ftruncate(arena, self.slots * SLOT_SIZE)
        return arena

    def _fork(self, worker: Worker) -> None:
        ours, theirs = control.pair()
        self.board.seats[worker.seat].put("state", STARTING)
        pid = os.fork()
        if not pid:
            self._become(worker, ours, theirs)
        theirs.close()
        worker.pid, worker.control, worker.ready, worker.aborted = pid, ours, False, 0.0
        self.board.seats[worker.seat].put("pid", pid)
        self.selector.register(ours, selectors.EVENT_READ, lambda: self._hear(worker, ours))

    def _become(self, worker: Worker, ours: Control, theirs: Control) -> None:
        """In the child: whatever belongs to others is closed, and the worker's life begins."""
        try:
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL if number in (signal.SIGTERM, signal.SIGCHLD) else signal.SIG_IGN)
            ours.close()
            self.selector.close()
            self.reports.close()
            for other in self.workers:
                close_all(other.calls.values())
                if other is not worker:
                    os.close(other.arena)
                    if other.control is not None:
                        other.control.close()
            if self.successor is not None:
                self.successor.control.close()
            self.inherited.close_in_child()
            worker.control = theirs
            code = worker.work(worker, self.board)
        except BaseException:
            log.exception("a worker ended by an error of ours")
            code = 1
        os._exit(code)

    def _hear(self, worker: Worker, ends: Control) -> None:
        """What a worker says; its silence for ever when it is dead."""
        try:
            for message, fds in ends.messages():
                SAYS[message["say"]](self, worker, message, fds)
        except EOFError:
            self.selector.unregister(ends)
            ends.close()
            if worker.control is ends:
                worker.control = None
            self._reap(worker)

    def _ready(self, worker: Worker, message: dict, fds: list[int]) -> None:
        worker.ready = True
        seat = self.board.seats[worker.seat]
        seat.put("beat", time.monotonic_ns())       # that counts as one: another worker may have had the seat before
        seat.put("state", DRAINING if worker.retiring or self.stops else SERVING)
        if worker in self.coming and not self.stops:
            while len(self.coming) < self.count:
                self.coming.append(self._new_worker(worker.work))
            if all(each.ready for each in self.coming):
                self._generation_ready()

    def _generation_ready(self) -> None:
        for worker in self.workers:
            if worker not in self.coming and not worker.retiring:
                self._retire(worker)
        serving, self.coming = len(self.coming), []
        if self.announced:
            log.info("new calls get the settings as they are now; those of before finish with theirs")
        else:
            self.announced = True
            self.inherited.warm(self)
            self.announce()
        self.notify.tell("READY=1", f"STATUS={serving} workers serve.")
        self.reload_if_asked()

    def _retire(self, worker: Worker) -> None:
        """It takes no call any more, and ends when those that it has are over."""
        worker.retiring = True
        self.board.seats[worker.seat].put("state", DRAINING)
        self.say(worker, do="retire")

    def say(self, worker: Worker, fds=(), **message) -> None:
        if worker.control is not None and worker.control.send(message, fds):
            self.flush(worker.control)

    def flush(self, control: Control) -> None:
        """What did not fit is sent as soon as there is room."""
        if not control.flush():
            self.later(0.005, lambda: self.flush(control))

    # -- calls ---------------------------------------------------------------------------------------------------------

    def _call(self, worker: Worker, message: dict, fds: list[int]) -> None:
        """A call has begun: its socket is kept."""
        self._over(worker, message, [])
        if not fds:
            return log.warning("a call cannot be kept for another worker: there are no descriptors left")
        worker.calls[message["slot"]] = fds[0]
        self.notify.store(stored("call", worker.arena, message["slot"]), fds[0])

    def _over(self, worker: Worker, message: dict, fds: list[int]) -> None:
        fd = worker.calls.pop(message["slot"], None)
        if fd is not None:
            os.close(fd)
            self.notify.forget(stored("call", worker.arena, message["slot"]))

    def _news(self, worker: Worker, message: dict, fds: list[int]) -> None:
        """A platform speaks of a call that this worker has not: it is for the next one, until all were asked."""
        asked = [*message["asked"], worker.seat]
        other = next((each for each in self.workers if each.control is not None and each.seat not in asked), None)
        self.say(other or worker, do="news", call=message["call"], who=message["who"], asked=asked if other else None)

    def give(self, worker: Worker, calls: dict[int, int], all: bool) -> None:
        """Calls of another process, by slot, are the worker's from now on; `all`: nobody else uses its arena."""
        for slot, fd in calls.items():
            worker.calls[slot] = fd
            self.notify.store(stored("call", worker.arena, slot), fd)
        for slots in portions(list(calls)):
            self.say(worker, [calls[slot] for slot in slots], do="adopt", slots=slots)
        self.say(worker, do="adopted", all=all)

    def store(self) -> None:
        """systemd listens to us from now on."""
        self.notify.heard = True
        for worker in self.workers:
            self.notify.store(stored("arena", worker.arena), worker.arena)
            for slot, fd in worker.calls.items():
                self.notify.store(stored("call", worker.arena, slot), fd)

    def forget(self, worker: Worker, slots: Iterable[int], arena: bool) -> None:
        """Nobody is to go on with these calls if we die; `arena`: nor with any in there."""
        for slot in slots:
            self.notify.forget(stored("call", worker.arena, slot))
        if arena:
            self.notify.forget(stored("arena", worker.arena))

    def retire_surplus(self) -> None:
        """All that was inherited is here.  Who is there for an arena alone, one more than configured, finishes its
        calls and goes."""
        for worker in [each for each in self.workers if not each.retiring][self.wanted:]:
            self._retire(worker)
        self.count = self.wanted

    # -- deaths --------------------------------------------------------------------------------------------------------

    def _reap(self, worker: Worker) -> None:
        """It has closed its end: it is dead, or will be at once."""
        os.kill(worker.pid, signal.SIGKILL)
        _, status = os.waitpid(worker.pid, 0)
        worker.ready = False                    # its process id may be another's
        code = os.waitstatus_to_exitcode(status)
        if not self.announced:
            self.code = self.code or (0 if self.stops else code or 1)
            return self.end(worker)
        if worker in self.coming:
            return self._give_up_reload()
        if worker.frozen:
            return self.successor.died(worker)  # until it is known whether its calls have arrived
        if code == 0 and (worker.retiring or self.stops) or worker.retiring and not worker.calls:
            return self.end(worker)
        log.error("worker %d died (%d); another takes its place and its %d calls", worker.pid, code, len(worker.calls))
        self.board.count("worker_deaths", how="hung" if worker.aborted else "died")
        now = time.monotonic()
        self.deaths = [at for at in self.deaths if now - at < DEATHS_SECONDS] + [now]
        if len(self.deaths) >= GIVE_UP:
            log.error("%d workers died within %.0f s; giving up", len(self.deaths), DEATHS_SECONDS)
            self.code = 1
            self.end(worker)
            return self.stop()
        if len(self.deaths) > RESTARTS_AT_ONCE:
            self.later(RESTART_SECONDS, lambda: self.replace(worker))
        else:
            self.replace(worker)

    def _give_up_reload(self) -> None:
        """The settings as they are now do not serve: everything stays as it was."""
        log.error("nothing is changed: a worker with the new settings did not become ready")
        coming, self.coming = self.coming, []
        for worker in coming:
            worker.retiring = True
            if worker.control is None:
                self.end(worker)
            else:
                os.kill(worker.pid, signal.SIGKILL)
        self.notify.tell("READY=1", "STATUS=Not reloaded.")
        self.reload_if_asked()

    def replace(self, worker: Worker) -> None:
        self._fork(worker)
        self.give(worker, dict(worker.calls), all=True)
        if self.stops:
            self._say_stop(worker)
        elif worker.retiring:
            self.say(worker, do="retire")

    def end(self, worker: Worker) -> None:
        """It is gone, and nobody takes its place."""
        self.workers.remove(worker)
        self.board.leave(worker.seat)
        self.forget(worker, worker.calls, arena=True)
        close_all(worker.calls.values())
        worker.calls.clear()
        os.close(worker.arena)
        if not self.announced and not self.stops:
            self.stop()

    def _look(self, now: float) -> None:
        """A worker whose loop does not turn is made to say where it stands, and is replaced."""
        self.notify.flush()
        fresh = True
        for worker in self.workers:
            beat = self.board.seats[worker.seat].beat / 1e9
            if worker.ready and now - beat > HUNG_SECONDS:
                fresh = False
                if not worker.aborted:
                    worker.aborted = now
                    log.error("worker %d does not answer for %.1f s; it is ended", worker.pid, now - beat)
                    os.kill(worker.pid, signal.SIGABRT)
                elif now - worker.aborted > KILL_SECONDS:
                    os.kill(worker.pid, signal.SIGKILL)
        if fresh and self.notify.watchdog_seconds and now >= self._next_watchdog:
            self._next_watchdog = now + self.notify.watchdog_seconds / 3
            self.notify.tell("WATCHDOG=1")

    # -- signals -------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Once: live calls finish.  Twice: they are told politely, and end now."""
        self.stops += 1
        self.notify.tell("STOPPING=1", "STATUS=Live calls finish.")
        if self.successor is not None:
            self.successor.stop()
        self.inherited.stop()
        for worker in self.workers:
            self.board.seats[worker.seat].put("state", DRAINING)
            self._say_stop(worker)

    def _say_stop(self, worker: Worker) -> None:
        """While a predecessor finishes calls, somebody answers at the door."""
        self.say(worker, do="drain" if self.stops == 1 else "part", stay=self.inherited.finishing)

    def alone(self) -> None:
        """A predecessor's last call is over."""
        for worker in self.workers if self.stops == 1 else ():
            self._say_stop(worker)

    def _reload(self) -> None:
        """A new generation of workers with the settings as they are now; those before finish their calls."""
        if self.stops:
            return
        if self.coming or self.successor is not None:
            self.asked_again = True
            return log.info("the reload begins when the one before it, or the upgrade, is over")
        self.notify.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            work, self.slots = self.reload()
            self._start_generation(work)
        except ConfigError as error:
            log.error("nothing is changed: %s", error)
            self.notify.tell("READY=1", f"STATUS=Not reloaded: {error}")

    def reload_if_asked(self) -> None:
        """What was changed meanwhile may not have been read."""
        if self.asked_again:
            self.asked_again = False
            self._reload()

    def _upgrade(self) -> None:
        """Start the program anew, with its code as it is now; when it is warm it gets everything."""
        if self.successor is not None:
            return log.info("an upgrade is under way: who asks for another one hears how that ends")
        if self.stops or self.coming:
            self.reports.tell(False, "No upgrade now: the server ends, or reloads.")
            return log.error("no upgrade now: something else is under way")
        if os.getpid() == 1:
            self.reports.tell(False, "A container ends with its process 1: replace the container.")
            return log.error("no upgrade of process 1, with which its container would end")
        self.notify.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        self.successor = Succession(self)

    def _frozen(self, worker: Worker, message: dict, fds: list[int]) -> None:
        if self.successor is not None:
            self.successor.calls_of(worker, message["slots"])

    def _nothing(self) -> None:
        """A child has ended: its socket says so."""


SIGNALS = {
    signal.SIGTERM: Supervisor.stop,
    signal.SIGINT: Supervisor.stop,
    signal.SIGHUP: Supervisor._reload,
    signal.SIGUSR2: Supervisor._upgrade,
    signal.SIGCHLD: Supervisor._nothing,
}

SAYS = {
    "ready": Supervisor._ready,
    "call": Supervisor._call,
    "over": Supervisor._over,
    "frozen": Supervisor._frozen,
    "news": Supervisor._news,
}
