"""Garbage: what refers to itself in a circle is collected between frames, never in the midst of one.

The rule: while there are calls only the young generations are looked at, which takes no longer than a frame may wait.
Our own calls leave no circles (tests/test_garbage.py); the tools of flows may, and those are looked for among all there
is when the worker has grown by so much that they could be the reason: then the calls wait for as long as that takes.
"""
import ctypes
import gc
from collections.abc import Callable

MANY = 5000                     # new objects, which it takes less than a millisecond to look at
GROWN = 64 << 20                # bytes by which a worker grows before all is looked at in spite of its calls
TRIM = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)     # glibc's

left = 0                        # bytes that the worker had when all had been looked at


def begin() -> None:
    """What starting has made stays; from now on nothing is collected but by look()."""
    gc.collect()
    gc.freeze()
    gc.disable()


def look(time: bool, busy: bool, used: Callable[[], int]) -> None:
    """`time`: it is time to collect something, else only what has become too much; `busy`: there are calls that would
    notice if all of it were looked at; `used()`: bytes that the worker has for itself."""
    global left
    if time and (not busy or used() > left + GROWN):
        if gc.collect():
            TRIM(0)                             # what a flood has used goes back to the system
        left = used()
    elif busy and (time or gc.get_count()[0] > MANY):
        gc.collect(1)


def end() -> None:
    gc.enable()
