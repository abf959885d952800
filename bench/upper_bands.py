"""What lies above the telephone's band, as far as what lies in it tells: the table of engines/cepstra.py, computed.

    python bench/upper_bands.py [--audio DIR]

The recordings are there at 16 kHz and, through mu-law, at 8 kHz: for each frame the log energies of the bands that a
telephone carries, and what was above them.  Least squares.  The rule: the people whose digits measure the recogniser
(kind digit8k) are not among those it is computed from, and neither is a recording that has nothing up there.
"""
import argparse
import os
import sys
from pathlib import Path

import numpy as np
from engines import recordings
from subjects import BENCH, Absent

from opusagent.engines import cepstra

LOUDEST = 4                     # frames: the softest of these is the loudness of a recording
SPREAD = 1.5                    # of a recording's upper bands: with less, there is nothing in them
CARRIED = cepstra.LEVEL_BANDS


def energies(pcm: np.ndarray, rate: int) -> np.ndarray:
    """Log energies of all bands as Cepstra has them once it knows how loud the speaker is.  [frames, BANDS]"""
    window, hop = cepstra._WINDOWS[rate], rate // cepstra.FRAMES
    frames = np.lib.stride_tricks.sliding_window_view(pcm, len(window))[::hop]
    spectrum = np.fft.rfft(frames * window, 2 * len(cepstra._WEIGHTS[rate]) - 2)
    bands = (np.abs(spectrum) ** 2).astype(np.float32) @ cepstra._WEIGHTS[rate]
    loudness = np.sort(cepstra._loudness(bands))[-LOUDEST]
    return np.log(bands * np.exp(cepstra.LEVEL - loudness) + cepstra._NOISE)


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
            inputs.append(np.hstack((below[:count], np.ones((count, 1)))))
            outputs.append(above[:count])
    x, y = np.concatenate(inputs), np.concatenate(outputs)
    table = np.linalg.lstsq(x, y, rcond=None)[0]
    off = (y - x @ table).std(0)
    print(f"{len(inputs)} recordings, {len(x)} frames; off by {off.min():.2f} to {off.max():.2f}, "
          f"where they vary by {y.std(0).min():.2f} to {y.std(0).max():.2f}")
    for row in table.T:
        print(f"({', '.join(f'{value:.2f}' for value in row)}),")
    return 0


if __name__ == "__main__":
    sys.exit(main())
