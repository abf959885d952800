"""The request head as RFC 9112 spells it, its limits, and what is no HTTP at all."""

from ..script import Answer, BYE, Case, Get, Gone, HOUSE, HalfClose, OnceMore, Send, ask, raw
from ..wire import LINES, TEXT, head, text

PLAIN = head()
CLIENT_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(197))
PATIENCE = 6.0  # s: the contract's deadline of 3 s for a whole head, and what a busy machine takes


def refused(id: str, title: str, request: bytes, *, also: tuple[int, ...] = (), section: str = "RFC 9112 5") -> Case:
    """The request is answered 400; only hanging up is tolerated."""
    return raw(f"head.{id}", title, section, ask(request), Answer(400, also, quiet=True))


def with_line(line: str) -> bytes:
    """The plain request with one more line, in the middle of it."""
    return PLAIN.replace(b"\r\nUpgrade:", b"\r\n" + line.encode("latin-1") + b"\r\nUpgrade:", 1)


SPELLING = tuple(
    refused(name, title, with_line(line))
    for name, title, line in (
        ("no-colon", "a header line without a colon", "X-Nothing"),
        ("no-name", "a header line without a name", ": value"),
        ("space-before-colon", "a space between name and colon", "X-Name : value"),
        ("tab-before-colon", "a tab between name and colon", "X-Name\t: value"),
        ("space-in-name", "a space within a name", "X Name: value"),
        ("name-not-token", "a name with '('", "X-(Name: value"),
        ("name-latin-1", "a name beyond ASCII", "X-N\xe4me: value"),
        ("name-nul", "NUL within a name", "X-Na\0me: value"), ("nul", "NUL within a value", "X-Name: a\0b"),
        ("escape", "ESC within a value", "X-Name: \x1b[31m"), ("delete", "DEL within a value", "X-Name: a\x7fb"),
        ("cr-in-value", "CR within a value", "X-Name: a\rb"), ("folded", "a folded line", "X-Name: a\r\n  b"),
        ("folded-tab", "a line folded by a tab", "X-Name: a\r\n\tb"))
) + (
    refused("folded-first", "a fold before the first line", PLAIN.replace(b"\r\n", b"\r\n ", 1)),
    refused("bare-lf", "line ends of LF alone", head(end="\n"), section=HOUSE, also=(101,)),
    refused("one-bare-lf", "one line end of LF alone", PLAIN.replace(b"\r\nUpgrade", b"\nUpgrade"), section=HOUSE,
            also=(101,)),
    refused("last-bare-lf", "the last line end is LF alone", PLAIN[:-2] + b"\n", section=HOUSE, also=(408,)),
    refused("bare-cr", "line ends of CR alone", PLAIN.replace(b"\r\nUpgrade", b"\rUpgrade")),
    refused("two-spaces", "two spaces in the request line", head("GET  {path} HTTP/1.1"), section="RFC 9112 3"),
    refused("tab", "tabs in the request line", head("GET\t{path}\tHTTP/1.1"), section="RFC 9112 3"),
    refused("space-behind", "a space behind the version", head("GET {path} HTTP/1.1 "), section="RFC 9112 3"),
    refused("space-before", "a space before the method", head(" GET {path} HTTP/1.1"), section="RFC 9112 3"),
    refused("space-in-path", "a space in the path", head("GET {path}a b HTTP/1.1"), section="RFC 9112 3"),
    refused("control-in-path", "a control octet in the path", head("GET {path}\x01 HTTP/1.1"), section="RFC 9112 3"),
    refused("no-path", "no path", head("GET HTTP/1.1"), section="RFC 9112 3", also=(404,)),
    refused("version-digits", "HTTP/1.10", head("GET {path} HTTP/1.10"), section="RFC 9112 2.3", also=(505,)),
    refused("version-words", "HTTP/one", head("GET {path} HTTP/one"), section="RFC 9112 2.3", also=(505,)),
    refused("host-two-in-one", "two hosts in one line", head(swap={"Host": "a.example, b.example"}),
            section="RFC 9112 3.2"),
    refused("host-space", "a space within Host", head(swap={"Host": "a.example b"}), section="RFC 9112 3.2"),
    refused("host-path", "a path in Host", head(swap={"Host": "a.example/path"}), section="RFC 9112 3.2"),
    refused("empty-line-first", "an empty line before the request: ignored or refused", b"\r\n" + PLAIN,
            section="RFC 9112 2.2", also=(101,)),
)

NO_HTTP = (
    refused("garbage.text", "a line of words", b"hello, is there anybody?\r\n\r\n", section="RFC 9112 3"),
    refused("garbage.octets", "every octet there is", bytes(range(256)) * 2 + b"\r\n\r\n", section="RFC 9112 3"),
    refused("garbage.tls", "the hello of TLS", CLIENT_HELLO + b"\r\n\r\n", section="RFC 9112 3"),
    refused("garbage.http-2", "the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", section="RFC 9112 3",
            also=(404, 405, 505)),
    refused("garbage.sip", "a SIP request", b"INVITE sip:a@b.example SIP/2.0\r\nVia: SIP/2.0/TCP c.example\r\n\r\n",
            section="RFC 9112 3", also=(404, 405, 501, 505)),
    refused("garbage.frames", "frames without a handshake", text("hello") + b"\r\n\r\n", section="4.2"),
    raw("head.unfinished", "FIN within the head", "RFC 9112 8", ask(PLAIN[:60]), HalfClose(), Gone(), OnceMore()),
)

LIMITS = (
    raw("head.lines-50", "50 header lines are few enough", HOUSE,
        ask(head(extra=tuple(f"X-{i}: {i}" for i in range(45)))), Answer(101), Send(text("works")), Get(TEXT, b"works"),
        *BYE),
    raw("head.lines-64", "64 header lines are just few enough", HOUSE,
        ask(head(extra=tuple(f"X-{i}: {i}" for i in range(64 - len(LINES))))), Answer(101), *BYE),
    raw("head.lines-65", "65 header lines are too many", HOUSE,
        ask(head(extra=tuple(f"X-{i}: {i}" for i in range(65 - len(LINES))))), Answer(431)),
    raw("head.lines-2000", "2000 header lines are too many", HOUSE,
        ask(head(extra=tuple(f"X-{i}: {i}" for i in range(2000)))), Answer(431)),
    raw("head.size-6-kib", "a head of 6 KiB is small enough", HOUSE,
        ask(head(extra=("X-A: " + "a" * 3000, "X-B: " + "b" * 3000))), Answer(101), *BYE),
    raw("head.size-9-kib", "a head of 9 KiB is too large", HOUSE,
        ask(head(extra=tuple(f"X-{i}: " + "a" * 2990 for i in range(3)))), Answer(431)),
    raw("head.size-1-mib", "a head of 1 MiB is too large", HOUSE, ask(head(extra=("X-A: " + "a" * (1 << 20),))),
        Answer(431)),
    raw("head.size-endless", "a head that grows in pieces of 100 octets", HOUSE,
        ask(PLAIN[:-2] + (b"X-A: " + b"a" * 493 + b"\r\n") * 40, chop=100), Answer(431)),
    raw("head.path-5-kib", "a path of 5 KiB is too long", HOUSE, ask(head("GET {path}?" + "a" * 5000 + " HTTP/1.1")),
        Answer(431, also=(414,))),
    raw("head.no-line-end", "10 KiB without a line end", HOUSE, ask(b"G" * 10240), Answer(431, also=(400,))),
    raw("head.slow", "a head that stops in the middle", HOUSE, ask(PLAIN[:60]), Answer(408, within=PATIENCE)),
    raw("head.slow-octets", "a head at 33 octets/s: the deadline is for the whole of it", HOUSE,
        ask(PLAIN, chop=1, gap=0.03), Answer(408, within=PATIENCE)),
    raw("head.silent", "a connection that never says anything", HOUSE, Answer(408, within=PATIENCE, quiet=True)),
)

CASES: tuple[Case, ...] = (*LIMITS, *SPELLING, *NO_HTTP)
