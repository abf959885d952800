"""Where a loop stands that does not come round: a line of the log, by a thread that the loop never waits for.

It ends nothing; a worker that stands still for long is the supervisor's.  The rule: while the loop is in time the
thread sleeps without the interpreter's lock, and looks at one number in memory.
"""
import logging
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

from .._fastpath import EpollSet
from ..board import Seat
from ..metrics import Metrics

log = logging.getLogger("opusagent")

LATE_NS = 50_000_000            # behind its next tick, from which a loop counts as stalled
TOLD_EVERY_NS = 1_000_000_000   # between two lines of the log
MOST_FRAMES = 12                # of a stack, the innermost


def begin(epoll: EpollSet, metrics: Metrics, seat: Seat | None = None) -> None:
    """Watches the loop that calls this, whose next tick is at `epoll.due`, until the set is closed.

    Stalls are counted at the worker's seat, where it has one.  A tick that is late already is nobody's: so long it took
    to get ready.
    """
    if seat is None:
        metrics.count("loop_stalls", 0)         # from now on no thread makes the list of counters longer
    count = partial(metrics.count, "loop_stalls") if seat is None else seat.stalled
    threading.Thread(target=watch, args=(epoll, count, threading.get_ident(), epoll.due), name="stalls",
                     daemon=True).start()


def watch(epoll: EpollSet, count: Callable[[], None], loop: int, due: int) -> None:
    """Thread: each stall after `due` is counted, and at most one a second told.  `loop`: the thread that it runs in."""
    told = -TOLD_EVERY_NS
    while due := epoll.overdue(LATE_NS, due):
        count()
        now = time.monotonic_ns()
        if now - told >= TOLD_EVERY_NS:
            told = now
            log.warning("the loop is late by %.0f ms and stands at %s", (now - due) / 1e6,
                        stack(sys._current_frames().get(loop)))


def stack(frame: FrameType | None) -> str:
    """From the innermost call to the one that the event loop has made: "call.py:120 tick < worker.py:245 _tick"."""
    calls = []
    while frame is not None and len(calls) < MOST_FRAMES:
        path = Path(frame.f_code.co_filename)
        if path.parent.name != "asyncio":
            calls.append(f"{path.name}:{frame.f_lineno} {frame.f_code.co_name}")
        elif calls:
            break
        frame = frame.f_back
    return " < ".join(calls) or "the event loop"
