"""The suites that touch the compiled module, while something watches every access of it to memory.

    python tests/sanitize.py [pytest's arguments]               AddressSanitizer and UndefinedBehaviorSanitizer
    python tests/sanitize.py --valgrind [pytest's arguments]    valgrind: sees what is read before it was written, too

The first needs gcc with libasan and libubsan, and ends at the first fault with a report on stderr.  The second takes
some twenty times as long, so it has fewer suites and examples, and lists its findings at the end.  Both need cython
where the last build's C is older than its source.  That a fault is found at all is proved by test_sanitized.py.
"""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import builds

RUNTIMES = ("libasan.so", "libubsan.so")
QUICK = ("test_media_kernels.py", "test_ear.py", "fuzz/test_frames.py")     # what reads the bytes of strangers
SUITES = ("test_websocket.py", "test_media_kernels.py", "test_audio.py", "test_ear.py", "fuzz", "test_sockets.py",
          "test_deadlines.py", "test_unattended.py", "test_kernels.py", "test_memory.py", "test_acoustics.py",
          "test_loop.py", "test_turn.py", "test_dialects.py", "test_handover.py", "test_failures.py", "test_call.py",
          "test_openai_speech.py", "test_metrics.py", "test_stereo.py", "test_stalls.py", "test_signals.py")
ELSEWHERE = {   # suites that import the compiled module and are not watched, and why
    "test_host.py": "its engine processes are killed in the midst of their work",
    "test_engine_faults.py": "its engine processes are killed in the midst of their work",
    "test_embedded.py": "it is pocketsphinx that works there",
    "test_voices.py": "its voices are programs of their own, which stand still with the sanitizers loaded into them",
    "test_turn_model.py": "it is onnxruntime that works there",
    "test_prompts.py": "it starts servers, which are not watched",
    "test_interop_realtime.py": "it talks to clients of other people's",
    "test_transport_bounds.py": "it counts memory and system calls, and these are then the watcher's",
    "test_layers.py": "it reads imports and runs nothing",
}
UNDER_VALGRIND = ("test_kernels.py", "test_media_kernels.py", "test_ear.py", "test_audio.py", "test_websocket.py",
                  "test_memory.py", "test_unattended.py", "fuzz/test_frames.py", "fuzz/test_corpus.py")
VALGRIND = ("valgrind", "--quiet", "--num-callers=30", "--xml=yes")

UNHURRIED = ("-q", "-p", "no:cacheprovider", "--hypothesis-profile=ci")     # of pytest: no example has a deadline


def watched(directory: Path | str) -> dict[str, str]:
    """The environment of a Python that runs with the sanitizers, and finds modules in `directory` first."""
    return {**os.environ, **builds.WATCHING, "PYTHONPATH": str(directory),
            "LD_PRELOAD": " ".join(map(builds.runtime, RUNTIMES))}


def observed(directory: Path | str) -> dict[str, str]:
    """The environment of a Python that runs under valgrind, and finds modules in `directory` first."""
    return {**os.environ, "PYTHONMALLOC": "malloc", "PYTHONPATH": str(directory)}


def run(arguments: list[str], flags: tuple[str, ...] = builds.SANITIZED, **environment: str) -> int:
    """Build with the sanitizers, run, and pytest's exit code."""
    with tempfile.TemporaryDirectory(prefix="sanitized-") as directory:
        built = builds.package(Path(directory), [builds.in_c(Path(directory))], *flags)
        return tested(Path(directory), arguments, watched(built) | environment)


def run_under_valgrind(arguments: list[str]) -> int:
    """Build as it ships but for the symbols, run, print what was found; pytest's exit code, or 1 if anything was."""
    with tempfile.TemporaryDirectory(prefix="observed-") as directory:
        built = builds.package(Path(directory), [builds.in_c(Path(directory))], *builds.PLAIN)
        environment = {"OPUSAGENT_FUZZ": "0.2"} | observed(built)
        report = Path(directory) / "report.xml"
        code = tested(Path(directory), arguments, environment, *VALGRIND, f"--xml-file={report}")
        found, others = findings(report, f"_fastpath{builds.SUFFIX}")
    print(*found, f"valgrind: {len(found)} findings in the compiled module, {others} that it has no part in", sep="\n")
    return code or bool(found)


def tested(directory: Path, arguments: list[str], environment: dict[str, str], *watcher: str) -> int:
    """pytest's exit code, with the module that was built into the directory."""
    which = [sys.executable, "-P", "-c", "import opusagent._fastpath as module; print(module.__file__)"]
    found = subprocess.check_output(which, env=environment, text=True)
    assert found.startswith(str(directory)), f"{found.strip()} was imported, not what was built"
    command = [*watcher, sys.executable, "-P", "-m", "pytest", *UNHURRIED, *arguments]
    return subprocess.run(command, env=environment, cwd=builds.TESTS).returncode


def findings(report: Path, module: str) -> tuple[list[str], int]:
    """What valgrind reports of the module of this file name, a line each, and how much of everything else.

    What an interpreter that ends leaves to the system is no finding.
    """
    found, others = [], 0
    for error in ElementTree.parse(report).iter("error"):
        if error.findtext("kind").startswith("Leak"):       # --xml looks for those, too
            continue
        places = [place for place in error.find("stack") if Path(place.findtext("obj", "")).name == module]
        if places:
            where = places[0]
            found.append(f"{error.findtext('what')}: "
                         f"{where.findtext('fn')} ({where.findtext('file')}:{where.findtext('line')})")
        else:
            others += 1
    return found, others


def main(arguments: list[str]) -> str | int:
    """An exit code, or why nothing could be run."""
    if "--valgrind" in arguments:
        arguments.remove("--valgrind")
        return (missing_valgrind() or builds.missing() or builds.missing_source()
                or run_under_valgrind(arguments or list(UNDER_VALGRIND)))
    return builds.missing(*RUNTIMES) or builds.missing_source() or run(arguments or list(SUITES))


def missing_valgrind() -> str | None:
    return None if shutil.which("valgrind") else "there is no valgrind"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
