"""What calls leave behind: written beside the loop, in order, and never at its cost."""
import asyncio
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import orjson
import pytest
from opusagent import ConfigError
from opusagent.client.telephone import Line
from opusagent.config import Config
from opusagent.dialects import BINARY
from opusagent.metrics import Metrics
from opusagent.server import archive
from served import SCRIPTED, serving

BEGAN = "2026-03-03T14:15:16Z"


def test_files_are_written_in_order_and_whole(tmp_path):
    kept = archive.Archive(str(tmp_path / "calls"), Metrics())
    files = [kept.file(f"{i}.jsonl", BEGAN) for i in range(3)]
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
    for name in ("../../etc/passwd", "..", "/abs", "a" * 500, "a" * 500 + ".jsonl", "\x00\n", "CA1-x_y.jsonl"):
        file = kept.file(name, BEGAN)
        assert file.path.parent.parent == tmp_path and "/" not in file.path.name and len(file.path.name) < 140
        assert not name.endswith(".jsonl") or archive.KEPT.fullmatch(file.path.name)
    kept.close()


def test_a_disk_that_stands_still_costs_what_is_kept_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MOST_WAITING", 1000)
    metrics, going = Metrics(), threading.Event()
    kept = archive.Archive(str(tmp_path), metrics)
    file, other = kept.file("a", BEGAN), kept.file("b", BEGAN)
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


def test_a_full_disk_is_told_once_a_second_every_file_counts_and_calls_go_on(caplog, monkeypatch):
    monkeypatch.setattr(archive.File, "_new", lambda file: open("/dev/full", "ab"))
    metrics, began = Metrics(), time.monotonic()
    kept = archive.Archive("/dev/shm", metrics)
    for _ in range(20):
        file = kept.file("full", BEGAN)
        for _ in range(5):
            file.append(b"x" * 100_000)
        file.close()
    kept.close()
    told = sum("141516-full cannot be written: No space" in line.getMessage() for line in caplog.records)
    assert 1 <= told <= 1 + (time.monotonic() - began)
    assert metrics.counters["archive_failures", ()] == 20


def test_a_place_where_nothing_can_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be kept in .*: it is no directory"):
        archive.Archive(str(tmp_path / "file"), Metrics())


def a_day(directory, day, *names):
    (directory / day).mkdir()
    for name in names:
        (directory / day / name).write_text("x")


def test_what_is_too_old_is_removed_and_nothing_else(tmp_path):
    root = tmp_path / "calls"
    root.mkdir()
    a_day(root, "2026-11-01", "101500-CA1.jsonl", "101500-CA1.wav", "101500-CA1.json")
    a_day(root, "2026-11-02", "101500-CA2.jsonl", "notes.txt")
    a_day(root, "2026-11-19", "101500-CA3.jsonl")
    a_day(root, "2026-11", "101500-CA4.jsonl")
    a_day(tmp_path, "elsewhere", "101500-CA5.jsonl")
    (root / "2026-11-03").symlink_to(tmp_path / "elsewhere")
    (root / "2026-11-02" / "101500-CA6.jsonl").symlink_to(tmp_path / "elsewhere" / "101500-CA5.jsonl")
    now = 1_795_305_600         # 2026-11-22
    archive.remove_old(root, 7, now)
    assert sorted(path.name for path in root.iterdir()) == ["2026-11", "2026-11-02", "2026-11-03", "2026-11-19"]
    assert sorted(path.name for path in (root / "2026-11-02").iterdir()) == ["101500-CA6.jsonl", "notes.txt"]
    assert (tmp_path / "elsewhere" / "101500-CA5.jsonl").exists() and (root / "2026-11" / "101500-CA4.jsonl").exists()


def test_it_is_removed_when_the_archive_is_opened(tmp_path):
    a_day(tmp_path, "2020-01-01", "101500-CA1.jsonl")
    archive.Archive(str(tmp_path), Metrics(), days=30).close()
    assert not (tmp_path / "2020-01-01").exists()


def test_a_disk_with_too_little_space_keeps_nothing_more(tmp_path, caplog):
    metrics = Metrics()
    kept = archive.Archive(str(tmp_path), metrics, free=1 << 60)
    for _ in range(1000):
        if kept.tight:
            break
        threading.Event().wait(0.01)
    file = kept.file("CA1.jsonl", BEGAN)
    file.append(b"x")
    file.append(b"x")
    file.close()
    kept.close()
    assert not file.path.exists() and metrics.counters["archive_dropped", ()] == 1
    assert sum("less space" in line.getMessage() for line in caplog.records) == 1


def test_a_call_that_ended_leaves_its_record(tmp_path):
    kept = archive.kept(Config.load({"archive.directory": str(tmp_path), "archive.transcripts": True}, {}).archive,
                        Metrics())
    record = {"id": "CA/1", "began_at": BEGAN, "facts": {"name": "J\u00f6rg"}, "turns": []}
    kept.ended(record)
    kept.close()
    found, = tmp_path.glob("*/*.json")
    assert str(found.relative_to(tmp_path)) == "2026-03-03/141516-CA_1.json"        # not when it ended
    assert orjson.loads(found.read_bytes()) == record


def test_files_of_the_same_name_are_numbered(tmp_path):
    """A call that another worker takes over has a second recording, and one that comes back elsewhere, too."""
    kept = archive.Archive(str(tmp_path), Metrics())
    for number in range(3):
        file = kept.file("CA1.2.wav", BEGAN, lambda size: b"%20d" % size)
        file.append(b"%d" % number)
        file.close()
    kept.close()
    assert {path.name: path.read_bytes()[20:] for path in tmp_path.glob("*/*")} == {
        "141516-CA1.2.wav": b"0", "141516-CA1.2-2.wav": b"1", "141516-CA1.2-3.wav": b"2"}
    assert all(archive.KEPT.fullmatch(path.name) for path in tmp_path.glob("*/*"))


def test_a_file_with_a_head_says_in_the_end_how_long_it_is(tmp_path):
    kept = archive.Archive(str(tmp_path), Metrics())
    file, cut = (kept.file(f"{name}.wav", BEGAN, lambda size: size.to_bytes(8, "little")) for name in ("whole", "cut"))
    for each in (file, cut):
        each.append(b"abc")
        each.append(b"de")
    file.close()
    kept.close()
    assert file.path.read_bytes() == b"\5\0\0\0\0\0\0\0abcde"
    cut._stream.close()
    assert cut.path.read_bytes()[:8] == archive.HUGE.to_bytes(8, "little")      # as a crash would leave it


KILLED = """
import os, signal, sys, time
from opusagent.metrics import Metrics
from opusagent.server import archive
file = archive.Archive(sys.argv[1], Metrics()).file("a.jsonl", "2026-03-03T14:15:16Z")
for turn in range(20):
    file.append(b"a turn\\n")
    time.sleep(0.02)
print(file.path, flush=True)
sys.stdin.read(1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_that_is_killed_loses_nothing_that_was_said_before(tmp_path):
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as worker:
        path = Path(worker.stdout.readline().decode().strip())
        until = time.monotonic() + 20
        while not path.exists() or path.read_bytes() != b"a turn\n" * 20:       # while it lives, and closes nothing
            assert time.monotonic() < until and worker.poll() is None
            time.sleep(0.02)
        worker.stdin.close()
        assert worker.wait(20) == -signal.SIGKILL
    assert path.read_bytes() == b"a turn\n" * 20


def test_what_comes_within_a_moment_is_written_file_by_file(tmp_path, monkeypatch):
    """A thread that were woken for each line would take the interpreter from the loop each time."""
    written, write = [], archive.File.write
    monkeypatch.setattr(archive.File, "write", lambda file, data: (written.append(data), write(file, data)))
    kept = archive.Archive(str(tmp_path), Metrics())
    files = [kept.file(f"{name}.jsonl", BEGAN) for name in "ab"]
    lines = [f"{number}\n".encode() for number in range(500)]
    for line in lines:
        for file in files:
            file.append(line)
    for file in files:
        file.close()
    kept.close()
    assert [file.path.read_bytes() for file in files] == 2 * [b"".join(lines)] and len(written) < 100


def test_all_files_of_a_call_are_named_by_its_beginning(tmp_path):
    """Its record is written when it ends, its recording when its first second has been heard."""
    async def call(url):
        line = await Line.dial(url, lambda *message: None, lambda *ending: None)
        for _ in range(150):
            line.send(BINARY, bytes(320))
            await asyncio.sleep(0.02)
        await line.hang_up()

    with serving(*SCRIPTED, "--archive-directory", str(tmp_path), "--archive-transcripts",
                 "--archive-recordings") as server:
        asyncio.run(call(server.ws("/ws/pcm?rate=8000&call_id=CA1")))
        until = time.monotonic() + 20
        while len(files := list(tmp_path.glob("*/*"))) < 3:
            assert time.monotonic() < until, files
            time.sleep(0.05)
    assert sorted(path.suffix for path in files) == [".json", ".jsonl", ".wav"]
    record, = (orjson.loads(path.read_bytes()) for path in files if path.suffix == ".json")
    day, second = record["began_at"].rstrip("Z").split("T")
    assert {path.with_suffix("") for path in files} == {tmp_path / day / f"{second.replace(':', '')}-CA1"}
