"""What a fuzzer feeds: one function per target, any bytes in, an AssertionError out when its oracle is not satisfied.

The first byte of an input says how the rest is cut: into pieces of so many bytes, or not at all for 0.  Messages come
between zero bytes, the carrier's name first.
guided.py lets coverage choose the inputs, test_corpus.py plays those that are kept.
"""
from unittest import mock

from test_dialects import TEXT, outcome
from test_websocket import Plain

from opusagent._fastpath import FrameParser
from opusagent.dialects import BINARY, TABLE, Audible
from opusagent.transport import http11

from .standing import UPGRADE, Call
from .streams import Shared
from .test_connections import DEED_LIST, plain_call, without_reason
from .test_frames import LIMIT, parsed
from .test_heads import check_answer, plain_right, read
from .test_messages import doubtful, untaken



def pieces(data: bytes) -> list[bytes]:
    step = data[0] if data else 0
    wire = data[1:]
    return [wire[i:i + step] for i in range(0, len(wire), step)] if step else [wire]


def frames(data: bytes) -> None:
    """The frame parser is its twin."""
    twin = Plain(LIMIT)
    twin.data = data[1:]
    assert parsed(pieces(data), FrameParser(LIMIT), Shared(len(data) + 1)) == twin.messages()


def heads(data: bytes) -> None:
    """A request head is read alike however it is cut, and taken only if it is right."""
    whole = read([data[1:]], http11.HeadParser())
    assert read(pieces(data), http11.HeadParser()) == whole
    taken = whole is not None and isinstance(whole[0], http11.Head)
    assert taken == plain_right(data[1:])
    if taken:
        check_answer(whole[0])


def messages(data: bytes) -> None:
    """A carrier's messages mean the same in one pass and through Python alone."""
    first, *sent = data.split(b"\x00")
    name = next((name for name in TABLE if name.encode() == first), "twilio")
    carrier = TABLE[name]
    sent = [(TEXT if message[:1] == b"{" else BINARY, message) for message in sent if not doubtful(name, message)]
    assert [*conversation(carrier({}), sent)] == [*slow_conversation(carrier({}), sent)]


def conversation(dialect, sent):
    dialect.open()
    for opcode, message in sent:
        yield outcome(dialect, opcode, memoryview(message)), dialect.ignored, list(dialect.outbox)
        dialect.outbox.clear()


def slow_conversation(dialect, sent):
    with mock.patch.multiple(Audible, media=untaken, streamed=untaken, text=untaken):
        yield from conversation(dialect, sent)


def connections(data: bytes) -> None:
    """A whole connection is its twin.  The second byte chooses what its session does with the first messages."""
    choice, wire = data[1] if len(data) > 1 else 0, data[2:]
    deeds = {1: DEED_LIST[choice & 3], 2: DEED_LIST[choice >> 2 & 3]}
    expected, sent, code = plain_call(wire, deeds)
    with Call(choice >= 128, deeds, max_message=LIMIT) as call:
        call.give(UPGRADE)
        for piece in pieces(data[:1] + wire):
            call.give(piece)
        heard = without_reason(call.sent.split(b"\r\n\r\n", 1)[1])
        assert (call.session.messages, heard) == (expected, b"".join(sent))
        assert call.session.losses == ([] if code is None else [code])
        call.finish()
        assert len(call.session.losses) == 1 and call.over()


TARGETS = {function.__name__: function for function in (frames, heads, messages, connections)}
