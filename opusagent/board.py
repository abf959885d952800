"""The board: what the workers of a server know of one another, in shared memory.

Each worker has a seat: a few numbers that change with every call, its histograms, its counters and gauges as it
published them last, and the records of its latest calls.  /metrics, /health and /calls are answered by any worker
from all seats, those of predecessors among them: what they have counted goes on to be counted, and they may finish
calls still.  The rule: a seat has one writer, and nobody ever waits for anybody.
"""
import mmap
import os
import time
from collections.abc import Container, Iterable, Iterator
from itertools import chain, zip_longest

import orjson

from ._fastpath import Histogram
from .metrics import WAITS, Metrics
from .tally import Tally
from .usage import LOST

# The numbers of a seat, int64 each, by their place.
NUMBERS = ("pid", "state", "calls", "connections", "full", "started", "beat", "published", "records", "stalls")
PLACE = {name: i for i, name in enumerate(NUMBERS)}
EMPTY, STARTING, SERVING, DRAINING = range(4)       # states

HEADER = 512                    # bytes
PUBLISHED = 65536               # bytes of counters and gauges, twice: one is whole while the other is written
HISTOGRAMS = ("frames", "lags", "voice_to_voice", *WAITS)
HISTOGRAM = (Histogram().nbytes + 63) & ~63
RECORDS = 256                   # of calls, the latest
RECORD = 65536                  # bytes of one; memory is only taken for what is written
RECORD_HEAD = 8
SEAT = HEADER + 2 * PUBLISHED + len(HISTOGRAMS) * HISTOGRAM + RECORDS * RECORD
LAYOUT = [list(NUMBERS), SEAT, HEADER, PUBLISHED, len(HISTOGRAMS), HISTOGRAM, RECORDS, RECORD]  # who has it can read us
ROOM = 10_000                   # calls of a worker, at least, that the tally can count; it takes what is used of it
PAGE = 4096
STRIDE = (SEAT + PAGE - 1) // PAGE * PAGE       # from one seat to the next
OF_ALL = ("active_calls", "active_connections")     # gauges that count what a predecessor finishes, too
GONE_NS = 10_000_000_000        # without a beat, after which a predecessor's worker is no more
LIVE = b'"live":true'           # in a record of a call that goes on,
LIVE_WITHIN = 4096              # ... in its first bytes: what comes before it is short


def slots(config) -> int:
    """Of a worker's arena: two for each call, since both sides of a conversation of others are heard, and the voice's.
    One that no call has taken costs no memory."""
    return slots_of(config.max_calls)


def slots_of(calls: int) -> int:
    return 2 * calls + 1


def most_calls(config) -> int:
    """Of a worker of a server that was started with this: a reload can raise max_calls so far."""
    return max(config.max_calls, ROOM)


class Seat:
    """One worker's part of the board; its numbers are attributes."""

    def __init__(self, memory: memoryview):
        self.memory = memory
        self.numbers = memory[:HEADER].cast("q")
        at = HEADER + 2 * PUBLISHED
        self.histograms = {}
        for name in HISTOGRAMS:
            self.histograms[name] = Histogram(buffer=memory[at:at + Histogram().nbytes])
            at += HISTOGRAM
        self.first_record = at

    def __getattr__(self, name: str) -> int:
        try:
            return self.numbers[PLACE[name]]
        except KeyError:
            raise AttributeError(name) from None

    def put(self, name: str, value: int) -> None:
        self.numbers[PLACE[name]] = value

    def stalled(self) -> None:
        """Of its loop's, counted by another thread: what the loop publishes comes too late if it never comes round."""
        self.put("stalls", self.stalls + 1)

    @property
    def alive(self) -> bool:
        return self.state != EMPTY

    @property
    def used(self) -> bool:
        """It has something to tell, of a worker that may be gone."""
        return bool(self.published or self.records)

    # -- counters and gauges -------------------------------------------------------------------------------------------

    def metrics(self) -> Metrics:
        """The worker's own: its histograms lie here, and its counters go on where they stood."""
        metrics = Metrics(self.histograms)
        metrics.counters.update(self.read()[0])
        return metrics

    def publish(self, metrics: Metrics) -> None:
        """Counters and gauges, for the others to read.  What is too long for the board stays as it was."""
        text = orjson.dumps([[[*key, value] for key, value in values.items()]
                             for values in (metrics.counters, metrics.gauges)])
        if len(text) > PUBLISHED - 8:
            return
        number = self.published + 1
        at = HEADER + (number & 1) * PUBLISHED
        self.memory[at:at + 8] = len(text).to_bytes(8, "little")
        self.memory[at + 8:at + 8 + len(text)] = text
        self.put("published", number)

    def read(self) -> tuple[dict, dict]:
        """(counters, gauges) as they were published last."""
        number = self.published
        if not number:
            return {}, {}
        at = HEADER + (number & 1) * PUBLISHED
        size = int.from_bytes(self.memory[at:at + 8], "little")
        try:
            counters, gauges = orjson.loads(self.memory[at + 8:at + 8 + size])
        except ValueError:
            return self.read() if self.published != number else ({}, {})     # written over twice while we read
        return tuple({(name, tuple(map(tuple, labels))): value for name, labels, value in rows}
                     for rows in (counters, gauges))

    # -- records of calls ----------------------------------------------------------------------------------------------

    def new_record(self) -> int:
        """The number of a record for a call that begins; the oldest is written over."""
        number = self.records
        self.put("records", number + 1)
        return number

    def write_record(self, number: int, record: dict) -> None:
        """The record of a call as it is now; of very many turns only the last fit, and `turns_left_out` says so."""
        self._write(number, self._fitting(record))

    @staticmethod
    def _fitting(record: dict) -> bytes:
        text = orjson.dumps(record)
        turns, out = record["turns"], 0
        while len(text) > RECORD - RECORD_HEAD and out < len(turns):
            out += max(1, (len(turns) - out) // 8)
            text = orjson.dumps({**record, "turns": turns[out:], "turns_left_out": out})
        return text

    def _write(self, number: int, text: bytes) -> None:
        if len(text) > RECORD - RECORD_HEAD:
            return
        at = self.first_record + number % RECORDS * RECORD
        self.memory[at:at + RECORD_HEAD] = bytes(RECORD_HEAD)
        self.memory[at + RECORD_HEAD:at + RECORD_HEAD + len(text)] = text
        self.memory[at:at + RECORD_HEAD] = len(text).to_bytes(RECORD_HEAD, "little")

    def amend_record(self, record: dict) -> None:
        """The latest record of a call is this from now on, if there is one still."""
        wanted = b'{"id":' + orjson.dumps(record["id"]) + b","
        for number in self._numbers():
            if (before := self._at(number)) is not None and before[:len(wanted)] == wanted:
                return self.write_record(number, record)

    def erase_record(self, number: int) -> None:
        """The call is another's to tell of."""
        at = self.first_record + number % RECORDS * RECORD
        self.memory[at:at + RECORD_HEAD] = bytes(RECORD_HEAD)

    def bury(self, but: Container[int] = ()) -> None:
        """The worker that had this seat is dead: calls that it had are lost, unless another record says otherwise, such
        as those `but` with these numbers."""
        for number in self._numbers():
            record = self._at(number)
            if number not in but and record is not None and LIVE in bytes(record[:LIVE_WITHIN]):
                told = orjson.loads(record)
                self.write_record(number, told | {"live": False, "outcome": told.get("outcome") or LOST})

    def inherit(self, other: "Seat") -> None:
        """The records of another seat, which will be another worker's."""
        for record in reversed(list(other.latest())):
            self._write(self.new_record(), bytes(record))

    def _numbers(self) -> range:
        """Of the records that can be there, the newest first."""
        return range(self.records - 1, max(-1, self.records - 1 - RECORDS), -1)

    def _at(self, number: int) -> memoryview | None:
        at = self.first_record + number % RECORDS * RECORD
        size = int.from_bytes(self.memory[at:at + RECORD_HEAD], "little")
        return self.memory[at + RECORD_HEAD:at + RECORD_HEAD + size] if size else None

    def record(self, call_id: str) -> bytes | None:
        """The latest record of a call, as JSON."""
        wanted = b'{"id":' + orjson.dumps(call_id) + b","
        return next((bytes(record) for record in self.latest() if record[:len(wanted)] == wanted), None)

    def latest(self) -> Iterator[memoryview]:
        """The records there are, as JSON, the newest first."""
        return filter(None, map(self._at, self._numbers()))


class Board:
    """All seats.  Seat 0 is nobody's: it keeps the counts, and the last calls, of workers that have left for good."""

    def __init__(self, seats: int, slots: int = 1, before: Iterable[int] = ()):
        """`slots`: calls that a worker can have; `before`: the boards of predecessors, descriptors of this LAYOUT."""
        self.fd = os.memfd_create("opusagent-board", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, (seats + 1) * STRIDE)
        self.tally = Tally(seats + 1, max(slots, slots_of(ROOM)))   # of calls by caller and tenant
        self.seats = seats_of(self.fd)
        self.past = self.seats[0]
        self.before = {fd: seats_of(fd) for fd in before}

    def living(self) -> Iterator[Seat]:
        return (seat for seat in self.seats[1:] if seat.alive)

    def finishing(self, of: Iterable[int] | None = None) -> Iterator[Seat]:
        """Those of predecessors' workers, who have calls still and tell nobody but this board."""
        now = time.monotonic_ns()
        return (seat for fd in (self.before if of is None else of) for seat in self.before[fd][1:]
                if seat.alive and now - seat.beat < GONE_NS)

    def passed_on(self) -> list[int]:
        """What a successor's workers have to see: this board, and those before it that are written still.  Of the
        others, what they counted is ours from now on."""
        written = [fd for fd in self.before if any(self.finishing([fd]))]
        for fd in self.before.keys() - set(written):
            for seat in self.before[fd]:
                if seat.used:
                    self._take(seat)
        return [self.fd, *written]

    def free_seat(self) -> int | None:
        return next((i for i, seat in enumerate(self.seats) if i and not seat.alive), None)

    def least(self, full: int, connections: int, waiting: int = 0) -> bool:
        """True if no other worker has less to look after, or would not have, had each taken its share of those who are
        `waiting`."""
        mine, serving = (full, connections), [seat for seat in self.living() if seat.state == SERVING]
        if all(mine <= (seat.full, seat.connections) for seat in serving):
            return True
        taking = [seat.connections for seat in serving if not seat.full]
        return not full and bool(taking) and connections < (sum(taking) + waiting) // len(taking)

    def total(self) -> Metrics:
        """What all workers have counted, together with those that have left."""
        total = Metrics()
        for seat in chain([self.past], self.living()):
            total.add(*seat.read(), seat.histograms)
            total.count("loop_stalls", seat.stalls)
        for seat in chain.from_iterable(self.before.values()):
            if seat.used:
                total.add(seat.read()[0], {}, seat.histograms)
                total.count("loop_stalls", seat.stalls)
        for seat in self.finishing():
            total.add({}, {key: value for key, value in seat.read()[1].items() if key[0] in OF_ALL}, {})
        return total

    def count(self, name: str, by: int = 1, **labels) -> None:
        """What only the supervisor can count."""
        past = self.past.metrics()
        past.count(name, by, **labels)
        past.gauges.clear()
        self.past.publish(past)

    def leave(self, number: int) -> None:
        """The worker of a seat has left for good: what it counted stays, the seat is free."""
        self.tally.leave(number)
        self._take(self.seats[number])

    def _take(self, seat: Seat) -> None:
        """Nobody writes there any more: what it tells is told by the past, and it is empty."""
        kept = self.past.metrics()
        kept.add(seat.read()[0], {}, seat.histograms)
        kept.gauges.clear()
        self.past.publish(kept)
        seat.bury()
        self.past.inherit(seat)
        self.past.put("stalls", self.past.stalls + seat.stalls)
        for histogram in seat.histograms.values():
            histogram.reset()
        seat.numbers[:] = memoryview(bytes(HEADER)).cast("q")

    def latest(self, most: int) -> list[dict]:
        """The records of so many calls, each once: those that are live, then those that began last."""
        turns = list(filter(None, chain.from_iterable(zip_longest(*(seat.latest() for seat in self._seats())))))
        found: dict[str, dict] = {}
        for live in (True, False):
            for text in turns:
                if len(found) < most and (LIVE in bytes(text[:LIVE_WITHIN])) is live:
                    record = orjson.loads(text)
                    found.setdefault(record["id"], record)
        return sorted(found.values(), key=lambda record: (record["live"], record.get("began_at", "")), reverse=True)

    def _seats(self) -> list[Seat]:
        """Where there are records."""
        return [*self.seats[1:], *self.finishing(), self.past, *(seats[0] for seats in self.before.values())]

    def sum(self, name: str) -> int:
        return sum(getattr(seat, name) for seat in chain(self.living(), self.finishing()))

    def record(self, call_id: str) -> bytes | None:
        """A call's record, from whichever worker has it: the live one, else that of a conversation that came to its
        end, or the longest, for a call that has gone from one worker to another took its receipts along."""
        found = [record for seat in self._seats() if (record := seat.record(call_id)) is not None]
        return max(found, default=None,
                   key=lambda record: (LIVE in record, b'"done":true' in record, len(record)))


def seats_of(fd: int) -> list[Seat]:
    """Those of a board."""
    memory = memoryview(mmap.mmap(fd, os.fstat(fd).st_size))
    return [Seat(memory[at:at + SEAT]) for at in range(0, len(memory), STRIDE)]
