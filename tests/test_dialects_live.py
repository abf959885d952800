"""Every dialect over real sockets: a conversation to its end with a barge-in, and the echo, against a running server.

CALLERS says what there is, so a new dialect joins by itself.  All calls are held at once, before the first test; the
engines are scripted, the voice is a person's.  What a platform would refuse is known to its caller, who ends the call.
"""
import asyncio
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from opusagent import ConfigError
from opusagent.client.localserver import fetch_json
from opusagent.client.people import person
from opusagent.client.telephone import Caller, Line, Metronome, answer, place, samples_of
from opusagent.dialects import BARE, BARE_CALLERS, CALLERS, DIALECTS, TABLE, TEXT_CALLERS, Audio
from realtime_pace import ATTEMPTS, Watch
from served import SCRIPTED, serving

FLOW = """
start = "first"
[states.first]
say = "A card?"
on = [{ phrases = ["ten of clubs"], go = "second" }]
[states.second]
say = "Good. Now listen to all of this, or do not: another card?"
on = [{ phrases = ["seven of clubs"], go = "bye" }]
[states.bye]
say = "Bye."
end = true
"""
WORDS = ("ten of clubs", "seven of clubs")
BARGE_IN_MS = 800           # into what is said about the second card, which takes 3.5 s
ECHO_FRAMES = 50
# Each dialect as it comes, and what else its URL can make of the wire.
ROUTES = [*CALLERS, "twilio?exotel=16000", "pcm?rate=48000", "telnyx?codec=PCMA&disorder=7",
          "telnyx?codec=L16&rate=16000&l16=big", "plivo?codec=L16&rate=16000", "vonage?rate=24000",
          "asterisk?format=ulaw&control=json", "asterisk?format=slin48", "jambonz?player=chunked",
          "jambonz?rate=16000", "jambonz?mixType=stereo", "freeswitch?play=json", "freeswitch?mix=stereo",
          "freeswitch?module=fork&mix=stereo&rate=16000&player=chunked",
          "openai-realtime?format=pcmu", "openai-realtime?format=pcma&beta=1"]
MONITOR = "audiohook?mode=monitor&channels=both"        # which nothing is said to
APART = 0.2                 # seconds between the calls' beginnings


@cache
def says(rate):
    """The caller's two turns.  They take a while to make: not while others are in a call."""
    first, second = (say for say in person(rate)[1] if say.name in WORDS)
    return [first, replace(second, barge_in_ms=BARGE_IN_MS)]


async def converse(server, route):
    """(the caller, its turns, the server's record) of a call to the end of the flow."""
    caller = Caller(server.ws(f"/ws/{route}"), route.partition("?")[0], [])
    caller.script.says += says(caller.rate)
    turns = [turn async for turn in caller.converse()]
    for _ in range(60):
        record = await fetch_json(caller.url, f"/calls/{caller.call_id}")
        if record is None or not record["live"]:
            break
        await asyncio.sleep(0.05)
    return caller, turns, record


async def echo(server, route):
    """(frames sent, frames heard) of a call to the echo: noise, each frame another, in the platform's own time."""
    name, _, query = route.partition("?")
    url, dialect = place(server.ws(f"/ws/{name}/echo?{query}"), name)
    noise = np.random.default_rng(5).normal(0, 3000, (ECHO_FRAMES, samples_of(dialect.rate))).astype(np.int16)
    heard, lost, line = [], [], None

    def on_message(opcode, payload, now):
        if isinstance(event := dialect.receive(opcode, payload), Audio):
            heard.append(np.array(event.pcm))
        answer(line, dialect)

    def tick():
        if clock.beats > ECHO_FRAMES:
            return clock.stop()
        if (message := dialect.audio(noise[clock.beats - 1])) is not None:
            line.send(*message)
        answer(line, dialect)
    clock = Metronome(tick)
    line = await Line.dial(url, on_message, lambda *ending: lost.append(ending))
    for message in dialect.open():
        line.send(*message)
    await asyncio.sleep(0.2)                    # some platforms speak only when we have answered
    clock.start()
    await asyncio.sleep(ECHO_FRAMES * 0.02 + 0.5)
    assert not lost, lost
    await line.hang_up()
    return noise, heard


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """What became of each: {(function, route): its result or the error}."""
    try:
        for rate in (8000, 16000, 24000, 48000):
            says(rate)
    except ConfigError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("live")
    (folder / "flow.toml").write_text(FLOW)
    (folder / "said.txt").write_text("\n".join(WORDS))
    flags = ("--flow", str(folder / "flow.toml"), "--scripted-stt", str(folder / "said.txt"),
             "--admission-refuse-above", "1")

    async def later(call, server, route, i):
        await asyncio.sleep(i * APART)
        return await call(server, route)

    async def all_at_once(server):
        keys = [(call, route) for route in ROUTES for call in (converse, echo)] + [(converse, MONITOR)]
        results = await asyncio.gather(*(later(call, server, route, i) for i, (call, route) in enumerate(keys)),
                                       return_exceptions=True)
        return dict(zip(keys, results))

    async def alone(server, wrong):
        for call, route in wrong:
            wrong[call, route] = (await asyncio.gather(call(server, route), return_exceptions=True))[0]
        return wrong
    with serving(*SCRIPTED, *flags) as server:
        with Watch() as watch:
            found = asyncio.run(all_at_once(server))
        for _ in range(ATTEMPTS - 1):
            wrong = {key: result for key, result in found.items() if not_held(result)}
            if watch.kept_time or not wrong:
                break
            with Watch() as watch:
                found |= asyncio.run(alone(server, wrong))
        return found


def not_held(result):
    """Whether that call says nothing where the machine stood still."""
    return isinstance(result, BaseException) or isinstance(result[0], Caller) and not (result[2] or {}).get("done")


def result(calls, call, route):
    found = calls[call, route]
    if isinstance(found, BaseException):
        raise found
    return found


@pytest.mark.parametrize("route", ROUTES)
def test_a_conversation_reaches_its_end_and_the_caller_may_interrupt(calls, route):
    caller, turns, record = result(calls, converse, route)
    assert record is not None, f"{caller.closed}; the server knows of no call {caller.call_id}"
    assert record["dialect"] == route.partition("?")[0]
    assert (record["done"], record["state"]) == (True, "bye"), caller.closed
    assert [turn.name for turn in turns] == list(WORDS)
    assert all(turn.gap_ms is not None for turn in turns)
    assert (turns[1].reaction_ms or 0) < 1000
    assert [turn["stopped_by"] for turn in record["turns"]].count("barge-in") == 1


def test_a_monitored_conversation_is_followed_to_its_end_in_silence(calls):
    caller, turns, record = result(calls, converse, MONITOR)
    assert (record["done"], record["state"]) == (True, "bye"), caller.closed
    assert [turn["caller"] for turn in record["turns"] if turn["caller"]] == list(WORDS)
    assert all(turn.gap_ms is None for turn in turns) and not any(turn["agent"] for turn in record["turns"])


@pytest.mark.parametrize("route", ROUTES)
def test_the_echo_gives_the_audio_back(calls, route):
    noise, heard = result(calls, echo, route)
    sent, back = noise.reshape(-1).astype(float), np.concatenate(heard).astype(float)
    assert len(back) >= len(sent) - 3 * noise.shape[1]
    at = int(np.argmax(np.correlate(sent, back[:noise.shape[1]], "valid")))      # where in `sent` it begins
    both = min(len(sent) - at, len(back))
    assert np.corrcoef(sent[at:at + both], back[:both])[0, 1] > 0.99


def test_every_dialect_has_a_caller():
    """In text, and without WebSocket, test_demo_everywhere.py converses to the end."""
    assert set(CALLERS) == set(TABLE) and set(CALLERS) | set(TEXT_CALLERS) == set(DIALECTS)
    assert set(BARE_CALLERS) == set(BARE)
