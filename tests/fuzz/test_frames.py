"""The frame parser and the protocol on top of it, against their plain twins, with a receive buffer that others use."""
from hypothesis import given
from hypothesis import strategies as st
from test_websocket import Plain, plain_frame, plain_utf8

from opusagent import ProtocolError
from opusagent._fastpath import FrameParser
from opusagent.transport.websocket import BINARY, CLOSE, CLOSED, PING, TEXT, WebSocket, close_code_valid

from . import examples
from .streams import Shared, frames, pieces, streams

LIMIT = 500                 # bytes of a message
ROOM = 4096                 # bytes that a parser may take for the first piece of one


def parsed(wire_pieces, parser, shared):
    """(messages and control frames, close code or None) of the pieces; what is held is looked at after each."""
    found, arrived = [], 0
    try:
        for piece in wire_pieces:
            arrived += len(piece)
            shared.lend(parser, piece)
            while (opcode := parser.next_message()) >= 0:
                found.append((opcode, bytes(parser.payload)))
            assert parser.held <= max(ROOM, 2 * arrived) and parser.held <= max(ROOM, parser.max_message)
            shared.soil()
    except ProtocolError as error:
        assert error.code in (1002, 1007, 1009) and error.reason
        return found, error.code
    return found, None


def unfinished(wire: bytes) -> bool:
    """True for a stream that ends inside a frame or a message, by the twin: one more message would not be right."""
    twin = Plain(LIMIT)
    twin.data = wire + plain_frame(BINARY, b"?", mask=b"mask")
    whole = Plain(LIMIT)
    whole.data = wire
    return twin.messages() != (whole.messages()[0] + [(BINARY, b"?")], None)


@examples(400)
@given(streams(), st.data())
def test_the_parser_is_its_twin_however_the_stream_is_cut(wire, data):
    twin, parser = Plain(LIMIT), FrameParser(LIMIT)
    twin.data = wire
    found, code = parsed(data.draw(pieces(wire)), parser, Shared(len(wire) + 1))
    assert (found, code) == twin.messages()
    if code is None:
        assert parser.partial == unfinished(wire)


@examples(150)
@given(streams(masked=False), st.integers(1, 4), st.data())
def test_the_callers_side_and_the_count_of_fragments_do_not_depend_on_the_cuts(wire, fragments, data):
    outcomes = [parsed(wire_pieces, FrameParser(LIMIT, False, fragments), Shared(len(wire) + 1))
                for wire_pieces in ([wire], data.draw(pieces(wire)))]
    assert outcomes[0] == outcomes[1]


@examples(100)
@given(frames(), st.binary(min_size=1, max_size=30), st.data())
def test_a_parser_that_has_refused_reads_nothing_more(wire, more, data):
    parser, shared = FrameParser(LIMIT), Shared(1 << 16)
    refused = data.draw(st.sampled_from([b"\x89\xfe", b"\x89\xff", b"\x83", b"\x81\x05", b"\x82\xff" + b"\xff" * 8]))
    found, code = parsed([wire, refused + b"\x80"], parser, shared)
    assert code is not None
    for piece in data.draw(pieces(more + bytes(400))):
        shared.lend(parser, piece)
        assert parser.next_message() == -1 and parser.held <= max(ROOM, LIMIT)


@examples(60)
@given(st.lists(st.tuples(st.sampled_from([TEXT, BINARY]), st.text(max_size=200).map(str.encode)), max_size=4),
       st.booleans(), st.data())
def test_messages_survive_any_fragments_control_frames_between_and_any_cuts(messages, masked, data):
    wire, key = b"", b"\x00\xff\x55\x0a" if masked else None
    for opcode, body in messages:
        parts = data.draw(pieces(body)) or [b""]
        for i, part in enumerate(parts):
            wire += plain_frame(0 if i else opcode, part, i == len(parts) - 1, key)
            wire += plain_frame(PING, part[:125], True, key) if data.draw(st.booleans()) else b""
    found, code = parsed(data.draw(pieces(wire)), FrameParser(1000, masked), Shared(len(wire) + 1))
    assert [message for message in found if message[0] != PING] == messages and code is None


def plain_answers(found):
    """What a server that only listens has to say: (messages, frames sent, close code or None), by sections 5 and 7."""
    messages, sent = [], []
    for opcode, body in found:
        if opcode == PING:
            sent.append(plain_frame(0xA, body))
        elif opcode in (TEXT, BINARY):
            messages.append((opcode, body))
        elif opcode == CLOSE:
            code = int.from_bytes(body[:2]) if body else 1005
            if len(body) == 1 or body and not close_code_valid(code):
                return messages, sent, 1002
            if not plain_utf8(body[2:]):
                return messages, sent, 1007
            return messages, [*sent, plain_frame(CLOSE, body[:2])], code
    return messages, sent, None


@examples(300)
@given(streams(), st.data())
def test_the_protocol_is_its_twin_however_the_stream_is_cut(wire, data):
    twin, ws, shared, heard = Plain(LIMIT), WebSocket(LIMIT), Shared(len(wire) + 1), []
    twin.data = wire
    found, code = twin.messages()
    messages, sent, ended = plain_answers(found)
    ended = ended or code
    refused = None
    try:
        for piece in data.draw(pieces(wire)):
            shared.buffer.view[:len(piece)] = piece
            ws.receive(shared.buffer, len(piece), lambda opcode, payload: heard.append((opcode, bytes(payload))))
            shared.soil()
    except ProtocolError as error:
        refused = error.code
        ws.fail(error)
        sent.append(ws.outbox[-1])
    assert (heard, ws.outbox) == (messages, sent)
    assert (ws.state == CLOSED) == (ended is not None)
    assert ended is None or ws.close_code == ended
    assert refused is None or ws.outbox[-1][2:4] == refused.to_bytes(2)
