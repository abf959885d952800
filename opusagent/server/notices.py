"""Notices: the server that the configuration names is told of each call that has ended, by a signed POST.

A thread of its own sends them, so that neither a name server nor a slow peer is ever waited for by audio.  What fails
is tried again, ever more rarely; what is left when the server stops waits on the disk for the next start, where there
is a directory for it.  The rules: nobody is asked but the host of `webhook.url`, whatever it answers; a notice is
delivered at least once, under the same id each time; and what waits is bounded.
"""
import asyncio
import hashlib
import hmac
import http.client
import logging
import os
import queue
import random
import socket
import ssl
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import orjson

from .. import ConfigError, __version__, directories

log = logging.getLogger("opusagent")

MOST = 1000                     # notices that wait; the next one is dropped
FIRST_SECONDS = 1.0             # before the second attempt, doubled before each one after it,
LONGEST_SECONDS = 300.0         # up to this
STOP_SECONDS = 5.0              # that a stop of the server gives to what waits
SIGNATURE = "OpusAgent-Signature"
SUFFIX = ".notices"


@dataclass(slots=True)
class Notice:
    """One, and how it has gone so far."""

    id: str
    body: bytes
    attempts: int = 0
    due: float = 0.0                    # monotonic seconds: when it is tried next
    fault: str = field(default="", compare=False)


def signed(secret: str, body: bytes, now: float) -> str:
    """The value of SIGNATURE: t=seconds since 1970, v1=HMAC-SHA256 in hexadecimal over "t.body"."""
    stamp = str(int(now))
    code = hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    return f"t={stamp},v1={code}"


class Notices:
    """One worker's; `ended` and `close` are the loop's, all else is the thread's."""

    def __init__(self, settings, count):
        """`count(name, **labels)` is called on the loop.  Raises ConfigError where `webhook.directory` is of no use."""
        self.settings = settings
        self.url = urlsplit(settings.url)
        self.loop = asyncio.get_running_loop()
        self.waiting: dict[str, Notice] = {}
        self._count = count
        self._jobs: queue.SimpleQueue[Notice | None] = queue.SimpleQueue()
        self._stop_by = 0.0                             # monotonic: nothing is begun after that; 0: nobody stops
        self.directory = Path(settings.directory) if settings.directory else None
        for notice in self._left():
            self._put(notice)
        self._thread = threading.Thread(target=self._work, name="notices", daemon=True)
        self._thread.start()

    # -- the loop's ----------------------------------------------------------------------------------------------------

    def ended(self, record: dict) -> None:
        """A call is over: `record` is what GET /calls/<id> says of it."""
        if not self.settings.transcript:
            record = {name: value for name, value in record.items() if name not in ("turns", "facts")}
        name = os.urandom(16).hex()
        body = orjson.dumps({"event": "call.ended", "id": name,
                             "ended_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "call": record})
        if len(self.waiting) >= MOST:
            self._count("webhook", outcome="dropped")
            return
        self._put(Notice(name, body))

    def _put(self, notice: Notice) -> None:
        self.waiting[notice.id] = notice
        self._jobs.put(notice)

    async def close(self) -> None:
        """What waits is tried once more; what cannot be delivered within STOP_SECONDS is kept, where it can be."""
        self._stop_by = time.monotonic() + STOP_SECONDS
        self._jobs.put(None)
        until = self._stop_by + self.settings.timeout_seconds + 1
        while self._thread.is_alive() and time.monotonic() < until:
            await asyncio.sleep(0.02)
        left = list(self.waiting.values())
        if left and not (kept := self._keep(left)):
            self._count("webhook", by=len(left), outcome="dropped")
        if left:
            log.warning("%d notices of calls that have ended were not delivered; they are %s", len(left),
                        "kept for the next start" if kept else "lost, since there is no webhook.directory")

    # -- on the disk ---------------------------------------------------------------------------------------------------

    def _keep(self, notices: list[Notice]) -> bool:
        if self.directory is None:
            return False
        path = self.directory / f"{os.getpid()}-{time.monotonic_ns()}{SUFFIX}"
        lines = b"".join(orjson.dumps([each.id, each.body.decode()], option=orjson.OPT_APPEND_NEWLINE)
                         for each in notices)
        try:
            with open(path.with_suffix(".part"), "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
            os.replace(path.with_suffix(".part"), path)
        except OSError as error:
            log.error("notices cannot be kept in %s: %s", self.directory, error.strerror)
            return False
        return True

    def _left(self) -> list[Notice]:
        """What another process, which has stopped, could not deliver: whoever renames its file first has it."""
        if self.directory is None:
            return []
        found = []
        try:
            directories.writable(self.directory, 0o700)
            paths = sorted(self.directory.glob("*" + SUFFIX))
        except OSError as error:
            raise ConfigError(f"Notices cannot be kept in {self.directory}: {error.strerror}.") from None
        for path in paths:
            mine = path.with_suffix(f".{os.getpid()}")
            with suppress(OSError):                     # another worker was first
                os.rename(path, mine)
                for line in mine.read_bytes().splitlines():
                    with suppress(ValueError):
                        name, body = orjson.loads(line)
                        found.append(Notice(str(name), str(body).encode()))
                mine.unlink()
        return found[:MOST]

    # -- the thread's --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        pending: list[Notice] = []
        while not self._stop_by:
            first = min(pending, key=lambda notice: notice.due, default=None)
            wait = None if first is None else max(0.0, first.due - time.monotonic())
            pending += self._come(wait)
            if first is not None and first.due <= time.monotonic() and not self._stop_by:
                pending.remove(first)
                if not self._try(first):
                    pending.append(first)
        for notice in list(self.waiting.values()):
            if time.monotonic() < self._stop_by:
                self._try(notice, last=True)

    def _come(self, wait: float | None) -> list[Notice]:
        """What is new, after at most so many seconds."""
        found: list[Notice] = []
        with suppress(queue.Empty):
            notice = self._jobs.get(timeout=wait)
            while True:
                found += [notice] if notice is not None else []
                notice = self._jobs.get_nowait()
        return found

    def _try(self, notice: Notice, last: bool = False) -> bool:
        """True when nothing more is to be done for it: it is delivered, or given up.  `last`: nothing is given up."""
        notice.attempts += 1
        try:
            status, after = self._post(notice)
            fault = "" if 200 <= status < 300 else f"it answered with status {status}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            fault, after = said(error), 0.0
        if not fault:
            self._over(notice, "delivered")
        elif notice.attempts >= self.settings.attempts and not last:
            log.error("the webhook was told %d times of a call's end, and never took it: %s", notice.attempts, fault)
            self._over(notice, "given up")
        else:
            self._tell("failed")
            pause = min(LONGEST_SECONDS, FIRST_SECONDS * 2 ** (notice.attempts - 1)) * random.uniform(0.5, 1.0)
            notice.due = time.monotonic() + max(pause, min(after, LONGEST_SECONDS))
            return False
        return True

    def _post(self, notice: Notice) -> tuple[int, float]:
        """(status, the seconds that Retry-After says) of one attempt, over a connection of its own.  Raises OSError and
        others."""
        kind = http.client.HTTPSConnection if self.url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self.url.hostname, self.url.port, timeout=self.settings.timeout_seconds)
        late = threading.Event()
        patience = threading.Timer(self.settings.timeout_seconds, cut, (connection, late))
        patience.start()
        try:
            path = (self.url.path or "/") + (f"?{self.url.query}" if self.url.query else "")
            connection.request("POST", path, notice.body, {
                "Content-Type": "application/json", "User-Agent": f"opusagent/{__version__}", "Connection": "close",
                SIGNATURE: signed(self.settings.secret, notice.body, time.time()),
                "OpusAgent-Delivery": notice.id, "OpusAgent-Attempt": str(notice.attempts)})
            answer = connection.getresponse()
            after = answer.headers.get("Retry-After", "")
            return answer.status, float(after) if after.isascii() and after.isdigit() else 0.0
        except (OSError, http.client.HTTPException):
            if late.is_set():
                raise TimeoutError from None            # not the peer has ended it
            raise
        finally:
            patience.cancel()
            connection.close()

    def _over(self, notice: Notice, outcome: str) -> None:
        self.waiting.pop(notice.id, None)
        self._tell(outcome)

    def _tell(self, outcome: str) -> None:
        with suppress(RuntimeError):                    # the loop has ended
            self.loop.call_soon_threadsafe(lambda: self._count("webhook", outcome=outcome))


def cut(connection: http.client.HTTPConnection, late: threading.Event) -> None:
    """An answer that comes byte by byte is none: whoever reads it gets an error."""
    late.set()
    if (sock := connection.sock) is not None:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def said(error: Exception) -> str:
    """What went wrong, without what the peer wrote."""
    if isinstance(error, socket.gaierror):
        return "its name has no address"
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted, {error.verify_message}"
    return getattr(error, "strerror", None) or type(error).__name__


def begin(settings, count) -> Notices | None:
    """The notices that the configuration asks for, if it does.  ConfigError."""
    return Notices(settings, count) if settings.url else None
