"""What is voiced; and that each window is scored once, in order, however audio is cut and whoever else is heard."""
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opusagent import ConfigError
from opusagent._fastpath import SETTLE, UNSURE, EnergyVad
from opusagent.recording import read_wav
from opusagent.speech import audio
from opusagent.speech.audio import Vad, VadBatch, first_voiced, last_voiced, mean_square, voiced

RECORDINGS = Path(__file__).parents[2] / "shared" / "audio"
BATCH = VadBatch()

recordings = pytest.mark.skipif(not RECORDINGS.is_dir(), reason=f"the recordings are not in {RECORDINGS}")
silero = pytest.mark.skipif(BATCH.model_name == "energy", reason="the extra `local` is not installed")


def tone(dbfs, ms, rate=8000):
    """A sine of this level, its mean square as defined for dBFS."""
    peak = 32768 * 10 ** (dbfs / 20) * math.sqrt(2)
    return np.rint(peak * np.sin(np.arange(ms * rate // 1000) * 2 * np.pi * 400 / rate)).astype(np.int16)


def hiss(dbfs, ms, rate=8000, seed=1):
    return np.rint(np.random.default_rng(seed).standard_normal(ms * rate // 1000) * 32768 * 10 ** (dbfs / 20)) \
        .clip(-32768, 32767).astype(np.int16)


def silence(ms, rate=8000):
    return np.zeros(ms * rate // 1000, np.int16)


def speech(name="dhd_2934z", rate=8000):
    return read_wav(RECORDINGS / (f"8k/{name}.ulaw.wav" if rate == 8000 else f"{name}.wav"))[0]


def hear(pcm, batch=BATCH, rate=8000, cuts=(160,)):
    """The windows of a call: (score, position, samples, quiet)."""
    found, at, i = [], 0, 0
    vad = Vad(rate, batch, lambda *window: found.append(window))
    while at < len(pcm):
        vad.push(pcm[at:at + cuts[i % len(cuts)]])
        batch.run()
        at, i = at + cuts[i % len(cuts)], i + 1
    vad.close()
    return found


def scores(windows):
    return np.array([score for score, *_ in windows])


# ---- voiced ----

def voiced_twin(pcm, rate):
    size = rate // 100
    levels = [sum(int(sample) ** 2 for sample in pcm[at:at + size]) / size
              for at in range(0, len(pcm) - size + 1, size)]
    loudest = max(levels, default=0)
    return [level > 10 ** (-45 / 10) * 2 ** 30 and level > loudest / 1000 for level in levels]


@given(st.lists(st.tuples(st.sampled_from([0, -3, -20, -44, -46, -60]), st.integers(1, 35)), max_size=8),
       st.sampled_from([8000, 16000, 24000]))
def test_voiced_is_what_the_definition_says(stretches, rate):
    pcm = np.concatenate([tone(dbfs - 3.02, ms, rate) for dbfs, ms in stretches] or [silence(0)])
    twin = voiced_twin(pcm, rate)
    assert voiced(pcm, rate).tolist() == twin
    size = rate // 100
    assert first_voiced(pcm, rate) == (twin.index(True) * size if any(twin) else None)
    assert last_voiced(pcm, rate) == ((len(twin) - twin[::-1].index(True)) * size if any(twin) else None)


def test_the_first_and_the_last_voiced_sample():
    clip = np.concatenate((silence(50), tone(-50, 50), tone(-10, 100), tone(-39, 30), tone(-42, 30), silence(20)))
    assert first_voiced(clip, 8000) == 100 * 8          # -50 dBFS is not voiced,
    assert last_voiced(clip, 8000) == 230 * 8           # nor is what is 32 dB below the peak
    assert first_voiced(tone(-42, 30), 8000) == 0       # where nothing is louder it is
    assert last_voiced(tone(-42, 35), 8000) == 240      # whole windows count
    assert first_voiced(silence(100), 8000) is None and last_voiced(silence(0), 8000) is None


def test_voiced_takes_any_view_of_samples():
    pcm = np.concatenate((silence(100), tone(-10, 100)))
    assert first_voiced(memoryview(pcm), 8000) == first_voiced(memoryview(pcm.tobytes()).cast("h"), 8000) == 800


# ---- loudness alone ----

def test_loudness_finds_speech_above_the_noise_of_its_line():
    for noise in (-75, -60, -45):
        ear = EnergyVad()
        for _ in range(60):
            ear.score(mean_square(noise))
        floor = max(noise, -71)
        assert ear.score(mean_square(floor + 5)) == 0.0
        assert ear.score(mean_square(floor + 9)) < 0.5 < ear.score(mean_square(floor + 13))


def test_loudness_follows_a_line_that_gets_noisy_within_seconds():
    ear = EnergyVad()
    for _ in range(30):
        ear.score(mean_square(-70))
    heard = [ear.score(mean_square(-45)) for _ in range(400)]
    assert heard[0] == UNSURE and heard[-1] == 0.0
    assert ear.score(mean_square(-25)) > 0.5


@given(st.lists(st.floats(0, 2 ** 30), max_size=60))
def test_loudness_always_gives_a_score(levels):
    ear = EnergyVad()
    assert all(0.0 <= ear.score(level) <= UNSURE for level in levels)
    assert math.isfinite(ear.audible)


# ---- windows ----

@given(st.lists(st.integers(1, 1500), min_size=1, max_size=20), st.sampled_from([8000, 16000]))
def test_every_sample_is_in_one_window_and_windows_come_in_order(cuts, rate):
    pcm = hiss(-30, 1000, rate)
    windows = hear(pcm, VadBatch("energy"), rate, cuts)
    size = rate * 32 // 1000
    assert [position for _, position, _, _ in windows] == list(range(size, len(pcm) + 1, size))
    assert all(samples == size and 0 <= quiet <= size for _, _, samples, quiet in windows)


def test_where_sound_ends_in_a_window_is_told():
    windows = hear(np.concatenate((silence(64), tone(-20, 32 + 16), silence(64))), VadBatch("energy"))
    assert [quiet for *_, quiet in windows] == [256, 256, 0, 128, 256]


def test_sound_that_is_far_below_the_loudest_or_in_the_noise_is_quiet():
    windows = hear(np.concatenate((silence(64), tone(-5, 64), tone(-40, 64), silence(32))), VadBatch("energy"))
    assert [quiet for *_, quiet in windows] == [256, 256, 0, 0, 256, 256, 256]
    noisy = hear(np.concatenate((hiss(-40, 640), tone(-12, 64), hiss(-40, 64))), VadBatch("energy"))
    assert [quiet for *_, quiet in noisy[-4:]] == [0, 0, 256, 256]


@silero
@recordings
@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("cuts", [(1,), (37, 500), (256,), (5000,), (1 << 20,)])
def test_scores_do_not_depend_on_how_the_audio_is_cut(rate, cuts):
    pcm = np.concatenate((silence(300, rate), speech(rate=rate), hiss(-50, 300, rate), silence(500, rate)))
    assert hear(pcm, rate=rate, cuts=cuts) == hear(pcm, rate=rate)


@silero
@recordings
def test_scores_do_not_depend_on_who_else_is_heard():
    names = ["cards_1", "cards_2", "cards_3", "goforward", "arctic_a0024"] * 4
    calls = [(speech(name, rate), rate) for name in names for rate in (8000, 16000)]
    found = [[] for _ in calls]
    ears = [Vad(rate, BATCH, lambda *window, found=found[i]: found.append(window)) for i, (_, rate) in enumerate(calls)]
    for at in range(0, 40_000, 700):            # some windows at a time: several rounds
        for vad, (pcm, _) in zip(ears, calls):
            vad.push(pcm[at:at + 700])
        BATCH.run()
        assert BATCH.waiting == 0
    for windows, (pcm, rate) in zip(found, calls):
        alone = hear(pcm[:len(pcm)], rate=rate)
        assert [window[1:] for window in windows] == [window[1:] for window in alone[:len(windows)]]
        assert np.allclose(scores(windows), scores(alone)[:len(windows)], atol=1e-4)


@silero
def test_a_batch_takes_sixteen_windows_in_a_run_and_one_of_a_call():
    runs = []

    class Batch(VadBatch):
        def _round(self, lane):
            runs.append(min(len(lane.waiting), audio.BATCH))
            return super()._round(lane)

    batch = Batch()
    ears = [Vad(8000, batch, lambda *window: None) for _ in range(20)]
    for vad in ears:
        vad.push(hiss(-20, 70))
    assert batch.waiting == 20 and batch.run() == 40
    assert runs == [16, 16, 8]


@silero
def test_silence_does_not_reach_the_model_for_long():
    batch = VadBatch()
    vad = Vad(8000, batch, lambda *window: None)
    vad.push(hiss(-20, 256))
    assert batch.run() == 8
    for _ in range(100):
        vad.push(silence(32))
        batch.run()
    assert vad.position == 108 * 256
    vad.push(hiss(-20, 32))
    vad.push(silence(192))
    assert batch.run() == 1 + SETTLE


@silero
def test_silence_is_told_at_once_though_not_before_what_came_first():
    found, batch = [], VadBatch()
    vad = Vad(8000, batch, lambda score, position, samples, quiet: found.append(position))
    vad.push(silence(32 * 6))
    batch.run()
    vad.push(silence(32))
    assert len(found) == 7                      # at once
    vad.push(np.concatenate((hiss(-20, 32), silence(32 * 5))))
    assert len(found) == 7
    batch.run()
    assert found == [256 * n for n in range(1, 14)]


@silero
def test_a_call_that_ends_is_heard_no_more():
    found = []
    vad = Vad(8000, BATCH, lambda *window: found.append(window))
    vad.push(hiss(-20, 100))
    vad.close()
    assert BATCH.run() == 0 and not found


@silero
def test_an_ear_may_be_closed_by_what_it_tells():
    found = []
    vad = Vad(8000, BATCH, lambda *window: (found.append(window), vad.close()))
    other = Vad(8000, BATCH, lambda *window: found.append(window))
    for each in (vad, other):
        each.push(hiss(-20, 100))
    BATCH.run()
    assert len(found) == 1 + 3


@silero
def test_an_ear_may_be_closed_by_what_another_one_tells():
    found = []
    first = Vad(8000, BATCH, lambda *window: second.close())
    second = Vad(8000, BATCH, lambda *window: found.append(window))
    for each in (first, second):
        each.push(hiss(-20, 100))
    assert BATCH.run() == 4 and not found


# ---- the gate ----

def ungated(pcm, rate):
    """The plain use of the network: every window, one after the other."""
    session = pytest.importorskip("onnxruntime").InferenceSession(audio._find_model())
    window, state, found = rate * 32 // 1000, np.zeros((2, 1, 128), np.float32), []
    pcm = np.concatenate((np.zeros(window // 8, np.float32), pcm.astype(np.float32) / 32768))
    for at in range(0, len(pcm) - window - window // 8 + 1, window):
        score, state = session.run(None, {
            "input": pcm[None, at:at + window + window // 8], "state": state, "sr": np.array(rate)})
        found.append(score[0, 0])
    return np.array(found)


@silero
@recordings
@pytest.mark.parametrize("rate", [8000, 16000])
def test_the_gate_makes_no_beginning_of_speech_later(rate):
    paths = sorted(RECORDINGS.glob("8k/*.wav" if rate == 8000 else "*.wav"))
    assert len(paths) > 40
    late, lost, spoken = 0, 0, 0
    for path in paths:
        pcm, its_rate = read_wav(path)
        assert its_rate == rate
        pcm = np.concatenate((hiss(-85, 1000, rate), pcm[:3 * rate], hiss(-85, 500, rate)))
        plain, gated = ungated(pcm, rate), scores(hear(pcm, rate=rate))
        begins = np.flatnonzero(gated >= 0.5)[0] - np.flatnonzero(plain >= 0.5)[0]
        assert begins <= 1, path.name
        late += begins
        lost += ((plain >= 0.5) & (gated < 0.35)).sum()
        spoken += (plain >= 0.5).sum()
    assert late <= 0                            # in all it is heard earlier
    assert lost <= spoken / 200                 # the silence after a word, which the network still calls speech


@silero
@recordings
def test_what_is_heard_after_a_long_silence_is_judged_afresh():
    """A bang after a word is no word; and a word after a long silence is heard, however short."""
    word = speech("fsdd_5_george")
    bang = hear(np.concatenate((hiss(-85, 300), word, hiss(-85, 2000), hiss(-35, 60), hiss(-85, 500))))
    assert max(scores(bang)[-80:]) < 0.5
    for digit in range(10):
        again = speech(f"fsdd_{digit}_nicolas")
        later = hear(np.concatenate((hiss(-85, 300), word, hiss(-85, 6000), again, hiss(-85, 300))))
        assert max(scores(later)[-(len(again) // 256 + 10):]) > 0.9, digit


# ---- without the extra, or with a wrong model ----

def test_without_the_extra_loudness_takes_its_place(monkeypatch):
    monkeypatch.setattr(audio.importlib.util, "find_spec", lambda name: None)
    batch = VadBatch()
    assert batch.model_name == "energy"
    windows = hear(np.concatenate((hiss(-60, 512), tone(-20, 320), hiss(-60, 512))), batch)
    assert [score > 0.5 for score in scores(windows)][14:28] == 2 * [False] + 10 * [True] + 2 * [False]


def test_a_model_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"model .*nowhere.onnx does not exist\.$"):
        VadBatch(tmp_path / "nowhere.onnx")


@silero
def test_a_model_that_is_none_is_one_sentence(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ConfigError, match="broken.onnx cannot be loaded"):
        VadBatch(path)
