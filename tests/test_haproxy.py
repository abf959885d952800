"""deploy/haproxy.cfg as it is shipped, in a real HAProxy, before two real nodes: no caller hears what happens to one.

The rule: a call counts as kept if its prompt was heard, its answer understood, and the goodbye ended it.
"""
import asyncio
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import suppress
from http.client import HTTPSConnection
from itertools import count
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import restart      # noqa: E402
from served import free_port      # noqa: E402

CONFIGURATION = Path(__file__).parent.parent / "deploy" / "haproxy.cfg"
pytestmark = pytest.mark.skipif(not (shutil.which("haproxy") and shutil.which("openssl")),
                                reason="haproxy and openssl are not both installed")
FLOW = """
start = "ask"
[states.ask]
say = "Shall we go on?"
on = [{ phrases = ["yes"], go = "bye" }]
[states.bye]
say = "Goodbye."
end = true
"""
PROMPT_SAMPLES = len("Shall we go on?") * restart.MS_PER_CHARACTER * restart.RATE // 1000
NUMBERS = count()
CALLER, PROXY, HAPROXY = "127.0.0.2", "127.0.0.3", "127.0.0.1"      # where connections come from


class Balancer:
    """HAProxy with the shipped file, on a free port, for the nodes at these ports (of these `hosts`); `inside` as of
    served.serving()."""

    def __init__(self, place: Path, ports: list[int], trusted: str = "192.0.2.0/32", host: str = "127.0.0.1",
                 hosts: tuple[str, ...] = ("127.0.0.1", "127.0.0.1"), inside: tuple[str, ...] = ()):
        self.port, self.socket = free_port(), place / "stats"
        key, certificate, both = place / "key", place / "certificate", place / "both.pem"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
                        "/CN=localhost", "-addext", f"subjectAltName=IP:{host}", "-keyout", key, "-out", certificate],
                       check=True, capture_output=True)
        both.write_text(certificate.read_text() + key.read_text())
        self.tls = ssl.create_default_context(cafile=str(certificate))
        self.tls.check_hostname = False
        text = CONFIGURATION.read_text()
        if os.geteuid():                            # who is not root can be nobody else
            text = text.replace("    user haproxy\n    group haproxy\n", "")
        (place / "haproxy.cfg").write_text(text)
        nodes = {f"OPUSAGENT_NODE_{number}": f"{at}:{port}" for number, (at, port) in enumerate(zip(hosts, ports), 1)}
        self.log = open(place / "log", "w+b")
        self.process = subprocess.Popen(
            [*inside, "haproxy", "-db", "-f", place / "haproxy.cfg"],
            stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL,
            env=os.environ | nodes | {"OPUSAGENT_PUBLIC": f"{host}:{self.port}", "OPUSAGENT_CERTIFICATE": str(both),
                                      "OPUSAGENT_STATS": str(self.socket), "OPUSAGENT_TRUSTED_PROXIES": trusted})

    def states(self) -> list[str]:
        """What HAProxy thinks of each node: UP, NOLB (drains), DOWN, or on the way to one of these."""
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(str(self.socket))
            except OSError:
                return []
            sock.sendall(b"show stat nodes 4 -1\n")
            said = b"".join(iter(lambda: sock.recv(65536), b"")).decode()
        rows = [line.split(",") for line in said.splitlines() if "," in line]
        return [row[rows[0].index("status")] for row in rows[1:]]

    def get(self, path: str, source: str = CALLER, **headers) -> int:
        connection = HTTPSConnection("127.0.0.1", self.port, context=self.tls, timeout=10, source_address=(source, 0))
        try:
            connection.request("GET", path, headers=headers)
            return connection.getresponse().status
        finally:
            connection.close()

    def said(self) -> str:
        return Path(self.log.name).read_text()[-2000:]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        self.log.close()


class Nodes:
    """Two nodes, each of which comes back at the port where it was."""

    def __init__(self, place: Path):
        self.flow = place / "short.toml"
        self.flow.write_text(FLOW)
        self.ports: list[int | None] = [None, None]
        self.servers = [self.started(0), self.started(1)]

    def started(self, index: int) -> restart.Server:
        server = restart.Server("--flow", str(self.flow), "--proxies", f"{HAPROXY},{PROXY}",
                                "--port", str(self.ports[index] or 0))
        self.ports[index] = server.port
        return server

    def start(self, index: int) -> None:
        self.servers[index].stop()
        self.servers[index] = self.started(index)

    def kill(self, index: int) -> None:
        """All its processes at once, as if its machine were gone."""
        server = self.servers[index]
        family = [server.process.pid, *server.workers()]
        for pid in family:
            os.kill(pid, signal.SIGSTOP)            # nobody replaces anybody
        for pid in family:
            os.kill(pid, signal.SIGKILL)

    def calls(self) -> list[int]:
        return [int(server.metric("calls_total")) for server in self.servers]

    def stop(self) -> None:
        for server in self.servers:
            server.stop()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    nodes = Nodes(tmp_path_factory.mktemp("nodes"))
    yield nodes
    nodes.stop()


@pytest.fixture
def balancer(nodes, tmp_path):
    balancer = Balancer(tmp_path, nodes.ports)
    try:
        until(lambda: balancer.states() == ["UP", "UP"], balancer)
        yield balancer
    finally:
        balancer.stop()


def until(true, balancer, seconds=20):
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up, (balancer.states(), balancer.said())
        time.sleep(0.05)


async def become(balancer, *states):
    await asyncio.to_thread(until, lambda: tuple(state.partition(" ")[0] for state in balancer.states()) == states,
                            balancer)


class Crowd:
    """Callers that never cease: a new one every so often, each with a short conversation of its own."""

    def __init__(self, balancer: Balancer, every: float):
        self.balancer, self.every = balancer, every
        self.callers: list[restart.Caller] = []
        self.talks: set[asyncio.Task] = set()

    async def __aenter__(self):
        self.dialling = asyncio.create_task(self._dial())
        return self

    async def __aexit__(self, *error):
        self.dialling.cancel()
        with suppress(asyncio.CancelledError):
            await self.dialling
        await asyncio.wait_for(asyncio.gather(*self.talks), 60)

    async def _dial(self):
        while True:
            task = asyncio.create_task(self._talk())
            self.talks.add(task)
            await asyncio.sleep(self.every)

    async def _talk(self):
        _, caller = await asyncio.get_running_loop().create_connection(
            lambda: restart.Caller(next(NUMBERS)), "127.0.0.1", self.balancer.port, ssl=self.balancer.tls,
            local_addr=(CALLER, 0))
        self.callers.append(caller)
        if not await caller.opened:
            caller.closed = 503
        at, said = time.monotonic(), False
        while caller.closed is None:
            if not said and caller.samples >= PROMPT_SAMPLES:
                caller.says.extend(restart.voice())
                said = True
            caller.send()
            at += 0.02
            await asyncio.sleep(max(0, at - time.monotonic()))
        caller.transport.abort()

    @property
    def ends(self) -> list[int]:
        """How each call ended: 1000 is the agent's goodbye."""
        return [caller.closed for caller in self.callers]


async def rolling(nodes, balancer, rounds, every):
    """Each node is drained, ends, and is started anew, while calls come and go."""
    async with Crowd(balancer, every) as crowd:
        await asyncio.sleep(1)
        for index in (0, 1) * rounds:
            nodes.servers[index].process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(nodes.servers[index].process.wait, 30) == 0
            await asyncio.to_thread(nodes.start, index)
            await become(balancer, "UP", "UP")
            await asyncio.sleep(0.5)
    return crowd.ends


def test_nodes_are_restarted_in_turn_and_no_call_is_lost(nodes, balancer):
    ends = asyncio.run(rolling(nodes, balancer, 1, 0.3))
    assert len(ends) > 10 and set(ends) == {1000}, (
        ends, balancer.said(), [server.said()[-600:] for server in nodes.servers])


@pytest.mark.soak
def test_nodes_are_restarted_twenty_times_under_a_hundred_calls(nodes, balancer):
    ends = asyncio.run(rolling(nodes, balancer, 20, 0.03))
    assert set(ends) == {1000}, [end for end in ends if end != 1000]


def test_a_draining_node_keeps_its_calls_and_gets_no_new_ones(nodes, balancer):
    async def scenario():
        before = nodes.calls()
        async with Crowd(balancer, 0.1) as crowd:
            await asyncio.sleep(1)
            nodes.servers[0].process.send_signal(signal.SIGTERM)
            await become(balancer, "NOLB", "UP")
            taken = nodes.calls()[0]
            assert taken > before[0]                # both had calls
            await asyncio.sleep(0.5)
            assert nodes.calls()[0] == taken
        await asyncio.to_thread(nodes.start, 0)
        return crowd.ends
    assert set(asyncio.run(scenario())) == {1000}


def test_a_node_that_dies_takes_its_own_calls_along_and_no_others(nodes, balancer):
    async def scenario():
        async with Crowd(balancer, 0.1) as crowd:
            await asyncio.sleep(1.5)
            begun = len(crowd.callers)
            await asyncio.to_thread(nodes.kill, 1)
            await asyncio.sleep(1.5)                # most of them dialled before HAProxy knows of it
            await become(balancer, "UP", "DOWN")
            assert balancer.get("/readyz") == 200
            await asyncio.sleep(0.5)
        await asyncio.to_thread(nodes.start, 1)
        return crowd.ends[:begun], crowd.ends[begun:]
    before, after = asyncio.run(scenario())
    assert set(after) == {1000} and 1000 in before, (before, after)


def test_with_no_node_left_the_platform_is_told_when_to_try_again(nodes, tmp_path):
    balancer = Balancer(tmp_path, [free_port(), free_port()])
    try:
        until(lambda: balancer.states() == ["DOWN", "DOWN"], balancer)
        connection = HTTPSConnection("127.0.0.1", balancer.port, context=balancer.tls, timeout=10)
        connection.request("GET", "/ws/pcm")
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        connection.close()
        assert balancer.get("/readyz") == 503
    finally:
        balancer.stop()


UPGRADE = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
           "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}


def test_what_is_not_for_the_world_is_not_there(balancer):
    for path in ("/metrics", "/docs", "/calls/1", "/health", "/", "/wsx"):
        assert balancer.get(path) == 404, path
    assert balancer.get("/ws/pcm", **{"Transfer-Encoding": "chunked"}) == 400


def test_where_a_caller_is_only_our_own_proxies_can_say(nodes, balancer, tmp_path):
    """The nodes take calls of this machine without a key: who else claims to be there, or elsewhere, is not heard."""
    elsewhere = {"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9"}
    assert balancer.get("/ws/pcm", **UPGRADE, **elsewhere) == 101
    (tmp_path / "believing").mkdir()
    believing = Balancer(tmp_path / "believing", nodes.ports, f"10.0.0.0/8 {PROXY}")
    try:
        until(lambda: believing.states() == ["UP", "UP"], believing)
        assert believing.get("/ws/pcm", **UPGRADE, **elsewhere) == 101
        assert believing.get("/ws/pcm", PROXY, **UPGRADE, **elsewhere) == 401
    finally:
        believing.stop()
