"""The command's stdin, stdout and stderr as operators leave them: closed, full, or read by nobody."""
import os
import socket
import subprocess
import sys
import time
from urllib.request import urlopen

import pytest
from served import SCRIPTED

COMMAND = f"{sys.executable} -P -m opusagent.cli"


def run(words):
    """(exit code, stderr) of a line for the shell."""
    done = subprocess.run(["sh", "-c", f"{COMMAND} {words}"], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("streams", ["> /dev/full", ">&-", "2>&-", "<&- >&- 2>&-", "| true"])
def test_a_server_serves_whether_or_not_what_it_says_can_be_written(streams):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    process = subprocess.Popen(["sh", "-c", f"exec {COMMAND} serve --port {port} {' '.join(SCRIPTED)} {streams}"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        assert alive(port)
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def alive(port):
    """Whether somebody answers there, within the time that a start may take."""
    for _ in range(300):
        try:
            with urlopen(f"http://127.0.0.1:{port}/livez", timeout=10) as answer:
                return answer.status == 200
        except OSError:
            time.sleep(0.1)
    return False


def test_no_file_or_socket_takes_the_place_of_a_stream_that_is_closed():
    code = "import os; from opusagent import cli; cli.main(['config']); os._exit(os.open('/', os.O_RDONLY))"
    done = subprocess.run(["sh", "-c", f'{sys.executable} -c "{code}" <&- >&- 2>&-'], timeout=60, check=False)
    assert done.returncode >= 3


def test_a_full_disk_is_one_sentence():
    code, said = run("config > /dev/full")
    assert code == 1 and said == ("opusagent: There is no room in /dev/full for what there is to write: "
                                  "No space left on device.\n")
