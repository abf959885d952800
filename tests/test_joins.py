"""What a listener hears where speech is joined, or breaks off because the voice is late: never a click."""
import numpy as np
import pytest
from conversation import Conversation
from hypothesis import given, settings
from hypothesis import strategies as st

from opusagent.speech.playout import FADE_MS, Playout, Segment

RATE, MS = 8000, 1_000_000
LEVEL = 8000                    # of a voice that is as far from nothing as can be
MENU = """
start = "menu"
[states.menu]
say = "One or two?"
on = [{ phrases = ["one"], go = "bye" }, { phrases = ["two"], go = "bye" }]
[states.bye]
say = "Goodbye."
end = true
"""
STEP = LEVEL / (RATE * FADE_MS // 1000 - 1) + 1     # between two samples of a fade


class Late:
    """A playout whose only segment grows when the test says so."""

    def __init__(self, lead_ms=0, message_ms=20):
        self.playout = Playout(RATE, lead_ms, message_ms)
        self.segment = Segment("Late.", np.full(1 << 16, LEVEL, np.int16), growing=True)
        self.playout.begin()
        self.playout.push(self.segment)
        self.now = 10**9
        self.heard = []

    def write(self, samples, done=False):
        self.segment.supply(0, self.segment.written + samples, done)

    def passes(self, ms):
        for _ in range(0, ms, 5):
            while (frames := self.playout.pop(self.now)) is not None:
                self.heard.append(frames.copy())
            self.now += 5 * MS

    @property
    def pcm(self):
        return np.concatenate(self.heard)


def steps(pcm):
    """Between a sample and the next, the first and the last but those of the segment itself."""
    return np.abs(np.diff(pcm.astype(int)))


@pytest.mark.parametrize("samples", [800, 801, 930, 959], ids=lambda n: f"{n % 160} samples over")
def test_a_voice_that_is_late_falls_silent_and_comes_back_without_a_click(samples):
    late = Late()
    late.write(samples)
    late.passes(400)
    late.write(800, done=True)
    late.passes(400)
    assert late.playout.underruns == 1
    assert steps(late.pcm[:-800]).max() <= STEP
    assert (late.pcm == LEVEL).sum() >= samples + 800 - 2 * RATE * FADE_MS // 1000


def test_the_receipt_counts_the_pauses_of_a_late_voice():
    call = Conversation(MENU, ahead=False)
    mouth, epoch, k, _ = call.studio.tts.asked.pop()
    for written in (RATE // 2, RATE, 3 * RATE // 2):                # half a second of speech, every second
        mouth.on_speech(epoch, k, 0, written, written == 3 * RATE // 2)
        call.silence(1000)
    call.listens()
    assert call.receipts[0]["underruns"] == call.server.metrics.counters["underruns", ()] == 2
    call.speech(600, "one")
    call.silence(600)
    call.studio.tts.deliver()
    call.listens()
    assert call.receipts[1]["agent"] == "Goodbye." and call.receipts[1]["underruns"] == 0


def test_a_voice_that_is_in_time_is_played_as_it_is():
    late = Late()
    for _ in range(10):
        late.write(160)
        late.passes(20)
    late.write(160, done=True)
    late.passes(100)
    assert late.playout.underruns == 0
    assert (late.pcm == LEVEL).all() and len(late.pcm) == 11 * 160


def test_a_listener_who_has_some_speech_left_hears_no_gap():
    late = Late(lead_ms=200)
    late.write(3200)
    late.passes(250)            # 200 ms are on their way
    late.write(1600)
    late.passes(100)
    assert late.playout.underruns == 0
    assert (late.pcm == LEVEL).all()


def test_the_end_of_a_segment_is_the_voices_own():
    late = Late()
    late.write(500, done=True)
    late.passes(400)
    assert late.pcm.tolist() == [LEVEL] * 500 + [0] * 140
    assert late.playout.underruns == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(40, 700), st.integers(0, 120)), min_size=1, max_size=12),
       st.sampled_from([0, 60, 200]), st.sampled_from([20, 100]))
def test_whatever_comes_whenever_there_is_no_click_and_no_word_is_lost(pieces, lead_ms, message_ms):
    late = Late(lead_ms, message_ms)
    for samples, wait in pieces:
        late.write(samples)
        late.passes(wait)
    late.write(0, done=True)
    late.passes(3000)
    total = sum(samples for samples, _ in pieces)
    assert np.count_nonzero(late.pcm) >= total - 2 * (late.playout.underruns + 1)
    padding = 160 * (message_ms // 20)
    assert steps(late.pcm[:max(1, len(late.pcm) - padding - total % 160)]).max(initial=0) <= STEP
