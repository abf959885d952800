"""Large messages, many fragments, and many messages: nothing is lost, reordered or refused up to 16 MiB."""

from .. import wire
from ..script import BYE, Case, Get, HOUSE, Send, case
from ..wire import BINARY, TEXT, fragments, octets

KIB, MIB = 1 << 10, 1 << 20
KINDS = ((TEXT, "text"), (BINARY, "binary"))
BY_DEFAULT = {64 * KIB, MIB, 16 * MIB}


def blob(opcode: int, size: int) -> bytes:
    """Octets that differ from their neighbours 64 KiB away, so that a lost or swapped block shows."""
    return b"".join(b"%015d\n" % i if opcode == TEXT else i.to_bytes(4, "big") * 4 for i in range(size // 16))


def message(id: str, title: str, opcode: int, size: int, *, fragment: int = 0, chop: int = 0,
heavy: bool = False) -> Case:
    """A message of `size` octets, in frames of `fragment` octets, in writes of `chop` octets."""
    def sent() -> bytes:
        payload = blob(opcode, size)
        return fragments(opcode, octets(payload, fragment)) if fragment else wire.frame(opcode, payload)

    return case(f"size.{id}", title, "5.2" if size <= MIB else HOUSE, Send(sent, chop, gap=0),
                Get(opcode, lambda: blob(opcode, size)), *BYE, heavy=heavy)


WHOLE = tuple(
    message(f"{name}.{size // KIB}k", f"{name} of {size // KIB} KiB", opcode, size, heavy=size not in BY_DEFAULT)
    for opcode, name in KINDS for size in (64 * KIB, 256 * KIB, MIB, 4 * MIB, 8 * MIB, 16 * MIB)
)

IN_FRAGMENTS = tuple(
    message(f"{name}.{size // KIB}k.fragments-{fragment}",
            f"{name} of {size // KIB} KiB in frames of {fragment} octets", opcode, size, fragment=fragment,
            heavy=size > MIB)
    for opcode, name in KINDS
    for size, fragment in (
        (64 * KIB, 1300), (MIB, 64 * KIB), (4 * MIB, 256), (4 * MIB, KIB), (4 * MIB, 4 * KIB), (4 * MIB, 64 * KIB),
        (16 * MIB, MIB))
)

IN_WRITES = tuple(
    message(f"{name}.{size // KIB}k.writes-{chop}", f"{name} of {size // KIB} KiB in writes of {chop} octets", opcode,
            size, chop=chop, heavy=chop < 1000 and size > 64 * KIB)
    for opcode, name in KINDS for size, chop in ((64 * KIB, 128), (MIB, 1447), (MIB, 64), (MIB, 512), (MIB, 2048))
)


def numbered(i: int, size: int) -> bytes:
    """A payload of `size` octets that tells which it is."""
    return (b"%08d" % i * (size // 8 + 1))[:size]


def numbered_frames(opcode: int, size: int, count: int) -> bytes:
    return b"".join(wire.frame(opcode, numbered(i, size)) for i in range(count))


MANY = tuple(
    case(f"many.{name}.{size}", f"{count} {name} messages of {size} octets, sent without waiting", "5.4",
         Send(lambda opcode=opcode, size=size, count=count: numbered_frames(opcode, size, count)),
         *(Get(opcode, lambda i=i, size=size: numbered(i, size)) for i in range(count)), *BYE, heavy=size > 1000)
    for opcode, name in KINDS
    for size, count in ((0, 1000), (16, 1000), (160, 1000), (640, 500), (4096, 500), (16384, 200))
)

CASES: tuple[Case, ...] = (*WHOLE, *IN_FRAGMENTS, *IN_WRITES, *MANY)
