"""The worker's event loop: calls are served inside its wait, and everything else of asyncio is as prompt as it was."""
import asyncio
import errno
import os
import resource
import signal
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from opusagent._fastpath import EpollSet, FrameParser, ReceiveBuffer, Wire, build_frame
from opusagent.transport.door import Door
from opusagent.transport.loop import Loop, attach, detach

HELLO = build_frame(2, b"hello", True, b"\1\2\3\4")
SOON = 5.0          # seconds: what must come at once comes within them on any machine, and else not at all


def run(scenario):
    """Run `scenario(wires)` on a Loop that sleeps in the EpollSet `wires`."""
    async def attached():
        wires = EpollSet(ReceiveBuffer())
        attach(wires)
        try:
            async with asyncio.timeout(SOON):
                return await scenario(wires)
        finally:
            detach(wires)
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(attached())


@contextmanager
def call(wires, on_message, on_fault=None):
    """The far end of a connection whose messages go to on_message(payload)."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    wire = Wire(ours.detach(), FrameParser(1 << 16), lambda opcode, payload: on_message(bytes(payload)), None,
                on_fault or (lambda error: wire.close()), lambda error: wire.close(), lambda: None)
    wires.add(wire)
    try:
        yield theirs
    finally:
        wire.close()
        theirs.close()


def test_what_a_message_leaves_for_later_is_done_when_all_are_served_and_once():
    async def scenario(wires):
        order, done = [], asyncio.Event()

        def afterwards():
            assert not wires.serving and wires.afterwards is None
            order.append("afterwards")
            asyncio.get_running_loop().call_soon(done.set)

        def on_message(payload):
            assert wires.serving
            order.append(payload)
            wires.afterwards = afterwards
        with call(wires, on_message) as first, call(wires, on_message) as second:
            first.send(HELLO)
            second.send(HELLO)
            await done.wait()
        assert order == [b"hello", b"hello", "afterwards"]
    run(scenario)


def test_a_message_is_served_without_a_turn_of_the_loop():
    async def scenario(wires):
        done, turns = asyncio.Event(), []
        loop = asyncio.get_running_loop()
        select = loop.calls.select
        loop.calls.select = lambda timeout=None: turns.append(timeout) or select(timeout)
        messages = []

        def on_message(payload):
            messages.append(payload)
            if len(messages) < 20:
                theirs.send(HELLO)
            else:
                loop.call_soon(done.set)
        with call(wires, on_message) as theirs:
            theirs.send(HELLO)
            await done.wait()
        return messages, len(turns)

    messages, turns = run(scenario)
    assert messages == [b"hello"] * 20
    assert turns < 10


@pytest.mark.parametrize("way", ["call_soon", "call_later", "future", "task", "threadsafe", "thread", "descriptor"])
def test_work_that_a_message_brings_is_done_at_once(way):
    """The loop is asleep for an hour when the message comes."""
    async def scenario(wires):
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        future = loop.create_future()
        near, far = socket.socketpair()
        hour = loop.call_later(3600, done.clear)

        async def later():
            done.set()

        def on_readable():
            loop.remove_reader(near)
            done.set()
        future.add_done_callback(lambda _: done.set())
        loop.add_reader(near, on_readable)
        ways = {"call_soon": lambda: loop.call_soon(done.set), "call_later": lambda: loop.call_later(0.01, done.set),
                "future": lambda: future.set_result(None), "task": lambda: ways.update(kept=loop.create_task(later())),
                "threadsafe": lambda: loop.call_soon_threadsafe(done.set),
                "thread": lambda: threading.Thread(target=lambda: loop.call_soon_threadsafe(done.set)).start(),
                "descriptor": lambda: far.send(b"x")}
        with near, far, call(wires, lambda payload: ways[way]()) as theirs:
            loop.call_later(0.02, theirs.send, HELLO)
            await done.wait()
        hour.cancel()
    run(scenario)


def test_a_flood_of_messages_keeps_neither_timers_nor_descriptors_waiting():
    async def scenario(wires):
        loop, done = asyncio.get_running_loop(), []
        near, far = socket.socketpair()
        both = asyncio.Event()

        def got(what):
            loop.remove_reader(near)
            done.append(what)
            if len(done) == 2:
                both.set()
        loop.add_reader(near, got, "descriptor")
        loop.call_later(0.02, got, "timer")
        with near, far, call(wires, lambda payload: theirs.send(HELLO)) as theirs:
            theirs.send(HELLO)              # which answers itself for ever
            far.send(b"x")
            await both.wait()
        return done
    assert sorted(run(scenario)) == ["descriptor", "timer"]


def test_what_nobody_catches_is_told_and_the_loop_goes_on():
    async def scenario(wires):
        loop, told, heard = asyncio.get_running_loop(), [], asyncio.Event()
        loop.set_exception_handler(lambda loop, context: told.append(context["exception"]))

        def fail(what):
            raise ValueError(what)
        with call(wires, lambda payload: fail("a message"), lambda error: fail("its fault")) as bad, \
                call(wires, lambda payload: loop.call_soon(heard.set)) as good:
            bad.send(HELLO)
            await asyncio.sleep(0.05)
            good.send(HELLO)
            await heard.wait()
        return [str(error) for error in told]
    assert run(scenario) == ["its fault"]


def test_a_timer_is_never_early():
    async def scenario(wires):
        early = []
        for ms in (0.2, 0.9, 1.0, 1.7, 3.3):
            began = time.monotonic()
            await asyncio.sleep(ms / 1000)
            early.append(max(0, began + ms / 1000 - time.monotonic()))
        return max(early)
    assert run(scenario) < 1e-6


def test_a_signal_wakes_it():
    async def scenario(wires):
        came = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, came.set)
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        await came.wait()
    run(scenario)


def test_stop_in_a_message_ends_it():
    with asyncio.Runner(loop_factory=Loop) as runner:
        loop = runner.get_loop()

        async def begin():
            wires = EpollSet(ReceiveBuffer())
            attach(wires)
            return wires
        wires = runner.run(begin())
        with call(wires, lambda payload: loop.stop()) as theirs:
            theirs.send(HELLO)
            giving_up = loop.call_later(SOON, pytest.fail, "it did not stop")
            loop.run_forever()
            giving_up.cancel()

        async def end():
            detach(wires)
        runner.run(end())


def test_without_descriptors_each_connection_is_refused_and_one_line_says_so(caplog):
    async def scenario(wires):
        loop = asyncio.get_running_loop()
        listening = socket.create_server(("127.0.0.1", 0), backlog=50)
        listening.setblocking(False)
        refused = []
        accepting = Door(listening, asyncio.Protocol, None, lambda waiting: True, lambda: refused.append(1))
        peers = [socket.socket() for _ in range(20)]
        for peer in peers:
            peer.setblocking(False)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = max(int(name) for name in os.listdir("/proc/self/fd"))
        filled = [os.dup(0) for _ in range(used + 1 - len(os.listdir("/proc/self/fd")))]
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, hard))
        try:
            while True:
                filled.append(os.dup(0))
        except OSError as error:
            assert error.errno == errno.EMFILE
        try:
            for peer in peers:
                await loop.sock_connect(peer, listening.getsockname())
            return [await loop.sock_recv(peer, 12) for peer in peers], len(refused)
        finally:
            for fd in filled:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for peer in peers:
                peer.close()
            accepting.close()
    assert run(scenario) == ([b"HTTP/1.1 503"] * 20, 20)
    assert [record.getMessage() for record in caplog.records] == ["connections are turned away: Too many open files"]
