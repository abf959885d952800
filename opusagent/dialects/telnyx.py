"""Telnyx Media Streaming, bidirectional in its mode `rtp`.  Twilio's shape in snake_case, in three encodings.

ws://HOST:PORT/ws/telnyx[/<agent>][?codec=PCMA][&l16=big][&hang_up=yes]

The encoding we hear is what `start` says; it follows the telephone network and differs from call to call.  The one we
send is what Telnyx was told (stream_bidirectional_codec) and never tells us: PCMU, its default, unless `codec` says
otherwise; L16 where we hear L16.  Both have one rate.  Messages may arrive out of order: a gap in media.chunk holds the
later ones back until it is filled, or WINDOW of them have come; a stream in order waits for nothing.
Uncertain: the bytes of L16 (little-endian here, as most who have tried say; `l16=big` for the order of RFC 3551);
whether chunk counts from 1; what a clear does to a mark whose echo is on its way.  G722, OPUS and AMR-WB are refused.
The rule: only what makes audio impossible ends a call; anything else is ignored and counted; an `error` is told on.
"""
import itertools
from urllib.parse import SplitResult, parse_qsl

import orjson

from .. import ProtocolError
from .._fastpath import MediaIn, MediaOut
from . import (SENTENCE, TEXT, Audible, Audio, Clear, Complaint, Dialect, Dtmf, Mark, Marks, PlatformSide, Start, Stop,
               digit_of, facts_of, number_of, parse, text_of)
from .payload import L16, PCMA, PCMU, ROOM, Payload, part

ENCODINGS = {PCMU: (8000,), PCMA: (8000,), L16: (8000, 16000, 24000, 48000)}       # and the rates of each, Hz
WINDOW = 3                  # messages that are held back for one that is missing
FAR = 50                    # a chunk that is so far from the expected one begins another count
BEFORE_PAYLOAD, AFTER_PAYLOAD = b'{"event":"media","media":{"payload":"', b'"}}'
CLEAR = b'{"event":"clear"}'
SHORTEST_MS, LONGEST_MS = 20, 30_000        # of a message that Telnyx plays


def query_of(query: dict[str, str]) -> tuple[str, bool]:
    """(the codec or "", whether L16 is big-endian); ProtocolError(400) for what we do not know."""
    codec, order = query.get("codec", "").upper(), query.get("l16", "little")
    if codec and codec not in ENCODINGS:
        raise ProtocolError(400, f"The codec is one of {', '.join(ENCODINGS)}, not {codec[:20]!r}.")
    if order not in ("little", "big"):
        raise ProtocolError(400, f"l16 is little or big, not {order[:20]!r}.")
    return codec, order == "big"


def format_of(described) -> tuple[str, int]:
    """(encoding, Hz) of a media_format; ProtocolError(1008) for audio that we cannot read."""
    if not isinstance(described, dict):
        return PCMU, 8000
    encoding = text_of(described.get("encoding", PCMU)).upper()
    rate = text_of(described.get("sample_rate", 8000))
    channels = text_of(described.get("channels", 1))
    if channels != "1" or rate not in map(str, ENCODINGS.get(encoding, ())):
        raise ProtocolError(1008, f"telnyx: audio is PCMU, PCMA or L16 in one channel here, "
                                  f"not {encoding[:20]} at {rate[:10]} Hz in {channels[:10]}")
    return encoding, int(rate)


def named(parameters):
    """custom_parameters as one object, which they are in `start`; in the command they are a list of name and value."""
    if not isinstance(parameters, list):
        return parameters
    return {each["name"]: each.get("value") for each in parameters
            if isinstance(each, dict) and isinstance(each.get("name"), str)}


def complaint_of(told) -> Complaint:
    """Of what stands in an `error`."""
    told = told if isinstance(told, dict) else {}
    parts = [text for name in ("title", "detail") if (text := text_of(told.get(name)))]
    return Complaint(": ".join(parts)[:SENTENCE], text_of(told.get("code"))[:20])


class Order:
    """Audio by the number of its chunk; what comes too early is kept a while."""

    __slots__ = ("due", "held")

    def __init__(self):
        self.due = 1                        # the number that comes next
        self.held: dict[int, bytes] = {}    # later chunks that came before it

    def follows(self, chunk: int) -> bool:
        """True where this chunk (-1: it has no number) is heard at once, as nearly always; it has come, then."""
        if chunk == self.due and not self.held:
            self.due = chunk + 1
            return True
        return chunk < 0

    def push(self, chunk: int, pcm: memoryview) -> list[bytes] | None:
        """What can be heard now that this chunk has come, in order; None: we had it, or went on without it."""
        held = self.held
        if chunk in held or self.due - FAR <= chunk < self.due:
            return None
        if abs(chunk - self.due) > FAR:
            due = [*self._release(), bytes(pcm)]
            self.due = chunk + 1
            return due
        held[chunk] = bytes(pcm)
        due = []
        while self.due in held:
            due.append(held.pop(self.due))
            self.due += 1
        if len(held) >= WINDOW or (chunk in held and len(pcm) > ROOM):
            due += self._release()
        return due

    def _release(self) -> list[bytes]:
        """Everything that is held; what is missing is not waited for any longer."""
        chunks = sorted(self.held)
        due = [self.held.pop(chunk) for chunk in chunks]
        if chunks:
            self.due = chunks[-1] + 1
        return due


class Telnyx(Dialect):
    """Telnyx Media Streaming: PCMU, PCMA or L16 in JSON, put back into order."""

    __slots__ = ("rate", "ignored", "outbox", "hangs_up", "_codec", "_big_endian", "_heard", "_said", "_order",
                 "_joined", "_marks", "_live", "_over")
    name = "telnyx"
    opcode = TEXT
    lead_ms = 100
    max_message = 64 << 10

    def __init__(self, query: dict[str, str]):
        self._codec, self._big_endian = query_of(query)
        self.hangs_up = query.get("hang_up") == "yes"   # the call is to end with the flow, by Telnyx's interface
        self.rate = 8000
        self.ignored = 0
        self.outbox: list[tuple[int, bytes]] = []
        self._heard = self._said = Payload(PCMU)
        self._order = Order()
        self._joined = Audible(0)       # for chunks that are heard together
        self._marks = Marks()
        self._live = False              # between start and stop
        self._over = False              # after stop

    def open(self) -> None:
        return None

    @property
    def media_in(self) -> MediaIn | None:
        return self._heard.media_in(passes=self._order.follows) if self._live else None

    @property
    def media_out(self) -> MediaOut:
        return self._said.media_out(BEFORE_PAYLOAD, AFTER_PAYLOAD)

    def receive(self, opcode: int, payload) -> Start | Audio | Dtmf | Mark | Complaint | Stop | None:
        if opcode != TEXT:
            raise ProtocolError(1003, "telnyx: messages are text")
        if self._live and (audio := (audible := self._heard.audible).media(payload)) is not None:
            chunk = audible.chunk
            return audio if self._order.follows(chunk) else self._in_order(chunk, audio)
        message = parse(payload, self.name)
        name = message.get("event")
        if name == "media" and self._live:
            return self._media(part(message, "media", self.name))
        event = self._read(name, message)
        self.ignored += event is None and name != "connected"
        return event

    def _media(self, media: dict) -> Audio | None:
        """Inbound only: with both tracks we should hear ourselves."""
        if media.get("track", "inbound") in ("inbound", "inbound_track"):
            audio = self._heard.decode(media.get("payload"), self.name)
            if audio is not None:
                chunk = number_of(media.get("chunk"))
                return audio if chunk is None else self._in_order(chunk, audio)
        self.ignored += 1
        return None

    def _in_order(self, chunk: int, audio: Audio) -> Audio | None:
        due = self._order.push(chunk, audio.pcm)
        self.ignored += due is None
        return self._join(b"".join(due)) if due else None

    def _join(self, pcm: bytes) -> Audio:
        if len(pcm) > len(self._joined.memory):
            self._joined.reserve(len(pcm) // 2)
        self._joined.memory[:len(pcm)] = pcm
        return self._joined.first(len(pcm) // 2)

    def _read(self, name, message: dict) -> Start | Dtmf | Mark | Complaint | Stop | None:
        if name == "start" and not self._live and not self._over:
            return self._start(part(message, "start", self.name))
        if name == "dtmf" and self._live:
            digit = digit_of(part(message, "dtmf", self.name).get("digit"))
            return Dtmf(digit) if digit else None
        if name == "mark" and self._live:
            return self._marks.echoed(text_of(part(message, "mark", self.name).get("name")))
        if name == "error" and self._live:
            return complaint_of(message.get("payload"))
        if name == "stop" and self._live:
            self._live, self._over = False, True
            return Stop()
        return None

    def _start(self, start: dict) -> Start:
        encoding, self.rate = format_of(start.get("media_format"))
        codec = self._codec or (L16 if encoding == L16 else PCMU)
        if self.rate not in ENCODINGS[codec]:
            raise ProtocolError(1008, f"telnyx: {codec} cannot be sent where {encoding} at {self.rate} Hz is heard")
        self._heard, self._said = Payload(encoding, self._big_endian), Payload(codec, self._big_endian)
        self._live = True
        parties = {name: text for name in ("from", "to") if (text := text_of(start.get(name)))}
        return Start(text_of(start.get("call_control_id")), parties | facts_of(named(start.get("custom_parameters"))),
                     text_of(start.get("user_id")))

    def audio(self, pcm) -> bytes:
        return self._said.message(BEFORE_PAYLOAD, pcm, AFTER_PAYLOAD)

    def mark(self, name: str) -> bytes:
        self._marks.sent(name)
        return orjson.dumps({"event": "mark", "mark": {"name": name}})

    def clear(self) -> bytes:
        self._marks.clear()
        return CLEAR

    def stop(self) -> None:
        """There is no such message: closing the socket ends the streaming, the REST command `hangup` the call."""
        return None


class TelnyxCaller(PlatformSide):
    """Telnyx's side of a stream: ?codec=PCMU (default), PCMA or L16, &rate= of L16 (16000), and &disorder=N, with which
    every Nth frame comes after its successor, and the one before it twice."""

    __slots__ = ("rate", "call_id", "stream", "outbox", "_payload", "_number", "_chunk", "_samples", "_disorder",
                 "_last", "_kept")
    name = "telnyx"
    _calls = itertools.count(1)

    def __init__(self, url: SplitResult):
        query = dict(parse_qsl(url.query))
        codec, big_endian = query_of(query)
        encoding = codec or PCMU
        _, self.rate = format_of({"encoding": encoding,
                                  "sample_rate": query.get("rate", 16000 if encoding == L16 else 8000)})
        number = next(self._calls)
        self.call_id = f"v3:{number:032x}"
        self.stream = f"{number:032x}"
        self.outbox: list[tuple[int, bytes]] = []
        self._payload = Payload(encoding, big_endian)
        self._number = 0        # sequence_number of the last message
        self._chunk = 0         # media messages so far
        self._samples = 0       # in them
        self._disorder = number_of(query.get("disorder")) or 0
        self._last = self._kept = (TEXT, b"")   # the frame before, and the one that is to come late

    def _message(self, event: str, content: dict) -> tuple[int, bytes]:
        self._number += 1
        return TEXT, orjson.dumps({"event": event, "sequence_number": str(self._number), event: content,
                                   "stream_id": self.stream})

    def open(self) -> list[tuple[int, bytes]]:
        media_format = {"encoding": self._payload.encoding, "sample_rate": self.rate, "channels": 1}
        start = {"user_id": "user", "call_control_id": self.call_id, "call_session_id": self.stream,
                 "from": "+15550100", "to": "+15550199", "custom_parameters": {}, "media_format": media_format}
        return [(TEXT, b'{"event":"connected","version":"1.0.0"}'), self._message("start", start)]

    def audio(self, pcm) -> tuple[int, bytes]:
        message = self._media(pcm)
        if self._disorder > 1 and self._chunk % self._disorder == 0:
            message, self._kept = self._last, message
        elif self._disorder > 1 and self._chunk % self._disorder == 1 and self._chunk > 1:
            self.outbox.append(self._kept)
        self._last = message
        return message

    def _media(self, pcm) -> tuple[int, bytes]:
        self._number += 1
        self._chunk += 1
        timestamp = self._samples * 1000 // self.rate
        self._samples += len(pcm)
        before = (f'{{"event":"media","sequence_number":"{self._number}","media":{{"track":"inbound",'
                  f'"chunk":"{self._chunk}","timestamp":"{timestamp}","payload":"')
        return TEXT, self._payload.message(before.encode(), pcm, f'"}},"stream_id":"{self.stream}"}}'.encode())

    def dtmf(self, digit: str) -> tuple[int, bytes]:
        return self._message("dtmf", {"digit": digit})

    def mark(self, name: str) -> tuple[int, bytes]:
        return self._message("mark", {"name": name})

    def stop(self) -> tuple[int, bytes]:
        return self._message("stop", {"user_id": "user", "call_control_id": self.call_id})

    def receive(self, opcode: int, payload) -> Audio | Mark | Clear:
        if opcode != TEXT:
            raise ProtocolError(1003, "telnyx: a binary message")
        if (audio := self._payload.audible.media(payload)) is not None:
            return self._playable(audio)
        match parse(payload, self.name):
            case {"event": "media", "media": {"payload": text}}:
                return self._playable(self._payload.decode(text, self.name))
            case {"event": "mark", "mark": {"name": str(name)}}:
                return Mark(name)
            case {"event": "clear"}:
                return Clear()
        raise ProtocolError(1008, "telnyx: a message that Telnyx would answer with its error malformed_frame")

    def _playable(self, audio: Audio | None) -> Audio:
        if audio is None or not SHORTEST_MS * self.rate <= len(audio.pcm) * 1000 <= LONGEST_MS * self.rate:
            raise ProtocolError(1008, "telnyx: a message is of 20 ms to 30 s of audio")
        return audio
