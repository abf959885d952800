"""The log: a line for what happened, which nobody's words can forge and nobody waits for."""
import json
import logging
import os
import re
import select
import socket
import time

import pytest
from opusagent import ConfigError, logs
from opusagent.config import Config
from opusagent.metrics import Metrics, TurnTrace

SECRET = "hunter2-hunter2-hunter2"


@pytest.fixture
def logged(tmp_path):
    """Configures the log with settings of a file, and gives the lines that a function has led to."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level

    def lines(settings, do, environ={}):
        (tmp_path / "opusagent.toml").write_text(settings)
        reader, writer = os.pipe()
        outlet = logs.begin(Config.load({}, environ, tmp_path / "opusagent.toml"), Metrics(), writer)
        try:
            do(logging.getLogger("opusagent"))
        finally:
            outlet.close()
        os.close(writer)
        with open(reader, "rb") as written:
            return written.read().decode().splitlines()
    yield lines
    root.handlers[:] = before
    root.setLevel(level)


def receipt():
    trace = TurnTrace(2)
    trace.mark("speech_end", 0)
    trace.mark("endpointing", 140_000_000)
    trace.mark("playout", 214_000_000)
    trace.kind, trace.caller, trace.agent = "answer", "my number is 4711", "Thank you."
    return trace.receipt()


def a_turn(log):
    log.info("call %s turn %d", "CA1", 2, extra=logs.about("CA1", "turn", **receipt()))


def test_a_turn_is_a_line_that_can_be_read(logged):
    line, = logged("", a_turn)
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO call CA1 turn 2     214 ms", line)
    assert "endpointing 140.0 + playout 74.0" in line and "caller: 'my number is 4711'" in line


def test_a_turn_is_an_object(logged):
    line, = logged("log_format = 'json'", a_turn)
    said = json.loads(line)
    assert (said["call"], said["event"], said["level"]) == ("CA1", "turn", "info")
    assert said["fields"]["voice_to_voice_ms"] == 214.0 and said["fields"]["caller"] == "my number is 4711"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", said["time"])


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_is_said_is_left_out_on_demand(logged, form):
    def do(log):
        a_turn(log)
        try:
            int("{}11 is what he said".format(47))
        except ValueError as error:
            log.warning("call %s: a tool failed", "CA1", exc_info=error)
    written = "\n".join(logged(f"log_format = '{form}'\nlog_speech = false", do))
    assert "4711" not in written and "Thank you" not in written
    assert "ValueError" in written and ("214" in written)


@pytest.mark.parametrize("form", ["text", "json"])
def test_nobodys_words_forge_a_line_or_move_the_cursor(logged, form):
    evil = "CA1\n2026-01-01 00:00:00,000 ERROR \x1b[2J\r\x9b\u2028\u202e all is lost\x00"

    def do(log):
        log.info("call %s begins", evil)
        log.error("call %s failed", "x", exc_info=ValueError(evil))
    lines = logged(f"log_format = '{form}'", do)
    assert not any(ord(c) < 32 or 126 < ord(c) < 160 or c in "\u2028\u202e" for line in lines for c in line)
    if form == "json":
        assert len(lines) == 2 and json.loads(lines[0])["call"] == evil
    else:
        assert all(re.match(r"    |\d{4}-\d\d-\d\d .* (INFO|ERROR) call ", line) for line in lines)
        assert sum(not line.startswith("    ") for line in lines) == 2


def test_secrets_of_the_configuration_are_in_no_line(logged):
    settings = f"admin_token = 'env:TOKEN'\n[auth.twilio]\nsecrets = ['{SECRET}']\n[openai]\napi_key = 'sk-12345678'"
    lines = logged(settings, lambda log: log.warning("it said %s, %s and sk-12345678", SECRET, "t" * 20),
                   {"TOKEN": "t" * 20})
    assert lines[0].endswith("it said ***, *** and ***")


def test_the_journal_of_systemd_is_told_priorities_and_no_time(logged, monkeypatch):
    monkeypatch.setattr(logs, "to_journal", lambda fd: True)

    def do(log):
        log.info("one")
        log.error("two", exc_info=ValueError("x\ny"))
    assert logged("", do) == ["<6>INFO one", "<3>ERROR two", "<3>    ValueError: x", "<3>    y"]


def test_the_journal_is_known_by_its_inode(tmp_path, monkeypatch):
    with open(tmp_path / "log", "wb") as file:
        found = os.fstat(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        assert logs.to_journal(file.fileno()) and not logs.to_journal(0)


@pytest.fixture
def journal(tmp_path, monkeypatch):
    """A stand-in for systemd's journal: its socket, and what came, a dict of fields each."""
    class Journal(list):
        def read(self):
            while data := self.sock.recv(1 << 18):
                entry = {}
                while data:
                    name, _, rest = data.partition(b"\n")
                    length = int.from_bytes(rest[:8], "little")
                    assert rest[8 + length:9 + length] == b"\n"
                    entry[name.decode()], data = rest[8:8 + length].decode(), rest[9 + length:]
                self.append(entry)
                if not select.select([self.sock], [], [], 0)[0]:
                    return self
    found = Journal()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found.sock:
        found.sock.bind(str(tmp_path / "journal"))
        found.sock.settimeout(5)
        monkeypatch.setattr(logs, "JOURNAL", str(tmp_path / "journal"))
        yield found


def test_the_journal_is_told_of_calls_and_receipts_in_fields_of_its_own(logged, journal):
    assert logged("log_format = 'journal'", a_turn) == []
    entry, = journal.read()
    assert (entry["OPUSAGENT_CALL"], entry["OPUSAGENT_EVENT"], entry["PRIORITY"]) == ("CA1", "turn", "6")
    assert entry["SYSLOG_IDENTIFIER"] == "opusagent" and "endpointing 140.0 + playout 74.0" in entry["MESSAGE"]
    assert entry["OPUSAGENT_VOICE_TO_VOICE_MS"] == "214.0" and entry["OPUSAGENT_CALLER"] == "my number is 4711"
    assert json.loads(entry["OPUSAGENT_WAITS"])["playout"] == 74.0


def test_in_the_journal_nobodys_words_forge_a_field_and_nothing_is_told_that_must_not_be(logged, journal):
    evil = f"CA1\nPRIORITY=0\nMESSAGE=all is lost {SECRET}"

    def do(log):
        a_turn(log)
        log.error("call %s failed", evil, exc_info=ValueError("4711"))
    logged(f"log_format = 'journal'\nlog_speech = false\n[auth.twilio]\nsecrets = ['{SECRET}']", do)
    turn, error = journal.read()
    assert error["PRIORITY"] == "3" and error["OPUSAGENT_CALL"] == evil.replace(SECRET, "***")
    assert "\n    ValueError" in error["MESSAGE"] and SECRET not in str(journal) and "4711" not in str(journal)
    assert turn["OPUSAGENT_VOICE_TO_VOICE_MS"] == "214.0" and "OPUSAGENT_AGENT" not in turn


def test_a_journal_that_is_away_costs_its_lines_and_one_that_was_never_there_is_said(logged, journal, tmp_path):
    def do(log):
        (tmp_path / "journal").unlink()
        a_turn(log)
    assert logged("log_format = 'journal'", do) == []
    with pytest.raises(ConfigError, match="journal is not running here"):
        logged("log_format = 'journal'", a_turn)


def test_nobody_waits_for_who_reads_the_log(monkeypatch):
    """A pipe that nobody empties: the lines that it does not take are dropped, counted, and cost no time."""
    monkeypatch.setattr(logs, "MOST_WAITING", 100)
    monkeypatch.setattr(logs, "CLOSE_SECONDS", 0.05)
    reader, writer = os.pipe()
    metrics = Metrics()
    outlet = logs.Outlet(writer, False, True, [], metrics)
    began = time.monotonic()
    for number in range(3000):
        outlet.handle(logging.LogRecord("opusagent", 20, "", 0, "%d " + "x" * 200, (number,), None))
    outlet.close()
    assert time.monotonic() - began < 5
    assert metrics.counters["log_dropped", ()] > 2000
    os.read(reader, 1 << 20)        # what was taken was taken whole and in order
    os.close(reader)


def test_what_is_said_after_the_outlet_was_closed_is_written_too(tmp_path):
    """What ends a process is told when its loop, and all that it had opened, is over."""
    with open(tmp_path / "log", "w+") as file:
        outlet = logs.Outlet(file.fileno(), False, True, [], Metrics())
        for words in ("the last", "and after it"):
            outlet.handle(logging.LogRecord("opusagent", 40, "", 0, words, (), None))
            outlet.close()
        file.seek(0)
        assert [line.rpartition("ERROR ")[2] for line in file.read().splitlines()] == ["the last", "and after it"]
