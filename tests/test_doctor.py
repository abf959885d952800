"""The doctor: every check on this machine, and each thing that can be wrong said in one sentence."""
import resource

import pytest

from opusagent import doctor
from opusagent.config import Config


def graded(config, check):
    return [(finding.grade, finding.sentence) for finding in check(config)]


def load(**settings):
    return Config.load(settings, {})


def test_every_check_runs_here_and_speaks_in_sentences():
    findings = doctor.examine(load(stt="scripted", tts="scripted"))
    assert {finding.grade for finding in findings} <= {doctor.FINE, doctor.CHANGE, doctor.BREAKS}
    assert all(finding.sentence.endswith(".") and "\n" not in finding.sentence for finding in findings)


def test_more_calls_than_files_would_break_one():
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    calls = min(limit, 100_000)
    findings = graded(load(max_calls=calls, workers=2), doctor.files)
    assert findings[0][0] == (doctor.BREAKS if calls * 4 + 256 > limit else doctor.FINE)


def test_calls_whose_tls_ends_here_are_said_to_end_with_their_worker(tmp_path):
    assert graded(load(), doctor.tls) == []
    chain, key = str(tmp_path / "chain.pem"), str(tmp_path / "key.pem")
    (grade, sentence), = graded(load(tls_cert=chain, tls_key=key), doctor.tls)
    assert grade == doctor.CHANGE and "lost with the worker" in sentence and "proxy" in sentence


def test_an_engine_without_a_key_would_break_a_call():
    assert graded(load(llm="openai"), doctor.keys) == [
        (doctor.BREAKS, "The llm engine is openai, and there is no key: set OPENAI_API_KEY.")]


def test_an_engine_that_is_none_would_break_a_call():
    grade, sentence = graded(load(stt="scripted", llm="nobody", tts="scripted"), doctor.engines)[0]
    assert grade == doctor.BREAKS and "nobody" in sentence


@pytest.mark.parametrize("broken, code", [(False, 0), (True, 1)])
def test_the_exit_code_says_whether_a_call_would_break(monkeypatch, capsys, broken, code):
    finding = doctor.Finding(doctor.BREAKS if broken else doctor.CHANGE, "Something.")
    monkeypatch.setattr(doctor, "CHECKS", (lambda config: [finding],))
    assert doctor.doctor_command(load()) == code
    assert "Something." in capsys.readouterr().out


@pytest.mark.parametrize("name, value, right", [
    ("net.core.somaxconn", "16384", True), ("net.core.somaxconn", "4096", False),
    ("net.ipv4.tcp_wmem", "4096 16384 4194304", False), ("net.ipv4.tcp_wmem", "4096 16384 131072", True),
    ("net.ipv4.tcp_slow_start_after_idle", "1", False), ("net.ipv4.tcp_slow_start_after_idle", "0", True)])
def test_a_sysctl_is_measured_against_the_drop_in(name, value, right):
    wanted = dict(line.split(" = ") for line in doctor.unit.shipped(doctor.unit.DROP_IN).splitlines() if " = " in line)
    assert doctor.right(name, value, wanted[name]) == right


def test_a_unit_that_starts_nothing_would_break_every_call():
    text = doctor.unit.shipped(doctor.unit.UNIT).replace("/opt/opusagent/bin/opusagent", "/nowhere/opusagent")
    grade, sentence = [(f.grade, f.sentence) for f in doctor.faults_of_unit(text, "the unit")][0]
    assert grade == doctor.BREAKS and "/nowhere/opusagent" in sentence


def test_a_unit_is_compared_with_the_shipped_one_line_by_line():
    text = doctor.unit.shipped(doctor.unit.UNIT).replace("PrivateTmp=yes\n", "")
    text = text.replace("/opt/opusagent/bin/opusagent serve --config /etc/opusagent/opusagent.toml", "/bin/sh")
    assert [(f.grade, "by PrivateTmp:" in f.sentence) for f in doctor.faults_of_unit(text, "the unit")] == [
        (doctor.CHANGE, True)]


@pytest.mark.parametrize("settings, said", [
    ({"port": 9001}, []),
    ({}, [(doctor.CHANGE, "listens on 127.0.0.1:9001, and the configuration says 127.0.0.1:8000")]),
    ({"port": 0}, [(doctor.BREAKS, "another one than 0")])])
def test_a_socket_that_listens_elsewhere_than_configured_is_told_of(settings, said):
    text = doctor.unit.units(load(port=9001), None, "nobody", ["/bin/true"])[doctor.unit.SOCKET]
    findings = list(doctor.faults_of_socket(text, "the socket", load(**settings)))
    assert [finding.grade for finding in findings] == [grade for grade, _ in said]
    assert all(words in finding.sentence for (_, words), finding in zip(said, findings, strict=True))


def test_a_unit_that_does_not_let_the_server_write_where_it_has_to_would_lose_what_calls_leave(tmp_path):
    def walls(config):
        text = doctor.unit.units(config, None, "nobody", ["/bin/true"])[doctor.unit.UNIT]
        return lambda now: [(f.grade, f.sentence) for f in doctor.walls_of_unit(text, "the unit",
                                                                               doctor.unit.written_to(now))]
    there, other = str(tmp_path), str(tmp_path / "other")
    before = walls(load(**{"archive.directory": there}))
    assert before(load(**{"archive.directory": there})) == []
    assert before(load(**{"archive.directory": other})) == []           # which lies below
    (grade, sentence), = before(load(**{"archive.directory": "/srv/other"}))
    assert grade == doctor.BREAKS and "does not let the server write to /srv/other" in sentence
    (grade, sentence), = walls(load(**{"archive.directory": other}))(load(**{"archive.directory": other}))
    assert grade == doctor.BREAKS and f"{other}, which is not there" in sentence


@pytest.mark.parametrize("setting, what", [("archive.directory", "Calls"), ("webhook.directory", "Notices")])
@pytest.mark.parametrize("place, why", [("{tmp_path}/file", "it is no directory"), ("/proc/nope", "No such file"),
                                        ("{tmp_path}/file/below", "Not a directory")])
def test_a_directory_that_cannot_be_written_to_would_lose_what_calls_leave(tmp_path, setting, what, place, why):
    (tmp_path / "file").write_text("")
    webhook = {"webhook.url": "http://127.0.0.1:9/", "webhook.secret": "a secret of at least 32 characters"}
    config = load(**{"prompts.directory": str(tmp_path), **webhook, setting: place.format(tmp_path=tmp_path)})
    (grade, sentence), (other, _) = graded(config, doctor.places)
    assert (grade, other) == (doctor.BREAKS, doctor.FINE)
    assert sentence.startswith(f"{what} cannot be kept in ") and why in sentence


def test_a_directory_that_the_server_will_make_is_none_to_complain_of(tmp_path):
    config = load(**{"archive.directory": str(tmp_path / "not" / "made" / "yet"), "prompts.directory": str(tmp_path)})
    assert [grade for grade, _ in graded(config, doctor.places)] == [doctor.FINE, doctor.FINE]
    assert not (tmp_path / "not").exists()


def test_huge_pages_that_are_always_made_are_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "HUGE_PAGES", tmp_path / "enabled")
    (tmp_path / "enabled").write_text("[always] madvise never\n")
    assert graded(load(), doctor.huge_pages)[0][0] == doctor.CHANGE
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    assert graded(load(), doctor.huge_pages)[0][0] == doctor.FINE


def test_of_an_account_nothing_secret_is_shown(monkeypatch):
    config = load(carriers={"main": {"platform": "twilio", "account": "AC" + "1" * 32, "secret": "never-to-be-seen"}})
    assert "never-to-be-seen" not in str(graded(config, doctor.accounts))


def test_a_flow_that_cannot_be_served_breaks_a_call(tmp_path):
    missing = tmp_path / "missing.toml"
    (finding,) = doctor.conversation(Config(flow=str(missing)))
    assert finding.grade == doctor.BREAKS and "cannot be read" in finding.sentence
    assert not list(doctor.conversation(Config()))
