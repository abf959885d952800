"""A stage's queue delay: how long what a caller waits for lies there until one of its processes takes it up.

The rule: the worst of the last seconds counts, and of what still waits, so that neither a process that has fallen
silent nor a caller whose turn it just was makes the queue look short.
"""
import time
from collections import deque
from collections.abc import Hashable

RECENT = 5.0                    # seconds for which a wait that is over is told


class Delays:
    """Of one stage."""

    __slots__ = ("_since", "_past")

    def __init__(self):
        self._since: dict[Hashable, float] = {}                 # what waits: since when, monotonic seconds
        self._past: deque[tuple[float, float]] = deque()        # when a wait was over, and how long it was, seconds

    def begin(self, what: Hashable) -> None:
        """It was asked for.  What is asked for once more waits since the first time."""
        self._since.setdefault(what, time.monotonic())

    def end(self, what: Hashable) -> None:
        """It was taken up, or nobody wants it any more."""
        if (since := self._since.pop(what, None)) is not None:
            self.was(time.monotonic() - since)

    def was(self, seconds: float) -> None:
        """A process says that it is so far behind."""
        now = time.monotonic()
        while self._past and now - self._past[0][0] > RECENT:
            self._past.popleft()
        self._past.append((now, seconds))

    @property
    def seconds(self) -> float:
        now = time.monotonic()
        return max([0.0, *(now - since for since in self._since.values()),
                    *(seconds for over, seconds in self._past if now - over <= RECENT)])
