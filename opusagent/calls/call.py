"""Call: one phone call.  It wires the dialect, the ear, the recogniser, the flow and the reply; it decides nothing.

What an inbound message sets off is one synchronous run of calls, from the socket's callback to the slot in shared
memory: no task, no queue, no await.  The rules: what the caller says is ear.py's and judged by turns.py and flow/, what
the agent says is mouth.py's, and how that is made pipeline.py's.
"""
import logging
import math

from ..dialects import (HYPOTHESIS, RECOGNITION, REPLIED, REPLYING, SPEECH_STARTED, SPEECH_STOPPED, Audio, Both,
                        Complaint, Dtmf, Mark, Pause, Returned, Start, Stop)
from ..flow import ANSWERS, COMMIT, FAILURE, Dialogue, Reply
from ..speech.turns import (BARGE_IN, DUCK, END_OF_TURN, NO_INPUT, PAUSE, PAUSED, RAISE, RESTORE, RESUME,
                            UTTERANCE_START, WEIGH, Settings, TurnTaking)
from ..usage import Usage
from . import bystander, departure, earlier, interruption, journal, keypad, silence, stereo, unattended
from .ear import Ear
from .journal import entry, noted
from .ledger import Ledger
from .mouth import NEVER, Mouth
from .pipeline import Turn
from .transaction import Transaction

log = logging.getLogger("opusagent")

MS = 1_000_000                  # ns
START_WITHIN = 10_000 * MS      # a call that has not started by then never will
LOOKED_AT = 1_000 * MS          # a call is looked at that often, though nothing is due


class Call:
    """A session of a connection (see connection.py) that talks.  It begins with the dialect's Start."""

    def __init__(self, server, connection, dialect, agent: str, kept: "journal.Journal | None" = None, begins=True):
        self.journal = kept                 # what it notes; None: nothing is kept
        self.earlier: dict | None = earlier.of(connection, dialect)    # where it stood, if it was held elsewhere
        self.line = connection              # as no journal sees it
        if kept is not None:
            kept.open(journal.BEGIN, earlier.noted(self.earlier))
            server, connection = kept.seen(server, connection)
        self.server, self.studio = server, server.studio        # what it is made with
        self.connection = connection
        self.dialect = dialect
        self.agent, self.flow = agent, self.studio.flows[agent]
        self.usage = Usage(server.config, earlier.began_at(self.earlier))
        # made by Start
        self.id = ""
        self.slot = None                    # of the arena; None before Start and after the end
        self.dialogue: Dialogue | None = None
        self.turns: TurnTaking | None = None
        # the caller's side
        self.ear = Ear(self, server, connection)
        self.keys = ""                      # DTMF pressed since the agent's last word
        self.keys_by = self.end_by = 0      # ns: until when another key may follow; # may, after what is answered
        self.watched = 0                    # position from which silence.py looks again
        # silence before this position is the platform's doing, not the caller's; who is not spoken to need not answer
        self.excused = math.inf if dialect.mute else 0
        # the agent's side
        self.mouth = Mouth(self, server, connection, dialect)
        self.transaction: Transaction | None = None
        # what is told of it
        self.ledger = Ledger(server.metrics, kept, self.mouth.out.tell)
        self.recording: stereo.Stereo | None = None
        self.began = server.now             # ns
        self.done = False                   # the flow came to its end
        self.leave_by = 0                   # ns: until when the platform may end the call itself, once it is done
        self.signals = 0                    # messages that came, were no audio, and had a meaning
        self.due = self.looked = 0          # ns: before then tick() has nothing to do, 0: something has happened
        if begins and (start := dialect.open()) is not None:
            self.on_start(start)
        if kept is not None:
            kept.close()

    # -- from the connection -------------------------------------------------------------------------------------------

    @noted(journal.MESSAGE)
    def on_message(self, opcode: int, payload: memoryview) -> None:
        ignored = self.dialect.ignored
        event = self.dialect.receive(opcode, payload)
        if self.dialect.outbox:
            self.mouth.out.answers()
        if event.__class__ is not Audio and self.dialect.ignored == ignored:
            self.signals += event.__class__ is not Both
            self.due = 0
        if event is not None and (not self.done or event.__class__ in (Returned, Stop)):
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
        self.ear.call = self.mouth.call = None      # nothing leads back here, so that no collector is waited for

    @noted(journal.LOST)
    def ends(self, code: int, reason: str) -> None:
        """Nothing of it is left: no reply, no utterance, no slot."""
        if self.mouth.turn is not None:
            self.stop_talking("hang-up")
        self.mouth.close()
        self.ledger.finish()
        if self.recording is not None:
            self.recording.close()
        self.ear.close()
        slot, self.slot = self.slot, None
        self.usage.ends(code, slot.written / slot.rate_in)
        slot.free()
        self.studio.free.append(slot.index)
        self.server.call_ends(self)
        self.ledger.end(self.usage.outcome, (self.server.now - self.began) / 1e9, self.dialogue.state, code)
        self.turns = None

    # -- the dialect's events ------------------------------------------------------------------------------------------

    def on_start(self, event: Start) -> None:
        if self.slot is not None:
            return                          # a second start changes nothing
        self.id = event.call_id or earlier.name(self.earlier)
        self.ledger.named(self.id, self.dialect)
        self.server.call_begins(self, event)
        if self.journal is not None:
            self.journal.start(self.id)
        self.slot = self.studio.arena.slot(self.studio.free.pop())
        self.dialogue = earlier.recalled(self, self.new_dialogue(event.facts))
        self.open_line()
        self._begin()

    def new_dialogue(self, facts: dict) -> Dialogue:
        history = self.server.config.history
        return Dialogue(self.flow, facts, history.exchanges, history.characters, self.server.today)

    def open_line(self) -> None:
        """Ear and mouth, at the rate of the dialect."""
        wire_rate = self.dialect.rate
        rate = 8000 if wire_rate == 8000 else 16000
        if not self.slot.taken:             # otherwise another worker has begun the call
            self.slot.take(rate, wire_rate)
            self.ear.beside = bystander.begin(self)
        self.turns = TurnTaking(rate, self.dialogue.expect.waits, Settings.of(self.server.config.turns))
        self.ear.open(self.slot, wire_rate, self.server.now)
        self.transaction = Transaction(self.dialogue, self.turns)
        self.mouth.open(self.slot, wire_rate, self.studio, self.flow, self.server.config.openai, self.dialogue)
        self.recording = stereo.begin(getattr(self.server, "archive", None), self, self.recording)
        unattended.begin(self)

    def _begin(self) -> None:
        self.reply(self.dialogue.begin())

    @entry(journal.PARTED)
    def part(self) -> None:
        """The server has to end this call: it says so, and hangs up."""
        if self.slot is not None and not self.done:
            self.ear.listen_no_more()
            self.reply(self.dialogue.parting())

    def on_audio(self, event: Audio) -> None:
        if self.slot is not None:           # audio before start belongs to nobody
            self.ear.hear(event.pcm, self.server.now)

    def hear_silence(self, now: int) -> None:
        """No media came for a while."""
        self.ear.hear_silence(now)

    def on_dtmf(self, event: Dtmf) -> None:
        if self.slot is not None:
            keypad.press(self, event.digit)

    @entry(journal.ANSWERED_BY)
    def answered_by(self, who: str) -> None:
        """The platform knows who has answered a call of ours: a person, or a machine."""
        if self.slot is not None and not self.done and (reply := self.dialogue.answered(who)) is not None:
            self.ear.listen_no_more()
            self.reply(reply)

    def on_mark(self, event: Mark) -> None:
        if self.slot is not None and not event.cleared:
            self.mouth.reached(event.name, self.server.now)

    def on_pause(self, event: Pause) -> None:
        if self.slot is not None:
            self.excused = self.slot.written if event.over and not self.mouth.stage.mute else math.inf

    def on_stop(self, event: Stop) -> None:
        self.connection.close(1000)

    # -- turn taking ---------------------------------------------------------------------------------------------------

    @entry(journal.WINDOW)
    def on_window(self, score: float, position: int, samples: int, quiet: int) -> None:
        """A window of the caller's: its score for speech, where it ends, and how much of its end is not voiced."""
        if self.slot is not None and not self.done:
            self.follow(self.turns.push(score, samples, quiet))
        elif self.slot is not None:
            self.turns.position = position      # nobody judges it, but it has gone by

    def follow(self, events) -> None:
        """Do what turn taking says."""
        for event in events:
            self.due = 0
            self.note(event.kind, event.position)
            ON_TURN[event.kind](self, event.position)

    def _utterance_starts(self, onset: int) -> None:
        keypad.forget(self)
        if self.ear.overhearing:
            self.ear.overhearing = False
        else:
            self.listen(self.ear.before(onset))
        if self.ear.hearing:
            self.mouth.out.tell(SPEECH_STARTED)

    def listen(self, position: int) -> None:
        self.ear.listen(position)

    def _duck(self, onset: int) -> None:
        """The caller makes a sound over the agent: lower, and listen what it is."""
        self.mouth.duck()
        self.ear.overhear(self.ear.before(onset))

    def _weigh(self, onset: int) -> None:
        if self.ear.overhearing:
            self.ear.weighed = True
            self.ear.ask()
        else:
            self.follow(self.turns.weigh(True))            # there are no words that could tell

    def _restore(self, position: int) -> None:
        """It was nothing."""
        self.mouth.restore()
        if self.ear.overhearing:
            interruption.over(self)

    def end_of_turn(self, position: int) -> None:
        """The caller's turn is over there: what it was is awaited, and answered."""
        now = self.server.clock()
        self.ear.floor = position
        if not self.ear.hearing:
            return interruption.go_on(self) if self.mouth.held_back else self.follow(self.turns.agent_done())
        self.ledger.begin(now, self.slot, self.connection.rtt_ns, self.turns.position,
                          self.mouth.resumes and self.mouth.turn is not None)
        self.mouth.out.tell(SPEECH_STOPPED)
        self.ear.finish(now)

    def _barge_in(self, onset: int) -> None:
        if self.ear.final_by or self.transaction.revocable:
            return self._go_on_listening()
        if self.mouth.turn is not None:
            interruption.stop(self)
        self._utterance_starts(onset)

    def _go_on_listening(self) -> None:
        """The turn was ended too early, and nobody has heard it: the caller has just gone on.

        What was decided is taken back, and the utterance is recognised again from where it began.
        """
        self.ear.listen_no_more()
        self.mouth.forget()
        self.ledger.aside = None
        if not self.mouth.held_back:
            if self.mouth.turn is not None:
                self.mouth.drop()
                self.transaction.take_back()
            self.transaction.certain()
            self.ledger.finish("going on")
        self.listen(self.ear.heard_from)

    def _no_input(self, position: int) -> None:
        if self.mouth.turn is not None or position - self.turns.no_input < self.excused:
            return self.follow(self.turns.agent_done())
        self.ledger.begin(self.server.clock())
        self.reply(self.dialogue.silence())

    # -- from the recogniser -------------------------------------------------------------------------------------------

    def on_words(self, text: str) -> None:
        """What the utterance is so far."""
        self.due = 0
        if self.ear.overhearing:
            interrupts = self.dialogue.interrupts(text)
            self.ear.weighed = interrupts is not False
            self.follow(self.turns.weigh(interrupts, self.dialogue.murmured(text)))
        if self.mouth.held_back:
            interruption.words(self, text)
        if self.ear.hearing and not self.ear.overhearing:
            self.mouth.out.tell(HYPOTHESIS, text)
            self.follow(self.turns.judge(self.dialogue.judge(text)))
            if self.ear.hearing and self.turns.state is PAUSED:
                self.mouth.prepare(self.dialogue.answer(text), self.server.clock())

    def on_prosody(self, complete: float) -> None:
        """How probable it is by its sound that the utterance is complete."""
        self.follow(self.turns.sway(complete))

    def on_heard(self, text: str, confidence: float) -> None:
        """What the utterance was."""
        if self.mouth.held_back and not interruption.heard(self, text):
            return
        if self.ledger.aside is not None:       # a reply is on its way still
            self.stop_talking("superseded")
        self.ledger.trace.mark("recognition", self.server.clock())
        self.ledger.trace.confidence = confidence
        self.mouth.out.tell(RECOGNITION, text, confidence, self.ear.span)
        self.reply(self.dialogue.answer(text))

    def on_afterthought(self, text: str, confidence: float) -> None:
        """What it was that was over before anybody knew."""
        if interruption.afterthought(self, text):
            self.on_heard(text, confidence)

    def on_deaf(self) -> None:
        """The recogniser has failed."""
        self.due = 0
        self.server.metrics.count("recogniser_failures")
        overheard = self.ear.overhearing or self.ear.afterthought
        self.ear.listen_no_more()
        if self.mouth.held_back:
            return interruption.go_on(self)
        if not overheard:                       # else the agent speaks on, and nobody was to answer
            self.reply(self.dialogue.failure())

    # -- the reply -----------------------------------------------------------------------------------------------------

    def reply(self, reply: Reply) -> None:
        """A decision is made: it counts, and is spoken from now on."""
        now = self.server.clock()
        keypad.forget(self)
        if self.mouth.turn is not None:
            self.stop_talking("superseded")
        trace = self.ledger.trace or self.ledger.begin(now)
        self.transaction.begin(reply)
        self.note("reply", reply.kind, reply.next, reply.caller, reply.say, reply.facts)
        self.ledger.remark(reply)
        trace.mark("decision", self.server.clock())
        trace.kind, trace.state, trace.caller = reply.kind, self.dialogue.state, reply.caller
        self.mouth.say(reply, trace, now)

    def goes_on(self, reply: Reply) -> None:
        """The reply has another part, which counts from now on."""
        self.transaction.goes_on(reply)
        self.note("goes on", reply.next, reply.say, reply.facts)
        if self.mouth.audible and not self.mouth.held_back:
            self.has_floor(reply.interruptible, reply.interrupt == ANSWERS)

    def has_floor(self, interruptible: bool, answers_only: bool = False) -> None:
        """The agent speaks, or does what cannot be undone: then nobody interrupts."""
        self.follow(self.turns.agent_starts(interruptible, answers_only))

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
        self.due, self.looked = 0, now          # what happens meanwhile may want to be looked at soon
        self.ledger.measure()
        if self.mouth.turn is not None:
            self.mouth.play(now)
        self.ear.tick(now)
        if self.keys_by and now > self.keys_by:
            keypad.answer(self)
        if self.slot.written > self.watched:
            self.watched = silence.notice(self)
        self.due = 0 if self.done else self._next_due()

    def _next_due(self) -> int:
        return min(self.ear.due, self.mouth.due, self.keys_by or NEVER)

    def put_off(self, now: int) -> bool:
        """Whether nothing is due after all, once the time for it has come: the caller's media go on coming."""
        if self.due and now - self.looked < LOOKED_AT:
            self.due = self._next_due()
        return self.due > now

    def first_audio(self, now: int) -> None:
        """The first sample of the reply went out."""
        self.transaction.certain()
        turn = self.mouth.turn
        turn.trace.mark("playout", now + self.mouth.playout.quiet_ns)
        self.mouth.out.tell(REPLYING, " ".join(turn.texts))
        self.has_floor(turn.reply.interruptible and turn.acting != COMMIT, turn.reply.interrupt == ANSWERS)

    def turn_done(self, turn: Turn, heard: str, now: int) -> None:
        """All of the reply was heard."""
        self.dialogue.heard(turn.reply, heard)
        turn.trace.agent = turn.told
        self.mouth.out.tell(REPLIED, turn.reply.kind, turn.trace.agent)
        self.ledger.finish()
        if turn.error:
            log.warning("call %s: %s", self.id, turn.error)
            self.server.metrics.count("failed_replies")
        if (turn.failed or turn.broken) and turn.reply.kind != FAILURE and not turn.reply.end:
            return self.reply(self.dialogue.failure())
        if turn.reply.end or turn.reply.transfer or turn.failed:    # an apology that cannot be said ends it, too
            self.usage.leaves(turn)
            return departure.leave(self, "" if turn.failed else turn.reply.transfer)
        self.follow(self.turns.agent_done())

    def stop_talking(self, why: str) -> None:
        """The agent stops within this frame; history and receipt keep what was heard."""
        turn, heard = self.mouth.stop(self.server.clock())
        self.transaction.certain()
        if turn.acting:
            self.transaction.retract(turn.kept)
        self.dialogue.heard(turn.reply, heard)
        turn.trace.agent = heard
        self.ledger.finish(why)

    @entry(journal.NOT_HANDED_OVER)
    def not_handed_over(self) -> None:
        """The platform would not: the conversation goes on."""
        if self.slot is not None and self.done:
            self.done, self.usage.outcome = False, ""
            self.reply(self.dialogue.failure())

    def note(self, what: str, *details) -> None:
        """A decision, for the journal."""
        if self.journal is not None:
            self.journal.note(what, *details)

    def record(self) -> dict:
        """What GET /calls/<id> says."""
        return {"id": self.id, "dialect": self.dialect.name, "state": self.dialogue.state if self.dialogue else "",
                "done": self.done, "live": self.slot is not None, **self.usage.told(self.slot),
                "floor": silence.whose(self) if self.slot is not None else "", "turns": self.ledger.receipts,
                "facts": self.dialogue.facts if self.dialogue else {},
                "ignored_messages": self.dialect.ignored, "dropped_chunks": self.mouth.out.dropped}


ON_EVENT = {Start: Call.on_start, Audio: Call.on_audio, Both: bystander.hear, Dtmf: Call.on_dtmf,
            Mark: Call.on_mark, Pause: Call.on_pause, Stop: Call.on_stop,
            Complaint: lambda call, event: call.mouth.out.blamed(call.id, event),
            Returned: lambda call, event: call.server.departures.came_back(call, event.reason)}

ON_TURN = {UTTERANCE_START: Call._utterance_starts, PAUSE: lambda call, _: call.ear.ask(),
           RESUME: lambda call, _: call.mouth.forget(), DUCK: Call._duck, WEIGH: Call._weigh,
           RAISE: lambda call, _: call.mouth.restore(), RESTORE: Call._restore,
           BARGE_IN: Call._barge_in, END_OF_TURN: Call.end_of_turn, NO_INPUT: Call._no_input}
