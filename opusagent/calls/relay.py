"""A call in text: the platform recognises and speaks (Twilio ConversationRelay), we decide what is said.

It has no audio, no recogniser and no voice, and its slot of the arena holds a snapshot only; flow, tools, transactions
and receipts are those of every call, and its replies are made by pipeline.py's Turn, whose segments are sent as text.
The rules: nothing that was sent can be taken back, so a turn is revocable until its first words go out; and what the
caller heard is what the platform says of it, or, where it says nothing, an estimate from the length of the text.
"""
import logging
import secrets
from functools import partial

from ..dialects import AGENT, Complaint, Dtmf, Start
from ..dialects.relay import Interrupt, Prompt, Speaking, Spoken, TwilioRelay, joined
from ..flow import COMMIT, COMPLETE, FAILURE, Dialogue, Outcome, Reply
from ..metrics import TurnTrace
from ..usage import Usage
from . import departure, journal, keypad
from .call import MS, START_WITHIN
from .journal import entry, noted
from .ledger import Ledger
from .mouth import NEVER, tool_is_late
from .outbound import Outbound
from .pipeline import DONE, SPEAKING, Stage, Turn
from .script import Script, Written, staged
from .transaction import Transaction
from .writeahead import WriteAhead

log = logging.getLogger("opusagent")

OURS = ("decision", "llm_first_token", "segment")      # the waits that are ours; the others are the platform's
NO_RATE = 8000                  # Hz: of a slot that gets no audio
SPEECH = 30_000                 # ms that a caller may speak before we ask; the platform may forget to tell the end


class RelayCall:
    """A session of a connection, as Call is, and to tools, transfers and the server's pages a call like any other."""

    def __init__(self, server, connection, dialect: TwilioRelay, agent: str, kept: "journal.Journal | None" = None):
        self.journal = kept                 # what it notes; None: nothing is kept
        self.line = connection              # as no journal sees it
        if kept is not None:
            kept.open(journal.BEGIN, ())
            server, connection = kept.seen(server, connection)
        self.server, self.studio = server, server.studio        # what it is made with
        self.connection = connection
        self.dialect = dialect
        self.agent, self.flow = agent, self.studio.flows[agent]
        self.slot = None                    # of the arena, for what another worker needs to know: there is no audio
        self.ahead: WriteAhead | None = None    # keeps that before anything goes out, where there are other workers
        self.out = Outbound(connection, dialect, server.metrics)
        self.usage = Usage(server.config)
        self.signs = 0                      # of the caller's: words and keys
        self.ledger = Ledger(server.metrics, kept)
        self.began = server.now             # ns
        self.due = 0                        # ns: before then tick() has nothing to do
        self.done = False                   # the flow came to its end
        self.leave_by = 0                   # ns: until when the platform may end the call itself, once it is done
        # made by Start
        self.id = ""
        self.dialogue: Dialogue | None = None
        self.transaction: Transaction | None = None
        self.stage: Stage | None = None
        # the caller's side
        self.saying = ""                    # what has been recognised of an utterance that is not over
        self.waiting = ""                   # what was said over words that nobody may interrupt
        self.answered = ""                  # the latest utterance
        self.keys = ""                      # DTMF pressed since the agent's last word
        self.keys_by = self.end_by = 0      # ns: until when another key may follow; # may, after what is answered
        self.no_input = 0                   # ms that the state waits for the caller
        self.speaking = False               # the caller is, the platform says
        self.silent_by = NEVER              # ns: when the caller has said nothing for so long
        # the agent's side
        self.script = Script(self.out, dialect, server.clock)
        self.turn: Written | None = None    # being said
        self.epoch = 0                      # grows with each reply, and whenever one is dropped
        self.last: Reply | None = None      # the latest that was heard to its end, as far as we know
        self.said: list[str] = []           # what a model has said of this part of it, as it came
        self.spoken = ""                    # the language that the platform was told
        if kept is not None:
            kept.close()

    @property
    def live(self) -> bool:
        """Between Start and the end."""
        return self.slot is not None

    @property
    def mouth(self) -> "RelayCall":         # where others look for `out`
        return self

    # -- from the connection -------------------------------------------------------------------------------------------

    @noted(journal.MESSAGE)
    def on_message(self, opcode: int, payload: memoryview) -> None:
        event = self.dialect.receive(opcode, payload)
        if event is not None and (self.live or event.__class__ in (Start, Complaint)) and not self.done:
            ON_EVENT[event.__class__](self, event)
            self.signs += isinstance(event, Prompt | Dtmf)
            self.keep_soon()

    def drained(self) -> None:
        """Nothing waits here: text is never dropped."""

    def overdue(self, now: int) -> bool:
        return not self.live and not self.done and now - self.began > START_WITHIN

    def lost(self, code: int, reason: str) -> None:
        """The connection is over, and so is the call."""
        if self.live:
            self.ends(code, reason)
            if self.journal is not None:
                self.journal.end()
            self.transaction.turns = None       # nothing leads back here, so that no collector is waited for
            if self.ahead is not None:
                self.ahead.call = None

    @noted(journal.LOST)
    def ends(self, code: int, reason: str) -> None:
        """Nothing of it is left."""
        if self.turn is not None:
            self._stop_talking("hang-up", self.script.heard(self.server.clock()))
        self._finish()
        slot, self.slot, self.stage = self.slot, None, None
        slot.free()
        self.studio.free.append(slot.index)
        self.usage.ends(code, (self.server.now - self.began) / 1e9)
        self.server.call_ends(self)
        self.ledger.end(self.usage.outcome, (self.server.now - self.began) / 1e9, self.dialogue.state, code)

    # -- the dialect's events ------------------------------------------------------------------------------------------

    def on_start(self, event: Start) -> None:
        self.id = event.call_id or secrets.token_hex(8)
        self.ledger.call_id = self.id
        self.server.call_begins(self, event)
        if self.journal is not None:
            self.journal.start(self.id)
        slot = self.studio.arena.slot(self.studio.free.pop())
        slot.take(NO_RATE, NO_RATE)
        self.open(slot, event.facts)
        log.info("call %s begins: %s", self.id, self.dialect.name)
        self.reply(self.dialogue.begin())

    def open(self, slot, facts: dict[str, str]) -> None:
        """What a conversation is made with; another worker may have begun it in this slot."""
        self.slot = slot
        if (keeper := getattr(self.server, "keeper", None)) is not None:
            self.connection = self.out.connection = self.ahead = WriteAhead(self.connection, keeper.keep_now)
            self.ahead.call = self
        history = self.server.config.history
        self.dialogue = Dialogue(self.flow, facts, history.exchanges, history.characters, self.server.today)
        self.transaction = Transaction(self.dialogue, self)
        self.stage = staged(self, self.studio.toolbox(self.flow, self.id, self.on_tool, partial(tool_is_late, self)))

    def keep_soon(self) -> None:
        """Something has happened: the clock looks at it, and another worker must know of it."""
        self.due = 0
        if self.ahead is not None and self.live:
            self.ahead.soon()

    def on_prompt(self, event: Prompt) -> None:
        text = joined(self.saying, event.text)
        self.saying = "" if event.last else text
        self.speaking = self.speaking and not event.last
        self._listen()
        if event.last and text:
            self.keys, self.keys_by = "", 0
            self._hear(text)

    def on_speaking(self, event: Speaking) -> None:
        if event.who == AGENT:
            self.script.sounding = event.on
        else:
            self.speaking = event.on
            self._listen()

    def on_spoken(self, event: Spoken) -> None:
        self.script.said(event.text, self.server.clock())

    def _listen(self) -> None:
        """From now on it counts how long the caller says nothing, unless we are speaking ourselves."""
        ms = SPEECH if self.speaking else self.no_input
        self.silent_by = self.server.now + ms * MS if self.turn is None else NEVER

    def _hear(self, text: str) -> None:
        """What the caller has said, all of it."""
        turn, again = self.turn, ""
        if turn is not None:
            if self._closed_to(turn, text):
                return
            if self.transaction.revocable:
                self._drop()
                self.transaction.take_back()
                again = self.answered           # nobody has heard a word of the answer: the caller has just gone on
                self._finish("going on")
            else:
                over = turn.state is DONE and (turn.reply.end or turn.reply.transfer)
                if turn.state is DONE and not self.script.cut_off:
                    self._heard_out(turn)       # the platform has not said that it was interrupted
                else:
                    self._stop_talking("barge-in", self.script.heard(self.server.clock()))
                if over:
                    return departure.leave(self, turn.reply.transfer)
        self.answered, self.waiting = joined(again, text), ""
        self.ledger.begin(self.server.now).measured = True
        self.reply(self.dialogue.answer(self.answered))

    def _closed_to(self, turn: Written, text: str) -> bool:
        """True where these words do not interrupt what is said, or done: they wait, or are no answer."""
        interrupts = self.transaction.revocable or self.dialogue.interrupts(text)
        unclear = interrupts is None and not self.script.interruptible
        if turn.acting == COMMIT or not turn.reply.interruptible or unclear:
            self.waiting = joined(self.waiting, text)
            return True
        return interrupts is False

    def on_dtmf(self, event: Dtmf) -> None:
        if keypad.ignored(self, self.turn, event.digit):
            return
        if self.turn is not None:
            self._stop_talking("keys", self.script.heard(self.server.clock()))
        self.keys += event.digit
        expect = self.dialogue.expect
        if expect.judge_keys(self.keys) == COMPLETE:
            self._answer_keys()
        else:
            self.keys_by = self.server.now + expect.waits.keys * MS

    def on_interrupt(self, event: Interrupt) -> None:
        """The platform has stopped speaking: what the caller heard is known now."""
        heard, turn = self.script.heard_until(event.heard), self.turn
        if turn is None:
            return self._was_cut(heard)
        if self.script.ahead(self.server.clock()):
            return          # it is of what was said before: a key that interrupts is told before the interruption
        if turn.acting != COMMIT and turn.reply.interruptible:
            self._stop_talking("barge-in", heard)
            self._listen()

    def _was_cut(self, heard: str) -> None:
        """What we took for heard to its end was not."""
        if self.last is not None and self.ledger.receipts and heard != self.script.text:
            self.dialogue.heard(self.last, heard)
            self.ledger.receipts[-1] |= {"agent": heard, "stopped_by": "barge-in"}
            self.server.metrics.count("barge_ins")
        self.last = None

    def on_complaint(self, event: Complaint) -> None:
        self.out.blamed(self.id, event)

    def _answer_keys(self) -> None:
        keys, self.keys, self.keys_by = self.keys, "", 0
        self.ledger.begin(self.server.clock())
        self.end_by = keypad.may_end_by(self, keys)
        self.reply(self.dialogue.dtmf(keys))

    # -- the reply -----------------------------------------------------------------------------------------------------

    def expect(self, waits) -> None:
        """A state of the flow is entered: from now on its waits apply."""
        self.no_input = waits.no_input

    def reply(self, reply: Reply) -> None:
        """A decision is made: it counts, and is said from now on."""
        now = self.server.clock()
        if self.turn is not None:
            self._stop_talking("superseded", self.script.heard(now))
        self.saying, self.silent_by = "", NEVER
        trace: TurnTrace = self.ledger.trace or self.ledger.begin(now)
        self.transaction.begin(reply)
        self.note("reply", reply.kind, reply.next, reply.caller, reply.say, reply.facts)
        self.ledger.remark(reply)
        trace.mark("decision", self.server.clock())
        trace.kind, trace.state, trace.caller = reply.kind, self.dialogue.state, reply.caller
        self._speak_in(reply.language)
        self.epoch += 1
        self.said = []
        self.script.begin()
        self.script.may_be_cut(reply)
        self.turn = Written(self.stage, reply, self.epoch, trace)
        self.turn.begin(now)
        self._play(self.server.clock())

    def _speak_in(self, language: str) -> None:
        if language and language != self.spoken:
            self.spoken = language
            self.out.text(self.dialect.language(language))

    def token(self, piece: str, first: bool) -> None:
        """A piece of a model's answer."""
        self.said.append(piece)
        if self.script.take(piece, first):
            self.turn.audible = True
            self._send(False)

    def _send(self, last: bool) -> None:
        if self.script.flush(last):
            self.transaction.certain()
            self.turn.trace.mark("segment", self.server.clock())

    def _play(self, now: int) -> None:
        """Send what there is, and see whether the reply is over."""
        turn = self.turn
        turn.tick(now)
        self._send(turn.state is not SPEAKING)
        if turn.state is not SPEAKING and not self.script.audible(now):
            self._turn_done(turn)

    def _turn_done(self, turn: Written) -> None:
        """All of the reply was heard, as far as we know."""
        self._heard_out(turn)
        if turn.error:
            log.warning("call %s: %s", self.id, turn.error)
            self.server.metrics.count("failed_replies")
        if (turn.failed or turn.broken) and turn.reply.kind != FAILURE and not turn.reply.end:
            return self.reply(self.dialogue.failure())
        if turn.reply.end or turn.reply.transfer or turn.failed:
            self.usage.leaves(turn)
            return departure.leave(self, "" if turn.failed else turn.reply.transfer)
        self._listen()
        if self.waiting:
            text, self.waiting = self.waiting, ""
            self._hear(text)

    def _heard_out(self, turn: Written) -> None:
        self.turn, self.last = None, turn.reply
        self.transaction.certain()
        self.dialogue.heard(turn.reply, self.script.text)
        turn.trace.agent = self.script.text
        self._finish()

    def _stop_talking(self, why: str, heard: str) -> None:
        """The agent says no more; history and receipt keep what was heard."""
        turn = self.turn
        self._drop()
        self.transaction.certain()
        if turn.acting:
            self.transaction.retract(turn.kept)
        self.dialogue.heard(turn.reply, heard)
        turn.trace.agent = heard
        self._finish(why)

    def _drop(self) -> None:
        turn, self.turn, self.last = self.turn, None, None
        self.epoch += 1
        turn.cancel()
        self.script.give_up()

    def _finish(self, why: str = "") -> None:
        """The turn's receipt.  Of its waits only ours are known, so it has no voice-to-voice."""
        trace = self.ledger.trace
        self.ledger.finish(why)
        if trace is not None and trace.measured and trace.marked("segment") is not None:
            self.server.metrics.count("turns")
            for name, ms in trace.waits().items():
                if name in OURS:
                    self.server.metrics.waits[name].record(round(ms * 1e6))

    # -- for pipeline.py: whose turn it is -----------------------------------------------------------------------------

    @property
    def certain(self) -> bool:
        """A tool may have its effect: the caller had said all."""
        return True

    def acts(self, turn: Turn) -> None:
        self.transaction.certain()
        self.keep_soon()                    # before it does: a tool may be what ends us, and must not run twice

    def goes_on(self, turn: Turn) -> None:
        """What is said has another part, which counts from now on."""
        turn.trace.state = turn.reply.next
        self.ledger.remark(turn.reply)
        self.transaction.goes_on(turn.reply)
        self.note("goes on", turn.reply.next, turn.reply.say, turn.reply.facts)
        self.said = []
        self._speak_in(turn.reply.language)
        self.script.may_be_cut(turn.reply)
        self.keep_soon()

    @entry(journal.TOOL)
    def on_tool(self, epoch: int, part: int, result: str, facts: dict[str, str], told: str, reason: str) -> None:
        """A tool has done what it could."""
        if epoch == self.epoch and self.turn is not None:
            self.server.metrics.count("tools", outcome="failed" if reason else "done")
            self.turn.acted(part, Outcome(result, facts, told, reason))
            self._play(self.server.clock())

    @entry(journal.LATE_TOOL)
    def on_late_tool(self, facts: dict[str, str]) -> None:
        self.transaction.keep(facts)

    # -- from the server -----------------------------------------------------------------------------------------------

    def put_off(self, now: int) -> bool:
        return False

    @entry(journal.TICK)
    def tick(self, now: int) -> None:
        if not self.live:
            return
        if self.done:
            return self.connection.close(1000, "the conversation is over") if now >= self.leave_by else None
        if self.turn is not None:
            self._play(now)
        elif self.keys_by and now > self.keys_by:
            self._answer_keys()
        elif now >= self.silent_by and not self.keys_by:
            self.ledger.begin(now)
            self.reply(self.dialogue.silence())
        self.due = 0 if self.turn is not None or self.done else self.keys_by or self.silent_by

    @entry(journal.PARTED)
    def part(self) -> None:
        """The server has to end this call: it says so, and hangs up."""
        if self.live and not self.done:
            self.reply(self.dialogue.parting())

    @entry(journal.ANSWERED_BY)
    def answered_by(self, who: str) -> None:
        if self.live and not self.done and (reply := self.dialogue.answered(who)) is not None:
            self.reply(reply)

    @entry(journal.NOT_HANDED_OVER)
    def not_handed_over(self) -> None:
        """It may not be: the conversation goes on."""
        if self.live and self.done:
            self.done, self.usage.outcome = False, ""
            self.reply(self.dialogue.failure())

    def note(self, what: str, *details) -> None:
        """A decision, for the journal."""
        if self.journal is not None:
            self.journal.note(what, *details)

    def record(self) -> dict:
        """What GET /calls/<id> says."""
        return {"id": self.id, "dialect": self.dialect.name, "state": self.dialogue.state if self.dialogue else "",
                "done": self.done, "live": self.live, **self.usage.told(), "turns": self.ledger.receipts,
                "facts": self.dialogue.facts if self.dialogue else {},
                "ignored_messages": self.dialect.ignored, "dropped_chunks": 0}


ON_EVENT = {Start: RelayCall.on_start, Prompt: RelayCall.on_prompt, Dtmf: RelayCall.on_dtmf,
            Interrupt: RelayCall.on_interrupt, Speaking: RelayCall.on_speaking, Spoken: RelayCall.on_spoken,
            Complaint: RelayCall.on_complaint}
