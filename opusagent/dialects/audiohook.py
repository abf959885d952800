"""Genesys Cloud AudioHook, protocol version 2: the Audio Connector, a bot inside an Architect flow, and the Monitor.

ws://HOST:PORT/ws/audiohook[/<agent>][?mode=monitor][&channel=internal]

JSON text messages in one envelope, numbered without gaps in each direction, and binary audio of any length: PCMU, or
L16, at 8 kHz, external (the caller) and internal interleaved where both are sent.  Genesys begins and ends sessions: we
ask for the end with `disconnect`, which carries the conversation's facts as output variables, and it closes.
Genesys counts messages and answers too many with an error 429, so replies go out in 200 ms (5 a second, half of what
implementers have seen accepted), well ahead; after such an error the agent is silent for as long as Genesys says,
counted in the caller's audio.  A barge-in makes it drop what it holds.
Uncertain: the byte order of L16 (little-endian, as the reference implementation reads it); whether `pause` and `resume`
come from Genesys too (taken as `paused` and `resumed`); when a bot_turn_response is due (ours comes when the reply has
been heard); what a bot may send to a stream with two channels (one channel here).
A monitor cannot be told from a connector by what it says, so the URL does.  It takes no audio: the flow follows the
customer, or, where `channel` says internal, whom the customer talks to; the other one is heard as well where both are
sent, and what either has said goes back as transcripts.
The rule: only text that is no JSON object ends a call; what has no sense where it comes is ignored and counted.
"""
import re
from uuid import NAMESPACE_URL, uuid5

import orjson

from .. import ProtocolError
from .._fastpath import MediaIn
from . import (AGENT, BINARY, CALLER, FACTS, OVERHEARD, RECOGNITION, REPLIED, SENTENCE, TEXT, Audio, Both, Complaint,
               Dialect, Dtmf, Mark, Pause, Start, Stop, digits_of, facts_of, number_of, parse, text_of)
from .channels import Channels

RATE = 8000
NOBODY = "00000000-0000-0000-0000-000000000000"     # conversation and participant of a probe
EXTERNAL, INTERNAL = "external", "internal"
MODES = ("connector", "monitor")
DISPOSITIONS = {"silence": "no_input", "no_match": "no_match", "failure": "no_match"}   # of a reply's kind
NO_AUDIO = {"reason": "error", "info": "The caller's audio is needed, as PCMU or L16 at 8 kHz."}


def seconds_of(duration) -> float:
    """PT1.5S as 1.5, at most a minute; 3 for what is no such duration."""
    found = re.fullmatch(r"PT(\d{1,9}(?:\.\d{1,9})?)S", text_of(duration))
    return min(float(found[1]), 60.0) if found else 3.0


def duration_of(ms: int) -> str:
    """1500 as PT1.5S."""
    return f"PT{ms / 1000:.3f}".rstrip("0").rstrip(".") + "S"


def part(message: dict, name: str) -> dict:
    value = message.get(name)
    return value if isinstance(value, dict) else {}


def chosen(offer, heard: str = EXTERNAL, alone: bool = True) -> dict | None:
    """The entry of an offer that we take, None if there is none: whom we hear `alone` if it can be, else among others;
    or with the other side if it can be."""
    def hearable(entry) -> bool:
        match entry:
            case {"format": "PCMU" | "L16", "channels": [*channels]}:
                return entry.get("type", "audio") == "audio" and text_of(entry.get("rate", RATE)) == str(RATE) \
                    and heard in channels and len(channels) <= 2
        return False
    entries = [entry for entry in offer if hearable(entry)] if isinstance(offer, list) else []
    return (min if alone else max)(entries, key=lambda entry: len(entry["channels"]), default=None)


class AudioHook(Dialect):
    """Genesys Cloud AudioHook, version 2 (Audio Connector, Monitor): numbered JSON messages and binary PCMU or L16."""

    __slots__ = ("mute", "two_sided", "ignored", "outbox", "_wanted", "_at", "_told", "_id", "_seq", "_clientseq",
                 "_channels", "_live", "_over", "_paused", "_playing", "_mark", "_outcome", "_hold")
    name = "audiohook"
    opcode = BINARY
    rate = RATE
    lead_ms = 100
    message_ms = 200
    parting_ms = 5000
    max_message = 64 << 10

    def __init__(self, query: dict[str, str]):
        mode, self._wanted = query.get("mode", MODES[0]), query.get("channel", EXTERNAL)
        if mode not in MODES or self._wanted not in (EXTERNAL, INTERNAL):
            raise ProtocolError(400, "The mode is connector or monitor, the channel external or internal.")
        self.mute = mode == "monitor"
        self.two_sided = False
        self.ignored = 0
        self.outbox: list[tuple[int, bytes]] = []
        self._at = 0                    # the channel that is heard, among those that come
        self._told = 0                  # transcripts
        self._id: str | None = None     # of the session; None before it was opened
        self._seq = 0                   # of our last message
        self._clientseq = 0             # of the last one we have read
        self._channels = Channels("PCMU")
        self._live = False              # between Start and Stop
        self._over = False              # closed
        self._paused = False
        self._playing = False           # something has been sent that a barge-in would have to clear
        self._mark: str | None = None   # asked for after the last audio
        self._outcome: dict[str, str] = {}      # what the conversation came to
        self._hold = 0                  # samples of the caller's until Genesys takes audio again

    def _message(self, kind: str, parameters: dict) -> bytes:
        self._seq += 1
        return orjson.dumps({"version": "2", "type": kind, "seq": self._seq, "clientseq": self._clientseq,
                             "id": self._id or "", "parameters": parameters})

    def _answer(self, kind: str, parameters: dict) -> None:
        self.outbox.append((TEXT, self._message(kind, parameters)))

    @property
    def speaker(self) -> str:
        """Whom the flow follows, as a monitor; a connector answers its caller."""
        return "" if not self.mute else CALLER if self._wanted == EXTERNAL else AGENT

    @property
    def numbered(self) -> int:
        return self._seq

    @numbered.setter
    def numbered(self, number: int) -> None:
        self._seq = number

    def open(self) -> None:
        return None

    @property
    def media_in(self) -> MediaIn | None:
        """None where both sides are heard, and while the caller's audio is what a silence of ours is counted in."""
        return self._channels.media_in() if self._live and not self._hold and not self.two_sided else None

    # -- from Genesys --------------------------------------------------------------------------------------------------

    def receive(self, opcode: int, payload) -> Start | Audio | Both | Dtmf | Mark | Pause | Complaint | Stop | None:
        if opcode == BINARY:
            self.ignored += not self._live
            audio = self._decode(payload) if self._live else None
            if self._hold and audio is not None:
                self._hold = max(0, self._hold - len(audio.pcm))
            return audio
        message = parse(payload, self.name)
        answers = len(self.outbox)
        event = self._read(message)
        self.ignored += event is None and len(self.outbox) == answers
        return event

    def _decode(self, payload) -> Audio | Both | None:
        return self._channels.both(payload) if self.two_sided else self._channels.decode(payload)

    def _read(self, message: dict) -> Start | Dtmf | Mark | Pause | Complaint | Stop | None:
        read = READ.get(text_of(message.get("type")))
        name = text_of(message.get("id"))
        if read is None or self._over or self._id is not None and name != self._id:
            return None
        if (number := number_of(message.get("seq"))) is not None:
            self._clientseq = number
        return read(self, message, part(message, "parameters"))

    def _open(self, message: dict, parameters: dict) -> Start | None:
        if self._id is not None:
            return None
        self._id = text_of(message.get("id"))
        media = chosen(parameters.get("media"), self._wanted, alone=not self.mute)
        participant = part(parameters, "participant")
        probe = text_of(parameters.get("conversationId")) == text_of(participant.get("id")) == NOBODY
        if media is None and not probe:
            self._answer("disconnect", NO_AUDIO)
            return None
        opened = {"startPaused": False, "media": [media] if media else []}
        if parameters.get("supportedLanguages"):
            opened["supportedLanguages"] = [language] if (language := text_of(parameters.get("language"))) else []
        self._answer("opened", opened)
        if probe:
            return None
        self._at = media["channels"].index(self._wanted)
        self._channels = Channels(media["format"], len(media["channels"]), self._at)
        self.two_sided = self.mute and len(media["channels"]) == 2
        self._live = True
        return Start(self._id, self._facts(parameters, participant), text_of(parameters.get("organizationId")))

    @staticmethod
    def _facts(parameters: dict, participant: dict) -> dict[str, str]:
        """What the Architect flow passes on, and what Genesys knows, which no variable can pretend to be."""
        known = {name: parameters.get(name) for name in ("organizationId", "conversationId", "language")}
        known |= {name: participant.get(name) for name in ("ani", "aniName", "dnis")}
        return facts_of(parameters.get("customConfig")) | facts_of(parameters.get("inputVariables")) | facts_of(known)

    def _close(self, message: dict, parameters: dict) -> Stop | None:
        if self._id is None:
            self._id = text_of(message.get("id"))
        self._answer("closed", {})
        live, self._live, self._over = self._live, False, True
        return Stop(text_of(parameters.get("reason"))) if live else None

    def _error(self, message: dict, parameters: dict) -> Complaint | None:
        code = text_of(parameters.get("code"))[:20]
        if code == "429":
            self._hold = int(seconds_of(parameters.get("retryAfter")) * RATE)
        return Complaint(text_of(parameters.get("message"))[:SENTENCE], code) if self._live else None

    def _pause(self, message: dict, parameters: dict) -> Pause | None:
        if not self._live or self._paused:
            return None
        self._paused = True
        return Pause()

    def _resume(self, message: dict, parameters: dict) -> Pause | None:
        if not self._live or not self._paused:
            return None
        self._paused = False
        return Pause(over=True)

    def _dtmf(self, message: dict, parameters: dict) -> Dtmf | None:
        digits = digits_of(parameters.get("digit"))
        return Dtmf(digits) if digits and self._live else None

    def _played(self, message: dict, parameters: dict) -> Mark | None:
        """All that was sent has been played; if it ended in a mark, that one has been reached."""
        name, self._mark = self._mark, None
        return Mark(name) if name is not None and self._live else None

    # -- to Genesys ----------------------------------------------------------------------------------------------------

    @property
    def held(self) -> bool:
        return self._hold > 0

    def audio(self, pcm) -> bytes | None:
        if self.mute:
            return None
        self._playing, self._mark = True, None
        return self._channels.encode(pcm)

    def mark(self, name: str) -> None:
        """There is no such message, but Genesys says when it has played everything."""
        self._mark = name

    def clear(self) -> bytes | None:
        self._mark = None
        if not self._playing:
            return None
        self._playing = False
        return self._message("event", {"entities": [{"type": "barge_in", "data": {}}]})

    def stop(self) -> bytes:
        """Genesys closes, and goes on in its Architect flow, which a monitor knows nothing of."""
        outcome = {} if self.mute else {"outputVariables": self._outcome}
        return self._message("disconnect", {"reason": "completed", **outcome})

    def transfer(self, target: str) -> bytes:
        """The output variable `transfer` says to whom; what follows is for the Architect flow to do."""
        self._outcome["transfer"] = target
        return self.stop()

    def tell(self, news: str, *details) -> None:
        if self.mute:
            if news in (RECOGNITION, OVERHEARD) and details[0]:
                self._transcribe(self._at if news == RECOGNITION else 1 - self._at, *details)
        elif news == REPLIED:
            self._playing = False
            kind, text = details
            turn = {"disposition": DISPOSITIONS.get(kind, "match"), "text": text}
            self._answer("event", {"entities": [{"type": "bot_turn_response", "data": turn}]})
        elif news == FACTS:
            self._outcome = dict(details[0])

    def _transcribe(self, channel: int, text: str, confidence: float, span: tuple[int, int]) -> None:
        self._told += 1
        shown = {"type": "display", "transcript": text}
        name = uuid5(NAMESPACE_URL, f"{self._id}/{self._told}")
        begin, end = span
        transcript = {"id": str(name), "channelId": channel, "isFinal": True,
                      "offset": duration_of(begin), "duration": duration_of(end - begin),
                      "alternatives": [{"confidence": round(confidence, 3), "interpretations": [shown]}]}
        self._answer("event", {"entities": [{"type": "transcript", "data": transcript}]})


READ = {
    "open": AudioHook._open,
    "close": AudioHook._close,
    "ping": lambda self, message, parameters: self._answer("pong", {}),
    "update": lambda self, message, parameters: self._answer("updated", {}),
    "error": AudioHook._error,
    "paused": AudioHook._pause,
    "pause": AudioHook._pause,
    "resumed": AudioHook._resume,
    "resume": AudioHook._resume,
    "dtmf": AudioHook._dtmf,
    "playback_completed": AudioHook._played,
}
