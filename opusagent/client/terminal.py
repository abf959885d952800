"""Figures and conversations as text: colours where a person looks on, plain where a program reads.

It knows no call and measures nothing.  The rule: the same words either way; colour only repeats what they say.
"""
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence

CODES = {"bold": 1, "red": 31, "green": 32, "blue": 34, "cyan": 36}     # ANSI
PERCENTILES = (50, 95, 99, 99.9)
BAR = 40                        # characters of the longest bar of a histogram
FINE, COARSE = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7)     # edges of buckets within a decade
LATE_MS = 5
TOO_BUSY = "This machine was too busy to measure on: the callers themselves were late."
CUT_OFF = "Turns cut off, where the agent spoke before the caller had ended, and which are in none of these figures"
WIDE = 50                       # times the smallest edge: from there on the steps are coarse


class Terminal:
    """Where the text goes."""

    __slots__ = ("out", "colours", "blocks")

    def __init__(self, out=None):
        self.out = sys.stdout if out is None else out
        if hasattr(self.out, "reconfigure"):
            self.out.reconfigure(errors="replace")      # what a terminal cannot show is a question mark, no failure
        self.colours = self.out.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self.blocks = (getattr(self.out, "encoding", None) or "").lower().startswith("utf")

    def paint(self, style: str, text: str) -> str:
        return f"\x1b[{CODES[style]}m{text}\x1b[0m" if self.colours else text

    def say(self, text: str = "") -> None:
        print(text, file=self.out, flush=True)

    def fold(self, text: str, indent: int) -> str:
        """Lines no wider than the window, all but the first indented; as it is where nobody looks on."""
        if not self.colours:
            return text
        width = max(40, shutil.get_terminal_size((100, 24)).columns - indent)
        return ("\n" + " " * indent).join(textwrap.wrap(text, width))

    def bar(self, share: float, width: int = BAR) -> str:
        """A bar of `share` (0 to 1) of the width, at least a sliver for what is not nothing."""
        if not self.blocks:
            return "#" * (max(1, round(share * width)) if share > 0 else 0)
        eighths = max(1, round(share * width * 8)) if share > 0 else 0
        return "\u2588" * (eighths // 8) + " \u258f\u258e\u258d\u258c\u258b\u258a\u2589"[eighths % 8].strip()


def percentile(ordered: Sequence[float], p: float) -> float:
    """Of sorted values, by nearest rank; NaN of nothing."""
    return ordered[max(0, math.ceil(len(ordered) * p / 100) - 1)] if ordered else math.nan


def summary(values: Iterable[float]) -> dict[str, float]:
    """count, avg, min, max and the percentiles; only a count of 0 where there is nothing."""
    ordered = sorted(values)
    if not ordered:
        return {"count": 0}
    figures = {"count": len(ordered), "avg": sum(ordered) / len(ordered), "min": ordered[0], "max": ordered[-1]}
    figures |= {f"p{p:g}": percentile(ordered, p) for p in PERCENTILES}
    return {name: round(value, 3) for name, value in figures.items()}


def waited(gaps: Iterable[float]) -> tuple[list[float], int]:
    """The gaps that somebody waited, and how many turns were cut off: a gap below 0 is an agent that spoke before the
    caller had ended, which is no answer that came fast."""
    gaps = list(gaps)
    waits = [gap for gap in gaps if gap >= 0]
    return waits, len(gaps) - len(waits)


def summary_line(values: Iterable[float]) -> str:
    """Of times, ms."""
    figures = summary(values)
    del figures["count"]
    if not figures:
        return "nothing to measure"
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items()) + "  ms"


def too_late(late: Iterable[float]) -> bool:
    """True where callers were so late themselves, ms, that what they measured says little."""
    return summary(late).get("p99", 0.0) > LATE_MS


def histogram(terminal: Terminal, values: Iterable[float]) -> list[str]:
    """A line per bucket from the least value to the greatest: its range, how many, and a bar."""
    ordered = sorted(values)
    positive = [value for value in ordered if value >= 0]
    rows = [("below 0".rjust(20), len(ordered) - len(positive))] if len(positive) < len(ordered) else []
    edges = _edges(positive) if positive else []
    for low, high in zip(edges, edges[1:]):
        rows.append((f"{low:>8g} .. {high:<8g}", sum(low <= value < high for value in positive)))
    most = max((count for _, count in rows), default=0)
    return [f"{name}{count:>8}  {terminal.paint('cyan', terminal.bar(count / most))}".rstrip() for name, count in rows]


def _edges(ordered: Sequence[float]) -> list[float]:
    """Round numbers around sorted values, in steps of a fifth to a half; what is far below the median is one bucket."""
    least, greatest = ordered[0], ordered[-1]
    smallest = max(least, percentile(ordered, 50) / 10, 1e-3)
    steps = FINE if greatest < WIDE * smallest else COARSE
    decade = math.floor(math.log10(smallest))
    edges: list[float] = []
    while not edges or edges[-1] <= greatest:
        edges += [float(f"{step}e{decade}") for step in steps]
        decade += 1
    edges = edges[max(i for i, edge in enumerate(edges) if edge <= smallest):]
    edges = edges[:next(i for i, edge in enumerate(edges) if edge > greatest) + 1]
    return edges if least >= edges[0] else [0.0, *edges]
