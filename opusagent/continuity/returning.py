"""Calls that outlive their connection, their worker and their node: one that comes back goes on where it was.

A platform that has lost its connection dials again and says which call it means (`came` and `token` of a dialect).
What was committed of that call lies in the registry (Redis), for all nodes, and on the shelf, for the workers of this
one, when its connection has ended.  The rules: a call that nobody has begun begins as if there were neither; a
conversation is given only to who comes with the same account's credentials, to the same agent and in the same dialect;
and a worker that has lost a call to another says nothing more on it.
"""
import asyncio
import logging
import time
from collections.abc import Callable
from hashlib import blake2b

import orjson

from .._fastpath import Wire
from ..calls.call import START_WITHIN, Call
from .handover import VERSION, committed
from .registry import Registry, Taken
from .resumption import SECOND, Resumable, cut, tenure_of
from .shelf import Shelf

log = logging.getLogger("opusagent")

SHELF = Shelf()                 # all workers': they are forked after this
UNSAID = 8                      # messages without a word of which call it is, after which it is a new one
MOST_HELD = 512                 # messages that wait for Redis to answer: more than in the longest wait there is


class Tenure:
    """By what a call is ours."""

    __slots__ = ("registry", "key", "came", "owner", "epoch", "number", "written", "told", "anew", "asks", "lost")

    def __init__(self, registry: Registry | None, key: str, came: int = 0):
        self.registry = registry            # None: there is no other node
        self.key = key
        self.came = came                    # ns: when its platform came here with it
        self.owner = registry.new_owner() if registry is not None else ""
        self.epoch = 0                      # of the lease; 0: the registry does not know of the call yet
        self.number = 0                     # entries that were committed
        self.written = 0                    # receipts in them
        self.told: tuple = ()               # what the last one is of
        self.anew = False                   # the stream holds another conversation
        self.asks = False                   # the lease is being taken
        self.lost = False                   # another has the call

    def muted(self, line) -> bool:
        """True while another may speak on the call.  Where the registry cannot say, the one may whom its platform
        talks to."""
        registry = self.registry
        if self.lost or registry is None:
            return self.lost
        if self.epoch and registry.sure():
            return False
        return registry.stands or not line.there(registry.clock(), registry.patience_ns)

    @property
    def state(self) -> list:
        """For another worker, which goes on with the same connection."""
        return [self.key, self.owner, self.epoch, self.number, self.written, self.anew]


def key_of(dialect: str, agent: str, tenant: str, name: str) -> str:
    """Of a call; nobody can tell from it what the call is."""
    return blake2b(orjson.dumps([dialect, agent, tenant, name]), digest_size=16).hexdigest()


def concerns(dialect) -> bool:
    """Whether the platform of a dialect may come back."""
    return bool(dialect.token) or dialect.came is not None


def meet(server, connection, dialect, agent: str, make: Callable):
    """The session of a connection that has come; `make(line)` is a call."""
    if server.continuity is not None and concerns(dialect):
        return server.continuity.meet(connection, dialect, agent, make)
    return Resumable(server, connection, make) if dialect.resumes is not None else make(connection)


class Continuity:
    """A worker's.  Without a registry there are the shelf and the worker itself."""

    def __init__(self, registry: Registry | None, metrics, resume_seconds: float, shelf: Shelf = SHELF,
                 clock: Callable[[], int] = time.monotonic_ns):
        self.registry = registry
        self.metrics = metrics
        self.shelf = shelf
        self.clock = clock
        self.life_ns = int(resume_seconds * SECOND)
        self.calls: dict[str, Call] = {}            # those here, by key
        self.tenures: dict[Call, Tenure] = {}
        self._tasks: set[asyncio.Task] = set()
        if registry is not None:
            registry.on_lost, registry.on_back = self.lost, self.tell_again

    def task(self, work) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- who comes -----------------------------------------------------------------------------------------------------

    def meet(self, connection, dialect, agent: str, make: Callable):
        arrival = Arrival(self, connection, dialect, agent, make)
        if token := dialect.token:
            arrival.ask(token)
        return arrival.session or arrival

    def hold(self, call: Call, tenure: Tenure) -> None:
        """The call has begun, and is ours."""
        self.calls[tenure.key] = call
        self.tenures[call] = tenure
        if tenure.epoch:
            self.registry.leases[tenure.key] = tenure.owner, tenure.epoch

    def adopt(self, call: Call, state: list) -> None:
        """It was another worker's, which is gone; its connection is ours."""
        tenure = Tenure(self.registry, state[0])
        tenure.owner, tenure.epoch, tenure.number, tenure.written, tenure.anew = state[1:]
        if self.registry is None:
            tenure.epoch = 0
        call.line.tenure = tenure
        self.hold(call, tenure)

    def displace(self, call: Call) -> tuple[Tenure, dict]:
        """A call of ours goes on over another connection, before this one has ended."""
        tenure = self._forget(call)
        tenure.came = self.clock()
        state = committed(call) | {"receipts": call.ledger.receipts}
        cut(call)
        line = call.line
        connection, line.connection = line.connection, None
        if connection is not None:
            connection.session = None
            if isinstance(connection.wire, Wire):
                connection.wire.intake = None       # what still comes is nobody's
            connection.close(1000, "the conversation goes on over another connection")
        call.lost(1000, "")
        return tenure, state

    async def find(self, key: str, tenure: Tenure) -> dict | None:
        """Where the call stands that may have begun elsewhere; None if it has not.  When this returns it is ours, or
        lost to another who has come meanwhile."""
        taken = await self.registry.take(key, tenure.owner, tenure.came)
        on_shelf = self.shelf.take(bytes.fromhex(key), self.clock())
        if taken is None:
            return self.read(on_shelf)
        tenure.epoch, tenure.lost = taken.epoch, taken.lost
        return state_of(tenure, taken)

    @staticmethod
    def read(written: bytes | None) -> dict | None:
        return orjson.loads(written) if written is not None else None

    # -- who is here ---------------------------------------------------------------------------------------------------

    def keep(self, call: Call, now: int) -> None:
        """Something has happened to a call: what has been committed is written."""
        tenure = tenure_of(call)
        if tenure is None or tenure.lost:
            return
        if call not in self.tenures:
            self.hold(call, tenure)
        if self.registry is None:
            self._waits(call, tenure, now)
        elif tenure.epoch:
            told = call.dialogue.turn, call.dialogue.part, len(call.ledger.receipts)
            if told != tenure.told and not call.transaction.revocable:
                tenure.told = told
                self._commit(call, tenure)
        elif self.registry.up and not tenure.asks:
            tenure.asks = True
            self.task(self._register(tenure))
        if call.mouth.out.late and not call.connection.congested:
            call.drained()                  # what was held back while nobody knew whose the call is

    async def _register(self, tenure: Tenure) -> None:
        """The call began when Redis did not answer, or needed no answer."""
        taken = await self.registry.take(tenure.key, tenure.owner, tenure.came)
        tenure.asks = False
        call = self.calls.get(tenure.key)       # which may have gone on over another connection meanwhile
        if taken is None or self.tenures.get(call) is not tenure:
            return
        if taken.lost:
            self.lost(tenure.key)
        elif taken.epoch:
            tenure.epoch, tenure.anew, tenure.written = taken.epoch, bool(taken.entries), 0
            self.hold(call, tenure)

    def _commit(self, call: Call, tenure: Tenure, silent: bool = False) -> None:
        receipts = call.ledger.receipts
        tenure.number += 1
        self.registry.commit(tenure.key, tenure.owner, tenure.epoch, tenure.number, orjson.dumps(committed(call)),
                             orjson.dumps(receipts[tenure.written:]), tenure.anew, silent)
        tenure.written, tenure.anew = len(receipts), False

    def tell_again(self) -> None:
        """Redis may know nothing any more: with the next thing that happens to a call it is told all of it."""
        for tenure in self.tenures.values():
            tenure.told, tenure.written, tenure.anew = (), 0, True

    def move(self) -> None:
        """This node ends: calls with which another can go on are given back to their platforms, which dial again."""
        for call, tenure in list(self.tenures.items()):
            if tenure.epoch and self.registry.up and not tenure.lost and not call.done:
                call.connection.close(1012, "the call goes on at another node")

    def _waits(self, call: Call, tenure: Tenure, now: int) -> None:
        """A call without a connection lies on the shelf as well: another worker may have taken it."""
        waits, shelved = bool(call.line.session.until), bool(tenure.told)
        if waits and not shelved:
            self._shelve(call, tenure)
        elif shelved and not waits:
            self.shelf.take(bytes.fromhex(tenure.key), now)
        elif waits and not self.shelf.has(bytes.fromhex(tenure.key), now):
            return self.lost(tenure.key)
        tenure.told = ("on the shelf",) if waits else ()

    def _shelve(self, call: Call, tenure: Tenure) -> None:
        state = committed(call) | {"receipts": call.ledger.receipts}
        now = self.clock()
        self.shelf.put(bytes.fromhex(tenure.key), orjson.dumps(state), now + self.life_ns, now)

    def ended(self, call: Call) -> None:
        """Its connection is over here: so is the conversation, or its platform comes back."""
        tenure = self._forget(call)
        if tenure is None or tenure.lost:
            return
        until = call.line.session.until         # nobody came, though it was waited for
        over = call.done or not call.dialect.resumable or not self.life_ns or 0 < until < self.clock()
        if over:
            self.shelf.take(bytes.fromhex(tenure.key), self.clock())
        else:
            self._shelve(call, tenure)
        if tenure.epoch and over:
            self.registry.end(tenure.key, tenure.owner, tenure.epoch)
        elif tenure.epoch:
            self._commit(call, tenure, silent=True)

    def _forget(self, call: Call) -> Tenure | None:
        tenure = self.tenures.pop(call, None)
        if tenure is not None:
            if self.calls.get(tenure.key) is call:
                del self.calls[tenure.key]
            if self.registry is not None:
                self.registry.leave(tenure.key)
        return tenure

    def lost(self, key: str) -> None:
        """Another has the call: nothing more is said here."""
        call = self.calls.get(key)
        if call is None:
            return
        self.tenures[call].lost = True
        self.metrics.count("resumptions", outcome="taken elsewhere")
        log.info("call %s goes on elsewhere", call.id)
        if call.slot is not None:
            cut(call)
        call.connection.close(1000, "the conversation goes on elsewhere")


def state_of(tenure: Tenure, taken: Taken) -> dict | None:
    """What the entries of a stream come to.  One that was sent twice counts once."""
    turns: dict[int, list] = {}
    newest, state = 0, None
    for number, written, receipts in taken.entries:
        turns[number] = orjson.loads(receipts)
        if number >= newest:
            newest, state = number, written
    if state is None:
        return None
    receipts = [receipt for number in sorted(turns) for receipt in turns[number]]
    tenure.number, tenure.written = newest, len(receipts)
    return orjson.loads(state) | {"receipts": receipts}


class Arrival:
    """A connection's session (see connection.py) until it is known whether its call is a new one; then that one's."""

    __slots__ = ("continuity", "connection", "dialect", "agent", "make", "session", "began", "held", "asks", "gone")

    def __init__(self, continuity: Continuity, connection, dialect, agent: str, make: Callable):
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
        if continuity.registry is None or not continuity.registry.up:
            return self._begin(tenure, continuity.read(continuity.shelf.take(bytes.fromhex(key), continuity.clock())))
        self.asks = True
        continuity.task(self._ask(key, tenure))

    async def _ask(self, key: str, tenure: Tenure) -> None:
        state = await self.continuity.find(key, tenure)
        here = self.continuity.calls.get(key)       # over another connection, if Redis could not tell it of this one
        if tenure.lost or here is not None and self.continuity.tenures[here].came > tenure.came:
            return self.connection.close(1000, "the conversation goes on elsewhere")
        if self.gone:
            if tenure.epoch:                        # the platform may come once more: then it need not wait for us
                self.continuity.registry.release(key, tenure.owner, tenure.epoch)
            return
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
