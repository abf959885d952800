"""A call from its journal: the same decisions, bit by bit, and what is told when they are not."""
import asyncio
import random
import re
from types import SimpleNamespace

import orjson
import pytest
from conversation import Conversation
from opusagent import ConfigError, cli
from opusagent.calls import journal
from opusagent.config import SETTINGS, Config
from opusagent.flow import Flow, FunctionCall, Outcome
from opusagent.replay import rerun, whatif
from opusagent.replay.tape import load
from opusagent.studio.tools import Toolbox
from talking import Line, turn
from test_call import FLOW
from test_realtime import Client
from test_speculation import FLOW as MODEL_FLOW


class Kept(Conversation):
    """A conversation that keeps a journal, in memory."""

    def __init__(self, flow, **more):
        self.lines = []
        super().__init__(flow, **more)

    def journal(self):
        flow = self.studio.flows[""]
        file = SimpleNamespace(append=self.lines.append, close=lambda: None)
        return journal.Journal(lambda call_id: file, journal.header("twilio", {}, "", flow, self.studio.config,
                                                                    SETTINGS, self.server.today))

    def tape(self, tmp_path):
        path = tmp_path / "call.jsonl"
        path.write_bytes(b"".join(self.lines))
        return load(str(path))


def replayed(tape, **changes):
    again = rerun.Replay(tape, rerun.World(tape, rerun.config_of(tape, changes)))
    asyncio.run(again.run())
    return again


def conversation(**more):
    call = Kept(FLOW, **more)
    call.listens()
    call.says("ten of clubs")
    call.speech(300, "no")
    call.silence(500)
    call.listens()
    call.speech(600, "seven of clubs")
    call.silence(500)
    call.speech(400, "yes")                     # over the agent
    call.silence(1500)
    call.listens()
    return call


def test_every_decision_is_made_again(tmp_path):
    call = conversation()
    tape = call.tape(tmp_path)
    again = replayed(tape)
    assert again.call.ledger.receipts == call.receipts and len(call.receipts) >= 4
    assert again.call.dialogue.state == call.state == "bye"
    assert again.call.dialogue.facts == call.call.dialogue.facts
    assert tape.whole and tape.seconds > 4


@pytest.mark.parametrize("words", ["", "mm hm", "no"])
def test_what_was_heard_of_a_sentence_and_going_on_with_it_are_replayed(tmp_path, words):
    call = Kept(FLOW)
    call.studio.stt.words = ""
    call.listens()
    call.speech(600, "ten of clubs")
    call.silence(500)
    call.studio.stt.silent = True
    call.speech(560, words)
    call.studio.stt.silent = False
    call.silence(1500)
    call.listens()
    again = replayed(call.tape(tmp_path))
    assert again.call.ledger.receipts == call.receipts
    assert [receipt["false_stops"] for receipt in call.receipts[1:2]] == [int(words != "no")]
    assert again.call.dialogue.history == call.call.dialogue.history


def test_keys_reprompts_holes_and_a_slow_peer_are_replayed(tmp_path):
    call = Kept(FLOW)
    call.connection.congested = True
    call.silence(200)
    call.connection.congested = False
    call.call.drained()
    call.passes(4000)                           # no media
    call.listens()
    call.receive(b'{"event":"dtmf","dtmf":{"digit":"9"}}')
    call.listens()
    call.call.lost(1000, "")
    again = replayed(call.tape(tmp_path))
    assert again.call.ledger.receipts == call.receipts \
        and again.call.mouth.out.dropped == call.call.mouth.out.dropped > 0


def test_a_voice_that_speaks_later_is_replayed(tmp_path):
    call = Kept(FLOW, ahead=False)
    call.silence(200)
    while call.call.mouth.turn is not None:
        while call.studio.tts.asked:
            call.studio.tts.deliver()
        call.silence(20)
    assert replayed(call.tape(tmp_path)).call.ledger.receipts == call.receipts


@pytest.mark.parametrize("goes_wrong", [False, True])
def test_a_model_that_answers_is_replayed(tmp_path, goes_wrong):
    call = Kept(MODEL_FLOW)

    async def talk():
        call.studio.llm.pieces = None if goes_wrong else ["It is ", "about parcels. ", "Is that all?"]
        for words, ms in (("", 2000), ("where is my", 400), ("", 240), ("where is my parcel", 400), ("", 4000)):
            for _ in range(ms // 20):
                call.speech(20, words) if words else call.silence(20)
                await turn()

    asyncio.run(talk())
    tape = call.tape(tmp_path)
    again = replayed(tape)
    assert again.call.ledger.receipts == call.receipts and call.state == "model"
    assert sum(entry.kind == journal.ASKED for entry in tape.entries) >= 2


def test_a_journal_cut_anywhere_replays_up_to_there(tmp_path):
    call = conversation()
    whole = b"".join(call.lines)
    path = tmp_path / "cut.jsonl"
    for size in range(2000, len(whole), len(whole) // 12):
        path.write_bytes(whole[:size])
        replayed(load(str(path)))


def test_where_decisions_part_is_told(tmp_path):
    tape = conversation().tape(tmp_path)
    with pytest.raises(rerun.Parted, match=r"call.jsonl:\d+: (then it decided|it reads)"):
        replayed(tape, **{"turns.start_ms": 200})


HEAD = (b'{"opusagent":"1","journal":1,"dialect":"twilio","query":{},"agent":"","flow":"a.toml","flow_text":"",'
        b'"today":"2026-11-23","settings":{}}\n')
BEGUN = b'["begin",[],[]]\n'


@pytest.mark.parametrize("content, sentence", [
    (b"", "not the journal"), (b"[1]\n", "not the journal"), (b"{}\n", "not the journal"),
    (b'{"journal": 99}\n', ":1: this journal has format 99"), (b'{"journal": 1}\n', ":1: .* no 'opusagent'"),
    (HEAD.replace(b"{}", b"5"), ":1: .* no 'query', or a wrong one"), (HEAD.replace(b"twilio", b"semaphore"), ":1: "),
    (HEAD.replace(b"2026-11-23", b"someday"), ":1: .* no date"), (HEAD, ":1: .* before its call begins"),
    (HEAD + b"nonsense\n", ":2: this line"), (HEAD + b'{"a": 1}\n', ":2: this line"), (HEAD + b'[[], []]\n', ":2: "),
    (HEAD + b'["tick",[1]]\n', ":2: .* before the call begins"), (HEAD + BEGUN + b'["begun",[]]\n', ":3: .*'begun'"),
    (HEAD + BEGUN + b'["tick",["x"]]\n', ":3: 'tick' has other"), (HEAD + BEGUN + b'["tick",[]]\n', ":3: 'tick' has"),
    (HEAD + BEGUN + b'["tick",[1],[null]]\n', ":3: no call"),
    (HEAD + BEGUN + b'["prompt",["",1,1]]\n', ":3: .* prompt"),
    (HEAD + BEGUN + b'["piece",[0,{"name":1}]]\n', ":3: .* no piece"),
    (HEAD + BEGUN + b'["late_tool",[{"a":1}]]\n', ":3: .* texts"),
    (HEAD + BEGUN + b'["tick",[5]]\n["tick",[4000000000000]]\n', ":4: more than an hour"),
])
def test_what_is_no_journal_is_refused_with_a_sentence(tmp_path, content, sentence):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        load(str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        load(str(tmp_path / "none.jsonl"))


ALIKE = {int: [-1, 0, 1, 2, 3, 7, 160, 8000, 70_000, 10 ** 6, 10 ** 9, -(10 ** 9), 10 ** 12, 2 ** 52],
         float: [-1.0, 0.0, 0.5, 1.0, 1e300], bool: [True, False],
         str: ["", "0", "{}", "begin", "tick", "speech", "final", "piece", "asked", "answered", "listen", "ten of"]}


def edited(lines, rng):
    """The lines of a journal, one of which somebody has changed: in a value, in its order, or not there at all."""
    at = rng.choice([0, rng.randrange(len(lines)), rng.randrange(len(lines))])
    whole = orjson.loads(lines[at])
    inner, key = whole, None
    for _ in range(rng.randrange(1, 5)):
        if not inner or type(inner) not in (list, dict):
            break
        parent, key = inner, rng.choice(list(inner) if type(inner) is dict else range(len(inner)))
        inner = parent[key]
    other = rng.choice([None, 0, 1, -1, 7, 10 ** 6, -(10 ** 12), 2 ** 62, 0.5, 1e300, True, "", "0", "ten of", [], [0],
                        [[5]], {}, {"spoken": True}, {"name": "x", "arguments": [], "id": ""}])
    if type(inner) in ALIKE and rng.random() < 0.7:
        other = rng.choice([each for each in ALIKE[type(inner)] if each != inner])
    how = rng.randrange(8)
    if how == 0:
        return [*lines[:at], *lines[at + 1:]]
    if how == 1:
        return [*lines[:at], lines[at][:rng.randrange(len(lines[at]))], *lines[at + 1:]]
    if how == 2:
        return [*lines[:at], lines[rng.randrange(len(lines))], *lines[at:]]
    if how == 3 and type(parent) is dict:
        del parent[key]
    else:
        parent[key] = other
    return [*lines[:at], orjson.dumps(whole), *lines[at + 1:]]


def modelled():
    """A conversation with a model and a tool."""
    async def hold():
        line = Line(Flow.parse(TOOLS, "tools.toml"), Kept)

        class Answering(Toolbox):
            async def perform(self, call):
                await asyncio.sleep(0)
                return Outcome("open", {"at": "15:30"}, "{}")
        line.call.mouth.stage.perform = Answering({}, "CA1", line.call.mouth.on_tool, print).start
        await line.listens()
        line.model.answers = [["Let me look. ", FunctionCall("look", {"day": "2026-11-24"}, "c1")]]
        await line.says("and the day after that")
        return line.talk
    return asyncio.run(hold())


@pytest.mark.parametrize("made", [conversation, modelled], ids=lambda made: made.__name__)
def test_a_line_that_was_edited_is_told_in_a_sentence(tmp_path, capsys, caplog, made):
    lines = b"".join(made().lines).splitlines()
    path = tmp_path / "edited.jsonl"
    rng = random.Random(7)
    for number in range(150):
        path.write_bytes(b"\n".join(edited(lines, rng)) + b"\n")
        changes = ["--set", "turns.complete_ms=300"] if number % 3 == 0 else []
        code = cli.main(["replay", str(path), *changes])
        told = capsys.readouterr()
        assert code in (0, 1, 2) and "Traceback" not in told.out + told.err + caplog.text, path.read_bytes()
        if code:
            assert re.match(rf"(opusagent: )?{re.escape(str(path))}(:\d+)?: ", told.err or told.out)


def test_a_journal_tells_no_secret(tmp_path):
    head = orjson.loads(conversation().lines[0].split(b"\n")[0])
    assert set(head) == {"opusagent", "journal", "dialect", "query", "agent", "flow", "flow_text", "today",
                         "settings"}
    assert not [key for key in head["settings"] if "key" in key or "token" in key]


def test_what_decisions_depend_on_is_in_the_header():
    given = {"turns.pause_ms": 90, "history.exchanges": 3, "openai.filler_seconds": 2.0, "limits.tokens": 500,
             "limits.spoken_seconds": 9.0, "targets": ("+49",), "openai.voice": "ash", "openai.api_key": "secret"}
    head = journal.header("twilio", {}, "", Flow.parse(FLOW, "a.toml"), Config.load(given, {}), SETTINGS, "2026-11-23")
    assert head["settings"].keys() == given.keys() - {"openai.voice", "openai.api_key"}


def what_if(tape, **changes):
    study = whatif.Study(tape, rerun.World(tape, rerun.config_of(tape, {})))
    asyncio.run(study.run())
    other = whatif.WhatIf(tape, rerun.World(tape, rerun.config_of(tape, changes)), study.known)
    asyncio.run(other.run())
    return study, other


PLAIN = FLOW.replace("""[waits]
complete = 120
incomplete = 700
free = 350
no_input = 3000
""", "")                                            # what the configuration says holds


def spoken_with_pauses():
    call = Kept(PLAIN)
    call.listens()
    call.speech(400, "ten of")
    call.silence(400)
    call.speech(400, "ten of clubs")
    call.silence(1500)
    call.listens()
    call.says("yes")
    return call


def test_the_same_settings_give_the_same_call(tmp_path):
    study, other = what_if(spoken_with_pauses().tape(tmp_path))
    assert [row["caller"] for row in other.receipts] == [row["caller"] for row in study.known.receipts]
    assert other.cut_in == [] and other.made_up == {}


def test_a_longer_wait_would_have_cost_its_milliseconds(tmp_path):
    study, other = what_if(spoken_with_pauses().tape(tmp_path), **{"turns.complete_ms": 340})
    was, would = ([row["voice_to_voice_ms"] for row in rows if row["measured"]]
                  for rows in (study.known.receipts, other.receipts))
    assert len(was) == len(would) == 2
    assert all(190 <= b - a <= 310 for a, b in zip(was, would)), (was, would)


def test_a_shorter_wait_would_have_cut_the_caller_off(tmp_path):
    study, other = what_if(spoken_with_pauses().tape(tmp_path), **{"turns.incomplete_ms": 150})
    assert len(other.cut_in) == 1
    assert any("what was heard so far" in what for made_up in other.made_up.values() for what in made_up)


def test_a_turn_that_would_have_ended_in_the_callers_pause(tmp_path):
    call = Kept(MODEL_FLOW.replace("[waits]\ncomplete = 300\nincomplete = 800\nfree = 400\n", ""))

    async def talk():
        call.studio.llm.pieces = ["It is ", "about parcels."]
        for words, ms in (("", 2000), ("where is my parcel", 400), ("", 300),
                          ("where is my parcel today", 400), ("", 3000)):
            for _ in range(ms // 20):
                call.speech(20, words) if words else call.silence(20)
                await turn()

    asyncio.run(talk())
    tape = call.tape(tmp_path)
    study, other = what_if(tape, **{"turns.speculations": 0})
    assert [row["caller"] for row in other.receipts] == ["", "where is my parcel today"] and other.made_up == {}
    study, other = what_if(tape, **{"turns.silence_ms": 160, "turns.speculations": 0})
    assert [row["caller"] for row in other.receipts] == ["", "where is my parcel", "where is my parcel today"]
    assert len(other.cut_in) == 1


@pytest.mark.parametrize("arguments, code, words", [
    ([], 0, "decisions was made again"), (["--set", "turns.complete_ms=300"], 0, "median"),
    (["--set", "turns.complete_ms=300", "--json"], 0, '"cut_off": 0'), (["--json"], 0, '"identical": true'),
    (["--set", "nonsense"], 2, "KEY=VALUE"), (["--set", "turns.nonsense=1"], 2, "no setting"),
    (["--set", "turns.complete_ms=no"], 2, "complete_ms"), (["--set", "limits.tokens=1000"], 0, "median"),
    (["--set", "flow=x.toml"], 2, "flow would change nothing.  What can be tried: turns.threshold, "),
    (["--set", "stt=openai"], 2, "stt would change nothing"),
    (["--set", "turns.model="], 2, "turns.model would change nothing"),
    (["--set", "history.exchanges=3"], 2, "openai.filler_seconds"),
])
def test_the_command(tmp_path, capsys, arguments, code, words):
    path = spoken_with_pauses().tape(tmp_path).path
    assert cli.main(["replay", path, *arguments]) == code
    told = capsys.readouterr()
    assert words in told.out + told.err and "Traceback" not in told.err


OWN = "turns.complete_ms changes nothing everywhere: there the flow's own waits rule (`waits.complete`, or `eager`)."


@pytest.mark.parametrize("flow, setting, sentence", [
    (FLOW, "turns.complete_ms=300", OWN),                   # it sets this wait
    (FLOW.replace("complete = 120", ""), "turns.complete_ms=300", ""),
    (FLOW.replace("free = 350", ""), "turns.silence_ms=360", ""),
    (FLOW.replace("complete = 120", "").replace("[states.card]", "[states.card]\neager = true"),
     "turns.complete_ms=300", OWN.replace("everywhere", "in card")),
])
def test_that_the_flows_own_waits_rule_is_told(tmp_path, capsys, flow, setting, sentence):
    call = Kept(flow)
    call.listens()
    path = call.tape(tmp_path).path
    assert cli.main(["replay", path, "--set", setting]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "changes nothing" in line] == [sentence][:bool(sentence)]
    assert cli.main(["replay", path, "--set", setting, "--json"]) == 0
    assert orjson.loads(capsys.readouterr().out)["overruled"] == [sentence][:bool(sentence)]


def test_the_command_says_where_decisions_part(tmp_path, capsys):
    path = tmp_path / "call.jsonl"
    text = b"".join(spoken_with_pauses().lines)
    path.write_bytes(text.replace(b'"ten of clubs"]', b'"seven of clubs"]'))
    assert cli.main(["replay", str(path)]) in (0, 1)
    path.write_bytes(text.replace(b'"listen",2', b'"listen",3'))
    assert cli.main(["replay", str(path)]) == 1
    assert "then it decided" in capsys.readouterr().out


TOOLS = """
start = "chat"
[tools.look]
url = "http://127.0.0.1:9/"
arguments = { day = "date" }
results = { open = { at = "time" } }
[states.chat]
say = "Yes?"
prompt = "Answer."
tools = [{ call = "look", results = { open = "bye" } }]
on = [{ free = true }, { date = true, fact = "day", call = "look", go = "bye", results = { failure = "chat" } }]
[states.bye]
say = "At {at}, then."
end = true
"""


def test_what_tools_and_functions_did_is_in_the_journal(tmp_path):
    async def hold():
        line = Line(Flow.parse(TOOLS, "tools.toml"), Kept)
        answers = iter([Outcome("failure", {}, "", "It was shut."), Outcome("open", {"at": "15:30"}, "{}")])

        class Answering(Toolbox):
            async def perform(self, call):
                await asyncio.sleep(0)
                return next(answers)
        line.call.mouth.stage.perform = Answering({}, "CA1", line.call.mouth.on_tool, print).start
        await line.listens()
        await line.says("tomorrow")                     # which fails
        line.model.answers = [["Let me look. ", FunctionCall("look", {"day": "2026-11-24"}, "c1")]]
        await line.says("and the day after that")
        assert line.state == "bye" and line.facts["at"] == "15:30"
        return line.talk

    call = asyncio.run(hold())
    tape = call.tape(tmp_path)
    again = replayed(tape)
    assert again.call.ledger.receipts == call.receipts \
        and again.call.dialogue.facts == {"day": "2026-11-23", "at": "15:30"}
    assert any(decision[0] == "goes on" for decision in again.decisions)


class KeptClient(Client):
    """A client of a model in a session that keeps a journal."""

    def __init__(self, *more):
        self.lines = []
        super().__init__(*more)

    def journal(self):
        file = SimpleNamespace(append=self.lines.append, close=lambda: None)
        return journal.Journal(lambda call_id: file, journal.header(
            "openai-realtime", {}, "assistant", self.studio.flows["assistant"], self.studio.config, SETTINGS,
            self.server.today))


def test_a_session_with_notes_beside_what_is_said_is_made_again(tmp_path):
    note = {"conversation": "none", "output_modalities": ["text"]}

    async def hold():
        client = KeptClient.of_model("One two. ", "Three four five.")
        client.writes("count")
        client.does("response.create")
        client.does("response.create", response=note)
        await client.thinks(30)
        client.studio.llm.free.clear()
        client.does("response.create", response=note)
        await client.thinks(2100)                       # the model does not answer in time
        client.call.lost(1000, "")
        await asyncio.sleep(0)
        return client
    client = asyncio.run(hold())
    assert sorted(client.statuses) == ["completed", "completed", "failed"]
    (tmp_path / "call.jsonl").write_bytes(b"".join(client.lines))
    again = replayed(load(str(tmp_path / "call.jsonl")))
    assert again.call.ledger.receipts == client.call.ledger.receipts
    assert [item.text for item in again.call.dialect.items.order] == ["count", "One two. Three four five."]
