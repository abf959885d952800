"""The engine `realtime` of a running server, whose endpoint is another running server: ours, in the same protocol."""
import asyncio

import pytest
from served import serving
from test_realtime_live import converse

from opusagent import ConfigError
from opusagent.client.people import person

FLOW = """
start = "hello"
[states.hello]
say = "How can I help?"
on = [{ free = true, go = "answer" }]
[states.answer]
prompt = "You answer a shop's telephone."
history = 3
on = [{ free = true, go = "bye" }]
[states.bye]
say = "Goodbye."
end = true
"""
SAID = "Your order left today."


def test_a_call_over_two_servers(tmp_path):
    try:
        says = [person(8000)[1][1]] * 2
    except ConfigError as error:
        pytest.skip(str(error))
    (tmp_path / "flow.toml").write_text(FLOW)
    (tmp_path / "says.toml").write_text(f'[[reply]]\nsay = "{SAID}"\n')
    (tmp_path / "heard.txt").write_text("where is my order\n")
    with serving("--workers", "1", "--stt", "scripted", "--scripted-stt", str(tmp_path / "heard.txt"),
                 "--llm", "scripted", "--scripted-llm", str(tmp_path / "says.toml"), "--tts", "scripted") as far:
        with serving("--workers", "1", "--flow", str(tmp_path / "flow.toml"), "--stt", "realtime", "--llm", "realtime",
                     "--tts", "scripted", "--openai-realtime-base-url", f"http://{far.host}:{far.port}/v1",
                     "--openai-realtime-model", "assistant") as near:
            _, _, record = asyncio.run(converse(near.ws("/ws/twilio"), says))
    told = [(turn["state"], turn["agent"].strip()) for turn in record["turns"]]
    assert told == [("hello", "How can I help?"), ("answer", SAID), ("bye", "Goodbye.")]
    assert "where is my order" in record["turns"][1]["caller"] and record["done"]
