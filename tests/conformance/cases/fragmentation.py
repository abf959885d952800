"""Section 5.4: messages in several frames."""

from .. import wire
from ..script import BYE, Case, Closes, Fails, Get, Send, case
from ..wire import BINARY, PONG, TEXT, binary, close, fragments, more, octets, ping, pong, text

KINDS = ((TEXT, "text"), (BINARY, "binary"))
WORDS = b"a message in several frames"

WHOLE = tuple(
    case(f"fragments.{name}.{shape}", f"{name} in {title}", "5.4", Send(fragments(opcode, parts)),
         Get(opcode, b"".join(parts)), *BYE)
    for opcode, name in KINDS
    for shape, title, parts in (
        ("two", "two frames", (b"frag", b"ment")), ("octets", "a frame per octet, under 16", octets(WORDS[:12])),
        ("all-empty", "three empty frames", (b"", b"", b"")),
        ("first-empty", "three frames, the first empty", (b"", b"frag", b"ment")),
        ("middle-empty", "three frames, the middle one empty", (b"frag", b"", b"ment")),
        ("last-empty", "three frames, the last empty", (b"frag", b"ment", b"")),
        ("uneven", "frames of every length spelling", (b"a" * 125, b"b" * 126, b"c" * 65535, b"d" * 65536, b"e")))
) + (
    case("fragments.chopped", "two frames, octet by octet", "5.4", Send(fragments(TEXT, (b"frag", b"ment")), chop=1),
         Get(TEXT, b"fragment"), *BYE),
    case("fragments.apart", "three frames, each in a write of its own", "5.4", Send(text("one,", fin=False)),
         Send(more(b"two,"), gap=0.01, chop=64), Send(more(b"three", fin=True)), Get(TEXT, b"one,two,three"), *BYE),
    case("fragments.two-messages", "two fragmented messages, one behind the other", "5.4",
         Send(fragments(TEXT, (b"fr", b"ag")) + fragments(BINARY, (b"me", b"nt"))), Get(TEXT, b"frag"),
         Get(BINARY, b"ment"), *BYE),
    case("fragments.then-whole", "a fragmented message, then one in a single frame", "5.4",
         Send(fragments(TEXT, (b"fr", b"ag")) + text("whole")), Get(TEXT, b"frag"), Get(TEXT, b"whole"), *BYE),
)

CONTROL_BETWEEN = (
    case("fragments.ping-between", "a Ping between two frames is answered at once", "5.4",
         Send(text("frag", fin=False) + ping(b"now")), Get(PONG, b"now"), Send(more(b"ment", fin=True)),
         Get(TEXT, b"fragment"), *BYE),
    case("fragments.ping-between.glued", "a Ping between two frames, all in one write", "5.4",
         Send(fragments(TEXT, (b"frag", b"ment"), ping(b"now"))), Get(PONG, b"now"), Get(TEXT, b"fragment"), *BYE),
    case("fragments.ping-between.chopped", "a Ping between two frames, octet by octet", "5.4",
         Send(fragments(TEXT, (b"frag", b"ment"), ping(b"now")), chop=1), Get(PONG, b"now"), Get(TEXT, b"fragment"),
         *BYE),
    case("fragments.pings-between", "a Ping between each two of five frames", "5.4",
         *(step
           for i in range(4)
           for step in (
               Send(wire.frame(0 if i else TEXT, b"%d," % i, fin=False) + ping(b"%d" % i)), Get(PONG, b"%d" % i))),
         Send(more(b"4", fin=True)), Get(TEXT, b"0,1,2,3,4"), *BYE),
    case("fragments.pong-between", "a Pong between two frames is passed over", "5.4",
         Send(fragments(TEXT, (b"frag", b"ment"), pong(b"unsolicited"))), Get(TEXT, b"fragment"), *BYE),
    case("fragments.close-between", "a Close between two frames ends the message unheard", "5.4",
         Send(text("frag", fin=False) + close(1000)), Closes(1000, also=(1002,))),
    case("fragments.big-ping-between", "a Ping of 125 octets between two frames of 40000", "5.4",
         Send(fragments(BINARY, (b"f" * 40000, b"m" * 40000), ping(bytes(125))), chop=7919), Get(PONG, bytes(125)),
         Get(BINARY, b"f" * 40000 + b"m" * 40000), *BYE),
)

NO_START = tuple(
    case(f"continuation.{name}", f"a continuation of nothing: {title}", "5.4", Send(data), *before, Fails(1002))
    for name, title, data, before in (
        ("final", "with FIN", more(b"ment", fin=True), ()), ("not-final", "without FIN", more(b"ment"), ()),
        ("empty", "without a payload", more(fin=True), ()),
        ("then-text", "before a good message", more(b"ment", fin=True) + text("good"), ()),
        ("not-final-then-text", "without FIN, before a good message", more(b"ment") + text("good"), ()),
        ("behind-whole", "behind a message in one frame", text("whole") + more(b"ment", fin=True),
         (Get(TEXT, b"whole", True),)),
        ("behind-fragments", "behind a fragmented message", fragments(TEXT, (b"fr", b"ag")) + more(b"ment", fin=True),
         (Get(TEXT, b"frag", True),)),
        ("behind-ping", "behind a Ping", ping() + more(b"ment", fin=True), (Get(PONG, b"", True),)))
) + (
    case("continuation.chopped", "a continuation of nothing, octet by octet", "5.4",
         Send(more(b"ment", fin=True), chop=1), Fails(1002)),
)

INTERLEAVED = tuple(
    case(f"interleaved.{first_name}.{name}", f"{title} inside a fragmented {first_name} message", "5.4",
         Send(wire.frame(opcode, b"frag", fin=False) + inner), Fails(1002))
    for opcode, first_name in KINDS
    for name, title, inner in (
        ("text", "a text frame", text("new")), ("binary", "a binary frame", binary(b"new")),
        ("text-empty", "an empty text frame", text("")),
        ("text-start", "the start of another message", text("new", fin=False)),
        ("same-again", "the same first frame again", wire.frame(opcode, b"frag", fin=False)))
) + (
    case("interleaved.late", "a text frame after the second of three frames", "5.4",
         Send(text("one", fin=False) + more(b"two") + text("new") + more(b"three", fin=True)), Fails(1002)),
    case("interleaved.after-ping", "a text frame after a Ping inside a fragmented message", "5.4",
         Send(text("frag", fin=False) + ping() + text("new")), Get(PONG, b"", optional=True), Fails(1002)),
)

CASES: tuple[Case, ...] = (*WHOLE, *CONTROL_BETWEEN, *NO_START, *INTERLEAVED)
