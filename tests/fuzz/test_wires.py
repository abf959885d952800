"""Many wires in one set, over real socket pairs: each is its twin, whatever the others send, and in whatever order."""
import select

from hypothesis import given
from hypothesis import strategies as st
from test_sockets import Owner, pair
from test_websocket import Plain

from opusagent import ProtocolError
from opusagent._fastpath import EpollSet, ReceiveBuffer, build_frame

from . import examples
from .streams import KEYS, pieces, streams

LIMIT = 500
EACH_TURN = 64                  # messages delivered from one wire at once
FLOOD = 4000                    # frames


class Peer:
    """The other end of a wire whose owner echoes or only listens."""

    def __init__(self, home, wire: bytes, wire_pieces, echoes: bool, lockstep: bool):
        twin = Plain(LIMIT)
        twin.data = wire
        found, self.code = twin.messages()
        self.messages = [body for opcode, body in found if not opcode & 8]
        self.controls = [(opcode, body) for opcode, body in found if opcode & 8]
        self.waiting = list(wire_pieces)
        ours, self.end = pair(small=True)
        self.end.setblocking(False)
        self.echoes = echoes
        self.owner = Owner(ours, home, self.echo if echoes else None, LIMIT)
        self.owner.wire.lockstep = lockstep
        self.heard = b""

    def echo(self, owner) -> None:
        owner.wire.send(2, owner.messages[-1])

    def send(self) -> None:
        if self.waiting and self.owner.wire.fd >= 0:
            self.end.sendall(self.waiting.pop(0))

    def hear(self) -> None:
        try:
            while piece := self.end.recv(1 << 16):
                self.heard += piece
        except (BlockingIOError, ConnectionResetError):
            return

    def check(self) -> None:
        """All it sent was heard, or its fault ended it."""
        assert (self.owner.messages, self.owner.controls) == (self.messages, self.controls)
        assert [error.code for error in self.owner.faults] == [self.code] * (self.code is not None)
        assert all(isinstance(error, ProtocolError) for error in self.owner.faults) and not self.owner.ends
        if self.echoes:
            assert self.heard == b"".join(build_frame(2, body) for body in self.messages)


@st.composite
def peers(draw):
    wire = draw(streams())
    return wire, draw(pieces(wire)), draw(st.booleans()), draw(st.booleans())


@examples(80)
@given(st.lists(peers(), min_size=1, max_size=5), st.data())
def test_each_wire_is_its_twin_whatever_the_others_do(plans, data):
    home = EpollSet(ReceiveBuffer(1 << 16))
    everybody = [Peer(home, *plan) for plan in plans]
    try:
        for _ in range(2 * sum(len(peer.waiting) + 1 for peer in everybody)):
            peer = data.draw(st.sampled_from(everybody))
            data.draw(st.sampled_from([peer.send, peer.send, peer.hear, home.poll]))()
            assert all(peer.owner.wire.parser.held <= 4096 for peer in everybody)
        while any(peer.waiting and peer.owner.wire.fd >= 0 for peer in everybody):
            for peer in everybody:
                peer.send()
            come_to_rest(home, everybody)
        come_to_rest(home, everybody)
        for peer in everybody:
            peer.check()
    finally:
        for peer in everybody:
            peer.owner.wire.close()
            peer.end.close()
        home.close()


def come_to_rest(home, everybody) -> None:
    for _ in range(1000):
        again = home.poll()
        for peer in everybody:
            peer.hear()
        if not again and not select.select([home], [], [], 0)[0]:
            return
    raise AssertionError("the set never comes to rest")


@examples(10)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(6, 12), KEYS)
def test_however_many_wires_are_flooded_none_is_served_more_than_its_turns(sizes, rounds, key):
    home, floods = EpollSet(ReceiveBuffer(1 << 16)), []
    for size in sizes:
        ours, end = pair()
        end.setblocking(False)
        frame = build_frame(2, bytes(size), True, key)
        floods.append(Flood(end, frame * FLOOD, Owner(ours, home)))
    try:
        for _ in range(rounds):
            for flood in floods:
                flood.fill()
            home.poll()
            for flood in floods:        # a turn, and what came when that was through
                assert not flood.owner.faults and EACH_TURN <= len(flood.owner.messages) <= 2 * EACH_TURN
                flood.owner.messages.clear()
    finally:
        for flood in floods:
            flood.owner.wire.close()
            flood.end.close()
        home.close()


class Flood:
    """A peer that sends as much as its socket takes, again and again."""

    def __init__(self, end, frames: bytes, owner: Owner):
        self.end, self.frames, self.owner = end, frames, owner
        self.at = 0                     # of the frames, what was sent

    def fill(self) -> None:
        try:
            while True:
                self.at = (self.at + self.end.send(self.frames[self.at:])) % len(self.frames)
        except BlockingIOError:
            return
