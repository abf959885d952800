"""Timers read the monotonic clock, so that a jump of the time of day changes nothing."""
import asyncio
import os
import re
import sys
import time
from pathlib import Path

import builds
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import restart      # noqa: E402

ROOT = Path(__file__).parent.parent / "opusagent"
# Where it is meant: signatures that carry a time, the ages of files, the days of calls.
TIME_OF_DAY = {"carriers/rest.py", "client/telephone.py", "server/archive.py", "server/gate.py", "server/notices.py",
               "studio/prompts.py"}


def test_the_time_of_day_is_for_signatures_and_files_alone():
    reads = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py")
             if re.search(r"(?<!date)\btime\.time(_ns)?\b", path.read_text())}
    assert reads - {"flow/authoring.py"} <= TIME_OF_DAY, reads


JUMPS = (3600, -3600, 10 * 365 * 86400, 0)      # seconds: an hour on, an hour back, ten years, and right again


@pytest.mark.skipif(builds.missing() is not None, reason=builds.missing() or "")
def test_calls_do_not_notice_when_the_time_of_day_jumps(tmp_path):
    """A real server whose CLOCK_REALTIME is set while callers listen, and while they answer."""
    skew = tmp_path / "skew"
    skew.write_text("0")
    library = builds.shared(tmp_path / "skewed.so", [builds.TESTS / "skewed.c"], "-O1")
    preload = f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()
    server = restart.Server(environment={"LD_PRELOAD": preload, "SKEW": str(skew)})

    async def listened():
        callers = restart.Callers(server.port)
        try:
            await callers.dial(4, 0.1)
            begin = time.monotonic_ns()
            for seconds in JUMPS:
                await asyncio.sleep(2)
                skew.write_text(str(seconds))
            await callers.hear_out(30)
            gaps = [caller.gap_ms(begin, begin + 8_000_000_000) for caller in callers.callers]
            heard = [caller.samples for caller in callers.callers]
            skew.write_text(str(-JUMPS[2]))
            return gaps, heard, await callers.answer(20)
        finally:
            callers.stop()
    try:
        gaps, heard, understood = asyncio.run(listened())
        said = server.said()
    finally:
        server.stop()
    assert max(gaps) < 1000, gaps                           # speech is paced every 20 ms; the rest is a busy machine's
    whole = (2 * len(restart.SENTENCE) * restart.MS_PER_CHARACTER + restart.PAUSE_MS) * restart.RATE // 1000
    assert all(abs(samples - whole) < restart.RATE // 4 for samples in heard), heard
    assert understood == 4 and "dead air" not in said and "Traceback" not in said, said
    assert re.search(rf"^{time.gmtime(time.time() - JUMPS[2]).tm_year}-", said, re.MULTILINE)   # the log's clock jumped
