"""Sections 5.5.1 and 7: the closing handshake, close codes, and the end of TCP."""

from .. import wire
from ..script import Answer, BYE, Case, Closes, Ends, Fails, Get, Gone, HalfClose, OnceMore, Reset, Send, ask, case, raw
from ..wire import CLOSE, PONG, TEXT, binary, close, frame, more, ping, text

VALID_CODES = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
REGISTERED_LATER = (1012, 1013, 1014)  # with IANA, after the RFC: an old server may refuse them
INVALID_CODES = (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999)
UNDEFINED_CODES = (5000, 9999, 65535)  # outside every range of 7.4.2: a strict server refuses them


HANDSHAKE = (
    case("close.empty", "a Close without a payload", "5.5.1", Send(close()), Closes(None)),
    case("close.reason", "a code and a reason", "5.5.1", Send(close(1000, "good bye")), Closes(1000)),
    case("close.reason-123", "a reason of 123 octets", "5.5.1", Send(close(1000, "r" * 123)), Closes(1000)),
    case("close.reason-utf8", "a reason in greek, of 123 octets", "5.5.1", Send(close(1000, "κ" * 61 + "a")),
         Closes(1000)),
    case("close.chopped", "a Close octet by octet", "5.5.1", Send(close(1000, "good bye"), chop=1), Closes(1000)),
    case("close.after-echo", "a message and a Close in one write", "5.5.1", Send(text("last words") + close(1000)),
         Get(TEXT, b"last words", optional=True), Closes(1000)),
    case("close.after-ping", "a Ping and a Close in one write", "5.5.1", Send(ping(b"last") + close(1000)),
         Get(PONG, b"last"), Closes(1000)),
    raw("close.at-once", "a Close as the first frame, glued to the request", "7.1.2", ask(wire.head() + close(1001)),
        Answer(101), Closes(1001)),
) + tuple(
    case(f"close.then-{name}", f"a Close, then {title}, which has no answer", "5.5.1", Send(close(1000) + data),
         Closes(1000))
    for name, title, data in (
        ("text", "a message", text("too late")), ("ping", "a Ping", ping(b"too late")),
        ("close", "another Close", close(1001)), ("fragment", "a fragment", text("too", fin=False)),
        ("continuation", "a continuation of nothing", more(b"late")),
        ("reserved", "a reserved opcode", frame(3, b"too late")), ("garbage", "garbage", bytes(range(256))),
        ("256-kib", "256 KiB", binary(bytes(1 << 18))))
)

CODES = tuple(
    case(f"close.code.{code}", f"the code {code} is answered", "7.4", Send(close(code)), Closes(code))
    for code in VALID_CODES
) + tuple(
    case(f"close.code.{code}.reason", f"the code {code} with a reason is answered", "7.4", Send(close(code, "because")),
         Closes(code))
    for code in (1001, 1008, 3000, 4999)
) + tuple(
    case(f"close.code.{code}", f"the code {code}, registered later, is answered", "7.4.2", Send(close(code)),
         Closes(code, also=(1000, 1002)))
    for code in REGISTERED_LATER
) + tuple(
    case(f"close.code.{code}", f"the code {code} is not for the wire", "7.4", Send(close(code)), Fails(1002))
    for code in INVALID_CODES
) + tuple(
    case(f"close.code.{code}.reason", f"the code {code} with a reason is not for the wire", "7.4",
         Send(close(code, "because")), Fails(1002))
    for code in (1005, 1006, 1015)
) + tuple(
    case(f"close.code.{code}", f"the code {code} is outside every range", "7.4.2", Send(close(code)),
         Fails(1002, also=(code, 1000)))
    for code in UNDEFINED_CODES
)

MALFORMED = (
    case("close.one-octet", "a payload of one octet", "5.5.1", Send(frame(CLOSE, b"\x03")), Fails(1002)),
    case("close.126", "a payload of 126 octets", "5.5", Send(close(1000, "r" * 124)), Fails(1002)),
    case("close.65536", "a payload of 65536 octets", "5.5", Send(close(1000, "r" * 65534)), Fails(1002)),
    case("close.reason-bad", "a reason that is not UTF-8", "8.1", Send(close(1000, b"\xce\xba\xe1\xbd\xb9\xff")),
         Fails(1007, also=(1002,))),
    case("close.reason-surrogate", "a surrogate in the reason", "8.1", Send(close(1000, b"\xed\xa0\x80")),
         Fails(1007, also=(1002,))),
    case("close.reason-unfinished", "a reason that ends within a code point", "8.1", Send(close(1000, b"\xf0\x9f\x98")),
         Fails(1007, also=(1002,))),
    case("close.one-octet.inside", "a payload of one octet, inside a fragmented message", "5.5.1",
         Send(text("frag", fin=False) + frame(CLOSE, b"\x03")), Fails(1002)),
    case("close.behind", "a good message, then the code 1005", "7.4", Send(text("good") + close(1005)),
         Get(TEXT, b"good", optional=True), Fails(1002)),
)

# After a failure the server hears nothing more, and says nothing more.
AFTER_FAILURE = tuple(
    case(f"failed.then-{name}", f"an unmasked frame, then {title}, which has no answer", "7.1.7",
         Send(text("bare", mask=None) + data), Fails(1002))
    for name, title, data in (
        ("text", "a message", text("too late")), ("ping", "a Ping", ping()), ("bad", "a reserved opcode", frame(5)))
)

TEARDOWN = (
    case("tcp.fin", "FIN without a Close: the server ends too", "7.1.1", HalfClose(), Ends()),
    case("tcp.fin-after-message", "a message, then FIN: it is echoed, then the server ends", "7.1.1",
         Send(text("last words")), HalfClose(), Get(TEXT, b"last words"), Ends()),
    case("tcp.fin-in-header", "FIN within a frame header", "7.1.1", Send(text("halved")[:1]), HalfClose(), Ends(),
         OnceMore()),
    case("tcp.fin-in-payload", "FIN within a payload", "7.1.1", Send(text("halved")[:9]), HalfClose(), Ends(),
         OnceMore()),
    case("tcp.fin-in-message", "FIN within a fragmented message", "7.1.1", Send(text("frag", fin=False)), HalfClose(),
         Ends(), OnceMore()),
    case("tcp.fin-after-close", "a Close and FIN: it is answered all the same", "7.1.1", Send(close(1000)), HalfClose(),
         Closes(1000)),
    case("tcp.close-then-fin", "the server ends TCP without waiting for our FIN", "7.1.1", *BYE),
    case("tcp.reset", "a reset between messages", "7.1.1", Send(text("a")), Get(TEXT, b"a"), Reset()),
    case("tcp.reset-in-payload", "a reset within a payload", "7.1.1", Send(binary(bytes(70000))[:5000]), Reset()),
    case("tcp.reset-after-close", "a reset right behind a Close", "7.1.1", Send(close(1000)), Reset()),
    case("tcp.reset-unread", "a reset with the echo of 1 MiB unread", "7.1.1", Send(lambda: binary(bytes(1 << 20))),
         Reset()),
    raw("tcp.connect-only", "a connection that ends before it says anything", "4.1", HalfClose(), Gone(), OnceMore()),
    raw("tcp.reset-in-head", "a reset within the request head", "4.1", ask(wire.head()[:40]), Reset()),
    raw("tcp.reset-behind-head", "a reset right behind the request head", "4.1", ask(wire.head()), Reset()),
    raw("tcp.fin-behind-head", "the request, a Close and FIN in one go", "7.1.1", ask(wire.head() + close(1000)),
        HalfClose(), Answer(101), Closes(1000)),
)

CASES: tuple[Case, ...] = (*HANDSHAKE, *CODES, *MALFORMED, *AFTER_FAILURE, *TEARDOWN)
