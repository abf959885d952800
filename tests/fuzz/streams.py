"""Byte streams for the suites: mostly what a peer would send, with one thing or another wrong in it, cut anywhere."""
from hypothesis import strategies as st

from opusagent._fastpath import ReceiveBuffer, build_frame
from opusagent.transport.websocket import BINARY, CLOSE, PING, PONG, TEXT

CONTINUATION = 0
SIZES = (0, 1, 124, 125, 126, 127, 300, 65535, 65536)
KEYS = st.binary(min_size=4, max_size=4)
WORDS = st.text(max_size=6).map(str.encode)
BODIES = st.one_of(WORDS, WORDS, st.binary(max_size=9), st.sampled_from(SIZES[:-2]).map(bytes))
CLOSES = st.one_of(st.just(b""), st.binary(max_size=3), st.builds(
    lambda code, reason: code.to_bytes(2) + reason, st.sampled_from([999, 1000, 1001, 1005, 1006, 1015, 3000, 5000]),
    st.one_of(WORDS, st.binary(max_size=3))))
LENGTHS = st.sampled_from([0, 125, 126, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1,
                           1 << 63, (1 << 64) - 1])
DIRT = 0xEE         # what other connections leave in a shared receive buffer


@st.composite
def odd_headers(draw, masked: bool = True):
    """The first bytes of a frame that announces any length in any form."""
    first, form, length = draw(st.integers(0, 255)), draw(st.sampled_from([0, 2, 8])), draw(LENGTHS)
    if form == 0:
        return bytes([first, (length & 127) | masked << 7])
    return bytes([first, (126 if form == 2 else 127) | masked << 7]) + (length % (1 << 8 * form)).to_bytes(form)


@st.composite
def frames(draw, masked: bool = True, most: int = 8):
    """Frames of messages in pieces, with control frames between them: nothing is wrong with their order."""
    wire, within = b"", False
    for _ in range(draw(st.integers(0, most))):
        kind = draw(st.sampled_from("mmmmmcp"))
        fin, opcode, body = True, PING, draw(BODIES)[:125]
        if kind == "m":
            fin = draw(st.booleans())
            opcode, body = CONTINUATION if within else draw(st.sampled_from([TEXT, BINARY])), draw(BODIES)
            within = not fin
        elif kind == "c":
            opcode, body = draw(st.sampled_from([(PONG, body)] * 3 + [(CLOSE, draw(CLOSES))]))
        wire += build_frame(opcode, body, fin, draw(KEYS) if masked else None)
    return wire


@st.composite
def scarred(draw, wire):
    """The same bytes with one of them changed, lost, or something put between."""
    at, kind = draw(st.integers(0, len(wire))), draw(st.sampled_from(["changed", "lost", "between"]))
    put = b"" if kind == "lost" else draw(st.binary(min_size=1, max_size=1 if kind == "changed" else 14))
    return wire[:at] + put + wire[at + (kind != "between"):]


@st.composite
def streams(draw, masked: bool = True):
    """What may come from a peer after the handshake."""
    wire = draw(frames(masked))
    kind = draw(st.sampled_from(["right"] * 3 + ["scarred"] * 3 + ["odd header", "bytes"]))
    if kind == "scarred":
        return draw(scarred(wire))
    if kind == "odd header":
        return wire + draw(odd_headers(masked)) + draw(st.binary(max_size=20))
    return wire + (draw(st.binary(max_size=30)) if kind == "bytes" else b"")


@st.composite
def pieces(draw, wire):
    """The same bytes in order, in up to nine pieces, empty ones too, or a byte at a time."""
    if len(wire) < 60 and draw(st.integers(0, 9)) == 0:
        return [wire[i:i + 1] for i in range(len(wire))]
    places = [0, *sorted(draw(st.lists(st.integers(0, len(wire)), max_size=8))), len(wire)]
    return [wire[a:b] for a, b in zip(places, places[1:])]


class Shared:
    """A receive buffer as a worker has it: what was lent from it is overwritten as soon as it was consumed."""

    def __init__(self, size: int = 1 << 18):
        self.buffer = ReceiveBuffer(size)
        self.soil()

    def soil(self) -> None:
        self.buffer.view[:] = bytes([DIRT]) * self.buffer.size

    def lend(self, parser, piece: bytes) -> None:
        self.buffer.view[:len(piece)] = piece
        parser.feed(self.buffer, len(piece))
