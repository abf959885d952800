"""The door: who takes whom, and in what order what was asked for begins, beside all else that the loop has to do."""
import asyncio
import os
import socket
import ssl
import time
import urllib.request
from contextlib import ExitStack
from types import SimpleNamespace
from unittest.mock import Mock

from opusagent import ProtocolError
from opusagent.board import SERVING, Board
from opusagent.config import Config
from opusagent.transport.connection import Connection
from opusagent.transport.door import AT_A_TURN, MOST_PENDING, Pending, Turnstile
from served import SCRIPTED, serving, stat_parent, tls_flags
from test_transport_bounds import echo, upgrade


def test_calls_that_come_at_once_begin_a_few_at_each_turn_of_the_loop():
    """Whatever else is to be done comes in between."""
    async def scenario():
        turnstile, begun, seen = Turnstile(), [], []
        for call in range(2 * AT_A_TURN):
            turnstile.enter(lambda call=call: begun.append(call))
        turnstile.enter(lambda: turnstile.enter(lambda: begun.append("late")))
        while "late" not in begun:
            await asyncio.sleep(0)
            seen.append(len(begun))
        turnstile.enter(lambda: begun.append("last"))       # and when it was empty, it goes on
        await asyncio.sleep(0)
        return begun, seen
    begun, seen = asyncio.run(scenario())
    assert begun == [*range(2 * AT_A_TURN), "late", "last"]
    assert seen == [AT_A_TURN, 2 * AT_A_TURN, 2 * AT_A_TURN, 2 * AT_A_TURN + 1]


def test_each_worker_takes_its_share_of_those_who_wait_and_of_one_alone_the_least_busy():
    board = Board(3)
    for seat, (state, full, connections) in zip(board.seats[1:], ((SERVING, 0, 10), (SERVING, 0, 4), (SERVING, 1, 2))):
        for name, value in (("state", state), ("full", full), ("connections", connections)):
            seat.put(name, value)
    assert not board.least(0, 10, 1) and board.least(0, 4, 1)
    assert not board.least(0, 10, 6) and board.least(0, 10, 8)      # then both would have eleven
    assert not board.least(1, 2, 1000)                              # a full one takes none
    board.seats[2].put("full", 1)
    assert board.least(0, 10, 1)


def test_a_thousand_who_come_at_once_are_spread_evenly():
    """Nobody among them says a word, and whoever comes behind them is answered."""
    with serving(*SCRIPTED[2:], "--workers", "3", "--net-head-seconds", "60") as server, ExitStack() as lines:
        workers = [pid for pid in server.family() if stat_parent(pid) == server.process.pid]
        before = [len(os.listdir(f"/proc/{pid}/fd")) for pid in workers]
        for _ in range(1000):
            line = lines.enter_context(socket.socket())
            line.setblocking(False)
            line.connect_ex((server.host, server.port))
        with urllib.request.urlopen(f"http://{server.host}:{server.port}/livez", timeout=30) as page:
            assert page.status == 200
        taken, until = [], time.monotonic() + 30
        while sum(taken) < 1000 and time.monotonic() < until:       # the page may be another worker's answer
            taken = [len(os.listdir(f"/proc/{pid}/fd")) - count for pid, count in zip(workers, before)]
        assert sum(taken) >= 1000 and min(taken) >= 320, taken


def answer(line):
    """All that the server says until it closes the line."""
    return b"".join(iter(lambda: line.recv(4096), b""))


def test_of_a_crowd_that_says_nothing_who_has_waited_longest_gives_way():
    """Whatever time they have, there are no more than MOST_PENDING; who says what he wants is served beside them."""
    with serving(*SCRIPTED, "--net-head-seconds", "60") as server, ExitStack() as lines:
        where = server.host, server.port
        first, second, third, *_ = [lines.enter_context(socket.create_connection(where, 30))
                                    for _ in range(MOST_PENDING)]
        call = lines.enter_context(upgrade("/ws/echo", where))
        assert answer(first).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        second.sendall(b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n")
        assert answer(second).startswith(b"HTTP/1.1 200 OK\r\n")
        for _ in range(3):                      # in the place of the call, of the page, and of the third
            lines.enter_context(socket.create_connection(where, 30))
        assert answer(third).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        echo(call, 3)


def test_of_a_crowd_that_begins_no_handshake_who_has_waited_longest_gives_way(tmp_path):
    """That is so by TLS, where whoever says nothing has three times as long."""
    with serving(*SCRIPTED, *tls_flags(tmp_path)) as server, ExitStack() as lines:
        where, tls = (server.host, server.port), ssl._create_unverified_context()
        call = lines.enter_context(upgrade("/ws/echo", where, tls=tls))
        crowd = [lines.enter_context(socket.create_connection(where, 30)) for _ in range(MOST_PENDING + 99)]
        echo(lines.enter_context(upgrade("/ws/echo", where, tls=tls)), 3)
        for line in crowd[:100]:
            line.setblocking(False)
            assert line.recv(1) == b""          # it has ended by now: that was not waited for
        echo(call, 3)
        assert "Traceback" not in server.written()


class Line(Mock):
    """An event loop's transport, of TLS or not, that keeps what is done with it."""

    def __init__(self, tls=None, **more):
        super().__init__(**more)
        self.get_extra_info = {"sslcontext": tls, "peername": ("127.0.0.1", 1)}.get


def connection(line, **server):
    """One that has come by this line."""
    made = Connection(SimpleNamespace(routes=Mock(takes_post=lambda path: False), continuity=None, metrics=Mock(),
                                      config=Config(), tock=lambda: 1, clock=lambda: 1, connections=set(),
                                      pending=Pending(Connection.give_way), **server))
    made.transport = line
    return made


REQUEST = memoryview(b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n")


def test_pages_that_are_asked_for_at_once_are_answered_a_few_at_each_turn_of_the_loop():
    async def scenario():
        server = {"turnstile": Turnstile(), "page": lambda connection, head, body: b"the page"}
        lines = [Line() for _ in range(2 * AT_A_TURN + 1)]
        for line in lines:
            connection(line, **server)._read_head(REQUEST)
        seen = []
        for _ in range(3):
            await asyncio.sleep(0)
            seen.append(sum(line.write.called for line in lines))
        assert seen == [AT_A_TURN, 2 * AT_A_TURN, 2 * AT_A_TURN + 1]
        for line in lines:
            assert [call[0] for call in line.method_calls] == ["pause_reading", "resume_reading", "write", "write_eof"]
    asyncio.run(scenario())


def test_an_answer_by_tls_is_not_waited_for_and_its_side_is_closed_behind_it():
    async def scenario():
        line = Line(tls="a context")
        connection(line, page=lambda connection, head, body: b"the page")._read_head(REQUEST)
        assert [call[0] for call in line.method_calls] == ["resume_reading", "write"]   # the line is still reading
        await asyncio.sleep(0)
        assert [call[0] for call in line.method_calls] == ["resume_reading", "write", "close"]
    asyncio.run(scenario())


def test_a_peer_that_is_reset_before_it_is_refused_is_no_error_of_ours():
    made = connection(Line(**{"write_eof.side_effect": OSError(107, "Transport endpoint is not connected")}))
    made.fault(ProtocolError(408, "The request head took too long."))
    assert made.lingers
