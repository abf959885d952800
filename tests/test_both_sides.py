"""A conversation of others that is listened to: both sides heard, told apart in all that is kept, and nothing said."""
import asyncio
import gc
import json
import weakref
from types import SimpleNamespace
from urllib.parse import parse_qsl

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversation import SPEECH, Recogniser
from dialled import Dialled
from opusagent import ProtocolError
from opusagent.calls import journal
from opusagent.calls.bystander import Bystander
from opusagent.calls.stereo import Stereo
from opusagent.config import SETTINGS
from opusagent.continuity import handover
from opusagent.dialects import BINARY, TEXT
from opusagent.replay import rerun
from opusagent.replay.tape import load

FLOW = """
start = "listening"
facts = { card = "" }
[states.listening]
say = "This would be heard, if anybody could."
on = [{ phrases = ["ten of clubs"], fact = "card", go = "more" }, { free = true }]
[states.more]
say = "Thank you."
on = [{ phrases = ["that is all"], go = "done" }, { free = true }]
[states.done]
say = "Goodbye."
end = true
"""
NOTHING = np.zeros(160, np.int16)
QUIETER = SPEECH // 2


class Ears(Recogniser):
    """It knows what each side says."""

    def __init__(self):
        super().__init__()
        self.says = {"caller": "", "agent": ""}
        self.late = False               # last words come when the test lets them
        self.waiting = []

    def side(self, ear):
        return "agent" if isinstance(ear.call, Bystander) == (self.followed == "caller") else "caller"

    def ask(self, ear):
        ear.on_partial(ear.utterance, self.says[self.side(ear)])

    def finish(self, ear, position):
        self.log.append((self.side(ear), position))
        last = ear, ear.utterance, self.says[self.side(ear)]
        if self.late:
            self.waiting.append(last)
        else:
            ear.on_final(*last[1:], 0.75)

    def answer(self):
        ear, utterance, text = self.waiting.pop(0)
        ear.on_final(utterance, text, 0.75)


class Monitored(Dialled):
    """A call of Genesys's that is monitored, two channels in each message."""

    def __init__(self, flow=FLOW, query="", recorded=None, kept=True):
        self.lines, self.recorded, self.kept = [], recorded, kept
        self.query = dict(parse_qsl(f"mode=monitor{query}"))
        super().__init__(flow, "audiohook", f"mode=monitor&channels=both{query}")

    def journal(self):
        self.studio.stt, self.studio.free = Ears(), [1, 0]      # a slot for each side
        self.studio.stt.followed = "agent" if "channel" in self.query else "caller"
        self.server.archive = self.recorded
        if not self.kept:
            return None
        file = SimpleNamespace(append=self.lines.append, close=lambda: None)
        return journal.Journal(lambda call_id: file, journal.header("audiohook", self.query, "",
                               self.studio.flows[""], self.studio.config, SETTINGS, self.server.today))

    def talk(self, ms, caller="", agent=""):
        """Both sides for so long: words that are given are being said."""
        stt = self.studio.stt
        stt.says |= {side: words for side, words in (("caller", caller), ("agent", agent)) if words}
        message = self.caller._channels.interleaved(SPEECH if caller else NOTHING, QUIETER if agent else NOTHING)
        for _ in range(ms // 20):
            self.send((BINARY, message))
            self.studio.hearing.run()
            self.exchange()
            self.passes(20)

    @property
    def transcript(self):
        return [(receipt["speaker"], receipt["caller"] or receipt["agent"]) for receipt in self.receipts
                if "speaker" in receipt]

    def replayed(self, tmp_path):
        path = tmp_path / "call.jsonl"
        path.write_bytes(b"".join(self.lines))
        tape = load(str(path))
        again = rerun.Replay(tape, rerun.World(tape, rerun.config_of(tape, {})))
        asyncio.run(again.run())
        return again


def spoken_to_genesys(call):
    """(channel, text) of the transcripts that were sent."""
    texts = [json.loads(message) for opcode, message in call.sent if opcode == TEXT]
    return [(entity["data"]["channelId"], entity["data"]["alternatives"][0]["interpretations"][0]["transcript"])
            for text in texts if text["type"] == "event" for entity in text["parameters"]["entities"]]


def conversation(**more):
    call = Monitored(**more)
    call.talk(200)
    call.talk(600, agent="good morning what can I do for you")
    call.talk(1600)
    call.talk(600, caller="I have ten of clubs")
    call.talk(900, agent="the ten of clubs")                # while the caller pauses
    call.talk(400, caller="that is it", agent="the ten of clubs")       # and both at once
    call.talk(1600)
    call.talk(400, agent="anything else")
    call.talk(1600)
    return call


def test_genesys_is_told_where_in_its_audio_something_was_said():
    """On hold nothing comes, and none of that counts."""
    call = Monitored()
    call.talk(1000)
    call.talk(600, caller="I have ten of clubs")
    call.talk(1000)
    call.passes(3000)
    call.talk(600, agent="anything else")
    call.talk(1000)
    places = [(entity["data"]["offset"], entity["data"]["duration"]) for opcode, message in call.sent
              if opcode == TEXT and (text := json.loads(message))["type"] == "event"
              for entity in text["parameters"]["entities"]]
    (first, first_lasts), (second, second_lasts) = [[float(each[2:-1]) for each in place] for place in places]
    assert 0.5 <= first <= 1.0 and abs(first + first_lasts - 1.6) < 0.05, "pre-roll is of it"
    assert abs(second - 2.6) < 0.05 and abs(second + second_lasts - 3.2) < 0.05, "of which there is none in a hold"


@pytest.mark.parametrize("kept", [True, False])
def test_each_side_is_heard_and_told_apart(kept):
    call = conversation(kept=kept)
    assert call.transcript == [
        ("agent", "good morning what can I do for you"), ("caller", "I have ten of clubs"),
        ("caller", "that is it"), ("agent", "the ten of clubs"), ("agent", "anything else")]
    assert call.state == "more" and call.call.dialogue.facts["card"] == "ten of clubs"
    assert [receipt["turn"] for receipt in call.receipts] == list(range(1, len(call.receipts) + 1))
    told = [(("caller", "agent").index(side), text) for side, text in call.transcript]
    assert spoken_to_genesys(call) == told
    assert not [opcode for opcode, _ in call.sent if opcode == BINARY]
    record = call.call.record()
    assert record["turns"] == call.receipts and record["usage"]["recognised_seconds"] > 2
    overheard = [receipt for receipt in record["turns"] if receipt["kind"] == "overheard"]
    assert all(receipt["agent"] and not receipt["caller"] and receipt["confidence"] == 0.75 and not receipt["measured"]
               for receipt in overheard)
    assert 700 <= overheard[0]["end_ms"] <= 900 and overheard[-1]["end_ms"] > overheard[0]["end_ms"] + 4000


def test_every_decision_of_both_sides_is_made_again(tmp_path):
    call = conversation()
    call.call.lost(1000, "")
    again = call.replayed(tmp_path)
    assert again.call.ledger.receipts == call.receipts and len(call.transcript) >= 4
    assert any(what.startswith("beside ") for what, *_ in again.decisions)


@pytest.mark.parametrize("kept", [True, False])
def test_nothing_of_either_side_is_left_when_the_call_is_over(kept):
    """Without a collector: a worker that is never idle looks at what is young only."""
    call = conversation(kept=kept)
    there = weakref.ref(call.call)
    gc.disable()
    try:
        call.call.lost(1000, "")
        del call
        assert there() is None
    finally:
        gc.enable()


def test_the_flow_can_follow_the_agent_instead():
    call = Monitored(query="&channel=internal")
    call.talk(600, caller="good morning")
    call.talk(1600)
    call.talk(600, agent="ten of clubs")
    call.talk(1600)
    assert call.transcript == [("caller", "good morning"), ("agent", "ten of clubs")] and call.state == "more"
    assert spoken_to_genesys(call) == [(0, "good morning"), (1, "ten of clubs")]


def test_what_is_said_while_a_last_word_is_awaited_is_recognised_after_that():
    call = Monitored()
    call.studio.stt.late = True
    call.talk(200)
    call.talk(400, agent="one")
    call.talk(500)
    call.talk(300, agent="two")
    call.talk(500)
    assert call.transcript == [] and len(call.studio.stt.waiting) == 1
    call.studio.stt.answer()
    assert call.transcript == [("agent", "one")] and len(call.studio.stt.waiting) == 1
    call.studio.stt.answer()
    assert call.transcript == [("agent", "one"), ("agent", "two")]
    ends = [receipt["end_ms"] for receipt in call.receipts if "speaker" in receipt]
    assert 550 <= ends[0] <= 650 and 1350 <= ends[1] <= 1450


def test_a_recogniser_that_fails_on_one_side_costs_that_utterance():
    call = Monitored()
    call.studio.stt.late = True
    call.talk(200)
    call.talk(400, agent="one")
    call.talk(3000)
    assert call.server.metrics.counters["recogniser_failures", ()] == 1
    call.studio.stt.late = False
    call.talk(400, agent="two")
    call.talk(1000)
    assert call.transcript == [("agent", "two")] and not call.connection.faults


def test_a_hole_in_the_media_is_silence_on_both_sides():
    call = Monitored()
    call.talk(200)
    call.talk(400, agent="one")
    call.passes(3000)
    call.talk(100)
    beside = call.call.ear.beside
    assert call.transcript == [("agent", "one")] and beside.slot.written == call.call.slot.written > 3000 * 8


def test_both_sides_are_recorded(tmp_path):
    written = bytearray()
    archive = SimpleNamespace(recordings=True, file=lambda name, began_at, head: SimpleNamespace(
        append=written.extend, close=lambda: None))
    call = Monitored(recorded=archive)
    call.talk(1000, caller="ten of clubs")
    call.talk(1000, agent="thank you")
    call.talk(500)
    assert isinstance(call.call.recording, Stereo)
    call.call.lost(1000, "")
    left, right = np.frombuffer(bytes(written), "<i2").reshape(-1, 2).T.astype(float)
    assert len(left) == 2500 * 8

    def level(pcm, second):
        return np.abs(pcm[second * 8000 + 400:(second + 1) * 8000 - 400]).mean()
    assert level(left, 0) > 4000 and level(right, 1) > 2000 and level(left, 1) < 50 and level(right, 0) < 50


def test_a_flow_without_free_speech_hears_one_side(caplog):
    call = Monitored(FLOW.replace(", { free = true }", ""))
    call.talk(600, agent="good morning")
    call.talk(1600)
    assert call.call.ear.beside is None and call.transcript == [] and "only one side is heard" in caplog.text
    assert call.studio.free == [1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=700) | st.sampled_from(["{}", "hello", '{"type":"pause","id":"x"}']), max_size=12))
def test_however_the_messages_are_cut_both_sides_have_as_much(messages):
    call = Monitored()
    sent = 0
    for message in messages:
        try:
            call.call.on_message(BINARY if isinstance(message, bytes) else TEXT,
                                 memoryview(message if isinstance(message, bytes) else message.encode()))
        except ProtocolError as error:
            assert error.code == 1007
        sent += len(message) if isinstance(message, bytes) else 0
        call.studio.hearing.run()
    assert call.call.slot.written == call.call.ear.beside.slot.written == sent // 2
    call.call.lost(1000, "")
    assert sorted(call.studio.free) == [0, 1] and not call.connection.faults


def test_no_slot_is_left_behind():
    call = conversation()
    assert call.studio.free == []
    call.call.lost(1000, "")
    assert sorted(call.studio.free) == [0, 1] and not call.studio.arena.slot(1).taken


@pytest.mark.parametrize("cut", [300, 700, 900, 1100])
def test_both_sides_go_on_in_another_worker(cut):
    call = Monitored()
    call.talk(200)
    call.talk(min(cut, 800), agent="good morning to you")
    call.talk(cut - min(cut, 800))
    old = call.call
    state = json.loads(handover.snapshot(old))
    slot, beside = old.slot, old.ear.beside.slot
    old.slot = old.ear.slot = old.mouth.slot = None
    call.studio.free = [1, 0]
    call.connection.sent.clear()
    call.read = 0
    call.call = handover.resume(call.server, call.connection, slot, state)
    call.studio.free.remove(slot.index)
    handover.go_on(call.call, state, call.server.now)
    assert call.call.ear.beside.slot.index == beside.index and call.studio.free == []
    call.talk(800 - min(cut, 800), agent="good morning to you")
    call.talk(1600)
    call.talk(600, caller="ten of clubs")
    call.talk(1600)
    assert call.transcript == [("agent", "good morning to you"), ("caller", "ten of clubs")]
