"""What the kernel says of a process that owes us something: whether it works, waits for its turn, or does nothing.

The rule: a process that computes, or would if it got a core, is slow and no more; one that does neither has stopped.
"""
import os
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")        # of /proc, in a second
RESTS = "STt"                           # asleep, stopped, traced: states of a thread as in proc(5)


def vitals(stat: Path) -> tuple[str, float]:
    """What such a file of a process or a thread says: its state, a letter, "" where there is none any more; and the CPU
    time that it has had, seconds, as a process with all its threads."""
    try:
        state, *fields = stat.read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return "", 0.0
    return state, (int(fields[10]) + int(fields[11])) / TICKS


class Watch:
    """A process from the moment on that something is wanted of it."""

    __slots__ = ("at", "spent", "since")

    def __init__(self, pid: int):
        self.at = Path(f"/proc/{pid}")
        self.spent = vitals(self.at / "stat")[1]
        self.since = 0.0                # seconds: when it was last seen to work

    def idles(self, now: float) -> float:
        """Seconds for which all of its threads have been at rest, at `now` after the beginning."""
        spent = vitals(self.at / "stat")[1]
        if spent != self.spent or not all(vitals(each)[0] in RESTS for each in self.at.glob("task/*/stat")):
            self.spent, self.since = spent, now
        return now - self.since
