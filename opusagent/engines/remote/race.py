"""The first words of a model: from the best endpoint, or from whoever is first once that one is late.

A second request is made where the first one fails (to the next endpoint), is late by its endpoint's own measure (to the
next endpoint as well), or is later than 95 % of them usually are (a hedge: to the next endpoint, or to the same one
over another connection).  The first usable piece of text wins, and all others are cancelled.  The rule: a hedge and a
second try at the same endpoint come out of one budget, a share of the requests, so that a provider in trouble is not
asked twice as often for it.
"""
import asyncio
import math
import random
from bisect import insort
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from ... import EngineError
from .endpoint import Endpoint
from .preference import Preference

REMEMBERED = 200                # first tokens that the percentile is of
ENOUGH = 20                     # fewer than this many say nothing about the 95th
PERCENTILE = 0.95
MOST_CREDIT = 3.0               # requests that can be made twice in a row
SLACK = 0.1                     # seconds: who is dropped so shortly before the turn's deadline has used all of its time
AGAIN_SECONDS = (0.02, 0.08)    # until the same endpoint is asked once more after it failed: at random between these


class Hedging:
    """What a worker knows about its model's first tokens, and what it may spend on them."""

    __slots__ = ("share", "credit", "requests", "hedges", "won", "lost", "retries", "spared", "_recent", "_sorted")

    def __init__(self, share: float):
        self.share = share                          # of the requests; 0: never
        self.credit = 0.0                           # requests that may be made twice now
        self.requests = 0                           # replies that were asked for
        self.hedges = 0                             # ... twice, because the first token was late
        self.won = self.lost = 0                    # hedges whose second request was first, and the others
        self.retries = 0                            # ... of the same endpoint, because it had failed
        self.spared = False                         # the worker is too busy to ask twice
        self._recent: deque[float] = deque(maxlen=REMEMBERED)   # seconds to the first token, the latest last
        self._sorted: list[float] = []              # the same

    def begin(self) -> None:
        self.requests += 1
        self.credit = min(MOST_CREDIT, self.credit + self.share)

    def spend(self) -> bool:
        """Whether a request may be made twice."""
        if self.credit < 0.999:                     # ten times a tenth is less than one
            return False
        self.credit -= 1
        return True

    def took(self, seconds: float) -> None:
        """A first token came after so long."""
        if len(self._recent) == REMEMBERED:
            self._sorted.remove(self._recent[0])
        self._recent.append(seconds)
        insort(self._sorted, seconds)

    @property
    def after(self) -> float | None:
        """Seconds without a first token after which it is late; None: not known, or never."""
        if self.spared or not self.share or len(self._sorted) < ENOUGH:
            return None
        return self._sorted[int(PERCENTILE * (len(self._sorted) - 1))]

    def measure(self, metrics) -> None:
        for name in ("hedges", "won", "lost", "retries"):
            metrics.gauge("llm_" + {"won": "hedges_won", "lost": "hedges_lost"}.get(name, name), getattr(self, name))
        metrics.gauge("llm_hedge_rate", self.hedges / max(1, self.requests))
        metrics.gauge("llm_hedge_after_seconds", self.after or 0.0)


class Attempt:
    """One request on its way to its first usable text."""

    __slots__ = ("endpoint", "stream", "pieces", "began", "due", "late", "task")

    def __init__(self, endpoint: Endpoint, stream, began: float, due: float, after: float):
        self.endpoint = endpoint
        self.stream = stream                        # what was asked for; its `pieces` are an asynchronous generator
        self.pieces: AsyncIterator[str] = stream.pieces
        self.began = began                          # of the loop's clock
        self.due = due                              # from then on it is late
        self.late = False
        self.task = asyncio.ensure_future(first_text(self.pieces, after))

    async def drop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.pieces.aclose()


class CallBegins(str):
    """A piece without text: a function call begins, which is as good as a first word."""

    __slots__ = ()


async def first_text(pieces: AsyncIterator[str], after: float) -> str:
    """All text up to the first that is more than space, or to where a function call begins."""
    if after:
        await asyncio.sleep(after)
    text = ""
    async for piece in pieces:
        text += piece
        if text.strip() or type(piece) is CallBegins:
            break
    return text


class Race:
    """For one reply's first words.  Make one, `run` it once."""

    __slots__ = ("preference", "hedging", "ask", "deadline", "asked", "attempts", "error", "winner", "_hedge",
                 "_hedged", "_clock")

    def __init__(self, preference: Preference, hedging: Hedging, ask: Callable[[Endpoint], Any],
                 deadline: float, asked: list[Endpoint]):
        self.preference = preference
        self.hedging = hedging
        self.ask = ask
        self.deadline = deadline                    # seconds, the turn's own: nobody waits for longer
        self.asked = asked                          # by this reply so far; each once, but for hedges and second tries
        self.attempts: list[Attempt] = []           # on their way
        self.error: EngineError | None = None       # of the last one that failed
        self.winner: Attempt | None = None
        self._hedge: Attempt | None = None          # the second request
        self._hedged = False                        # whether to make one was decided
        self._clock = asyncio.get_running_loop().time

    async def run(self, endpoint: Endpoint) -> tuple[Attempt, str]:
        """The winner and its first text; it begins with `endpoint`.  Raises EngineError."""
        self._start(endpoint)
        try:
            while self.winner is None:
                done, _ = await asyncio.wait({each.task for each in self.attempts}, timeout=self._patience(),
                                             return_when=asyncio.FIRST_COMPLETED)
                for attempt in [each for each in self.attempts if each.task in done]:
                    self._settle(attempt)
                if not self.attempts:
                    raise self.error
                if self.winner is None:
                    self._look_at_the_clock()
        finally:
            for each in self.attempts:
                if each is not self.winner:
                    await self._drop(each)
        self.hedging.took(self._clock() - self.winner.began)
        if self._hedge is not None:
            self.hedging.won += self.winner is self._hedge
            self.hedging.lost += self.winner is not self._hedge
        return self.winner, self.winner.task.result()

    def _start(self, endpoint: Endpoint, after: float = 0.0) -> Attempt:
        self.asked.append(endpoint)
        began = self._clock() + after
        due = began + endpoint.target.first_seconds if len(self.preference.endpoints) > 1 else math.inf
        attempt = Attempt(endpoint, self.ask(endpoint), began, due, after)
        self.attempts.append(attempt)
        return attempt

    def _settle(self, attempt: Attempt) -> None:
        """It has its first text, or failed: then the next one is asked, or once more the same."""
        error = attempt.task.exception()
        if error is None:
            self.winner = self.winner or attempt
            return
        self.attempts.remove(attempt)
        if not isinstance(error, EngineError):
            raise error
        self.error = error
        if (endpoint := self.preference.fall_back(self.asked, str(error))) is not None:
            self._start(endpoint)
        elif not self.attempts and self._once_more(attempt.endpoint):
            self._start(attempt.endpoint, after=random.uniform(*AGAIN_SECONDS))

    def _once_more(self, endpoint: Endpoint) -> bool:
        if self.asked.count(endpoint) > 1 or not endpoint.transient or endpoint.rests() or not self.hedging.spend():
            return False
        self.hedging.retries += 1
        return True

    def _drop(self, attempt: Attempt):
        """Nobody wants it any more.  That it took all of its time is its endpoint's failure."""
        if attempt.late or self._clock() - attempt.began > self.deadline - SLACK:
            attempt.endpoint.late()
        return attempt.drop()

    # -- what the clock says -------------------------------------------------------------------------------------------

    @property
    def _hedge_at(self) -> float:
        """When the first request is to be hedged."""
        after = self.hedging.after
        return math.inf if after is None or self._hedged or len(self.attempts) > 1 else self.attempts[0].began + after

    def _patience(self) -> float | None:
        """Seconds until something is to be done though nothing came; None: there is nothing."""
        at = min(self._hedge_at, *(each.due for each in self.attempts if not each.late), math.inf)
        return None if at == math.inf else max(0.0, at - self._clock())

    def _look_at_the_clock(self) -> None:
        now = self._clock()
        for attempt in [each for each in self.attempts if not each.late and now >= each.due]:
            attempt.late = True
            why = f"{attempt.endpoint.subject} sent nothing within {attempt.endpoint.target.first_seconds:g} s."
            if (endpoint := self.preference.fall_back(self.asked, why)) is not None:
                self._start(endpoint)
        if now >= self._hedge_at:
            self._hedged = True
            endpoint = self.preference.next(self.asked) or self.attempts[0].endpoint
            if not endpoint.rests() and self.hedging.spend():
                self.hedging.hedges += 1
                self._hedge = self._start(endpoint)
