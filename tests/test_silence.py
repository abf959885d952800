"""Somebody always owns the silence, and it is known who."""
import pytest
from conversation import Conversation
from opusagent.calls import silence
from opusagent.speech.turns import REPLYING
from test_call import FLOW


def dead_air(call):
    return {dict(labels)["whose"]: count for (name, labels), count in call.server.metrics.counters.items()
            if name == "dead_air"}


def test_who_has_to_speak():
    call = Conversation(FLOW, ahead=False)
    assert silence.whose(call.call) == "voice"
    call.studio.tts.deliver()
    assert silence.whose(call.call) == "agent"
    call.listens()
    assert silence.whose(call.call) == "caller" and call.call.record()["floor"] == "caller"
    call.studio.stt.silent = True
    call.speech(400, "ten of clubs")
    call.silence(800)
    assert silence.whose(call.call) == "recogniser"
    call.call.lost(1000, "")
    assert call.call.record()["floor"] == ""


def test_a_flow_that_keeps_its_times_is_never_told_of():
    call = Conversation(FLOW)
    for _ in range(4):
        call.silence(3100)
    assert dead_air(call) == {}


@pytest.mark.parametrize("ms, times", [(3000, 0), (7000, 1), (20_000, 3)])
def test_a_silence_that_nobody_ends_is_told_once_each_time(ms, times, caplog):
    call = Conversation(FLOW)
    call.listens()
    call.call.turns.state = REPLYING            # as if a reply had been lost
    call.silence(ms)
    assert dead_air(call).get("agent", 0) == times
    assert sum("for the agent to do so" in line.getMessage() for line in caplog.records) == times


def test_a_pause_of_the_platforms_is_nobodys_fault():
    call = Conversation(FLOW)
    call.listens()
    call.call.turns.state = REPLYING
    call.call.excused = float("inf")
    call.silence(15_000)
    assert dead_air(call) == {}
