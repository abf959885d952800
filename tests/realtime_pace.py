"""Whether this machine kept time: a conversation in real time that it could not keep says nothing of the server.

On each processor a thread wakes every few ms and notes how late it did, and the kernel says for which part of the time
something waited for a processor (/proc/pressure): a machine shared with others, or busy with a build, shows there.  The
rule: a test that fails on a machine that kept time has failed.  One that failed on another is held again, and what it
says the last time counts.
"""
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

EVERY_S = 0.005
LATE_MS = 60                    # two frames and a half: no telephone, and no server of ours, is that late by itself
CROWDED = 0.5                   # of the time that something waits for a processor
PRESSURE = Path("/proc/pressure/cpu")
ATTEMPTS = 3


class Watch:
    """A context; `worst_ms` is how late the latest wake-up was, `crowded` the share of the time with a queue."""

    def __init__(self):
        self.worst_ms = self.crowded = 0.0
        self._began = self._waited = 0.0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._look, args=(cpu,), daemon=True)
                         for cpu in os.sched_getaffinity(0)]

    def __enter__(self) -> "Watch":
        self._began, self._waited = time.monotonic(), waited()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self.crowded = (waited() - self._waited) / max(time.monotonic() - self._began, EVERY_S)

    @property
    def kept_time(self) -> bool:
        return self.worst_ms < LATE_MS and self.crowded < CROWDED

    def _look(self, cpu: int) -> None:
        with suppress(OSError):                             # 0: of this thread alone
            os.sched_setaffinity(0, {cpu})
        while not self._over.is_set():
            asked = time.monotonic()
            time.sleep(EVERY_S)
            self.worst_ms = max(self.worst_ms, (time.monotonic() - asked - EVERY_S) * 1000)


def waited() -> float:
    """Seconds, since the machine began, in which something waited for a processor; 0 where the kernel does not say."""
    try:
        return int(PRESSURE.read_text().partition("total=")[2].split()[0]) / 1e6
    except (OSError, ValueError, IndexError):
        return 0.0
