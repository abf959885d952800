"""The shelf: conversations that have lost their connection, and which worker has those that have one, in memory that
all workers of a node share.

It knows no call: a key is 16 bytes, a state is bytes, a worker is its process id, and times are monotonic ns.  The
rules: what lies here goes to whoever takes it first, once, or to nobody when its time is over; and who wants a call
that another worker has waits until that one has put it down.
"""
import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

HEAD = struct.Struct("<16sqq")      # key, ns until when it may be taken (0: there is nothing), bytes of the state
PLACE = 1 << 16                     # bytes of an entry with its head; untouched pages cost nothing
ENTRIES = 1024
LOOKS = 16                          # places in which an entry, or a mark, may be
MARK = struct.Struct("<16sqq")      # key, the worker whose the call is, the one that has to put it down (NOBODY: none)
MARKS = 1 << 16
BELL = struct.Struct("<q")          # how often a worker was told that a call of its own is wanted
BELLS = 256                         # workers may share one; who looks for nothing finds nothing
LAYOUT = [HEAD.size, PLACE, ENTRIES, LOOKS, MARK.size, MARKS, BELLS]     # who has it can read us
NOBODY, MOVES = 0, -1               # in place of a worker; MOVES: it is on its way to another one


class Shelf:
    """Made before the workers are forked.  Two workers never look into it at the same time."""

    __slots__ = ("fd", "_memory", "_entries", "_marks", "_bells")

    def __init__(self, entries: int = ENTRIES):
        self._entries = entries
        self._marks = (entries + LOOKS) * PLACE
        self._bells = self._marks + (MARKS + LOOKS) * MARK.size
        self.fd = os.memfd_create("shelf", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self._bells + BELLS * BELL.size)
        self._memory = mmap.mmap(self.fd, 0)

    def share(self, fd: int) -> None:
        """It is the shelf of another server from now on, of this LAYOUT."""
        os.close(self.fd)
        self.fd, self._memory = fd, mmap.mmap(fd, 0)

    def __del__(self):
        os.close(self.fd)

    # -- what has lost its connection ----------------------------------------------------------------------------------

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

    # -- which worker has a call that is live --------------------------------------------------------------------------

    def mark(self, key: bytes, worker: int) -> bool:
        """The call is the worker's from now on, and no other's; False where there is no room to say so."""
        with self._alone():
            at = self._marked(key)
            if at is None:
                at = self._unmarked(key)
            elif (before := self._mark_at(at)[0]) != worker:
                self._ring(before)
            if at is not None:
                MARK.pack_into(self._memory, at, key, worker, NOBODY)
            return at is not None

    def inherit(self, key: bytes, worker: int) -> bool:
        """The same, where the worker goes on for one that is gone; unless another wants the call, or has it already."""
        with self._alone():
            at = self._marked(key)
            owner, holder = self._mark_at(at) if at is not None else (NOBODY, NOBODY)
            if at is not None and owner != worker and lives(owner):
                if holder != NOBODY:
                    MARK.pack_into(self._memory, at, key, owner, worker)
                self._ring(worker)
                return True
        return self.mark(key, worker)

    def claim(self, key: bytes, worker: int) -> int:
        """The worker wants the call.  Who has to put it down before, and is told so; NOBODY where none has it."""
        with self._alone():
            at = self._marked(key)
            if at is None:
                return NOBODY
            owner, holder = self._mark_at(at)
            if owner != worker:
                holder = holder or owner
                MARK.pack_into(self._memory, at, key, worker, holder)
                self._ring(holder)
            return holder

    def leave(self, key: bytes, worker: int, moves: bool = False) -> None:
        """The worker does nothing more on the call, and does not want it; `moves`: another goes on for it."""
        with self._alone():
            at = self._marked(key)
            if at is None:
                return
            owner, holder = self._mark_at(at)
            instead = MOVES if moves else NOBODY
            owner, holder = (instead if owner == worker else owner), (instead if holder == worker else holder)
            MARK.pack_into(self._memory, at, key if owner != NOBODY else b"", owner, holder)

    def whose(self, key: bytes) -> tuple[int, int]:
        """(the worker whose the call is, the one that has to put it down)."""
        with self._alone():
            at = self._marked(key)
            return self._mark_at(at) if at is not None else (NOBODY, NOBODY)

    def rung(self, worker: int) -> int:
        """Grows when a call of the worker's may be wanted."""
        return BELL.unpack_from(self._memory, self._bells + worker % BELLS * BELL.size)[0]

    def _ring(self, worker: int) -> None:
        BELL.pack_into(self._memory, self._bells + worker % BELLS * BELL.size, self.rung(worker) + 1)

    def _mark_at(self, at: int) -> tuple[int, int]:
        return MARK.unpack_from(self._memory, at)[1:]

    def _marks_of(self, key: bytes) -> range:
        begin = self._marks + int.from_bytes(key[8:], "little") % MARKS * MARK.size
        return range(begin, begin + LOOKS * MARK.size, MARK.size)

    def _marked(self, key: bytes) -> int | None:
        """Where the mark of `key` is."""
        return next((at for at in self._marks_of(key) if MARK.unpack_from(self._memory, at)[0] == key), None)

    def _unmarked(self, key: bytes) -> int | None:
        """Where there is room for one: one whose workers are dead tells nobody anything."""
        for free in (lambda owner, holder: owner == NOBODY, lambda owner, holder: not lives(owner or holder)):
            for at in self._marks_of(key):
                if free(*self._mark_at(at)):
                    return at
        return None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        fcntl.lockf(self.fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self.fd, fcntl.LOCK_UN)


def lives(worker: int) -> bool:
    """False for one that is NOBODY, or MOVES, too."""
    if worker <= NOBODY:
        return False
    try:
        os.kill(worker, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
