"""The OpenAI Realtime protocol, spoken as the server: the released event names, or beta's where the client asks.

JSON text messages; audio is base64 in messages of any length.  The client leads: it sets the session up, may end a
turn or ask for a response itself, keeps the conversation's items in order, and says how much of an answer was heard
(conversation.item.truncate).  What it asks of the call is an Ask; what can be answered from the items alone is
answered here.  What the agent says goes out as soon as it is made.
Not known here: tools of type mcp.  One event is ours, for lines with a keypad: {"type": "input_audio_buffer.dtmf",
"event": "5"}.
The rule: whatever a client sends, out come events or an `error` event that names the offending one, never the end.
"""
import orjson

from ... import ProtocolError
from ..._fastpath import MediaIn, Resampler, Throttle
from .. import (ASK_COMMIT, ASK_DISCARD, ASK_UPDATE, RECOGNITION, SPEECH_STARTED, SPEECH_STOPPED, TEXT, Ask, Audio,
                Dialect, Dtmf, Start, digit_of, facts_of)
from ..payload import Payload
from . import recorded
from .asked import ASKED, item_of
from .edits import EDITS
from .items import Item, Items
from .names import beta
from .recorded import ENCODINGS, rate_of
from .response import Response
from .settings import DEFAULTS, TRANSCRIPTION, Fault, event_id, merged, shown, updated

USUAL_AUDIO = 64 << 10          # characters of base64 up to which the memory to read it into is kept
SHORTEST_COMMIT_MS = 100
OURS = ("model", "call_id", "beta", "intent", "session")    # names in the query that are no facts
BESIDE = ("conversation", "input", "metadata")      # what a request has besides settings
PACE = 8                        # times as fast as it was spoken, audio is heard
AT_ONCE = 125_000_000           # ns: ... after as much of it as is heard in so long
USUAL_MS = 100                  # of audio in a message
APPEND = b"input_audio_buffer.append"
AFTER_AUDIO = b'"}'


class OpenAIRealtime(Dialect):
    """The OpenAI Realtime protocol, at /v1/realtime?model=NAME: any of its clients talks to the agent as it stands."""

    __slots__ = ("rate", "ignored", "outbox", "session", "items", "response", "asides", "limits", "waiting",
                 "client_event", "throttle", "_plain",
                 "_beta", "_stem", "_prefix", "_names", "_numbers", "_query", "_in", "_out",
                 "_in_rate", "_in_resampler", "_out_format", "_out_resampler", "_used", "_voiced", "_at_ms",
                 "_committed", "_asked", "_speech", "_spoken")
    name = "openai-realtime"
    opcode = TEXT
    lead_ms = 600_000           # as soon as it is made: the client has the clock
    message_ms = 200
    patient = True
    max_message = 16 << 20
    protocols = ("realtime",)
    platform = "realtime"       # whose credentials its calls show

    def __init__(self, query: dict[str, str]):
        self.ignored = 0
        self.outbox: list[tuple[int, bytes]] = []
        self.throttle = Throttle(PACE, AT_ONCE)         # of what the client appends
        self._in: Payload | None = None
        self._plain: MediaIn | None = None
        self._query = query
        self._beta = query.get("beta") == "1"
        self._stem = query.get("call_id", "")[:64]
        self._prefix = f"{self._stem}_" if self._stem else ""       # of ids
        self._names = 0                         # ids given
        self._numbers = 0                       # events sent
        self.client_event: str | None = None   # event_id of what is being read
        kind = TRANSCRIPTION if query.get("intent") == TRANSCRIPTION else "realtime"
        given = orjson.loads(query.get("session", "{}"))        # what an ephemeral key has brought along
        self.session = merged(DEFAULTS, given) | {
            "type": given.get("type") or kind, "id": f"sess_{self._stem or 1}", "model": query.get("model", "")}
        self.items = Items()
        self.response = Response(self.emit, self.named, self._add)      # the conversation's
        self.asides: list[Response] = []        # beside it, in writing, on their way
        self.limits = (1, 1)                    # calls that this server takes at once, and how many more it would
        self.waiting = 0                        # responses that were asked for and have not begun
        self._used = False                      # audio has gone by: the line's rate stays
        self._voiced = False                    # ... of ours, too: the voice stays
        self._out_format: dict = {}             # of the latest response
        self._at_ms = 0                         # where in the caller's audio the next news belong
        self._committed = 0                     # `appended`, when the buffer was last empty,
        self._asked = 0                         # ... and when a commit was last asked for: it may not be done yet
        self._speech: str | None = None         # id of the item that is being spoken
        self._spoken: Item | None = None        # the last one that was
        self._tune()

    # -- what is sent --------------------------------------------------------------------------------------------------

    def emit(self, kind: str, **fields) -> None:
        self._numbers += 1
        event = {"type": kind, "event_id": f"event_{self._prefix}{self._numbers}", **fields}
        if self._beta and (event := beta(event)) is None:
            return
        self.outbox.append((TEXT, orjson.dumps(event)))

    def refuse(self, fault: Fault, event_id: str | None = None) -> None:
        """`event_id`: the client's, "" if it gave none; None: that of the event which is being read."""
        name = self.client_event if event_id is None else event_id or None
        self.emit("error", error={"type": "invalid_request_error", "code": fault.code, "message": fault.message,
                                  "param": fault.param, "event_id": name})

    def named(self, what: str) -> str:
        if what == "conv":
            return f"conv_{self._stem or 1}"
        self._names += 1
        return f"{what}_{self._prefix}{self._names}"

    def _add(self, item: Item) -> str | None:
        """The item is the conversation's last; the id of the one before it."""
        before = self.items.last_id
        self.items.add(item)
        return before

    def _tune(self) -> None:
        """The formats of the session, and the line's rate, while nothing has gone over it."""
        hears, speaks = (self.session["audio"][side]["format"] for side in ("input", "output"))
        if not self._used:
            self.rate = max(rate_of(hears), rate_of(speaks))
        if self._in is None or self._in.encoding != ENCODINGS[hears["type"]]:
            self._in = Payload(ENCODINGS[hears["type"]])
        self._in_rate, self._plain = rate_of(hears), None
        self.throttle.rate, self.throttle.longest = self._in_rate, USUAL_MS * self._in_rate // 1000
        self._in_resampler = None if self._in_rate == self.rate else Resampler(self._in_rate, self.rate)

    def voice_in(self, speaks: dict) -> None:
        """The format of the response that follows."""
        if speaks != self._out_format:
            self._out_format, self._out = speaks, Payload(ENCODINGS[speaks["type"]])
            self._out_resampler = None if rate_of(speaks) == self.rate else Resampler(self.rate, rate_of(speaks))

    def open(self) -> Start:
        self.emit("session.created", session=shown(self.session))
        if self._beta:
            self.emit("conversation.created",
                      conversation={"id": self.named("conv"), "object": "realtime.conversation"})
        facts = {name: value for name, value in self._query.items() if name not in OURS}
        return Start(self._query.get("call_id", ""), facts | (self.facts if "session" in self._query else {}))

    # -- what the call asks of it --------------------------------------------------------------------------------------

    @property
    def appended(self) -> int:
        """Samples of all audio that came, at the rate of the input's format."""
        return self.throttle.appended

    @property
    def halved(self) -> bool:
        """The last message ended in mid-sample, so the next one is not plain."""
        return bool(self._in.half)

    @property
    def detector(self) -> dict | None:
        """turn_detection; None where the client ends its turns itself."""
        return self.session["audio"]["input"]["turn_detection"]

    @property
    def creates(self) -> bool:
        """A turn that has ended is answered without being asked."""
        return self.detector is not None and self.detector["create_response"] and self.session["type"] == "realtime"

    @property
    def interruptible(self) -> bool:
        return self.detector is None or self.detector["interrupt_response"]

    @property
    def listening(self) -> bool:
        """The caller speaks: what was understood of it is in no item yet."""
        return self._speech is not None

    @property
    def facts(self) -> dict[str, str]:
        """What the client has told us of the conversation."""
        prompt = self.session["prompt"] or {}
        variables = prompt.get("variables") if isinstance(prompt.get("variables"), dict) else {}
        tools = ", ".join(tool["name"] for tool in self.session["tools"])
        return facts_of(variables) | facts_of({"instructions": self.session["instructions"], "tools": tools})

    def at(self, ms: float) -> None:
        """The next news belong there in the caller's audio."""
        self._at_ms = max(0, min(int(ms), self.appended * 1000 // self._in_rate))

    def respond(self, request: dict | None = None, event_id: str | None = None) -> bool:
        """A response begins; False, and an error is sent, while another one is on its way."""
        request = request or {}
        self.waiting -= event_id is not None
        self._used = True
        if self.response.create(request, self.applying(request), *self._answered()):
            self.voice_in(self.response.settings["audio"]["output"]["format"])
            return True
        self.refuse(Fault("conversation_already_has_active_response",
                          f"The response {self.response.id} is still on its way: wait for its end, or cancel it."),
                    event_id)
        return False

    def respond_beside(self, request: dict) -> Response:
        """A response beside the conversation begins, whatever is on its way in it."""
        self.waiting -= 1
        self.asides.append(Response(self.emit, self.named, self._add))
        self.asides[-1].create(request, self.applying(request), *self._answered())
        return self.asides[-1]

    def _answered(self) -> tuple[int, int]:
        """What a response answers: characters, and ms of audio."""
        text = len(self.session["instructions"]) + sum(item.size for item in self.items.order)
        return text, int(self._spoken.audio_ms if self._spoken is not None else 0)

    def applying(self, request: dict) -> dict:
        """The settings that apply to a response."""
        return merged(self.session, {name: value for name, value in request.items() if name not in BESIDE})

    def finish(self, status: str = "completed", details: dict | None = None, spans: tuple = (),
               aside: Response | None = None) -> None:
        """A response is over; `spans` are the (text, from ms, to ms) of its audio."""
        response = aside or self.response
        if not response.active:
            return
        if aside is not None:
            self.asides.remove(aside)
        elif response.message is not None:
            response.message.spans = spans
        response.finish(status, details)
        most, left = self.limits
        self.emit("rate_limits.updated", rate_limits=[{"name": "requests", "limit": most, "remaining": left,
                                                       "reset_seconds": 0}])

    def heard(self, text: str) -> None:
        """Of the last message, the caller heard only this."""
        if self.response.message is not None:
            self.response.message.heard = text

    def take_back(self) -> None:
        """The caller has gone on: what was heard is not all of the turn, and comes again as a new item."""
        if self._spoken is not None and self._spoken in self.items.order:
            self.items.order.remove(self._spoken)
            self.emit("conversation.item.deleted", item_id=self._spoken.id)
        self._spoken = None

    def not_recognised(self, sentence: str) -> None:
        if self._spoken is not None:
            recorded.not_recognised(self, self._spoken, 0, sentence)

    # -- from the client -----------------------------------------------------------------------------------------------

    def receive(self, opcode: int, payload) -> Ask | Audio | Dtmf | None:
        self.client_event = None
        if not self._in.half and (audio := self._in.audible.streamed(payload, APPEND, b"audio")) is not None:
            return self._hear(audio)            # as nearly always
        try:
            message = orjson.loads(payload)
        except orjson.JSONDecodeError:
            message = None
        if not isinstance(message, dict):
            return self.refuse(Fault("invalid_json", "A message must be a JSON object."))
        kind = message.get("type")
        self.client_event = event_id(message) or None
        read = READ.get(kind) if isinstance(kind, str) else None
        if read is None:
            return self.refuse(Fault("invalid_value", f"There is no client event of this type; there are "
                                     f"{', '.join(READ)}.", "type"))
        answers = len(self.outbox)
        event = read(self, message)
        self.ignored += event is None and len(self.outbox) == answers
        return event

    @property
    def media_in(self) -> MediaIn | None:
        """Audio that is resampled by nobody but the call, once some has come; the call opens the throttle."""
        if self._plain is None and self._used and self._in_resampler is None:
            self._plain = self._in.media_in(kind=APPEND, field=b"audio", throttle=self.throttle)
        return self._plain

    def name_of(self, payload) -> str:
        """The event_id of a message that has been read."""
        return event_id(orjson.loads(payload))

    def _update(self, message: dict) -> Ask | None:
        session = updated(self.session, message.get("session"))
        if not isinstance(session, Fault):
            if message["type"] == "transcription_session.update":       # beta's
                session["type"] = TRANSCRIPTION
            session = self.keeps_voice(session, "session") or session
        if isinstance(session, Fault):
            return self.refuse(session)
        self.session, before = session, self._in_rate
        self._tune()
        self._recount(before)
        self.emit("session.updated", session=shown(self.session))
        return Ask(ASK_UPDATE)

    def _recount(self, before: int) -> None:
        """Samples are counted at the rate of the input's format, which was another `before`, Hz."""
        if (rate := self._in_rate) != before:
            self.throttle.appended = self.appended * rate // before
            self._committed, self._asked = self._committed * rate // before, self._asked * rate // before

    def keeps_voice(self, settings: dict, path: str) -> Fault | None:
        """Once it has been heard, the agent has one voice."""
        if self._voiced and settings["audio"]["output"]["voice"] != self.session["audio"]["output"]["voice"]:
            return Fault("cannot_update_voice", "The agent has been heard: its voice stays as it is in this session.",
                         f"{path}.audio.output.voice")
        return None

    def _append(self, message: dict) -> Audio | None:
        try:
            audio = self._in.follows(message.get("audio"), self.name, USUAL_AUDIO)
        except ProtocolError:
            return self.refuse(Fault("invalid_value", "audio must be base64 of the input format's samples.", "audio"))
        return self._hear(audio) if audio is not None else None

    def _hear(self, audio: Audio) -> Audio | None:
        self._used = True
        self.throttle.appended += len(audio.pcm)
        if self._in_resampler is not None:
            pcm = self._in_resampler.push(audio.pcm)
            return Audio(memoryview(pcm)) if len(pcm) else None
        return audio

    def _commit(self, message: dict) -> Ask | None:
        ms = (self.appended - max(self._committed, self._asked)) * 1000 // self._in_rate
        if ms < SHORTEST_COMMIT_MS:
            return self.refuse(Fault("input_audio_buffer_commit_empty", f"The input audio buffer holds {ms} ms of "
                                     f"audio; a commit needs {SHORTEST_COMMIT_MS}."))
        self._asked, self._in.half = self.appended, b""
        return Ask(ASK_COMMIT)

    def _clear(self, message: dict) -> Ask:
        self._committed, self._in.half = self.appended, b""
        self._speech = None
        self.emit("input_audio_buffer.cleared")
        return Ask(ASK_DISCARD)

    def _dtmf(self, message: dict) -> Dtmf | None:
        digit = digit_of(message.get("event"))
        return Dtmf(digit) if digit else self.refuse(Fault("invalid_value", "event must be one key.", "event"))

    def inputs(self, request: dict) -> list[Item] | None:
        """The items that a response is to be made from; None: the conversation."""
        if request.get("input") is None:
            return None
        found = (item_of(self, value) for value in request["input"])
        return [item for item in found if not isinstance(item, Fault)]

    # -- to the client -------------------------------------------------------------------------------------------------

    def audio(self, pcm) -> bytes | None:
        """A delta of the response, which begins with it if there is none; None where it is text only."""
        if not self.response.active:
            self.respond()
        where = self.response.audio()
        if where is None:
            return None
        self._used = self._voiced = True
        self.response.heard(len(pcm) * 1000 / self.rate)
        self._numbers += 1
        kind = "response.audio.delta" if self._beta else "response.output_audio.delta"
        event = {"type": kind, "event_id": f"event_{self._prefix}{self._numbers}", **where, "delta": ""}
        if self._out_resampler is not None:
            pcm = self._out_resampler.push(pcm)
        return self._out.message(orjson.dumps(event)[:-len(AFTER_AUDIO)], pcm, AFTER_AUDIO)

    def mark(self, name: str) -> None:
        """The client says what was heard when it truncates, and only then."""

    def clear(self) -> None:
        """The client stops playing when it learns that the caller speaks."""

    def stop(self) -> None:
        """There is no word for it: the connection is closed."""

    def tell(self, news: str, *details) -> None:
        if news in TELL:
            TELL[news](self, *details)

    def _speech_started(self) -> None:
        if self._speech is not None:
            return
        self._speech = self.named("item")
        if self.detector is not None:
            start = max(0, self._at_ms - self.detector.get("prefix_padding_ms", 300))
            self.emit("input_audio_buffer.speech_started", audio_start_ms=start, item_id=self._speech)

    def _speech_stopped(self) -> None:
        """The turn is over: its audio is committed as an item."""
        name = self._speech or self.named("item")
        if self._speech is not None and self.detector is not None:
            self.emit("input_audio_buffer.speech_stopped", audio_end_ms=self._at_ms, item_id=name)
        self._commit_as(name)

    def timed_out(self, silence_ms: int) -> None:
        """Nobody has spoken for as long as the client said: the silence is a turn of its own."""
        name = self.named("item")
        self.emit("input_audio_buffer.timeout_triggered", item_id=name, audio_end_ms=self._at_ms,
                  audio_start_ms=max(0, self._at_ms - silence_ms))
        self._commit_as(name)
        self._recognised("", 0.0)

    def _commit_as(self, name: str) -> None:
        ms = (self.appended - self._committed) * 1000 // self._in_rate
        self._speech, self._committed = None, self.appended
        self._spoken = item = Item(name, "message", "user", "input_audio", None, audio_ms=ms, opened=True)
        before = self._add(item)
        self.emit("input_audio_buffer.committed", item_id=name, previous_item_id=before)
        self.emit("conversation.item.added", previous_item_id=before, item=item.wire())
        self.emit("conversation.item.done", previous_item_id=before, item=item.wire())

    def _recognised(self, text: str, confidence: float, span: tuple[int, int] = (0, 0)) -> None:
        if (item := self._spoken) is not None:
            item.text = text
            recorded.recognised(self, item, 0, text, confidence, item.audio_ms / 1000)


READ = {
    "session.update": OpenAIRealtime._update,
    "transcription_session.update": OpenAIRealtime._update,
    "input_audio_buffer.append": OpenAIRealtime._append,
    "input_audio_buffer.commit": OpenAIRealtime._commit,
    "input_audio_buffer.clear": OpenAIRealtime._clear,
    "input_audio_buffer.dtmf": OpenAIRealtime._dtmf,
    **EDITS,
    **ASKED,
}
TELL = {
    SPEECH_STARTED: OpenAIRealtime._speech_started,
    SPEECH_STOPPED: OpenAIRealtime._speech_stopped,
    RECOGNITION: OpenAIRealtime._recognised,
}
