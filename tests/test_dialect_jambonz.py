"""The jambonz dialect, and what mod_audio_fork's player makes of a reply: all of it, and nothing of the last one."""
from urllib.parse import urlsplit

import numpy as np
import pytest
from conversation import Conversation
from dialect_checks import KIB, echoed, growth, noise
from test_dialects import RECORDED, dial

from opusagent import ProtocolError
from opusagent.dialects import BINARY, CALLERS, TABLE, TEXT, Audio, Clear, Dtmf, Mark, Start, Stop
from opusagent.dialects.jambonz import MARKS, Jambonz

FLOW = """
start = "welcome"
[states.welcome]
say = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
on = [{ dtmf = "1", go = "bye" }]
[states.bye]
say = "Goodbye to you."
end = true
"""


def test_a_call_from_start_to_hangup():
    caller, ours, (start,) = dial("jambonz", "rate=16000")
    assert start.call_id == caller.call_id and start.facts["from"] == "+15550100" and ours.rate == caller.rate == 16000
    assert ours.receive(*caller.dtmf("#")) == Dtmf("#")
    assert caller.receive(TEXT, ours.mark("1:160")) == Mark("1:160")
    assert ours.receive(*caller.mark("1:160")) == Mark("1:160")
    assert caller.receive(TEXT, ours.mark("1:320")) == Mark("1:320")
    assert caller.receive(TEXT, ours.clear()) == Clear()
    assert ours.receive(*caller.mark("1:320")) == Mark("1:320", cleared=True)
    assert caller.receive(TEXT, ours.stop()) == Stop()
    assert caller.stop() is None and ours.ignored == 0
    assert ours.receive(BINARY, b"") == Stop()


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 48000])
@pytest.mark.parametrize("ms", [10, 20, 1000])
def test_an_echo_is_the_same_to_the_sample(rate, ms):
    caller, ours, _ = dial("jambonz", f"rate={rate}")
    pcm = noise(rate * ms // 1000)
    pcm[:3] = -1                                            # nothing is marked in an echo
    assert (echoed(caller, ours, pcm) == pcm).all() and ours.outbox == []


def test_a_sample_that_would_be_taken_for_a_mark_is_not_sent_once_there_are_marks():
    caller, ours, _ = dial("jambonz")
    caller.receive(TEXT, ours.mark("1"))
    with pytest.raises(ProtocolError, match="taken for a mark"):
        caller.receive(BINARY, b"\xff\xff")
    pcm = np.array([-2, -1, 0, 1, -1], np.int16)
    assert list(caller.receive(BINARY, ours.audio(pcm)).pcm) == [-2, 0, 0, 1, 0]


def test_what_the_player_would_not_take_ends_a_simulated_call():
    caller, ours, _ = dial("jambonz")
    for message in (b'{"type":"clear"}', b"{}", b"x", b'{"type":"mark","data":{}}'):
        with pytest.raises(ProtocolError):
            caller.receive(TEXT, message)
    for i in range(MARKS):
        caller.receive(TEXT, ours.mark(str(i)))
    with pytest.raises(ProtocolError, match="forgotten"):
        caller.receive(TEXT, ours.mark("one more"))
    with pytest.raises(ProtocolError):
        CALLERS["jambonz"](urlsplit("ws://h/ws/jambonz?rate=64000"))


# ---- a reply as it is heard ------------------------------------------------------------------------------------------

class Line:
    """A conversation in this dialect with a caller whose player works as the module's does; `heard`: what it plays."""

    def __init__(self, flow=FLOW):
        self.caller = CALLERS["jambonz"](urlsplit("ws://h/ws/jambonz?player=chunked"))
        self.talk = Conversation(flow, dialect="jambonz", begin=False)
        self.heard, self.clears, self._place = [], 0, 0
        for message in self.caller.open():
            self.send(message)

    def send(self, message):
        opcode, payload = message
        self.talk.call.on_message(opcode, memoryview(payload))

    def passes(self, ms):
        for _ in range(ms // 20):
            if self.talk.connection.closed:
                return
            self.send(self.caller.audio(np.zeros(160, np.int16)))
            self.talk.studio.hearing.run()
            self.talk.passes(20)
            self.listen()

    def listen(self):
        sent = self.talk.connection.sent
        for opcode, message in sent[self._place:]:
            match self.caller.receive(opcode, message):
                case Audio(pcm=pcm):
                    self.heard.append(np.array(pcm))
                case Mark(name=name):
                    self.send(self.caller.mark(name))
                case Clear():
                    self.clears += 1
                    self.heard.clear()                      # an ideal ear: what had arrived is gone
        self._place = len(sent)

    @property
    def voice(self):
        """What was heard, without the silence around it."""
        return np.trim_zeros(np.concatenate([np.zeros(0, np.int16), *self.heard]))


def spoken(line, text):
    """The samples of a prompt."""
    return line.talk.studio.prompt("", text, 8000).pcm


def same(voice, prompt):
    """True if it was the prompt, from its first sample to its last, and nothing else."""
    prompt = np.trim_zeros(prompt)
    return len(voice) == len(prompt) and (np.abs(voice.astype(int) - prompt) <= 1).all()


WELCOME = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"


def test_a_reply_is_heard_to_its_last_sample_before_anything_else_is_said():
    line = Line()
    line.passes(1400)
    assert line.talk.call.mouth.turn is None
    assert same(line.voice, spoken(line, WELCOME))


def test_without_the_silence_its_end_would_stay_behind(monkeypatch):
    monkeypatch.setattr("opusagent.dialects.jambonz.IDLE_MESSAGES", 10_000)
    line = Line()
    line.passes(1400)
    assert not same(line.voice, spoken(line, WELCOME))


def cut_in():
    """A key is pressed into the first reply."""
    line = Line()
    line.passes(400)
    line.send(line.caller.dtmf("1"))
    line.listen()
    assert line.clears == 1
    line.passes(2000)
    assert line.talk.connection.closed
    return line


def test_after_a_key_the_next_reply_is_heard_from_its_first_sample_and_nothing_of_the_last_one():
    line = cut_in()
    assert same(line.voice, spoken(line, "Goodbye to you."))


def test_without_waiting_its_beginning_would_be_dropped(monkeypatch):
    monkeypatch.setattr(Jambonz, "deaf_ms", 0)
    line = cut_in()
    assert not same(line.voice, spoken(line, "Goodbye to you."))


def test_what_a_peer_sends_leaves_nothing_behind():
    living = [message for message in RECORDED["jambonz"] if message[1]]     # an empty one would end it
    assert growth(TABLE["jambonz"]({}), living) < 4 * KIB


def test_start_is_the_first_text_that_describes_a_stream():
    ours = TABLE["jambonz"]({})
    assert ours.receive(TEXT, b'{"sampleRate":8000,"callSid":"a"}') == Start("a", {"callSid": "a"})
