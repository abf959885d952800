"""Directories that are named in the configuration, and made where they are missing.

The rule: what keeps one from being used is an OSError whose strerror its operator understands.
"""
import errno
from pathlib import Path


def made(directory: Path, mode: int = 0o777) -> None:
    """It is there, from now on, with all above it.  OSError."""
    try:
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, "it is no directory") from None
