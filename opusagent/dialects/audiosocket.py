"""AudioSocket, Asterisk's older way: no WebSocket but messages on a TCP connection.  The bytes only; no row in TABLE.

    kind, one byte | length of the payload, two bytes, big-endian | payload
    0x00 hangup   0x01 UUID of the call, 16 bytes, the first message   0x03 DTMF, one character   0xFF error
    0x10 audio: 16-bit little-endian samples, mono, 8000 Hz; 0x11 to 0x18: the same at other rates

Asterisk plays what it is sent at once, without a clock of its own: it must come on time, 20 ms each, and nothing can be
taken back or asked about.  The dialplan's application knows 0x10 only, reads each header in one piece, and takes an
empty message or another kind for an error, so that is what we send: whole messages of 0x10, and 0x00 to hang up.
Uncertain: which releases tell keys (the application of before 2025 does not), and whether any sends an error.
The rule: audio at another rate ends the call by name; another kind of message is ignored and counted.
"""
from collections.abc import Iterator
from urllib.parse import SplitResult
from uuid import UUID as Uuid
from uuid import uuid4

from .. import ProtocolError
from .._fastpath import codes_of
from . import BINARY, Audio, Dialect, Dtmf, PlatformSide, Start, Stop, digit_of
from .channels import Channels

HANGUP, UUID, DTMF, AUDIO, ERROR = 0x00, 0x01, 0x03, 0x10, 0xFF
OTHER_RATES = range(0x11, 0x19)
HEAD = 3                        # bytes before the payload


def message(kind: int, payload: bytes = b"") -> bytes:
    return bytes((kind,)) + len(payload).to_bytes(2, "big") + payload


class Messages:
    """Bytes in pieces of any length, out as whole messages.  At most one of them, 65,538 bytes, is kept."""

    __slots__ = ("rest",)

    def __init__(self):
        self.rest = b""         # the beginning of a message

    def feed(self, data: bytes) -> Iterator[tuple[int, memoryview]]:
        """(kind, payload) of each that is whole; the payload dies with the next."""
        whole = memoryview(self.rest + data if self.rest else data)
        at = 0
        while (end := at + HEAD) <= len(whole):
            end += whole[at + 1] << 8 | whole[at + 2]
            if end > len(whole):
                break
            yield whole[at], whole[at + HEAD:end]
            at = end
        self.rest = bytes(whole[at:])


class AudioSocket(Dialect):
    """One call by AudioSocket, with the functions of a dialect; the opcode that it receives is a message's kind."""

    __slots__ = ("ignored", "outbox", "_channel", "_live", "_over")
    name = "audiosocket"
    opcode = BINARY
    rate = 8000
    lead_ms = 20
    max_message = 1 << 16

    def __init__(self, query: dict[str, str]):
        self.ignored = 0
        self.outbox: list[tuple[int, bytes]] = []
        self._channel = Channels("L16")
        self._live = False              # between the UUID and the end
        self._over = False

    def open(self) -> None:
        return None

    def receive(self, opcode: int, payload) -> Start | Audio | Dtmf | Stop | None:
        if opcode == AUDIO and self._live:
            return self._channel.decode(payload)
        if opcode in OTHER_RATES:
            raise ProtocolError(1008, "audiosocket: audio is slin at 8000 Hz here: leave out c(...), or say c(slin)")
        event = self._read(opcode, payload)
        self.ignored += event is None
        return event

    def _read(self, kind: int, payload) -> Start | Dtmf | Stop | None:
        if kind == UUID and not self._live and not self._over:
            if len(payload) != 16:
                raise ProtocolError(1007, "audiosocket: a UUID is 16 bytes")
            self._live = True
            return Start(str(Uuid(bytes=bytes(payload))))
        if kind == DTMF and self._live:
            digit = digit_of(str(payload, "latin-1"))
            return Dtmf(digit) if digit else None
        if kind in (HANGUP, ERROR) and self._live:
            self._live, self._over = False, True
            return Stop("" if kind == HANGUP else f"an error, {payload.hex()[:8]}")
        return None

    def audio(self, pcm) -> bytes:
        return message(AUDIO, codes_of(pcm, "L16"))

    def mark(self, name: str) -> None:
        return None

    def clear(self) -> None:
        return None

    def stop(self) -> bytes:
        return message(HANGUP)


class AudioSocketCaller(PlatformSide):
    """Asterisk's side: the application of its dialplan, at tcp://HOST:PORT.  A message's kind stands for the opcode."""

    __slots__ = ("call_id", "_channel")
    name = "audiosocket"
    rate = 8000

    def __init__(self, url: SplitResult | None = None):
        self.call_id = str(uuid4())
        self._channel = Channels("L16")

    def open(self) -> list[tuple[int, bytes]]:
        return [(UUID, Uuid(self.call_id).bytes)]

    def audio(self, pcm) -> tuple[int, bytes]:
        return AUDIO, codes_of(pcm, "L16")

    def dtmf(self, digit: str) -> tuple[int, bytes]:
        return DTMF, digit.encode()

    def mark(self, name: str) -> None:
        """Nothing can be asked about."""

    def stop(self) -> tuple[int, bytes]:
        return HANGUP, b""

    def receive(self, opcode: int, payload) -> Audio | Stop | None:
        if opcode == HANGUP:
            return Stop()
        if opcode != AUDIO or not payload:
            raise ProtocolError(1008, "audiosocket: a message that Asterisk's application takes for an error")
        return self._channel.decode(payload)
