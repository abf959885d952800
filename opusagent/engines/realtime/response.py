"""One answer of a Realtime session: what comes of it, and the speech in it on its way into a segment buffer.

The rule: what was called off says nothing any more; the audio of an answer is believed only as far as it can be
speech, as that of any voice.
"""
import asyncio
import base64
from collections.abc import AsyncIterator

import numpy as np
import orjson

from ... import EngineError
from ..._fastpath import ulaw_decode
from ...flow import FunctionCall
from ...usage import Question
from ..level import Level
from ..openai.tts import EDGE_MS, Sound, split
from ..remote.endpoint import CODE
from ..segments import Speaking
from ..spoken import Spoken
from .context import ASSISTANT, CALL, Item

LONGEST_SECONDS = 120.0         # of speech in one answer
BROKEN = {"content_filter": "withheld its answer by a filter", "max_output_tokens": "did not end its answer"}


class Response:
    """Asked for by the event `asked`; the endpoint calls it `id`."""

    __slots__ = ("conversation", "asked", "id", "spoken", "speech", "items", "over", "dropped", "question", "_pieces",
                 "_empty")

    def __init__(self, conversation, asked: str, spoken: bool, question: Question | None = None):
        self.conversation = conversation
        self.asked = asked
        self.id = ""
        self.spoken = spoken                        # it is wanted as speech
        self.speech: OwnSpeech | None = None        # the latest one in it
        self.items: dict[str, Item] = {}            # by name
        self.over = False                           # nothing more will come
        self.dropped = False                        # nobody wants it any more
        self.question = question                    # what it costs is told there
        self._pieces: asyncio.Queue = asyncio.Queue()
        self._empty = True

    async def next(self) -> str | FunctionCall | Spoken | None:
        """The next piece; None at its end.  Raises EngineError."""
        piece = await self._pieces.get()
        if isinstance(piece, EngineError):
            raise piece
        return piece

    def heard(self, what: str, event: dict) -> None:
        """An event of it.  Raises what a wrong one leads to: LookupError, TypeError, ValueError, AttributeError."""
        if what == "output_item.added":
            self._begins(event["item"])
        elif self.dropped:
            return
        elif what == "output_audio.delta":
            self._speech(event["item_id"]).feed(base64.b64decode(event["delta"], validate=True))
            self._pass("")
        elif what in ("output_audio_transcript.delta", "output_text.delta"):
            self._says(event["item_id"], event["delta"], what.startswith("output_audio"))
        elif what == "output_item.done" and event["item"]["type"] == CALL:
            self._pass(called(event["item"]))

    def _begins(self, item: dict) -> None:
        kind = item["type"]
        if kind in (CALL, "message"):
            found = self.conversation.spoke(str(item["id"]), CALL if kind == CALL else ASSISTANT,
                                            str(item.get("call_id") or ""))
            self.items[found.id] = found
            if self.dropped:
                self.conversation.delete(found)

    def _says(self, item_id: str, delta: str, aloud: bool) -> None:
        self.items[item_id].text += delta
        if aloud:
            self._speech(item_id).text += delta
        if self.question is not None:
            self.question.answered(len(delta))
        self._pass(delta)

    def _speech(self, item_id: str) -> "OwnSpeech":
        if self.speech is None or self.speech.item.id != item_id:
            if self.speech is not None:
                self.speech.end()
            rate = 8000 if self.conversation.rates[1] == 8000 else 24000
            self.speech = OwnSpeech(self, self.items[item_id], rate)
            self._pass(self.speech)
        return self.speech

    def _pass(self, piece) -> None:
        self._empty = self._empty and not piece
        self._pieces.put_nowait(piece)

    def done(self, told: dict) -> None:
        """The endpoint has said all of it."""
        status, details = told.get("status"), told.get("status_details") or {}
        if self.question is not None and isinstance(usage := told.get("usage"), dict):
            self.question.told({"prompt_tokens": usage.get("input_tokens"),
                                "completion_tokens": usage.get("output_tokens")})
        if status == "completed" and not self._empty or self.dropped:
            return self._end(None)
        if status == "completed":
            return self.fail(EngineError("The model's answer is empty."))
        error = details.get("error") or {}
        code = str(error.get("code") or error.get("type") or details.get("reason") or "")
        why = BROKEN.get(code, "broke its answer off" + (f" ({code})" if CODE.fullmatch(code) else ""))
        failed = EngineError(f"{self.conversation.session.endpoint.subject} {why}.")
        failed.whole = code == "max_output_tokens"
        self.fail(failed)

    def fail(self, error: EngineError) -> None:
        self._end(error)

    def _end(self, error: EngineError | None) -> None:
        if not self.over:
            self.over = True
            if self.speech is not None:
                self.speech.end(error)
            self._pieces.put_nowait(error)

    def drop(self) -> None:
        """Nobody wants the rest of it."""
        if self.over or self.dropped:
            return
        self.dropped = True
        if self.conversation.response is self:
            self.conversation.may("response.cancel", **({"response_id": self.id} if self.id else {}))
        for item in self.items.values():
            if self.speech is None or item is not self.speech.item:     # that is cut where it was heard
                self.conversation.delete(item)
        self._end(None)


class OwnSpeech(Spoken):
    """The audio of an answer, played as it comes."""

    __slots__ = ("response", "item", "rate", "text", "sound", "speaking", "_data", "_received")

    def __init__(self, response: Response, item: Item, rate: int):
        self.response = response
        self.item = item
        self.rate = rate                            # Hz of what comes: mu-law at 8000, else 16 bit
        self.text = ""                              # what it says, as far as that has come
        self.sound: Sound | None = None
        self.speaking: Speaking | None = None       # on its way into a buffer
        self._data: asyncio.Queue = asyncio.Queue()
        self._received = 0                          # samples

    def feed(self, data: bytes) -> None:
        self._received += len(data) if self.rate == 8000 else len(data) // 2
        if self._received > LONGEST_SECONDS * self.rate:
            raise ValueError
        self._data.put_nowait(data)

    def end(self, error: EngineError | None = None) -> None:
        self._data.put_nowait(error)

    def write(self, call, epoch: int, k: int) -> None:
        self.speaking = Speaking(call, epoch, k)
        self.speaking.task = asyncio.ensure_future(self.speaking.write_all(self.pcm(call.slot.rate_out)))

    def played(self) -> None:
        self.speaking.room.set()

    def stop(self, heard: int) -> None:
        ms, all_of_it = 0, False
        if self.speaking is not None:
            spoken = self.speaking.written - self.speaking.start
            all_of_it = self.response.over and self.speaking.task.done() and heard >= spoken > 0
            self.speaking.task.cancel()
            ms = self.sound.skipped_ms + heard * 1000 // self.speaking.slot.rate_out if heard and self.sound else 0
        self.response.drop()
        if not all_of_it:
            self.response.conversation.cut(self.item, min(ms, self._received * 1000 // self.rate))

    async def pcm(self, rate: int) -> AsyncIterator[np.ndarray]:
        """int16 at `rate`, while it comes; what breaks off ends at nothing.  Raises EngineError."""
        conversation = self.response.conversation
        level = conversation.reserve.levels.setdefault(conversation.voice, Level())
        self.sound = Sound(f"audio/pcm;rate={self.rate}", rate, LONGEST_SECONDS, level)
        tail = np.zeros(0, np.int16)
        try:
            while (data := await self._data.get()) is not None:
                if isinstance(data, EngineError):
                    raise data
                pcm, tail = split(np.concatenate((tail, self.sound.feed(self._samples(data)))), rate * EDGE_MS // 1000)
                yield pcm
            yield np.concatenate((tail, self.sound.finish(self.text)))
        except EngineError:
            yield (tail * np.linspace(1, 0, len(tail))).astype(np.int16)
            raise

    def _samples(self, data: bytes) -> bytes:
        if self.rate != 8000:
            return data
        pcm = np.empty(len(data), np.int16)
        ulaw_decode(data, pcm)
        return pcm.tobytes()


def called(item: dict) -> FunctionCall:
    """The function that is called; its arguments are None where they are no JSON."""
    try:
        arguments = orjson.loads(item.get("arguments") or "{}")
    except orjson.JSONDecodeError:
        arguments = None
    return FunctionCall(str(item["name"])[:100], arguments, str(item.get("call_id") or "")[:100])
