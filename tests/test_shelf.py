"""The shelf: what lies there is taken once, and of a live call it is known which worker has it."""
import os
import subprocess
import sys

import pytest

from opusagent.continuity.shelf import LOOKS, MOVES, NOBODY, Shelf

KEY, OTHER = bytes(range(16)), bytes(range(1, 17))
HERE, PARENT = os.getpid(), os.getppid()        # two that live


@pytest.fixture
def shelf():
    return Shelf(16)


@pytest.fixture(scope="module")
def dead():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_lies_there_is_taken_once_and_not_after_its_time(shelf):
    assert shelf.put(KEY, b"state", 100, 1) and shelf.has(KEY, 100) and not shelf.has(OTHER, 1)
    assert shelf.take(KEY, 50) == b"state"
    assert shelf.take(KEY, 50) is None
    shelf.put(KEY, b"state", 100, 1)
    assert shelf.take(KEY, 101) is None


def test_who_wants_a_call_waits_until_it_is_put_down(shelf):
    assert shelf.claim(KEY, HERE) == NOBODY         # nobody has it, so it is not marked either
    shelf.mark(KEY, PARENT)
    rung = shelf.rung(PARENT)
    assert shelf.claim(KEY, HERE) == PARENT and shelf.rung(PARENT) == rung + 1
    assert shelf.whose(KEY) == (HERE, PARENT)
    assert shelf.claim(KEY, HERE) == PARENT and shelf.rung(PARENT) == rung + 1     # it knows already
    shelf.leave(KEY, PARENT)
    assert shelf.whose(KEY) == (HERE, NOBODY)
    shelf.mark(KEY, HERE)
    shelf.leave(KEY, HERE)
    assert shelf.whose(KEY) == (NOBODY, NOBODY)


def test_of_two_that_want_it_the_later_one_gets_it_from_the_first_that_had_it(shelf):
    shelf.mark(KEY, 111)
    shelf.claim(KEY, HERE)
    assert shelf.claim(KEY, PARENT) == 111
    shelf.leave(KEY, 111)
    assert shelf.whose(KEY) == (PARENT, NOBODY)


def test_who_takes_a_dead_workers_place_has_its_calls_unless_somebody_wants_them(shelf, dead):
    shelf.mark(KEY, dead)
    shelf.inherit(KEY, HERE)
    assert shelf.whose(KEY) == (HERE, NOBODY)
    shelf.mark(OTHER, dead)
    shelf.claim(OTHER, PARENT)
    rung = shelf.rung(HERE)
    shelf.inherit(OTHER, HERE)                      # it is to put it down now
    assert shelf.whose(OTHER) == (PARENT, HERE) and shelf.rung(HERE) == rung + 1
    shelf.leave(OTHER, HERE)
    shelf.inherit(OTHER, HERE)                      # it comes too late
    assert shelf.whose(OTHER) == (PARENT, NOBODY) and shelf.rung(HERE) == rung + 2


def test_a_call_on_its_way_to_another_worker_is_nobodys_that_lives(shelf):
    shelf.mark(KEY, HERE)
    shelf.leave(KEY, HERE, moves=True)
    assert shelf.whose(KEY) == (MOVES, NOBODY)
    assert shelf.claim(KEY, PARENT) == MOVES
    shelf.inherit(KEY, HERE)
    assert shelf.whose(KEY) == (PARENT, HERE)


def test_marks_of_the_dead_make_room_and_those_of_the_living_stay(shelf, dead):
    crowded = [bytes([n]) + KEY[1:] for n in range(20)]         # which all fall into the same places
    assert all(shelf.mark(key, dead) for key in crowded)
    marked = [key for key in crowded if shelf.mark(key, HERE)]
    assert len(marked) == LOOKS and all(shelf.whose(key) == (HERE, NOBODY) for key in marked)


def test_a_successor_sees_the_same_shelf():
    first, second = Shelf(), Shelf()
    second.share(os.dup(first.fd))
    first.put(KEY, b"state", 100, 1)
    first.mark(KEY, HERE)
    assert second.whose(KEY) == (HERE, NOBODY) and second.take(KEY, 1) == b"state" and first.take(KEY, 1) is None
