"""Ear: the caller's side of a call.  Audio in, scored for speech, kept in the slot, and recognised where it lies.

It decides neither when a turn is over nor what is answered.  The rules: what comes in goes one way, from the message
to the slot, in one run of calls; and what the recogniser says of an older `utterance` is dropped where it lands.
"""
import logging
import sys

import numpy as np

from .._fastpath import Resampler
from ..speech import acoustics
from ..speech.audio import Vad
from ..speech.turns import PAUSED
from . import journal
from .filled import Filled
from .journal import entry

log = logging.getLogger("opusagent")

MS = 1_000_000                  # ns
MEDIA_GAP = 100 * MS            # without media for so long, the sample clock goes on with silence;
USUAL_MS = 20                   # where a message has more than that, for so much longer,
LONGEST_MS = 1_000              # as if it had no more than this
FINAL_WITHIN = 1400 * MS        # a recogniser that has not answered by then has failed


class Ear:
    """`hearing` while an utterance is being recognised, `final_by` while its last word is awaited.

    Of its call it uses on_window(), on_words(text), on_heard(text, confidence) and on_deaf().  To the recogniser it is
    the call: `slot`, `utterance`, `search`, `terms`, on_partial(), on_final() and on_failure().
    """

    __slots__ = ("call", "journal", "connection", "studio", "stt", "turn_model", "slot", "vad", "resampler",
                 "utterance", "search", "terms", "hearing", "overhearing", "weighed", "afterthought", "heard_from",
                 "floor", "final_by", "media_at", "filled", "wire_rate", "gap", "longest", "beside")

    def __init__(self, call, server, connection):
        self.call = call
        self.journal = call.journal
        self.connection = connection
        self.studio = server.studio
        self.stt = server.studio.stt
        self.turn_model = getattr(server.studio, "turn_model", None)
        # made by open()
        self.slot = None
        self.vad: Vad | None = None
        self.resampler: Resampler | None = None     # from the wire's rate to the slot's, where they differ
        # the utterance
        self.utterance = 0                  # grows with each; what the recogniser sends for an older one is late
        self.search = -1                    # of the recogniser, for what the state expects
        self.terms: tuple[str, ...] = ()    # the phrases of that
        self.hearing = False                # it is being recognised
        self.overhearing = False            # ... and may be none: it began while the agent speaks
        self.weighed = False                # ... which its words have not denied, and it was long enough for one
        self.afterthought = False           # its last word is awaited although the agent speaks on
        self.heard_from = 0                 # where it begins, pre-roll included
        self.floor = 0                      # none begins before this position: that belongs to the one before
        self.final_by = 0                   # ns: until when the recogniser may take for its last word; 0: not asked
        self.media_at = 0                   # ns: when audio last came
        self.filled = Filled()              # where none came, and the sample clock went on
        self.wire_rate = 0                  # Hz
        self.gap = MEDIA_GAP                # ns without media until the sample clock goes on
        self.longest = 0                    # samples of the longest message, at the wire's rate
        self.beside = None                  # the Bystander, where both sides of a conversation of others are heard

    def open(self, slot, wire_rate: int, now: int) -> None:
        """The line has this rate from now on."""
        if self.vad is not None:
            self.vad.close()
        self.slot = slot
        self.resampler = Resampler(wire_rate, slot.rate_in) if wire_rate != slot.rate_in else None
        notes = self.journal and self.journal.notes     # for what a journal has to have of a calm caller
        calm = self.call.turns.calm if self.journal is None or notes else None
        self.vad = Vad(slot.rate_in, self.studio.hearing, self._scored, calm, notes)
        self.media_at = now
        self.wire_rate, self.gap = wire_rate, MEDIA_GAP
        self.longest = USUAL_MS * wire_rate // 1000 if getattr(self.call, "paced", True) else sys.maxsize

    def close(self) -> None:
        """The call is over."""
        if self.beside is not None:
            self.beside.close()
            self.beside = None
        self._given()
        self.hearing = self.overhearing = False
        self.final_by = 0
        self.stt.cancel(self)
        self.stt.forget(self)
        if self.turn_model is not None:
            self.turn_model.forget(self)
        self.vad.close()
        self.slot = self.vad = None         # the detector leads back to us

    # -- audio ---------------------------------------------------------------------------------------------------------

    def hear(self, pcm, now: int) -> None:
        """Samples at the wire's rate."""
        self.expect_longer(len(pcm))
        self.take(pcm if self.resampler is None else self.resampler.push(pcm), now)

    def expect_longer(self, samples: int) -> None:
        """Where messages are so long, the next one comes as much later."""
        if samples > self.longest:
            self.longest = samples
            self.gap = MEDIA_GAP + (min(samples * 1000 // self.wire_rate, LONGEST_MS) - USUAL_MS) * MS

    def take(self, pcm, now: int) -> None:
        """Samples at the slot's rate."""
        position = self.slot.write(pcm)
        if self.call.recording is not None:
            self.call.recording.heard()
        self.media_at = now
        self.call.ledger.arrived(position, now)
        self.vad.push(pcm)
        if self.hearing:
            self.stt.audio(self)

    def hear_silence(self, now: int) -> None:
        """No media came for a while (hold, mute, loss): the caller is silent, and the sample clock goes on.  Of a while
        in which we stood still it goes on by as much as the slot keeps."""
        count = min((now - self.media_at) * self.slot.rate_in // 1_000_000_000, self.slot.capacity)
        self.filled.add(self.slot.written, count)
        self.take(np.zeros(count, np.int16), now)
        if self.beside is not None:
            self.beside.ear.hear_silence(now)

    def ms(self, position: int) -> float:
        """A position of the slot in the audio that came."""
        return self.filled.without(position) * 1000 / self.slot.rate_in

    @property
    def span(self) -> tuple[int, int]:
        """From where to where the utterance lies that is over, ms of the audio that came; pre-roll is of it."""
        return round(self.ms(self.heard_from)), round(self.ms(self.floor))

    def _scored(self, score: float, position: int, samples: int, quiet: int) -> None:
        """The window that ends at `position` is scored; what is only the agent's echo is no speech."""
        call, mouth, per_ms = self.call, self.call.mouth, self.slot.rate_in // 1000
        if score >= call.turns.off and mouth.echo is not None and position - mouth.sounded < acoustics.KEPT_MS * per_ms:
            stretch = min(position, acoustics.STRETCH_MS * per_ms)
            if mouth.echo.explains(self.slot.read(position - stretch, stretch)):
                call.server.metrics.count("echoes")
                score, quiet = 0.0, samples
        call.on_window(score, position, samples, quiet)

    # -- utterances ----------------------------------------------------------------------------------------------------

    def before(self, onset: int) -> int:
        """Where an utterance begins whose first voiced window is at `onset`."""
        return max(onset - self.call.server.config.turns.preroll_ms * self.slot.rate_in // 1000, self.floor)

    def listen(self, position: int, overhearing: bool = False) -> None:
        """An utterance begins there, in the state that the flow is in."""
        call = self.call
        expect = call.dialogue.expect
        self._given()
        self.utterance += 1
        self.heard_from = position
        self.weighed = self.afterthought = False
        self.final_by = 0
        self.hearing = expect.id >= 0       # nothing that is said counts in some states
        self.overhearing = self.hearing and overhearing
        if self.hearing:
            self.choose(self.overhearing)
            call.note("listen", self.utterance, position)
            self.stt.listen(self, position)

    def overhear(self, position: int) -> None:
        """Something begins there while the agent speaks: an utterance, or nothing."""
        self.listen(position, overhearing=True)

    def choose(self, overhearing: bool) -> None:
        """The search, to the utterance's end: for an answer, or for what is said while the agent speaks."""
        dialogue = self.call.dialogue
        number = dialogue.overhear if overhearing else dialogue.expect.id
        self.search, self.terms = self.studio.search(self.call.flow, number), dialogue.expect.terms

    def ask(self) -> None:
        """The best text so far is wanted now, and whether that sounds like all of it."""
        if self.hearing:
            self.stt.ask(self)
            if self.turn_model is not None and not self.overhearing:
                self.turn_model.ask(self, self.heard_from, self.slot.written)

    def finish(self, now: int, afterthought: bool = False) -> None:
        """The utterance is over: its last word is awaited."""
        self._given()
        self.hearing = self.overhearing = False
        self.afterthought = afterthought
        self.final_by = now + FINAL_WITHIN
        self.call.note("finish", self.utterance, self.slot.written)
        self.stt.finish(self, self.slot.written)

    def listen_no_more(self) -> None:
        """What was being recognised is of no use any more."""
        if self.hearing or self.final_by:
            self._given()
            self.hearing = self.overhearing = self.afterthought = False
            self.final_by = 0
            self.stt.cancel(self)

    def _given(self) -> None:
        """What the recogniser has been given of an utterance that ends here counts."""
        if self.hearing:
            self.call.usage.heard((self.slot.written - self.heard_from) / self.slot.rate_in)

    # -- from the recogniser -------------------------------------------------------------------------------------------

    @entry(journal.PARTIAL)
    def on_partial(self, utterance: int, text: str) -> None:
        if utterance == self.utterance and self.hearing and (text or self.overhearing):
            self.call.on_words(text)

    @entry(journal.FINAL)
    def on_final(self, utterance: int, text: str, confidence: float = 1.0) -> None:
        if utterance == self.utterance and self.final_by:
            self.final_by, afterthought, self.afterthought = 0, self.afterthought, False
            if afterthought:
                self.call.on_afterthought(text, confidence)
            else:
                self.call.on_heard(text, confidence)

    @entry(journal.FAILURE)
    def on_failure(self, utterance: int, sentence: str) -> None:
        if utterance == self.utterance and (self.hearing or self.final_by):
            log.warning("call %s: %s", self.call.id, sentence)
            self.call.on_deaf()

    @entry(journal.COMPLETE)
    def on_complete(self, utterance: int, position: int, probability: float) -> None:
        """The turn model has heard it up to `position`: probably it is complete, or it is not."""
        if self.call is None:
            return
        turns = self.call.turns
        late = utterance != self.utterance or not self.hearing or turns.state != PAUSED or position < turns.ended
        self.call.server.metrics.count("turn_model", outcome="late" if late else "heeded")
        if not late:
            self.call.on_prosody(probability)

    @property
    def due(self) -> int:
        """ns: before then tick() has nothing to do."""
        quiet = self.media_at + self.gap
        due = min(quiet, self.final_by or quiet)
        return due if self.beside is None else min(due, self.beside.ear.due)

    def tick(self, now: int) -> None:
        """The sample clock when no media comes, and the recogniser's deadline."""
        if now - self.media_at > self.gap:
            self.call.hear_silence(now)
        if self.final_by and now > self.final_by:
            log.warning("call %s: the recogniser gave no answer in time", self.call.id)
            self.call.on_deaf()
        if self.beside is not None:
            self.beside.ear.tick(now)
