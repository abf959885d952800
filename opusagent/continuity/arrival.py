"""A connection that has come, until it is known whose call it brings.

It knows no registry and no shelf: `Continuity` (returning.py) does.  The rule: nothing that it says is lost meanwhile.
"""
import logging
from collections.abc import Callable

from .._fastpath import Wire
from ..calls.call import START_WITHIN
from .handover import VERSION
from .resumption import Resumable
from .tenure import Tenure, key_of

log = logging.getLogger("opusagent")

UNSAID = 8                      # messages without a word of which call it is, after which it is a new one
MOST_HELD = 512                 # messages that wait until a call is ours: more than in the longest wait there is


class Arrival:
    """A connection's session (see connection.py) until it is known whether its call is a new one; then that one's."""

    __slots__ = ("continuity", "connection", "dialect", "agent", "make", "session", "began", "held", "asks", "gone")

    def __init__(self, continuity, connection, dialect, agent: str, make: Callable):
        self.continuity = continuity
        self.connection = connection
        self.dialect = dialect
        self.agent = agent
        self.make = make
        self.session: Resumable | None = None
        self.began = connection.server.now          # ns
        self.held: list[tuple[int, bytes]] = []     # messages that came meanwhile
        self.asks = False
        self.gone = False

    def on_message(self, opcode: int, payload: memoryview) -> None:
        if self.session is not None:
            return self.session.on_message(opcode, payload)
        if len(self.held) < MOST_HELD:
            self.held.append((opcode, bytes(payload)))
        if not self.asks:
            name = self.dialect.came(opcode, payload)
            if name:
                self.ask(name)
            elif name is not None or len(self.held) >= UNSAID:
                self._begin(None, None)

    def drained(self) -> None:
        if self.session is not None:
            self.session.drained()

    def overdue(self, now: int) -> bool:
        return self.session.overdue(now) if self.session is not None else now - self.began > START_WITHIN

    def lost(self, code: int, reason: str) -> None:
        self.gone = True
        if self.session is not None:
            self.session.lost(code, reason)

    # -- whose call it is ----------------------------------------------------------------------------------------------

    def ask(self, name: str) -> None:
        """The platform means the call `name`."""
        continuity = self.continuity
        key = key_of(self.dialect.name, self.agent, self.connection.tenant, name)
        here = continuity.calls.get(key)
        if here is not None and self.dialect.resumes is not None:
            return self._begin(None, None)          # resumption.py: it has not ended here
        if here is not None and here.slot is not None:
            return self._begin(*continuity.displace(here))
        tenure = Tenure(continuity.registry, key, self.began)
        if continuity.claim(tenure):
            return self._begin(tenure, continuity.unshelve(tenure))
        self.asks = True
        continuity.task(self._ask(tenure))

    async def _ask(self, tenure: Tenure) -> None:
        state = await self.continuity.find(tenure)
        here = self.continuity.calls.get(tenure.key)        # over a connection that nobody could tell of this one
        if tenure.lost or here is not None and self.continuity.tenures[here].came > tenure.came:
            return self.connection.close(1000, "the conversation goes on elsewhere")
        if self.gone:
            return self.continuity.give_back(tenure, state)
        try:
            self.connection.server.tock()
            if here is not None and here.slot is not None:
                _, state = self.continuity.displace(here)
            self._begin(tenure, state)
        except Exception as error:
            self.connection.fault(error)

    def _begin(self, tenure: Tenure | None, state: dict | None) -> None:
        connection, server = self.connection, self.connection.server
        if state is not None and self.dialect.resumes is not None and not self.dialect.resumes(self.held[0][1]):
            state, tenure.written, tenure.anew = None, 0, True      # it begins a conversation of that name anew
        flow = server.studio.flows[self.agent]
        if state is not None and (state["version"] != VERSION or state["dialogue"][0] not in flow.states):
            log.warning("call %s cannot go on: its flow, or this program, is another one now", state["call"]["id"])
            state = None
        self.session = session = Resumable(server, connection, self.make, tenure, state)
        if state is not None:
            server.metrics.count("resumptions", outcome="moved here")
            log.info("call %s goes on here", state["call"]["id"])
        if connection.session is self:
            connection.session = session
            if isinstance(connection.wire, Wire):
                connection.wire.on_message = session.on_message
        held, self.held = self.held, []
        for opcode, payload in held:
            session.on_message(opcode, memoryview(payload))
        if tenure is not None and session.call.slot is not None:
            self.continuity.hold(session.call, tenure)
        elif tenure is not None and self.asks:
            self.continuity.leave(tenure)           # its platform has said nothing yet
