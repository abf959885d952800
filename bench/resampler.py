"""The resampler's response and delay beside soxr's, as pictures: bench/resampler_response.svg, resampler_delay.svg.

    python bench/resampler.py [--out DIRECTORY]

Response: a tone of each frequency goes through in 20 ms frames, and the level of what comes out is drawn: in the
passband it should be 0 dB, and above it there should be nothing.  Aliases: what a tone above the new limit leaves.
Delay: what of the audio given has not come out yet, and by how much what has come out lies later in the output than it
did in the input (a filter's own delay; soxr waits instead).
The rule: both get the same int16 frames, and only what has come out counts.
"""
import argparse
import sys
from pathlib import Path

import matplotlib
import numpy
import soxr

from opusagent._fastpath import Resampler

matplotlib.use("agg")
from matplotlib import pyplot   # noqa: E402

PAIRS = ((8000, 16000), (16000, 8000), (24000, 8000))
SECONDS = 2
LEVEL = 10000.0
OURS, VHQ, LQ = "OpusAgent", "soxr VHQ", "soxr LQ"


def resamplers(a: int, b: int) -> dict:
    """{name: a function from a frame to what comes out of it, float samples}"""
    mine = Resampler(a, b)
    streams = {VHQ: soxr.ResampleStream(a, b, 1, dtype="int16"),
               LQ: soxr.ResampleStream(a, b, 1, dtype="int16", quality="LQ")}
    out = {OURS: lambda frame: numpy.array(mine.push(frame), dtype=float)}
    return out | {name: lambda frame, s=s: s.resample_chunk(frame).astype(float) for name, s in streams.items()}


def through(resample, tone: numpy.ndarray, rate: int) -> tuple[numpy.ndarray, list[int]]:
    """What comes out, and how many samples there were after each 20 ms frame."""
    step, pieces, counts = rate // 50, [], []
    for at in range(0, len(tone), step):
        pieces.append(resample(tone[at:at + step]))
        counts.append(sum(map(len, pieces)))
    return numpy.concatenate(pieces), counts


def level(samples: numpy.ndarray) -> float:
    """dB of the second half (the filter has settled), against a tone of LEVEL."""
    half = samples[len(samples) // 2:]
    return 20 * numpy.log10(max(numpy.sqrt(2 * numpy.mean(half**2)), 0.1) / LEVEL)


def response(a: int, b: int, frequencies) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    at = numpy.arange(a * SECONDS) / a
    for frequency in frequencies:
        tone = numpy.round(LEVEL * numpy.sin(2 * numpy.pi * frequency * at)).astype(numpy.int16)
        for name, resample in resamplers(a, b).items():
            found.setdefault(name, []).append(level(through(resample, tone, a)[0]))
    return found


def shift(a: int, b: int, name: str) -> float:
    """ms by which a pulse lies later in the output than in the input."""
    at = numpy.arange(a * SECONDS) / a
    pulse = numpy.round(LEVEL * numpy.exp(-((at - 1.0) / 0.001) ** 2)).astype(numpy.int16)
    out = numpy.clip(through(resamplers(a, b)[name], pulse, a)[0], 100, None) - 100     # the foot is rounding
    return 1000 * (numpy.sum(out * numpy.arange(len(out))) / numpy.sum(out) / b - 1.0)


def lateness(a: int, b: int) -> dict[str, list[float]]:
    """ms by which the output is late after each frame: what is missing, and the shift of what is there."""
    noise = numpy.random.default_rng(1).normal(0, 3000, a * SECONDS).astype(numpy.int16)
    return {name: [(i + 1) * 20 - 1000 * count / b + later for i, count in enumerate(through(resample, noise, a)[1])]
            for name, resample in resamplers(a, b).items() for later in [shift(a, b, name)]}


def draw_response(where: Path) -> list[str]:
    figure, axes = pyplot.subplots(1, len(PAIRS), figsize=(15, 4.2), constrained_layout=True)
    said = []
    for axis, (a, b) in zip(axes, PAIRS):
        frequencies = numpy.arange(50, a // 2, 50 if a < 24000 else 100)
        found = response(a, b, frequencies)
        for name, levels in found.items():
            axis.plot(frequencies, levels, label=name, linewidth=2 if name == OURS else 1)
        axis.axvline(3400, color="grey", linewidth=.8, linestyle=":")
        axis.axhline(-60, color="grey", linewidth=.8, linestyle=":")
        if b < a:
            axis.axvline(b / 2, color="grey", linewidth=.8)
        axis.set(title=f"{a // 1000} to {b // 1000} kHz", xlabel="Hz in", ylabel="dB out", ylim=(-105, 5))
        axis.legend(loc="lower left")
        band = [level for f, level in zip(frequencies, found[OURS]) if 100 <= f <= 3400]
        beyond = [level for f, level in zip(frequencies, found[OURS]) if f >= 4600]
        said.append(f"{a} -> {b}: passband {min(band):+.2f} to {max(band):+.2f} dB up to 3.4 kHz"
                    + (f", at most {max(beyond):.0f} dB from 4.6 kHz on" if b < a else ""))
    figure.suptitle("Level of a tone after resampling (dotted: 3.4 kHz, -60 dB; line: half the new rate)")
    finish(figure, where, "resampler_response")
    return said


def draw_delay(where: Path) -> list[str]:
    figure, axes = pyplot.subplots(1, len(PAIRS), figsize=(15, 3.6), constrained_layout=True, sharey=True)
    said = []
    for axis, (a, b) in zip(axes, PAIRS):
        for name, late in lateness(a, b).items():
            axis.step(numpy.arange(1, len(late) + 1) * 20, late, label=name, linewidth=2 if name == OURS else 1,
                      where="post")
            said.append(f"{a} -> {b}: {name} is {numpy.mean(late):.2f} ms late on average, {max(late):.2f} at most")
        axis.set(title=f"{a // 1000} to {b // 1000} kHz", xlabel="ms of audio given", xlim=(0, 1000))
        axis.legend(loc="upper right")
    axes[0].set_ylabel("ms late")
    figure.suptitle("How far the output lags behind what was given, in 20 ms frames")
    finish(figure, where, "resampler_delay")
    return said


def finish(figure, where: Path, name: str) -> None:
    figure.savefig(where / f"{name}.svg", metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    print("\n".join(draw_response(args.out) + draw_delay(args.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
