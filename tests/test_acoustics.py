"""The agent's own words that come back are no interruption; a caller who speaks over them is one."""
import base64
import json
from dataclasses import replace

import numpy as np
import pytest
from conversation import Conversation
from opusagent._fastpath import ulaw_decode
from opusagent.speech.acoustics import KEPT_MS, Echo
from test_call import FLOW

LONG = FLOW.replace("Are you sure of that, or would you like to look at it once more before we go on?",
                    " ".join(["and so on"] * 20))


def voice(seconds, rate, seed):
    """Something like a voice: a pitch that moves, overtones, syllables."""
    generator = np.random.default_rng(seed)
    n = int(seconds * rate)
    t = np.arange(n) / rate
    pitch = 110 + 60 * generator.random() + 25 * np.sin(2 * np.pi * (0.7 + generator.random()) * t + seed)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    tones = sum(generator.random() / k * np.sin(k * phase) for k in range(1, 12))
    return (4000 * tones * (0.6 + 0.4 * np.sin(2 * np.pi * 3.3 * t + seed))).astype(np.int16)


@pytest.mark.parametrize("wire_rate", [8000, 16000, 48000])
@pytest.mark.parametrize("delay_ms", [50, 130, 400])
@pytest.mark.parametrize("level_db", [-30, -20, -6])
def test_what_comes_back_is_known_again(wire_rate, delay_ms, level_db):
    rate = 8000 if wire_rate == 8000 else 16000
    said = voice(2, wire_rate, 1)
    echo = Echo(rate, wire_rate)
    for at in range(0, wire_rate, wire_rate // 50):
        echo.sent(said[at:at + wire_rate // 50])
    came = said[::wire_rate // rate].astype(float) * 10 ** (level_db / 20)
    now = rate - delay_ms * rate // 1000
    noise = np.random.default_rng(2).normal(0, 8, rate)
    assert echo.explains((came[now - rate // 5:now] + noise[:rate // 5]).astype(np.int16))


def test_another_voice_is_hardly_ever_taken_for_it():
    said, taken, asked = voice(2, 8000, 1), 0, 0
    for seed in range(2, 22):
        echo, other = Echo(8000, 8000), voice(2, 8000, seed)
        for at in range(0, 16000, 160):
            echo.sent(said[at:at + 160])
            if at > 1600:
                asked += 1
                taken += echo.explains(other[at - 800:at])
    assert asked > 1500 and taken <= asked * 0.05


def test_silence_and_beginnings_explain_nothing():
    echo = Echo(8000, 8000)
    assert not echo.explains(np.zeros(800, np.int16)) and not echo.explains(voice(0.1, 8000, 1))
    echo.sent(voice(0.5, 8000, 1))
    assert not echo.explains(np.zeros(800, np.int16)) and not echo.explains(voice(1, 8000, 1)[:100])


@pytest.mark.parametrize("chunk", [1, 7, 160, 6399, 6400])
def test_any_chunking_is_kept_alike(chunk):
    echo, whole, said = Echo(8000, 8000), Echo(8000, 8000), voice(1, 8000, 3)[:KEPT_MS * 8 - 100]
    whole.sent(said)
    for at in range(0, len(said), chunk):
        echo.sent(said[at:at + chunk])
    heard = said[3000:3800] // 4
    assert echo.explains(heard) and whole.explains(heard)


class Handset(Conversation):
    """A line that gives the agent back, 120 ms late."""

    def hears_itself(self, ms, level):
        frames = [np.zeros(160, np.int16)] * 6
        seen = 0
        for _ in range(ms // 20):
            sent = [message for _, message in self.connection.sent if b'"media"' in message]
            for message in sent[seen:]:
                pcm = np.zeros(160, np.int16)
                ulaw_decode(base64.b64decode(json.loads(message)["media"]["payload"]), pcm)
                frames.append((pcm * level).astype(np.int16))
            seen = len(sent)
            self.frame(frames.pop(0) if frames else np.zeros(160, np.int16))
            self.passes(20)


@pytest.mark.parametrize("known", [True, False])
def test_the_agent_does_not_interrupt_itself(known):
    call = Handset(LONG, begin=False)
    config = call.studio.config
    call.server.config = replace(config, turns=replace(config.turns, echo=known))
    call.receive(b'{"event":"start","streamSid":"MZ1","start":{"callSid":"CA1","customParameters":{}}}')
    call.listens()
    call.speech(600, "ten of clubs")
    call.silence(200)
    call.hears_itself(3000, 0.4)
    assert (call.count("clear") == 0) == known


def test_a_caller_who_speaks_over_the_echo_is_heard():
    call = Handset(LONG)
    call.listens()
    call.speech(600, "ten of clubs")
    call.silence(600)
    call.speech(500, "no")
    assert call.count("clear") == 1
