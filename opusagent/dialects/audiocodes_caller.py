"""AudioCodes VoiceAI Connect's side of its Bot API, for simulated calls.

The rule: what VoiceAI Connect would not take ends the call.
"""
import itertools
from urllib.parse import SplitResult, parse_qsl

from .. import ProtocolError
from .._fastpath import base64_encode
from . import TEXT, Audio, Clear, PlatformSide, Pressed, Stop, parse, text_of
from .audiocodes import AFTER_CHUNK, MOST_DIGITS, USUAL, message_of
from .payload import Payload
from .wav import FORMATS, RIFF, bytes_of, wav_content

MOST_UNPLAYED_MS = 2000         # it holds no more


class AudioCodesCaller(PlatformSide):
    """The platform's side: ?format=raw/mulaw,... (default raw/lpcm16) is its offer.  It stops playing when told to;
    with ?bargeIn=off, VoiceAI Connect's default, it does not hear the caller from a recognition to the reply's end;
    with ?transfer=busy (or no-answer, declined, error) nobody takes a call that is handed over."""

    __slots__ = ("rate", "call_id", "outbox", "_offer", "_payload", "_player", "_playing", "_barges_in", "_accepted",
                 "_streaming", "_stream", "_streams", "_unplayed", "_before_chunk", "_resumes",
                 "_refuses")
    name = "audiocodes"
    _calls = itertools.count(1)

    def __init__(self, url: SplitResult):
        query = dict(parse_qsl(url.query))
        self._offer = query.get("format", USUAL).split(",")
        if unknown := set(self._offer) - set(FORMATS):
            raise ProtocolError(400, f"A format is one of {', '.join(FORMATS)}, not {sorted(unknown)[0][:20]!r}.")
        encoding, self.rate = FORMATS[self._offer[0]]
        self.call_id = f"{next(self._calls):032x}"
        self.outbox: list[tuple[int, bytes]] = []
        self._payload = Payload(encoding)       # of the user stream
        self._player = self._payload            # of the play stream,
        self._playing = ""                      # and its format
        self._barges_in = query.get("bargeIn") != "off"
        self._accepted = ""         # the format of the user stream, once the session was accepted
        self._streaming = False     # the server has said that it takes the user stream
        self._stream = ""           # the play stream that is open,
        self._streams: set[str] = set()     # and all that were
        self._unplayed = 0          # samples
        self._before_chunk = b""
        self._resumes = False       # the session is to be gone on with, not begun
        self._refuses = query.get("transfer", "")   # why nobody takes a call that is handed over; "": somebody does

    def _send(self, kind: str, **fields) -> tuple[int, bytes]:
        return message_of(kind, conversationId=self.call_id, **fields)

    def _event(self, name: str, **fields) -> tuple[int, bytes]:
        return self._send("activities", activities=[{"type": "event", "name": name, **fields}])

    def open(self) -> list[tuple[int, bytes]]:
        self._before_chunk = self._send("userStream.chunk", audioChunk="")[1][:-len(AFTER_CHUNK)]
        return [self._send("session.initiate", botName="bot", caller="+15550100", expectAudioMessages=True,
                           supportedMediaFormats=self._offer)]

    def again(self) -> list[tuple[int, bytes]]:
        self._resumes, self._streaming, self._stream, self._unplayed = True, False, "", 0
        return [self._send("session.resume")]

    def audio(self, pcm) -> tuple[int, bytes] | None:
        self._unplayed = max(0, self._unplayed - len(pcm))
        return (TEXT, self._payload.message(self._before_chunk, pcm, AFTER_CHUNK)) if self._streaming else None

    def dtmf(self, digit: str) -> tuple[int, bytes]:
        return self._event("DTMF", value=digit)

    def mark(self, name: str) -> None:
        return None

    def stop(self) -> tuple[int, bytes]:
        self._streaming = False
        return self._send("session.end", reasonCode="client-disconnected", reason="Client Side")

    def receive(self, opcode: int, payload) -> Audio | Clear | Pressed | Stop | None:
        message = parse(payload, self.name)
        kind = text_of(message.get("type"))
        take = TAKE.get(kind)
        if opcode != TEXT or take is None and not kind.startswith("userStream.speech."):
            raise ProtocolError(1008, f"audiocodes: nothing is known of {kind[:40]!r}")
        return take(self, message) if take is not None else self._speech(kind, message)

    def _accept(self, message: dict) -> None:
        self._accepted = text_of(message.get("mediaFormat"))
        if self._accepted not in self._offer or FORMATS[self._accepted][1] != self.rate:
            raise ProtocolError(1008, "audiocodes: a format was accepted that was not offered, or at another rate")
        self._payload = Payload(FORMATS[self._accepted][0])
        if self._resumes:
            return self.outbox.append(self._send("userStream.start"))
        parties = {"caller": "+15550100", "callee": "+15550199"}
        self.outbox.append(self._event("start", parameters={"locale": "en-US", **parties}))
        self.outbox.append(self._send("userStream.start"))

    def _refused(self, message: dict) -> None:
        raise ProtocolError(1008, f"audiocodes: {text_of(message.get('reason'))[:100]}")

    def _takes_stream(self, message: dict) -> None:
        self._streaming = True

    def _speech(self, kind: str, message: dict) -> None:
        what = kind.rpartition(".")[2]
        if what in ("hypothesis", "recognition"):
            match message:
                case {"alternatives": [{"text": str()}]}:
                    pass
                case _:
                    raise ProtocolError(1008, f"audiocodes: a {what} without alternatives")
        elif what not in ("started", "stopped", "committed"):
            raise ProtocolError(1008, f"audiocodes: nothing is known of {kind[:40]!r}")
        if what == "recognition" and not self._barges_in and self._streaming:
            self._streaming = False
            self.outbox.append(self._send("userStream.stop"))

    def _play(self, message: dict) -> None:
        stream, media_format = text_of(message.get("streamId")), text_of(message.get("mediaFormat"))
        if not self._accepted or self._stream or not stream or stream in self._streams:
            raise ProtocolError(1008, "audiocodes: one play stream at a time, each with an id of its own")
        if media_format not in self._offer or FORMATS[media_format][1] != self.rate:
            raise ProtocolError(1008, "audiocodes: a play stream in a format that was not offered, or at another rate")
        self._stream, self._playing = stream, media_format
        self._player = Payload(FORMATS[media_format][0])
        self._streams.add(stream)

    def _played(self, message: dict) -> Audio | None:
        if not self._stream or message.get("streamId") != self._stream:
            raise ProtocolError(1008, "audiocodes: a chunk of a play stream that is not open")
        text = message.get("audioChunk")
        if self._playing.startswith("wav/") and isinstance(text, str) and text.startswith(RIFF):
            text = base64_encode(wav_content(bytes_of(text), self._playing)).decode()
        audio = self._player.decode(text, self.name)
        self._unplayed += len(audio.pcm) if audio is not None else 0
        if self._unplayed * 1000 > MOST_UNPLAYED_MS * self.rate:
            raise ProtocolError(1008, "audiocodes: chunks come at the speed at which they are played")
        return audio

    def _stop_playing(self, message: dict) -> Clear | None:
        """What is buffered is dropped, unless the platform is deaf to barge-ins."""
        if not self._stream or message.get("streamId") != self._stream:
            raise ProtocolError(1008, "audiocodes: the end of a play stream that is not open")
        self._stream = ""
        if self._barges_in:
            self._unplayed = 0
            return Clear()
        if not self._streaming:
            self.outbox.append(self._send("userStream.start"))
        return None

    def _obey(self, message: dict) -> Stop | Pressed | None:
        match message.get("activities"):
            case [{"type": "event", "name": "sendDtmf"}, *_] as several:
                return Pressed("".join(map(self._pressed, several)))
            case [{"type": "event", "name": "transfer"}] if self._refuses:
                status = {"status": "failed", "reasonCode": self._refuses, "reason": "nobody took the call"}
                self.outbox.append(self._event("transferStatus", value=status))
                return None
            case [{"type": "event", "name": "hangup" | "transfer"}]:
                self.outbox.append(self._send("session.end", reasonCode="bot-disconnected", reason="Bot Side"))
                return Stop()
        raise ProtocolError(1008, "audiocodes: activities of which nothing is known")

    @staticmethod
    def _pressed(activity: dict) -> str:
        match activity:
            case {"name": "sendDtmf", "activityParams": {"dtmfDigits": str(digits)}} if (
                    0 < len(digits) <= MOST_DIGITS and set(digits) <= set("0123456789*#")):
                return digits
        raise ProtocolError(1008, "audiocodes: keys that cannot be pressed")

    def _nothing(self, message: dict) -> None:
        return None


TAKE = {
    "session.accepted": AudioCodesCaller._accept,
    "session.error": AudioCodesCaller._refused,
    "userStream.started": AudioCodesCaller._takes_stream,
    "userStream.stopped": AudioCodesCaller._nothing,
    "playStream.start": AudioCodesCaller._play,
    "playStream.chunk": AudioCodesCaller._played,
    "playStream.stop": AudioCodesCaller._stop_playing,
    "activities": AudioCodesCaller._obey,
    "connection.validated": AudioCodesCaller._nothing,
}
