"""AudioCodes VoiceAI Connect and Live Hub: the AudioCodes Bot API in streaming mode, with directSTT and directTTS.

JSON text messages, each with a `type`; audio is base64 in chunks of any length, in the first media format of the offer
that we know, without a WAV header where that is offered too.  The call begins with the activity `start`, which brings
the facts, or with the first audio if that comes earlier.  A reply is one play stream: opened by its first audio, closed
when it has been heard, stopped by a barge-in; so there is never a second one.  The platform hears when the caller
speaks and what is recognised, for its own barge-in and its timers.  A user stream that is stopped is a pause.
Uncertain: whether playStream.stop lets what is buffered be played (ours comes when it has been); how a WAV stream is
cut (a header may begin any chunk, whole); which of several participants is the caller (the one of that name, else the
first).  After session.resume on a new socket the caller's stream is started anew.
The rule: only a message that is no JSON object, or audio that is none, ends a call; the rest is ignored and counted.
"""
import orjson

from .. import ProtocolError
from .._fastpath import MediaIn, MediaOut, base64_encode
from . import (HYPOTHESIS, RECOGNITION, REPLIED, SPEECH_STARTED, SPEECH_STOPPED, TEXT, Audio, Dialect, Dtmf, Pause,
               Returned, Start, Stop, digits_of, facts_of, parse, text_of)
from .payload import Payload
from .wav import FORMATS, RIFF, bytes_of, wav_content, wav_header

USUAL = "raw/lpcm16"            # what is meant where no format is offered
CALLER = "caller"
AFTER_CHUNK = b'"}'
CHUNK, AUDIO = b"userStream.chunk", b"audioChunk"      # the type of the caller's chunks, and where the payload lies
BEGINNINGS = ("session.initiate", "session.resume")
MOST_DIGITS = 20            # in one activity
HANGUP = {"type": "event", "name": "hangup"}
NO_AUDIO = f"This bot speaks audio: it needs directSTT, directTTS and one of {', '.join(FORMATS)}"


def message_of(kind: str, **fields) -> tuple[int, bytes]:
    """A message; fields that are None are left out."""
    return TEXT, orjson.dumps({"type": kind} | {name: value for name, value in fields.items() if value is not None})


def chosen(offer) -> str | None:
    """The format to be spoken: the first of the offer that we know, raw if it can be; None if there is none."""
    known = [name for name in offer if isinstance(name, str) and name in FORMATS] if isinstance(offer, list) else []
    if not known:
        return None
    raw = "raw/" + known[0].partition("/")[2]
    return raw if raw in known else known[0]


class AudioCodes(Dialect):
    """AudioCodes VoiceAI Connect and Live Hub: the Bot API's streaming mode, audio in both directions."""

    __slots__ = ("rate", "ignored", "outbox", "_format", "_payload", "_header", "_conversation", "_facts", "_live",
                 "_over", "_heard", "_who", "_hearing", "_paused", "_reason", "_streams", "_playing", "_before_chunk",
                 "_comes_back", "_leaving")
    name = "audiocodes"
    opcode = TEXT
    lead_ms = 100
    parting_ms = 3000
    max_message = 64 << 10

    def __init__(self, query: dict[str, str]):
        self.ignored = 0
        self.outbox: list[tuple[int, bytes]] = []
        self._speak(USUAL)
        self._conversation: str | None = None       # the platform's id of it; None before it was initiated
        self._facts: dict[str, str] = {}
        self._live = False              # between Start and Stop
        self._over = False              # ended or refused
        self._heard: str | None = None  # the participant whose stream is the caller's; None for one without a name
        self._who: bytes | None = None  # the same in bytes
        self._hearing = False           # that stream is open
        self._paused = False            # it was, and is stopped
        self._reason = ""               # why the platform hangs up
        self._streams = 0               # play streams opened
        self._playing = False           # the last of them is open
        self._before_chunk = b""        # how its chunks begin
        self._comes_back = False        # the conversation was held elsewhere; session.resume begins it here
        self._leaving = False           # the platform was asked to hand the call over

    def _speak(self, media_format: str) -> None:
        self._format = media_format
        encoding, self.rate = FORMATS[media_format]
        self._payload = Payload(encoding)
        self._header = wav_header(media_format)     # before the first chunk of a play stream; b"" of a raw format

    def _answer(self, kind: str, **fields) -> None:
        self.outbox.append(message_of(kind, **fields))

    def open(self) -> None:
        return None

    @property
    def media_in(self) -> MediaIn | None:
        if not (self._live and self._hearing) or self._header:
            return None
        return self._payload.media_in(kind=CHUNK, field=AUDIO, participant=self._who)

    @property
    def media_out(self) -> MediaOut | None:
        return self._payload.media_out(self._before_chunk, AFTER_CHUNK) if self._playing else None

    # -- from the platform ---------------------------------------------------------------------------------------------

    def receive(self, opcode: int, payload) -> Start | Audio | Dtmf | Pause | Returned | Stop | None:
        if self._live and self._hearing and not self._header and (audio := self._payload.audible.streamed(
                payload, CHUNK, AUDIO, self._who)) is not None:
            return audio                        # as nearly always
        message = parse(payload, self.name)
        read = READ.get(text_of(message.get("type")))
        answers = len(self.outbox)
        event = read(self, message) if read is not None and not self._over else None
        self.ignored += event is None and len(self.outbox) == answers
        return event

    def _chunk(self, message: dict) -> Audio | Start | None:
        if not self._hearing or message.get("participant") != self._heard:
            return None
        text = message.get("audioChunk")
        if self._header and isinstance(text, str) and text.startswith(RIFF):
            text = base64_encode(wav_content(bytes_of(text), self._format)).decode()
        audio = self._payload.decode(text, self.name)
        return audio if self._live or audio is None else self._start()

    def _start(self) -> Start:
        self._live = True
        return Start(self._conversation or "", self._facts)

    def _initiate(self, message: dict) -> None:
        if self._conversation is not None:
            return
        self._conversation = text_of(message.get("conversationId"))
        media_format = chosen(message.get("supportedMediaFormats", [USUAL]))
        if media_format is None or message.get("expectAudioMessages") is False:
            self._over = True
            return self._answer("session.error", reason=NO_AUDIO)
        self._speak(media_format)
        self._facts = facts_of({name: message.get(name) for name in ("botName", "caller")})
        self._answer("session.accepted", mediaFormat=media_format)

    def _resume(self, message: dict) -> Start | None:
        name = text_of(message.get("conversationId"))
        if name == self._conversation:
            self._answer("session.accepted", mediaFormat=self._format)
            comes_back, self._comes_back = self._comes_back, False
            return self._start() if comes_back else None
        self._answer("session.error", conversationId=name, reason="conversation not found")

    def come_back(self) -> None:
        """What was kept of a conversation is ours: its play stream has ended, the caller's has to be started anew."""
        self.outbox.clear()
        self._comes_back = True
        self._live = self._playing = self._hearing = self._paused = False

    @classmethod
    def came(cls, opcode: int, payload) -> str | None:
        message = parse(payload, cls.name) if opcode == TEXT else {}
        return text_of(message.get("conversationId")) if message.get("type") in BEGINNINGS else None

    @staticmethod
    def resumes(payload) -> str:
        """The conversation that the first message of a connection wants to go on with; "" if it is another message."""
        message = parse(payload, AudioCodes.name)
        return text_of(message.get("conversationId")) if message.get("type") == "session.resume" else ""

    @property
    def resumable(self) -> bool:
        return self._live

    def paused(self) -> bytes | None:
        """What the platform would have said, had it known that the caller's stream stops here."""
        return message_of("userStream.stop", participant=self._heard)[1] if self._hearing else None

    def _validate(self, message: dict) -> None:
        self._answer("connection.validated", success=True)

    def _stream_starts(self, message: dict) -> Pause | None:
        """Of several participants one is heard; the streams of the others are only answered."""
        if self._conversation is None:
            return None
        participant = text_of(message.get("participant")) or None
        self._answer("userStream.started", participant=participant)
        if self._hearing and participant != CALLER:
            return None
        resumed, self._paused = self._paused, False
        self._heard, self._hearing = participant, True
        self._who = participant.encode("utf-8", "replace") if participant else None
        return Pause(over=True) if resumed else None

    def _stream_stops(self, message: dict) -> Pause | None:
        if self._conversation is None:
            return None
        participant = text_of(message.get("participant")) or None
        self._answer("userStream.stopped", participant=participant)
        if not self._hearing or participant != self._heard:
            return None
        self._hearing, self._paused = False, self._live
        return Pause() if self._live else None

    def _activities(self, message: dict) -> Start | Returned | Dtmf | None:
        """What several at once come to is one event: the start before all, and a transfer's failure before the keys."""
        activities = message.get("activities")
        if not isinstance(activities, list):
            raise ProtocolError(1007, 'audiocodes: "activities" is not a list')
        if self._conversation is None:
            return None
        keys, starts, returned = "", False, None
        for activity in activities:
            match activity:
                case {"type": "event", "name": "start"} if not self._live:
                    self._facts |= facts_of(activity.get("parameters"))
                    starts = True
                case {"type": "event", "name": "DTMF" | "dtmf"}:
                    keys += digits_of(activity.get("value"))
                case {"type": "event", "name": "transferStatus",
                      "value": {"status": "failed", **told}} if self._leaving:
                    returned = Returned(text_of(told.get("reasonCode")) or text_of(told.get("reason")))
                case {"type": "event", "name": "hangup", "activityParams": {"hangupReason": str(reason)}}:
                    self._reason = reason
        if starts:
            return self._start()
        return (returned or (Dtmf(keys) if keys else None)) if self._live else None

    def _end(self, message: dict) -> Stop | None:
        live, self._live, self._over = self._live, False, True
        return Stop(self._reason or text_of(message.get("reason"))) if live else None

    # -- to the platform -----------------------------------------------------------------------------------------------

    def audio(self, pcm) -> bytes:
        if self._playing:
            return self._payload.message(self._before_chunk, pcm, AFTER_CHUNK)
        self._streams += 1
        self._playing = True
        stream = str(self._streams)
        self._answer("playStream.start", streamId=stream, mediaFormat=self._format)
        self._before_chunk = b'{"type":"playStream.chunk","streamId":"%s","audioChunk":"' % stream.encode()
        chunk = self._payload.message(self._before_chunk, pcm, AFTER_CHUNK)
        if not self._header:
            return chunk
        data = self._header + bytes_of(chunk[len(self._before_chunk):-len(AFTER_CHUNK)].decode())
        return self._before_chunk + base64_encode(data) + AFTER_CHUNK

    def mark(self, name: str) -> None:
        """Nothing is told of what has been heard."""
        return None

    def clear(self) -> bytes | None:
        if not self._playing:
            return None
        self._playing = False
        return message_of("playStream.stop", streamId=str(self._streams))[1]

    def stop(self) -> bytes:
        """The platform hangs up, says session.end and closes."""
        return message_of("activities", activities=[HANGUP])[1]

    def transfer(self, target: str) -> bytes:
        """Hands the caller over to a number or a SIP address; the session ends when that is done."""
        self._leaving = True
        target = f"tel:{target}" if target.startswith("+") else target
        transfer = {"type": "event", "name": "transfer", "activityParams": {"transferTarget": target}}
        return message_of("activities", activities=[transfer])[1]

    @staticmethod
    def send_digits(digits: str) -> bytes:
        """Which VoiceAI Connect does from its version 3.12 on."""
        pressed = [digits[i:i + MOST_DIGITS] for i in range(0, len(digits), MOST_DIGITS)]
        return message_of("activities", activities=[
            {"type": "event", "name": "sendDtmf", "activityParams": {"dtmfDigits": each}} for each in pressed])[1]

    def tell(self, news: str, *details) -> None:
        if news == SPEECH_STARTED:
            self._speech("started")
        elif news == SPEECH_STOPPED:
            self._speech("stopped")
            self._speech("committed")
        elif news == HYPOTHESIS:
            self._speech("hypothesis", alternatives=[{"text": details[0]}])
        elif news == RECOGNITION and details[0]:
            self._speech("recognition", alternatives=[{"text": details[0], "confidence": round(details[1], 3)}])
        elif news == REPLIED and (stop := self.clear()) is not None:
            self.outbox.append((TEXT, stop))

    def _speech(self, what: str, **fields) -> None:
        self._answer(f"userStream.speech.{what}", participant=self._heard, **fields)


READ = {
    "userStream.chunk": AudioCodes._chunk,
    "userStream.start": AudioCodes._stream_starts,
    "userStream.stop": AudioCodes._stream_stops,
    "activities": AudioCodes._activities,
    "session.initiate": AudioCodes._initiate,
    "session.resume": AudioCodes._resume,
    "session.end": AudioCodes._end,
    "connection.validate": AudioCodes._validate,
}
