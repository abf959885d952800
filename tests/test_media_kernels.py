"""Audio on the wire, in one pass: compiled readers and writers beside their plain twins, on messages of every kind."""
import base64
import gc
import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opusagent._fastpath import (Room, alaw_decode, alaw_encode, base64_decode, codes_of, media_message, ulaw_decode,
                                 ulaw_encode)
from opusagent.dialects import Audible

CODECS = {"PCMU": (ulaw_encode, ulaw_decode), "PCMA": (alaw_encode, alaw_decode)}
BYTE_ORDER = {"L16": "<i2", "L16BE": ">i2"}
LENGTHS = [0, 1, 2, 3, 119, 120, 121, 159, 160, 161, 239, 240, 241, 480]
ENCODINGS = (*CODECS, *BYTE_ORDER)
CHUNK = b"userStream.chunk", b"audioChunk"


def noise(count):
    return np.random.default_rng(count).integers(-32768, 32768, count).astype(np.int16)


def packed(pcm, encoding):
    """The plain twin of the writers: the bytes that the payload stands for."""
    if encoding in BYTE_ORDER:
        return pcm.astype(BYTE_ORDER[encoding]).tobytes()
    codes = bytearray(len(pcm))
    CODECS[encoding][0](pcm, codes)
    return bytes(codes)


def unpacked(data, encoding):
    """The plain twin of the readers."""
    if encoding in BYTE_ORDER:
        return np.frombuffer(data, BYTE_ORDER[encoding])
    pcm = np.zeros(len(data), np.int16)
    CODECS[encoding][1](data, pcm)
    return pcm


def heard(event):
    return None if event is None else list(event.pcm)


# ---- Twilio's, and theirs who copied it ------------------------------------------------------------------------------

@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("count", LENGTHS)
def test_a_message_holds_its_samples(count, encoding):
    pcm, codes = noise(count), packed(noise(count), encoding)
    message = media_message(b'{"event":"media","media":{"chunk":"7","payload":"', pcm, b'"}}', encoding)
    assert json.loads(message)["media"]["payload"] == base64.b64encode(codes).decode()
    room = Audible(count + 3, encoding)
    said = list(unpacked(codes, encoding)) if count else None
    assert (heard(room.media(message)), room.chunk) == (said, 7)
    assert heard(room.text(base64.b64encode(codes).decode())) == said
    assert count == 0 or Audible(count - 1, encoding).media(message) is None, "it is too long"
    for end in range(len(message)):
        assert room.media(message[:end]) is None


@pytest.mark.parametrize("chunk, number", [('"12"', 12), ("12", 12), ('"007"', 7), ("0", 0), ('"123456789012345"',
                                           123456789012345), ('""', None), ("07", None), ('"1a"', None), ("-1", None),
                                           ('"1234567890123456"', None), ("1.5", None), ("null", None), ('"٣"', None)])
def test_the_number_of_a_chunk(chunk, number):
    room = Audible(9, "PCMU")
    audio = room.media(f'{{"event":"media","media":{{"chunk":{chunk},"payload":"AAAA"}}}}'.encode())
    assert (len(audio.pcm), room.chunk) == (3, number) if number is not None else audio is None


def test_a_message_without_a_number_has_none_of_the_one_before():
    room = Audible(9, "PCMU")
    room.media(b'{"event":"media","media":{"chunk":5,"payload":"AAAA"}}')
    room.media(b'{"event":"media","media":{"payload":"AAAA"}}')
    assert room.chunk == -1


@pytest.mark.parametrize("message", [
    '{"event":"media","media":{"chunk":1,"chunk":2,"payload":"AAAA"}}', '{"event":"mark","media":{"payload":"AAAA"}}',
    '{"event":"media","media":{"track":"outbound","payload":"AAAA"}}', '{"event":"media","media":{"payload":"AA=A"}}',
    '{"event":"media","media":{"payload":"AAAA"},"media":{"payload":"AAAA"}}', '{"event":"media"}', "[]", "", "{}",
    '{"event":"media","media":{"payload":"AAAA"}} x', '{"event":"media","media":{"payload":"AA\\u0041A"}}'])
def test_what_is_not_plain_is_left_to_others(message):
    assert Audible(9, "PCMU").media(message.encode()) is None


def test_half_a_sample_is_left_to_others():
    message = b'{"event":"media","media":{"payload":"AAAA"}}'
    assert Audible(9).media(message) is None


# ---- a stream of AudioCodes' -----------------------------------------------------------------------------------------

def chunk(text, **fields):
    return json.dumps({"type": "userStream.chunk", "conversationId": "4a5b", **fields, "audioChunk": text}).encode()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("count", LENGTHS)
def test_a_chunk_of_a_stream(count, encoding):
    codes, room = packed(noise(count), encoding), Audible(count + 1, encoding)
    message = chunk(base64.b64encode(codes).decode())
    assert heard(room.streamed(message, *CHUNK)) == (list(unpacked(codes, encoding)) if count else None)
    for end in range(len(message)):
        assert room.streamed(message[:end], *CHUNK) is None


@pytest.mark.parametrize("fields, who, count", [
    ({}, None, 3), ({}, b"caller", 0), ({"participant": "caller"}, b"caller", 3), ({"participant": "caller"}, None, 0),
    ({"participant": "agent"}, b"caller", 0), ({"participant": ""}, b"", 3), ({"participant": 7}, b"7", 0),
    ({"type": "userStream.start"}, None, 0), ({"more": "x", "number": 5}, None, 3), ({"deep": {}}, None, 0)])
def test_only_the_callers_chunks(fields, who, count):
    audio = Audible(9, "PCMU").streamed(chunk("AAAA", **fields), *CHUNK, who)
    assert (len(audio.pcm) if audio is not None else 0) == count


def test_another_field_is_no_payload():
    room = Audible(9, "PCMU")
    assert room.streamed(chunk("AAAA"), b"userStream.chunk", b"audio") is None
    assert room.streamed(chunk("AAAA"), b"userStream.chunks", b"audioChunk") is None


# ---- binary ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("count", LENGTHS)
def test_codes_are_their_samples_both_ways(count, encoding):
    pcm = noise(count)
    codes = packed(pcm, encoding)
    assert codes_of(pcm, encoding) == codes_of(memoryview(pcm.tobytes()), encoding) == codes
    room = Audible(2, encoding)         # it grows
    assert heard(room.codes(codes)) == (list(unpacked(codes, encoding)) if count else None)
    if encoding in BYTE_ORDER:
        assert room.codes(codes + b"x") is None, "half a sample"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_one_of_several_channels(encoding):
    channels = [noise(n) for n in (159, 160, 161)]
    shortest = [pcm[:159] for pcm in channels]
    codes = packed(np.stack(shortest, axis=1).reshape(-1), encoding)
    room = Audible(8, encoding)
    for at, pcm in enumerate(shortest):
        assert heard(room.codes(codes, 3, at)) == list(unpacked(packed(pcm, encoding), encoding))
    assert room.codes(codes[:-1], 3, 0) is None, "a sample is not there in all channels"
    for channels, at in ((0, 0), (2, 2), (2, -1)):
        with pytest.raises(ValueError, match="no channel"):
            room.codes(codes, channels, at)


# ---- the memory ------------------------------------------------------------------------------------------------------

def test_what_was_lent_keeps_its_memory_when_it_grows():
    room = Audible(3, "PCMU")
    before = room.codes(b"\x00\x80\xff").pcm
    room.reserve(5)
    assert list(before) == [-32124, 32124, 0] and len(room.pcm) == 5 and len(room.event.pcm) == 0
    assert room.first(4) is room.event and room.event.pcm.obj is room.memory.obj


def test_it_is_given_back():
    event = type("Event", (), {"pcm": None})()
    room = Room(event, 10)
    held = sys.getrefcount(event)
    pcm = room.codes(b"abcd").pcm
    del room
    gc.collect()
    assert sys.getrefcount(event) == held - 1 and list(pcm) == [25185, 25699]


@given(st.binary(max_size=200), st.sampled_from(ENCODINGS))
def test_nothing_that_is_sent_makes_them_stumble(message, encoding):
    room = Audible(20, encoding)
    for read in (room.media, room.codes, lambda message: room.streamed(message, *CHUNK),
                 lambda message: room.text(message.decode("latin-1"))):
        audio = read(message)
        assert audio is None or 0 < len(audio.pcm) <= len(room.pcm)


def test_they_ask_for_what_they_can_read():
    room = Audible(9)
    for wrong in (None, "text", 7, np.zeros((4, 2), np.uint8)[:, 0]):
        for read in (room.media, room.codes, lambda message: room.streamed(message, *CHUNK)):
            with pytest.raises((TypeError, BufferError, ValueError)):
                read(wrong)
    for encoding in ("", "G722", "pcmu"):
        with pytest.raises(ValueError, match="encoding"):
            Audible(9, encoding)
        with pytest.raises(ValueError, match="encoding"):
            codes_of(bytes(4), encoding)
    with pytest.raises(ValueError, match="2 bytes"):
        media_message(b"", bytes(3), b"", "PCMU")
    memory = bytearray(8)
    room.codes(memory)
    codes_of(memory, "PCMU")
    memory.append(0)                    # BufferError while somebody holds it


@given(st.text(max_size=40))
def test_any_text_is_base64_or_is_not(text):
    audio, plain = Audible(40, "PCMU").text(text), bytearray(40)
    count = base64_decode(text, plain) if text.isprintable() else -1
    assert count <= 0 or heard(audio) == list(unpacked(bytes(plain[:count]), "PCMU"))
