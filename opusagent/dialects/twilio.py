"""Twilio Media Streams, bidirectional (<Connect><Stream>), and those who copied it.  Not ConversationRelay.

JSON text messages with audio in base64: mu-law at 8 kHz, as Twilio sends, or the 16-bit samples of some who copied it
(Exotel's Voicebot, 2600Hz's Pivot), at the rate that `start` says.  What is said of the format there can be overruled,
for copies that say something else: ?format=mulaw or ?format=l16.  Twilio buffers what it is sent and owns the clock.
A usual media message is read in one pass by the compiled module; what that will not touch is read here, to the same
result.  Tolerant where clones differ: numbers as text and the reverse, snake_case names, no streamSid, missing padding.
Uncertain: the byte order of Pivot's samples (little-endian here, as Exotel documents its own).
The rule: only what makes audio impossible ends a call; a message that comes at the wrong time, or that says nothing we
know, is ignored and counted.
"""
import itertools
from urllib.parse import SplitResult, parse_qsl

import orjson

from .. import ProtocolError
from .._fastpath import MediaIn, MediaOut
from . import (TEXT, Audio, Clear, Dialect, Dtmf, Mark, Marks, PlatformSide, Start, Stop, digit_of, facts_of, parse,
               text_of)
from .payload import L16, PCMU, Payload, part

NAMES = {                                   # of the encodings; "base64" is Exotel's word for its samples
    PCMU: ("audio/x-mulaw", "audio/mulaw", "mulaw", "ulaw", "audio/pcmu", "pcmu"),
    L16: ("audio/l16", "audio/x-l16", "l16", "audio/pcm", "pcm", "audio/slin", "raw/slin", "slin", "base64"),
}
RATES = {PCMU: ("8000",), L16: ("8000", "16000", "24000")}      # Hz
FORMATS = {"mulaw": PCMU, "l16": L16}       # in the URL
SAMPLES_MS = 100            # Exotel wants messages of so much at least, of its 16-bit samples
PIECE = 160                                 # samples: Exotel plays multiples of it
AFTER_PAYLOAD = b'"}}'
ACCOUNT = "AC" + "0" * 32                   # of the simulated caller


def field(message: dict, *names: str):
    """The value under the first of `names` that is there; None if none is."""
    return next((message[name] for name in names if name in message), None)


def format_asked(query: dict[str, str]) -> str:
    """The encoding that the URL says, or ""; ProtocolError(400) for one that we do not know."""
    name = query.get("format", "")
    if name and name not in FORMATS:
        raise ProtocolError(400, f"The format is one of {', '.join(FORMATS)}, not {name[:20]!r}.")
    return FORMATS.get(name, "")


def format_of(described, asked: str = "") -> tuple[str, int]:
    """(encoding, Hz) of a mediaFormat, mu-law where there is none; ProtocolError(1008) for what we cannot read.

    `asked`: the encoding that it is, whatever it is called there.
    """
    if not isinstance(described, dict):
        return asked or PCMU, 8000
    named, _, parameters = text_of(field(described, "encoding") or NAMES[PCMU][0]).lower().partition(";")
    encoding = asked or next((each for each, names in NAMES.items() if named.strip() in names), "")
    rate = text_of(field(described, "sampleRate", "sample_rate") or parameters.strip().removeprefix("rate=") or 8000)
    channels = text_of(field(described, "channels") or 1)
    if channels != "1" or rate not in RATES.get(encoding, ()):
        raise ProtocolError(1008, "twilio: audio is mu-law at 8000 Hz or L16 at 8000, 16000 or 24000, mono, "
                                  f"not {named[:20]} at {rate[:10]}")
    return encoding, int(rate)


class Twilio(Dialect):
    """Twilio Media Streams: mu-law at 8 kHz in JSON.  SignalWire, Fonoster, Exotel and other copies of it, too."""

    __slots__ = ("rate", "message_ms", "ignored", "outbox", "_asked", "_payload", "_marks", "_live", "_over",
                 "_stream", "_before_payload")
    name = "twilio"
    lead_ms = 100
    opcode = TEXT
    max_message = 64 << 10

    def __init__(self, query: dict[str, str]):
        self._asked = format_asked(query)
        self._agree(self._asked or PCMU, 8000)
        self.ignored = 0
        self.outbox: list[tuple[int, bytes]] = []
        self._marks = Marks()
        self._live = False              # between start and stop
        self._over = False              # after stop
        self._address({})

    def _agree(self, encoding: str, rate: int) -> None:
        """From now on audio is of this encoding, both ways."""
        self._payload, self.rate = Payload(encoding), rate
        self.message_ms = SAMPLES_MS if encoding == L16 else 20

    def _address(self, stream: dict[str, str]) -> None:
        """From now on messages go to this stream: {} or {"streamSid" or "stream_sid": ...}."""
        self._stream = stream
        head = orjson.dumps({"event": "media", **stream, "media": {"payload": ""}})
        self._before_payload = head[:-len(AFTER_PAYLOAD)]

    @property
    def media_in(self) -> MediaIn | None:
        return self._payload.media_in() if self._live else None

    @property
    def media_out(self) -> MediaOut:
        return self._payload.media_out(self._before_payload, AFTER_PAYLOAD)

    def open(self) -> None:
        return None

    @classmethod
    def came(cls, opcode: int, payload) -> str | None:
        """A call whose stream has ended goes on to its next verb: where that is a <Redirect>, a new stream follows."""
        message = parse(payload, cls.name) if opcode == TEXT else {}
        if message.get("event") == "connected":
            return None
        start = message.get("start") if message.get("event") == "start" else None
        return text_of(field(start, "callSid", "call_sid")) if isinstance(start, dict) else ""

    @property
    def resumable(self) -> bool:
        return self._live

    def receive(self, opcode: int, payload) -> Start | Audio | Dtmf | Mark | Stop | None:
        if opcode != TEXT:
            raise ProtocolError(1003, "twilio: messages are text")
        if self._live and (audio := self._payload.audible.media(payload)) is not None:
            return audio                        # as nearly always
        message = parse(payload, self.name)
        event = self._read(message)
        self.ignored += event is None and message.get("event") != "connected"
        return event

    def _read(self, message: dict) -> Start | Audio | Dtmf | Mark | Stop | None:
        name = message.get("event")
        if name == "start" and not self._live and not self._over:
            return self._start(message)
        if name == "media" and self._live:
            return self._media(part(message, "media", self.name))
        if name == "dtmf" and self._live:
            digit = digit_of(part(message, "dtmf", self.name).get("digit"))
            return Dtmf(digit) if digit else None
        if name == "mark" and self._live:
            return self._marks.echoed(text_of(part(message, "mark", self.name).get("name")))
        if name == "stop" and self._live:
            self._live, self._over = False, True
            return Stop()
        return None

    def _start(self, message: dict) -> Start:
        start = part(message, "start", self.name)
        self._agree(*format_of(field(start, "mediaFormat", "media_format"), self._asked))
        for spelling in ("streamSid", "stream_sid"):
            if stream := text_of(message.get(spelling, start.get(spelling))):
                self._address({spelling: stream})
                break
        self._live = True
        call_id = text_of(field(start, "callSid", "call_sid"))
        parties = {name: text for name in ("from", "to") if (text := text_of(start.get(name)))}
        return Start(call_id, parties | facts_of(field(start, "customParameters", "custom_parameters")),
                     text_of(field(start, "accountSid", "account_sid")))

    def _media(self, media: dict) -> Audio | None:
        """Inbound only: with both tracks we should hear ourselves."""
        if media.get("track", "inbound") not in ("inbound", "inbound_track"):
            return None
        return self._payload.decode(media.get("payload"), self.name)

    def audio(self, pcm) -> bytes:
        return self._payload.message(self._before_payload, pcm, AFTER_PAYLOAD)

    def mark(self, name: str) -> bytes:
        self._marks.sent(name)
        return orjson.dumps({"event": "mark", **self._stream, "mark": {"name": name}})

    def clear(self) -> bytes:
        self._marks.clear()
        return orjson.dumps({"event": "clear", **self._stream})

    def stop(self) -> None:
        """There is no such message: closing the socket goes on to the next TwiML verb, or hangs up."""
        return None


class TwilioCaller(PlatformSide):
    """Twilio's side of a stream; with ?exotel=8000 (or 16000, 24000) Exotel's: 16-bit samples at that rate, in messages
    of 100 ms.  Stricter than both, which only warn, or play badly: what they would not play ends the call."""

    __slots__ = ("rate", "call_id", "stream", "_exotel", "_payload", "_player", "_number", "_chunk", "_samples",
                 "_held", "_sid")
    name = "twilio"
    _calls = itertools.count(1)

    def __init__(self, url: SplitResult):
        asked = dict(parse_qsl(url.query)).get("exotel", "")
        if asked and asked not in RATES[L16]:
            raise ProtocolError(400, f"exotel is one of {', '.join(RATES[L16])} Hz, not {asked[:20]!r}.")
        self._exotel = bool(asked)
        self.rate = int(asked or 8000)
        self._payload, self._player = (Payload(L16 if asked else PCMU) for _ in range(2))
        number = next(self._calls)
        self.call_id = f"{'' if asked else 'CA'}{number:032x}"
        self.stream = f"{'' if asked else 'MZ'}{number:032x}"
        self._sid = "stream_sid" if asked else "streamSid"
        self._number = 0        # sequenceNumber of the last message
        self._chunk = 0         # media messages sent
        self._samples = 0       # in them
        self._held = b""        # of the message that is being filled, Exotel's

    def _message(self, event: str, content: dict) -> tuple[int, bytes]:
        self._number += 1
        number = "sequence_number" if self._exotel else "sequenceNumber"
        return TEXT, orjson.dumps({"event": event, number: str(self._number), event: content, self._sid: self.stream})

    def open(self) -> list[tuple[int, bytes]]:
        if self._exotel:
            start = {"account_sid": "account", "stream_sid": self.stream, "call_sid": self.call_id, "from": "+15550100",
                     "to": "+15550199", "custom_parameters": {},
                     "media_format": {"encoding": "base64", "sample_rate": str(self.rate), "bit_rate": "128kbps"}}
            return [(TEXT, b'{"event":"connected"}'), self._message("start", start)]
        start = {"accountSid": ACCOUNT, "streamSid": self.stream, "callSid": self.call_id, "tracks": ["inbound"],
                 "mediaFormat": {"encoding": NAMES[PCMU][0], "sampleRate": 8000, "channels": 1}, "customParameters": {}}
        return [(TEXT, b'{"event":"connected","protocol":"Call","version":"1.0.0"}'), self._message("start", start)]

    def again(self) -> list[tuple[int, bytes]]:
        """The call has gone on to a <Redirect>, which leads to another stream."""
        self.stream = f"{self.stream[:-32]}{next(self._calls):032x}"
        self._number = self._chunk = self._samples = 0
        return self.open()

    def audio(self, pcm) -> tuple[int, bytes] | None:
        if not self._exotel:
            return self._media(pcm)
        self._held += bytes(pcm)
        if len(self._held) * 1000 < 2 * SAMPLES_MS * self.rate:
            return None
        held, self._held = self._held, b""
        return self._media(memoryview(held).cast("h"))

    def _media(self, pcm) -> tuple[int, bytes]:
        self._number += 1
        self._chunk += 1
        timestamp = self._samples * 1000 // self.rate
        self._samples += len(pcm)
        number, track = ("sequence_number", "") if self._exotel else ("sequenceNumber", '"track":"inbound",')
        before = (f'{{"event":"media","{number}":"{self._number}","media":{{{track}'
                  f'"chunk":"{self._chunk}","timestamp":"{timestamp}","payload":"')
        return TEXT, self._payload.message(before.encode(), pcm, f'"}},"{self._sid}":"{self.stream}"}}'.encode())

    def dtmf(self, digit: str) -> tuple[int, bytes]:
        return self._message("dtmf", {"digit": digit, "duration": "250"} if self._exotel else
                             {"track": "inbound_track", "digit": digit})

    def mark(self, name: str) -> tuple[int, bytes]:
        return self._message("mark", {"name": name})

    def stop(self) -> tuple[int, bytes]:
        if self._exotel:
            return self._message("stop", {"call_sid": self.call_id, "account_sid": "account", "reason": "callended"})
        return self._message("stop", {"accountSid": ACCOUNT, "callSid": self.call_id})

    def receive(self, opcode: int, payload) -> Audio | Mark | Clear:
        if opcode != TEXT:
            raise ProtocolError(1003, "twilio: a binary message (Twilio's error 31950)")
        event = self._player.audible.media(payload)
        if event is None:
            message = parse(payload, self.name)
            event = self._read(message) if message.get(self._sid) == self.stream else None
        if event is None or isinstance(event, Audio) and self._exotel and len(event.pcm) % PIECE:
            raise ProtocolError(1008, "twilio: a message that Twilio would ignore (its warning 31951), or Exotel spoil")
        return event

    def _read(self, message: dict) -> Audio | Mark | Clear | None:
        match message:
            case {"event": "media", "media": {"payload": payload}}:
                return self._player.decode(payload, self.name)
            case {"event": "mark", "mark": {"name": str(name)}}:
                return Mark(name)
            case {"event": "clear"}:
                return Clear()
        return None
