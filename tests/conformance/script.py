"""The steps that scripts are made of, and the case that is one script.

A step is data with one verb: it sends octets, or it says what must come back.  It is not a test framework: there are
no branches and no variables.  The rule: what breaks the standard raises Failed; what the standard allows but a strict
server would not do is written to `peer.notes`, and the script goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from . import wire
from .peer import Failed, Got, Peer, Response, Silent

GAP = 0.001  # s between the pieces of chopped octets, so that they arrive one by one


class Step(Protocol):
    async def run(self, peer: Peer) -> None: ...


@dataclass(frozen=True, slots=True)
class Case:
    """One behaviour."""

    id: str  # words with dots, from the general to the particular; never renamed
    title: str  # what is sent, and what must come back where that is not obvious
    section: str  # of RFC 6455, of RFC 9112 where it says so, or HOUSE
    script: tuple[Step, ...]
    heavy: bool = False  # many megabytes: left out of a default run


HOUSE = "house"  # asked for by this project's own contract, not by a standard


# sending

@dataclass(frozen=True, slots=True)
class Send:
    """Send octets, `chop` at a time; a callable is asked for them only now."""

    data: bytes | Callable[[], bytes]
    chop: int = 0  # octets per write, 0 for all in one
    gap: float = GAP  # s between writes
    fill: bool = False  # whether {host} and {path} stand for the target's

    async def run(self, peer: Peer) -> None:
        data = self.data() if callable(self.data) else self.data
        data = peer.target.fill(data) if self.fill else data
        if not self.chop:
            return await peer.send(data)
        for start in range(0, len(data), self.chop):
            if peer.ended is not None:
                return
            await peer.send(data[start:start + self.chop])
            await asyncio.sleep(self.gap)


@dataclass(frozen=True, slots=True)
class HalfClose:
    """Send FIN and go on reading."""

    async def run(self, peer: Peer) -> None:
        peer.half_close()


@dataclass(frozen=True, slots=True)
class Reset:
    """Leave with a TCP reset; the server must serve the next connection."""

    async def run(self, peer: Peer) -> None:
        await asyncio.sleep(0.02)  # let what was sent be read, so that the reset hits a server in the middle of it
        await peer.reset()
        await once_more(peer)


@dataclass(frozen=True, slots=True)
class OnceMore:
    """Another connection is served as if nothing had happened."""

    async def run(self, peer: Peer) -> None:
        await once_more(peer)


async def once_more(peer: Peer) -> None:
    """Open a connection of its own, have one message echoed, close it."""
    await aside(peer, (*OPEN, Send(wire.text("still there?")), Get(wire.TEXT, b"still there?"), *BYE))


async def aside(peer: Peer, steps: tuple[Step, ...]) -> None:
    """Play the steps on another connection; its notes are the case's."""
    other = Peer(peer.target, peer.patience)
    await other.connect()
    try:
        for step in steps:
            await step.run(other)
    finally:
        await other.release()
    peer.notes += other.notes


@dataclass(frozen=True, slots=True)
class EveryCut:
    """The octets in two writes, cut at every place in turn; each time the steps must find the same."""

    data: bytes
    steps: tuple[Step, ...]

    async def run(self, peer: Peer) -> None:
        data = peer.target.fill(self.data)
        for first in range(1, len(data), 4):
            await asyncio.gather(*(self.cut(peer, data, cut) for cut in range(first, min(first + 4, len(data)))))

    async def cut(self, peer: Peer, data: bytes, cut: int) -> None:
        try:
            await aside(peer, (Send(data[:cut], chop=cut, gap=2 * GAP), Send(data[cut:]), *self.steps))
        except Failed as failure:
            raise Failed(f"cut before octet {cut}: {failure}") from None


# what must come back before the upgrade

@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response.  101 must be the handshake's in every line; any other is followed by the end of the stream."""

    status: int | tuple[int, ...]  # one of these
    also: tuple[int, ...] = ()  # statuses that the standards allow as well
    key: str = wire.KEY  # the Sec-WebSocket-Key that was sent
    lines: tuple[tuple[str, str], ...] = ()  # that a refusal must have: (name in lower case, value)
    quiet: bool = False  # whether ending the stream without a response is allowed as well
    within: float = 0  # s; 0 for the runner's patience
    bodiless: bool = False  # it answers HEAD: a length, and no body

    async def run(self, peer: Peer) -> None:
        wanted = self.status if isinstance(self.status, tuple) else (self.status,)
        names = " or ".join(map(str, wanted))
        with peer.waiting(self.within):
            response = await peer.response()
        if response is None:
            if not self.quiet:
                raise Failed(f"expected {names}, and the stream ended without a response")
            return peer.notes.append(f"the stream ended without a response, {names} is expected")
        if response.status not in wanted:
            if response.status not in self.also:
                raise Failed(f"expected {names}, got {response.status}")
            peer.notes.append(f"answered {response.status}, {names} is expected")
        if response.status == 101:
            return judge_upgrade(response, self.key)
        for name, value in self.lines:
            if response.one(name) != value:
                raise Failed(f"the {response.status} has {name}: {response.all(name)}, expected {value}")
        await judge_refusal(peer, response, self.bodiless)


def judge_upgrade(response: Response, key: str) -> None:
    """Failed unless the 101 is what 4.2.2 says, with nothing agreed that was not offered."""
    if response.version != "HTTP/1.1":
        raise Failed(f"the 101 is {response.version}")
    if (response.one("upgrade") or "").lower() != "websocket":
        raise Failed(f"the 101 has Upgrade: {response.all('upgrade')}")
    if "upgrade" not in (response.one("connection") or "").lower().replace(" ", "").split(","):
        raise Failed(f"the 101 has Connection: {response.all('connection')}")
    if response.one("sec-websocket-accept") != wire.accept(key):
        raise Failed(f"the 101 has Sec-WebSocket-Accept: {response.all('sec-websocket-accept')}")
    for name in ("sec-websocket-extensions", "sec-websocket-protocol"):
        if response.all(name):
            raise Failed(f"the 101 agrees to {name}: {response.all(name)}")
    for name in ("content-length", "transfer-encoding"):
        if response.all(name):
            raise Failed(f"the 101 has a {name}")


async def judge_refusal(peer: Peer, response: Response, bodiless: bool = False) -> None:
    """After a refusal nothing but its body may come, and the stream should end."""
    if not bodiless:
        await peer.body(response)
    try:
        behind = await peer.have(1, "the end of the stream")
    except Silent as failure:
        return peer.notes.append(f"the connection stays open after the {response.status} ({failure})")
    if behind:
        raise Failed(f"octets behind the {response.status}: {peer.take(1)!r}...")


# what must come back after the upgrade

@dataclass(frozen=True, slots=True)
class Get:
    """This message or Pong, and no other."""

    opcode: int
    payload: bytes | Callable[[], bytes]
    optional: bool = False  # whether a Close may come in its place, because the octets behind it deserve one

    async def run(self, peer: Peer) -> None:
        want = Got(self.opcode, self.payload() if callable(self.payload) else self.payload)
        got = await peer.next(str(want))
        if self.optional and (got is None or got.opcode == wire.CLOSE):
            peer.notes.append(f"not answered before the failure: {want}")
            return peer.keep(got)
        if got != want:
            raise Failed(f"expected {want}, got {got or 'the end of the stream'}")


@dataclass(frozen=True, slots=True)
class GetAll:
    """These messages and Pongs; a Pong may overtake messages, since 5.5.2 wants it as soon as possible."""

    due: tuple[tuple[int, bytes], ...]

    async def run(self, peer: Peer) -> None:
        due = [Got(*item) for item in self.due]
        while due:
            got = await peer.next(str(due[0]))
            turn = next((want for want in due if got and want.opcode == got.opcode), None)
            if turn is None or got != turn:
                raise Failed(f"expected {due[0]}, got {got or 'the end of the stream'}")
            if got != due[0]:
                peer.notes.append(f"{got} overtook {due[0]}" if got.opcode == wire.PONG else f"{due[0]} came late")
            due.remove(got)


@dataclass(frozen=True, slots=True)
class GetPongs:
    """A Pong for each of the Pings; 5.5.3 allows leaving out any but the last."""

    payloads: tuple[bytes, ...]

    async def run(self, peer: Peer) -> None:
        due = list(self.payloads)
        while due:
            got = await peer.next(f"the Pong for {due[0]!r}")
            if got is None or got.opcode != wire.PONG or got.payload not in due:
                raise Failed(f"expected the Pong for {due[0]!r}, got {got or 'the end of the stream'}")
            if skipped := due.index(got.payload):
                peer.notes.append(f"{skipped} Pings in a row have one Pong")
            del due[:skipped + 1]


@dataclass(frozen=True, slots=True)
class Fails:
    """The server fails the connection (7.1.7): Close with the code, then the end of the stream."""

    code: int
    also: tuple[int, ...] = ()  # codes that the standard allows as well
    within: float = 0  # s; 0 for the runner's patience

    async def run(self, peer: Peer) -> None:
        with peer.waiting(self.within):
            got = await peer.next(f"Close {self.code}")
        if got is None:
            return peer.notes.append(f"the TCP connection ended without a Close frame, {self.code} is expected")
        if got.opcode != wire.CLOSE or got.code not in (self.code, *self.also):
            raise Failed(f"expected Close {self.code}, got {got}")
        if got.code != self.code:
            peer.notes.append(f"Close {got.code}, {self.code} is expected")
        await peer.send(wire.close(self.code))
        await ends(peer)


@dataclass(frozen=True, slots=True)
class FailsEarly:
    """The server fails the connection before the rest is sent; doing so only after the rest is allowed."""

    code: int
    rest: bytes

    async def run(self, peer: Peer) -> None:
        try:
            with peer.waiting(peer.patience / 2):
                early = await peer.next("")
        except Silent:
            peer.notes.append(f"{self.code} only after {len(self.rest)} octets more")
            await peer.send(self.rest)
        else:
            peer.keep(early)
        await Fails(self.code).run(peer)


@dataclass(frozen=True, slots=True)
class Closes:
    """The server answers our Close (5.5.1), then ends TCP, first and cleanly (7.1.1); nothing else comes."""

    code: int | None
    also: tuple[int | None, ...] = (1000,)

    async def run(self, peer: Peer) -> None:
        got = await peer.next("the Close that answers ours")
        if got is None:
            raise Failed("the stream ended without a Close that answers ours (5.5.1)")
        if got.opcode != wire.CLOSE:
            raise Failed(f"expected Close {self.code}, got {got}")
        if got.code != self.code:
            if got.code not in self.also:
                raise Failed(f"expected Close {self.code}, got {got}")
            peer.notes.append(f"answered with Close {got.code}, {self.code} is usual")
        await ends(peer)
        if peer.ended != "FIN":
            peer.notes.append("the TCP connection was reset, not closed (7.1.1)")


@dataclass(frozen=True, slots=True)
class Ends:
    """The TCP connection ends; a Close frame may come before."""

    async def run(self, peer: Peer) -> None:
        got = await peer.next("the end of the stream")
        if got is not None and got.opcode != wire.CLOSE:
            raise Failed(f"expected the end of the stream, got {got}")
        await ends(peer)


@dataclass(frozen=True, slots=True)
class Gone:
    """The TCP connection ends, whatever is said before."""

    async def run(self, peer: Peer) -> None:
        while await peer.have(1, "the end of the stream"):
            peer.take(1)


async def ends(peer: Peer) -> None:
    """Failed unless the server ends the stream now, without another octet."""
    if await peer.have(1, "the end of TCP by the server"):
        raise Failed(f"octets behind the Close frame: {peer.take(1)!r}... (5.5.1)")


# scripts

def ask(head: bytes, chop: int = 0, gap: float = GAP) -> Send:
    """Send a request head, and whatever is glued to it."""
    return Send(head, chop, gap, fill=True)


OPEN: tuple[Step, ...] = (ask(wire.head()), Answer(101))
BYE: tuple[Step, ...] = (Send(wire.close(1000)), Closes(1000))


def case(id: str, title: str, section: str, *steps: Step, heavy: bool = False) -> Case:
    """A case on an open connection."""
    return Case(id, title, section, (*OPEN, *steps), heavy)


def raw(id: str, title: str, section: str, *steps: Step, heavy: bool = False) -> Case:
    """A case that begins with TCP alone."""
    return Case(id, title, section, steps, heavy)


def echo(id: str, title: str, section: str, opcode: int, payload: bytes, *, chop: int = 0, heavy: bool = False) -> Case:
    """A message in one frame, which comes back and leaves the connection healthy."""
    return case(id, title, section, Send(wire.frame(opcode, payload), chop), Get(opcode, payload), *BYE, heavy=heavy)
