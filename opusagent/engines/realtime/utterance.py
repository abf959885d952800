"""An utterance of the caller's on its way over a Realtime session, out of the slot that it lies in.

At each pause what came since the last one is committed, as a passage, which the session writes down and keeps as an
item.  The rule: what nobody wants any more is taken out of the session again, and a session that dies is followed by
one that hears the utterance from its beginning.
"""
import asyncio
import logging

from ...speech.audio import last_voiced
from ..openai.stt import prompt_of
from ..remote.audio import BATCH_MS, SHORTEST_MS, Coder
from .context import Item

log = logging.getLogger("opusagent")

MARGIN_MS = 500                 # of the oldest audio in a slot: it may be overwritten meanwhile
UNWRITTEN = "(not written down)"    # what was said, where the session was too late to write it, and the model heard it


class Passage:
    """What was said between two pauses, as far as it is known."""

    __slots__ = ("text", "done", "item", "group", "wanted")

    def __init__(self, group: int):
        self.text = ""
        self.done = False
        self.item: Item | None = None           # of the session; None while that has not named it
        self.group = group                      # the utterance's number
        self.wanted = True


class Utterance:
    """Of its ear it uses `slot`, `utterance`, `terms`, on_partial(), on_final() and on_failure()."""

    __slots__ = ("conversation", "ear", "slot", "number", "prompt", "begins", "ends", "sent", "committed", "passages",
                 "coder", "connected", "finished", "over", "late")

    def __init__(self, conversation, ear, position: int):
        self.conversation = conversation
        self.ear = ear
        self.slot = ear.slot
        self.number = ear.utterance
        self.prompt = prompt_of(ear.terms)
        self.begins = position
        self.ends = 0                           # position, when it has ended
        self.sent = self.committed = position   # of what was sent, and of what belongs to a passage
        self.passages: list[Passage] = []
        self.coder: Coder | None = None
        self.connected = False                  # a session hears it
        self.finished = False                   # it has ended
        self.over = False                       # ... and is known, or nobody wants to know it
        self.late: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """From its beginning, or from the oldest sample that is kept of it, if there is a session."""
        slot, rate = self.slot, self.slot.rate_in
        self.connected = self.conversation.connect()
        if self.connected:
            self.conversation.hears(self.prompt)
            self.coder = Coder(rate)
            self.passages.clear()
            self.sent = max(self.begins, slot.written - slot.capacity + rate * MARGIN_MS // 1000)
            self.committed = self.sent
            self.send()

    def again(self) -> None:
        """The session is dead: all of it goes to another one, and is committed if it was."""
        asked = bool(self.passages)
        self.passages.clear()
        self.begin()
        if self.connected and asked:
            self.commit()
        elif self.finished and not self.connected:
            self.fail("There is no Realtime session to hear the caller.")

    def send(self, everything: bool = False) -> None:
        """What has come and not been sent, if it is enough for a message."""
        if not self.connected:
            self.begin()
        slot, end = self.slot, self.ends or self.slot.written
        waiting = end - self.sent
        if not self.connected or waiting <= 0 or not everything and waiting < slot.rate_in * BATCH_MS // 1000:
            return
        messages = self.coder.code(slot.read(self.sent, waiting))
        self.sent = end
        for audio in messages:
            self.conversation.send("input_audio_buffer.append", audio=audio)

    def commit(self) -> None:
        """The caller pauses: what was said since the last pause is a passage."""
        self.send(everything=True)
        slot, count = self.slot, min(self.sent - self.committed, self.slot.capacity // 2)
        if self.connected and count >= slot.rate_in * SHORTEST_MS // 1000 and (
                last_voiced(slot.read(self.sent - count, count), slot.rate_in) is not None):
            self.committed = self.sent
            self.passages.append(passage := Passage(self.number))
            self.conversation.committed.append(passage)
            self.conversation.send("input_audio_buffer.commit")

    def finish(self, position: int) -> None:
        """It ends there."""
        self.finished, self.ends = True, position
        self.commit()
        if not self.connected:
            return self._soon(self.fail, "There is no Realtime session to hear the caller.")
        if self.sent > self.committed:
            self.conversation.send("input_audio_buffer.clear")
        self._soon(self.progressed)                 # all of it may be known, or be nothing
        patience = self.conversation.session.endpoint.target.first_seconds
        self.late = asyncio.get_running_loop().call_later(patience, self._late)

    @staticmethod
    def _soon(call, *args) -> None:
        """As an answer of its own, not before the present call returns."""
        asyncio.get_running_loop().call_soon(call, *args)

    @property
    def text(self) -> str:
        return " ".join(filter(None, (passage.text.strip() for passage in self.passages)))

    def progressed(self) -> None:
        """There is more text of it, or all."""
        if self.over:
            return
        settled = all(passage.done for passage in self.passages)
        if self.finished and settled:
            self.end()
            if self.passages and not self.text and not self.ear.terms:
                return self.ear.on_final(self.number, UNWRITTEN, 0.0)       # it could not be written down
            self.ear.on_final(self.number, self.text, 1.0)
        elif not self.finished and self.text:
            self.ear.on_partial(self.number, self.text)

    def _late(self) -> None:
        """The model has heard it.  Where no phrase is waited for, the words are nothing that an answer waits for."""
        if not self.over and not self.ear.terms:
            self.end()
            self.ear.on_final(self.number, self.text or UNWRITTEN, 0.0)

    def fail(self, sentence: str) -> None:
        if not self.over:
            self.end()
            self.ear.on_failure(self.number, sentence)

    def drop(self) -> None:
        """It was none, or is heard once more: the session forgets it."""
        if not self.over and self.connected:
            self.conversation.send("input_audio_buffer.clear")
        self.end()
        for passage in self.passages:
            passage.wanted = False
            if passage.item is not None:
                self.conversation.delete(passage.item)

    def end(self) -> None:
        """Nobody waits for it any more."""
        self.over = True
        if self.late is not None:
            self.late.cancel()
        self.conversation.awaits()
