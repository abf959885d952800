"""Realtime sessions that are open before anybody speaks over them, and are followed by others when they are taken.

What they are set to and who gets which is for those to say who have them: openai/live.py, realtime/reserve.py.  The
rule: nobody waits for a connection while one is open, one that is open has proved that it is taken as we want it, and
one that is not heard of while somebody waits for it is taken for dead.
"""
import asyncio
import math
from typing import Any

from ... import EngineError
from .endpoint import Endpoint
from .session import Session, complaint
from .transport import CONNECT_SECONDS, PAUSES

SPARE = 2                       # sessions kept open ahead
PROGRESS_SECONDS = 0.7          # one that somebody waits for is heard of within this, or taken for dead
IDLE_SECONDS = 5.0              # ... and one that is idle within twice this
TICK_SECONDS = 0.35             # from look to look, and from ping to ping
OLDEST_SECONDS = 45 * 60        # of an idle session: endpoints end them after an hour


class Spare:
    """A kind of them has `_dial()`, which opens one more by `_open`, or raises EngineError."""

    def __init__(self):
        self.idle: list[Session] = []
        self.busy: dict[Session, float] = {}    # those in use -> since when somebody waits for them, 0: nobody does
        self.opened = 0                         # sessions ever
        self.suspected = 0                      # ... taken for dead
        self._lacking = asyncio.Event()
        self._tasks: list[asyncio.Task] = []
        self._griefs = 0                        # sessions in a row that could not be opened, or did not last

    async def first(self) -> None:
        """One is open now.  Raises EngineError."""
        try:
            self.idle.append(await self._dial())
        except EngineError:
            self._griefs += 1
            raise

    def keep(self) -> None:
        """From now on, as many as there should be."""
        self._lacking.set()
        self._tasks = [asyncio.ensure_future(self._keep()), asyncio.ensure_future(self._watch())]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for session in [*self.idle, *self.busy]:
            session.close()

    def take(self, without: Endpoint | None = None) -> Session | None:
        """An open session, to another endpoint than that; None if there is none now."""
        session = next((each for each in reversed(self.idle) if each.endpoint is not without), None)
        if session is None:
            return None
        self.idle.remove(session)
        self._lacking.set()
        self.busy[session] = 0.0
        return session

    def awaited(self, session: Session, waits: bool) -> None:
        """Whether somebody waits for it: then it is heard of soon, or taken for dead."""
        if session in self.busy and waits != bool(self.busy[session]):
            self.busy[session] = asyncio.get_running_loop().time() if waits else 0.0
            if waits:
                session.ping()

    def drop(self, session: Session) -> None:
        """It is of no use any more."""
        self.busy.pop(session, None)
        if session in self.idle:
            self.idle.remove(session)
            self._lacking.set()
        session.close()

    def lost(self, session: Session) -> None:
        """It is over."""
        self._griefs += session in self.idle
        self.drop(session)

    async def _open(self, endpoint: Endpoint, query: str, update: dict[str, Any]) -> Session:
        """A session that is set so; until it is taken, we are told of its end.  Raises EngineError."""
        taken: asyncio.Future = asyncio.get_running_loop().create_future()
        session: Session | None = None          # what comes along with the 101 comes before it
        why = ""                                # it is over

        def heard(event: dict) -> None:
            if event["type"] == "error" and session is not None:
                session.fail(complaint(event))
            elif event["type"] == "error":
                lost(f"{endpoint.subject} {complaint(event)}.")
            elif event["type"] == "session.updated" and not taken.done():
                taken.set_result(True)

        def lost(sentence: str) -> None:
            nonlocal why
            why = why or sentence
            if session is not None:
                self.lost(session)
            if not taken.done():
                taken.set_result(False)

        session = await Session.open(endpoint, query, heard, lost)
        session.send({"type": "session.update", "session": update})
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await taken
        except TimeoutError:
            session.close()
            raise EngineError(f"{endpoint.subject} let us wait for too long.") from None
        except BaseException:
            session.close()
            raise
        if why:                                 # also where it was taken, and ended with the same breath
            session.close()
            raise EngineError(why)
        self.opened += 1
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
            for session, since in list(self.busy.items()):
                if since:                       # judged by what came since a whole tick, which began with a ping
                    self._look(session, PROGRESS_SECONDS if since < began else math.inf)
            if ticks * TICK_SECONDS >= IDLE_SECONDS:
                ticks = 0
                for session in [*self.idle, *(each for each, since in self.busy.items() if not since)]:
                    self._look(session, 2 * IDLE_SECONDS)
                for session in [session for session in self.idle if session.age() > OLDEST_SECONDS]:
                    self.drop(session)

    def _look(self, session: Session, patience: float) -> None:
        if session.quiet() > patience:
            self.suspected += 1
            session.fail(f"was not heard of for {patience:g} s")
        else:
            session.ping()

    def _measure(self, metrics, kind: str, **labels) -> None:
        metrics.gauge(f"{kind}_sessions", len(self.idle) + len(self.busy), **labels)
        metrics.gauge(f"{kind}_sessions_opened", self.opened, **labels)
        metrics.gauge(f"{kind}_sessions_suspected", self.suspected, **labels)
