"""Calls in text when their worker dies or is replaced: every word is told once, and the conversation goes on.

Real sockets, real signals; the model takes its time, so that a signal finds each call elsewhere in its answer.
"""
import asyncio
import sys
from pathlib import Path
from urllib.request import urlopen

import orjson
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import restart      # noqa: E402
from test_realtime_restart import RULES, WORDS, kill, upgrade       # noqa: E402

FLOW = """
start = "ask"
facts = { caller = "nobody", drink = "" }
waits = { no_input = 60000 }
[states.ask]
say = "Tea or coffee, {caller}?"
on = [{ phrases = ["tea", "coffee"], fact = "drink", go = "tell" }]
[states.tell]
prompt = "Count."
on = [{ phrases = ["thanks"], go = "bye" }]
[states.bye]
say = "Your {drink}, {caller}. Goodbye."
end = true
"""
CALLS = 8
APART = 0.17                    # seconds between two of them


class Platform(restart.Caller):
    """Twilio's side of a call in text."""

    path = "/ws/twilio-relay"

    def __init__(self, number):
        super().__init__(number)
        self.messages = []

    def _message(self, opcode, payload, now):
        if opcode == restart.TEXT:
            self.messages.append(orjson.loads(payload))
        else:
            super()._message(opcode, payload, now)

    def tell(self, kind, **content):
        self.transport.write(restart.masked(restart.TEXT, orjson.dumps({"type": kind, **content})))

    def speaks(self, words):
        self.tell("prompt", voicePrompt=words, lang="en-US", last=True)

    @property
    def texts(self):
        """What is spoken, an utterance each, as far as it is whole."""
        utterances = [""]
        for message in self.messages:
            utterances[-1] += message.get("token", "")
            if message.get("last"):
                utterances.append("")
        return utterances[:-1]


async def calls(server, platforms, strike, strikes):
    loop = asyncio.get_running_loop()
    for number in range(CALLS):
        _, platform = await loop.create_connection(lambda: Platform(number), "127.0.0.1", server.port)  # noqa: B023
        platforms.append(platform)
        assert await platform.opened
        platform.tell("setup", callSid=f"CA{number}", customParameters={"caller": f"Ada {number}"})
    await eventually_all(platforms, 1, server)
    for number, platform in enumerate(platforms):
        platform.speaks("coffee please" if number % 2 else "tea")
        await asyncio.sleep(APART)
    for _ in range(strikes):
        await asyncio.to_thread(strike, server)
    await eventually_all(platforms, 2, server)
    if strike is kill:
        await asyncio.to_thread(strike, server)     # nothing is said now; the caller is waited for
    for platform in platforms:
        platform.tell("interrupt", utteranceUntilInterrupt="zero one two", durationUntilInterruptMs=900)
        platform.speaks("thanks")
    await eventually_all(platforms, 3, server)


async def eventually_all(platforms, count, server):
    until = asyncio.get_running_loop().time() + 60
    while not all(len(platform.texts) >= count for platform in platforms):
        assert asyncio.get_running_loop().time() < until, (server.said()[-3000:],
                                                           [platform.messages[-5:] for platform in platforms])
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("strike, strikes", [(kill, 1), (kill, 4), (upgrade, 1)])
def test_every_word_is_told_once_and_the_conversation_goes_on(tmp_path, strike, strikes):
    rules, flow = tmp_path / "rules.toml", tmp_path / "flow.toml"
    rules.write_text(RULES)
    flow.write_text(FLOW)
    server = restart.Server("--flow", str(flow), "--scripted-llm", str(rules), "--scripted-llm-piece-ms", "70",
                            "--scripted-llm-first-ms", "100",
                            "--openai-first-token-seconds", "30", "--openai-token-gap-seconds", "30")
    platforms = []

    async def call():
        try:
            await calls(server, platforms, strike, strikes)
            record = orjson.loads(await asyncio.to_thread(
                lambda: urlopen(f"http://127.0.0.1:{server.port}/calls/CA3", timeout=10).read()))
        finally:
            for platform in platforms:
                platform.transport.abort()
            await asyncio.sleep(0)
        return record
    try:
        record = asyncio.run(call())
    finally:
        said = server.said()
        server.stop()
    for number, platform in enumerate(platforms):
        drink = "coffee" if number % 2 else "tea"
        assert platform.texts == [f"Tea or coffee, Ada {number}?", WORDS, f"Your {drink}, Ada {number}. Goodbye."]
    assert [(turn["caller"], turn["agent"]) for turn in record["turns"]][:2] == [
        ("", "Tea or coffee, Ada 3?"), ("coffee please", "zero one two")]
    assert record["facts"] == {"caller": "Ada 3", "drink": "coffee"} and "Traceback" not in said
