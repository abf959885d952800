"""Models small enough to be made in a test, and real: the programs that run them cannot tell them from large ones.

A Piper voice whose phonemes are tones, and a streaming transducer for sherpa-onnx whose words are tones.  Both have the
inputs, outputs and metadata of the models that people download, and weights that can be written down.
The rule: nothing is random, so that what is spoken and what is heard can be said ahead.
"""
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# -- a voice for Piper -------------------------------------------------------------------------------------------------

PHONEME_MS = 40                 # of a phoneme, and of the pause after it, at length_scale 1
PHONEMES = "iɪeɛæaɑɒɔoʊuʌəɚɜɐᵻ" + "bdfhjklmnprstvwzðŋɡɹʃʒθɾː" + " .,?!ˈˌ"
SILENT = "_^$ .,?!ˈˌː"          # phonemes that are no sound; with the pause, the beginning and the end


def phoneme_hz(phoneme: str) -> float:
    """Of its tone; 0 is silence."""
    return 0.0 if phoneme in SILENT else 400.0 + 50 * PHONEMES.index(phoneme)


def write_voice(path: Path, rate: int = 22050) -> None:
    """`path` and `path`.json, as Piper has them: a tone of PHONEME_MS for each phoneme, silence for each pause."""
    ids = {phoneme: [number] for number, phoneme in enumerate("_^$" + PHONEMES)}
    hz = [phoneme_hz(phoneme) for phoneme in ids]
    samples = rate * PHONEME_MS // 1000
    nodes = [
        helper.make_node("Gather", ["hz", "input"], ["tone"]),                          # [1, phonemes]
        helper.make_node("Slice", ["scales", "one", "two"], ["length"]),
        helper.make_node("Mul", ["length", "samples"], ["each"]),
        helper.make_node("Cast", ["each"], ["count"], to=TensorProto.INT64),
        helper.make_node("Concat", ["minus", "count"], ["spread"], axis=0),             # [phonemes, samples of each]
        helper.make_node("Reshape", ["tone", "column"], ["upright"]),
        helper.make_node("Shape", ["upright"], ["upright_shape"]),
        helper.make_node("Slice", ["upright_shape", "zero", "one"], ["rows"]),
        helper.make_node("Concat", ["rows", "count"], ["shape"], axis=0),
        helper.make_node("Expand", ["upright", "shape"], ["stretched"]),
        helper.make_node("Reshape", ["stretched", "output_shape"], ["steps"]),          # [1, 1, samples]
        helper.make_node("CumSum", ["steps", "axis"], ["angle"]),
        helper.make_node("Sin", ["angle"], ["wave"]),
        helper.make_node("Sign", ["steps"], ["sounds"]),
        helper.make_node("Mul", ["wave", "sounds"], ["output"]),
    ]
    constants = {"hz": np.array(hz, np.float32) * np.float32(2 * np.pi / rate),
                 "samples": np.array([samples], np.float32),
                 "zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "minus": np.array([-1]),
                 "column": np.array([-1, 1]), "output_shape": np.array([1, 1, -1]), "axis": np.array(2)}
    _save(path, nodes, constants,
          [("input", TensorProto.INT64, [1, "phonemes"]), ("input_lengths", TensorProto.INT64, [1]),
           ("scales", TensorProto.FLOAT, [3])],
          [("output", TensorProto.FLOAT, [1, 1, "samples"])])
    Path(f"{path}.json").write_text(json.dumps({
        "audio": {"sample_rate": rate, "quality": "tones"}, "espeak": {"voice": "en-us"}, "phoneme_type": "espeak",
        "inference": {"noise_scale": 0.667, "length_scale": 1, "noise_w": 0.8}, "num_symbols": len(ids),
        "num_speakers": 1, "speaker_id_map": {}, "phoneme_id_map": ids}))


# -- a streaming transducer for sherpa-onnx ----------------------------------------------------------------------------

WORDS = "zero one two three four five six seven eight nine yes no stop".split()
CHUNK, POOL = 8, 4              # frames of 10 ms in a step of the encoder, and in one of its answers
MEL_BANDS, LOW_HZ, HIGH_HZ = 80, 20, 7600       # of sherpa-onnx's features
FIRST_BAND, STEP = 14, 3        # the words' tones lie so far apart
QUIET = -6.0                    # log energy of a band: below it there is no tone
WORD_MS, GAP_MS = 200, 150


def word_hz(word: str) -> float:
    """Of its tone: the middle of a mel band."""
    low, high = (1127 * np.log(1 + hz / 700) for hz in (LOW_HZ, HIGH_HZ))
    middle = low + (high - low) / (MEL_BANDS + 1) * (_band(word) + 1)
    return float(700 * (np.exp(middle / 1127) - 1))


def _band(word: str) -> int:
    return FIRST_BAND + STEP * WORDS.index(word)


def say(text: str, rate: int = 8000, level: int = 6000) -> np.ndarray:
    """A text of WORDS as the transducer hears them: a tone each, and a gap after it.  int16"""
    times, gap = np.arange(rate * WORD_MS // 1000) / rate, np.zeros(rate * GAP_MS // 1000)
    tones = [np.sin(2 * np.pi * word_hz(word) * times) for word in text.split()]
    return np.rint(level * np.concatenate([each for tone in tones for each in (tone, gap)])).astype(np.int16)


def write_transducer(directory: Path) -> None:
    """tokens.txt, encoder.onnx, decoder.onnx and joiner.onnx, as an LSTM transducer's: a word is heard where its tone
    begins, and whether it sounded before is the state from step to step."""
    directory.mkdir(exist_ok=True)
    tokens = ["<blk>", *("\N{LOWER ONE EIGHTH BLOCK}" + word for word in WORDS)]
    (directory / "tokens.txt").write_text("".join(f"{token} {number}\n" for number, token in enumerate(tokens)))
    _write_encoder(directory / "encoder.onnx", len(tokens))
    nodes = [helper.make_node("Gather", ["embedding", "y"], ["each"]),
             helper.make_node("ReduceSum", ["each", "one"], ["decoder_out"], keepdims=0)]
    _save(directory / "decoder.onnx", nodes,
          {"embedding": np.zeros((len(tokens), len(tokens)), np.float32), "one": np.array([1])},
          [("y", TensorProto.INT64, ["N", 2])], [("decoder_out", TensorProto.FLOAT, ["N", len(tokens)])],
          {"vocab_size": str(len(tokens)), "context_size": "2"})
    parts = [(name, TensorProto.FLOAT, ["N", len(tokens)]) for name in ("encoder_out", "decoder_out")]
    _save(directory / "joiner.onnx", [helper.make_node("Add", ["encoder_out", "decoder_out"], ["logit"])], {}, parts,
          [("logit", TensorProto.FLOAT, ["N", len(tokens)])], {"joiner_dim": str(len(tokens))})


def _write_encoder(path: Path, tokens: int) -> None:
    count, answers = len(WORDS), CHUNK // POOL
    nodes = [
        helper.make_node("Reshape", ["x", "pooled_shape"], ["frames"]),
        helper.make_node("ReduceMean", ["frames"], ["pooled"], axes=[2], keepdims=0),       # [N, answers, bands]
        helper.make_node("Gather", ["pooled", "bands"], ["tones"], axis=2),                 # [N, answers, words]
        helper.make_node("ReduceMax", ["pooled"], ["loudest"], axes=[2], keepdims=1),
        helper.make_node("Sub", ["loudest", "near"], ["least"]),
        helper.make_node("Greater", ["tones", "least"], ["loud"]),
        helper.make_node("Greater", ["tones", "quiet"], ["there"]),
        helper.make_node("And", ["loud", "there"], ["sounding"]),
        helper.make_node("Cast", ["sounding"], ["on"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["h"], ["state"], perm=[1, 0, 2]),                    # [N, 1, words]
        helper.make_node("Slice", ["on", "zero", "last", "one"], ["earlier"]),
        helper.make_node("Concat", ["state", "earlier"], ["before"], axis=1),
        helper.make_node("Sub", ["on", "before"], ["change"]),
        helper.make_node("Relu", ["change"], ["begins"]),
        helper.make_node("Pad", ["begins", "pads", "half"], ["marked"]),            # with the blank before them
        helper.make_node("Mul", ["marked", "sure"], ["encoder_out"]),
        helper.make_node("Slice", ["on", "last", "end", "one"], ["after"]),
        helper.make_node("Transpose", ["after"], ["next_h"], perm=[1, 0, 2]),
        helper.make_node("Identity", ["c"], ["next_c"]),
    ]
    constants = {"pooled_shape": np.array([-1, answers, POOL, MEL_BANDS]), "bands": np.array([_band(w) for w in WORDS]),
                 "near": np.array(1, np.float32), "quiet": np.array(QUIET, np.float32),
                 "zero": np.array([0]), "one": np.array([1]), "last": np.array([answers - 1]),
                 "end": np.array([answers]), "pads": np.array([0, 0, 1, 0, 0, 0]), "half": np.array(0.5, np.float32),
                 "sure": np.array(10, np.float32)}
    states = [(name, TensorProto.FLOAT, [1, "N", count]) for name in ("h", "c", "next_h", "next_c")]
    _save(path, nodes, constants, [("x", TensorProto.FLOAT, ["N", CHUNK, MEL_BANDS]), *states[:2]],
          [("encoder_out", TensorProto.FLOAT, ["N", answers, tokens]), *states[2:]],
          {"model_type": "lstm", "num_encoder_layers": "1", "T": str(CHUNK), "decode_chunk_len": str(CHUNK),
           "rnn_hidden_size": str(count), "d_model": str(count)})


def _save(path: Path, nodes: list, constants: dict, inputs: list, outputs: list, metadata: dict | None = None) -> None:
    graph = helper.make_graph(
        nodes, path.stem, [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
