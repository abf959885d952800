"""Calls in text: the real session, dialect, flow and tools on a virtual clock, and once a real server."""
import asyncio
import base64
import hmac
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlencode, urlsplit
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversation import MS, Connection, Server, Studio
from opusagent import ConfigError, ProtocolError
from opusagent.calls.call import Call
from opusagent.calls.kinds import call_of
from opusagent.calls.relay import RelayCall
from opusagent.client.telephone import Line, spoken_to
from opusagent.dialects import CALLERS, DIALECTS, TABLE, TEXT, TEXT_CALLERS, TEXTUAL, Stop, Words
from opusagent.dialects.relay import joined
from opusagent.flow import Flow
from opusagent.flow.authoring import Flow as Written
from opusagent.flow.authoring import State
from opusagent.flow.phrasing import Plain
from opusagent.trust import signing
from served import SCRIPTED, serving

FLOW = """
start = "hello"
facts = { caller = "nobody", drink = "" }
[states.hello]
say = "Hello, {caller}. Tea or coffee?"
on = [{ phrases = ["tea", "coffee"], fact = "drink", go = "fine" }]
[states.fine]
say = "Fine. Anything else?"
on = [{ free = true, go = "bye" }]
[states.bye]
say = "Goodbye."
end = true
"""
MODEL = """
start = "talk"
[states.talk]
say = "Hello."
prompt = "Be kind."
on = [{ free = true }]
"""


class Relayed:
    """A call that Twilio recognises and speaks; the server ticks every 5 ms."""

    def __init__(self, flow=FLOW, targets=(), **setup):
        self.studio = Studio(Flow.parse(flow, "flow.toml") if isinstance(flow, str) else flow)
        self.server = Server(self.studio)
        self.server.departures.config = type("Config", (), {"targets": targets})
        self.connection = Connection()
        self.call = RelayCall(self.server, self.connection, TABLE_OF({}), "", self.journal())
        self.tell("setup", callSid="CA1", **setup)

    def journal(self):
        """None: none is kept."""

    def tell(self, kind, **content):
        self.call.on_message(TEXT, memoryview(json.dumps({"type": kind, **content}).encode()))

    def says(self, words, last=True):
        self.tell("prompt", voicePrompt=words, lang="en-US", last=last)

    def speaks(self, who, on=True):
        self.tell("info", name={"agent": "agentSpeaking", "caller": "clientSpeaking"}[who], value="on" if on else "off")

    def spoken(self, words):
        self.tell("info", name="tokensPlayed", value=words)

    def answers_all(self):
        """The caller answers both questions of FLOW; the farewell is on its way."""
        for words in ("tea", "no"):
            self.passes(3000)
            self.says(words)

    def interrupts(self, heard):
        self.tell("interrupt", utteranceUntilInterrupt=heard, durationUntilInterruptMs=400)

    def passes(self, ms):
        for _ in range(ms // 5):
            self.server.now += 5 * MS
            if self.call.due <= self.server.now and not self.connection.closed:
                self.call.tick(self.server.now)

    async def thinks(self):
        for _ in range(10):
            await asyncio.sleep(0)
            self.passes(5)

    @property
    def messages(self):
        return [json.loads(message) for _, message in self.connection.sent]

    @property
    def tokens(self):
        return [message["token"] for message in self.messages if message["type"] == "text"]

    @property
    def receipts(self):
        return self.call.ledger.receipts


TABLE_OF = TEXTUAL["twilio-relay"]


def test_a_conversation():
    call = Relayed(customParameters={"caller": "Ada"})
    assert call.messages == [{"type": "text", "token": "Hello, Ada. Tea or coffee?", "last": True,
                              "interruptible": True, "preemptible": True}]
    call.passes(3000)
    call.says("Tea, please.")
    assert call.tokens[1:] == ["Fine. Anything else?"]
    call.passes(3000)
    call.says("no that is all")
    call.passes(3000)
    assert call.messages[-1] == {"type": "end", "handoffData": json.dumps(
        {"do": "end", "facts": {"caller": "Ada", "drink": "tea"}}, separators=(",", ":"))}
    assert not call.connection.closed               # the platform ends it,
    call.passes(5100)
    assert call.connection.closed[0] == 1000        # or we do
    call.call.lost(1000, "")
    record = call.call.record()
    assert not call.server.calls and record["done"] and record["facts"]["drink"] == "tea" and not record["live"]
    assert [(turn["caller"], turn["agent"], turn["measured"]) for turn in record["turns"]] == [
        ("", "Hello, Ada. Tea or coffee?", False), ("Tea, please.", "Fine. Anything else?", True),
        ("no that is all", "Goodbye.", True)]
    assert all(turn["voice_to_voice_ms"] is None for turn in record["turns"])
    text = call.server.metrics.text()
    assert "opusagent_turns_total 2" in text and 'opusagent_wait_seconds_count{wait="decision"} 2' in text
    assert "opusagent_voice_to_voice_seconds_count 0" in text


def test_what_was_heard_is_what_the_platform_had_spoken():
    call = Relayed()
    call.passes(500)
    call.interrupts("Hello, nobody.")
    assert call.receipts[-1]["agent"] == "Hello, nobody." and call.receipts[-1]["stopped_by"] == "barge-in"
    call.says("coffee")
    assert call.call.dialogue.history[0].agent == "Hello, nobody." and call.call.dialogue.state == "fine"
    assert call.server.metrics.counters["barge_ins", ()] == 1


def test_an_interruption_after_what_we_took_for_the_end():
    call = Relayed()
    call.passes(4000)
    assert call.receipts[-1]["agent"] == "Hello, nobody. Tea or coffee?"
    call.interrupts("Hello, nobody. Tea")
    assert call.receipts[-1]["agent"] == "Hello, nobody. Tea" and call.receipts[-1]["stopped_by"] == "barge-in"
    assert call.call.dialogue.history[0].agent == "Hello, nobody. Tea"


def test_a_slow_voice_is_waited_for_and_a_quick_one_is_not():
    """Twilio hangs up at once, in mid-word, when it is told that the session is over."""
    call = Relayed()
    call.answers_all()
    call.passes(500)
    call.speaks("agent")
    call.passes(5000)
    assert call.messages[-1]["type"] == "text"
    call.spoken("Goodbye.")
    call.speaks("agent", False)
    call.passes(5)
    assert call.messages[-1]["type"] == "end"
    call = Relayed(FLOW.replace("Goodbye.", "Thank you very much indeed, and goodbye to you, too."))
    call.answers_all()
    call.passes(500)
    call.speaks("agent")
    for words in ("Thank you very much indeed, ", "and goodbye to you, too."):
        assert call.messages[-1]["type"] == "text"
        call.spoken(words)
    call.speaks("agent", False)
    call.passes(5)
    assert call.messages[-1]["type"] == "end"


def test_keys_are_pressed_before_the_call_ends():
    """Twilio takes two seconds for that, and says when it has."""
    flow = FLOW.replace('say = "Goodbye."', 'send_digits = "1234#"')
    for told in (False, True):
        call = Relayed(flow)
        call.answers_all()
        call.passes(1900)
        assert call.messages[-1] == {"type": "sendDigits", "digits": "1234#"}
        if told:
            call.spoken("1234#")
        call.passes(5 if told else 2000)
        assert call.messages[-1]["type"] == "end"


def test_a_platform_that_forgets_to_say_that_it_is_silent():
    call = Relayed()
    call.answers_all()
    call.passes(500)
    call.speaks("agent")
    call.passes(11_000)
    assert call.messages[-1]["type"] == "end"


def test_what_has_been_spoken_is_what_was_heard():
    """An interruption says the end of it only, which may be anywhere."""
    call = Relayed(FLOW.replace("Tea or coffee?", "The tea or the coffee? The tea is good."))
    call.passes(600)
    call.speaks("agent")
    call.spoken("Hello, nobody.")
    call.spoken(" The tea or the coffee?")
    call.spoken(" The tea")
    call.interrupts("The tea")
    assert call.receipts[-1]["agent"] == "Hello, nobody. The tea or the coffee? The tea"
    call = Relayed(FLOW.replace('on = [{ phrases', 'on = [{ dtmf = "1", go = "fine" }, { phrases'))
    call.passes(600)
    call.spoken("Hello, nobody.")
    call.tell("dtmf", digit="1")
    assert call.receipts[-1]["agent"] == "Hello, nobody."
    call.spoken(" Tea")                     # too late, and none of what is said now
    assert call.call.script.spoken == 0


def test_who_speaks_is_not_asked_whether_he_is_there():
    call = Relayed()
    call.passes(3000)
    said = len(call.tokens)
    call.speaks("caller")
    call.passes(20_000)
    assert len(call.tokens) == said
    call.speaks("caller", False)
    call.passes(call.call.no_input + 100)
    assert len(call.tokens) == said + 1
    call.passes(3000)
    call.speaks("caller")                   # and is forgotten
    call.passes(31_000)
    assert len(call.tokens) == said + 2


def test_an_answer_cuts_off_what_only_answers_interrupt():
    call = Relayed(FLOW.replace('[states.hello]', '[states.hello]\ninterrupt = "answers"'))
    assert (call.messages[0]["interruptible"], call.messages[0]["preemptible"]) == (False, True)
    call.passes(900)
    call.says("what did you say")           # would be answered afterwards
    assert call.call.dialogue.state == "hello" and len(call.tokens) == 1
    call.says("tea")
    assert call.call.dialogue.state == "fine" and call.receipts[0]["agent"] == "Hello," \
        and call.receipts[0]["stopped_by"] == "barge-in"
    call.passes(4000)
    assert call.call.dialogue.state == "fine"


def test_who_says_nothing_is_asked_again():
    call = Relayed()
    call.passes(2000)
    said = len(call.tokens)
    call.passes(1000 + call.call.no_input)
    assert len(call.tokens) == said + 1 and call.call.ledger.trace.kind == "silence"
    call.passes(3000)
    call.says("te", last=False)
    call.says("tea", last=True)
    assert call.call.dialogue.facts["drink"] == "tea"


def test_an_utterance_in_pieces():
    assert joined("", " tea ") == "tea" and joined("I want", "tea") == "I want tea"
    assert joined("i want", "I want tea") == "I want tea"
    call = Relayed()
    call.passes(3000)
    call.says("I'd like", last=False)
    call.says("coffee", last=True)
    assert call.call.dialogue.facts["drink"] == "coffee"


def test_a_model_is_heard_token_by_token():
    async def conversation():
        call = Relayed(MODEL)
        call.passes(2000)
        call.studio.llm.pieces = ["I", " am", " *fine*.", " And", " you?"]
        call.says("how are you")
        await call.thinks()
        assert call.tokens[1:] == ["I", " am", " fine.", " And", " you?", ""]
        assert [message["last"] for message in call.messages[1:]] == [False] * 5 + [True]
        call.passes(600)
        call.interrupts("I am fine.")
        turn = call.receipts[-1]
        assert turn["agent"] == "I am fine." and turn["waits"]["llm_first_token"] >= 0
        call.says("me too")
        await call.thinks()
        assert call.call.dialogue.history[1].agent == "I am fine." \
            and len(call.studio.llm.asked) == 2, call.studio.llm.asked
    asyncio.run(conversation())


@pytest.mark.parametrize("written, said", [
    (["It is **", "ten** of *clubs", "*."], "It is ten of clubs."),
    (["We are #", "1, room #12b, in #mu", "sic."], "We are #1, room #12b, in music."),
    (["Rated 5", "* by C# users"], "Rated 5* by C# users"),
    (["*From 4 to 5*, say"], "From 4 to 5, say"),
    (["Dial *", "67 or #31#, then press # or *."], "Dial *67 or #31#, then press # or *."),
    (["# Two\n* 3*4", "\n* a_b"], "Two  3*4  a_b"),
    (["It costs 5*"], "It costs 5*")])
def test_signs_for_the_eye_are_not_spoken_and_others_are(written, said):
    async def conversation():
        call = Relayed(MODEL)
        call.passes(2000)
        call.studio.llm.pieces = written
        call.says("how much")
        await call.thinks()
        assert "".join(call.tokens[1:]) == said == call.call.script.text
    asyncio.run(conversation())


@given(st.lists(st.sampled_from(["*", "**", "_", "#", " ", "\n", "a", "5", ".", "word"]), max_size=12), st.data())
def test_what_is_plain_does_not_depend_on_the_pieces_in_which_it_comes(parts, data):
    text = "".join(parts)
    whole, cut, pieces = Plain(), Plain(), []
    while text[len("".join(pieces)):]:
        at = len("".join(pieces))
        pieces.append(text[at:at + data.draw(st.integers(1, 3))])
    assert whole.feed(text) + whole.finish() == "".join(map(cut.feed, pieces)) + cut.finish()


def test_who_goes_on_before_anything_was_said_is_answered_once():
    async def conversation():
        call = Relayed(MODEL)
        call.passes(2000)
        call.studio.llm.pieces = ["Yes."]
        call.studio.llm.free.clear()
        call.says("I would like")
        await call.thinks()
        call.says("a room")
        call.studio.llm.free.set()
        await call.thinks()
        assert call.studio.llm.asked[-1][-1]["content"] == "I would like a room"
        assert call.call.dialogue.turn == 2 and call.tokens[1:] == ["Yes.", ""]
        assert call.receipts[1]["stopped_by"] == "going on"
    asyncio.run(conversation())


def test_a_model_that_is_late_is_bridged_and_one_that_fails_is_excused():
    async def conversation():
        call = Relayed(MODEL)
        call.passes(2000)
        call.studio.llm.free.clear()
        call.says("hello?")
        await call.thinks()
        call.passes(30_000)
        await call.thinks()
        call.passes(5000)
        assert call.tokens[1] == " ".join(call.call.flow.filler.fill({}))
        assert call.receipts[1]["kind"] == "answer" and call.receipts[2]["kind"] == "failure"
    asyncio.run(conversation())


def test_a_tool_that_cannot_be_undone_is_waited_for():
    async def conversation():
        flow, free, ran = Written(start="ask", failure={"say": ["No."], "go": "ask"}), asyncio.Event(), []
        flow.add(State("ask", say="Shall I book it?", on=[{"yes": True, "go": "booking"}]),
                 State("booking", say="One moment.", call="book", go="booked"),
                 State("booked", say="Your number is {reference}. Fine?", on=[{"free": True, "go": "bye"}]),
                 State("bye", say="Goodbye.", end=True))

        @flow.tool(effect="commit", results={"booked": {"reference": "digits"}})
        async def book():
            """Books it."""
            ran.append(1)
            await free.wait()
            return {"result": "booked", "reference": "47"}
        call = Relayed(flow.compile())
        call.passes(2000)
        call.says("yes")
        await call.thinks()
        call.tell("dtmf", digit="1")            # too late: it is being booked
        call.says("no wait")
        call.interrupts("One")
        free.set()
        await call.thinks()
        assert ran == [1] and call.call.dialogue.facts["reference"] == "47"
        assert call.tokens[1:3] == ["One moment.", " Your number is four seven. Fine?"]
        call.passes(6000)
        assert call.receipts[-1]["caller"] == "no wait" and call.call.dialogue.state == "bye"
    asyncio.run(conversation())


def test_a_model_behind_a_slow_tool_has_as_long_as_any():
    async def conversation():
        flow, free = Written(start="ask", failure={"say": ["No."], "go": "ask"}), asyncio.Event()
        flow.add(State("ask", say="Shall I look?", on=[{"yes": True, "go": "looking"}]),
                 State("looking", call="look", go="answer"),
                 State("answer", prompt="Say what you found.", on=[{"free": True}]))

        @flow.tool(effect="pure", timeout=60_000)
        async def look():
            """Looks."""
            await free.wait()
        call = Relayed(flow.compile())
        call.passes(2000)
        call.studio.llm.pieces = ["Nothing."]
        call.studio.llm.free.clear()
        call.says("yes")
        await call.thinks()
        call.passes(20_000)
        assert call.tokens.count(" One moment please.") > 3
        free.set()
        await call.thinks()
        call.passes(1800)                       # less than it may think
        call.studio.llm.free.set()
        await call.thinks()
        assert call.tokens[-2:] == [" Nothing.", ""]
    asyncio.run(conversation())


def test_what_a_tool_gave_after_the_end_of_the_call_is_told_too():
    async def conversation():
        flow, free, told = Written(start="ask", failure={"say": ["No."], "go": "ask"}), asyncio.Event(), []
        flow.add(State("ask", say="Shall I book it?", on=[{"yes": True, "go": "booking"}]),
                 State("booking", call="book", go="booked"),
                 State("booked", say="Your number is {reference}.", end=True))

        @flow.tool(effect="commit", results={"booked": {"reference": "digits"}})
        async def book():
            """Books it."""
            await free.wait()
            return {"result": "booked", "reference": "47"}
        call = Relayed(flow.compile())
        call.passes(2000)
        call.says("yes")
        await call.thinks()
        call.server.keeper = SimpleNamespace(amended=lambda call: told.append(call.record()["facts"]["reference"]))
        call.call.lost(1006, "")
        free.set()
        for _ in range(10):
            await asyncio.sleep(0)
        assert told == ["47"]
    asyncio.run(conversation())


def test_keys():
    call = Relayed(FLOW.replace('on = [{ phrases', 'on = [{ dtmf = "1", go = "bye" }, { phrases'))
    call.tell("dtmf", digit="1")
    assert call.receipts[0]["stopped_by"] == "keys" and call.call.dialogue.state == "bye"


def test_a_key_is_told_before_the_interruption_that_it_is():
    """As Twilio sends it: the answer to the key is on its way already, and is what goes on."""
    call = Relayed(FLOW.replace('on = [{ phrases', 'on = [{ dtmf = "1", go = "fine" }, { phrases'))
    call.passes(1500)
    call.tell("dtmf", digit="1")
    call.interrupts("Hello, nobody.")
    assert call.tokens[-1] == "Fine. Anything else?" and call.receipts[-1]["stopped_by"] == "keys"
    call.passes(3000)
    assert call.receipts[-1]["agent"] == "Fine. Anything else?" and call.receipts[-1]["stopped_by"] == ""


def test_nor_does_it_stop_a_model_that_has_not_begun():
    async def conversation():
        call = Relayed(MODEL.replace("on = [{ free", 'on = [{ dtmf = "1" }, { free'))
        call.passes(1000)
        call.studio.llm.pieces = ["Yes."]
        call.studio.llm.free.clear()
        call.tell("dtmf", digit="1")
        await call.thinks()
        call.interrupts("Hel")
        call.studio.llm.free.set()
        await call.thinks()
        assert call.tokens[1:] == ["Yes.", ""]
    asyncio.run(conversation())


def test_a_key_stops_nothing_that_nobody_may_interrupt():
    call = Relayed(FLOW.replace('on = [{ phrases', 'on = [{ digits = 2, go = "bye" }, { phrases'))
    for digit in "12#3":                        # the number, its end, and one key more
        call.tell("dtmf", digit=digit)
    call.passes(4000)
    assert call.call.dialogue.state == "bye" and [receipt["kind"] for receipt in call.receipts] == ["begin", "dtmf"]
    assert call.receipts[-1]["stopped_by"] == ""


def test_what_may_not_be_interrupted_is_answered_afterwards():
    call = Relayed(FLOW.replace('[states.hello]', '[states.hello]\ninterruptible = false'))
    assert call.messages[0]["interruptible"] is False
    call.says("tea")
    call.interrupts("Hello")
    assert call.call.dialogue.state == "hello"
    call.passes(4000)
    assert call.call.dialogue.state == "fine" and call.receipts[0]["stopped_by"] == ""


def test_the_language_is_told():
    call = Relayed(FLOW.replace('[states.fine]', '[states.fine]\nlanguage = "es-ES"'))
    call.passes(3000)
    call.says("tea")
    assert [message["type"] for message in call.messages] == ["text", "language", "text"]


TRANSFER = FLOW.replace('end = true', 'transfer = "desk"') + '[transfers]\ndesk = "+4930123456"\n'


def test_a_transfer_is_told_to_who_asks_what_comes_next():
    call = Relayed(TRANSFER, targets=("+4930*",))
    call.answers_all()
    call.passes(3000)
    assert json.loads(call.messages[-1]["handoffData"])["target"] == "+4930123456"


def test_nobody_is_handed_over_to_whom_the_list_does_not_name():
    call = Relayed(TRANSFER)
    call.answers_all()
    call.passes(3000)
    assert "end" not in [message["type"] for message in call.messages[:-1]] and call.receipts[-1]["agent"] == "Goodbye."
    assert call.server.metrics.counters["transfers", (("outcome", "refused"),)] == 1


def test_a_hang_up_ends_all():
    async def conversation():
        call = Relayed(MODEL)
        call.studio.llm.free.clear()
        call.passes(2000)
        call.says("hello")
        await asyncio.sleep(0)
        call.call.lost(1006, "")
        await asyncio.sleep(0)
        assert not call.server.calls and call.studio.llm.dropped == 1 and not call.call.record()["live"]
        call.call.tick(call.server.now)
    asyncio.run(conversation())


def test_a_call_that_must_end_is_told_so():
    call = Relayed()
    call.call.part()
    call.passes(10_000)
    assert call.messages[-1]["type"] == "end" and call.tokens[-1] == " ".join(call.call.flow.parting.fill({}))


def test_it_is_not_offered_where_audio_is_meant():
    assert call_of("twilio-relay") is RelayCall and call_of("twilio") is Call
    assert "twilio-relay" in DIALECTS and not {"twilio-relay"} & (set(TABLE) | set(CALLERS))
    with pytest.raises(ConfigError, match="carries text"):
        spoken_to("ws://h:1/ws/twilio-relay")
    with pytest.raises(ConfigError, match="carries text"):
        spoken_to("ws://h:1/ws/twilio", "twilio-relay")
    with pytest.raises(ValueError, match="are no keys"):
        TABLE_OF.send_digits("1a")


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.lists(st.integers(), max_size=2)
MESSAGES = st.fixed_dictionaries(
    {"type": st.sampled_from(["setup", "prompt", "dtmf", "interrupt", "error", "text", "info", None])},
    optional={name: VALUES | st.sampled_from(["tea", "1", "Hello,", "on", "off"]) for name in (
        "callSid", "customParameters", "voicePrompt", "lang", "last", "digit", "utteranceUntilInterrupt",
        "durationUntilInterruptMs", "description", "from", "value")} | {
        "name": st.sampled_from(["agentSpeaking", "clientSpeaking", "tokensPlayed"]) | VALUES})


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(MESSAGES, st.sampled_from([0, 5, 400, 3000])), max_size=12))
def test_whatever_comes_in_whatever_order_the_call_stands(messages):
    call = Relayed()
    for message, ms in messages:
        call.call.on_message(TEXT, memoryview(json.dumps(message).encode()))
        call.passes(ms)
        assert not call.connection.faults
    call.call.lost(1000, "")
    assert not call.server.calls and all(turn["turn"] == i for i, turn in enumerate(call.receipts, 1))
    lasts = [message["last"] for message in call.messages if message["type"] == "text"]
    assert all(lasts)                               # of a script, every reply is one message


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_alien_messages_are_a_protocol_error_or_nothing(payload):
    call = Relayed()
    try:
        call.call.on_message(TEXT, memoryview(payload))
    except ProtocolError as error:
        assert error.code == 1007


# ---- a real server ---------------------------------------------------------------------------------------------------

SECRET, PLACE = "a-secret-of-twilio", "https://calls.example.com"


@pytest.fixture(scope="module")
def configured(tmp_path_factory):
    """The flags of a server with this flow and Twilio's secret."""
    folder = tmp_path_factory.mktemp("relay")
    (folder / "flow.toml").write_text(FLOW)
    (folder / "opusagent.toml").write_text(f'public_url = "{PLACE}"\ntargets = ["+4930*"]\n'
                                           f'[auth.twilio]\nsecrets = ["{SECRET}"]\n')
    return "--flow", str(folder / "flow.toml"), "--config", str(folder / "opusagent.toml")


@pytest.fixture(scope="module")
def server(configured):
    with serving(*SCRIPTED, *configured) as running:
        yield running


async def converse(server, path="/ws/twilio-relay", secret=SECRET):
    """The tokens of a whole call, and what it ended with."""
    came, ended = asyncio.Queue(), asyncio.get_running_loop().create_future()
    heads = signing.headers("twilio-relay", urlsplit(f"wss://calls.example.com{path}"), secret, 0, "")
    line = await Line.dial(server.ws(path), lambda opcode, payload, now: came.put_nowait(json.loads(bytes(payload))),
                           lambda *ending: ended.done() or ended.set_result(ending), (), heads)
    said, words = [], iter(["tea", "no"])
    line.send(TEXT, json.dumps({"type": "setup", "callSid": "CA77", "from": "+1555"}).encode())
    while (message := await asyncio.wait_for(came.get(), 15))["type"] == "text":
        said.append(message["token"])
        if (answer := next(words, None)) is not None:
            line.send(TEXT, json.dumps({"type": "prompt", "voicePrompt": answer, "last": True}).encode())
    await line.hang_up()
    return said, message


def test_a_call_over_a_real_socket(server):
    said, message = asyncio.run(converse(server))
    assert said == ["Hello, +1555. Tea or coffee?", "Fine. Anything else?", "Goodbye."]
    assert message["type"] == "end" and json.loads(message["handoffData"])["facts"]["drink"] == "tea"
    base = f"http://{server.host}:{server.port}"
    with urllib.request.urlopen(f"{base}/calls/CA77") as answer:
        record = json.load(answer)
    assert record["dialect"] == "twilio-relay" and record["facts"]["drink"] == "tea" and len(record["turns"]) == 3
    with urllib.request.urlopen(f"{base}/metrics") as answer:
        assert b"opusagent_turns_total 2" in answer.read()
    assert "Traceback" not in server.written()


def called(server, *flags, environment={"TWILIO": SECRET}):
    """(exit code, what is said, the complaint) of `opusagent call` in text."""
    command = [sys.executable, "-P", "-m", "opusagent.cli", "call", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | environment)
    return done.returncode, done.stdout, done.stderr


def test_the_simulated_caller_converses_to_the_end(configured):
    """Signed for the address that is dialled, for there is no proxy here."""
    flow, path = configured[:2], configured[3]
    unsigned = Path(path).with_name("unsigned.toml")
    unsigned.write_text(Path(path).read_text().replace(f'public_url = "{PLACE}"', ""))
    with serving(*SCRIPTED, *flow, "--config", str(unsigned)) as server:
        url = server.ws("/ws/twilio-relay")
        code, said, why = called(server, url, "--say", "tea please", "--say", "no", "--secret", "env:TWILIO", "--json")
        assert code == 0, why
        found = json.loads(said)
        assert [(turn["caller"], turn["agent"]) for turn in found["turns"]] == [
            ("", "Hello, +15550100. Tea or coffee?"), ("tea please", "Fine. Anything else?"), ("no", "Goodbye.")]
        assert found["closed"] == "the agent ended the session" \
            and None not in [turn["wait_ms"] for turn in found["turns"]]
        assert found["record"]["done"] and found["record"]["state"] == "bye"
        code, said, why = called(server, url, "--dialect", "twilio-relay", "--say", "coffee", "--secret", "env:TWILIO")
        assert code == 0 and "agent   Fine. Anything else?   " in said and "The caller hung up." in said
        assert called(server, url, "--say", "tea")[::2] == (
            1, "opusagent call: The server refused the call with 401: "
               "This call does not show the credentials that its route asks for.\n")


@pytest.mark.parametrize("flags, sentence", [
    (("ws://h:1/ws/twilio-relay", "--wav", "x.wav"), "twilio-relay carries text, not audio: --say WORDS"),
    (("ws://h:1/ws/twilio-relay",), "twilio-relay carries text, not audio: --say WORDS"),
    (("ws://h:1/ws/twilio", "--say", "tea"), "twilio carries audio: --wav FILE"),
    (("ws://h:1/ws/pcm",), "pcm carries audio: --wav FILE"),
    (("http://h/", "--say", "x"), "is not a WebSocket address")])
def test_a_caller_says_what_the_line_can_carry(flags, sentence):
    code, said, why = called(None, *flags)
    assert code == 2 and not said and sentence in why and "Traceback" not in why


@pytest.mark.parametrize("message", [
    b"[]", b"{}", b'{"type":"text","token":"a"}', b'{"type":"text","token":1,"last":true}', b'{"type":"play"}',
    b'{"type":"sendDigits","digits":"a"}', b'{"type":"sendDigits","digits":""}', b'{"type":"end","handoffData":{}}',
    b'{"type":"language"}', b'{"type":"media"}'])
def test_a_simulated_twilio_is_strict(message):
    caller = TEXT_CALLERS["twilio-relay"](urlsplit("ws://h/ws/twilio-relay"))
    with pytest.raises(ProtocolError):
        caller.receive(TEXT, memoryview(message))


def test_what_we_send_is_what_a_simulated_twilio_takes():
    caller, ours = TEXT_CALLERS["twilio-relay"](urlsplit("ws://h/ws/twilio-relay")), TABLE_OF({})
    (_, setup), = caller.open()
    assert ours.receive(TEXT, memoryview(setup)).call_id == caller.call_id
    assert caller.receive(TEXT, ours.text("Hello.", False)) == Words("Hello.", False)
    for message in (ours.play("https://h/a.wav"), ours.send_digits("1w#"), ours.language("es-ES")):
        assert caller.receive(TEXT, message) is None
    for opcode, message in (caller.prompt("tea"), caller.interrupt("Hel", 300), caller.dtmf("#"),
                            caller.speaking("agent", True), caller.spoken("Hel")):
        assert ours.receive(opcode, memoryview(message)) is not None
    assert isinstance(caller.receive(TEXT, ours.stop()), Stop)
    with pytest.raises(ProtocolError):
        caller.receive(TEXT, ours.stop())
    assert ours.ignored == 0


def test_who_does_not_sign_is_refused(server):
    with pytest.raises(ProtocolError) as refused:
        asyncio.run(converse(server, secret="another-secret"))
    assert refused.value.code == 401


def as_twilio(target, form):
    """(body, headers) of a webhook that Twilio signs."""
    message = PLACE + target + "".join(name + form[name] for name in sorted(form))
    made = base64.b64encode(hmac.digest(SECRET.encode(), message.encode(), "sha1")).decode()
    return urlencode(form).encode(), {"Content-Type": "application/x-www-form-urlencoded", "X-Twilio-Signature": made}


def asked(server, target, form):
    """The TwiML that a webhook is answered with, or the status that refuses it."""
    body, headers = as_twilio(target, form)
    request = urllib.request.Request(f"http://{server.host}:{server.port}{target}", body, headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return ElementTree.fromstring(answer.read())
    except urllib.error.HTTPError as error:
        return error.code


def test_the_voice_webhook_connects_text_where_it_is_asked_to(server):
    found = asked(server, "/twilio/voice/demo?relay=1&language=es-ES&speechTimeout=600&campaign=spring",
                  {"From": "+1555", "To": "+1666"})
    connect = found.find("Connect")
    assert connect.get("action") == f"{PLACE}/twilio/handoff/demo?language=es-ES&speechTimeout=600&campaign=spring"
    assert connect.find("ConversationRelay").attrib == {
        "url": "wss://calls.example.com/ws/twilio-relay/demo", "dtmfDetection": "true", "language": "es-ES",
        "speechTimeout": "600", "reportInputDuringAgentSpeech": "any", "events": "speaker-events tokens-played"}
    assert {each.get("name"): each.get("value") for each in connect.iter("Parameter")} == {
        "campaign": "spring", "caller": "+1555", "callee": "+1666"}
    assert asked(server, "/twilio/voice", {"From": "+1555"}).find("Connect/Stream") is not None


def test_what_follows_a_session_is_asked_for(server):
    def follows(data):
        return asked(server, "/twilio/handoff", {"CallSid": "CA1", "HandoffData": data})
    told = json.loads(TABLE_OF({}).transfer("+4930123456"))["handoffData"]
    assert follows(told).findtext("Dial/Number") == "+4930123456"
    assert follows(told.replace("+49", "+39")) == 403
    for data in (json.loads(TABLE_OF({}).stop())["handoffData"], "", "no JSON", "[1]", '{"do": "transfer"}'):
        assert follows(data).find("Hangup") is not None


def test_a_session_that_fails_is_followed_by_another_one_and_not_for_ever(server):
    """Twilio asks the address that we gave it, whatever stands in it; the third failure is the last."""
    first = asked(server, "/twilio/voice/demo?relay=1&language=es-ES&campaign=spring", {
        "From": "+1555", "To": "+1666", "AnsweredBy": "human"}).find("Connect")
    connect, answers = first, []
    while connect is not None:
        form = {"CallSid": "CA1", "From": "+1555", "To": "+1666", "SessionStatus": "failed", "ErrorCode": "64105"}
        answers.append(asked(server, connect.get("action").removeprefix(PLACE), form))
        connect = answers[-1].find("Connect")
    for answer in answers[:-1]:
        relay = answer.find("Connect/ConversationRelay")
        assert relay.attrib == first.find("ConversationRelay").attrib and relay.get("language") == "es-ES"
        assert {each.get("name"): each.get("value") for each in relay} == {
            "campaign": "spring", "caller": "+1555", "callee": "+1666", "answered_by": "human"}
    assert [[child.tag for child in answer] for answer in answers] == [["Connect"], ["Connect"], ["Hangup"]]
    ended = json.loads(TABLE_OF({}).stop())["handoffData"]
    for form in ({"SessionStatus": "completed"}, {"SessionStatus": "ended", "HandoffData": ended}, {},
                 {"SessionStatus": "failed", "HandoffData": ended}):
        assert asked(server, "/twilio/handoff/demo", form).find("Hangup") is not None
