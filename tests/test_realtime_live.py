"""/v1/realtime of a running server: who gets in, and the demo's conversation with the embedded engines to its end."""
import asyncio
import base64

import numpy as np
import orjson
import pytest

from opusagent import ConfigError, ProtocolError
from opusagent.client.localserver import fetch_json
from opusagent.client.people import person
from opusagent.client.telephone import Caller, Line, spoken_to
from opusagent.dialects import TEXT
from opusagent.replay.tape import load
from served import SCRIPTED, serving
from test_replay import replayed

KEY = "openai-insecure-api-key."


async def converse(url, says):
    caller = Caller(url, spoken_to(url), says)
    turns = [turn async for turn in caller.converse()]
    for _ in range(100):
        record = await fetch_json(caller.url, f"/calls/{caller.call_id}")
        if record is not None and not record["live"]:
            return caller, turns, record
        await asyncio.sleep(0.05)
    raise AssertionError(f"the call never ended: {caller.closed}")


async def first_event(url, protocols):
    """What the server says first, or the status of its refusal."""
    heard = asyncio.get_running_loop().create_future()
    try:
        line = await Line.dial(url, lambda opcode, payload, now: heard.done() or heard.set_result(bytes(payload)),
                               lambda *ending: None, protocols)
    except ProtocolError as error:
        return error.code
    said = await asyncio.wait_for(heard, 10)
    line.abort()
    return orjson.loads(said)


def test_a_browser_shows_its_key_as_a_subprotocol_and_asks_for_the_older_names():
    secrets = {"OPUSAGENT_AUTH_REALTIME_SECRETS": "first-secret,second-secret"}
    with serving(*SCRIPTED, environment=secrets) as server:
        async def told():
            url = server.ws("/v1/realtime?model=demo")
            return [await first_event(url, protocols) for protocols in (
                ("realtime", KEY + "second-secret"), ("realtime", KEY + "third-secret"), ("realtime",),
                ("realtime", KEY + "first-secret", "openai-beta.realtime-v1"))]
        welcome, wrong, none, beta = asyncio.run(told())
    assert (wrong, none) == (401, 401)
    assert welcome["type"] == beta["type"] == "session.created"
    assert "audio" in welcome["session"] and beta["session"]["input_audio_format"] == "pcm16"
    assert welcome["session"]["id"] != beta["session"]["id"]


def test_no_agent_is_called_that_is_not_there():
    with serving(*SCRIPTED) as server:
        assert asyncio.run(first_event(server.ws("/ws/openai-realtime/assistant"), ("realtime",))) == 404
        assert asyncio.run(first_event(server.ws("/v1/realtime/more"), ("realtime",))) == 404


def test_the_demo_reaches_its_end():
    pytest.importorskip("pocketsphinx", reason="the recogniser needs the extra `local`")
    try:
        says = person(24000)[1]
    except ConfigError as error:
        pytest.skip(str(error))
    with serving("--workers", "1", "--admission-refuse-above", "1") as server:
        caller, turns, record = asyncio.run(converse(server.ws("/v1/realtime?model=demo"), list(says)))
    assert (record["done"], record["state"]) == (True, "arrived"), caller.closed
    assert record["dialect"] == "openai-realtime" and len(turns) >= 4
    assert "barge-in" in [turn["stopped_by"] for turn in record["turns"]]
    assert record["facts"]["slip_card"] == "ten of clubs"


async def tell(server, path, *asked, responses=1):
    """The events of a connection that asks these, one list after the other, each up to so many more responses."""
    news, events = asyncio.Event(), []

    def hear(opcode, payload, now):
        events.append(orjson.loads(payload))
        news.set()
    line = await Line.dial(server.ws(path), hear, lambda *ending: None, ("realtime",))
    async with asyncio.timeout(60):
        for number, asks in enumerate(asked, 1):
            for ask in asks:
                line.send(TEXT, orjson.dumps(ask))
            while [event["type"] for event in events].count("response.done") < number * responses:
                news.clear()
                await news.wait()
    await line.hang_up()
    return events


def recorded(pcm):
    return {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": [
        {"type": "input_audio", "audio": base64.b64encode(pcm.tobytes()).decode()}]}}


def test_what_a_person_says_in_items_is_recognised_as_on_the_line():
    pytest.importorskip("pocketsphinx", reason="the recogniser needs the extra `local`")
    try:
        says = {say.name: say.pcm for say in person(24000)[1]}
    except ConfigError as error:
        pytest.skip(str(error))
    respond = {"type": "response.create"}
    settings = {"type": "realtime", "output_modalities": ["text"],
                "audio": {"input": {"transcription": {"model": "any"}}}}
    with serving("--workers", "1", "--admission-refuse-above", "1") as server:
        events = asyncio.run(tell(
            server, "/v1/realtime?model=demo", [{"type": "session.update", "session": settings}, respond],
            *([recorded(says[words]), respond] for words in list(says)[:2])))
    heard = [event["transcript"] for event in events if event["type"].endswith("transcription.completed")]
    assert heard == list(says)[:2] and "error" not in [event["type"] for event in events]
    said = [event["text"] for event in events if event["type"] == "response.output_text.done"]
    assert said[0].startswith("Welcome") and "Which playing card" in said[1] and said[2].startswith("Good.")


def test_a_session_is_made_again_from_its_journal(tmp_path):
    """What a worker writes down for another one, while a model's answers come in, is no reading of the call's."""
    (tmp_path / "model.toml").write_text('''
[[reply]]
when = "note"
say = "A note of it."
[[reply]]
say = "It is sunny in Paris today, and not at all cold."
''')

    def words(text):
        return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    asks = [{"type": "conversation.item.create", "item": words("the weather?")}, recorded(np.zeros(60000, np.int16)),
            {"type": "response.create"},
            {"type": "response.create", "response": {"conversation": "none", "output_modalities": ["text"],
                                                     "input": [words("a note, please")]}}]

    with serving(*SCRIPTED, "--scripted-llm", str(tmp_path / "model.toml"), "--scripted-llm-piece-ms", "60",
                 "--archive-directory", str(tmp_path / "calls")) as server:
        asyncio.run(tell(server, "/v1/realtime?model=assistant", asks, responses=2))
    kept, = (tmp_path / "calls").glob("*/*.jsonl")
    tape = load(str(kept))
    assert "recorded final" in [entry.kind for entry in tape.entries] and replayed(tape).decisions
