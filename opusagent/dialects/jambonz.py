"""jambonz: the audio of a `listen` verb (or `stream`), which FreeSWITCH's mod_audio_fork carries.  Not its session API.

The first text message holds what is known of the call, sampleRate and mixType beside it, and begins it; binary messages
are 16-bit little-endian samples both ways; other texts are JSON with a `type` (a key press has an `event` instead).
FreeSWITCH takes a level of backslashes out of that first one, and the module cuts it off at 8 KiB; where it is no JSON
any more, what can still be read of it counts.
The verb must say mixType "mono", or "stereo", of which the first channel is the caller, passDtmf true, and
bidirectionalAudio enabled, streaming, with the same sampleRate as its own, which nothing on the wire repeats.  An empty
binary message says that the stream is being ended.
Uncertain: what stands below of the module's player is read from its source of 2024-10, and later ones may be better.
The rule: what comes in may be anything that can be read; what goes out is what that player plays without a blemish.
"""
import itertools
import re
from urllib.parse import SplitResult, parse_qsl

import numpy as np
import orjson

from .. import ProtocolError
from .._fastpath import RATES, MediaIn, MediaOut, codes_of
from . import (BINARY, TEXT, Audio, Clear, Dialect, Dtmf, Mark, Marks, PlatformSide, Start, Stop, digit_of, facts_of,
               parse, text_of)
from .channels import Channels

MIXES = {"mono": 1, "stereo": 2}        # channels of what we can take
KILL = b'{"type":"killAudio"}'
DISCONNECT = b'{"type":"disconnect"}'
FIRST_MS, CHUNK_MS = 160, 80    # what the player collects before it begins, and then before it goes on
LEAD_MS = 240                   # so that it never waits for us to reach the next of them
IDLE_MESSAGES = 5               # of the caller's without one of ours, 100 ms: the reply is over, its rest is collected
DEAF_MS = 60                    # after killAudio it may drop what comes for three of its beats
MARKS = 30                      # that it remembers
TAKEN_FOR_MARK = b"\xff\xff"    # a sample of -1
MEMBER = re.compile(r'"(\w{1,64})":("(?:[^"\\]|\\.)*"|-?\d{1,15}|true|false)(?=[,}])')     # of what is no whole JSON


def mark_message(name: str) -> bytes:
    return orjson.dumps({"type": "mark", "data": {"name": name}})


class Player:
    """What mod_audio_fork's player needs of us.

    It passes audio on in chunks: the end of a reply stays behind, to be heard before the next one, unless silence
    pushes it out.  A killAudio does not reach what is collected, so that is pushed out first.  It marks places with a
    sample of -1, and takes any such sample for one.
    """

    __slots__ = ("marks", "_silence", "_marked", "_collects", "_idle")

    def __init__(self, rate: int):
        self.marks = Marks()
        self._silence = bytes(rate * CHUNK_MS // 1000 * 2)
        self._marked = False            # there has been a mark
        self._collects = False          # audio was sent since the last silence
        self._idle = 0                  # messages of the caller's since our last

    def media_in(self, channel: Channels) -> MediaIn | None:
        return channel.media_in(passes=self._idles)

    def media_out(self, channel: Channels) -> MediaOut:
        return channel.media_out(lifted=self._marked, goes=self._speaks)

    def _speaks(self) -> None:
        self._collects, self._idle = True, 0

    def audio(self, pcm) -> bytes:
        self._speaks()
        message = codes_of(pcm, "L16")
        if self._marked and TAKEN_FOR_MARK in message:      # perhaps across two samples; then nothing changes
            samples = np.asarray(pcm)
            message = (samples + (samples == -1)).tobytes()
        return message

    def beat(self, outbox: list) -> None:
        """The caller's audio came."""
        if not self._idles():
            self._idle += 1
            self._push_out(outbox)

    def _idles(self, chunk: int = -1) -> bool:
        """The same; False, and it is yet to be told, where that makes something due."""
        if self._idle + 1 == IDLE_MESSAGES and self._collects:
            return False
        self._idle += 1
        return True

    def _push_out(self, outbox: list) -> None:
        if self._collects:
            outbox.append((BINARY, self._silence))
        self._collects = False

    def mark(self, name: str) -> bytes:
        self._marked = True
        self.marks.sent(name)
        return mark_message(name)

    def clear(self, outbox: list) -> bytes:
        self._push_out(outbox)
        self.marks.clear()
        return KILL

    def echoed(self, data) -> Mark | None:
        """A mark comes back: reached ("playout"), or dropped by a killAudio ("cleared")."""
        if not isinstance(data, dict):
            return None
        mark = self.marks.echoed(text_of(data.get("name")))
        return Mark(mark.name, cleared=True) if mark and data.get("event") == "cleared" else mark


def rate_of(value, dialect: str) -> int:
    """A sample rate, as a number or in digits; ProtocolError(1008) for one that we cannot take."""
    text = text_of(value)
    if text not in map(str, RATES):
        raise ProtocolError(1008, f"{dialect}: the sample rate is one of {', '.join(map(str, RATES))} here, "
                                  f"not {text[:10]!r}")
    return int(text)


def channel_of(value) -> Channels:
    """The caller's audio, alone or as the first of two; ProtocolError(1008) where the agent's own voice, or another
    person's, would be in what it hears."""
    if value not in (None, "", *MIXES):
        raise ProtocolError(1008, f"jambonz: the mixType must be {' or '.join(MIXES)}")
    return Channels("L16", MIXES.get(value, 1))


def dtmf_of(message: dict) -> Dtmf | None:
    digit = digit_of(message.get("dtmf", message.get("digit")))
    return Dtmf(digit) if digit else None


def attributes_of(payload) -> dict:
    """The first text; of one that is broken what can be read, the first of each name.  ProtocolError(1007) where that
    is too little."""
    try:
        return parse(payload, "jambonz")
    except ProtocolError:
        found: dict = {}
        for name, value in MEMBER.findall(str(payload, "utf-8", "replace")):
            try:
                found.setdefault(name, orjson.loads(value))
            except orjson.JSONDecodeError:
                continue
        if "sampleRate" not in found:
            raise
        return found


class Jambonz(Dialect):
    """jambonz, the listen verb: raw 16-bit samples both ways, commands in JSON."""

    __slots__ = ("rate", "ignored", "outbox", "_channel", "_player", "_live", "_over")
    name = "jambonz"
    opcode = BINARY
    lead_ms = LEAD_MS
    deaf_ms = DEAF_MS
    max_message = 64 << 10
    protocols = ("audio.jambonz.org", "audio.drachtio.org")

    def __init__(self, query: dict[str, str]):
        self.rate = 8000
        self.ignored = 0
        self.outbox: list[tuple[int, bytes]] = []
        self._channel = Channels("L16")
        self._player = Player(self.rate)
        self._live = False              # between the first text message and the end
        self._over = False

    def open(self) -> None:
        return None

    @classmethod
    def came(cls, opcode: int, payload) -> str | None:
        """A call whose stream has ended goes on to its next verb: where that is a redirect, a new stream follows."""
        message = attributes_of(payload) if opcode == TEXT else {}
        return text_of(message.get("callSid")) if "sampleRate" in message else None

    @property
    def resumable(self) -> bool:
        return self._live

    @property
    def media_in(self) -> MediaIn | None:
        return self._player.media_in(self._channel) if self._live else None

    @property
    def media_out(self) -> MediaOut:
        return self._player.media_out(self._channel)

    def receive(self, opcode: int, payload) -> Start | Audio | Dtmf | Mark | Stop | None:
        if opcode == BINARY and self._live:
            if not payload:
                self._live, self._over = False, True
                return Stop()
            self._player.beat(self.outbox)
            return self._channel.decode(payload)
        event = self._told(payload) if opcode == TEXT else None
        self.ignored += event is None
        return event

    def _told(self, payload) -> Start | Dtmf | Mark | None:
        if not self._live:
            message = attributes_of(payload)
            return self._start(message) if "sampleRate" in message and not self._over else None
        message = parse(payload, self.name)
        if message.get("type") == "mark":
            return self._player.echoed(message.get("data"))
        return dtmf_of(message) if message.get("event") == "dtmf" else None

    def _start(self, message: dict) -> Start:
        """The facts are the call's attributes, the verb's metadata, which stands among them, and the customerData."""
        self._channel = channel_of(message.get("mixType"))
        self.rate = rate_of(message["sampleRate"], self.name)
        self._player = Player(self.rate)
        self._live = True
        told = {name: value for name, value in message.items() if name not in ("sampleRate", "mixType")}
        return Start(text_of(message.get("callSid")), facts_of(message.get("customerData")) | facts_of(told),
                     text_of(message.get("accountSid")))

    def audio(self, pcm) -> bytes:
        return self._player.audio(pcm)

    def mark(self, name: str) -> bytes:
        return self._player.mark(name)

    def clear(self) -> bytes:
        return self._player.clear(self.outbox)

    def stop(self) -> bytes:
        """The verb ends; what follows it in the application, or its actionHook, says how the call goes on."""
        return DISCONNECT


class Played:
    """mod_audio_fork's player as a caller has it.  Stricter than it: what it would forget or mistake ends the call."""

    __slots__ = ("_rate", "_chunked", "_channel", "_marks", "_deaf", "_wanted", "_chunk", "_pieces")

    def __init__(self, rate: int, chunked: bool):
        self._rate, self._chunked = rate, chunked
        self._channel = Channels("L16")
        self._marks: list[str] = []             # not given back yet
        self._deaf = False                      # from a killAudio to the next beat
        self._wanted = rate * FIRST_MS // 1000 if chunked else 0    # samples that are passed on together: the first ...
        self._chunk = rate * CHUNK_MS // 1000 if chunked else 0     # ... and the others
        self._pieces = np.zeros(0, np.int16)    # what is collected

    def anew(self) -> "Played":
        return Played(self._rate, self._chunked)

    def beat(self) -> None:
        """Another 20 ms of the call."""
        self._deaf = False

    def receive(self, opcode: int, payload) -> Audio | Mark | Clear | Stop | None:
        return self._play(payload) if opcode == BINARY else self._obey(parse(payload, "mod_audio_fork"))

    def _play(self, payload) -> Audio | None:
        event = self._channel.decode(payload)
        if event is None:
            return None
        if self._marks and (np.asarray(event.pcm) == -1).any():
            raise ProtocolError(1008, "mod_audio_fork: a sample of -1 would be taken for a mark")
        if self._wanted:
            self._pieces = np.concatenate((self._pieces, event.pcm))
            if len(self._pieces) < self._wanted:
                return None
            event = Audio(memoryview(self._pieces))
            self._pieces, self._wanted = self._pieces[:0], self._chunk
        return None if self._deaf else event

    def _obey(self, message: dict) -> Mark | Clear | Stop:
        match message:
            case {"type": "mark", "data": {"name": str(name)}}:
                if len(self._marks) == MARKS:
                    raise ProtocolError(1008, f"mod_audio_fork: {MARKS} marks wait, more would be forgotten")
                self._marks.append(name)
                return Mark(name)
            case {"type": "killAudio"}:
                self._deaf = True
                return Clear()
            case {"type": "disconnect"}:
                return Stop()
        raise ProtocolError(1008, "mod_audio_fork: a message that it would not take")

    def mark(self, name: str) -> tuple[int, bytes]:
        """What is given back before the beat that follows a killAudio was dropped by it."""
        if name in self._marks:
            self._marks.remove(name)
        event = "cleared" if self._deaf else "playout"
        return TEXT, orjson.dumps({"type": "mark", "data": {"name": name, "event": event}})


class JambonzCaller(PlatformSide):
    """jambonz's side of a listen verb: ?rate=8000 (default), 16000, 24000 or 48000, both ways; ?mixType=stereo.

    With ?player=chunked it passes audio on as the real player does; by default at once, so that an echo can be timed.
    """

    __slots__ = ("rate", "call_id", "_played", "_mix", "_channel")
    name = "jambonz"
    protocols = ("audio.jambonz.org",)
    _calls = itertools.count(1)

    def __init__(self, url: SplitResult):
        query = dict(parse_qsl(url.query))
        self.rate = rate_of(query.get("rate", "8000"), self.name)
        self.call_id = f"{next(self._calls):032x}"
        self._played = Played(self.rate, query.get("player") == "chunked")
        self._mix = query.get("mixType", "mono")
        self._channel = channel_of(self._mix)

    def open(self) -> list[tuple[int, bytes]]:
        about = {"sampleRate": self.rate, "mixType": self._mix, "callSid": self.call_id, "direction": "inbound",
                 "from": "+15550100", "to": "+15550199", "callStatus": "in-progress", "sipStatus": 200}
        return [(TEXT, orjson.dumps(about))]

    def again(self) -> list[tuple[int, bytes]]:
        """The call has gone on to a redirect, which leads to another stream."""
        self._played = self._played.anew()
        return self.open()

    def audio(self, pcm) -> tuple[int, bytes]:
        self._played.beat()
        return BINARY, self._channel.interleaved(pcm, None if self._channel.single else np.asarray(pcm)[::-1].copy())

    def dtmf(self, digit: str) -> tuple[int, bytes]:
        return TEXT, orjson.dumps({"event": "dtmf", "dtmf": digit, "duration": 1600})

    def mark(self, name: str) -> tuple[int, bytes]:
        return self._played.mark(name)

    def stop(self) -> None:
        """The end of the socket says it."""
        return None

    def receive(self, opcode: int, payload) -> Audio | Mark | Clear | Stop | None:
        return self._played.receive(opcode, payload)
