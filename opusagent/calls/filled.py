"""Where in a slot silence of ours lies, for the time in which the caller's side sent nothing.

The rule: what a platform is told of its audio counts what it has sent, and nothing of that.
"""
from collections import deque

KEPT = 16                       # stretches whose places are known


class Filled:
    """Stretches of silence, in their order."""

    __slots__ = ("forgotten", "latest")

    def __init__(self):
        self.forgotten = 0                      # samples in those whose places are not known any more
        self.latest: deque[list[int]] = deque()     # [where one begins, samples]

    def add(self, start: int, samples: int) -> None:
        """So much more follows at `start`."""
        if self.latest and sum(self.latest[-1]) == start:
            self.latest[-1][1] += samples
        else:
            self.latest.append([start, samples])
        if len(self.latest) > KEPT:
            self.forgotten += self.latest.popleft()[1]

    def without(self, position: int) -> int:
        """A position of the slot, counted in what was sent."""
        return position - self.forgotten - sum(min(count, max(0, position - start)) for start, count in self.latest)
