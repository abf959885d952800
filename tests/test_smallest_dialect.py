"""The dialect that the manual shows is one: it keeps what the tables ask for, from begin to end."""
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np

from opusagent.calls.echo import EchoCall
from opusagent.dialects import BINARY, TEXT, Audio, Start, Stop

PATH = Path(__file__).parent.parent / "examples" / "smallest_dialect.py"
SPEC = importlib.util.spec_from_file_location("smallest_dialect", PATH)
smallest = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(smallest)


def sides():
    return smallest.Tiny({"call_id": "c", "language": "en"}), smallest.TinyCaller(urlsplit("ws://h/ws/tiny"))


def test_it_is_shorter_than_the_manual_says():
    assert len(PATH.read_text().splitlines()) < 80


def test_a_call_from_its_begin_to_its_end():
    ours, caller = sides()
    assert ours.open() == Start("c", {"language": "en"}) and caller.open() == []
    pcm = (np.sin(np.arange(4000) / 5) * 8000).astype(np.int16)
    for begin in range(0, 4000, 160):
        opcode, message = caller.audio(pcm[begin:begin + 160])
        heard = ours.receive(opcode, memoryview(message))
        assert isinstance(heard, Audio) and np.abs(np.array(heard.pcm) - pcm[begin:begin + 160]).max() < 300
    assert len(ours.receive(BINARY, memoryview(bytes(5000))).pcm) == 5000
    back = caller.receive(ours.opcode, memoryview(ours.audio(pcm[:160])))
    assert np.abs(np.array(back.pcm) - pcm[:160]).max() < 300
    assert ours.receive(BINARY, memoryview(b"")) is None and ours.receive(TEXT, memoryview(b"hello")) is None
    assert ours.ignored == 1 and ours.mark("m") is None and ours.clear() is None and ours.outbox == []
    assert caller.receive(TEXT, memoryview(ours.stop())) == Stop() == ours.receive(*caller.stop())


def test_the_echo_speaks_it():
    sent = []
    connection = SimpleNamespace(wire=SimpleNamespace(send=lambda *message: sent.append(message), lockstep=False),
                                 close=lambda code: sent.append(code))
    ours, caller = sides()
    call = EchoCall(None, connection, ours, "echo")
    opcode, message = caller.audio(np.arange(160, dtype=np.int16))
    call.on_message(opcode, memoryview(message))
    call.on_message(TEXT, memoryview(b"bye"))
    assert sent == [(BINARY, message), 1000]
