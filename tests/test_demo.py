"""What the demo shows, without the call: the person, the transcript, the verdict, the exit code."""
import io
from ctypes.util import find_library
from types import SimpleNamespace

import numpy as np
import pytest

from opusagent import ConfigError
from opusagent.client import demo, people
from opusagent.client.caller import Measured
from opusagent.client.commands import demo_command
from opusagent.client.demo import conclude, picture, show
from opusagent.client.terminal import Terminal
from opusagent.recording import Tape

TURN = Measured(0, "ten of clubs", 8000, 8000, 16000, None, 17600, 20000)


def receipt(**more):
    return {"turn": 2, "caller": "ten of clubs", "agent": "Good.", "kind": "answer", "state": "next", "stopped_by": "",
            "end_ms": 2000.0, "measured": True, "saved_ms": 0.0, "voice_to_voice_ms": 190.0,
            "waits": {"endpointing": 190.0}} | more


def shown(receipt):
    out = io.StringIO()
    show(Terminal(out), receipt)
    return out.getvalue()


def concluded(tmp_path, done, turns=(TURN,), receipts=()):
    out = io.StringIO()
    record = {"turns": list(receipts), "state": "arrived", "done": done}
    return conclude(tmp_path, Terminal(out), None, list(turns), record), out.getvalue()


@pytest.mark.skipif(not people.RECORDINGS.is_dir(), reason="apt install pocketsphinx-testdata brings the recordings")
def test_the_person_has_four_turns_and_interrupts_once():
    who, says = people.person(8000)
    assert len(says) == 4 and [say.barge_in_ms is not None for say in says].count(True) == 1
    assert who.startswith("recordings of people")


def test_without_recordings_another_voice_speaks_and_it_is_said(monkeypatch, tmp_path):
    if find_library("flite") is None:
        pytest.skip("the other voice is flite's: apt install libflite1")
    monkeypatch.setattr(people, "RECORDINGS", tmp_path)
    who, says = people.person(8000)
    assert who.startswith("a synthetic voice") and "apt install pocketsphinx-testdata" in who
    assert [say.name for say in says] == [words.synthetic for words in people.TURNS]


def test_a_telephone_lets_speech_through_and_no_rumble():
    t = np.arange(8000) / 8000
    rumble, voice = 8000 * np.sin(2 * np.pi * 40 * t), 8000 * np.sin(2 * np.pi * 600 * t)
    assert np.abs(people.telephone(rumble.astype(np.int16), 8000)).max() < 80
    assert np.abs(people.telephone(voice.astype(np.int16), 8000)[800:-800]).max() > 7900


def test_the_transcript_has_both_sides_and_the_receipt():
    assert shown(receipt()).splitlines()[:2] == ["  caller  ten of clubs", "  agent   Good."]
    assert "endpointing 190.0" in shown(receipt())


def test_an_interrupted_sentence_says_so_and_a_greeting_has_no_receipt():
    assert "Good. ... (interrupted)" in shown(receipt(stopped_by="barge-in"))
    assert shown(receipt(measured=False, caller="")) == "  agent   Good.\n\n"


def test_the_verdict_is_the_callers_and_what_the_receipt_leaves_open(tmp_path):
    code, text = concluded(tmp_path, True, receipts=[receipt()])
    assert code == 0 and "ten of clubs: 200 ms, 10.0 ms of it unexplained" in text


def test_the_demo_fails_unless_the_end_was_reached(tmp_path):
    code, text = concluded(tmp_path, False)
    assert code == 1 and "did not reach its end; it stopped at: arrived" in text


def test_the_picture_is_drawn_with_and_without_receipts():
    caller = SimpleNamespace(rate=8000, script=SimpleNamespace(tape=Tape()), ear=SimpleNamespace(tape=Tape()))
    caller.script.tape.write(0, np.ones(16000, np.int16))
    for receipts in ([], [receipt()]):
        assert "voice-to-voice median 200 ms" in picture(caller, [TURN], {"turns": receipts})


def test_a_place_that_is_none_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="The call cannot be kept in .*/file: it is no directory."):
        demo_command(SimpleNamespace(out=str(tmp_path / "file")))


def test_a_place_that_is_not_there_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "run", lambda name, conversation: conversation.close() or 0)
    assert demo_command(SimpleNamespace(out=str(tmp_path / "new" / "place"))) == 0
    assert list((tmp_path / "new" / "place").iterdir()) == []
