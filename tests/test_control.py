"""What a worker and its supervisor say to one another, while one of them does not read."""
import os
import socket
from itertools import count

from opusagent.daemon.control import pair


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def crowded(control):
    """So many messages that there is no room for one more: how many, and whether somebody was asked to flush, each."""
    asked = []
    for number in count():
        asked.append(control.send({"number": number}))
        if control.unsent:
            return asked


def heard(control):
    messages = []
    for message, fds in control.messages():
        messages.append((message["number"], [os.fstat(fd).st_ino for fd in fds]))
        for fd in fds:
            os.close(fd)
    return messages


def test_what_waits_goes_out_in_order_with_the_descriptors_of_then_and_leaves_none_open():
    ours, theirs = pair()
    before = descriptors()
    asked = crowded(ours)
    assert asked[-1] and not any(asked[:-1])
    lines = []
    for number in range(3):
        with socket.socket() as line:               # is closed, and its number another's, before there is room
            lines.append([os.fstat(line.fileno()).st_ino])
            assert not ours.send({"number": number}, [line.fileno()])
    came = heard(theirs)
    assert ours.flush()
    came += heard(theirs)
    assert came == [(number, []) for number in range(len(asked))] + list(enumerate(lines))
    assert descriptors() == before
    ours.close(), theirs.close()


def test_what_waits_for_one_that_is_gone_leaves_no_descriptor_open():
    ours, theirs = pair()
    before = descriptors()
    crowded(ours)
    ours.send({"number": 0}, [0])
    assert descriptors() == before + 1
    theirs.close()
    assert ours.flush() and descriptors() == before - 1
    ours.close()

    ours, theirs = pair()
    crowded(ours)
    ours.send({"number": 0}, [0])
    theirs.close(), ours.close()
    assert descriptors() == before - 2
