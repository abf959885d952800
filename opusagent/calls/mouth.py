"""Mouth: the agent's side of a call.  The reply being spoken, the one that is held ready, and what goes out of both.

It decides neither what is said nor when a turn is over.  The rules: one reply at a time has the mouth, and whatever
the voice delivers under an older `epoch` is dropped where it lands; of a reply that is held nothing can be heard, and
nothing of it has an effect, until say() commits to it.
"""
import asyncio
import logging
from functools import partial

from .._fastpath import Stretch
from ..flow import COMMIT, Outcome, ToolCall
from ..flow.phrasing import KEYS
from ..metrics import TurnTrace
from ..speech.acoustics import Echo
from ..speech.playout import Playout
from ..studio.tools import Toolbox
from . import journal, unattended
from .journal import entry
from .meter import MeteredModel, speak
from .outbound import Outbound
from .pipeline import SPEAKING, Stage, Turn

log = logging.getLogger("opusagent")

DUCK_MS = 20                    # within which the level goes down
RESTORE_MS = 60                 # within which it is back
NEVER = 1 << 62                 # ns


class Mouth:
    """`turn` is being spoken, `held` is made ready; there is never more than one of the two.

    Of its call it uses `first_audio(now)`, `turn_done(turn, heard, now)`, and what its tools need.  To the voice it is
    the call: `slot`, `epoch`, on_speech() and on_speech_failed().
    """

    __slots__ = ("call", "journal", "connection", "dialect", "out", "metrics", "clock", "voice", "slot", "playout",
                 "stage", "epoch", "turn", "held", "audible", "thrown", "most_thrown", "lowered", "echo", "sounded",
                 "resumes", "held_back", "usage", "metered", "eased", "model", "tools", "stretch")

    def __init__(self, call, server, connection, dialect):
        self.call = call
        self.journal = call.journal
        self.connection = connection
        self.dialect = dialect
        self.out = Outbound(connection, dialect, server.metrics)
        self.metrics = server.metrics
        self.clock = server.clock
        self.voice = server.studio.tts
        self.most_thrown = server.config.turns.speculations
        self.usage = call.usage
        self.metered = getattr(self.voice, "counts", False)     # the voice says itself what it was asked for
        self.eased = False, False           # what is left out for the worker's load: see ease()
        self.lowered = 10 ** (-server.config.turns.duck_db / 20)    # level while an interjection is judged
        self.resumes = True                 # a stop that proves false is taken back
        # made by open()
        self.slot = None
        self.playout: Playout | None = None
        self.stage: Stage | None = None
        self.model = None                   # the language model as this call has it
        self.tools: Toolbox | None = None
        self.echo: Echo | None = None       # what went out, to know it again when it comes back; None: nobody asks
        self.sounded = 0                    # samples of the caller's when something last went out
        self.stretch: Stretch | None = None     # frames that go out by themselves; None where none ever does
        # what is said
        self.epoch = 0                      # grows with each reply, and whenever one is dropped
        self.turn: Turn | None = None       # the reply on its way to the listener
        self.held: Turn | None = None       # the reply that may be given when the caller's turn is over
        self.audible = False                # the first sample of the reply went out
        self.held_back = False              # the reply has stopped, and may go on
        self.thrown = 0                     # replies that were begun and never given

    def open(self, slot, wire_rate: int, studio, flow, deadlines, dialogue) -> None:
        """The call has begun: its slot, its rate on the wire, and what its replies are made with."""
        self.slot = self.out.slot = slot
        self.playout = Playout(wire_rate, self.dialect.lead_ms, self.dialect.message_ms)
        if self.journal is not None:
            self.playout.words = self.journal.words
        if self.call.server.config.turns.echo:
            self.echo = Echo(slot.rate_in, wire_rate)
        watch = self.journal.watch if self.journal is not None else lambda prompt, llm: (prompt, llm)
        in_text = getattr(self.call, "assistant", False)    # its client wants to see every word before it is spoken
        self.model = studio.llm.of(self) if hasattr(studio.llm, "of") and not in_text else studio.llm
        prompt, llm = watch(studio.prompt, MeteredModel(self.model, self.usage))
        self.tools = studio.toolbox(flow, self.call.id, self.on_tool, partial(tool_is_late, self.call))
        self.stage = Stage(slot, self.playout, prompt, llm, flow.manner, deadlines, flow.filler.fill({}), self.clock,
                           speak=partial(speak, self, self.usage), played=partial(self.voice.played, self),
                           dialogue=dialogue, perform=self._perform, owner=self, sounds=flow.sounds,
                           mute=self.dialect.mute, presses=self.dialect.send_digits is not None)

    def close(self) -> None:
        """The call is over."""
        self.drop()
        self.stretch = None                 # it leads back to us
        if self.model is not None and hasattr(self.model, "forget"):
            self.model.forget()
        self.slot = self.out.slot = None    # a late voice finds nobody,
        self.stage = self.model = self.tools = None     # ... and these lead back to us

    # -- what is said --------------------------------------------------------------------------------------------------

    def prepare(self, reply, now: int) -> None:
        """The caller pauses, and this would be the reply: what takes time is begun, and held."""
        if self.held is not None and self.held.first == reply:
            return
        self.forget()
        if self.turn is None and self.thrown < self.most_thrown and self._takes_time(reply):
            self.held = self._begin(reply, TurnTrace(0), now, held=True)

    @entry(journal.EASED)
    def ease(self, no_speculation: bool, cached_only: bool) -> None:
        """What the worker is too busy for: replies that may never be given, and fillers that were not spoken ahead."""
        self.eased = no_speculation, cached_only
        self.most_thrown = 0 if no_speculation else self.call.server.config.turns.speculations
        self.stage.cached_only = cached_only

    def _takes_time(self, reply) -> bool:
        stage = self.stage
        if reply.call is not None or stage.mute:
            return reply.call is not None
        spoken = (text for text in reply.say if not text.startswith(KEYS))
        return bool(reply.messages) or any(
            stage.prompt(stage.spoken_by(text, reply.voice), text, stage.slot.rate_out) is None for text in spoken)

    def forget(self) -> None:
        """The caller goes on: what was held is thrown away."""
        if self.held is not None:
            self.metrics.count("speculations", outcome="thrown")
            self.thrown += 1
            self.drop()

    def say(self, reply, trace: TurnTrace, now: int) -> None:
        """The reply counts: it is spoken from now on.  What was held for it is used, if it is the same one."""
        held = self.held
        if held is not None and held.first == reply and not held.error:
            self.metrics.count("speculations", outcome="kept")
            self.held, self.turn = None, held
            held.commit(reply, trace, now)
        else:
            if held is not None and held.error:         # nobody heard of it; who runs the server has to
                log.warning("call %s: %s That was in a pause; it is asked again.", self.call.id, held.error)
            self.forget()
            self.turn = self._begin(reply, trace, now)
        self.audible = False
        self.play(self.clock())

    def _begin(self, reply, trace: TurnTrace, now: int, held: bool = False) -> Turn:
        self.epoch += 1
        self.playout.begin()
        turn = Turn(self.stage, reply, self.epoch, trace, held)
        turn.begin(now)
        return turn

    def stop(self, now: int) -> tuple[Turn, str]:
        """The agent stops within this frame, and what the platform holds is cleared: the reply, and what was heard."""
        turn, heard, silent = self.turn, self.playout.heard_text(now), self.held_back
        turn.trace.underruns = self.playout.underruns
        self.drop()
        if not silent:
            self.out.clear(now)
            if self.call.recording is not None:
                self.call.recording.cut()
        return turn, heard

    def hold_back(self, now: int) -> None:
        """The agent stops, as in stop(), but the reply may go on: it is made as far as there is room."""
        self.held_back = True
        self._attend()
        self.playout.hold(now)
        self.out.late.clear()
        self.out.clear(now)
        if self.call.recording is not None:
            self.call.recording.cut()

    def go_on(self, now: int, earlier_ms: int) -> None:
        """From where it was heard, or so much earlier."""
        self.held_back = False
        self.playout.go_on(now, earlier_ms * self.playout.rate // 1000)

    def drop(self) -> None:
        """Nothing of the reply, spoken or held, is made or sent any more."""
        self.held_back = False
        self._attend()
        turn = self.turn or self.held
        self.turn = self.held = None
        if turn is not None:
            self.epoch += 1
            turn.cancel()
            self.voice.cancel(self)
            self.playout.clear()
            self.out.late.clear()

    @property
    def speaks(self) -> str:
        """The voice of the reply that is being made."""
        turn = self.turn or self.held
        return turn.reply.voice if turn is not None and turn.reply.voice else self.stage.voice

    # -- the level -----------------------------------------------------------------------------------------------------

    def duck(self) -> None:
        """The caller makes a sound while the agent speaks: lower, until it is known what that is."""
        self._attend()
        self.playout.gain(self.lowered, DUCK_MS)

    def restore(self) -> None:
        """It was nothing."""
        self._attend()
        self.playout.gain(1.0, RESTORE_MS)

    # -- from the voice ------------------------------------------------------------------------------------------------

    @entry(journal.SPEECH)
    def on_speech(self, epoch: int, k: int, start: int, written: int, done: bool) -> None:
        """The voice has written more of a segment."""
        turn = self.turn or self.held
        if not self.metered and self.slot is not None:
            self.usage.spoke(epoch, k, start, written, self.slot.rate_out)
        if epoch == self.epoch and turn is not None:
            turn.on_speech(k, start, written, done)
            if self.turn is not None:
                self.play(self.clock())

    def on_word_ends(self, epoch: int, k: int, ends) -> None:
        """The voice knows after which samples of a segment its words end."""
        turn = self.turn or self.held
        if epoch == self.epoch and turn is not None and k in turn.speaking:
            turn.speaking[k].ends = ends

    @entry(journal.SPEECH_FAILED)
    def on_speech_failed(self, epoch: int, k: int, sentence: str) -> None:
        self.metrics.count("voice_failures")
        turn = self.turn or self.held
        if epoch == self.epoch and turn is not None:
            self.call.due = 0
            turn.on_speech_failed(k, sentence)

    # -- from the tools ------------------------------------------------------------------------------------------------

    def _perform(self, epoch: int, part: int, call: ToolCall) -> asyncio.Task:
        """Runs a tool of the reply's; what is returned can be cancelled."""
        if (keeper := getattr(self.call.server, "keeper", None)) is not None:
            keeper.keep_soon(self.call)
        return self.tools.start(epoch, part, call)

    @entry(journal.TOOL)
    def on_tool(self, epoch: int, part: int, result: str, facts: dict[str, str], told: str, reason: str) -> None:
        """A tool has done what it could."""
        turn = self.turn or self.held
        if epoch == self.epoch and turn is not None:
            self.metrics.count("tools", outcome="failed" if reason else "done")
            turn.acted(part, Outcome(result, facts, told, reason))
            self.call.due = 0

    @property
    def certain(self) -> bool:
        """The reply cannot be taken back any more: a tool may have its effect."""
        return not self.call.transaction.revocable

    def acts(self, turn: Turn) -> None:
        """It has it now."""
        self.call.transaction.certain()
        if turn.acting == COMMIT:
            self.call.has_floor(False)

    def goes_on(self, turn: Turn) -> None:
        """What is spoken has another part, which counts from now on."""
        turn.trace.state = turn.reply.next
        self.call.ledger.remark(turn.reply)
        self.call.goes_on(turn.reply)

    @entry(journal.LATE_TOOL)
    def on_late_tool(self, facts: dict[str, str]) -> None:
        self.call.transaction.keep(facts)

    # -- what goes out -------------------------------------------------------------------------------------------------

    @property
    def due(self) -> int:
        """ns: before then play() has nothing to do, unless something happens; 0 for the next tick."""
        if self.turn is None:
            return NEVER
        return self.stretch.ends if self.stretch is not None and self.stretch.left else self.playout.due

    def _attend(self) -> None:
        """Nothing goes out by itself any more."""
        if self.stretch is not None:
            self.stretch.end()
            self.call.due = 0

    def play(self, now: int) -> None:
        """Send the speech that is due, and see whether the reply is over."""
        turn, playout, out = self.turn, self.playout, self.out
        self.call.due = 0
        turn.tick(now)
        if self.held_back:
            return
        while not out.held(now) and (pcm := playout.pop(now)) is not None:
            out.audio(pcm)
            self.slot.note(*playout.place)      # at once: of several that are due another worker sends the rest
            for keys in playout.take_keys():
                out.text(self.dialect.send_digits(keys))
            if self.call.recording is not None:
                self.call.recording.sent(pcm)
            self.sounded = self.slot.written
            if self.echo is not None:
                self.echo.sent(pcm)
            if not self.audible:
                self.audible = True
                self.call.first_audio(now)
                if (keeper := getattr(self.call.server, "keeper", None)) is not None:
                    keeper.look_soon(self.call)
        for position in playout.take_marks():
            if not out.late:
                out.text(self.dialect.mark(f"{self.epoch}:{position}"))
        self.slot.note(*playout.place)
        if self.stretch is not None:
            unattended.follow(self, now)
        if turn.state is not SPEAKING and not playout.playing(now) and not out.late:
            self.turn = None
            turn.trace.underruns = playout.underruns
            self.call.turn_done(turn, playout.heard_text(now), now)

    def reached(self, mark: str, now: int) -> None:
        """The platform has played everything before the mark."""
        epoch, _, position = mark.partition(":")
        if epoch == str(self.epoch) and position.isdecimal():
            self.playout.reached(int(position), now)
            self.slot.note(*self.playout.place)


def tool_is_late(call, facts: dict[str, str]) -> None:
    """A tool that could not be stopped has done its work, though its turn is gone, and maybe the caller."""
    if call.slot is not None:
        return call.mouth.on_late_tool(facts)
    call.transaction.keep(facts)
    if (keeper := getattr(call.server, "keeper", None)) is not None:
        keeper.amended(call)
