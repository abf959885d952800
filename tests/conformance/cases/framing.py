"""Section 5.2: lengths, masking, reserved bits and opcodes."""

from .. import wire
from ..script import BYE, Case, Fails, FailsEarly, Get, GetAll, HOUSE, Send, case, echo
from ..wire import BINARY, CONTINUATION, PING, PONG, TEXT, binary, close, frame, ping, text

# both sides of every change in how a length is spelt
LENGTHS = (0, 1, 124, 125, 126, 127, 128, 255, 256, 65534, 65535, 65536, 65537)
EVERY_OCTET = bytes(range(256))
KINDS = ((TEXT, "text"), (BINARY, "binary"))
RESERVED_OPCODES = (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)


def filler(opcode: int, size: int) -> bytes:
    """A payload of `size` octets in which a misplaced or wrongly masked octet shows."""
    pattern = bytes(range(33, 126)) if opcode == TEXT else EVERY_OCTET[::-1]
    return (pattern * (size // len(pattern) + 1))[:size]


# the RFC's own examples, octet by octet (5.7)
EXAMPLES = (
    case("example.text", "the masked text 'Hello'", "5.7", Send(bytes.fromhex("818537fa213d7f9f4d5158")),
         Get(TEXT, b"Hello"), *BYE),
    case("example.ping", "the Ping 'Hello'", "5.7", Send(bytes.fromhex("898537fa213d7f9f4d5158")), Get(PONG, b"Hello"),
         *BYE),
    case("example.fragments", "'Hel' and 'lo'", "5.7", Send(bytes.fromhex("018337fa213d7f9f4d" "808237fa213d5b95")),
         Get(TEXT, b"Hello"), *BYE),
    echo("example.binary-256", "256 octets of binary", "5.7", BINARY, EVERY_OCTET),
    echo("example.binary-64k", "64 KiB of binary", "5.7", BINARY, EVERY_OCTET * 256),
)

WHOLE = tuple(
    echo(f"length.{name}.{size}", f"{name} of {size} octets, in one write", "5.2", opcode, filler(opcode, size))
    for opcode, name in KINDS for size in LENGTHS
)

CHOPPED = tuple(
    echo(f"length.{name}.{size}.chopped", f"{name} of {size} octets, {chop} at a time", "5.2", opcode,
         filler(opcode, size), chop=chop)
    for opcode, name in KINDS
    for size, chop in ((0, 1), (1, 1), (125, 1), (126, 1), (128, 1), (256, 1), (65535, 997), (65536, 1460))
)

HEADERS = tuple(
    case(f"length.header-octets.{size}", f"the header of a {size} octet frame octet by octet, its payload at once",
         "5.2", Send(frame(BINARY, filler(BINARY, size))[:-size], chop=1),
         Send(frame(BINARY, filler(BINARY, size))[-size:]), Get(BINARY, filler(BINARY, size)), *BYE)
    for size in (5, 126, 65536)
)

SEVERAL = (
    case("glued.messages", "three messages in one write", "5.2", Send(text("one") + binary(b"two") + text("three")),
         Get(TEXT, b"one"), Get(BINARY, b"two"), Get(TEXT, b"three"), *BYE),
    case("glued.kinds", "every kind of frame in one write, the answers in order", "5.4",
         Send(text("a") + ping(b"b") + wire.fragments(TEXT, (b"c", b"d"), ping(b"e")) + binary(b"f")),
         GetAll(((TEXT, b"a"), (PONG, b"b"), (PONG, b"e"), (TEXT, b"cd"), (BINARY, b"f"))), *BYE),
    case("glued.one-and-a-half", "a message and the half of the next, then its other half", "5.2",
         Send(text("whole") + text("halved")[:9]), Get(TEXT, b"whole"), Send(text("halved")[9:]), Get(TEXT, b"halved"),
         *BYE),
    case("glued.big-and-small", "64 KiB with a small message behind it, cut at odd places", "5.2",
         Send(binary(filler(BINARY, 65536)) + text("small"), chop=8191), Get(BINARY, filler(BINARY, 65536)),
         Get(TEXT, b"small"), *BYE),
) + tuple(
    case(f"glued.cut-{cut}", f"two messages, cut before octet {cut}", "5.2",
         Send((text("first") + text("second"))[:cut]),
         Send((text("first") + text("second"))[cut:], gap=0.01, chop=1024), Get(TEXT, b"first"), Get(TEXT, b"second"),
         *BYE)
    for cut in (1, 2, 3, 5, 6, 7, 10, 11, 12, 13, 17, 18)
)

MASKS = tuple(
    case(f"mask.key-{mask.hex()}", f"the masking key {mask.hex()} over 300 octets", "5.3",
         Send(binary(filler(BINARY, 300), mask=mask)), Get(BINARY, filler(BINARY, 300)), *BYE)
    for mask in (bytes(4), b"\xff" * 4, b"\x00\x00\x00\x01", b"\x80\x00\x00\x00", b"\x01\x02\x04\x08")
) + (
    case("mask.each-its-own", "three frames of a message with three masking keys", "5.3",
         Send(text("one,", fin=False, mask=b"abcd") + wire.more(b"two,", mask=b"\x00\xff\x00\xff")
              + wire.more(b"three", fin=True, mask=b"\x99\x98\x97\x96")), Get(TEXT, b"one,two,three"), *BYE),
)

UNMASKED = tuple(
    case(f"unmasked.{name}", f"a {name} frame without a mask", "5.1", Send(data), Fails(1002))
    for name, data in (
        ("text", text("bare", mask=None)), ("text-empty", text("", mask=None)),
        ("binary", binary(b"\x00\xff", mask=None)), ("text-126", text("b" * 126, mask=None)),
        ("binary-65536", binary(bytes(65536), mask=None)), ("ping", ping(b"bare", mask=None)),
        ("pong", wire.pong(b"bare", mask=None)), ("close", close(1000, mask=None)), ("close-empty", close(mask=None)),
        ("first-fragment", text("bare", fin=False, mask=None)),
        ("continuation", text("frag", fin=False) + wire.more(b"ment", fin=True, mask=None)))
) + (
    case("unmasked.behind", "a good message, then one without a mask", "5.1",
         Send(text("good") + text("bare", mask=None)), Get(TEXT, b"good", optional=True), Fails(1002)),
    case("unmasked.header", "only the two octets of the header", "5.1", Send(text("bare", mask=None)[:2]),
         FailsEarly(1002, rest=b"bare")),
)

NOT_MINIMAL = tuple(
    case(f"length.not-minimal.{name}.{size}-in-{wide}", f"{name} of {size} octets with the length in {wide}", "5.2",
         Send(frame(opcode, filler(TEXT, size), wide=wide)), Fails(1002))
    for opcode, name, sizes in (
        (TEXT, "text", (0, 1, 125)), (BINARY, "binary", (0, 125)), (PING, "ping", (0, 5, 125)), (PONG, "pong", (5,)))
    for size in sizes for wide in (2, 8)
) + tuple(
    case(f"length.not-minimal.{name}.{size}-in-8", f"{name} of {size} octets with the length in 8", "5.2",
         Send(frame(opcode, filler(opcode, size), wide=8)), Fails(1002))
    for opcode, name in KINDS for size in (126, 65535)
) + (
    case("length.not-minimal.close", "a Close of 2 octets with the length in 2", "5.2", Send(close(1000, wide=2)),
         Fails(1002)),
    case("length.not-minimal.continuation", "a continuation of 4 octets with the length in 2", "5.2",
         Send(text("frag", fin=False) + wire.more(b"ment", fin=True, wide=2)), Fails(1002)),
    case("length.not-minimal.behind", "a good message, then one whose length is not minimal", "5.2",
         Send(text("good") + text("long", wide=8)), Get(TEXT, b"good", optional=True), Fails(1002)),
    case("length.not-minimal.header", "only the header, without the payload", "5.2",
         Send(text("long", wide=8)[:14]), FailsEarly(1002, rest=text("long", wide=8)[14:])),
)

TOP_BIT = tuple(
    case(f"length.top-bit.{name}.{length:x}", f"the header of a {name} of 2^63 octets or more", "5.2",
         Send(frame(opcode, announced=length)), Fails(1002, also=(1009,)))
    for opcode, name in (*KINDS, (CONTINUATION, "continuation"), (PING, "ping")) for length in (1 << 63, (1 << 64) - 1)
) + (
    case("length.top-bit.behind", "a fragment, then a continuation of 2^64-1 octets", "5.2",
         Send(binary(bytes(100), fin=False) + frame(CONTINUATION, announced=(1 << 64) - 1)), Fails(1002, also=(1009,))),
)

TOO_LONG = tuple(
    case(f"length.too-long.{name}", f"the header of a message of {name} octets is refused, without any of them", HOUSE,
         Send(frame(BINARY, announced=length)), Fails(1009))
    for name, length in (
        ("2^24+1", (1 << 24) + 1), ("2^31-1", (1 << 31) - 1), ("2^31", 1 << 31), ("2^32-1", (1 << 32) - 1),
        ("2^32", 1 << 32), ("2^32+5", (1 << 32) + 5), ("2^62", 1 << 62), ("2^63-1", (1 << 63) - 1))
) + (
    case("length.too-long.fragments", "a fragment of 1 octet, then the header of a continuation of 2^24", HOUSE,
         Send(binary(b"1", fin=False) + frame(CONTINUATION, announced=1 << 24)), Fails(1009)),
    case("length.too-long.overflow", "a fragment of 1 octet, then the header of a continuation of 2^63-1", HOUSE,
         Send(binary(b"1", fin=False) + frame(CONTINUATION, announced=(1 << 63) - 1)), Fails(1009)),
)

FRAMES_WITH_RSV = (
    ("text", lambda rsv: text("reserved", rsv=rsv)), ("text-empty", lambda rsv: text("", rsv=rsv)),
    ("binary", lambda rsv: binary(b"\x00\xff", rsv=rsv)), ("ping", lambda rsv: ping(b"reserved", rsv=rsv)),
    ("pong", lambda rsv: wire.pong(b"reserved", rsv=rsv)), ("close", lambda rsv: close(1000, rsv=rsv)),
    ("continuation", lambda rsv: text("frag", fin=False) + wire.more(b"ment", fin=True, rsv=rsv)),
)

RESERVED_BITS = tuple(
    case(f"rsv.{rsv:03b}.{name}", f"reserved bits {rsv:03b} in a {name} frame", "5.2", Send(build(rsv)), Fails(1002))
    for rsv in range(1, 8) for name, build in FRAMES_WITH_RSV if rsv in (1, 2, 4) or name in ("text", "ping")
) + tuple(
    case(f"rsv.{rsv:03b}.behind", f"a good message, reserved bits {rsv:03b}, a Ping", "5.2",
         Send(text("good") + text("reserved", rsv=rsv) + ping()), Get(TEXT, b"good", optional=True), Fails(1002))
    for rsv in (1, 2, 4)
) + (
    case("rsv.100.chopped", "RSV1 set, octet by octet", "5.2", Send(text("good") + text("reserved", rsv=4), chop=1),
         Get(TEXT, b"good", optional=True), Fails(1002)),
    case("rsv.100.header", "RSV1 set, only the two octets of the header", "5.2", Send(text("reserved", rsv=4)[:2]),
         FailsEarly(1002, rest=text("reserved", rsv=4)[2:])),
)

OPCODES = tuple(
    case(f"opcode.{opcode}.{name}", f"the reserved opcode {opcode} {title}", "5.2", *steps)
    for opcode in RESERVED_OPCODES
    for name, title, steps in (
        ("empty", "without a payload", (Send(frame(opcode)), Fails(1002))),
        ("payload", "with a payload", (Send(frame(opcode, b"reserved")), Fails(1002))),
        ("behind", "behind a good message, a Ping behind it",
         (Send(text("good") + frame(opcode, b"reserved") + ping()), Get(TEXT, b"good", optional=True), Fails(1002))))
) + tuple(
    case(f"opcode.{opcode}.{name}", f"the reserved opcode {opcode} {title}", "5.2", *steps)
    for opcode in (3, 11)
    for name, title, steps in (
        ("not-final", "without FIN", (Send(frame(opcode, b"reserved", fin=False)), Fails(1002))),
        ("chopped", "behind a good message, octet by octet",
         (Send(text("good") + frame(opcode, b"reserved"), chop=1), Get(TEXT, b"good", optional=True), Fails(1002))),
        ("inside", "inside a fragmented message",
         (Send(text("frag", fin=False) + frame(opcode, b"reserved")), Fails(1002))),
        ("header", "only the two octets of the header",
         (Send(frame(opcode, b"reserved")[:2]), FailsEarly(1002, rest=frame(opcode, b"reserved")[2:]))))
)

CASES: tuple[Case, ...] = (*EXAMPLES, *WHOLE, *CHOPPED, *HEADERS, *SEVERAL, *MASKS, *UNMASKED, *NOT_MINIMAL, *TOP_BIT,
                           *TOO_LONG, *RESERVED_BITS, *OPCODES)
