"""Thousands of histories of nodes, platforms and Redis in virtual time: never two nodes that speak on one call."""
import asyncio
import logging

import pytest

import several
from opusagent.continuity import returning as calls_here

pytest.importorskip("redis", reason="the extra redis is not installed")
pytestmark = pytest.mark.skipif(several.missing is not None, reason=several.missing or "")

import redis as client      # noqa: E402
from histories import Violation, World, committed      # noqa: E402

# what may happen -> whether platforms leave a connection before they dial again: where Redis cannot be asked, a node
# can only go by whom its platform talks to
STORIES = {
    "a node stands still, or dies": (("stop", "kill"), False),
    "a node is cut off from Redis": (("stop", "kill", "cut"), True),
    "Redis is slow, or away": (("stop", "kill", "slow", "down"), True),
    "Redis forgets all, or its last second": (("stop", "emptied", "failover"), True),
    "all of it": (("stop", "kill", "cut", "slow", "down", "emptied", "failover"), True),
}


@pytest.fixture(scope="module")
def store():
    server = several.RedisServer()
    yield client.Redis.from_url(server.url)
    server.stop()


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Calls are as much of one as a history needs."""
    monkeypatch.setattr(calls_here, "committed", committed)
    monkeypatch.setattr(calls_here, "cut", lambda call: None)
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
    asyncio.set_event_loop(None)


def live_through(store, story: str, seeds: range) -> int:
    """How often a call has gone on at a node; Violation where two have spoken at once."""
    faults, faithful = STORIES[story]
    begun = 0
    for seed in seeds:
        world = World(seed, store, faults, faithful)
        world.run()
        begun += sum(" begins " in line for line in world.log)
    return begun


@pytest.mark.parametrize("story", STORIES)
def test_never_two_nodes_speak_on_one_call(store, story):
    assert live_through(store, story, range(12)) > 40


@pytest.mark.soak
@pytest.mark.parametrize("story", STORIES)
def test_never_in_ten_thousand_histories(store, story):
    assert live_through(store, story, range(1000, 3000)) > 8000


def test_a_history_is_told_again_by_its_seed(store):
    told = []
    for _ in range(2):
        world = World(5, store, STORIES["all of it"][0])
        world.run()
        told.append(world.log)
    assert told[0] == told[1] and len(told[0]) > 10


@pytest.mark.parametrize("story", ("a node stands still, or dies", "Redis forgets all, or its last second"))
def test_who_does_not_look_at_its_lease_is_found_out(store, story, monkeypatch):
    monkeypatch.setattr(calls_here.Tenure, "muted", lambda self, line: self.lost)
    with pytest.raises(Violation, match="speak on (one|two) at once"):
        live_through(store, story, range(50))
