"""The HTTP head: a table of all that is refused, every way of cutting the stream, and both sides of the upgrade."""
from base64 import b64encode

import pytest
from hypothesis import given, settings, strategies as st

from opusagent import ProtocolError
from opusagent.transport.http11 import (MAX_HEAD, MAX_LINE, MAX_LINES, ClientHandshake, HeadParser, accept,
                                        accept_value, choose_protocol, posted_to, refusal, response)

KEY = "dGhlIHNhbXBsZSBub25jZQ=="             # the key of RFC 6455 section 1.3, and what it must be answered with
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def get(target="/health", *lines, host="voice.example"):
    return "\r\n".join((f"GET {target} HTTP/1.1", f"Host: {host}", *lines, "", "")).encode("latin-1")


def upgrade(*lines, target="/ws/pcm", without=(), **changed):
    """An upgrade request, with fields changed or left out by their last word (upgrade, connection, version, key)."""
    fields = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": KEY}
    short = {name.rsplit("-")[-1].lower(): name for name in fields}
    fields.update({short[name]: value for name, value in changed.items()})
    kept = (f"{name}: {value}" for name, value in fields.items() if name.rsplit("-")[-1].lower() not in without)
    return get(target, *kept, *lines)


def read(data, cut=None):
    """The outcome of a head, fed whole or in two pieces: (head, rest), or the status it is refused with."""
    parser, cut = HeadParser(), len(data) if cut is None else cut
    try:
        if head := parser.feed(data[:cut]):
            return head, parser.rest + data[cut:]
        return parser.feed(data[cut:]), parser.rest
    except ProtocolError as error:
        return error.code


def status(data):
    """What a server would answer this request with: 101, or the status of the refusal; None while it is unfinished."""
    parser = HeadParser()
    try:
        head = parser.feed(data)
        if head is None:
            return None
        accept(head)
    except ProtocolError as error:
        assert error.reason.endswith(".") and error.reason.isascii()
        return error.code
    return 101


FILLER = "x" * 4000
LARGEST = get("/", "A: " + FILLER, "B: " + FILLER, "C: " + "x" * 138)           # 8192 bytes

# (what is wrong with it, the bytes, the status); each must be refused wherever the stream is cut
MALFORMED_HEADS = [
    # the request line
    ("nothing but an empty line", b"\r\n", 400),
    ("an empty line before the request", b"\r\n" + get(), 400),
    ("spaces before the method", b" " + get(), 400),
    ("HTTP/0.9", b"GET /\r\n", 400),
    ("HTTP/0.9 with the rest of a head", b"GET /\r\nHost: x\r\n\r\n", 400),
    ("HTTP/1.0", b"GET / HTTP/1.0\r\nHost: x\r\n\r\n", 400),
    ("HTTP/1.2", b"GET / HTTP/1.2\r\nHost: x\r\n\r\n", 400),
    ("HTTP/2.0", b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 400),
    ("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    ("a version in lower case", b"GET / http/1.1\r\nHost: x\r\n\r\n", 400),
    ("a version without a dot", b"GET / HTTP/11\r\nHost: x\r\n\r\n", 400),
    ("a version with two dots", b"GET / HTTP/1.1.1\r\nHost: x\r\n\r\n", 400),
    ("a version with zeros", b"GET / HTTP/01.1\r\nHost: x\r\n\r\n", 400),
    ("a version with a plus", b"GET / HTTP/+1.1\r\nHost: x\r\n\r\n", 400),
    ("another protocol", b"GET / HTCPCP/1.1\r\nHost: x\r\n\r\n", 400),
    ("no version name", b"GET / 1.1\r\nHost: x\r\n\r\n", 400),
    ("a space after the version", b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n", 400),
    ("a tab after the version", b"GET / HTTP/1.1\t\r\nHost: x\r\n\r\n", 400),
    ("two spaces after the method", b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("two spaces before the version", b"GET /  HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("tabs for spaces", b"GET\t/\tHTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("a tab after the method", b"GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("no target", b"GET HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("an empty target", b"GET  HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("four words", b"GET / x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("no method", b"/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("a method in lower case", b"get / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("a method in mixed case", b"Get / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("a method that nobody knows", b"FETCH / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("a method in quotes", b'"GET" / HTTP/1.1\r\nHost: x\r\n\r\n', 400),
    ("a method with a colon", b"GET: / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("a method with a high byte", b"GE\xd4 / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("POST", b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    ("OPTIONS", b"OPTIONS / HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    ("DELETE", b"DELETE / HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    ("POST with a body", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi", 405),
    ("TRACE, which would echo", b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    ("OPTIONS *", b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("CONNECT host:port", b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("a TLS ClientHello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n", 400),
    ("a WebSocket frame", b"\x81\x85abcdhello", 400),
    ("NULs", b"\0" * 64, 400),
    # the target
    ("absolute-form", b"GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("absolute-form of a WebSocket", b"GET ws://x/ws/pcm HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("a relative path", b"GET ws/pcm HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("a star", b"GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("a query without a path", b"GET ?a=1 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("a backslash for the path", b"GET \\ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("a fragment", get("/ws#x"), 400),
    ("a quotation mark", get('/"'), 400),
    ("angle brackets", get("/<script>"), 400),
    ("a backslash", get("/..\\x"), 400),
    ("braces", get("/{CallSid}"), 400),
    ("a pipe", get("/a|b"), 400),
    ("a caret", get("/a^b"), 400),
    ("a backtick", get("/`id`"), 400),
    ("square brackets", get("/?a[]=1"), 400),
    ("a high byte in the path", b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("a DEL in the path", get("/\x7f"), 400),
    ("an escape in the path", get("/\x1b[31m"), 400),
    ("a percent sign at the end", get("/100%"), 400),
    ("a percent sign and one digit", get("/%4"), 400),
    ("a percent sign and no hexadecimals", get("/%zz"), 400),
    ("a percent sign and a sign", get("/%+1"), 400),
    ("UTF-16's escape", get("/%u0041"), 400),
    ("CR LF escaped in the query", get("/?call=%0d%0aX-Evil:%201"), 400),
    ("NUL escaped in the query", get("/?a=%00"), 400),
    ("a control character of Latin-1 escaped in the query", get("/?a=%C2%9B31m"), 400),
    ("a control character in a name of the query", get("/?%1b=1"), 400),
    ("a query that is not UTF-8", get("/?a=%FF"), 400),
    ("an overlong form in the query", get("/?a=%C0%AF"), 400),
    ("a surrogate in the query", get("/?a=%ED%A0%80"), 400),
    ("one name twice in the query", get("/?rate=8000&rate=48000"), 400),
    ("one name twice in the query, once escaped", get("/?rate=8000&%72ate=48000"), 400),
    # line ends
    ("bare LF everywhere", get().replace(b"\r\n", b"\n"), 400),
    ("bare LF after the request line", b"GET / HTTP/1.1\nHost: x\r\n\r\n", 400),
    ("bare LF after a header", b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 400),
    ("bare LF for the empty line", b"GET / HTTP/1.1\r\nHost: x\r\n\n", 400),
    ("bare LF at the end of the last header", b"GET / HTTP/1.1\r\nHost: x\n\r\n", 400),
    ("bare CR in the request line", b"GET /\rx HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("bare CR everywhere", get().replace(b"\r\n", b"\r"), 400),
    ("bare CR in a value", get("/", "A: b\rc"), 400),
    ("bare CR that hides a header", get("/", "A: b\rTransfer-Encoding: chunked"), 400),
    ("two CRs before an LF", b"GET / HTTP/1.1\r\r\nHost: x\r\n\r\n", 400),
    ("LF before CR", b"GET / HTTP/1.1\n\rHost: x\n\r\n\r", 400),
    ("obs-fold with a space", get("/", "A: b", " c"), 400),
    ("obs-fold with a tab", get("/", "A: b", "\tc"), 400),
    ("obs-fold right after the request line", b"GET / HTTP/1.1\r\n Host: x\r\n\r\n", 400),
    ("obs-fold of nothing", get("/", "A: b", " "), 400),
    ("a vertical tab for a line end", get("/", "A: b\x0bC: d"), 400),
    ("a form feed", get("/", "A: b\x0cC: d"), 400),
    # header names
    ("a space before the colon", get("/", "Name : value"), 400),
    ("a tab before the colon", get("/", "Name\t: value"), 400),
    ("Content-Length with a space before the colon", get("/", "Content-Length : 5"), 400),
    ("Transfer-Encoding with a space before the colon", get("/", "Transfer-Encoding : chunked"), 400),
    ("no colon", get("/", "Name"), 400),
    ("no name", get("/", ": value"), 400),
    ("nothing but a colon", get("/", ":"), 400),
    ("a space in a name", get("/", "A Name: value"), 400),
    ("a high byte in a name", get("/", "N\xe4me: value"), 400),
    ("a NUL in a name", get("/", "Na\0me: value"), 400),
    ("a DEL in a name", get("/", "Na\x7fme: value"), 400),
    ("a parenthesis in a name", get("/", "Na(me: value"), 400),
    ("a quotation mark in a name", get("/", '"Name": value'), 400),
    ("a slash in a name", get("/", "Na/me: value"), 400),
    ("an at sign in a name", get("/", "N@me: value"), 400),
    ("an equals sign for the colon", get("/", "Name=value"), 400),
    ("a second request line among the headers", get("/", "GET /admin HTTP/1.1"), 400),
    # header values
    ("a NUL in a value", get("/", "Name: va\0lue"), 400),
    ("an escape in a value", get("/", "Name: \x1b[31m"), 400),
    ("a bell in a value", get("/", "Name: \x07"), 400),
    ("a DEL in a value", get("/", "Name: \x7f"), 400),
    # Host
    ("no Host", b"GET / HTTP/1.1\r\n\r\n", 400),
    ("no Host among other headers", b"GET / HTTP/1.1\r\nAccept: */*\r\n\r\n", 400),
    ("two Hosts", get("/", "Host: voice.example"), 400),
    ("two Hosts that differ", get("/", "Host: evil.example"), 400),
    ("two Hosts that differ in case", get("/", "hOST: evil.example"), 400),
    ("an empty Host", get("/", host=""), 400),
    ("two names in one Host", get("/", host="a.example, b.example"), 400),
    ("a space in Host", get("/", host="a b"), 400),
    ("a path in Host", get("/", host="a.example/x"), 400),
    ("a user in Host", get("/", host="me@a.example"), 400),
    ("a high byte in Host", get("/", host="\xe4.example"), 400),
    ("a quotation mark in Host", get("/", host='a"'), 400),
    # bodies
    ("Content-Length", get("/", "Content-Length: 5"), 400),
    ("Content-Length of nothing", get("/", "Content-Length: 0"), 400),
    ("Content-Length with an upgrade", upgrade("Content-Length: 5") + b"hello", 400),
    ("Content-Length twice", get("/", "Content-Length: 5", "Content-Length: 5"), 400),
    ("Content-Length twice, differing", get("/", "Content-Length: 5", "Content-Length: 6"), 400),
    ("Content-Length as a list", get("/", "Content-Length: 5, 5"), 400),
    ("Content-Length +1", get("/", "Content-Length: +1"), 400),
    ("Content-Length -1", get("/", "Content-Length: -1"), 400),
    ("Content-Length 0x1", get("/", "Content-Length: 0x1"), 400),
    ("Content-Length 1_0", get("/", "Content-Length: 1_0"), 400),
    ("Content-Length of nothing at all", get("/", "Content-Length:"), 400),
    ("Content-Length beyond 64 bits", get("/", "Content-Length: 99999999999999999999"), 400),
    ("Content-Length in digits that are not ASCII", get("/", "Content-Length: \xb2"), 400),
    ("chunked", get("/", "Transfer-Encoding: chunked"), 400),
    ("chunked with an upgrade", upgrade("Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
    ("chunked twice", get("/", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), 400),
    ("chunked, disguised", get("/", "Transfer-Encoding: xchunked"), 400),
    ("a coding that nobody knows", get("/", "Transfer-Encoding: gzip, chunked"), 400),
    ("identity", get("/", "Transfer-Encoding: identity"), 400),
    ("both kinds of length", get("/", "Content-Length: 5", "Transfer-Encoding: chunked"), 400),
    # what may stand once
    ("two Origins", get("/", "Origin: https://a", "Origin: https://b"), 400),
    ("two Authorizations", get("/", "Authorization: Bearer a", "Authorization: Bearer b"), 400),
    ("two Upgrades", upgrade("Upgrade: websocket"), 400),
    ("two Upgrades that differ", upgrade("Upgrade: h2c"), 400),
    ("two keys", upgrade(f"Sec-WebSocket-Key: {KEY}"), 400),
    ("two versions", upgrade("Sec-WebSocket-Version: 13"), 400),
    ("two versions that differ", upgrade("Sec-WebSocket-Version: 8"), 400),
    # sizes
    ("a line of 4097 bytes", get("/", "A: " + "x" * (MAX_LINE - 2)), 431),
    ("a line without an end", b"GET / HTTP/1.1\r\nA: " + b"x" * 5000, 431),
    ("a request line of 4097 bytes", b"GET /" + b"x" * (MAX_LINE + 1 - 14) + b" HTTP/1.1\r\n", 431),
    ("a name of 5000 bytes", get("/", "x" * 5000 + ": a"), 431),
    ("65 header lines", get("/", *(f"A{i}: b" for i in range(MAX_LINES))), 431),
    ("2000 header lines", get("/", *(f"A{i}:" for i in range(2000))), 431),
    ("a head of 8193 bytes", LARGEST[:-4] + b"x\r\n\r\n", 431),
    ("a head that never ends", get("/", "A: " + FILLER, "B: " + FILLER, "C: " + FILLER)[:-4], 431),
    ("a mebibyte", b"GET / HTTP/1.1\r\n" + b"Name: value\r\n" * 80000, 431),
    ("a line too long that also ends in a bare LF", b"GET / HTTP/1.1\r\nA: " + b"x" * 5000 + b"\n\r\n", 431),
    ("a control character before the line grows too long", b"GET / HTTP/1.1\r\nA: \0" + b"x" * 5000, 400),
    ("a control character after the line has grown too long", b"GET / HTTP/1.1\r\nA: " + b"x" * 5000 + b"\0", 431),
]

# (what is wrong with it, the bytes, the status): good heads that ask for an upgrade in the wrong way
MALFORMED_UPGRADES = [
    ("no upgrade at all", get("/ws/pcm"), 426),
    ("everything but Upgrade", upgrade(without=("upgrade",)), 426),
    ("HEAD", upgrade().replace(b"GET", b"HEAD", 1), 400),
    ("POST", upgrade().replace(b"GET", b"POST", 1), 400),
    ("an empty Upgrade", upgrade(upgrade=""), 400),
    ("Upgrade to h2c", upgrade(upgrade="h2c"), 400),
    ("Upgrade to something longer", upgrade(upgrade="websockets"), 400),
    ("Upgrade to a version", upgrade(upgrade="websocket/13"), 400),
    ("no Connection", upgrade(without=("connection",)), 400),
    ("Connection: keep-alive", upgrade(connection="keep-alive"), 400),
    ("Connection: close", upgrade(connection="close"), 400),
    ("Connection: upgraded", upgrade(connection="upgraded"), 400),
    ("Connection: keep-alive Upgrade, no comma", upgrade(connection="keep-alive Upgrade"), 400),
    ("Connection: websocket", upgrade(connection="websocket"), 400),
    ("no version", upgrade(without=("version",)), 426),
    ("version 8", upgrade(version="8"), 426),
    ("version 0", upgrade(version="0"), 426),
    ("version 14", upgrade(version="14"), 426),
    ("version 013", upgrade(version="013"), 426),
    ("version 13.0", upgrade(version="13.0"), 426),
    ("version +13", upgrade(version="+13"), 426),
    ("version 13, 8", upgrade(version="13, 8"), 426),
    ("an empty version", upgrade(version=""), 426),
    ("no key", upgrade(without=("key",)), 400),
    ("an empty key", upgrade(key=""), 400),
    ("a key of 15 bytes", upgrade(key=b64encode(bytes(15)).decode()), 400),
    ("a key of 17 bytes", upgrade(key=b64encode(bytes(17)).decode()), 400),
    ("a key without padding", upgrade(key=KEY[:-2]), 400),
    ("a key with one padding character", upgrade(key=KEY[:-1]), 400),
    ("a key with too much padding", upgrade(key=KEY + "="), 400),
    ("a key with padding inside", upgrade(key="dGhlIHNhbXBs==SBub25jZQA"), 400),
    ("a key with a space inside", upgrade(key=KEY[:9] + " " + KEY[10:]), 400),
    ("a key for URLs", upgrade(key="__" + KEY[2:]), 400),
    ("a key that is no base64", upgrade(key="?" * 22 + "=="), 400),
    ("a key beyond ASCII", upgrade(key="\xe4" * 22 + "=="), 400),
    ("a key in quotes", upgrade(key=f'"{KEY}"'), 400),
    ("a subprotocol that is no token", upgrade("Sec-WebSocket-Protocol: a b"), 400),
    ("a subprotocol in quotes", upgrade('Sec-WebSocket-Protocol: "a"'), 400),
    ("a subprotocol beyond ASCII", upgrade("Sec-WebSocket-Protocol: \xe4"), 400),
]

GOOD_HEADS = [
    get(), get("/"), get("/ws/pcm?rate=16000"), get("/", host="127.0.0.1:8000"), get("/", host="[::1]:8000"),
    get("/", "Accept: */*", "Empty:", "Padded: \t value \t", "Tab: a\tb"),
    get("/", "Cookie: n\xe4me=value"),                                  # what another program set for this host
    get("/", *(f"A{i}: b" for i in range(MAX_LINES - 1))),
    get("/", "A: " + "x" * (MAX_LINE - 3)),
    LARGEST, get("/" + "x" * (MAX_LINE - 14)),
    upgrade(), get().replace(b"GET", b"HEAD", 1), get("/%2e%2E/%41?caf%C3%A9=%C3%A9"),
]


def test_the_table_is_long_enough():
    assert len(MALFORMED_HEADS) + len(MALFORMED_UPGRADES) >= 120
    assert len({name for name, _, _ in MALFORMED_HEADS}) == len(MALFORMED_HEADS)


@pytest.mark.parametrize(("data", "expected"), [row[1:] for row in MALFORMED_HEADS],
                         ids=[row[0] for row in MALFORMED_HEADS])
def test_a_malformed_head_is_refused(data, expected):
    assert read(data) == expected


@pytest.mark.parametrize(("data", "expected"), [row[1:] for row in MALFORMED_UPGRADES],
                         ids=[row[0] for row in MALFORMED_UPGRADES])
def test_a_malformed_upgrade_is_refused(data, expected):
    assert status(data) == expected


@pytest.mark.parametrize(("data", "expected"), [row[1:] for row in MALFORMED_HEADS],
                         ids=[row[0] for row in MALFORMED_HEADS])
def test_a_malformed_head_is_refused_wherever_it_is_cut(data, expected):
    step = 1 if len(data) < 600 else 997
    assert {read(data, cut) for cut in range(0, min(len(data), MAX_HEAD + 1), step)} == {expected}


@pytest.mark.parametrize("data", GOOD_HEADS, ids=range(len(GOOD_HEADS)))
def test_a_good_head_reads_the_same_wherever_it_is_cut(data):
    whole = read(data)
    assert whole[0] is not None and whole[1] == b""
    step = 1 if len(data) < 600 else 97
    assert all(read(data, cut) == whole for cut in range(1, len(data), step))


def test_the_limits_are_exact():
    assert len(LARGEST) == MAX_HEAD
    assert read(LARGEST + b"frames", 100)[1] == b"frames"
    assert len(max(GOOD_HEADS[8].split(b"\r\n"), key=len)) == MAX_LINE and GOOD_HEADS[7].count(b":") == MAX_LINES


@pytest.mark.parametrize("data", [row[1] for row in MALFORMED_HEADS] + GOOD_HEADS)
def test_one_byte_at_a_time_gives_the_same_answer_and_keeps_no_more_than_the_limit(data):
    parser, outcome = HeadParser(), None
    try:
        for i in range(min(len(data), MAX_HEAD + 1)):
            outcome = parser.feed(data[i:i + 1])
            assert len(parser._lines.held) <= MAX_HEAD
            if outcome:
                break
    except ProtocolError as error:
        outcome = error.code
    whole = read(data)
    assert outcome == (whole if isinstance(whole, int) else whole[0])


@pytest.mark.parametrize("size", [1, 100, 8191, 8192, 8193])
def test_an_endless_head_is_refused_at_the_limit_and_not_after(size):
    parser, fed = HeadParser(), 0
    parser.feed(b"GET / HTTP/1.1\r\n")
    with pytest.raises(ProtocolError) as caught:
        while fed < 1 << 20:
            parser.feed((b"Name: %s\r\n" % (b"x" * 990) * 100)[fed % 1000:][:size])
            fed += size
    assert caught.value.code == 431
    assert fed <= MAX_HEAD and len(parser._lines.held) <= MAX_HEAD


def test_what_follows_the_head_is_kept_as_it_is():
    frames = bytes(range(256)) * 100
    for cut in (1, 50, len(upgrade()), len(upgrade()) + 7):
        assert read(upgrade() + frames, cut)[1] == frames
    parser = HeadParser()
    assert parser.feed(memoryview(upgrade() + frames)).upgrade and parser.rest == frames


def test_a_second_request_behind_the_head_is_never_read_as_one():
    head, rest = read(upgrade() + get("/metrics"))
    assert head.path == "/ws/pcm" and rest == get("/metrics")


def test_a_head_says_what_was_asked():
    head, _ = read(get("/ws/pcm/echo?rate=16000&from=%2B15551234&note=two+words&&empty=&bare",
                       "X-Call: a", "X-CALL: b", "Accept: , x ,, y,"))
    assert (head.method, head.path, head.upgrade) == ("GET", "/ws/pcm/echo", False)
    assert head.target.endswith("&&empty=&bare")
    assert head.query == {"rate": "16000", "from": "+15551234", "note": "two words", "empty": "", "bare": ""}
    assert head.get("x-call") == "a, b" and head.get("absent") is None and head.get("absent", "-") == "-"
    assert head.tokens("accept") == ("x", "y")


def test_a_path_is_never_decoded_so_a_route_has_one_spelling():
    assert read(get("/%6detrics"))[0].path == "/%6detrics"
    assert read(get("/ws/%2e%2e/metrics"))[0].path == "/ws/%2e%2e/metrics"


# -- the upgrade -----------------------------------------------------------------------------------------------------

def test_the_answer_to_an_upgrade_byte_for_byte():
    assert accept_value(KEY) == ACCEPT
    assert accept(read(upgrade())[0]) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")


@pytest.mark.parametrize("request_", [
    upgrade(connection="keep-alive, Upgrade"), upgrade(connection="UPGRADE"), upgrade(connection="close,upgrade"),
    upgrade(connection=",, upgrade ,"), upgrade("Connection: keep-alive"), upgrade(upgrade="WebSocket"),
    upgrade(upgrade="h2c, websocket"), upgrade("sec-websocket-extensions: permessage-deflate"),
    upgrade("Cookie: " + '"' * 3000), upgrade("Sec-WebSocket-Protocol: " + " ," * 2000),
])
def test_upgrades_that_are_well_formed_if_unusual(request_):
    assert status(request_) == 101


@pytest.mark.parametrize("offer", ["permessage-deflate", "permessage-deflate; client_max_window_bits=7", "x-evil; a=\"",
                                   "permessage-deflate; server_max_window_bits=abc, permessage-deflate", ","])
def test_every_extension_is_declined_without_a_word(offer):
    assert b"xtension" not in accept(read(upgrade("Sec-WebSocket-Extensions: " + offer))[0])


@pytest.mark.parametrize(("offers", "ours", "chosen"), [
    ((), (), None), ((), ("media",), None), (("media",), (), None), (("media",), ("media",), "media"),
    (("b, a",), ("a", "b"), "b"), (("x", "a"), ("a", "b"), "a"), (("Media",), ("media",), None),
    (("realtime, openai-insecure-api-key.sk-123",), ("realtime",), "realtime"),
    (("audio.drachtio.org",), ("audio.jambonz.org", "audio.drachtio.org"), "audio.drachtio.org"),
])
def test_a_subprotocol_is_chosen_only_from_ours(offers, ours, chosen):
    head, _ = read(upgrade(*(f"Sec-WebSocket-Protocol: {offer}" for offer in offers)))
    assert choose_protocol(head, ours) == chosen
    line = f"Sec-WebSocket-Protocol: {chosen}\r\n".encode()
    assert (line in accept(head, ours)) == (chosen is not None)
    assert accept(head, ours).count(b"Sec-WebSocket-Protocol") == (chosen is not None)


# -- answers ---------------------------------------------------------------------------------------------------------

def test_an_answer_byte_for_byte():
    assert response(200, '{"status":"healthy"}', "application/json") == (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 20\r\nCache-Control: no-store\r\n"
        b'X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n{"status":"healthy"}')


def test_an_answer_to_head_has_the_length_without_the_body():
    answer = response(200, "größer", head_only=True)
    assert b"Content-Length: 8\r\n" in answer and answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(("code", "field"), [
    (503, b"Retry-After: 1\r\n"), (426, b"Sec-WebSocket-Version: 13\r\n"), (426, b"Upgrade: websocket\r\n"),
    (405, b"Allow: GET, HEAD\r\n"), (401, b"WWW-Authenticate: Bearer\r\n"),
])
def test_a_refusal_carries_what_its_status_needs(code, field):
    answer = refusal(ProtocolError(code, "No."))
    assert field in answer and b"Connection: close" in answer and answer.endswith(b"\r\n\r\nNo.\n")


def test_an_address_that_is_posted_to_says_so():
    answer = refusal(posted_to())
    assert answer.startswith(b"HTTP/1.1 405 ") and answer.count(b"Allow:") == 1 and b"Allow: POST\r\n" in answer


def test_a_field_of_the_callers_own_takes_the_place_of_ours():
    answer = response(503, "Full.", headers=[("Retry-After", "7")])
    assert answer.count(b"Retry-After") == 1 and b"Retry-After: 7\r\n" in answer


@pytest.mark.parametrize("field", [("X-A", "a\r\nX-B: b"), ("X-A", "a\nb"), ("X\r\nA", "a"), ("X A", "a"), ("", "a"),
                                   ("X-A", "\0"), ("X-A", "\u202e"), ("X-A", "é"), ("X:A", "a")])
def test_nothing_can_be_injected_into_a_head(field):
    with pytest.raises(ValueError):
        response(200, headers=[field])


@pytest.mark.parametrize("data", [row[1] for row in MALFORMED_HEADS + MALFORMED_UPGRADES])
def test_a_refusal_quotes_nothing_of_the_request(data):
    marked = data.replace(b"x", b"EVIL").replace(b"a", b"EVIL")
    try:
        head = HeadParser().feed(marked)
        accept(head) if head else None
    except ProtocolError as error:
        assert b"EVIL" not in refusal(error)


# -- the caller's side -----------------------------------------------------------------------------------------------

NONCE = b"the sample nonce"
HELLO = ClientHandshake("voice.example", "/ws/pcm?rate=8000", NONCE, [("Authorization", "Bearer x")], ["a", "b"])


def hear(answer, protocols=("a", "b")):
    handshake = ClientHandshake("voice.example", "/ws/pcm", NONCE, protocols=protocols)
    return handshake.feed(answer), handshake.rest


def answer_101(extra=b"", key=NONCE, **changed):
    accepted = accept_value(b64encode(key).decode())
    fields = {"Upgrade": "websocket", "Connection": "Upgrade", "Accept": accepted, **changed}
    lines = [f"{'Sec-WebSocket-Accept' if name == 'Accept' else name}: {value}" for name, value in fields.items()]
    return "\r\n".join(("HTTP/1.1 101 Switching Protocols", *lines, "")).encode() + extra + b"\r\n"


def test_our_caller_and_our_server_understand_each_other():
    head, rest = read(HELLO.request)
    assert head.query == {"rate": "8000"} and head.get("authorization") == "Bearer x" and rest == b""
    heard, rest = hear(accept(head, ("b",)) + b"\x81\x00")
    assert (heard.status, heard.get("sec-websocket-protocol"), rest) == (101, "b", b"\x81\x00")


def test_an_answer_reads_the_same_wherever_it_is_cut():
    answer = answer_101() + b"frames"
    for cut in range(1, len(answer)):
        handshake = ClientHandshake("voice.example", "/ws/pcm", NONCE)
        first = handshake.feed(answer[:cut])
        assert (first or handshake.feed(answer[cut:])).status == 101


def test_a_refusal_is_read_with_its_sentence():
    heard, rest = hear(refusal(ProtocolError(503, "The server is full.")))
    assert heard.status == 503 and heard.get("retry-after") == "1" and rest == b"The server is full.\n"


@pytest.mark.parametrize("answer", [
    answer_101(key=b"another's nonce."), answer_101(Accept=""),
    answer_101(Upgrade="h2c"), answer_101(Connection="close"),
    answer_101(b"Sec-WebSocket-Extensions: permessage-deflate\r\n"), answer_101(b"Sec-WebSocket-Protocol: c\r\n"),
    answer_101(b"Sec-WebSocket-Protocol: a, b\r\n"), answer_101(b"Upgrade: websocket\r\n"),
    answer_101().replace(b"HTTP/1.1", b"HTTP/1.0"), answer_101().replace(b"\r\n", b"\n"), answer_101(b"A : b\r\n"),
    b"HTTP/1.1 1O1 Switching\r\n\r\n", b"HTTP/1.1 1011 Switching\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"\r\n", b"\0",
])
def test_an_answer_that_is_not_for_us_is_refused(answer):
    with pytest.raises(ProtocolError) as caught:
        hear(answer)
    assert caught.value.code == 400


# -- any bytes at all ------------------------------------------------------------------------------------------------

PIECES = st.sampled_from([b"GET ", b"/", b"/ws/pcm", b"?a=1", b" HTTP/1.1", b"\r\n", b"\r", b"\n", b"Host: x\r\n",
                          b": ", b"Upgrade: websocket\r\n", b"Content-Length: 5\r\n", b" ", b"\t", b"\0", b"\xff",
                          b"A" * 4090])


@settings(deadline=None)
@given(st.lists(PIECES | st.binary(max_size=40), max_size=40).map(b"".join), st.data())
def test_any_bytes_are_a_head_or_a_refusal_however_they_are_cut(data, draw):
    whole = read(data)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=6)))
    parser, outcome = HeadParser(), None
    try:
        for start, end in zip([0, *cuts], [*cuts, len(data)]):
            outcome = parser.feed(data[start:end])
            if outcome:
                outcome = outcome, parser.rest + data[end:]
                break
        else:
            outcome = None, b""
    except ProtocolError as error:
        outcome = error.code
    assert outcome == whole


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_answer_is_a_response_or_a_refusal(data):
    try:
        hear(b"HTTP/1.1 " + data)
    except ProtocolError as error:
        assert error.code in (400, 431)
