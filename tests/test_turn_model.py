"""The turn model: what it is given, what its answers do to the wait, and what is refused.

The model of these tests is a small ONNX file of smart-turn's own shape that takes silence at the end for completion.
"""
import asyncio
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conversation import Conversation
from test_replay import Kept, replayed
from test_turns import SCORES, WAITS, WINDOW

from opusagent import ConfigError
from opusagent._fastpath import Arena
from opusagent.config import Config
from opusagent.engines import prosody, turn
from opusagent.flow import COMPLETE, FREE, INCOMPLETE
from opusagent.speech.turns import END_OF_TURN, Settings, TurnTaking

onnx = pytest.importorskip("onnx", reason="onnx makes the models of these tests: pip install 'opusagent[test]'")
pytest.importorskip("onnxruntime", reason="the turn model needs onnxruntime")

FREE_FLOW = """
start = "ask"
[waits]
complete = 140
free = 500
incomplete = 1200
[states.ask]
say = "Yes?"
on = [{ phrases = ["ten of clubs"], go = "card" }, { free = true, go = "more" }]
[states.card]
say = "Good."
end = true
[states.more]
say = "Go on."
on = [{ free = true, go = "more" }, { phrases = ["that is all"], go = "card" }]
"""


@pytest.fixture
def model(tmp_path):
    """Makes a file: of `shape`, whose answer is how quiet the last tenth is."""
    def make(shape=(80, 800)):
        from onnx import TensorProto, helper, numpy_helper
        axis, last = len(shape), shape[-1]
        values = {"from": [last - last // 10], "to": [last], "along": [axis], "all": list(range(1, axis + 1)),
                  "one": [1]}
        names = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in values.items()]
        names.append(numpy_helper.from_array(np.array([-4 if axis == 2 else -400], np.float32), "scale"))
        names.append(numpy_helper.from_array(np.array([2], np.float32), "offset"))
        nodes = [helper.make_node("Slice", ["input_features", "from", "to", "along"], ["tail"]),
                 helper.make_node("Mul", ["tail", "tail"] if axis == 1 else ["tail", "scale"], ["power"]),
                 helper.make_node("ReduceMean", ["power", "all"], ["mean"], keepdims=0),
                 helper.make_node("Unsqueeze", ["mean", "one"], ["column"]),
                 helper.make_node("Mul" if axis == 1 else "Identity", ["column"] + ["scale"] * (axis == 1), ["scaled"]),
                 helper.make_node("Add" if axis == 1 else "Identity", ["scaled"] + ["offset"] * (axis == 1), ["sum"]),
                 helper.make_node("Sigmoid", ["sum"], ["logits"])]
        graph = helper.make_graph(nodes, "tail", [helper.make_tensor_value_info("input_features", TensorProto.FLOAT,
                                                                               ["n", *shape])],
                                  [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 1])], names)
        path = tmp_path / f"{len(shape)}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
        return str(path)
    return make


def speech(ms, quiet_ms, rate=8000):
    pcm = np.random.default_rng(1).normal(0, 4000, ms * rate // 1000)
    return np.concatenate((pcm, np.zeros(quiet_ms * rate // 1000))).astype(np.int16)


# ---- what it is given ----

def test_it_hears_the_last_eight_seconds_with_silence_in_front():
    wave = prosody.heard(np.full(8000, 16384, np.int16), 16000)
    assert wave.shape == (128000,) and wave.dtype == np.float32
    assert not wave[:120000].any() and np.all(wave[120000:] == 0.5)
    assert np.all(prosody.heard(np.arange(200_000) % 1000, 16000)
                  == (np.arange(200_000) % 1000)[-128000:] / np.float32(32768))
    assert len(prosody.heard(speech(500, 0), 8000)) == 128000


def test_the_picture_is_the_one_that_whisper_is_given():
    """Against figures of transformers 5's WhisperFeatureExtractor(chunk_length=8), do_normalize, of the same wave."""
    tone = (8000 * np.sin(np.arange(128000) / 7)).astype(np.int16)
    picture = prosody.Picture().of(prosody.heard(tone, 16000))
    assert picture.shape == (80, 800) and picture.dtype == np.float32
    for (band, frame), level in PICTURED.items():
        assert picture[band, frame] == pytest.approx(level, abs=1e-4), (band, frame)
    assert prosody.bands().shape == (201, 80)
    assert np.allclose(prosody.Picture().of(np.zeros(128000, np.float32)), -1.5)


def pipecat_file(*path):
    """A file of Pipecat's wheel, which brings smart-turn's weights and the features they were trained on."""
    found = importlib.util.find_spec("pipecat")
    if found is None:
        pytest.skip("Pipecat is not installed: pip install 'opusagent[bench]'")
    return Path(found.submodule_search_locations[0], "audio", "turn", "smart_turn", *path)


@pytest.fixture
def features():
    """Pipecat's own, as a function of a wave; loaded by its path, since the rest of Pipecat is not needed."""
    spec = importlib.util.spec_from_file_location("features", pipecat_file("_whisper_features.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.compute_whisper_log_mel_features


@pytest.mark.parametrize("ms, rate", [(300, 8000), (3000, 8000), (9000, 16000)])
def test_the_picture_is_the_one_that_the_weights_were_trained_on(features, ms, rate):
    wave = prosody.heard(speech(ms, 100, rate), rate)
    assert np.abs(prosody.Picture().of(wave) - features(wave)).max() < 1e-4


def test_the_real_weights_answer_as_they_do_in_pipecat(features):
    judge = prosody.TurnModel(str(pipecat_file("data", "smart-turn-v3.2-cpu.onnx")))
    for ms in (500, 3000):
        picture = features(prosody.heard(speech(ms, 200), 8000))
        theirs = judge.session.run(None, {judge.input: picture[None]})[0].item()
        assert judge.complete(speech(ms, 200), 8000) == pytest.approx(theirs, abs=1e-2) and 0 <= theirs <= 1


PICTURED = {(0, 0): 1.25214, (5, 10): 0.40300, (9, 400): 1.65039, (10, 400): 1.52842, (20, 0): 0.97176,
            (40, 799): -0.34960, (79, 5): -0.34960}


@pytest.mark.parametrize("shape", [(80, 800), (128000,)])
def test_its_answer_is_a_probability(model, shape):
    judge = prosody.TurnModel(model(shape))
    done, going_on = judge.complete(speech(3000, 900), 8000), judge.complete(speech(3000, 0), 8000)
    assert 0 <= going_on < 0.5 < done <= 1


# ---- in its process ----

class Asking:
    """What the model sees of an ear."""

    def __init__(self, slot, pcm):
        slot.take(8000, 8000)
        slot.write(pcm)
        self.slot, self.utterance = slot, 3
        self.answers = asyncio.Queue()

    def on_complete(self, utterance, position, probability):
        self.answers.put_nowait((utterance, position, probability))


def test_it_answers_from_a_process_of_its_own(model):
    async def asks():
        arena = Arena(2)
        host = turn.make(Config.load({"turns.model": model()}, {}))
        await host.open(arena)
        try:
            done, going_on = Asking(arena.slot(0), speech(3000, 900)), Asking(arena.slot(1), speech(3000, 0))
            for ear in (done, going_on):
                host.ask(ear, 0, ear.slot.written)
            found = [await asyncio.wait_for(ear.answers.get(), 20) for ear in (done, going_on)]
            waited = host.delays.seconds
            await asyncio.sleep(0.02)
            assert 0 < host.delays.seconds <= waited                # what is answered waits no more
            host.ask(done, 0, 4000)
            host.forget(done)
            host.ask(going_on, 0, 4000)
            assert (await asyncio.wait_for(going_on.answers.get(), 20))[:2] == (3, 4000) and done.answers.empty()
            return found
        finally:
            await host.close()

    done, going_on = asyncio.run(asks())
    assert done[:2] == (3, 3900 * 8) and going_on[:2] == (3, 3000 * 8) and going_on[2] < 0.5 < done[2]


def test_a_file_of_another_shape_is_refused_with_a_sentence(model):
    async def opens():
        host = turn.make(Config.load({"turns.model": model((40, 800))}, {}))
        try:
            await host.open(Arena(1))
        finally:
            await host.close()

    with pytest.raises(ConfigError, match=r"takes \[\['n', 40, 800\]\], and a turn model takes \[1, 80, 800\]"):
        asyncio.run(opens())


def test_what_is_no_model_or_not_there_is_refused_with_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "noise.onnx").write_bytes(bytes(100))
    with pytest.raises(ConfigError, match="no model that onnxruntime can load"):
        prosody.TurnModel(str(tmp_path / "noise.onnx"))
    ran = subprocess.run([sys.executable, "-P", "-m", "opusagent", "serve", "--turns-model", "none.onnx",
                          "--port", "0"],
                         capture_output=True, text=True, timeout=60, cwd=tmp_path,
                         env=os.environ | {"PYTHONPATH": str(Path(prosody.__file__).parents[2])})
    assert ran.returncode == 2 and "there is no turn model none.onnx" in ran.stderr and "Traceback" not in ran.stderr
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs onnxruntime: pip install 'opusagent\[turn\]'"):
        turn.make(Config.load({"turns.model": str(tmp_path / "noise.onnx")}, {}))


def test_without_one_there_is_none():
    assert turn.make(Config()) is None


# ---- what it does to the wait ----

def ended(judgement, sways, silence=60):
    """After how many windows of silence the turn ends; `sways`: window of the silence -> probability."""
    turns = TurnTaking(8000, WAITS, Settings(start_ms=64, pause_ms=96))
    for sound in "..####":
        turns.push(SCORES[sound], WINDOW)
    turns.judge(judgement)
    for i in range(1, silence):
        events = turns.push(0.0, WINDOW)
        events += turns.sway(sways[i]) if i in sways else ()
        if any(event.kind == END_OF_TURN for event in events):
            return i
    return None


def test_it_shortens_and_lengthens_and_never_decides():
    assert ended(FREE, {}) == 10 and ended(INCOMPLETE, {}) == 20
    assert ended(FREE, {4: 1.0}) == 8 and ended(FREE, {4: 0.0}) == 14
    assert ended(INCOMPLETE, {4: 1.0}) == 15 and ended(INCOMPLETE, {4: 0.0}) == 28
    assert ended(FREE, {4: 1.0, 5: 0.0}) == 14                              # the latest counts
    assert ended(COMPLETE, {4: 0.0}) == ended(COMPLETE, {4: 1.0}) == 5      # the words are enough
    assert all(8 <= ended(FREE, {4: p / 10}) <= 14 for p in range(11))


class Hearing:
    """A model in the test's hand."""

    def __init__(self, probability):
        self.probability, self.asked = probability, []

    def ask(self, ear, begin, end):
        self.asked.append((ear.utterance, begin, end))
        if self.probability is not None:
            ear.on_complete(ear.utterance, end, self.probability)

    def forget(self, ear):
        self.asked.append("forgotten")


def talk(probability, words="where is my parcel", kind=Conversation):
    call = kind(FREE_FLOW)
    call.call.ear.turn_model = Hearing(probability)
    call.listens()
    call.speech(600, words)
    call.silence(1500)
    call.listens()
    return call


def waited(call):
    return call.receipts[1]["waits"]["endpointing"]


def test_a_caller_who_sounds_done_waits_less_and_one_who_does_not_is_waited_for():
    usual, done, going_on = (waited(talk(p)) for p in (None, 1.0, 0.0))
    assert 75 < usual - done < 175 and 150 < going_on - usual < 250
    assert abs(waited(talk(0.0, "ten of clubs")) - waited(talk(None, "ten of clubs"))) < 1


def test_it_is_asked_in_a_pause_about_the_utterance_so_far():
    call = talk(1.0)
    (utterance, begin, end), = call.call.ear.turn_model.asked
    assert utterance == 1 and 0 <= begin < end <= call.call.slot.written
    assert call.server.metrics.counters["turn_model", (("outcome", "heeded"),)] == 1
    call.call.lost(1000, "")
    assert call.call.ear.turn_model.asked[-1] == "forgotten"


def test_an_answer_that_comes_too_late_changes_nothing():
    call = Conversation(FREE_FLOW)
    model = call.call.ear.turn_model = Hearing(None)
    call.listens()
    call.speech(600, "where is")
    call.silence(200)
    asked, = model.asked
    call.speech(300, "where is my parcel")              # the caller goes on
    call.call.ear.on_complete(*asked[::2], 1.0)
    call.silence(200)
    call.call.ear.on_complete(*asked[::2], 1.0)         # of less than was said
    call.call.ear.on_complete(0, asked[2] * 9, 1.0)     # of another utterance
    assert call.call.turns.swayed == 1.0
    call.silence(1000)
    assert call.server.metrics.counters["turn_model", (("outcome", "late"),)] == 3
    assert call.receipts[0]["kind"] == "begin" and call.state == "more"


def test_its_answers_are_replayed(tmp_path):
    call = talk(1.0, kind=Kept)
    assert replayed(call.tape(tmp_path)).call.ledger.receipts == call.receipts
