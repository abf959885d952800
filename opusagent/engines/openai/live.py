"""Transcription while the caller speaks: Realtime sessions kept open ahead, one for each utterance that is heard.

What an utterance is, and what is done where a session is of no use, is stt.py's.  A session hears what is said
as it is said; at each pause what came since the last is committed, as a passage, and the utterance's text is that of
its passages.  The rule: a session that is not heard of while somebody speaks over it is taken for dead, and what it
was sent is sent again to another; a text that nobody waits for any more is dropped where it lands.
"""
import logging
from collections import deque

import numpy as np

from ... import EngineError
from ..remote.audio import BATCH_MS, SHORTEST_MS, Coder, form
from ..remote.endpoint import Endpoint
from ..remote.session import TRANSCRIPTION, Session, complaint
from ..remote.spare import Spare

log = logging.getLogger("opusagent")

MOST_IDLE = 8                   # sessions that are kept open, of those that were used


class Passage:
    """What was said between two pauses, as far as it is known."""

    __slots__ = ("text", "done", "owner")

    def __init__(self, owner: "Live"):
        self.text = ""
        self.done = False
        self.owner: Live | None = owner         # None: nobody wants it any more


class Line:
    """A session that transcribes."""

    __slots__ = ("lines", "session", "rate", "prompt", "user", "committed", "items")

    def __init__(self, lines: "Lines", session: Session):
        self.lines = lines
        self.session = session
        self.rate = 8000                        # Hz of the slot that it is set to
        self.prompt = ""                        # that it is set to
        self.user: Live | None = None           # who speaks over it; None: it is idle
        self.committed: deque[Passage] = deque()        # whose item has no name yet
        self.items: dict[str, Passage] = {}     # by the item's name
        session.heard, session.lost = self.heard, self.lost

    def set(self, rate: int, prompt: str) -> None:
        """What it is to hear, and what it may expect, unless that is so already."""
        if (rate, prompt) != (self.rate, self.prompt):
            self.rate, self.prompt = rate, prompt
            self.session.send({"type": "session.update", "session": update(self.lines.model, rate, prompt)})

    def commit(self, passage: Passage) -> None:
        self.session.send({"type": "input_audio_buffer.commit"})
        self.committed.append(passage)

    def heard(self, event: dict) -> None:
        """From the session."""
        kind = event["type"]
        if kind == "error":
            self.session.fail(complaint(event))
        elif kind == "input_audio_buffer.committed" and self.committed:
            self.items[str(event.get("item_id"))] = self.committed.popleft()
        elif kind.startswith(TRANSCRIPTION):
            self._transcribed(kind.removeprefix(TRANSCRIPTION), event)

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
        self.lines.lost(self.session)
        if self.user is not None:
            user, self.user = self.user, None
            user.lost(sentence)


def update(model: str, rate: int, prompt: str) -> dict:
    """A session that transcribes audio of a slot's rate (Hz), as session.update takes it."""
    wanted = {"model": model} | ({"prompt": prompt} if prompt else {})
    heard = {"format": form(rate), "transcription": wanted, "turn_detection": None}
    return {"type": "transcription", "audio": {"input": heard}}


class Lines(Spare):
    """The sessions of one endpoint, each with its line."""

    def __init__(self, endpoint: Endpoint, model: str):
        super().__init__()
        self.endpoint = endpoint
        self.model = model
        self.lines: dict[Session, Line] = {}

    async def open(self) -> bool:
        """Whether the endpoint has them; if it has, some are open now and stay so."""
        try:
            await self.first()
        except EngineError as error:
            log.info("%s Utterances are sent to be transcribed instead, each when it pauses.", error)
            return False
        self.keep()
        return True

    def lend(self, user: "Live", rate: int, prompt: str) -> Line | None:
        """A line for somebody who speaks; None if no session is open now."""
        while (session := self.take()) is not None:
            line = self.lines[session]
            self.awaited(session, True)
            line.set(rate, prompt)
            if not session.over:                # it may have taken nothing for so long that this was too much
                line.user = user
                return line
        return None

    def give_back(self, line: Line) -> None:
        """Nobody speaks over it any more; what it still has to say is dropped."""
        line.user = None
        if line.session in self.busy:
            for passage in (*line.committed, *line.items.values()):
                passage.owner = None
            line.session.send({"type": "input_audio_buffer.clear"})
            if line.session.over or len(self.idle) >= MOST_IDLE:
                self.drop(line.session)
            else:
                del self.busy[line.session]
                self.idle.append(line.session)

    def spoiled(self, line: Line) -> None:
        """Somebody waited for its words in vain, whether or not it answers pings: nobody else shall."""
        line.user = None
        self.suspected += 1
        self.drop(line.session)

    def drop(self, session: Session) -> None:
        self.lines.pop(session, None)
        super().drop(session)

    async def _dial(self) -> Session:
        session = await self._open(self.endpoint, "intent=transcription", update(self.model, 8000, ""))
        self.lines[session] = Line(self, session)
        return session

    def measure(self, metrics) -> None:
        self._measure(metrics, "transcription")


class Live:
    """An utterance over a line.  Of its utterance it uses `pcm`, `taken` (bytes of that ever) and `rate`, and tells it
    `news()` and `line_lost(sentence)`."""

    __slots__ = ("utterance", "lines", "line", "passages", "sent", "committed", "coder", "replayed", "late")

    def __init__(self, utterance, lines: Lines):
        self.utterance = utterance
        self.lines = lines
        self.line: Line | None = None
        self.passages: list[Passage] = []
        self.sent = 0                           # bytes of the utterance that were sent, counted as `taken` is
        self.committed = 0                      # ... of which so many belong to a passage
        self.coder: Coder | None = None
        self.replayed = False                   # what was sent once was sent again, to another session
        self.late = False                       # it has ended, and was not known in its time

    def begin(self, prompt: str) -> bool:
        """True if there is a line."""
        rate = self.utterance.rate
        self.line = self.lines.lend(self, rate, prompt)
        self.coder = Coder(rate)
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
        for audio in self.coder.code(np.frombuffer(bytes(utterance.pcm[-waiting:]), np.int16)):
            if self.line is not None:
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
