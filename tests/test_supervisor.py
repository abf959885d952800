"""The server as a family of processes: what one of them does or suffers, no caller notices.  See bench/restart.py."""
import asyncio
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from opusagent import ProtocolError
from opusagent.client.telephone import Line
from opusagent.daemon.notify import Notify
from opusagent.daemon.succession import Inheritance
from opusagent.daemon.supervisor import HUNG_SECONDS, Supervisor, Worker
from opusagent.dialects import BINARY

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import restart      # noqa: E402

CALLS = 8


@pytest.fixture
def started():
    servers = []

    def start(*flags, **environment):
        servers.append(restart.Server(*flags, environment=environment))
        return servers[-1]
    yield start
    for server in servers:
        server.stop()


def get(server, path):
    """(status, body) of a page."""
    try:
        with urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def health(server):
    return json.loads(get(server, "/health")[1])


def calling(server, count, then, dialect="pcm"):
    """`count` callers, and what `then(callers)` does with them."""
    async def call():
        callers = restart.Callers(server.port_of(dialect), make=restart.CALLERS[dialect])
        try:
            await callers.dial(count, 0.05 * count)
            return await then(callers)
        finally:
            callers.stop()
    return asyncio.run(call())


def until(true, seconds=20):
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up, "it never came"
        time.sleep(0.05)


@pytest.mark.parametrize("dialect", sorted(restart.CALLERS))
@pytest.mark.parametrize("how", ["kill", "upgrade"])
def test_no_call_is_lost_and_nothing_is_said_twice(started, how, dialect):
    server = started()
    row = asyncio.run(restart.measure(how, CALLS, server, dialect))
    assert row["kept"] == CALLS, server.said()
    # no word is missing or comes twice; who is handed over in the pause between two sentences has heard it already
    assert row["off_ms"]["max"] <= 20, row
    assert -20 <= row["pause_off_ms"]["min"] and row["pause_off_ms"]["max"] <= restart.PAUSE_MS + 20, row
    assert "Traceback" not in server.said()
    if how == "upgrade":
        until(lambda: server.process.poll() == 0)           # it left when its successor had everything


def test_a_worker_that_dies_is_replaced_and_counts_go_on(started):
    server = started()

    async def then(callers):
        before = server.workers()
        await asyncio.sleep(0.6)                            # counts are published a few times a second
        os.kill(before[0], signal.SIGKILL)
        await asyncio.to_thread(until, lambda: server.workers() not in (before, []) and get(server, "/livez")[0] == 200)
        await asyncio.sleep(1)
        return server.metric("calls_total"), server.metric('calls_taken_over_total{outcome="kept"}')
    assert calling(server, 3, then) == (3, 3)


STANDS = """
start = "look"
[tools.stand]
effect = "commit"
run = "stands.py:stand"
[states.look]
call = "stand"
results = { done = "bye", failure = "bye" }
[states.bye]
say = "Goodbye."
end = true
"""
STAND = """
import time
from pathlib import Path

async def stand():
    with Path(__file__).with_name("begun").open("a") as begun:
        begun.write("once ")
    time.sleep(600)
"""


def test_a_worker_that_has_only_just_become_ready_has_not_been_silent(monkeypatch):
    """Its seat may be new, or say when the one that died there was last heard of."""
    killed = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    supervisor = Supervisor(1, 1, None, None, None, Notify({}), [], Inheritance({}))
    worker = Worker(supervisor.board.free_seat(), -1, None, pid=4711)
    supervisor.workers.append(worker)
    supervisor._ready(worker, {}, [])
    supervisor._look(time.monotonic())
    assert not killed
    supervisor._look(time.monotonic() + HUNG_SECONDS + 1)
    assert killed == [(4711, signal.SIGABRT)]
    supervisor.selector.close()
    supervisor.reports.sock.close()


def test_a_tool_that_never_comes_back_costs_no_call_and_is_not_run_again(started, tmp_path):
    """It is the first thing that a call does: nobody has looked after the call before."""
    (tmp_path / "flow.toml").write_text(STANDS)
    (tmp_path / "stands.py").write_text(STAND)
    server = started("--flow", str(tmp_path / "flow.toml"))

    async def then(callers):
        before, (caller,) = server.workers(), callers.callers
        await asyncio.to_thread(until, lambda: server.workers() not in (before, []) and get(server, "/livez")[0] == 200)
        await asyncio.to_thread(until, lambda: caller.closed is not None)
        return caller.closed, server.metric("loop_stalls_total"), server.metric('worker_deaths_total{how="hung"}')
    code, stalls, deaths = calling(server, 1, then)
    assert code == 1000 and deaths == 1 and stalls >= 1, server.said()
    assert (tmp_path / "begun").read_text() == "once "
    assert "Please say that again. Goodbye." in server.said()       # the apology, and where the failure leads


def test_the_soft_limit_of_open_files_is_raised_as_far_as_all_calls_need(started):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        server = started("--max-calls", "100", "--workers", "2")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for pid in (server.process.pid, *server.workers()):
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (2 * 200 + 256, hard)


def test_calls_spread_evenly_and_every_worker_answers_for_all(started):
    server = started("--workers", "3")

    async def then(callers):
        await asyncio.sleep(1)
        spread = sorted(int(len(os.listdir(f"/proc/{pid}/fd"))) for pid in server.workers())
        assert spread[-1] - spread[0] <= 6, spread          # of a few dozen each: descriptors, for they count calls
        for _ in range(6):                                  # whoever answers
            assert health(server)["active_calls"] == 12
            assert json.loads(get(server, "/calls/caller-5")[1])["live"]
            assert server.metric("calls_total") == 12
    calling(server, 12, then)


def test_a_stop_lets_calls_finish_and_takes_no_new_ones(started):
    server = started()

    async def then(callers):
        server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(until, lambda: get(server, "/readyz")[0] == 404)
        assert health(server)["status"] == "draining"
        late = restart.Callers(server.port)
        with pytest.raises(AssertionError, match="refused"):
            await late.dial(1, 0.01)
        late.stop()
        await callers.hear_out(30)
        return await callers.answer(20)
    assert calling(server, CALLS, then) == CALLS
    assert server.process.wait(10) == 0


def test_a_second_stop_tells_callers_and_ends(started):
    server = started()

    async def then(callers):
        server.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        heard = [caller.samples for caller in callers.callers]
        await asyncio.to_thread(server.process.wait, 20)
        await asyncio.sleep(0.2)
        return [(caller.closed, caller.samples - before) for caller, before in zip(callers.callers, heard)]
    ends = calling(server, CALLS, then)
    words = len("I am sorry, I have to end this call here. Goodbye.") * restart.MS_PER_CHARACTER * restart.RATE // 1000
    assert all(code == 1000 and more >= words * 0.9 for code, more in ends), ends
    assert server.process.returncode == 0


def test_a_reload_serves_new_calls_anew_and_leaves_the_live_ones_alone(started):
    server = started()
    flow = Path(server.place.name, "flow.toml")

    async def then(callers):
        old = server.workers()
        flow.write_text(flow.read_text().replace("Thank you very much", "Reloaded, thank you"))
        server.process.send_signal(signal.SIGHUP)
        await asyncio.to_thread(until, lambda: len(server.workers()) == 2)
        await asyncio.to_thread(until, lambda: health(server)["active_calls"] == 3)
        await callers.hear_out(30)
        kept = await callers.answer(20)
        await asyncio.to_thread(until, lambda: not set(old) & set(server.workers()))
        return kept
    assert calling(server, 3, then) == 3
    record = json.loads(get(server, "/calls/caller-1")[1]) if get(server, "/calls/caller-1")[0] == 200 else None
    assert record is None or "Thank you very much" in str(record)


async def taken(server, count):
    """How many of so many callers are not refused; they stay until the server ends."""
    lines = []
    for _ in range(count):
        try:
            line = await Line.dial(f"ws://127.0.0.1:{server.port}/ws/pcm", lambda *_: None, lambda *_: None)
        except ProtocolError as error:
            assert error.code == 503
            continue
        line.send(BINARY, bytes(320))
        await asyncio.sleep(0.1)
        lines.append(line)
    for line in lines:
        line.abort()
    return len(lines)


@pytest.mark.parametrize("how", ["a reload", "an upgrade"])
@pytest.mark.parametrize("before, after", [(2, 5), (5, 2)])
def test_a_reload_and_an_upgrade_change_how_many_calls_there_may_be(started, tmp_path, how, before, after):
    """A call that is live goes on in the arena that was made for it; all calls are counted on."""
    config = tmp_path / "server.toml"
    config.write_text(f"max_calls = {before}\n")
    server = started("--config", str(config))

    async def then(callers):
        config.write_text(f"max_calls = {after}\n")
        server.process.send_signal(signal.SIGHUP if how == "a reload" else signal.SIGUSR2)
        sign = "new calls get the settings as they are now" if how == "a reload" else "has taken over"
        await asyncio.to_thread(until, lambda: sign in server.said())
        return await taken(server, 7)
    here = 1 if how == "an upgrade" else 0              # else it is with a worker of before
    assert calling(server, 1, then) == after - here
    until(lambda: server.metric("calls_total") == 1 + after - here)
    assert "Traceback" not in server.said() and "max_calls" not in server.said()


def test_a_reload_says_what_it_leaves_alone(started, tmp_path):
    config = tmp_path / "server.toml"
    config.write_text("max_calls = 2\n")
    server = started("--config", str(config))
    config.write_text("max_calls = 99999\nadmin = '127.0.0.1:0'\n[net]\nbacklog = 7\n")
    server.process.send_signal(signal.SIGHUP)
    until(lambda: "new calls get the settings as they are now" in server.said())
    assert f"{config}:1: max_calls is 10000, and more not until the server is upgraded" in server.said()
    assert f"{config}:2: admin stays '' until the server is started anew" in server.said()
    assert f"{config}:4: net.backlog stays " in server.said() and "workers stays" not in server.said()
    assert "Traceback" not in server.said()


def told_of(server):
    """(calls that are live, those that were) as whoever answers lists them, and how many are live by /health."""
    listed = json.loads(get(server, "/calls")[1])
    ids = sorted(call["id"] for call in listed["calls"])
    live = [name for name in ids if json.loads(get(server, f"/calls/{name}")[1])["live"]]
    over = sorted(call["id"] for call in listed["calls"] if not call["live"])
    return live, over, {listed["active_calls"], health(server)["active_calls"]}


def test_calls_of_before_a_reload_are_told_of_while_they_live_and_after(started):
    """They stay in their process when the server is upgraded, too."""
    server = started()
    ids = ["caller-0", "caller-1", "caller-2"]

    async def then(callers):
        server.process.send_signal(signal.SIGHUP)
        await asyncio.to_thread(until, lambda: "no new calls here" in server.said())
        await asyncio.to_thread(until, lambda: told_of(server) == (ids, [], {3}))
        server.process.send_signal(signal.SIGUSR2)
        await asyncio.to_thread(until, lambda: "has taken over" in server.said())
        await asyncio.to_thread(until, lambda: told_of(server) == (ids, [], {3}))
        for over, caller in enumerate(callers.callers, 1):
            caller.transport.abort()
            await asyncio.to_thread(until, lambda over=over: told_of(server) == (ids[over:], ids[:over], {3 - over}))
    calling(server, 3, then)
    assert "Traceback" not in server.said()


def test_a_call_that_its_workers_death_has_moved_is_told_of_once(started):
    server = started()

    async def then(callers):
        for _ in range(2):
            before = server.workers()
            os.kill(before[0], signal.SIGKILL)
            await asyncio.to_thread(until, lambda before=before: server.workers() not in (before, []))
            await asyncio.to_thread(until, lambda: told_of(server) == (["caller-0", "caller-1"], [], {2}))
        callers.callers[0].transport.abort()
        await asyncio.to_thread(until, lambda: told_of(server) == (["caller-1"], ["caller-0"], {1}))
    calling(server, 2, then)


def test_a_worker_of_the_settings_before_a_reload_that_dies_is_replaced_with_its_calls(started):
    server = started()

    async def then(callers):
        old, = server.workers()
        server.process.send_signal(signal.SIGHUP)
        await asyncio.to_thread(until, lambda: len(server.workers()) == 2)
        await asyncio.to_thread(until, lambda: health(server)["active_calls"] == 3)
        await asyncio.sleep(1)
        os.kill(old, signal.SIGKILL)
        await callers.hear_out(30)
        kept = await callers.answer(20)
        await asyncio.to_thread(until, lambda: len(server.workers()) == 1)      # whoever took its place has gone, too
        return kept
    assert calling(server, 3, then) == 3, server.said()


def test_a_reload_that_cannot_be_served_changes_nothing(started):
    server = started()
    flow = Path(server.place.name, "flow.toml")
    worker = server.workers()
    flow.write_text("this is no flow")
    server.process.send_signal(signal.SIGHUP)
    until(lambda: "nothing is changed" in server.said())
    assert server.workers() == worker and get(server, "/readyz")[0] == 200


def test_a_reload_that_is_asked_for_during_another_or_an_upgrade_comes_after_it(started):
    server = started()
    flow = Path(server.place.name, "flow.toml")
    good = flow.read_text()

    def reload(text, number=signal.SIGHUP):
        """What is there is read, and `text` is there when it is asked for the second time."""
        flow.write_text(good)
        server.process.send_signal(number)
        time.sleep(0.05)
        flow.write_text(text)
        server.process.send_signal(signal.SIGHUP)
    reload("this is no flow")
    until(lambda: "nothing is changed" in server.said() and get(server, "/readyz")[0] == 200)
    reload(good)
    until(lambda: server.said().count("prompts of a long story are ready") == 4 and len(server.workers()) == 1)
    reload(good, signal.SIGUSR2)
    until(lambda: server.said().count("prompts of a long story are ready") == 6)


def test_a_worker_that_stands_still_holds_up_no_upgrade_and_loses_no_call(started):
    """It does not say which of its calls can move: so all of them do, once it is ended."""
    server = started("--workers", "2")

    async def then(callers):
        os.kill(server.workers()[0], signal.SIGSTOP)
        server.process.send_signal(signal.SIGUSR2)
        await asyncio.to_thread(until, lambda: server.process.poll() is not None, 60)
        await callers.hear_out(30)
        return await callers.answer(20)
    assert calling(server, 6, then) == 6, server.said()
    assert server.process.returncode == 0 and "Traceback" not in server.said()


@pytest.mark.parametrize("when", ["the successor starts", "the successor has begun to take over"])
def test_a_stop_in_the_midst_of_an_upgrade_ends_the_server_when_its_calls_are_over(started, when):
    server = started("--workers", "2")

    async def then(callers):
        if when == "the successor has begun to take over":
            os.kill(server.workers()[0], signal.SIGSTOP)        # whose calls come some seconds later than the others'
        server.process.send_signal(signal.SIGUSR2)
        if when == "the successor has begun to take over":
            await asyncio.to_thread(until, lambda: server.said().count("listening on") == 2)
        server.process.send_signal(signal.SIGTERM)
        await callers.hear_out(30)
        return await callers.answer(20)
    assert calling(server, 4, then) == 4, server.said()
    assert server.process.wait(20) == 0
    successors = re.findall(r"process (\d+) has taken over", server.said())
    assert len(successors) == (when == "the successor has begun to take over")
    until(lambda: not any(Path("/proc", pid).exists() for pid in successors))


def test_a_stop_in_the_midst_of_an_upgrade_is_one_stop_for_calls_that_stay_behind(started):
    """The successor passes it on to its predecessor, which has it already: these callers are not sent away for that."""
    server = started()

    async def then(callers):
        server.process.send_signal(signal.SIGHUP)
        await asyncio.to_thread(until, lambda: len(server.workers()) == 2)
        await asyncio.to_thread(until, lambda: health(server)["active_calls"] == 4)
        await asyncio.sleep(1)
        os.kill(server.workers()[-1], signal.SIGSTOP)           # so that there is time before it has taken over
        server.process.send_signal(signal.SIGUSR2)
        await asyncio.to_thread(until, lambda: server.said().count("listening on") == 2)
        server.process.send_signal(signal.SIGTERM)
        await callers.hear_out(30)
        return await callers.answer(20)
    assert calling(server, 4, then) == 4, server.said()
    assert server.process.wait(20) == 0 and "has taken over" in server.said()
    assert "have to end this call" not in server.said()


@pytest.mark.parametrize("dialect", sorted(restart.CALLERS))
def test_systemd_hears_of_everything_and_keeps_the_calls_of_a_supervisor_that_dies(started, tmp_path, dialect):
    """A stand-in for systemd: reads what it is told, keeps the descriptors, and starts the service again with them."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(0.2)
        server = started(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="1500000")
        told, store = [], {}

        def read():
            """What came, taken to heart as systemd does."""
            while True:
                try:
                    data, fds, _, _ = socket.recv_fds(manager, 4096, 16)
                except (TimeoutError, OSError):
                    return
                lines = dict(line.split("=", 1) for line in data.decode().splitlines())
                told.append(lines)
                kept = {os.fstat(fd).st_ino for all in store.values() for fd in all}
                if "FDSTORE" in lines and os.fstat(fds[0]).st_ino in kept:      # it stays under the name it has
                    os.close(fds[0])
                elif "FDSTORE" in lines:
                    store.setdefault(lines["FDNAME"], []).extend(fds)
                elif "FDSTOREREMOVE" in lines:
                    for fd in store.pop(lines["FDNAME"], []):
                        os.close(fd)

        async def then(callers):
            await asyncio.sleep(1.2)
            await asyncio.to_thread(read)
            assert any(lines.get("READY") == "1" for lines in told) and any("WATCHDOG" in lines for lines in told)
            assert sum(name.startswith("call-") for name in store) == 3, list(store)
            for pid in (server.process.pid, *server.workers()):
                os.kill(pid, signal.SIGKILL)
            server.process.wait()
            restarted(server, store)
            await callers.hear_out(30)
            return await callers.answer(20)
        assert calling(server, 3, then, dialect) == 3, server.said()
        read()                                              # the queue is full of what was not read meanwhile
        server.process.send_signal(signal.SIGTERM)
        until(lambda: read() or any(lines.get("STOPPING") == "1" for lines in told))


def restarted(server, store):
    """The service once more, as systemd starts it: with what it has kept, from descriptor 3 on."""
    names, fds = zip(*[(name, fd) for name, kept in store.items() for fd in kept])

    def place():
        for fd in [os.dup2(fd, 200 + i) for i, fd in enumerate(fds)]:
            os.dup2(fd, fd - 200 + 3)
            os.close(fd)
    code = ("import os, sys\nos.environ['LISTEN_PID'] = str(os.getpid())\n"
            "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])")
    words = server.process.args
    environment = os.environ | server.environment | {"LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": ":".join(names)}
    server.process = subprocess.Popen([words[0], "-c", code, *words[1:]], stdin=subprocess.DEVNULL, stdout=server.log,
                                      stderr=server.log, env=environment, close_fds=False, preexec_fn=place)


@pytest.mark.parametrize("seconds", [0.6, 0.9, 1.3, 2.0])
def test_a_stop_while_workers_start_ends_them_all(seconds):
    """Whoever is not ready yet gets ready, hears of it and goes; nobody follows."""
    process = subprocess.Popen([sys.executable, "-P", "-m", "opusagent.cli", "serve", "--port", "0",
                                "--stt", "scripted", "--tts", "scripted", "--workers", "3"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM)
        said, errors = process.communicate(timeout=20)
        assert process.returncode in (0, -signal.SIGTERM), errors     # by the signal itself before it is heard
        assert b"Traceback" not in errors
    finally:
        process.kill()
        process.wait()
