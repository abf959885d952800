"""Conversations as scripts: what is said, what is answered, who is interrupted, and what is left behind."""
import base64
import json
from pathlib import Path

import numpy as np
import pytest

from conversation import MS, Conversation
from opusagent._fastpath import ulaw_decode
from opusagent.calls.outbound import CODES

FLOW = """
start = "card"
[waits]
complete = 120
incomplete = 700
free = 350
no_input = 3000
[states.card]
say = "Which card do you have?"
on = [{ phrases = ["ten of clubs", "seven of clubs"], fact = "card", go = "sure" }, { dtmf = "9", go = "bye" }]
silence = { say = ["Hello?", "Are you there?"], go = "bye" }
no_match = { say = ["Which card, please?"] }
[states.sure]
say = "The {card}. Are you sure of that, or would you like to look at it once more before we go on?"
on = [{ yes = true, go = "bye" }, { no = true, go = "card" }]
[states.bye]
say = "Thank you, goodbye."
end = true
"""


def test_a_conversation_from_greeting_to_goodbye():
    call = Conversation(FLOW)
    call.listens()
    call.says("ten of clubs")
    call.says("yes")
    assert call.agent_says == ["Which card do you have?",
                               "The ten of clubs. Are you sure of that, or would you like to look at it once more "
                               "before we go on?", "Thank you, goodbye."]
    assert call.connection.closed[0] == 1000 and call.call.done
    assert call.call.dialogue.facts["card"] == "ten of clubs"


def test_the_reply_comes_after_the_short_wait_of_a_complete_answer():
    call = Conversation(FLOW)
    call.listens()
    call.says("ten of clubs")
    waits = call.receipts[1]["waits"]
    assert 120 <= waits["endpointing"] < 200 and sum(waits.values()) - waits["endpointing"] < 10


def test_a_beginning_of_an_answer_is_waited_for_longer():
    call = Conversation(FLOW)
    call.listens()
    call.speech(400, "ten of")
    call.silence(400)
    assert call.state == "card" and len(call.receipts) == 1
    call.speech(300, "ten of clubs")
    call.silence(300)
    assert call.state == "sure"


def test_no_answer_is_asked_for_again_and_then_given_up():
    call = Conversation(FLOW)
    for _ in range(3):
        call.listens()
        call.silence(3100)
    call.listens()
    assert call.agent_says == ["Which card do you have?", "Hello?", "Are you there?", "Thank you, goodbye."]


def test_what_is_no_answer_is_asked_for_again():
    call = Conversation(FLOW)
    call.listens()
    call.says("")
    assert call.agent_says[-1] == "Which card, please?" and call.state == "card"


def test_barge_in_stops_the_agent_within_a_frame_and_clears_what_the_platform_holds():
    call = Conversation(FLOW)
    call.listens()
    call.speech(600, "ten of clubs")
    call.silence(600)                       # the agent has said a few words of its reply
    assert call.call.mouth.turn is not None and call.count("clear") == 0
    call.speech(400, "no")
    assert call.count("clear") == 1
    sent = call.count("media")
    call.speech(100, "no")
    assert call.count("media") == sent      # the agent is silent
    cut = call.receipts[-1]
    assert cut["stopped_by"] == "barge-in"
    assert "The ten of clubs. Are you sure of that, or would you like to look".startswith(cut["agent"])
    assert len(cut["agent"].split()) >= 3
    call.silence(400)
    assert call.state == "card"


def test_history_keeps_what_was_heard():
    call = Conversation(FLOW)
    call.listens()
    call.speech(600, "ten of clubs")
    call.silence(600)
    call.speech(400, "no")
    heard = call.call.dialogue.history[-1].agent
    assert heard and len(heard.split()) < 12
    assert heard == call.receipts[-1]["agent"][:100]


def test_a_cough_does_not_stop_the_agent():
    call = Conversation(FLOW)
    call.listens()
    call.speech(600, "ten of clubs")
    call.silence(500)
    call.speech(60)
    call.silence(200)
    assert call.count("clear") == 0 and call.call.mouth.turn is not None


def test_keys_answer_at_once():
    call = Conversation(FLOW)
    call.silence(100)
    call.receive(b'{"event":"dtmf","dtmf":{"digit":"9"}}')
    assert call.state == "bye" and call.count("clear") == 1


def pressed(call, keys):
    for key in keys:
        call.receive(b'{"event":"dtmf","dtmf":{"digit":"%s"}}' % key.encode())
        call.silence(100)


@pytest.mark.parametrize("ends", ["end = true", 'transfer = "desk"\n[transfers]\ndesk = "+4930123456"'])
def test_a_key_stops_nothing_that_nobody_may_interrupt(ends):
    call = Conversation(FLOW.replace("end = true", ends))
    pressed(call, "911")
    call.listens()
    assert call.agent_says[1] == "Thank you, goodbye." and call.receipts[1]["stopped_by"] == "" and call.call.done
    if "transfer" in ends:                      # nobody may be called from here, and there is nothing to say again
        assert call.agent_says[2:] == ["I am sorry, I have to end this call here. Goodbye."]


def test_keys_that_are_no_answer_stop_nothing_where_only_answers_do():
    call = Conversation(FLOW.replace("[waits]", 'interrupt = "answers"\n[waits]'))
    pressed(call, "5")
    assert call.call.mouth.turn is not None and not call.call.keys
    pressed(call, "9")
    assert call.state == "bye" and call.receipts[0]["stopped_by"] == "keys"


PIN = FLOW.replace('{ dtmf = "9", go = "bye" }', '{ digits = { min = 2, max = 4 }, fact = "card", go = "sure" }')


def test_a_number_that_is_complete_may_be_ended_all_the_same():
    """People press # because other lines want it."""
    call = Conversation(PIN)
    pressed(call, "1234#")
    call.listens()
    assert call.state == "sure" and call.agent_says[1].startswith("The one two three four.")
    assert [receipt["kind"] for receipt in call.receipts] == ["begin", "dtmf"]
    again = Conversation(PIN)
    pressed(again, "12#")
    assert again.state == "sure" and again.call.end_by == 0
    pressed(again, "#")                         # and this one is an answer of its own
    again.silence(3000)
    assert again.receipts[-2]["kind"] == "no_match" or again.call.ledger.trace.kind == "no_match"


def test_a_key_that_the_next_state_waits_for_ends_nothing():
    call = Conversation(PIN.replace("{ no = true, go", '{ dtmf = "#", go'))
    pressed(call, "1234#")
    assert call.state == "card"


def test_a_recogniser_that_never_answers_is_not_dead_air():
    call = Conversation(FLOW)
    call.listens()
    call.studio.stt.silent = True
    call.speech(600)
    call.silence(3000)
    call.listens()
    assert "something went wrong" in call.agent_says[-1] and call.state == "card"


def test_what_is_late_has_no_effect():
    call = Conversation(FLOW)
    call.listens()
    call.speech(400, "ten of clubs")
    old = call.call.ear.utterance
    call.silence(400)
    call.listens()
    call.call.ear.on_final(old, "seven of clubs", 1.0)
    call.call.ear.on_partial(old - 1, "seven of clubs")
    call.call.mouth.on_speech(call.call.mouth.epoch - 1, 0, 0, 100, True)
    assert call.state == "sure" and call.call.dialogue.facts["card"] == "ten of clubs"


def test_the_sample_clock_goes_on_without_media():
    call = Conversation(FLOW)
    call.listens()
    before = call.call.slot.written
    call.passes(3400)                       # hold: nothing comes
    call.listens()
    assert call.call.slot.written - before >= 3 * 8000
    assert "Hello?" in call.agent_says


def test_a_call_that_ends_in_mid_word_leaves_nothing_behind():
    call = Conversation(FLOW)
    call.silence(100)
    call.call.lost(1006, "")
    assert call.studio.free == [0] and not call.server.calls
    assert call.studio.stt.log[-1] == ("forget",)
    call.call.lost(1006, "")
    assert call.studio.free == [0]


def test_segments_are_played_in_order_whatever_order_the_voice_delivers_them_in():
    call = Conversation(FLOW.replace("Which card do you have?", "One one. Two two. Three three."), ahead=False)
    assert [text for *_, text in call.studio.tts.asked] == ["One one.", "Two two.", "Three three."]
    call.studio.tts.deliver(2)
    call.studio.tts.deliver(1)
    call.silence(100)
    assert call.count("media") == 0         # nothing before its turn
    call.studio.tts.deliver(0)
    call.listens()
    assert call.agent_says == ["One one. Two two. Three three."]


def test_what_a_voice_has_no_sound_for_was_not_heard():
    call = Conversation(FLOW.replace("Which card do you have?", "One one. \u4f60\u597d. Three three."), ahead=False)
    for sounds in (True, False, True):
        call.studio.tts.deliver(sounds=sounds)
    call.studio.ahead = True
    call.listens()
    assert call.agent_says == ["One one. Three three.", "I am sorry, something went wrong. Please say that again."]
    assert call.call.dialogue.history[0].agent == "One one. Three three."


def test_more_segments_than_buffers_follow_as_buffers_get_free():
    text = " ".join(f"Number {word}." for word in "one two three four five six seven".split())
    call = Conversation(FLOW.replace("Which card do you have?", text), ahead=False)
    assert len(call.studio.tts.asked) == 4
    while call.call.mouth.turn is not None:
        while call.studio.tts.asked:
            call.studio.tts.deliver()
        call.silence(20)
    assert call.agent_says == [text]


def test_a_slow_peer_gets_the_newest_audio_not_the_oldest():
    call = Conversation(FLOW)
    sent = call.count("media")
    call.connection.congested = True
    call.silence(140)
    assert call.count("media") == sent and len(call.call.mouth.out.late) == 5 and call.call.mouth.out.dropped > 1
    call.connection.congested = False
    call.call.drained()
    assert call.count("media") == sent + 5


@pytest.mark.parametrize("message", [b'{"event":"media","media":{"payload":"//8="}}',
                                     b'{"event":"dtmf","dtmf":{"digit":"1"}}',
                                     b'{"event":"mark","mark":{"name":"0:1"}}', b'{"event":"stop","stop":{}}'])
def test_before_start_nothing_happens(message):
    call = Conversation(FLOW, begin=False)
    call.receive(message)
    assert call.call.slot is None and call.connection.sent == []


def test_the_agent_is_fed_at_most_its_lead_ahead():
    call = Conversation(FLOW)
    assert call.count("media") == 6         # 100 ms ahead, and the first frame itself
    call.passes(20)
    assert call.count("media") == 7


def test_a_state_that_waits_for_keys_only_does_not_answer_a_voice():
    call = Conversation("""
start = "menu"
[states.menu]
say = "Press one."
on = [{ dtmf = "1", go = "bye" }]
[states.bye]
say = "Goodbye."
end = true
""")
    call.listens()
    call.speech(600, "anything")
    call.silence(1500)
    assert call.agent_says == ["Press one."] and call.state == "menu" and not call.studio.stt.log
    call.receive(b'{"event":"dtmf","dtmf":{"digit":"1"}}')
    call.listens()
    assert call.agent_says == ["Press one.", "Goodbye."]


def test_a_caller_who_goes_on_before_anything_was_heard_is_heard_as_a_whole():
    """The turn was ended in a pause; the reply is not rendered yet.  What was decided is taken back."""
    call = Conversation(FLOW, ahead=False)
    call.studio.tts.deliver()
    call.listens()
    call.speech(400, "ten of clubs")
    call.silence(300)                       # decided: the state moved on, the voice is still at work
    assert call.state == "sure" and call.call.mouth.turn is not None and not call.call.mouth.audible
    call.speech(400, "seven of clubs")
    listens = [entry for entry in call.studio.stt.log if entry[0] == "listen"]
    assert listens[-1] == listens[-2]       # from where the utterance began
    assert call.state == "card" and call.call.dialogue.facts == {} and call.count("clear") == 0
    call.silence(300)
    call.studio.tts.deliver()
    assert call.state == "sure" and call.call.dialogue.facts["card"] == "seven of clubs"


def levels(call):
    """The loudest sample of each message to the platform."""

    frames = [json.loads(message)["media"]["payload"] for _, message in call.connection.sent if b'"media"' in message]
    pcm = np.zeros(160, np.int16)
    return [int(abs(pcm).max()) for frame in frames if ulaw_decode(base64.b64decode(frame), pcm)]


def test_a_sound_of_the_callers_lowers_the_agent_and_nothing_is_lost_when_it_was_nothing():
    call = Conversation(FLOW)
    call.listens()
    call.speech(600, "ten of clubs")
    call.silence(500)
    before = call.count("media")
    call.speech(120)                        # a cough
    call.silence(400)
    call.listens()
    assert call.count("clear") == 0
    assert call.agent_says[-1].endswith("before we go on?") and call.receipts[-1]["stopped_by"] == ""
    heard = [level for level in levels(call)[before:] if level]
    assert min(heard) < 1200 and heard[-2] > 3500   # the tone peaks at 4000; lower by 14 dB, then as before
    ducked = heard.index(next(level for level in heard if level < 3000))
    assert ducked <= 8                      # within 160 ms: what the detector needs, not more


def test_what_is_due_says_when_a_tick_has_something_to_do():
    """Ticked only when something is due, a call sends and decides the same at the same times as ticked all the time."""
    def held(eager):
        call = Conversation(FLOW)
        call.eager, sent = eager, call.connection.sent
        times = [(0, message) for _, message in sent]

        def send(opcode, message):
            times.append((call.server.now, bytes(message)))
            sent.append((opcode, bytes(message)))
            return True

        call.connection.send = send
        call.speech(300, "ten of")
        call.passes(400)                        # no media comes
        call.speech(600, "ten of clubs")
        call.silence(900)
        call.speech(400, "no")
        call.silence(2000)
        call.receive(b'{"event":"dtmf","dtmf":{"digit":"9"}}')
        call.listens()
        return times, call.receipts, call.connection.closed

    assert held(eager=False) == held(eager=True)


def interrupted(call, words, ms):
    """The caller says that over the agent's reply: was the agent stopped?"""
    call.listens()
    call.speech(600, "ten of clubs")
    call.silence(500)
    call.speech(ms, words)
    stopped = call.count("clear") == 1
    call.silence(1200)
    call.listens()
    return stopped


def test_a_backchannel_lowers_the_agent_and_does_not_stop_it():
    call = Conversation(FLOW)
    assert not interrupted(call, "mm hm", 500)
    assert call.agent_says[-1].endswith("before we go on?") and call.state == "sure"


def test_the_level_is_back_when_a_backchannel_is_known_though_the_voice_goes_on():
    """Whoever says it: a voice that goes on past its "mm-hm", or a line with noise on it."""
    call = Conversation(FLOW)
    call.listens()
    call.speech(600, "ten of clubs")
    call.silence(500)
    call.studio.stt.silent = True
    call.speech(300)
    playout, ear = call.call.mouth.playout, call.call.ear
    assert playout._gain == pytest.approx(call.call.mouth.lowered)
    ear.on_partial(ear.utterance, "mm hm")
    call.speech(100)
    assert playout._gain == 1.0 and ear.overhearing
    ear.on_partial(ear.utterance, "mm hm no")
    assert call.count("clear") == 1 and call.call.mouth.turn is None


def test_words_stop_the_agent_before_mere_speech_does():
    assert interrupted(Conversation(FLOW), "no", 260)
    assert not interrupted(Conversation(FLOW), "", 260)
    assert interrupted(Conversation(FLOW), "", 500)


def test_a_recogniser_that_fails_while_the_agent_speaks_costs_nothing():
    call = Conversation(FLOW)
    call.listens()
    call.speech(600, "ten of clubs")
    call.silence(500)
    call.speech(120, "")
    call.call.ear.on_failure(call.call.ear.utterance, "it died")
    call.silence(200)
    call.listens()
    assert call.agent_says[-1].endswith("before we go on?")


def test_what_is_said_as_the_agent_ends_is_an_answer():
    call = Conversation(FLOW)
    call.listens()
    call.speech(600, "ten of clubs")
    while call.call.mouth.turn is None or call.call.mouth.playout.queue:
        call.silence(20)
    call.speech(400, "yes")
    call.silence(1000)
    call.listens()
    assert call.state == "bye" and len([entry for entry in call.studio.stt.log if entry[0] == "listen"]) == 2


def test_keys_that_something_else_has_come_after_are_forgotten():
    call = Conversation(FLOW)
    call.receive(b'{"event":"dtmf","dtmf":{"digit":"5"}}')              # no answer, and another may follow
    call.speech(600, "ten of clubs")
    call.silence(400)
    assert call.state == "sure" and not call.call.keys and not call.call.keys_by
    call.listens()
    assert [receipt["kind"] for receipt in call.receipts] == ["begin", "answer"]
    call.says("yes")
    assert call.state == "bye"


def test_what_the_platform_complains_of_is_counted_and_logged_once_for_each_code(caplog):
    call = Conversation(FLOW, "telnyx", begin=False)
    call.receive(b'{"event":"start","stream_id":"s","start":{"call_control_id":"c"}}')
    for code in (100003, 100003, *range(30)):
        call.receive(b'{"event":"error","payload":{"code":%d,"title":"malformed_frame"}}' % code)
    lines = [record.message for record in caplog.records if "telnyx says" in record.message]
    assert lines[0] == "call c: telnyx says (100003): malformed_frame" and len(lines) == CODES
    assert call.server.metrics.counters["platform_errors", (("platform", "telnyx"),)] == 32


def test_a_worker_that_stood_still_for_long_lets_its_calls_go_on():
    call = Conversation(FLOW)
    call.silence(200)
    before = call.call.slot.written
    call.server.now += 30_000 * MS
    call.call.tick(call.server.now)
    assert call.call.slot.written - before == 10_240 * 8 and not call.connection.faults and not call.connection.closed
    call.silence(200)


def test_a_message_is_left_when_a_machine_has_said_its_greeting():
    """As the manual has it, pauses and all; a machine that only beeps gets it, too."""
    manual = (Path(__file__).parent.parent / "docs/flows.md").read_text()
    flow = manual.partition("## When a machine answers")[2].partition("```toml")[2].partition("```")[0]
    flow = 'start = "hello"\n' + flow + '[states.hello]\nsay = "Hello?"\non = [{ free = true, go = "message" }]\n'
    message = "This is the surgery. Please call us back."
    call = Conversation(flow)
    call.call.answered_by("machine")
    for words in ("you have reached nobody", "please leave a message"):
        call.speech(1500, words)
        assert call.state == "greeting" and message not in call.agent_says
        call.silence(900)
    call.silence(2500)
    assert call.agent_says[-1] == message and call.state == "message"
    quiet = Conversation(flow)
    quiet.call.answered_by("machine")
    quiet.silence(8000)
    assert quiet.agent_says[-1] == message and quiet.call.done
