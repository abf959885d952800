"""Calls that outlive their connection: a platform that can comes back on a new one and goes on where it was.

Only dialects that say so (`resumes`, `resumable`) have sessions of this kind.  While nobody is there the agent says
nothing, hears nothing and asks nobody why they are silent; what it was saying, it says again.  The rule: a conversation
is given only to who comes with the same account's credentials and to the same agent, and to nobody after
`net.resume_seconds`.
"""
import logging

from .. import ProtocolError
from ..calls import journal
from ..calls.call import Call
from ..calls.journal import entry
from ..dialects import TEXT

log = logging.getLogger("opusagent")

SECOND = 1_000_000_000


class Line:
    """What a call takes for its connection: the one that there is at the moment, or nobody."""

    __slots__ = ("connection", "session", "tenant", "tenure", "earlier")

    def __init__(self, connection, tenure=None, earlier: dict | None = None):
        self.connection = connection            # None while nobody is there
        self.tenure = tenure                    # by which the call is ours (tenure.py); None: nobody asks
        self.earlier = earlier                  # where the conversation stood when it was held elsewhere
        self.session: Resumable | None = None   # until it is over
        self.tenant = connection.tenant

    @property
    def congested(self) -> bool:
        if self.tenure is not None and self.tenure.muted(self):
            return True                         # until it is known again that nobody else speaks
        return self.connection is not None and self.connection.congested

    def there(self, now: int, patience: int) -> bool:
        """The platform talks to us: something has come within `patience` ns, or it need not, or has not begun to."""
        connection, call = self.connection, getattr(self.session, "call", None)
        if connection is None:
            return False
        return now - connection.heard <= patience or call is None or call.slot is None or \
            call.excused > call.slot.written

    @property
    def rtt_ns(self) -> int:
        return self.connection.rtt_ns if self.connection is not None else 0

    def send(self, opcode: int, payload) -> bool:
        return self.connection is None or self.connection.send(opcode, payload)

    def close(self, code: int = 1000, reason: str = "") -> None:
        if self.connection is not None:
            self.connection.close(code, reason)
        elif self.session is not None:
            self.session.gone(code, reason)

    def fault(self, error: Exception) -> None:
        if self.connection is not None:
            return self.connection.fault(error)
        if not isinstance(error, ProtocolError):
            log.exception("a call without a connection ended by an error of ours", exc_info=error)
        self.close(1011)


class Resumable:
    """A session of a connection (see connection.py), and of those that follow it."""

    __slots__ = ("server", "line", "call", "again", "until", "moved")

    def __init__(self, server, connection, make, tenure=None, earlier: dict | None = None):
        """`make(line)` is the call."""
        self.server = server
        self.line = Line(connection, tenure, earlier)
        self.line.session = self
        self.again = False                      # the agent was cut short, or owed an answer
        self.until = 0                          # ns: until when somebody may come back; 0: somebody is there
        self.moved: Resumable | None = None     # the session that this connection has gone on with
        self.call: Call = make(self.line)

    # -- from the connection -------------------------------------------------------------------------------------------

    def on_message(self, opcode: int, payload: memoryview) -> None:
        if self.moved is not None:
            return self.moved.call.on_message(opcode, payload)
        if self.call.slot is None and self.call.dialect.resumes is not None and self.line.earlier is None and (
                name := self.call.dialect.resumes(payload)):
            earlier = self._earlier(name)
            if earlier is not None:
                self.moved, connection = earlier, self.line.connection
                self._ends(1000, "")
                return earlier.move(connection, opcode, payload)
        self.call.on_message(opcode, payload)

    def drained(self) -> None:
        self.call.drained()

    def overdue(self, now: int) -> bool:
        return self.call.overdue(now)

    def lost(self, code: int, reason: str) -> None:
        """The connection is over; the call may not be."""
        call, seconds = self.call, self.server.config.net.resume_seconds
        waits = call.dialect.resumes is not None and call.dialect.resumable and not (
            self.line.tenure is not None and self.line.tenure.lost)
        if call.slot is None or call.done or not waits or not seconds or self.server.draining:
            return self._ends(code, reason)
        self.line.connection = None
        self.until = self.server.now + int(seconds * SECOND)
        self.server.waiting.add(self)
        self.server.metrics.count("resumptions", outcome="awaited")
        log.info("call %s: its connection ended with code %d; it waits %g s for another", call.id, code, seconds)
        self._cut()
        if self.line.tenure is not None:        # it may come to another worker, at once
            self.server.continuity.keep(call, self.server.now)

    # -- on another one ------------------------------------------------------------------------------------------------

    def _earlier(self, name: str) -> "Resumable | None":
        """The session of the conversation `name`, if whoever has come may go on with it."""
        found = getattr(getattr(self.server.calls.get(name), "connection", None), "session", None)
        if isinstance(found, Resumable) and found.line.tenant == self.line.tenant \
                and found.call.flow is self.call.flow and found.call.dialect.resumable and not found.call.done:
            return found
        return None

    def move(self, connection, opcode: int, payload: memoryview) -> None:
        """Go on over `connection`, whose first message this is; the one before is closed, if it has not noticed."""
        before = self.line.connection
        if before is not None:
            before.session = None
            before.close(1000, "the conversation goes on over another connection")
            self._cut()
        self.server.waiting.discard(self)
        self.server.metrics.count("resumptions", outcome="resumed")
        log.info("call %s goes on over a new connection", self.call.id)
        self.line.connection, self.until = connection, 0
        connection.session = self
        self.call.on_message(opcode, payload)
        again, self.again = self.again, False
        back(self.call, again)

    def _cut(self) -> None:
        connection, self.line.connection = self.line.connection, None
        self.again |= busy(self.call)
        cut(self.call)
        if (message := self.call.dialect.paused()) is not None:
            self.call.on_message(TEXT, memoryview(message))
        self.line.connection = connection

    def sweep(self, now: int) -> None:
        if now > self.until:
            self.gone(1006, "nobody came back to it")

    def gone(self, code: int, reason: str) -> None:
        """The call is over, too."""
        self.server.waiting.discard(self)
        self.server.metrics.count("resumptions", outcome="given up")
        self._ends(code, reason)

    def _ends(self, code: int, reason: str) -> None:
        self.call.lost(code, reason)
        self.line.session = None                # it leads to us, and we to it


def tenure_of(call: Call):
    """By what a call is ours (tenure.py); None: nobody asks."""
    return call.line.tenure if isinstance(call.line, Line) else None


def busy(call: Call) -> bool:
    """True while the agent speaks, or owes an answer."""
    return call.mouth.turn is not None or bool(call.ear.final_by)


@entry(journal.CUT)
def cut(call: Call) -> None:
    """Nobody is there any more: the agent stops, and what was being heard is dropped."""
    if call.mouth.turn is not None:
        call.stop_talking("line lost")
    call.mouth.forget()
    call.ear.listen_no_more()
    call.ledger.finish("line lost")
    call.follow(call.turns.agent_done())


@entry(journal.BACK)
def back(call: Call, again: bool) -> None:
    """Somebody is there again; `again`: the agent says once more what it says in this state."""
    if again:
        call.reply(call.dialogue.begin())
