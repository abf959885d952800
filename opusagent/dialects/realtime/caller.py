"""A client of the Realtime protocol, for simulated calls: ?format=pcmu or pcma (default pcm), ?beta=1, ?model=NAME.

It plays what it hears in its own time, which is the frames that it sends; when the server hears the caller it stops,
and says by conversation.item.truncate how much was heard.  The rule: an event that the protocol does not allow where
it comes, or that lacks a field, ends the call.
"""
import itertools
from urllib.parse import SplitResult, parse_qsl

import orjson

from ... import ProtocolError
from .. import TEXT, Audio, Clear, PlatformSide, parse
from ..payload import L16, PCMA, PCMU, Payload

FORMATS = {"pcm": (L16, 24000, {"type": "audio/pcm", "rate": 24000}, "pcm16"),
           "pcmu": (PCMU, 8000, {"type": "audio/pcmu"}, "g711_ulaw"),
           "pcma": (PCMA, 8000, {"type": "audio/pcma"}, "g711_alaw")}
FIELDS = {      # of the events that are looked at closely; those of beta's names are the same
    "session.created": ("session",), "session.updated": ("session",), "error": ("error",),
    "input_audio_buffer.speech_started": ("audio_start_ms", "item_id"),
    "input_audio_buffer.speech_stopped": ("audio_end_ms", "item_id"),
    "input_audio_buffer.committed": ("item_id", "previous_item_id"),
    "conversation.item.added": ("item", "previous_item_id"), "conversation.item.created": ("item", "previous_item_id"),
    "response.created": ("response",), "response.done": ("response",),
    "response.output_item.added": ("response_id", "output_index", "item"),
    "response.output_item.done": ("response_id", "output_index", "item"),
}
PLACE = ("response_id", "item_id", "output_index", "content_index")
DELTAS = ("response.output_audio.delta", "response.audio.delta")


class OpenAIRealtimeCaller(PlatformSide):
    """The client's side.  It ends its call at an `error` event, too: it asks for nothing that could be refused."""

    __slots__ = ("rate", "call_id", "outbox", "_payload", "_player", "_beta", "_names", "_events", "_response",
                 "_asides", "_item",
                 "_received", "_played")
    name = "openai-realtime"
    protocols = ("realtime",)
    _calls = itertools.count(1)

    def __init__(self, url: SplitResult):
        query = dict(parse_qsl(url.query))
        if query.get("format", "pcm") not in FORMATS:
            raise ProtocolError(400, f"A format is one of {', '.join(FORMATS)}.")
        encoding, self.rate, *self._names = FORMATS[query.get("format", "pcm")]
        self.call_id = query.get("call_id") or f"client-{next(self._calls)}"
        self.outbox: list[tuple[int, bytes]] = []
        self._payload, self._player = Payload(encoding), Payload(encoding)
        self._beta = query.get("beta") == "1"
        self._events: set[str] = set()          # ids of events; each comes once
        self._response: str | None = None       # the one that is open
        self._asides: set[str] = set()          # those in writing that are open beside the conversation
        self._item: str | None = None           # what is being played,
        self._received = self._played = 0       # samples of it

    def _message(self, kind: str, **fields) -> tuple[int, bytes]:
        return TEXT, orjson.dumps({"type": kind, **fields})

    def open(self) -> list[tuple[int, bytes]]:
        audio_format, beta = self._names
        if self._beta:
            session = {"modalities": ["text", "audio"], "input_audio_format": beta, "output_audio_format": beta}
        else:
            session = {"type": "realtime", "audio": {
                "input": {"format": audio_format, "turn_detection": {"type": "server_vad"}},
                "output": {"format": audio_format}}}
        return [self._message("session.update", session=session)]

    def audio(self, pcm) -> tuple[int, bytes]:
        """A beat of the client's clock, too."""
        self._played = min(self._received, self._played + len(pcm))
        return TEXT, self._payload.message(b'{"type":"input_audio_buffer.append","audio":"', pcm, b'"}')

    def dtmf(self, digit: str) -> tuple[int, bytes]:
        return self._message("input_audio_buffer.dtmf", event=digit)

    def mark(self, name: str) -> None:
        return None

    def stop(self) -> None:
        """It just closes."""
        return None

    # -- what it takes -------------------------------------------------------------------------------------------------

    def receive(self, opcode: int, payload) -> Audio | Clear | None:
        event = parse(payload, self.name)
        kind, name = event.get("type"), event.get("event_id")
        if not isinstance(kind, str) or not isinstance(name, str) or name in self._events:
            raise ProtocolError(1008, "openai-realtime: an event without a type, or an event_id of its own")
        if len(self._events) > 10_000:
            self._events.clear()
        self._events.add(name)
        if missing := [field for field in FIELDS.get(kind, ()) if field not in event]:
            raise ProtocolError(1008, f"openai-realtime: {kind} lacks {missing[0]}")
        if kind in DELTAS:
            return self._hear(event)
        take = TAKE.get(kind)
        return take(self, event) if take is not None else None

    def _hear(self, event: dict) -> Audio | None:
        if any(field not in event for field in PLACE) or event["response_id"] != self._response:
            raise ProtocolError(1008, "openai-realtime: audio of no response, or of none that is open")
        if event["item_id"] != self._item:
            self._item, self._received, self._played = event["item_id"], 0, 0
        audio = self._player.decode(event.get("delta"), self.name)
        self._received += len(audio.pcm) if audio is not None else 0
        return audio

    def _fail(self, event: dict) -> None:
        error = event["error"] if isinstance(event["error"], dict) else {}
        raise ProtocolError(1008, f"openai-realtime: {error.get('message')}"[:120])

    def _begin(self, event: dict) -> None:
        response = event["response"]
        if isinstance(response, dict) and is_aside(response):
            return self._asides.add(response.get("id"))
        if self._response is not None or not isinstance(response, dict) or response.get("status") != "in_progress":
            raise ProtocolError(1008, "openai-realtime: a response while another one is open")
        self._response = response.get("id")

    def _done(self, event: dict) -> None:
        response = event["response"]
        ended = response.get("id") if isinstance(response, dict) else None
        if ended is None or ended not in (self._response, *self._asides):
            raise ProtocolError(1008, "openai-realtime: the end of a response that was not open")
        if response.get("status") not in ("completed", "cancelled", "failed", "incomplete"):
            raise ProtocolError(1008, "openai-realtime: a response that ended in no known way")
        if ended in self._asides:
            return self._asides.discard(ended)
        self._response = None

    def _interrupted(self, event: dict) -> Clear | None:
        """The caller is heard: what is being played stops."""
        if self._item is None or self._played >= self._received:
            return None
        self.outbox.append(self._message("conversation.item.truncate", item_id=self._item, content_index=0,
                                         audio_end_ms=self._played * 1000 // self.rate))
        self._item = None
        return Clear()


def is_aside(response: dict) -> bool:
    """It may come while another one is open."""
    written = response.get("output_modalities") or response.get("modalities")
    return response.get("conversation_id") is None and written == ["text"]


TAKE = {
    "error": OpenAIRealtimeCaller._fail,
    "response.created": OpenAIRealtimeCaller._begin,
    "response.done": OpenAIRealtimeCaller._done,
    "input_audio_buffer.speech_started": OpenAIRealtimeCaller._interrupted,
}
