"""The command `install-service`: the unit of this installation, and nothing that is there harmed."""
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from opusagent import ConfigError, unit
from opusagent.cli import main
from opusagent.config import Config

PROGRAM = ["/opt/my voice/bin/opusagent"]


def lines(text):
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


def test_the_unit_names_this_installation_and_its_settings():
    config = Config.load({"port": 9001, "drain_seconds": 60.0, "archive.directory": "/srv/calls"}, {})
    texts = unit.units(config, "/etc/oa/100%.toml", "nobody", PROGRAM)
    found = lines(texts[unit.UNIT])
    assert found["ExecStart"] == '"/opt/my voice/bin/opusagent" serve --config /etc/oa/100%%.toml'
    assert (found["User"], found["TimeoutStopSec"], found["ReadWritePaths"]) == ("nobody", "90", "/srv/calls")
    assert found["ProtectHome"] == "yes" and found["NoNewPrivileges"] == "yes"
    assert lines(texts[unit.SOCKET])["ListenStream"] == "127.0.0.1:9001"


def test_directories_of_the_unit_are_writable_anyway_and_others_are_made_before(tmp_path):
    own = Config.load({"archive.directory": "/var/lib/opusagent/calls", "prompts.directory": "/var/cache/opusagent"},
                      {})
    assert "ReadWritePaths" not in lines(unit.units(own, None, "nobody", PROGRAM)[unit.UNIT])
    place = tmp_path / "my calls"
    other = Config.load({"archive.directory": str(place)}, {})
    assert lines(unit.units(other, None, "nobody", PROGRAM)[unit.UNIT])["ReadWritePaths"] == f'"{place}"'
    made = f"install -d -m 700 -o nobody -g {unit._group('nobody')} '{place}'"
    assert made in unit.next_commands(None, "nobody", unit.written_to(other))
    place.mkdir()
    assert made not in unit.next_commands(None, "nobody", unit.written_to(other))


@pytest.mark.parametrize("host, listen", [
    ("localhost", "127.0.0.1:8000"), ("", "8000"), ("::1", "[::1]:8000"), ("10.0.0.7", "10.0.0.7:8000")])
def test_the_socket_listens_where_the_configuration_says(host, listen):
    config = Config.load({"host": host, "insecure": True}, {})
    assert lines(unit.units(config, None, "nobody", PROGRAM)[unit.SOCKET])["ListenStream"] == listen


@pytest.mark.parametrize("settings, sentence", [
    ({"host": "voice.example", "insecure": True}, "is a name"), ({"port": 0}, "another one than 0")])
def test_what_systemd_cannot_listen_on_is_refused(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        unit.units(Config.load(settings, {}), None, "nobody", PROGRAM)


def test_the_unit_has_room_for_all_calls_of_a_large_machine_and_never_less_than_as_it_is_shipped():
    def room(text):
        return [int(lines(text)[name]) for name in ("FileDescriptorStoreMax", "TasksMax", "LimitNOFILE")]

    def unit_of(**settings):
        return unit.units(Config.load(settings, {}), None, "nobody", PROGRAM)[unit.UNIT]
    assert room(unit_of(workers=1, max_calls=100)) == room(unit.shipped(unit.UNIT)) == [2048, 512, 65536]
    assert room(unit_of(workers=8, max_calls=600)) == [8 * 604, 8 * 64, 65536]
    kept, *rest = room(unit_of(workers=63, max_calls=600))
    assert rest == [63 * 64, 63 * 1200 + 256]
    named = len("LISTEN_FDNAMES=") + kept * len("call-4294967295-200000:")
    assert 0.9 < named / (32 * os.sysconf("SC_PAGE_SIZE")) < 1          # MAX_ARG_STRLEN of the kernel


@pytest.mark.parametrize("key, value", [("archive.directory", "calls"), ("flow", "my.toml"), ("flow", "my.py:flow")])
def test_what_systemd_would_look_for_elsewhere_is_refused(tmp_path, monkeypatch, key, value):
    monkeypatch.chdir(tmp_path)
    for name in ("my.toml", "my.py"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=f"{value} is relative: write {tmp_path}/{value}"):
        unit.units(Config.load({key: value}, {}), None, "nobody", PROGRAM)


def test_an_installation_in_a_home_can_see_itself():
    units = unit.units(Config(), None, "nobody", ["/home/me/bin/opusagent"])
    assert lines(units[unit.UNIT])["ProtectHome"] == "read-only"
    interpreter = ("/root/python3.11/bin/python3",)         # of a venv elsewhere
    assert lines(unit.units(Config(), None, "nobody", PROGRAM, interpreter)[unit.UNIT])["ProtectHome"] == "read-only"


def test_nothing_is_written_over_without_force(tmp_path, capsys):
    words = ["install-service", "--user", "nobody", "--dir", str(tmp_path)]
    (tmp_path / unit.SOCKET).write_text("mine")
    assert main(words) == 2 and "--force" in capsys.readouterr().err
    assert os.listdir(tmp_path) == [unit.SOCKET] and (tmp_path / unit.SOCKET).read_text() == "mine"
    assert main([*words, "--force"]) == 0
    assert sorted(os.listdir(tmp_path)) == [unit.UNIT, unit.SOCKET]
    assert "systemctl daemon-reload" in capsys.readouterr().out


def test_only_root_writes_to_the_systems_directory(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="Only root"):
        unit.write({unit.UNIT: ""}, Path(unit.DIRECTORY), force=True)


def test_print_writes_nothing(tmp_path, capsys):
    assert main(["install-service", "--print", "--dir", str(tmp_path)]) == 0
    assert not os.listdir(tmp_path) and "ExecStart=" in capsys.readouterr().out


def test_the_configuration_may_be_named_by_its_variable(tmp_path, capsys, monkeypatch):
    (tmp_path / "o.toml").write_text("port = 9000\n")
    monkeypatch.setenv("OPUSAGENT_CONFIG", str(tmp_path / "o.toml"))
    assert main(["install-service", "--print"]) == 0
    said = capsys.readouterr().out
    assert f"serve --config {tmp_path}/o.toml\n" in said and "ListenStream=127.0.0.1:9000" in said


@pytest.mark.parametrize("user", ["", "an operator", "opus\nExecStartPre=/bin/false", "-x"])
def test_what_cannot_be_a_user_is_refused(user, capsys):
    """An empty User= would be root."""
    assert main(["install-service", "--print", f"--user={user}"]) == 2
    said = capsys.readouterr()
    assert not said.out and said.err.startswith("opusagent: --user: ")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_finds_the_unit_as_hardened_as_the_shipped_one(tmp_path):
    assert main(["install-service", "--user", "nobody", "--dir", str(tmp_path)]) == 0
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20",
                           str(tmp_path / unit.UNIT)], capture_output=True, text=True, timeout=60, check=False)
    if "exposure level" not in done.stdout:
        pytest.skip(f"this systemd-analyze cannot: {done.stderr[:200]}")
    assert done.returncode == 0, done.stdout[-500:]
