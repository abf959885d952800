"""The archive: files that calls leave behind, written by a thread of its own.

It knows nothing of what it writes.  The rule: append() never blocks and never grows without bound; when the disk is too
slow or full, what cannot be kept is dropped and counted, and the file it belongs to ends there.  All files of a call
are dated by the call's beginning.  What is removed for its age are files of calls in folders of days, and nothing else.
"""
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import orjson

from .. import ConfigError, directories
from .. import config as settings
from ..metrics import Metrics

log = logging.getLogger("opusagent")

HUGE = 1 << 40                  # bytes of a file whose length is not known yet
MOST_WAITING = 64 << 20         # bytes that wait for the disk, of all files together
GATHER_SECONDS = 0.1            # of what comes is written at once: a worker that is killed loses no more, and a thread
                                # that were woken for every line would take the interpreter from the loop each time
LOOK_SECONDS = 10               # between two looks at the space that is left
REMOVE_SECONDS = 3600           # between two looks for what is too old
TOLD_EVERY_SECONDS = 1.0        # between two lines of the log about files that the disk refuses
DAY = re.compile(r"\d{4}-\d\d-\d\d")
KEPT = re.compile(r"\d{6}-.*\.(jsonl|json|wav)")      # our files in a day's folder
LONGEST_NAME, LONGEST_KIND = 110, 10    # characters of a file's name, before its last dot and behind it
ORDERLY = str.maketrans({c: c for c in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."})


def kept(config: "settings.Archive", metrics: Metrics) -> "Archive | None":
    """The archive that the settings ask for, if they do.  ConfigError."""
    if not config.directory:
        return None
    archive = Archive(config.directory, metrics, config.days, config.free_megabytes << 20)
    archive.transcripts, archive.recordings = config.transcripts, config.recordings
    return archive


class Archive:
    """One worker's.  `open` makes the thread, `close` waits until all is written."""

    def __init__(self, directory: str, metrics: Metrics, days: int = 0, free: int = 0):
        """Raises ConfigError where nothing can be written to `directory`.

        What is older than `days` is removed; 0 keeps it.  Nothing is kept while the disk has fewer than `free` bytes.
        """
        self.directory = Path(directory)
        self.metrics = metrics
        self.days = days
        self.free = free
        self.transcripts = False                        # the record of each call that ends is kept
        self.recordings = False                         # the sound of each call is kept
        self.tight = False                              # the disk has too little space left; the thread sets it
        self._written = 0                               # bytes, as the thread has; it alone writes this
        self._appended = 0
        self._files: deque[File] = deque()              # of which something waits
        self._come = threading.Event()                  # there are some
        self._ends = threading.Event()                  # no more will come
        self._told = -TOLD_EVERY_SECONDS                # the thread's: when a refusal was last told
        metrics.count("archive_failures", 0)            # from now on no thread makes the list of counters longer
        try:
            directories.writable(self.directory)
        except OSError as error:
            raise ConfigError(f"Calls cannot be kept in {directory}: {error.strerror}.") from None
        self._thread = threading.Thread(target=self._work, name="archive", daemon=True)
        self._thread.start()

    def file(self, name: str, began_at: str, head: Callable[[int], bytes] | None = None) -> "File":
        """A new file of a call that began then (UTC, as in 2026-03-03T14:15:16Z), in the folder of that day; what is no
        letter, digit, - _ or . of its name becomes _.  Where there is one of that name, it is called -2, and so on.

        `head` makes what the file begins with, always of the same length, from the bytes behind it; at first of HUGE.
        """
        day, _, second = began_at.rstrip("Z").partition("T")
        return File(self, self.directory / day / f"{second.replace(':', '')}-{orderly(name)}", head)

    def ended(self, record: dict) -> None:
        """A call is over: what GET /calls/<id> says of it."""
        if self.transcripts:
            file = self.file(record["id"] + ".json", record["began_at"])
            file.append(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_INDENT_2))
            file.close()

    def close(self) -> None:
        self._ends.set()
        self._come.set()
        self._thread.join()

    def take(self, file: "File", data: bytes) -> bool:
        """Loop: have it written.  False where too much waits already."""
        if self.tight or self._appended - self._written > MOST_WAITING:
            self.metrics.count("archive_dropped")
            return False
        self._appended += len(data)
        self.ask(file, data)
        return True

    def ask(self, file: "File", data: bytes | None) -> None:
        """Loop: something for the thread, which sleeps while there is nothing; None ends the file."""
        file.waiting.append(data)
        if len(file.waiting) <= 1:
            self._files.append(file)
            if len(self._files) <= 1:
                self._come.set()

    def _work(self) -> None:
        """Thread: write what comes, in order, and between that look after the directory."""
        look = remove = time.monotonic()
        while not self._ends.is_set():
            now = time.monotonic()
            if now >= look:
                look = now + LOOK_SECONDS
                self._weigh()
            if self.days and now >= remove:
                remove = now + REMOVE_SECONDS
                remove_old(self.directory, self.days, time.time())
            if self._come.wait(max(0.0, look - time.monotonic())):
                self._ends.wait(GATHER_SECONDS)
                self._come.clear()
                self._write_all()
        self._write_all()

    def _write_all(self) -> None:
        """Thread: each file's at once, and the kernel has it."""
        while self._files:
            file, pieces = self._files.popleft(), []
            while file.waiting:
                pieces.append(file.waiting.popleft())
            ends = None in pieces
            data = b"".join(pieces[:-1] if ends else pieces)
            file.guarded(file.write, data)
            if ends:
                file.guarded(file.end)
            self._written += len(data)

    def refused(self, file: "File", error: OSError) -> None:
        """Thread: the disk takes no more of a file."""
        self.metrics.count("archive_failures")
        now = time.monotonic()
        if now - self._told >= TOLD_EVERY_SECONDS:
            self._told = now
            log.error("%s cannot be written: %s; the call goes on without", file.path, error.strerror)

    def _weigh(self) -> None:
        """Thread: is there space?"""
        try:
            disk = os.statvfs(self.directory)
        except OSError:
            return                                      # the next file will say it
        tight = disk.f_bavail * disk.f_frsize < self.free
        if tight != self.tight:
            log.warning("%s has %s space than archive.free_megabytes: %s", self.directory, "less" if tight else "more",
                        "calls go on, and are not kept" if tight else "calls are kept again")
        self.tight = tight


class File:
    """One file.  append() and close() are the loop's, write() and end() are the thread's, which knows its `path` once
    there is something in it."""

    __slots__ = ("path", "failed", "waiting", "_archive", "_stream", "_cut", "_head")

    def __init__(self, archive: Archive, path: Path, head: Callable[[int], bytes] | None = None):
        self.path = path
        self.failed = False             # the disk refused
        self.waiting: deque[bytes | None] = deque()     # to be written; None ends it
        self._archive = archive
        self._stream = None             # the thread's
        self._head = head
        self._cut = False               # the loop's: something could not be kept, and so nothing after it

    def append(self, data: bytes) -> None:
        if not self._cut and not self.failed:
            self._cut = not self._archive.take(self, data)

    def close(self) -> None:
        self._archive.ask(self, None)

    def guarded(self, what: Callable, *args) -> None:
        """Do something to the file; one that the disk refuses is not written to any more."""
        try:
            what(*args)
        except OSError as error:
            if not self.failed:
                self._archive.refused(self, error)
            self.failed = True

    def write(self, data: bytes) -> None:
        """Append `data`: the kernel has it then.  OSError."""
        if not data or self.failed:
            return
        if self._stream is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._new()
            if self._head is not None:
                self._stream.write(self._head(HUGE))
        self._stream.write(data)
        self._stream.flush()

    def _new(self):
        """A file that there was not.  OSError."""
        first, number = self.path, 1
        while True:
            try:
                return open(self.path, "xb")
            except FileExistsError:                 # of the same call, which another worker had, or at another rate
                number += 1
                self.path = first.with_name(f"{first.stem}-{number}{first.suffix}")

    def end(self) -> None:
        """Nothing more comes; what its beginning says of its length is true now.  OSError."""
        if self._stream is None:
            return
        self._stream.close()
        if self._head is not None:
            with open(self.path, "r+b") as stream:
                stream.write(self._head(max(0, self.path.stat().st_size - len(self._head(HUGE)))))


def orderly(name: str) -> str:
    """A file's name made of what a peer may have chosen; a long one keeps its end, which says what is in it."""
    stem, dot, kind = "".join(c if ord(c) in ORDERLY else "_" for c in name).lstrip(".").rpartition(".")
    return f"{stem[:LONGEST_NAME]}{dot}{kind[:LONGEST_KIND]}" or "_"


def remove_old(directory: Path, days: int, now: float) -> None:
    """Remove what calls have left in folders of days more than `days` before `now` (s since 1970); follows no link."""
    oldest = time.strftime("%Y-%m-%d", time.gmtime(now - days * 86400))
    with suppress(OSError):
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in os.listdir(root):
                if DAY.fullmatch(name) and name < oldest:
                    _remove_day(root, name)
        finally:
            os.close(root)


def _remove_day(root: int, name: str) -> None:
    """A folder's files of calls, and the folder where that was all of it."""
    with suppress(OSError):
        day = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
        try:
            with os.scandir(day) as found:
                old = [entry.name for entry in found if entry.is_file(follow_symlinks=False)
                       and KEPT.fullmatch(entry.name)]
            for each in old:
                with suppress(FileNotFoundError):               # another worker was first
                    os.unlink(each, dir_fd=day)
        finally:
            os.close(day)
        os.rmdir(name, dir_fd=root)                     # refuses while there is anything else in it
