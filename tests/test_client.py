"""The simulated caller over real sockets: an agent that is known to the sample answers it, or misbehaves."""
import argparse
import asyncio
import contextlib
import json
import re

import numpy as np
import pytest

from opusagent import ConfigError, ProtocolError
from opusagent.client import caller, localserver
from opusagent.client.bareline import bare_dialect
from opusagent.client.caller import Say
from opusagent.client.commands import call_command
from opusagent.client.localserver import fetch_json, matching
from opusagent.client.probe import Probe
from opusagent.client.telephone import Caller, Line, spoken_to
from opusagent.dialects import BARE_CALLERS, TABLE, Audio, Mark, Start, Stop
from opusagent.dialects.audiosocket import AUDIO, DTMF, ERROR, HANGUP
from opusagent.recording import read_wav, write_wav
from opusagent.transport import http11
from opusagent.transport.websocket import CLOSED, WebSocket

MS = 8


def tone(ms, rate=8000):
    return (8000 * np.sin(np.arange(ms * rate // 1000) * 0.7)).astype(np.int16)


class Agent(asyncio.Protocol):
    """Greets, and answers 200 ms of audio after the caller's last voiced sample; `plan` says what else happens."""

    def __init__(self, plan):
        self.plan = plan
        self.head = http11.HeadParser()
        self.ws = None
        self.position = 0               # the caller's samples
        self.voiced = None              # end of the last voiced one
        self.greeted = False

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        if self.ws is None:
            head = self.head.feed(data)
            if head is None:
                return
            if head.path.startswith("/calls/"):
                return self.finish(http11.response(200, json.dumps(self.plan["record"])))
            if refusal := self.plan.get("refuse"):
                return self.finish(http11.refusal(refusal))
            self.transport.write(http11.accept(head))
            self.ws = WebSocket(1 << 20)
            self.dialect = TABLE[head.path.split("/")[2]](head.query)
            if self.dialect.open():
                self.greet()
            data = self.head.rest
        for opcode, payload in self.ws.receive_bytes(data):
            self.on_event(self.dialect.receive(opcode, payload))
        self.flush()

    def finish(self, answer):
        self.transport.write(answer)
        self.transport.close()

    def flush(self):
        self.transport.write(b"".join(self.ws.outbox))
        self.ws.outbox.clear()
        if self.ws.state is CLOSED:
            self.transport.close()

    def say(self, ms, mark=None):
        self.ws.send(self.dialect.opcode, self.dialect.audio(tone(ms, self.dialect.rate)))
        if mark:
            self.ws.send(1, self.dialect.mark(mark))

    def greet(self):
        self.greeted = True
        self.say(self.plan.get("greeting_ms", 100), "greeting")

    def on_event(self, event):
        self.plan["events"].append(event if not isinstance(event, Audio) else None)
        if isinstance(event, Start):
            self.greet()
        elif isinstance(event, Audio):
            self.on_audio(np.asarray(event.pcm))

    def on_audio(self, pcm):
        if self.plan.get("echo"):
            return self.ws.send(self.dialect.opcode, self.dialect.audio(pcm))
        self.position += len(pcm)
        if np.abs(pcm.astype(int)).max() > 1000:
            if self.voiced is None and self.plan.get("clears"):
                self.ws.send(1, self.dialect.clear())
            self.voiced = self.position
        elif self.voiced is not None and self.position - self.voiced >= self.dialect.rate // 5:
            self.voiced = None
            self.plan.get("answer", lambda agent: agent.say(100))(self)


@contextlib.asynccontextmanager
async def agent(**plan):
    plan = {"events": [], "record": {"turns": []}} | plan
    server = await asyncio.get_running_loop().create_server(lambda: Agent(plan), "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", plan


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(caller, "QUIET_MS", 100)
    monkeypatch.setattr(caller, "LEAVING_MS", 100)
    monkeypatch.setattr(caller, "PATIENCE_MS", 1000)


def says(*plans, rate=8000):
    """Turns of 200 ms of voice, which end with a frame."""
    return [Say.of(tone(200, rate), rate, f"turn {i + 1}", barge) for i, barge in enumerate(plans)]


async def hold(url, *plans, rate=8000):
    simulated = Caller(url, spoken_to(url), says(*plans, rate=rate))
    return simulated, [turn async for turn in simulated.converse()]


@pytest.mark.asyncio
@pytest.mark.parametrize("route", ["twilio", "pcm?rate=8000", "pcm?rate=48000"])
async def test_a_conversation_is_measured_from_the_audio(route):
    async with agent() as (place, plan):
        rate = 48000 if "48000" in route else 8000
        simulated, turns = await hold(f"ws://{place}/ws/{route}", None, None, rate=rate)
    assert [turn.name for turn in turns] == ["turn 1", "turn 2"]
    for turn in turns:
        assert (turn.answered - turn.spoke_to) * 1000 >= 200 * rate     # never early, on the clock of the deadlines;
        assert turn.gap_ms == (turn.answered - turn.spoke_to - turn.late_to) * 1000 / rate < 1000   # less our own
        assert (turn.spoke_to - turn.spoke_from) * 1000 == 200 * rate
    assert Mark("greeting") in plan["events"]
    assert any(isinstance(event, Stop) for event in plan["events"])
    assert simulated.closed == ""
    heard = simulated.ear.tape.read()
    assert np.abs(heard).max() > 7000 and len(simulated.script.tape.read()) >= turns[1].answered


@pytest.mark.asyncio
async def test_barge_in_is_timed_and_the_unheard_rest_is_gone():
    async with agent(greeting_ms=10_000, clears=True) as (place, plan):
        simulated, (turn,) = await hold(f"ws://{place}/ws/twilio", 400)
    assert turn.stopped > turn.spoke_from and turn.reaction_ms < 1000       # the agent clears at the first loud frame
    assert len(simulated.ear.tape.read()) < 5000 * MS
    assert Mark("greeting", cleared=True) in plan["events"]


@pytest.mark.asyncio
async def test_a_call_that_the_server_ends_keeps_what_was_measured():
    def bye(agent):
        agent.ws.close(1000, "the conversation is over")
    async with agent(answer=bye) as (place, _):
        simulated, turns = await hold(f"ws://{place}/ws/twilio", None, None)
    assert [turn.gap_ms for turn in turns] == [None]
    assert simulated.closed == "the call was ended with 1000, the conversation is over"


@pytest.mark.asyncio
async def test_a_connection_that_breaks_ends_the_call():
    async with agent(answer=lambda agent: agent.transport.abort()) as (place, _):
        simulated, turns = await hold(f"ws://{place}/ws/twilio", None, None)
    assert len(turns) == 1 and simulated.closed == "the connection broke"


@pytest.mark.asyncio
async def test_a_refusal_is_told_with_the_sentence_of_the_server():
    async with agent(refuse=ProtocolError(503, "This server is full.")) as (place, _):
        with pytest.raises(ProtocolError) as refused:
            await hold(f"ws://{place}/ws/twilio", None)
    assert (refused.value.code, refused.value.reason) == (503, "This server is full.")


@pytest.mark.asyncio
async def test_a_server_cannot_steer_the_terminal():
    async with agent(answer=lambda agent: agent.ws.close(1000, "\x1b[2Jbye")) as (place, _):
        simulated, _ = await hold(f"ws://{place}/ws/twilio", None)
    assert simulated.closed == "the call was ended with 1000, [2Jbye"


@pytest.mark.asyncio
async def test_a_server_that_is_none_is_told(unused_tcp_port):
    async def hum(reader, writer):
        writer.write(b"220 mail.example ESMTP\r\n\r\n")
        writer.close()
    async with await asyncio.start_server(hum, "127.0.0.1", unused_tcp_port):
        with pytest.raises(ProtocolError, match="does not answer in HTTP/1.1"):
            await Line.dial(f"ws://127.0.0.1:{unused_tcp_port}/", None, None)


@pytest.mark.asyncio
async def test_nobody_there_is_an_error_of_the_system(unused_tcp_port):
    with pytest.raises(OSError):
        await Line.dial(f"ws://127.0.0.1:{unused_tcp_port}/", None, None)


@pytest.mark.asyncio
async def test_the_probe_times_every_frame():
    async with agent(echo=True, greeting_ms=0) as (place, plan):
        probe = Probe(f"ws://{place}/ws/pcm/echo?rate=8000", "pcm")
        await probe.run(0.5)
    assert 15 <= len(probe.round_trips) <= 25
    assert all(0 < ns < 500_000_000 for ns in probe.round_trips)


@pytest.mark.asyncio
async def test_calls_have_ids_of_their_own():
    pairs = [[Caller(f"ws://h/ws/{name}", name, []) for _ in range(2)] for name in ("pcm", "twilio")]
    for one, other in pairs:
        assert one.call_id != other.call_id
    assert f"call_id={pairs[0][0].call_id}" in pairs[0][0].url and "?" not in pairs[1][0].url
    assert Caller("ws://h/ws/pcm?call_id=mine", "pcm", []).call_id == "mine"


@pytest.mark.parametrize("url", ["http://h/ws/pcm", "ws:///ws/pcm", "ws://h:x/ws/pcm", "ws://h:0/ws/pcm",
                                 "ws://h/ws/p c", "ws://h/ws/pcm\n", "ws://[h/ws/pcm", "h"])
def test_what_is_no_address_is_one_sentence(url):
    with pytest.raises(ConfigError, match="is not a WebSocket address"):
        spoken_to(url)


def test_a_dialect_is_named_by_the_path_or_by_the_user():
    assert spoken_to("ws://h/ws/twilio/echo") == "twilio"
    assert spoken_to("ws://h/media", "pcm") == "pcm"
    with pytest.raises(ConfigError, match="does not say what dialect"):
        spoken_to("ws://h/media")
    for named in (("ws://h/ws/pcm", "morse"), ("ws://h/ws/morse",)):
        with pytest.raises(ConfigError, match="no caller for the dialect morse"):
            spoken_to(*named)


def test_a_call_without_a_websocket_has_an_address_of_its_own():
    assert bare_dialect("tcp://127.0.0.1:9092", None) == "audiosocket" == bare_dialect("tcp://h:1/", "audiosocket")
    for url in ("tcp://h", "tcp://h:x", "tcp://:9", "tcp://h:9/ws", "ws://h:9"):
        with pytest.raises(ConfigError, match="no address of AudioSocket; one is written tcp://HOST:PORT"):
            bare_dialect(url, None)
    with pytest.raises(ConfigError, match="pcm is called at ws://HOST:PORT/ws/pcm"):
        bare_dialect("tcp://h:9", "pcm")
    with pytest.raises(ConfigError, match="is called over TCP in the dialect audiosocket: write tcp://HOST:PORT"):
        spoken_to("ws://h/ws/pcm", "audiosocket")
    with pytest.raises(ConfigError, match="is not a WebSocket address"):
        spoken_to("tcp://h:9")                  # where only WebSockets are called


@pytest.mark.parametrize("kind, payload", [(DTMF, b"5"), (AUDIO, b""), (ERROR, b"\x01"), (0x12, bytes(640))])
def test_what_asterisk_takes_for_an_error_ends_the_call(kind, payload):
    caller = BARE_CALLERS["audiosocket"]()
    with pytest.raises(ProtocolError, match="takes for an error"):
        caller.receive(kind, payload)
    assert isinstance(caller.receive(HANGUP, b""), Stop) and caller.mark("m") is None


def test_nobody_dials_again_less_than_never():
    with pytest.raises(ConfigError, match="--returns must be 0 or more"):
        Caller("ws://h/ws/twilio", "twilio", [], returns=-3)


@pytest.mark.asyncio
async def test_records_are_fetched_beside_the_call():
    async with agent(record={"turns": [1]}) as (place, _):
        assert await fetch_json(f"ws://{place}/ws/pcm", "/calls/x") == {"turns": [1]}
    assert await fetch_json(f"ws://{place}/ws/pcm", "/calls/x") is None


def receipt(end_ms, measured=True, **waits):
    return {"turn": 1, "end_ms": end_ms, "measured": measured, "waits": waits, "stopped_by": "",
            "saved_ms": 0.0, "voice_to_voice_ms": sum(waits.values())}


def test_a_receipt_belongs_to_the_turn_that_ended_where_it_says():
    turn = caller.Measured(0, "a", 8000, 8000, 16000, None, 17600, 20000)
    greeting, mine, next_one = receipt(2000, measured=False), receipt(2010), receipt(4000)
    assert matching([greeting, mine, next_one], turn) is mine
    assert matching([greeting, next_one, receipt(None)], turn) is None


def run_call(tmp_path, capsys, wavs, *flags, **plan):
    """`opusagent call` in a thread of its own loop, against an agent on this one; (exit code, stdout)."""
    args = argparse.Namespace(wav=wavs, say=[], dialect=None, secret=None, returns=0, save=str(tmp_path / "out.wav"),
                              json="json" in flags)

    async def both():
        async with agent(**plan) as (place, _):
            args.url = f"ws://{place}/ws/twilio"
            return await asyncio.to_thread(call_command, args)
    code = asyncio.run(both())
    return code, capsys.readouterr()


def test_the_command_prints_the_gap_beside_the_receipt_and_saves_the_call(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(localserver, "SAME_END_MS", 1e9)        # however late this machine lets the caller begin
    write_wav(tmp_path / "hello.wav", 16000, tone(300, 16000))
    record = {"turns": [receipt(700, endpointing=180.0, synthesis=10.0)]}
    code, output = run_call(tmp_path, capsys, [str(tmp_path / "hello.wav")], record=record)
    assert code == 0
    lines = output.out.splitlines()
    assert int(re.fullmatch(r"turn 1  hello\.wav  (\d+) ms", lines[0])[1]) >= 150
    assert "190 ms" in lines[1] and "endpointing 180.0 + synthesis 10.0" in lines[1]
    assert lines[2].strip().startswith("unexplained ")
    assert any(line.startswith("voice-to-voice: avg ") for line in lines)
    assert len(read_wav(tmp_path / "out.wav")[0]) > 6000


def test_the_command_gives_one_json_object(tmp_path, capsys):
    write_wav(tmp_path / "hello.wav", 8000, tone(300))
    code, output = run_call(tmp_path, capsys, [str(tmp_path / "hello.wav")], "json")
    figures = json.loads(output.out)
    assert code == 0 and figures["dialect"] == "twilio" and figures["call_id"].startswith("CA")
    assert figures["turns"][0]["receipt"] is None and figures["voice_to_voice_ms"]["count"] == 1


def test_a_turn_without_an_answer_is_a_failure(tmp_path, capsys):
    write_wav(tmp_path / "hello.wav", 8000, tone(300))
    code, output = run_call(tmp_path, capsys, [str(tmp_path / "hello.wav")], answer=lambda agent: None)
    assert code == 1 and "no answer" in output.out


def test_a_refused_call_is_one_sentence(tmp_path, capsys):
    write_wav(tmp_path / "hello.wav", 8000, tone(300))
    refusal = ProtocolError(503, "This server is full.")
    code, output = run_call(tmp_path, capsys, [str(tmp_path / "hello.wav")], refuse=refusal)
    assert code == 1 and output.err == "opusagent call: The server refused the call with 503: This server is full.\n"


def test_a_place_to_save_that_is_none_is_told_before_the_call(tmp_path):
    args = argparse.Namespace(url="ws://127.0.0.1:1/ws/pcm", wav=[], dialect=None, save=str(tmp_path / "no" / "a.wav"))
    with pytest.raises(ConfigError, match="there is no such directory"):
        call_command(args)


def test_a_file_that_is_no_recording_is_wrong_usage(tmp_path, capsys):
    (tmp_path / "a.wav").write_text("hello")
    with pytest.raises(ConfigError, match="a.wav is not a WAV file"):
        run_call(tmp_path, capsys, [str(tmp_path / "a.wav")])
