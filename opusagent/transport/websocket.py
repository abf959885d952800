"""WebSocket, sans I/O: bytes in, messages out, and what must be sent in the outbox.

RFC 6455 sections 5 to 7 for either side.  It knows no socket, no clock and no call; frames are cut and built by
`_fastpath`.  The rule: only receive() raises, always ProtocolError, and whoever owns the socket answers it with
fail(); messages that come after the closing handshake began are read and dropped.
"""
from collections.abc import Callable

from .. import ProtocolError
from .._fastpath import FrameParser, ReceiveBuffer, build_frame, utf8_valid

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA

OPEN, CLOSING, CLOSED = "open", "closing", "closed"

# The closing handshake (section 7).  `sent` and `got` are close frames; `failed` is a broken protocol or connection.
TRANSITIONS = {
    OPEN: {"sent": CLOSING, "got": CLOSED, "failed": CLOSED},
    CLOSING: {"sent": CLOSING, "got": CLOSED, "failed": CLOSED},
    CLOSED: {"sent": CLOSED, "got": CLOSED, "failed": CLOSED},
}

NO_STATUS = 1005            # stands for "a close frame without a code"; never on the wire
ABNORMAL = 1006             # stands for "the connection ended without a close frame"; never on the wire


def close_code_valid(code: int) -> bool:
    """True for the codes a peer may send (section 7.4, and 1012 to 1014 as registered since)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def close_payload(code: int, reason: str = "") -> bytes:
    """Code and reason as the payload of a close frame; the reason is cut at a character to fit in 125 bytes."""
    if code == NO_STATUS:
        return b""
    return code.to_bytes(2) + reason.encode()[:123].decode(errors="ignore").encode()


class WebSocket:
    """One end of an upgraded connection.  `mask` gives 4 random bytes per frame and makes this the client's end."""

    __slots__ = ("parser", "state", "outbox", "mask", "close_code", "close_reason", "congested", "late_pong",
                 "controls")

    def __init__(self, max_message: int, max_fragments: int = 1 << 17, mask: Callable[[], bytes] | None = None):
        self.parser = FrameParser(max_message, masked=mask is None, max_fragments=max_fragments)
        self.state = OPEN
        self.outbox: list[bytes] = []           # whole frames to be written, in order
        self.mask = mask
        self.close_code = ABNORMAL              # what the peer, or its fault, closed with
        self.close_reason = ""
        self.congested = False                  # set by the socket's owner while the peer does not read
        self.late_pong: bytes | None = None     # the one pong kept while congested (section 5.5.3 allows the latest)
        self.controls = 0                       # control frames received since take_controls()

    def receive(self, buffer: ReceiveBuffer, n: int, on_message: Callable[[int, memoryview], None]) -> None:
        """Call on_message(TEXT or BINARY, payload) for each message in the first `n` bytes of `buffer`.

        A payload dies with the call it is handed to.  Control frames are answered into the outbox.
        Raises ProtocolError with a close code.
        """
        self.parser.feed(buffer, n)
        self.parser.deliver(on_message, self.on_control)

    def receive_bytes(self, data: bytes) -> list[tuple[int, bytes]]:
        """The messages in `data`, copied: for the client's side and for tests."""
        found = []
        self.parser.feed_bytes(data)
        self.parser.deliver(lambda opcode, payload: found.append((opcode, bytes(payload))), self.on_control)
        return found

    def send(self, opcode: int, payload) -> None:
        """Queue a whole message.  Nothing is sent any more once the closing handshake has begun."""
        if self.state is OPEN:
            self._queue(opcode, payload)

    def ping(self, payload: bytes = b"") -> None:
        self.send(PING, payload)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Begin the closing handshake; the peer's close frame completes it."""
        if self.state is OPEN:
            self._queue(CLOSE, close_payload(code, reason))
            self._step("sent")

    def fail(self, error: ProtocolError) -> None:
        """The peer broke the protocol: tell it why and read nothing more (section 7.1.7)."""
        if self.state is OPEN:
            self._queue(CLOSE, close_payload(error.code, error.reason))
        self._step("failed")
        self.close_code, self.close_reason = error.code, error.reason

    def take_controls(self) -> int:
        """How many control frames came since the last time this was asked."""
        count, self.controls = self.controls, 0
        return count

    def uncongested(self) -> None:
        """The peer reads again: the latest ping that came meanwhile is answered."""
        self.congested = False
        if self.late_pong is not None:
            self.send(PONG, self.late_pong)
            self.late_pong = None

    def _queue(self, opcode: int, payload) -> None:
        mask = self.mask() if self.mask is not None else None
        self.outbox.append(build_frame(opcode, payload, True, mask))

    def _step(self, happened: str) -> None:
        self.state = TRANSITIONS[self.state][happened]
        self.parser.muted = True
        self.parser.stopped = self.state is CLOSED

    def on_control(self, opcode: int, payload: memoryview) -> None:
        """Answer a control frame into the outbox.  Raises ProtocolError for a close frame that is not one."""
        self.controls += 1
        if opcode == CLOSE:
            self._on_close(payload)
        elif opcode == PING and self.congested:
            self.late_pong = bytes(payload)
        elif opcode == PING:
            self.send(PONG, payload)

    def _on_close(self, payload: memoryview) -> None:
        if len(payload) == 1:
            raise ProtocolError(1002, "close frame of one byte")
        code = int.from_bytes(payload[:2]) if payload else NO_STATUS
        if payload and not close_code_valid(code):
            raise ProtocolError(1002, "close code not allowed")
        if not utf8_valid(payload[2:]):
            raise ProtocolError(1007, "close reason is not UTF-8")
        self.close_code, self.close_reason = code, str(payload[2:], "utf-8")
        if self.state is OPEN:
            self._queue(CLOSE, payload[:2])
        self._step("got")
