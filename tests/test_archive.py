"""What calls leave behind: written beside the loop, in order, and never at its cost."""
import threading

import pytest
from opusagent import ConfigError, archive
from opusagent.metrics import Metrics


def test_files_are_written_in_order_and_whole(tmp_path):
    kept = archive.Archive(str(tmp_path / "calls"), Metrics())
    files = [kept.file(f"{i}.jsonl") for i in range(3)]
    for number in range(100):
        for file in files:
            file.append(b"%d\n" % number)
    for file in files:
        file.close()
    kept.close()
    for file in files:
        assert file.path.read_bytes() == b"".join(b"%d\n" % number for number in range(100))


def test_names_that_peers_choose_stay_in_the_folder(tmp_path):
    kept = archive.Archive(str(tmp_path), Metrics())
    for name in ("../../etc/passwd", "..", "/abs", "a" * 500, "\x00\n", "CA1-x_y.jsonl"):
        file = kept.file(name)
        assert file.path.parent.parent == tmp_path and "/" not in file.path.name and len(file.path.name) < 140
    kept.close()


def test_a_disk_that_stands_still_costs_what_is_kept_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MOST_WAITING", 1000)
    metrics, going = Metrics(), threading.Event()
    kept = archive.Archive(str(tmp_path), metrics)
    file, other = kept.file("a"), kept.file("b")
    write = archive.File.write
    monkeypatch.setattr(archive.File, "write", lambda self, data: (going.wait(10), write(self, data)))
    for _ in range(30):
        file.append(b"x" * 100)
    going.set()
    file.close()
    kept.close()
    assert metrics.counters["archive_dropped", ()] == 1     # after the first hole the file has ended
    assert set(file.path.read_bytes()) == {ord("x")} and len(file.path.read_bytes()) <= 1200
    assert not other.path.exists()


def test_a_full_disk_is_told_once_and_the_call_goes_on(caplog):
    kept = archive.Archive("/dev/shm", Metrics())
    file = kept.file("full")
    file.path = archive.Path("/dev/full")
    for _ in range(5):
        file.append(b"x" * 100_000)
    file.close()
    kept.close()
    assert sum("/dev/full cannot be written" in line.getMessage() for line in caplog.records) == 1


def test_a_place_where_nothing_can_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be kept"):
        archive.Archive(str(tmp_path / "file"), Metrics())
