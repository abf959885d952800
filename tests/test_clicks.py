"""The saved WAV of a call whose sentences are spoken by several voices: no click where one ends and the next begins."""
import ctypes
import shutil

import numpy as np
import pytest
from conversation import Conversation, Voice
from test_stereo import sides

from opusagent.config import Config
from opusagent.engines.embedded.voices import Voices
from opusagent.engines.level import Level
from opusagent.metrics import Metrics
from opusagent.server import archive

CLICK = 32768 * 10 ** (-50 / 20)        # -50 dBFS: of a step from one sample to the next where speech begins or ends
EDGE = 40                               # samples of nothing (5 ms at 8 kHz) between two sentences, at least

FLOW = """
start = "welcome"
[facts]
name = "Robin"
[states.welcome]
say = "Welcome, {name}. Your parcel, number four, is here. Is it yours?"
voice = "%s"
go = "second"
[states.second]
say = "This is another voice. It says two sentences."
voice = "kal16"
rate = 1.2
go = "third"
[states.third]
say = "And the first one, once more."
voice = "rms"
end = true
"""


def installed(name):
    try:
        return bool(ctypes.CDLL(name))
    except OSError:
        return False


needs_flite = pytest.mark.skipif(not installed("libflite.so.1"), reason="flite is not installed: apt install libflite1")


class Embedded(Voice):
    """The embedded voices, in the test's own process."""

    def __init__(self):
        super().__init__()
        self.voices = Voices("rms")

    def speak(self, call, epoch, k, text, voice):
        self.asked.append((call, epoch, k, text, voice))

    def deliver(self):
        call, epoch, k, text, voice = self.asked.pop(0)
        pieces, slot = [], call.slot
        self.voices.speak(voice, text, slot.rate_out, lambda pcm: pieces.append(pcm) or True)
        pcm, start = np.concatenate(pieces), slot.segment_written(k)
        np.asarray(slot.segment(k))[np.arange(start, start + len(pcm)) % len(slot.segment(k))] = pcm
        slot.set_segment_written(k, start + len(pcm))
        call.on_speech(epoch, k, start, start + len(pcm), True)


def stretches(pcm):
    """(begin, end) of what lies between two silences."""
    sound = np.flatnonzero(pcm)
    gaps = np.flatnonzero(np.diff(sound) > EDGE)
    return list(zip(sound[[0, *(gaps + 1)]], sound[[*gaps, -1]] + 1))


@needs_flite
@pytest.mark.parametrize("first", ["rms", pytest.param("espeak", marks=pytest.mark.skipif(
    shutil.which("espeak-ng") is None, reason="espeak-ng is not installed: apt install espeak-ng"))])
def test_voices_follow_one_another_without_a_click_and_equally_loud(tmp_path, first):
    settings = {"archive.directory": str(tmp_path), "archive.recordings": True}
    call = Conversation(FLOW % first, ahead=False, begin=False)
    call.server.archive = archive.kept(Config.load(settings, {}).archive, Metrics())
    call.call.mouth.voice = call.studio.tts = Embedded()
    call.receive(b'{"event":"start","streamSid":"MZ1","start":{"callSid":"CA1","customParameters":{}}}')
    while call.call.mouth.turn is not None:
        while call.studio.tts.asked:
            call.studio.tts.deliver()
        call.silence(20)
    call.call.lost(1000, "")
    call.server.archive.close()
    (path,) = tmp_path.rglob("*.wav")
    agent = sides(path)[1].astype(int)
    found = stretches(agent)
    assert len(found) >= 5
    for begin, end in found:
        assert abs(agent[begin]) < CLICK and abs(agent[end - 1]) < CLICK
    levels = []
    for begin, end in found:
        level = Level()
        level.hears(agent[begin:end].astype(np.int16), 8000)
        levels += [10 * np.log10(level.power / 32768 ** 2)] if level.seconds > 0.3 else []
    assert max(levels) - min(levels) < 6 and abs(np.mean(levels) + 20) < 2.5
