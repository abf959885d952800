"""The server as its users run it: a process of its own, started by the command, found by the line that it prints.

The rule: what it writes to stderr is kept and can be asked for; a test that ends leaves no process behind.
"""

from __future__ import annotations

import importlib.util
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

START_SECONDS, STOP_SECONDS = 90, 15
# one worker that starts at once and needs no extra
SCRIPTED = ("--workers", "1", "--stt", "scripted", "--llm", "scripted", "--tts", "scripted")
LISTENING = re.compile(rb"listening on http(s?)://(\[[\w:]+\]|[\w.\-]+):(\d+)")


def missing() -> str | None:
    """Why the server cannot be started here, or None."""
    for module in ("opusagent", "opusagent.cli", "opusagent.daemon.serve", "opusagent.server.worker"):
        if importlib.util.find_spec(module) is None:
            return f"there is no {module} to start"
    return None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def tls_flags(folder: Path) -> tuple[str, ...]:
    """What has the server speak TLS, with a certificate that is made in this folder; skips where it cannot be made."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl to make a certificate with")
    key, certificate = str(folder / "key.pem"), str(folder / "certificate.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", certificate],
                   check=True, capture_output=True)
    return "--tls-cert", certificate, "--tls-key", key


@dataclass(slots=True)
class Served:
    """A running server."""

    host: str
    port: int
    tls: bool
    process: subprocess.Popen
    errors: Path  # what it has written to stderr so far

    def ws(self, route: str) -> str:
        return f"ws{'s' if self.tls else ''}://{self.host}:{self.port}{route}"

    def written(self) -> str:
        return self.errors.read_text(errors="replace")

    def family(self) -> list[int]:
        """The process and its descendants."""
        found, parents = [self.process.pid], {self.process.pid}
        rows = sorted((pid, stat_parent(pid)) for pid in map(int, filter(str.isdigit, os.listdir("/proc"))))
        for pid, parent in rows:
            if parent in parents:
                parents.add(pid)
                found.append(pid)
        return found

    @property
    def worker(self) -> int:
        """The first process that the supervisor has started: with one worker, that."""
        return self.family()[1]

    def alive(self) -> bool:
        return self.process.poll() is None


def stat_parent(pid: int) -> int:
    """The parent of a process; 0 when it has gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


@contextmanager
def serving(*flags: str, environment: dict[str, str] | None = None, inside: tuple[str, ...] = ()) -> Iterator[Served]:
    """Start `opusagent serve` on a free port of loopback, wait until it listens, stop it with SIGTERM.  `inside`: words
    before the command that have it run elsewhere (machines.py)."""
    with tempfile.NamedTemporaryFile(prefix="served-", suffix=".stderr") as errors:
        process = subprocess.Popen(
            [*inside, sys.executable, "-P", "-m", "opusagent.cli", "serve", "--port", "0", *flags],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env={**os.environ, **(environment or {})})
        try:
            tls, host, port = listening(process, process.stdout, Path(errors.name))
            yield Served(host, port, tls, process, Path(errors.name))
        finally:
            stop(process)


def listening(process: subprocess.Popen, output: IO[bytes], errors: Path) -> tuple[bool, str, int]:
    """Whether it speaks TLS, host and port, once the server has said that it listens."""
    said = b""
    deadline = time.monotonic() + START_SECONDS
    while (match := LISTENING.search(said)) is None:
        ready, _, _ = select.select([output], [], [], max(0, deadline - time.monotonic()))
        piece = os.read(output.fileno(), 4096) if ready else b""
        if not piece:
            process.kill()
            raise RuntimeError(f"the server does not listen: {said!r} {errors.read_text(errors='replace')[-2000:]}")
        said += piece
    return bool(match[1]), match[2].decode(), int(match[3])


def stop(process: subprocess.Popen) -> None:
    """SIGTERM, and SIGKILL for one that does not go."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
