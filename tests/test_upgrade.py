"""The command `upgrade`: which server is meant, and what is said of it."""
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import systemd

from opusagent import ConfigError
from opusagent.daemon import upgrade

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import restart      # noqa: E402

LISTED = """Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0005 01 23456 @opusagent-supervisor-4711
0000000000000000: 00000002 00000000 00010000 0001 01 23457 /run/dbus/system_bus_socket
0000000000000000: 00000002 00000000 00010000 0005 01 23458 @opusagent-supervisor-815
0000000000000000: 00000003 00000000 00000000 0005 03 23459 @opusagent-supervisor-815
"""


def test_the_servers_of_a_machine_are_those_that_listen_for_it():
    assert upgrade.running(LISTED) == [815, 4711]
    assert upgrade.running("Num       RefCount Protocol Flags    Type St Inode Path\n") == []


@pytest.mark.parametrize("listed, pid, sentence", [
    ([], None, "No server runs here"),
    ([815, 4711], None, "of 815, 4711"),
    ([815], 4711, "Process 4711 is no supervisor of opusagent; there is 815."),
])
def test_no_server_is_guessed(monkeypatch, listed, pid, sentence):
    monkeypatch.setattr(upgrade, "running", lambda text: listed)
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        upgrade.which(pid)


def run(pid):
    done = subprocess.run([sys.executable, "-P", "-m", "opusagent.cli", "upgrade", "--pid", str(pid)],
                          capture_output=True, text=True, timeout=100, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_it_says_whether_the_successor_has_taken_over():
    server = restart.Server()
    flow = Path(server.place.name, "flow.toml")
    try:
        good = flow.read_text()
        flow.write_text("this is no flow")
        code, said = run(server.process.pid)
        assert code == 1 and "The old server goes on" in said and said.count("\n") == 1
        assert server.process.poll() is None
        flow.write_text(good)
        code, said = run(server.process.pid)
        successor = int(re.match(r"Process (\d+) has taken over from process (\d+)\.", said)[1])
        assert code == 0 and successor != server.process.pid and said.count("\n") == 1
        assert server.process.wait(20) == 0
        assert successor in upgrade.running(Path("/proc/net/unix").read_text())
        assert server.metric("calls_total") == 0            # it answers
    finally:
        server.stop()


def test_all_who_ask_for_an_upgrade_meanwhile_hear_how_it_ends():
    server = restart.Server()
    try:
        with ThreadPoolExecutor() as pool:
            said = list(pool.map(run, [server.process.pid] * 3))
        assert [code for code, _ in said] == [0, 0, 0], said
        assert len(set(re.findall(r"Process (\d+) has taken over", str(said)))) == 1, said
    finally:
        server.stop()


@pytest.mark.skipif(systemd.missing() is not None, reason=str(systemd.missing()))
def test_process_1_stays_where_it_is_since_its_container_ends_with_it():
    with subprocess.Popen(
            ["unshare", "--pid", "--net", "--mount", "--fork", "--kill-child", "--mount-proc", sys.executable, "-P",
             "-m", "opusagent.cli", "serve", "--port", "0", "--workers", "1", "--stt", "scripted", "--llm", "scripted",
             "--tts", "scripted"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout.readline().startswith("listening on")
            first, = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
            done = subprocess.run(["nsenter", "-t", first, "-p", "-n", "-m", sys.executable, "-P", "-m",
                                   "opusagent.cli", "upgrade"], capture_output=True, text=True, timeout=100)
            assert done.returncode == 1 and "replace the container. The old server goes on" in done.stderr
            assert server.poll() is None
        finally:
            server.kill()


def test_a_process_that_is_no_server_is_left_alone():
    code, said = run(os.getpid())
    assert code == 2 and f"Process {os.getpid()} is no supervisor" in said
