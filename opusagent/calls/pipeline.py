"""Turn: one reply of the agent, from the decision to its last sample.

A reply is a sequence of texts, known at once (a script) or coming (a model).  Each becomes a segment of speech:
taken from the prompts, or synthesised into one of the slot's segment buffers, several side by side.  The rule:
segments are handed to the playout in the order of their texts, whatever order they get ready in; and once the
turn's epoch has passed, nothing of it has any effect.  A model that speaks itself fills such a buffer, too.

A reply may go on: with what a tool has found, or what a model wanted done.  Then it has several parts, decided by the
dialogue one after the other, and they count together with the turn.
"""
import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import EngineError
from .._fastpath import SEGMENTS, Slot
from ..engines.remote.continuing import GoingOn
from ..engines.spoken import Spoken
from ..flow import COMMIT, PURE, Cutter, FunctionCall, Outcome, Reply
from ..flow.phrasing import KEYS
from ..flow.signals import groups, is_recording
from ..speech import tones
from ..speech.playout import Playout, Segment

log = logging.getLogger("opusagent")

HELD, SPEAKING, DONE, CANCELLED = "held", "speaking", "done", "cancelled"

MOST_FILLERS = 3                # in a row, for a model or a voice
DEAD_AIR_SECONDS = 1.3          # that a listener is left with while something is on its way
SENTENCE_PAUSE_MS = 220         # between two segments when the first ends a sentence
CLAUSE_PAUSE_MS = 90            # ... when it does not


def going_on(llm, said: str):
    """The model of a call, for an answer that it has begun; one that is wrapped says itself how that is."""
    return llm.going_on(said) if hasattr(llm, "going_on") else GoingOn(llm, said)


def overdue(deadlines, began: int, last_piece: int, now: int) -> str:
    """Why a model is not waited for any longer, that was asked and last sent something at these times, ns, 0 for never;
    "" while it is."""
    waited = (now - (last_piece or began)) / 1e9
    if last_piece:
        late = waited > deadlines.token_gap_seconds
        return f"The model paused for more than {deadlines.token_gap_seconds} s." if late else ""
    late = waited > deadlines.first_token_seconds
    return f"The model sent nothing within {deadlines.first_token_seconds} s." if late else ""


@dataclass(slots=True, eq=False)
class Stage:
    """What a turn plays on: the parts of a call that it uses, and nothing above them.  In text the script is the slot
    and the playout."""

    slot: Slot
    playout: Playout
    prompt: Callable                # (voice, text, rate) -> studio.Prompt or None
    llm: Any
    voice: str
    deadlines: Any                  # config.OpenAI: first_token_seconds, filler_seconds, token_gap_seconds
    filler: tuple[str, ...]         # what is said when the model's first words are late
    clock: Callable[[], int]        # ns
    speak: Callable | None = None   # (epoch, segment buffer, text, voice): have it synthesised there
    played: Callable | None = None  # (segment buffer): some of it was played, there is room again
    dialogue: Any = None            # asked() and outcome(): how a reply goes on
    perform: Callable | None = None     # (epoch, part, ToolCall): run it; what is returned can be cancelled
    owner: Any = None               # certain, acts(turn), goes_on(turn): a tool may have its effect, has it now, there
                                    # is another part that counts
    sounds: dict = field(default_factory=dict)      # segment -> the flow's recording (flow/signals.py)
    mute: bool = False              # nobody listens: nothing is said, and no model asked for what would be
    presses: bool = False           # the platform presses keys itself, when it is asked to
    cached_only: bool = False       # nothing but the reply itself is synthesised

    def spoken_by(self, text: str, voice: str) -> str:
        """What the prompts have a segment under: a voice, or the file that is played."""
        return self.sounds[text].file if text in self.sounds else voice or self.voice

    def pressed(self, text: str) -> list[Segment]:
        """Keys as segments: as they sound, or as long a silence, in which the platform presses them."""
        found, rate = [], self.slot.rate_out
        for keys, waits in groups(text):
            pause = waits * tones.HALF_SECOND_MS
            if not keys:                # nothing can be waited for behind nothing
                found.append(Segment("", np.zeros(rate * pause // 1000, np.int16)))
                continue
            sound = tones.tones(keys, rate)
            ends = np.linspace(0, len(sound), len(keys) + 1).astype(int)
            segment = Segment(KEYS + " ".join(keys), np.zeros_like(sound) if self.presses else sound, pause_ms=pause,
                              ends=ends)
            segment.keys = keys if self.presses else ""
            found.append(segment)
        if self.presses:                # nothing of it is heard
            found[0].lead = sum(len(each.pcm) + each.pause_ms * rate // 1000 for each in found)
        return found


class Turn:
    """`begin` starts it, `tick` keeps its deadlines, `cancel` ends it; then `state` says how it went.

    One that is held is begun before the caller's turn is certain to be over; commit() makes it count.
    """

    __slots__ = ("stage", "first", "reply", "epoch", "trace", "state", "texts", "waiting", "buffers", "speaking", "own",
                 "complete", "error", "broken", "audible", "began", "last_piece", "acting", "kept", "_parts", "_task",
                 "_due", "_fillers", "_silent", "quiet")

    def __init__(self, stage: Stage, reply: Reply, epoch: int, trace, held: bool = False):
        self.stage = stage
        self.first = reply                          # what the turn began with
        self.reply = reply                          # its latest part
        self.epoch = epoch
        self.trace = trace
        self.state = HELD if held else SPEAKING
        self.texts: list[str] = []                  # generated: all that was decided to be said, in order; no filler
        self.waiting: deque[tuple[str | Segment, str]] = deque()    # (text, voice) of these and the filler, no segments
                                                    # yet; or (a model's own speech, "") that has no buffer yet
        self.buffers = list(range(SEGMENTS))        # segment buffers of the slot that are free
        self.speaking: dict[int, Segment] = {}      # buffer -> the segment synthesised into it or played from it
        self.own: list[Segment] = []                # those that the model speaks itself
        self.complete = False                       # no more texts will come
        self.error = ""                             # why the model's answer ended early, or a segment is not spoken
        self.broken = False                         # that error left out something that was to be said
        self.audible = False                        # something of the reply can be heard; a filler is nothing of it
        self.began = 0                              # ns
        self.last_piece = 0                         # ns, when the model last sent something; 0: nothing yet
        self.acting = ""                            # the effect of the tool that is called: "" if there is none
        self.kept: dict[str, str] = {}              # facts of what cannot be undone
        self._parts: list[Reply] = []               # after the first, while it is held
        self._task: asyncio.Task | None = None      # of the model, or the tool's
        self._silent: list[str] = []                # of the texts, those that had no sound
        self._due = False                           # the tool waits until the turn is certain
        self._fillers = 0                           # times that the filler was said since anything else was
        self.quiet = 0                              # ns, since when the listener hears nothing of the reply

    @property
    def failed(self) -> bool:
        """Nothing of the reply could be said: somebody else has to say something."""
        return bool(self.error) and not self.audible

    @property
    def told(self) -> str:
        """What was heard of the reply, once it is over."""
        return " ".join(text for text in self.texts if text not in self._silent)

    def begin(self, now: int) -> None:
        """What there is to say goes on its way: to the listener, or as far as it gets while it is held."""
        self.began = now
        self._proceed()

    def commit(self, reply: Reply, trace, now: int) -> None:
        """What was held counts from now on; `reply` is equal to our first and has the caller's final words."""
        ready = self.trace.marked("synthesis")
        trace.saved_ms = (min(now, ready or now) - self.began) / 1e6
        trace.adopt(self.trace)
        self.first, self.trace, self.state = reply, trace, SPEAKING
        latest = self.reply if self._parts else reply
        for self.reply in self._parts:
            self.stage.owner.goes_on(self)
        self.reply, self._parts = latest, []
        self.began = now
        self.last_piece = self.last_piece and now       # the caller waits from now on

    def _proceed(self) -> None:
        """Say what the latest part says, and begin what it asks for."""
        for text in () if self.stage.mute else self.reply.say:
            self._say(text)
        if self.reply.call:
            self.acting = self.reply.call.tool.effect
            self._due = self.acting != PURE
            if not self._due:
                self._act()
        elif self.reply.messages and not self.stage.mute:
            self._task = asyncio.ensure_future(self._think())
        else:
            self.complete = True

    def _go_on(self, part: Reply) -> None:
        """The turn has another part: it counts at once, or with the turn."""
        self.reply, self.acting, self._task, self.began, self.last_piece = part, "", None, self.stage.clock(), 0
        if self.state is SPEAKING:
            self.stage.owner.goes_on(self)
        else:
            self._parts.append(part)
        self._proceed()

    def go_on(self, pieces: tuple[str, ...], now: int, aloud: bool) -> None:
        """Another worker has asked the model, which had said this, not all of it `aloud` yet: what follows is asked
        for here."""
        self.began, self.last_piece = now, 0
        self._task = asyncio.ensure_future(self._think(pieces if "".join(pieces).strip() else (), aloud))

    def tick(self, now: int) -> None:
        """Free the buffers that are played, give the next texts to the voice, keep the model's deadlines."""
        for k, segment in list(self.speaking.items()):
            if segment.supplied and segment.read != self.stage.slot.segment_read(k):
                self.stage.slot.set_segment_read(k, segment.read)
                self.stage.played(k) if segment.source is None else segment.source.played()
            if segment.finished:
                del self.speaking[k]
                self.buffers.append(k)
        self._advance()
        if self._due and self.state is SPEAKING and not self.stage.playout.held \
                and (self.stage.owner.certain or not self.texts):
            self._due = False
            self.stage.owner.acts(self)
            self._act()
        if self._task is not None and not self.acting:
            self._keep_deadlines(now)
        if self.state is SPEAKING and not self.stage.mute:
            self._bridge(now)
        if self.complete and not self.waiting and not self.stage.playout.queue and self.state is SPEAKING:
            self.state = DONE

    def on_speech(self, k: int, start: int, written: int, done: bool) -> None:
        """The voice has written samples start..written (counters of buffer k)."""
        segment = self.speaking.get(k)
        if segment is not None:
            segment.supply(start, written, done)
            if written > start:
                self._heard(segment)
            elif done and not segment.length:
                self._unspoken(f"The voice has no sound for {segment.text[:40]!r}.", segment.text)

    def on_speech_failed(self, k: int, sentence: str) -> None:
        """The voice gave up on a segment: what there is of it is played, the next one follows."""
        segment = self.speaking.get(k)
        if segment is not None:
            at = self.stage.slot.segment_read(k)
            segment.supply(at, segment.written if segment.supplied else at, True)
            self._unspoken(sentence, "" if segment.length else segment.text)

    def _unspoken(self, sentence: str, text: str) -> None:
        """Something that was to be said was not: of `text` nothing was heard."""
        self.error, self.broken = self.error or sentence, True
        self._silent.append(text)

    def cancel(self) -> None:
        """Stop at once: nothing more is said.  What was heard is the playout's to tell."""
        if self._task is not None:
            self._task.cancel()
        self._due = False
        for segment in self.own:
            segment.source.stop(self.stage.playout.heard_of(segment, self.stage.clock()))
        self.waiting.clear()
        if self.state is not DONE:
            self.state = CANCELLED

    def _say(self, text: str) -> None:
        self.texts.append(text)
        self._speak(text)

    def _speak(self, text: str) -> None:
        self.waiting.append((text, self.stage.spoken_by(text, self.reply.voice)))
        self._advance()

    def _advance(self) -> None:
        """Texts become segments, in order: from the prompts at once, from the voice as long as a buffer is free."""
        stage = self.stage
        while self.waiting:
            text, voice = self.waiting[0]
            if isinstance(text, Segment):
                if not self.buffers:
                    return
                self._hear_model(text)
                continue
            if text.startswith(KEYS):
                self._press(text)
                continue
            pause = SENTENCE_PAUSE_MS if text.rstrip().endswith((".", "?", "!")) else CLAUSE_PAUSE_MS
            prompt = stage.prompt(voice, text, stage.slot.rate_out)
            if prompt is not None:
                segment = Segment(text, prompt.pcm, lead=prompt.lead, pause_ms=pause, ends=getattr(prompt, "ends", ()))
                self._heard(segment)
            elif is_recording(text):
                self.waiting.popleft()
                self._unspoken(f"There is nothing to play as {text}.", text)
                continue
            elif self.buffers:
                k = self.buffers.pop(0)
                segment = Segment(text, stage.slot.segment(k), pause_ms=pause, growing=True)
                self.speaking[k] = segment
                stage.speak(self.epoch, k, text, voice)
            else:
                return
            self.waiting.popleft()
            stage.playout.push(segment)

    def _press(self, text: str) -> None:
        """Keys: their segments need nobody."""
        self.waiting.popleft()
        for segment in self.stage.pressed(text):
            self.stage.playout.push(segment)
            self._heard(segment)

    def _hear_model(self, segment: Segment) -> None:
        """The model's own speech has a buffer."""
        k = self.buffers.pop(0)
        self.waiting.popleft()
        segment.pcm = np.asarray(self.stage.slot.segment(k))
        self.speaking[k] = segment
        segment.source.write(self.stage.owner, self.epoch, k)
        self.stage.playout.push(segment)

    def _heard(self, segment: Segment) -> None:
        """There is something of it to be heard."""
        self.trace.mark("synthesis", self.stage.clock())
        if segment.text not in self.stage.filler:
            self.audible, self._fillers = True, 0

    # -- the model -----------------------------------------------------------------------------------------------------

    async def _think(self, before: tuple[str, ...] = (), aloud: bool = False) -> None:
        """Say what the model answers, or what follows the pieces `before`.  Of an answer that breaks off, what is no
        whole segment is never said."""
        cutter, said, call, spoken, llm = Cutter(), list(before), None, None, self.stage.llm
        if before:
            llm = going_on(llm, "".join(before))
        if aloud:
            segments = [segment for piece in before for segment in cutter.feed(piece)]
            self._say_segments(segments[len(self.texts):])
        try:
            async for piece in llm.reply(self.reply.messages, self.reply.tools):
                self.last_piece = self.stage.clock()
                self.trace.mark("llm_first_token", self.last_piece)
                if isinstance(piece, FunctionCall):
                    call = piece
                elif isinstance(piece, Spoken):
                    spoken = self._say_spoken(piece)
                elif spoken is not None:
                    spoken.text += piece
                    self.texts[-1] += piece
                else:
                    said.append(piece)
                    self._say_segments(cutter.feed(piece))
            self._say_segments(cutter.finish())
        except EngineError as error:
            self.error, self.broken = str(error), not error.whole
        except Exception:
            log.exception("the model's engine broke")
            self.error, self.broken = "The model's engine broke.", True
        if call is None or self.error:
            self._end_of_answer()
        else:
            self._go_on(self.stage.dialogue.asked(self.reply, call, "".join(said)))

    def _act(self) -> None:
        self._task = self.stage.perform(self.epoch, self.reply.part, self.reply.call)

    def acted(self, part: int, outcome: Outcome) -> None:
        """The tool that this part of the reply calls has done what it could: the turn goes on from there."""
        if self.acting and part == self.reply.part and self.state in (HELD, SPEAKING):
            self.kept |= outcome.facts if self.acting == COMMIT else {}
            self._fillers = 0                   # those were the tool's: a model has as many as ever
            self._go_on(self.stage.dialogue.outcome(self.reply, outcome))

    def _say_segments(self, texts: list[str]) -> None:
        for text in texts:
            self.trace.mark("segment", self.stage.clock())
            self._say(text)

    def _say_spoken(self, piece: Spoken) -> Segment:
        """The model speaks itself; the text of it comes while it does."""
        segment = Segment("", (), pause_ms=SENTENCE_PAUSE_MS, growing=True)
        segment.source = piece
        self.own.append(segment)
        self.texts.append("")
        self.waiting.append((segment, ""))
        self.trace.mark("segment", self.stage.clock())
        self._advance()
        return segment

    def _end_of_answer(self) -> None:
        self.complete = True
        self._task = None

    def _keep_deadlines(self, now: int) -> None:
        if sentence := overdue(self.stage.deadlines, self.began, self.last_piece, now):
            self._give_up(sentence)

    def _bridge(self, now: int) -> None:
        """The listener has heard nothing for too long, whoever it is that is late: a filler."""
        playout, stage = self.stage.playout, self.stage
        if playout.audible(now) or playout.held:
            self.quiet = now
        quiet = (now - max(self.quiet, self.began)) / 1e9
        nothing_yet = not self.last_piece and (self._task or self.acting)
        if quiet <= (stage.deadlines.filler_seconds if nothing_yet else DEAD_AIR_SECONDS):
            return
        if self.complete and not self.waiting and not playout.queue:
            return                              # that was all
        if self._fillers >= MOST_FILLERS and not self.acting:       # a tool has the time that the flow gives it
            if self._task is not None:
                self._give_up("The model is too slow to be listened to.")
            return
        self._fillers += 1
        self.quiet = now
        for text in reversed(stage.filler):
            prompt = stage.prompt(self.reply.voice or stage.voice, text, stage.slot.rate_out)
            if prompt is not None:
                playout.interject(Segment(text, prompt.pcm, lead=prompt.lead, pause_ms=SENTENCE_PAUSE_MS))
            elif not playout.queue and not stage.cached_only:
                self._speak(text)

    def _give_up(self, reason: str) -> None:
        self.error, self.broken = reason, True
        self._task.cancel()
        self._end_of_answer()
