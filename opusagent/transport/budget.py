"""What a peer may send: a leaky bucket, for bytes and for control frames alike."""
from .. import ProtocolError

BURST_SECONDS = 3               # of a budget that may come at once: a network that stalled catches up


def spent(due: float, rate: float, seconds: float) -> float:
    """What is left of a bucket that leaks `rate` a second (0: whatever comes); ProtocolError where that is too much."""
    due = max(0.0, due - rate * seconds) if rate else 0.0
    if due > rate * BURST_SECONDS:
        raise ProtocolError(1008, "more comes than a call needs")
    return due
