"""Heads of HTTP: ours against a grammar written down once more, cut anywhere, and never more kept than the limit."""
import re
from base64 import b64encode
from urllib.parse import unquote_to_bytes

from hypothesis import given
from hypothesis import strategies as st

from opusagent import ProtocolError
from opusagent.transport import http11

from . import examples
from .heads import heads
from .streams import pieces, scarred

# ---- the plain twin ------------------------------------------------------------------------------------------------

FIRST = re.compile(rb"(?:GET|HEAD) (/(?:[\w\-.~!$&'()*+,;=:@/?]|%[0-9A-Fa-f]{2})*) HTTP/1\.1")
FIELD = re.compile(rb"([\w!#$%&'*+\-.^`|~]+):[ \t]*((?:[\x21-\x7e\x80-\xff]"
                   rb"(?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*")
HOST = re.compile(rb"[\w\-.~:\[\]]+")
ONCE = (b"host", b"upgrade", b"origin", b"authorization", b"sec-websocket-key", b"sec-websocket-version",
        b"sec-websocket-accept")


def plain_query_right(query: bytes) -> bool:
    names = []
    for piece in filter(None, query.split(b"&")):
        try:
            name, _, value = (unquote_to_bytes(part.replace(b"+", b" ")).decode() for part in piece.partition(b"="))
        except UnicodeDecodeError:
            return False
        if re.search("[\x00-\x1f\x7f-\x9f]", name + value):
            return False
        names.append(name)
    return len(names) == len(set(names))


def plain_right(wire: bytes) -> bool:
    """True for bytes that begin with a request head we take, told from all of them at once."""
    head, end, _ = wire.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    if not end or len(head) + 4 > 8192 or len(lines) > 65 or max(map(len, lines)) > 4096:
        return False
    first, fields = FIRST.fullmatch(lines[0]), [FIELD.fullmatch(line) for line in lines[1:]]
    if first is None or None in fields:
        return False
    names = [field[1].lower() for field in fields]
    host = [field[2] for field in fields if field[1].lower() == b"host"]
    return (len(host) == 1 and HOST.fullmatch(host[0]) is not None and all(names.count(name) <= 1 for name in ONCE)
            and not {b"content-length", b"transfer-encoding"} & set(names)
            and plain_query_right(first[1].partition(b"?")[2]))


# ---- requests ------------------------------------------------------------------------------------------------------

def read(wire_pieces, parser):
    """(the head, what followed it), a refusal as (status, sentence), or None: more is waited for."""
    behind = []
    for i, piece in enumerate(wire_pieces):
        try:
            head = parser.feed(memoryview(piece))
        except ProtocolError as error:
            assert http11.refusal(error).startswith(b"HTTP/1.1 %d " % error.code)
            return error.code, error.reason
        assert len(parser._lines.held) <= http11.MAX_HEAD
        if head is not None:
            behind = wire_pieces[i + 1:]
            return head, parser.rest + b"".join(behind)
    return None


@examples(400)
@given(heads(), st.data())
def test_a_request_is_read_alike_however_it_is_cut_and_only_if_it_is_right(wire, data):
    whole = read([wire], http11.HeadParser())
    assert read(data.draw(pieces(wire)), http11.HeadParser()) == whole
    taken = whole is not None and isinstance(whole[0], http11.Head)
    assert taken == plain_right(wire)
    if taken:
        head, rest = whole
        assert wire.endswith(b"\r\n\r\n" + rest) and head.target.encode() == wire.split(b" ", 2)[1]
        check_answer(head)


def check_answer(head) -> None:
    """The 101, or a refusal; nothing of the request comes back in either."""
    try:
        answer = http11.accept(head, ("chat", "a"))
    except ProtocolError as error:
        assert error.code in (400, 426) and http11.refusal(error)
        return
    lines = answer.decode("ascii").split("\r\n")
    assert lines[0] == "HTTP/1.1 101 Switching Protocols" and lines[-2:] == ["", ""]
    assert head.get("sec-websocket-version") == "13" and head.method == "GET"
    assert {line.partition(":")[0] for line in lines[1:-2]} <= {"Upgrade", "Connection", "Sec-WebSocket-Accept",
                                                                "Sec-WebSocket-Protocol"}
    assert [line for line in lines if line.startswith("Sec-WebSocket-Protocol")] in ([], ["Sec-WebSocket-Protocol: a"])


@examples(60)
@given(st.binary(min_size=1, max_size=3), st.integers(0, 9000), st.integers(1, 4000))
def test_a_head_without_end_is_given_up_at_the_limit(unit, times, step):
    wire, parser, fed = b"GET / HTTP/1.1\r\n" + unit * times, http11.HeadParser(), 0
    try:
        while fed < len(wire) and parser.feed(wire[fed:fed + step]) is None:
            fed += step
            assert len(parser._lines.held) <= http11.MAX_HEAD and fed <= http11.MAX_HEAD
    except ProtocolError as error:
        assert error.code in (400, 431)


# ---- the caller's side ---------------------------------------------------------------------------------------------

NONCE = bytes(16)
ACCEPT = http11.accept_value(b64encode(NONCE).decode())
STATUS_LINES = st.sampled_from(["HTTP/1.1 101 Switching Protocols"] * 5 + ["HTTP/1.1 101", "HTTP/1.1 200 OK",
                                "HTTP/1.1 1", "HTTP/1.0 101 x", "HTTP/1.1 404 Not Found", "HTTP/1.1  101 x",
                                "ICY 200 OK"])
ANSWER_LINES = [f"Sec-WebSocket-Accept: {ACCEPT}", "Upgrade: websocket", "Connection: Upgrade"]
MORE_LINES = st.sampled_from(["Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Protocol: other", "Server: x", " folded",
                              "Sec-WebSocket-Extensions: permessage-deflate", "Content-Length: 5", "Upgrade: h2c",
                              "Sec-WebSocket-Accept: AAAA", "Content-Length: -1", "Transfer-Encoding: chunked",
                              "N : x"])


@st.composite
def answers(draw):
    lines = [draw(STATUS_LINES), *draw(st.permutations(ANSWER_LINES)), *draw(st.lists(MORE_LINES, max_size=2))]
    wire = "\r\n".join((*lines, "", "")).encode() + draw(st.sampled_from([b"", b"\x82\x00", b"body"]))
    return draw(scarred(wire)) if draw(st.integers(0, 3)) == 0 else wire


@examples(150)
@given(answers(), st.data())
def test_an_answer_is_read_alike_however_it_is_cut(wire, data):
    outcomes = [read(wire_pieces, http11.ClientHandshake("here", "/", NONCE, protocols=("chat",)))
                for wire_pieces in ([wire], data.draw(pieces(wire)))]
    assert outcomes[0] == outcomes[1]
    if outcomes[0] is not None and getattr(outcomes[0][0], "status", 0) == 101:
        assert ACCEPT.encode() in wire and b"xtensions" not in wire
