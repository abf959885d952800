"""What 20 ms of a whole call cost the server in each dialect, in and out, beside calls of Twilio's in the same round.

The worker itself is stepped (server.Server with its epoll set, pacer and ticks), on sockets of the loopback device; its
peers are the simulated platforms, whose time does not count.  In every 20 ms each of them sends its frame, what has
come is served, and four ticks pass.  The callers are silent and the agents speak, so every frame goes both ways and the
voice detector's model rests.  The clock is the steps' own: nobody waits for it.

Where a reply goes out as soon as it is made (/v1/realtime) there are no frames out to be compared: there the agents of
both have spoken, and the callers' frames only are compared.

The rule: a round of one dialect is divided by the rounds of Twilio's right before and right after it.
"""
import asyncio
import base64
import gc
import logging
import socket
import time
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

import numpy as np

from opusagent._fastpath import FrameParser, build_frame
from opusagent.config import Admission, Config, Prompts
from opusagent.dialects import CALLERS, Clear, Mark
from opusagent.flow import Flow
from opusagent.metrics import Metrics
from opusagent.server.worker import TICK_NS, Server
from opusagent.studio.studio import Studio

CALLS = 32                  # of each dialect, at once
STEPS = 10                  # of 20 ms in a round
WARM = 60                   # steps before the first, a second and more: every reply is well under way
SPOKEN = 200                # ... and as many as it takes until all that an agent has to say has been heard
START_SECONDS = 20
LINE = "All that is said on this line is said for nobody, slowly, and on and on. "
FLOW = """
start = "chat"
[states.chat]
say = "{line}"
silence = {{ say = ["{line}"] }}
on = [{{ free = true, say = "{line}" }}]
"""
LISTENING = """
start = "chat"
[states.chat]
say = "Good morning, what can I do for you?"
waits = { no_input = 60000 }
on = [{ free = true, say = "Go on." }]
"""
PATHS = {"openai-realtime": "/v1/realtime"}


class Clock:
    """The machine's until the calls stand; from then on the steps'."""

    def __init__(self):
        self.at = 0                         # ns; 0: the machine's

    def __call__(self) -> int:
        return self.at or time.monotonic_ns()


@dataclass(slots=True)
class Peer:
    """A platform's end of one call."""
    platform: object
    sock: socket.socket
    parser: FrameParser = field(default_factory=lambda: FrameParser(1 << 20, masked=False))
    marks: list[str] = field(default_factory=list)          # to be given back with the next frame
    came: list[tuple[int, bytes]] = field(default_factory=list)

    def send(self, messages) -> None:
        frames = b"".join(build_frame(opcode, content, True, b"mask") for opcode, content in messages)
        if frames:
            self.sock.send(frames)

    def speak(self, pcm) -> None:
        """20 ms, and what else there is to be said."""
        messages = [self.platform.mark(name) for name in self.marks]
        self.marks.clear()
        self.send(message for message in (self.platform.audio(pcm), *messages, *self.outbox()) if message is not None)

    def outbox(self) -> list[tuple[int, bytes]]:
        messages = list(self.platform.outbox)
        self.platform.outbox.clear()
        return messages

    def listen(self, data: bytes = b"") -> int:
        """Takes what has come; how many messages that was."""
        try:
            while data := data or self.sock.recv(1 << 16):
                self.parser.feed_bytes(data)
                self.parser.deliver(lambda opcode, content: self.came.append((opcode, bytes(content))), lambda *_: None)
                data = b""
        except BlockingIOError:
            pass
        came, self.came = self.came, []
        for opcode, content in came:
            event = self.platform.receive(opcode, content)
            if isinstance(event, Mark):
                self.marks.append(event.name)
            elif isinstance(event, Clear):
                self.marks.clear()
        return len(came)


class Population:
    """A worker with calls in one dialect."""

    def __init__(self, route: str, studio: Studio, warm: int):
        self.route = route
        self.warm = warm                    # steps before the first that counts
        self.clock = Clock()
        self.server = Server(studio.config, studio, Metrics())
        self.server.clock = self.clock
        self.peers: list[Peer] = []
        self.sent = self.came = 0           # frames, in all steps

    async def open(self) -> None:
        door = socket.create_server(("127.0.0.1", 0))
        port = door.getsockname()[1]
        await self.server.start([door])
        self.peers = [await self._dial(port) for _ in range(CALLS)]
        until = time.monotonic() + START_SECONDS
        while len(self.server.calls) < CALLS or not all(call.mouth.turn for call in self.server.calls.values()):
            for peer in self.peers:
                peer.listen()
                peer.send(peer.outbox())
            await asyncio.sleep(0.01)
            if time.monotonic() > until:
                raise RuntimeError(f"{self.route}: {len(self.server.calls)} of {CALLS} calls have begun")
        self.server._timer.cancel()
        door.close()
        rate = next(iter(self.server.calls.values())).dialect.rate
        self.pcm = np.random.default_rng(1).normal(0, 4, rate // 50).astype(np.int16)
        self.clock.at = time.monotonic_ns()
        self.round(self.warm)

    async def _dial(self, port: int) -> Peer:
        name, _, query = self.route.partition("?")
        path = PATHS.get(name, f"/ws/{name}") + f"?{query}"
        platform, loop = CALLERS[name](urlsplit(f"ws://127.0.0.1/ws/{self.route}")), asyncio.get_running_loop()
        sock = socket.socket()
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        wishes = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket",
                  "Connection: Upgrade", "Sec-WebSocket-Version: 13",
                  "Sec-WebSocket-Key: " + base64.b64encode(bytes(16)).decode(),
                  *[f"Sec-WebSocket-Protocol: {offer}" for offer in getattr(platform, "protocols", ())[:1]]]
        await loop.sock_sendall(sock, "\r\n".join([*wishes, "", ""]).encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += await loop.sock_recv(sock, 1 << 16)
        if not answer.startswith(b"HTTP/1.1 101"):
            raise RuntimeError(f"{self.route}: {answer.decode()}")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = Peer(platform, sock)
        peer.send(platform.open())
        peer.listen(answer.partition(b"\r\n\r\n")[2])
        return peer

    def round(self, steps: int = STEPS) -> float:
        """us of the processor's that the server spent on 20 ms of a call, in the kernel and out of it."""
        server, spent = self.server, 0
        for _ in range(steps):
            for peer in self.peers:
                peer.speak(self.pcm)
            began = time.thread_time_ns()
            server.epoll.poll()
            spent += time.thread_time_ns() - began
            for call in server.calls.values():
                call.ear.media_at = self.clock.at       # the set has looked at the machine's clock,
                if hasattr(call, "inbox"):
                    call.inbox.throttle.heard_by = 0    # ... by which this audio came too fast to be heard
            began = time.thread_time_ns()
            for _ in range(4):
                self.clock.at += TICK_NS
                server._look_after(server.tock())
            spent += time.thread_time_ns() - began
            self.came += sum(peer.listen() for peer in self.peers)
            self.sent += len(self.peers)
        return spent / 1e3 / steps / len(self.peers)

    async def close(self) -> None:
        if len(self.server.calls) < CALLS:
            raise RuntimeError(f"{self.route}: {CALLS - len(self.server.calls)} calls have ended meanwhile")
        self.clock.at = 0
        for peer in self.peers:
            peer.sock.close()
        await asyncio.sleep(0.1)
        await self.server.stop()


async def beside(route: str, studio: Studio, rounds: int, warm: int) -> tuple[list[float], list[float], float]:
    """us of 20 ms, round by round: of a call in this dialect, and of Twilio's around it; and messages out per 20 ms."""
    mine, twilio = Population(route, studio, warm), Population("twilio", studio, warm)
    await mine.open()
    await twilio.open()
    gc.disable()
    ours, theirs = [], []
    for _ in range(rounds):
        mine.round()
        before, spent, after = twilio.round(), mine.round(), twilio.round()
        ours.append(spent)
        theirs.append((before + after) / 2)
    gc.enable()
    await mine.close()
    await twilio.close()
    return ours, theirs, mine.came / mine.sent


async def measure(routes: list[str], rounds: int,
                  listening: bool = False) -> dict[str, tuple[list[float], list[float], float]]:
    """`listening`: the agents have nothing to say any more."""
    logging.getLogger("opusagent").setLevel(logging.ERROR)      # a wake-up may take long here: it is no server's
    config = replace(Config(), stt="scripted", tts="scripted", llm="scripted", max_calls=2 * CALLS + 8,
                     admission=replace(Admission(), refuse_above=1.0, resume_below=1.0), prompts=Prompts(megabytes=0))
    studio = Studio(config, Flow.parse(LISTENING if listening else FLOW.format(line=LINE * 12), "flow.toml"))
    await studio.open(Metrics())
    return {route: await beside(route, studio, rounds, SPOKEN if listening else WARM) for route in routes}
