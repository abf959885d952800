"""Garbage: what refers to itself in a circle is collected between frames, never in the midst of one.

The rule: while there are calls only the young generations are looked at, which takes no longer than a frame may wait.
"""
import ctypes
import gc

MANY = 5000                     # new objects, which it takes less than a millisecond to look at
TRIM = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)     # glibc's


def begin() -> None:
    """What starting has made stays; from now on nothing is collected but by look()."""
    gc.collect()
    gc.freeze()
    gc.disable()


def look(time: bool, busy: bool) -> None:
    """`time`: it is time to collect something, else only what has become too much; `busy`: there are calls that would
    notice if all of it were looked at."""
    if busy:
        if time or gc.get_count()[0] > MANY:
            gc.collect(1)
    elif time and gc.collect():
        TRIM(0)                                 # what a flood has used goes back to the system


def end() -> None:
    gc.enable()
