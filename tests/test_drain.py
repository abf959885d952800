"""A stop with two hundred calls on: they finish, nobody new comes in, and it takes no longer than it may."""
import asyncio
import signal
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import uvloop
from lines import WebSocketLine

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import restart      # noqa: E402

CALLS = 200
PARTING = len("I am sorry, I have to end this call here. Goodbye.") * restart.MS_PER_CHARACTER * restart.RATE // 1000


@pytest.fixture
def started():
    servers = []

    def start(*flags):
        servers.append(restart.Server(*flags))
        return servers[-1]
    yield start
    for server in servers:
        server.stop()


def with_calls(server, count, then):
    """`count` callers who listen to a long prompt, and what `then(callers)` does with them."""
    async def call():
        callers = restart.Callers(server.port)
        try:
            await callers.dial(count, 0.02 * count)
            return await then(callers)
        finally:
            callers.stop()
    return uvloop.run(call())


def readiness(server):
    try:
        with urlopen(f"http://127.0.0.1:{server.port}/readyz", timeout=10) as answer:
            return answer.status
    except HTTPError as error:
        return error.code


def stop_and_look(server):
    """SIGTERM; what a load balancer and a new caller are told from then on."""
    server.process.send_signal(signal.SIGTERM)
    until = time.monotonic() + 10
    while readiness(server) != 404:
        assert time.monotonic() < until
        time.sleep(0.02)
    late = WebSocketLine("127.0.0.1", server.port, "/ws/pcm")
    late.close()
    return late.status, b"\r\nRetry-After: " in late.head


def test_two_hundred_calls_finish_and_nobody_new_is_let_in(started):
    server = started()

    async def then(callers):
        refused = await asyncio.to_thread(stop_and_look, server)
        await callers.hear_out(60)
        heard = [caller.samples for caller in callers.callers]
        assert await asyncio.to_thread(readiness, server) == 404        # as long as calls are on
        return refused, heard, await callers.answer(40)
    refused, heard, understood = with_calls(server, CALLS, then)
    assert refused == (503, True)
    whole = (2 * len(restart.SENTENCE) * restart.MS_PER_CHARACTER + restart.PAUSE_MS) * restart.RATE // 1000
    assert min(heard) >= whole * 0.99                       # each prompt to its end
    assert understood == CALLS
    assert server.process.wait(15) == 0
    assert server.said().count("ended: completed") == CALLS and "Traceback" not in server.said()


def test_a_stop_after_a_reload_answers_at_the_door_while_calls_of_the_settings_before_are_on(started):
    server = started()

    async def then(callers):
        ready = server.said().count("are ready")
        server.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(30):
            while server.said().count("are ready") < 2 * ready or len(server.workers()) < 2:
                await asyncio.sleep(0.05)
        await asyncio.sleep(2)              # for the worker before to step back; if that takes longer, all holds too
        refused = await asyncio.to_thread(stop_and_look, server)
        await callers.hear_out(60)
        assert await asyncio.to_thread(readiness, server) == 404
        return refused, await callers.answer(40)
    assert with_calls(server, 2, then) == ((503, True), 2)
    assert server.process.wait(15) == 0


def test_a_second_stop_tells_two_hundred_callers_and_ends(started):
    server = started()

    async def then(callers):
        await asyncio.to_thread(stop_and_look, server)
        server.process.send_signal(signal.SIGTERM)
        before = [caller.samples for caller in callers.callers]
        assert await asyncio.to_thread(server.process.wait, 30) == 0
        await asyncio.sleep(0.3)
        return [(caller.closed, caller.samples - heard) for caller, heard in zip(callers.callers, before)]
    ends = with_calls(server, CALLS, then)
    assert all(code == 1000 and more >= PARTING * 0.9 for code, more in ends), ends
    assert server.said().count("ended: drained") == CALLS


def test_a_stop_takes_no_longer_than_drain_seconds_and_the_parting(started):
    server = started("--drain-seconds", "1")

    async def then(callers):
        server.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert await asyncio.to_thread(server.process.wait, 25) == 0
        await asyncio.sleep(0.2)
        return time.monotonic() - began, [caller.closed for caller in callers.callers]
    seconds, closed = with_calls(server, 8, then)
    assert 1 < seconds < 1 + 10 + 5 and closed == [1000] * 8
