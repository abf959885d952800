"""What is shipped for systemd and the kernel: hardened as far as is promised, and each setting with its reason."""
import re
import shutil
import subprocess
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parent.parent / "deploy"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_the_unit_is_hardened():
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--no-pager",
                           str(DEPLOY / "opusagent.service")], capture_output=True, text=True, timeout=60, check=False)
    found = re.search(r"exposure level for opusagent.service: ([\d.]+)", done.stdout)
    if not found:
        pytest.skip(f"this systemd-analyze cannot: {done.stderr[:200]}")
    assert float(found[1]) <= 1.5


def test_the_drain_fits_into_the_time_to_stop():
    from opusagent.config import Config
    stop = re.search(r"^TimeoutStopSec=(\d+)", (DEPLOY / "opusagent.service").read_text(), re.MULTILINE)
    assert int(stop[1]) > Config().drain_seconds


def test_each_sysctl_has_its_reason():
    lines = (DEPLOY / "60-opusagent.conf").read_text().splitlines()
    for before, line in zip(lines, lines[1:]):
        assert line.startswith("#") or before.startswith("# ") and re.fullmatch(r"[a-z0-9_.]+ = [\d ]+", line), line
