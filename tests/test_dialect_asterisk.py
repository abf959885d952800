"""The asterisk dialect: both ends of a WebSocket channel, its queue, and a call that waits while the queue is full."""
import json
from urllib.parse import urlsplit

import numpy
import pytest
from conversation import Conversation
from dialect_checks import KIB, echoed, growth, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dialects import RECORDED, dial

from opusagent import ProtocolError
from opusagent.dialects import BINARY, CALLERS, TABLE, TEXT, Audio, Clear, Complaint, Dtmf, Mark, Start, Stop
from opusagent.dialects.asterisk import FORMATS, QUEUE, XOFF, XON

LINES = ["", "control=json", "format=ulaw", "format=alaw&control=json", "format=slin", "format=slin24",
         "format=slin48&control=json"]


@pytest.mark.parametrize("query", LINES)
def test_a_call_from_start_to_hangup(query):
    caller, ours, (start,) = dial("asterisk", query)
    given_facts = {name: value for name, value in (pair.split("=") for pair in query.split("&") if pair)}
    given_facts.pop("format", None)
    assert start == Start(caller.call_id, given_facts) and ours.rate == caller.rate
    assert ours.receive(*caller.dtmf("#")) == Dtmf("#")
    assert caller.receive(TEXT, ours.mark("1:160")) == Mark("1:160")
    assert ours.receive(*caller.mark("1:160")) == Mark("1:160")
    assert caller.mark("1:160") is None
    assert caller.receive(TEXT, ours.mark("1:320")) == Mark("1:320")
    reached = caller.mark("1:320")
    assert caller.receive(TEXT, ours.mark("1:480")) == Mark("1:480")
    assert caller.receive(TEXT, ours.clear()) == Clear()
    assert caller.mark("1:480") is None                     # dropped by the flush, and Asterisk says nothing
    assert ours.receive(*reached) == Mark("1:320", cleared=True)
    assert caller.receive(TEXT, ours.stop()) == Stop()
    assert caller.stop() is None and ours.ignored == 0


@pytest.mark.parametrize("query", LINES)
@pytest.mark.parametrize("frames", [1, 2, 50])
def test_an_echo_is_the_same_to_the_sample(query, frames):
    caller, ours, _ = dial("asterisk", query)
    pcm = noise(ours.rate // 50 * frames)
    once = echoed(caller, ours, pcm)
    assert (echoed(caller, ours, once) == once).all()
    assert "law" in query or (once == pcm).all()


@pytest.mark.parametrize("query", ["format=ulaw", "control=json"])
def test_the_queue_says_when_it_is_full_and_when_it_is_not(query):
    caller, ours, _ = dial("asterisk", query)
    frame = ours.audio(noise(ours.rate // 50))
    for queued in range(1, QUEUE + 1):
        caller.receive(BINARY, frame)
        for message in caller.outbox:
            assert ours.receive(*message) is None
        caller.outbox.clear()
        assert ours.held == (queued >= XOFF)
    with pytest.raises(ProtocolError, match="more would be lost"):
        caller.receive(BINARY, frame)
    for left in range(QUEUE, 0, -1):
        assert isinstance(ours.receive(*caller.audio(noise(ours.rate // 50))), Audio)
        for message in caller.outbox:
            assert ours.receive(*message) is None
        caller.outbox.clear()
        assert ours.held == (left >= XON)
    assert ours.ignored == 0


def test_what_asterisk_would_lose_ends_a_simulated_call():
    caller, ours, _ = dial("asterisk", "format=slin16")
    for message, sentence in ((bytes(641), "frames of 640"), (bytes(2), "frames of 640")):
        with pytest.raises(ProtocolError, match=sentence):
            caller.receive(BINARY, message)
    for message in (b"x" * 129, b"CLEAR", b"mark_media 1", b'{"command":"FLUSH_MEDIA"}', b""):
        with pytest.raises(ProtocolError):
            caller.receive(TEXT, message)
    with pytest.raises(ProtocolError):
        dial("asterisk", "control=json")[0].receive(TEXT, b"FLUSH_MEDIA")


@pytest.mark.parametrize("name", ["slin12", "slin192", "opus", "g722", ""])
def test_other_formats_are_refused_by_name(name):
    with pytest.raises(ProtocolError, match="ulaw, alaw, slin, slin16, slin24, slin48") as refused:
        TABLE["asterisk"]({}).receive(TEXT, f"MEDIA_START channel_id:1 format:{name}".encode())
    assert refused.value.code == 1008
    with pytest.raises(ProtocolError):
        CALLERS["asterisk"](urlsplit(f"ws://h/ws/asterisk?format={name or 'none'}"))


# ---- a call that waits -----------------------------------------------------------------------------------------------

FLOW = """
start = "welcome"
[states.welcome]
say = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
on = [{ dtmf = "1", go = "bye" }]
[states.bye]
say = "Goodbye."
end = true
"""


def conversation():
    call = Conversation(FLOW, dialect="asterisk", begin=False)
    call.receive(b"MEDIA_START connection_id:a channel:WebSocket/a/1 channel_id:1.1 format:ulaw "
                 b"optimal_frame_size:160 ptime:20")
    return call


def sent_audio(call):
    return b"".join(message for opcode, message in call.connection.sent if opcode == BINARY)


def test_xoff_holds_the_playout_and_xon_lets_it_go_on_where_it_was():
    free, held = conversation(), conversation()
    free.passes(5000)
    whole = sent_audio(free)
    held.passes(200)
    held.receive(b"MEDIA_XOFF")
    before = len(sent_audio(held))
    held.passes(10_000)
    assert 0 < len(sent_audio(held)) == before < len(whole)
    assert held.call.mouth.turn is not None and held.connection.closed is None
    held.receive(b"MEDIA_XON")
    held.passes(5000)
    assert sent_audio(held) == whole and held.call.mouth.turn is None


def test_a_caller_may_cut_in_while_the_queue_is_full():
    call = conversation()
    call.passes(200)
    call.receive(b"MEDIA_XOFF")
    call.passes(100)
    call.receive(b"DTMF_END digit:1 channel_id:1.1")
    assert (TEXT, b"FLUSH_MEDIA") in call.connection.sent and call.state == "bye"
    before = len(sent_audio(call))
    call.passes(1000)
    assert len(sent_audio(call)) == before and call.connection.closed is None
    call.receive(b"MEDIA_XON")                              # Asterisk says it at the next beat of its timer
    call.passes(2000)
    assert len(sent_audio(call)) > before
    assert call.connection.sent[-1] == (TEXT, b"HANGUP") and call.connection.closed[0] == 1000


# ---- whatever a peer may send ----------------------------------------------------------------------------------------

FIELDS = st.sampled_from(["format:ulaw", "format:slin48", "format:", "channel_id:1", "channel:a:b:c", ":", "digit:5",
                          "digit:", "digit:é", "optimal_frame_size:0", "x" * 200, "{", "\n", "\x00"])
EVENTS = st.sampled_from(["MEDIA_START", "MEDIA_XOFF", "MEDIA_XON", "DTMF_END", "MEDIA_MARK_PROCESSED", "STATUS",
                          "ERROR", "QUEUE_DRAINED", "HANGUP", "", "\U0001f600"])
PLAIN = st.builds(lambda event, fields: " ".join((event, *fields)).encode(), EVENTS, st.lists(FIELDS, max_size=4))
LIKE_JSON = st.builds(lambda event, field, value: json.dumps({"event": event, field: value}).encode(), EVENTS,
                      st.sampled_from(["format", "digit", "correlation_id", "channel_variables", "channel_id"]),
                      st.sampled_from(["ulaw", "5", 5, None, [], {}, {"a": [1]}, {"a": 1.5}, True]))
BYTES = st.tuples(st.sampled_from([TEXT, BINARY]), st.binary(max_size=40))
ANYTHING = st.tuples(st.just(TEXT), PLAIN | LIKE_JSON) | BYTES


@settings(deadline=None, max_examples=200)
@given(st.lists(ANYTHING, max_size=12), st.sampled_from([{}, {"format": "alaw"}, {"format": "opus"}]))
def test_events_or_protocol_errors_and_nothing_else(messages, query):
    dialect, kinds = TABLE["asterisk"](query), []
    for opcode, payload in messages:
        try:
            event = dialect.receive(opcode, memoryview(payload))
        except ProtocolError as error:
            assert error.code in (1007, 1008) and 0 < len(error.reason.encode()) <= 123
            continue
        assert event is None or isinstance(event, Start | Audio | Complaint | Dtmf | Mark)
        if event is not None:
            kinds.append(type(event))
    assert kinds.count(Start) <= 1 and (not kinds or kinds[0] is Start) and dialect.outbox == []
    if kinds:
        assert dialect.rate in FORMATS.values()
        assert len(dialect.audio(numpy.zeros(160, numpy.int16))) in (160, 320)


def test_what_a_peer_sends_leaves_nothing_behind():
    dialect = TABLE["asterisk"]({})
    assert growth(dialect, RECORDED["asterisk"]) < 4 * KIB
