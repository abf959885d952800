"""Pace: how long a caller's own pauses are, as a factor for the waits that are made for everybody's.

A running mean and mean deviation of the pauses within utterances, as RFC 6298 keeps them of round trips: what is to be
waited for is a long pause of this caller's, not a usual one.  The rule: it starts from what is usual, moves slowly, and
never leaves its bounds, so that one strange pause changes nothing much; the same pauses give the same factor.
"""

USUAL_MS = 250                  # the mean of pauses within utterances, before any is known,
SPREAD_MS = 75                  # ... and their mean deviation
LONG = 2.0                      # deviations above the mean that a long pause is,
LEAST = 1.3                     # ... and at least so many means
WEIGHT = 0.2                    # of the latest pause
LONGEST_MS = 2_000              # what is longer is no pause within an utterance


class Pace:
    """Of one call.  paused() tells of a pause, `factor` is what the waits are to be multiplied by."""

    __slots__ = ("low", "high", "mean", "deviation")

    def __init__(self, low: float, high: float):
        """`low` and `high` are the bounds of the factor; both 1: it never changes."""
        self.low = low
        self.high = high
        self.mean = float(USUAL_MS)
        self.deviation = float(SPREAD_MS)

    def paused(self, ms: float) -> None:
        """The caller paused for so long, and went on."""
        if ms <= LONGEST_MS:
            self.deviation += WEIGHT * (abs(ms - self.mean) - self.deviation)
            self.mean += WEIGHT * (ms - self.mean)

    @property
    def factor(self) -> float:
        long = max(self.mean + LONG * self.deviation, LEAST * self.mean)
        return min(self.high, max(self.low, long / (USUAL_MS + LONG * SPREAD_MS)))
