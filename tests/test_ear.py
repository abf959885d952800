"""The compiled ear against plain twins: the gate and its windows in Python, the network in numpy, its file reread."""
import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opusagent import ConfigError
from opusagent._fastpath import EnergyVad, Silero, Vad
from opusagent.speech import silero
from opusagent.speech.audio import VOICED, VOICED_OF_PEAK, VadBatch, mean_square

DICE = np.random.default_rng(5)
BINS = {8000: 65, 16000: 129}


# ---- twins ----

class PlainGate:
    def __init__(self):
        self.noise, self.peak = mean_square(-30), 0.0

    def score(self, level):
        step = 10 ** (0.3 * 32 / 1000)
        noise = self.noise + (level - self.noise) / 2 if level < self.noise else min(self.noise * step, level)
        self.noise = min(max(noise, mean_square(-71)), mean_square(-30))
        self.peak = max(self.peak / step, level)
        above = level / (self.noise * 4)
        return min(math.log(above) / (2 * math.log(11.2 / 4)), 0.8) if above > 1 else 0.0

    @property
    def audible(self):
        return max(VOICED, self.peak * VOICED_OF_PEAK, self.noise * 4)


def level(pcm):
    return float(np.mean(pcm.astype(np.int64) ** 2))


def plain_windows(pcm, rate):
    """(score, position, samples, quiet) by loudness alone."""
    gate, window, found = PlainGate(), rate * 32 // 1000, []
    for end in range(window, len(pcm) + 1, window):
        score = gate.score(level(pcm[end - window:end]))
        quiet = next((i * window // 4 for i in range(4) if level(
            pcm[end - (i + 1) * window // 4:end - i * window // 4]) > gate.audible), window)
        found.append((score, end, window, quiet))
    return found


def weights(rate):
    """A network with weights at random: as matrices [depth, width] and biases, and as layers()."""
    bins = BINS[rate]
    shapes = [(2 * bins - 2, bins), (2 * bins - 2, bins), (3 * bins, 128), (128,), (384, 64), (64,), (128, 64), (64,),
              (64, 128), (128,), (256, 512), (512,), (128,), (1,)]
    plain = [DICE.normal(0, 1 / math.sqrt(shape[0]), shape).astype(np.float32) for shape in shapes]
    laid = [np.ascontiguousarray(silero.panels(silero.padded(matrix.T).T)) if matrix.ndim == 2 else matrix
            for matrix in plain]
    return plain, tuple(laid)


def convolved(steps, matrix, bias, stride):
    """`steps` [time, channels] between two of zeros, three at a time."""
    wide = np.pad(steps, ((1, 1), (0, 0)))
    rows = [wide[t:t + 3].ravel() for t in range(0, len(steps), stride)]
    return np.maximum(np.array(rows) @ matrix + bias, 0)


def plain_score(plain, sound, state):
    """The network on one window with its context: (score, state)."""
    real, imaginary, c0, b0, c1, b1, c2, b2, c3, b3, gates, bias, out, out_bias = plain
    size = len(real)
    sound = np.concatenate((sound, sound[-2:-2 - size // 4:-1]))
    frames = np.array([sound[at:at + size] for at in range(0, len(sound) - size + 1, size // 2)])
    steps = np.hypot(frames @ real, frames @ imaginary)
    steps = convolved(convolved(steps, c0, b0, 1), c1, b1, 2)
    steps = np.maximum(steps.ravel() @ c2 + b2, 0)
    steps = np.maximum(steps @ c3 + b3, 0)
    gate, forget, new, show = np.split(np.concatenate((steps, state[0])) @ gates + bias, 4)
    open_ = [1 / (1 + np.exp(-x)) for x in (gate, forget, show)]
    cells = open_[1] * state[1] + open_[0] * np.tanh(new)
    hidden = open_[2] * np.tanh(cells)
    return 1 / (1 + np.exp(-(np.maximum(hidden, 0) @ out + out_bias[0]))), np.array([hidden, cells])


class Batch(VadBatch):
    """With a network of our own."""
    __slots__ = ("networks",)

    def __init__(self, networks):
        super().__init__("energy")
        self.networks = networks
        for rate, network in networks.items():
            self._lanes[rate].network = network

    def network(self, rate):
        return self.networks[rate]


# ---- the gate ----

@given(st.lists(st.floats(0, 2 ** 30), max_size=80))
def test_the_gate_is_its_plain_twin(levels):
    gate, plain = EnergyVad(), PlainGate()
    for each in levels:
        assert gate.score(each) == pytest.approx(plain.score(each), abs=1e-12)
        assert gate.noise == pytest.approx(plain.noise) and gate.audible == pytest.approx(plain.audible)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 3, 30, 300, 3000, 20000]), st.integers(1, 2000)), max_size=12),
       st.lists(st.integers(1, 3000), min_size=1, max_size=9), st.sampled_from([8000, 16000]))
def test_windows_are_their_plain_twins(stretches, cuts, rate):
    pcm = np.concatenate([(loud * np.sin(np.arange(n) * .7)).astype(np.int16) for loud, n in stretches]
                         or [np.zeros(0, np.int16)])
    found, at, i = [], 0, 0
    vad = Vad(rate, VadBatch("energy"), lambda *window: found.append(window))
    while at < len(pcm):
        vad.push(pcm[at:at + cuts[i % len(cuts)]])
        at, i = at + cuts[i % len(cuts)], i + 1
    plain = plain_windows(pcm, rate)
    assert [window[1:] for window in found] == [window[1:] for window in plain]
    assert [window[0] for window in found] == pytest.approx([window[0] for window in plain], abs=1e-12)


def test_what_is_no_sound_is_refused():
    with pytest.raises(ValueError):
        Vad(44100, VadBatch("energy"), print)
    vad = Vad(8000, VadBatch("energy"), print)
    for wrong in (b"\0\0\0", np.zeros(4, np.float32)):
        with pytest.raises(ValueError):
            vad.push(wrong)


# ---- the network ----

@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("calls", [1, 3, 16])
def test_the_network_is_its_plain_twin(rate, calls):
    plain, laid = weights(rate)
    batch, window = Batch({rate: Silero(rate, laid)}), rate * 32 // 1000
    sounds = [DICE.normal(0, 6000, 6 * window).clip(-32768, 32767).astype(np.int16) for _ in range(calls)]
    found = [[] for _ in sounds]
    for i, sound in enumerate(sounds):
        Vad(rate, batch, lambda score, *window, found=found[i]: found.append(score)).push(sound)
    assert batch.run() == 6 * calls
    for scores, sound in zip(found, sounds):
        state = np.zeros((2, 128))
        floats = np.concatenate((np.zeros(window // 8), sound / 32768))
        for i, score in enumerate(scores):
            want, state = plain_score(plain, floats[i * window:(i + 1) * window + window // 8], state)
            assert score == pytest.approx(want, abs=1e-4)


def test_a_network_of_other_shapes_is_refused():
    _, laid = weights(8000)
    for wrong in (laid[:-1], laid[::-1], (laid[0][:-1], *laid[1:])):
        with pytest.raises(ValueError):
            Silero(8000, wrong)
    with pytest.raises(ValueError):
        Silero(16000, laid)
    network = Silero(8000, laid)
    with pytest.raises(ValueError):
        network.run([Vad(8000, Batch({8000: network}), print)] * 17)
    with pytest.raises(ValueError):
        network.run([Vad(8000, VadBatch("energy"), print)])


# ---- its file ----

def field(number, value):
    if isinstance(value, int):
        return bytes([number << 3, value])
    size = len(value)
    return bytes([number << 3 | 2]) + (bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])) + value


def constant(name, values):
    tensor = field(2, 1) + field(9, struct.pack(f"<{len(values)}f", *values))
    return field(1, field(2, name.encode()) + field(4, b"Constant") + field(5, field(1, b"value") + field(5, tensor)))


def test_constants_are_found_in_a_graph_and_in_its_branches():
    branch = field(1, field(4, b"If") + field(5, field(6, constant("inner", [3, 4]))))
    found = dict(silero.tensors(constant("outer", [1, 2.5]) + branch))
    assert {name: values.tolist() for name, values in found.items()} == {"outer": [1, 2.5], "inner": [3, 4]}


@given(st.binary(max_size=80))
def test_whatever_the_file_holds_there_is_one_sentence(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "some.onnx"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="some.onnx cannot be loaded"):
        silero.layers(path)


def test_a_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "short.onnx"
    path.write_bytes(field(7, constant("x", [1]))[:-2])
    with pytest.raises(ConfigError, match="short.onnx cannot be loaded"):
        silero.layers(path)
