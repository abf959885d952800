"""Call: one phone call.  It wires the dialect, the ear, the recogniser, the flow and the reply; it decides nothing.

What an inbound message sets off is one synchronous run of calls, from the socket's callback to the slot in shared
memory: no task, no queue, no await.  The rules: what the caller said is judged by turns.py and flow/, what the agent
says is mouth.py's, how it is made pipeline.py's, and whatever carries an older `utterance` than ours is dropped where
it lands.
"""
import logging
import math
import secrets

import numpy as np

from . import ProtocolError, acoustics, departure, journal
from ._fastpath import Resampler
from .audio import Vad
from .dialects import (FACTS, HYPOTHESIS, RECOGNITION, REPLIED, SPEECH_STARTED, SPEECH_STOPPED, Audio, Dtmf, Mark,
                       Pause, Start, Stop)
from .flow import COMPLETE, Dialogue, Reply
from .flow.dialogue import ANSWER, FAILURE
from .journal import entry, noted
from .ledger import Ledger
from .mouth import NEVER, Mouth
from .pipeline import Turn
from .turns import (BARGE_IN, DUCK, END_OF_TURN, NO_INPUT, PAUSE, PAUSED, RESTORE, RESUME, UTTERANCE_START, Settings,
                    TurnTaking)

log = logging.getLogger("opusagent")

MS = 1_000_000                  # ns
MEDIA_GAP = 100 * MS            # without media for so long, the sample clock goes on with silence
FINAL_WITHIN = 1500 * MS        # a recogniser that has not answered by then has failed
START_WITHIN = 10_000 * MS      # a call that has not started by then never will


class Call:
    """A session of a connection (see connection.py) that talks.  It begins with the dialect's Start."""

    def __init__(self, server, connection, dialect, agent: str, kept: "journal.Journal | None" = None):
        self.journal = kept                 # what it notes; None: nothing is kept
        if kept is not None:
            kept.open(journal.BEGIN, ())
            server, connection = kept.seen(server, connection)
        self.server = server                # what it is made with
        self.studio = server.studio
        self.connection = connection
        self.dialect = dialect
        self.flow = self.studio.flows[agent]
        # made by Start
        self.id = ""
        self.slot = None                    # of the arena; None before Start and after the end
        self.dialogue: Dialogue | None = None
        self.turns: TurnTaking | None = None
        self.vad: Vad | None = None
        self.resampler: Resampler | None = None     # from the wire's rate to the slot's, where they differ
        # the caller's side
        self.utterance = 0                  # grows with each; what the recogniser sends for an older one is late
        self.search = -1                    # of the recogniser, for what the state expects
        self.terms: tuple[str, ...] = ()    # the phrases of that
        self.hearing = False                # an utterance is being recognised
        self.heard_from = 0                 # where the utterance begins, pre-roll included
        self.floor = 0                      # no utterance begins before this position: it belongs to the one before
        self.final_by = 0                   # ns: until when the recogniser may take for its last word; 0: not asked
        self.keys = ""                      # DTMF pressed since the agent's last word
        self.keys_by = 0                    # ns: until when another key may follow
        self.media_at = 0                   # ns: when audio last came
        self.excused = 0                    # silence before this position is the platform's doing, not the caller's
        # the agent's side
        self.mouth = Mouth(self, server, connection, dialect)
        self.before: tuple = ()             # the dialogue before the reply, while nothing of it was heard
        # what is told of it
        self.ledger = Ledger(server.metrics, kept)
        self.began = server.now             # ns
        self.done = False                   # the flow came to its end
        self.leave_by = 0                   # ns: until when the platform may end the call itself, once it is done
        self.due = 0                        # ns: before then tick() has nothing to do
        if (start := dialect.open()) is not None:
            self.on_start(start)
        if kept is not None:
            kept.close()

    # -- from the connection -------------------------------------------------------------------------------------------

    @noted(journal.MESSAGE)
    def on_message(self, opcode: int, payload: memoryview) -> None:
        event = self.dialect.receive(opcode, payload)
        if self.dialect.outbox:
            self.mouth.out.answers()
        if event is not None and (not self.done or event.__class__ is Stop):
            ON_EVENT[event.__class__](self, event)

    @noted(journal.DRAINED)
    def drained(self) -> None:
        self.mouth.out.drained()

    def overdue(self, now: int) -> bool:
        return self.slot is None and now - self.began > START_WITHIN

    def lost(self, code: int, reason: str) -> None:
        """The connection is over, and so is the call."""
        if self.slot is not None:
            self.ends(code, reason)
            if self.journal is not None:
                self.journal.end()

    @noted(journal.LOST)
    def ends(self, code: int, reason: str) -> None:
        """Nothing of it is left: no reply, no utterance, no slot."""
        if self.mouth.turn is not None:
            self._stop_talking("hang-up")
        self.mouth.close()
        self.ledger.finish()
        self.studio.stt.cancel(self)
        self.studio.stt.forget(self)
        self.vad.close()
        slot, self.slot = self.slot, None
        slot.free()
        self.studio.free.append(slot.index)
        self.server.call_ends(self)
        log.info("call %s ended: %s, %d turns, %.1f s, state %s", self.id, "done" if self.done else f"code {code}",
                 len(self.ledger.receipts), (self.server.now - self.began) / 1e9, self.dialogue.state)
        self.vad = self.turns = None        # they lead back to us

    # -- the dialect's events ------------------------------------------------------------------------------------------

    def on_start(self, event: Start) -> None:
        if self.slot is not None:
            return                          # a second start changes nothing
        self.id = event.call_id or secrets.token_hex(8)
        self.ledger.call_id = self.id
        self.server.call_begins(self, event)
        if self.journal is not None:
            self.journal.start(self.id)
        self.slot = self.studio.arena.slot(self.studio.free.pop())
        self.dialogue = self._dialogue(event.facts)
        self._open_line()
        self.media_at = self.server.now
        log.info("call %s begins: %s at %d Hz", self.id, self.dialect.name, self.dialect.rate)
        self._begin()

    def _dialogue(self, facts: dict) -> Dialogue:
        history = self.server.config.history
        return Dialogue(self.flow, facts, history.exchanges, history.characters)

    def _open_line(self) -> None:
        """Ear and mouth, at the rate of the dialect."""
        wire_rate = self.dialect.rate
        rate = 8000 if wire_rate == 8000 else 16000
        self.slot.take(rate, wire_rate)
        self.resampler = Resampler(wire_rate, rate) if wire_rate != rate else None
        self.turns = TurnTaking(rate, self.dialogue.expect.waits, Settings.of(self.server.config.turns))
        self.vad = Vad(rate, self.studio.hearing, self._scored)
        self.mouth.open(self.slot, wire_rate, self.studio, self.flow, self.server.config.openai)

    def _begin(self) -> None:
        self._reply(self.dialogue.begin())

    def on_audio(self, event: Audio) -> None:
        if self.slot is None:
            return                          # audio before start belongs to nobody
        pcm = event.pcm if self.resampler is None else self.resampler.push(event.pcm)
        self._hear(pcm, self.server.now)

    def _hear(self, pcm, now: int) -> None:
        position = self.slot.write(pcm)
        self.media_at = now
        self.ledger.arrived(position, now)
        self.vad.push(pcm)
        if self.hearing:
            self.studio.stt.audio(self)

    def on_dtmf(self, event: Dtmf) -> None:
        if self.slot is None:
            return
        if self.mouth.turn is not None:
            self._stop_talking("keys")
        self.keys += event.digit
        expect = self.dialogue.expect
        if expect.judge_keys(self.keys) == COMPLETE:
            self._answer_keys()
        else:
            self.keys_by = self.server.now + expect.waits.keys * MS

    @entry(journal.ANSWERED_BY)
    def answered_by(self, who: str) -> None:
        """The platform knows who has answered a call of ours: a person, or a machine."""
        if self.slot is not None and not self.done and (reply := self.dialogue.answered(who)) is not None:
            self.hearing, self.final_by = False, 0
            self.studio.stt.cancel(self)
            self._reply(reply)

    def on_mark(self, event: Mark) -> None:
        if self.slot is not None and not event.cleared:
            self.mouth.reached(event.name, self.server.now)

    def on_pause(self, event: Pause) -> None:
        if self.slot is not None:
            self.excused = self.slot.written if event.over else math.inf

    def on_stop(self, event: Stop) -> None:
        self.connection.close(1000)

    # -- turn taking ---------------------------------------------------------------------------------------------------

    def _scored(self, score: float, position: int, samples: int, quiet: int) -> None:
        """The ear has scored the window that ends at `position`; what is only the agent's echo is no speech."""
        mouth, per_ms = self.mouth, self.slot.rate_in // 1000
        if score >= self.turns.off and mouth.echo is not None and position - mouth.sounded < acoustics.KEPT_MS * per_ms:
            stretch = min(position, acoustics.STRETCH_MS * per_ms)
            if mouth.echo.explains(self.slot.read(position - stretch, stretch)):
                self.server.metrics.count("echoes")
                score, quiet = 0.0, samples
        self.on_window(score, position, samples, quiet)

    @entry(journal.WINDOW)
    def on_window(self, score: float, position: int, samples: int, quiet: int) -> None:
        """A window of the caller's: its score for speech, where it ends, and how much of its end is not voiced."""
        if self.slot is not None and not self.done:
            self._follow(self.turns.push(score, samples, quiet))

    def _follow(self, events) -> None:
        for event in events:
            self._note(event.kind, event.position)
            ON_TURN[event.kind](self, event.position)

    def _utterance_starts(self, onset: int) -> None:
        preroll = self.server.config.turns.preroll_ms * self.slot.rate_in // 1000
        self._listen(max(onset - preroll, self.floor))

    def _listen(self, position: int) -> None:
        self.utterance += 1
        self.heard_from = position
        self.keys = ""
        self.hearing = self.dialogue.expect.id >= 0         # nothing that is said counts in some states
        if self.hearing:
            self.search = self.studio.search(self.flow, self.dialogue.expect.id)
            self._note("listen", self.utterance, position)
            self.terms = self.dialogue.expect.terms
            self.studio.stt.listen(self, position)
            self.mouth.out.tell(SPEECH_STARTED)

    def _pause(self, position: int) -> None:
        if self.hearing:
            self.studio.stt.ask(self)

    def _resume(self, position: int) -> None:
        self.mouth.forget()

    def _duck(self, position: int) -> None:
        self.mouth.duck()

    def _restore(self, position: int) -> None:
        self.mouth.restore()

    def _end_of_turn(self, position: int) -> None:
        now = self.server.clock()
        self.floor = position
        if not self.hearing:
            return self._follow(self.turns.agent_done())
        self.hearing = False
        self.final_by = now + FINAL_WITHIN
        self.ledger.begin(now, self.slot, self.connection.rtt_ns, self.turns.position)
        self.mouth.out.tell(SPEECH_STOPPED)
        self._note("finish", self.utterance, self.slot.written)
        self.studio.stt.finish(self, self.slot.written)

    def _barge_in(self, onset: int) -> None:
        if self.final_by or self.before:
            return self._go_on_listening()
        if self.mouth.turn is not None:
            self._stop_talking("barge-in")
        self._utterance_starts(onset)

    def _go_on_listening(self) -> None:
        """The turn was ended too early, and nobody has heard it: the caller has just gone on.

        What was decided is taken back, and the utterance is recognised again from where it began.
        """
        self.final_by = 0
        self.studio.stt.cancel(self)
        self.mouth.forget()
        if self.mouth.turn is not None:
            self.mouth.drop()
            self.dialogue.restore(self.before)
            self.turns.expect(self.dialogue.expect.waits)
        self.before = ()
        self.ledger.finish("going on")
        self._listen(self.heard_from)

    def _no_input(self, position: int) -> None:
        if position - self.turns.no_input < self.excused:
            return self._follow(self.turns.agent_done())
        self.ledger.begin(self.server.clock())
        self._reply(self.dialogue.silence())

    # -- from the recogniser -------------------------------------------------------------------------------------------

    @entry(journal.PARTIAL)
    def on_partial(self, utterance: int, text: str) -> None:
        if utterance == self.utterance and self.hearing and text:
            self.mouth.out.tell(HYPOTHESIS, text)
            self._follow(self.turns.judge(self.dialogue.judge(text)))
            if self.hearing and self.turns.state is PAUSED:
                self.mouth.prepare(self.dialogue.answer(text), self.server.clock())

    @entry(journal.FINAL)
    def on_final(self, utterance: int, text: str, confidence: float = 1.0) -> None:
        if utterance != self.utterance or not self.final_by:
            return
        self.final_by = 0
        self.ledger.trace.mark("recognition", self.server.clock())
        self.ledger.trace.confidence = confidence
        self.mouth.out.tell(RECOGNITION, text, confidence)
        self._reply(self.dialogue.answer(text))

    @entry(journal.FAILURE)
    def on_failure(self, utterance: int, sentence: str) -> None:
        if utterance == self.utterance and (self.hearing or self.final_by):
            log.warning("call %s: %s", self.id, sentence)
            self._recogniser_failed()

    def _recogniser_failed(self) -> None:
        self.server.metrics.count("recogniser_failures")
        self.hearing = False
        self.final_by = 0
        self.studio.stt.cancel(self)
        self._reply(self.dialogue.failure())

    def _answer_keys(self) -> None:
        keys, self.keys, self.keys_by = self.keys, "", 0
        if self.hearing:
            self.hearing = False
            self.studio.stt.cancel(self)
        self.ledger.begin(self.server.clock())
        self._reply(self.dialogue.dtmf(keys))

    # -- the reply -----------------------------------------------------------------------------------------------------

    def _reply(self, reply: Reply) -> None:
        """A decision is made: it counts, and is spoken from now on."""
        now = self.server.clock()
        if self.mouth.turn is not None:
            self._stop_talking("superseded")
        trace = self.ledger.trace or self.ledger.begin(now)
        self.before = self.dialogue.checkpoint() if reply.kind == ANSWER else ()
        self.dialogue.commit(reply)
        self._note("reply", reply.kind, reply.next, reply.caller, reply.say, reply.facts)
        trace.mark("decision", self.server.clock())
        trace.kind, trace.state, trace.caller = reply.kind, self.dialogue.state, reply.caller
        self.turns.expect(self.dialogue.expect.waits)
        self.mouth.say(reply, trace, now)

    @entry(journal.TICK)
    def tick(self, now: int) -> None:
        """When something is due."""
        if self.slot is not None:
            if not self.done:
                self._look_after(now)
            elif now >= self.leave_by:
                self.connection.close(1000, "the conversation is over")

    def _look_after(self, now: int) -> None:
        """Speech that is due, deadlines, and the sample clock when no media comes."""
        self.due = 0                            # what happens meanwhile may want to be looked at soon
        if self.mouth.turn is not None:
            self.mouth.play(now)
        if now - self.media_at > MEDIA_GAP:
            self._hear_silence(now)
        if self.final_by and now > self.final_by:
            log.warning("call %s: the recogniser gave no answer in time", self.id)
            self._recogniser_failed()
        if self.keys_by and now > self.keys_by:
            self._answer_keys()
        deadlines = self.media_at + MEDIA_GAP, self.mouth.due, self.final_by or NEVER, self.keys_by or NEVER
        self.due = 0 if self.done else min(deadlines)

    def _hear_silence(self, now: int) -> None:
        """No media came for a while (hold, mute, loss): the caller is silent, and the sample clock goes on."""
        count = (now - self.media_at) * self.slot.rate_in // 1_000_000_000
        self._hear(np.zeros(count, np.int16), now)

    def first_audio(self, now: int) -> None:
        """The first sample of the reply went out."""
        self.before = ()
        mouth = self.mouth
        mouth.turn.trace.mark("playout", now + mouth.playout.quiet_ns)
        self._follow(self.turns.agent_starts(mouth.turn.reply.interruptible))

    def turn_done(self, turn: Turn, heard: str, now: int) -> None:
        """All of the reply was heard."""
        self.dialogue.heard(turn.reply, heard)
        turn.trace.agent = " ".join(turn.texts)
        self.mouth.out.tell(REPLIED, turn.reply.kind, turn.trace.agent)
        self.ledger.finish()
        if turn.error:
            log.warning("call %s: %s", self.id, turn.error)
            self.server.metrics.count("failed_replies")
        if turn.failed and turn.reply.kind != FAILURE:
            return self._reply(self.dialogue.failure())
        if turn.reply.end or turn.reply.transfer or turn.failed:    # an apology that cannot be said ends it, too
            return self._leave("" if turn.failed else turn.reply.transfer)
        self._follow(self.turns.agent_done())

    def _stop_talking(self, why: str) -> None:
        """The agent stops within this frame; history and receipt keep what was heard."""
        turn, heard = self.mouth.stop(self.server.clock())
        self.before = ()
        self.dialogue.heard(turn.reply, heard)
        turn.trace.agent = heard
        self.ledger.finish(why)

    @entry(journal.NOT_HANDED_OVER)
    def not_handed_over(self) -> None:
        """The platform would not: the conversation goes on."""
        if self.slot is not None and self.done:
            self.done = False
            self._reply(self.dialogue.failure())

    def _leave(self, target: str = "") -> None:
        """The platform ends the call, or hands it over, and has a while for that; then we close."""
        self.done = True
        self.due = 0
        self.mouth.out.tell(FACTS, self.dialogue.facts)
        self.leave_by = self.server.clock() + departure.patience_ms(self, target) * MS
        self.server.departures.leave(self, target)

    def _note(self, what: str, *details) -> None:
        if self.journal is not None:
            self.journal.note(what, *details)

    def record(self) -> dict:
        """What GET /calls/<id> says."""
        return {"id": self.id, "dialect": self.dialect.name, "state": self.dialogue.state if self.dialogue else "",
                "done": self.done, "live": self.slot is not None, "turns": self.ledger.receipts,
                "facts": self.dialogue.facts if self.dialogue else {}, "dropped_chunks": self.mouth.out.dropped}


ON_EVENT = {Start: Call.on_start, Audio: Call.on_audio, Dtmf: Call.on_dtmf, Mark: Call.on_mark, Pause: Call.on_pause,
            Stop: Call.on_stop}

ON_TURN = {
    UTTERANCE_START: Call._utterance_starts,
    PAUSE: Call._pause,
    RESUME: Call._resume,
    END_OF_TURN: Call._end_of_turn,
    BARGE_IN: Call._barge_in,
    DUCK: Call._duck,
    RESTORE: Call._restore,
    NO_INPUT: Call._no_input,
}
