"""One siege: the slow attacks together, then the others one by one, with the well-behaved calls beside them all.

The pass line stands here and nowhere else.  The rule: what an attack does to the server is measured at the server, by
its memory, its descriptors, its log and its other calls, never by what the attacker thinks.

HEALTHY_P99_MS is a check that the other calls go on, no claim how well: attackers, calls and server share the cores
here.  How late frames are under load is measured in bench/.  B4 and B14 look at times, so theirs is one attacker, whose
bound is mostly SLACK; so is A3-wide's, for the message that it may send.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from conformance import wire
from conformance.peer import Failed, Peer, Target
from conformance.script import Answer, Fails, ask
from served import Served

from .healthy import opening
from .vitals import Weight, watched, weigh

# the pass line
PER_ATTACKER = 256 << 10  # octets of memory that one attacking connection may cost on a telephony route
SLACK = 2 << 20  # octets that an allocator, and the calls beside, may keep or lose on their own
KEPT = 4 << 20  # octets that an allocator may keep for good
BACK_WITHIN = 10.0  # s after the last attack, until memory and descriptors are as before
BACK_SHARE = 1.05  # of the memory before
LINES_EACH = 1  # lines of log for an attacking connection, at most
LINES_FREE = 20  # and for an attack as such
HEALTHY_CALLS = 20
HEALTHY_P99_MS = 250  # of an echo, on a machine whose cores the attackers share
QUICK = 1.0  # s: a handshake beside an attack is answered within

TELEPHONY, WIDE = "/ws/twilio/echo", "/ws/echo"
PATIENCE = 8.0  # s that any answer may take, on a machine that is busy with the attack


@dataclass(frozen=True, slots=True)
class Attack:
    """A row of the table."""

    id: str
    title: str
    attackers: int  # connections at once, at most
    run: Callable[[Target], Awaitable[None]]  # raises Failed when the server does not answer as it must
    slow: bool = False  # whether it waits for a deadline: those run together
    budget: int = PER_ATTACKER  # octets of memory that one attacker may cost


@dataclass(slots=True)
class Outcome:
    """What became of an attack."""

    failure: str = ""  # a sentence; empty when the server answered as it must
    memory: int = 0  # octets, the most that the server grew by
    allowed: int = 0
    lines: int = 0  # of log
    lines_allowed: int = 0
    seconds: float = 0.0


@dataclass(slots=True, repr=False)
class Siege:
    """All outcomes, and the server before and after."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    before: Weight | None = None
    after: Weight | None = None
    alive: bool = True
    written: str = ""  # the server's stderr

    def __str__(self) -> str:
        rows = [f"{id:8} {o.seconds:5.1f} s  {o.memory / 1e6:6.2f} of {o.allowed / 1e6:5.1f} MB  {o.lines} lines  "
                f"{o.failure}" for id, o in self.outcomes.items()]
        return "\n".join((*rows, f"before {self.before}", f"after  {self.after}"))


async def lay(server: Served, attacks: Iterable[Attack]) -> Siege:
    """All of it; the well-behaved calls are the caller's to start and to end."""
    attacks, siege, target = list(attacks), Siege(), Target(server.host, server.port, TELEPHONY, False)
    siege.before = weigh(server)
    await strike(server, [attack for attack in attacks if attack.slow], target, siege)
    for attack in attacks:
        if not attack.slow:
            await strike(server, [attack], target, siege)
    deadline = time.monotonic() + BACK_WITHIN
    while not recovered(siege.before, weigh(server)) and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
    siege.after, siege.alive, siege.written = weigh(server), server.alive(), server.written()
    return siege


def recovered(before: Weight, now: Weight) -> bool:
    return now.descriptors == before.descriptors and now.memory <= before.memory * BACK_SHARE + KEPT


async def strike(server: Served, attacks: list[Attack], target: Target, siege: Siege) -> None:
    """Run these attacks together; they share what they are allowed."""
    before, began = weigh(server), time.monotonic()
    async with watched(server) as peak:
        failures = await asyncio.gather(*(verdict(attack, target) for attack in attacks))
    grown, lines = peak.memory - before.memory, weigh(server).lines - before.lines
    for attack, failure in zip(attacks, failures):
        siege.outcomes[attack.id] = Outcome(
            failure, grown, SLACK + sum(attack.attackers * attack.budget for attack in attacks), lines,
            LINES_FREE + LINES_EACH * sum(attack.attackers for attack in attacks), time.monotonic() - began)


async def verdict(attack: Attack, target: Target) -> str:
    try:
        async with asyncio.timeout(60):
            await attack.run(target)
    except (Failed, OSError, TimeoutError) as error:
        return str(error) or repr(error)
    return ""


# what attacks are made of

def at(target: Target, path: str) -> Target:
    return replace(target, path=path)


@asynccontextmanager
async def connected(target: Target) -> AsyncIterator[Peer]:
    """A TCP connection."""
    peer = Peer(target, PATIENCE)
    await peer.connect()
    try:
        yield peer
    finally:
        await peer.release()


@asynccontextmanager
async def opened(target: Target, request: bytes = wire.head()) -> AsyncIterator[Peer]:
    """A WebSocket."""
    async with connected(target) as peer:
        for step in (ask(request), Answer(101)):
            await step.run(peer)
        yield peer


@asynccontextmanager
async def in_call(target: Target, stream: str = "MZattacker") -> AsyncIterator[Peer]:
    """A Twilio call that has begun."""
    async with opened(at(target, TELEPHONY)) as peer:
        await peer.send(opening(stream))
        yield peer


async def all_at_once(count: int, one: Callable[[int], Awaitable[None]]) -> None:
    """The same attack from `count` connections; the first failure is the verdict."""
    failures = [end for end in await asyncio.gather(*map(one, range(count)), return_exceptions=True) if end is not None]
    if failures:
        raise Failed(f"{len(failures)} of {count}: {str(failures[0]) or repr(failures[0])}")


def crowd(count: int, attack: Callable[[Target], Awaitable[None]]) -> Callable[[Target], Awaitable[None]]:
    """The whole of an attack, which is one connection at a time, from `count` attackers at once: what one may cost is
    little beside SLACK."""
    async def run(target: Target) -> None:
        await all_at_once(count, lambda _: attack(target))
    return run


async def flood(peer: Peer, data: Callable[[int], bytes], code: int, also: tuple[int, ...] = (), most: int = 1 << 30,
                gap: float = 0.0) -> None:
    """Send data(0), data(1) ... until the server fails the connection with the code; Failed when it never does."""
    failing = asyncio.ensure_future(Fails(code, also, within=15.0).run(peer))
    turn = 0
    while not failing.done() and turn < most:
        await peer.send(data(turn))
        await asyncio.sleep(gap)
        turn += 1
    await failing
