"""The n-th send or recv fails, for every n and in every way: nothing crashes, leaks, or reaches another call."""
import json
import os
import subprocess
import sys

import builds
import pytest

REASON = builds.missing()


@pytest.mark.skipif(REASON is not None, reason=REASON or "")
def test_every_call_to_the_kernel_may_fail(tmp_path):
    library = builds.shared(tmp_path / "failing.so", [builds.TESTS / "failing.c"], "-O1")
    preload = f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()       # sanitizers come first
    done = subprocess.run([sys.executable, builds.TESTS / "failures.py"], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "LD_PRELOAD": preload})
    assert done.returncode == 0, done.stderr[-3000:]
    swept = json.loads(done.stdout)
    assert swept["wrong"] == [] and swept["runs"] > 1000
