"""Whether this machine kept time: a conversation in real time that it could not keep says nothing of the server.

On each processor a thread wakes every few ms and notes how late it did; a machine shared with others, or busy with a
build, shows there.  The rule: a test that fails on a machine that kept time has failed.  One that failed while the
machine stood still is held again, and what it says the last time counts.
"""
import os
import threading
import time
from contextlib import suppress

EVERY_S = 0.005
LATE_MS = 60                    # two frames and a half: no telephone, and no server of ours, is that late by itself
ATTEMPTS = 3


class Watch:
    """A context; `worst_ms` is how late the latest wake-up was."""

    def __init__(self):
        self.worst_ms = 0.0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._look, args=(cpu,), daemon=True)
                         for cpu in os.sched_getaffinity(0)]

    def __enter__(self) -> "Watch":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    @property
    def kept_time(self) -> bool:
        return self.worst_ms < LATE_MS

    def _look(self, cpu: int) -> None:
        with suppress(OSError):                             # 0: of this thread alone
            os.sched_setaffinity(0, {cpu})
        while not self._over.is_set():
            asked = time.monotonic()
            time.sleep(EVERY_S)
            self.worst_ms = max(self.worst_ms, (time.monotonic() - asked - EVERY_S) * 1000)
