"""Carriers' messages: what is read in one pass, against the same through a JSON parser; plain PCM, cut anywhere."""
import json
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_dialects import CALLS, TEXT, media_messages, messages, outcome, read, wire

from opusagent.dialects import BINARY, TABLE, Audible, Audio

from . import examples
from .streams import pieces

RECORDED = sorted({path.parent.name for path in CALLS} & TABLE.keys())


def untaken(*_) -> None:
    """In place of a compiled reader: it takes nothing, so that all is left to Python."""


def slowly(dialect, opcode, message):
    with mock.patch.multiple(Audible, media=untaken, streamed=untaken, text=untaken):
        return outcome(dialect, opcode, message)


def doubtful(name: str, message) -> bool:
    """Telnyx numbers its chunks, and the number is looked for in the text: where it stands twice, either may count."""
    return name == "telnyx" and bytes(message).count(b'"chunk"') != 1


@st.composite
def calls(draw, name):
    """(query, messages): a recorded call in its order, some of it left out, with other messages between."""
    about, lines = read(draw(st.sampled_from([path for path in CALLS if path.parent.name == name])))
    media = media_messages().map(str.encode).filter(lambda text: not doubtful(name, text))
    odd = st.one_of(messages(name), media.map(lambda text: (TEXT, text)))
    sent = []
    for line in lines:
        if line["direction"] == "in" and draw(st.integers(0, 9)) > 0:
            sent.append(wire(line))
        sent += draw(st.lists(odd, max_size=1))
    return about.get("query", {}), sent


@pytest.mark.parametrize("name", RECORDED)
@examples(60)
@given(data=st.data())
def test_one_pass_and_python_make_the_same_of_any_call(name, data):
    query, sent = data.draw(calls(name))
    fast, plain = TABLE[name](query), TABLE[name](query)
    assert (fast.open() is None) == (plain.open() is None)
    for opcode, message in sent:
        assert outcome(fast, opcode, memoryview(message)) == slowly(plain, opcode, message), bytes(message)
        assert (fast.ignored, fast.outbox) == (plain.ignored, plain.outbox)


@examples(300)
@given(st.lists(media_messages(), min_size=1, max_size=3))
def test_twilio_in_one_pass_is_twilio_through_the_json_parser(texts):
    fast, plain = TABLE["twilio"]({}), TABLE["twilio"]({})
    for dialect in (fast, plain):
        dialect.receive(TEXT, b'{"event":"start","streamSid":"MZ1","start":{}}')
    for text in texts:
        assert outcome(fast, TEXT, memoryview(text.encode())) == slowly(plain, TEXT, text.encode()), text
    assert fast.ignored == plain.ignored


EVERY_BYTE = bytes(range(256)) * 40
SOUND = st.one_of(st.binary(max_size=60), st.sampled_from([EVERY_BYTE[:n] for n in (3199, 3200, 3201, 9600)]))


@examples(150)
@given(st.sampled_from(["8000", "16000", "24000", "48000"]), SOUND, st.data())
def test_plain_pcm_is_the_same_samples_however_it_is_cut(rate, sound, data):
    dialect, heard = TABLE["pcm"]({"rate": rate}), b""
    dialect.open()
    for piece in data.draw(pieces(sound)):
        event = dialect.receive(BINARY, memoryview(piece))
        if data.draw(st.booleans()):
            dialect.receive(TEXT, json.dumps({"event": data.draw(st.text(max_size=4))}).encode())
        if event is not None:
            assert isinstance(event, Audio) and event.pcm.format == "h" and len(event.pcm)
            heard += bytes(event.pcm)
    assert heard == sound[:len(sound) // 2 * 2]
