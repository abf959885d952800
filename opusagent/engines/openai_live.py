"""Transcription while the caller speaks: Realtime sessions kept open ahead, one for each utterance that is heard.

What an utterance is, and what is done where a session is of no use, is openai_stt.py's.  A session hears what is said
as it is said; at each pause what came since the last is committed, as a passage, and the utterance's text is that of
its passages.  The rule: a session that is not heard of while somebody speaks over it is taken for dead, and what it
was sent is sent again to another; a text that nobody waits for any more is dropped where it lands.
"""
import asyncio
import base64
import logging
from collections import deque

import numpy as np

from .. import EngineError
from .._fastpath import Resampler, ulaw_encode
from .endpoint import Endpoint
from .session import Session, complaint
from .transport import CONNECT_SECONDS, PAUSES

log = logging.getLogger("opusagent")

SPARE = 2                       # sessions kept open ahead
MOST_IDLE = 8                   # ... and of those that were used
PROGRESS_SECONDS = 0.7          # a session over which somebody speaks is heard of within this, or taken for dead
IDLE_SECONDS = 5.0              # ... and one that is idle within twice this
TICK_SECONDS = 0.35             # from look to look, and from ping to ping
OLDEST_SECONDS = 45 * 60        # of an idle session: endpoints end them after an hour
MESSAGE_BYTES = 2048            # of audio in one message
BATCH_MS = 60                   # of audio that goes out together, while it comes
SHORTEST_MS = 100               # that can be committed
PCM_RATE = 24000                # Hz of PCM in a session; what has 8000 goes as mu-law

PREFIX = "conversation.item.input_audio_transcription."


class Passage:
    """What was said between two pauses, as far as it is known."""

    __slots__ = ("text", "done", "owner")

    def __init__(self, owner: "Live"):
        self.text = ""
        self.done = False
        self.owner: Live | None = owner         # None: nobody wants it any more


class Line:
    """A session that transcribes."""

    __slots__ = ("lines", "session", "rate", "prompt", "user", "committed", "items", "ready")

    def __init__(self, lines: "Lines"):
        self.lines = lines
        self.session: Session | None = None
        self.rate = 0                           # Hz of the slot that it is set to; 0: to none yet
        self.prompt = ""                        # that it is set to
        self.user: Live | None = None           # who speaks over it; None: it is idle
        self.committed: deque[Passage] = deque()        # whose item has no name yet
        self.items: dict[str, Passage] = {}     # by the item's name
        self.ready: asyncio.Future = asyncio.get_running_loop().create_future()     # it was taken as we want it

    def set(self, rate: int, prompt: str) -> None:
        """What it is to hear, and what it may expect, unless that is so already."""
        if (rate, prompt) == (self.rate, self.prompt):
            return
        self.rate, self.prompt = rate, prompt
        form = {"type": "audio/pcmu"} if rate == 8000 else {"type": "audio/pcm", "rate": PCM_RATE}
        wanted = {"model": self.lines.model} | ({"prompt": prompt} if prompt else {})
        heard = {"format": form, "transcription": wanted, "turn_detection": None}
        self.session.send({"type": "session.update", "session": {"type": "transcription", "audio": {"input": heard}}})

    def commit(self, passage: Passage) -> None:
        self.session.send({"type": "input_audio_buffer.commit"})
        self.committed.append(passage)

    def heard(self, event: dict) -> None:
        """From the session."""
        kind = event["type"]
        if kind == "error":
            self.session.fail(complaint(event))
        elif kind == "session.updated":
            if not self.ready.done():
                self.ready.set_result(True)
        elif kind == "input_audio_buffer.committed" and self.committed:
            self.items[str(event.get("item_id"))] = self.committed.popleft()
        elif kind.startswith(PREFIX):
            self._transcribed(kind.removeprefix(PREFIX), event)

    def _transcribed(self, what: str, event: dict) -> None:
        item, text = str(event.get("item_id")), event.get("delta" if what == "delta" else "transcript")
        passage = self.items.get(item)
        if passage is None or what not in ("delta", "completed", "failed"):
            return                              # what was dropped, or a model that speaks too soon
        if what == "failed" or not isinstance(text, str):
            return self.session.fail("failed to transcribe what it heard")
        passage.done = what == "completed"
        passage.text = text if passage.done else passage.text + text
        if passage.done:
            del self.items[item]
        if passage.owner is not None:
            passage.owner.news()

    def lost(self, sentence: str) -> None:
        """The session is over."""
        self.lines.drop(self)
        if not self.ready.done():
            self.ready.set_exception(EngineError(sentence))
            self.ready.exception()              # it is told of, whether or not anybody still waits for it
        elif self.user is not None:
            user, self.user = self.user, None
            user.lost(sentence)


class Lines:
    """The sessions of one endpoint."""

    def __init__(self, endpoint: Endpoint, model: str):
        self.endpoint = endpoint
        self.model = model
        self.idle: list[Line] = []
        self.busy: set[Line] = set()
        self.opened = 0                         # sessions ever
        self.suspected = 0                      # ... taken for dead
        self._lacking = asyncio.Event()
        self._tasks: list[asyncio.Task] = []
        self._griefs = 0                        # sessions in a row that could not be opened, or did not last

    async def open(self) -> bool:
        """Whether the endpoint has them; if it has, some are open now and stay so."""
        try:
            self.idle.append(await self._dial())
        except EngineError as error:
            log.info("%s Utterances are sent to be transcribed instead, each when it pauses.", error)
            return False
        self._lacking.set()
        self._tasks = [asyncio.ensure_future(self._keep()), asyncio.ensure_future(self._watch())]
        return True

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for line in [*self.idle, *self.busy]:
            line.session.close()

    def take(self, user: "Live", rate: int, prompt: str) -> Line | None:
        """An open session for somebody who speaks; None if there is none now."""
        if not self.idle:
            return None
        line = self.idle.pop()
        self._lacking.set()
        self.busy.add(line)
        line.user = user
        line.session.ping()
        line.set(rate, prompt)
        return line

    def give_back(self, line: Line) -> None:
        """Nobody speaks over it any more; what it still has to say is dropped."""
        line.user = None
        if line in self.busy:
            self.busy.remove(line)
            for passage in (*line.committed, *line.items.values()):
                passage.owner = None
            line.session.send({"type": "input_audio_buffer.clear"})
            if len(self.idle) < MOST_IDLE:
                self.idle.append(line)
            else:
                line.session.close()

    def spoiled(self, line: Line) -> None:
        """Somebody waited for its words in vain, whether or not it answers pings: nobody else shall."""
        line.user = None
        self.suspected += 1
        self.drop(line)
        line.session.close()

    def drop(self, line: Line) -> None:
        self.busy.discard(line)
        if line in self.idle:
            self.idle.remove(line)
            self._griefs += 1
        self._lacking.set()

    async def _dial(self) -> Line:
        line = Line(self)
        line.session = await Session.open(self.endpoint, "intent=transcription", line.heard, line.lost)
        line.set(8000, "")
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await line.ready
        except TimeoutError:
            line.session.close()
            raise EngineError(f"{self.endpoint.subject} let us wait for too long.") from None
        except BaseException:
            line.session.close()
            raise
        self.opened += 1
        return line

    async def _keep(self) -> None:
        while True:
            await self._lacking.wait()
            self._lacking.clear()
            while len(self.idle) < SPARE:
                await asyncio.sleep(PAUSES[min(self._griefs, len(PAUSES) - 1)])
                try:
                    self.idle.insert(0, await self._dial())
                except EngineError:
                    self._griefs += 1
                else:
                    self._griefs = 0

    async def _watch(self) -> None:
        """A session that is not heard of is of no use.  It has had a ping by then, and a live one answers that."""
        loop, ticks = asyncio.get_running_loop(), 0
        while True:
            began = loop.time()
            await asyncio.sleep(TICK_SECONDS)
            ticks += 1
            if loop.time() - began > 1.5 * TICK_SECONDS:
                continue                        # it was us who did not listen
            for line in list(self.busy):
                self._look(line, PROGRESS_SECONDS)
            if ticks * TICK_SECONDS >= IDLE_SECONDS:
                ticks = 0
                for line in list(self.idle):
                    self._look(line, 2 * IDLE_SECONDS)
                    if line.session.age() > OLDEST_SECONDS:
                        self.drop(line)
                        line.session.close()

    def _look(self, line: Line, patience: float) -> None:
        if line.session.quiet() > patience:
            self.suspected += 1
            line.session.fail(f"was not heard of for {patience:g} s")
        else:
            line.session.ping()

    def measure(self, metrics) -> None:
        metrics.gauge("transcription_sessions", len(self.idle) + len(self.busy))
        metrics.gauge("transcription_sessions_opened", self.opened)
        metrics.gauge("transcription_sessions_suspected", self.suspected)


class Live:
    """An utterance over a line.  Of its utterance it uses `pcm`, `taken` (bytes of that ever) and `rate`, and tells it
    `news()` and `line_lost(sentence)`."""

    __slots__ = ("utterance", "lines", "line", "passages", "sent", "committed", "resampler", "replayed", "late")

    def __init__(self, utterance, lines: Lines):
        self.utterance = utterance
        self.lines = lines
        self.line: Line | None = None
        self.passages: list[Passage] = []
        self.sent = 0                           # bytes of the utterance that were sent, counted as `taken` is
        self.committed = 0                      # ... of which so many belong to a passage
        self.resampler: Resampler | None = None
        self.replayed = False                   # what was sent once was sent again, to another session
        self.late = False                       # it has ended, and was not known in its time

    def begin(self, prompt: str) -> bool:
        """True if there is a line."""
        rate = self.utterance.rate
        self.line = self.lines.take(self, rate, prompt)
        self.resampler = None if rate == 8000 else Resampler(rate, PCM_RATE)
        return self.line is not None

    @property
    def text(self) -> str:
        return " ".join(filter(None, (passage.text.strip() for passage in self.passages)))

    @property
    def settled(self) -> bool:
        return all(passage.done for passage in self.passages)

    def send(self, all_of_it: bool = False) -> None:
        """What has been collected and not been sent, if it is enough for a message."""
        utterance = self.utterance
        waiting = min(utterance.taken - self.sent, len(utterance.pcm))
        if not waiting or not all_of_it and waiting < 2 * utterance.rate * BATCH_MS // 1000:
            return
        self.sent = utterance.taken
        data = coded(np.frombuffer(bytes(utterance.pcm[-waiting:]), np.int16), self.resampler)
        for at in range(0, len(data), MESSAGE_BYTES):
            if self.line is not None:
                audio = base64.b64encode(data[at:at + MESSAGE_BYTES]).decode()
                self.line.session.send({"type": "input_audio_buffer.append", "audio": audio})

    def commit(self) -> None:
        """The caller pauses: what came since the last pause is a passage, if it is long enough to say anything."""
        self.send(all_of_it=True)
        if self.line is not None and self.sent - self.committed >= 2 * self.utterance.rate * SHORTEST_MS // 1000:
            self.committed = self.sent
            self.passages.append(Passage(self))
            self.line.commit(self.passages[-1])

    def news(self) -> None:
        """A passage has more text."""
        self.utterance.news()

    def lost(self, sentence: str) -> None:
        """The line is dead.  All of it is sent over another one, once, and committed where it was committed."""
        self.line = None
        log.warning("%s What was said is sent again.", sentence)
        replay, self.replayed = not self.replayed, True
        asked = bool(self.passages)
        if not replay or not self.begin(self.utterance.prompt):
            return self.utterance.line_lost(sentence)
        self.passages.clear()
        self.sent = self.committed = self.utterance.taken - len(self.utterance.pcm)
        if asked:
            self.commit()
        else:
            self.send(all_of_it=True)

    def end(self) -> None:
        line, self.line = self.line, None
        if line is not None and self.late and not self.settled:
            self.lines.spoiled(line)
        elif line is not None:
            self.lines.give_back(line)


def coded(pcm: np.ndarray, resampler: Resampler | None) -> bytes:
    """int16 samples as a session hears them: mu-law without a resampler, PCM at its rate with one."""
    if resampler is not None:
        return resampler.push(pcm).astype("<i2").tobytes()
    codes = bytearray(len(pcm))
    ulaw_encode(pcm, codes)
    return bytes(codes)
