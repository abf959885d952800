"""Genesys's side of AudioHook, for simulated calls: Audio Connector and Monitor, as strict as its reference client.

The rule: what that client would not take ends the call, with the code of its error.
"""
import itertools
import re
from urllib.parse import SplitResult, parse_qsl

import numpy as np
import orjson

from .. import ProtocolError
from . import BINARY, TEXT, Audio, Clear, PlatformSide, Stop, parse, text_of
from .audiohook import EXTERNAL, INTERNAL, RATE
from .channels import Channels

ORGANIZATION = "0a000000-0000-4000-8000-000000000001"   # of the simulated caller
FIRST_PING, PINGS = RATE, 5 * RATE      # samples before the first, and between two
TURNS = ("match", "no_match", "no_input")
LONGEST = 64000                         # bytes of a binary message of ours
BURST = 10                              # messages that may come at once where they are counted
DURATION = re.compile(r"PT\d+(\.\d{1,3})?S")


class AudioHookCaller(PlatformSide):
    """Genesys's side: ?media=L16 (default PCMU), ?channels=both for a stream with two, ?frame_ms=200 for messages as
    the reference client sends them (default 20), ?limit=5 to end the call at more messages a second, ?mode=monitor to
    listen only; with ?later_ms=2000 the other one of two channels says the same so much later."""

    __slots__ = ("call_id", "outbox", "_offer", "_channels", "_player", "_frame", "_limit", "_seq", "_serverseq",
                 "_open", "_closing", "_position", "_held", "_held_samples", "_unplayed", "_plays", "_ping",
                 "_next_ping", "_budget", "_monitor", "_later", "patience_ms")
    name = "audiohook"
    rate = RATE
    _calls = itertools.count(1)

    def __init__(self, url: SplitResult):
        query = dict(parse_qsl(url.query))
        media, frame, limit = query.get("media", "PCMU"), query.get("frame_ms", "20"), query.get("limit", "0")
        later = query.get("later_ms", "0")
        if media not in ("PCMU", "L16") or not (frame + limit + later).isdecimal():
            raise ProtocolError(400, "media is PCMU or L16; frame_ms, limit and later_ms are whole numbers.")
        channels = [EXTERNAL, INTERNAL] if query.get("channels") == "both" else [EXTERNAL]
        self._offer = {"type": "audio", "format": media, "channels": channels, "rate": RATE}
        self._channels = Channels(media, len(channels))
        self._player = Channels(media)
        self._frame = int(frame) * RATE // 1000
        self._limit = int(limit)        # messages a second that are taken; 0: any number
        self.outbox: list[tuple[int, bytes]] = []
        self.call_id = f"{next(self._calls):032x}"      # of session and conversation; Genesys puts dashes into it
        self._seq = self._serverseq = 0
        self._open = self._closing = False
        self._position = 0              # samples of the caller's that were sent
        self._held: list[bytes] = []    # of the message that is being filled
        self._held_samples = 0
        self._unplayed = 0              # samples of the agent's
        self._plays = False
        self._ping: int | None = None   # seq of the ping that has not been answered
        self._next_ping = FIRST_PING
        self._budget = float(BURST)     # messages that may come now, where they are counted
        self._monitor = query.get("mode") == "monitor"
        self._later = np.zeros(int(later) * RATE // 1000, np.int16)     # what the other side is going to say
        self.patience_ms = 2000 if self._monitor else 12_000

    # -- what it sends -------------------------------------------------------------------------------------------------

    def _message(self, kind: str, parameters: dict) -> tuple[int, bytes]:
        self._seq += 1
        return TEXT, orjson.dumps({"version": "2", "type": kind, "id": self.call_id, "seq": self._seq,
                                   "serverseq": self._serverseq, "position": f"PT{self._position / RATE:.3f}S",
                                   "parameters": parameters})

    def open(self) -> list[tuple[int, bytes]]:
        caller = {"id": f"{1:032x}", "ani": "tel:+15550100", "aniName": "", "dnis": "tel:+15550199"}
        return [self._message("open", {"organizationId": ORGANIZATION, "conversationId": self.call_id,
                                       "participant": caller, "media": [self._offer], "language": "en-US",
                                       **({} if self._monitor else {"inputVariables": {}})})]

    def audio(self, pcm) -> tuple[int, bytes] | None:
        """A beat of the caller's clock, too: what is played is played by it, and pings go out."""
        if not self._open or self._closing:
            return None
        self._beat(len(pcm))
        self._held.append(self._channels.interleaved(pcm, self._other(pcm)))
        self._held_samples += len(pcm)
        if self._held_samples < self._frame:
            return None
        message = b"".join(self._held)
        self._position += self._held_samples
        self._held.clear()
        self._held_samples = 0
        return BINARY, message

    def _other(self, pcm) -> np.ndarray | None:
        """What the other side says meanwhile; None: nothing."""
        if not len(self._later):
            return None
        said = np.concatenate((self._later, pcm))
        self._later = said[len(pcm):]
        return said[:len(pcm)]

    def _beat(self, samples: int) -> None:
        self._budget = min(float(BURST), self._budget + self._limit * samples / RATE)
        self._unplayed = max(0, self._unplayed - samples)
        if self._plays and not self._unplayed:
            self._plays = False
            self.outbox.append(self._message("playback_completed", {}))
        self._next_ping -= samples
        if self._next_ping <= 0:
            self._next_ping = PINGS
            self._send_ping()

    def _send_ping(self) -> None:
        if self._ping is None:
            self.outbox.append(self._message("ping", {}))
            self._ping = self._seq
        else:
            self.outbox.append(self._message("error", {"code": 408, "message": "no pong"}))
            self._close("error")

    def _close(self, reason: str) -> None:
        if not self._closing:
            self._closing = True
            self.outbox.append(self._message("close", {"reason": reason}))

    def dtmf(self, digit: str) -> tuple[int, bytes]:
        return self._message("dtmf", {"digit": digit})

    def mark(self, name: str) -> None:
        return None

    def stop(self) -> tuple[int, bytes] | None:
        if self._closing:
            return None
        self._close("end")
        return self.outbox.pop()

    # -- what it takes -------------------------------------------------------------------------------------------------

    def receive(self, opcode: int, payload) -> Audio | Clear | Stop | None:
        if self._limit:
            self._budget -= 1
            if self._budget < 0:
                raise ProtocolError(1008, "audiohook: too many messages (Genesys's error 429)")
        if opcode == BINARY:
            return self._hear(payload)
        if len(payload) > 65535:
            raise ProtocolError(1008, "audiohook: a message of more than 65535 characters (error 413)")
        message = parse(payload, self.name)
        take = TAKE.get(text_of(message.get("type")))
        if (message.get("version"), message.get("id"), message.get("seq")) != ("2", self.call_id, self._serverseq + 1) \
                or take is None or not isinstance(message.get("parameters"), dict):
            raise ProtocolError(1008, "audiohook: no message of a server's, or not the next one")
        if type(heard := message.get("clientseq")) is not int or not 0 <= heard <= self._seq:
            raise ProtocolError(1008, "audiohook: a clientseq that was never sent")
        self._serverseq += 1
        return take(self, message, message["parameters"])

    def _hear(self, payload) -> Audio | None:
        if not self._open or self._monitor or not 0 < len(payload) <= LONGEST:
            raise ProtocolError(1008, "audiohook: audio that is too long or too early, or for a monitor (error 415)")
        audio = self._player.decode(payload)
        if audio is not None and not self._plays:
            self._plays = True
            self.outbox.append(self._message("playback_started", {}))
        self._unplayed += len(audio.pcm) if audio is not None else 0
        return audio

    def _opened(self, message: dict, parameters: dict) -> None:
        if self._open or self._closing or parameters.get("media") != [self._offer]:
            raise ProtocolError(1008, "audiohook: opened twice, or with media that were not offered")
        self._open = True

    def _pong(self, message: dict, parameters: dict) -> None:
        if self._ping is None or message.get("clientseq") != self._ping:
            raise ProtocolError(1008, "audiohook: a pong without a ping")
        self._ping = None

    def _event(self, message: dict, parameters: dict) -> Clear | None:
        match parameters:
            case {"entities": [{"type": "transcript", "data": {"id": str(), "channelId": 0 | 1, "isFinal": True,
                  "offset": str(offset), "duration": str(duration),
                  "alternatives": [{"interpretations": [{"type": "display", "transcript": str()}]}]}}]}:
                if any(DURATION.fullmatch(each) is None for each in (offset, duration)):
                    raise ProtocolError(1008, "audiohook: a transcript whose place is no duration")
                return None
            case {"entities": [{"type": "barge_in", "data": {}}]} if not self._monitor:
                self._unplayed = 0
                return Clear()
            case {"entities": [{"type": "bot_turn_response", "data": {"disposition": str(what)}}]} if what in TURNS \
                    and not self._monitor:
                return None
        raise ProtocolError(1008, "audiohook: an event of which nothing is known")

    def _disconnect(self, message: dict, parameters: dict) -> None:
        variables = parameters.get("outputVariables", {})
        if parameters.get("reason") not in ("completed", "unauthorized", "error") or not isinstance(variables, dict) \
                or not all(isinstance(value, str) for value in variables.values()):
            raise ProtocolError(1008, "audiohook: a disconnect without a reason, or with variables that are not text")
        self._close("disconnect")

    def _closed(self, message: dict, parameters: dict) -> Stop:
        if not self._closing:
            raise ProtocolError(1008, "audiohook: closed, though nobody asked for it")
        return Stop()


TAKE = {
    "opened": AudioHookCaller._opened,
    "closed": AudioHookCaller._closed,
    "disconnect": AudioHookCaller._disconnect,
    "event": AudioHookCaller._event,
    "pong": AudioHookCaller._pong,
}
