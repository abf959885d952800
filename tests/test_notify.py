"""What systemd is told, where it does not read in time, and where it does not listen yet."""
import errno
import os
import socket
import threading
import time
from unittest.mock import Mock

import pytest

from opusagent.daemon.notify import Notify


@pytest.fixture
def systemd(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reader:
        reader.bind(str(tmp_path / "notify"))
        reader.setblocking(False)
        yield reader


def told(reader):
    """What has come, and is read now."""
    messages = []
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(reader, 4096, 4)
        except BlockingIOError:
            return messages
        for fd in fds:
            os.close(fd)
        messages.append(data.decode())


def notify(reader):
    return Notify({"NOTIFY_SOCKET": reader.getsockname()})


def crowded(reader):
    """So many wait for systemd that there is no room for one more."""
    ours = notify(reader)
    while not ours.unsent:
        ours.store("arena-1", 0)
    return ours


def test_what_finds_no_room_is_told_later_and_in_order(systemd):
    ours = crowded(systemd)
    ours.tell("READY=1")
    ours.tell("WATCHDOG=1")             # of which there will be another
    assert "READY=1" not in told(systemd)
    ours.flush()
    assert told(systemd) == ["FDSTORE=1\nFDNAME=arena-1", "READY=1"] and not ours.unsent
    ours.close()


def test_a_systemd_that_reads_nothing_for_ever_costs_no_descriptor_for_calls_that_are_over(systemd):
    ours = crowded(systemd)
    before = len(os.listdir("/proc/self/fd"))
    for i in range(1000):
        ours.store(f"call-1-{i % 3}", 0)
        if i >= 2:
            ours.forget(f"call-1-{(i - 2) % 3}")
    assert len(os.listdir("/proc/self/fd")) == before + 2 and len(ours.unsent) <= 1 + 3 + 2
    told(systemd)
    ours.flush()
    last = {name: what for what, name in map(str.splitlines, told(systemd)) if "call" in name}
    assert last == {"FDNAME=call-1-0": "FDSTORE=1", "FDNAME=call-1-2": "FDSTORE=1",
                    "FDNAME=call-1-1": "FDSTOREREMOVE=1"}
    ours.close()


def test_without_descriptors_systemd_keeps_nothing_and_the_server_goes_on(systemd, monkeypatch):
    ours = notify(systemd)
    monkeypatch.setattr(os, "dup", Mock(side_effect=OSError(errno.EMFILE, "Too many open files")))
    ours.store("call-1-1", 0)
    ours.tell("WATCHDOG=1")
    assert told(systemd) == ["WATCHDOG=1"]
    ours.close()


def test_what_is_said_in_several_lines_is_one_to_systemd(systemd):
    ours = notify(systemd)
    ours.tell("READY=1", "STATUS=Not reloaded: flow.toml:5: a mistake.\nMAINPID=1\r\nand another.")
    assert told(systemd) == ["READY=1\nSTATUS=Not reloaded: flow.toml:5: a mistake. MAINPID=1 and another."]
    ours.close()


def test_the_last_word_of_one_that_goes_is_not_lost_in_a_crowd(systemd):
    ours, heard = crowded(systemd), []
    ours.tell("READY=1", "MAINPID=4711")

    def read():
        time.sleep(0.1)
        heard.extend(told(systemd))
    thread = threading.Thread(target=read)
    thread.start()
    ours.close()
    thread.join()
    assert (heard + told(systemd))[-1] == "READY=1\nMAINPID=4711"


def test_to_one_that_is_not_named_yet_systemd_does_not_listen_so_it_says_nothing(systemd):
    ours = notify(systemd)
    ours.heard = False
    ours.store("arena-1", 0)
    ours.heard = True
    ours.tell("READY=1")
    assert told(systemd) == ["READY=1"]
    ours.close()


def test_without_systemd_all_of_it_is_nothing():
    ours = Notify({})
    ours.store("arena-1", 0)
    ours.close()
    assert not ours.unsent and not ours.watchdog_seconds
