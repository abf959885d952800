"""The bodies of HTTP/1.1 responses: what is inside, taken out of its frame in whatever pieces it comes.

No connection and no head; h11 would do this too, at ten times the cost for a small chunk.  The rule: what is inside is
passed on at once, and what breaks the frame is a ValueError after all that came before it.
"""
import re
from collections import deque

import h11

LINE_BYTES = 8192               # of a line between two chunks

SIZE, DATA, END, TRAILER = "size", "data", "end", "trailer"     # what a chunked body goes on with
SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,12})[ \t]*(?:;.*)?")


class Chunked:
    """A body in chunks, RFC 9112 section 7.1; trailers are dropped."""

    __slots__ = ("next", "left", "held")

    def __init__(self):
        self.next = SIZE
        self.left = 0                               # bytes of the chunk that are still to come
        self.held = b""                             # the beginning of a line

    @property
    def over(self) -> bool:
        return self.next is None

    def feed(self, data: bytes, pieces: deque[bytes]) -> None:
        """Adds what is inside of `data`, the next bytes on the wire, to `pieces`.  Raises ValueError."""
        data, at = self.held + data, 0
        while at < len(data):
            if self.next is DATA:
                piece = data[at:at + self.left]
                pieces.append(piece)
                at += len(piece)
                self.left -= len(piece)
                if self.left == 0:
                    whole = data.startswith(b"\r\n", at)
                    self.next, at = (SIZE, at + 2) if whole else (END, at)
            elif (end := data.find(b"\r\n", at)) >= 0:
                self._read_line(data[at:end])
                at = end + 2
            else:
                break
        self.held = data[at:]
        if len(self.held) > LINE_BYTES:
            raise ValueError("a line without an end")

    def _read_line(self, line: bytes) -> None:
        if self.next is SIZE and (size := size_of(line)):
            self.left = int(size, 16)
            self.next = DATA if self.left else TRAILER
        elif self.next is END and not line:
            self.next = SIZE
        elif self.next is TRAILER:
            self.next = TRAILER if line else None
        else:
            raise ValueError("a chunk that is none")

    def close(self) -> bool:
        """The peer says no more; True if that is no fault."""
        return self.over


def size_of(line: bytes) -> bytes:
    """The size that a line begins with, in hexadecimal; b"" where there is none."""
    found = SIZE_LINE.fullmatch(line)
    return found[1] if found else b""


class Sized:
    """A body whose length its head says."""

    __slots__ = ("left",)

    def __init__(self, length: int):
        self.left = length

    @property
    def over(self) -> bool:
        return not self.left

    def feed(self, data: bytes, pieces: deque[bytes]) -> None:
        more = len(data) > self.left
        pieces.append(data[:self.left])
        self.left -= len(pieces[-1])
        if more:
            raise ValueError("more than was announced")

    def close(self) -> bool:
        return self.over


class Unsized:
    """A body that ends with its connection."""

    __slots__ = ("over",)

    def __init__(self):
        self.over = False

    def feed(self, data: bytes, pieces: deque[bytes]) -> None:
        pieces.append(data)

    def close(self) -> bool:
        self.over = True
        return True


def body_of(head: h11.Response) -> Chunked | Sized | Unsized:
    """What follows a head.  h11 has seen to it that there is one length at most, and no encoding but chunked."""
    fields = dict(head.headers)
    if head.status_code in (204, 304):
        return Sized(0)
    if b"transfer-encoding" in fields:
        return Chunked()
    return Sized(int(fields[b"content-length"])) if b"content-length" in fields else Unsized()
