"""The well-behaved calls: 50 frames a second each, every one echoed, in a process of their own.

`Calls` is the siege's end of that process; run as a program this file is the process: it calls until its stdin ends,
then prints what it saw as one JSON object.  The rule: a call counts as dropped when anything but an echo happens to it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from conformance import wire
from conformance.peer import Failed, Peer, Target
from conformance.script import Answer, ask

FRAME_SECONDS = 0.02
ROUTES = ("/ws/twilio/echo", "/ws/twilio/echo", "/ws/echo")  # in turn
QUIET = 5.0  # s without an echo, then the call counts as dropped
AUDIBLE = bytes(code for code in range(256) if code != 0x7F)  # mu-law's minus zero may come back as plus zero


@dataclass(slots=True)
class Seen:
    """What all the calls saw."""

    calls: int = 0
    echoed: int = 0  # frames that came back as they should
    dropped: list[str] = field(default_factory=list)  # a sentence for each call that did not last
    p50_ms: float = 0.0  # of the way there and back
    p99_ms: float = 0.0
    max_ms: float = 0.0


class Calls:
    """The process of well-behaved calls, as a context: `seen` is there when it has ended."""

    def __init__(self, host: str, port: int, count: int):
        self.arguments = [host, str(port), str(count)]
        self.seen: Seen | None = None

    def __enter__(self) -> Calls:
        tests = str(Path(__file__).parent.parent)
        self.process = subprocess.Popen([sys.executable, "-m", "attacks.healthy", *self.arguments],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        env={**os.environ, "PYTHONPATH": tests})
        return self

    def __exit__(self, *_) -> None:
        said, _ = self.process.communicate(timeout=30)
        self.seen = Seen(**json.loads(said)) if said else Seen(dropped=["the calls' own process died"])


def media(stream: str, audio: bytes) -> bytes:
    """A Twilio media message."""
    return json.dumps({"event": "media", "sequenceNumber": "3", "streamSid": stream, "media": {
        "track": "inbound", "chunk": "1", "timestamp": "5", "payload": base64.b64encode(audio).decode()}}).encode()


def opening(stream: str) -> bytes:
    """The frames that begin a Twilio call."""
    start = {"event": "start", "sequenceNumber": "1", "streamSid": stream, "start": {
        "streamSid": stream, "accountSid": "AC1", "callSid": "CA" + stream, "tracks": ["inbound"],
        "customParameters": {}, "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}}}
    connected = {"event": "connected", "protocol": "Call", "version": "1.0.0"}
    return b"".join(wire.text(json.dumps(message)) for message in (connected, start))


async def call(target: Target, number: int, ending: asyncio.Event, seen: Seen, times: list[float]) -> None:
    """One call until `ending`; raises Failed when it is not treated well."""
    twilio = "twilio" in target.path
    stream, peer, generator = f"MZ{number:032x}", Peer(target, QUIET), random.Random(number)
    peer.polite = True
    await peer.connect()
    try:
        for step in (ask(wire.head()), Answer(101)):
            await step.run(peer)
        if twilio:
            await peer.send(opening(stream))
        due = time.monotonic() + generator.random() * FRAME_SECONDS
        while not ending.is_set():
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += FRAME_SECONDS
            audio = bytes(generator.choices(AUDIBLE, k=160))
            sent = time.monotonic()
            await peer.send(wire.text(media(stream, audio)) if twilio else wire.binary(audio * 4))
            got = await peer.next("the echo")
            if got is None or got.opcode == wire.CLOSE:
                raise Failed(f"ended by the server: {got}")
            back = base64.b64decode(json.loads(got.payload)["media"]["payload"]) if twilio else got.payload
            if back != (audio if twilio else audio * 4):
                raise Failed(f"another frame came back: {got}")
            times.append(time.monotonic() - sent)
            seen.echoed += 1
    finally:
        await peer.release()


async def main(host: str, port: int, count: int) -> Seen:
    ending, seen, times = asyncio.Event(), Seen(count), []
    asyncio.get_running_loop().add_reader(0, ending.set)
    targets = [Target(host, port, ROUTES[i % len(ROUTES)], False) for i in range(count)]
    ends = await asyncio.gather(*(call(target, i, ending, seen, times) for i, target in enumerate(targets)),
                                return_exceptions=True)
    seen.dropped = [f"{target.path}: {end!r}" for target, end in zip(targets, ends) if end is not None]
    times.sort()
    if times:
        seen.p50_ms, seen.p99_ms, seen.max_ms = (round(1000 * times[min(len(times) - 1, int(len(times) * share))], 2)
                                                 for share in (0.5, 0.99, 1))
    return seen


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))))
