"""The demo's conversation to its final state through every dialect: in sound, in text, and without WebSocket.

One server with scripted engines answers all of them at once; who calls is the demo's person, and his platforms are the
simulated ones.  The tables of callers say what there is, so a new dialect joins by itself.
"""
import asyncio
from functools import cache, partial

import pytest

from opusagent import ConfigError
from opusagent.client.localserver import fetch_json
from opusagent.client.people import TURNS, person
from opusagent.client.telephone import Caller
from opusagent.client.texting import Texter
from opusagent.dialects import BARE_CALLERS, CALLERS, SPOKEN, TEXT_CALLERS
from realtime_pace import ATTEMPTS, Watch
from served import SCRIPTED, free_port, serving

APART = 0.3                 # seconds between the calls' beginnings
WORDS = [words.text for words in TURNS]


def path_of(name):
    return "/v1/realtime?model=demo" if name == "openai-realtime" else f"/ws/{name}/demo"


async def in_sound(server, url, name):
    """The server's record of a call in an audio dialect."""
    caller = Caller(url, name, [])
    caller.script.says += says(caller.rate)
    async for _ in caller.converse():
        pass
    return await record_of(server, caller.call_id)


async def in_text(server, name):
    caller = Texter(server.ws(path_of(name)), name, list(WORDS))
    async for _ in caller.converse():
        pass
    return await record_of(server, caller.dialect.call_id)


async def record_of(server, call_id):
    for _ in range(100):
        record = await fetch_json(server.ws(""), f"/calls/{call_id}")
        if record is not None and not record["live"]:
            return record
        await asyncio.sleep(0.1)
    raise AssertionError(f"the call {call_id} never ended")


@cache
def says(rate):
    return person(rate)[1]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """What the server knows of each call, by dialect, or the error."""
    try:
        for rate in (8000, 16000, 24000):
            says(rate)
    except ConfigError as error:
        pytest.skip(str(error))
    said = tmp_path_factory.mktemp("demo") / "said.txt"
    said.write_text("\n".join(WORDS))
    port = free_port()

    async def all_at_once(server):
        calls = [(name, partial(in_sound, server, server.ws(path_of(name)), name)) for name in CALLERS]
        calls += [(name, partial(in_text, server, name)) for name in TEXT_CALLERS]
        calls += [(name, partial(in_sound, server, f"tcp://127.0.0.1:{port}", name)) for name in BARE_CALLERS]

        async def later(i, call):
            await asyncio.sleep(i * APART)
            return await call()
        results = await asyncio.gather(*(later(i, call) for i, (_, call) in enumerate(calls)), return_exceptions=True)
        return dict(zip((name for name, _ in calls), results))
    with serving(*SCRIPTED, "--scripted-stt", str(said), "--audiosocket", str(port), "--admission-refuse-above",
                 "1") as server:
        for _ in range(ATTEMPTS):
            with Watch() as watch:
                found = asyncio.run(all_at_once(server))
            if watch.kept_time or all(isinstance(record, dict) and record["done"] for record in found.values()):
                break
        return found


@pytest.mark.parametrize("name", SPOKEN)
def test_the_demo_reaches_its_end(records, name):
    record = records[name]
    if isinstance(record, BaseException):
        raise record
    assert (record["dialect"], record["done"], record["state"]) == (name, True, "arrived")
    assert (record["facts"]["member"], record["facts"]["slip_card"]) == ("29340", "ten of clubs")
