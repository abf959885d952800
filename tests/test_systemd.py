"""The shipped units in a real systemd: sandbox, socket, watchdog, reload, upgrade, and the calls over all of it."""
import asyncio
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import systemd
from opusagent import cli

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import restart      # noqa: E402

pytestmark = pytest.mark.skipif(systemd.missing() is not None, reason=str(systemd.missing()))

UNIT = "opusagent.service"
CALLS = 5
CONFIGURATION = """
port = {port}
workers = 1
flow = "/etc/opusagent/flow.toml"
stt = "scripted"
llm = "scripted"
tts = "scripted"
[scripted]
stt = "/etc/opusagent/says.txt"
[archive]
directory = "/var/lib/opusagent/calls"
journals = false
transcripts = true
[admission]
refuse_above = 1.0
resume_below = 1.0
"""
BESIDES = """
[Service]
StandardOutput=append:{log}
StandardError=append:{log}
WatchdogSec=4
Environment=PYTHONPATH={path} PYTHONUNBUFFERED=1
"""


class Service:
    """The server as `install-service` installs it, under a systemd of its own."""

    def __init__(self):
        self.manager = manager = systemd.Systemd()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        ours = manager.etc / "opusagent"
        ours.mkdir()
        Path(ours, "opusagent.toml").write_text(CONFIGURATION.format(port=self.port))
        Path(ours, "flow.toml").write_text(restart.FLOW)
        Path(ours, "says.txt").write_text("yes\n")
        os.chmod(ours, 0o755)
        os.environ.pop("OPUSAGENT_CONFIG", None)
        there = Path(manager.place.name, "opusagent.toml")      # what is installed from, at its place in there
        there.write_text(CONFIGURATION.format(port=self.port))
        assert cli.main(["install-service", "--config", str(there), "--dir", str(manager.units)]) == 0
        text = Path(manager.units, UNIT).read_text()
        Path(manager.units, UNIT).write_text(text.replace(str(there), "/etc/opusagent/opusagent.toml"))
        self.log = Path(manager.place.name, "log")
        besides = Path(manager.units, f"{UNIT}.d")
        besides.mkdir()
        Path(besides, "test.conf").write_text(BESIDES.format(log=self.log, path=Path(cli.__file__).parent.parent))
        manager.start("opusagent.socket")

    def get(self, path):
        with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return answer.read().decode()

    def begin(self):
        """The first connection starts it."""
        assert self.manager.show(UNIT, "ActiveState") == "inactive"
        try:
            assert self.get("/livez") == "alive\n"
        except OSError as error:
            raise AssertionError(self.said()) from error

    def said(self):
        return (self.log.read_text(errors="replace") if self.log.exists() else "") + self.manager.said

    def calling(self, then, count=CALLS):
        """Callers who listen to a long story, and what `then()` does meanwhile; how many were understood in the end."""
        async def call():
            callers = restart.Callers(self.port)
            try:
                await callers.dial(count, 0.05 * count)
                await asyncio.sleep(1)
                await asyncio.to_thread(then)
                await callers.hear_out(40)
                return await callers.answer(20)
            finally:
                callers.stop()
        return asyncio.run(call())

    def until(self, true, seconds=30):
        give_up = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < give_up, self.said()
            time.sleep(0.1)

    def upgrade(self):
        before = self.main()
        os.kill(self.manager.pids(UNIT)[0], signal.SIGUSR2)
        self.until(lambda: self.main() not in (before, "0") and self.manager.show(UNIT, "ActiveState") == "active")

    def main(self):
        return self.manager.show(UNIT, "MainPID")


@pytest.fixture
def service():
    service = Service()
    yield service
    service.manager.stop()


def test_the_first_caller_starts_it_in_its_sandbox_and_a_stop_lets_the_last_finish(service):
    service.begin()
    assert service.manager.show(UNIT, "ActiveState") == "active"
    assert service.manager.show(UNIT, "StatusText") == "1 workers serve."
    supervisor, worker, *_ = service.manager.pids(UNIT)
    for pid in (supervisor, worker):
        facts = systemd.status(pid)
        assert facts["Uid"].split()[0] != "0" and facts["NoNewPrivs"] == "1" and facts["Seccomp"] == "2", facts
        assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0

    def stop():
        service.manager.run("systemctl", "stop", "--no-block", "opusagent.socket", UNIT)
        service.until(lambda: service.manager.show(UNIT, "ActiveState") == "deactivating")
    assert service.calling(stop) == CALLS, service.said()
    service.until(lambda: service.manager.show(UNIT, "ActiveState") == "inactive")
    assert service.manager.show(UNIT, "Result") == "success", service.said()
    kept = service.manager.run("find", "/var/lib/opusagent/calls", "-name", "*.json", "-user", "opusagent")
    assert len(kept.split()) == CALLS, service.said()


def test_the_calls_of_a_supervisor_that_dies_lie_with_systemd_and_with_each_that_follows_too(service):
    def kept():
        return int(service.manager.show(UNIT, "NFileDescriptorStore"))

    def kill():
        before = service.main()
        service.until(lambda: kept() == 2 + CALLS)          # with the arenas in which they lie
        for pid in service.manager.pids(UNIT):
            os.kill(pid, signal.SIGKILL)
        service.until(lambda: service.main() not in (before, "0")
                      and service.manager.show(UNIT, "ActiveState") == "active")
    service.begin()
    service.manager.run("sed", "-i", "s/^workers = 1/workers = 2/", "/etc/opusagent/opusagent.toml")
    service.upgrade()                                       # to one that has another arena, too
    assert service.calling(kill) == CALLS, service.said()
    service.until(lambda: kept() == 2)
    assert service.calling(kill) == CALLS, service.said()
    assert service.manager.show(UNIT, "NRestarts") == "2"


def test_an_upgrade_and_a_reload_are_no_restart_and_a_stop_is_as_before(service):
    def then():
        service.upgrade()
        service.manager.run("systemctl", "reload", UNIT)
        service.until(lambda: service.manager.show(UNIT, "ActiveState") == "active")
        service.manager.run("systemctl", "stop", "--no-block", "opusagent.socket", UNIT)
    service.begin()
    assert service.calling(then) == CALLS, service.said()
    service.until(lambda: service.manager.show(UNIT, "ActiveState") == "inactive")
    assert service.manager.show(UNIT, "NRestarts") == "0"
    assert service.manager.show(UNIT, "Result") == "success", service.said()


def test_a_stop_waits_for_calls_that_an_upgrade_has_left_behind(service):
    """They began before a reload, and finish in the process that is no longer the service's main one."""
    def then():
        service.manager.run("systemctl", "reload", UNIT)
        service.until(lambda: len(service.manager.pids(UNIT)) == 3)
        service.until(lambda: service.manager.show(UNIT, "ActiveState") == "active")
        service.upgrade()
        service.manager.run("systemctl", "stop", "--no-block", "opusagent.socket", UNIT)
        service.until(lambda: service.manager.show(UNIT, "ActiveState") == "deactivating")
        with pytest.raises(HTTPError, match="404"):         # there is somebody at the door all the while
            service.get("/readyz")
    service.begin()
    assert service.calling(then) == CALLS, service.said()
    service.until(lambda: service.manager.show(UNIT, "ActiveState") == "inactive")
    assert service.manager.show(UNIT, "Result") == "success", service.said()


def test_no_more_arenas_and_workers_are_kept_than_there_are_workers_configured(service):
    """What is left of those before a reload, or was more before an upgrade, goes with its last call."""
    def workers(count):
        before = service.manager.run("grep", "^workers", "/etc/opusagent/opusagent.toml").strip()
        service.manager.run("sed", "-i", f"s/^{before}/workers = {count}/", "/etc/opusagent/opusagent.toml")
        service.upgrade()

    def reload_and_upgrade():
        service.manager.run("systemctl", "reload", UNIT)
        service.until(lambda: len(service.manager.pids(UNIT)) == 3)     # who has the calls, and who gets new ones
        service.until(lambda: service.manager.show(UNIT, "ActiveState") == "active")
        service.upgrade()
    service.begin()
    assert service.calling(reload_and_upgrade) == CALLS, service.said()
    service.until(lambda: service.manager.show(UNIT, "NFileDescriptorStore") == "1")
    workers(2)
    assert service.calling(lambda: workers(1)) == CALLS, service.said()
    service.until(lambda: service.manager.show(UNIT, "NFileDescriptorStore") == "1")
    service.until(lambda: len(service.manager.pids(UNIT)) == 2)


def test_a_server_that_hangs_is_started_again(service):
    service.begin()
    before = service.main()
    os.kill(service.manager.pids(UNIT)[0], signal.SIGSTOP)
    service.until(lambda: service.manager.show(UNIT, "NRestarts") == "1" and service.main() not in (before, "0"), 60)
    service.until(lambda: service.manager.show(UNIT, "ActiveState") == "active")
    assert service.get("/livez") == "alive\n"


def test_nobody_who_connects_during_a_restart_is_refused(service):
    service.begin()
    service.manager.run("systemctl", "restart", "--no-block", UNIT)
    answered = 0
    until = time.monotonic() + 8
    while time.monotonic() < until:
        status = json.loads(service.get("/health"))["status"]   # waits in the socket while nobody accepts
        answered += status in ("healthy", "draining")
        time.sleep(0.02)
    assert answered > 20
    service.until(lambda: service.manager.show(UNIT, "ActiveState") == "active")
