"""The endpoints of a stage in order of preference, and which of them is asked next.

The rule: an endpoint is asked once for the same thing (the best one that is not resting first), a request goes to the
next only where the one before has failed or is late, and whoever waits is never kept longer than the turn allows.
"""
import asyncio
import logging

from ... import ConfigError, EngineError
from ...config import Config
from ...endpoints import URL, Target, origin, targets
from .endpoint import Endpoint

log = logging.getLogger("opusagent")


class Preference:
    """`endpoints`, the best one first."""

    def __init__(self, config: Config, stage: str, whose: str, spare: int):
        """`whose` and `spare` as of an Endpoint.  Raises ConfigError."""
        wanted = targets(config, stage)
        self.endpoints = [Endpoint(target, whose, spare if i == 1 else 1, i if len(wanted) > 1 else 0)
                          for i, target in enumerate(wanted, 1)]
        for target in wanted:
            has_key(target, whose)
        self.whose = whose
        self.fallbacks = 0                          # times that the next one was asked because one failed

    @property
    def best(self) -> Endpoint:
        return self.endpoints[0]

    async def open(self) -> None:
        await asyncio.gather(*(endpoint.open() for endpoint in self.endpoints))

    async def close(self) -> None:
        await asyncio.gather(*(endpoint.close() for endpoint in self.endpoints))

    def next(self, asked) -> Endpoint | None:
        """The best one that was not asked and does not rest."""
        return next((each for each in self.endpoints if each not in asked and not each.rests()), None)

    def first(self) -> Endpoint:
        """The best one that does not rest.  Raises EngineError where they all do."""
        if (endpoint := self.next(())) is None:
            raise EngineError(self.best.rests() or f"Every endpoint of the {self.whose} is left alone for a while.")
        return endpoint

    def fall_back(self, asked, why: str) -> Endpoint | None:
        """The one to be asked after a failure; None if there is none.  The failure is told of here, once."""
        if (endpoint := self.next(asked)) is not None:
            self.fallbacks += 1
            log.warning("%s The next endpoint is asked.", why)
        return endpoint

    def measure(self, metrics) -> None:
        for endpoint in self.endpoints:
            endpoint.measure(metrics)
        metrics.gauge("endpoint_fallbacks", self.fallbacks, stage=self.whose)


def has_key(target: Target, whose: str) -> None:
    """ConfigError where it has none and the endpoint is one that answers nobody without: a call would be too late."""
    if not target.api_key and origin(target.base_url) == origin(URL):
        place = "" if target.place == "default" else f"{target.place}: "
        raise ConfigError(f"{place}The endpoint of the {whose} is {target.base_url}, and there is no key: set "
                          "OPENAI_API_KEY, or the base_url of an endpoint that wants none.")
