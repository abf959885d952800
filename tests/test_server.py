"""The worker itself: what goes on whatever happens to a call."""
import asyncio
import itertools
import time
from types import SimpleNamespace

import orjson
from opusagent.board import GONE_NS, SERVING, Board
from opusagent.config import Config
from opusagent.metrics import Metrics
from opusagent.server import pages
from opusagent.server.worker import Server


def test_the_clock_ticks_on_whatever_goes_wrong_at_a_tick():
    """Speech is paced and deadlines are kept by it."""
    ticks, told = [], []

    def stumble():
        ticks.append(server.now)
        raise ZeroDivisionError

    async def three_ticks():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["exception"]))
        server._arm(server.clock())
        async with asyncio.timeout(10):
            while len(ticks) < 3:
                await asyncio.sleep(0.01)
        server._timer.cancel()

    server = Server(Config(), SimpleNamespace(hearing=SimpleNamespace(run=stumble)), Metrics())
    asyncio.run(three_ticks())
    server.epoll.close()
    assert {type(error) for error in told} == {ZeroDivisionError}


def test_the_clock_ticks_however_many_calls_begin_and_end():
    """At each turn of the loop one does, for as long as that takes: those that are here have their frames to send."""
    async def three_ticks():
        server._arm(server.clock())
        async with asyncio.timeout(10):
            while len(ticks) < 3:
                server.calls_changed()
                await asyncio.sleep(0)
        server._timer.cancel()

    ticks = []
    server = Server(Config(), SimpleNamespace(hearing=SimpleNamespace(run=None)), Metrics())
    server.calls["a call"] = None
    server._look_after = lambda now, late: ticks.append(now)
    asyncio.run(three_ticks())
    server.epoll.close()


def test_getting_ready_is_no_load():
    """Prompts are rendered and models loaded before the worker listens: the first callers are not refused for that."""
    async def started() -> float:
        server = Server(Config(), SimpleNamespace(hearing=SimpleNamespace(run=lambda: None), fault=str), Metrics())
        until = time.process_time() + 0.5
        while time.process_time() < until:
            pass
        await server.start([])
        await asyncio.sleep(0.5)                    # ten ticks: none of them looks back to before the start
        assert not server.admission.full
        server.admission.look(server.clock())
        await server.stop()
        return server.admission.load

    assert asyncio.run(started()) < 0.7


def test_a_worker_gives_no_sign_of_life_whose_calls_do_not_move_but_some_may_stand():
    board = Board(2)
    server = Server(Config(), SimpleNamespace(hearing=SimpleNamespace(run=lambda: None), fault=str), Metrics(),
                    board, board.seats[1])
    server.show = lambda: None

    def seconds_of_life(**calls):
        """Of ten, with these calls, none of which moves."""
        server.calls, alive = calls, 0
        for _ in range(10):
            now = next(seconds)
            server._beat(now)
            alive += server.seat.beat == now
        return alive

    def call(done=False, detector=()):
        dialect = SimpleNamespace(detector=detector)
        return SimpleNamespace(slot=SimpleNamespace(written=8000), done=done, dialect=dialect)

    seconds = itertools.count(server.pulse.whole, 1_000_000_000)
    server.pulse.whole += 60_000_000_000
    assert seconds_of_life() == 10
    assert seconds_of_life(client=call(detector=None), leaving=call(done=True)) == 10
    assert seconds_of_life(client=call(detector=None), stuck=call(detector={}), other=call()) == 1
    server.epoll.close()


def test_a_predecessors_calls_count_while_its_workers_give_a_sign_of_life_and_its_records_stay():
    before = Board(2)
    for number, live in enumerate((True, False)):
        before.seats[1].write_record(before.seats[1].new_record(), {"id": f"CA{number}", "live": live, "turns": []})
    for name, value in (("state", SERVING), ("calls", 1), ("beat", time.monotonic_ns())):
        before.seats[1].put(name, value)
    board = Board(2, before=before.passed_on())
    assert board.sum("calls") == 1 and [call["id"] for call in board.latest(10)] == ["CA0", "CA1"]
    assert board.passed_on() == [board.fd, before.fd] and b"CA0" in board.record("CA0")
    before.seats[1].put("beat", time.monotonic_ns() - GONE_NS)      # it was killed, and says nothing of that
    assert board.sum("calls") == 0 and not board.latest(10)
    assert board.passed_on() == [board.fd]
    assert {call["id"]: call["live"] for call in board.latest(10)} == {"CA0": False, "CA1": False}


def test_counts_go_on_through_upgrades_and_after_what_was_before_has_ended():
    """Of a worker that has left, of one that finishes calls still, and of their successors."""
    def counts(board):
        total = board.total()
        return total.counters["calls", ()], total.frames.count

    def works(board, seat):
        metrics = board.seats[seat].metrics()
        metrics.count("calls")
        metrics.frame(1000)
        board.seats[seat].publish(metrics)
        for name, value in (("state", SERVING), ("beat", time.monotonic_ns())):
            board.seats[seat].put(name, value)
    first = Board(2)
    works(first, 1)
    works(first, 2)
    first.leave(1)
    second = Board(2, before=first.passed_on())
    works(second, 1)
    assert counts(second) == (3, 3)
    third = Board(2, before=second.passed_on())         # while calls of the first finish
    works(third, 1)
    works(first, 2)
    assert counts(third) == (5, 5)
    for board in (first, second):
        for seat in board.living():
            seat.put("beat", time.monotonic_ns() - GONE_NS)
    fourth = Board(2, before=third.passed_on())
    assert counts(third) == counts(fourth) == (5, 5) and len(fourth.before) == 1


def test_a_list_of_calls_counts_those_of_this_moment():
    """Not those that the worker had when it gave its last sign of life."""
    board = Board(2)
    server = Server(Config(), SimpleNamespace(hearing=SimpleNamespace(run=None)), Metrics(), board, board.seats[1])
    board.seats[1].put("state", SERVING)
    board.seats[1].put("calls", 7)
    assert orjson.loads(pages.calls(server, None)[1]) == {"active_calls": 0, "calls": []}
    server.epoll.close()


def test_a_worker_gives_no_sign_of_life_whose_engines_have_been_silent_for_long():
    fault = "The stt process does not answer."
    beats = []
    board = Board(2)
    server = Server(Config(), SimpleNamespace(hearing=SimpleNamespace(run=lambda: None), fault=lambda: fault),
                    Metrics(), board, board.seats[1])
    server.show = lambda: None
    began = server.clock()
    for second in range(40):
        now = began + second * 1_000_000_000
        fault = "The stt process does not answer." if second > 3 else ""
        server._look_after(now)
        beats.append((server.seat.beat - began) // 1_000_000_000)
    server.epoll.close()
    assert beats == [*range(33), *[32] * 7]         # 30 seconds from the last time that they answered
