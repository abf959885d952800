"""A worker's pulse: the supervisor is to see that it lives.

The rule: one whose calls all stand still, or whose engines do not answer for long, is as good as dead.
"""
from collections.abc import Iterable

from ..calls.call import Call

STILL_NS = 1_000_000_000        # without a sample of any call
BROKEN_NS = 30_000_000_000      # without engines that answer


class Pulse:
    """What it is felt by."""

    __slots__ = ("whole", "_samples", "_moved")

    def __init__(self, now: int):
        self.whole = now                # ns: when all engines answered last
        self._samples = 0               # of all calls, at the last look,
        self._moved = now               # ... and ns: when that changed

    def beats(self, calls: Iterable[Call], now: int) -> bool:
        heard = [call.slot.written for call in calls if call.slot is not None and not stands(call)]
        if sum(heard) != self._samples or not heard:
            self._samples, self._moved = sum(heard), now
        return now - self._moved < STILL_NS and now - self.whole < BROKEN_NS


def stands(call: Call) -> bool:
    """Whether nothing of a call has to move: its end is the platform's, audio comes when it likes, or none."""
    return call.done or call.dialect.detector is None
