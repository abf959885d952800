"""Timers read the monotonic clock, so that a jump of the time of day changes nothing."""
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent / "opusagent"
# Where it is meant: signatures that carry a time, the ages of files, the days of calls.
TIME_OF_DAY = {"archive.py", "carriers/rest.py", "gate.py", "notices.py", "prompts.py", "telephone.py"}


def test_the_time_of_day_is_for_signatures_and_files_alone():
    reads = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py")
             if re.search(r"(?<!date)\btime\.time(_ns)?\b", path.read_text())}
    assert reads - {"flow/authoring.py"} <= TIME_OF_DAY, reads
