"""Octets as a client may send them, rightly or wrongly: frames, close payloads, request heads.

Pure: no socket, no state.  The rule: every function builds exactly what it is told, so a wrong frame is as easy to
write as a right one; `{host}` and `{path}` in a head are filled in by the runner.
"""

from __future__ import annotations

import base64
import hashlib

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
NAMES = {CONTINUATION: "continuation", TEXT: "text", BINARY: "binary", CLOSE: "Close", PING: "Ping", PONG: "Pong"}

MASK = bytes.fromhex("37fa213d")  # the masking key of the RFC's examples (5.7)
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # the nonce of the RFC's example (1.3)

# a handshake as section 4.1 asks for it; a case changes one line of it
LINES = {
    "Host": "{host}",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def masked(payload: bytes, mask: bytes) -> bytes:
    """The payload XORed with the repeated mask (5.3); its own inverse."""
    size = len(payload)
    stretched = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(stretched, "big")).to_bytes(size, "big")


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bytes | None = MASK,
          wide: int = 0, announced: int | None = None) -> bytes:
    """One frame (5.2).

    rsv: three bits, RSV1 is 4.  mask: None sends it unmasked.  wide: 2 or 8 octets of extended length though fewer do.
    announced: the length that the header claims, whatever the payload is.
    """
    size = len(payload) if announced is None else announced
    width = wide or (0 if size < 126 else 2 if size < 65536 else 8)
    length = {0: size, 2: 126, 8: 127}[width] | (0x80 if mask is not None else 0)
    head = bytes((fin << 7 | rsv << 4 | opcode, length)) + (size.to_bytes(width, "big") if width else b"")
    return head + (payload if mask is None else mask + masked(payload, mask))


def text(words: str | bytes = "", **odd) -> bytes:
    return frame(TEXT, words.encode() if isinstance(words, str) else words, **odd)


def binary(payload: bytes = b"", **odd) -> bytes:
    return frame(BINARY, payload, **odd)


def more(payload: bytes = b"", *, fin: bool = False, **odd) -> bytes:
    """A continuation frame; the last one of its message where `fin` says so."""
    return frame(CONTINUATION, payload, fin=fin, **odd)


def ping(payload: bytes = b"", **odd) -> bytes:
    return frame(PING, payload, **odd)


def pong(payload: bytes = b"", **odd) -> bytes:
    return frame(PONG, payload, **odd)


def close(code: int | None = None, reason: str | bytes = b"", **odd) -> bytes:
    """A Close frame (5.5.1): no payload without a code."""
    reason = reason.encode() if isinstance(reason, str) else reason
    return frame(CLOSE, (b"" if code is None else code.to_bytes(2, "big")) + reason, **odd)


def fragments(opcode: int, parts: tuple[bytes, ...], between: bytes = b"") -> bytes:
    """One message in as many frames as there are parts, with the octets of `between` after each but the last."""
    last = len(parts) - 1
    return b"".join(
        frame(opcode if i == 0 else CONTINUATION, part, fin=i == last) + (between if i < last else b"")
        for i, part in enumerate(parts))


def octets(data: bytes, size: int = 1) -> tuple[bytes, ...]:
    """The data in parts of `size` octets."""
    return tuple(data[i:i + size] for i in range(0, len(data), size))


def head(first: str = "GET {path} HTTP/1.1", *, swap: dict[str, str] | None = None,
         without: tuple[str, ...] = (), extra: tuple[str, ...] = (), end: str = "\r\n") -> bytes:
    """A request head: `swap` gives lines other values, `without` leaves lines out, `extra` ones follow at the end."""
    lines = [f"{name}: {value}" for name, value in (LINES | (swap or {})).items() if name not in without]
    return end.join((first, *lines, *extra, "", "")).encode("latin-1")


def accept(key: str) -> str:
    """The Sec-WebSocket-Accept that answers a key (4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()
