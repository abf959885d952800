"""The agent that a client of the Realtime protocol leads: how long it waits, and what does not interrupt it."""
import pytest

from opusagent.calls.realtime.assistant import LEAST, waits_of
from opusagent.config import Turns
from opusagent.flow import FREE, INCOMPLETE
from opusagent.speech.turns import Settings, TurnTaking

SERVER = {"type": "server_vad", "silence_duration_ms": 500, "idle_timeout_ms": None}


def waited(detector, pauses_ms, judgement=FREE, adapt=True, sounds=None):
    """Ms of silence that end a turn of a caller who has paused like that."""
    turns = TurnTaking(8000, waits_of(detector), Settings.of(Turns(adapt=adapt)))
    for ms in pauses_ms:
        turns.pace.paused(ms)
    turns.judge(judgement)
    if sounds is not None:
        turns.sway(sounds)
    return turns.wait / 8


@pytest.mark.parametrize("detector, judgement, usual", [
    (SERVER, FREE, 500), (SERVER | {"silence_duration_ms": 200}, FREE, 200),
    ({"type": "semantic_vad", "eagerness": "auto"}, FREE, 600),
    ({"type": "semantic_vad", "eagerness": "high"}, FREE, 400),
    ({"type": "semantic_vad", "eagerness": "high"}, INCOMPLETE, 2000),
])
def test_its_waits_follow_the_caller_as_those_of_a_flow_do(detector, judgement, usual):
    assert waited(detector, (), judgement) == usual                         # until something is known of the caller
    assert waited(detector, [900] * 8, judgement) == 1.5 * usual
    assert waited(detector, [60] * 12, judgement) == 0.75 * usual
    assert waited(detector, [900] * 8, judgement, adapt=False) == usual


def test_the_turn_model_shortens_and_lengthens_them_within_bounds():
    assert waited(SERVER, (), sounds=1.0) == 375 and waited(SERVER, (), sounds=0.0) == 700
    assert waited(SERVER, [60] * 12, sounds=1.0) == 281 >= LEAST * 500


def test_a_client_that_ends_its_turns_itself_is_waited_for():
    assert waits_of(None).free > 3_600_000
