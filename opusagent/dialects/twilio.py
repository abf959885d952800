"""Twilio Media Streams, bidirectional (<Connect><Stream>), and those who copied it.  Not ConversationRelay.

JSON text messages; audio is mu-law at 8 kHz in base64.  Twilio buffers what it is sent and owns the clock.  A usual
media message is read in one pass by the compiled module; what that will not touch is read here, to the same result.
Tolerant where clones differ: numbers as text and the reverse, snake_case names, no streamSid, missing padding.
The rule: only what makes audio impossible ends a call; a message that comes at the wrong time, or that says nothing we
know, is ignored and counted.
"""
import binascii
import itertools
from urllib.parse import SplitResult

import orjson

from .. import ProtocolError
from .._fastpath import twilio_media, twilio_message, ulaw_decode
from . import TEXT, Audible, Audio, Clear, Dtmf, Mark, Marks, Start, Stop, digit_of, facts_of, parse, text_of

ROOM = 1600                 # samples that are taken without new memory: 200 ms, ten usual messages
MULAW = ("audio/x-mulaw", "audio/mulaw", "mulaw", "ulaw", "audio/pcmu", "pcmu")
AFTER_PAYLOAD = b'"}}'
ACCOUNT = "AC" + "0" * 32   # of the simulated caller


def field(message: dict, *names: str):
    """The value under the first of `names` that is there; None if none is."""
    return next((message[name] for name in names if name in message), None)


def part(message: dict, name: str) -> dict:
    """The object that an event carries under its own name."""
    value = message.get(name)
    if not isinstance(value, dict):
        raise ProtocolError(1007, f'twilio: "{name}" is not an object')
    return value


def check_format(described) -> None:
    """ProtocolError(1008) unless a mediaFormat, where there is one, is mu-law, 8000 Hz, one channel."""
    if not isinstance(described, dict):
        return
    encoding = field(described, "encoding") or MULAW[0]
    rate = field(described, "sampleRate", "sample_rate") or 8000
    channels = field(described, "channels") or 1
    if (text_of(encoding).lower(), text_of(rate), text_of(channels)) not in ((name, "8000", "1") for name in MULAW):
        raise ProtocolError(1008, f"twilio: audio is mu-law at 8000 Hz in one channel here, "
                                  f"not {str(encoding)[:30]} at {str(rate)[:10]} Hz in {str(channels)[:10]}")


def decode_payload(payload, audible: Audible) -> Audio | None:
    """Base64 of mu-law, padded or not, with bits left over or not; None of no samples."""
    if not isinstance(payload, str):
        raise ProtocolError(1007, "twilio: a payload is not text")
    try:
        codes = binascii.a2b_base64(payload + "=" * (-len(payload) % 4), strict_mode=True)
    except ValueError:      # binascii.Error is one
        raise ProtocolError(1007, "twilio: a payload is not base64") from None
    if len(codes) > len(audible.pcm):
        audible.reserve(len(codes))
    return audible.first(ulaw_decode(codes, audible.pcm)) if codes else None


class Twilio:
    """Twilio Media Streams: mu-law at 8 kHz in JSON.  SignalWire, Fonoster and other copies of it, too."""

    __slots__ = ("ignored", "outbox", "_audible", "_marks", "_live", "_over", "_stream", "_before_payload")
    name = "twilio"
    opcode = TEXT
    rate = 8000
    lead_ms = 100
    max_message = 64 << 10

    def __init__(self, query: dict[str, str]):
        self.ignored = 0
        self.outbox: list[tuple[int, bytes]] = []
        self._audible = Audible(ROOM)
        self._marks = Marks()
        self._live = False              # between start and stop
        self._over = False              # after stop
        self._address({})

    def _address(self, stream: dict[str, str]) -> None:
        """From now on messages go to this stream: {} or {"streamSid" or "stream_sid": ...}."""
        self._stream = stream
        head = orjson.dumps({"event": "media", **stream, "media": {"payload": ""}})
        self._before_payload = head[:-len(AFTER_PAYLOAD)]

    def open(self) -> None:
        return None

    def receive(self, opcode: int, payload) -> Start | Audio | Dtmf | Mark | Stop | None:
        if opcode != TEXT:
            raise ProtocolError(1003, "twilio: messages are text")
        if self._live:
            samples = twilio_media(payload, self._audible.pcm)
            if samples > 0:
                return self._audible.first(samples)
        message = parse(payload, self.name)
        event = self._read(message)
        self.ignored += event is None and message.get("event") != "connected"
        return event

    def _read(self, message: dict) -> Start | Audio | Dtmf | Mark | Stop | None:
        name = message.get("event")
        if name == "start" and not self._live and not self._over:
            return self._start(message)
        if name == "media" and self._live:
            return self._media(part(message, "media"))
        if name == "dtmf" and self._live:
            digit = digit_of(part(message, "dtmf").get("digit"))
            return Dtmf(digit) if digit else None
        if name == "mark" and self._live:
            return self._marks.echoed(text_of(part(message, "mark").get("name")))
        if name == "stop" and self._live:
            self._live, self._over = False, True
            return Stop()
        return None

    def _start(self, message: dict) -> Start:
        start = part(message, "start")
        check_format(field(start, "mediaFormat", "media_format"))
        for spelling in ("streamSid", "stream_sid"):
            if stream := text_of(message.get(spelling, start.get(spelling))):
                self._address({spelling: stream})
                break
        self._live = True
        call_id = text_of(field(start, "callSid", "call_sid"))
        return Start(call_id, facts_of(field(start, "customParameters", "custom_parameters")),
                     text_of(field(start, "accountSid", "account_sid")))

    def _media(self, media: dict) -> Audio | None:
        """Inbound only: with both tracks we should hear ourselves."""
        if media.get("track", "inbound") not in ("inbound", "inbound_track"):
            return None
        return decode_payload(media.get("payload"), self._audible)

    def audio(self, pcm) -> bytes:
        return twilio_message(self._before_payload, pcm, AFTER_PAYLOAD)

    def mark(self, name: str) -> bytes:
        self._marks.sent(name)
        return orjson.dumps({"event": "mark", **self._stream, "mark": {"name": name}})

    def clear(self) -> bytes:
        self._marks.clear()
        return orjson.dumps({"event": "clear", **self._stream})

    def stop(self) -> None:
        """There is no such message: closing the socket goes on to the next TwiML verb, or hangs up."""
        return None


class TwilioCaller:
    """Twilio's side of a stream.  Stricter than Twilio, which only warns: what it would not play ends the call."""

    __slots__ = ("call_id", "stream", "_audible", "_number", "_chunk", "_samples")
    name = "twilio"
    rate = 8000
    _calls = itertools.count(1)

    def __init__(self, url: SplitResult):
        number = next(self._calls)
        self.call_id = f"CA{number:032x}"
        self.stream = f"MZ{number:032x}"
        self._audible = Audible(ROOM)
        self._number = 0        # sequenceNumber of the last message
        self._chunk = 0         # media messages sent
        self._samples = 0       # in them

    def _message(self, event: str, content: dict) -> tuple[int, bytes]:
        self._number += 1
        return TEXT, orjson.dumps({"event": event, "sequenceNumber": str(self._number), event: content,
                                   "streamSid": self.stream})

    def open(self) -> list[tuple[int, bytes]]:
        start = {"accountSid": ACCOUNT, "streamSid": self.stream, "callSid": self.call_id, "tracks": ["inbound"],
                 "mediaFormat": {"encoding": MULAW[0], "sampleRate": 8000, "channels": 1}, "customParameters": {}}
        return [(TEXT, b'{"event":"connected","protocol":"Call","version":"1.0.0"}'), self._message("start", start)]

    def audio(self, pcm) -> tuple[int, bytes]:
        self._number += 1
        self._chunk += 1
        timestamp = self._samples // 8
        self._samples += len(pcm)
        before = (f'{{"event":"media","sequenceNumber":"{self._number}","media":{{"track":"inbound",'
                  f'"chunk":"{self._chunk}","timestamp":"{timestamp}","payload":"')
        return TEXT, twilio_message(before.encode(), pcm, f'"}},"streamSid":"{self.stream}"}}'.encode())

    def dtmf(self, digit: str) -> tuple[int, bytes]:
        return self._message("dtmf", {"track": "inbound_track", "digit": digit})

    def mark(self, name: str) -> tuple[int, bytes]:
        return self._message("mark", {"name": name})

    def stop(self) -> tuple[int, bytes]:
        return self._message("stop", {"accountSid": ACCOUNT, "callSid": self.call_id})

    def receive(self, opcode: int, payload) -> Audio | Mark | Clear:
        if opcode != TEXT:
            raise ProtocolError(1003, "twilio: a binary message (Twilio's error 31950)")
        samples = twilio_media(payload, self._audible.pcm)
        if samples > 0:
            return self._audible.first(samples)
        message = parse(payload, self.name)
        event = None
        if message.get("streamSid") == self.stream:
            event = self._read(message)
        if event is None:
            raise ProtocolError(1008, "twilio: a message that Twilio would ignore (its warning 31951)")
        return event

    def _read(self, message: dict) -> Audio | Mark | Clear | None:
        match message:
            case {"event": "media", "media": {"payload": payload}}:
                return decode_payload(payload, self._audible)
            case {"event": "mark", "mark": {"name": str(name)}}:
                return Mark(name)
            case {"event": "clear"}:
                return Clear()
        return None
