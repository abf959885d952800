"""The Realtime WebSocket of tests/llm_endpoint.py: sessions that the test writes, strict in what they accept.

Every event of the client's must be one by the `openai` package's own types, without a field that these do not have.
The rule: an event that the real one would refuse ends the session with an assertion that the test sees.
"""
import asyncio
import base64
import hashlib
import json
from collections.abc import Awaitable, Callable

import numpy as np
from llm_endpoint import KEY, Exchange, Refused, refuse
from openai.types.realtime import RealtimeClientEvent
from pydantic import TypeAdapter

from opusagent._fastpath import ulaw_decode
from opusagent.transport.websocket import CLOSED, TEXT, WebSocket

EVENTS = TypeAdapter(RealtimeClientEvent)
MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
LARGEST_AUDIO = 2048            # bytes of audio in one message


class RealtimeSession:
    """One client.  `next()` is its next event, `send()` one to it; what it says of its audio is kept."""

    def __init__(self, exchange: Exchange):
        self.exchange = exchange
        self.query = exchange.path.partition("?")[2]
        self.ws = WebSocket(1 << 24)
        self.session: dict = {}                     # as it was last set
        self.updates: list[dict] = []
        self.audio: list[np.ndarray] = []           # int16 at `rate`
        self.rate = 0
        self.seen: list[dict] = []                  # events but for audio
        self.items = 0
        self.deaf = False                           # it neither reads nor answers any more
        self._events: asyncio.Queue[dict] = asyncio.Queue()
        self._begun = False

    @property
    def heard(self) -> int:
        """Samples."""
        return sum(map(len, self.audio))

    async def send(self, kind: str, **fields) -> None:
        if not self.deaf:
            self.items += 1
            self.ws.send(TEXT, json.dumps({"type": kind, "event_id": f"event_{self.items}", **fields}).encode())
            await self._flush()

    async def next(self) -> dict:
        return await self._events.get()

    async def until(self, kind: str) -> dict:
        while (event := await self.next())["type"] != kind:
            pass
        return event

    async def _flush(self) -> None:
        self.exchange.writer.write(b"".join(self.ws.outbox))
        self.ws.outbox.clear()
        await self.exchange.writer.drain()

    async def open(self) -> None:
        key = self.exchange.headers["sec-websocket-key"]
        accept = base64.b64encode(hashlib.sha1((key + MAGIC).encode()).digest()).decode()
        await self.exchange.write(f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                  f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode())
        await self.send("session.created", session={"type": "realtime", "object": "realtime.session", "id": "sess_1"})

    async def read(self) -> None:
        """Until the client is gone."""
        try:
            while data := await self.exchange.reader.read(65536):
                if self.deaf:
                    continue
                for _, payload in self.ws.receive_bytes(data):
                    await self._take(json.loads(payload))
                await self._flush()
                if self.ws.state is CLOSED:
                    break
        finally:                                # it may not wait for the answer to its close
            self.exchange.gone.set()

    async def _take(self, event: dict) -> None:
        typed = EVENTS.validate_python(event)
        assert typed.to_dict(exclude_unset=True) == event and not strange(typed), f"not of the API: {event}"
        if event["type"] == "input_audio_buffer.append":
            return self._listen(base64.b64decode(event["audio"], validate=True))
        self.seen.append(event)
        if event["type"] == "session.update":
            self.updates.append(event["session"])
            merge(self.session, event["session"])
            await self.send("session.updated", session=self.session)
        self._events.put_nowait(event)

    def _listen(self, data: bytes) -> None:
        assert 0 < len(data) <= LARGEST_AUDIO
        form = self.session["audio"]["input"]["format"]
        if form == {"type": "audio/pcmu"}:
            pcm, self.rate = np.empty(len(data), np.int16), 8000
            ulaw_decode(data, pcm)
        else:
            assert form == {"type": "audio/pcm", "rate": 24000} and not len(data) % 2
            pcm, self.rate = np.frombuffer(data, "<i2"), 24000
        self.audio.append(pcm)


def strange(model) -> bool:
    """Whether a typed event has fields, anywhere in it, that its type does not know."""
    if isinstance(model, list):
        return any(map(strange, model))
    if not hasattr(model, "model_extra"):
        return False
    return bool(model.model_extra) or any(strange(getattr(model, name)) for name in type(model).model_fields)


def merge(into: dict, more: dict) -> None:
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            merge(into[name], value)
        else:
            into[name] = value


Part = Callable[[RealtimeSession], Awaitable[None]]


def realtime(part: Part, sessions: list[RealtimeSession]):
    """What an endpoint does with those who want a session: each plays `part`, and is added to `sessions`."""
    async def doing(exchange: Exchange) -> None:
        if exchange.headers.get("authorization") != f"Bearer {KEY}":
            return await refuse(exchange, Refused(401, "who are you?"))
        session = RealtimeSession(exchange)
        await session.open()
        sessions.append(session)
        playing = asyncio.ensure_future(part(session))
        try:
            await session.read()
        finally:
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)
    return doing
