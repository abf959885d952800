"""Sections 5.6 and 8.1: text is UTF-8, judged over the whole message, and best at its first wrong octet."""

from .. import wire
from ..script import BYE, Case, Fails, FailsEarly, Get, Send, case
from ..wire import BINARY, PONG, TEXT, fragments, more, octets, ping, text

GREEK = "κόσμε".encode()
# the first and last of each encoded length, the neighbours of the surrogates, and what is odd but valid
BOUNDARIES = (0x00, 0x01, 0x7F, 0x80, 0x7FF, 0x800, 0xFFF, 0x1000, 0xCFFF, 0xD000, 0xD7FF, 0xE000, 0xFEFF, 0xFFFD,
              0x10000, 0x3FFFF, 0x40000, 0xFFFFF, 0x100000, 0x10FFFF)
NONCHARACTERS = (0xFDD0, 0xFDEF, *(plane << 16 | last for plane in range(17) for last in (0xFFFE, 0xFFFF)))
LANGUAGES = (
    ("german", "Fließgewässer"), ("greek", "κόσμε"), ("russian", "съешь же ещё этих мягких булок"), ("hebrew", "שלום"),
    ("thai", "สวัสดี"), ("chinese", "你好，世界"), ("korean", "안녕하세요"), ("combining", "e\u0301 n\u0303 o\u0308\u0304"),
    ("emoji", "☎ 🤖 👩‍👩‍👧 🏳️‍🌈"), ("bom", "\ufeffbyte order mark"), ("nul", "a\x00b"),
    ("controls", "\x01\x02\x1b[31m\x7f\u202e"),
)


def whole_plane(plane: int) -> bytes:
    """The 65,536 code points of a plane, without the surrogates."""
    return "".join(chr(plane << 16 | low) for low in range(65536) if plane or not 0xD800 <= low < 0xE000).encode()


VALID = tuple(
    case(f"utf8.valid.U+{point:04X}", f"the code point U+{point:04X}", "8.1", Send(text("<" + chr(point) + ">")),
         Get(TEXT, f"<{chr(point)}>".encode()), *BYE)
    for point in sorted({*BOUNDARIES, *NONCHARACTERS})
) + tuple(
    case(f"utf8.valid.{name}", f"text: {name}", "5.6", Send(text(words)), Get(TEXT, words.encode()), *BYE)
    for name, words in LANGUAGES
) + (
    case("utf8.valid.boundaries.octets", "boundary code points, a frame per octet", "5.6",
         Send(fragments(TEXT, octets("".join(map(chr, (0x80, 0x7FF, 0x800, 0x10FFFF))).encode()))),
         Get(TEXT, "".join(map(chr, (0x80, 0x7FF, 0x800, 0x10FFFF))).encode()), *BYE),
    case("utf8.valid.chopped", "greek and emoji in one frame, octet by octet", "5.6",
         Send(text(GREEK + "🤖".encode()), chop=1), Get(TEXT, GREEK + "🤖".encode()), *BYE),
    case("utf8.valid.code-point-around-ping", "a Ping between the octets of one code point", "5.4",
         Send(fragments(TEXT, octets("🤖".encode()), ping(b"\xff"))), Get(PONG, b"\xff"), Get(PONG, b"\xff"),
         Get(PONG, b"\xff"), Get(TEXT, "🤖".encode()), *BYE),
    case("utf8.valid.empty-between", "empty frames between the octets of one code point", "5.4",
         Send(fragments(TEXT, (b"", b"\xe2", b"", b"\x98", b"", b"\x8e", b""))), Get(TEXT, "☎".encode()), *BYE),
    case("utf8.valid.binary-is-not-text", "binary that is not UTF-8 is nobody's business", "5.6",
         Send(wire.binary(b"\xff\xc0\x80\xed\xa0\x80")), Get(BINARY, b"\xff\xc0\x80\xed\xa0\x80"), *BYE),
    case("utf8.valid.binary-fragments", "nor is it in fragments", "5.6", Send(fragments(BINARY, (b"\xff", b"\xc0"))),
         Get(BINARY, b"\xff\xc0"), *BYE),
) + tuple(
    case(f"utf8.valid.plane-{plane}", f"every code point of plane {plane} in one message", "8.1",
         Send(lambda plane=plane: text(whole_plane(plane))), Get(TEXT, lambda plane=plane: whole_plane(plane)), *BYE)
    for plane in range(17)
) + tuple(
    case(f"utf8.valid.greek.cut-{cut}", f"two frames, cut before octet {cut} of {len(GREEK)}", "5.6",
         Send(fragments(TEXT, (GREEK[:cut], GREEK[cut:]))), Get(TEXT, GREEK), *BYE)
    for cut in range(1, len(GREEK))
)


# (id, title, octets up to and with the first that no valid text has there, octets that would complete the sequence)
IMPOSSIBLE = (
    ("lone-80", "a continuation octet alone", "80", ""), ("lone-bf", "the last continuation octet alone", "bf", ""),
    ("lone-after", "a continuation octet too many", "c3a9a9", ""),
    ("lone-many", "six continuation octets", "80", "bf80bf80bf"), ("fe", "FE", "fe", ""), ("ff", "FF", "ff", ""),
    ("fe-ff", "a byte order mark of UTF-16", "fe", "ff"), ("c0-80", "NUL, overlong in 2", "c0", "80"),
    ("c0-af", "'/', overlong in 2", "c0", "af"), ("c1-bf", "U+007F, overlong in 2", "c1", "bf"),
    ("e0-80-80", "NUL, overlong in 3", "e080", "80"), ("e0-80-af", "'/', overlong in 3", "e080", "af"),
    ("e0-9f-bf", "U+07FF, overlong in 3", "e09f", "bf"), ("f0-80-80-80", "NUL, overlong in 4", "f080", "8080"),
    ("f0-80-80-af", "'/', overlong in 4", "f080", "80af"), ("f0-8f-bf-bf", "U+FFFF, overlong in 4", "f08f", "bfbf"),
    ("f8", "a sequence of 5", "f8", "88808080"), ("fb", "the last sequence of 5", "fb", "bfbfbfbf"),
    ("fc", "a sequence of 6", "fc", "8480808080"), ("fd", "the last sequence of 6", "fd", "bfbfbfbfbf"),
    ("d800", "the surrogate U+D800", "eda0", "80"), ("db7f", "the surrogate U+DB7F", "edad", "bf"),
    ("db80", "the surrogate U+DB80", "edae", "80"), ("dbff", "the surrogate U+DBFF", "edaf", "bf"),
    ("dc00", "the surrogate U+DC00", "edb0", "80"), ("dfff", "the surrogate U+DFFF", "edbf", "bf"),
    ("surrogate-pair", "U+10000 as two surrogates (CESU-8)", "eda0", "80edb080"),
    ("surrogate-pair-last", "U+10FFFF as two surrogates", "edaf", "bfedbfbf"), ("110000", "U+110000", "f490", "8080"),
    ("13ffff", "U+13FFFF", "f4bf", "bfbf"), ("140000", "U+140000", "f5", "808080"),
    ("1fffff", "U+1FFFFF", "f7", "bfbfbf"), ("2-then-ascii", "half of a sequence of 2, then 'A'", "c341", ""),
    ("3-then-ascii", "a third of a sequence of 3, then 'A'", "e241", ""),
    ("3-then-ascii-late", "two thirds of a sequence of 3, then 'A'", "e28241", ""),
    ("4-then-ascii", "a quarter of a sequence of 4, then 'A'", "f041", ""),
    ("4-then-ascii-late", "three quarters of a sequence of 4, then 'A'", "f09f9841", ""),
    ("2-then-lead", "half of a sequence of 2, then a new one", "c3c3", "a9"),
    ("3-then-lead", "two thirds of a sequence of 3, then a new one", "e282e2", "82ac"),
    ("greek-then-surrogate", "a word, then a surrogate, then a word", "cebae1bdb9cf83cebcceb5eda0", "80656469746564"),
)
# a message that ends within a sequence
UNFINISHED = (
    ("2-of-1", "c3"), ("3-of-1", "e2"), ("3-of-2", "e282"), ("4-of-1", "f0"), ("4-of-2", "f09f"), ("4-of-3", "f09f98"),
    ("last-4-of-3", "f48fbf"),
)


def refused(id: str, title: str, *steps) -> Case:
    return case(f"utf8.bad.{id}", title, "8.1", *steps)


INVALID = tuple(
    row
    for name, title, doomed, rest in ((n, t, bytes.fromhex(d), bytes.fromhex(r)) for n, t, d, r in IMPOSSIBLE)
    for row in (
        refused(f"{name}.whole", f"{title}, in one frame", Send(text(b"fine " + doomed + rest + b" fine")),
                Fails(1007)),
        refused(f"{name}.octets", f"{title}, a frame per octet", Send(fragments(TEXT, octets(doomed + rest + b"."))),
                Fails(1007)),
        refused(f"{name}.early", f"{title}: refused while its frame is incomplete",
                Send(text(b"fine " + doomed + rest + bytes(200))[:8 + 5 + len(doomed)]),
                FailsEarly(1007, rest=text(b"fine " + doomed + rest + bytes(200))[8 + 5 + len(doomed):])))
) + tuple(
    row
    for name, octet in UNFINISHED
    for row in (
        refused(f"unfinished-{name}.whole", f"the message ends in {octet}", Send(text(b"fine " + bytes.fromhex(octet))),
                Fails(1007)),
        refused(f"unfinished-{name}.alone", f"the message is {octet}", Send(text(bytes.fromhex(octet))), Fails(1007)),
        refused(f"unfinished-{name}.fragments", f"the message ends in {octet}, its last frame is empty",
                Send(text(bytes.fromhex(octet), fin=False) + more(fin=True)), Fails(1007)))
) + (
    refused("second-fragment.early", "refused after the second of three frames",
            Send(text("fine ", fin=False) + more(b"\xed\xa0")), FailsEarly(1007, rest=more(b"\x80", fin=True))),
    refused("across.early", "a surrogate across two frames, refused at its second octet",
            Send(text(b"\xed", fin=False) + more(b"\xa0")), FailsEarly(1007, rest=more(b"\x80", fin=True))),
    refused("after-ping.early", "a surrogate with a Ping inside, refused at its second octet",
            Send(text(b"\xed", fin=False) + ping()), Get(PONG, b""), Send(more(b"\xa0")),
            FailsEarly(1007, rest=more(b"\x80", fin=True))),
    refused("big-frame.early", "at octet 30 of a frame of 100000",
            Send(text(b"a" * 29 + b"\xff" + b"a" * 99970)[:14 + 30]),
            FailsEarly(1007, rest=text(b"a" * 29 + b"\xff" + b"a" * 99970)[14 + 30:])),
    refused("big-frame-late", "at octet 99998 of a frame of 100000", Send(text(b"a" * 99997 + b"\xff" + b"a" * 2)),
            Fails(1007)),
    refused("behind", "a good message, then a bad one", Send(text("good") + text(b"\xff")),
            Get(TEXT, b"good", optional=True), Fails(1007)),
    refused("continuation-only", "good text, then a continuation that is not",
            Send(fragments(TEXT, (b"good", b"\xff"))), Fails(1007)),
    refused("chopped", "a surrogate, octet by octet", Send(text(b"good\xed\xa0\x80good"), chop=1), Fails(1007)),
)

CASES: tuple[Case, ...] = (*VALID, *INVALID)
