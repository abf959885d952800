"""Plays cases against a server, many at a time, and returns a verdict for each.

The rule: one case, one connection; nothing is shared between cases but the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from .peer import Failed, Peer, Target
from .script import Case

OK, TOLERATED, FAILED = "ok", "tolerated", "failed"
LONGEST = 60  # s that any case may take


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one case."""

    case: Case
    outcome: str  # OK, TOLERATED: the standard allows it, it does not ask for it; FAILED
    reason: str  # a sentence, empty when ok

    def __str__(self) -> str:
        return f"{self.outcome:9}  {self.case.id}  ({self.case.section}: {self.case.title})  {self.reason}"


async def play(case: Case, target: Target, patience: float = 5.0) -> Verdict:
    """One case on one connection; `patience` is how many seconds any answer may take."""
    peer = Peer(target, patience)
    try:
        async with asyncio.timeout(patience):
            await peer.connect()
    except (OSError, TimeoutError) as error:
        return Verdict(case, FAILED, f"no connection to {target.host}:{target.port}: {error!r}")
    try:
        async with asyncio.timeout(LONGEST):
            for step in case.script:
                await step.run(peer)
    except Failed as failure:
        return Verdict(case, FAILED, str(failure))
    except OSError as error:
        return Verdict(case, FAILED, f"the next connection: {error}")
    except TimeoutError:
        return Verdict(case, FAILED, f"not through within {LONGEST} s")
    finally:
        await peer.release()
    return Verdict(case, TOLERATED if peer.notes else OK, "; ".join(peer.notes))


async def play_all(cases: Iterable[Case], target: Target, at_once: int = 16, patience: float = 5.0) -> list[Verdict]:
    """Every case, at most `at_once` at a time; verdicts in the order of the cases."""
    gate = asyncio.Semaphore(at_once)

    async def gated(case: Case) -> Verdict:
        async with gate:
            return await play(case, target, patience)

    return await asyncio.gather(*map(gated, cases))
