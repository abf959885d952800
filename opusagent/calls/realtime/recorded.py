"""Recorded: what is said in the audio of a client's items, recognised one after another beside the caller's line.

It has a slot of its own, so that what the caller says meanwhile is heard as ever; the state that the flow is in says
what may be recognised.  The rules: the recogniser gets no more at once than it can follow, and whatever becomes of it,
each sound is told of, once.
"""
import logging

import numpy as np

from ..._fastpath import Resampler, Throttle
from ...dialects.realtime import recorded
from ...dialects.realtime.dialect import AT_ONCE, PACE
from ...dialects.realtime.items import Item, Sound
from .. import journal
from ..journal import entry
from .inbox import PIECE_MS

log = logging.getLogger("opusagent")

EDGE_MS = 200                   # of silence before and behind it, as there is around what is said on a line
LOST = "The server was restarted before it was heard."
WITHIN = 5_000_000_000          # ns: a recogniser that has not answered by then has failed


class Recorded:
    """True while an item is being recognised.  To the recogniser it is the call: `slot`, `utterance`, `search`,
    `terms`, on_partial(), on_final() and on_failure()."""

    __slots__ = ("call", "journal", "connection", "slot", "utterance", "search", "terms", "item", "sound", "_given",
                 "_resampler", "_throttle", "_final_by")

    def __init__(self, call):
        self.call = call
        self.journal, self.connection = call.journal, call.connection
        self.utterance = 0                      # grows with each sound
        self.search = -1                        # of the recogniser, and
        self.terms: tuple[str, ...] = ()        # ... the phrases of that
        self.item: Item | None = None           # that is being recognised,
        self.sound: Sound | None = None         # ... and which of its sounds
        self.slot = None                        # of the arena, where that lies
        self._given = 0                         # samples of it that the slot has got
        self._resampler: Resampler | None = None
        self._throttle = Throttle(PACE, AT_ONCE)
        self._final_by = 0                      # ns: until when the recogniser may take for its text; 0: not asked yet

    def __bool__(self) -> bool:
        return self.item is not None

    def begin(self, item: Item) -> None:
        """It is the next one."""
        self.item = item
        if not item.sounds:
            self._misses()

    def work(self, now: int) -> None:
        """As much as the recogniser can follow."""
        while self.item is not None:
            if self.call.dialect.items.find(self.item.id) is not self.item:
                self.close()                    # the client has deleted it
            elif self.slot is None:
                self._listen()
            elif not self._final_by:
                if self._throttle.heard_by > now:
                    return
                self._give(now)
            elif now <= self._final_by:
                return
            else:
                self._fails("The recogniser gave no answer in time.")

    def close(self) -> None:
        """Nobody wants to know any more."""
        self.item = None
        self._leave()

    # -- a sound -------------------------------------------------------------------------------------------------------

    def _misses(self) -> None:
        """Its audio did not come along from another worker."""
        for i, part in enumerate(self.item.parts):
            if part[1] is None:
                part[1] = ""
                recorded.not_recognised(self.call.dialect, self.item, i, LOST)
        self.item.read()
        self.item = None

    def _listen(self) -> None:
        """To the next sound of the item."""
        call, self.sound = self.call, self.item.sounds[0]
        expect, studio = call.dialogue.expect, call.studio
        self.utterance += 1
        if expect.id < 0:                       # nothing that is said counts in some states
            return self._known("", 0.0)
        if not studio.free:
            return self._fails("There is no room to hear it.")
        rate = 8000 if self.sound.rate == 8000 else 16000
        self.slot = studio.arena.slot(studio.free.pop())
        self.slot.take(rate, rate)
        self.search, self.terms = studio.search(call.flow, expect.id), expect.terms
        self._given = self._final_by = 0
        self._resampler = Resampler(self.sound.rate, rate) if self.sound.rate != rate else None
        call.note("recorded", self.item.id, self.sound.part)
        studio.stt.listen(self, 0)
        self._hear(self._silence())

    def _silence(self) -> np.ndarray:
        return np.zeros(EDGE_MS * self.sound.rate // 1000, np.int16)

    def _hear(self, pcm: np.ndarray) -> None:
        self.slot.write(pcm if self._resampler is None else self._resampler.push(pcm))
        self.call.studio.stt.audio(self)

    def _give(self, now: int) -> None:
        """The next piece of it, or its end."""
        size = PIECE_MS * self.sound.rate // 1000
        piece = self.sound.pcm[self._given:self._given + size]
        self._given += len(piece)
        self._throttle.hears(len(piece), now, self.sound.rate)
        self._hear(piece)
        if self._given == len(self.sound.pcm):
            self._hear(self._silence())
            self.call.usage.heard(self.slot.written / self.slot.rate_in)
            self._final_by = now + WITHIN
            self.call.studio.stt.finish(self, self.slot.written)

    # -- from the recogniser -------------------------------------------------------------------------------------------

    def on_partial(self, utterance: int, text: str) -> None:
        """All of it counts, and it is soon there."""

    @entry(journal.RECORDED + journal.FINAL)
    def on_final(self, utterance: int, text: str, confidence: float = 1.0) -> None:
        if utterance == self.utterance and self.slot is not None:
            self._known(text, confidence)
            self.call.recorded_is_known()

    @entry(journal.RECORDED + journal.FAILURE)
    def on_failure(self, utterance: int, sentence: str) -> None:
        if utterance == self.utterance and self.slot is not None:
            self._fails(sentence)
            self.call.recorded_is_known()

    def _known(self, text: str, confidence: float) -> None:
        item, sound = self._over(text)
        recorded.recognised(self.call.dialect, item, sound.part, text, confidence, sound.seconds)

    def _fails(self, sentence: str) -> None:
        log.warning("call %s: %s", self.call.id, sentence)
        self.call.server.metrics.count("recogniser_failures")
        item, sound = self._over("")
        recorded.not_recognised(self.call.dialect, item, sound.part, sentence)

    def _over(self, text: str) -> tuple[Item, Sound]:
        """What the sound says is known; whose that was."""
        self._leave()
        item, sound = self.item, self.sound
        item.is_told(sound, text)
        self.item = item if item.sounds else None
        return item, sound

    def _leave(self) -> None:
        if self.slot is not None:
            studio, slot = self.call.studio, self.slot
            studio.stt.cancel(self)
            studio.stt.forget(self)
            slot.free()
            studio.free.append(slot.index)
            self.slot = None
