"""AudioCodes: a connection breaks, another comes, and the conversation goes on where it was; or nobody comes."""
import asyncio
import json
import os
import time

import pytest

from opusagent import ProtocolError
from opusagent.client.localserver import fetch_json
from opusagent.client.telephone import Line
from opusagent.dialects import TEXT
from opusagent.replay.rerun import Replay, World, config_of
from opusagent.replay.tape import load
from served import SCRIPTED, serving

FLOW = """
start = "greeting"
[facts]
caller = ""
[states.greeting]
say = "Good morning, this is the reception. Whom would you like to speak to today, and what may I say it is about?"
on = [{ dtmf = "1", go = "second" }]
[states.second]
say = "One moment."
on = [{ dtmf = "2", go = "bye" }]
[states.bye]
say = "Bye."
end = true
"""
TOKEN, OTHER = "the-token-of-one", "the-token-of-another"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resumption")


@pytest.fixture(scope="module")
def server(folder):
    (folder / "flow.toml").write_text(FLOW)
    (folder / "opusagent.toml").write_text(
        f'[[auth.audiocodes]]\nsecrets = ["{TOKEN}"]\ntenant = ""\n[[auth.audiocodes]]\nsecrets = ["{OTHER}"]\n'
        f'agent = "demo"\n[archive]\ndirectory = "{folder}/archive"\n[net]\nresume_seconds = 2\n')
    with serving(*SCRIPTED, "--flow", str(folder / "flow.toml"), "--config", str(folder / "opusagent.toml")) as running:
        yield running


class Platform:
    """One connection of VoiceAI Connect's: what came, and what is sent."""

    everyone: list = []

    def __init__(self):
        self.everyone.append(self)
        self.came, self.ended, self.line = [], asyncio.Event(), None

    @classmethod
    async def dial(cls, server, token=TOKEN, route="/ws/audiocodes"):
        peer = cls()
        peer.line = await Line.dial(server.ws(route), peer.heard, lambda code, reason: peer.ended.set(), (),
                                    {"Authorization": f"Bearer {token}"})
        return peer

    def heard(self, opcode, payload, now):
        self.came.append(json.loads(bytes(payload)))

    def send(self, kind, **fields):
        self.line.send(TEXT, json.dumps({"type": kind, **fields}).encode())

    def kinds(self):
        return [message["type"] for message in self.came]

    async def sees(self, kind, seconds=5.0):
        until = time.monotonic() + seconds
        while not any(message["type"] == kind for message in self.came):
            assert time.monotonic() < until, (kind, self.kinds())
            await asyncio.sleep(0.01)
        return next(message for message in self.came if message["type"] == kind)


def run(work):
    """The result of a test's coroutine; no connection is left open."""
    async def working():
        try:
            return await work
        finally:
            for peer in Platform.everyone:
                if peer.line is not None:
                    peer.line.abort()
            Platform.everyone.clear()
            await asyncio.sleep(0.05)
    return asyncio.run(working())


async def begun(server, name):
    """A call in which the agent has begun to speak."""
    peer = await Platform.dial(server)
    peer.send("session.initiate", conversationId=name, botName="b", caller="+15550100", expectAudioMessages=True,
              supportedMediaFormats=["raw/lpcm16_8"])
    peer.send("activities", conversationId=name, activities=[{"type": "event", "name": "start", "parameters": {}}])
    peer.send("userStream.start", conversationId=name)
    await peer.sees("playStream.chunk")
    return peer


def key(peer, name, digit):
    peer.send("activities", conversationId=name, activities=[{"type": "event", "name": "DTMF", "value": digit}])


async def record(server, name):
    return await fetch_json(server.ws("/ws/audiocodes"), f"/calls/{name}")


def test_a_broken_connection_is_followed_by_another(server, folder):
    name = os.urandom(8).hex()

    async def call():
        first = await begun(server, name)
        first.line.abort()                          # the network, not the platform
        await asyncio.sleep(0.7)
        waiting = await record(server, name)
        second = await Platform.dial(server)
        second.send("session.resume", conversationId=name)
        accepted = await second.sees("session.accepted")
        again = await second.sees("playStream.start")
        second.send("userStream.start", conversationId=name)
        await second.sees("userStream.started")
        key(second, name, "1")
        await asyncio.sleep(0.2)
        key(second, name, "2")
        await second.sees("activities", 10)
        second.send("session.end", conversationId=name, reasonCode="bot-disconnected")
        await asyncio.wait_for(second.ended.wait(), 5)
        return waiting, accepted, again, await record(server, name)
    waiting, accepted, again, over = run(call())
    assert waiting["live"] and waiting["turns"][0]["stopped_by"] == "line lost"
    assert accepted["mediaFormat"] == "raw/lpcm16_8" and again["streamId"] == "2"
    assert over["state"] == "bye" and over["done"] and not over["live"] and over["facts"]["caller"] == "+15550100"
    assert over["turns"][1]["agent"].startswith("Good morning") or over["turns"][1]["stopped_by"] == "keys"
    kept, = (folder / "archive").glob(f"*/*-{name}.jsonl")
    asyncio.run(replays(kept))


async def replays(path):
    tape = load(str(path))
    replay = Replay(tape, World(tape, config_of(tape, {})))
    await replay.run()                              # raises where it decides otherwise
    assert replay.call.dialogue.state == "bye"


def test_the_platform_may_notice_before_we_do(server):
    """Its new connection comes while the old one still stands."""
    name = os.urandom(8).hex()

    async def call():
        first = await begun(server, name)
        second = await Platform.dial(server)
        second.send("session.resume", conversationId=name)
        await second.sees("playStream.chunk")
        await asyncio.wait_for(first.ended.wait(), 5)
        found = await record(server, name)
        second.send("session.end", conversationId=name)
        await asyncio.wait_for(second.ended.wait(), 5)
        return found, await record(server, name)
    live, over = run(call())
    assert live["live"] and not over["live"]


def test_nobody_comes(server):
    name = os.urandom(8).hex()

    async def call():
        first = await begun(server, name)
        first.line.abort()
        await asyncio.sleep(3.2)
        late = await Platform.dial(server)
        late.send("session.resume", conversationId=name)
        return await late.sees("session.error"), await record(server, name)
    error, over = run(call())
    assert error["reason"] == "conversation not found" and not over["live"] and not over["done"]


def test_nobody_else_comes(server):
    """Another agent's token opens another agent, and an ended conversation is over."""
    name = os.urandom(8).hex()

    async def call():
        first = await begun(server, name)
        thief = await Platform.dial(server, OTHER, "/ws/audiocodes/demo")
        thief.send("session.resume", conversationId=name)
        refused = await thief.sees("session.error")
        with pytest.raises(ProtocolError):
            await Platform.dial(server, OTHER)
        first.send("session.end", conversationId=name)
        await asyncio.wait_for(first.ended.wait(), 5)
        late = await Platform.dial(server)
        late.send("session.resume", conversationId=name)
        return refused, await late.sees("session.error")
    refused, late = run(call())
    assert refused["reason"] == late["reason"] == "conversation not found"


def test_nothing_went_wrong_meanwhile(server):
    assert "Traceback" not in server.written() and server.alive()
