"""One worker: its listening sockets, its connections and calls, its clock tick.

It parses nothing and decides nothing about a conversation.  The rule: everything a call needs is made before the
worker listens, so that no call ever waits for a model, a file or an import.
"""
import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial

from .. import ProtocolError
from .._fastpath import EpollSet, Pacer, ReceiveBuffer
from ..board import Board, Seat
from ..calls.call import Call
from ..calls.departure import Departures
from ..config import Config
from ..continuity.resumption import Resumable
from ..dialects import Start
from ..metrics import Metrics
from ..studio.studio import Studio
from ..tally import Tally
from ..transport.audiosocket import AudioSocketConnection
from ..transport.connection import Connection
from ..transport.door import Door, Pending, Turnstile
from ..transport.loop import attach, detach
from . import garbage, notices, stalls
from .admission import Admission, Memory
from .archive import Archive, kept
from .gate import Gate
from .limits import Limits
from .pulse import Pulse
from .routes import Routes

log = logging.getLogger("opusagent")

TICK_NS = 5_000_000             # pacing of speech and the calls' deadlines, while there are calls
SWEEP_NS = 250_000_000          # between two looks at a connection's deadlines, two signs of life, and two idle ticks
SWEPT = 64                      # connections looked at in one tick, at least,
SWEPT_IDLE = 256                # ... and while there are no calls, for a tick costs more than its looks
TIDY_NS = 1_000_000_000         # between two collections of garbage, and looks at the load
LONGEST_ID = 1000               # of a call that another worker is asked about
WARN_EVERY_NS = 1_000_000_000   # between two warnings of slow wake-ups
KEPT_CALLS = 256                # records of ended calls kept for GET /calls/<id>
MOVING_NS = 2_000_000_000       # for platforms to take back what another node goes on with
PARTING_NS = 10_000_000_000     # for the last words to callers whose calls must end


class Server:
    """A worker.  `start` listens, `drain` refuses new calls and waits for the live ones, `stop` ends it.

    Without a board it is alone.
    """

    def __init__(self, config: Config, studio: Studio, metrics: Metrics, board: Board | None = None,
                 seat: Seat | None = None, keeper=None):
        self.config = config
        self.studio = studio                        # what calls are made with: flow, engines, arena, prompts
        self.metrics = metrics
        self.gate = Gate(config, metrics.count)     # who may come in
        self.routes = Routes(self)                  # what they may ask for
        self.departures = Departures(config, metrics)   # how calls are handed over
        self.board, self.seat = board, seat         # what all workers know of one another, and our place there
        self.keeper = keeper                        # takeover.Keeper: of what another worker needs for our calls
        self.continuity = keeper and keeper.continuity      # for calls that come back
        self.buffer = ReceiveBuffer(65536)          # every connection of the worker receives into it
        self.view = self.buffer.view
        self.epoll = EpollSet(self.buffer, metrics.frames, on_slow=self._slow)
        self.pacer = Pacer()                        # what goes out of the calls by itself
        self.connections: set[Connection] = set()
        self.calls: dict[str, Call] = {}            # by call id
        self.waiting: set[Resumable] = set()        # of them those whose connection has ended
        self.records: deque[dict] = deque(maxlen=KEPT_CALLS)    # of ended calls, newest last
        self.draining = False
        self.broken = ""                            # a sentence: why no call can be served
        self.tuning: tuple = ()                     # what net.tune reported last
        self.clock: Callable[[], int] = time.monotonic_ns
        self.started = self.tock()
        self._warned = 0                            # ns: when a slow wake-up was last warned of
        self.admission = Admission(self)            # whether there is room for new calls
        tally = board.tally if board else Tally(1, config.max_calls + 1)
        self.limits = Limits(config.limits, metrics, tally, board.seats.index(seat) if board else 0)
        self._timer: asyncio.TimerHandle | None = None
        self._next_tick = self._next_sweep = self._next_tidying = self.now
        self._unswept: list = []                    # connections that this sweep has still to look at
        self._doors: list[Door] = []
        self.pending = Pending(Connection.give_way)     # connections that have not yet said what they want
        self.turnstile = Turnstile()                # for what was let in and has not begun: calls, pages
        self.pulse = Pulse(self.now)                # for the supervisor
        self.archive: Archive | None = None         # made by begin(), where calls are kept
        self.notices: notices.Notices | None = None     # ... and where somebody is told of their ends

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self, sockets: Sequence, admin_sockets: Sequence = (), ssl=None,
                    audiosockets: Sequence = ()) -> None:
        if self._timer is None:
            self.begin()
        await self.departures.open()
        for sock in sockets:
            self._listen(sock, lambda: Connection(self, not admin_sockets), ssl)
        for sock in admin_sockets:
            self._listen(sock, lambda: Connection(self, True))
        for sock in audiosockets:
            self._listen(sock, lambda: AudioSocketConnection(self), bare=True)
        garbage.begin()
        stalls.begin(self.epoll, self.metrics, self.seat)
        self.admission.begin()
        self._next_tidying = self.clock() + TIDY_NS

    def begin(self) -> None:
        """Serve the calls that are given to us; nobody can connect yet."""
        self.archive = kept(self.config.archive, self.metrics)
        self.notices = notices.begin(self.config.webhook, self.metrics.count)
        self.epoll.spin = self.config.net.spin_us * 1000
        attach(self.epoll)
        self.studio.hearing.on_waiting = self._window_waits
        self._arm(self.clock() + SWEEP_NS)

    def _listen(self, sock, protocol: Callable, ssl=None, bare: bool = False) -> None:
        refused = partial(self.metrics.count, "refused_connections")
        self._doors.append(Door(sock.dup(), protocol, ssl, self._is_ours, refused, bare))

    def _is_ours(self, waiting: int) -> bool:
        """True if one of so many connections is ours to take: no other worker has less to look after."""
        return self.board is None or self.board.least(self.seat.full, self._count_connections(), waiting)

    def _count_connections(self) -> int:
        count = len(self.connections) + sum(len(door.opening) for door in self._doors)
        self.seat.put("connections", count)
        return count

    def close_doors(self) -> None:
        """Nobody is let in any more."""
        for door in self._doors:
            door.close()
        self._doors.clear()

    async def drain(self) -> None:
        """Refuse new calls; return when the live ones have ended, after drain_seconds not without a word."""
        self.draining = True
        await self._empty(int(self.config.drain_seconds * 1e9))
        if self.config.redis.move and self.continuity:
            self.continuity.move()
            await self._empty(MOVING_NS)
        await self.part()

    async def part(self) -> None:
        """Tell every caller that the call has to end, and return when they have heard it."""
        self.draining = True
        for call in list(self.calls.values()):
            call.usage.parts()
            call.part()
        await self._empty(PARTING_NS)

    async def _empty(self, within: int) -> None:
        deadline = self.clock() + within
        # while other workers have calls, such as those of settings before, somebody must answer at the door
        while (self.calls or self._doors and self.board and self.board.sum("calls")) and self.clock() < deadline:
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        self.close_doors()
        for connection in list(self.connections):
            connection.close(1001, "the server is shutting down")
        until = self.clock() + 1_000_000_000
        while self.connections and self.clock() < until:
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            connection.ended(None)
        for session in list(self.waiting):
            session.gone(1001, "the server is shutting down")
        await self.departures.close()
        self._timer.cancel()
        if self.archive is not None:
            self.archive.close()
        if self.notices is not None:
            await self.notices.close()
        detach(self.epoll)
        garbage.end()

    @property
    def now(self) -> int:
        """ns: when the callback that we are in began."""
        return self.epoll.now

    @property
    def today(self) -> str:
        """The date, as in 2026-03-03: what a caller's "tomorrow" is counted from."""
        return date.today().isoformat()

    def tock(self) -> int:
        """The time now, which is also `now` for everything this callback reaches."""
        now = self.epoll.now = self.clock()
        return now

    def note_tuning(self, report: tuple) -> None:
        """What became of the socket options; a refusal is told once, and counted in /metrics."""
        if report == self.tuning:
            return
        self.tuning = report
        for option in report:
            self.metrics.gauge("socket_option", int(not option.fault), option=option.name)
            if option.fault:
                log.warning("%s = %s could not be set: %s", option.name, option.wanted, option.fault)

    # -- the loop's callbacks ------------------------------------------------------------------------------------------

    def _window_waits(self, count: int) -> None:
        """A call's window is to be scored, with those of all calls of the same round: more, the busier the worker."""
        if self.epoll.serving:
            self.epoll.afterwards = self._hear
        elif count == 1:
            asyncio.get_running_loop().call_soon(self._hear)

    def _hear(self) -> None:
        began = self.tock()
        self.studio.hearing.run()
        self.measure(self.clock() - began)

    def measure(self, spent: int) -> None:
        """Records what one callback took, ns."""
        if self.metrics.frame(spent):
            self._slow(spent)

    def _slow(self, spent: int) -> None:
        if self.now - self._warned > WARN_EVERY_NS:
            self._warned = self.now
            log.warning("a wake-up of the loop took %.1f ms", spent / 1e6)

    def _tick(self) -> None:
        now = self.tock()
        late = now - self._next_tick
        self.metrics.lag(late)
        try:
            self._look_after(now, late)
        finally:                                    # whatever went wrong: without ticks there are no calls
            self._arm(max(self._next_tick, now - TICK_NS) + TICK_NS if self.calls else now + self._rest())

    def _look_after(self, now: int, late: int = 0) -> None:
        self.pacer.run(now)
        due = [call for call in self.calls.values() if call.due <= now and not call.put_off(now)]
        self.admission.tick(late, due, now)
        for call in due:
            call.tick(now)
        self.limits.look(now)
        if self.keeper is not None:
            self.keeper.keep(due, now)
        self.studio.hearing.run()
        self._sweep(now)
        garbage.look(now >= self._next_tidying, bool(self.calls) or len(self.connections) > SWEPT, Memory.used)
        if now >= self._next_tidying:
            self._next_tidying = now + TIDY_NS
            self.broken = self.studio.fault()
            if not self.broken:
                self.pulse.whole = now
            self.admission.look(now)
            for session in list(self.waiting):
                session.sweep(now)

    def _rest(self) -> int:
        """ns between two ticks while nothing is paced: as rarely as the sweep of all connections allows."""
        return max(TICK_NS, SWEEP_NS * SWEPT_IDLE // max(SWEPT_IDLE, len(self.connections)))

    def _sweep(self, now: int) -> None:
        """Looks at some of the connections: at all of them every SWEEP_NS, a few at a time, for calls are waiting."""
        if not self._unswept and now >= self._next_sweep:
            self._next_sweep = now + SWEEP_NS
            self._unswept = [each for each in self.connections if each.wire is None or not each.wire.flows(now)]
            if self.seat is not None:
                self._beat(now)
        least = SWEPT if self.calls else SWEPT_IDLE
        for _ in range(min(len(self._unswept), max(least, len(self.connections) * TICK_NS // SWEEP_NS))):
            connection = self._unswept.pop()
            if connection in self.connections:
                connection.sweep(now)

    def _beat(self, now: int) -> None:
        """The supervisor sees that we live, and the other workers what we count."""
        self.seat.publish(self.metrics)
        if self.pulse.beats(self.calls.values(), now):
            self.seat.put("beat", now)
        self.show()

    def show(self) -> None:
        """How much we have to look after, for the other workers."""
        self.seat.put("calls", len(self.calls))
        self._count_connections()

    def _arm(self, at: int) -> None:
        """The next tick is at `at`, ns."""
        if self._timer is not None:
            self._timer.cancel()
        self._next_tick = self.epoll.due = at
        self._timer = asyncio.get_running_loop().call_later(max(0, at - self.clock()) / 1e9, self._tick)

    # -- calls ---------------------------------------------------------------------------------------------------------

    def call_begins(self, call: Call, start: Start) -> None:
        self.gate.check_tenant(call.connection.tenant, start.tenant)
        if call.id in self.calls:
            raise ProtocolError(1008, "this call is already here")
        self.limits.begins(call, start, self.now)
        call.usage.begins(self.gate.wall())
        self.calls[call.id] = call
        self.metrics.count("calls")
        self.calls_changed()

    def calls_changed(self) -> None:
        soon = self.clock() + TICK_NS
        if self.calls and self._next_tick > soon:       # armed anew each time, it would never come while calls do
            self._arm(soon)
        self.metrics.gauge("active_calls", len(self.calls))

    def answered_by(self, call_id: str, who: str, asked: Sequence[int] | None = ()) -> None:
        """News of a call that we made: see webhooks.py.  Where another worker has it, they are for that one; `asked`:
        the seats of those that have it not, None where all were asked."""
        if (call := self.calls.get(call_id)) is not None:
            call.answered_by(who)
        elif self.keeper is None or asked is None or len(call_id) > LONGEST_ID:
            self.metrics.count("strange_news")
        else:
            self.keeper.tell({"say": "news", "call": call_id, "who": who, "asked": asked})

    def call_ends(self, call: Call) -> None:
        if self.calls.get(call.id) is call:
            del self.calls[call.id]
            self.limits.ends(call)
            call.usage.measure(self.metrics)
            self.records.append(call.record())
            for told in filter(None, (self.archive, self.notices)):
                told.ended(self.records[-1])
            self.calls_changed()
            if self.keeper is not None:
                self.keeper.ended(call)
