"""Figures of repeated, interleaved measurements: paired ratios with their doubt, and tables of text.

It measures nothing itself.  The rule: two subjects are compared round by round, never average by average, so
that a machine that slows down for a minute slows both.
"""
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

CONFIDENCE = 0.90
LEAST_ROUNDS = 5        # below that no 90 % interval of a median exists: 4 rounds reach 87.5 % from end to end


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of paired ratios and the interval in which it lies with 90 % confidence."""
    median: float
    low: float
    high: float
    rounds: int

    def as_json(self) -> dict[str, float]:
        return {"median": self.median, "low": self.low, "high": self.high, "rounds": self.rounds}

    def __str__(self) -> str:
        doubt = "" if self.rounds >= LEAST_ROUNDS else "?"
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f}){doubt}"


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two in the middle; NaN of nothing."""
    ordered, n = sorted(values), len(values)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2 if n else math.nan


def percentile(values: Sequence[float], p: float) -> float:
    """Between the two values around it in proportion, to a tenth; NaN of nothing."""
    ordered, at = sorted(values), (len(values) - 1) * p / 100
    if not ordered:
        return math.nan
    low = int(at)
    return round(ordered[low] + (ordered[min(low + 1, len(ordered) - 1)] - ordered[low]) * (at - low), 1)


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Where the true median lies, whatever the distribution: order statistics, interpolated between the two
    ranks around `confidence` (Hettmansperger and Sheather, 1986).  Under five values: their range."""
    ordered, n = sorted(values), len(values)
    if n < LEAST_ROUNDS:
        return (ordered[0], ordered[-1]) if ordered else (math.nan, math.nan)

    def covered(k: int) -> float:       # by the k-th smallest to the k-th largest
        return 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n

    k = max(k for k in range(1, n // 2 + 1) if covered(k) >= confidence)
    inner = covered(k + 1) if k + 1 <= n // 2 else 0.0
    share = (covered(k) - confidence) / (covered(k) - inner)
    weight = (n - k) * share / (k + (n - 2 * k) * share)
    low = (1 - weight) * ordered[k - 1] + weight * ordered[k]
    high = (1 - weight) * ordered[n - k] + weight * ordered[n - k - 1]
    return low, high


def wilson(part: int, whole: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Where the true share lies of which `part` of `whole` were seen, if they are independent (Wilson, 1927)."""
    if not whole:
        return 0.0, 1.0
    z, seen = NormalDist().inv_cdf((1 + confidence) / 2), part / whole
    middle, wide = seen + z * z / (2 * whole), z * math.sqrt(seen * (1 - seen) / whole + (z / (2 * whole)) ** 2)
    return max(0.0, (middle - wide) / (1 + z * z / whole)), min(1.0, (middle + wide) / (1 + z * z / whole))


def paired_ratio(ours: Sequence[float | None], theirs: Sequence[float | None]) -> Ratio | None:
    """ours / theirs, round by round; rounds in which either is missing are left out.  None without any pair."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True) if a is not None and b]
    return Ratio(median(ratios), *median_interval(ratios), len(ratios)) if ratios else None


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first being the heads, as columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
             for row in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines)
