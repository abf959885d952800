"""Garbage: what refers to itself in a circle is collected between frames, never in the midst of one.

The rule: while there are calls only the young generations are looked at, which takes no longer than a frame may wait.
"""
import ctypes
import gc

TRIM = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)     # glibc's


def begin() -> None:
    """What starting has made stays; from now on nothing is collected but by collect()."""
    gc.collect()
    gc.freeze()
    gc.disable()


def collect(busy: bool) -> None:
    """`busy`: there are calls that would notice if all of it were collected."""
    if busy:
        gc.collect(1)
    elif gc.collect():
        TRIM(0)                                 # what a flood has used goes back to the system


def end() -> None:
    gc.enable()
