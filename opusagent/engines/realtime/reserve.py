"""Realtime sessions, speech to speech, to the best endpoint that has them.

A session taken from here is the taker's: it sets `heard` and `lost` of it, and drops it.
"""
import logging
from typing import Any

from ... import EngineError
from ...config import Config
from ..level import Level
from ..remote.endpoint import Endpoint
from ..remote.preference import Preference
from ..remote.session import Session
from ..remote.spare import Spare

log = logging.getLogger("opusagent")


class Reserve(Spare):
    """The sessions of a stage; `take` or `dial` one."""

    def __init__(self, config: Config, update: dict[str, Any], whose: str = "speech-to-speech model"):
        super().__init__()
        self.endpoints = Preference(config, "realtime", whose, 0)
        self.update = update                    # session.update's session, as every session is set at first
        self.levels: dict[str, Level] = {}      # by voice: how loud it is

    async def open(self) -> None:
        """Some are open now, and stay so; an endpoint that has none now may have some later."""
        await self.endpoints.open()
        try:
            await self.first()
        except EngineError as error:
            log.warning("%s", error)
        self.keep()

    async def close(self) -> None:
        await super().close()
        await self.endpoints.close()

    async def dial(self, without: Endpoint | None = None) -> Session:
        """An open session, or a new one, to another endpoint than that if there is one.  Raises EngineError."""
        if without is not None and self.endpoints.next([without]) is None:
            without = None
        session = self.take(without)
        if session is None:
            session = await self._dial(without)
            self.busy[session] = 0.0
        return session

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
        session = await self._open(endpoint, f"model={endpoint.target.model}", self.update)
        endpoint.breaker.succeeded()
        return session

    def measure(self, metrics) -> None:
        self.endpoints.measure(metrics)
        self._measure(metrics, "realtime", stage=self.endpoints.whose)
