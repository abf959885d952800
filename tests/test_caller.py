"""The simulated caller on virtual time: an agent that is known to the sample, and what the caller makes of it."""
from dataclasses import replace

import numpy as np
import pytest

from opusagent import ConfigError
from opusagent.client.caller import OVER, PATIENCE_MS, Ear, Say, Script

RATE = 8000
MS = RATE // 1000
FRAME = 20 * MS


def tone(ms, amplitude=8000):
    return (amplitude * np.sin(np.arange(ms * MS) * 0.7)).astype(np.int16)


def silence(ms):
    return np.zeros(ms * MS, np.int16)


def say(ms=400, name="words", lead_ms=0, tail_ms=0, **more):
    return Say.of(np.concatenate((silence(lead_ms), tone(ms), silence(tail_ms))), RATE, name, **more)


class Conversation:
    """A script and an ear on one clock, with an agent that says what it is told at given milliseconds."""

    def __init__(self, *says):
        self.ear = Ear(RATE)
        self.script = Script(list(says), self.ear)
        self.events = []                # (ms, function)

    def at(self, ms, what, *arguments):
        self.events.append((ms * MS, what, arguments))
        return self

    def run(self, ms):
        self.events.sort(key=lambda event: event[0])
        for position in range(0, ms * MS, FRAME):
            while self.events and self.events[0][0] <= position:
                when, what, arguments = self.events.pop(0)
                what(when, *arguments)
            self.script.frame(position, FRAME)
            if self.script.phase is OVER:
                break
        else:
            self.script.finish(ms * MS)
        return self

    @property
    def turns(self):
        return self.script.turns


def test_the_answer_is_measured_from_voice_to_voice():
    call = Conversation(say(400, lead_ms=60, tail_ms=200))
    call.at(0, call.ear.hear, tone(1000))                           # the greeting ends at 1000
    spoken = 1300 + 60                                              # heard as finished after 300 ms
    call.at(spoken + 400 + 150, call.ear.hear, np.concatenate((silence(50), tone(500))))
    turn, = call.run(6000).turns
    assert turn.spoke_from == spoken * MS
    assert turn.spoke_to == (spoken + 400) * MS
    assert turn.gap_ms == 200
    assert turn.answered_to == (spoken + 400 + 200 + 500) * MS
    assert turn.stopped is None and turn.reaction_ms is None


def test_leading_silence_of_an_answer_is_waiting():
    call = Conversation(say(400))
    call.at(0, call.ear.hear, tone(200)).at(1000, call.ear.hear, np.concatenate((silence(300), tone(300))))
    turn, = call.run(4000).turns
    assert turn.gap_ms == 1300 - 900


def test_quiet_noise_before_an_answer_is_not_voice():
    call = Conversation(say(400))
    call.at(0, call.ear.hear, tone(200)).at(1000, call.ear.hear, np.concatenate((tone(300, 300), tone(300, 20000))))
    turn, = call.run(4000).turns
    assert turn.gap_ms == 1300 - 900                                # 300 is above -45 dBFS, but 36 dB below the peak


def test_an_answer_begins_with_its_first_words_however_loud_the_later_ones_are():
    call = Conversation(say(400))
    answer = np.concatenate((tone(300, 300), silence(200), tone(300, 20000)))
    call.at(0, call.ear.hear, tone(200)).at(1000, call.ear.hear, answer)
    turn, = call.run(4000).turns
    assert turn.gap_ms == 1000 - 900


def test_audio_is_heard_in_the_order_it_came_never_before_it_came():
    ear = Ear(RATE)
    ear.hear(0, tone(20))
    ear.hear(5 * MS, tone(20))                                      # early: queued
    ear.hear(100 * MS, tone(20))                                    # late: a gap
    heard = ear.tape.read()
    assert len(heard) == 120 * MS
    assert np.array_equal(heard[20 * MS:40 * MS], tone(20))
    assert not heard[40 * MS:100 * MS].any()


def test_marks_are_told_when_what_came_before_them_has_been_heard():
    ear = Ear(RATE)
    ear.mark(0, "at once")
    ear.hear(0, tone(100))
    ear.mark(0, "after")
    assert ear.reached(99 * MS) == ["at once"]
    assert ear.reached(100 * MS) == ["after"]
    assert ear.reached(1000 * MS) == []


def test_clear_drops_what_was_not_heard_and_tells_every_mark():
    ear = Ear(RATE)
    ear.hear(0, tone(500))
    ear.mark(0, "one")
    ear.hear(0, tone(500))
    ear.mark(0, "two")
    assert ear.clear(200 * MS) == ["one", "two"]
    assert ear.end == ear.tape.end == 200 * MS
    assert ear.speech == [[0, 200 * MS]]
    ear.hear(210 * MS, tone(100))                                   # however close, it is a new stretch
    assert ear.speech[1] == [210 * MS, 310 * MS]
    assert not ear.tape.read()[200 * MS:210 * MS].any()


def test_barge_in_is_measured_to_the_clear_and_the_answer_after_it():
    call = Conversation(say(600, barge_in_ms=500))
    call.at(100, call.ear.hear, tone(3000))                         # begins to be interrupted at 600
    call.at(760, lambda now: call.ear.clear(now)).at(1350, call.ear.hear, tone(300))
    turn, = call.run(5000).turns
    assert turn.spoke_from == 600 * MS
    assert turn.reaction_ms == 160
    assert turn.gap_ms == 1350 - 1200


def test_an_agent_that_falls_silent_without_a_clear_has_reacted_too():
    call = Conversation(say(600, barge_in_ms=500))
    for ms in range(100, 800, 20):
        call.at(ms, call.ear.hear, tone(20))                        # paced, the last at 780
    call.at(1400, call.ear.hear, tone(300))
    turn, = call.run(5000).turns
    assert turn.reaction_ms == 200 and turn.gap_ms == 200


def test_an_agent_that_talks_on_has_not_answered():
    call = Conversation(say(600, barge_in_ms=500))
    call.at(100, call.ear.hear, tone(4000))
    turn, = call.run(PATIENCE_MS + 5000).turns
    assert turn.reaction_ms == 4100 - 600
    assert turn.gap_ms is None and turn.gave_up


def test_an_agent_that_does_not_wait_has_a_negative_gap():
    call = Conversation(say(1000))
    call.at(0, call.ear.hear, tone(200)).at(1300, call.ear.hear, tone(1000))
    turn, = call.run(5000).turns
    assert turn.gap_ms == 1300 - 1500


def test_what_the_caller_was_late_by_is_not_the_agents():
    call = Conversation(say(600, barge_in_ms=500))
    call.at(100, call.ear.hear, tone(3000))
    call.at(760, lambda now: call.ear.clear(now)).at(1350, call.ear.hear, tone(300))
    turn = replace(call.run(5000).turns[0], late_from=10 * MS, late_to=30 * MS)
    assert turn.reaction_ms == 160 - 10
    assert turn.gap_ms == 150 - 30


def test_turns_follow_one_another_when_the_agent_has_finished():
    call = Conversation(say(400, "one"), say(400, "two"))
    call.at(0, call.ear.hear, tone(500)).at(1400, call.ear.hear, tone(500))     # one: 800-1200, two: 2200-2600
    call.at(2700, call.ear.hear, tone(300))
    one, two = call.run(9000).turns
    assert (one.name, one.gap_ms) == ("one", 200)
    assert (two.name, two.gap_ms) == ("two", 100)
    assert two.spoke_from == 2200 * MS
    assert call.script.phase is OVER


def test_a_pause_inside_an_answer_is_not_its_end():
    call = Conversation(say(400, "one"), say(400, "two"))
    call.at(0, call.ear.hear, tone(500)).at(1400, call.ear.hear, np.concatenate((tone(500), silence(800), tone(500))))
    _, two = call.run(9000).turns
    assert two.spoke_from == (1400 + 1800 + 300) * MS


def test_a_silent_agent_is_waited_for_and_then_spoken_to():
    call = Conversation(say(400))
    turn, = call.run(3 * PATIENCE_MS).turns
    assert turn.spoke_from == PATIENCE_MS * MS
    assert turn.gap_ms is None and turn.gave_up


def test_a_call_that_ends_before_the_answer_was_not_given_up():
    call = Conversation(say(400))
    call.at(0, call.ear.hear, tone(200))
    turn, = call.run(1000).turns
    assert turn.gap_ms is None and not turn.gave_up


def test_what_was_spoken_is_on_the_tape_at_its_place():
    call = Conversation(say(400))
    call.at(0, call.ear.hear, tone(200))
    call.run(2000)
    spoken = call.script.tape.read()
    assert len(spoken) == 2000 * MS
    assert np.array_equal(spoken[500 * MS:900 * MS], tone(400))
    assert not spoken[:500 * MS].any() and not spoken[900 * MS:].any()


def test_a_turn_without_a_voice_is_refused():
    with pytest.raises(ConfigError, match="hush holds nothing louder than -45 dBFS"):
        Say.of(silence(1000), RATE, "hush")

