"""The model of the engine `openai`: chat completions, streamed, from any endpoint that speaks this API.

It streams and fails; it does not decide what is said instead.  The events are read here, with orjson: the package's
typed ones cost several times as much (bench/llm_chunk.py).  The rule: deadlines are the turn's, and what is not a
whole answer ends as one EngineError, after everything that came of it.
"""
from collections.abc import AsyncIterator

import orjson

from .. import EngineError
from ..config import Config
from .endpoint import Endpoint, Events

SPARE = 2                       # connections kept open ahead
STREAM = "text/event-stream"
DONE = b"[DONE]"


class Llm:
    """Chat completions, streamed."""

    def __init__(self, config: Config):
        self.settings = config.openai
        self.endpoint = Endpoint(config, "model", SPARE)

    async def open(self) -> None:
        await self.endpoint.open()

    async def close(self) -> None:
        await self.endpoint.close()

    async def reply(self, messages: tuple[dict, ...]) -> AsyncIterator[str]:
        """The pieces of the answer as they come.  Raises EngineError; closing the iterator cancels the request."""
        body = {"model": self.settings.llm_model, "messages": messages, "stream": True,
                "max_tokens": self.settings.max_tokens, "temperature": self.settings.temperature}
        async with self.endpoint.post("/chat/completions", body, STREAM, what=self.settings.llm_model) as answer:
            events, completion = Events(), Completion()
            async for data in answer.pieces:
                for event in events.feed(data):
                    if piece := completion.read(event):
                        yield piece
                if completion.over:             # the stream's own end may be a while
                    answer.finished = True
                    break
            completion.check(self.settings.max_tokens)

    def measure(self, metrics) -> None:
        self.endpoint.measure(metrics)


class Completion:
    """What the chunks of a streamed completion come to."""

    __slots__ = ("over", "_finish", "_empty")

    def __init__(self):
        self.over = False               # no more text will come
        self._finish = ""               # why it ended
        self._empty = True

    def read(self, event: bytes) -> str:
        """The text in the next event.  Raises EngineError where it is no chunk, or tells of an error."""
        if event == DONE:
            self.over = True
            return ""
        try:
            chunk = orjson.loads(event)
            if chunk.get("error"):
                raise EngineError("The model's endpoint broke its answer off with an error.")
            if not (choices := chunk.get("choices")):
                return ""               # usage, or what a filter thought of the question
            choice = choices[0]
            piece = (choice.get("delta") or {}).get("content") or ""
            if finish := choice.get("finish_reason"):
                self._finish, self.over = finish, True
            self._empty = not piece.strip() and self._empty
            return piece
        except (ValueError, TypeError, AttributeError, LookupError):
            raise EngineError("The model's endpoint sent an event that is no chunk of a completion.") from None

    def check(self, max_tokens: int) -> None:
        """It has ended.  Raises EngineError unless that was a whole answer."""
        if not self.over:
            raise EngineError("The model's endpoint ended its answer in the middle.")
        if self._finish == "length":
            raise EngineError(f"The model's answer did not end within {max_tokens} tokens.")
        if self._finish == "content_filter":
            raise EngineError("The model's answer was withheld by a filter of its endpoint.")
        if self._empty:
            raise EngineError("The model's answer is empty.")
