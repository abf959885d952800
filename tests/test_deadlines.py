"""A connection's deadlines pass when they should, although one from which media comes is hardly looked at."""
import socket
from types import SimpleNamespace

from hypothesis import given, settings, strategies as st

from opusagent._fastpath import EpollSet, ReceiveBuffer, build_frame
from opusagent.config import Config
from opusagent.metrics import Metrics
from opusagent.transport.connection import Connection, Limits
from opusagent.transport.door import Pending

SECOND = 1_000_000_000
LOOK = SECOND // 4
LIMITS = Limits(1 << 16, 100, message_seconds=2, idle_seconds=6, bytes_per_second=20_000, controls_per_second=3)
MEDIA = build_frame(2, bytes(4000), True, b"mask")      # a fifth of what a second may bring
PING = build_frame(9, b"", True, b"mask")


class Session:
    """Begins at once, or never; keeps what it was told at the end."""

    def __init__(self, begins):
        self.begins, self.messages, self.told = begins, 0, None

    def on_message(self, opcode, payload):
        self.messages += 1

    def drained(self):
        """Nothing waits here."""

    def overdue(self, now):
        return not self.begins and now > 10 * SECOND

    def lost(self, code, reason):
        self.told = code, reason


class Line:
    """A peer, and the connection that it is served by, looked at every LOOK; `wary`: all of it at every look."""

    def __init__(self, wary, begins):
        self.wary, self.now, self.looks, self.ended_at = wary, SECOND, 0, None
        self.server = SimpleNamespace(
            clock=lambda: self.now, config=Config(), metrics=Metrics(), connections=set(), buffer=ReceiveBuffer(),
            epoll=EpollSet(ReceiveBuffer()), pending=Pending(Connection.give_way), continuity=None,
            routes=SimpleNamespace(takes_post=lambda path: False))
        self.peer, ours = socket.socketpair()
        ours.setblocking(False)
        self.connection = Connection(self.server)
        self.connection.go_on(ours.detach(), LIMITS, b"")
        self.session = self.connection.session = Session(begins)
        self.connection.wire.on_message = self.session.on_message

    def live(self, data):
        """A quarter of a second in which this comes."""
        if data and self.ended_at is None:
            self.peer.sendall(data)
        self.server.epoll.poll()
        self.now += LOOK
        flows = not self.wary and self.connection.wire.flows(self.now)
        if self.connection in self.server.connections and not flows:
            self.looks += 1
            self.connection.sweep(self.now)
        if self.session.told is not None or self.connection.lingers or self.connection.ws.close_code != 1006:
            self.ended_at = self.ended_at or self.now

    def close(self):
        self.connection.forget()
        self.server.epoll.close()
        self.peer.close()

    def story(self):
        return self.ended_at, self.session.told, self.session.messages, self.connection.ws.close_code


def lived(pieces, wary, begins=True):
    line = Line(wary, begins)
    try:
        for piece in pieces:
            line.live(piece)
        return line.story(), line.looks
    finally:
        line.close()


PIECES = st.sampled_from([MEDIA, MEDIA, MEDIA, MEDIA + PING, MEDIA[:50], MEDIA[50:], MEDIA * 4, 9 * PING, b""])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(PIECES, st.integers(1, 30)), max_size=8), st.booleans())
def test_who_is_hardly_looked_at_ends_as_one_who_is_always_looked_at(parts, begins):
    pieces = [piece for piece, times in parts for _ in range(times)]
    assert lived(pieces, False, begins)[0] == lived(pieces, True, begins)[0]


def test_while_media_comes_a_connection_is_looked_at_once_per_ping():
    story, looks = lived([MEDIA] * 240, wary=False)         # a minute
    assert story[:3] == (None, None, 240) and looks <= 15


def test_a_message_without_its_end_is_not_waited_for_however_calm_it_was_before():
    (ended_at, told, *_), _ = lived([MEDIA] * 21 + [MEDIA[:50]] + [MEDIA[50:60]] * 12, wary=False)
    assert told == (1008, "a message took too long to arrive") and ended_at <= SECOND + 34 * LOOK


def test_what_is_too_much_is_too_much_after_a_calm_time_too():
    (ended_at, told, *_), _ = lived([MEDIA] * 21 + [MEDIA * 8] * 16, wary=False)
    assert told == (1008, "more comes than a call needs")
