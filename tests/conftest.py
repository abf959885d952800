"""What holds for every test: nothing of a user's own is read or written; what is held in real time needs a machine that
keeps it (realtime_pace.py)."""
import asyncio
import os
import tempfile

import pytest
import uvloop
from _pytest.runner import runtestprotocol

from realtime_pace import ATTEMPTS, Watch

WAIT = 30                       # seconds, before a scenario is taken to hang


def pytest_configure(config):
    """Prompts that servers keep live as long as the tests do."""
    config.cache_home = tempfile.TemporaryDirectory(prefix="opusagent-cache-")
    os.environ["XDG_CACHE_HOME"] = config.cache_home.name


def pytest_unconfigure(config):
    config.cache_home.cleanup()


# Files whose tests hold calls, or start servers and engine processes, in real time.
REAL_TIME = {f"test_{name}.py" for name in (
    "attacks bench client console continuity demo demo_everywhere dialect_audiosocket dialects_live drain end_to_end "
    "examples gone_at_once half_open haproxy host interop_realtime limits namespaces notices pcm_client realtime_live "
    "realtime_served relay resumption supervisor systemd time upgrade webhooks").split()}

held_again: list[str] = []      # tests, and how late the machine was


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    """A test of REAL_TIME is held again if it has failed on a machine that stood still meanwhile."""
    if item.path.name not in REAL_TIME:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for attempt in range(1, ATTEMPTS + 1):
        with Watch() as watch:
            reports = runtestprotocol(item, nextitem=nextitem, log=False)
        if attempt == ATTEMPTS or watch.kept_time or not any(report.failed for report in reports):
            break
        held_again.append(f"{item.nodeid}: the machine was late by {watch.worst_ms:.0f} ms, and crowded for "
                          f"{watch.crowded:.0%} of the time")
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_terminal_summary(terminalreporter):
    for line in held_again:
        terminalreporter.write_line(f"held again: {line}")


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    """Runs a scenario on a loop, in seconds or not at all."""
    def runs(scenario):
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(asyncio.wait_for(scenario, WAIT))
    return runs
