"""Bystander: the other side of a conversation of others, beside the one whom the flow follows.

It is heard and recognised as a caller is, in a slot of its own, and what it has said is told and decides nothing.  The
rules: its words are free speech, whatever the flow expects; and an utterance that begins while the last word of the one
before is awaited is recognised after that.
"""
import logging
from types import SimpleNamespace

from ..dialects import AGENT, CALLER, OVERHEARD, Both
from ..flow import Expect
from ..flow.expect import Answer
from ..speech.turns import END_OF_TURN, NO_INPUT, PAUSE, PAUSED, UTTERANCE_START, Settings, TurnTaking
from . import journal
from .ear import Ear
from .journal import entry

log = logging.getLogger("opusagent")

FREE_SPEECH = (Answer(free=True),)


def begin(call) -> "Bystander | None":
    """The other side of a call that begins; None where there is none, or it cannot be recognised."""
    if not call.dialect.two_sided:
        return None
    if not any(search.kind == "free" for search in call.flow.searches):
        log.warning("call %s: only one side is heard: no state of %s expects free speech", call.id, call.flow.file)
        return None
    if not call.studio.free:
        log.warning("call %s: only one side is heard: there is no room for the other", call.id)
        return None
    slot = call.studio.arena.slot(call.studio.free.pop())
    slot.take(call.slot.rate_in, call.slot.rate_out)
    return Bystander(call, slot)


def hear(call, event: Both) -> None:
    """Audio of both sides."""
    if call.slot is not None:
        now = call.server.now
        call.ear.hear(event.pcm, now)
        if call.ear.beside is not None:
            call.ear.beside.ear.hear(event.other, now)


class Bystander:
    """To its ear, and to the recogniser, it is the call: `slot`, `turns`, `on_window` and what else an Ear uses."""

    __slots__ = ("call", "journal", "id", "server", "studio", "flow", "slot", "usage", "speaker", "dialogue", "mouth",
                 "turns", "ear", "ended", "waiting")
    recording = None                        # the call's has both sides

    def __init__(self, call, slot):
        self.call = call
        self.journal = call.journal and call.journal.beside
        self.id, self.server, self.studio, self.flow = call.id, call.server, call.studio, call.flow
        self.usage = call.usage
        self.slot = slot
        self.speaker = AGENT if call.dialect.speaker == CALLER else CALLER
        search = next(search for search in call.flow.searches if search.kind == "free")
        waits = call.dialogue.expect.waits
        self.dialogue = SimpleNamespace(expect=Expect(search.id, search.kind, waits, FREE_SPEECH))
        self.mouth = SimpleNamespace(echo=None)             # nothing is said to it
        self.turns = TurnTaking(slot.rate_in, waits, Settings.of(call.server.config.turns))
        self.ended = 0                      # position at which the latest utterance that is over ended
        self.waiting: tuple[int, int] | None = None     # (onset, end; 0: it goes on) of one that has to wait
        self.ear = Ear(self, call.server, call.connection)
        self.ear.open(slot, slot.rate_in, call.server.now)

    def close(self) -> None:
        """The call is over."""
        self.ear.close()
        self.slot.free()
        self.studio.free.append(self.slot.index)
        self.slot = self.ear.call = None    # nothing leads back here, so that no collector is waited for

    def let_go(self) -> None:
        """The call goes on in another worker, which has the slot from now on."""
        self.ear.stt.cancel(self.ear)
        self.ear.vad.close()
        self.slot = self.ear.slot = self.ear.call = None

    # -- for its ear ---------------------------------------------------------------------------------------------------

    @property
    def ledger(self) -> "Bystander":
        return self

    def arrived(self, position: int, now: int) -> None:
        """Nobody waits for an answer to it."""

    def hear_silence(self, now: int) -> None:
        """No media came for a while, of neither side."""
        self.call.hear_silence(now)

    def note(self, what: str, *details) -> None:
        if self.journal is not None:
            self.journal.note(what, *details)

    @entry(journal.WINDOW)
    def on_window(self, score: float, position: int, samples: int, quiet: int) -> None:
        if self.slot is not None:
            self._follow(self.turns.push(score, samples, quiet))

    def _follow(self, events) -> None:
        for event in events:
            self.note(event.kind, event.position)
            if event.kind in ON_TURN:
                ON_TURN[event.kind](self, event.position)

    def _utterance_starts(self, onset: int) -> None:
        if self.ear.final_by:
            self.waiting = (self.waiting or (onset,))[0], 0
        else:
            self.ear.listen(self.ear.before(onset))

    def _pause(self, position: int) -> None:
        self.ear.ask()

    def _end_of_turn(self, position: int) -> None:
        if self.waiting is not None:
            self.waiting = self.waiting[0], position
        else:
            self._finish(position)
        self._nobody_answers(position)

    def _nobody_answers(self, position: int) -> None:
        self._follow(self.turns.agent_done())

    def _finish(self, position: int) -> None:
        self.ear.floor = self.ended = position
        self.ear.finish(self.server.clock())

    # -- from the recogniser -------------------------------------------------------------------------------------------

    def on_words(self, text: str) -> None:
        self._follow(self.turns.judge(self.dialogue.expect.judge(text)))

    def on_prosody(self, complete: float) -> None:
        self._follow(self.turns.sway(complete))

    def on_heard(self, text: str, confidence: float) -> None:
        """What the utterance was."""
        if text:
            self.call.ledger.overheard(self.speaker, text, confidence, self.call.dialogue.state,
                                       self.ended * 1000 / self.slot.rate_in)
            self.call.mouth.out.tell(OVERHEARD, text, confidence, self.ear.span)
        self._next()

    def on_afterthought(self, text: str, confidence: float) -> None:
        self.on_heard(text, confidence)

    def on_deaf(self) -> None:
        """The recogniser has failed."""
        self.server.metrics.count("recogniser_failures")
        self.ear.listen_no_more()
        self._next()

    def _next(self) -> None:
        """The utterance that has waited is recognised from where it began."""
        if self.waiting is not None:
            (onset, end), self.waiting = self.waiting, None
            self.ear.listen(self.ear.before(onset))
            if end:
                self._finish(end)
            elif self.turns.state == PAUSED:
                self.ear.ask()


ON_TURN = {UTTERANCE_START: Bystander._utterance_starts, PAUSE: Bystander._pause,
           END_OF_TURN: Bystander._end_of_turn, NO_INPUT: Bystander._nobody_answers}
