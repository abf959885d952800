"""Real processes, real sockets, recordings of people at 8 kHz mu-law: what was said is what the server heard."""
import asyncio
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import orjson
import pytest

from opusagent.client.caller import Say
from opusagent.client.localserver import fetch_json
from opusagent.client.telephone import Caller
from opusagent.recording import read_wav, resample
from served import serving

AUDIO = Path(__file__).parent.parent / ".." / "shared" / "audio" / "8k"
DEBIAN = Path("/usr/share/pocketsphinx/test/data")
pytest.importorskip("pocketsphinx", reason="the recogniser needs the extra `local`")
if not AUDIO.is_dir():
    pytest.skip("the recordings of ../shared/audio are not here", allow_module_level=True)

FLOW = """
name = "cards and numbers"
start = "number"
voice = "kal16"
[lists]
rank = ["ace", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "jack", "queen", "king"]
suit = ["clubs", "hearts", "spades", "diamonds"]
[states.number]
say = "Your number?"
on = [{ digits = 5, fact = "number", go = "card" }]
[states.card]
say = "A card?"
on = [{ phrases = ["<rank> of <suit>"], fact = "card", go = "order" }]
[states.order]
say = "Number {number}, and now your order? Take your time, there is no hurry at all, and everybody here is patient."
on = [{ phrases = ["go forward ten meters", "go backward ten meters", "stop"], go = "bye" }]
[states.bye]
say = "Goodbye."
end = true
"""
WORDS = {"dhd_2934z": "two nine three four zero", "cards_1": "ten of clubs", "cards_3": "seven of clubs",
         "goforward": "go forward ten meters"}
SCRIPT = ("dhd_2934z", "cards_3", "goforward")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    flow = tmp_path_factory.mktemp("flow") / "flow.toml"
    flow.write_text(FLOW)
    with serving("--workers", "1", "--flow", str(flow)) as server:
        yield server


def said(name, barge_in_ms=None):
    pcm, rate = read_wav(AUDIO / f"{name}.ulaw.wav")
    return Say.of(resample(pcm, rate, 8000), 8000, name, barge_in_ms)


async def converse(server, says):
    """A whole call; (caller, the server's record of it)."""
    caller = Caller(server.ws("/ws/twilio"), "twilio", says)
    async for _ in caller.converse():
        pass
    for _ in range(100):
        record = await fetch_json(caller.url, f"/calls/{caller.call_id}")
        if record and not record["live"]:
            return caller, record
        await asyncio.sleep(0.05)
    raise AssertionError("the call never ended")


def heard(record):
    return [turn["caller"] for turn in record["turns"] if turn["caller"]]


def metric(server, name):
    text = urllib.request.urlopen(f"http://{server.host}:{server.port}/metrics").read().decode()
    return float(re.search(rf"^opusagent_{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])


def engine_processes(server, stage):
    """The pids of a stage's processes, the oldest first: the one at work, then its spare."""
    found = []
    for pid in server.family():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"opusagent.engines.processes.process" in words and stage.encode() in words:
            found.append(pid)
    return found


def test_eight_callers_at_once_are_all_heard(server):
    async def all_at_once():
        calls = []
        for i in range(8):
            calls.append(asyncio.create_task(converse(server, [said(name) for name in SCRIPT])))
            await asyncio.sleep(0.113)
        return await asyncio.gather(*calls)
    for caller, record in asyncio.run(all_at_once()):
        assert heard(record) == [WORDS[name] for name in SCRIPT], (caller.closed, record)
        assert record["done"] and record["state"] == "bye"
        assert record["facts"] == {"number": "29340", "card": "seven of clubs"}


def test_the_receipts_add_up_to_the_gap_that_the_caller_measures(server):
    caller, record = asyncio.run(converse(server, [said(name) for name in SCRIPT]))
    receipts = [turn for turn in record["turns"] if turn["measured"]]
    for turn, receipt in zip(caller.script.turns, receipts):
        assert sum(receipt["waits"].values()) == pytest.approx(receipt["voice_to_voice_ms"], abs=0.01)
        spoken_on = turn.end_ms - receipt["end_ms"]         # noise of the recording that the turn did not wait for
        assert abs(turn.gap_ms - (receipt["voice_to_voice_ms"] - spoken_on)) < 40


def test_barge_in_is_heard_and_stops_the_agent(server):
    says = [said("dhd_2934z"), said("cards_1"), said("goforward", barge_in_ms=1200)]
    caller, record = asyncio.run(converse(server, says))
    assert heard(record) == [WORDS["dhd_2934z"], WORDS["cards_1"], WORDS["goforward"]]
    cut = next(turn for turn in record["turns"] if turn["stopped_by"] == "barge-in")
    assert "Number two nine three four zero, and now".startswith(cut["agent"][:20]) and "patient" not in cut["agent"]
    assert caller.script.turns[2].reaction_ms is not None


def test_a_recogniser_killed_in_mid_word_loses_no_word_and_is_back_within_a_second(server):
    async def interrupted():
        call = asyncio.create_task(converse(server, [said(name) for name in SCRIPT]))
        while metric(server, "utterances_in_recognition") == 0:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.6)
        os.kill(engine_processes(server, "stt")[0], signal.SIGKILL)
        killed = time.monotonic()
        await asyncio.sleep(0.02)
        while metric(server, 'engine_alive{stage="stt"}') < 1:
            assert time.monotonic() - killed < 1, "nobody recognises"
            await asyncio.sleep(0.02)
        return await call
    restarts = metric(server, 'engine_restarts{stage="stt"}')
    caller, record = asyncio.run(interrupted())
    assert heard(record) == [WORDS[name] for name in SCRIPT] and record["done"]
    assert metric(server, 'engine_restarts{stage="stt"}') == restarts + 1


def test_a_voice_killed_in_mid_sentence_goes_on(server):
    async def interrupted():
        call = asyncio.create_task(converse(server, [said(name) for name in SCRIPT]))
        await asyncio.sleep(0.3)
        for _ in range(3):
            os.kill(engine_processes(server, "tts")[0], signal.SIGKILL)
            await asyncio.sleep(2.5)
        return await call
    caller, record = asyncio.run(interrupted())
    assert heard(record) == [WORDS[name] for name in SCRIPT] and record["done"]


def test_a_caller_who_vanishes_in_mid_word_leaves_nothing_behind(server):
    async def vanish():
        caller = Caller(server.ws("/ws/twilio"), "twilio", [said("dhd_2934z")])
        asyncio.get_running_loop().call_later(2.5, lambda: caller._line.abort())
        async for _ in caller.converse():
            pass
    asyncio.run(vanish())
    deadline = time.monotonic() + 3
    while orjson.loads(urllib.request.urlopen(f"http://{server.host}:{server.port}/health").read())["active_calls"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert server.alive() and "Traceback" not in server.written()


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="pocketsphinx-testdata is not installed")
def test_the_demo_reaches_its_end_and_its_recording_is_clean(tmp_path):
    """Where it is run there may lie a package of its own name: a clone in which nothing was built, for one."""
    (tmp_path / "opusagent").mkdir()
    (tmp_path / "opusagent" / "__init__.py").write_text("raise ImportError('this is not what was installed')")
    done = subprocess.run([sys.executable, "-P", "-m", "opusagent.cli", "demo", "--out", str(tmp_path)], cwd=tmp_path,
                          capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("two nine three four zero", "ten of clubs", "seven of clubs", "go forward ten meters", "interrupted"):
        assert words in done.stdout
    wav = next(tmp_path.glob("*.wav")).read_bytes()
    sides = np.frombuffer(wav[44:], "<i2").reshape(-1, 2).astype(np.int32)
    assert all(np.abs(sides[:, side]).max() > 3000 for side in (0, 1))
    agent = sides[:, 1]
    steps = [(at, abs(int(agent[at]))) for start, end in silences(agent, 40)
             for at in (start - 1, end) if 0 <= at < len(agent)]
    clicks = [(f"{at / 8000:.3f} s", step) for at, step in steps if step > FADED]
    lowered = np.abs(agent).max() * 10 ** (-14 / 20)        # turns.duck_db: where the platform cuts, at barge-in
    assert len(clicks) <= 1 and all(step <= lowered for _, step in clicks), f"{clicks}, {lowered:.0f} at most"


FADED = 650                     # the last sample of the loudest voice that is faded out within 4 ms


def silences(pcm, least):
    """(start, end) of the runs of digital silence, mu-law's zeros included."""
    quiet = np.concatenate(([False], np.abs(pcm) <= 8, [False])).astype(int)
    edges = np.flatnonzero(np.diff(quiet))
    return [(start, end) for start, end in zip(edges[::2], edges[1::2]) if end - start >= least]
