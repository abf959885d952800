"""Calls that outlive their connection, their worker and their node: one that comes back goes on where it was.

A platform that has lost its connection dials again and says which call it means (`came` and `token` of a dialect).
What was committed of that call lies in the registry (Redis), for all nodes, and on the shelf, for the workers of this
one, when its connection has ended, or another worker has asked for it.  The rules: a call that nobody has begun begins
as if there were neither; a conversation is given only to who comes with the same account's credentials, to the same
agent and in the same dialect; and a worker that has lost a call to another says nothing more on it.
"""
import asyncio
import logging
import os
import time
from collections.abc import Callable

import orjson

from .._fastpath import Wire
from ..calls.call import Call
from .arrival import Arrival
from .handover import committed
from .registry import Registry, Taken
from .resumption import SECOND, Resumable, cut, tenure_of
from .shelf import NOBODY, Shelf, lives
from .tenure import Tenure

log = logging.getLogger("opusagent")

SHELF = Shelf()                 # all workers': they are forked after this
PUT_DOWN_SECONDS = 8.0          # for another worker to put a call down: longer than one that hangs is let live
DEAD_SECONDS = 2.0              # ... for the one that takes a dead one's place
LOOK_SECONDS = 0.005            # between two looks at whether it has


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
        self.worker = os.getpid()                   # what we are on the shelf
        self.rung = shelf.rung(self.worker)
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
        tenure.marked = tenure.marked or self.shelf.mark(tenure.name, self.worker)
        if tenure.epoch:
            self.registry.leases[tenure.key] = tenure.owner, tenure.epoch

    def adopt(self, call: Call, state: list) -> None:
        """It was another worker's, which is gone; its connection is ours."""
        tenure = Tenure(self.registry, state[0])
        tenure.owner, tenure.epoch, tenure.number, tenure.written, tenure.anew = state[1:]
        if self.registry is None:
            tenure.epoch = 0
        call.line.tenure = tenure
        tenure.marked = self.shelf.inherit(tenure.name, self.worker)
        self.hold(call, tenure)

    def gone(self, state: list) -> bool:
        """Whether a call that was another worker's has gone on elsewhere since that one died."""
        owner, holder = self.shelf.whose(bytes.fromhex(state[0]))
        return owner != self.worker and holder == NOBODY and lives(owner)

    def moves(self, call: Call) -> None:
        """It goes on in another worker, on its connection."""
        if (tenure := self.tenures.get(call)) is not None:
            self.shelf.leave(tenure.name, self.worker, moves=True)
            tenure.marked = False

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
        line.session.server.waiting.discard(line.session)
        call.lost(1000, "")
        return tenure, state

    @property
    def asks_redis(self) -> bool:
        return self.registry is not None and self.registry.up

    def claim(self, tenure: Tenure) -> bool:
        """True where nobody has to be asked for the call: it is ours."""
        return not self.asks_redis and self.shelf.claim(tenure.name, self.worker) == NOBODY

    async def find(self, tenure: Tenure) -> dict | None:
        """Where the call stands that may have begun elsewhere; None if it has not.  When this returns it is ours, or
        lost to another who has come meanwhile."""
        taken = await self.registry.take(tenure.key, tenure.owner, tenure.came) if self.asks_redis else None
        if taken is None:
            tenure.lost = not await self._put_down(tenure.name)
            return None if tenure.lost else self.unshelve(tenure)
        self.shelf.take(tenure.name, self.clock())
        tenure.epoch, tenure.lost = taken.epoch, taken.lost
        return state_of(tenure, taken)

    async def _put_down(self, name: bytes) -> bool:
        """No other worker of this node does anything on the call any more.  False where another one wants it by now, or
        where the one that has it does not say so in time."""
        holder = self.shelf.claim(name, self.worker)
        asked = lived = self.clock()
        while holder != NOBODY:
            now = self.clock()
            lived = now if lives(holder) else lived
            if now - asked > PUT_DOWN_SECONDS * SECOND:
                self.shelf.leave(name, self.worker)
                return False
            if now - lived > DEAD_SECONDS * SECOND or now != lived and self.shelf.has(name, now):
                break                               # nobody has taken the place of the one that is dead
            await asyncio.sleep(LOOK_SECONDS)
            owner, holder = self.shelf.whose(name)
            if owner != self.worker:
                return False
        return True

    def unshelve(self, tenure: Tenure) -> dict | None:
        """Where a call stands that has lost its connection in this node, for us to go on with."""
        written = self.shelf.take(tenure.name, self.clock())
        return orjson.loads(written) if written is not None else None

    def give_back(self, tenure: Tenure, state: dict | None) -> None:
        """The platform has gone before its call could go on; it may come once more."""
        if tenure.epoch:                            # then it need not wait for us
            self.registry.release(tenure.key, tenure.owner, tenure.epoch)
        elif state is not None:
            self._lay(tenure, state)
        self.leave(tenure)

    # -- who is here ---------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """At every tick: another worker may want a call of ours, or have it already."""
        rung = self.shelf.rung(self.worker)
        if rung == self.rung:
            return
        self.rung = rung
        for call, tenure in list(self.tenures.items()):
            if not tenure.marked or tenure.lost:
                continue
            owner, holder = self.shelf.whose(tenure.name)
            if owner == self.worker:
                continue
            if owner != NOBODY and holder != self.worker:
                self.lost(tenure.key)
            elif call.slot is not None:
                self._hand_over(call, tenure)

    def _hand_over(self, call: Call, tenure: Tenure) -> None:
        """Another worker goes on with it; where it does not want it any more, its platform comes again."""
        self._tell_lost(call)
        if not self._over(call):
            self._shelve(call, tenure)
        self.displace(call)
        self.shelf.leave(tenure.name, self.worker)

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
            self.shelf.take(tenure.name, now)
        elif waits and not self.shelf.has(tenure.name, now):
            return self.lost(tenure.key)
        tenure.told = ("on the shelf",) if waits else ()

    def _shelve(self, call: Call, tenure: Tenure) -> None:
        self._lay(tenure, committed(call) | {"receipts": call.ledger.receipts})

    def _lay(self, tenure: Tenure, state: dict) -> None:
        now = self.clock()
        self.shelf.put(tenure.name, orjson.dumps(state), now + self.life_ns, now)

    def leave(self, tenure: Tenure) -> None:
        """We do nothing more on a call; unless it goes on here, over another connection."""
        if tenure.key not in self.calls:
            self.shelf.leave(tenure.name, self.worker)

    def _over(self, call: Call) -> bool:
        """Nobody can go on with the conversation."""
        return call.done or not call.dialect.resumable or not self.life_ns

    def ended(self, call: Call) -> None:
        """Its connection is over here: so is the conversation, or its platform comes back."""
        tenure = self._forget(call)
        if tenure is None:
            return
        if not tenure.lost:
            self._settle(call, tenure)
        self.leave(tenure)

    def _settle(self, call: Call, tenure: Tenure) -> None:
        """What is kept of a call of ours whose connection is over."""
        until = call.line.session.until         # nobody came, though it was waited for
        over = self._over(call) or 0 < until < self.clock()
        if over:
            self.shelf.take(tenure.name, self.clock())
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
        self._tell_lost(call)
        if call.slot is not None:
            cut(call)
        call.connection.close(1000, "the conversation goes on elsewhere")

    def _tell_lost(self, call: Call) -> None:
        self.metrics.count("resumptions", outcome="taken elsewhere")
        log.info("call %s goes on elsewhere", call.id)


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
