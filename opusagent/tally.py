"""The tally: how many calls each caller and each tenant has, now and today, over all workers.

It lies in memory that the workers share, and knows its payers by a keyed digest alone.  Each worker writes its own part
and reads all of them, so nobody waits.  The rules: a call is written down before it is counted, so that two workers
that are asked at once may both refuse, and never both take the one that is left; and what is remembered of a day is
bounded.
"""
import mmap
import secrets
from hashlib import blake2b

import numpy as np

KEY = secrets.token_bytes(16)   # all workers': they are forked after this
NAMES = 2                       # payers of a call: its caller, its tenant
BUCKETS, WAYS = 1 << 12, 8      # of the days' counts of a worker: so many buckets of so many payers
DAY = np.dtype([("payer", "<u8"), ("day", "<u4"), ("calls", "<u4")])


def digest(payer: str) -> int:
    """A payer as it is kept; never 0."""
    return int.from_bytes(blake2b(payer.encode("utf-8", "replace"), key=KEY, digest_size=8).digest(), "little") or 1


class Tally:
    """`seats` parts, each with room for `slots` calls, and for as many of a worker that died there."""

    def __init__(self, seats: int, slots: int):
        self.rows = 2 * slots
        sizes = (seats * 8, seats * self.rows * NAMES * 8, seats * BUCKETS * WAYS * DAY.itemsize)
        memory = memoryview(mmap.mmap(-1, sum(sizes)))          # pages that nobody writes to cost nothing
        self.used = np.frombuffer(memory[:sizes[0]], np.int64)  # rows of each part that were ever written
        self.live = np.frombuffer(memory[sizes[0]:sizes[0] + sizes[1]], np.uint64).reshape(seats, self.rows, NAMES)
        self.days = np.frombuffer(memory[-sizes[2]:], DAY).reshape(seats, BUCKETS, WAYS)

    def at_once(self, payer: int) -> int:
        """Calls that it has now."""
        return sum(int(np.count_nonzero(self.live[seat, :self.used[seat]] == payer))
                   for seat in np.flatnonzero(self.used))

    def on(self, day: int, payer: int) -> int:
        """Calls that it has begun on a day."""
        found = self.days[:, payer % BUCKETS]
        return int(found["calls"][(found["payer"] == payer) & (found["day"] == day)].sum())

    def leave(self, seat: int) -> None:
        """The worker of a seat has left for good: it has no calls any more; those of the day were made."""
        self.live[seat, :self.used[seat]] = 0
        self.used[seat] = 0


class Entries:
    """A worker's part of a tally."""

    def __init__(self, tally: Tally, seat: int):
        self.tally = tally
        self.seat = seat
        self._next = int(tally.used[seat])
        self._before = list(range(self._next))      # rows of a worker that died here; its calls are told of anew
        self._free: list[int] = []

    def begins(self, payers: tuple[str, ...], day: int = 0) -> int:
        """A call of these; its number.  `day`: it is one of that day's, too."""
        row = self._free.pop() if self._free else self._new()
        mine = self.tally.live[self.seat, row]
        mine[:] = 0
        for i, payer in enumerate(payers[:NAMES]):
            mine[i] = digest(payer)
            if day:
                self._made(digest(payer), day, 1)
        return row

    def ends(self, row: int) -> None:
        self.tally.live[self.seat, row] = 0
        self._free.append(row)

    def withdraw(self, row: int, payers: tuple[str, ...], day: int) -> None:
        """It was not to be."""
        self.ends(row)
        for payer in payers[:NAMES]:
            self._made(digest(payer), day, -1)

    def settled(self) -> None:
        """All calls of a worker that died here are either ours by now or nobody's."""
        before, self._before = self._before, []
        for row in before:
            self.ends(row)

    def _new(self) -> int:
        row, self._next = self._next, self._next + 1
        if row >= self.tally.rows:
            self._next = row
            self.settled()
            return self._free.pop()
        self.tally.used[self.seat] = row + 1
        return row

    def _made(self, payer: int, day: int, by: int) -> None:
        """Counts a call of a day.  Where there is no room, whoever has the fewest calls is forgotten."""
        bucket = self.tally.days[self.seat, payer % BUCKETS]
        counts = bucket.tolist()
        at = next((i for i, (who, when, _) in enumerate(counts) if who == payer and when == day), None)
        if at is None:
            at = min(range(WAYS), key=lambda i: counts[i][2] if counts[i][1] == day else 0)
            counts[at] = payer, day, 0
        bucket[at] = payer, day, max(0, counts[at][2] + by)
