"""One call over a Realtime session: the caller's audio goes to it as it comes, answers come back as speech.

When the caller's turn is over, and when an answer is to begin, is ours to say: the session detects no turns.  What the
session knows is what the flow's chat says (context.py), also where it takes the place of one that has died.  The rule:
an answer is asked for again only while nothing of it has been passed on; and of what was cut off the session keeps as
much as was heard.
"""
import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator

from ... import EngineError
from ...flow import FunctionCall
from ...flow.manner import manner_of
from ...usage import Question
from ..remote.audio import form
from ..remote.session import TRANSCRIPTION, Session, complaint
from ..remote.spare import OLDEST_SECONDS
from ..spoken import Spoken
from .context import ASSISTANT, USER, Item, difference, functions, instructions
from .reserve import Reserve
from .response import Response
from .utterance import Passage, Utterance

log = logging.getLogger("opusagent")

SETTLE_SECONDS = 1.0            # for an answer to end that was called off
SOONER = 0.9                    # of the turn's own patience: who is given up after that was late
TRIES = 2                       # sessions that are asked for one answer
SPEEDS = 0.25, 1.5              # that a session can speak with
MAY = "may-"                    # begins the ids of events that a session may refuse: what they are about may be over


def parts(settings, rate_in: int, rate_out: int, voice: str = "", prompt: str = "") -> dict:
    """What a session is set to, by part: "input", "output", "instructions", "tools"."""
    manner = manner_of(voice)
    heard = {"model": settings.stt_model} | ({"prompt": prompt} if prompt else {})
    speed = min(max(manner.rate, SPEEDS[0]), SPEEDS[1])
    return {"input": {"format": form(rate_in), "transcription": heard, "turn_detection": None},
            "output": {"format": form(rate_out), "voice": manner.voice or settings.voice, "speed": speed},
            "instructions": "", "tools": []}


def update(changed: dict) -> dict:
    """These parts as session.update takes them."""
    audio = {name: changed[name] for name in ("input", "output") if name in changed}
    rest = {name: changed[name] for name in ("instructions", "tools") if name in changed}
    return {"type": "realtime"} | ({"audio": audio} if audio else {}) | rest


class Conversation:
    """`listen` and what follows for what the caller says, `reply` for an answer, `close` at the call's end."""

    __slots__ = ("reserve", "settings", "rates", "counts", "session", "items", "utterance", "response", "committed",
                 "passages", "voice", "made", "_set", "_settled")

    def __init__(self, reserve: Reserve, settings, rates: tuple[int, int] = (8000, 8000), counts: bool = True):
        self.reserve = reserve
        self.settings = settings                    # config.OpenAI
        self.rates = rates                          # Hz of the caller's audio, and of ours
        self.counts = counts                        # its answers are a model's: they are counted as such
        self.session: Session | None = None
        self.items: list[Item] = []                 # of the session, in its order
        self.utterance: Utterance | None = None     # the latest one
        self.response: Response | None = None       # the answer that is on its way
        self.committed: deque[Passage] = deque()    # whose item has no name yet
        self.passages: dict[str, Passage] = {}      # by the item's name, those that are not written down yet
        self.voice = ""                             # that the session has spoken with: it can have no other
        self.made = 0                               # items and questions of ours
        self._set: dict = {}                        # what the session is set to
        self._settled = asyncio.Event()             # no answer is on its way

    # -- the session ---------------------------------------------------------------------------------------------------

    def connect(self) -> bool:
        """Have a session, if one is open; whether there is one."""
        if self.session is None and (session := self.reserve.take()) is not None:
            self._begin(session)
        return self.session is not None

    async def reach(self, without=None) -> None:
        """Have a session, to another endpoint than that if there is one.  Raises EngineError."""
        if self.session is None:
            session = await self.reserve.dial(without)
            if self.session is None:
                self._begin(session)
            else:
                self.reserve.drop(session)

    def _begin(self, session: Session) -> None:
        self.session = session
        session.heard, session.lost = self.heard, self.lost
        self._set = parts(self.settings, 8000, 8000)
        self.voice = ""
        self._forget()

    def _forget(self) -> None:
        """What the session knew is gone with it."""
        self.items.clear()
        self.committed.clear()
        self.passages.clear()
        self.response = None
        self._settled.set()

    def renew(self) -> None:
        """Another session is wanted; what this one knows is told to that when it is asked."""
        session, self.session = self.session, None
        if session is not None:
            self.reserve.drop(session)
            self._forget()

    def lost(self, sentence: str) -> None:
        """The session is over: what is being said is sent to another one, what is being answered is asked of it."""
        response, session = self.response, self.session
        log.log(logging.WARNING if self.awaited else logging.INFO, "%s", sentence)
        self.session = None
        self.reserve.drop(session)
        self._forget()
        if response is not None:
            response.fail(EngineError(sentence))
        if self.utterance is not None and not self.utterance.over:
            self.utterance.again()

    def close(self) -> None:
        if self.utterance is not None:
            self.utterance.end()
        if self.response is not None:
            self.response.drop()
        self.renew()

    def set(self, **changes) -> None:
        """What the session is set to from now on; what is so already is not said again."""
        changed = {name: value for name, value in changes.items() if self._set.get(name) != value}
        if changed:
            self._set |= changed
            self.send("session.update", session=update(changed))

    def send(self, kind: str, **fields) -> None:
        if self.session is not None:
            self.session.send({"type": kind, **fields})

    def may(self, kind: str, **fields) -> None:
        """As send(), for what may be over by the time that it is read."""
        self.made += 1
        self.send(kind, event_id=f"{MAY}{self.made}", **fields)

    def awaits(self) -> None:
        """Whether anybody waits for the session is looked at again."""
        if self.session is not None:
            self.reserve.awaited(self.session, self.awaited)

    @property
    def awaited(self) -> bool:
        """Somebody is heard, or answered."""
        return self.response is not None or self.utterance is not None and not self.utterance.over

    # -- what the caller says ------------------------------------------------------------------------------------------

    def listen(self, ear, position: int) -> None:
        """An utterance begins there in the slot."""
        before = self.utterance
        if before is not None and (not before.over or position < before.ends):
            before.drop()                           # it is heard again, with what follows
        if self.session is not None and self.response is None and self.session.age() > OLDEST_SECONDS:
            self.renew()
        self.utterance = Utterance(self, ear, position)
        self.utterance.begin()
        self.awaits()

    def hears(self, prompt: str) -> None:
        """What the caller is likely to say."""
        self.set(input=parts(self.settings, *self.rates, prompt=prompt)["input"])

    # -- answers -------------------------------------------------------------------------------------------------------

    async def reply(self, messages, tools, voice: str, spoken: bool,
                    choice: str = "auto") -> AsyncIterator[str | FunctionCall | Spoken]:
        """The pieces of an answer: Spoken and then its text where it is `spoken`.  Raises EngineError."""
        tries, begun, failed = 0, False, None
        while True:
            tries += 1
            await self._ready(voice if spoken else None, failed)
            response, session = self._ask(messages, tools, voice, spoken, choice), self.session
            try:
                async for piece in self._pieces(response):
                    begun = begun or bool(piece)
                    yield piece
                return
            except EngineError as error:
                if begun or tries == TRIES or error.whole:
                    raise
                log.warning("%s Another session is asked.", error)
                failed = session.endpoint
                if self.session is session:
                    self.renew()
            finally:
                response.drop()

    async def _ready(self, voice: str | None, without) -> None:
        """A session that is free to answer, and to answer with this voice; None: in no voice."""
        if voice is not None and self.voice not in ("", manner_of(voice).voice or self.settings.voice):
            self.renew()
        if self.response is not None:
            try:
                async with asyncio.timeout(SETTLE_SECONDS):
                    await self._settled.wait()
            except TimeoutError:
                self.session.fail("did not end an answer that was called off")
        await self.reach(without)

    def _ask(self, messages, tools, voice: str, spoken: bool, choice: str) -> Response:
        wanted = parts(self.settings, *self.rates, voice) | {"input": self._set["input"], "tools": functions(tools),
                                                             "instructions": self._told(messages, voice)}
        if not spoken:
            wanted["output"] = self._set["output"]
        self.set(**wanted)
        self._agree(messages)
        self.made += 1
        endpoint = self.session.endpoint
        question = Question(endpoint.url.host, endpoint.target.model, messages) if self.counts else None
        self.response = Response(self, f"ask-{self.made}", spoken, question)
        self._settled.clear()
        more = ({} if spoken else {"output_modalities": ["text"]}) | (
            {"tool_choice": choice} if tools and choice != "auto" else {})
        self.send("response.create", event_id=self.response.asked, **({"response": more} if more else {}))
        self.awaits()
        return self.response

    @staticmethod
    def _told(messages, voice: str) -> str:
        language = manner_of(voice).language
        return instructions(messages) + (f"\n\nSpeak {language}." if language else "")

    def _agree(self, messages) -> None:
        """The session knows the chat, and no more."""
        gone, after = difference(self.items, messages)
        for item in gone:
            self.delete(item)
        before = "root"
        for item in after:
            if not item.id:
                self.made += 1
                item.id = f"oa-{self.made}"
                self.send("conversation.item.create", item={"id": item.id, **item.content}, previous_item_id=before)
            before = item.id
        self.items = after

    async def _pieces(self, response: Response) -> AsyncIterator[str | FunctionCall | Spoken]:
        """The answer, which begins in its time where there is somebody else to ask."""
        endpoint, clock = self.session.endpoint, asyncio.get_running_loop().time
        began, others = clock(), self.reserve.endpoints.next([self.session.endpoint]) is not None
        first = endpoint.target.first_seconds if others else None
        try:
            async with asyncio.timeout(first):
                piece = await response.next()
        except TimeoutError:
            endpoint.late()
            raise EngineError(f"{endpoint.subject} did not begin to answer within {first:g} s.") from None
        except asyncio.CancelledError:
            if clock() - began > self.settings.first_token_seconds * SOONER:
                endpoint.late()                     # that is why the turn has given up
                self.renew()
            raise
        while piece is not None:
            yield piece
            piece = await response.next()

    def over(self, response: Response) -> None:
        """The endpoint has said all of it."""
        if self.response is response:
            self.response = None
            self._settled.set()
            self.awaits()

    def delete(self, item: Item) -> None:
        if item in self.items:
            self.items.remove(item)
            self.may("conversation.item.delete", item_id=item.id)

    def cut(self, item: Item, ms: int) -> None:
        """Only so much of an answer was heard."""
        if item not in self.items:
            return
        if ms <= 0:
            self.delete(item)
        else:
            self.may("conversation.item.truncate", item_id=item.id, content_index=0, audio_end_ms=ms)

    # -- from the session ----------------------------------------------------------------------------------------------

    def heard(self, event: dict) -> None:
        session, kind = self.session, event["type"]
        try:
            if kind.startswith(TRANSCRIPTION):
                self._written(kind.removeprefix(TRANSCRIPTION), event)
            elif kind.startswith("response."):
                self._answered(kind.removeprefix("response."), event)
            elif kind == "input_audio_buffer.committed":
                self._named(event["item_id"])
            elif kind == "error":
                self._refused(event)
        except (LookupError, TypeError, ValueError, AttributeError):
            session.fail("sent an event that is not as it should be")

    def _refused(self, event: dict) -> None:
        error = event["error"]
        asked = str(error.get("event_id") or "")
        if asked.startswith(MAY):
            return
        if self.response is not None and asked == self.response.asked:
            response = self.response
            self.over(response)
            return response.fail(EngineError(f"{self.session.endpoint.subject} {complaint(event)}."))
        self.session.fail(complaint(event))

    def _named(self, name: str) -> None:
        if not self.committed:
            return                                  # it is none of ours
        passage = self.committed.popleft()
        item = passage.item = Item(str(name), USER, group=passage.group)
        self.items.append(item)
        if passage.wanted:
            self.passages[item.id] = passage
        else:
            self.delete(item)

    def _written(self, what: str, event: dict) -> None:
        """More of what the caller said is known as text."""
        passage = self.passages.get(event["item_id"])
        if passage is None or what not in ("delta", "completed", "failed"):
            return                                  # what nobody wants any more
        text = {"delta": passage.text + event.get("delta", ""), "completed": event.get("transcript")}.get(what, "")
        if not isinstance(text, str):
            raise TypeError
        passage.text, passage.done = text, what != "delta"
        passage.item.text = text
        if passage.done:
            del self.passages[event["item_id"]]
        if passage.wanted and self.utterance is not None:
            self.utterance.progressed()

    def _answered(self, what: str, event: dict) -> None:
        response = self.response
        if response is None:
            return
        if what == "created":
            response.id = event["response"]["id"]
        elif what == "done":
            if not response.id or event["response"]["id"] == response.id:
                self.over(response)
                response.done(event["response"])
        elif event["response_id"] == response.id:
            response.heard(what, event)

    def spoke(self, item_id: str, kind: str, called: str = "") -> Item:
        """An answer has another item; its words are told to it as they come."""
        item = Item(item_id, kind, called)
        self.items.append(item)
        if kind == ASSISTANT:
            self.voice = self._set["output"]["voice"]
        return item
