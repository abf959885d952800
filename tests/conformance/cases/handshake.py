"""Section 4: the opening handshake, as a request with one line changed, and what may be glued behind it."""

from collections.abc import Callable

from .. import wire
from ..script import Answer, BYE, Case, Closes, EveryCut, Fails, Get, GetPongs, HOUSE, Send, Step, ask, raw
from ..wire import KEY, PONG, TEXT, close, head, ping, text

OTHER_KEY = "x3JJHMbDL1EzLkh9GBhXDw=="  # another nonce of 16 octets
LOOSE_KEY = "dGhlIHNhbXBsZSBub25jZR=="  # 16 octets, and 4 bits that base64 does not use
VERSION_13 = (("sec-websocket-version", "13"),)


def taken(id: str, title: str, section: str, request: bytes, *, key: str = KEY, also: tuple[int, ...] = ()) -> Case:
    """The request is answered 101, and the connection works."""
    works: tuple[Step, ...] = () if also else (Send(text("works")), Get(TEXT, b"works"), *BYE)
    return raw(f"handshake.{id}", title, section, ask(request), Answer(101, also=also, key=key), *works)


def turned_down(id: str, title: str, section: str, request: bytes, *status: int, also: tuple[int, ...] = (),
                lines: tuple[tuple[str, str], ...] = ()) -> Case:
    """The request is answered with one of the statuses, 400 where none is given; with 101 among them both are right."""
    answer = Answer(status or 400, also, lines=lines, bodiless=request.startswith(b"HEAD "))
    return raw(f"handshake.{id}", title, section, ask(request), answer)


def renamed(case: Callable[[str], str]) -> bytes:
    """The plain request with the names of its header lines in another case."""
    return head(without=tuple(wire.LINES), extra=tuple(f"{case(name)}: {value}" for name, value in wire.LINES.items()))


PLAIN = (
    taken("plain", "the request of section 4.1", "4.2.2", head()),
    taken("other-key", "another key has another accept", "4.2.2", head(swap={"Sec-WebSocket-Key": OTHER_KEY}),
          key=OTHER_KEY),
    taken("key-of-zeros", "16 octets of zero are a key", "4.2.2", head(swap={"Sec-WebSocket-Key": "A" * 22 + "=="}),
          key="A" * 22 + "=="),
    taken("query", "a query behind the path", "4.1", head("GET {path}?rate=8000&name=a%20b HTTP/1.1")),
    taken("names-lower", "names of header lines in lower case", "4.1", renamed(str.lower)),
    taken("names-upper", "names of header lines in upper case", "4.1", renamed(str.upper)),
    taken("unknown-lines", "header lines that nobody knows", "4.1",
          head(extra=("X-Call: 1", "X-Call: 2", "X-Empty:", "User-Agent: a b (c)"))),
    taken("cookies", "cookies", "4.1", head(extra=("Cookie: a=1; b=2", "Authorization: Basic YTpi"))),
    taken("pragmas", "what browsers add", "4.1",
          head(extra=("Pragma: no-cache", "Cache-Control: no-cache", "Accept-Encoding: gzip, br"))),
) + tuple(
    taken(f"connection.{name}", f"Connection: {value!r}", "4.2.1", head(swap={"Connection": value}))
    for name, value in (
        ("list", "keep-alive, Upgrade"), ("list-last", "Upgrade, keep-alive"), ("lower", "upgrade"),
        ("upper", "UPGRADE"), ("tight", "keep-alive,upgrade"), ("spaces", "keep-alive ,  Upgrade  "),
        ("tab", "\tUpgrade"), ("empty-elements", ", Upgrade,,"))
) + tuple(
    taken(f"upgrade.{name}", f"Upgrade: {value!r}", "4.2.1", head(swap={"Upgrade": value}))
    for name, value in (("camel", "WebSocket"), ("upper", "WEBSOCKET"), ("spaces", "  websocket \t"))
) + (
    taken("connection.two-lines", "Connection in two lines, the token in the second", "4.2.1",
          head(swap={"Connection": "keep-alive"}, extra=("Connection: Upgrade",))),
    turned_down("upgrade.list", "Upgrade: 'h2c, websocket'", "4.2.1", head(swap={"Upgrade": "h2c, websocket"}), 101,
                400, 426),
    taken("no-space", "no space behind the colons", "4.1", head().replace(b": ", b":")),
    turned_down("content-length-0", "a body of no octets", HOUSE, head(extra=("Content-Length: 0",)), 101, 400),
)

OFFERS = tuple(
    taken(f"extensions.{name}", f"the offer {offer!r} is declined", HOUSE if "deflate" in offer else "9.1",
          head(extra=(f"Sec-WebSocket-Extensions: {offer}",)))
    for name, offer in (
        ("deflate", "permessage-deflate"),
        ("deflate-windows", "permessage-deflate; client_max_window_bits; server_max_window_bits=10"),
        ("deflate-window-7", "permessage-deflate; client_max_window_bits=7"),
        ("deflate-window-999", "permessage-deflate; client_max_window_bits=999"),
        ("deflate-window-abc", "permessage-deflate; server_max_window_bits=abc"),
        ("deflate-frame", "x-webkit-deflate-frame"), ("unknown", "x-nobody-knows-this; a=1"),
        ("several", "permessage-deflate, x-nobody; b, permessage-deflate; server_no_context_takeover"),
        ("quoted", 'x-quoted; a="b"'))
) + (
    taken("extensions.no-token", "an offer that the grammar of 9.1 does not allow", "9.1",
          head(extra=('Sec-WebSocket-Extensions: x-quoted; a="b, c"',)), also=(400,)),
    taken("extensions.two-lines", "offers in two lines are declined", HOUSE,
          head(extra=("Sec-WebSocket-Extensions: permessage-deflate",) * 2)),
    taken("subprotocol", "a subprotocol that nobody knows is not agreed to", "4.2.2",
          head(extra=("Sec-WebSocket-Protocol: x-nobody-speaks-this",))),
    taken("subprotocols", "nor are two, in two lines", "4.2.2",
          head(extra=("Sec-WebSocket-Protocol: x-one", "Sec-WebSocket-Protocol: x-two"))),
)

MISSING = tuple(
    turned_down(f"no-{name.lower()}", f"{name} is missing", "4.2.1", head(without=(name,)), *statuses)
    for name, statuses in (
        ("Host", (400,)), ("Upgrade", (400, 404, 426)), ("Connection", (400, 404, 426)), ("Sec-WebSocket-Key", (400,)),
        ("Sec-WebSocket-Version", (400, 426)))
) + (
    turned_down("connection.no-token", "Connection: keep-alive", "4.2.1", head(swap={"Connection": "keep-alive"}), 400,
                404, 426),
    turned_down("connection.part-of-token", "Connection: upgraded", "4.2.1", head(swap={"Connection": "upgraded"}), 400,
                404, 426),
    turned_down("upgrade.other", "Upgrade: h2c", "4.2.1", head(swap={"Upgrade": "h2c"}), 400, 404, 426),
    turned_down("upgrade.part-of-token", "Upgrade: websockets", "4.2.1", head(swap={"Upgrade": "websockets"}), 400, 404,
                426),
)

TWICE = (
    turned_down("two-host", "the same Host twice", "RFC 9112 3.2", head(extra=("Host: {host}",))),
    turned_down("two-hosts", "two different Hosts", "RFC 9112 3.2", head(extra=("Host: elsewhere.example",))),
    turned_down("two-keys", "two keys", "11.3.1", head(extra=(f"Sec-WebSocket-Key: {OTHER_KEY}",))),
    turned_down("two-keys-alike", "the same key twice", "11.3.1", head(extra=(f"Sec-WebSocket-Key: {KEY}",))),
    turned_down("two-versions-alike", "version 13 in two lines", "11.3.5", head(extra=("Sec-WebSocket-Version: 13",)),
                400, 426),
    turned_down("two-versions", "versions 13 and 8 in two lines", "11.3.5", head(extra=("Sec-WebSocket-Version: 8",)),
                400, 426),
    turned_down("two-upgrades", "Upgrade twice", HOUSE, head(extra=("Upgrade: websocket",)), also=(101,)),
)

BAD_KEYS = tuple(
    turned_down(f"key.{name}", f"a key {title}", "4.2.1", head(swap={"Sec-WebSocket-Key": key}))
    for name, title, key in (
        ("empty", "that is empty", ""), ("15", "of 15 octets", "dGhlIHNhbXBsZSBub25j"),
        ("17", "of 17 octets", "dGhlIHNhbXBsZSBub25jZSE="),
        ("32", "of 32 octets", "dGhlIHNhbXBsZSBub25jZXRoZSBzYW1wbGUgbm9uY2U="),
        ("words", "that is no base64", "not base64 at all!!!"),
        ("alphabet", "with '*' for a letter", "dGhlIHNhbXBsZSBub25j*Q=="),
        ("url-alphabet", "in the alphabet of URLs", "-_hlIHNhbXBsZSBub25jZQ=="),
        ("no-padding", "without its padding", "dGhlIHNhbXBsZSBub25jZQ"),
        ("padding-inside", "with padding inside", "dGhlIHNhbXBs=SBub25jZQ=="),
        ("space-inside", "with a space inside", "dGhlIHNhbXBsZ SBub25jZQ="),
        ("two", "that is two in a list", f"{KEY}, {OTHER_KEY}"), ("long", "of 1000 octets", "A" * 1332 + "AA=="),
        ("latin-1", "beyond ASCII", "dGhlIHNhbXBsZSBub25j\xe9Q=="))
) + (
    raw("handshake.key.trailing-bits", "a key whose last digit has bits that mean nothing: taken or refused", "4.2.1",
        ask(head(swap={"Sec-WebSocket-Key": LOOSE_KEY})), Answer((101, 400), key=LOOSE_KEY)),
)

VERSIONS = tuple(
    turned_down(f"version.{version}", f"version {version} is refused, with the one that is spoken", "4.4",
                head(swap={"Sec-WebSocket-Version": version}), 426, also=(400,), lines=VERSION_13)
    for version in ("0", "7", "8", "12", "14", "255")
) + tuple(
    turned_down(f"version.{name}", f"Sec-WebSocket-Version: {value!r}", "4.2.1",
                head(swap={"Sec-WebSocket-Version": value}), 426, also=(400,), lines=VERSION_13)
    for name, value in (
        ("words", "thirteen"), ("empty", ""), ("plus", "+13"), ("minus", "-13"), ("zero", "013"), ("point", "13.0"),
        ("huge", "9" * 40), ("hex", "0xd"), ("underscore", "1_3"), ("list", "13, 8"), ("semicolon", "13;8"))
)

REQUESTS = tuple(
    turned_down(f"method.{name}", f"the method {method}", "4.2.1", head(f"{method} {{path}} HTTP/1.1"), 400, 405, 501,
                also=(404,))
    for name, method in (
        ("post", "POST"), ("put", "PUT"), ("head", "HEAD"), ("options", "OPTIONS"), ("lower", "get"),
        ("made-up", "FETCH"))
) + (
    turned_down("http-1.0", "HTTP/1.0", "4.2.1", head("GET {path} HTTP/1.0"), 400, 426, 505),
    turned_down("http-0.9", "no version at all", "4.2.1", head("GET {path}")),
    turned_down("http-2.0", "HTTP/2.0 in the request line", "4.2.1", head("GET {path} HTTP/2.0"), 400, 505),
    turned_down("http-1.2", "HTTP/1.2", HOUSE, head("GET {path} HTTP/1.2"), 101, 400, 505),
    turned_down("http-lower", "http/1.1", "RFC 9112 2.3", head("GET {path} http/1.1"), 400, 505),
    turned_down("fragment", "a fragment in the request target", "3", head("GET {path}#part HTTP/1.1"), 400, 404,
                also=(101,)),
    turned_down("absolute-target", "the whole URL as the request target", HOUSE,
                head("GET http://{host}{path} HTTP/1.1"), 101, 400),
    turned_down("path-unknown", "a path that does not exist", HOUSE, head("GET /no/such/route/at/all HTTP/1.1"), 404),
)

BODIES = (
    turned_down("body.content-length", "a body of 5 octets", HOUSE, head(extra=("Content-Length: 5",)) + b"hello"),
    turned_down("body.content-length-frames", "a frame as the body", HOUSE,
                head(extra=("Content-Length: 11",)) + text("hello")),
    turned_down("body.chunked", "a chunked body", HOUSE,
                head(extra=("Transfer-Encoding: chunked",)) + b"5\r\nhello\r\n0\r\n\r\n"),
    turned_down("body.both", "a length and a chunked body", HOUSE,
                head(extra=("Content-Length: 5", "Transfer-Encoding: chunked")) + b"0\r\n\r\n"),
    turned_down("body.two-lengths", "two lengths", "RFC 9112 6.3",
                head(extra=("Content-Length: 5", "Content-Length: 6")) + b"hello"),
    turned_down("body.expect", "Expect: 100-continue with a body", HOUSE,
                head(extra=("Expect: 100-continue", "Content-Length: 5")), also=(417,)),
)

# Octets behind the head belong to the WebSocket: they wait for the 101, and nothing of them is HTTP.
GLUED = (
    raw("glued.text", "the request and a message in one write: the 101 first", "4.1", ask(head() + text("early")),
        Answer(101), Get(TEXT, b"early"), *BYE),
    raw("glued.ping", "the request and a Ping in one write: the 101 first", "4.1", ask(head() + ping(b"early")),
        Answer(101), Get(PONG, b"early"), *BYE),
    raw("glued.pings", "the request and two Pings in one write: the 101 first", "4.1",
        ask(head() + ping(b"1") + ping(b"2")), Answer(101), GetPongs((b"1", b"2")), *BYE),
    raw("glued.whole-call", "the request, a message and a Close in one write", "4.1",
        ask(head() + text("early") + close(1000)), Answer(101), Get(TEXT, b"early", optional=True), Closes(1000)),
    raw("glued.half", "the request and half of a message, then the other half", "4.1", ask(head() + text("early")[:8]),
        Answer(101), Send(text("early")[8:]), Get(TEXT, b"early"), *BYE),
    raw("glued.big", "the request and 64 KiB in one write", "4.1", ask(head() + text("e" * 65536)), Answer(101),
        Get(TEXT, b"e" * 65536), *BYE),
    raw("glued.bad", "the request and an unmasked message: the 101, then the failure", "4.1",
        ask(head() + text("early", mask=None)), Answer(101), Fails(1002)),
    raw("glued.behind-refusal", "a request for version 8 with a Ping behind it: the refusal alone", "4.2.2",
        ask(head(swap={"Sec-WebSocket-Version": "8"}) + ping(b"early")), Answer(426)),
    raw("glued.second-request", "a second request behind the first is no frame", "4.2.2", ask(head() + head()),
        Answer(101), Fails(1002)),
    raw("glued.second-request-behind-refusal", "a good request behind a refused one: one answer", HOUSE,
        ask(head(without=("Sec-WebSocket-Key",)) + head()), Answer(400)),
    raw("glued.octets", "the request and a message, octet by octet", "4.1",
        ask(head() + text("early") + ping(b"late"), chop=1, gap=0), Answer(101), Get(TEXT, b"early"),
        Get(PONG, b"late"), *BYE),
    raw("glued.every-cut", "the request and a message, cut in two at every octet, each time on a connection of its own",
        "4.1", EveryCut(head() + text("early"), (Answer(101), Get(TEXT, b"early"), *BYE))),
)

CASES: tuple[Case, ...] = (*PLAIN, *OFFERS, *MISSING, *TWICE, *BAD_KEYS, *VERSIONS, *REQUESTS, *BODIES, *GLUED)
