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
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    calls = min(limit, 100_000)
    findings = graded(load(max_calls=calls), doctor.files)
    assert findings[0][0] == (doctor.BREAKS if calls * 2 + 256 > limit else doctor.FINE)


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
