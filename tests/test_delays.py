"""The queue delay of a stage, as it is told to /metrics and to admission."""
import pytest

from opusagent.engines.processes import delays
from opusagent.engines.processes.delays import RECENT, Delays


@pytest.fixture
def clock(monkeypatch):
    """What time it is, in seconds: clock[0]."""
    now = [100.0]
    monkeypatch.setattr(delays.time, "monotonic", lambda: now[0])
    return now


def test_the_worst_of_what_waits_and_of_what_waited_a_moment_ago_counts(clock):
    queue = Delays()
    assert queue.seconds == 0
    queue.begin("first")
    clock[0] += 2
    queue.begin("second")
    queue.begin("first")                            # asked for once more: it still waits
    clock[0] += 1
    assert queue.seconds == 3
    queue.end("first")
    assert queue.seconds == 3                       # "second" waits for 1 s
    clock[0] += RECENT + 1
    assert queue.seconds == RECENT + 2              # nobody has begun it
    queue.end("second")
    queue.end("second")
    queue.was(0.25)
    clock[0] += RECENT / 2
    queue.was(0.5)
    clock[0] += RECENT / 2 + 0.1
    assert queue.seconds == 0.5
    clock[0] += RECENT
    assert queue.seconds == 0
