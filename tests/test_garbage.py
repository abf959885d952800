"""A worker that is never idle collects only what is young: a call that is over must be gone without a collector."""
import asyncio
import gc
import json
import re
import weakref

import numpy as np
import pytest

from opusagent.client.localserver import fetch_json
from opusagent.client.telephone import Line, Metronome, answer, place, samples_of
from opusagent.dialects import CALLERS, TEXT
from opusagent.server import garbage
from served import SCRIPTED, serving, tls_flags

FLOW = """
start = "wait"
[facts]
objects = ""
[tools.census]
run = "census.py:census"
effect = "pure"
facts = { objects = "number" }
[states.wait]
say = "Please hold the line, we are very busy today, and it will take a while."
on = [{ dtmf = "5", go = "count" }, { dtmf = "9", go = "bye" }]
[states.count]
call = "census"
results = { failure = "bye" }
go = "wait"
[states.bye]
say = "Bye."
end = true
"""
CENSUS = """
import gc

async def census():
    return {"objects": sum(type(each).__module__.startswith("opusagent") for each in gc.get_objects())}
"""
LIVES_MS = 2500             # of a call: older than what is young
LEAVES = "hangs up", "breaks off"
ROUTES = [*CALLERS, "audiohook?mode=monitor&channels=both", "twilio/echo"]


async def spoken(server, route, leaves):
    """A call in which the caller is silent, and leaves."""
    url, dialect = place(server.ws(f"/ws/{route}"), re.match("[a-z-]+", route)[0])
    line = None

    def on_message(opcode, payload, now):
        dialect.receive(opcode, payload)
        answer(line, dialect)

    def tick():
        if (message := dialect.audio(silence)) is not None:
            line.send(*message)
        answer(line, dialect)
    silence, clock = np.zeros(samples_of(dialect.rate), np.int16), Metronome(tick)
    line = await Line.dial(url, on_message, lambda *ending: None, dialect.protocols)
    for message in dialect.open():
        line.send(*message)
    await asyncio.sleep(0.2)                    # some platforms speak only when we have answered
    clock.start()
    await asyncio.sleep(LIVES_MS / 1000)
    clock.stop()
    await leave(line, leaves)


async def leave(line, leaves):
    if leaves == "hangs up":
        await line.hang_up()
    line.abort()


async def written(server, leaves):
    """... and one in text."""
    line = await Line.dial(server.ws("/ws/twilio-relay"), lambda *message: None, lambda *ending: None)
    line.send(TEXT, json.dumps({"type": "setup", "callSid": f"CA {leaves}"}).encode())
    await asyncio.sleep(LIVES_MS / 1000)
    await leave(line, leaves)


async def unbegun(server, route):
    """One that never begins."""
    _, dialect = place(server.ws(f"/ws/{route}"), route)
    line = await Line.dial(server.ws(f"/ws/{route}"), lambda *message: None, lambda *ending: None, dialect.protocols)
    await asyncio.sleep(LIVES_MS / 1000)
    await leave(line, "breaks off")


async def grown(server):
    """By how many objects of ours a worker has grown when all its calls but one are over, and how many calls that were.
    """
    last, dialect = place(server.ws("/ws/pcm"), "pcm")
    line = await Line.dial(last, lambda *message: dialect.receive(*message[:2]), lambda *ending: None)
    for message in dialect.open():
        line.send(*message)
    before = await census(last, line, dialect)
    calls = [written(server, leaves) for leaves in LEAVES] + [unbegun(server, route) for route in CALLERS]
    calls += [spoken(server, route, leaves) for route in ROUTES for leaves in LEAVES]
    await asyncio.gather(*calls)
    for _ in range(100):
        if (await fetch_json(last, "/health"))["active_calls"] == 1:
            break
        await asyncio.sleep(0.1)
    after = await census(last, line, dialect)
    await leave(line, "hangs up")
    return after - before, len(calls)


async def census(url, line, dialect):
    """How many there are: a tool of the one live call's counts them."""
    await asyncio.sleep(1)                      # until the call has begun, and no sweep knows of others any more
    [call] = [each for each in (await fetch_json(url, "/calls"))["calls"] if each["live"]]
    turns = len((await fetch_json(url, f"/calls/{call['id']}"))["turns"])
    line.send(*dialect.dtmf("5"))
    for _ in range(100):
        record = await fetch_json(url, f"/calls/{call['id']}")
        if len(record["turns"]) > turns and record["facts"]["objects"]:
            return int(record["facts"]["objects"])
        await asyncio.sleep(0.1)
    raise AssertionError("the tool was not run")


@pytest.mark.parametrize("way", ["plain", "kept", "tls"])
def test_nothing_of_a_call_is_left_when_it_is_over(tmp_path, monkeypatch, way):
    (tmp_path / "flow.toml").write_text(FLOW)
    (tmp_path / "census.py").write_text(CENSUS)
    flags = ("--archive-directory", str(tmp_path / "kept"), "--archive-recordings") if way == "kept" else ()
    if way == "tls":
        flags = tls_flags(tmp_path)
        monkeypatch.setenv("SSL_CERT_FILE", flags[1])
    with serving(*SCRIPTED, "--flow", str(tmp_path / "flow.toml"), "--admission-refuse-above", "1",
                 "--net-resume-seconds", "1", *flags) as server:
        objects, calls = asyncio.run(grown(server))
        assert objects < calls
        assert "Traceback" not in server.written()


class Circle:
    def __init__(self):
        self.me = self


def test_what_is_old_is_looked_at_while_there_are_calls_when_the_worker_has_grown(monkeypatch):
    monkeypatch.setattr(garbage, "left", 0)
    gone, used = [], [100 << 20]
    garbage.begin()
    try:
        garbage.look(True, True, lambda: used[0])           # the first look finds a worker that has started
        circle = Circle()
        weakref.finalize(circle, gone.append, "gone")
        for _ in range(3):
            garbage.look(True, True, lambda: used[0])       # now it is old
        del circle
        for _ in range(3):
            garbage.look(True, True, lambda: used[0])
        assert not gone
        used[0] += garbage.GROWN + 1
        garbage.look(False, True, lambda: used[0])
        assert not gone                                     # it is not time
        garbage.look(True, True, lambda: used[0])
        assert gone
    finally:
        garbage.end()
        gc.unfreeze()
