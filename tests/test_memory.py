"""The arena and the rings: what one process writes, another reads, in order, once, and never too late."""
import multiprocessing
import os
import random
import select
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from opusagent import EngineError
from opusagent._fastpath import RING_BYTES, SEGMENT_SAMPLES, SEGMENTS, Arena, Ring


@pytest.fixture
def ring():
    ring = Ring(os.eventfd(0, os.EFD_NONBLOCK))
    yield ring
    os.close(ring.eventfd)
    os.close(ring.fd)


def other_end(ring):
    return Ring(ring.eventfd, ring.fd)


def read(ring):
    """All records that are there."""
    found = []
    ring.deliver(lambda *record: found.append(record))
    return found


# ---- rings ---------------------------------------------------------------------------------------------------------

def test_a_record_comes_out_as_it_went_in(ring):
    assert ring.push(7, 500, (1 << 64) - 1, (1 << 32) - 1, 1 << 63, 3, b"two of clubs")
    assert read(other_end(ring)) == [(7, 500, (1 << 64) - 1, (1 << 32) - 1, 1 << 63, 3, b"two of clubs")]
    assert read(ring) == []


def test_a_full_ring_says_so_and_loses_nothing(ring):
    count = 0
    while ring.push(1, a=count, data=bytes(100)):
        count += 1
    assert 800 < count < RING_BYTES // 140 + 1
    assert [record[4] for record in read(ring)] == list(range(count))
    assert read(ring) == [] and ring.push(1)


def test_a_reader_may_read_on_while_it_is_told_of_a_record_or_give_up(ring):
    seen = []

    def tell(kind, slot, generation, epoch, a, b, data):
        seen.append(a)
        if a == 2:
            ring.deliver(tell)                  # the rest, in the midst of this one
        if a == 4:
            raise ValueError
        seen.append(-a)

    for a in range(1, 6):
        ring.push(1, a=a)
    with pytest.raises(ValueError):
        ring.deliver(tell)
    ring.deliver(tell)
    assert seen == [1, -1, 2, 3, -3, 4, 5, -5]


@given(st.lists(st.one_of(st.integers(0, 9000), st.none()), max_size=200))
@settings(max_examples=60, deadline=None)
def test_it_is_a_queue_whatever_the_sizes(steps):
    """The twin is a deque; None reads, a number writes a record with so many bytes."""
    ring, twin = Ring(os.eventfd(0, os.EFD_NONBLOCK)), deque()
    for number, step in enumerate(steps):
        if step is None:
            assert read(ring) == list(twin)
            twin.clear()
        elif ring.push(2, 3, 4, 5, number, 6, bytes([number % 256]) * step):
            twin.append((2, 3, 4, 5, number, 6, bytes([number % 256]) * step))
    assert read(ring) == list(twin)
    os.close(ring.fd)
    os.close(ring.eventfd)


def test_the_reader_is_woken_only_when_it_sleeps(ring):
    ring.push(1)
    assert not readable(ring)
    assert ring.sleep() is False            # something is there
    assert len(read(ring)) == 1 and ring.sleep() is True
    ring.push(1)
    ring.push(1)
    assert os.eventfd_read(ring.eventfd) == 1
    assert ring.sleep() is False
    assert len(read(ring)) == 2 and ring.sleep() is True
    ring.wake()
    assert readable(ring)


def readable(ring):
    return bool(select.select([ring.eventfd], [], [], 0)[0])


def test_a_record_is_a_descriptor_not_a_recording(ring):
    with pytest.raises(ValueError):
        ring.push(1, data=bytes(RING_BYTES // 2))


def test_what_is_no_record_is_an_error_not_a_crash(ring):
    ring.push(1, data=b"fine")
    head = os.pread(ring.fd, 8, 192)
    os.pwrite(ring.fd, b"\xff" * 8, 192)
    with pytest.raises(EngineError):
        read(ring)
    os.pwrite(ring.fd, head, 192)
    os.pwrite(ring.fd, (1 << 31).to_bytes(4, "little"), 192 + 20)      # data longer than its record
    with pytest.raises(EngineError):
        read(ring)


def echo(to_fd, to_event, back_fd, back_event, count):
    """The other process: sends every record back."""
    to, back = Ring(to_event, to_fd), Ring(back_event, back_fd)
    os.set_blocking(to_event, True)
    while count:
        for record in read(to):
            while not back.push(*record):
                pass
            count -= 1
        if count and to.sleep():
            os.eventfd_read(to_event)


def test_two_processes_exchange_records_and_none_is_lost_or_turned_over(ring):
    """Thousands of sleeps and wake-ups, of which not one may be missed."""
    count, back = 5000, Ring(os.eventfd(0))
    other = multiprocessing.get_context("fork").Process(
        target=echo, args=(ring.fd, ring.eventfd, back.fd, back.eventfd, count), daemon=True)
    other.start()
    chance = random.Random(1)
    sent = received = 0
    while received < count:
        while sent < count and sent - received < chance.choice((1, 5, 200)) \
                and ring.push(1, a=sent, data=bytes(sent % 300)):
            sent += 1
        for record in (found := read(back)):
            assert (record[4], len(record[6])) == (received, received % 300)
            received += 1
        if not found and back.sleep():
            assert select.select([back.eventfd], [], [], 10)[0], "a wake-up was lost"
            os.eventfd_read(back.eventfd)
    other.join(10)
    assert other.exitcode == 0
    os.close(back.fd)
    os.close(back.eventfd)


# ---- the arena -----------------------------------------------------------------------------------------------------

@pytest.fixture
def slot():
    arena = Arena(3)
    slot = arena.slot(1)
    slot.take(8000, 8000)
    yield slot


def test_a_slot_is_taken_once_and_its_generation_tells_one_call_from_the_next(slot):
    first = slot.generation
    with pytest.raises(ValueError):
        slot.take(8000, 8000)
    slot.free()
    slot.free()
    slot.take(16000, 24000)
    assert slot.generation == first + 2
    assert (slot.rate_in, slot.rate_out, slot.written) == (16000, 24000, 0)


@given(st.lists(st.integers(0, 30000), min_size=1, max_size=25), st.data())
@settings(max_examples=40, deadline=None)
def test_the_last_ten_seconds_can_be_read_and_nothing_else(sizes, data):
    arena = Arena(1)
    slot, said = arena.slot(0), np.zeros(0, np.int16)
    slot.take(8000, 8000)
    for size in sizes:
        pcm = np.random.default_rng(size).integers(-32768, 32767, size, np.int16)
        said = np.concatenate((said, pcm))
        assert slot.write(pcm) == len(said)
    kept = min(slot.capacity, len(said))
    start = data.draw(st.integers(len(said) - kept, len(said)))
    count = data.draw(st.integers(0, len(said) - start))
    assert np.array_equal(slot.read(start, count), said[start:start + count])
    if kept < len(said):
        with pytest.raises(IndexError):
            slot.read(len(said) - kept - 1, 10)
    with pytest.raises(IndexError):
        slot.read(len(said), 1)


def test_it_keeps_ten_seconds_at_either_rate(slot):
    assert slot.capacity >= 10 * 8000
    slot.free()
    slot.take(16000, 16000)
    assert slot.capacity >= 10 * 16000


def test_another_process_reads_the_audio_where_it_lies(slot):
    arena = Arena(2)
    mine = arena.slot(1)
    mine.take(8000, 8000)
    mine.write(np.arange(1000, dtype=np.int16))
    theirs = Arena(2, os.dup(arena.fd)).slot(1)
    assert theirs.generation == mine.generation
    assert np.array_equal(theirs.read(500, 500), np.arange(500, 1000))
    np.asarray(theirs.segment(2))[:3] = (7, 8, 9)
    theirs.set_segment_written(2, 3)
    assert mine.segment_written(2) == 3 and list(mine.segment(2)[:3]) == [7, 8, 9]


def test_segments_do_not_overlap_one_another_or_the_next_slot(slot):
    for k in range(SEGMENTS):
        np.asarray(slot.segment(k))[:] = k + 1
    slot.write(np.full(slot.capacity, 99, np.int16))
    for k in range(SEGMENTS):
        assert len(slot.segment(k)) == SEGMENT_SAMPLES
        assert set(np.unique(np.asarray(slot.segment(k)))) == {k + 1}
    with pytest.raises(IndexError):
        slot.segment_written(SEGMENTS)


LAST = (1 << 64) - 1


def test_a_slot_that_nobody_took_keeps_nothing():
    arena = Arena(1)
    for pcm in (b"", b"ab"):
        with pytest.raises(ValueError):
            arena.slot(0).write(pcm)
    with pytest.raises(IndexError):
        arena.slot(0).read(0, 1)


@pytest.mark.parametrize("position, count", [(LAST, 1), (LAST, 2), (0, LAST), (8, 1), (0, 9)])
def test_a_position_that_no_call_reaches_holds_no_audio(slot, position, count):
    slot.write(bytes(16))
    with pytest.raises(IndexError):
        slot.read(position, count)


def test_an_idle_slot_costs_no_memory():
    arena = Arena(1000)
    assert os.fstat(arena.fd).st_blocks == 0
