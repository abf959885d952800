"""What holds for every test: nothing of a user's own is read or written."""
import asyncio
import os
import tempfile

import pytest
import uvloop

WAIT = 30                       # seconds, before a scenario is taken to hang


def pytest_configure(config):
    """Prompts that servers keep live as long as the tests do."""
    config.cache_home = tempfile.TemporaryDirectory(prefix="opusagent-cache-")
    os.environ["XDG_CACHE_HOME"] = config.cache_home.name


def pytest_unconfigure(config):
    config.cache_home.cleanup()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    """Runs a scenario on a loop, in seconds or not at all."""
    def runs(scenario):
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(asyncio.wait_for(scenario, WAIT))
    return runs
