"""The waits follow the caller's own pauses, slowly and within bounds."""
from hypothesis import given
from hypothesis import strategies as st

from opusagent.flow import COMPLETE, FREE, INCOMPLETE, Waits
from opusagent.speech.pace import Pace
from opusagent.speech.turns import END_OF_TURN, Settings, TurnTaking

WAITS = Waits(complete=140, free=400, incomplete=1200)
WINDOW = 160                    # samples at 8 kHz, 20 ms


def after(pauses, **settings):
    """The silence that ends a turn of free speech, ms, once the caller has paused so in mid-utterance."""
    turns = TurnTaking(8000, WAITS, Settings(**settings))
    said = []

    def windows(score, ms):
        for _ in range(ms // 20):
            said.extend(event.kind for event in turns.push(score, WINDOW))

    windows(1.0, 400)
    for ms in pauses:
        windows(0.0, ms)
        windows(1.0, 400)
    silence = 0
    while END_OF_TURN not in said:
        windows(0.0, 20)
        silence += 20
    return silence


def test_who_pauses_long_is_waited_for_and_who_does_not_is_answered_sooner():
    usual = after([], pace_low=0.75, pace_high=1.5)
    assert usual == after([120] * 8) == after([380] * 8) == 400
    assert after([120] * 8, pace_low=0.75, pace_high=1.5) == 300
    assert 420 < after([380] * 3, pace_low=0.75, pace_high=1.5) <= 600
    assert abs(after([240] * 2, pace_low=0.75, pace_high=1.5) - usual) <= 60


def test_a_complete_answer_is_complete_at_any_pace():
    assert [WAITS.after(judgement, 1.5) for judgement in (COMPLETE, FREE, INCOMPLETE)] == [140, 600, 1800]
    assert [WAITS.after(judgement, 0.3) for judgement in (COMPLETE, FREE, INCOMPLETE)] == [140, 140, 360]


@given(st.lists(st.floats(0, 5_000)), st.floats(0.1, 1), st.floats(1, 3))
def test_it_never_leaves_its_bounds(pauses, low, high):
    pace = Pace(low, high)
    assert pace.factor == 1
    for ms in pauses:
        pace.paused(ms)
        assert low <= pace.factor <= high
