"""FreeSWITCH itself: mod_audio_stream (uuid_audio_stream), or mod_audio_fork (uuid_audio_fork) with no jambonz around.

ws://HOST:PORT/ws/freeswitch[/<agent>]?rate=8000&call_id=${uuid}        the rate of the command's, 8000 unless given

    module=stream   (default) mod_audio_stream 1.0.3 or newer, which plays what is sent back if STREAM_PLAYBACK is true:
                    as samples (with STREAM_SAMPLE_RATE set), or with &play=json in its streamAudio messages.  It has no
                    marks, and nothing drops what it holds: we keep close to the listener instead
    module=fork     mod_audio_fork as jambonz has extended it, with bidirectional streaming switched on
    mix=stereo      where the command says so: the channel's own party, the caller, comes first

Binary messages are 16-bit little-endian.  The first message of any kind begins the call: text is the command's
metadata, and if that is a JSON object, it is the facts.  Later texts come from send_text, which is how keys are told:
{"event":"dtmf","dtmf":"5"}.  Neither module tells the end; the socket's says it.
Uncertain: how much mod_audio_stream buffers, which is not public; older ones and drachtio's fork only write files and
fire events, and play nothing by themselves.
The rule: a text is the user's own, and whatever it is, it ends no call.
"""
import itertools
from urllib.parse import SplitResult, parse_qsl

import numpy as np
import orjson

from .. import ProtocolError
from .._fastpath import RATES, MediaIn, MediaOut, base64_decode, codes_of, media_message
from . import BINARY, TEXT, Audio, Clear, Dialect, Dtmf, Mark, PlatformSide, Start, Stop, facts_of, parse, text_of
from .jambonz import DEAF_MS, DISCONNECT, KILL, LEAD_MS, MIXES, Played, Player, dtmf_of
from .channels import Channels

STREAM, FORK = "stream", "fork"
CLOSE_MS = 60                   # ahead of the listener where nothing can be taken back
MODES = {"rate": tuple(map(str, RATES)), "module": (STREAM, FORK), "play": ("binary", "json"), "mix": tuple(MIXES)}
BEFORE, AFTER = b'{"type":"streamAudio","data":{"audioDataType":"raw","sampleRate":%d,"audioData":"', b'"}}'


def mode_of(query: dict[str, str], name: str) -> str:
    """One of the modes in the URL, the first if it names none; ProtocolError(400) for what there is not."""
    mode = query.get(name, MODES[name][0])
    if mode not in MODES[name]:
        raise ProtocolError(400, f"The {name} is one of {', '.join(MODES[name])}, not {mode[:20]!r}.")
    return mode


def object_of(payload) -> dict:
    """A text as a JSON object, or an empty one."""
    try:
        return parse(payload, "freeswitch")
    except ProtocolError:
        return {}


class FreeSwitch(Dialect):
    """FreeSWITCH, by mod_audio_stream or mod_audio_fork: raw 16-bit samples."""

    __slots__ = ("rate", "opcode", "lead_ms", "deaf_ms", "ignored", "outbox", "_query", "_channel", "_player",
                 "_before", "_live", "_over")
    name = "freeswitch"
    max_message = 64 << 10
    protocols = ("audio.drachtio.org", "audio.jambonz.org")

    def __init__(self, query: dict[str, str]):
        self.rate = int(mode_of(query, "rate"))
        fork = mode_of(query, "module") == FORK
        in_json = mode_of(query, "play") == "json" and not fork
        self.opcode = TEXT if in_json else BINARY
        self.lead_ms = LEAD_MS if fork else CLOSE_MS
        self.deaf_ms = DEAF_MS if fork else 0
        self.ignored = 0
        self.outbox: list[tuple[int, bytes]] = []
        self._query = query
        self._channel = Channels("L16", MIXES[mode_of(query, "mix")])
        self._player = Player(self.rate) if fork else None
        self._before = BEFORE % self.rate if in_json else b""
        self._live = False              # from the first message to the end
        self._over = False

    def open(self) -> None:
        return None

    @property
    def media_in(self) -> MediaIn | None:
        if not self._live:
            return None
        return self._channel.media_in() if self._player is None else self._player.media_in(self._channel)

    @property
    def media_out(self) -> MediaOut:
        if self._player is not None:
            return self._player.media_out(self._channel)
        return MediaOut(TEXT, "L16", self._before, AFTER) if self._before else self._channel.media_out()

    def receive(self, opcode: int, payload) -> Start | Audio | Dtmf | Mark | Stop | None:
        if not self._live and not self._over:
            self._live = True
            return self._start(object_of(payload) if opcode == TEXT else {})
        if opcode == BINARY and self._live:
            return self._hear(payload)
        event = self._read(object_of(payload)) if opcode == TEXT and self._live else None
        self.ignored += event is None
        return event

    def _start(self, metadata: dict) -> Start:
        given = {name: value for name, value in self._query.items() if name not in MODES and name != "call_id"}
        call_id = self._query.get("call_id") or text_of(metadata.get("call_id")) or text_of(metadata.get("uuid"))
        return Start(call_id, given | facts_of(metadata))

    def _hear(self, payload) -> Audio | Stop | None:
        if self._player is not None:
            if not payload:             # the module's word for the end
                self._live, self._over = False, True
                return Stop()
            self._player.beat(self.outbox)
        return self._channel.decode(payload)

    def _read(self, message: dict) -> Dtmf | Mark | None:
        if message.get("type") == "mark" and self._player is not None:
            return self._player.echoed(message.get("data"))
        return dtmf_of(message) if message.get("event") == "dtmf" else None

    def audio(self, pcm) -> bytes:
        if self._player is not None:
            return self._player.audio(pcm)
        return media_message(self._before, pcm, AFTER, "L16") if self._before else codes_of(pcm, "L16")

    def mark(self, name: str) -> bytes | None:
        return None if self._player is None else self._player.mark(name)

    def clear(self) -> bytes:
        """mod_audio_stream only makes an event of it, of which a script may make a uuid_break."""
        return KILL if self._player is None else self._player.clear(self.outbox)

    def stop(self) -> bytes:
        """An event, too: a script hangs up, or goes on."""
        return DISCONNECT

    def transfer(self, target: str) -> bytes:
        """An event, too: for a script."""
        return orjson.dumps({"type": "transfer", "data": {"target": target}})


class FreeSwitchCaller(PlatformSide):
    """The modules' side, with the modes of the URL that is called; for the fork, ?player=chunked as in jambonz.py."""

    __slots__ = ("rate", "call_id", "protocols", "_play", "_channel", "_line", "_played", "_codes")
    name = "freeswitch"
    _calls = itertools.count(1)

    def __init__(self, url: SplitResult):
        query = dict(parse_qsl(url.query))
        self.rate = int(mode_of(query, "rate"))
        self.call_id = f"{next(self._calls):032x}"
        fork = mode_of(query, "module") == FORK
        self.protocols = ("audio.drachtio.org",) if fork else ()
        self._play = mode_of(query, "play")
        self._channel = Channels("L16")                                 # what it plays
        self._line = Channels("L16", MIXES[mode_of(query, "mix")])      # ... and what it sends
        self._played = Played(self.rate, query.get("player") == "chunked") if fork else None
        self._codes = memoryview(bytearray(1 << 16))

    def open(self) -> list[tuple[int, bytes]]:
        return [(TEXT, orjson.dumps({"call_id": self.call_id, "from": "+15550100"}))]

    def audio(self, pcm) -> tuple[int, bytes]:
        if self._played is not None:
            self._played.beat()
        return BINARY, self._line.interleaved(pcm, None if self._line.single else np.asarray(pcm)[::-1].copy())

    def dtmf(self, digit: str) -> tuple[int, bytes]:
        return TEXT, orjson.dumps({"event": "dtmf", "dtmf": digit})

    def mark(self, name: str) -> tuple[int, bytes] | None:
        return None if self._played is None else self._played.mark(name)

    def stop(self) -> None:
        """The end of the socket says it."""
        return None

    def receive(self, opcode: int, payload) -> Audio | Mark | Clear | Stop | None:
        if self._played is not None:
            return self._played.receive(opcode, payload)
        if opcode == BINARY and self._play == "binary":
            return self._channel.decode(payload)
        match object_of(payload) if opcode == TEXT else {}:
            case {"type": "streamAudio", "data": {"audioDataType": "raw", "sampleRate": self.rate,
                                                  "audioData": str(text)}}:
                return self._channel.decode(self._codes[:max(0, base64_decode(text, self._codes))])
            case {"type": "killAudio"}:
                return None             # what it holds, it plays
            case {"type": "disconnect"}:
                return Stop()
        raise ProtocolError(1008, "freeswitch: a message that mod_audio_stream would make nothing of")
