"""The agent stops for a voice whose words nobody knows yet, and goes on where it was heard if they were none."""
import numpy as np
import pytest
from conversation import MS, SPEECH, Conversation
from hypothesis import given, settings
from hypothesis import strategies as st

from opusagent.flow.phrases import murmured, words
from opusagent.flow.states import BACKCHANNELS
from opusagent.speech.playout import FRAME_MS, Playout, Segment

TEXT = "The ten of clubs. Are you sure of that, or would you like to look at it once more before we go on? " \
       "It is the card that is printed on the slip that we left at your door this morning, on the left side of it."
FLOW = """
start = "card"
[states.card]
say = "Which card?"
on = [{ phrases = ["ten of clubs"], fact = "card", go = "sure" }, { dtmf = "9", go = "bye" }]
[states.sure]
say = "The {card}. Are you sure of that, or would you like to look at it once more before we go on? \
It is the card that is printed on the slip that we left at your door this morning, on the left side of it."
on = [{ yes = true, go = "bye" }, { no = true, go = "card" }, { dtmf = "9", go = "bye" }]
[states.bye]
say = "Thank you, goodbye."
end = true
"""


def stopped(words="", ms=560, heard=""):
    """A call in which the agent has just stopped for a voice; the recogniser knows `words` only when it is over."""
    call = Conversation(FLOW)
    call.listens()
    call.speech(600, "ten of clubs")
    call.silence(600)
    call.studio.stt.silent = True
    call.speech(ms, words)
    assert call.call.mouth.held_back and call.count("clear") == 1
    call.studio.stt.silent = False
    return call


def test_a_murmur_gives_the_agent_the_floor_back_and_it_says_the_rest():
    call = stopped("mm hm")
    before = call.count("media")
    call.silence(300)
    assert not call.call.mouth.held_back and call.count("media") > before
    call.listens()
    receipt = call.receipts[-1]
    assert receipt["agent"] == TEXT and receipt["stopped_by"] == "" and receipt["false_stops"] == 1
    assert len(call.receipts) == 2 and call.state == "sure"
    assert call.call.dialogue.history[-1].agent.startswith("The ten of clubs. Are you sure")


def test_a_murmur_that_the_recogniser_takes_back_is_a_voice_again():
    call = Conversation(FLOW)
    call.listens()
    call.speech(600, "ten of clubs")
    call.silence(600)
    call.studio.stt.silent = True
    call.speech(300)
    ear, states = call.call.ear, call.call.flow.states
    assert ear.overhearing and ear.search == states["sure"].overhear != states["sure"].expect.id
    ear.on_partial(ear.utterance, "mm hm")
    call.speech(400)
    assert not call.call.mouth.held_back and call.count("clear") == 0      # a murmur, however long
    ear.on_partial(ear.utterance, "")
    assert call.call.mouth.held_back and call.count("clear") == 1


def test_no_words_at_all_give_it_back_as_well():
    call = stopped("")
    call.silence(1200)
    call.listens()
    assert call.receipts[-1]["agent"] == TEXT and call.receipts[-1]["false_stops"] == 1


def test_a_recogniser_that_fails_or_never_answers_gives_it_back():
    call = stopped("no")
    call.call.ear.on_failure(call.call.ear.utterance, "it died")
    assert not call.call.mouth.held_back
    call = stopped("no")
    call.studio.stt.silent = True
    call.silence(2500)
    call.listens()
    assert call.receipts[-1]["agent"] == TEXT and call.receipts[-1]["kind"] == "answer"


def test_words_that_come_late_make_it_an_interruption_after_all():
    call = stopped("no")
    call.silence(1200)
    call.listens()
    cut, answer = call.receipts[-2:]
    assert cut["stopped_by"] == "barge-in" and cut["false_stops"] == 0 and TEXT.startswith(cut["agent"])
    assert 3 <= len(cut["agent"].split()) < len(TEXT.split())
    assert answer["caller"] == "no" and answer["agent"] == "Which card?" and call.state == "card"
    assert answer["turn"] == cut["turn"] + 1 and answer["measured"] and 0 < answer["voice_to_voice_ms"] < 1500


def test_words_that_come_with_the_final_text_alone_do_so_too():
    call = stopped("no")
    call.studio.stt.silent = True
    call.silence(480)
    assert call.call.ear.final_by and call.call.mouth.held_back
    call.call.ear.on_final(call.call.ear.utterance, "no", 1.0)
    assert not call.call.mouth.held_back
    call.studio.stt.silent = False
    call.listens()
    assert [receipt["stopped_by"] for receipt in call.receipts[-2:]] == ["barge-in", ""]
    assert call.receipts[-1]["agent"] == "Which card?"


def test_a_caller_who_goes_on_while_the_final_text_is_awaited_is_heard_out():
    call = stopped("no")
    call.studio.stt.silent = True
    call.silence(480)
    call.speech(400, "no I am not")
    assert call.call.mouth.held_back and not call.call.ear.final_by
    call.studio.stt.silent = False
    call.silence(1200)
    call.listens()
    assert [receipt["caller"] for receipt in call.receipts[-2:]] == ["ten of clubs", "no I am not"]


@pytest.mark.parametrize("happens", ["keys", "hang-up", "parting"])
def test_what_ends_the_reply_meanwhile_ends_it_with_what_was_heard(happens):
    call = stopped("")
    if happens == "keys":
        call.receive(b'{"event":"dtmf","dtmf":{"digit":"9"}}')
    elif happens == "hang-up":
        call.call.lost(1006, "")
    else:
        call.call.part()
    cut = next(receipt for receipt in call.receipts if receipt["stopped_by"])
    assert cut["stopped_by"] == {"parting": "superseded"}.get(happens, happens)
    assert TEXT.startswith(cut["agent"]) and 3 <= len(cut["agent"].split()) < len(TEXT.split())
    assert not call.call.mouth.held_back and call.count("clear") == 1


def test_a_second_murmur_in_the_same_reply():
    call = stopped("mm hm")
    call.silence(400)
    call.studio.stt.silent = True
    call.speech(560, "I see")
    assert call.call.mouth.held_back
    call.studio.stt.silent = False
    call.silence(400)
    call.listens()
    assert call.receipts[-1]["agent"] == TEXT and call.receipts[-1]["false_stops"] == 2


# ---- what was over before its words were known ----

def over_in_time(words, ms=300, flow=FLOW, when=lambda call: None):
    """A call in which somebody has said that over the agent, and the recogniser has answered only later."""
    call = Conversation(flow)
    call.listens()
    call.speech(600, "ten of clubs")
    call.silence(500)
    call.studio.stt.silent = True
    call.speech(ms, words)
    call.silence(400)
    assert call.count("clear") == 0 and call.call.ear.afterthought == (ms >= 220)
    when(call)
    call.call.ear.on_final(call.call.ear.utterance, words, 1.0)
    call.studio.stt.silent = False
    call.listens()
    return call


def test_a_short_answer_that_is_understood_late_is_answered():
    call = over_in_time("no")
    cut, answer = call.receipts[-2:]
    assert cut["stopped_by"] == "barge-in" and TEXT.startswith(cut["agent"]) and call.count("clear") == 1
    assert answer["caller"] == "no" and answer["agent"] == "Which card?" and answer["voice_to_voice_ms"] > 0


@pytest.mark.parametrize("words, ms", [("", 300), ("mm hm", 300), ("uh", 300), ("no", 120)])
def test_a_murmur_or_a_cough_that_is_understood_late_changes_nothing(words, ms):
    call = over_in_time(words, ms)
    assert call.receipts[-1]["agent"] == TEXT and call.count("clear") == 0 and call.receipts[-1]["false_stops"] == 0


def test_where_only_answers_interrupt_only_a_late_answer_does():
    flow = 'interrupt = "answers"\n' + FLOW
    assert over_in_time("well I do not know", flow=flow).receipts[-1]["agent"] == TEXT
    assert over_in_time("yes", flow=flow).state == "bye"


def test_an_answer_that_is_understood_when_the_agent_is_done_is_answered():
    call = over_in_time("no", when=lambda call: call.silence(900))
    assert call.receipts[-1]["caller"] == "no" and call.state == "card"


def test_a_recogniser_that_never_says_what_it_was_costs_nothing():
    call = over_in_time("no", when=lambda call: call.silence(1600))
    assert call.receipts[-1]["agent"] == TEXT and not call.call.ear.final_by


# ---- the playout ----

def ramp(samples, begin=0):
    return (np.arange(begin, begin + samples) % 30_000 + 1).astype(np.int16)


def drained(playout, now):
    """What goes out from now on, each frame at its time; and when."""
    frames = []
    while not playout.spent:
        if (pcm := playout.pop(now)) is not None:
            frames.append(np.array(pcm))
        else:
            now += 5 * MS
    return np.concatenate(frames) if frames else np.zeros(0, np.int16), now


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(600, 9000), min_size=1, max_size=4), st.integers(1, 2500), st.sampled_from([0, 100, 400]),
       st.integers(0, 300))
def test_what_was_not_heard_is_said_again_and_nothing_is_lost(sizes, stop_ms, lead_ms, earlier_ms):
    playout, now, whole = Playout(8000, lead_ms), 1_000 * MS, []
    playout.begin()
    for size in sizes:
        pcm = ramp(size, sum(map(len, whole)))
        whole.append(pcm)
        playout.push(Segment("one two three", pcm))
    sent, until = [], now + stop_ms * MS
    while now < until and not playout.spent:
        if (pcm := playout.pop(now)) is not None:
            sent.append(np.array(pcm))
        else:
            now += 5 * MS
    first = sum(map(len, sent))
    heard = playout.heard(now)
    playout.hold(now)
    assert playout.pop(now + 500 * MS) is None and playout.heard(now + 500 * MS) == heard and playout.playing(now)
    marks = playout.take_marks()
    playout.go_on(now + 900 * MS, earlier_ms * 8)
    begin = playout.sent
    assert begin <= heard <= first
    again, end = drained(playout, now + 900 * MS)
    spoken, loud = np.concatenate(whole), begin + 60 * 8        # until the level is up again
    assert np.array_equal(again[loud - begin:len(spoken) - begin], spoken[loud:]) and playout.sent >= len(spoken)
    assert sum(map(len, sent[:1])) == 0 or np.array_equal(np.concatenate(sent)[:len(spoken)], spoken[:first])
    assert playout.heard_text(end + 2000 * MS) == " ".join(["one two three"] * len(sizes))
    later = playout.take_marks()
    assert len(spoken) in later or len(spoken) in marks and begin >= len(spoken)


def test_it_goes_on_at_the_beginning_of_a_word():
    playout = Playout(8000)
    playout.begin()
    playout.push(Segment("one two three four", ramp(8000), ends=(2000, 4000, 6000, 8000)))
    now = 0
    while playout.sent < 5200:
        now += playout.pop(now) is None and FRAME_MS * MS or 0
    playout.hold(now)
    heard = playout.heard(now)
    assert playout.heard_text(now) == "one two" and 4800 < heard <= 5200
    playout.go_on(now, 400)
    assert playout.sent == 4000
    playout.hold(now + 100 * MS)
    playout.go_on(now + 100 * MS, 1200)
    assert playout.sent == 2000 and playout.heard_text(now + 100 * MS) == "one"


# ---- murmurs ----

KNOWN = frozenset(words(text) for text in BACKCHANNELS)


@pytest.mark.parametrize("said", ["mm-hm", "uh", "uh huh", "okay", "Okay, right.", "yes yes yes", "I see, I", "ja",
                                  "oh okay"])
def test_murmurs(said):
    assert murmured(words(said), KNOWN)


def test_the_beginning_of_a_murmur_is_no_whole_one():
    said = ("I", "I see", "okay", "okay I", "all", "yes all right")
    assert [text for text in said if murmured(words(text), KNOWN, begun=False)] == ["I see", "okay", "yes all right"]
    assert all(murmured(words(text), KNOWN) for text in said)


@pytest.mark.parametrize("said", ["yes but", "okay stop", "I want", "no", "see", "mm hm no"])
def test_what_is_more_than_a_murmur(said):
    assert not murmured(words(said), KNOWN)


def test_a_long_row_of_them_is_judged_at_once():
    assert murmured(("mm", "hm") * 500, KNOWN) and not murmured(("mm", "hm") * 500 + ("stop",), KNOWN)


def test_speech_is_what_the_other_tests_take_for_it():
    assert len(SPEECH) * 1000 // 8000 == FRAME_MS
