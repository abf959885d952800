"""A process that does nothing is told from one that is slow."""
import signal
import subprocess
import sys
import time

import pytest

from opusagent.engines.processes.vitals import Watch

SLEEPS = "import time; time.sleep(60)"
COMPUTES = "while True: pass"
COMPUTES_BESIDE = "import threading; t = threading.Thread(target=exec, args=('while True: pass',)); t.start(); t.join()"


def looked_at(code, stop=False):
    """Seconds that it is said to have rested, after a second."""
    with subprocess.Popen([sys.executable, "-c", f"print(flush=True); {code}" if "while" not in code[:5] else
                           f"print(flush=True)\n{code}"], stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            time.sleep(0.2)
            if stop:
                process.send_signal(signal.SIGSTOP)
            watch = Watch(process.pid)
            for tenth in range(1, 11):
                time.sleep(0.1)
                rested = watch.idles(tenth / 10)
            return rested
        finally:
            process.kill()


@pytest.mark.parametrize("code, stop, rested", [
    (SLEEPS, False, 1.0), (COMPUTES, True, 1.0), (COMPUTES, False, 0.0), (COMPUTES_BESIDE, False, 0.0)],
    ids=["sleeps", "stopped", "computes", "computes in another thread"])
def test_whether_a_process_rests(code, stop, rested):
    assert looked_at(code, stop) == rested


def test_one_that_is_gone_rests():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    assert Watch(process.pid).idles(1.0) == 1.0
