"""Sessions that give back what they get: for conformance, for latency, and for what the transport alone costs.

They hold no conversation, no slot and no engine.  The rule: one message out for one in, at once, without pacing.
"""
from .. import ProtocolError
from .._fastpath import Mirror, Wire
from ..dialects import Audio, Stop
from .outbound import send_answers


class EchoSession:
    """/ws/echo: every message back unchanged.  It reads on only when what it sent is out."""

    def __init__(self, connection):
        wire = connection.wire
        self.on_message = wire.send
        wire.lockstep = True
        if isinstance(wire, Wire):
            wire.intake = Mirror(wire)              # the same, for messages that came in one piece

    def drained(self) -> None:
        """Nothing waits here: the wire itself holds back what the peer has not taken."""

    def overdue(self, now: int) -> bool:
        return False

    def lost(self, code: int, reason: str) -> None:
        """Nothing is left to undo."""


class EchoCall:
    """The agent `echo`: the caller's audio back through the whole decode and encode path, at the dialect's own rate."""

    def __init__(self, server, connection, dialect, agent: str):
        self.connection = connection
        self.dialect = dialect
        connection.wire.lockstep = True
        dialect.open()
        if dialect.audio is None:
            raise ProtocolError(1008, "this dialect has no audio that could be given back")

    def on_message(self, opcode: int, payload: memoryview) -> None:
        dialect = self.dialect
        event = dialect.receive(opcode, payload)
        message = dialect.audio(event.pcm) if event.__class__ is Audio else None
        if dialect.outbox:
            send_answers(self.connection, dialect)
        if message is not None:
            self.connection.wire.send(dialect.opcode, message)
        elif event.__class__ is Stop:
            self.connection.close(1000)

    def drained(self) -> None:
        """Nothing waits here."""

    def overdue(self, now: int) -> bool:
        return False

    def lost(self, code: int, reason: str) -> None:
        """Nothing is left to undo."""
