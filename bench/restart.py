"""What callers notice when the server is restarted or killed under them.

    python bench/restart.py [--calls 200] [--rounds 3] [--how kill|upgrade|both] [--dialect pcm] [--json]

So many callers listen to a long prompt when a worker is killed (SIGKILL), or the server is upgraded (SIGUSR2).  Each
then answers the prompt's question and must be understood.  The pause that a caller hears is the longest wait between
two messages of the prompt; its floor, the same callers' longest wait in the seconds before, stands beside it.  In the
Realtime protocol audio is sent as soon as it is made: there the pause is the longest wait for an answer to a ping, of
which each caller sends one with each frame.
What is said is a tone, so a word that is missing, or comes twice, is seen in the samples that are not silent.  The
pause between two sentences may be shorter: who has waited in it for another worker has heard it.
The rule: a call counts as kept if its connection lives, the prompt is heard to its end, and its answer is answered; one
in the Realtime protocol, besides, only if no event's id came twice.
"""
import argparse
import asyncio
import base64
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import orjson
import uvloop
from opusagent.client.people import person
from opusagent.dialects.audiosocket import AUDIO, HANGUP, UUID, Messages, message
from opusagent.engines.scripted import tone

RATE = 8000
FRAME = 160                     # samples: 20 ms
SENTENCE = "It was a long way home, and the road went on and on, and nobody who walked there ever met a soul at all."
STORY = f"{SENTENCE} {SENTENCE}"
PAUSE_MS = 220                  # between two sentences
FLOW = f"""
name = "a long story"
start = "story"
[states.story]
say = "{STORY}"
on = [{{ phrases = ["yes"], go = "thanks" }}]
[states.thanks]
say = "Thank you very much, and goodbye."
end = true
"""
MS_PER_CHARACTER = 60           # of the scripted voice
WORDS = 2 * int(np.count_nonzero(tone(SENTENCE, RATE)))     # samples of the prompt that are not silent
WHOLE = (2 * len(SENTENCE) * MS_PER_CHARACTER + PAUSE_MS) * RATE // 1000       # ... and of all of it
TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA      # opcodes
SILENCE = bytes(2 * FRAME)


class Caller(asyncio.Protocol):
    """One call in the pcm dialect: it sends silence, or a voice, and notes when audio comes."""

    def __init__(self, number: int):
        self.number = number
        self.transport: asyncio.Transport | None = None
        self.opened = asyncio.get_running_loop().create_future()
        self.came: list[tuple[int, int]] = []       # (ns, samples) of each message
        self.words = 0                              # samples of them that were not silent
        self.says: deque[bytes] = deque()           # 20 ms each of voice still to be sent
        self.silence = self.frame(SILENCE)
        self.closed: int | None = None              # the close code; 1006 without one
        self.rest = b""

    @property
    def path(self) -> str:
        return f"/ws/pcm?rate={RATE}&call_id=caller-{self.number}"

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(f"GET {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                        f"Sec-WebSocket-Key: {key}\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        data = self.rest + data
        if not self.opened.done():
            head, found, data = data.partition(b"\r\n\r\n")
            if not found:
                self.rest = head
                return
            self.opened.set_result(head.startswith(b"HTTP/1.1 101"))
        now = time.monotonic_ns()
        while len(data) >= 2:
            size, at = data[1] & 127, 2
            if size == 126:
                size, at = int.from_bytes(data[2:4]), 4
            if len(data) < at + size or at == 4 and len(data) < 4:
                break
            self._message(data[0] & 15, data[at:at + size], now)
            data = data[at + size:]
        self.rest = data

    def _message(self, opcode: int, payload: bytes, now: int) -> None:
        if opcode == BINARY:
            self.hear(payload, now)
        elif opcode == PING:
            self.transport.write(masked(PONG, payload))
        elif opcode == CLOSE:
            self.closed = int.from_bytes(payload[:2])
            self.transport.write(masked(CLOSE, payload[:2]))
            self.transport.close()

    def hear(self, pcm: bytes, now: int) -> None:
        self.came.append((now, len(pcm) // 2))
        self.words += int(np.count_nonzero(np.frombuffer(pcm, "<i2")))

    def connection_lost(self, error: Exception | None) -> None:
        if self.closed is None:
            self.closed = 1006
        if not self.opened.done():
            self.opened.set_result(False)

    def send(self) -> None:
        """20 ms of silence or voice."""
        if self.closed is None:
            self.transport.write(self.frame(self.says.popleft()) if self.says else self.silence)

    def frame(self, pcm: bytes) -> bytes:
        return masked(BINARY, pcm)

    # -- what it heard -------------------------------------------------------------------------------------------------

    @property
    def samples(self) -> int:
        return sum(samples for _, samples in self.came)

    @property
    def quiet_since(self) -> int:
        """ns: when the last of it was heard."""
        return self.came[-1][0] if self.came else time.monotonic_ns()

    @property
    def signs(self) -> list[int]:
        """ns: when the server was heard of."""
        return [at for at, _ in self.came]

    def gap_ms(self, begin: int, end: int) -> float:
        """The longest wait for a sign of the server between two times, ns."""
        times = [begin, *(at for at in self.signs if begin < at < end), end]
        return max(b - a for a, b in zip(times, times[1:])) / 1e6

    @property
    def kept(self) -> bool:
        """The goodbye was heard, after which the server hangs up."""
        return self.closed == 1000


class AudioSocketCaller(Caller):
    """Asterisk's dialplan application."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport, self.messages = transport, Messages()
        transport.write(message(UUID, self.number.to_bytes(16)))
        self.opened.set_result(True)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        for kind, payload in self.messages.feed(data):
            if kind == AUDIO:
                self.hear(payload, now)
            elif kind == HANGUP:
                self.closed = 1000
                self.transport.close()

    def frame(self, pcm: bytes) -> bytes:
        return message(AUDIO, pcm)


class RealtimeCaller(Caller):
    """A client of the OpenAI Realtime protocol: it plays what comes, as fast as it is spoken."""

    path = "/v1/realtime?model=flow"
    FORMAT = {"format": {"type": "audio/pcm", "rate": RATE}}

    def __init__(self, number: int):
        super().__init__(number)
        self.pongs: list[int] = []                  # ns
        self.played_by = time.monotonic_ns()
        self.events: list[dict] = []                # without their audio
        self.ready = False                          # the session is as it was asked for

    def send(self) -> None:
        if self.ready:                              # who greets would not know the format
            super().send()

    def _message(self, opcode: int, payload: bytes, now: int) -> None:
        if opcode == PONG:
            self.pongs.append(now)
        elif opcode == TEXT:
            self._event(orjson.loads(payload), now)
        else:
            super()._message(opcode, payload, now)

    def _event(self, event: dict, now: int) -> None:
        if event["type"] == "response.output_audio.delta":
            pcm = base64.b64decode(event.pop("delta"))
            self.hear(pcm, now)
            self.played_by = max(self.played_by, now) + len(pcm) // 2 * 1_000_000_000 // RATE
        elif event["type"] == "session.created":
            self.tell("session.update", session={"type": "realtime", "audio": {"input": self.FORMAT,
                                                                               "output": self.FORMAT}})
        self.ready |= event["type"] == "session.updated"
        self.events.append(event)

    def tell(self, kind: str, **fields) -> None:
        self.transport.write(masked(TEXT, orjson.dumps({"type": kind, **fields})))

    def frame(self, pcm: bytes) -> bytes:
        return masked(TEXT, b'{"type":"input_audio_buffer.append","audio":"%s"}' % base64.b64encode(pcm)) \
            + masked(PING, b"")

    @property
    def quiet_since(self) -> int:
        return self.played_by

    @property
    def signs(self) -> list[int]:
        return self.pongs

    @property
    def twice(self) -> list[str]:
        """Ids of events that came more than once."""
        ids = [event["event_id"] for event in self.events]
        return [each for each in dict.fromkeys(ids) if ids.count(each) > 1] if len(set(ids)) < len(ids) else []

    @property
    def kept(self) -> bool:
        return super().kept and not self.twice


CALLERS = {"pcm": Caller, "audiosocket": AudioSocketCaller, "realtime": RealtimeCaller}


def masked(opcode: int, payload: bytes) -> bytes:
    """A frame of a client's.  The mask is zero: the payload travels as it is."""
    size = len(payload)
    head = bytes((0x80 | opcode, 0x80 | size)) if size < 126 else bytes((0x80 | opcode, 0xFE)) + size.to_bytes(2)
    return head + bytes(4) + payload


def voice() -> list[bytes]:
    """What a caller says, 20 ms each."""
    pcm = person(RATE)[1][-1].pcm.tobytes()
    return [pcm[at:at + 2 * FRAME] for at in range(0, len(pcm) - 2 * FRAME, 2 * FRAME)]


class Callers:
    """All of them, their clock, and what they come to."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None, make: type[Caller] = Caller):
        self.port = port
        self.make = make
        self.tls = tls
        self.callers: list[Caller] = []
        self.begun: list[int] = []
        self.clock: asyncio.Task | None = None

    async def dial(self, count: int, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self.clock = asyncio.ensure_future(self._tick())
        for _ in range(count):
            _, caller = await loop.create_connection(lambda: self.make(len(self.callers)), "127.0.0.1", self.port,
                                                     ssl=self.tls)
            self.callers.append(caller)
            await asyncio.sleep(seconds / count)
        opened = await asyncio.gather(*(caller.opened for caller in self.callers))
        assert all(opened), f"{opened.count(False)} calls were refused"

    async def _tick(self) -> None:
        """Four groups, 5 ms apart, against absolute deadlines."""
        at, group = time.monotonic(), 0
        while True:
            for caller in self.callers[group::4]:
                if caller.opened.done():
                    caller.send()
            at, group = at + 0.005, (group + 1) % 4
            await asyncio.sleep(max(0, at - time.monotonic()))

    async def hear_out(self, within: float) -> None:
        """Until nobody has heard anything for a second."""
        until = time.monotonic() + within
        while time.monotonic() < until:
            quiet = time.monotonic_ns() - 1_000_000_000
            if all(caller.closed is not None or caller.quiet_since < quiet for caller in self.callers):
                return
            await asyncio.sleep(0.1)

    async def answer(self, within: float) -> int:
        """Each says yes; how many were understood and heard the goodbye, after which the server hangs up."""
        words = voice()
        for caller in self.callers:
            caller.says.extend(words)
        until = time.monotonic() + within
        while time.monotonic() < until and any(caller.closed is None for caller in self.callers):
            await asyncio.sleep(0.1)
        return sum(caller.kept for caller in self.callers)

    def stop(self) -> None:
        self.clock.cancel()
        for caller in self.callers:
            caller.transport.abort()


class Server:
    """`opusagent serve` with engines that say what a file says, in a process of its own."""

    def __init__(self, *flags: str, environment: dict[str, str] | None = None):
        self.place = tempfile.TemporaryDirectory()
        self.environment = environment or {}
        flow, lines = Path(self.place.name, "flow.toml"), Path(self.place.name, "says.txt")
        flow.write_text(FLOW)
        lines.write_text("yes\n")
        self.log = open(Path(self.place.name, "log"), "w+b")
        with socket.create_server(("127.0.0.1", 0)) as sock:
            self.audiosocket = sock.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "opusagent.cli", "serve", "--port", "0", "--workers", "1", "--flow", str(flow),
             "--audiosocket", str(self.audiosocket), "--stt", "scripted", "--llm", "scripted", "--tts", "scripted",
             "--scripted-stt", str(lines),
             "--admission-refuse-above", "1", "--admission-resume-below", "1", *flags],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, env=os.environ | self.environment)
        until = time.monotonic() + 30
        while not (match := re.search(r"listening on http://[\w.]+:(\d+)", self.said())):
            if time.monotonic() > until or self.process.poll() is not None:
                raise RuntimeError(f"the server did not start: {self.said()[-1000:]}")
            time.sleep(0.05)
        self.port = int(match[1])

    def port_of(self, dialect: str) -> int:
        """Where callers of a dialect dial."""
        return self.audiosocket if dialect == "audiosocket" else self.port

    def said(self) -> str:
        return Path(self.log.name).read_text(errors="replace")

    def workers(self) -> list[int]:
        return list(map(int, Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()))

    def metric(self, name: str) -> float:
        text = urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5).read().decode()
        found = re.search(rf"^opusagent_{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def stop(self) -> None:
        for pid in map(int, re.findall(r"process (\d+) has taken over", self.said())):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        self.place.cleanup()


HOW = {
    "kill": lambda server: os.kill(server.workers()[0], signal.SIGKILL),
    "upgrade": lambda server: os.kill(server.process.pid, signal.SIGUSR2),
}


async def measure(how: str, count: int, server: Server, dialect: str = "pcm") -> dict:
    """One round: the calls, what became of them, and how long the pause was."""
    callers = Callers(server.port_of(dialect), make=CALLERS[dialect])
    try:
        await callers.dial(count, min(4.0, 0.02 * count))
        await asyncio.sleep(2)
        begin = time.monotonic_ns()
        HOW[how](server)
        await asyncio.sleep(4)
        end = time.monotonic_ns()
        before = [caller.gap_ms(begin - 2_000_000_000, begin) for caller in callers.callers]
        gaps = [caller.gap_ms(begin, end) for caller in callers.callers]
        await callers.hear_out(30)
        heard = [caller for caller in callers.callers if caller.closed is None]
        words = sorted(abs(caller.words - WORDS) for caller in heard)
        pause = sorted(WHOLE - caller.samples - WORDS + caller.words for caller in heard)
        kept = await callers.answer(15)
    finally:
        callers.stop()
    return {"dialect": dialect, "how": how, "calls": count, "kept": kept, "gap": quantiles(gaps),
            "before": quantiles(before), "off_ms": extremes(words), "pause_off_ms": extremes(pause)}


def extremes(samples: list[int]) -> dict[str, float]:
    """Of sorted numbers, ms."""
    found = [count * 1000 / RATE for count in samples] or [float("nan")]
    return {"p50": found[len(found) // 2], "min": found[0], "max": found[-1]}


def quantiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {name: round(ordered[min(len(ordered) - 1, int(part * len(ordered)))], 1)
            for name, part in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--how", choices=("kill", "upgrade", "both"), default="both")
    parser.add_argument("--dialect", choices=CALLERS, default="pcm")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = []
    for _ in range(args.rounds):
        for how in HOW if args.how == "both" else (args.how,):
            server = Server()
            try:
                rows.append(uvloop.run(measure(how, args.calls, server, args.dialect)))
            finally:
                server.stop()
            row = rows[-1]
            print(json.dumps(row) if args.json else
                  f"{how:<8}{row['kept']} of {row['calls']} kept; pause p50 {row['gap']['p50']:.0f}, p99 "
                  f"{row['gap']['p99']:.0f}, max {row['gap']['max']:.0f} ms (before: max {row['before']['max']:.0f}); "
                  f"words too many or missing: at most {row['off_ms']['max']:.0f} ms; the pause between two sentences "
                  f"shorter by at most {row['pause_off_ms']['max']:.0f} ms", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
