"""The suites that touch the compiled module, with AddressSanitizer and UndefinedBehaviorSanitizer in it.

    python tests/sanitize.py [pytest's arguments]

It needs gcc with libasan and libubsan, and cython where the last build's C is older than its source.  The first fault
ends the run with a report on stderr.  That a fault is found at all is proved by test_sanitized.py.
"""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import builds

RUNTIMES = ("libasan.so", "libubsan.so")
SUITES = ("test_websocket.py", "test_sockets.py", "test_unattended.py", "test_kernels.py", "test_memory.py",
          "test_dialects.py", "test_failures.py", "fuzz")


def watched(directory: Path | str) -> dict[str, str]:
    """The environment of a Python that runs with the sanitizers, and finds modules in `directory` first."""
    return {**os.environ, **builds.WATCHING, "PYTHONPATH": str(directory),
            "LD_PRELOAD": " ".join(map(builds.runtime, RUNTIMES))}


def run(arguments: list[str]) -> int:
    """Build, run, and pytest's exit code."""
    with tempfile.TemporaryDirectory(prefix="sanitized-") as directory:
        source = builds.in_c(Path(directory))
        environment = watched(builds.package(Path(directory), [source], *builds.SANITIZED))
        which = [sys.executable, "-P", "-c", "import opusagent._fastpath as module; print(module.__file__)"]
        found = subprocess.check_output(which, env=environment, text=True)
        assert found.startswith(directory), f"{found.strip()} was imported, not what was built"
        return subprocess.run([sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
                              env=environment, cwd=builds.TESTS).returncode


if __name__ == "__main__":
    sys.exit(builds.missing(*RUNTIMES) or builds.missing_source() or run(sys.argv[1:] or list(SUITES)))
