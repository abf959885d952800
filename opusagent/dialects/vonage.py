"""Vonage Voice API WebSocket (an NCCO's `connect` to a websocket endpoint), and the Video API's Audio Connector.

Binary messages are audio, 16-bit little-endian mono, 20 ms each, at the rate that the first text message names:
8, 16 or 24 kHz.  That message, websocket:connected, begins the call; the endpoint's `headers` stand in it beside the
rest and are the facts.  Vonage knows the call's id but does not say it: put it into the headers as `uuid`.
Vonage buffers what it is sent, 3072 messages, and loses the rest.  A mark is its `notify`.
Uncertain: whether what a clear drops is notified too (taken as cleared, if it is); whether the module that Nexmo once
published is still like what runs (it cuts longer messages off at 20 ms, and names no event in its first text and of a
key: both are read); whether a text tells the end (taken if one does, the close of the socket says the same).
The rule: only what makes audio impossible ends a call; anything else is ignored and counted.
"""
import itertools
from urllib.parse import SplitResult, parse_qsl

import orjson

from .. import ProtocolError
from .._fastpath import MediaIn, MediaOut, codes_of
from . import (BINARY, TEXT, Audio, Clear, Dialect, Dtmf, Mark, Marks, PlatformSide, Start, Stop, digit_of, facts_of,
               parse, text_of)
from .channels import Channels
from .payload import part

RATES = ("8000", "16000", "24000")      # Hz
CONTENT = "audio/l16"
IDS = ("uuid", "call_uuid", "call_id", "conversation_uuid")     # a header that tells the call's id, the first there is
BUFFERED = 3072                         # messages that Vonage holds
CLEAR = b'{"action":"clear"}'


def rate_of(content) -> int:
    """Hz of a content type like audio/l16;rate=16000; ProtocolError(1008) for audio that we cannot read."""
    kind, *parameters = (piece.strip().lower() for piece in text_of(content).split(";"))
    rate = next((piece[5:] for piece in parameters if piece.startswith("rate=")), "16000")
    if kind not in (CONTENT, "") or rate not in RATES:
        raise ProtocolError(1008, "vonage: audio is audio/l16 at 8000, 16000 or 24000 Hz here, "
                                  f"not {kind[:30]} at {rate[:10]}")
    return int(rate)


class Vonage(Dialect):
    """Vonage Voice WebSockets: raw 16-bit samples in messages of 20 ms.  The Video API's Audio Connector, too."""

    __slots__ = ("rate", "ignored", "outbox", "_channel", "_marks", "_live", "_over")
    name = "vonage"
    opcode = BINARY
    lead_ms = 100
    max_message = 64 << 10

    def __init__(self, query: dict[str, str]):
        self.rate = 16000
        self.ignored = 0
        self.outbox: list[tuple[int, bytes]] = []
        self._channel = Channels("L16")
        self._marks = Marks()
        self._live = False              # between websocket:connected and the end
        self._over = False

    def open(self) -> None:
        return None

    @property
    def media_in(self) -> MediaIn | None:
        return self._channel.media_in() if self._live else None

    @property
    def media_out(self) -> MediaOut:
        return self._channel.media_out()

    def receive(self, opcode: int, payload) -> Start | Audio | Dtmf | Mark | Stop | None:
        if opcode == BINARY and self._live:
            return self._channel.decode(payload)
        if opcode == BINARY:
            self.ignored += 1
            return None
        message = parse(payload, self.name)
        event = self._read(message)
        self.ignored += event is None and message.get("event") != "websocket:cleared"
        return event

    def _read(self, message: dict) -> Start | Dtmf | Mark | Stop | None:
        name = message.get("event")
        begins = name == "websocket:connected" or name is None and "content-type" in message
        if begins and not self._live and not self._over:
            return self._start(message)
        if not self._live:
            return None
        if name == "websocket:dtmf" or name is None and "digit" in message:
            nested = message.get("dtmf")
            digit = digit_of(nested.get("digit") if isinstance(nested, dict) else message.get("digit"))
            return Dtmf(digit) if digit else None
        if name == "websocket:notify":
            return self._marks.echoed(text_of(part(message, "payload", self.name).get("name")))
        if name == "websocket:cleared":
            self._marks.forget_cleared()
        if name in ("websocket:disconnected", "websocket:closed"):
            self._live, self._over = False, True
            return Stop()
        return None

    def _start(self, message: dict) -> Start:
        self.rate = rate_of(message.get("content-type"))
        self._live = True
        facts = facts_of({name: value for name, value in message.items() if name not in ("event", "content-type")})
        return Start(next((facts[name] for name in IDS if name in facts), ""), facts)

    def audio(self, pcm) -> bytes:
        """Of 20 ms, as Vonage wants it, when `pcm` is: the playout cuts so, and what is echoed has come so."""
        return codes_of(pcm, "L16")

    def mark(self, name: str) -> bytes:
        self._marks.sent(name)
        return orjson.dumps({"action": "notify", "payload": {"name": name}})

    def clear(self) -> bytes:
        self._marks.clear()
        return CLEAR

    def stop(self) -> None:
        """There is no such message: the end of the socket goes to the event URL, which may answer with a new NCCO."""
        return None


class VonageCaller(PlatformSide):
    """Vonage's side of a websocket: ?rate=8000, 16000 (default) or 24000.  It takes 20 ms a message, and what fits."""

    __slots__ = ("rate", "call_id", "outbox", "_channel", "_frame", "_queued", "_waiting")
    name = "vonage"
    _calls = itertools.count(1)

    def __init__(self, url: SplitResult):
        self.rate = rate_of(f"{CONTENT};rate={dict(parse_qsl(url.query)).get('rate', '16000')}")
        self.call_id = f"{next(self._calls):032x}"
        self.outbox: list[tuple[int, bytes]] = []
        self._channel = Channels("L16")
        self._frame = self.rate // 50 * 2       # bytes of 20 ms
        self._queued = 0                        # messages not played yet
        self._waiting: list[str] = []           # notifications not reached yet

    def open(self) -> list[tuple[int, bytes]]:
        return [(TEXT, orjson.dumps({"event": "websocket:connected", "content-type": f"{CONTENT};rate={self.rate}",
                                     "uuid": self.call_id}))]

    def audio(self, pcm) -> tuple[int, bytes]:
        """Each is 20 ms of the call, in which one of those queued is played."""
        self._queued = max(0, self._queued - 1)
        return BINARY, codes_of(pcm, "L16")

    def dtmf(self, digit: str) -> tuple[int, bytes]:
        return TEXT, orjson.dumps({"event": "websocket:dtmf", "digit": digit, "duration": 260})

    def mark(self, name: str) -> tuple[int, bytes] | None:
        """Only what was played is told."""
        if name not in self._waiting:
            return None
        self._waiting.remove(name)
        return TEXT, orjson.dumps({"event": "websocket:notify", "payload": {"name": name}})

    def stop(self) -> None:
        """The end of the socket says it."""
        return None

    def receive(self, opcode: int, payload) -> Audio | Mark | Clear | None:
        if opcode == BINARY:
            return self._play(payload)
        match parse(payload, self.name):
            case {"action": "notify", "payload": {"name": str(name)}}:
                self._waiting.append(name)
                return Mark(name)
            case {"action": "clear"}:
                self._queued = 0
                self._waiting.clear()
                self.outbox.append((TEXT, b'{"event":"websocket:cleared"}'))
                return Clear()
        raise ProtocolError(1008, "vonage: a message that Vonage would not take")

    def _play(self, payload) -> Audio:
        if len(payload) != self._frame:
            raise ProtocolError(1008, f"vonage: a message of audio is {self._frame} bytes, not {len(payload)}")
        self._queued += 1
        if self._queued > BUFFERED:
            raise ProtocolError(1008, f"vonage: more than {BUFFERED} messages wait, the rest would be lost")
        return self._channel.decode(payload)
