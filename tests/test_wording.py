"""Where words lie in speech: as the voice says, or worked out from the sound."""
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opusagent import ConfigError
from opusagent.speech.playout import Segment
from opusagent.speech.wording import effort, estimated, proportional

BENCH = Path(__file__).parent.parent / "bench"
RATE = 8000


def sound(*parts):
    """Ms of a tone, and of silence where it is negative."""
    pieces = [np.zeros(-ms * 8, np.int16) if ms < 0 else (6000 * np.sin(np.arange(ms * 8) / 4)).astype(np.int16)
              for ms in parts]
    return np.concatenate(pieces)


def test_a_pause_belongs_to_the_punctuation():
    ends = estimated("No. Tomorrow afternoon", sound(300, -300, 1400), RATE) / 8
    assert ends[0] == pytest.approx(300, abs=20) and ends[-1] == pytest.approx(2000, abs=20)


def test_silence_is_no_part_of_a_word():
    ends = estimated("two two", sound(400, -400, 400), RATE) / 8
    assert ends[0] == pytest.approx(400, abs=20)            # though no punctuation asks for the pause


def test_long_words_take_longer():
    ends = estimated("a satisfactory solution", sound(2000), RATE)
    assert ends[0] < 400 * 8 and 8000 < ends[1] < 1600 * 8
    assert effort("unfortunately") > 2 * effort("not") and effort("42") > effort("four")


def test_what_is_not_spoken_yet_is_reckoned_with():
    half = estimated("one two three four", sound(500), RATE, length=1000 * 8)
    assert list(half > 500 * 8) == [False, False, True, True]


@given(st.text(max_size=60), st.lists(st.integers(-300, 600).filter(bool), max_size=6), st.integers(0, 40_000))
def test_there_is_an_end_for_every_word_in_order_and_within(text, parts, length):
    pcm = sound(*parts) if parts else np.zeros(0, np.int16)
    ends = estimated(text, pcm, RATE, length)
    assert len(ends) == len(text.split()) == len(proportional(text, length))
    assert all(np.diff(ends) >= 0) and all((0 <= ends) & (ends <= max(length, len(pcm))))


def test_what_the_voice_says_is_believed():
    segment = Segment("one two", sound(900), ends=(800, 7200))
    assert list(segment.words(RATE)) == [800, 7200]


def test_a_segment_that_has_lapped_its_buffer_is_cut_in_proportion():
    segment = Segment("one two three four", np.zeros(1000, np.int16), growing=True)
    segment.supply(500, 4500, True)
    assert list(segment.words(RATE)) == [1000, 2000, 3000, 4000]


def test_it_is_nearer_to_the_voice_s_own_words_than_a_cut_in_proportion():
    sys.path.insert(0, str(BENCH))
    try:
        import words
        found = words.measured(["rms", "kal"])
    except ConfigError as error:
        pytest.skip(str(error))
    finally:
        sys.path.remove(str(BENCH))
    guess, proportion = found["from the sound"], found["in proportion"]
    assert guess["right"] > 0.65 > 0.55 > proportion["right"] and guess["within_one"] > 0.95
    assert guess["error_p95_ms"] < 0.75 * proportion["error_p95_ms"]
