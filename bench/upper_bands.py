"""What lies above the telephone's band, as far as what lies in it tells: the tables of cepstra.py, computed.

    python bench/upper_bands.py [--audio DIR]

The recordings are there at 16 kHz and, through mu-law, at 8 kHz: for each frame the log energies of the bands that a
telephone carries, and what was above them.  Least squares, weighed by how much of a hiss a frame is: an "s" and a voice
tell of other things.  Which bands tell a hiss was chosen, of 384 ways, by how far off this is for a recording that was
left out.  The rule: the people whose digits measure the recogniser (kind digit8k) are not among those it is computed
from, and neither is a recording that has nothing up there.
"""
import argparse
import os
import sys
from pathlib import Path

import numpy as np
from engines import recordings
from subjects import BENCH, Absent

from opusagent.engines.embedded import cepstra

LOUDEST = 4                     # frames: the softest of these is the loudness of a recording
SPREAD = 1.5                    # of a recording's upper bands: with less, there is nothing in them
RIDGE = 10.0                    # frames' worth of doubt about each weight
CARRIED = cepstra.LEVEL_BANDS


def energies(pcm: np.ndarray, rate: int) -> np.ndarray:
    """Log energies of all bands as Cepstra has them once it knows how loud the speaker is.  [frames, BANDS]"""
    window, hop = cepstra._WINDOWS[rate], rate // cepstra.FRAMES
    frames = np.lib.stride_tricks.sliding_window_view(pcm, len(window))[::hop]
    spectrum = np.fft.rfft(frames * window, 2 * len(cepstra._WEIGHTS[rate]) - 2)
    bands = (np.abs(spectrum) ** 2).astype(np.float32) @ cepstra._WEIGHTS[rate]
    loudness = np.sort(cepstra._loudness(bands))[-LOUDEST]
    return np.log(bands * np.exp(cepstra.LEVEL - loudness) + cepstra._NOISE)


def terms(below: np.ndarray) -> np.ndarray:
    """What the upper bands are sums of: the others and one, as far as a frame is a voice, and as it is a hiss."""
    hiss, below = cepstra._hiss(below), np.hstack((below, np.ones((len(below), 1))))
    return np.hstack((below * (1 - hiss), below * hiss))


def fitted(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y)


def unseen(inputs: list[np.ndarray], outputs: list[np.ndarray]) -> float:
    """By how much it is off for a recording that it was not computed from (root of the mean square)."""
    off = []
    for i, (x, y) in enumerate(zip(inputs, outputs)):
        table = fitted(np.concatenate(inputs[:i] + inputs[i + 1:]), np.concatenate(outputs[:i] + outputs[i + 1:]))
        off.append(y - x @ table)
    return float(np.sqrt((np.concatenate(off) ** 2).mean()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    audio = os.environ.get("OPUSAGENT_BENCH_AUDIO") or BENCH.parent.parent / "shared" / "audio"
    parser.add_argument("--audio", type=Path, default=Path(audio), metavar="DIR",
                        help="recordings with a manifest.json")
    directory = parser.parse_args().audio
    try:
        narrow, wide = recordings(directory, 8000), recordings(directory, 16000)
    except Absent as error:
        print(error, file=sys.stderr)
        return 1
    inputs, outputs = [], []
    for name, (row, pcm) in wide.items():
        above = energies(pcm, 16000)[:, CARRIED:]
        if row["kind"] != "digit8k" and above.std() > SPREAD:
            below = energies(narrow[name][1], 8000)[:, :CARRIED]
            count = min(len(below), len(above))
            inputs.append(terms(below[:count]))
            outputs.append(above[:count])
    x, y = np.concatenate(inputs), np.concatenate(outputs)
    table = fitted(x, y)
    off = (y - x @ table).std(0)
    print(f"{len(inputs)} recordings, {len(x)} frames; off by {off.min():.2f} to {off.max():.2f}, "
          f"where they vary by {y.std(0).min():.2f} to {y.std(0).max():.2f}; for a recording that was left out "
          f"off by {unseen(inputs, outputs):.2f}")
    for name, part in (("of a voice", table[:CARRIED + 1]), ("of a hiss", table[CARRIED + 1:])):
        print(name)
        for row in part.T:
            print(f"({', '.join(f'{value:.2f}' for value in row)}),")
    return 0


if __name__ == "__main__":
    sys.exit(main())
