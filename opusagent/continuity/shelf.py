"""The shelf: conversations that have lost their connection, in memory that all workers of a node share.

It knows no call: a key is 16 bytes, a state is bytes, and times are monotonic ns.  The rule: what lies here goes to
whoever takes it first, once, or to nobody when its time is over.
"""
import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

HEAD = struct.Struct("<16sqq")      # key, ns until when it may be taken (0: there is nothing), bytes of the state
PLACE = 1 << 16                     # bytes of an entry with its head; untouched pages cost nothing
LOOKS = 16                          # places in which an entry may be


class Shelf:
    """Made before the workers are forked.  Two workers never look into it at the same time."""

    __slots__ = ("_fd", "_memory", "_entries")

    def __init__(self, entries: int = 1024):
        self._entries = entries
        self._fd = os.memfd_create("shelf", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, (entries + LOOKS) * PLACE)
        self._memory = mmap.mmap(self._fd, 0)

    def __del__(self):
        os.close(self._fd)

    def put(self, key: bytes, state: bytes, until: int, now: int) -> bool:
        """False where there is no room for it."""
        with self._alone():
            at = self._find(key, now)
            at = self._free(key, now) if at is None else at
            if at is None or len(state) > PLACE - HEAD.size:
                return False
            HEAD.pack_into(self._memory, at, key, until, len(state))
            self._memory[at + HEAD.size:at + HEAD.size + len(state)] = state
            return True

    def take(self, key: bytes, now: int) -> bytes | None:
        """The state, which is the taker's from now on."""
        if self._find(key, now) is None:
            return None                     # as for most calls; and who puts it there just now comes after us
        with self._alone():
            at = self._find(key, now)
            if at is None:
                return None
            size = HEAD.unpack_from(self._memory, at)[2]
            HEAD.pack_into(self._memory, at, b"", 0, 0)
            return self._memory[at + HEAD.size:at + HEAD.size + size]

    def has(self, key: bytes, now: int) -> bool:
        with self._alone():
            return self._find(key, now) is not None

    def _places(self, key: bytes) -> range:
        begin = int.from_bytes(key[:8], "little") % self._entries
        return range(begin * PLACE, (begin + LOOKS) * PLACE, PLACE)

    def _find(self, key: bytes, now: int) -> int | None:
        """Where the entry of `key` begins."""
        for at in self._places(key):
            its_key, until, _ = HEAD.unpack_from(self._memory, at)
            if until >= now and its_key == key:
                return at
        return None

    def _free(self, key: bytes, now: int) -> int | None:
        """Where one for `key` could begin."""
        return next((at for at in self._places(key) if HEAD.unpack_from(self._memory, at)[1] < now), None)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)
