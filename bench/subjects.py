"""The servers under test: how each is started, on which core, and which processes are its cost.

It measures nothing itself.  The rule: every subject gets the same core, the same limits and a free port, and all
its processes and threads count.
"""
import importlib.util
import os
import platform
import re
import resource
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

BENCH = Path(__file__).resolve().parent
BUILD = BENCH / ".build"
START_SECONDS = 60
STOP_SECONDS = 10


class Absent(Exception):
    """A subject, or the tool to build it, is not there: one sentence that says what to install."""


@dataclass(frozen=True, slots=True)
class Subject:
    name: str
    command: tuple[str, ...]            # "PORT" stands for the port
    path: str = "/"                     # of its WebSocket
    modules: tuple[str, ...] = ()       # Python modules it needs

    def absent(self) -> str | None:
        """Why it cannot run here, or None."""
        missing = [name for name in self.modules if importlib.util.find_spec(name) is None]
        if not missing:
            return None
        if missing == ["audioop"]:
            return f"{self.name} is left out: this Python has no audioop; pip install audioop-lts"
        return f"{self.name} is left out: {', '.join(missing)} is not installed; pip install '.[bench]'"


@dataclass(frozen=True, slots=True)
class Cores:
    """The cores of the server and of the client; None where there is but one."""
    server: int | None
    client: int | None
    fifo: bool = False                  # both under SCHED_FIFO (needs root; for machines that others use too)

    @classmethod
    def here(cls, fifo: bool = False) -> "Cores":
        usable = sorted(os.sched_getaffinity(0))
        return cls(usable[0], usable[1], fifo) if len(usable) > 1 else cls(None, None, fifo)

    def settle(self, core: int | None, fifo: bool = True) -> None:
        """Called in the child before it becomes the program."""
        if core is not None:
            os.sched_setaffinity(0, {core})
        if self.fifo and fifo:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))


class Running:
    """A subject that has been started and listens."""

    def __init__(self, subject: Subject, cores: Cores):
        self.subject = subject
        self.rss_kb = 0                 # of all its processes before the first connection; whoever measures sets it
        self.log = tempfile.TemporaryFile("a+")
        port = free_port()
        self.process = subprocess.Popen(
            [str(port) if word == "PORT" else word for word in subject.command], stdout=self.log, stderr=self.log,
            stdin=subprocess.DEVNULL, cwd=BENCH.parent, env=os.environ | {"PYTHONUNBUFFERED": "1"},
            preexec_fn=lambda: cores.settle(cores.server, fifo=False))
        self.fifo = cores.fifo
        try:
            self.port = self._listening(port)
            if self.fifo:
                self.schedule(os.SCHED_FIFO, 10)
        except BaseException:
            self.stop()
            raise

    def _listening(self, port: int) -> int:
        """The port it listens on: the one given, or the one it says after `listening on`."""
        announces = "serve" in self.subject.command
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self.process.poll() is None:
            if announces:
                if said := re.search(r"listening on http://\S+:(\d+)", self.said()):
                    return int(said[1])
            else:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        return port
            time.sleep(0.05)
        last = self.said().strip().splitlines()[-1:] or ["it said nothing"]
        raise Absent(f"{self.subject.name} did not start: {last[0]}")

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def pids(self) -> list[int]:
        """The process and all that descend from it."""
        return descendants(self.process.pid)

    def schedule(self, policy: int, priority: int) -> None:
        """All its threads.  Under SCHED_FIFO only while it serves: a process that takes note of a child's end can stand
        in the kernel for ever where somebody of the ordinary class, on the same core, is looking at that in /proc."""
        for pid in self.pids():
            for thread in Path(f"/proc/{pid}/task").glob("*"):
                with suppress(OSError):         # it has just ended
                    os.sched_setscheduler(int(thread.name), policy, os.sched_param(priority))

    def stop(self) -> None:
        if self.process.poll() is None:
            if self.fifo:
                self.schedule(os.SCHED_OTHER, 0)
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()


def peer(name: str, program: str, what: str, *modules: str) -> Subject:
    needs = (*modules, "audioop") if what == "twilio" else modules
    return Subject(name, (sys.executable, str(BENCH / "peers" / program), "PORT", what), modules=needs)


def ours(path: str, *flags: str, checkout: str = "") -> Subject:
    """`checkout`: another one, with its compiled module built in it, instead of what is installed."""
    python = ("env", f"PYTHONPATH={checkout}", sys.executable) if checkout else (sys.executable,)
    command = (*python, "-P", "-m", "opusagent.cli", "serve", "--port", "0", "--workers", "1", *flags)
    return Subject(f"OpusAgent in {checkout}" if checkout else "OpusAgent", command, path)


def descendants(root: int) -> list[int]:
    """`root` and its children, and theirs, from /proc."""
    parent = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path("/proc", entry, "stat").read_text()
            except OSError:
                continue                # it has just ended
            parent[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    found = [root]
    for pid in found:
        found += [child for child, its in parent.items() if its == pid]
    return found


def processor_ns(pids: list[int]) -> int:
    """Time that all threads of these processes have spent on a processor so far."""
    total = 0
    for pid in pids:
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                total += int(path.read_text().split()[0])
            except OSError:
                continue                # the thread has just ended
    return total


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def build(program: str) -> str:
    """Compile bench/<program>.c where it or a header is newer than its binary; returns the binary's path."""
    source, binary = BENCH / f"{program}.c", BUILD / program
    BUILD.mkdir(exist_ok=True)
    newest = max(file.stat().st_mtime for file in (source, *BENCH.glob("*.h")))
    if not binary.exists() or binary.stat().st_mtime < newest:
        try:
            subprocess.run(["gcc", "-O3", "-Wall", "-Wextra", "-o", str(binary), str(source)], check=True)
        except FileNotFoundError:
            raise Absent("gcc is not installed; apt install gcc libc6-dev") from None
        except subprocess.CalledProcessError:
            raise Absent(f"{source.name} did not compile") from None
    return str(binary)


def allow_connections(n: int) -> None:
    """Raise the limit of open files, which children inherit, to hold `n` connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = n + 200
    if soft < need:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(need, hard) if hard != resource.RLIM_INFINITY else need, hard))


def machine() -> dict[str, str]:
    """What the figures were measured on, for whoever reads them elsewhere."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=BENCH, capture_output=True, text=True)
    versions = {name: metadata.version(name) for name in ("uvloop", "picows", "websockets", "fastapi", "uvicorn")
                if importlib.util.find_spec(name)}
    return {"cpu": f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores", "kernel": platform.release(),
            "python": platform.python_version(), "commit": commit.stdout.strip() or "unknown",
            "date": time.strftime("%Y-%m-%d"), **versions}
