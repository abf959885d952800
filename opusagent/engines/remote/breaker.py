"""When an endpoint that fails is left alone, and when it is tried again: a circuit breaker, as one transition table.

It reads no clock: times are handed in, as monotonic seconds.  The rule: a state changes only by a row of the table;
while it is PROBING, one request is on its way and no other is let through.
"""
from collections import deque

FAILURES = 5                    # within ...
WINDOW_SECONDS = 10.0           # ... so long: the endpoint is left alone
REST_SECONDS = 5.0              # for so long

CLOSED = "closed"               # requests go through
OPEN = "open"                   # none does
PROBING = "probing"             # the rest is over, and one request finds out how it is

TOO_MANY = "TOO_MANY"           # FAILURES within WINDOW_SECONDS
RESTED = "RESTED"               # REST_SECONDS have passed, and somebody wants to ask
SUCCESS = "SUCCESS"
FAILURE = "FAILURE"
DROPPED = "DROPPED"             # nobody wanted the answer any more: the next request is the probe

TRANSITIONS = {
    CLOSED: {TOO_MANY: OPEN},
    OPEN: {RESTED: PROBING},
    PROBING: {SUCCESS: CLOSED, FAILURE: OPEN, DROPPED: OPEN},
}


class Breaker:
    """Of one endpoint: ask `allows` before a request, and tell how it went."""

    __slots__ = ("state", "opened", "rested_at", "_failed")

    def __init__(self):
        self.state = CLOSED
        self.opened = 0                             # times that it was opened
        self.rested_at = 0.0                        # when the next request may be made, while it is OPEN
        self._failed: deque[float] = deque(maxlen=FAILURES)     # when requests failed

    @property
    def closed(self) -> bool:
        return self.state is CLOSED

    def wait(self, now: float) -> float:
        """Seconds until a request may be made; 0: now.  This changes nothing."""
        if self.state is PROBING:
            return REST_SECONDS
        return max(0.0, self.rested_at - now) if self.state is OPEN else 0.0

    def begin(self, now: float) -> None:
        """A request is made; wait() was 0."""
        if self.state is OPEN:
            self._step(RESTED)

    def succeeded(self) -> None:
        self._failed.clear()
        self._step(SUCCESS)

    def failed(self, now: float) -> None:
        self._failed.append(now)
        many = len(self._failed) == FAILURES and now - self._failed[0] <= WINDOW_SECONDS
        if self._step(TOO_MANY if many and self.state is CLOSED else FAILURE) is OPEN:
            self.rested_at = now + REST_SECONDS
            self.opened += 1

    def dropped(self) -> None:
        self._step(DROPPED)

    def _step(self, happened: str) -> str | None:
        """The state that this leads to; None where it changes nothing."""
        after = TRANSITIONS[self.state].get(happened)
        if after is not None:
            self.state = after
        return after
