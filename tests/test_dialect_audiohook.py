"""AudioHook: Genesys's side against ours, conversations within its limits, and whatever else may come."""
import json
from urllib.parse import urlsplit

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_call import FLOW

from dialled import Dialled
from opusagent import ProtocolError
from opusagent.dialects import BINARY, TEXT, Audio, Clear, Complaint, Dtmf, Mark, Pause, Start, Stop
from opusagent.dialects.audiohook import AudioHook
from opusagent.dialects.audiohook_caller import AudioHookCaller

LINES = ["", "media=L16", "channels=both", "media=L16&channels=both", "frame_ms=200"]


def caller_of(query=""):
    return AudioHookCaller(urlsplit(f"ws://127.0.0.1/ws/audiohook?{query}"))


def exchange(caller, ours):
    """What both say in answer to one another until there is nothing left; (our events, the other side's)."""
    events, heard = [], []
    while caller.outbox or ours.outbox:
        for message in ours.outbox:
            heard.append(caller.receive(*message))
        ours.outbox.clear()
        for opcode, message in caller.outbox:
            events.append(ours.receive(opcode, memoryview(message)))
        caller.outbox.clear()
    return [e for e in events if e is not None], [e for e in heard if e is not None]


def line(query=""):
    """(Genesys's side, ours) of an open session."""
    caller, ours = caller_of(query), AudioHook({})
    (opcode, message), = caller.open()
    assert ours.receive(opcode, memoryview(message)) == Start(caller.call_id, {
        "organizationId": "0a000000-0000-4000-8000-000000000001", "conversationId": caller.call_id, "language": "en-US",
        "ani": "tel:+15550100", "aniName": "", "dnis": "tel:+15550199"}, "0a000000-0000-4000-8000-000000000001")
    assert exchange(caller, ours) == ([], [])
    return caller, ours


# ---- both ends -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("query", LINES)
@pytest.mark.parametrize("ms", [20, 200, 1000])
def test_audio_comes_back_as_it_went(query, ms):
    caller, ours = line(query)
    pcm = numpy.random.default_rng(3).integers(-30000, 30000, 8 * ms).astype(numpy.int16)
    for _ in range(2):
        message = None
        beats = 0
        while message is None:
            message, beats = caller.audio(pcm), beats + 1
        heard = numpy.array(ours.receive(*message).pcm)
        assert len(heard) == beats * len(pcm) and ("L16" not in query or (heard[:len(pcm)] == pcm).all())
        again = numpy.array(caller.receive(BINARY, ours.audio(heard)).pcm)
        assert (again == heard).all()
        pcm = heard[:len(pcm)][::-1].copy()


def test_every_code_of_mu_law_comes_back():
    _, ours = line()
    codes = bytes(range(256))
    assert ours.audio(ours.receive(BINARY, memoryview(codes)).pcm) == codes.replace(b"\x7f", b"\xff")     # minus zero


def test_a_call_from_open_to_closed():
    caller, ours = line()
    assert ours.receive(*caller.dtmf("#")) == Dtmf("#")
    ours.tell("FACTS", {"card": "ten of clubs"})
    assert caller.receive(TEXT, ours.stop()) is None
    events, heard = exchange(caller, ours)
    assert events == [Stop("disconnect")] and heard == [Stop()]
    assert caller.stop() is None and caller.audio(numpy.zeros(160, numpy.int16)) is None


def test_a_caller_who_hangs_up():
    caller, ours = line()
    assert ours.receive(*caller.stop()) == Stop("end")
    assert exchange(caller, ours) == ([], [Stop()])


def test_what_has_been_played_is_known():
    caller, ours = line()
    beat = numpy.zeros(160, numpy.int16)
    caller.receive(BINARY, ours.audio(numpy.ones(320, numpy.int16)))
    ours.mark("1:320")
    for _ in range(2):
        assert exchange(caller, ours) == ([], [])
        caller.audio(beat)
    assert exchange(caller, ours)[0] == [Mark("1:320")]


def test_a_barge_in_clears_and_its_mark_is_never_reached():
    caller, ours = line()
    beat = numpy.zeros(160, numpy.int16)
    caller.receive(BINARY, ours.audio(numpy.ones(8000, numpy.int16)))
    ours.mark("1:8000")
    assert caller.receive(TEXT, ours.clear()) == Clear()
    caller.audio(beat)
    assert exchange(caller, ours) == ([], [])


@pytest.mark.parametrize("ms", [20, 100, 200, 500])
def test_long_messages_leave_no_holes_between_them(ms):
    call = Dialled(FLOW, "audiohook", f"frame_ms={ms}")
    call.silence(ms)
    began = call.call.slot.written                  # with the time before the first of them
    for _ in range(4):
        call.silence(480)
        call.passes(20)                             # late by this much
        call.silence(20)
    assert (call.call.slot.written - began) // 8 == 2000


def test_pings_are_answered_at_once_and_missed_if_they_are_not():
    caller, ours = line()
    beat = numpy.zeros(160, numpy.int16)
    sent = 0
    for _ in range(600):                            # 12 s: after 1 s, then every 5 s
        caller.audio(beat)
        sent += any(b'"ping"' in message for _, message in caller.outbox)
        exchange(caller, ours)
    assert sent == 3
    while not caller.outbox:
        caller.audio(beat)
    caller.outbox.clear()                           # a ping that is lost
    while not caller.outbox:
        caller.audio(beat)
    assert [json.loads(message)["type"] for _, message in caller.outbox] == ["error", "close"]


def test_positions_are_of_the_audio_that_was_sent():
    caller, _ = line("frame_ms=100")
    for _ in range(12):
        caller.audio(numpy.zeros(160, numpy.int16))
    assert json.loads(caller.dtmf("1")[1])["position"] == "PT0.200S"


@pytest.mark.parametrize("query", ["media=opus", "frame_ms=x", "limit=-1"])
def test_a_caller_is_asked_for_what_there_is(query):
    with pytest.raises(ProtocolError) as refused:
        caller_of(query)
    assert refused.value.code == 400


# ---- what Genesys would not take -------------------------------------------------------------------------------------

def server_message(caller, **changes):
    return json.dumps({"version": "2", "type": "event", "id": caller.call_id, "seq": 2, "clientseq": 1,
                       "parameters": {"entities": [{"type": "barge_in", "data": {}}]}} | changes).encode()


@pytest.mark.parametrize("changes", [
    {"seq": 3}, {"seq": 1}, {"seq": "2"}, {"version": 2}, {"id": "another"}, {"clientseq": 2}, {"clientseq": -1},
    {"type": "paused"}, {"parameters": None}, {"parameters": {}}, {"type": "opened", "parameters": {"media": []}},
    {"type": "pong", "parameters": {}}, {"type": "closed", "parameters": {}},
    {"type": "disconnect", "parameters": {"reason": "done"}},
    {"type": "disconnect", "parameters": {"reason": "completed", "outputVariables": {"n": 1}}},
    {"parameters": {"entities": [{"type": "bot_turn_response", "data": {"disposition": "ok"}}]}},
    {"parameters": {"entities": [{"type": "barge_in", "data": {}}] * 2}}, {"parameters": {"text": "x" * 70000}},
])
def test_a_simulated_genesys_is_strict(changes):
    caller, _ = line()
    with pytest.raises(ProtocolError):
        caller.receive(TEXT, server_message(caller, **changes))
    caller, _ = line()
    assert caller.receive(TEXT, server_message(caller)) == Clear()


def test_audio_is_neither_early_nor_too_long():
    with pytest.raises(ProtocolError):
        caller_of().receive(BINARY, b"\xff")
    caller, _ = line()
    assert len(caller.receive(BINARY, bytes(64000)).pcm) == 64000
    for payload in (bytes(64001), b""):
        with pytest.raises(ProtocolError):
            caller.receive(BINARY, payload)


def test_messages_are_counted():
    caller, ours = line("limit=5")
    for _ in range(9):                              # ten at once, and one was `opened`
        caller.receive(BINARY, b"\xff")
    with pytest.raises(ProtocolError, match="429"):
        caller.receive(BINARY, b"\xff")


# ---- conversations ---------------------------------------------------------------------------------------------------

def test_a_conversation_within_the_limits():
    """The greeting lasts for 12 s, and no more than five messages a second leave, whatever is said."""
    call = Dialled(FLOW.replace("Which card do you have?", "word " * 240), "audiohook", "limit=5")
    call.listens()
    call.says("ten of clubs")
    call.says("yes")
    call.listens()
    assert call.connection.closed == (1000, "") and call.call.done
    texts = [json.loads(message) for opcode, message in call.sent if opcode == TEXT]
    assert [message["seq"] for message in texts] == list(range(1, len(texts) + 1))
    assert [message["type"] for message in texts if message["type"] != "pong"] == [
        "opened", "event", "event", "event", "disconnect", "closed"]
    assert texts[-2]["parameters"] == {"reason": "completed", "outputVariables": call.call.dialogue.facts}
    greeting = [len(message) for opcode, message in call.sent if opcode == BINARY][:60]
    assert set(greeting) == {1600}


def test_a_barge_in_is_an_event_and_the_next_reply_is_heard():
    call = Dialled(FLOW, "audiohook", "limit=5")
    call.listens()
    call.speech(600, "ten of clubs")
    call.silence(600)
    call.speech(400, "no")
    assert call.heard.count("Clear") == 1 and call.receipts[-1]["stopped_by"] == "barge-in"
    call.silence(400)
    assert call.state == "card"
    call.listens()
    assert call.agent_says[-1] == "Which card do you have?"


def test_an_error_429_silences_the_agent_for_as_long_as_genesys_says():
    call = Dialled(FLOW.replace("Which card do you have?", "word " * 100), "audiohook")
    call.silence(500)
    call.send(call.caller._message("error", {"code": 429, "message": "", "retryAfter": "PT1.5S"}))
    sent = len(call.sent)
    call.silence(1400)
    assert len([1 for opcode, _ in call.sent[sent:] if opcode == BINARY]) == 0
    call.silence(300)
    assert len([1 for opcode, _ in call.sent[sent:] if opcode == BINARY]) > 0
    call.listens()
    assert call.agent_says[0].split() == ["word"] * 100


@pytest.mark.parametrize("duration, seconds", [("PT2S", 2), ("PT0.5S", 0.5), ("PT999S", 60), ("3", 3), (None, 3),
                                               ("PT-1S", 3)])
def test_how_long_that_is(duration, seconds):
    ours = line()[1]
    error = {"type": "error", "id": ours._id, "parameters": {"code": "429", "retryAfter": duration}}
    ours.receive(TEXT, json.dumps(error).encode())
    assert ours._hold == seconds * 8000 and ours.held


def test_what_genesys_says_it_has_played_is_taken_into_account():
    call = Dialled(FLOW, "audiohook")
    call.listens()
    call.silence(100)
    assert call.call.dialect._mark is None \
        and call.call.mouth.playout.heard(call.server.now) == call.call.mouth.playout.sent


def test_a_caller_on_hold_is_not_asked_for_an_answer():
    call = Dialled(FLOW, "audiohook")
    call.listens()
    call.send(call.caller._message("paused", {}))
    call.passes(20_000)
    assert call.agent_says == ["Which card do you have?"]
    call.send(call.caller._message("resumed", {"start": "PT1S", "discarded": "PT20S"}))
    call.says("ten of clubs")
    assert call.state == "sure"


def test_a_caller_who_hangs_up_while_we_speak():
    call = Dialled(FLOW, "audiohook")
    call.silence(60)
    call.send(call.caller.stop())
    call.exchange()
    assert call.connection.closed == (1000, "") and call.heard[-1] == "Stop"


# ---- whatever else ---------------------------------------------------------------------------------------------------

TYPES = ["open", "close", "ping", "update", "paused", "pause", "resumed", "resume", "dtmf", "playback_started",
         "playback_completed", "discarded", "error", "x"]
ODD = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=2)
CHANNELS = st.lists(st.sampled_from(["external", "internal", 1, None]), max_size=3) | ODD
MEDIA = st.fixed_dictionaries({}, optional={
    "type": st.sampled_from(["audio", "video"]), "format": st.sampled_from(["PCMU", "L16", "OPUS"]) | ODD,
    "channels": CHANNELS, "rate": st.sampled_from([8000, "8000", 16000]) | ODD})
GOOD = st.sampled_from([{"format": "PCMU", "channels": ["external"], "rate": 8000},
                        {"format": "L16", "channels": ["internal", "external"], "rate": 8000}])
PARAMETERS = st.fixed_dictionaries({}, optional={
    "media": st.lists(GOOD | MEDIA | ODD, max_size=3) | ODD,
    "participant": st.dictionaries(st.text(max_size=3), ODD) | ODD,
    "digit": st.sampled_from(["1", "#", "12"]) | ODD, "reason": ODD, "language": ODD, "supportedLanguages": ODD,
    "inputVariables": st.dictionaries(st.text(max_size=3), ODD) | ODD})
MESSAGES = st.fixed_dictionaries({"type": st.sampled_from(TYPES) | ODD, "id": st.sampled_from(["s", "s", "s", "t"]),
                                  "parameters": PARAMETERS | ODD}, optional={"seq": ODD})
STEPS = (MESSAGES | st.binary(max_size=9) | st.sampled_from(["audio", "clear", "mark"])
         | st.sampled_from([("REPLIED", "answer", "a"), ("FACTS", {"a": "b"}), ("NEWS", 1), ("SPEECH_STARTED",)]))


@settings(deadline=None, max_examples=200)
@given(st.lists(STEPS, max_size=30))
def test_whatever_comes_our_numbers_have_no_gap_and_events_are_in_order(steps):
    ours, events, sent = AudioHook({}), [], []
    for step in steps:
        message = None
        if isinstance(step, dict):
            events.append(ours.receive(TEXT, memoryview(json.dumps(step).encode())))
        elif isinstance(step, bytes):
            event = ours.receive(BINARY, memoryview(step))
            assert event is None or len(event.pcm) > 0
            events.append(event)
        elif isinstance(step, tuple):
            ours.tell(*step)
        elif step == "audio":
            ours.audio(numpy.zeros(20, numpy.int16))
        else:
            message = ours.clear() if step == "clear" else ours.mark("m")
        sent += [text for _, text in ours.outbox] + ([message] if message else [])
        ours.outbox.clear()
    assert [json.loads(message)["seq"] for message in sent] == list(range(1, len(sent) + 1))
    kind = [type(event) for event in events if event is not None]
    assert set(kind) <= {Start, Audio, Dtmf, Mark, Pause, Complaint, Stop} \
        and kind.count(Start) <= 1 and kind.count(Stop) <= 1
    assert not kind or kind[0] is Start
    assert Stop not in kind or kind[-1] is Stop
    pauses = [event.over for event in events if isinstance(event, Pause)]
    assert pauses == [False, True] * (len(pauses) // 2) + [False] * (len(pauses) % 2)


# ---- the monitor, which is not spoken to -----------------------------------------------------------------------------

MONITORED = """
start = "listening"
facts = { card = "" }
[states.listening]
say = "This would be heard, if anybody could."
on = [{ phrases = ["ten of clubs"], fact = "card", go = "more" }]
[states.more]
say = "Thank you."
on = [{ phrases = ["that is all"], go = "done" }]
[states.done]
say = "Goodbye."
end = true
"""


def entities(call):
    """The data of the events that Genesys was sent, by type."""
    texts = [json.loads(message) for opcode, message in call.sent if opcode == TEXT]
    return [(entity["type"], entity["data"]) for text in texts if text["type"] == "event"
            for entity in text["parameters"]["entities"]]


@pytest.mark.parametrize("query", ["mode=monitor", "mode=monitor&channels=both&media=L16"])
def test_a_monitor_follows_what_is_said_and_says_nothing(query):
    call = Dialled(MONITORED, "audiohook", query)
    call.says("ten of clubs")
    assert call.state == "more"
    call.silence(60_000)                            # an agent in the flesh talks, and nobody has to answer us
    call.says("that is all")
    call.exchange()
    assert call.call.done and call.connection.closed == (1000, "") \
        and call.call.dialogue.facts["card"] == "ten of clubs"
    assert not [opcode for opcode, _ in call.sent if opcode == BINARY] and not any(call.agent_says)
    assert [receipt["caller"] for receipt in call.receipts if receipt["caller"]] == ["ten of clubs", "that is all"]
    said = entities(call)
    assert {kind for kind, _ in said} == {"transcript"}
    assert [data["alternatives"][0]["interpretations"][0]["transcript"] for _, data in said] == ["ten of clubs",
                                                                                               "that is all"]
    assert len({data["id"] for _, data in said}) == 2 and {data["channelId"] for _, data in said} == {0}
    parting = [json.loads(message) for opcode, message in call.sent if b'"disconnect"' in message]
    assert [message["parameters"] for message in parting] == [{"reason": "completed"}]


def test_a_monitor_asks_no_model_and_is_not_reprompted_after_a_hold():
    call = Dialled(MONITORED.replace('say = "Thank you."', 'prompt = "Be kind."'), "audiohook", "mode=monitor")
    call.says("ten of clubs")
    call.send(call.caller._message("paused", {}))
    call.passes(20_000)
    call.send(call.caller._message("resumed", {"start": "PT1S", "discarded": "PT20S"}))
    call.silence(30_000)
    assert call.state == "more" and call.studio.llm.asked == []
    assert [receipt["kind"] for receipt in call.receipts] == ["begin", "answer"]


def test_the_channel_that_is_heard_is_chosen():
    ours = AudioHook({"mode": "monitor", "channel": "internal"})
    caller = caller_of("mode=monitor&channels=both")
    (opcode, message), = caller.open()
    assert isinstance(ours.receive(opcode, memoryview(message)), Start)
    assert list(ours.receive(BINARY, memoryview(b"\x80\x00\x80\x00")).pcm) == [-32124, -32124]
    ours.tell("RECOGNITION", "good morning", 0.5, (1200, 2000))
    assert json.loads(ours.outbox[-1][1])["parameters"]["entities"][0]["data"]["channelId"] == 1
    ours.tell("RECOGNITION", "", 0.0, (2000, 2000))
    ours.tell("REPLIED", "answer", "x")
    assert len(ours.outbox) == 2, "nothing else is told"
    alone = AudioHook({"mode": "monitor", "channel": "internal"})
    (opcode, message), = caller_of("mode=monitor").open()
    assert alone.receive(opcode, memoryview(message)) is None and b'"disconnect"' in alone.outbox[-1][1]
    for query in ({"mode": "listen"}, {"channel": "both"}):
        with pytest.raises(ProtocolError) as refused:
            AudioHook(query)
        assert refused.value.code == 400


@pytest.mark.parametrize("message", [(BINARY, b"\xff"), (TEXT, "barge_in"), (TEXT, "bot_turn_response")])
def test_a_simulated_monitor_takes_neither_audio_nor_what_a_bot_says(message):
    opcode, content = message
    caller, ours = caller_of("mode=monitor"), AudioHook({"mode": "monitor"})
    (first, opened), = caller.open()
    ours.receive(first, memoryview(opened))
    exchange(caller, ours)
    if opcode == TEXT:
        data = {} if content == "barge_in" else {"disposition": "match"}
        content = server_message(caller, parameters={"entities": [{"type": content, "data": data}]})
    with pytest.raises(ProtocolError):
        caller.receive(opcode, content)
