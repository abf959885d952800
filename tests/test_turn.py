"""One reply, with the model and the voice on fakes and the clock in the test's hand.

Every sentence of a reply is spoken at a level of its own, so that what was played tells which, how much and in what
order.
"""
import asyncio
import heapq
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opusagent import EngineError
from opusagent._fastpath import SEGMENT_SAMPLES, SEGMENTS, Arena
from opusagent.calls.pipeline import CANCELLED, DONE, MOST_FILLERS, SPEAKING, Stage, Turn
from opusagent.config import OpenAI
from opusagent.flow import Reply
from opusagent.metrics import TurnTrace
from opusagent.speech.playout import Playout
from opusagent.studio.prompts import Prompt

RATE = 8000
MS = 1_000_000                  # ns
TICK_MS = 5
FILLER = "One moment, please."
LEVEL, STEP = 1000, 100         # of the first text that is spoken, and from one to the next
WORD_MS = 100                   # of speech
ASKED = ({"role": "user", "content": "Hello?"},)


class Clock:
    """Monotonic ns that pass when the test says so."""

    def __init__(self):
        self.now = 1_000_000_000
        self.due = []                           # (ns, order, future)
        self.order = itertools.count()

    def __call__(self) -> int:
        return self.now

    @property
    def ms(self) -> float:
        return (self.now - 1_000_000_000) / MS

    async def until(self, ms: float) -> None:
        if self.ms < ms:
            due = asyncio.get_running_loop().create_future()
            heapq.heappush(self.due, (ms, next(self.order), due))
            await due

    async def pass_ms(self, ms: float) -> None:
        self.now += round(ms * MS)
        while self.due and self.due[0][0] <= self.ms:
            due = heapq.heappop(self.due)[2]
            if not due.done():
                due.set_result(None)
        for _ in range(4):
            await asyncio.sleep(0)


class Model:
    """Answers with a script of (ms, piece); a piece that is an error is raised."""

    def __init__(self, clock: Clock, script):
        self.clock, self.script = clock, script
        self.cancelled = False

    async def reply(self, messages, tools=()):
        assert messages == ASKED
        try:
            for ms, piece in self.script:
                await self.clock.until(ms)
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        except asyncio.CancelledError:
            self.cancelled = True
            raise


class Voice:
    """Speaks a text `delay(text)` ms after it was asked to: WORD_MS for each word, at a level of its own."""

    def __init__(self, clock: Clock, slot, delay=lambda text: 50):
        self.clock, self.slot, self.delay = clock, slot, delay
        self.asked: list[str] = []
        self.asked_at: dict[str, float] = {}
        self.busy = self.most = 0               # buffers in use, and the most there ever were
        self.broken: set[str | int] = set()     # texts that it cannot speak, or the numbers of what it is asked for
        self.due = []
        self.turn: Turn | None = None

    def speak(self, epoch: int, k: int, text: str, voice: str) -> None:
        assert (epoch, voice) == (7, "anna")
        self.asked.append(text)
        self.asked_at[text] = self.clock.ms
        self.most = max(self.most, len(self.turn.speaking))
        heapq.heappush(self.due, (self.clock.ms + self.delay(text), len(self.asked), k, text))

    def tick(self) -> None:
        while self.due and self.due[0][0] <= self.clock.ms:
            _, number, k, text = heapq.heappop(self.due)
            if text in self.broken or number in self.broken:
                self.turn.on_speech_failed(k, "The voice did not speak a segment.")
            else:
                self.write(k, text)

    def write(self, k: int, text: str) -> None:
        start = self.slot.segment_written(k)
        count = len(text.split()) * WORD_MS * RATE // 1000
        ring = np.asarray(self.slot.segment(k))
        ring[np.arange(start, start + count) % SEGMENT_SAMPLES] = LEVEL + STEP * self.asked.index(text)
        self.slot.set_segment_written(k, start + count)
        assert start + count - self.slot.segment_read(k) <= SEGMENT_SAMPLES
        self.turn.on_speech(k, start, start + count, True)


class Telling:
    """A turn with all that it needs, run tick by tick."""

    def __init__(self, script=(), say=(), delay=lambda text: 50, prompts=()):
        self.clock = Clock()
        self.slot = Arena(1).slot(0)
        self.slot.take(RATE, RATE)
        self.playout = Playout(RATE)
        self.model = Model(self.clock, script)
        self.voice = Voice(self.clock, self.slot, delay)
        self.prompts = {text: Prompt(np.full(800, LEVEL - STEP, np.int16), RATE) for text in prompts}
        stage = Stage(self.slot, self.playout, lambda voice, text, rate: self.prompts.get(text), self.model, "anna",
                      OpenAI(), (FILLER,), self.clock, speak=self.voice.speak, played=lambda k: None)
        messages = ASKED if script else ()
        self.trace = TurnTrace(1)
        self.turn = self.voice.turn = Turn(stage, Reply("answer", 1, "here", say, messages), 7, self.trace)
        self.heard: list[tuple[float, int]] = []        # (ms, level) of each frame that went out

    async def run(self, ms: float = 20_000) -> "Telling":
        """Until it is over, at most until then."""
        if not self.turn.began:
            self.turn.begin(self.clock())
        while self.turn.state is SPEAKING and self.clock.ms < ms:
            await self.clock.pass_ms(TICK_MS)
            self.voice.tick()
            self.turn.tick(self.clock())
            while (pcm := self.playout.pop(self.clock())) is not None:
                self.heard += [(self.clock.ms, int(level)) for level in pcm[::20]]
        return self

    @property
    def spoken(self) -> list[str]:
        """The texts that were played, in the order of playing."""
        levels = [level for level, _ in itertools.groupby(level for _, level in self.heard) if level]
        return [self.voice.asked[(level - LEVEL) // STEP] for level in levels if level >= LEVEL]

    def first_ms(self) -> float:
        return next(ms for ms, level in self.heard if level)


def tell(script=(), until=20_000, **more) -> Telling:
    async def scenario():
        return await Telling(script, **more).run(until)
    return asyncio.run(scenario())


def words(*spoken: tuple[float, str]):
    """A script: each text, word by word 10 ms apart, from its ms on."""
    return [(ms + 10 * i, word + " ") for ms, text in spoken for i, word in enumerate(text.split())]


# -- a script ----------------------------------------------------------------------------------------------------------

def test_texts_that_are_known_are_spoken_in_order():
    told = tell(say=("Hello there.", "Which card?"))
    assert told.spoken == told.turn.texts == ["Hello there.", "Which card?"]
    assert told.turn.state is DONE and not told.turn.failed


def test_a_text_that_was_rendered_ahead_is_played_at_once():
    told = tell(say=("Hello there.",), prompts=("Hello there.",))
    assert told.voice.asked == [] and told.first_ms() == TICK_MS and told.turn.audible


def test_segments_are_played_in_order_when_the_voice_finishes_them_out_of_order():
    late = {"One one.": 900, "Two two.": 400, "Three three.": 30}
    told = tell(say=tuple(late), delay=late.get)
    assert told.spoken == list(late)


def test_more_segments_than_buffers():
    texts = tuple(f"Number {i} of many." for i in range(3 * SEGMENTS + 1))
    told = tell(say=texts)
    assert told.spoken == list(texts) == told.voice.asked
    assert told.voice.most == SEGMENTS and told.turn.state is DONE


def test_long_segments_lap_their_buffer():
    texts = tuple(f"{i} " + "word " * 60 for i in range(3 * SEGMENTS))
    told = tell(say=texts, until=100_000)
    assert told.spoken == list(texts)
    assert all(told.slot.segment_written(k) > SEGMENT_SAMPLES for k in range(SEGMENTS))


# -- a model -----------------------------------------------------------------------------------------------------------

def test_the_first_segment_is_spoken_while_the_rest_still_comes():
    told = tell(words((300, "Of course, I can help."), (900, "Your order left today."), (1500, "It is on its way.")))
    assert told.spoken == ["Of course,", "I can help.", "Your order left today.", "It is on its way."]
    assert told.voice.asked_at["Of course,"] == 310             # with the space after it, it is known to be a clause
    assert told.first_ms() == 360
    assert told.trace.marked("segment") - told.trace.marked("llm_first_token") == 10 * MS


def test_the_last_words_need_no_word_after_them():
    told = tell([(100, "Good"), (150, "bye"), (200, ".")])
    assert told.spoken == ["Goodbye."] and told.voice.asked_at["Goodbye."] == 200


def test_what_is_said_first_and_what_the_model_adds():
    told = tell(words((400, "It left today.")), say=("Let me see.",))
    assert told.spoken == ["Let me see.", "It left today."]


def test_a_filler_is_spoken_when_the_model_is_late():
    told = tell(words((1700, "It left today.")))
    assert told.spoken == [FILLER, "It left today."] and told.turn.texts == ["It left today."]
    assert 1200 < told.voice.asked_at[FILLER] <= 1200 + 2 * TICK_MS
    assert not told.turn.failed and not told.turn.error


def test_a_model_that_is_in_time_needs_no_filler():
    assert tell(words((1195, "It left today."))).spoken == ["It left today."]


def test_no_filler_cuts_into_what_is_being_said():
    told = tell(words((1900, "It left today.")), say=("This takes some time, " + "as you see " * 5,))
    assert FILLER not in told.spoken


def test_a_filler_bridges_the_wait_after_what_was_said():
    told = tell(words((1900, "It left today.")), say=("Let me see.",))
    assert told.spoken == ["Let me see.", FILLER, "It left today."]


def test_a_model_that_sends_nothing_is_given_up():
    told = tell([(2100, "Too late.")])
    assert told.model.cancelled and told.turn.failed and told.turn.state is DONE
    assert told.spoken == [FILLER] and told.turn.texts == []
    assert told.turn.error == "The model sent nothing within 2.0 s."
    assert told.voice.asked == [FILLER]


def test_a_pause_ends_the_reply_with_what_was_complete():
    told = tell(words((100, "The first is ready. The second is")) + [(2000, "too late. Really.")])
    assert told.spoken == ["The first is ready."] and told.voice.asked == told.turn.texts == ["The first is ready."]
    assert told.model.cancelled and told.turn.state is DONE and not told.turn.failed
    assert told.turn.error == "The model paused for more than 1.0 s."


def test_a_shorter_pause_ends_nothing():
    told = tell(words((100, "The first is ready. The second"), (1100, "is ready too.")))
    assert told.spoken == ["The first is ready.", "The second is ready too."] and not told.turn.error


def test_a_model_that_drips_is_listened_to():
    pieces = "One word a second, not more. That is slow but steady."
    told = tell([(100 + 900 * i, word + " ") for i, word in enumerate(pieces.split())])
    assert " ".join(told.turn.texts) == pieces and [text for text in told.spoken if text != FILLER] == told.turn.texts


@pytest.mark.parametrize("broken", [EngineError("The model's endpoint failed."), RuntimeError("a fault of ours")])
def test_an_answer_that_breaks_off_is_spoken_as_far_as_it_was_complete(broken, caplog):
    told = tell(words((100, "The first is ready. The second is")) + [(300, broken)])
    assert told.spoken == ["The first is ready."] and told.turn.error and not told.turn.failed
    assert bool(caplog.records) == isinstance(broken, RuntimeError)


def test_an_answer_that_breaks_off_before_it_has_said_anything_has_failed():
    told = tell([(100, "The first is"), (200, EngineError("The model's endpoint failed."))])
    assert told.spoken == [] and told.turn.failed and told.turn.error == "The model's endpoint failed."
    assert told.turn.state is DONE


# -- the voice fails ---------------------------------------------------------------------------------------------------

def test_a_segment_that_the_voice_cannot_speak_is_left_out():
    async def scenario():
        telling = Telling(say=("One one.", "Two two.", "Three three."))
        telling.voice.broken = {"Two two."}
        return await telling.run()
    told = asyncio.run(scenario())
    assert told.spoken == ["One one.", "Three three."] and told.turn.error and not told.turn.failed


def test_a_failed_segment_leaves_its_buffer_as_it_was():
    texts = tuple(f"Number {i} of many." for i in range(2 * SEGMENTS))

    async def scenario():
        telling = Telling(say=texts)
        telling.voice.broken = set(texts[SEGMENTS:])
        await telling.run()
        return [(telling.slot.segment_read(k), telling.slot.segment_written(k)) for k in range(SEGMENTS)]
    assert all(read == written > 0 for read, written in asyncio.run(scenario()))


def test_a_voice_that_cannot_speak_at_all_has_failed():
    async def scenario():
        telling = Telling(words((100, "It left today. Really.")))
        telling.voice.broken = {"It left today.", "Really."}
        return await telling.run()
    told = asyncio.run(scenario())
    assert told.turn.failed and told.turn.state is DONE and told.spoken == []


# -- cancel ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("ms", [0, 90, 150, 250, 1300])
def test_cancel_drops_everything(ms):
    async def scenario():
        telling = Telling(words((100, "The first is ready. The second is ready."), (900, "The third too.")))
        await telling.run(ms)
        telling.turn.cancel()
        asked, heard = len(telling.voice.asked), len(telling.heard)
        telling.playout.clear()
        await telling.clock.pass_ms(2000)
        telling.voice.tick()                    # it finishes what nobody wants
        for _ in range(10):
            await telling.clock.pass_ms(TICK_MS)
        return telling, asked, heard
    telling, asked, heard = asyncio.run(scenario())
    assert telling.turn.state is CANCELLED and not telling.turn.waiting
    assert (len(telling.voice.asked), len(telling.heard)) == (asked, heard)
    assert not telling.playout.queue


# -- whatever happens --------------------------------------------------------------------------------------------------

PIECES = st.lists(st.tuples(st.integers(0, 1300), st.sampled_from(
    ["Yes", " indeed", ". ", "The", " card", ", ", " 10", ".5", "\n", "So, ", " and", "! ", " Dr. Who", "..."])),
    min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(PIECES, st.lists(st.integers(0, 1500), min_size=1, max_size=5), st.sets(st.integers(0, 12), max_size=3),
       st.booleans())
def test_each_text_once_and_in_order_and_it_ends(gaps, delays, broken, breaks):
    at = list(itertools.accumulate(gap for gap, _ in gaps))
    script = [(ms, piece) for ms, (_, piece) in zip(at, gaps)]
    script += [(at[-1] + 5, EngineError("The model's endpoint failed."))] if breaks else []
    order = itertools.count()
    delay = {}

    async def scenario():
        telling = Telling(script, delay=lambda text: delay.setdefault(text, delays[next(order) % len(delays)]))
        speak = telling.voice.speak

        def speaks(epoch, k, text, voice):
            if len(telling.voice.asked) in broken:
                telling.voice.broken.add(len(telling.voice.asked) + 1)
            speak(epoch, k, text, voice)
        telling.turn.stage.speak = speaks
        return await telling.run(200_000)
    told = asyncio.run(scenario())
    texts = [text for text in told.voice.asked if text != FILLER]
    assert told.turn.state is DONE and texts == told.turn.texts
    if len(set(texts)) == len(texts):
        asked = [text for number, text in enumerate(told.voice.asked, 1) if number not in told.voice.broken]
        assert told.spoken == [text for text, _ in itertools.groupby(asked)]        # two fillers sound like one here
    rows = [len(list(row)) for text, row in itertools.groupby(told.voice.asked) if text == FILLER]
    assert max(rows, default=0) <= MOST_FILLERS and told.voice.most <= SEGMENTS
    assert told.turn.failed == (bool(told.turn.error) and not set(told.spoken) - {FILLER})
    said, generated = ("".join(filter(str.isalnum, "".join(each))) for each in (texts, (piece for _, piece in gaps)))
    assert generated.startswith(said) and (said == generated or told.turn.error)
