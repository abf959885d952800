"""Sections 5.5.2 and 5.5.3: Ping and Pong."""

from .. import wire
from ..script import BYE, Case, Fails, FailsEarly, Get, GetAll, GetPongs, Send, case
from ..wire import PING, PONG, TEXT, frame, ping, pong, text

NOT_UTF8 = b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"
TEN = tuple(f"ping {i}".encode() for i in range(10))

PINGS = tuple(
    case(f"ping.{name}", f"a Ping {title} is answered with the same payload", "5.5.3", Send(ping(payload)),
         Get(PONG, payload), *BYE)
    for name, title, payload in (
        ("empty", "without a payload", b""), ("1", "of one octet", b"\x00"), ("text", "of text", b"Hello, world!"),
        ("binary", "of octets that are not UTF-8", NOT_UTF8), ("124", "of 124 octets", b"\xfe" * 124),
        ("125", "of 125 octets", bytes(range(125))))
) + (
    case("ping.125.chopped", "a Ping of 125 octets, octet by octet", "5.5.2", Send(ping(bytes(range(125))), chop=1),
         Get(PONG, bytes(range(125))), *BYE),
    case("ping.ten", "ten Pings in one write: a Pong each, or at least for the last", "5.5.3",
         Send(b"".join(map(ping, TEN))), GetPongs(TEN), *BYE),
    case("ping.ten.chopped", "ten Pings octet by octet", "5.5.3", Send(b"".join(map(ping, TEN)), chop=1), GetPongs(TEN),
         *BYE),
    case("ping.one-by-one", "five Pings, each after the Pong before it", "5.5.2",
         *(step for payload in TEN[:5] for step in (Send(ping(payload)), Get(PONG, payload))), *BYE),
    case("ping.between", "a Ping between two messages", "5.5.2", Send(text("one") + ping(b"two") + text("three")),
         GetAll(((TEXT, b"one"), (PONG, b"two"), (TEXT, b"three"))), *BYE),
)

PONGS = tuple(
    case(f"pong.{name}", f"an unsolicited Pong {title} has no answer", "5.5.3", Send(pong(payload) + ping(b"after")),
         Get(PONG, b"after"), *BYE)
    for name, title, payload in (
        ("empty", "without a payload", b""), ("text", "of text", b"unsolicited"),
        ("binary", "that is not UTF-8", NOT_UTF8), ("125", "of 125 octets", bytes(125)))
) + (
    case("pong.many", "ten Pongs, then a message", "5.5.3", Send(b"".join(map(pong, TEN)) + text("after")),
         Get(TEXT, b"after"), *BYE),
    case("pong.chopped", "a Pong octet by octet, then a message", "5.5.3",
         Send(pong(b"unsolicited") + text("after"), chop=1), Get(TEXT, b"after"), *BYE),
)

TOO_LONG = tuple(
    case(f"{name}.{size}", f"a {name.title()} of {size} octets", "5.5", Send(frame(opcode, bytes(size))), Fails(1002))
    for opcode, name in ((PING, "ping"), (PONG, "pong")) for size in (126, 127, 65535, 65536)
) + (
    case("ping.126.chopped", "a Ping of 126 octets, octet by octet", "5.5", Send(ping(bytes(126)), chop=1),
         Fails(1002)),
    case("ping.126.behind", "a good message, then a Ping of 126 octets", "5.5", Send(text("good") + ping(bytes(126))),
         Get(TEXT, b"good", optional=True), Fails(1002)),
    case("ping.126.header", "only the header of a Ping of 126 octets", "5.5", Send(ping(bytes(126))[:4]),
         FailsEarly(1002, rest=ping(bytes(126))[4:])),
    case("ping.2^63-1.header", "only the header of a Ping of 2^63-1 octets", "5.5",
         Send(frame(PING, announced=(1 << 63) - 1)), Fails(1002, also=(1009,))),
)

FRAGMENTED = tuple(
    case(f"{name}.fragmented", f"a {name.title()} without FIN", "5.5", Send(frame(opcode, b"frag", fin=False)),
         Fails(1002))
    for opcode, name in ((PING, "ping"), (PONG, "pong"), (wire.CLOSE, "close"))
) + (
    case("ping.fragmented.empty", "a Ping without FIN and payload", "5.5", Send(ping(fin=False)), Fails(1002)),
    case("ping.fragmented.whole", "a Ping in two frames", "5.4",
         Send(ping(b"frag", fin=False) + wire.more(b"ment", fin=True)), Fails(1002)),
    case("pong.fragmented.whole", "a Pong in two frames", "5.4",
         Send(pong(b"frag", fin=False) + wire.more(b"ment", fin=True)), Fails(1002)),
    case("ping.fragmented.inside", "a Ping without FIN inside a fragmented message", "5.4",
         Send(text("frag", fin=False) + ping(b"frag", fin=False)), Fails(1002)),
)

CASES: tuple[Case, ...] = (*PINGS, *PONGS, *TOO_LONG, *FRAGMENTED)
