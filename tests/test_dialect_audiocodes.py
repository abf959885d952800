"""AudioCodes: the platform's side against ours, conversations as it would hear them, and whatever else may come."""
import base64
import json
from urllib.parse import urlsplit

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_call import FLOW

from dialled import Dialled
from opusagent import ProtocolError
from opusagent.config import Config
from opusagent.dialects import TEXT, Audio, Clear, Dtmf, Pause, Start, Stop
from opusagent.dialects.audiocodes import FORMATS, AudioCodes
from opusagent.dialects.audiocodes_caller import AudioCodesCaller

LINES = [*FORMATS, "wav/mulaw,raw/mulaw", "raw/lpcm16,raw/lpcm16_24"]


def caller_of(query=""):
    return AudioCodesCaller(urlsplit(f"ws://127.0.0.1/ws/audiocodes?{query}"))


def line(query=""):
    """(the platform's side, ours, our events) after both have said all they have to say before the first word."""
    caller, ours = caller_of(query), AudioCodes({})
    events, messages = [], caller.open()
    while messages:
        for opcode, message in messages:
            events.append(ours.receive(opcode, memoryview(message)))
        for opcode, message in ours.outbox:
            assert caller.receive(opcode, message) is None
        ours.outbox.clear()
        messages, caller.outbox[:] = caller.outbox[:], []
    return caller, ours, [event for event in events if event is not None]


def play(caller, ours, pcm):
    """What the platform hears of our audio."""
    message = ours.audio(pcm)
    for answer in ours.outbox:
        assert caller.receive(*answer) is None
    ours.outbox.clear()
    return numpy.array(caller.receive(TEXT, message).pcm)


def kinds(messages):
    return [json.loads(message)["type"] for _, message in messages]


# ---- both ends -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("formats", LINES)
@pytest.mark.parametrize("ms", [10, 20, 1000])
def test_audio_comes_back_as_it_went(formats, ms):
    caller, ours, (start,) = line(f"format={formats}")
    assert isinstance(start, Start) and start.call_id == caller.call_id and start.facts["callee"] == "+15550199"
    assert caller.rate == ours.rate
    pcm = numpy.random.default_rng(3).integers(-30000, 30000, ours.rate * ms // 1000).astype(numpy.int16)
    for _ in range(2):
        heard = numpy.array(ours.receive(*caller.audio(pcm)).pcm)
        assert len(heard) == len(pcm) and ("mulaw" in formats or (heard == pcm).all())
        assert (play(caller, ours, heard) == heard).all()
        ours.tell("REPLIED", "answer", "")
        assert caller.receive(*ours.outbox.pop()) == Clear()


def test_every_code_of_mu_law_comes_back():
    _, ours, _ = line("format=raw/mulaw")
    codes = bytes(range(256))
    chunk = {"type": "userStream.chunk", "audioChunk": base64.b64encode(codes).decode()}
    audio = ours.receive(TEXT, memoryview(json.dumps(chunk).encode()))
    back = base64.b64decode(json.loads(ours.audio(audio.pcm))["audioChunk"])
    assert back == codes.replace(b"\x7f", b"\xff")     # minus zero


def test_a_call_from_start_to_stop():
    caller, ours, _ = line()
    assert ours.receive(*caller.dtmf("#")) == Dtmf("#")
    play(caller, ours, numpy.zeros(320, numpy.int16))
    assert caller.receive(TEXT, ours.clear()) == Clear()
    assert ours.clear() is None and ours.mark("one") is None
    assert caller.receive(TEXT, ours.stop()) == Stop()
    assert ours.receive(*caller.outbox.pop()) == Stop("Bot Side")
    assert ours.ignored == 0


def test_a_caller_who_hangs_up():
    caller, ours, _ = line()
    assert ours.receive(*caller.stop()) == Stop("Client Side")


@pytest.mark.parametrize("formats", ["raw/opus", "", "raw/lpcm16,x"])
def test_an_offer_names_formats(formats):
    with pytest.raises(ProtocolError, match="raw/mulaw, raw/lpcm16") as refused:
        caller_of(f"format={formats}&" if formats else "format=,")
    assert refused.value.code == 400


def test_no_audio_is_sent_before_the_stream_is_taken():
    caller = caller_of()
    assert caller.audio(numpy.zeros(320, numpy.int16)) is None


# ---- what the platform would not take --------------------------------------------------------------------------------

def playing():
    caller, ours, _ = line()
    play(caller, ours, numpy.zeros(320, numpy.int16))
    return caller


@pytest.mark.parametrize("message", [
    {"type": "playStream.start", "streamId": "2", "mediaFormat": "raw/lpcm16"},
    {"type": "playStream.chunk", "streamId": "2", "audioChunk": "AAA="},
    {"type": "playStream.chunk", "streamId": 1, "audioChunk": "AAA="},
    {"type": "playStream.chunk", "streamId": "1", "audioChunk": "A"},
    {"type": "playStream.stop", "streamId": "2"},
    {"type": "userStream.speech.hypothesis", "text": "ten"}, {"type": "userStream.speech.heard"},
    {"type": "session.resumed"}, {"type": "session.error", "reason": "no"}, {"type": "activities", "activities": []},
    {"type": "session.accepted", "mediaFormat": "raw/mulaw"}, {},
])
def test_a_simulated_platform_is_strict(message):
    caller = playing()
    with pytest.raises(ProtocolError):
        caller.receive(TEXT, json.dumps(message).encode())


def test_a_play_stream_is_not_opened_twice_nor_in_another_format():
    for stream, media_format in (("1", "raw/lpcm16"), ("2", "raw/mulaw"), ("", "raw/lpcm16"), (None, "raw/lpcm16")):
        caller = playing()
        assert caller.receive(TEXT, b'{"type":"playStream.stop","streamId":"1"}') == Clear()
        with pytest.raises(ProtocolError):
            message = {"type": "playStream.start", "streamId": stream, "mediaFormat": media_format}
            caller.receive(TEXT, json.dumps(message).encode())


def test_a_platform_is_fed_at_the_speed_of_speech():
    caller, ours, _ = line()
    second = numpy.zeros(16000, numpy.int16)
    play(caller, ours, second)
    play(caller, ours, second)
    with pytest.raises(ProtocolError, match="speed"):
        play(caller, ours, second)


# ---- conversations ---------------------------------------------------------------------------------------------------

def test_a_conversation_is_one_play_stream_for_each_reply():
    call = Dialled(FLOW, "audiocodes")
    call.listens()
    call.says("ten of clubs")
    call.says("yes")
    call.listens()
    sent = kinds(call.sent)
    assert sent.count("playStream.start") == sent.count("playStream.stop") == 3
    assert call.connection.closed == (1000, "") and call.call.done
    speech = [kind.rpartition(".")[2] for kind in sent if kind.startswith("userStream.speech.")]
    assert speech == ["started", "hypothesis", "stopped", "committed", "recognition"] * 2
    assert call.call.dialogue.facts["card"] == "ten of clubs"


def test_a_reply_is_closed_only_when_it_has_been_heard():
    call = Dialled(FLOW, "audiocodes")
    call.listens()
    *_, (_, last_chunk), (_, stop) = [m for m in call.sent if b"playStream" in m[1]]
    assert b"playStream.chunk" in last_chunk and b"playStream.stop" in stop
    assert call.caller._unplayed == 0 and call.heard.count("Clear") == 1


def test_a_barge_in_stops_the_play_stream_at_once():
    call = Dialled(FLOW, "audiocodes")
    call.listens()
    call.speech(600, "ten of clubs")
    call.silence(600)
    call.speech(400, "no")
    assert kinds(call.sent)[-3:] == ["playStream.stop", "userStream.speech.started", "userStream.speech.hypothesis"]
    assert call.receipts[-1]["stopped_by"] == "barge-in"
    call.silence(400)
    assert call.state == "card"


def test_a_platform_without_barge_in_is_deaf_while_we_speak_and_nobody_minds():
    call = Dialled(FLOW, "audiocodes", "bargeIn=off")
    call.listens()
    call.speech(600, "ten of clubs")
    call.silence(600)
    assert call.call.excused and call.call.mouth.turn is not None
    call.speech(400, "no")
    assert call.receipts[-1]["stopped_by"] == ""
    call.listens()
    call.says("yes")
    call.listens()
    assert call.connection.closed[0] == 1000 and call.call.done
    assert kinds(call.sent).count("userStream.stopped") == 2 and kinds(call.sent).count("userStream.started") == 3


def test_collected_keys_are_one_answer():
    call = Dialled("""
start = "number"
[states.number]
say = "Your number?"
on = [{ digits = 5, fact = "number", go = "bye" }]
[states.bye]
say = "Goodbye."
end = true
""", "audiocodes")
    call.presses(["12345"])
    assert call.call.dialogue.facts["number"] == "12345" and call.state == "bye"


# ---- whatever else ---------------------------------------------------------------------------------------------------

TYPES = ["session.initiate", "session.resume", "session.end", "userStream.start", "userStream.chunk", "userStream.stop",
         "activities", "connection.validate", "x"]
ODD = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=2)
ACTIVITY = st.fixed_dictionaries({"type": st.sampled_from(["event", "message", 1]),
                                  "name": st.sampled_from(["start", "DTMF", "hangup", "transferStatus", None])},
                                 optional={"value": ODD | st.sampled_from(["1", "42#"]), "activityParams": ODD,
                                           "parameters": ODD | st.dictionaries(st.text(max_size=4), ODD)})
FIELDS = {"conversationId": ODD, "participant": st.sampled_from(["caller", "agent"]) | ODD,
          "audioChunk": st.binary(max_size=9).map(bytes.hex) | st.sampled_from(["AAAA", "UklGRgAA"]) | ODD,
          "supportedMediaFormats": st.lists(st.sampled_from(list(FORMATS)) | ODD, max_size=3) | ODD,
          "expectAudioMessages": ODD, "activities": st.lists(ACTIVITY | ODD, max_size=3) | ODD, "reason": ODD}
MESSAGES = st.fixed_dictionaries({"type": st.sampled_from(TYPES) | ODD}, optional=FIELDS)
TOLD = st.sampled_from([("SPEECH_STARTED",), ("SPEECH_STOPPED",), ("HYPOTHESIS", "a"), ("RECOGNITION", "a", 0.5),
                        ("REPLIED", "answer", "a"), ("FACTS", {}), ("NEWS", 1)])


@settings(deadline=None, max_examples=200)
@given(st.lists(MESSAGES | TOLD | st.sampled_from(["audio", "clear"]), max_size=30))
def test_whatever_comes_play_streams_alternate_and_events_are_in_order(steps):
    ours, events, sent = AudioCodes({}), [], []
    for step in steps:
        if isinstance(step, dict):
            try:
                events.append(ours.receive(TEXT, memoryview(json.dumps(step).encode())))
            except ProtocolError as error:
                assert error.code in (1007, 1008) and 0 < len(error.reason.encode()) <= 123
        elif isinstance(step, tuple):
            ours.tell(*step)
        message = ours.audio(numpy.zeros(20, numpy.int16)) if step == "audio" else \
            ours.clear() if step == "clear" else None
        sent += ours.outbox + ([(TEXT, message)] if message else [])
        ours.outbox.clear()
    kind = [type(event) for event in events if event is not None]
    assert set(kind) <= {Start, Audio, Dtmf, Pause, Stop} and kind.count(Start) <= 1 and kind.count(Stop) <= 1
    assert not kind or kind[0] is Start
    assert Stop not in kind or kind[-1] is Stop
    pauses = [event.over for event in events if isinstance(event, Pause)]
    assert pauses == [False, True] * (len(pauses) // 2) + [False] * (len(pauses) % 2)
    plays = [name.rpartition(".")[2] for name in kinds(sent) if name.startswith("playStream.")]
    open_now = False
    for what in plays:
        assert open_now != (what == "start")
        open_now = what != "stop"


DESK = """
start = "hello"
[transfers]
desk = "+4930123456"
[states.hello]
say = "Who is it?"
on = [{ free = true, go = "desk" }]
[states.desk]
say = "I will put you through."
transfer = "desk"
failure = { say = ["Nobody is there."], go = "hello" }
"""


def test_a_caller_whom_nobody_takes_comes_back_to_the_flow():
    call = Dialled(DESK, "audiocodes", "transfer=busy")
    call.call.server.departures.config = Config(targets=("+4930*",))
    call.listens()
    call.says("it is me")
    call.listens()
    assert call.agent_says[-1] == "Nobody is there. Who is it?" and not call.call.done and call.state == "hello"
    assert call.connection.closed is None
    assert call.call.server.metrics.counters["transfers", (("outcome", "failed"),)] == 1
