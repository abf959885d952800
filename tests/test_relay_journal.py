"""A call in text from its journal: the same decisions, bit by bit; and once a real server and `opusagent replay`."""
import asyncio
import json
from types import SimpleNamespace

import pytest
from test_relay import FLOW, MODEL, TRANSFER, Relayed
from test_replay import replayed

from opusagent import ConfigError, cli
from opusagent.calls import journal
from opusagent.calls.mouth import tool_is_late
from opusagent.config import SETTINGS
from opusagent.flow import FunctionCall, Outcome
from opusagent.replay import rerun
from opusagent.replay.tape import load
from served import SCRIPTED, serving


class Kept(Relayed):
    """A call in text that keeps a journal, in memory."""

    def __init__(self, flow=FLOW, **more):
        self.lines = []
        super().__init__(flow, **more)

    def journal(self):
        file = SimpleNamespace(append=self.lines.append, close=lambda: None)
        return journal.Journal(lambda call_id: file, journal.header(
            "twilio-relay", {}, "", self.studio.flows[""], self.studio.config, SETTINGS, self.server.today))

    def is_replayed(self, tmp_path):
        """The same receipts, facts, history and messages come of the journal."""
        path = tmp_path / "call.jsonl"
        path.write_bytes(b"".join(self.lines))
        tape = load(str(path))
        again = replayed(tape).call
        assert again.ledger.receipts == self.receipts
        assert again.dialogue.checkpoint() == self.call.dialogue.checkpoint()
        assert again.script.text == self.call.script.text
        return tape


def test_a_conversation_is_replayed(tmp_path):
    call = Kept(customParameters={"caller": "Ada"})
    call.passes(500)
    call.interrupts("Hello, Ada.")
    call.says("te", last=False)
    call.says("tea", last=True)
    call.passes(20_000)                             # a reprompt, then another
    call.says("no")
    call.passes(9000)
    call.call.lost(1000, "")
    tape = call.is_replayed(tmp_path)
    assert tape.whole and tape.seconds > 20 and call.receipts[0]["stopped_by"] == "barge-in"
    assert {entry.kind for entry in tape.entries} == {journal.BEGIN, journal.MESSAGE, journal.TICK, journal.LOST,
                                                      journal.DECISION}


def test_keys_and_a_hand_over_that_is_refused_are_replayed(tmp_path):
    call = Kept(TRANSFER.replace('on = [{ phrases', 'on = [{ digits = 2, go = "fine" }, { phrases'))
    call.tell("dtmf", digit="4")
    call.passes(1000)
    call.tell("dtmf", digit="2")
    call.passes(3000)
    call.says("no")
    call.passes(9000)
    call.call.part()
    call.is_replayed(tmp_path)
    assert [receipt["kind"] for receipt in call.receipts][-2:] == ["answer", "failure"]


@pytest.mark.parametrize("goes_wrong", [False, True])
def test_a_model_is_replayed_token_by_token(tmp_path, goes_wrong):
    async def conversation():
        call = Kept(MODEL)
        call.passes(2000)
        call.studio.llm.pieces = None if goes_wrong else ["I", " am", " *fine*.", " And", " you?"]
        call.says("how are you")
        await call.thinks()
        call.interrupts("I am fine.")
        call.says("me")
        call.says("me too")                         # before any word of an answer was heard
        await call.thinks()
        call.passes(12_000)
        await call.thinks()
        return call
    call = asyncio.run(conversation())
    tape = call.is_replayed(tmp_path)
    assert sum(entry.kind == journal.ASKED for entry in tape.entries) >= 2


def test_a_model_that_calls_a_function_and_its_tool_are_replayed(tmp_path):
    flow = """
    start = "talk"
    facts = { left = "" }
    [tools.stock]
    url = "http://127.0.0.1:1/stock"
    facts = { left = "digits" }
    [states.talk]
    say = "Hello."
    prompt = "Be kind."
    tools = ["stock"]
    on = [{ free = true }]
    """

    async def conversation():
        call = Kept(flow)
        call.call.stage.perform = lambda *what: SimpleNamespace(cancel=lambda: None)
        call.passes(2000)
        call.studio.llm.answers = [["One moment.", FunctionCall("stock", {}, "1")], ["There are ", "seven."]]
        call.says("how many are left")
        await call.thinks()
        outcome = Outcome("done", {"left": "7"}, "7")
        call.call.on_tool(call.call.epoch, 1, outcome.result, outcome.facts, outcome.told, outcome.reason)
        await call.thinks()
        call.passes(5000)
        tool_is_late(call.call, {"left": "6"})
        return call
    call = asyncio.run(conversation())
    call.is_replayed(tmp_path)
    assert "There are seven." in call.receipts[1]["agent"] and call.call.dialogue.facts["left"] == "6"


def test_a_changed_journal_parts_and_a_what_if_is_refused(tmp_path, capsys):
    call = Kept()
    call.passes(3000)
    call.says("tea")
    call.passes(3000)
    tape = call.is_replayed(tmp_path)
    with pytest.raises(ConfigError, match="took the turns of this call"):
        rerun.refuse_text(tape)
    path = tmp_path / "other.jsonl"
    path.write_bytes(b"".join(call.lines).replace(b'\\"tea\\"', b'\\"coffee\\"'))
    with pytest.raises(rerun.Parted, match="then it decided"):
        replayed(load(str(path)))
    assert cli.main(["replay", tape.path, "--set", "turns.silence_ms=200"]) == 2
    assert "replay it without --set" in capsys.readouterr().err


def test_a_real_server_keeps_what_replay_takes_once_more(tmp_path, capsys):
    kept = tmp_path / "calls"
    with serving(*SCRIPTED, "--archive-directory", str(kept)) as server:
        assert cli.main(["call", server.ws("/ws/twilio-relay/demo"), "--say", "ten of clubs", "--say", "yes",
                         "--json"]) == 0
    capsys.readouterr()
    path, = kept.glob("*/*.jsonl")
    assert cli.main(["replay", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["identical"] and [turn["caller"] for turn in told["turns"]][:2] == ["", "ten of clubs"]
