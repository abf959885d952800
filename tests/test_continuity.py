"""Nodes and Redis, real processes: what dies, stops or is slow, and what of it a caller hears."""
import asyncio
import json
import os
import re
import secrets
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlencode, urlsplit
from urllib.request import urlopen

import pytest

import several
from opusagent import ProtocolError
from opusagent.client.telephone import Line
from opusagent.dialects import BINARY
from opusagent.trust import signing
from several import RETURNING, Nodes, RedisServer, Talk, eventually
from test_haproxy import Balancer

pytestmark = pytest.mark.skipif(several.missing is not None, reason=several.missing or "")
pytest.importorskip("redis", reason="the extra redis is not installed")
AGAIN_SECONDS = 3.0             # from a node's death to the agent's voice from another one


@pytest.fixture(scope="module")
def redis():
    server = RedisServer()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def both(redis):
    nodes = Nodes(2, redis)
    yield nodes
    nodes.stop()


@pytest.fixture
def nodes(both):
    """Two nodes that serve, and find Redis."""
    both.revive()
    several.until(lambda: all(metric(node, "registry_up") == 1 for node in both.node))
    return both


def metric(node, name: str) -> float:
    text = urlopen(f"http://127.0.0.1:{node.port}/metrics", timeout=5).read().decode()
    return sum(float(value) for value in re.findall(rf"^opusagent_{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))


def goes_straight(record: dict) -> bool:
    """The conversation came to its end, and never went back to where it had been before."""
    states = [("one", "two", "bye").index(turn["state"]) for turn in record["turns"] if turn["state"]]
    return record["done"] and states == sorted(states) and states[0] == 0 and states[-1] == 2


async def until_in_the_middle(talks: list[Talk]) -> None:
    await eventually(lambda: all(len(talk.caller.script.turns) >= 1 for talk in talks), 30,
                     lambda: [talk.caller.closed for talk in talks])


def test_a_node_dies_and_its_calls_go_on_at_another(nodes):
    """Each platform dials the other node as soon as its connection breaks."""
    async def scenario():
        talks = []
        for dialect in RETURNING:
            for _ in range(2):
                talk = Talk(nodes.node[0].ws(f"/ws/{dialect}"), dialect)
                talks.append(talk)
        await until_in_the_middle(talks)
        for talk in talks:
            talk.caller.url = talk.caller.url.replace(f":{nodes.ports[0]}/", f":{nodes.ports[1]}/")
        died = time.monotonic_ns()
        nodes.kill(0)
        await asyncio.wait_for(asyncio.gather(*(talk.task for talk in talks)), 60)
        assert all(talk.ended_well for talk in talks), [talk.caller.closed for talk in talks]
        heard = [(talk.caller.away[0][1] - died) / 1e9 for talk in talks]
        assert max(heard) < AGAIN_SECONDS, heard
        return [await nodes.record(1, talk.caller.call_id) for talk in talks]
    for record in asyncio.run(scenario()):
        assert goes_straight(record), record


@pytest.mark.skipif(not (shutil.which("haproxy") and shutil.which("openssl")),
                    reason="haproxy and openssl are not both installed")
def test_behind_haproxy_the_platform_dials_the_same_address_again(nodes, tmp_path, monkeypatch):
    """The node with some of the calls dies; HAProxy gives those that come back to the other one."""
    balancer = Balancer(tmp_path, nodes.ports)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate"))

    async def scenario():
        talks = [Talk(f"wss://127.0.0.1:{balancer.port}/ws/{dialect}", dialect)
                 for dialect in RETURNING for _ in range(2)]
        await until_in_the_middle(talks)
        died = time.monotonic_ns()
        nodes.kill(0)
        await asyncio.wait_for(asyncio.gather(*(talk.task for talk in talks)), 60)
        assert all(talk.ended_well for talk in talks), [talk.caller.closed for talk in talks]
        heard = [(talk.caller.away[0][1] - died) / 1e9 for talk in talks if talk.caller.away]
        assert 0 < len(heard) < len(talks) and max(heard) < AGAIN_SECONDS, heard
        return [await nodes.record(1, talk.caller.call_id) for talk in talks]
    try:
        several.until(lambda: balancer.states() == ["UP", "UP"])
        for record in asyncio.run(scenario()):
            assert goes_straight(record), record
    finally:
        balancer.stop()


def test_redis_dies_and_nobody_notices(nodes, redis):
    """Calls go on, new ones begin; when it is back, and knows nothing, what goes on can be taken over again."""
    async def scenario():
        before = Talk(nodes.node[0].ws("/ws/twilio"), "twilio")
        await until_in_the_middle([before])
        redis.kill()
        await asyncio.wait_for(before.task, 60)
        assert before.ended_well and not before.caller.away and metric(nodes.node[0], "registry_up") == 0
        begun = time.monotonic()
        during = Talk(nodes.node[0].ws("/ws/jambonz"), "jambonz")
        await eventually(lambda: during.caller.ear.speech, 5)
        waited = time.monotonic() - begun
        redis.start()
        await eventually(lambda: metric(nodes.node[0], "registry_up") == metric(nodes.node[1], "registry_up") == 1)
        await until_in_the_middle([during])
        await asyncio.sleep(0.5)
        during.caller.url = during.caller.url.replace(f":{nodes.ports[0]}/", f":{nodes.ports[1]}/")
        nodes.kill(0)
        await asyncio.wait_for(during.task, 60)
        assert during.ended_well and during.caller.away and waited < 1.5, (during.caller.closed, waited)
        return await nodes.record(1, during.caller.call_id)
    logged = len(nodes.node[0].written())
    record = asyncio.run(scenario())
    assert goes_straight(record), record
    said = nodes.node[0].written()[logged:]
    assert said.count("does not serve") == 1 and said.count("serves again") == 1 and "Traceback" not in said


def test_redis_is_slow_and_nobody_notices(nodes, redis):
    async def scenario():
        before = Talk(nodes.node[0].ws("/ws/twilio"), "twilio")
        await until_in_the_middle([before])
        redis.process.send_signal(signal.SIGSTOP)
        try:
            begun = time.monotonic()
            during = Talk(nodes.node[0].ws("/ws/twilio"), "twilio")
            await eventually(lambda: during.caller.ear.speech, 5)
            waited = time.monotonic() - begun
            await asyncio.wait_for(before.task, 60)
        finally:
            redis.process.send_signal(signal.SIGCONT)
        await asyncio.wait_for(during.task, 60)
        assert before.ended_well and during.ended_well and not before.caller.away and waited < 1.5, waited
        await eventually(lambda: metric(nodes.node[0], "registry_up") == 1
                         and not metric(nodes.node[0], "registry_waiting"))
        assert metric(nodes.node[0], "registry_dropped") == 0
    asyncio.run(scenario())
    assert "Traceback" not in nodes.node[0].written()


class Listener:
    """One connection of a client of the plain protocol, silent, and when it heard what."""

    def __init__(self):
        self.heard: list[float] = []            # of each audio message, monotonic seconds
        self.closed: int | None = None
        self.line: Line | None = None

    @classmethod
    async def dial(cls, url: str) -> "Listener":
        peer = cls()
        peer.line = await Line.dial(url, peer._heard, peer._lost)
        return peer

    def _heard(self, opcode, payload, now) -> None:
        if opcode == BINARY:
            self.heard.append(time.monotonic())

    def _lost(self, code, reason) -> None:
        self.closed = code


SILENCE = bytes(320)
TOKEN = "?rate=8000&call_id=one&resume=0123456789abcdef"


async def speaking(peer: Listener, seconds: float = 10.0) -> None:
    """The agent is heard on the connection."""
    count = len(peer.heard)
    give_up = time.monotonic() + seconds
    while len(peer.heard) < count + 3:
        assert time.monotonic() < give_up
        peer.line.send(BINARY, SILENCE)
        await asyncio.sleep(0.02)


def test_two_connections_for_one_call_and_never_two_that_speak(nodes):
    """The one that comes later has the call; the agent has fallen silent on the other before it speaks there."""
    async def scenario():
        url = nodes.node[0].ws("/ws/pcm") + TOKEN
        first = await Listener.dial(url)
        await speaking(first)
        await asyncio.sleep(0.2)
        second = await Listener.dial(url.replace(f":{nodes.ports[0]}/", f":{nodes.ports[1]}/"))
        await speaking(second)
        await eventually(lambda: first.closed is not None, 5)
        third = await Listener.dial(url)                 # and back again
        await speaking(third)
        await eventually(lambda: second.closed is not None, 5)
        third.line.abort()
        return first, second, third
    first, second, third = asyncio.run(scenario())
    assert (first.closed, second.closed) == (1000, 1000)
    assert first.heard[-1] < second.heard[0] and second.heard[-1] < third.heard[0]
    assert third.heard[0] - second.heard[-1] < 1.0      # who is alive says at once that it has stopped


def test_a_node_that_stood_still_has_lost_its_calls(nodes):
    async def scenario():
        url = nodes.node[0].ws("/ws/pcm") + TOKEN.replace("one", "two")
        first = await Listener.dial(url)
        await speaking(first)
        nodes.signal(0, signal.SIGSTOP)
        stopped = time.monotonic()
        second = await Listener.dial(url.replace(f":{nodes.ports[0]}/", f":{nodes.ports[1]}/"))
        await speaking(second)
        await asyncio.sleep(0.5)
        before = len(first.heard)
        nodes.signal(0, signal.SIGCONT)
        await eventually(lambda: first.closed is not None, 10)
        second.line.abort()
        return before, len(first.heard), first.closed, second.heard[0] - stopped
    before, after, closed, waited = asyncio.run(scenario())
    assert after == before and closed == 1000 and waited < AGAIN_SECONDS, (before, after, closed, waited)


def test_nobody_reads_the_password_of_redis(nodes, redis):
    redis.kill()
    until = time.monotonic() + 10
    while "does not serve" not in nodes.node[0].written():
        assert time.monotonic() < until
        time.sleep(0.05)
    redis.start()
    assert several.PASSWORD not in nodes.node[0].written() + nodes.node[1].written()


def posted(node, path: str, **fields) -> str:
    with urlopen(f"http://127.0.0.1:{node.port}{path}", urlencode(fields).encode(), timeout=5) as answer:
        return answer.read().decode()


def test_a_stream_that_ends_is_followed_by_another_while_there_is_something_to_say(nodes):
    """Twilio goes on to the <Redirect>, whatever has ended its stream; so does jambonz."""
    async def scenario():
        talk = Talk(nodes.node[0].ws("/ws/twilio"), "twilio")
        await eventually(lambda: talk.caller.ear.speech)
        await asyncio.sleep(0.3)
        name = talk.caller.call_id
        live = await asyncio.to_thread(posted, nodes.node[1], "/twilio/voice?again=yes", CallSid=name)
        await asyncio.wait_for(talk.task, 60)
        await asyncio.sleep(0.3)
        return live, await asyncio.to_thread(posted, nodes.node[1], "/twilio/voice?again=yes", CallSid=name)
    first = posted(nodes.node[0], "/twilio/voice", CallSid="CA1")
    live, over = asyncio.run(scenario())
    assert "<Stream " in first and first.endswith(
        f"</Connect><Redirect>http://127.0.0.1:{nodes.ports[0]}/twilio/voice?again=yes</Redirect></Response>\n")
    assert "<Stream " in live and over.endswith("<Response><Hangup/></Response>\n")
    verbs = json.loads(posted(nodes.node[0], "/jambonz/call", call_sid="1"))
    assert verbs[-1] == {"verb": "redirect", "actionHook": f"http://127.0.0.1:{nodes.ports[0]}/jambonz/call?again=yes"}
    assert json.loads(posted(nodes.node[0], "/jambonz/call?again=yes", call_sid="1")) == [{"verb": "hangup"}]


def test_a_signature_that_one_node_has_seen_is_worth_nothing_at_another(nodes, redis):
    """While Redis is away each node knows its own."""
    async def dials(index, headers) -> int:
        try:
            line = await Line.dial(nodes.node[index].ws("/ws/vonage"), lambda *heard: None, lambda *ended: None, (),
                                   headers)
        except ProtocolError as error:
            return error.code
        line.abort()
        return 101

    def signed():
        return signing.headers("vonage", urlsplit(nodes.node[0].ws("/ws/vonage")), several.VONAGE, int(time.time()),
                               secrets.token_hex(16))

    async def scenario():
        headers, others = signed(), signed()
        told = [await dials(0, headers), await dials(1, headers), await dials(0, headers), await dials(1, others)]
        redis.kill()
        try:
            headers = signed()
            return told, [await dials(0, headers), await dials(0, headers), await dials(1, headers)]
        finally:
            redis.start()
    assert asyncio.run(scenario()) == ([101, 401, 401, 101], [101, 401, 101])


def test_workers_of_one_node_need_no_redis():
    """A call that comes back to another worker goes on there; what is over is over."""
    nodes = Nodes(1, None, "--workers", "2")

    async def scenario():
        talks = [Talk(nodes.node[0].ws(f"/ws/{dialect}"), dialect) for dialect in RETURNING for _ in range(2)]
        await until_in_the_middle(talks)
        for _ in range(2):
            for talk in talks:
                talk.caller._line.abort()
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.7)
        await asyncio.wait_for(asyncio.gather(*(talk.task for talk in talks)), 60)
        assert all(talk.ended_well for talk in talks), [(talk.caller.closed, talk.caller.away) for talk in talks]
        return [await nodes.record(0, talk.caller.call_id) for talk in talks]
    try:
        for record in asyncio.run(scenario()):
            assert goes_straight(record), record
        assert "Traceback" not in nodes.node[0].written()
    finally:
        nodes.stop()


def half_open(talk: Talk) -> list[int]:
    """The platform leaves its connection, and the server hears nothing of it until the descriptor is closed; none where
    it has left already."""
    line = talk.caller._line
    sock = line.transport.get_extra_info("socket").fileno()
    held = [os.dup(sock)] if sock >= 0 else []
    line.abort()
    return held


def test_a_worker_gives_up_a_call_whose_platform_has_come_to_another_one():
    """The end of the connection before has not been noticed: the conversation goes on all the same, once."""
    nodes = Nodes(1, None, "--workers", "3")

    async def scenario():
        talks = [Talk(nodes.node[0].ws(f"/ws/{dialect}"), dialect) for dialect in RETURNING for _ in range(2)]
        await until_in_the_middle(talks)
        held: list[int] = []
        for _ in range(2):
            for talk in talks:
                held += half_open(talk)
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.7)
        await asyncio.wait_for(asyncio.gather(*(talk.task for talk in talks)), 60)
        for each in held:
            os.close(each)
        assert all(talk.ended_well for talk in talks), [(talk.caller.closed, talk.caller.away) for talk in talks]
        return [await nodes.record(0, talk.caller.call_id) for talk in talks]
    try:
        for record in asyncio.run(scenario()):
            assert goes_straight(record), record
        assert metric(nodes.node[0], "resumptions_total") > 0
        assert "Traceback" not in nodes.node[0].written()
    finally:
        nodes.stop()


def worker_of(node, peer: Listener) -> int:
    """The worker at the other end of a connection."""
    port = peer.line.transport.get_extra_info("sockname")[1]
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inode = next(row[9] for row in rows if row[1].endswith(f":{node.port:04X}") and row[2].endswith(f":{port:04X}"))
    return next(pid for pid in node.family()[1:] if f"socket:[{inode}]" in opened(pid))


def opened(pid: int) -> set[str]:
    """What a process has open."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found.add(os.readlink(entry))
    return found


@pytest.mark.parametrize("how", ["lives", "stands still"])
def test_two_connections_at_two_workers_and_never_two_that_speak(how):
    """A worker that stands still is replaced, and its replacement gives the call up."""
    nodes = Nodes(1, None, "--workers", "2")

    async def scenario():
        node = nodes.node[0]
        url = node.ws("/ws/pcm") + TOKEN
        first = await Listener.dial(url)
        await speaking(first)
        if how == "stands still":
            os.kill(worker_of(node, first), signal.SIGSTOP)
        second = await Listener.dial(url)
        await speaking(second, 20)
        await asyncio.sleep(0.5)
        await eventually(lambda: first.closed is not None, 10)
        third = await Listener.dial(url)
        await speaking(third)
        await eventually(lambda: second.closed is not None, 5)
        third.line.abort()
        return first, second, third
    try:
        first, second, third = asyncio.run(scenario())
        assert first.heard[-1] < second.heard[0] and second.heard[-1] < third.heard[0]
        several.until(lambda: nodes.node[0].written().count("goes on here") == 2)
    finally:
        nodes.stop()


def test_a_call_that_may_come_back_outlives_its_worker_and_an_upgrade_and_comes_back_then():
    """On its connection first, then over another one, while this one has not ended; then, after one more upgrade, over
    a third one, when the second has."""
    nodes = Nodes(1, None, "--workers", "2")
    node = nodes.node[0]

    def successors() -> list[int]:
        return list(map(int, re.findall(r"process (\d+) has taken over", node.written())))

    async def scenario():
        url = node.ws("/ws/pcm") + TOKEN
        first = await Listener.dial(url)
        await speaking(first)
        os.kill(worker_of(node, first), signal.SIGKILL)
        await eventually(lambda: "1 calls were taken over" in node.written())
        await speaking(first, 20)
        node.process.send_signal(signal.SIGUSR2)
        await eventually(successors)
        await speaking(first, 20)
        second = await Listener.dial(url)
        await speaking(second, 20)
        await eventually(lambda: first.closed is not None, 5)
        second.line.abort()
        await eventually(lambda: "call one ended: " in node.written().rpartition("goes on here")[2], why=node.written)
        os.kill(successors()[0], signal.SIGUSR2)
        await eventually(lambda: len(successors()) == 2)
        third = await Listener.dial(url)
        await speaking(third, 20)
        third.line.abort()
        return first, second
    try:
        first, second = asyncio.run(scenario())
        assert first.closed == 1000 and first.heard[-1] < second.heard[0]
        several.until(lambda: node.written().count("goes on here") == 2)
        assert "Traceback" not in node.written()
    finally:
        for pid in successors():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        nodes.stop()


ENDLESS = several.FLOW.replace('go = "bye" }', 'go = "one" }, { dtmf = "9", go = "bye" }')     # unless a key is pressed


@pytest.mark.soak
def test_nodes_are_restarted_twenty_times_under_a_hundred_calls(redis, tmp_path, monkeypatch):
    """Calls that never end, and no time to drain: each restart gives its node's calls to the other one."""
    nodes = Nodes(2, redis, "--drain-seconds", "0", "--redis-move", "--net-resume-seconds", "60", flow=ENDLESS)
    balancer = Balancer(tmp_path, nodes.ports)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate"))

    async def scenario():
        talks = []
        for number in range(100):
            dialect = RETURNING[number % len(RETURNING)]
            talks.append(Talk(f"wss://127.0.0.1:{balancer.port}/ws/{dialect}", dialect, 1000, 10000))
            await asyncio.sleep(0.15)
        await eventually(lambda: all(talk.caller.script.turns for talk in talks), 60)
        for round in range(20):
            nodes.node[round % 2].process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(nodes.node[round % 2].process.wait, 30)
            await asyncio.to_thread(nodes.start, round % 2)
            await asyncio.to_thread(several.until, lambda: balancer.states() == ["UP", "UP"])
            await asyncio.sleep(2)
        turns = [talk.answers for talk in talks]
        await asyncio.sleep(25)
        alive = [not talk.task.done() and talk.answers > before for talk, before in zip(talks, turns, strict=True)]
        away = sorted((times[1] - times[0]) / 1e6 for talk in talks for times in talk.caller.away if len(times) == 2)
        print(f"{sum(alive)} of 100 calls kept, {len(away)} moves, pause p50 {away[len(away) // 2]:.0f}, "
              f"p99 {away[len(away) * 99 // 100]:.0f}, max {away[-1]:.0f} ms")
        lost = [talk.caller.closed or repr(talk.task) for talk, kept in zip(talks, alive, strict=True) if not kept]
        for talk in talks:
            talk.task.cancel()
        await asyncio.gather(*(talk.task for talk in talks), return_exceptions=True)
        return lost
    try:
        several.until(lambda: balancer.states() == ["UP", "UP"])
        assert not asyncio.run(scenario())
    finally:
        balancer.stop()
        nodes.stop()
