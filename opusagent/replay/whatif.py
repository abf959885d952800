"""What if: a call once more with other settings, on what the journal knows of its engines.

The caller's audio, scores and words come when they came, at their positions; what the recogniser, the voice and the
model did is looked up: the utterance that begins nearest, the segment with the same text, the answer to the same
question.  The rule: what was never recorded is made up as plainly as possible, and the turn that needed it is marked.
"""
import asyncio
import heapq
from bisect import bisect_right
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count
from statistics import median
from types import SimpleNamespace

from .._fastpath import SEGMENT_SAMPLES
from ..calls import journal
from ..flow.tools import FAILURE
from ..speech.turns import LISTENING
from .rerun import Readings, Replay, World, answered, at_line, deafen, plain
from .tape import Entry, Tape

MS = 1_000_000                  # ns
TICK = 5 * MS                   # as often as a worker looks whether anything is due
NEAR_MS = 1500                  # an utterance that begins so near is the same one
SAME_END_MS = 400               # ... and a turn's end
MS_PER_CHARACTER = 65           # of speech that was never recorded
RUN_OUT_MS = 4000
UNKNOWN = "This answer was never recorded."


@dataclass(slots=True)
class Utterance:
    """What the recogniser heard from one position on."""

    begins: int                                 # sample
    partials: list[tuple[int, str]] = field(default_factory=list)      # (samples heard by then, text)
    ends: int | None = None                     # sample at which the turn was over; None: it never was
    final: tuple[str, float] | None = None      # text, confidence
    asked_at: int = 0                           # ns, when it was over
    took: int = 0                               # ns from there to the final text

    def text_at(self, position: int) -> str:
        """The best text of what was heard by then."""
        texts = [text for heard, text in self.partials if heard <= position]
        return texts[-1] if texts else ""


@dataclass(slots=True)
class Known:
    """What the journal knows of the engines."""

    utterances: list[Utterance] = field(default_factory=list)
    speech: dict[str, tuple[int, int]] = field(default_factory=dict)    # text -> (ns to its first sample, samples)
    answers: list[tuple[str, list]] = field(default_factory=list)       # (question, [(ns since it, piece)])
    tools: dict[tuple, tuple[int, tuple]] = field(default_factory=dict)     # what was run -> (ns it took, outcome)
    ends: list[int] = field(default_factory=list)                       # positions at which turns were over
    receipts: list[dict] = field(default_factory=list)
    rate: int = 8000


class Study(Replay):
    """The faithful replay, watched: it collects what is Known."""

    def __init__(self, tape: Tape, world: World):
        super().__init__(tape, world)
        self.known = Known()
        self._by_number: dict[int, Utterance] = {}
        self._asked_at: list[int] = []
        self._spoken: dict[tuple[int, int], tuple[str, int]] = {}   # (epoch, buffer) -> (text, ns)
        self._run: dict[tuple[int, int], tuple[tuple, int]] = {}    # (epoch, part) -> (what is run, ns)
        world.studio.tts.speak = self._speak
        world.studio.toolbox = lambda *of: SimpleNamespace(start=self._start)
        reply = world.studio.llm.reply

        def asked(messages, *more):
            self.known.answers.append((messages[-1]["content"], []))
            self._asked_at.append(world.readings.time)
            return reply(messages, *more)

        world.studio.llm.reply = asked

    def _speak(self, mouth, epoch: int, k: int, text: str, voice: str) -> None:
        self._spoken[epoch, k] = text, self.world.readings.time

    def _start(self, epoch: int, part: int, call) -> SimpleNamespace:
        self._run[epoch, part] = call.key, self.world.readings.time
        return SimpleNamespace(cancel=lambda: None)

    async def take_in(self, entry: Entry) -> None:
        made = len(self.decisions)
        await super().take_in(entry)
        for what, *details in self.decisions[made:]:
            self._decided(what, details, entry.at)
        if watch := WATCH.get(entry.kind):
            watch(self, entry.at, *entry.args)

    def _decided(self, what: str, details: list, at: int) -> None:
        if what == "listen":
            utterance = self._by_number[details[0]] = Utterance(details[1])
            self.known.utterances.append(utterance)
        elif what == "finish":
            utterance = self._by_number[details[0]]
            utterance.ends, utterance.asked_at = details[1], at
            self.known.ends.append(details[1])
        elif what == "receipt":
            self.known.receipts.append(details[0])

    def _partial(self, at: int, number: int, text: str) -> None:
        if (utterance := self._by_number.get(number)) and self.call.slot is not None:
            utterance.partials.append((self.call.slot.written, text))

    def _final(self, at: int, number: int, text: str, confidence: float = 1.0) -> None:
        if utterance := self._by_number.get(number):
            utterance.final, utterance.took = (text, confidence), max(0, at - utterance.asked_at)

    def _speech(self, at: int, epoch: int, k: int, start: int, written: int, done: bool) -> None:
        if said := self._spoken.get((epoch, k)):
            text, asked = said
            first = self.known.speech.get(text, (at - asked, 0))[0]
            self.known.speech[text] = first, written - start

    def _tool(self, at: int, epoch: int, part: int, *outcome) -> None:
        if (epoch, part) in self._run:
            key, began = self._run[epoch, part]
            self.known.tools[key] = at - began, outcome

    def _piece(self, at: int, number: int, piece=None, *_) -> None:
        self.known.answers[number][1].append((at - self._asked_at[number], answered(piece)))


WATCH = {journal.PARTIAL: Study._partial, journal.FINAL: Study._final, journal.SPEECH: Study._speech,
         journal.PIECE: Study._piece, journal.TOOL: Study._tool}


class Clock(Readings):
    """Time as the entries tell it; it asks for no readings."""

    def take(self, kind: type):
        return [0] if kind is list else False

    def words(self, segment, rate: int):
        """By their letters: the sound is not kept."""
        return segment.words(rate)

    def clock(self) -> int:
        return self.time


class WhatIf(Replay):
    """The same caller and other settings; `run` to its end, then `receipts` and `notes` tell how it would have been."""

    def __init__(self, tape: Tape, world: World, known: Known):
        world.readings = Clock()
        world.connection._readings = world.readings
        super().__init__(tape, world)
        self.known = known
        self.made_up: dict[int, set[str]] = {}          # turn -> what of it was never recorded
        self._due: list = []                            # heap of (ns, number, call, args)
        self._numbers = count()
        self._heard: Utterance | None = None            # what the present utterance is
        world.studio.stt, world.studio.tts, world.studio.llm = self, self, self
        world.studio.toolbox = lambda *of: SimpleNamespace(start=self._start)

    # -- the recogniser

    def listen(self, call, position: int) -> None:
        near = min(self.known.utterances, key=lambda u: abs(u.begins - position), default=None)
        if near is None or abs(near.begins - position) > NEAR_MS * self._per_ms:
            near = Utterance(position)
            self._make_up("the recogniser's words")
        self._heard = near

    def audio(self, call) -> None: ...

    def ask(self, call) -> None:
        if text := self._heard.text_at(call.slot.written):
            self._later(0, call.on_partial, call.utterance, text)

    def finish(self, call, position: int) -> None:
        heard = self._heard
        if heard.final is not None and heard.ends is not None and heard.ends <= position + SAME_END_MS * self._per_ms:
            text, confidence = heard.final
        else:
            text, confidence = heard.text_at(position), 0.5
            self._make_up("the last words of what was heard so far")
        took = heard.took or int(median([u.took for u in self.known.utterances if u.took] or [20 * MS]))
        self._later(took, call.on_final, call.utterance, text, confidence)

    def cancel(self, call) -> None: ...
    def forget(self, call) -> None: ...

    # -- the voice

    def speak(self, mouth, epoch: int, k: int, text: str, voice: str) -> None:
        rate = mouth.slot.rate_out
        if text not in self.known.speech:
            self._make_up("a segment's length")
        delay, samples = self.known.speech.get(text, (100 * MS, len(text) * MS_PER_CHARACTER * rate // 1000))
        start = mouth.slot.segment_written(k)
        mouth.slot.set_segment_written(k, start + min(samples, SEGMENT_SAMPLES))
        self._later(delay, mouth.on_speech, epoch, k, start, start + min(samples, SEGMENT_SAMPLES), True)

    def played(self, mouth, k: int) -> None: ...

    # -- the model

    async def reply(self, messages, *more) -> AsyncIterator[str]:
        question = messages[-1]["content"]
        pieces = next((pieces for asked, pieces in self.known.answers if asked == question and pieces), None)
        if pieces is None:
            self._make_up("the model's answer")
            pieces = [(500 * MS, UNKNOWN)]
        began = self.world.readings.time
        for after, piece in pieces:
            reached = asyncio.get_running_loop().create_future()
            self._later(began + after - self.world.readings.time, lambda f: f.done() or f.set_result(None), reached)
            await reached
            yield piece

    # -- the tools

    def _start(self, epoch: int, part: int, call) -> SimpleNamespace:
        if call.key not in self.known.tools:
            self._make_up("a tool's result")
        took, outcome = self.known.tools.get(call.key, (100 * MS, (FAILURE, {}, "", "It was not run then.")))
        self._later(took, self.call.mouth.on_tool, epoch, part, *outcome)
        return SimpleNamespace(cancel=lambda: None)

    # -- time

    def _later(self, ns: int, call, *args) -> None:
        heapq.heappush(self._due, (self.world.readings.time + max(0, ns), next(self._numbers), call, args))

    def _make_up(self, what: str) -> None:
        turn = len(self.call.ledger.receipts) + 1
        self.made_up.setdefault(turn, set()).add(what)

    @property
    def _per_ms(self) -> int:
        return self.call.slot.rate_in // 1000

    async def run(self) -> None:
        for entry in self.tape.entries:
            if entry.kind in LIVE:
                with at_line(self.tape, entry.line):
                    await self._tick_until(entry.at)
                    await self.take_in(entry)
        with at_line(self.tape, self.tape.entries[-1].line):
            await self._run_out()

    async def _tick_until(self, at: int) -> None:
        """The call was ticked when something was due in it; here that may be other things, at other times."""
        while self.call is not None and self.call.slot is not None and self.world.readings.time + TICK < at:
            await self._until_time(self.world.readings.time + TICK)
            if self.call.due <= self.world.readings.time:
                self.call.tick(self.world.readings.time)
        await self._until_time(at)

    async def _run_out(self) -> None:
        """After the last entry the caller is silent; what is on its way comes to its end."""
        call = self.call
        window = 32 * self._per_ms
        for _ in range(RUN_OUT_MS // 32):
            if call.slot is None or call.done or call.mouth.turn is None and call.turns.state == LISTENING:
                return
            for _ in range(8):
                await self._until_time(self.world.readings.time + 4 * MS)
                call.tick(self.world.readings.time)
            call.on_window(0.0, call.turns.position + window, window, window)

    async def _until_time(self, now: int) -> None:
        """What is due before `now` happens, in its order."""
        while self._due and self._due[0][0] <= now:
            at, _, call, args = heapq.heappop(self._due)
            self.world.readings.time = max(self.world.readings.time, at)
            call(*args)
            await self._settle()
        self.world.readings.time = max(self.world.readings.time, now)
        if self.call is not None and self._mouth_thinks:
            await self._settle()

    @property
    def _mouth_thinks(self) -> bool:
        """A model is being asked, or is about to be."""
        turn = self.call.mouth.turn or self.call.mouth.held
        return turn is not None and bool(turn.reply.messages)

    async def _settle(self) -> None:
        for _ in range(6):
            await asyncio.sleep(0)

    async def take_in(self, entry: Entry) -> None:
        if entry.kind == journal.TICK:
            self.call.tick(self.world.readings.time)
        elif entry.kind == journal.PARTIAL:
            self._unasked(entry.args[1])
        elif self.call is None or self.call.slot is not None or entry.kind == journal.MESSAGE:
            await super().take_in(entry)
        deafen(self.call)

    def _unasked(self, text: str) -> None:
        """Words that came by themselves come where they did, if somebody listens to that utterance."""
        if self.call.ear.hearing and self._heard is not None and self._heard.text_at(self.call.slot.written) == text:
            self.call.ear.on_partial(self.call.ear.utterance, text)

    @property
    def receipts(self) -> list[dict]:
        return plain(self.call.ledger.receipts)

    @property
    def cut_in(self) -> list[int]:
        """Positions at which a turn ended in the middle of what was one turn then."""
        ends = sorted(self.known.ends)
        found = []
        for what, *details in self.decisions:
            if what == "finish":
                at = bisect_right(ends, details[1] + SAME_END_MS * self.known.rate // 1000)
                inside = any(u.begins < details[1] < (u.ends or 0) - SAME_END_MS * self.known.rate // 1000
                             for u in self.known.utterances)
                if inside and not (at and abs(ends[at - 1] - details[1]) <= SAME_END_MS * self.known.rate // 1000):
                    found.append(details[1])
        return found


LIVE = {journal.BEGIN, journal.ANSWERED_BY, journal.MESSAGE, journal.DRAINED, journal.WINDOW, journal.TICK,
        journal.PARTIAL}
