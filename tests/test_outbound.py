"""What a platform may want of a conversation beyond the five events, and what it gets, in which order."""
import numpy as np
import pytest
from test_call import FLOW

from conversation import MS, Conversation
from opusagent import dialects
from opusagent.calls import call
from opusagent.dialects import Pause
from opusagent.dialects.twilio import Twilio
from opusagent.speech.playout import Playout, Segment


class Curious(Twilio):
    """Twilio as it might be: streams that are opened and closed, a platform that listens and ends calls itself."""

    def __init__(self, query):
        super().__init__(query)
        self.news = []
        self.playing = False

    parting_ms = 500

    def audio(self, pcm):
        if not self.playing:
            self.playing = True
            self.outbox.append((1, b"begin"))
        return super().audio(pcm)

    def tell(self, news, *details):
        self.news.append((news, *details))
        if news == "REPLIED":
            self.playing = False
            self.outbox.append((1, b"end"))

    def receive(self, opcode, payload):
        if payload in (b"pause", b"resume"):
            return Pause(over=payload == b"resume")
        self.outbox.append((1, b"answer"))
        return super().receive(opcode, payload)

    def stop(self):
        return b"goodbye"


@pytest.fixture
def curious(monkeypatch):
    monkeypatch.setitem(dialects.TABLE, "twilio", Curious)
    return Conversation


def kinds(conversation):
    """What was sent, without the answers, neighbours of one kind as one."""
    sent = ["media" if b'"media"' in message else message.decode() for _, message in conversation.connection.sent]
    sent = [kind for kind in sent if kind != "answer" and "mark" not in kind]
    return [kind for kind, before in zip(sent, [None, *sent]) if kind != before]


def test_what_a_stream_needs_stands_around_its_audio(curious):
    talk = curious(FLOW)
    talk.listens()
    talk.says("ten of clubs")
    assert kinds(talk) == ["begin", "media", "end"] * 2


def test_the_protocols_answer_goes_before_what_its_message_led_to(curious):
    talk = curious(FLOW)
    assert talk.connection.sent[0][1] == b"answer" and talk.connection.sent[1][1] == b"begin"


def test_a_stream_is_not_closed_before_late_audio_has_left(curious):
    talk = curious(FLOW)
    talk.connection.congested = True
    talk.silence(3000)
    assert "end" not in kinds(talk) and talk.call.mouth.turn is not None
    talk.connection.congested = False
    talk.call.drained()
    talk.silence(100)
    assert kinds(talk) == ["begin", "media", "end"]


def test_the_platform_hears_of_the_conversation(curious):
    talk = curious(FLOW)
    talk.listens()
    talk.says("ten of clubs")
    talk.told = [("RECEIPT", receipt) for receipt in talk.receipts]
    assert talk.call.dialect.news == [
        ("REPLYING", "Which card do you have?"), ("REPLIED", "begin", "Which card do you have?"), talk.told[0],
        ("SPEECH_STARTED",), ("HYPOTHESIS", "ten of clubs"), ("SPEECH_STOPPED",),
        ("RECOGNITION", "ten of clubs", 1.0, talk.call.ear.span),
        ("REPLYING", talk.agent_says[-1]), ("REPLIED", "answer", talk.agent_says[-1]), talk.told[1]]


def test_the_platform_may_end_the_call_itself(curious):
    talk = curious(FLOW)
    talk.listens()
    talk.receive(b'{"event":"dtmf","dtmf":{"digit":"9"}}')
    talk.listens()
    assert talk.call.dialect.news[-1][0] == "FACTS" and kinds(talk)[-1] == "goodbye"
    assert talk.connection.closed is None and talk.call.done
    sent = len(talk.connection.sent)
    talk.speech(400, "yes")                     # nobody is listening any more
    talk.receive(b'{"event":"dtmf","dtmf":{"digit":"9"}}')
    assert [message for _, message in talk.connection.sent[sent:]] == [b"answer"] * 21
    talk.receive(b'{"event":"stop","stop":{}}')
    assert talk.connection.closed[0] == 1000


def test_a_platform_that_does_not_is_left(curious):
    talk = curious(FLOW)
    talk.listens()
    talk.receive(b'{"event":"dtmf","dtmf":{"digit":"9"}}')
    talk.listens()
    talk.passes(480)
    assert talk.connection.closed is None
    talk.passes(40)
    assert talk.connection.closed[0] == 1000


def test_nobody_is_asked_why_they_are_silent_while_the_platform_sends_nothing(curious):
    talk = curious(FLOW)
    talk.listens()
    talk.receive(b"pause")
    talk.passes(20_000)
    assert talk.agent_says == ["Which card do you have?"]
    talk.receive(b"resume")
    talk.silence(2900)
    assert talk.agent_says == ["Which card do you have?"]
    talk.silence(3200)
    talk.listens()
    assert talk.agent_says == ["Which card do you have?", "Hello?"]


def test_an_utterance_that_a_pause_cuts_is_answered(curious):
    talk = curious(FLOW)
    talk.listens()
    talk.speech(500, "ten of clubs")
    talk.receive(b"pause")
    talk.passes(600)
    assert talk.state == "sure"


def test_a_call_that_never_starts_is_overdue():
    talk = Conversation(FLOW, begin=False)
    now = talk.server.now
    assert not talk.call.overdue(now + call.START_WITHIN) and talk.call.overdue(now + call.START_WITHIN + 1)
    talk.receive(b'{"event":"start","streamSid":"MZ1","start":{"callSid":"CA1"}}')
    assert not talk.call.overdue(now + 2 * call.START_WITHIN)


# ---- fewer, longer messages ------------------------------------------------------------------------------------------

RATE = 8000
SAMPLES = np.arange(1, RATE + 1, dtype=np.int16)


def played(playout, ms):
    """(ms, samples) of every message of so long a time."""
    messages = []
    for now in range(0, ms * MS, 5 * MS):
        while (pcm := playout.pop(now)) is not None:
            messages.append((now // MS, np.array(pcm)))
    return messages


def test_a_message_holds_as_much_as_goes_together():
    playout = Playout(RATE, lead_ms=200, message_ms=200)
    playout.push(Segment("", SAMPLES[:RATE * 730 // 1000]))
    messages = played(playout, 1000)
    assert [(at, len(pcm)) for at, pcm in messages] == [(0, 1600), (0, 1600), (200, 1600), (400, 1120)]
    assert (np.concatenate([pcm for _, pcm in messages])[:5840] == SAMPLES[:5840]).all()


def test_a_voice_that_is_late_is_sent_as_it_comes_but_not_in_crumbs():
    playout = Playout(RATE, lead_ms=200, message_ms=200)
    segment = Segment("", SAMPLES, growing=True)
    playout.push(segment)
    messages, written = [], 0
    for now in range(0, 1500, 5):               # 5 ms of speech every 5 ms: as slow as can be borne
        written = min(written + 40, RATE)
        segment.supply(0, written, written == RATE)
        while (pcm := playout.pop(now * MS)) is not None:
            messages.append((now, np.array(pcm)))
    assert messages[0][0] == 15 and len(messages[0][1]) == 160          # the first frame, as soon as there is one
    assert (np.concatenate([pcm for _, pcm in messages]) == SAMPLES).all()
    assert all(len(pcm) % 160 == 0 for _, pcm in messages)
