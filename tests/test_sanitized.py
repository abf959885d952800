"""The sanitizers find what was planted for them, and nothing in the compiled module."""
import subprocess
import sys

import builds
import pytest
import sanitize

REASON = builds.missing(*sanitize.RUNTIMES)
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

FILL, TWICE = "print(len(planted.fill(100)))", "print(planted.twice(2**31 - 1))"


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """said(flags, words): exit code, stdout and stderr of a Python that says so to the extension built so."""
    directories = {}

    def say(flags: tuple[str, ...], words: str) -> tuple[int, str, str]:
        if flags not in directories:
            directories[flags] = tmp_path_factory.mktemp("planted")
            builds.shared(directories[flags] / f"planted{builds.SUFFIX}", [builds.TESTS / "planted.c"],
                          *builds.SANITIZED, *flags)
        done = subprocess.run([sys.executable, "-P", "-c", "import planted; " + words], capture_output=True, text=True,
                              env=sanitize.watched(directories[flags]))
        return done.returncode, done.stdout, done.stderr
    return say


@pytest.mark.parametrize("words, finding", [(FILL, "heap-buffer-overflow"), (TWICE, "signed integer overflow")],
                         ids=["a byte too many", "a sum too large"])
def test_a_planted_bug_is_caught_and_named(said, words, finding):
    code, printed, report = said(("-DOA_PLANTED_BUG",), words)
    assert code != 0 and printed == "" and finding in report and "planted.c" in report


@pytest.mark.parametrize("words, printed", [(FILL, "100\n"), (TWICE, "4294967294\n")])
def test_without_it_nothing_is_reported(said, words, printed):
    assert said((), words) == (0, printed, "")


@pytest.mark.soak
@pytest.mark.skipif(builds.missing_source() is not None, reason=builds.missing_source() or "")
def test_the_compiled_module_is_clean():
    assert sanitize.run(list(sanitize.SUITES)) == 0
