"""What a call whose messages must come once takes for its connection: nothing goes out before its state is kept.

An event of the Realtime protocol has an id, and words that are sent to be spoken are spoken; so another worker must
know of each message whether the peer has it.  What is sent in one
callback waits for its end, when the call is whole; then the state is kept with these messages in it, then they go out,
one after the other, and each is counted in the slot.  The rule: a worker may die anywhere in between, in the midst of
a write, too, and the next one sends what is left: the kernel knows what it has taken.
"""
import asyncio
from collections import deque
from collections.abc import Callable

from .._fastpath import build_frame, bytes_written

MOST = 8                        # messages that wait, beyond which no audio is added to them


class WriteAhead:
    """`keep(call)` keeps the state of a call and says whether another worker could go on with it."""

    __slots__ = ("connection", "keep", "call", "waiting", "_scheduled")

    def __init__(self, connection, keep: Callable):
        self.connection = connection
        self.keep = keep
        self.call = None                    # set when it is made
        self.waiting: deque[tuple[int, bytes]] = deque()
        self._scheduled = False

    def __getattr__(self, name):
        return getattr(self.connection, name)

    @property
    def congested(self) -> bool:
        return self.connection.congested or len(self.waiting) >= MOST

    def send(self, opcode: int, payload) -> bool:
        self.waiting.append((opcode, bytes(payload)))
        self.soon()
        return True

    def soon(self) -> None:
        """Something has happened that another worker must know of: it is kept when this callback is over."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        try:
            self.flush()
        except Exception as error:
            self.connection.fault(error)

    def flush(self) -> None:
        call, waiting = self.call, self.waiting
        full = len(waiting) >= MOST
        counts = call is not None and call.slot is not None and self.keep(call)
        gone = 0
        if counts and waiting:
            call.slot.goes(bytes_written(self.connection.wire.fd))
        while waiting:
            self.connection.send(*waiting[0])
            waiting.popleft()
            gone += 1
            if counts:
                call.slot.gone = gone
        if full and call is not None and not self.connection.congested:
            call.drained()

    def kept(self) -> list[list]:
        """What waits, as JSON can hold it."""
        return [[opcode, payload.decode()] for opcode, payload in self.waiting]

    def resume(self, kept: list[list], slot) -> None:
        """Another worker was about to send these."""
        messages = [(opcode, text.encode()) for opcode, text in kept]
        gone, wire = slot.gone, self.connection.wire
        if messages and slot.wrote >= 0 and gone < len(messages) and (now := bytes_written(wire.fd)) >= 0:
            frames = [build_frame(*message) for message in messages]
            whole, rest = taken(frames, now - slot.wrote)
            if wire.backlog:                # what was not taken of the last one stands in the framing
                gone = max(gone, whole + bool(rest))
            else:
                gone = whole + bool(rest)
                if rest:
                    wire.write(frames[whole][-rest:])
        self.waiting.extend(messages[gone:])
        self.soon()

    def close(self, code: int = 1000, reason: str = "") -> None:
        self.flush()
        self.connection.close(code, reason)

    def fault(self, error: Exception) -> None:
        self.flush()
        self.connection.fault(error)


def taken(frames: list[bytes], count: int) -> tuple[int, int]:
    """How many of the frames lie whole in the first `count` bytes, and how many bytes are left of one that is cut."""
    whole = 0
    for frame in frames:
        if count < len(frame):
            return whole, len(frame) - count if count > 0 else 0
        count -= len(frame)
        whole += 1
    return whole, 0
