"""The sanitizers and valgrind find what was planted for them, and the sanitizers nothing in the compiled module."""
import re
import subprocess
import sys

import builds
import pytest
import sanitize

REASON = builds.missing(*sanitize.RUNTIMES)
NO_VALGRIND = sanitize.missing_valgrind() or builds.missing()
NO_SOURCE = builds.missing_source()
sanitizers = pytest.mark.skipif(REASON is not None, reason=REASON or "")
valgrind = pytest.mark.skipif(NO_VALGRIND is not None, reason=NO_VALGRIND or "")
source = pytest.mark.skipif(NO_SOURCE is not None, reason=NO_SOURCE or "")

FILL, TWICE = "print(len(planted.fill(100)))", "print(planted.twice(2**31 - 1))"
QUIET = "print(planted.quiet(100))"
IMPORT = re.compile(r"^(import opusagent\._fastpath|from opusagent(\._fastpath import| import .*_fastpath))", re.M)
FILE = f"planted{builds.SUFFIX}"


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """planted(flags): the directory of the extension built so."""
    directories = {}

    def build(*flags: str):
        if flags not in directories:
            directories[flags] = tmp_path_factory.mktemp("planted")
            builds.shared(directories[flags] / FILE, [builds.TESTS / "planted.c"], *flags)
        return directories[flags]
    return build


def say(words: str, environment: dict[str, str], *watcher: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a Python that says so to the extension."""
    done = subprocess.run([*watcher, sys.executable, "-P", "-S", "-c", "import planted; " + words], capture_output=True,
                          text=True, env=environment)
    return done.returncode, done.stdout, done.stderr


@sanitizers
@pytest.mark.parametrize("words, finding", [(FILL, "heap-buffer-overflow"), (TWICE, "signed integer overflow")],
                         ids=["a byte too many", "a sum too large"])
def test_a_planted_bug_is_caught_and_named(planted, words, finding):
    directory = planted(*builds.SANITIZED, "-DOA_PLANTED_BUG")
    code, printed, report = say(words, sanitize.watched(directory))
    assert code != 0 and printed == "" and finding in report and "planted.c" in report


@sanitizers
@pytest.mark.parametrize("words, printed", [(FILL, "100\n"), (TWICE, "4294967294\n")])
def test_without_it_nothing_is_reported(planted, words, printed):
    assert say(words, sanitize.watched(planted(*builds.SANITIZED))) == (0, printed, "")


@valgrind
@pytest.mark.parametrize("flags, found", [
    (["-DOA_PLANTED_BUG"], ["Conditional jump or move depends on uninitialised value(s): quiet (planted.c:"]),
    ([], [])], ids=["planted", "clean"])
def test_what_is_read_before_it_is_written_is_caught_by_valgrind(planted, tmp_path, flags, found):
    report = tmp_path / "report.xml"
    code, printed, _ = say(QUIET, sanitize.observed(planted(*builds.PLAIN, *flags)), *sanitize.VALGRIND,
                           f"--xml-file={report}")
    findings, _ = sanitize.findings(report, FILE)
    assert code == 0 and printed in ("True\n", "False\n")
    assert len(findings) == len(found) and all(map(str.startswith, findings, found))


def test_every_suite_that_imports_the_compiled_module_is_watched():
    touching = {path.name for path in builds.TESTS.glob("test_*.py") if IMPORT.search(path.read_text())}
    assert touching <= {*sanitize.SUITES} | sanitize.ELSEWHERE.keys()
    assert not {*sanitize.SUITES} & sanitize.ELSEWHERE.keys()


@sanitizers
@source
def test_frames_media_and_hearing_are_clean():
    """Some suites, with fewer examples than `sanitize.py` takes for all of them."""
    assert sanitize.run([*sanitize.QUICK], builds.SOON_SANITIZED, OPUSAGENT_FUZZ="0.2") == 0


@pytest.mark.soak
@sanitizers
@source
def test_the_compiled_module_is_clean():
    assert sanitize.run([*sanitize.SUITES]) == 0
