"""Fuzzing: bytes nobody chose, into everything a peer can reach.

Each suite here has an oracle: a plain twin, or the same bytes cut in other places.  The rule: nothing but ProtocolError
leaves what is fed, what it holds stays bounded, and how the stream was cut changes nothing.

The default run takes seconds.  OPUSAGENT_FUZZ=100 takes a hundred times as many examples.  guided.py lets coverage
choose the bytes, for as long as one likes.
"""
import os

from hypothesis import HealthCheck, settings

BUDGET = float(os.environ.get("OPUSAGENT_FUZZ", "1"))


def examples(count: int) -> settings:
    """So many in the default run, and as many times more as was asked for."""
    return settings(max_examples=max(1, round(count * BUDGET)), deadline=None, report_multiple_bugs=False,
                    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
