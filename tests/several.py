"""Several nodes and a Redis, real processes all, and callers whose platforms dial again when a connection breaks.

The rule: what is started here is ended here, stopped processes too.
"""
import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from opusagent import ProtocolError
from opusagent.client.caller import Say
from opusagent.client.localserver import fetch_json
from opusagent.client.people import person
from opusagent.client.telephone import Caller
from served import SCRIPTED, free_port, serving

FLOW = """
start = "one"
[facts]
caller = ""
[states.one]
say = "Is this the first question?"
on = [{ phrases = ["yes"], go = "two" }]
[states.two]
say = "And is this the second question?"
on = [{ phrases = ["yes"], go = "bye" }]
[states.bye]
say = "Goodbye."
end = true
"""
PASSWORD = "not-to-be-read-anywhere"
VONAGE = "what-vonage-signs-with"
RETURNING = ("twilio", "jambonz", "pcm", "audiocodes")      # dialects whose platforms come back
missing = None if shutil.which("redis-server") else "redis-server is not installed"


class RedisServer:
    """A redis-server that keeps nothing on disk; `inside` as of served.serving()."""

    def __init__(self, host: str = "127.0.0.1", inside: tuple[str, ...] = ()):
        self.host, self.inside = host, inside
        self.port = free_port()
        self.place = tempfile.TemporaryDirectory()
        self.process = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://:{PASSWORD}@{self.host}:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [*self.inside, "redis-server", "--port", str(self.port), "--bind", self.host, "--save", "",
             "--appendonly", "no", "--requirepass", PASSWORD, "--dir", self.place.name],
            stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        until(self._answers)

    def _answers(self) -> bool:
        if self.inside:
            asked = ["redis-cli", "-h", self.host, "-p", str(self.port), "ping"]
            return bool(subprocess.run([*self.inside, *asked], capture_output=True, check=False).stdout)
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as sock:
            sock.sendall(b"PING\r\n")
            return bool(sock.recv(64))
        return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()
        self.place.cleanup()


class Nodes:
    """`node[i]` is a running server; each comes back at the port where it was.  `places`: (address, inside) of each,
    where that is not this machine."""

    def __init__(self, count: int, redis: RedisServer | None, *flags: str, flow: str = FLOW, places: tuple = ()):
        self.places = places or (("127.0.0.1", ()),) * count
        self.stack = ExitStack()
        self.place = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        (self.place / "flow.toml").write_text(flow)
        (self.place / "says.txt").write_text("yes\n")
        self.environment = {"OPUSAGENT_REDIS_URL": redis.url} if redis else {}
        self.environment["OPUSAGENT_AUTH_VONAGE_SECRETS"] = VONAGE
        self.flags = (*SCRIPTED, "--flow", str(self.place / "flow.toml"), "--insecure", "--admission-refuse-above", "1",
                      "--admission-resume-below", "1", "--admission-lag-ms", "0", "--admission-late-ms", "0",
                      "--scripted-stt", str(self.place / "says.txt"), *flags)
        self.ports = [free_port() for _ in range(count)]
        self.node = [self._started(index) for index in range(count)]
        self.stopped: set[int] = set()              # processes that stand still

    def _started(self, index: int):
        host, inside = self.places[index]
        return self.stack.enter_context(serving(*self.flags, "--host", host, "--port", str(self.ports[index]),
                                                environment=self.environment, inside=inside))

    def start(self, index: int) -> None:
        self.node[index] = self._started(index)

    def revive(self) -> None:
        """Every node serves."""
        for index, node in enumerate(self.node):
            if not node.alive():
                self.start(index)

    def signal(self, index: int, number: int) -> None:
        """To all processes of a node, so that nobody replaces anybody."""
        family = self.node[index].family()
        for pid in family:
            os.kill(pid, number)
        self.stopped = self.stopped | set(family) if number == signal.SIGSTOP else self.stopped - set(family)

    def kill(self, index: int) -> None:
        family = self.node[index].family()
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in family:
                os.kill(pid, number)
        self.node[index].process.wait()

    def stop(self) -> None:
        for pid in self.stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.stack.close()

    async def record(self, index: int, call_id: str) -> dict | None:
        """None where there is no such call, or nobody who answers; one who is busy is asked again."""
        for _ in range(3):
            with suppress(Exception):
                return await fetch_json(self.node[index].ws("/ws/pcm"), f"/calls/{call_id}")
            await asyncio.sleep(0.5)
        return None


def until(true, seconds=20.0):
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.05)


async def eventually(true, seconds=20.0, why=lambda: ""):
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up, why()
        await asyncio.sleep(0.02)


def yes(rate: int) -> Say:
    """What a caller says, whatever is asked: a person's voice, which the scripted recogniser takes for yes."""
    return person(rate)[1][-1]


class Talk:
    """A call that answers every question, and dials again whenever its connection breaks."""

    def __init__(self, url: str, dialect: str, returns: int = 20, says: int = 12):
        self.caller = Caller(url, dialect, [], returns=returns)
        said = yes(self.caller.rate)
        self.caller.script.says += [Say(said.pcm, "yes", said.voiced_from, said.voiced_to)] * says
        self.task = asyncio.ensure_future(self._talk())

    async def _talk(self) -> None:
        """A platform that is told to try again does."""
        for _ in range(100):
            try:
                async for _ in self.caller.converse():
                    pass
                return
            except (OSError, ProtocolError):
                await asyncio.sleep(0.2)

    @property
    def answers(self) -> int:
        """Turns that were answered so far."""
        return sum(turn.answered is not None for turn in self.caller.script.turns)

    @property
    def ended_well(self) -> bool:
        """The agent said goodbye and hung up."""
        return self.task.done() and self.task.exception() is None and (
            self.caller.closed.startswith("the call was ended with 1000") or self.caller.closed == "the agent hung up")
