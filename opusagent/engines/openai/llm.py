"""The model of the engine `openai`: chat completions, streamed, from endpoints that speak this API.

It streams and fails; it does not decide what is said instead.  The events are read here, with orjson: the package's
typed ones cost several times as much (bench/llm_chunk.py).  Who is asked, and who is asked besides, is race.py's.
The rule: what was passed on is never passed on again, whoever goes on with it; deadlines are the turn's, and what is
not a whole answer ends as one EngineError, after everything that came of it.
"""
import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import suppress

import orjson

from ... import EngineError
from ...config import Config, OpenAI
from ...flow import FunctionCall
from ...usage import Question
from ..remote.continuing import Continuing, going_on
from ..remote.endpoint import Endpoint, Events, code_of
from ..remote.preference import Preference
from ..remote.race import Attempt, CallBegins, Hedging, Race
from .thinking import Thinking
from .written import Written

SPARE = 2                       # connections kept open ahead
SOONER = 0.9                    # of the turn's own patience: a gap is noticed here before the turn gives up for it
STREAM = "text/event-stream"
DONE = b"[DONE]"
CALLING = ("tool_calls", "function_call")       # why an answer ended, where a function is to be called


class Llm:
    """Chat completions, streamed."""

    counts = True                               # it tells usage.current what was asked for

    def __init__(self, config: Config):
        self.settings = config.openai
        self.endpoints = Preference(config, "llm", "model", SPARE)
        self.hedging = Hedging(config.openai.hedge_share)
        self.continued = 0                          # answers that another endpoint went on with

    async def open(self) -> None:
        await self.endpoints.open()

    async def close(self) -> None:
        await self.endpoints.close()

    async def reply(self, messages: tuple[dict, ...], tools: tuple[dict, ...] = (),
                    choice: str = "auto") -> AsyncIterator[str | FunctionCall]:
        """The pieces of the answer as they come; an empty one means that another endpoint goes on with it, or that a
        function call begins.  The call itself, if there is one, comes last.

        Raises EngineError; closing the iterator cancels the request.
        """
        self.hedging.begin()
        said: list[str] = []
        asked: list[Endpoint] = []
        offer = {"tools": tools} | ({"tool_choice": choice} if choice != "auto" else {}) if tools else {}
        endpoint = self.endpoints.first()
        while True:
            sofar = "".join(said)
            new = Continuing(sofar) if said else None
            attempt, text = await self._race(endpoint, going_on(messages, sofar) if said else messages, offer, asked)
            watch = Watch(self._gap(attempt.endpoint, asked))
            try:
                if new is not None:
                    text, new = new.feed(text)
                said += [text] if text else []
                yield text
                watch.begin()
                async for piece in attempt.pieces:
                    watch.end()
                    if new is not None:
                        piece, new = new.feed(piece)
                    said += [piece] if piece else []
                    yield piece
                    watch.begin()
                watch.end()
                if new is not None:
                    yield new.finish()
                if (call := attempt.stream.completion.call) is not None:
                    yield call
                return
            except asyncio.CancelledError:
                if not watch.caught():
                    if watch.waited() > self.settings.token_gap_seconds * SOONER:
                        attempt.endpoint.late()             # that is why the turn has given up
                    raise
                attempt.endpoint.late()
                sentence = f"{attempt.endpoint.subject} paused for more than {watch.seconds:g} s."
                if (endpoint := self._go_on(asked, sentence)) is None:
                    raise EngineError(sentence) from None
            except EngineError as error:
                if attempt.stream.completion.over or (endpoint := self._go_on(asked, str(error))) is None:
                    raise
            finally:
                watch.close()
                await attempt.pieces.aclose()
            yield ""

    async def _race(self, endpoint: Endpoint, messages: tuple[dict, ...], offer: dict,
                    asked: list[Endpoint]) -> tuple[Attempt, str]:
        race = Race(self.endpoints, self.hedging, lambda each: Stream(each, self.settings, messages, offer),
                    self.settings.first_token_seconds, asked)
        return await race.run(endpoint)

    def _gap(self, endpoint: Endpoint, asked: list[Endpoint]) -> float:
        """Seconds between two pieces after which somebody else is asked: sooner than the turn gives up."""
        if self.endpoints.next(asked) is None:
            return math.inf
        return min(endpoint.target.gap_seconds, self.settings.token_gap_seconds) * SOONER

    def _go_on(self, asked: list[Endpoint], why: str) -> Endpoint | None:
        endpoint = self.endpoints.fall_back(asked, why)
        self.continued += endpoint is not None
        return endpoint

    def measure(self, metrics) -> None:
        self.endpoints.measure(metrics)
        self.hedging.measure(metrics)
        metrics.gauge("llm_continued", self.continued)


class Stream:
    """One endpoint's answer: `pieces` of it, and what they have come to; `offer` is what a chat says of tools."""

    __slots__ = ("completion", "pieces")

    def __init__(self, endpoint: Endpoint, settings: OpenAI, messages: tuple[dict, ...], offer: dict):
        self.completion = Completion("tools" in offer)
        self.pieces = self._read(endpoint, settings, messages, offer)

    async def _read(self, endpoint: Endpoint, settings: OpenAI, messages: tuple[dict, ...],
                    offer: dict) -> AsyncIterator[str]:
        model = endpoint.target.model
        body = {"model": model, "messages": messages, "stream": True, "max_tokens": settings.max_tokens,
                "temperature": settings.temperature, **offer,
                **({"stream_options": {"include_usage": True}} if settings.count_tokens else {})}
        self.completion.question = Question(endpoint.url.host, model, messages)
        async with endpoint.post("/chat/completions", body, STREAM, what=model) as answer:
            events, completion = Events(), self.completion
            async for data in answer.pieces:
                for event in events.feed(data):
                    piece = completion.read(event)
                    if piece or type(piece) is CallBegins:
                        yield piece
                if completion.over:             # the stream's own end may be a while
                    answer.finished = True
                    answer.rest = lambda data: [completion.count(event) for event in events.feed(data)]
                    break
            if rest := completion.rest():
                yield rest
            completion.check(settings.max_tokens)


class Watch:
    """Ends the present task's wait for a piece once it lasts for `seconds`; one timer serves a whole answer."""

    __slots__ = ("seconds", "since", "_task", "_timer", "_clock", "_caught")

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.since = 0.0                        # of the loop's clock; 0: nobody waits
        self._task = asyncio.current_task()
        self._clock = asyncio.get_running_loop().time
        self._timer: asyncio.TimerHandle | None = None
        self._caught = False
        if seconds < math.inf:
            self._look()

    def begin(self) -> None:
        self.since = self._clock()

    def end(self) -> None:
        self.since = 0.0

    def _look(self) -> None:
        now = self._clock()
        if self.since and now >= self.since + self.seconds:
            self._caught = True
            self._task.cancel()
        else:
            self._timer = asyncio.get_running_loop().call_at((self.since or now) + self.seconds, self._look)

    def waited(self) -> float:
        """Seconds, so far."""
        return self._clock() - self.since if self.since else 0.0

    def caught(self) -> bool:
        """Whether the task's cancellation is this watch's doing, and nobody else's besides."""
        return self._caught and self._task.uncancel() == 0

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class Completion:
    """What the chunks of a streamed completion come to."""

    __slots__ = ("over", "question", "_finish", "_empty", "_thinking", "_written", "_index", "_function", "_arguments",
                 "_id", "_others")

    def __init__(self, offers: bool = False):
        self.over = False               # no more text will come
        self.question: Question | None = None       # what it costs is told there
        self._finish = ""               # why it ended
        self._empty = True
        self._thinking = Thinking()
        self._written = Written() if offers else None   # functions were offered
        self._index: int | None = None  # of the first function call; some servers count from 1, the text being 0
        self._function = ""             # the first function that is called; others are not
        self._arguments = ""            # its arguments, JSON
        self._id = ""
        self._others = False            # another one has begun under the same index

    @property
    def call(self) -> FunctionCall | None:
        """The function that is called; its arguments are None where they are no JSON."""
        if not self._function:
            return self._written and self._written.call
        return FunctionCall(self._function, json_of(self._arguments or "{}"), self._id)

    def read(self, event: bytes) -> str:
        """The text in the next event.  Raises EngineError where it is no chunk, or tells of an error."""
        if event == DONE:
            self.over = True
            return ""
        try:
            chunk = orjson.loads(event)
            if (error := chunk.get("error")) or chunk.get("object") == "error":
                raise EngineError(f"The model's endpoint broke its answer off with an error{code_of(error or chunk)}.")
            if self.question is not None and (usage := chunk.get("usage")):
                self.question.told(usage)
            if not (choices := chunk.get("choices")):
                return ""               # usage, or what a filter thought of the question
            choice = choices[0]
            delta = choice.get("delta") or {}
            content = delta.get("content") or ""
            if type(content) is list:
                content = text_of(content)
            piece = self._thinking.feed(content)
            if piece and self._written is not None:
                piece = self._written.feed(piece)
                piece = CallBegins() if self._written.source and not piece else piece
            if self.question is not None:
                self.question.answered(len(content))
            if calls := delta.get("tool_calls"):
                piece = CallBegins() if self._called(calls) and not piece else piece
            if finish := choice.get("finish_reason"):
                self._finish, self.over = finish, True
            self._empty = not piece.strip() and self._empty
            return piece
        except (ValueError, TypeError, AttributeError, LookupError):
            raise EngineError("The model's endpoint sent an event that is no chunk of a completion.") from None

    def rest(self) -> str:
        """The text that was held until it is known what follows it."""
        text = self._written.finish() if self._written is not None else ""
        self._empty = not text.strip() and self._empty
        return text

    def count(self, event: bytes) -> None:
        """An event after the end: of interest only for what it says of the tokens."""
        if b'"usage"' in event:
            with suppress(ValueError, AttributeError):
                self.question.told(orjson.loads(event).get("usage"))

    def _called(self, calls: list[dict]) -> bool:
        """The next pieces of function calls; whether one begins.  Some servers give all of them one index, or none, and
        some send the arguments as what they are, not as text."""
        began = False
        for call in calls:
            index = call.get("index") or 0
            if self._index is None:
                self._index = index
            if index != self._index:
                continue
            function, id = call.get("function") or {}, str(call.get("id") or "")[:100]
            name, arguments = function.get("name"), function.get("arguments") or ""
            if name and not self._function:
                began, self._function, self._id = True, str(name)[:100], id
            elif name and (id and self._id and id != self._id or json_of(self._arguments) is not None):
                self._others = True
            if not self._others:
                self._arguments += arguments if type(arguments) is str else orjson.dumps(arguments).decode()
            if self.question is not None:
                self.question.answered(len(arguments))
        return began

    @property
    def _calls(self) -> bool:
        """A function, or it was about to."""
        return bool(self._function or self._written and self._written.source)

    def check(self, max_tokens: int) -> None:
        """It has ended.  Raises EngineError unless that was a whole answer."""
        if not self.over:
            raise EngineError("The model's endpoint ended its answer in the middle.")
        if self._finish == "length":
            error = EngineError(f"The model's answer did not end within {max_tokens} tokens.")
            error.whole = not self._calls           # what was said can stand, but not for what was to be done
            raise error
        if self._finish == "content_filter":
            raise EngineError("The model's answer was withheld by a filter of its endpoint.")
        if self.call is None and (self._calls or self._finish in CALLING):
            raise EngineError("The model's answer calls a function, and it cannot be read which.")
        if self._empty and not self._calls:
            raise EngineError("The model's answer is empty.")


def text_of(content: list[dict]) -> str:
    """Of a content in parts, as Mistral's reasoning models send it: what they think is another kind of part."""
    return "".join(part["text"] for part in content if part.get("type") == "text")


def json_of(text: str) -> object:
    """None where it is no JSON."""
    try:
        return orjson.loads(text)
    except ValueError:
        return None
