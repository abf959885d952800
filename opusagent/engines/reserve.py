"""Realtime sessions that are open before anybody speaks over them, to the best endpoint that has them.

A session taken from here is the taker's: it sets `heard` and `lost` of it, and closes it.  The rule: nobody waits for
a connection while one is open, and one that is open has proved that it is taken as we want it.
"""
import asyncio
import logging
from typing import Any

from .. import EngineError
from ..config import Config
from .endpoint import Endpoint
from .level import Level
from .preference import Preference
from .session import Session, complaint
from .transport import CONNECT_SECONDS, PAUSES

log = logging.getLogger("opusagent")

SPARE = 2                       # sessions kept open ahead
PROGRESS_SECONDS = 0.7          # one that somebody waits for is heard of within this, or taken for dead
IDLE_SECONDS = 5.0              # ... and one that is idle within twice this
TICK_SECONDS = 0.35             # from look to look, and from ping to ping
OLDEST_SECONDS = 45 * 60        # of an idle session: endpoints end them after an hour


class Reserve:
    """The sessions of a stage; `take` or `dial` one."""

    def __init__(self, config: Config, update: dict[str, Any], whose: str = "speech-to-speech model"):
        self.endpoints = Preference(config, "realtime", whose, 0)
        self.update = update                    # session.update's session, as every session is set at first
        self.idle: list[Session] = []
        self.busy: dict[Session, float] = {}    # those in use -> since when somebody waits for them, 0: nobody does
        self.levels: dict[str, Level] = {}      # by voice: how loud it is
        self.opened = 0                         # sessions ever
        self.suspected = 0                      # ... taken for dead
        self._lacking = asyncio.Event()
        self._tasks: list[asyncio.Task] = []
        self._griefs = 0                        # sessions in a row that could not be opened, or did not last

    async def open(self) -> None:
        """Some are open now, and stay so; an endpoint that has none now may have some later."""
        await self.endpoints.open()
        try:
            self.idle.append(await self._dial())
        except EngineError as error:
            log.warning("%s", error)
            self._griefs += 1
        self._lacking.set()
        self._tasks = [asyncio.ensure_future(self._keep()), asyncio.ensure_future(self._watch())]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for session in [*self.idle, *self.busy]:
            session.close()
        await self.endpoints.close()

    def take(self, without: Endpoint | None = None) -> Session | None:
        """An open session, to another endpoint than that; None if there is none now."""
        session = next((each for each in reversed(self.idle) if each.endpoint is not without), None)
        if session is None:
            return None
        self.idle.remove(session)
        self._lacking.set()
        self.busy[session] = 0.0
        return session

    async def dial(self, without: Endpoint | None = None) -> Session:
        """An open session, or a new one, to another endpoint than that if there is one.  Raises EngineError."""
        if without is not None and self.endpoints.next([without]) is None:
            without = None
        session = self.take(without)
        if session is None:
            session = await self._dial(without)
            self.busy[session] = 0.0
        return session

    def awaited(self, session: Session, waits: bool) -> None:
        """Whether somebody waits for it: then it is heard of soon, or taken for dead."""
        if session in self.busy and waits != bool(self.busy[session]):
            self.busy[session] = asyncio.get_running_loop().time() if waits else 0.0
            if waits:
                session.ping()

    def drop(self, session: Session) -> None:
        """It is over, or of no use any more."""
        self.busy.pop(session, None)
        session.close()

    async def _dial(self, without: Endpoint | None = None) -> Session:
        """To the best endpoint that does not rest, or else the next.  Raises EngineError."""
        asked = [without, self.endpoints.next([without]) or self.endpoints.first()]
        while True:
            try:
                return await self._dial_one(asked[-1])
            except EngineError as error:
                asked[-1].late()
                if (endpoint := self.endpoints.fall_back(asked, str(error))) is None:
                    raise
                asked.append(endpoint)

    async def _dial_one(self, endpoint: Endpoint) -> Session:
        if endpoint.transport is None:
            raise EngineError(f"{endpoint.subject} is behind a proxy, and Realtime sessions go through none.")
        taken: asyncio.Future = asyncio.get_running_loop().create_future()

        def heard(event: dict) -> None:
            if event["type"] == "error":
                session.fail(complaint(event))
            elif event["type"] == "session.updated" and not taken.done():
                taken.set_result(True)

        def lost(sentence: str) -> None:
            if not taken.done():
                taken.set_exception(EngineError(sentence))
                taken.exception()               # it is told of, whether or not anybody still waits for it
            elif session in self.idle:
                self.idle.remove(session)
                self._griefs += 1
                self._lacking.set()

        session = await Session.open(endpoint, f"model={endpoint.target.model}", heard, lost)
        session.send({"type": "session.update", "session": self.update})
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await taken
        except TimeoutError:
            session.close()
            raise EngineError(f"{endpoint.subject} let us wait for too long.") from None
        except BaseException:
            session.close()
            raise
        self.opened += 1
        endpoint.breaker.succeeded()
        return session

    async def _keep(self) -> None:
        while True:
            await self._lacking.wait()
            self._lacking.clear()
            while len(self.idle) < SPARE:
                await asyncio.sleep(PAUSES[min(self._griefs, len(PAUSES) - 1)])
                try:
                    self.idle.insert(0, await self._dial())
                except EngineError:
                    self._griefs += 1
                else:
                    self._griefs = 0

    async def _watch(self) -> None:
        """A session that is not heard of is of no use.  It has had a ping by then, and a live one answers that."""
        loop, ticks = asyncio.get_running_loop(), 0
        while True:
            began = loop.time()
            await asyncio.sleep(TICK_SECONDS)
            ticks += 1
            if loop.time() - began > 1.5 * TICK_SECONDS:
                continue                        # it was us who did not listen
            for session in [each for each, since in self.busy.items() if since and since < began]:
                self._look(session, PROGRESS_SECONDS)
            if ticks * TICK_SECONDS >= IDLE_SECONDS:
                ticks = 0
                for session in [*self.idle, *(each for each, since in self.busy.items() if not since)]:
                    self._look(session, 2 * IDLE_SECONDS)
                for session in [session for session in self.idle if session.age() > OLDEST_SECONDS]:
                    self.idle.remove(session)
                    session.close()
                    self._lacking.set()

    def _look(self, session: Session, patience: float) -> None:
        if session.quiet() > patience:
            self.suspected += 1
            session.fail(f"was not heard of for {patience:g} s")
        else:
            session.ping()

    def measure(self, metrics) -> None:
        self.endpoints.measure(metrics)
        stage = self.endpoints.whose
        metrics.gauge("realtime_sessions", len(self.idle) + len(self.busy), stage=stage)
        metrics.gauge("realtime_sessions_opened", self.opened, stage=stage)
        metrics.gauge("realtime_sessions_suspected", self.suspected, stage=stage)
