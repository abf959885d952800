"""The freeswitch dialect: two modules, three ways of sending audio back, and texts that may be anything."""
from urllib.parse import urlsplit

import numpy as np
import pytest
from dialect_checks import KIB, echoed, growth, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dialects import RECORDED, dial

from opusagent import ProtocolError
from opusagent.dialects import BINARY, CALLERS, TABLE, TEXT, Audio, Clear, Dtmf, Mark, Start, Stop

LINES = ["", "rate=16000", "rate=48000", "play=json", "rate=24000&play=json", "module=fork", "module=fork&rate=16000"]


@pytest.mark.parametrize("query", LINES)
def test_a_call_from_start_to_hangup(query):
    caller, ours, (start,) = dial("freeswitch", query)
    assert start == Start(caller.call_id, {"call_id": caller.call_id, "from": "+15550100"}) and ours.rate == caller.rate
    assert ours.receive(*caller.dtmf("#")) == Dtmf("#")
    if "fork" in query:
        assert caller.receive(TEXT, ours.mark("1")) == Mark("1")
        assert ours.receive(*caller.mark("1")) == Mark("1")
        assert caller.receive(TEXT, ours.mark("2")) == Mark("2")
        assert caller.receive(TEXT, ours.clear()) == Clear()
        assert ours.receive(*caller.mark("2")) == Mark("2", cleared=True)
    else:
        assert ours.mark("1") is None and caller.mark("1") is None
        assert caller.receive(TEXT, ours.clear()) is None   # an event for scripts; what the module holds, it plays
    assert caller.receive(TEXT, ours.stop()) == Stop()
    assert caller.stop() is None and ours.ignored == 0


@pytest.mark.parametrize("query", LINES)
@pytest.mark.parametrize("ms", [10, 20, 200])
def test_an_echo_is_the_same_to_the_sample(query, ms):
    caller, ours, _ = dial("freeswitch", query)
    for seed in (1, 2):
        pcm = noise(ours.rate * ms // 1000, seed)
        assert (echoed(caller, ours, pcm) == pcm).all()


def test_where_nothing_can_be_taken_back_we_stay_close_to_the_listener():
    assert TABLE["freeswitch"]({}).lead_ms < TABLE["freeswitch"]({"module": "fork"}).lead_ms
    assert TABLE["freeswitch"]({}).deaf_ms == 0 < TABLE["freeswitch"]({"module": "fork"}).deaf_ms


@pytest.mark.parametrize("query", [{"rate": "44100"}, {"rate": "8k"}, {"module": "audio_fork"}, {"play": "wav"},
                                   {"rate": ""}])
def test_a_mode_that_there_is_not_is_refused_before_the_call(query):
    with pytest.raises(ProtocolError, match="is one of") as refused:
        TABLE["freeswitch"](query)
    assert refused.value.code == 400


def test_each_module_offers_the_subprotocol_that_it_insists_on():
    def offers(query):
        return CALLERS["freeswitch"](urlsplit(f"ws://h/ws/freeswitch?{query}")).protocols
    assert offers("") == () and offers("module=fork") == ("audio.drachtio.org",)
    assert set(offers("module=fork")) <= set(TABLE["freeswitch"].protocols)


def test_what_a_module_would_make_nothing_of_ends_a_simulated_call():
    binary, json, fork = (dial("freeswitch", query)[0] for query in ("", "play=json", "module=fork"))
    other_rate = b'{"type":"streamAudio","data":{"audioDataType":"raw","sampleRate":16000,"audioData":"AAAA"}}'
    for caller, opcode, message in ((json, BINARY, bytes(320)), (binary, TEXT, b"{}"), (binary, TEXT, b"x"),
                                    (fork, TEXT, b'{"type":"streamAudio"}'), (json, TEXT, other_rate)):
        with pytest.raises(ProtocolError):
            caller.receive(opcode, message)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.sampled_from([TEXT, BINARY]), st.binary(max_size=12)) |
                st.sampled_from(RECORDED["freeswitch"]), max_size=10),
       st.sampled_from([{}, {"play": "json"}, {"module": "fork"}]))
def test_no_text_ends_a_call(messages, query):
    dialect = TABLE["freeswitch"](query)
    events = [dialect.receive(opcode, memoryview(payload)) for opcode, payload in messages]
    events = [event for event in events if event is not None]
    assert all(isinstance(event, (Start, Audio, Dtmf, Mark, Stop)) for event in events)
    assert [isinstance(event, Start) for event in events] == [i == 0 for i in range(len(events))]
    assert Stop not in map(type, events[:-1])
    assert len(dialect.audio(np.zeros(160, np.int16))) >= 320


@pytest.mark.parametrize("query", [{}, {"play": "json"}, {"module": "fork"}])
def test_what_a_peer_sends_leaves_nothing_behind(query):
    living = [message for message in RECORDED["freeswitch"] if message[1]]
    assert growth(TABLE["freeswitch"](query), living) < 4 * KIB
