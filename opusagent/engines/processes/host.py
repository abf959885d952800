"""Engine processes, seen from the worker: what computes for more than a millisecond runs there, not on the loop.

A process and the worker share the arena and two rings (records.py).  What was asked is remembered here until it is
answered, so that when a process dies another one is asked again: the caller's audio is still in the slot.
The rule: nothing here blocks the loop, and an engine process is never trusted to live.
"""
import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ... import ConfigError, EngineError
from ..._fastpath import Arena, Ring
from ...config import Config
from .records import FAILED, READY
from .vitals import vitals

log = logging.getLogger("opusagent")

MOST_PROCESSES = 4              # of a stage, unless more are asked for: each may take 1 GiB
READY_WITHIN = 60.0             # seconds for a process to load what it needs
BEAT_SECONDS = 0.1              # how often a process must say that it lives; it may say so ahead, for a long work
QUIET_AFTER = 0.15              # seconds without that are looked into
SILENT_AFTER = 0.4              # seconds without that mean that it hangs, if it does not compute either
STUCK_AFTER = 0.1               # seconds of its own computing without that: it is no want of a core that keeps it
SPIN_AFTER = 0.5                # seconds of its own computing without that: nothing it has to do takes so long
AGAIN_AFTER = 5.0               # seconds before one that only gets no CPU time changes places again
DEAD_AFTER = 10.0               # seconds without that mean that it hangs, even if it gets no CPU time
RESTART_SECONDS = (0.0, 0.2, 1.0, 5.0)      # before the next start after so many deaths in a row
FAULTY_AFTER = 3.0              # seconds without a process that answers
CALM_SECONDS = 30.0             # a process that lived for so long has died for the first time
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


class EngineProcess:
    """One process and our end of its channel.  `on_record` gets each record, `on_exit` is called once."""

    def __init__(self, stage: str, arena: Arena, setup: dict, on_record: Callable, on_exit: Callable):
        self.stage = stage                          # "stt", "tts" or "turn"
        self.on_record = partial(on_record, self)
        self.on_exit = on_exit
        self.to = Ring(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self.back = Ring(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self.unsent: deque[tuple] = deque()         # records that found the ring full
        self.began = time.monotonic()
        self.ready = False
        self.over = False
        self.killed = False                         # by us; it is not over yet
        self.quiet: tuple[int, float] | None = None     # a beat that none has followed, and its CPU time until then
        self.stuck = False                          # it has said nothing since, though it had time to compute
        self.process = self._spawn(arena, setup)
        self.pidfd = os.pidfd_open(self.process.pid)
        loop = asyncio.get_running_loop()
        loop.add_reader(self.pidfd, self._exited)
        loop.add_reader(self.back.eventfd, self._readable)
        self._readable()                            # arms the wake-up

    def _spawn(self, arena: Arena, setup: dict) -> subprocess.Popen:
        setup_fd = os.memfd_create("opusagent-setup")
        os.write(setup_fd, json.dumps(setup).encode())
        fds = (arena.fd, self.to.fd, self.to.eventfd, self.back.fd, self.back.eventfd, setup_fd)
        words = [sys.executable, "-P", "-m", "opusagent.engines.processes.process", self.stage,
                 *map(str, (arena.slots, os.getpid(), *fds))]
        try:
            return subprocess.Popen(words, pass_fds=fds, stdin=subprocess.DEVNULL, env=os.environ | ONE_THREAD)
        except OSError as error:
            raise EngineError(f"The {self.stage} process cannot be started: {error.strerror}.") from None
        finally:
            os.close(setup_fd)

    def send(self, kind: int, *record) -> None:
        """A record to the process, now or as soon as its ring has room."""
        if self.unsent or not self.to.push(kind, *record):
            self.unsent.append((kind, *record))

    def _readable(self) -> None:
        try:
            os.eventfd_read(self.back.eventfd)
        except BlockingIOError:
            pass                                    # the wake-up was for something that was read already
        try:
            while True:
                self.back.deliver(self.on_record)
                if self.back.sleep():
                    break
        except EngineError as error:
            log.error("the %s process wrote what is no record: %s", self.stage, error)
            self.kill()
        self.flush()

    def flush(self) -> None:
        while self.unsent and self.to.push(*self.unsent[0]):
            self.unsent.popleft()

    def late(self, now: int) -> bool:
        """It has said nothing for so long that it may hang, or get no CPU time."""
        return (now - self.to.beat) / 1e9 > SILENT_AFTER

    def hangs(self, now: int, work: float) -> bool:
        """Asked a few times a second: a process that says nothing is as good as dead.  `work`: seconds of computing
        for which it may say nothing, beside what any may."""
        self.flush()
        beat = self.to.beat
        silent = (now - beat) / 1e9
        if not self.ready or silent < QUIET_AFTER:
            self.stuck = False
            return False
        state, spent = vitals(Path(f"/proc/{self.process.pid}/stat"))
        if self.quiet is None or self.quiet[0] != beat:
            self.quiet = beat, spent
        computed = spent - self.quiet[1] - work
        self.stuck = state != "R" or computed > STUCK_AFTER
        return silent > SILENT_AFTER and (computed > SPIN_AFTER or state != "R" or silent > DEAD_AFTER)

    def kill(self) -> None:
        if not self.over:
            self.killed = True
            self.process.send_signal(signal.SIGKILL)

    def _exited(self) -> None:
        self._leave()
        self.process.wait()
        self.on_exit(self)

    def _leave(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.pidfd)
        loop.remove_reader(self.back.eventfd)
        self.over = True
        for fd in (self.pidfd, self.to.fd, self.to.eventfd, self.back.fd, self.back.eventfd):
            os.close(fd)

    def close(self) -> None:
        """End the process: it has nothing that it must save."""
        if not self.over:
            self._leave()
            self.process.kill()
            self.process.wait()


def fitting(workers: int) -> int:
    """Processes of a stage for each of so many workers; 0 workers are one for each core but one."""
    if not workers:
        return 1
    left = os.environ.get("OA_CORES")           # which the workers are not pinned to; without, nobody is pinned
    cores = len(left.split(",")) if left else len(os.sched_getaffinity(0)) - workers
    return max(1, min(MOST_PROCESSES, cores // workers))


class Host:
    """The processes of one stage: one for each share of the slots, and a spare one that is warm."""

    def __init__(self, stage: str, config: Config, on_record: Callable, on_takeover: Callable,
                 on_aside: Callable | None = None, work: Callable[[], float] | None = None):
        self.stage = stage
        self.count = config.embedded.processes or fitting(config.workers)
        self.on_record = on_record              # (kind, slot, generation, epoch, a, b, data)
        self.on_takeover = on_takeover          # (share): all that was asked of that share's process is asked again
        self.on_aside = on_aside                # (process, share): nothing that it was asked is wanted of it any more;
                                                # None: a slow one is waited for
        self.work = work                        # seconds of computing for which what was asked may keep it silent; then
                                                # one that gets no CPU time is waited for: another one would have to do
                                                # all of it again
        self.arena: Arena | None = None
        self.setup: dict = {}
        self.live: list[EngineProcess | None] = []
        self.spare: EngineProcess | None = None
        self.deaths = 0                         # in a row
        self.restarts = 0                       # in all
        self.closing = False
        self.relieved = 0                       # monotonic ns: when one that got no CPU time changed places
        self.short_since = 0.0                  # monotonic seconds: since when a share has none that answers; 0: none
        self._opened: asyncio.Future | None = None
        self._look: asyncio.TimerHandle | None = None

    async def open(self, arena: Arena, setup: dict) -> None:
        """Start the processes and wait until they are warm.  EngineError where they do not become so."""
        self.arena, self.setup = arena, setup
        self._opened = asyncio.get_running_loop().create_future()
        self.live = [self._start() for _ in range(self.count)]
        try:
            await asyncio.wait_for(self._opened, READY_WITHIN)
        except TimeoutError:
            raise EngineError(f"The {self.stage} process was not ready within {READY_WITHIN:.0f} s.") from None
        self.spare = self._start()
        self._watch()

    def close(self) -> None:
        self.closing = True
        if self._look is not None:
            self._look.cancel()
        for process in (*self.live, self.spare):
            if process is not None:
                process.close()

    def share(self, slot: int) -> int:
        return slot % self.count

    def send(self, slot: int, kind: int, *record) -> None:
        """A record about a slot; dropped while its process is being replaced, since all is asked again then."""
        process = self.live[self.share(slot)]
        if process is not None and process.ready:
            process.send(kind, slot, *record)

    def wake(self, slot: int) -> None:
        process = self.live[self.share(slot)]
        if process is not None:
            process.to.wake()

    def _start(self) -> EngineProcess:
        return EngineProcess(self.stage, self.arena, self.setup, self._record, self._exited)

    def _record(self, process: EngineProcess, kind: int, slot: int, generation: int, epoch: int, a: int, b: int,
                data: bytes) -> None:
        if kind == READY:
            self._became_ready(process)
        elif kind == FAILED and not process.ready:
            if not self._opened.done():
                kind_of_error = ConfigError if a else EngineError
                self._opened.set_exception(kind_of_error(data.decode(errors="replace")))
        elif process is not self.spare:
            self.on_record(kind, slot, generation, epoch, a, b, data)

    def _became_ready(self, process: EngineProcess) -> None:
        process.ready = True
        if process in self.live:
            self._take_over(self.live.index(process))
        elif None in self.live:
            share = self.live.index(None)
            self.live[share], self.spare = process, None
            self._take_over(share)
        if all(live is not None and live.ready for live in self.live):
            if not self._opened.done():
                self._opened.set_result(None)
            elif self.spare is None:
                self.spare = self._start()

    def _take_over(self, share: int) -> None:
        self.on_takeover(share)

    def _exited(self, process: EngineProcess) -> None:
        """A process died: the spare one takes its place at once, another one becomes the spare."""
        if self.closing:
            return
        if not self._opened.done():
            self._opened.set_exception(EngineError(f"The {self.stage} process ended while it was starting."))
            return
        self.restarts += 1
        self.deaths = 1 if time.monotonic() - process.began > CALM_SECONDS else self.deaths + 1
        log.warning("the %s process %d died (%s)", self.stage, process.process.pid, process.process.returncode)
        if process is self.spare:
            self.spare = None
        elif process in self.live:
            self.live[self.live.index(process)] = None
            self._fill(time.monotonic_ns())
        if self.spare is None:
            wait = RESTART_SECONDS[min(self.deaths, len(RESTART_SECONDS)) - 1]
            asyncio.get_running_loop().call_later(wait, self._start_spare)

    def _fill(self, now: int) -> None:
        """The spare one takes the place that is empty, if there is such and it can."""
        if None in self.live and self.spare is not None and self.spare.ready and not self.spare.late(now):
            share = self.live.index(None)
            self.live[share], self.spare = self.spare, None
            self._take_over(share)

    def _relieve(self, now: int) -> None:
        """One that says nothing, while the spare one gets to say that it lives, changes places with it.

        It may hang or only be slow: which of the two, hangs() finds out while another one serves its calls.  One that
        gets no CPU time may do so once: all is heard anew in its place, and to and fro nobody would ever get on.
        """
        spare = self.spare
        for share, process in enumerate(self.live):
            if (self.on_aside is not None and process is not None and process.ready and process.late(now)
                    and (process.stuck or self.work is None and (now - self.relieved) / 1e9 > AGAIN_AFTER)
                    and spare is not None and spare.ready and now - spare.to.beat < QUIET_AFTER * 1e9):
                log.warning("the %s process %d is late; the spare one takes its place", self.stage, process.process.pid)
                self.relieved = self.relieved if process.stuck else now
                self.on_aside(process, share)
                self.live[share], self.spare, spare = spare, process, None
                self._take_over(share)

    def _start_spare(self) -> None:
        if self.spare is None and not self.closing:
            try:
                self.spare = self._start()
            except EngineError as error:
                log.error("%s", error)
                asyncio.get_running_loop().call_later(RESTART_SECONDS[-1], self._start_spare)

    def _watch(self) -> None:
        now = time.monotonic_ns()
        self._fill(now)
        self._relieve(now)
        work = self.work() if self.work is not None else 0.0
        for process in filter(None, (*self.live, self.spare)):
            if not process.killed and process.hangs(now, work) and self._dispensable():
                log.warning("the %s process %d said nothing for %.1f s; it is killed", self.stage, process.process.pid,
                            (now - process.to.beat) / 1e9)
                process.kill()
        self._look = asyncio.get_running_loop().call_later(BEAT_SECONDS, self._watch)

    def _dispensable(self) -> bool:
        """Whether one may be killed: on a machine that is too busy all of them say nothing, and a slow one is better
        than none.  One that does hang dies when the next is warm."""
        return sum(process.ready and not process.killed
                   for process in filter(None, (*self.live, self.spare))) > self.count

    def fault(self) -> str:
        """A sentence when some share has had no process for a while."""
        if not self.live or all(process is not None and process.ready for process in self.live):
            self.short_since = 0.0
            return ""
        self.short_since = self.short_since or time.monotonic()
        gone = time.monotonic() - self.short_since > FAULTY_AFTER
        return f"The {self.stage} process does not answer." if gone else ""

    def measure(self, metrics, queue_seconds: float) -> None:
        now = time.monotonic_ns()
        beats = [process.to.beat for process in self.live if process is not None and process.ready]
        metrics.gauge("engine_silent_seconds", max([0.0, *((now - beat) / 1e9 for beat in beats)]),
                      stage=self.stage)
        metrics.gauge("engine_restarts", self.restarts, stage=self.stage)
        metrics.gauge("engine_alive", sum(process is not None and process.ready for process in self.live),
                      stage=self.stage)
        metrics.gauge("engine_queue_seconds", queue_seconds, stage=self.stage)
        metrics.gauge("engine_records_waiting", sum(len(process.unsent) for process in self.live if process),
                      stage=self.stage)
