"""What holds for every test: nothing of a user's own is read or written."""
import os
import tempfile


def pytest_configure(config):
    """Prompts that servers keep live as long as the tests do."""
    config.cache_home = tempfile.TemporaryDirectory(prefix="opusagent-cache-")
    os.environ["XDG_CACHE_HOME"] = config.cache_home.name


def pytest_unconfigure(config):
    config.cache_home.cleanup()
