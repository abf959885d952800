"""The turnstile: in what order what was asked for begins, beside everything else that the loop has to do."""
import asyncio
from types import SimpleNamespace
from unittest.mock import Mock

from opusagent import ProtocolError
from opusagent.config import Config
from opusagent.transport.connection import Connection
from opusagent.transport.door import AT_A_TURN, Turnstile


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


class Line(Mock):
    """An event loop's transport, of TLS or not, that keeps what is done with it."""

    def __init__(self, tls=None, **more):
        super().__init__(**more)
        self.get_extra_info = {"sslcontext": tls, "peername": ("127.0.0.1", 1)}.get


def connection(line, **server):
    """One that has come by this line."""
    made = Connection(SimpleNamespace(takes_post=lambda path: False, continuity=None, metrics=Mock(), config=Config(),
                                      tock=lambda: 1, clock=lambda: 1, connections=set(), **server))
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
