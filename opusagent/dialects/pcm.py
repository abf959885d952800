"""Plain PCM: binary messages are audio, text messages are JSON.  The dialect to use when you may choose; it is ours.

ws://HOST:PORT/ws/pcm[/<agent>]?rate=16000      8000, 16000 (default), 24000 or 48000, both ways

    audio, both ways        binary, 16-bit little-endian mono, messages of any length (20 ms are best); half a sample at
                            the end of one waits for the next
    client -> server        {"event":"dtmf","digit":"5"}
                            {"event":"mark","name":"..."}   everything before that mark has been played, or cleared
                            {"event":"end"}                 the caller has hung up
                            {"event":"start","call_id":"...","facts":{...}}     only with ?start=message, see below
    server -> client        {"event":"mark","name":"..."}   to be sent back when all audio before it has been played
                            {"event":"clear"}               drop what is not yet played, send its marks back at once
                            {"event":"end"}                 the agent has hung up; the close follows
                            {"event":"transfer","target":"+49..."}      hand the caller over, then close
                        and with ?tell=yes what happens in the conversation: {"event":"speech","of":"caller"} while the
                        caller is heard and {"event":"silence","of":"caller"}, {"event":"hypothesis","text":"..."},
                        {"event":"recognition","text":"...","confidence":0.9}, {"event":"replying","text":"..."},
                        {"event":"receipt", and all that a receipt says}

With ?resume=SECRET, 16 to 128 letters and digits of the client's own choice, a call whose connection broke goes on
where it was when the same URL is dialled again; docs/scaling.md says for how long and where.

The call begins with the socket; its id and its facts are the query (?call_id=...&name=value&...).  With ?start=message
it begins with the first start message instead, for clients that cannot write a query or have more to say.
The rule: an unknown event is ignored, a message that is no JSON object ends the call.
"""
import itertools
from urllib.parse import SplitResult, parse_qsl

import orjson

from .. import ProtocolError
from .._fastpath import RATES, MediaIn, MediaOut, codes_of
from . import (BINARY, HYPOTHESIS, RECEIPT, RECOGNITION, REPLYING, SPEECH_STARTED, SPEECH_STOPPED, TEXT, Audio, Clear,
               Dialect, Dtmf, Mark, Marks, PlatformSide, Start, Stop, digit_of, facts_of, parse, text_of)
from .channels import Channels

CLEAR = b'{"event":"clear"}'
END = b'{"event":"end"}'
OURS = ("rate", "start", "call_id", "tell", "resume")     # of the query; all else is a fact
TOLD = {
    SPEECH_STARTED: lambda: {"event": "speech", "of": "caller"},
    SPEECH_STOPPED: lambda: {"event": "silence", "of": "caller"},
    HYPOTHESIS: lambda text: {"event": "hypothesis", "text": text},
    RECOGNITION: lambda text, confidence, span: {"event": "recognition", "text": text,
                                                 "confidence": round(confidence, 3)},
    REPLYING: lambda text: {"event": "replying", "text": text},
    RECEIPT: lambda receipt: {"event": "receipt", **receipt},
}
SHORTEST_TOKEN, LONGEST_TOKEN = 16, 128     # characters


def rate_of(query: dict[str, str]) -> int:
    text = query.get("rate", "16000")
    if text not in map(str, RATES):
        raise ProtocolError(400, f"The rate is one of {', '.join(map(str, RATES))} Hz, not {text[:20]!r}.")
    return int(text)


def token_of(query: dict[str, str]) -> str:
    """The secret by which a client may come back; "" where it cannot."""
    token = query.get("resume", "")
    if token and not (token.isascii() and token.isalnum() and SHORTEST_TOKEN <= len(token) <= LONGEST_TOKEN):
        raise ProtocolError(400, f"resume is a secret of {SHORTEST_TOKEN} to {LONGEST_TOKEN} letters and digits.")
    return token


def mark_message(name: str) -> bytes:
    return orjson.dumps({"event": "mark", "name": name})


class Pcm(Dialect):
    """Raw 16-bit samples at 8, 16, 24 or 48 kHz as binary messages: our own plain protocol."""

    __slots__ = ("rate", "ignored", "outbox", "token", "_query", "_expected", "_live", "_channel", "_marks")
    name = "pcm"
    opcode = BINARY
    lead_ms = 100
    max_message = 1 << 20       # ten seconds at 48 kHz

    def __init__(self, query: dict[str, str]):
        self.rate = rate_of(query)
        self.ignored = 0
        self.outbox: list[tuple[int, bytes]] = []
        self.token = token_of(query)
        self._query = query
        self._expected = query.get("start") == "message"    # a start message is still to come
        self._live = False                                  # between Start and Stop
        self._channel = Channels("L16")
        self._marks = Marks()

    def open(self) -> Start | None:
        if self._expected:
            return None
        self._live = True
        facts = {name: value for name, value in self._query.items() if name not in OURS}
        return Start(self._query.get("call_id", ""), facts)

    @property
    def resumable(self) -> bool:
        return self._live and bool(self.token)

    @property
    def media_in(self) -> MediaIn | None:
        return self._channel.media_in() if self._live else None

    @property
    def media_out(self) -> MediaOut:
        return self._channel.media_out()

    def receive(self, opcode: int, payload) -> Start | Audio | Dtmf | Mark | Stop | None:
        if opcode == BINARY and self._live:
            return self._channel.decode(payload)
        event = None if opcode == BINARY else self._read(parse(payload, self.name))
        self.ignored += event is None
        return event

    def _read(self, message: dict) -> Start | Dtmf | Mark | Stop | None:
        match message:
            case {"event": "start"} if self._expected:
                self._expected, self._live = False, True
                return Start(text_of(message.get("call_id")), facts_of(message.get("facts")))
            case {"event": "dtmf", "digit": value} if self._live:
                digit = digit_of(value)
                return Dtmf(digit) if digit else None
            case {"event": "mark", "name": str(name)} if self._live:
                return self._marks.echoed(name)
            case {"event": "end"} if self._live:
                self._live = False
                return Stop()
        return None

    def audio(self, pcm) -> bytes:
        return codes_of(pcm, "L16")

    def mark(self, name: str) -> bytes:
        self._marks.sent(name)
        return mark_message(name)

    def clear(self) -> bytes:
        self._marks.clear()
        return CLEAR

    def transfer(self, target: str) -> bytes:
        return orjson.dumps({"event": "transfer", "target": target})

    def stop(self) -> bytes:
        return END

    def tell(self, news: str, *details) -> None:
        if news in TOLD and self._query.get("tell") == "yes":
            self.outbox.append((TEXT, orjson.dumps(TOLD[news](*details))))


class PcmCaller(PlatformSide):
    """A client of the plain protocol."""

    __slots__ = ("rate", "call_id", "_channel", "_announce")
    name = "pcm"
    _calls = itertools.count(1)

    def __init__(self, url: SplitResult):
        query = dict(parse_qsl(url.query))
        self.rate = rate_of(query)
        self.call_id = query.get("call_id") or f"caller-{next(self._calls)}"
        self._channel = Channels("L16")
        self._announce = query.get("start") == "message"

    def open(self) -> list[tuple[int, bytes]]:
        if not self._announce:
            return []
        return [(TEXT, orjson.dumps({"event": "start", "call_id": self.call_id, "facts": {}}))]

    def again(self) -> list[tuple[int, bytes]]:
        self._channel = Channels("L16")
        return self.open()

    def audio(self, pcm) -> tuple[int, bytes]:
        return BINARY, codes_of(pcm, "L16")

    def dtmf(self, digit: str) -> tuple[int, bytes]:
        return TEXT, orjson.dumps({"event": "dtmf", "digit": digit})

    def mark(self, name: str) -> tuple[int, bytes]:
        return TEXT, mark_message(name)

    def stop(self) -> tuple[int, bytes]:
        return TEXT, END

    def receive(self, opcode: int, payload) -> Audio | Mark | Clear | Stop | None:
        if opcode == BINARY:
            return self._channel.decode(payload)
        match parse(payload, self.name):
            case {"event": "mark", "name": str(name)}:
                return Mark(name)
            case {"event": "clear"}:
                return Clear()
            case {"event": "end" | "transfer"}:
                return Stop()
        return None
