"""The archive: files that calls leave behind, written by a thread of its own.

It knows nothing of what it writes.  The rule: append() never blocks and never grows without bound; when the disk is too
slow or full, what cannot be kept is dropped and counted, and the file it belongs to ends there.
"""
import logging
import queue
import threading
import time
from pathlib import Path

from . import ConfigError
from .metrics import Metrics

log = logging.getLogger("opusagent")

MOST_WAITING = 64 << 20         # bytes that wait for the disk, of all files together
ORDERLY = str.maketrans({c: c for c in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."})


class Archive:
    """One worker's.  `open` makes the thread, `close` waits until all is written."""

    def __init__(self, directory: str, metrics: Metrics):
        """Raises ConfigError where nothing can be written to `directory`."""
        self.directory = Path(directory)
        self.metrics = metrics
        self._written = 0                               # bytes, as the thread has; it alone writes this
        self._appended = 0
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            probe = self.directory / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(f"Calls cannot be kept in {directory}: {error.strerror}.") from None
        self._thread = threading.Thread(target=self._work, name="archive", daemon=True)
        self._thread.start()

    def file(self, name: str) -> "File":
        """A new file in the folder of the day (UTC); what is no letter, digit, - _ or . of its name becomes _."""
        day, second = time.strftime("%Y-%m-%d %H%M%S", time.gmtime()).split()
        return File(self, self.directory / day / f"{second}-{orderly(name)}")

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _put(self, file: "File", data: bytes) -> bool:
        """Loop: have it written.  False where too much waits already."""
        if self._appended - self._written > MOST_WAITING:
            self.metrics.count("archive_dropped")
            return False
        self._appended += len(data)
        self._jobs.put((file, data))
        return True

    def _work(self) -> None:
        """Thread: write what comes, in order."""
        while (job := self._jobs.get()) is not None:
            file, data = job
            try:
                file.write(data)
            except OSError as error:
                if not file.failed:
                    log.error("%s cannot be written: %s; the call goes on without", file.path, error.strerror)
                file.failed = True
            self._written += len(data)


class File:
    """One file.  append() and close() are the loop's, write() is the thread's."""

    __slots__ = ("path", "failed", "_archive", "_stream", "_cut")

    def __init__(self, archive: Archive, path: Path):
        self.path = path
        self.failed = False             # the disk refused
        self._archive = archive
        self._stream = None             # the thread's
        self._cut = False               # the loop's: something could not be kept, and so nothing after it

    def append(self, data: bytes) -> None:
        if not self._cut and not self.failed:
            self._cut = not self._archive._put(self, data)

    def close(self) -> None:
        self._archive._jobs.put((self, b""))

    def write(self, data: bytes) -> None:
        """Append `data`; nothing closes the file.  OSError."""
        if not data:
            if self._stream is not None:
                self._stream.close()
            return
        if self.failed:
            return
        if self._stream is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = open(self.path, "ab")
        self._stream.write(data)


def orderly(name: str) -> str:
    """A file's name made of what a peer may have chosen."""
    return "".join(c if ord(c) in ORDERLY else "_" for c in name)[:120].lstrip(".") or "_"
