"""The recording of a call: both sides where they were heard, on the caller's sample clock."""
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from conversation import Conversation
from hypothesis import given, strategies as st

from opusagent import recording
from opusagent.calls import stereo
from opusagent.config import Config
from opusagent.metrics import Metrics
from opusagent.server import archive

RATE = 8000


class Slot:
    """The caller's side, as a slot keeps it."""

    rate_in, capacity = RATE, 10 * RATE

    def __init__(self):
        self.pcm = np.zeros(0, np.int16)

    @property
    def written(self):
        return len(self.pcm)

    def write(self, pcm):
        self.pcm = np.concatenate((self.pcm, pcm))

    def read(self, position, count):
        return self.pcm[position:position + count]


@pytest.fixture
def kept(tmp_path):
    settings = {"archive.directory": str(tmp_path), "archive.recordings": True}
    return archive.kept(Config.load(settings, {}).archive, Metrics())


def sides(path):
    data = path.read_bytes()
    assert struct.unpack_from("<HHI", data, 20) == (1, 2, RATE)
    return np.frombuffer(data[stereo.HEAD:], "<i2").reshape(-1, 2).T


def frame(value):
    return np.full(160, value, np.int16)


def test_the_two_sides_stand_where_they_were_heard(kept):
    slot = Slot()
    tape = stereo.Stereo(kept, "CA1", slot, RATE, "2026-03-03T14:15:16Z")
    for number in range(200):                       # 4 s of the caller, a number for each 20 ms
        slot.write(frame(number))
        tape.heard()
        if number in (50, 51, 52):                  # a reply that is sent at its pace
            tape.sent(frame(1000 + number))
        if number == 120:                           # one that is sent at once, and cut 60 ms later
            for ahead in range(10):
                tape.sent(frame(2000 + ahead))
        if number == 123:
            tape.cut()
    tape.close()
    kept.close()
    caller, agent = sides(tape.file.path)
    assert (caller == np.repeat(np.arange(200), 160)).all()
    expected = np.zeros(200, np.int16)
    expected[51:54] = 1050, 1051, 1052
    expected[121:124] = 2000, 2001, 2002
    assert (agent == np.repeat(expected, 160)).all()
    pcm, rate = recording.read_wav(tape.file.path)
    assert rate == RATE and len(pcm) == 32000


class PlainTrack:
    """Track, sample by sample."""

    def __init__(self, done, jitter, most):
        self.pcm, self.done, self.end, self.jitter, self.most = {}, done, done - jitter - 1, jitter, most

    @property
    def ahead(self):
        return max(0, self.end - self.done)

    def sent(self, pcm, written):
        if len(pcm) and self.ahead <= self.most:
            start = max(self.done, self.end if written - self.end <= self.jitter else written)
            self.pcm |= {start + i: sample for i, sample in enumerate(pcm)}
            self.end = start + len(pcm)

    def cut(self, written):
        self.end = min(self.end, written)
        self.pcm = {at: sample for at, sample in self.pcm.items() if at < written}

    def take(self, count):
        taken = [self.pcm.get(self.done + i, 0) for i in range(min(count, self.ahead))]
        self.done += count
        return taken


@given(st.lists(st.tuples(st.sampled_from(("sent", "goes on", "cut", "take")), st.integers(0, 40)), max_size=60))
def test_the_agents_side_is_as_its_plain_twin(steps):
    tracks, written, number = [each(100, 12, 90) for each in (stereo.Track, PlainTrack)], 100, 0
    for what, count in steps:
        pcm = np.arange(number + 1, number + 1 + count, dtype=np.int16)
        number, written = number + count, written + count * (what == "goes on")
        told = []
        for track in tracks:
            match what:
                case "sent":
                    track.sent(pcm, written)
                case "cut":
                    track.cut(written - count)
                case "take":
                    told.append(list(track.take(min(count, written - track.done))))
            told.append((track.ahead, track.done))
        assert told[:len(told) // 2] == told[len(told) // 2:]


def test_two_clocks_that_differ_by_a_frame_leave_no_hole(kept):
    slot = Slot()
    tape = stereo.Stereo(kept, "CA1", slot, RATE, "2026-03-03T14:15:16Z")
    for number in range(0, 100, 2):                 # the caller's frames come two at a time, and late
        slot.write(frame(1))
        if number >= 10:
            tape.sent(frame(7))
            tape.sent(frame(7))
        slot.write(frame(1))
        tape.heard()
    tape.close()
    kept.close()
    agent = sides(tape.file.path)[1]
    assert (agent[np.argmax(agent != 0):] == 7).all()


def test_a_file_that_a_crash_has_cut_still_opens(kept, tmp_path):
    slot = Slot()
    tape = stereo.Stereo(kept, "CA1", slot, RATE, "2026-03-03T14:15:16Z")
    for _ in range(50):
        slot.write(frame(3))
        tape.heard()
    kept.close()
    tape.file._stream.close()
    pcm, rate = recording.read_wav(tape.file.path)
    assert rate == RATE and len(pcm) == 4000 and stereo.wav_head(RATE, archive.HUGE) == tape.file.path.read_bytes()[:44]


def test_a_call_is_recorded(kept):
    talk = Conversation('start = "hello"\n[states.hello]\nsay = "Good morning."\nend = true\n', begin=False)
    talk.server.archive = kept
    talk.call.usage.begins(0)
    talk.receive(b'{"event":"start","streamSid":"MZ1","start":{"callSid":"CA1","customParameters":{}}}')
    talk.speech(1000)
    talk.listens()
    tape = talk.call.recording
    talk.call.lost(1000, "")
    kept.close()
    caller, agent = sides(tape.file.path)
    assert np.abs(caller[:8000]).max() > 0 and np.abs(agent).max() > 0


def test_nothing_is_recorded_unless_it_is_asked_for():
    assert stereo.begin(None, None) is None
    assert stereo.begin(SimpleNamespace(recordings=False), None) is None
