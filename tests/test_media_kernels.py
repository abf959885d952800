"""Media messages in one pass: the compiled readers and writers beside their plain twins, on messages of every kind."""
import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opusagent._fastpath import (alaw_decode, alaw_encode, audiocodes_chunk, media_message, media_samples,
                                 twilio_message, ulaw_decode, ulaw_encode)

CODECS = {"PCMU": (ulaw_encode, ulaw_decode), "PCMA": (alaw_encode, alaw_decode)}
LENGTHS = [0, 1, 2, 3, 159, 160, 161, 239, 240, 241, 480]
ENCODINGS = ("PCMU", "PCMA", "L16")


def noise(count):
    return np.random.default_rng(count).integers(-32768, 32768, count).astype(np.int16)


def packed(pcm, encoding):
    """The plain twin of the writers: the bytes that the payload stands for."""
    if encoding == "L16":
        return pcm.astype("<i2").tobytes()
    codes = bytearray(len(pcm))
    CODECS[encoding][0](pcm, codes)
    return bytes(codes)


def unpacked(data, encoding):
    """The plain twin of the readers."""
    if encoding == "L16":
        return np.frombuffer(data, "<i2")
    pcm = np.zeros(len(data), np.int16)
    CODECS[encoding][1](data, pcm)
    return pcm


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("count", LENGTHS)
def test_a_message_holds_its_samples(count, encoding):
    pcm = noise(count)
    write = twilio_message if encoding == "PCMU" else lambda *parts: media_message(*parts, encoding)
    message = write(b'{"event":"media","media":{"chunk":"7","payload":"', pcm, b'"}}')
    assert json.loads(message)["media"]["payload"] == base64.b64encode(packed(pcm, encoding)).decode()
    out = np.zeros(count + 3, np.int16)
    assert media_samples(message, out, encoding) == (count or -1, 7)
    assert (out[:count] == unpacked(packed(pcm, encoding), encoding)).all()
    if count:
        assert media_samples(message, np.zeros(count - 1, np.int16), encoding)[0] == -1, "dst is too small"
    for end in range(len(message)):
        assert media_samples(message[:end], out, encoding)[0] == -1


@pytest.mark.parametrize("chunk, number", [('"12"', 12), ("12", 12), ('"007"', 7), ("0", 0), ('"123456789012345"',
                                           123456789012345), ('""', None), ("07", None), ('"1a"', None), ("-1", None),
                                           ('"1234567890123456"', None), ("1.5", None), ("null", None), ('"٣"', None)])
def test_the_number_of_a_chunk(chunk, number):
    message = f'{{"event":"media","media":{{"chunk":{chunk},"payload":"AAAA"}}}}'.encode()
    count, found = media_samples(message, np.zeros(9, np.int16), "PCMU")
    assert (count, found) == (3, number) if number is not None else count == -1


@pytest.mark.parametrize("message", [
    '{"event":"media","media":{"chunk":1,"chunk":2,"payload":"AAAA"}}', '{"event":"mark","media":{"payload":"AAAA"}}',
    '{"event":"media","media":{"track":"outbound","payload":"AAAA"}}', '{"event":"media","media":{"payload":"AA=A"}}',
    '{"event":"media","media":{"payload":"AAAA"},"media":{"payload":"AAAA"}}', '{"event":"media"}', "[]", "", "{}",
    '{"event":"media","media":{"payload":"AAAA"}} x', '{"event":"media","media":{"payload":"AA\\u0041A"}}'])
def test_what_is_not_plain_is_left_to_others(message):
    assert media_samples(message.encode(), np.zeros(9, np.int16), "PCMU")[0] == -1


def test_half_a_sample_is_left_to_others():
    message = b'{"event":"media","media":{"payload":"AAAA"}}'
    assert media_samples(message, np.zeros(9, np.int16), "L16") == (-1, -1)


# ---- AudioCodes ------------------------------------------------------------------------------------------------------

def chunk(text, **fields):
    return json.dumps({"type": "userStream.chunk", "conversationId": "4a5b", **fields, "audioChunk": text}).encode()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("count", LENGTHS)
def test_a_chunk_of_a_stream(count, encoding):
    pcm, out = noise(count), np.zeros(count + 1, np.int16)
    message = chunk(base64.b64encode(packed(pcm, encoding)).decode())
    assert audiocodes_chunk(message, out, encoding, None) == (count or -1)
    assert (out[:count] == unpacked(packed(pcm, encoding), encoding)).all()
    for end in range(len(message)):
        assert audiocodes_chunk(message[:end], out, encoding, None) == -1


@pytest.mark.parametrize("fields, who, count", [
    ({}, None, 3), ({}, b"caller", -1), ({"participant": "caller"}, b"caller", 3), ({"participant": "caller"}, None, -1),
    ({"participant": "agent"}, b"caller", -1), ({"participant": ""}, b"", 3), ({"participant": 7}, b"7", -1),
    ({"type": "userStream.start"}, None, -1), ({"more": "x", "number": 5}, None, 3), ({"deep": {}}, None, -1)])
def test_only_the_callers_chunks(fields, who, count):
    assert audiocodes_chunk(chunk("AAAA", **fields), np.zeros(9, np.int16), "PCMU", who) == count


@given(st.binary(max_size=200), st.sampled_from(ENCODINGS))
def test_nothing_that_is_sent_makes_them_stumble(message, encoding):
    out = np.zeros(20, np.int16)
    assert media_samples(message, out, encoding)[0] == -1 or message
    assert audiocodes_chunk(message, out, encoding, None) == -1 or message


def test_they_ask_for_memory_of_samples():
    for wrong in (bytes(8), bytearray(3)):
        with pytest.raises((TypeError, BufferError, ValueError)):
            media_samples(b"{}", wrong, "PCMU")
        with pytest.raises((TypeError, BufferError, ValueError)):
            audiocodes_chunk(b"{}", wrong, "PCMU", None)
