"""Asterisk's chan_websocket: Dial(WebSocket/...), or ARI externalMedia with transport=websocket.  From 20.16 and 22.6.

Binary messages are audio in the channel's format and nothing else; text messages are commands and events, in plain
text or, if the channel was made with f(json), in JSON.  Each event is read in the form in which it comes, and commands
go out in the form of MEDIA_START, which begins the call and names the format.  Nothing tells its end but the socket's.
Asterisk frames and times what it is sent, plays silence when there is nothing, and holds at most 1000 frames: at 900 it
says MEDIA_XOFF, below 800 MEDIA_XON.  What FLUSH_MEDIA drops is never told of, marks neither.
Uncertain: older releases leave fields out of MEDIA_START (without `format`, ?format= in the URL is taken, from v(...));
in passthrough mode, option p, marks and flushes are refused with an ERROR, so it should not be set.
The rule: no command is longer than the 128 bytes that Asterisk reads, and no audio is sent between XOFF and XON.
"""
import itertools
from urllib.parse import SplitResult, parse_qsl

import orjson

from .. import ProtocolError
from .._fastpath import MediaIn, MediaOut
from . import (BINARY, SENTENCE, TEXT, Audio, Clear, Complaint, Dialect, Dtmf, Mark, Marks, PlatformSide, Start, Stop,
               digit_of, facts_of, parse, text_of)
from .channels import SAMPLE_BYTES, Channels

FORMATS = {"ulaw": 8000, "alaw": 8000, "slin": 8000, "slin16": 16000, "slin24": 24000, "slin48": 48000}     # Hz
G711 = {"ulaw": "PCMU", "alaw": "PCMA"}
PTIME_MS = 20               # of each of these formats
MAX_COMMAND = 128           # bytes; Asterisk ignores longer ones
QUEUE, XOFF, XON = 1000, 900, 800   # frames
EXPECTED = ("QUEUE_DRAINED", "MEDIA_BUFFERING_COMPLETED", "STATUS")     # events that lead to nothing, and are no wonder


class Format:
    """Audio as one of FORMATS, both ways."""

    __slots__ = ("name", "rate", "frame", "channel")

    def __init__(self, name: str):
        if name not in FORMATS:
            raise ProtocolError(1008, f"asterisk: the format is one of {', '.join(FORMATS)} here, not {name[:20]!r}")
        encoding = G711.get(name, "L16")
        self.name = name
        self.rate = FORMATS[name]
        self.frame = self.rate * PTIME_MS // 1000 * SAMPLE_BYTES[encoding]      # bytes
        self.channel = Channels(encoding)


def event_of(payload) -> tuple[str, dict, bool]:
    """(name, fields, whether it is JSON) of an event.  In plain text its fields are words like digit:5; what stands
    behind the name as a whole is the field `correlation_id`, which is all that some events have."""
    if payload[:1] == b"{":
        message = parse(payload, "asterisk")
        return text_of(message.get("event")), message, True
    name, _, rest = str(payload, "utf-8", "replace").strip().partition(" ")
    fields = dict(word.split(":", 1) for word in rest.split() if ":" in word)
    return name, fields | {"correlation_id": rest}, False


class Asterisk(Dialect):
    """Asterisk's WebSocket channel: audio as it is, commands and events in text or JSON."""

    __slots__ = ("rate", "held", "ignored", "outbox", "_query", "_format", "_json", "_marks")
    name = "asterisk"
    opcode = BINARY
    lead_ms = 100
    max_message = 64 << 10
    protocols = ("media",)

    def __init__(self, query: dict[str, str]):
        self.rate = 8000
        self.held = False                       # between XOFF and XON
        self.ignored = 0
        self.outbox: list[tuple[int, bytes]] = []
        self._query = query
        self._format: Format | None = None      # from MEDIA_START on
        self._json = False                      # commands are sent as JSON
        self._marks = Marks()

    def open(self) -> None:
        return None

    @property
    def media_in(self) -> MediaIn | None:
        return self._format.channel.media_in() if self._format is not None else None

    @property
    def media_out(self) -> MediaOut:
        return self._format.channel.media_out()

    def receive(self, opcode: int, payload) -> Start | Audio | Dtmf | Mark | Complaint | None:
        if opcode == BINARY and self._format is not None:
            return self._format.channel.decode(payload)
        event, expected = None, False
        if opcode == TEXT:
            name, fields, is_json = event_of(payload)
            expected = name in EXPECTED
            if name == "MEDIA_START" and self._format is None:
                self._json = is_json
                event = self._start(fields)
            elif self._format is not None and name in ("MEDIA_XOFF", "MEDIA_XON"):
                self.held, expected = name == "MEDIA_XOFF", True
            elif self._format is not None:
                event = self._read(name, fields)
        self.ignored += event is None and not expected
        return event

    def _start(self, fields: dict) -> Start:
        """The id is the channel's; where an older release does not tell it, the channel's name is as unique."""
        self._format = Format(text_of(fields.get("format")) or self._query.get("format", ""))
        self.rate = self._format.rate
        given = {name: value for name, value in self._query.items() if name != "format"}
        call_id = text_of(fields.get("channel_id")) or text_of(fields.get("channel"))
        return Start(call_id, given | facts_of(fields.get("channel_variables")))

    def _read(self, name: str, fields: dict) -> Dtmf | Mark | Complaint | None:
        if name == "DTMF_END":
            digit = digit_of(fields.get("digit"))
            return Dtmf(digit) if digit else None
        if name == "MEDIA_MARK_PROCESSED":
            return self._marks.echoed(text_of(fields.get("correlation_id")))
        if name == "ERROR":
            whole = text_of(fields.get("correlation_id")).partition("error_text:")[2]
            return Complaint((whole or text_of(fields.get("error_text")))[:SENTENCE])
        return None

    def _command(self, name: str, argument: str = "") -> bytes:
        if self._json:
            return orjson.dumps({"command": name} | ({"correlation_id": argument} if argument else {}))
        return f"{name} {argument}".rstrip().encode()

    def audio(self, pcm) -> bytes:
        return self._format.channel.encode(pcm)

    def mark(self, name: str) -> bytes | None:
        """None for a name that is too long to be asked about."""
        command = self._command("MARK_MEDIA", name)
        if len(command) > MAX_COMMAND:
            return None
        self._marks.sent(name)
        return command

    def clear(self) -> bytes:
        """A mark that was reached before Asterisk read this is still on its way, and counts as cleared."""
        self._marks.clear()
        return self._command("FLUSH_MEDIA")

    def stop(self) -> bytes:
        return self._command("HANGUP")


class AsteriskCaller(PlatformSide):
    """Asterisk's side: ?format=slin16 (default) or another of FORMATS, ?control=json for JSON.

    Stricter than Asterisk, which only logs: what it would not play or not read ends the call.
    """

    __slots__ = ("rate", "call_id", "outbox", "_format", "_json", "_queued", "_marks", "_full")
    name = "asterisk"
    protocols = ("media",)
    _calls = itertools.count(1)

    def __init__(self, url: SplitResult):
        query = dict(parse_qsl(url.query))
        self._format = Format(query.get("format", "slin16"))
        self.rate = self._format.rate
        self.call_id = f"1755181212.{next(self._calls):032x}"
        self.outbox: list[tuple[int, bytes]] = []
        self._json = query.get("control") == "json"
        self._queued = 0                # frames
        self._marks: list[str] = []     # those in the queue
        self._full = False              # XOFF was sent

    def _event(self, name: str, plain: str = "", **fields) -> tuple[int, bytes]:
        """`plain`: what stands behind the name in plain text, if that is not the fields."""
        if self._json:
            return TEXT, orjson.dumps({"event": name, "channel_id": self.call_id, **fields})
        plain = plain or " ".join(f"{field}:{value}" for field, value in fields.items())
        return TEXT, f"{name} {plain}".rstrip().encode()

    def open(self) -> list[tuple[int, bytes]]:
        fields = {"connection_id": "opusagent", "channel": f"WebSocket/opusagent/{self.call_id[-12:]}",
                  "channel_id": self.call_id, "format": self._format.name, "optimal_frame_size": self._format.frame,
                  "ptime": PTIME_MS}
        return [self._event("MEDIA_START", **fields, **({"channel_variables": {}} if self._json else {}))]

    def audio(self, pcm) -> tuple[int, bytes]:
        """Each is a beat of the channel's timer, which takes a frame from the queue."""
        if self._full and self._queued < XON:
            self._full = False
            self.outbox.append(self._event("MEDIA_XON"))
        self._queued = max(0, self._queued - 1)
        return BINARY, self._format.channel.encode(pcm)

    def dtmf(self, digit: str) -> tuple[int, bytes]:
        return self._event("DTMF_END", f"digit:{digit} channel_id:{self.call_id}", digit=digit)

    def mark(self, name: str) -> tuple[int, bytes] | None:
        """None for one that was flushed."""
        if name not in self._marks:
            return None
        self._marks.remove(name)
        return self._event("MEDIA_MARK_PROCESSED", name, correlation_id=name)

    def stop(self) -> None:
        """The end of the socket says it."""
        return None

    def receive(self, opcode: int, payload) -> Audio | Mark | Clear | Stop | None:
        if opcode == BINARY:
            return self._play(payload)
        if len(payload) > MAX_COMMAND:
            raise ProtocolError(1008, f"asterisk: a command of more than {MAX_COMMAND} bytes would be ignored")
        if self._json:
            message = parse(payload, self.name)
            return self._obey(text_of(message.get("command")), text_of(message.get("correlation_id")))
        name, _, argument = str(payload, "utf-8", "replace").strip().partition(" ")
        return self._obey(name, argument)

    def _play(self, payload) -> Audio | None:
        if len(payload) % self._format.frame:
            raise ProtocolError(1008, f"asterisk: {len(payload)} bytes are no frames of {self._format.frame}; "
                                      "the rest would be lost")
        if self._queued >= QUEUE:
            raise ProtocolError(1008, f"asterisk: {QUEUE} frames wait, more would be lost")
        self._queued += len(payload) // self._format.frame
        if self._queued >= XOFF and not self._full:
            self._full = True
            self.outbox.append(self._event("MEDIA_XOFF"))
        return self._format.channel.decode(payload)

    def _obey(self, command: str, argument: str) -> Mark | Clear | Stop:
        match command:
            case "MARK_MEDIA":
                self._marks.append(argument)
                return Mark(argument)
            case "FLUSH_MEDIA":
                self._queued = 0
                self._marks.clear()
                return Clear()
            case "HANGUP":
                return Stop()
        raise ProtocolError(1008, f"asterisk: {command[:30]!r} is no command that this caller expects")
