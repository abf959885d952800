"""The server under test, seen from its client: one connection, read eagerly and read strictly.

Everything a server may get wrong in what it *sends* is judged here, for every case: masked frames, reserved bits,
lengths that are not minimal, broken fragmentation, forbidden close codes.  The rule: reading never depends on writing,
so a server that answers and resets loses nothing of its answer.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from . import wire

CHUNK = 1 << 18  # octets per receive
SENDABLE_CODES = {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014}  # and 3000 to 4999


class Failed(Exception):
    """The server broke the standard, or did not answer in time: one sentence."""


class Silent(Failed):
    """Nothing came in time."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the server is, from a ws:// or wss:// URL."""

    host: str
    port: int
    path: str
    tls: bool

    @classmethod
    def of(cls, url: str) -> Target:
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise ValueError(f"{url} is no ws:// or wss:// URL")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(parts.hostname, parts.port or (443 if parts.scheme == "wss" else 80), path, parts.scheme == "wss")

    def fill(self, head: bytes) -> bytes:
        return head.replace(b"{host}", f"{self.host}:{self.port}".encode()).replace(b"{path}", self.path.encode())


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response head."""

    version: str
    status: int
    lines: tuple[tuple[str, str], ...]  # (name in lower case, value)

    def all(self, name: str) -> list[str]:
        return [value for given, value in self.lines if given == name]

    def one(self, name: str) -> str | None:
        """The value of a line that is there once; None when it is missing or repeated."""
        values = self.all(name)
        return values[0] if len(values) == 1 else None


@dataclass(frozen=True, slots=True)
class Got:
    """A whole message, or a control frame."""

    opcode: int
    payload: bytes

    @property
    def code(self) -> int | None:
        return int.from_bytes(self.payload[:2], "big") if self.payload else None

    def __str__(self) -> str:
        if self.opcode == wire.CLOSE:
            return f"Close {self.code or 'without a code'} {self.payload[2:].decode(errors='replace')!r}"
        shown = f"{self.payload[:40]!r}{'...' if len(self.payload) > 40 else ''}"
        return f"{wire.NAMES[self.opcode]} of {len(self.payload)} octets {shown}"


class Tls:
    """TLS over a socket that somebody else reads and writes; what is tested is not certificates, so none is checked."""

    __slots__ = ("inbound", "outbound", "record", "over")

    def __init__(self, host: str):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.over = False  # the server has said that it will send no more
        self.inbound, self.outbound = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.record = context.wrap_bio(self.inbound, self.outbound, server_hostname=host)

    async def shake(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                self.record.do_handshake()
            except ssl.SSLWantReadError:
                await loop.sock_sendall(sock, self.outbound.read())
                data = await loop.sock_recv(sock, CHUNK)
                if not data:
                    raise ConnectionError("the server ended TCP within the handshake of TLS") from None
                self.inbound.write(data)
            else:
                return await loop.sock_sendall(sock, self.outbound.read())

    def seal(self, data: bytes) -> bytes:
        self.record.write(data)
        return self.outbound.read()

    def unseal(self, data: bytes) -> bytes:
        self.inbound.write(data)
        plain = bytearray()
        try:
            while piece := self.record.read(CHUNK):
                plain += piece
            self.over = True
        except ssl.SSLZeroReturnError:
            self.over = True
        except ssl.SSLWantReadError:
            pass  # all of it is read
        return bytes(plain)


class Peer:
    """One connection to the target."""

    __slots__ = ("target", "patience", "polite", "notes", "ended", "_sock", "_tls", "_buffer", "_news", "_reader",
                 "_kept", "_message")

    def __init__(self, target: Target, patience: float):
        self.target = target
        self.patience = patience  # s that any single answer may take
        self.polite = False  # answers Pings: not while a frame of ours may be unfinished
        self.notes: list[str] = []  # what the standard allows and a strict server would not do
        self.ended: str | None = None  # "FIN" or "RST" once the server's side of the stream is over
        self._tls: Tls | None = None
        self._reader: asyncio.Future | None = None  # None before connect()
        self._buffer = bytearray()  # received, not yet read
        self._news = asyncio.Event()  # something was received, or the stream ended
        self._kept: Got | None = None  # read ahead and put back
        self._message: tuple[int, bytearray] | None = None  # the server's fragmented message so far

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self.target.host, self.target.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        self._sock = socket.socket(family, kind, protocol)
        self._sock.setblocking(False)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await loop.sock_connect(self._sock, address)
            if self.target.tls:
                self._tls = Tls(self.target.host)
                await self._tls.shake(self._sock)
        except BaseException:
            self._sock.close()
            raise
        self._reader = asyncio.ensure_future(self._read())

    async def release(self) -> None:
        """Close our side and forget everything; again and again without harm."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
            self._sock.close()

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while self.ended is None:
            try:
                data = await loop.sock_recv(self._sock, CHUNK)
                self._buffer += self._tls.unseal(data) if self._tls and data else data
                self.ended = None if data and not (self._tls and self._tls.over) else "FIN"
            except OSError:
                self.ended = "RST"
            self._news.set()

    # sending

    async def send(self, data: bytes) -> None:
        """Hand the octets to the kernel; a server that has gone is found out by reading, not here."""
        try:
            await asyncio.get_running_loop().sock_sendall(self._sock, self._tls.seal(data) if self._tls else data)
        except OSError:
            pass

    def half_close(self) -> None:
        """No more octets from us; we still read."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the server was faster

    async def reset(self) -> None:
        """Leave with a TCP reset."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.release()

    # receiving

    @property
    def spoken(self) -> bool:
        """Whether something waits to be read, or the server has ended its stream."""
        return bool(self._buffer) or self.ended is not None

    @contextmanager
    def waiting(self, seconds: float) -> Iterator[None]:
        """Another patience for one answer; 0 for the usual one."""
        usual, self.patience = self.patience, seconds or self.patience
        try:
            yield
        finally:
            self.patience = usual

    async def have(self, size: int, what: str) -> bool:
        """Whether `size` octets are there to be read; False when the stream ends before, Failed when neither comes."""
        deadline = asyncio.get_running_loop().time() + self.patience
        while len(self._buffer) < size and self.ended is None:
            self._news.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._news.wait()
            except TimeoutError:
                raise Silent(f"{what}: nothing came within {self.patience:g} s") from None
        return len(self._buffer) >= size

    def take(self, size: int) -> bytes:
        """The next `size` octets, which are there."""
        data = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return data

    async def response(self) -> Response | None:
        """The next HTTP response head, None when the stream ended without an octet of it."""
        while (size := self._buffer.find(b"\r\n\r\n") + 4) < 4:
            if not await self.have(len(self._buffer) + 1, "an HTTP response"):
                if self._buffer:
                    raise Failed(f"the stream ended within the response head {bytes(self._buffer[:60])!r}")
                return None
        first, *lines = self.take(size)[:-4].decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise Failed(f"not an HTTP response: {first[:60]!r}")
        pairs = (line.partition(":") for line in lines)
        return Response(version, int(rest[:3]), tuple((name.lower(), value.strip()) for name, _, value in pairs))

    async def body(self, response: Response) -> bytes:
        """The body that a response announces."""
        length = response.one("content-length")
        size = int(length) if length and length.isdigit() else 0
        if not await self.have(size, "the response body"):
            raise Failed(f"the body is shorter than its Content-Length of {size}")
        return self.take(size)

    async def next(self, what: str) -> Got | None:
        """The server's next message or control frame, None at the end.  Its own Pings are not shown."""
        if self._kept is not None:
            got, self._kept = self._kept, None
            return got
        while True:
            fin, opcode, payload = await self._frame(what) or (True, None, b"")
            if opcode is None:
                return None
            if opcode == wire.PING:
                if self.polite:
                    await self.send(wire.pong(payload))
            elif opcode >= wire.CLOSE:
                return Got(opcode, payload)
            elif (got := self._assemble(fin, opcode, payload)) is not None:
                return got

    def keep(self, got: Got | None) -> None:
        """Put back what next() gave; the end of the stream needs no keeping."""
        self._kept = got

    def _assemble(self, fin: bool, opcode: int, payload: bytes) -> Got | None:
        if (opcode == wire.CONTINUATION) != (self._message is not None):
            raise Failed(f"the server's {wire.NAMES[opcode]} frame breaks its own fragmentation (5.4)")
        first, body = self._message or (opcode, bytearray())
        body += payload
        self._message = None if fin else (first, body)
        return Got(first, bytes(body)) if fin else None

    async def _frame(self, what: str) -> tuple[bool, int, bytes] | None:
        """One frame as a server must send it; Failed for any other."""
        if not await self.have(2, what):
            if self._buffer:
                raise Failed("the stream ended within a frame header")
            return None
        first, second = self._buffer[:2]
        fin, opcode, size = bool(first & 0x80), first & 0x0F, second & 0x7F
        if first & 0x70:
            raise Failed(f"the server set reserved bits: {first:#04x} (5.2)")
        if opcode not in wire.NAMES:
            raise Failed(f"the server used the reserved opcode {opcode} (5.2)")
        if second & 0x80:
            raise Failed("the server masked a frame (5.1)")
        if opcode >= wire.CLOSE and (not fin or size > 125):
            raise Failed(f"the server's {wire.NAMES[opcode]} is fragmented or longer than 125 octets (5.5)")
        width = {126: 2, 127: 8}.get(size, 0)
        if not await self.have(2 + width, what):
            raise Failed("the stream ended within a frame header")
        length = int.from_bytes(self._buffer[2:2 + width], "big") if width else size
        if width and length < (126 if width == 2 else 65536):
            raise Failed(f"the server spelt the length {length} in {width} octets (5.2)")
        if not await self.have(2 + width + length, what):
            raise Failed(f"the stream ended within a {wire.NAMES[opcode]} of {length} octets")
        payload = self.take(2 + width + length)[2 + width:]
        if opcode == wire.CLOSE:
            judge_close(payload)
        return fin, opcode, payload


def judge_close(payload: bytes) -> None:
    """Failed unless a server may send this Close payload (5.5.1, 7.4)."""
    if not payload:
        return
    if len(payload) == 1:
        raise Failed("the server's Close has a payload of one octet (5.5.1)")
    code = int.from_bytes(payload[:2], "big")
    if code not in SENDABLE_CODES and not 3000 <= code <= 4999:
        raise Failed(f"the server sent the close code {code} (7.4)")
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        raise Failed("the server's close reason is not UTF-8 (5.5.1)") from None
