"""Vonage: samples in messages of exactly 20 ms, and a platform that takes nothing else and holds so much only."""
from urllib.parse import urlsplit

import numpy as np
import pytest

from opusagent import ProtocolError
from opusagent.dialects import BINARY, TEXT, Clear, Mark
from opusagent.dialects.vonage import BUFFERED, Vonage, VonageCaller
from opusagent.speech.playout import Playout, Segment


def dial(query=""):
    caller, ours = VonageCaller(urlsplit(f"ws://h/ws/vonage?{query}")), Vonage({})
    for message in caller.open():
        ours.receive(*message)
    return caller, ours


@pytest.mark.parametrize("rate", [8000, 16000, 24000])
def test_every_message_of_a_reply_is_20_ms_long(rate):
    caller, ours = dial(f"rate={rate}")
    assert caller.rate == ours.rate == rate
    playout, now, sizes = Playout(ours.rate, ours.lead_ms), 0, []
    playout.begin()
    for samples in (rate // 50 * 3, 1, rate // 7):
        playout.push(Segment("words", np.ones(samples, np.int16), pause_ms=33))
    while playout.queue or playout.playing(now):
        while (pcm := playout.pop(now)) is not None:
            sizes.append(len(message := ours.audio(pcm)))
            caller.receive(BINARY, memoryview(message))
        now += 5_000_000
    assert set(sizes) == {rate // 25} and len(sizes) > 10


@pytest.mark.parametrize("samples", [0, 160, 319, 321, 640])
def test_vonage_would_not_take_another_length(samples):
    caller, ours = dial()
    with pytest.raises(ProtocolError, match="640 bytes"):
        caller.receive(BINARY, memoryview(ours.audio(np.zeros(samples, np.int16))))


def test_vonage_loses_what_it_cannot_hold():
    caller, ours = dial()
    frame = memoryview(ours.audio(np.zeros(320, np.int16)))
    for _ in range(BUFFERED):
        caller.receive(BINARY, frame)
    caller.audio(np.zeros(320, np.int16))       # 20 ms of the call: one is played
    caller.receive(BINARY, frame)
    with pytest.raises(ProtocolError, match="3072"):
        caller.receive(BINARY, frame)
    assert caller.receive(TEXT, ours.clear()) == Clear()
    caller.receive(BINARY, frame)


def test_what_a_clear_drops_is_never_told():
    caller, ours = dial()
    assert caller.receive(TEXT, ours.mark("cut")) == Mark("cut")
    assert caller.receive(TEXT, ours.clear()) == Clear()
    assert caller.mark("cut") is None
    (message,) = caller.outbox
    assert ours.receive(*message) is None and ours.ignored == 0


def test_vonage_would_not_take_another_platforms_messages():
    caller, _ = dial()
    for message in (b"{}", b'{"event":"clear"}', b'{"action":"notify"}', b'{"action":"notify","payload":{}}'):
        with pytest.raises(ProtocolError):
            caller.receive(TEXT, message)


def test_a_caller_at_a_rate_that_vonage_has_not_is_refused():
    with pytest.raises(ProtocolError):
        VonageCaller(urlsplit("ws://h/ws/vonage?rate=48000"))
