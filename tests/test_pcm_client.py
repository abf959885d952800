"""examples/pcm_client.py as its reader would run it, against `opusagent serve`."""
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from opusagent.recording import read_wav
from served import SCRIPTED, serving

EXAMPLE = Path(__file__).parent.parent / "examples" / "pcm_client.py"
FLOW = """
start = "hello"
[states.hello]
say = "Good morning. What can I do for you?"
on = [{ free = true, go = "bye" }]
[states.bye]
say = "Goodbye."
end = true
"""


def test_the_example_holds_a_conversation(tmp_path):
    pytest.importorskip("websockets", reason="the example needs websockets, of the extra `test`")
    (tmp_path / "flow.toml").write_text(FLOW)
    (tmp_path / "said.txt").write_text("nothing much\n")
    noise = np.random.default_rng(3).normal(0, 3000, 16000).astype("<i2")
    with wave.open(str(tmp_path / "hello.wav"), "wb") as wav:
        wav.setparams((1, 2, 16000, 0, "NONE", ""))
        wav.writeframes(np.concatenate((np.zeros(8000, "<i2"), noise, np.zeros(1600, "<i2"))).tobytes())
    flags = ("--flow", str(tmp_path / "flow.toml"), "--scripted-stt", str(tmp_path / "said.txt"))
    with serving(*SCRIPTED, *flags, environment={"OPUSAGENT_AUTH_PCM_SECRETS": "a-secret-of-ours"}) as server:
        def run(token):
            return subprocess.run([sys.executable, str(EXAMPLE), server.ws("/ws/pcm"), str(tmp_path / "hello.wav"),
                                   str(tmp_path / "answer.wav"), token], capture_output=True, text=True, timeout=60)
        refused, done = run("another-secret"), run("a-secret-of-ours")
    assert refused.returncode != 0 and "401" in refused.stderr
    assert (done.returncode, done.stderr) == (0, "")
    answer, rate = read_wav(str(tmp_path / "answer.wav"))
    assert rate == 16000 and len(answer) > 16000 and np.abs(answer).max() > 1000


def test_it_is_as_short_as_the_manual_says():
    assert len(EXAMPLE.read_text().splitlines()) <= 40
