"""An echo server that is right in everything, and wrong in one thing at a time: the proof that the suite can fail.

It is written for this and shares nothing with the server of this project; it is slow and simple.  The rule: a fault is
one condition at the place where a real server would go wrong; faults.py names the cases that must catch it.

    python -m tests.conformance.broken --port 9001 --fault ignores-rsv
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import codecs
import re
import socket
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from . import wire
from .faults import FAULTS
from .wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT

HEAD_SIZE, LINE_SIZE, HEAD_LINES, HEAD_SECONDS, MESSAGE_SIZE = 8192, 4096, 64, 3.0, 1 << 24
VALID_CODES = {1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)}
REQUEST_LINE = re.compile(rb"([A-Z]+) (/[\x21-\x22\x24-\x7e]*) HTTP/([0-9])\.([0-9])")
HEADER_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
SURROGATE = re.compile(rb"\xed[\xa0-\xbf]")  # what Python's decoder keeps for later, although nothing can come of it
REASONS = {101: "Switching Protocols", 400: "Bad Request", 404: "Not Found", 408: "Request Timeout",
426: "Upgrade Required",
           431: "Request Header Fields Too Large"}
AGREEABLE = (("agrees-to-extensions", "sec-websocket-extensions"), ("agrees-to-subprotocols", "sec-websocket-protocol"))


class Refused(Exception):
    """The request is answered with a status."""


class Broken(Exception):
    """The connection is failed with a close code."""


class Connection:
    """One connection of the server that has `fault`."""

    def __init__(self, fault: str | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.fault = fault
        self.reader, self.writer = reader, writer
        self.ahead = b""  # read behind the head
        self.bodiless = False  # HEAD is answered
        self.opcode: int | None = None  # of the message that is being received
        self.message = bytearray()
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.held: list[bytes] = []  # Pings of the fault that holds them

    def has(self, *faults: str) -> bool:
        return self.fault in faults

    async def run(self) -> None:
        try:
            await self.serve()
        finally:
            self.writer.close()

    async def serve(self) -> None:
        try:
            await self.upgrade()
            await self.converse()
        except Refused as refused:
            self.respond(refused.args[0])
        except Broken as broken:
            code = 1000 if self.has("fails-with-1000") else broken.args[0]
            if not self.has("drops-tcp-without-a-close"):
                self.send(CLOSE, code.to_bytes(2, "big"))
        except (asyncio.IncompleteReadError, ConnectionError):
            if self.has("ignores-fin-of-tcp"):
                await asyncio.sleep(10)
        await self.end()

    async def end(self) -> None:
        """Send FIN, read until the peer's own (7.1.1), close."""
        try:
            if self.has("never-closes-tcp") or self.has("keeps-open-after-refusal") and self.opcode is None:
                await asyncio.sleep(10)
            if self.has("resets-tcp"):
                ending = self.writer.get_extra_info("socket")
                ending.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return self.writer.transport.abort()
            self.writer.write_eof()
            async with asyncio.timeout(1):
                while await self.reader.read(65536):
                    pass
        except (OSError, TimeoutError):
            pass  # it is gone, or it lingers: the end either way

    # the handshake

    async def upgrade(self) -> None:
        lines = await self.head()
        method, path, major, minor = (REQUEST_LINE.fullmatch(lines[0]) or self.refuse(400)).groups()
        self.bodiless = method == b"HEAD"
        fields = self.fields(lines[1:])
        if method != b"GET" and not (self.has("accepts-post") and method == b"POST"):
            self.refuse(400)
        if major + minor != b"11" and not (self.has("accepts-http-1.0") and major + minor == b"10"):
            self.refuse(400)
        if path.partition(b"?")[0] != b"/ws/echo" and not self.has("serves-every-path"):
            self.refuse(404)
        self.judge(fields)
        agreed = [f"{line}: {fields[line][0]}" for fault, line in AGREEABLE if self.has(fault) and line in fields]
        if self.has("answers-before-the-101") and self.ahead[:1] == b"\x89":
            self.send(PONG, b"early")
        accept = wire.accept(wire.KEY if self.has("same-accept-for-all") else fields["sec-websocket-key"][-1])
        self.respond(101, "Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accept}", *agreed)
        self.opcode = -1 if self.has("keeps-open-after-refusal") else None
        if self.has("drops-what-is-glued"):
            self.ahead = b""

    async def head(self) -> list[bytes]:
        """The lines of the head; what is behind it waits in `ahead`."""
        data = bytearray()
        deadline = asyncio.get_running_loop().time() + (600 if self.has("no-deadline") else HEAD_SECONDS)
        while b"\r\n\r\n" not in data:
            self.judge_size(data)
            if self.has("deadline-per-read"):
                deadline = asyncio.get_running_loop().time() + HEAD_SECONDS
            try:
                async with asyncio.timeout_at(deadline):
                    piece = await self.reader.read(65536)
            except TimeoutError:
                self.refuse(408)
            if not piece:
                raise asyncio.IncompleteReadError(bytes(data), None)
            data += piece
            if self.has("accepts-bare-lf"):
                data = bytearray(re.sub(rb"(?<!\r)\n", b"\r\n", data))
        head, _, self.ahead = bytes(data).partition(b"\r\n\r\n")
        self.judge_size(head)
        return head.split(b"\r\n")

    def judge_size(self, head: bytes) -> None:
        if len(head) > HEAD_SIZE and not self.has("reads-endless-heads"):
            self.refuse(431)
        if max(map(len, head.split(b"\r\n"))) > LINE_SIZE and not self.has("reads-endless-heads"):
            self.refuse(431)
        if head.count(b"\r\n") > HEAD_LINES and not self.has("reads-endless-lines"):
            self.refuse(431)
        if re.search(rb"(?<!\r)\n|\r(?![\n]|$)", head) and not self.has("accepts-any-header-line"):
            self.refuse(400)

    def fields(self, lines: list[bytes]) -> dict[str, list[str]]:
        fields: dict[str, list[str]] = {}
        for line in lines:
            if (match := HEADER_LINE.fullmatch(line)) is None:
                if not self.has("accepts-any-header-line"):
                    self.refuse(400)
                continue
            name = match[1].decode() if self.has("minds-case-of-names") else match[1].decode().lower()
            fields.setdefault(name, []).append(match[2].decode("latin-1").strip(" \t"))
        if self.has("minds-case-of-names"):
            fields = {name.lower(): values for name, values in fields.items() if name != name.lower()}
        return fields

    def judge(self, fields: dict[str, list[str]]) -> None:
        """Refuse unless 4.2.1 is kept."""
        host, version = fields.get("host", []), fields.get("sec-websocket-version", [])
        if len(host) != 1 and not self.has("accepts-two-hosts" if host else "needs-no-host"):
            self.refuse(400)
        if host and re.search(r"[\s,/]", host[0]):
            self.refuse(400)
        if "transfer-encoding" in fields or fields.get("content-length", ["0"]) != ["0"]:
            if not self.has("accepts-a-body"):
                self.refuse(400)
        fold = str if self.has("minds-case-of-values") else str.lower
        upgrade = [fold(value) for value in fields.get("upgrade", [])]
        if upgrade != ["websocket"] and not self.has("needs-no-upgrade-line"):
            self.refuse(400)
        connection = ",".join(fields.get("connection", [])).lower()
        tokens = {token.strip() for token in connection.split(";" if self.has("compares-connection-whole") else ",")}
        if "upgrade" not in (connection if self.has("finds-token-within-word") else tokens):
            self.refuse(400)
        if version != ["13"] and not (self.has("accepts-version-8") and version == ["8"]):
            self.refuse(400 if len(version) != 1 else 426)
        self.judge_key(fields.get("sec-websocket-key", []))

    def judge_key(self, keys: list[str]) -> None:
        if len(keys) != 1 and not (self.has("takes-last-of-two-keys") and keys):
            self.refuse(400)
        key = keys[-1].encode("latin-1")
        good = re.fullmatch(rb"[A-Za-z0-9+/]{22}==", key) and base64.b64encode(base64.b64decode(key)) == key
        if not good and not self.has("accepts-any-key"):
            self.refuse(400)

    def refuse(self, status: int):
        raise Refused(status)

    def respond(self, status: int, *lines: str) -> None:
        body = "" if status == 101 else f"{REASONS[status]}.\n"
        if status == 426 and not self.has("hides-its-version"):
            lines = ("Sec-WebSocket-Version: 13",)
        if status != 101:
            lines += ("Connection: close", f"Content-Length: {len(body)}")
        sent = "" if self.bodiless else body
        self.writer.write("\r\n".join((f"HTTP/1.1 {status} {REASONS[status]}", *lines, "", sent)).encode())

    # frames

    def send(self, opcode: int, payload: bytes) -> None:
        wide = 2 if self.has("spells-lengths-long") and opcode < CLOSE and len(payload) < 126 else 0
        mask = wire.MASK if self.has("masks-its-frames") else None
        self.writer.write(wire.frame(opcode, payload, mask=mask, wide=wide))

    async def take(self, size: int) -> bytes:
        """Exactly `size` octets."""
        data, self.ahead = self.ahead[:size], self.ahead[size:]
        return data + (await self.reader.readexactly(size - len(data)) if len(data) < size else b"")

    async def pieces(self, size: int, mask: bytes):
        """The payload unmasked, in the pieces in which it arrives."""
        offset = 0
        while offset < size:
            piece, self.ahead = self.ahead[:size - offset], self.ahead[size - offset:]
            piece = piece or await self.reader.read(min(size - offset, 1 << 18))
            if not piece:
                raise asyncio.IncompleteReadError(b"", size)
            turn = 0 if self.has("restarts-mask-at-each-read") else offset % 4
            offset += len(piece)
            yield wire.masked(piece, mask[turn:] + mask[:turn])

    async def converse(self) -> None:
        while True:
            fin, opcode, size, mask = await self.header()
            if opcode in (PING, PONG, CLOSE):
                payload = b"".join([piece async for piece in self.pieces(size, mask)])
                if opcode == CLOSE and self.control_close(payload):
                    return
                self.control(opcode, payload)
            else:
                await self.data(fin, opcode, size, mask)
            await self.writer.drain()

    async def header(self) -> tuple[bool, int, int, bytes]:
        """The next frame's header; every rule that it alone can break is checked."""
        first, second = await self.take(2)
        fin, opcode, size = bool(first & 0x80), first & 0x0F, second & 0x7F
        if first & 0x70 and not self.has("ignores-rsv"):
            raise Broken(1002)
        if opcode not in wire.NAMES:
            if not self.has("ignores-reserved-opcodes"):
                raise Broken(1002)
            opcode = PONG
        if opcode >= CLOSE and not fin and not self.has("accepts-fragmented-control"):
            raise Broken(1002)
        if opcode >= CLOSE and size > 125 and not self.has("accepts-long-control"):
            raise Broken(1002)
        if not second & 0x80 and not self.has("accepts-unmasked"):
            raise Broken(1002)
        if width := {126: 2, 127: 8}.get(size, 0):
            signed = width == 2 and self.has("reads-length-signed")
            size = int.from_bytes(await self.take(width), "big", signed=signed)
            size = abs(size) if signed else self.length(size, width)
        self.judge_order(opcode, size)
        return fin, opcode, size, await self.take(4) if second & 0x80 else bytes(4)

    def length(self, size: int, width: int) -> int:
        if size >> 63:
            if not self.has("drops-top-bit"):
                raise Broken(1002)
            return size & (1 << 63) - 1
        if size < (126 if width == 2 else 65536) and not self.has("accepts-long-lengths"):
            raise Broken(1002)
        return size

    def judge_order(self, opcode: int, size: int) -> None:
        """Fragmentation (5.4) and the limit of a message."""
        if opcode == CONTINUATION and self.opcode is None and not self.has("continues-nothing", "ignores-fin"):
            raise Broken(1002)
        if opcode in (TEXT, BINARY) and self.opcode is not None:
            if not self.has("joins-interleaved", "restarts-at-interleaved"):
                raise Broken(1002)
        before = 0 if self.has("limits-frames-only") else len(self.message)
        if size + before > MESSAGE_SIZE and not self.has("no-message-limit"):
            raise Broken(1009)

    async def data(self, fin: bool, opcode: int, size: int, mask: bytes) -> None:
        if opcode != CONTINUATION and (self.opcode is None or self.has("restarts-at-interleaved")):
            self.opcode = opcode
            self.message.clear()
            self.decoder.reset()
        if self.opcode is None:
            self.opcode = TEXT
        start = len(self.message)
        async for piece in self.pieces(size, mask):
            self.message += piece
            if not self.has("utf8-checked-late", "utf8-checked-per-message", "utf8-checked-per-frame"):
                self.check(piece, False)
        if self.has("utf8-checked-late"):
            self.check(bytes(self.message[start:]), False)
        if fin or self.has("ignores-fin"):
            unchecked = bytes(self.message) if self.has("utf8-checked-per-message") else b""
            self.check(unchecked, not self.has("utf8-end-unchecked"))
            self.deliver()
        elif self.has("utf8-checked-per-frame"):
            self.check(bytes(self.message[start:]), True)

    def check(self, piece: bytes, final: bool) -> None:
        """Fail at the first octet of text that is not UTF-8."""
        if self.opcode != TEXT and not self.has("checks-binary-too") or self.has("no-utf8-check"):
            return
        try:
            words = self.decoder.decode(piece, final)
            if SURROGATE.match(self.decoder.getstate()[0]) and not self.has("accepts-surrogates"):
                raise Broken(1007)
        except UnicodeDecodeError:
            if not self.has("accepts-surrogates") or self.opcode != TEXT:
                raise Broken(1007) from None
            self.decoder.reset()
        else:
            if self.has("refuses-noncharacters") and any(ord(letter) & 0xFFFE == 0xFFFE for letter in words):
                raise Broken(1007)

    def deliver(self) -> None:
        opcode, payload = self.opcode, bytes(self.message)
        self.opcode = None
        self.message.clear()
        if payload or not self.has("swallows-empty-messages"):
            self.send(BINARY if self.has("text-as-binary") else opcode, payload)
        while self.held:
            self.send(PONG, self.held.pop(0))

    def control(self, opcode: int, payload: bytes) -> None:
        if self.has("forgets-message-at-ping") and opcode == PING:
            self.message.clear()
        if self.has("holds-ping-until-message-ends") and opcode == PING and self.opcode is not None:
            self.held.append(payload)
        elif opcode == PING and not (self.has("answers-last-ping-only") and not payload.endswith(b"9")):
            self.send(TEXT if self.has("pong-is-text") else PONG,
            b"" if self.has("pong-without-payload") else payload)
        elif opcode == PONG and self.has("answers-pongs"):
            self.send(PONG, payload)

    def control_close(self, payload: bytes) -> bool:
        """Answer a Close (5.5.1); whether the conversation is over."""
        code = int.from_bytes(payload[:2], "big") if len(payload) > 1 else None
        if len(payload) == 1 and not self.has("accepts-close-of-one-octet"):
            raise Broken(1002)
        if code is not None and code not in VALID_CODES and not self.has("echoes-any-close-code"):
            raise Broken(1002)
        try:
            payload[2:].decode()
        except UnicodeDecodeError:
            if not self.has("reason-unchecked"):
                raise Broken(1007) from None
        if not self.has("close-not-answered"):
            self.send(CLOSE, b"" if code is None else (1000 if self.has("close-always-1000") else code).to_bytes(2,
            "big"))
        return not self.has("answers-after-close")


@asynccontextmanager
async def serving(fault: str | None = None, port: int = 0) -> AsyncIterator[int]:
    """Listen on loopback as long as the context lasts; yields the port."""
    if fault is not None and fault not in FAULTS:
        raise ValueError(f"no fault named {fault}")
    running: set[asyncio.Task] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(Connection(fault, reader, writer).run())
        running.add(task)
        task.add_done_callback(running.discard)

    async with await asyncio.start_server(accept, "127.0.0.1", port) as server:
        yield server.sockets[0].getsockname()[1]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.broken", description=__doc__.splitlines()[0])
    parser.add_argument("--fault", choices=sorted(FAULTS))
    parser.add_argument("--port", type=int, default=9001)
    options = parser.parse_args(arguments)
    async with serving(options.fault, options.port) as port:
        print(f"listening on ws://127.0.0.1:{port}/ws/echo", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
