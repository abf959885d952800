"""Plivo Audio Streaming, bidirectional (<Stream bidirectional="true">), and Vobiz, which copied it.

JSON text messages; mu-law at 8 kHz, or 16-bit little-endian samples at 8 or 16 kHz.  We send what we hear: encoding and
rate are those of `start`, the first message.  Plivo buffers what it is sent and owns the clock.  Its marks are
checkpoints: `playedStream` comes only for what was really played; after `clearAudio` one `clearedAudio` stands for all.
Uncertain: the order of the bytes of L16 (what Plivo's own code does is done here); whether a `stop` comes at the end
(taken if it does, the close of the socket says the same); how extra_headers are put into text (k=v with ; or , between,
or JSON: all are read); the fields of dtmf beside `digit`.
The rule: only what makes audio impossible ends a call; anything else is ignored and counted; an `error` is told on.
"""
import itertools
from urllib.parse import SplitResult, parse_qsl

import orjson

from .. import ProtocolError
from .._fastpath import MediaIn, MediaOut
from . import (SENTENCE, TEXT, Audio, Clear, Complaint, Dialect, Dtmf, Mark, Marks, PlatformSide, Pressed, Start, Stop,
               digit_of, digits_of, facts_of, parse, text_of)
from .payload import L16, PCMU, Payload, part

ENCODINGS = {                               # as Plivo names them: the encoding, and the rates of each, Hz
    "audio/x-mulaw": (PCMU, ("8000",)),
    "audio/x-l16": (L16, ("8000", "16000", "24000")),      # 24000 is Vobiz's
}
AFTER_PAYLOAD = b'"}}'
ACCOUNT = "MA" + "0" * 18                   # of the simulated caller


def format_of(described) -> tuple[str, int]:
    """(content type, Hz) of a mediaFormat; ProtocolError(1008) for audio that we cannot read."""
    if not isinstance(described, dict):
        described = {}
    named, _, parameters = text_of(described.get("encoding", "audio/x-mulaw")).lower().partition(";")
    content = "audio/x-" + named.strip().removeprefix("audio/").removeprefix("x-")
    rate = text_of(described.get("sampleRate", parameters.strip().removeprefix("rate=") or 8000))
    if rate not in ENCODINGS.get(content, ("", ()))[1]:
        raise ProtocolError(1008, "plivo: audio is mu-law at 8000 Hz or L16 at 8000, 16000 or 24000 Hz here, "
                                  f"not {named[:20]} at {rate[:10]}")
    return content, int(rate)


def headers_of(value) -> dict[str, str]:
    """extra_headers as facts: an object, an object as text, or k=v;k=v."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return {}
    if not isinstance(value, str):
        return facts_of(value)
    pairs = (pair.partition("=") for pair in value.replace(",", ";").split(";"))
    return {name.strip(): fact.strip() for name, equals, fact in pairs if equals and name.strip()}


class Plivo(Dialect):
    """Plivo Audio Streaming: mu-law or 16-bit samples in JSON.  Vobiz, too."""

    __slots__ = ("rate", "ignored", "outbox", "_payload", "_marks", "_live", "_over", "_stream", "_before")
    name = "plivo"
    opcode = TEXT
    lead_ms = 100
    max_message = 64 << 10

    def __init__(self, query: dict[str, str]):
        self.rate = 8000
        self.ignored = 0
        self.outbox: list[tuple[int, bytes]] = []
        self._marks = Marks()
        self._live = False              # between start and stop
        self._over = False              # after stop
        self._agree("audio/x-mulaw", {})

    def _agree(self, content: str, stream: dict[str, str]) -> None:
        """From now on audio is of this type at our rate, and messages go to this stream: {} or {"streamId": ...}."""
        self._payload = Payload(ENCODINGS[content][0])
        self._stream = stream
        media = {"contentType": content, "sampleRate": self.rate, "payload": ""}
        self._before = orjson.dumps({"event": "playAudio", **stream, "media": media})[:-len(AFTER_PAYLOAD)]

    @property
    def media_in(self) -> MediaIn | None:
        return self._payload.media_in() if self._live else None

    @property
    def media_out(self) -> MediaOut:
        return self._payload.media_out(self._before, AFTER_PAYLOAD)

    def open(self) -> None:
        return None

    def receive(self, opcode: int, payload) -> Start | Audio | Dtmf | Mark | Complaint | Stop | None:
        if opcode != TEXT:
            raise ProtocolError(1003, "plivo: messages are text")
        if self._live and (audio := self._payload.audible.media(payload)) is not None:
            return audio
        message = parse(payload, self.name)
        event = self._read(message)
        self.ignored += event is None and message.get("event") != "clearedAudio"
        return event

    def _read(self, message: dict) -> Start | Audio | Dtmf | Mark | Complaint | Stop | None:
        name = message.get("event")
        if name == "start" and not self._live and not self._over:
            return self._start(message)
        if not self._live:
            return None
        if name == "media":
            return self._media(part(message, "media", self.name))
        if name == "dtmf":
            digit = digit_of(part(message, "dtmf", self.name).get("digit"))
            return Dtmf(digit) if digit else None
        if name in ("playedStream", "played"):
            return self._marks.echoed(text_of(message.get("name")))
        if name in ("error", "playFailed"):
            return Complaint(text_of(message.get("reason"))[:SENTENCE], name)
        if name == "clearedAudio":
            self._marks.forget_cleared()
        if name == "stop":
            self._live, self._over = False, True
            return Stop()
        return None

    def _start(self, message: dict) -> Start:
        flat = "start" not in message and "streamId" in message         # as Vobiz may have it
        start = message if flat else part(message, "start", self.name)
        content, self.rate = format_of(start.get("mediaFormat"))
        stream = text_of(start.get("streamId", message.get("streamId")))
        self._agree(content, {"streamId": stream} if stream else {})
        self._live = True
        return Start(text_of(start.get("callId")), headers_of(message.get("extra_headers", start.get("extra_headers"))),
                     text_of(start.get("accountId")))

    def _media(self, media: dict) -> Audio | None:
        """Inbound only: with both tracks we should hear ourselves."""
        if media.get("track", "inbound") != "inbound":
            return None
        return self._payload.decode(media.get("payload"), self.name)

    def audio(self, pcm) -> bytes:
        return self._payload.message(self._before, pcm, AFTER_PAYLOAD)

    def mark(self, name: str) -> bytes:
        self._marks.sent(name)
        return orjson.dumps({"event": "checkpoint", **self._stream, "name": name})

    def clear(self) -> bytes:
        self._marks.clear()
        return orjson.dumps({"event": "clearAudio", **self._stream})

    @staticmethod
    def send_digits(digits: str) -> bytes:
        return orjson.dumps({"event": "sendDTMF", "dtmf": digits})

    def stop(self) -> None:
        """There is no such message: closing the socket goes on to the next XML element, or hangs up."""
        return None


class PlivoCaller(PlatformSide):
    """Plivo's side of a stream: ?codec=PCMU (default) or L16, &rate= of L16 (8000)."""

    __slots__ = ("rate", "call_id", "stream", "outbox", "_content", "_payload", "_number", "_chunk", "_samples",
                 "_waiting")
    name = "plivo"
    _calls = itertools.count(1)

    def __init__(self, url: SplitResult):
        query = dict(parse_qsl(url.query))
        named = {"PCMU": "mulaw"}.get(query.get("codec", PCMU).upper(), query.get("codec", ""))
        self._content, self.rate = format_of({"encoding": named, "sampleRate": query.get("rate", "8000")})
        number = next(self._calls)
        self.call_id = self.stream = f"{number:032x}"
        self.outbox: list[tuple[int, bytes]] = []
        self._payload = Payload(ENCODINGS[self._content][0])
        self._number = 0                # sequenceNumber of the last message
        self._chunk = 0                 # media messages so far
        self._samples = 0               # in them
        self._waiting: list[str] = []   # checkpoints not yet reached

    def _message(self, event: str, content: dict) -> tuple[int, bytes]:
        self._number += 1
        return TEXT, orjson.dumps({"event": event, "sequenceNumber": self._number, "streamId": self.stream, **content})

    def open(self) -> list[tuple[int, bytes]]:
        self._number += 1
        start = {"callId": self.call_id, "streamId": self.stream, "accountId": ACCOUNT, "tracks": ["inbound"],
                 "mediaFormat": {"encoding": self._content, "sampleRate": self.rate}}
        return [(TEXT, orjson.dumps({"event": "start", "sequenceNumber": self._number, "start": start,
                                     "extra_headers": "{}"}))]

    def audio(self, pcm) -> tuple[int, bytes]:
        self._number += 1
        self._chunk += 1
        timestamp = self._samples * 1000 // self.rate
        self._samples += len(pcm)
        before = (f'{{"event":"media","sequenceNumber":{self._number},"streamId":"{self.stream}","media":{{"track":'
                  f'"inbound","timestamp":"{timestamp}","chunk":{self._chunk},"payload":"')
        return TEXT, self._payload.message(before.encode(), pcm, b'"},"extra_headers":"{}"}')

    def dtmf(self, digit: str) -> tuple[int, bytes]:
        timestamp = str(self._samples * 1000 // self.rate)
        return self._message("dtmf", {"dtmf": {"track": "inbound", "digit": digit, "timestamp": timestamp}})

    def mark(self, name: str) -> tuple[int, bytes] | None:
        """Only what was played is told."""
        if name not in self._waiting:
            return None
        self._waiting.remove(name)
        return TEXT, orjson.dumps({"event": "playedStream", "sequenceNumber": 0, "streamId": self.stream, "name": name})

    def stop(self) -> None:
        """The end of the socket says it."""
        return None

    def receive(self, opcode: int, payload) -> Audio | Mark | Clear | Pressed | None:
        if opcode != TEXT:
            raise ProtocolError(1003, "plivo: a binary message")
        message = parse(payload, self.name)
        known = message.get("streamId") == self.stream or message.get("event") == "sendDTMF"
        event = self._read(message) if known else None
        if event is None:
            raise ProtocolError(1008, "plivo: a message that Plivo would not take")
        return event

    def _read(self, message: dict) -> Audio | Mark | Clear | Pressed | None:
        match message:
            case {"event": "sendDTMF", "dtmf": str(digits)} if digits_of(digits) and digits.isascii():
                return Pressed(digits)
            case {"event": "playAudio", "media": {"contentType": content, "sampleRate": rate, "payload": payload}}:
                known = content == self._content and rate == self.rate
                return self._payload.decode(payload, self.name) if known else None
            case {"event": "checkpoint", "name": str(name)}:
                self._waiting.append(name)
                return Mark(name)
            case {"event": "clearAudio"}:
                self._waiting.clear()
                self.outbox.append((TEXT, orjson.dumps({"event": "clearedAudio", "sequenceNumber": 0,
                                                        "streamId": self.stream})))
                return Clear()
        return None
