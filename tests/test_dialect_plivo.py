"""Plivo: formats as announced, checkpoints that tell only the truth, and what the platform would not take."""
import base64
import json
from urllib.parse import urlsplit

import numpy as np
import pytest

from opusagent import ProtocolError
from opusagent.dialects import TEXT, Clear, Mark
from opusagent.dialects.plivo import Plivo, PlivoCaller


def dial(query=""):
    caller, ours = PlivoCaller(urlsplit(f"ws://h/ws/plivo?{query}")), Plivo({})
    for message in caller.open():
        ours.receive(*message)
    return caller, ours


@pytest.mark.parametrize("query, content, rate", [
    ("", "audio/x-mulaw", 8000), ("codec=l16", "audio/x-l16", 8000), ("codec=L16&rate=16000", "audio/x-l16", 16000)])
def test_audio_goes_out_as_it_was_announced(query, content, rate):
    caller, ours = dial(query)
    media = json.loads(ours.audio(np.arange(rate // 50, dtype=np.int16)))["media"]
    assert (media["contentType"], media["sampleRate"]) == (content, rate) == (content, ours.rate)
    assert len(base64.b64decode(media["payload"])) == rate // 50 * (1 if "mulaw" in content else 2)


def test_mulaw_comes_back_sample_for_sample():
    _, ours = dial()
    codes = bytes(range(256))
    for message in ({"event": "media", "media": {"payload": base64.b64encode(codes).decode()}},
                    {"event": "media", "media": {"payload": base64.b64encode(codes).decode().rstrip("=")}}):
        event = ours.receive(TEXT, json.dumps(message).encode())
        answer = json.loads(ours.audio(event.pcm))["media"]["payload"]
        assert base64.b64decode(answer) == codes.replace(b"\x7f", b"\xff")


def test_a_cleared_checkpoint_is_never_told_and_a_new_one_of_its_name_is():
    caller, ours = dial()
    for name in ("heard", "cut"):
        assert caller.receive(TEXT, ours.mark(name)) == Mark(name)
    assert ours.receive(*caller.mark("heard")) == Mark("heard")
    assert caller.receive(TEXT, ours.clear()) == Clear()
    assert caller.mark("cut") is None
    assert caller.receive(TEXT, ours.mark("cut")) == Mark("cut")
    (message,) = caller.outbox
    assert json.loads(message[1])["event"] == "clearedAudio" and ours.receive(*message) is None
    assert ours.receive(*caller.mark("cut")) == Mark("cut")
    assert caller.mark("cut") is None and ours.ignored == 0


def test_plivo_would_not_play_another_streams_or_another_formats_audio():
    caller, ours = dial()
    stranger, _ = dial()
    wide, wider = dial("codec=L16&rate=16000")
    silence = np.zeros(160, np.int16)
    for message in (ours.audio(silence), ours.mark("m"), ours.clear(), b"{}"):
        with pytest.raises(ProtocolError):
            stranger.receive(TEXT, message)
    other = json.dumps(json.loads(wider.audio(silence)) | {"streamId": caller.stream}).encode()
    with pytest.raises(ProtocolError):
        caller.receive(TEXT, other)
    with pytest.raises(ProtocolError, match="binary"):
        caller.receive(2, b"")


def test_a_caller_of_a_format_that_plivo_has_not_is_refused():
    for query in ("codec=PCMA", "codec=L16&rate=48000", "rate=16000"):
        with pytest.raises(ProtocolError):
            PlivoCaller(urlsplit(f"ws://h/ws/plivo?{query}"))
