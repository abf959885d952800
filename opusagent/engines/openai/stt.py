"""The recogniser of the engine `openai`: a Realtime transcription session where the best endpoint has them, and else
audio.transcriptions, an utterance at a time.

Over a session (live.py) an utterance is heard while it is said.  Otherwise it is sent when the caller pauses,
and its text is the final one if nothing was said after that; if something was, all of it is sent again at its end.  It
is sent as well where a session dies and there is no other, or is late.  The rule: at most one request of an utterance
is on its way, what comes of an older one is never heard, and the first text after its end is the last.
"""
import asyncio
import logging
import struct
from collections.abc import Callable

import orjson

from ... import EngineError
from ..._fastpath import Slot
from ...config import Config
from ...speech.audio import last_voiced
from ..remote.endpoint import Answer, Endpoint, Events
from ..remote.preference import Preference
from .live import Lines, Live

log = logging.getLogger("opusagent")

SPARE = 2                       # connections kept open ahead
ANSWER = r"text/event-stream|application/json"
PIECE_SECONDS = 5.0             # from piece to piece of an answer; the call's own patience is shorter
ANSWER_BYTES = 1 << 20          # of one
MARGIN_MS = 500                 # of the oldest audio in a slot: it may be overwritten meanwhile
LONGEST_SECONDS = 60            # of an utterance; of a longer one the end is recognised
SHORTEST_MS = 100               # what is shorter says nothing, and endpoints refuse it
PROMPT_CHARACTERS = 600         # of the words that a state expects


class Stt:
    """Recognition by an endpoint."""

    def __init__(self, config: Config):
        self.endpoints = Preference(config, "stt", "recogniser", SPARE)
        best = self.endpoints.best
        self.lines = Lines(best, best.target.model) if config.openai.stt_realtime else None     # None: there are none
        self.heard: dict[object, Utterance] = {}        # by call, those that are being recognised
        self.saved = 0                                  # utterances whose text was there, or on its way, at their end

    async def open(self, arena, searches) -> None:
        await self.endpoints.open()
        if self.lines is not None and (self.endpoints.best.transport is None or not await self.lines.open()):
            self.lines = None

    async def close(self) -> None:
        for call in list(self.heard):
            self.cancel(call)
        if self.lines is not None:
            await self.lines.close()
        await self.endpoints.close()

    def listen(self, call, position: int) -> None:
        self.cancel(call)
        utterance = self.heard[call] = Utterance(self, call, position)
        if self.lines is not None:
            utterance.live = live = Live(utterance, self.lines)
            if not live.begin(utterance.prompt):
                utterance.live = None
            else:
                self.audio(call)

    def audio(self, call) -> None:
        if (utterance := self.heard.get(call)) is None:
            return
        if utterance.live is None:
            utterance.collect_some()
        else:
            utterance.collect(call.slot.written)
            utterance.live.send()

    def ask(self, call) -> None:
        if utterance := self.heard.get(call):
            utterance.collect(call.slot.written)
            self._send(utterance)

    def finish(self, call, position: int) -> None:
        utterance = self.heard.get(call)
        if utterance is None:
            return
        utterance.collect(position)
        utterance.finished = True
        if not utterance.said_since():
            self.saved += 1
        else:
            self._send(utterance)
        if utterance.live is not None:
            asyncio.get_running_loop().call_soon(utterance.news)        # all of it may be known, or be nothing
            utterance.late = asyncio.get_running_loop().call_later(self.endpoints.best.target.first_seconds, self._late,
                                                                   utterance)
        elif utterance.text is not None:                # as an answer of its own, not before this call returns
            asyncio.get_running_loop().call_soon(self._tell, utterance)

    def cancel(self, call) -> None:
        if utterance := self.heard.pop(call, None):
            utterance.end()

    forget = cancel

    def measure(self, metrics) -> None:
        self.endpoints.measure(metrics)
        if self.lines is not None:
            self.lines.measure(metrics)
        metrics.gauge("utterances_in_recognition", len(self.heard))
        metrics.gauge("utterances_recognised_ahead", self.saved)

    # -- requests ------------------------------------------------------------------------------------------------------

    def _send(self, utterance: "Utterance") -> None:
        """All that was heard of it so far; an older request is of no use any more."""
        utterance.drop_request()
        utterance.sent = len(utterance.pcm)
        if utterance.live is not None:
            utterance.live.commit()
        else:
            utterance.task = asyncio.ensure_future(self._recognise(utterance, bytes(utterance.pcm)))

    def _late(self, utterance: "Utterance") -> None:
        """Its session has not said all of it in its time: whoever is first now."""
        if self._is_current(utterance) and utterance.task is None:
            if utterance.live is not None:
                utterance.live.late = True
            utterance.task = asyncio.ensure_future(self._recognise(utterance, bytes(utterance.pcm)))

    def progressed(self, utterance: "Utterance") -> None:
        """There is more text of it over its session, or all."""
        live = utterance.live
        if live is None or not self._is_current(utterance):
            return
        if utterance.finished and not live.settled:
            return
        if utterance.finished or live.text:
            utterance.text = live.text
            self._tell(utterance)

    def line_lost(self, utterance: "Utterance", sentence: str) -> None:
        """Its session is dead, and there is no other: it is sent as a whole."""
        utterance.live = None
        if self._is_current(utterance) and utterance.sent >= 0 and utterance.task is None:
            self._send(utterance)

    async def _recognise(self, utterance: "Utterance", pcm: bytes) -> None:
        try:
            text = await self._transcribe(utterance, pcm)
            utterance.task = None
        except EngineError as error:
            self._failed(utterance, str(error))
        except Exception:
            log.exception("the recogniser's engine broke")
            self._failed(utterance, "The recogniser's engine broke.")
        else:
            utterance.text = text
            self._tell(utterance)

    def _failed(self, utterance: "Utterance", sentence: str) -> None:
        """What was asked ahead may fail: it is asked again at the end.  So may what was asked besides a session."""
        utterance.task, utterance.sent = None, -1
        if utterance.finished and self._is_current(utterance) and utterance.live is None:
            del self.heard[utterance.call]
            utterance.end()
            utterance.call.on_failure(utterance.number, sentence)

    def _tell(self, utterance: "Utterance") -> None:
        if not self._is_current(utterance):
            return
        text = utterance.text
        if utterance.finished:
            del self.heard[utterance.call]
            utterance.end()
            utterance.call.on_final(utterance.number, text, 1.0)
        else:
            utterance.call.on_partial(utterance.number, text)

    def _is_current(self, utterance: "Utterance") -> bool:
        return self.heard.get(utterance.call) is utterance

    async def _transcribe(self, utterance: "Utterance", pcm: bytes) -> str:
        """The text of these samples, by the first endpoint that knows it.  Raises EngineError."""
        if len(pcm) < 2 * utterance.rate * SHORTEST_MS // 1000:
            return ""
        asked = [self.endpoints.first()]
        while True:
            try:
                return await self._ask(asked[-1], utterance, pcm, self.endpoints.next(asked) is None)
            except EngineError as error:
                if (endpoint := self.endpoints.fall_back(asked, str(error))) is None:
                    raise
                asked.append(endpoint)

    async def _ask(self, endpoint: Endpoint, utterance: "Utterance", pcm: bytes, last: bool) -> str:
        """`last`: there is no other endpoint to ask, so this one has the call's own patience."""
        target = endpoint.target
        body = {"model": target.model, "stream": True}
        if utterance.prompt:
            body["prompt"] = utterance.prompt
        files = {"file": ("utterance.wav", wav(pcm, utterance.rate), "audio/wav")}
        within, gap = (PIECE_SECONDS, PIECE_SECONDS) if last else (target.first_seconds, target.gap_seconds)
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            async with endpoint.post("/audio/transcriptions", body, ANSWER, files=files, what=target.model,
                                     within=within) as answer:
                if answer.field("content-type").startswith("application/json"):
                    return await read_whole(answer, gap)
                return await read_stream(answer, gap, lambda text: self._hint(utterance, text))
        except asyncio.CancelledError:
            if utterance.finished and clock() - began > target.first_seconds:
                endpoint.late()                 # that is why nobody waits any more
            raise

    def _hint(self, utterance: "Utterance", text: str) -> None:
        """The beginning of a text."""
        if not utterance.finished and self._is_current(utterance):
            utterance.call.on_partial(utterance.number, text)


class Utterance:
    """What is heard of one utterance, and what is asked about it."""

    __slots__ = ("stt", "call", "slot", "number", "prompt", "position", "rate", "pcm", "taken", "sent", "finished",
                 "text", "task", "live", "late")

    def __init__(self, stt: Stt, call, position: int):
        self.stt = stt
        self.call = call
        self.slot: Slot = call.slot
        self.number = call.utterance
        self.prompt = prompt_of(call.terms)
        self.position = position                # in the slot, of the next sample to be collected
        self.rate = call.slot.rate_in
        self.pcm = bytearray()                  # int16 samples of it
        self.taken = 0                          # bytes of these that there ever were
        self.sent = -1                          # how many bytes of that the request has; -1: there is none
        self.finished = False                   # it has ended
        self.text: str | None = None            # what the request came to
        self.task: asyncio.Task | None = None   # the request
        self.live: Live | None = None           # the session; None: requests are made
        self.late: asyncio.TimerHandle | None = None    # how long that may take at its end

    def collect_some(self) -> None:
        """From time to time: the slot does not keep it for ever."""
        if self.slot.written - self.position > self.slot.capacity // 4:
            self.collect(self.slot.written)

    def collect(self, end: int) -> None:
        """Take what has come up to position `end`."""
        slot = self.slot
        begin = max(self.position, slot.written - slot.capacity + self.rate * MARGIN_MS // 1000)
        if end > begin:
            self.pcm += slot.read(begin, end - begin).tobytes()
            self.taken += 2 * (end - begin)
            self.position = end
        if (over := len(self.pcm) - 2 * self.rate * LONGEST_SECONDS) > 0:
            del self.pcm[:over]
            self.sent = -1

    def said_since(self) -> bool:
        """Whether something was said that the request does not have."""
        if self.sent < 0:
            return True
        clip = memoryview(self.pcm)[-2 * self.slot.capacity:].cast("h")
        last = last_voiced(clip, self.rate)
        return last is not None and 2 * last > self.sent - (len(self.pcm) - 2 * len(clip))

    def drop_request(self) -> None:
        if self.task is not None:
            self.task.cancel()
        self.task, self.text, self.sent = None, None, -1

    def news(self) -> None:
        self.stt.progressed(self)

    def line_lost(self, sentence: str) -> None:
        self.stt.line_lost(self, sentence)

    def end(self) -> None:
        """Nobody wants it any more, or all is known."""
        self.drop_request()
        if self.late is not None:
            self.late.cancel()
        if self.live is not None:
            self.live.end()
            self.live = None


def prompt_of(terms: tuple[str, ...]) -> str:
    """The phrases that a state expects, as many whole ones as fit."""
    prompt = ""
    for term in terms:
        if len(prompt) + len(term) + 2 > PROMPT_CHARACTERS:
            break
        prompt += f", {term}" if prompt else term
    return prompt


async def read_whole(answer: Answer, gap: float) -> str:
    """The text of a JSON answer, whose pieces come within `gap` seconds each.  Raises EngineError."""
    data = b""
    while piece := await answer.next(gap):
        data += piece
        if len(data) > ANSWER_BYTES:
            raise EngineError("The recogniser's endpoint sent an answer without an end.")
    text = text_in(data, "text")
    answer.finished = True
    return text


async def read_stream(answer: Answer, gap: float, hint: Callable[[str], None]) -> str:
    """The text of a streamed answer; `hint` hears its beginning while it grows.  Raises EngineError."""
    events, text = Events(), ""
    while data := await answer.next(gap):
        for event in events.feed(data):
            if b"transcript.text.done" in event:
                text = text_in(event, "text")
                answer.finished = True
                return text
            if b"transcript.text.delta" in event:
                text += text_in(event, "delta")
            elif b'"error"' in event:
                raise EngineError("The recogniser's endpoint broke its answer off with an error.")
        if text.strip():
            hint(text)
    raise EngineError("The recogniser's endpoint ended its answer in the middle.")


def text_in(data: bytes, name: str) -> str:
    """A text in JSON.  Raises EngineError where it is not there."""
    try:
        text = orjson.loads(data)[name]
    except (ValueError, TypeError, LookupError):
        text = None
    if not isinstance(text, str):
        raise EngineError("The recogniser's endpoint sent what is no transcription.")
    return text.strip() if name == "text" else text


def wav(pcm: bytes, rate: int) -> bytes:
    """int16 samples as a WAV file."""
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(pcm), b"WAVE", b"fmt ", 16, 1, 1, rate, rate * 2, 2, 16,
                       b"data", len(pcm)) + pcm
