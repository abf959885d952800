"""A call in the OpenAI Realtime protocol: what a client asks for, done by the Call that every other dialect has.

It speaks no JSON (dialects/realtime does) and hears and speaks as any call.  What differs: the client may end its turns
and ask for responses itself, audio may come faster than it is spoken, and a response is over for the client when all
of it was sent, for us when the client can have heard it.
The rules: one response at a time is the conversation's, begun before anything of it is sent and ended before the next;
what a client sends waits in the inbox only while audio before it is not heard yet, and no more than the inbox holds.
"""
import math
from collections import deque
from dataclasses import replace

from ...dialects import ASK_CANCEL, ASK_COMMIT, ASK_RECOGNISE, SPEECH_STARTED, Ask, Audio, Dtmf
from ...dialects.realtime.response import Response
from ...dialects.realtime.settings import Fault, is_audible
from ...flow import Reply
from ...flow.dialogue import ANSWER, NO_MATCH, SILENCE
from ...speech.turns import HEARING, PAUSED
from .. import journal
from ..call import Call
from ..journal import noted
from ..pipeline import SPEAKING, Turn
from ..writeahead import WriteAhead
from . import aside, asks
from .assistant import Assistant, ClientModel, Made, call_for
from .inbox import INBOX_SECONDS, Inbox
from .recorded import Recorded

MS = 1_000_000                  # ns
GREETING_AFTER = 1000 * MS      # a flow begins by itself, without a word from the client, after so long
PATIENCE = 300 * MS             # without audio, or two pieces of the client's if they are longer, but no more than
MOST_PATIENCE = 1000 * MS
FULL = Fault("input_audio_buffer_full", f"More than {INBOX_SECONDS} s of audio wait to be heard: send it no faster "
             "than that.", "audio")
REASONS = {"barge-in": "turn_detected", "superseded": "turn_detected"}      # why a response was cut; else the client


def beside(request: dict) -> bool:
    """The response is to be no part of the conversation."""
    return request.get("conversation") == "none"


class RealtimeCall(Call):
    """A session of a connection, as Call is."""

    paced = False                   # a message may come at any time, however much is in it

    def __init__(self, server, connection, dialect, agent: str, kept: "journal.Journal | None" = None, begins=True):
        if (keeper := getattr(server, "keeper", None)) is not None:
            connection = WriteAhead(connection, keeper.keep_now)
        self.ahead = connection if keeper is not None else None
        self.assistant = agent == "assistant"   # the client leads; otherwise the flow does
        self.inbox = Inbox(dialect.throttle)
        self.deferred: deque[Ask] = deque()     # responses that wait for words which are not known yet, items for them
        self.asides: deque[Ask] = deque()       # ... and those beside the conversation, which wait for their turn
        self.writing: list[aside.Aside] = []    # ... of which those in writing have none, and are on their way
        self.commits = False                    # the client has ended the turn, so it asks for the answer, too
        self.made = Made()                      # of the reply being spoken, or held
        self.patience = PATIENCE                # ns without audio, after which the caller is silent
        self.quiet = False                      # that has been so long ago
        self.behind = 0                         # ns: what was sent before this reply is still being heard for so long
        self.greet_by = 0                       # ns: when the flow begins by itself; 0: it has, or never will
        self.last: Reply | None = None
        self.answered = ""                      # id of the last item of the user's that was answered
        super().__init__(server, connection, dialect, agent, kept, begins)
        self.recorded = Recorded(self)          # the audio of an item
        self.mouth.out.answers()
        if self.ahead is not None:
            self.ahead.call = self

    # -- the beginning -------------------------------------------------------------------------------------------------

    def new_dialogue(self, facts: dict):
        return Assistant(self.flow, self.dialect) if self.assistant else super().new_dialogue(facts)

    def open_line(self) -> None:
        super().open_line()
        self.mouth.stage.llm = ClientModel(self, self.mouth.stage.llm)
        self.mouth.lowered, self.mouth.resumes = 1.0, False     # what was sent ahead cannot be raised again, or had
        self.mouth.echo = None                  # back, and is heard no one knows when
        if self.assistant:
            self.mouth.stage.filler = ()        # what fills the wait is the client's to say

    def _begin(self) -> None:
        self.follow_settings()
        self.excused = math.inf                 # until audio comes, nobody has to speak
        self.greet_by = 0 if self.assistant else self.server.now + GREETING_AFTER

    def _greet(self) -> None:
        if asks.owed(self):
            return                              # the client has asked for more than that
        self.greet_by = 0
        if self.dialogue.turn == 0:
            self.reply(self.dialogue.begin())

    def ends(self, code: int, reason: str) -> None:
        for each in self.writing:
            each.cancel()
        self.recorded.close()
        super().ends(code, reason)

    def lost(self, code: int, reason: str) -> None:
        super().lost(code, reason)
        self.dialect.response = self.recorded.call = None       # these lead back to us, too
        if self.ahead is not None:
            self.ahead.call = None

    # -- from the client -----------------------------------------------------------------------------------------------

    @noted(journal.MESSAGE)
    def on_message(self, opcode: int, payload: memoryview) -> None:
        appended, event = self.dialect.appended, self.dialect.receive(opcode, payload)
        self.mouth.out.answers()
        if event is None or self.done or self.slot is None:
            return
        if isinstance(event, Audio):
            if not self._take(event.pcm if self.ear.resampler is None else self.ear.resampler.push(event.pcm)):
                self.dialect.refuse(FULL, self.dialect.name_of(payload))
                self.dialect.throttle.appended = appended       # as if it had not come
        elif event.__class__ is Ask and event.what == ASK_CANCEL:
            asks.cancel(self, **event.details)
        elif not self.inbox.add(event):
            self.dialect.refuse(Fault("rate_limit_exceeded", "Too much waits for the end of a turn."))
        self._work(self.server.now)
        self.mouth.out.answers()
        self._let_pass()
        if self.inbox or self.deferred or self.recorded.item:
            self.due = 0
        if self.ahead is not None and (self.inbox or not isinstance(event, Audio)):
            self.ahead.soon()

    def _let_pass(self) -> None:
        """Plain audio of the client's may go by on_message() while that would do nothing but hear it, at once."""
        throttle, heeds = self.dialect.throttle, self.dialect.detector is not None
        throttle.ear = None if heeds else self.ear
        throttle.open = not (self.inbox or self.quiet or self.greet_by or self.dialect.halved
                             or self.patience != PATIENCE or heeds and self.excused is math.inf)

    def _take(self, pcm) -> bool:
        """Audio, into the inbox; False: that is full."""
        rate = self.slot.rate_in
        if not self.inbox.add_audio(pcm, rate):
            return False
        self.quiet = False
        self.patience = min(max(PATIENCE, 2 * len(pcm) * 1000 * MS // rate), MOST_PATIENCE)
        return True

    def _work(self, now: int) -> None:
        """Through an item and the inbox, as far as the recogniser can follow."""
        inbox = self.inbox
        if self.recorded.item is not None:
            self.recorded.work(now)
        while inbox and inbox.ready(now) and not self._must_wait(inbox.entries[0]):
            entry = inbox.take(now, self.slot.rate_in)
            if entry.__class__ is Dtmf:
                self.on_dtmf(entry)
            elif entry.__class__ is Ask:
                asks.ON[entry.what](self, **entry.details)
            else:
                self._hear_client(entry, now)
            if self.slot is None or self.done:
                inbox.clear()

    def _must_wait(self, entry) -> bool:
        """The turn that the client has ended is still being recognised, and this belongs to the next one."""
        mine = entry.__class__ not in (Ask, Dtmf) or entry.__class__ is Ask and entry.what == ASK_COMMIT
        return bool(self.ear.final_by) and self.dialect.detector is None and mine

    def _hear_client(self, pcm, now: int) -> None:
        if self.excused is math.inf and self.dialect.detector is not None:
            self.excused = self.slot.written
        if self.dialect.detector is None and not self.ear.hearing:
            self.listen(max(self.slot.written, self.ear.floor))
        self.ear.take(pcm, now)
        if self.greet_by:
            self._greet()

    # -- the responses that it asks for --------------------------------------------------------------------------------

    def follow_settings(self) -> None:
        """The session's, as far as they are the ear's and the mouth's."""
        detector = self.dialect.detector
        threshold = detector and detector.get("threshold", 0.5)
        self.turns.hear_from(self.server.config.turns.threshold if threshold in (None, 0.5) else threshold)
        self._speak_as(self.dialect.session)

    def _speak_as(self, settings: dict) -> None:
        voice = settings["audio"]["output"]["voice"]
        if self.assistant and self.server.config.tts == "openai" and isinstance(voice, str):
            self.mouth.stage.voice = voice

    def respond(self, request: dict, event_id: str) -> None:
        """The client wants a response to what there is; what the caller is saying ends there, and is part of that."""
        if self.speaking and not beside(request) and not self.dialect.response.active:
            asks.commit(self)
        if not self.may_begin(request) or self.deferred and not beside(request):
            return asks.defer(self, self.asides if beside(request) else self.deferred, request, event_id)
        self.begin_response(request, event_id)

    def begin_response(self, request: dict, event_id: str) -> None:
        if self._in_writing(request):
            self.writing.append(aside.Aside(self, self.dialect.respond_beside(request)))
            return self.writing[-1].begin(self.server.now)
        if not self.dialect.response.active:
            self._hear_out()
        if self.dialect.respond(request, event_id):
            self.greet_by = 0
            self._say(self._wanted(request))

    def _in_writing(self, request: dict) -> bool:
        """It needs no mouth: on a flow there is but one who says what comes next, so there it has its turn."""
        return self.assistant and beside(request) and not is_audible(self.dialect.session, request)

    def may_begin(self, request: dict) -> bool:
        unheard = self.recorded or beside(request) and any(ask.what == ASK_RECOGNISE for ask in self.deferred)
        if self.ear.final_by or unheard:
            return False                        # the turn or the item that it may be about is being recognised
        if self._in_writing(request):
            return len(self.writing) < aside.MOST
        return not (beside(request) and (self.dialect.response.active or self.speaking))

    @property
    def speaking(self) -> bool:
        """The caller is in the middle of a turn whose end we listen for."""
        return self.turns.state in (HEARING, PAUSED) and self.dialect.detector is not None

    def recorded_is_known(self) -> None:
        """There is one sound less that a response has to wait for."""
        self.due = 0
        self.mouth.out.answers()

    def _begin_asides(self) -> None:
        while (ask := next((ask for ask in self.asides if self.may_begin(ask.details["request"])), None)) is not None:
            self.asides.remove(ask)
            self.respond(**ask.details)

    def _wanted(self, request: dict) -> Reply:
        """What is said when the client asks: the assistant's answer, or what the flow has for the latest item."""
        if self.assistant:
            return self.dialogue.respond(request)
        said, known = self._last_said(), self.dialogue.turn
        if said is not None and said.id != self.answered:
            self.answered = said.id
            reply = self.dialogue.answer(said.text)
            if known or reply.kind != NO_MATCH:
                return reply
        return self.dialogue.begin() if not known else self._again()

    def _again(self) -> Reply:
        """The flow has said all it has to say for now: its last words once more."""
        return replace(self.last, turn=self.dialogue.turn, next=self.dialogue.state, facts={}, rung=0)

    def _last_said(self):
        return next((item for item in reversed(self.dialect.items.order) if item.role == "user" and item.text), None)

    # -- turn taking ---------------------------------------------------------------------------------------------------

    def on_window(self, score: float, position: int, samples: int, quiet: int) -> None:
        """Where the client ends its turns itself, nobody listens for their end."""
        super().on_window(score if self.dialect.detector is not None else 0.0, position, samples, quiet)

    def listen(self, position: int) -> None:
        """On an assistant, whoever begins to speak ends the response that has not been heard yet."""
        turn = self.mouth.turn
        if self.ear.final_by and self.dialect.detector is not None:
            return self._go_on_listening()      # the client has ended a turn too early
        if self.assistant and turn is not None and turn.reply.interruptible and self.dialect.detector is not None:
            self.stop_talking("barge-in")
        self.commits = False
        super().listen(position)

    def follow(self, events) -> None:
        for event in events:
            self.dialect.at(self.ear.ms(event.position))
            super().follow((event,))

    def hear_silence(self, now: int) -> None:
        """Clients send audio in pieces of any length: that none came for as long as one of them is no silence yet."""
        if self.dialect.detector is None:
            self.ear.media_at = now
            return
        if not self.quiet and now - self.ear.media_at < self.patience:
            return
        self.quiet, self.dialect.throttle.open = True, False
        super().hear_silence(now)

    def _go_on_listening(self) -> None:
        if self.mouth.turn is not None and not self.transaction.revocable:
            self.stop_talking("barge-in")
        self.finish("cancelled", {"reason": "turn_detected"})
        self.dialect.heard("")
        self.dialect.take_back()
        super()._go_on_listening()
        if self.ear.hearing:
            self.mouth.out.tell(SPEECH_STARTED)

    def on_deaf(self) -> None:
        self.dialect.not_recognised("The recogniser failed.")
        super().on_deaf()

    # -- the reply -----------------------------------------------------------------------------------------------------

    def reply(self, reply: Reply | None) -> None:
        """The call has something to say by itself, if it may."""
        commits, self.commits = self.commits, False
        if asks.go_through(self):
            return
        unsaid = self.assistant and reply is not None and reply.kind == ANSWER and not reply.caller
        if reply is None or unsaid or commits or asks.owed(self) or not self.dialect.creates:
            self.mouth.forget()
            self.ledger.finish()
            self.turns.expect(self.dialogue.expect.waits)
            return self.follow(self.turns.agent_done())
        if reply.kind == ANSWER and (said := self._last_said()) is not None:
            self.answered = said.id
        if reply.kind == SILENCE and self.assistant:
            self.dialect.timed_out(self.dialogue.expect.waits.no_input)
        self._hear_out()
        self.dialect.respond()
        self._say(reply)

    def _say(self, reply: Reply) -> None:
        """A response has begun, and this is what it says."""
        if reply.interruptible and not self.dialect.interruptible:
            reply = replace(reply, interruptible=False)
        self.last = reply
        response = self.dialect.response
        self._speak_as(response.settings)
        if not response.audible and reply.say:
            self.made = Made()
            self.made.parts.append(" ".join(reply.say))
            reply = replace(reply, say=())
        elif self.mouth.held is None or self.mouth.held.first != reply:
            self.made = Made()
        response.say(" ".join(reply.say))
        behind, self.behind = self.behind, 0
        super().reply(reply)
        self.mouth.playout.behind(behind)
        self.mouth.out.answers()

    def goes_on(self, reply: Reply) -> None:
        if reply.say:
            self.made.parts.append(" ".join(reply.say))
        super().goes_on(reply)

    def _hear_out(self) -> None:
        """Another response follows one that was sent and is still being heard; one that is on its way is cut."""
        mouth, now = self.mouth, self.server.clock()
        turn = mouth.turn
        if turn is None:
            return
        if self.dialect.response.active:
            return self.stop_talking("superseded")
        self.transaction.certain()
        self.behind = mouth.playout.unheard_ns(now)
        mouth.drop()
        self.dialogue.heard(turn.reply, " ".join(turn.texts))
        turn.trace.agent = " ".join(turn.texts)
        if self.ledger.trace is turn.trace:
            self.ledger.finish("followed")

    def _look_after(self, now: int) -> None:
        turn = self.mouth.turn
        if turn is not None:
            self._tell(turn)
        super()._look_after(now)
        if self.slot is None or self.done:
            return
        self._work(now)
        if self.deferred:
            asks.go_through(self)
        if self.greet_by and now > self.greet_by:
            self._greet()
        for each in list(self.writing):
            each.tick(now)
        self._begin_asides()
        mouth = self.mouth
        if mouth.turn is not None and mouth.turn.state is not SPEAKING and mouth.playout.spent and not mouth.out.late:
            self._sent(mouth.turn)
        mouth.out.answers()
        self._let_pass()
        self.due = min(self.due, self._next_due())

    def _next_due(self) -> int:
        if (self.inbox.entries or self.asides or self.deferred or self.recorded.item or self.writing
                or self.dialect.response.active):
            return 0
        due = super()._next_due()
        return min(due, self.greet_by) if self.greet_by else due

    def _tell(self, turn: Turn, spoken: bool = False) -> None:
        """The client learns what has been made since; of functions when all before them was `spoken`."""
        made, response = self.made, self.dialect.response
        while made.told < len(made.parts):
            part = made.parts[made.told]
            if not (spoken or isinstance(part, str)):
                break
            made.told += 1
            if isinstance(part, str):
                spaced = response.message is not None and turn.reply.say and made.told == 1
                response.say(" " + part if spaced else part)
            else:
                call_for(response, part)
        self.mouth.out.answers()

    def _sent(self, turn: Turn) -> None:
        """All of the reply went out: for the client the response is over, though it is still being heard."""
        self._tell(turn, spoken=True)
        if turn.error:
            self.finish(*aside.failed(turn.error))
        elif self.made.limited:
            self.finish("incomplete", {"reason": "max_output_tokens"})
        else:
            self.finish("completed")

    def finish(self, status: str, details: dict | None = None, response: Response | None = None) -> None:
        """The response is over: the conversation's, or one beside it."""
        most = self.server.config.max_calls
        self.dialect.limits = (most, max(0, most - len(getattr(self.server, "calls", ()))))
        self.dialect.finish(status, details, tuple(self.mouth.playout.spans()), response)
        self.mouth.out.answers()

    def turn_done(self, turn: Turn, heard: str, now: int) -> None:
        self.transaction.certain()
        self._sent(turn)
        if not self.dialect.response.audible and self.dialect.response.message is not None:
            turn.texts[:] = [heard := self.dialect.response.message.text]
        super().turn_done(turn, heard, now)

    def stop_talking(self, why: str) -> None:
        if why == "barge-in" and self.dialogue.expect.id >= 0:
            self.mouth.out.tell(SPEECH_STARTED)         # the client stops playing
        self._tell(self.mouth.turn)
        heard = self.mouth.playout.heard_text(self.server.clock())
        self.finish("cancelled", {"reason": REASONS.get(why, "client_cancelled")})
        if why != "truncated" and self.dialect.response.audible:
            self.dialect.heard(heard)
        super().stop_talking(why)
