"""A loop that stands still is told of by where it stands, while it does; one that is in time never is."""
import asyncio
import logging
import threading
import time

import pytest

from opusagent._fastpath import EpollSet, ReceiveBuffer
from opusagent.metrics import Metrics
from opusagent.server import stalls
from opusagent.transport.loop import Loop, attach, detach

KEY = "loop_stalls", ()
LONG = 30.0         # seconds for a thread to be given the processor, on any machine


def watched(scenario, loop_factory):
    """Runs scenario(wires, metrics) on a watched loop; what was counted."""
    metrics = Metrics()

    async def attached():
        wires = EpollSet(ReceiveBuffer())
        attach(wires)
        stalls.begin(wires, metrics)
        try:
            await scenario(wires, metrics)
        finally:
            detach(wires)
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(attached())
    for thread in threading.enumerate():
        if thread.name == "stalls":
            thread.join(LONG)
            assert not thread.is_alive(), "the watch outlives its loop"
    return metrics.counters[KEY]


def never_comes_back(until):
    """As a tool that computes does, until somebody has noticed."""
    give_up = time.monotonic() + LONG
    while not until() and time.monotonic() < give_up:
        pass


@pytest.mark.parametrize("loop_factory", [Loop, asyncio.new_event_loop])
def test_a_loop_that_stands_still_is_told_of_by_where_it_stands(caplog, loop_factory):
    async def scenario(wires, metrics):
        wires.due = time.monotonic_ns()
        asyncio.get_running_loop().call_soon(never_comes_back, lambda: caplog.records)
        await asyncio.sleep(0)
        wires.due = 0
        await asyncio.sleep(0)
    with caplog.at_level(logging.WARNING, "opusagent"):
        assert watched(scenario, loop_factory) == 1
    line, = (record.getMessage() for record in caplog.records)
    assert "never_comes_back" in line and "base_events" not in line


def test_a_stall_is_counted_once_and_told_of_once_a_second(caplog):
    async def scenario(wires, metrics):
        for count in (1, 2):
            wires.due = time.monotonic_ns() - count
            never_comes_back(lambda count=count: metrics.counters[KEY] == count)
        wires.due = 0
    with caplog.at_level(logging.WARNING, "opusagent"):
        began = time.monotonic()
        assert watched(scenario, Loop) == 2
    assert 1 <= len(caplog.records) <= 1 + (time.monotonic() - began)


def test_nothing_is_told_while_nothing_is_due():
    async def scenario(wires, metrics):
        await asyncio.sleep(0.2)
    assert watched(scenario, Loop) == 0


def test_what_was_late_before_it_was_watched_is_not_told():
    async def scenario(wires, metrics):
        wires.due = time.monotonic_ns() - 10 ** 9
        stalls.begin(wires, metrics)
        await asyncio.sleep(0.2)
        wires.due = 0
    assert watched(scenario, Loop) <= 1         # of the two that watch, the one that began before


def test_where_nothing_of_ours_runs_it_is_the_event_loop():
    assert stalls.stack(None) == "the event loop"
