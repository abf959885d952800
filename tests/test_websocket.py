"""The WebSocket core: literal bytes against values, both ways, and the same stream cut everywhere."""
import os
import random

import pytest
from hypothesis import given, settings, strategies as st

from opusagent import ProtocolError
from opusagent._fastpath import FrameParser, ReceiveBuffer, build_frame, unmask, utf8_valid
from opusagent.transport.websocket import (BINARY, CLOSE, CLOSED, CLOSING, PING, TEXT, WebSocket, close_code_valid,
                                           close_payload)

KEY = b"\x37\xfa\x21\x3d"


# ---- plain twins ---------------------------------------------------------------------------------------------------

def plain_unmask(data, key, offset=0):
    return bytes(byte ^ key[(i + offset) % 4] for i, byte in enumerate(data))


def plain_frame(opcode, payload, fin=True, mask=None):
    n = len(payload)
    length = bytes([n]) if n < 126 else b"\x7e" + n.to_bytes(2) if n < 65536 else b"\x7f" + n.to_bytes(8)
    length = bytes([length[0] | (0x80 if mask else 0)]) + length[1:]
    return bytes([fin << 7 | opcode]) + length + (mask + plain_unmask(payload, mask) if mask else payload)


def plain_utf8(data):
    try:
        bytes(data).decode()
    except UnicodeDecodeError:
        return False
    return True


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4), st.integers(0, 9))
def test_unmask_is_its_twin(data, key, offset):
    buffer = bytearray(data)
    unmask(buffer, key, offset)
    assert buffer == plain_unmask(data, key, offset)


@pytest.mark.parametrize("n", [0, 1, 125, 126, 127, 65535, 65536, 70001])
@pytest.mark.parametrize("mask", [None, KEY])
@pytest.mark.parametrize("fin", [True, False])
def test_build_frame_is_its_twin(n, mask, fin):
    payload = random.Random(n).randbytes(n)
    assert build_frame(BINARY, payload, fin, mask) == plain_frame(BINARY, payload, fin, mask)


@given(st.one_of(st.binary(max_size=12), st.text(max_size=40).map(str.encode)))
@settings(max_examples=500)
def test_utf8_is_its_twin(data):
    assert utf8_valid(data) == plain_utf8(data)


def test_utf8_agrees_on_every_two_bytes_and_on_the_edges_of_every_range():
    edges = [0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED, 0xEE, 0xEF,
             0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF]
    for first in range(256):
        for second in range(256):
            assert utf8_valid(bytes([first, second])) == plain_utf8(bytes([first, second]))
    for first in edges:
        for second in edges:
            for third in edges:
                for tail in (b"", b"\x80", b"a" * 9):
                    data = bytes([first, second, third]) + tail
                    assert utf8_valid(data) == plain_utf8(data), data


# ---- literal bytes -------------------------------------------------------------------------------------------------

def server(**limits):
    return WebSocket(limits.pop("max_message", 65536), **limits)


def masked(opcode, payload=b"", fin=True):
    return build_frame(opcode, payload, fin, KEY)


# The examples of RFC 6455 section 5.7, the unmasked ones read by a client.
@pytest.mark.parametrize("wire, want", [
    (b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", [(TEXT, b"Hello")]),
    (b"\x82\xfe\x01\x00" + KEY + plain_unmask(bytes(256), KEY), [(BINARY, bytes(256))]),
    (b"\x01\x83" + KEY + plain_unmask(b"Hel", KEY) + b"\x80\x82" + KEY + plain_unmask(b"lo", KEY), [(TEXT, b"Hello")]),
    (b"\x82\x80" + KEY, [(BINARY, b"")]),
])
def test_a_message_from_literal_bytes(wire, want):
    assert server().receive_bytes(wire) == want


def test_a_client_reads_unmasked_frames_and_masks_its_own():
    client = WebSocket(100, mask=lambda: KEY)
    assert client.receive_bytes(b"\x81\x05Hello\x02\x01a\x80\x01b") == [(TEXT, b"Hello"), (BINARY, b"ab")]
    client.send(TEXT, b"Hello")
    assert client.outbox == [b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"]


def test_ping_is_answered_with_its_own_payload():
    ws = server()
    assert ws.receive_bytes(b"\x89\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58") == []
    assert ws.outbox == [b"\x8a\x05Hello"]


def test_only_the_latest_ping_is_answered_to_a_peer_that_does_not_read():
    ws = server()
    ws.congested = True
    ws.receive_bytes(b"".join(masked(PING, b"%d" % i) for i in range(1000)))
    assert ws.outbox == []
    ws.uncongested()
    assert ws.outbox == [b"\x8a\x03999"]


@pytest.mark.parametrize("wire, code", [
    (b"\xc1\x80" + KEY, 1002),                              # RSV1, never negotiated
    (b"\xa1\x80" + KEY, 1002),
    (b"\x91\x80" + KEY, 1002),
    (b"\x83\x80" + KEY, 1002),                              # reserved opcodes
    (b"\x8b\x80" + KEY, 1002),
    (b"\x81\x05Hello", 1002),                               # not masked
    (b"\x80\x80" + KEY, 1002),                              # continuation of nothing
    (masked(TEXT, b"a", fin=False) + masked(TEXT, b"b"), 1002),
    (b"\x09\x80" + KEY, 1002),                              # fragmented ping
    (b"\x89\xfe\x00\x7e" + KEY, 1002),                      # ping of 126 bytes
    (b"\x82\xfe\x00\x7d" + KEY, 1002),                      # lengths not in their shortest form
    (b"\x82\xff" + (65535).to_bytes(8) + KEY, 1002),
    (b"\x82\xff" + (1 << 63).to_bytes(8) + KEY, 1002),      # top bit
    (b"\x82\xff" + ((1 << 64) - 1).to_bytes(8) + KEY, 1002),
    (b"\x82\xff" + ((1 << 63) - 1).to_bytes(8) + KEY, 1009),
    (b"\x82\xff" + (65537).to_bytes(8) + KEY, 1009),
    (masked(BINARY, bytes(40000), fin=False) + b"\x80\xfe\x63\xc1" + KEY, 1009),
    (masked(TEXT, b"\xff"), 1007),
    (masked(TEXT, b"\xe2\x82"), 1007),                      # ends inside a character
    (masked(TEXT, b"\xe2\x82", fin=False) + masked(0, b"a"), 1007),
    (masked(CLOSE, b"\x03"), 1002),
    (masked(CLOSE, (1005).to_bytes(2)), 1002),
    (masked(CLOSE, (1000).to_bytes(2) + b"\xff"), 1007),
])
def test_a_broken_protocol_has_its_close_code(wire, code):
    ws = server()
    with pytest.raises(ProtocolError) as error:
        ws.receive_bytes(wire)
    assert error.value.code == code


def test_who_sends_too_much_is_told_how_much_is_taken():
    parser = FrameParser(16 << 20)
    parser.feed_bytes(b"\x81\xff" + (20 << 20).to_bytes(8) + KEY)      # 15 MiB of audio, in base64
    with pytest.raises(ProtocolError, match="message too long: at most 16777216 bytes$"):
        parser.next_message()


@pytest.mark.parametrize("refused", [b"\x89\xfe", b"\x83\x80", masked(BINARY, bytes(300), fin=False) + b"\x82\x80"])
def test_a_parser_that_has_refused_reads_nothing_more_and_keeps_nothing(refused):
    parser = FrameParser(1000)
    parser.feed_bytes(refused)
    with pytest.raises(ProtocolError):
        parser.next_message()
    parser.feed_bytes(b"\xff\xff" + KEY + bytes(70000))
    assert parser.next_message() == -1 and parser.stopped and parser.held == 0


def test_a_length_over_the_limit_is_refused_on_its_header_alone_and_costs_nothing():
    ws = server()
    with pytest.raises(ProtocolError):
        ws.receive_bytes(b"\x82\xff" + (1 << 40).to_bytes(8) + KEY)
    assert ws.parser.held == 0


def test_bad_text_fails_at_its_first_bad_byte_though_the_frame_goes_on():
    ws = server()
    head = b"\x81\xfe\x00\xc8" + KEY
    assert ws.receive_bytes(head + plain_unmask(b"good \xce", KEY)) == []
    with pytest.raises(ProtocolError) as error:
        ws.receive_bytes(plain_unmask(b"\xce", KEY, offset=6))
    assert error.value.code == 1007


@pytest.mark.parametrize("payload", [b"", b"a"])
def test_fragments_are_counted_empty_ones_too(payload):
    ws = server(max_fragments=16)
    ws.receive_bytes(masked(BINARY, payload, fin=False) + masked(0, payload, fin=False) * 15)
    with pytest.raises(ProtocolError) as error:
        ws.receive_bytes(masked(0, payload, fin=False))
    assert error.value.code == 1009


def test_a_byte_at_a_time_holds_what_has_arrived_not_what_was_announced():
    ws = server()
    ws.receive_bytes(b"\x82\xff" + (65536).to_bytes(8) + KEY)
    for _ in range(100):
        ws.receive_bytes(b"x")
    assert ws.parser.held <= 4096
    assert ws.parser.partial


# ---- the closing handshake -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("payload, answer, code", [
    (b"", b"\x88\x00", 1005),
    (b"\x03\xe8", b"\x88\x02\x03\xe8", 1000),
    (b"\x0b\xb8bye", b"\x88\x02\x0b\xb8", 3000),
])
def test_a_close_is_answered_once_and_nothing_after_it_is_read(payload, answer, code):
    ws = server()
    assert ws.receive_bytes(masked(CLOSE, payload) + masked(TEXT, b"late") + b"\xff\xff\xff") == []
    assert (ws.state, ws.outbox, ws.close_code) == (CLOSED, [answer], code)
    ws.send(TEXT, b"late")
    assert ws.outbox == [answer]


def test_our_close_waits_for_theirs_and_drops_messages_meanwhile():
    ws = server()
    ws.close(1001, "going away")
    assert ws.outbox == [b"\x88\x0c\x03\xe9going away"]
    assert ws.receive_bytes(masked(TEXT, b"late")) == []
    assert ws.state == CLOSING
    ws.receive_bytes(masked(CLOSE, b"\x03\xe9"))
    assert ws.state == CLOSED and len(ws.outbox) == 1


def test_a_fault_is_told_once():
    ws = server()
    ws.fail(ProtocolError(1009, "message too long"))
    ws.fail(ProtocolError(1002, "again"))
    assert ws.outbox == [b"\x88\x12\x03\xf1message too long"]
    assert ws.receive_bytes(masked(TEXT, b"late")) == []


def test_close_codes_as_registered():
    valid = {code for code in range(70000) if close_code_valid(code)}
    assert valid == {1000, 1001, 1002, 1003} | set(range(1007, 1015)) | set(range(3000, 5000))


def test_a_long_reason_is_cut_at_a_character():
    payload = close_payload(1000, "ä" * 100)
    assert len(payload) == 124 and payload[2:].decode() == "ä" * 61


# ---- cut anywhere --------------------------------------------------------------------------------------------------

STREAM = (masked(TEXT, "grüße".encode()) + masked(BINARY, b"") + masked(PING, b"x" * 125) + masked(BINARY, bytes(300))
          + masked(TEXT, b"a\xc3", fin=False) + masked(PING, b"between") + masked(0, b"", fin=False)
          + masked(0, b"\xa4b") + masked(BINARY, bytes(range(256)) * 257) + masked(TEXT, b"end"))
MESSAGES = [(TEXT, "grüße".encode()), (BINARY, b""), (BINARY, bytes(300)), (TEXT, "aäb".encode()),
            (BINARY, bytes(range(256)) * 257), (TEXT, b"end")]


def pieces(stream, step):
    return (stream[i:i + step] for i in range(0, len(stream), step))


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 64, 1000, 65536, 1 << 20])
def test_the_same_stream_in_pieces_of_any_size(step):
    ws = server(max_message=1 << 17)
    assert [message for piece in pieces(STREAM, step) for message in ws.receive_bytes(piece)] == MESSAGES
    assert ws.outbox == [b"\x8a\x7d" + b"x" * 125, b"\x8a\x07between"]
    assert not ws.parser.partial and ws.parser.held == 0


def test_the_same_stream_cut_once_at_every_byte():
    short = STREAM[:700]
    whole = server(max_message=1 << 17).receive_bytes(short)
    for cut in range(len(short)):
        ws = server(max_message=1 << 17)
        assert ws.receive_bytes(short[:cut]) + ws.receive_bytes(short[cut:]) == whole


def test_messages_in_the_receive_buffer_are_views_of_it():
    ws, buffer, seen = server(), ReceiveBuffer(4096), []
    wire = masked(BINARY, b"abc") + masked(TEXT, b"defg")
    buffer.view[:len(wire)] = wire
    ws.receive(buffer, len(wire), lambda opcode, payload: seen.append((payload.obj is buffer, bytes(payload))))
    assert seen == [(True, b"abc"), (True, b"defg")]


class Plain:
    """The parser's twin: keeps every byte and starts over at each piece."""

    def __init__(self, max_message):
        self.data, self.max_message = b"", max_message

    def messages(self):
        found, at, message, opcode = [], 0, b"", 0
        while len(self.data) - at >= 2:
            first, second = self.data[at], self.data[at + 1]
            kind, fin, n, head = first & 15, first >> 7, second & 127, 2
            if (first & 0x70 or kind not in (0, 1, 2, 8, 9, 10) or not second & 128
                    or kind & 8 and (not fin or n > 125) or kind == 0 and not opcode or kind in (1, 2) and opcode):
                return found, 1002
            head += {126: 2, 127: 8}.get(n, 0)
            if len(self.data) - at < head:
                break
            if n >= 126:
                short, n = (126, 65536)[n == 127], int.from_bytes(self.data[at + 2:at + head])
                if n < short or n >> 63:
                    return found, 1002
            if not kind & 8 and len(message) + n > self.max_message:
                return found, 1009
            if len(self.data) - at < head + 4:
                break
            key, body = self.data[at + head:at + head + 4], self.data[at + head + 4:at + head + 4 + n]
            payload = plain_unmask(body, key)
            if not kind & 8:
                opcode, message = opcode or kind, message + payload
                if opcode == TEXT and not plain_utf8_prefix(message):
                    return found, 1007
            if len(body) < n:
                break
            at += head + 4 + n
            if kind & 8:
                found.append((kind, payload))
            elif fin:
                if opcode == TEXT and not plain_utf8(message):
                    return found, 1007
                found.append((opcode, message))
                message, opcode = b"", 0
        return found, None


def plain_utf8_prefix(data):
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True


def parsed(wire, cuts, max_message):
    parser, found = FrameParser(max_message), []
    try:
        for start, end in zip([0, *cuts], [*cuts, len(wire)]):
            parser.feed_bytes(wire[start:end])
            while (opcode := parser.next_message()) >= 0:
                found.append((opcode, bytes(parser.payload)))
    except ProtocolError as error:
        return found, error.code
    return found, None


frames = st.builds(lambda opcode, payload, fin: masked(opcode, payload, fin),
                   st.sampled_from([0, 1, 2, 2, 8, 9, 10, 3]),
                   st.one_of(st.binary(max_size=9), st.text(max_size=5).map(str.encode),
                             st.integers(120, 300).map(bytes)), st.booleans())


@given(st.lists(st.one_of(frames, frames, frames, st.binary(max_size=5)), max_size=6).map(b"".join), st.data())
@settings(max_examples=400, deadline=None)
def test_any_bytes_in_any_pieces_agree_with_the_twin(wire, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    twin = Plain(500)
    twin.data = wire
    assert parsed(wire, cuts, 500) == twin.messages()


def test_random_keys_round_trip():
    parser = FrameParser(1 << 16)
    for n in range(0, 40):
        parser.feed_bytes(build_frame(BINARY, bytes(range(n)), True, os.urandom(4)))
        assert parser.next_message() == BINARY and bytes(parser.payload) == bytes(range(n))
        assert parser.next_message() == -1
