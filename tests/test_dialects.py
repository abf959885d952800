"""Dialects: recorded calls both ways, both ends of a line against each other, and whatever else a peer may send.

tests/data/<dialect>/*.jsonl: after a line about the call, one message a line, "in" with the event it must become (and
how many were ignored by then), or "out" with the verb that makes it; "answers" are what it leaves in the outbox.  A
payload that is text is sent as it stands; where there is no WebSocket, a message has a "kind" in its opcode's place.
"""
import base64
import gc
import json
import tracemalloc
from operator import attrgetter
from pathlib import Path
from urllib.parse import urlsplit

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opusagent import ProtocolError
from opusagent.dialects import (BINARY, CALLERS, REMEMBERED_MARKS, SPOKEN, TABLE, TEXT, Ask, Audible, Audio, Clear,
                                Complaint, Dtmf, Mark, Marks, Pause, Returned, Start, Stop)

DATA = Path(__file__).parent / "data"
CALLS = sorted(DATA.glob("*/*.jsonl"))
EVENTS = (Start, Audio, Dtmf, Mark, Pause, Complaint, Returned, Stop, Ask)


def read(path):
    """(what the call is about, its messages)."""
    about, *messages = map(json.loads, path.read_text().splitlines())
    return about, messages


def wire(line):
    """The message of a line: opcode and a payload that dies, as the parser's do."""
    if "binary" in line:
        return line.get("kind", BINARY), memoryview(bytes.fromhex(line["binary"]))
    payload = line["payload"]
    text = payload if isinstance(payload, str) else json.dumps(payload, separators=(",", ":"))
    return TEXT, memoryview(text.encode())


def plain(event):
    """An event as it is written in the data."""
    if event is None:
        return None
    fields = {name: getattr(event, name) for name in event.__slots__ if name != "tenant" or event.tenant}
    return {type(event).__name__: {name: list(v) if name in ("pcm", "other") else v for name, v in fields.items()}}


def outcome(dialect, opcode, payload):
    try:
        return plain(dialect.receive(opcode, payload))
    except ProtocolError as error:
        assert error.reason
        return {"ProtocolError": error.code}


def say(dialect, verb, *arguments):
    """What a verb puts on the wire, in the form of the data."""
    if verb == "audio":
        message = dialect.audio(numpy.array(*arguments, numpy.int16))
        return {"binary": message.hex()} if dialect.opcode == BINARY else {"payload": json.loads(message)}
    message = attrgetter(verb)(dialect)(*arguments)
    return {"payload": written(message) if isinstance(message, bytes) else None}


def written(message):
    """A text message in the form of the data: as JSON where it is."""
    return json.loads(message) if message[:1] == b"{" else message.decode()


def answers(dialect):
    """What is in the outbox, which is empty then, in the form of the data."""
    taken, dialect.outbox[:] = list(dialect.outbox), []
    return [{"binary": message.hex()} if opcode == BINARY else json.loads(message) for opcode, message in taken]


@pytest.mark.parametrize("path", CALLS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_recorded_call_becomes_its_events(path):
    about, messages = read(path)
    dialect = SPOKEN[path.parent.name](about.get("query", {}))
    assert plain(dialect.open()) == about.get("opens")
    for line in messages:
        if line["direction"] == "in":
            assert outcome(dialect, *wire(line)) == line["event"], line
        else:
            expected = {name: line[name] for name in ("binary", "payload") if name in line}
            assert say(dialect, *line["verb"]) == expected, line
        assert dialect.ignored == line.get("ignored", dialect.ignored), line
        assert answers(dialect) == line.get("answers", []), line


@pytest.mark.parametrize("name", TABLE)
def test_every_dialect_says_what_the_server_must_know(name):
    dialect = TABLE[name]({})
    assert dialect.name == name and dialect.opcode in (TEXT, BINARY)
    assert dialect.rate in (8000, 16000, 24000, 48000)
    assert 0 < dialect.max_message <= 16 << 20 and dialect.lead_ms >= 20
    assert TABLE[name].__doc__ and not hasattr(dialect, "__dict__")


# ---- both ends of the line -------------------------------------------------------------------------------------------

def dial(name, query=""):
    """(the platform's side, our side, what it heard when the call began)."""
    url = urlsplit(f"ws://127.0.0.1/ws/{name}?{query}")
    ours = TABLE[name](dict(pair.split("=") for pair in query.split("&") if pair))
    caller = CALLERS[name](url)
    began = [ours.open()] + [ours.receive(opcode, memoryview(message)) for opcode, message in caller.open()]
    return caller, ours, [event for event in began if event is not None]


LINES = [("twilio", ""), ("twilio", "exotel=8000"), ("twilio", "exotel=24000"), ("pcm", ""), ("pcm", "rate=48000"),
         ("pcm", "rate=8000&start=message"), ("telnyx", ""), ("telnyx", "codec=PCMA"), ("telnyx", "codec=L16"),
         ("telnyx", "codec=L16&rate=24000&l16=big"),
         ("plivo", ""), ("plivo", "codec=L16&rate=16000"), ("vonage", ""), ("vonage", "rate=24000")]
LENGTHS = {"telnyx": (20, 1000), "vonage": (20,), "exotel": (100, 1000)}    # of messages that the platform takes, ms
TIMES = [(name, query, ms) for name, query in LINES
         for ms in LENGTHS.get(query.partition("=")[0], LENGTHS.get(name, (10, 20, 1000)))]


@pytest.mark.parametrize("name, query", LINES)
def test_a_simulated_call_from_start_to_stop(name, query):
    caller, ours, (start,) = dial(name, query)
    assert isinstance(start, Start) and caller.rate == ours.rate
    assert start.call_id in (caller.call_id, "")
    assert ours.receive(*caller.dtmf("#")) == Dtmf("#")
    assert caller.receive(TEXT, ours.mark("one")) == Mark("one")
    assert ours.receive(*caller.mark("one")) == Mark("one")
    assert caller.receive(TEXT, ours.mark("two")) == Mark("two")
    assert caller.receive(TEXT, ours.clear()) == Clear()
    for message in caller.outbox:
        assert ours.receive(*message) is None
    if (message := caller.mark("two")) is not None:         # some say nothing of what they have cleared
        assert ours.receive(*message) == Mark("two", cleared=True)
    if (message := caller.stop()) is not None:              # and some just close
        assert ours.receive(*message) == Stop()
    assert ours.ignored == 0


@pytest.mark.parametrize("name, query, ms", TIMES)
def test_audio_comes_back_as_it_went(name, query, ms):
    caller, ours, _ = dial(name, query)
    codes = numpy.random.default_rng(7).integers(-30000, 30000, ours.rate * ms // 1000).astype(numpy.int16)
    for _ in range(2):      # the second time through memory that has been used
        pcm = numpy.array(ours.receive(*caller.audio(codes)).pcm)
        assert len(pcm) == len(codes)
        again = numpy.array(caller.receive(ours.opcode, ours.audio(pcm)).pcm)
        assert (again == pcm).all()
        codes = pcm[::-1].copy()
    if name in ("pcm", "vonage") or "L16" in query or "exotel" in query:
        assert (pcm[::-1] == codes).all()


def test_two_callers_have_two_names():
    for name in CALLERS:
        url = urlsplit(f"ws://h/ws/{name}")
        assert CALLERS[name](url).call_id != CALLERS[name](url).call_id


def test_the_plain_protocol_names_its_rates():
    for rate in ("44100", "", "16k", "-8000", "016000"):
        with pytest.raises(ProtocolError, match="8000, 16000, 24000, 48000") as refused:
            TABLE["pcm"]({"rate": rate})
        assert refused.value.code == 400


def messages_while_live(name):
    """[(query, what a recorded call sends between its start and its stop)], one of each recording."""
    for path in CALLS:
        if path.parent.name == name:
            about, lines = read(path)
            lines = [line for line in lines if line["direction"] == "in"]
            kept = [wire(line) for line in lines if not {"Stop", "ProtocolError"} & set(line["event"] or {})]
            yield about.get("query", {}), kept


@pytest.mark.parametrize("name", TABLE)
def test_a_long_call_keeps_no_more_than_a_short_one(name):
    calls = [(TABLE[name](query), messages) for query, messages in messages_while_live(name)]

    def hold(rounds):
        """Bytes that are kept after so many rounds of every call."""
        for i in range(rounds):
            for dialect, messages in calls:
                for opcode, payload in messages:
                    outcome(dialect, opcode, payload)
                dialect.mark(f"{i}")
                dialect.clear() if i % 3 == 0 else None
                dialect.audio(numpy.zeros(dialect.rate // 50, numpy.int16))
                dialect.outbox.clear()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    for dialect, _ in calls:
        dialect.open()
    tracemalloc.start()
    try:
        before = hold(REMEMBERED_MARKS + 50)
        assert hold(100) - before < 20_000
    finally:
        tracemalloc.stop()


def test_twilio_would_not_play_another_streams_audio():
    caller, ours, _ = dial("twilio")
    stranger, _, _ = dial("twilio")
    for message in (ours.mark("m"), ours.clear(), b'{"event":"media"}', b"{}"):
        with pytest.raises(ProtocolError):
            stranger.receive(TEXT, message)
    with pytest.raises(ProtocolError, match="31950"):
        caller.receive(BINARY, b"")


def test_marks_that_are_never_echoed_are_forgotten():
    marks = Marks()
    for i in range(10 * REMEMBERED_MARKS):
        marks.sent(str(i))
    assert marks.echoed("0") is None
    assert marks.echoed(str(10 * REMEMBERED_MARKS - 1)) is not None


# ---- whatever a peer may send ----------------------------------------------------------------------------------------

RECORDED = {name: [wire(line) for path in CALLS if path.parent.name == name
                   for line in read(path)[1] if line["direction"] == "in"] for name in TABLE}
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3))
NAMES = st.sampled_from(["event", "start", "media", "dtmf", "mark", "stop", "end", "payload", "track", "digit", "name",
                         "streamSid", "mediaFormat", "encoding", "sampleRate", "customParameters", "facts", "call_id",
                         "media_format", "sample_rate", "custom_parameters", "chunk", "streamId", "extra_headers",
                         "content-type", "action"])
WORDS = NAMES | st.sampled_from(["inbound", "////", "8000", "audio/x-mulaw", "5", "", "PCMA", "L16", "audio/x-l16",
                                 "playedStream", "playAudio", "checkpoint", "websocket:connected", "websocket:notify",
                                 "clear", "notify", "audio/l16;rate=8000"]) | JSON
ALIEN = st.dictionaries(NAMES, WORDS | st.dictionaries(NAMES, WORDS | st.dictionaries(NAMES, WORDS)))


@st.composite
def messages(draw, name):
    """A recorded message whole, cut short, or with one byte changed; or an alien one, or bytes."""
    opcode, payload = draw(st.sampled_from(RECORDED[name]))
    kind = draw(st.sampled_from(["whole"] * 6 + ["cut", "changed", "alien", "bytes"]))
    if kind == "cut":
        payload = payload[:draw(st.integers(0, len(payload)))]
    elif kind == "changed" and len(payload):
        at = draw(st.integers(0, len(payload) - 1))
        payload = bytes(payload[:at]) + bytes([draw(st.integers(0, 255))]) + bytes(payload[at + 1:])
    elif kind == "alien":
        opcode, payload = TEXT, json.dumps(draw(ALIEN)).encode()
    elif kind == "bytes":
        opcode, payload = draw(st.sampled_from([TEXT, BINARY])), draw(st.binary(max_size=40))
    return opcode, payload


@pytest.mark.parametrize("name", TABLE)
@settings(deadline=None)
@given(data=st.data())
def test_events_or_protocol_errors_and_nothing_else(name, data):
    query = data.draw(st.sampled_from([{}, {"start": "message"}]))
    dialect = TABLE[name](query)
    seen = [dialect.open()]
    for opcode, payload in data.draw(st.lists(messages(name), max_size=12)):
        try:
            event = dialect.receive(opcode, memoryview(payload))
        except ProtocolError as error:
            assert error.code in (1003, 1007, 1008) and 0 < len(error.reason.encode()) <= 123
            continue
        assert event is None or isinstance(event, EVENTS)
        seen.append(event)
        if isinstance(event, Audio):
            assert event.pcm.format == "h" and len(event.pcm) > 0
    kinds = [type(event) for event in seen if event is not None]
    assert kinds.count(Start) <= 1 and kinds.count(Stop) <= 1
    assert not kinds or kinds[0] is Start
    assert Stop not in kinds or kinds[-1] is Stop


@pytest.mark.parametrize("name", CALLERS)
@settings(deadline=None)
@given(data=st.data())
def test_a_caller_survives_what_a_server_may_send(name, data):
    caller = CALLERS[name](urlsplit(f"ws://h/ws/{name}"))
    for opcode, payload in data.draw(st.lists(messages(name), max_size=4)):
        try:
            event = caller.receive(opcode, memoryview(payload))
        except ProtocolError:
            continue
        assert event is None or isinstance(event, (Audio, Mark, Clear, Stop))


# ---- the one pass against the JSON parser ----------------------------------------------------------------------------

PAYLOADS = st.binary(min_size=1, max_size=24).map(lambda codes: base64.b64encode(codes).decode())
SPACES = st.sampled_from(["", "", "", " ", "\n", "\t", "  ", "\r\n"])
SCARS = ["=", "A", "AA", "A=", "AAA=", "==", "AAAA", " ", "\\n", "\\/", "-", "é", "\x00", "\""]
KEYS = ["event", "media", "track", "payload", "chunk", "timestamp", "streamSid", "x", "", r"\u0065vent", "Event"]
SCALARS = ["0", "1", "01", "-1", "1.5", "1e3", "12345678901234567890", "true", "null", "{}", "[]", "", "1 2", '"1"',
           '"', '"inbound"', '"outbound"', '"media"', '"event"', r'"a\"b"', r'"\u0041"', '"é"', '"\x01"', '""',
           r'"in\u0062ound"', '{"payload":"////"}', '"////"']
BLEMISHES = ["payload", "in media", "beside media", "event", "space", "end"]


def joined(draw, pairs):
    """An object of JSON texts in any order, with spaces."""
    return "{" + ",".join(f"{draw(SPACES)}{key}{draw(SPACES)}:{draw(SPACES)}{value}{draw(SPACES)}"
                          for key, value in draw(st.permutations(pairs))) + "}"


@st.composite
def media_messages(draw, blemishes=(None, None, None, *BLEMISHES)):
    """Media messages with one thing about them that is odd, perhaps wrong, or none."""
    blemish = draw(st.sampled_from(blemishes))
    pair = (f'"{draw(st.sampled_from(KEYS))}"', draw(st.sampled_from(SCALARS)))
    payload = draw(PAYLOADS) + (draw(st.sampled_from(SCARS)) if blemish == "payload" else "")
    media = [('"payload"', f'"{payload}"')] + draw(st.sampled_from([[], [('"track"', '"inbound"')]]))
    media = joined(draw, media + [('"chunk"', '"7"')] + ([pair] if blemish == "in media" else []))
    event = draw(st.sampled_from(SCALARS)) if blemish == "event" else '"media"'
    whole = [('"event"', event), ('"media"', media), ('"streamSid"', '"MZ1"')]
    text = joined(draw, whole + ([pair] if blemish == "beside media" else []))
    if blemish == "space":
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.sampled_from([" ", "\f", "\v", "\ufeff", ","])) + text[at:]
    rest = draw(st.sampled_from(["}", ",", "0", "\x00"])) if blemish == "end" else ""
    return draw(SPACES) + text + draw(SPACES) + rest


def live_twilio():
    dialect = TABLE["twilio"]({})
    dialect.receive(TEXT, b'{"event":"start","streamSid":"MZ1","start":{}}')
    return dialect


@settings(deadline=None, max_examples=300)
@given(media_messages())
def test_what_the_one_pass_takes_the_parser_reads_alike(text):
    message = text.encode()
    if (audio := Audible(64, "PCMU").media(message)) is not None:
        event = live_twilio()._read(json.loads(text))
        assert isinstance(event, Audio) and list(event.pcm) == list(audio.pcm)


@settings(deadline=None)
@given(media_messages(blemishes=[None]))
def test_a_plain_message_is_taken_and_no_part_of_it(text):
    message = text.strip().encode()
    assert Audible(32, "PCMU").media(message) is not None
    for end in range(len(message)):
        assert Audible(32, "PCMU").media(message[:end]) is None


USUAL = ('{"event":"media","sequenceNumber":"3","media":{"track":"inbound","chunk":"1","timestamp":"5","payload":"%s"},'
         '"streamSid":"MZ1"}')


@pytest.mark.parametrize("codes", [1, 2, 3, 159, 160, 161, 800])
def test_the_one_pass_takes_the_usual_message(codes):
    payload = base64.b64encode((bytes(range(256)) * 4)[:codes]).decode()
    usual = USUAL % payload
    for text in (usual, json.dumps(json.loads(usual)), json.dumps(json.loads(usual), indent=1),
                 '{"media":{"payload":"%s"},"event":"media"}' % payload):
        assert len(Audible(codes, "PCMU").media(text.encode()).pcm) == codes
        assert Audible(codes - 1, "PCMU").media(text.encode()) is None, "it is too long"


PLAIN = b'{"event":"media","media":{"payload":"////"}}'


@pytest.mark.parametrize("odd", [
    b'{"event":"media","event":"media","media":{"payload":"////"}}',
    b'{"event":"media","media":{"payload":"////"},"media":{"payload":"////"}}',
    b'{"event":"media","media":{"payload":"////","payload":"////"}}',
    b'{"event":"media","media":{"track":"inbound","track":"inbound","payload":"////"}}',
    b'{"event":"media","media":{"track":"inbound_track","payload":"////"}}',
    b'{"event":"media","media":{"track":"outbound","payload":"////"}}',
    b'{"event":"mark","media":{"payload":"////"}}', b'{"media":{"payload":"////"}}', b'{"event":"media"}',
    b'{"event":"media","payload":"////"}', b'{"event":"media","media":{}}', b'{"event":"media","media":"////"}',
    b'{"event":"media","media":{"payload":""}}', b'{"event":"media","media":{"payload":"///"}}',
    b'{"event":"media","media":{"payload":"\\/\\/\\/\\/"}}', b'{"event":"media","media":{"payload":"/\\/=="}}',
    b'{"event":"media","n":01,"media":{"payload":"////"}}', b'{"event":"media","n":-1,"media":{"payload":"////"}}',
    b'{"event":"media","n":1.0,"media":{"payload":"////"}}', b'{"event":"media","n":[],"media":{"payload":"////"}}',
    b'{"event":"media","n":"\xc3\xa9","media":{"payload":"////"}}',
    b'{"event":"media","n":"\xff","media":{"payload":"////"}}',
    b'{"event":"media","n":"\t","media":{"payload":"////"}}', b'{"event":"media","n":"\\n","media":{"payload":"////"}}',
    b'{"event":"media","media":{"media":{"payload":"////"}}}', b'[{"event":"media","media":{"payload":"////"}}]',
    b'\xef\xbb\xbf' + PLAIN, PLAIN + b"\x00", PLAIN + b"}", PLAIN * 2, PLAIN[:-2] + b",}}", PLAIN[:-1] + b",}", b"",
], ids=lambda odd: odd[:60].decode("latin-1"))
def test_anything_odd_is_left_to_the_parser(odd):
    assert len(Audible(32, "PCMU").media(PLAIN).pcm) == 3
    assert Audible(32, "PCMU").media(odd) is None
