"""Telnyx: chunks put back into order, three encodings both ways, and a platform that sends out of order on purpose."""
import base64
import json
from urllib.parse import urlsplit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opusagent import ProtocolError
from opusagent.dialects import TEXT, Audio
from opusagent.dialects.telnyx import FAR, WINDOW, Order, Telnyx, TelnyxCaller


def live(encoding="PCMU", rate=8000, **query):
    dialect = Telnyx(query)
    dialect.receive(TEXT, json.dumps({"event": "start", "start": {"media_format": {
        "encoding": encoding, "sample_rate": rate, "channels": 1}}}).encode())
    return dialect


def media(chunk, codes, plain=True):
    """A message that the one pass takes, or one that it leaves to the parser."""
    payload = base64.b64encode(codes).decode()
    message = {"event": "media", "media": {"track": "inbound", "chunk": chunk, "payload": payload}}
    return json.dumps(message, separators=(",", ":") if plain else None, indent=None if plain else 1).encode()


def heard(dialect, message):
    event = dialect.receive(TEXT, memoryview(message))
    assert event is None or isinstance(event, Audio)
    return [] if event is None else list(event.pcm)


def payload_of(message):
    return base64.b64decode(json.loads(message)["media"]["payload"])


@st.composite
def arrivals(draw):
    """Chunks 1 to n as they may come: each at most WINDOW - 1 places late, some of them twice, later."""
    count = draw(st.integers(1, 40))
    keys = [i + draw(st.integers(0, WINDOW - 1)) + 0.5 * draw(st.booleans()) for i in range(count)]
    order = [i + 1 for _, i in sorted(zip(keys, range(count)))]
    for again in draw(st.lists(st.integers(1, count), max_size=5)):
        order.insert(draw(st.integers(order.index(again) + 1, len(order))), again)
    return count, order


@settings(deadline=None)
@given(arrivals(), st.sampled_from([str, int]), st.booleans())
def test_what_comes_out_of_order_is_heard_in_order(arrival, number, plain):
    count, order = arrival
    dialect, samples = live("L16", 16000), []
    for chunk in order:
        samples += heard(dialect, media(number(chunk), np.full(3, chunk, "<i2").tobytes(), plain))
    assert samples == [chunk for chunk in range(1, count + 1) for _ in range(3)]
    assert dialect.ignored == len(order) - count


@settings(deadline=None)
@given(st.lists(st.integers(0, 10_000) | st.integers(1, 20), max_size=100))
def test_whatever_the_numbers_are_little_is_kept_and_nothing_is_heard_twice(chunks):
    order, came = Order(), 0
    for chunk in chunks:
        due = order.push(chunk, memoryview(bytes(2)).cast("h"))
        came += due is not None
        assert len(order.held) < WINDOW
        assert due is None or len(due) <= WINDOW
        assert all(order.due < held <= order.due + FAR for held in order.held)


def test_a_missing_chunk_costs_a_wait_of_two_and_no_more():
    dialect = live()
    frame = bytes(160)
    assert [len(heard(dialect, media(str(n), frame))) for n in (1, 2, 4, 5, 6, 7)] == [160, 160, 0, 0, 480, 160]


def test_two_gaps_are_filled_one_after_the_other():
    dialect = live("L16")
    came = [heard(dialect, media(n, np.full(1, n, "<i2").tobytes())) for n in (1, 2, 5, 6, 3, 4, 7)]
    assert came == [[1], [2], [], [], [3], [4, 5, 6], [7]]


def test_a_large_message_is_not_kept():
    dialect = live()
    assert len(heard(dialect, media("3", bytes(20_000)))) == 20_000
    assert dialect._order.held == {}


def test_numbers_are_read_alike_with_and_without_the_one_pass():
    for chunk in ("2", 2, "02"):
        for plain in (True, False):
            dialect = live()
            assert heard(dialect, media(chunk, b"\xff", plain)) == []
            assert heard(dialect, media("1", b"\x80", plain)) == [32124, 0]


@pytest.mark.parametrize("encoding", ["PCMU", "PCMA"])
def test_g711_comes_back_sample_for_sample(encoding):
    dialect = live(encoding, codec=encoding)
    codes = bytes(range(256)) * 2
    for plain in (True, False):
        event = dialect.receive(TEXT, memoryview(media(None, codes, plain)))
        expected = codes.replace(b"\x7f", b"\xff") if encoding == "PCMU" else codes
        assert payload_of(dialect.audio(event.pcm)) == expected


def test_what_is_sent_is_what_telnyx_was_told():
    pcm = np.zeros(160, np.int16)
    for encoding, rate, query, size in (("PCMA", 8000, {}, 160), ("PCMU", 8000, {"codec": "L16"}, 320),
                                        ("L16", 16000, {}, 320), ("L16", 8000, {"codec": "PCMA"}, 160)):
        dialect = live(encoding, rate, **query)
        assert (dialect.rate, len(payload_of(dialect.audio(pcm)))) == (rate, size)


@pytest.mark.parametrize("query", [{"codec": "G722"}, {"codec": "mp3"}, {"l16": "network"}])
def test_a_url_that_asks_for_what_there_is_not_is_refused(query):
    with pytest.raises(ProtocolError) as refused:
        Telnyx(query)
    assert refused.value.code == 400


@pytest.mark.parametrize("disorder", [2, 3, 10])
def test_a_disorderly_platform_is_heard_all_the_same(disorder):
    caller = TelnyxCaller(urlsplit(f"ws://h/ws/telnyx?codec=L16&disorder={disorder}"))
    dialect = Telnyx({})
    for message in caller.open():
        dialect.receive(*message)
    samples, sent = [], []
    for i in range(1, 61):
        sent += [i] * 320
        messages = [caller.audio(np.full(320, i, np.int16)), *caller.outbox]
        caller.outbox.clear()
        for opcode, message in messages:
            samples += heard(dialect, message)
    assert samples == sent[:len(samples)] and len(samples) >= len(sent) - 2 * 320
    assert dialect.ignored == 60 // disorder, "what came twice"


@pytest.mark.parametrize("samples", [0, 159, 240_001])
def test_telnyx_would_not_play_what_is_too_short_or_too_long(samples):
    caller = TelnyxCaller(urlsplit("ws://h/ws/telnyx"))
    with pytest.raises(ProtocolError, match="20 ms to 30 s"):
        caller.receive(TEXT, live().audio(np.zeros(samples, np.int16)))
    for message in (b"{}", b'{"event":"media"}', b'{"event":"mark","mark":{}}'):
        with pytest.raises(ProtocolError, match="malformed_frame"):
            caller.receive(TEXT, message)
    with pytest.raises(ProtocolError, match="binary"):
        caller.receive(2, b"")
