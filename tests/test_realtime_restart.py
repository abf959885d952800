"""Sessions of the Realtime protocol when their worker dies or is replaced: a client sees one, and all of it once.

Real sockets, real signals; the model takes its time, so that a signal finds each client elsewhere in its response.
"""
import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from opusagent.calls.pipeline import SENTENCE_PAUSE_MS

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import restart      # noqa: E402

WORDS = ("zero one two three four five six seven eight nine ten. eleven twelve thirteen fourteen, fifteen sixteen "
         "seventeen. eighteen nineteen twenty, twenty-one twenty-two.")
RULES = f"""
[[reply]]
say = "{WORDS}"
"""
CLIENTS = 10
BESIDE = (3, 6)                 # of those in writing, who ask for it beside the conversation
APART = 0.17                    # seconds between two of them


class Client(restart.RealtimeCaller):
    path = "/v1/realtime?model=assistant"

    def send(self):
        """It only writes."""

    def of(self, kind):
        return [event for event in self.events if event["type"] == kind]

    def asks(self, modality, beside):
        self.tell("session.update", session={"type": "realtime", "instructions": "Count.",
                                             "output_modalities": [modality]})
        self.tell("conversation.item.create", item={"type": "message", "role": "user", "id": "question", "content": [
            {"type": "input_text", "text": "Please count."}]})
        self.tell("response.create", response={"metadata": {"number": str(self.number)},
                                               "conversation": "none" if beside else "auto"})

    def check(self, modality):
        """What it saw is one whole response, from beginning to end."""
        assert not self.of("error") and not self.twice, (self.of("error"), self.twice)
        once = ("session.created", "response.created", "response.output_item.added", "response.content_part.added",
                "response.content_part.done", "response.output_item.done", "response.done", "rate_limits.updated")
        assert [len(self.of(kind)) for kind in once] == [1] * len(once), [event["type"] for event in self.events]
        kind = "response.output_audio_transcript" if modality == "audio" else "response.output_text"
        told = "".join(event["delta"] for event in self.of(f"{kind}.delta"))
        (done,), (response,) = self.of(f"{kind}.done"), [event["response"] for event in self.of("response.done")]
        assert response["status"] == "completed" and response["metadata"] == {"number": str(self.number)}, response
        assert told == done.get("transcript", done.get("text")) and told.split() == WORDS.split(), told
        assert {event["response_id"] for event in self.events if "response_id" in event} == {response["id"]}
        assert {event["item_id"] for event in self.events if "item_id" in event} == {response["output"][0]["id"]}
        numbers = [int(event["event_id"].rpartition("_")[2]) for event in self.events]
        assert numbers == sorted(numbers)


async def sessions(server, clients, strike, strikes):
    """All of them ask one after the other, and the server is struck as often; then each has something to say still."""
    loop = asyncio.get_running_loop()
    for number in range(CLIENTS):
        _, client = await loop.create_connection(lambda: Client(number), "127.0.0.1", server.port)   # noqa: B023
        assert await client.opened
        clients.append(client)
    for number, client in enumerate(clients):
        client.asks("audio" if number % 3 else "text", number in BESIDE)
        await asyncio.sleep(APART)
    for _ in range(strikes):
        await asyncio.to_thread(strike, server)
    await eventually(lambda: all(client.of("response.done") for client in clients), server, clients)
    for client in clients:                      # what was written before is there still
        client.tell("conversation.item.retrieve", item_id="question")
    await eventually(lambda: all(client.of("conversation.item.retrieved") for client in clients), server, clients)


async def eventually(true, server, clients, seconds=60):
    until = asyncio.get_running_loop().time() + seconds
    while not true():
        assert asyncio.get_running_loop().time() < until, (
            server.said()[-3000:], [[event["type"] for event in client.events][-5:] for client in clients])
        await asyncio.sleep(0.05)


def kill(server):
    """SIGKILL to the worker; when this returns another has its calls."""
    struck(server, server.workers()[0], signal.SIGKILL, "calls were taken over")


def upgrade(server):
    """When this returns, the successor has them."""
    struck(server, server.process.pid, signal.SIGUSR2, "has taken over")


def struck(server, pid, number, words):
    """A signal, and what it leads to: the server says these words once more."""
    said = server.said().count(words)
    os.kill(pid, number)
    until = time.monotonic() + 30
    while server.said().count(words) == said:
        assert time.monotonic() < until, server.said()
        time.sleep(0.05)


@pytest.mark.parametrize("strike, strikes", [(kill, 1), (kill, 4), (upgrade, 1)])
def test_a_client_sees_one_session_and_all_of_it_once(tmp_path, strike, strikes):
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES)
    server = restart.Server("--scripted-llm", str(rules), "--scripted-llm-piece-ms", "70",
                            "--scripted-llm-first-ms", "100",   # ... and a machine that stands still gets its time
                            "--openai-first-token-seconds", "30", "--openai-token-gap-seconds", "30")
    clients = []

    async def call():
        try:
            await sessions(server, clients, strike, strikes)
        finally:
            for client in clients:
                client.transport.abort()
            await asyncio.sleep(0)
    try:
        asyncio.run(call())
        said = server.said()
    finally:
        server.stop()
    for number, client in enumerate(clients):
        client.check("audio" if number % 3 else "text")
    lengths = [client.samples * 1000 / restart.RATE for number, client in enumerate(clients) if number % 3]
    assert max(lengths) - min(lengths) <= 2 * SENTENCE_PAUSE_MS, lengths     # pauses in which nothing came anyway
    assert "Traceback" not in said
