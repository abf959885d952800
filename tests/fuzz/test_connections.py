"""A whole connection, from its head to its end, over a transport or a socket of its own, against its plain twin."""
import errno
import gc
import logging
import os
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_websocket import Plain, plain_frame

from opusagent import ProtocolError

from . import examples
from .heads import heads
from .standing import UPGRADE, Call, descriptors
from .streams import pieces, streams
from .test_frames import LIMIT, plain_answers

TLS = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


@pytest.fixture(autouse=True)
def quiet():
    """What a session raises is logged, as it should be, thousands of times.  What other tests left to the collector
    is collected first: descriptors are counted here."""
    gc.collect()
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# ---- what a session may do with a message --------------------------------------------------------------------------

def echo(connection, opcode, payload):
    connection.send(opcode, payload)


def hang_up(connection, opcode, payload):
    connection.close(1000, "bye")


def object_to_it(connection, opcode, payload):
    raise ProtocolError(1008, "no")


def stumble(connection, opcode, payload):
    raise ZeroDivisionError


def much(connection, opcode, payload):
    connection.send(2, bytes(100_000))


def hold_back(connection, opcode, payload):
    connection.wire.lockstep = True


DEED_LIST = (echo, hang_up, object_to_it, stumble)
DEEDS = st.dictionaries(st.integers(1, 4), st.sampled_from([echo, *DEED_LIST]), max_size=3)


def plain_call(wire, deeds):
    """(messages, frames sent, close code or None), told from the whole stream at once; reasons of ours are cut off."""
    twin = Plain(LIMIT)
    twin.data = wire
    found, fault = twin.messages()
    messages, sent, closing = [], [], False
    for opcode, body in found:
        if closing and opcode != 8:
            continue
        heard, answers, code = plain_answers([(opcode, body)])
        if code is not None:
            answer = answers or [plain_frame(8, code.to_bytes(2))]
            return messages, sent if closing else sent + answer, code
        sent, messages = sent + answers, messages + heard
        deed = deeds.get(len(messages)) if heard else None
        if deed is echo:
            sent.append(plain_frame(opcode, body))
        elif deed is hang_up:
            sent, closing = [*sent, plain_frame(8, (1000).to_bytes(2))], True
        elif deed is not None:
            code = 1008 if deed is object_to_it else 1011
            return messages, [*sent, plain_frame(8, code.to_bytes(2))], code
    if fault is not None and not closing:
        sent.append(plain_frame(8, fault.to_bytes(2)))
    return messages, sent, fault


def without_reason(sent: bytes) -> bytes:
    """The same frames (a server's, short ones), a close frame without the sentence behind its code."""
    kept, at = b"", 0
    while at < len(sent):
        n, head = sent[at + 1], 2
        if n == 126:
            n, head = int.from_bytes(sent[at + 2:at + 4]), 4
        whole = sent[at:at + head + n]
        kept += plain_frame(8, whole[2:4]) if whole[0] == 0x88 else whole
        at += head + n
    return kept


@TLS
@examples(150)
@given(streams(), DEEDS, st.data())
def test_a_connection_is_its_twin_however_the_stream_is_cut(tls, wire, deeds, data):
    messages, sent, code = plain_call(wire, deeds)
    with Call(tls, deeds, max_message=LIMIT) as call:
        for piece in data.draw(pieces(UPGRADE + wire)):
            call.give(piece)
        answer, frames = call.sent.split(b"\r\n\r\n", 1)
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert (call.session.messages, without_reason(frames)) == (messages, b"".join(sent))
        assert call.session.losses == ([] if code is None else [code])
        call.finish()
        assert len(call.session.losses) == 1 and call.over()


# ---- heads ---------------------------------------------------------------------------------------------------------

@examples(150)
@given(heads(), st.booleans(), st.data())
def test_a_head_has_the_same_answer_however_it_is_cut(wire, tls, data):
    outcomes = []
    for wire_pieces in ([wire], data.draw(pieces(wire))):
        with Call(tls, max_message=LIMIT) as call:
            for piece in wire_pieces:
                call.give(piece)
            outcomes.append((call.sent, call.session and call.session.messages))
            assert call.sent == b"" or call.sent.startswith(b"HTTP/1.1 ")
            call.finish()
            assert call.over()
    # a page's answer goes out before what may yet come behind its head; to HEAD, nobody is told the sentence
    whole = outcomes[0][0]
    behind = b"nothing behind it" in whole or wire.startswith(b"HEAD ") and whole.startswith(b"HTTP/1.1 400 ")
    assert outcomes[0] == outcomes[1] or behind


# ---- anything in any order -----------------------------------------------------------------------------------------

ACTS = st.lists(st.one_of(
    st.tuples(st.just("bytes"), streams()), st.tuples(st.just("bytes"), st.binary(max_size=20)),
    st.tuples(st.just("later"), st.sampled_from([0.1, 1.5, 5.5, 30.0])),
    st.tuples(st.just("close"), st.sampled_from([1000, 1001, 4999])),
    st.tuples(st.just("send"), st.sampled_from([1, 200, 70000])),
    st.tuples(st.sampled_from(["deaf", "hear", "hang up"]), st.none())), max_size=10)


def act(call: Call, what: str, value) -> None:
    connection = call.connection
    open_still = connection.ws is not None and connection in call.ground.connections
    if what == "bytes":
        call.give(value)
    elif what == "later":
        call.later(value)
    elif what == "hang up":
        call.hang_up()
    elif what == "deaf":
        call.transport.deaf = True
    elif what == "hear":
        call.transport.hear()
    elif open_still and what == "close":
        connection.close(value, "enough")
    elif open_still:
        connection.send(2, bytes(value))
    call.settle()


def ends_once_and_leaves_nothing(call: Call, head: bytes, acts) -> None:
    call.give(head)
    for what, value in acts:
        act(call, what, value)
        parser = call.connection.ws and call.connection.ws.parser
        assert parser is None or parser.held <= 4096
        assert call.session is None or len(call.session.losses) <= 1
    call.transport.hear()
    call.finish()
    assert call.over()


@TLS
@examples(150)
@given(st.one_of(st.just(UPGRADE), heads()), ACTS, DEEDS, st.booleans())
def test_whatever_happens_in_whatever_order_a_connection_ends_once_and_leaves_nothing(tls, head, acts, deeds, lockstep):
    before = descriptors()
    with Call(tls, {**deeds, **({"begin": hold_back} if lockstep else {})}, max_message=LIMIT) as call:
        ends_once_and_leaves_nothing(call, head, acts)
        assert call.session is None or len(call.session.losses) == 1
        assert descriptors() == before + 1      # the epoll set


TROUBLE = st.sampled_from([echo, much, object_to_it, stumble, hang_up])


@TLS
@pytest.mark.parametrize("when", ["begin", "lost", "drained"])
@examples(40)
@given(acts=ACTS, trouble=TROUBLE, deeds=DEEDS)
def test_a_session_in_trouble_at_any_time_is_the_end_of_its_connection_alone(tls, when, acts, trouble, deeds):
    before = descriptors()
    with Call(tls, {**deeds, when: trouble}, max_message=LIMIT) as call:
        ends_once_and_leaves_nothing(call, UPGRADE, [("deaf", None), ("send", 70000), *acts])
        assert descriptors() == before + 1


@TLS
@examples(40)
@given(acts=ACTS, broken=st.booleans())
def test_a_connection_that_cannot_leave_the_loop_ends(tls, acts, broken):
    """The peer has gone before it was answered, or there is no descriptor left."""
    before = descriptors()
    with Call(tls, broken=broken, max_message=LIMIT) as call, mock.patch("os.dup", no_more):
        ends_once_and_leaves_nothing(call, UPGRADE, acts)
        assert descriptors() == before + 1


def no_more(fd: int) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def dealt(call, data, piece, seconds):
    """Give the data in pieces, which come so many seconds one after the other, as long as the call lives."""
    for at in range(0, len(data), piece):
        call.give(data[at:at + piece])
        call.later(seconds)


def closes_with(code):
    return plain_frame(8, code.to_bytes(2))[2:]         # a reason follows it


@TLS
def test_a_peer_that_is_always_in_the_middle_of_a_message_is_no_slow_one(tls):
    """A network that buffers by blocks: each piece ends within a message, or within a Ping, as does the next."""
    for opcode in (1, 9):
        frame = plain_frame(opcode, b"x" * 94, True, b"\1\2\3\4")       # 100 octets
        with Call(tls=tls) as call:
            call.give(UPGRADE)
            call.give(frame[:50])
            dealt(call, (frame[50:] + frame[:50]) * 40, 300, 1.0)
            assert closes_with(1008) not in call.sent and call.ground.connections


@TLS
@pytest.mark.parametrize("slow", [
    pytest.param(plain_frame(1, b"x" * 100, True, b"\1\2\3\4"), id="octet by octet"),
    pytest.param(plain_frame(1, b"x", False, b"\1\2\3\4") + plain_frame(9, b"", True, b"\1\2\3\4") * 20,
                 id="with Pings")])
def test_one_message_has_its_time_whatever_comes_between(tls, slow):
    with Call(tls=tls) as call:
        call.give(UPGRADE + plain_frame(1, b"quick", True, b"\1\2\3\4"))
        dealt(call, slow, 3, 0.5)
        assert closes_with(1008) in call.sent
