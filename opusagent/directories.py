"""Directories that are named in the configuration, and made where they are missing.

The rule: what keeps one from being used is an OSError whose strerror its operator understands.
"""
import errno
from contextlib import suppress
from pathlib import Path

PROBE = ".writable"


def made(directory: Path, mode: int = 0o777) -> None:
    """It is there, from now on, with all above it.  OSError."""
    try:
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, "it is no directory") from None


def writable(directory: Path, mode: int = 0o777) -> None:
    """It is there, and files can be made in it.  OSError."""
    made(directory, mode)
    probe = directory / PROBE
    probe.touch()
    probe.unlink(missing_ok=True)                       # another worker may have done so


def tried(directory: Path) -> None:
    """writable() would do; everything is as it was before.  OSError where it would not."""
    missing = [each for each in (directory, *directory.parents) if not each.exists()]
    try:
        writable(directory)
    finally:
        for each in missing:
            with suppress(OSError):                     # it could not be made
                each.rmdir()
