"""Figures and conversations as text: colours where a person looks on, plain where a program reads.

It knows no call and measures nothing.  The rule: the same words either way; colour only repeats what they say.
"""
import math
import os
import sys
from collections.abc import Iterable, Sequence

CODES = {"bold": "1", "faint": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "magenta": "35", "cyan": "36"}
PERCENTILES = (50, 95, 99, 99.9)
BAR = 40                        # characters of the longest bar of a histogram
STEPS = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)    # edges of a histogram's buckets within a decade


class Terminal:
    """Where the text goes."""

    __slots__ = ("out", "colours", "blocks")

    def __init__(self, out=None):
        self.out = sys.stdout if out is None else out
        self.colours = self.out.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self.blocks = (getattr(self.out, "encoding", None) or "").lower().startswith("utf")

    def paint(self, style: str, text: str) -> str:
        return f"\x1b[{CODES[style]}m{text}\x1b[0m" if self.colours else text

    def say(self, text: str = "") -> None:
        print(text, file=self.out, flush=True)

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


def summary_line(values: Iterable[float], unit: str = "ms") -> str:
    figures = summary(values)
    del figures["count"]
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items()) + f"  {unit}" if figures else "nothing to measure"


def histogram(terminal: Terminal, values: Iterable[float]) -> list[str]:
    """A line per bucket from the least value to the greatest: its range, how many, and a bar."""
    ordered = sorted(values)
    positive = [value for value in ordered if value >= 0]
    rows = [("below 0".rjust(20), len(ordered) - len(positive))] if len(positive) < len(ordered) else []
    edges = _edges(positive[0], positive[-1]) if positive else []
    for low, high in zip(edges, edges[1:]):
        rows.append((f"{low:>8g} .. {high:<8g}", sum(low <= value < high for value in positive)))
    most = max((count for _, count in rows), default=0)
    return [f"{name}{count:>8}  {terminal.paint('cyan', terminal.bar(count / most))}".rstrip() for name, count in rows]


def _edges(least: float, greatest: float) -> list[float]:
    """Round numbers in steps of a fifth to a third, the first at or below the least, the last above the greatest.
    What is below a hundredth of the greatest is one bucket from 0."""
    smallest = max(least, greatest / 100, 1e-3)
    decade = math.floor(math.log10(smallest))
    edges: list[float] = []
    while not edges or edges[-1] <= greatest:
        edges += [float(f"{step}e{decade}") for step in STEPS]
        decade += 1
    edges = edges[max(i for i, edge in enumerate(edges) if edge <= smallest):]
    edges = edges[:next(i for i, edge in enumerate(edges) if edge > greatest) + 1]
    return edges if least >= edges[0] else [0.0, *edges]
