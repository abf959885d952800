"""HAProxy, two nodes, Redis and the platforms, each on a machine of its own: what a cable, a stop or a restart does.

The machines are network namespaces (machines.py).  What is told here of one machine's loopback: test_haproxy.py and
test_continuity.py.
"""
import asyncio
import json
import shutil
import signal
import time

import pytest

import several
from conformance import wire
from machines import Machines
from opusagent.client.localserver import fetch_json
from several import Nodes, RedisServer, Talk, eventually
from test_continuity import SILENCE, TOKEN, Listener, goes_straight, speaking, until_in_the_middle
from test_haproxy import Balancer
from test_transport_bounds import upgrade

pytestmark = [pytest.mark.soak, pytest.mark.skipif(
    several.missing is not None or not all(map(shutil.which, ("haproxy", "openssl", "redis-cli"))),
    reason="redis-server, haproxy and openssl are not all installed")]
pytest.importorskip("redis", reason="the extra redis is not installed")
FOUND_SECONDS = 15.0            # within which a peer that is gone without a word is found
SLACK_SECONDS = 15.0            # for a machine that others use as well
TOKEN_OF_US = "of-whoever-runs-the-tests"
DIALECTS = ("twilio", "pcm")    # of platforms that dial again


class World:
    """The machines, and what runs on them."""

    def __init__(self, machines: Machines, place):
        self.machines = machines
        at, inside = self.machines.address, self.machines.inside
        self.parts = [self.machines]
        try:
            self.redis = self._part(RedisServer(at["redis"], inside("redis")))
            self.nodes = self._part(Nodes(2, self.redis, "--proxies", at["lb"],
                                          places=tuple((at[name], inside(name)) for name in ("n1", "n2"))))
            self.balancer = self._part(Balancer(place, self.nodes.ports, host=at["lb"], hosts=(at["n1"], at["n2"]),
                                                inside=inside("lb")))
            self.up()
        except BaseException:
            self.stop()
            raise

    def _part(self, part):
        self.parts.append(part)
        return part

    def up(self) -> None:
        several.until(lambda: self.balancer.states() == ["UP", "UP"], 60)

    def stop(self) -> None:
        for part in reversed(self.parts):
            part.stop()

    def talk(self, dialect: str) -> Talk:
        return Talk(f"wss://{self.machines.address['lb']}:{self.balancer.port}/ws/{dialect}", dialect)

    async def calls(self, index: int) -> int:
        """That a node has, as whoever asks can see; -1 where it cannot be asked."""
        health = await fetch_json(self.nodes.node[index].ws("/ws/pcm"), "/health")
        return health["active_calls"] if health else -1

    async def record(self, index: int, call_id: str) -> dict:
        """What a node says of a call."""
        node = self.nodes.node[index]
        reader, writer = await asyncio.open_connection(node.host, node.port)
        writer.write(f"GET /calls/{call_id} HTTP/1.1\r\nHost: {node.host}\r\nAuthorization: Bearer {TOKEN_OF_US}\r\n"
                     "Connection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return json.loads(answer.partition(b"\r\n\r\n")[2])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    place = tmp_path_factory.mktemp("machines")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPUSAGENT_ADMIN_TOKEN", TOKEN_OF_US)
        patch.setenv("SSL_CERT_FILE", str(place / "certificate"))
        try:
            machines = Machines("lb", "n1", "n2", "redis", "gen")
        except OSError as error:
            pytest.skip(f"there are no network namespaces here: {error}")
        world = World(machines, place)
        try:
            yield world
        finally:
            world.stop()


def test_a_cable_is_pulled_and_the_calls_go_on_at_the_other_node(world):
    """Nobody says a word: HAProxy finds that nothing is acknowledged, the platforms that their streams have ended."""
    async def scenario():
        talks = [world.talk(dialect) for dialect in DIALECTS * 3]
        await until_in_the_middle(talks)
        assert await world.calls(0) > 0
        world.machines.pull("n1")
        pulled = time.monotonic_ns()
        await asyncio.wait_for(asyncio.gather(*(talk.task for talk in talks)), 120)
        assert all(talk.ended_well for talk in talks), [talk.caller.closed for talk in talks]
        away = [(talk.caller.away[0][1] - pulled) / 1e9 for talk in talks if talk.caller.away]
        records = [await world.record(1, talk.caller.call_id) for talk in talks if talk.caller.away]
        world.machines.plug("n1")
        await eventually(lambda: world.balancer.states() == ["UP", "UP"], 60)
        await eventually_calls(world, 0, 0)
        return away, records
    try:
        away, records = world.machines.run("gen", scenario)
    finally:
        world.machines.plug("n1")
    assert away and max(away) < FOUND_SECONDS + SLACK_SECONDS, away
    assert all(map(goes_straight, records)), records


async def eventually_calls(world, index: int, count: int, seconds: float = 30.0) -> None:
    give_up = time.monotonic() + seconds
    while (calls := await world.calls(index)) != count:
        assert time.monotonic() < give_up, calls
        await asyncio.sleep(0.1)


def test_a_platform_that_is_gone_without_a_word_is_found(world):
    node = world.nodes.node[0]

    async def dial():
        sock = upgrade("/ws/pcm?rate=8000", (node.host, node.port))
        for _ in range(20):
            sock.sendall(wire.binary(SILENCE))
            await asyncio.sleep(0.02)
        return sock

    async def found():
        await eventually_calls(world, 0, 0, FOUND_SECONDS + SLACK_SECONDS)
    with world.machines.run("gen", dial):
        assert world.machines.run("lb", lambda: world.calls(0)) == 1
        world.machines.pull("gen")
        try:
            world.machines.run("lb", found)
        finally:
            world.machines.plug("gen")


def test_a_node_that_stands_still_and_one_that_has_its_call_never_both_speak(world):
    nodes = world.nodes

    async def scenario():
        first = await Listener.dial(nodes.node[0].ws("/ws/pcm") + TOKEN)
        await speaking(first)
        nodes.signal(0, signal.SIGSTOP)
        second = await Listener.dial(nodes.node[1].ws("/ws/pcm") + TOKEN)
        await speaking(second)
        await asyncio.sleep(0.5)
        before = len(first.heard)
        nodes.signal(0, signal.SIGCONT)
        await eventually(lambda: first.closed is not None, 20)
        heard, closed = len(first.heard), first.closed
        second.line.abort()
        return before, heard, closed
    try:
        before, after, closed = world.machines.run("gen", scenario)
    finally:
        nodes.signal(0, signal.SIGCONT)
    assert after == before and closed == 1000, (before, after, closed)


async def rolling(world, nodes: tuple[int, ...], at_once: int) -> list[Talk]:
    """One node after the other drains, ends and comes back while calls come and go; all calls that there were."""
    talks: list[Talk] = []

    async def dial():
        while True:
            if sum(not talk.task.done() for talk in talks[-2 * at_once:]) < at_once:
                talks.append(world.talk(DIALECTS[len(talks) % 2]))
            await asyncio.sleep(1 / at_once)
    dialling = asyncio.create_task(dial())
    for index in nodes:
        await asyncio.sleep(2)
        world.nodes.node[index].process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(world.nodes.node[index].process.wait, 60) == 0
        await asyncio.to_thread(world.nodes.start, index)
        await eventually(lambda: world.balancer.states() == ["UP", "UP"], 60)
    dialling.cancel()
    await asyncio.wait_for(asyncio.gather(*(talk.task for talk in talks)), 120)
    return talks


def test_a_node_is_restarted_and_no_call_is_lost(world):
    talks = world.machines.run("gen", lambda: rolling(world, (0,), 10))
    assert len(talks) > 5 and all(talk.ended_well for talk in talks), [talk.caller.closed for talk in talks]


def test_nodes_are_restarted_in_turn_twenty_times_under_a_hundred_calls(world):
    talks = world.machines.run("gen", lambda: rolling(world, (0, 1) * 20, 100))
    assert all(talk.ended_well for talk in talks), [talk.caller.closed for talk in talks]
