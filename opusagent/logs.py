"""The log: one line for what happened, as text, as JSON or as an entry of systemd's journal, written by a thread.

It decides nothing of what is logged.  A line about a call carries `extra=about(call id, event, fields)`, or its message
begins with "call %s".  The journal's own protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/) has these as fields.
The rules: what a peer chose can neither end a line nor begin one; secrets of the configuration are never in one; and in
a worker nobody ever waits for whoever reads the log: what it does not take is dropped and counted.
"""
import logging
import os
import queue
import socket
import threading
import time
import traceback
from typing import Any

import orjson

from . import ConfigError
from .config import SETTINGS, Config
from .metrics import Metrics, receipt_line

MOST_WAITING = 4096             # lines that wait to be written
LONGEST = 8000                  # characters of a message
GATHER_SECONDS = 0.02           # between two times that the thread wakes up, which costs the loop more than a line
CLOSE_SECONDS = 1.0             # for the lines that still wait when a worker ends
JOURNAL = "/run/systemd/journal/socket"
LONGEST_ENTRY = 32_000          # characters of a line with its error, as one field of the journal
SHORTEST_SECRET = 8             # characters; what is shorter cannot be told from a word
SPOKEN = ("caller", "agent")    # fields that hold what somebody said
PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}   # syslog's
CONTROLS = {c: f"\\x{c:02x}" for c in (*range(32), *range(127, 160))} | {
    c: f"\\u{c:04x}" for c in (0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))} | {
    10: "\\n", 13: "\\r", 9: "\\t"}

LATE_CONTROLS = {c: f"\\u{c:04x}" for c in CONTROLS if c >= 127}     # which JSON need not escape


def about(call_id: str, event: str, **fields: Any) -> dict[str, Any]:
    """`extra` of a line about a call."""
    return {"call": call_id, "event": event, "fields": fields}


def begin(config: Config, metrics: Metrics | None = None, fd: int = 2) -> "Outlet":
    """All that this process logs goes to `fd`, or the journal, from now on; with `metrics` a thread writes it.
    ConfigError where there is no journal."""
    sort = JournalOutlet if config.log_format == "journal" else Outlet
    outlet = sort(fd, config.log_format == "json", config.log_speech, secrets_of(config), metrics)
    root = logging.getLogger()
    for before in root.handlers[:]:
        root.removeHandler(before)
    root.addHandler(outlet)
    root.setLevel(config.log_level.upper())
    return outlet


def secrets_of(config: Config) -> list[str]:
    """What must not be read in a log, the longest first."""
    found: set[str] = set()

    def look(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key in value:
                look(value[key], key)
        elif isinstance(value, list | tuple):
            for each in value:
                look(each, name)
        elif isinstance(value, str) and len(value) >= SHORTEST_SECRET and any(
                word in name for word in ("secret", "token", "password", "key")):
            found.add(value)

    for key, setting in SETTINGS.items():
        if setting.secret:
            look(config.get(key), key)
    return sorted(found, key=len, reverse=True)


def to_journal(fd: int) -> bool:
    """True if `fd` leads to systemd's journal, which takes a line's priority from its beginning."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


class Outlet(logging.Handler):
    """Where lines go.  With `metrics` they are written by a thread, and what it does not get rid of is dropped."""

    def __init__(self, fd: int, as_json: bool, speech: bool, secrets: list[str], metrics: Metrics | None = None):
        super().__init__()
        self.fd = fd
        self.spell = spell_json if as_json else spell_text
        self.speech = speech
        self.secrets = secrets
        self.journal = to_journal(fd)
        self.metrics = metrics
        self._lines: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = None
        if metrics is not None:
            metrics.count("log_dropped", 0)         # from now on no thread makes the list of counters longer
            self._thread = threading.Thread(target=self._work, name="log", daemon=True)
            self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.line(record)
        except Exception:
            self.handleError(record)
            return
        if self._thread is None:
            self._write(line)
        elif self._lines.qsize() < MOST_WAITING:
            self._lines.put(line)
        else:
            self.metrics.count("log_dropped")

    def line(self, record: logging.LogRecord) -> bytes:
        """A record as it is written, its end included."""
        text = self.spell(record, self.speech, stamped=not self.journal)
        for secret in self.secrets:
            text = text.replace(secret, "***")
        if self.journal:
            priority = f"<{PRIORITIES.get(record.levelno, 6)}>"
            text = "\n".join(priority + part for part in text.split("\n"))
        return text.encode("utf-8", "backslashreplace") + b"\n"

    def close(self) -> None:
        """What waits is written, if whoever reads it takes it soon."""
        super().close()
        if self._thread is not None:
            self._lines.put(None)
            self._thread.join(CLOSE_SECONDS)
            if not self._thread.is_alive():
                self._thread = None                 # what is still said, of what ends the process, is written at once

    def _work(self) -> None:
        """Thread: a line that comes alone is written at once, of many those that have come meanwhile."""
        while (line := self._lines.get()) is not None:
            self._write(line)
            if self._lines.empty():
                time.sleep(GATHER_SECONDS)

    def deliver(self, line: bytes) -> None:
        while line:
            line = line[os.write(self.fd, line):]

    def _write(self, line: bytes) -> None:
        try:
            self.deliver(line)
        except OSError:
            if self.metrics is not None:
                self.metrics.count("log_dropped")


class JournalOutlet(Outlet):
    """A datagram for each line, with fields: `journalctl OPUSAGENT_CALL=CA1` has all of a call."""

    def __init__(self, *of):
        if not os.path.exists(JOURNAL):
            raise ConfigError(f"log_format is journal, but nobody reads {JOURNAL}: systemd's journal is not running "
                              "here.  Say log_format = \"text\" or \"json\".")
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)   # kept, for want of descriptors is told of, too
        super().__init__(*of)

    def close(self) -> None:
        super().close()
        self._sock.close()

    def line(self, record: logging.LogRecord) -> bytes:
        fields = {"MESSAGE": spell_text(record, self.speech, stamped=False)[:LONGEST_ENTRY],
                  "PRIORITY": str(PRIORITIES.get(record.levelno, 6)), "SYSLOG_IDENTIFIER": "opusagent",
                  "OPUSAGENT_EVENT": getattr(record, "event", "note"), "OPUSAGENT_CALL": call_of(record)}
        for name, value in getattr(record, "fields", {}).items():
            if self.speech or name not in SPOKEN:
                fields[f"OPUSAGENT_{name.upper()}"] = value if isinstance(value, str) else orjson.dumps(
                    value, default=str).decode()
        return b"".join(self._field(name, value) for name, value in fields.items() if value)

    def _field(self, name: str, value: str) -> bytes:
        """Its length stands before the value, so that no value can end it."""
        for secret in self.secrets:
            value = value.replace(secret, "***")
        data = value.encode("utf-8", "backslashreplace")
        return b"%s\n%s%s\n" % (name.encode(), len(data).to_bytes(8, "little"), data)

    def deliver(self, line: bytes) -> None:
        if self._sock.fileno() < 0:             # said after the end
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.sendto(line, JOURNAL)


# -- one record --------------------------------------------------------------------------------------------------------

def call_of(record: logging.LogRecord) -> str:
    """The id of the call that a line is about, "" for none."""
    if hasattr(record, "call"):
        return record.call
    args = record.args if isinstance(record.args, tuple) else ()
    return str(args[0]) if args and str(record.msg).startswith("call %s") else ""


def spell_text(record: logging.LogRecord, speech: bool, stamped: bool) -> str:
    """A line; what Python says of an error follows in lines that are set in."""
    message, fields = record.getMessage(), getattr(record, "fields", {})
    if getattr(record, "event", "") == "turn":
        message = f"call {record.call} {receipt_line(fields)}"
        if speech:
            message += "".join(f"  {who}: {fields[who]!r}" for who in SPOKEN if fields[who])
    message = message[:LONGEST].translate(CONTROLS)
    if stamped:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        message = f"{stamp},{int(record.msecs):03d} {record.levelname} {message}"
    else:
        message = f"{record.levelname} {message}"
    return "\n    ".join((message, *(line.translate(CONTROLS) for line in error_lines(record, speech))))


def spell_json(record: logging.LogRecord, speech: bool, stamped: bool = True) -> str:
    """An object in one line."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    line = {"time": f"{stamp}.{int(record.msecs):03d}Z", "level": record.levelname.lower(), "call": call_of(record),
            "event": getattr(record, "event", "note"), "message": record.getMessage()[:LONGEST]}
    fields = getattr(record, "fields", {})
    if fields:
        line["fields"] = {name: value for name, value in fields.items() if speech or name not in SPOKEN}
    if error := error_lines(record, speech):
        line["error"] = error
    text = orjson.dumps(line, default=str).decode()
    return text if text.isascii() and "\x7f" not in text else text.translate(LATE_CONTROLS)


def error_lines(record: logging.LogRecord, speech: bool) -> list[str]:
    """Where an error came from, and what it says; not that where nothing of what was said may be told."""
    if not record.exc_info or record.exc_info[1] is None:
        return []
    kind, error, where = record.exc_info
    lines = traceback.format_exception(kind, error, where) if speech else [
        *traceback.format_tb(where), kind.__name__]
    return [line for part in lines for line in part.rstrip("\n").split("\n")]
