"""Limits of calls: how long, how silent, how costly, how many; what is counted, and over how many workers."""
import asyncio
import datetime
import re
import time
import urllib.request
from types import SimpleNamespace

import orjson
import pytest
from conversation import MS, Conversation
from lines import WebSocketLine
from served import SCRIPTED, serving
from test_handover import moved

from opusagent import EngineError, ProtocolError
from opusagent.config import Bounds, Config
from opusagent.dialects import Start
from opusagent.metrics import Metrics
from opusagent.server.limits import Limits, caller_of
from opusagent.tally import WAYS, Entries, Tally, digest
from opusagent.usage import Question, Usage, current

FLOW = """
name = "cards"
start = "card"
parting = "I have to go now."
[states.card]
say = "Which card?"
on = [{ phrases = ["ten of clubs"], go = "wish" }]
[states.wish]
prompt = "Ask for a wish."
on = [{ free = true, go = "wish" }]
"""
SECOND = 1000 * MS


def limits(tally=None, seat=0, **bounds):
    return Limits(Bounds(**bounds), Metrics(), tally or Tally(2, 8), seat)


def limited(flow=FLOW, **bounds):
    """A conversation whose limits are looked at as the server does, at each tick."""
    talk = Conversation(flow, begin=False)
    guard = limits(**bounds)
    talk.call.usage.most_tokens, talk.call.usage.most_spoken = bounds.get("tokens", 0), bounds.get("spoken_seconds", 0)
    talk.server.call_begins = lambda call, start: (talk.server.calls.append(call),
                                                   guard.begins(call, start, talk.server.now))
    tick = talk.call.tick

    def looked(now):
        guard.look(now)
        tick(now)
    talk.call.tick, talk.eager = looked, True
    talk.receive(b'{"event":"start","streamSid":"MZ1","start":{"callSid":"CA1","customParameters":{"caller":"+491"}}}')
    return talk, guard


def ended(talk):
    return talk.call.usage.outcome, talk.agent_says[-1], talk.connection.closed


# -- how long ----------------------------------------------------------------------------------------------------------

def test_a_call_that_is_too_long_hears_the_parting_and_ends():
    talk, guard = limited(call_seconds=4)
    talk.listens()
    talk.silence(6000)
    assert ended(talk) == ("call_seconds", "I have to go now.", (1000, "the conversation is over"))
    assert guard.metrics.counters[("limited_calls", (("limit", "call_seconds"),))] == 1
    talk.call.lost(1000, "")
    assert talk.call.record()["outcome"] == "call_seconds" and talk.call.record()["usage"]["telephone_seconds"] > 4


def test_a_reply_that_is_being_spoken_is_let_finish_but_not_for_ever():
    long = FLOW.replace("Which card?", "word " * 100 + "end.")         # 5 s
    talk, _ = limited(long, call_seconds=2)
    talk.silence(7000)
    assert talk.agent_says[0].endswith("end.") and talk.agent_says[-1] == "I have to go now."
    talk, _ = limited(FLOW.replace("Which card?", "word " * 600 + "end."), call_seconds=2)
    talk.silence(15000)
    assert not talk.agent_says[0].endswith("end.") and talk.agent_says[-1] == "I have to go now."


def test_silence_is_the_caller_s_whatever_the_agent_says_meanwhile():
    talk, _ = limited(silence_seconds=8)
    talk.listens()
    for _ in range(3):
        talk.speech(600, "well")
        talk.silence(5000)
    assert not talk.call.usage.outcome
    talk.silence(10000)
    assert ended(talk)[:2] == ("silence_seconds", "I have to go now.") and talk.receipts[-2]["kind"] == "silence"


def test_keys_are_a_sign_of_the_caller():
    talk, _ = limited(silence_seconds=8)
    for _ in range(4):
        talk.receive(b'{"event":"dtmf","dtmf":{"digit":"5"}}')
        talk.silence(6000)
    assert not talk.call.usage.outcome


# -- how costly --------------------------------------------------------------------------------------------------------

async def a_while(talk, ms=2000):
    for _ in range(ms // 20):
        talk.silence(20)
        for _ in range(5):
            await asyncio.sleep(0)


def test_when_the_tokens_are_spent_nobody_is_asked_again():
    async def talked():
        talk, _ = limited(tokens=30)
        talk.studio.llm.answers = [["A wish? "], ["Another? "]]
        await a_while(talk)
        talk.speech(600, "ten of clubs")
        await a_while(talk, 4000)
        talk.speech(600, "more")
        await a_while(talk, 4000)
        return talk
    talk = asyncio.run(talked())
    assert len(talk.studio.llm.asked) == 1
    assert ended(talk)[:2] == ("tokens", "I have to go now.")
    assert talk.call.usage.record()["tokens_in"] > 30 and talk.call.usage.record()["tokens_estimated"]


def test_a_request_that_the_budget_does_not_cover_is_not_made_and_the_caller_is_told():
    async def talked():
        talk, _ = limited(tokens=1)
        talk.call.usage.item("llm").tokens_in = 5
        await a_while(talk, 100)
        talk.call.done = False
        with pytest.raises(EngineError, match="budget"):
            await anext(talk.call.mouth.stage.llm.reply(()))
        return talk
    assert not asyncio.run(talked()).studio.llm.asked


def test_speech_that_was_not_spoken_ahead_costs_and_what_was_does_not():
    async def talked(ahead):
        talk, _ = limited(FLOW.replace("prompt =", "say ="), spoken_seconds=0.3)
        talk.studio.ahead = ahead
        await a_while(talk, 100)
        if not ahead:
            talk.call.reply(talk.call.dialogue.answer("ten of clubs"))
            talk.studio.tts.deliver()
            await a_while(talk, 4000)
        return talk
    talk = asyncio.run(talked(False))
    usage = talk.call.usage.record()
    assert usage["synthesised_characters"] == len("Ask for a wish.") and usage["synthesised_seconds"] == 0.2
    assert asyncio.run(talked(True)).call.usage.record()["synthesised_seconds"] == 0


def test_the_voice_is_not_asked_once_its_seconds_are_spent():
    async def talked():
        talk, _ = limited(FLOW.replace("prompt =", "say ="), spoken_seconds=0.1)
        talk.listens()
        talk.studio.ahead = False
        for _ in range(2):                              # before anybody has looked what the first one has cost
            talk.call.reply(talk.call.dialogue.answer("ten of clubs"))
            if talk.studio.tts.asked:
                talk.studio.tts.deliver()
        talk.studio.ahead = True
        await a_while(talk, 3000)
        return talk
    talk = asyncio.run(talked())
    assert talk.call.usage.item("tts").requests == 1 and talk.call.usage.refused
    assert ended(talk)[:2] == ("spoken_seconds", "I have to go now.")


def test_what_the_recogniser_is_given_counts():
    talk, _ = limited()
    talk.listens()
    talk.says("ten of diamonds", 1000)
    talk.call.lost(1000, "")
    usage = talk.call.record()["usage"]
    assert 1.0 < usage["recognised_seconds"] < 2.5
    assert usage["items"][0] == {"stage": "stt", "engine": "embedded", "requests": 1,
                                 "seconds": usage["recognised_seconds"]}


def test_an_endpoint_that_counts_the_tokens_is_believed():
    usage = Usage(Config(llm="openai"))
    current.set(usage)
    question = Question("api.example", "model-1", [{"role": "user", "content": "x" * 40}])
    question.answered(20)
    assert (usage.tokens, usage.record()["tokens_estimated"]) == (15, True)
    for nonsense in ({"prompt_tokens": -1, "completion_tokens": 3}, {"prompt_tokens": "9"}, [], None, {}):
        question.told(nonsense)
    question.told({"prompt_tokens": 12, "completion_tokens": 7})
    assert usage.record()["items"] == [{"stage": "llm", "engine": "openai", "endpoint": "api.example",
                                        "model": "model-1", "requests": 1, "tokens_in": 12, "tokens_out": 7,
                                        "exact": True}]
    metrics = Metrics()
    usage.outcome = "completed"
    usage.measure(metrics)
    assert 'opusagent_tokens_total{endpoint="api.example",engine="openai",way="in"} 12' in metrics.text()


def test_usage_goes_along_with_a_call_that_moves():
    usage, other = Usage(Config()), Usage(Config())
    usage.heard(1.5)
    usage.payers = ("caller +491",)
    other.restore(orjson.loads(orjson.dumps(usage.kept())))
    assert other.record() == usage.record() and other.payers == usage.payers
    other.restore({"items": [{**usage.kept()["items"][0], "of a later version": 1}]})


# -- how many ----------------------------------------------------------------------------------------------------------

class Line:
    """A call, as far as limits know it."""

    def __init__(self, tenant=""):
        self.usage = Usage(Config())
        self.connection = SimpleNamespace(tenant=tenant, sent=[])
        self.connection.send = lambda opcode, message: self.connection.sent.append(message)
        self.dialect = SimpleNamespace(stop=lambda: b"bye")
        self.done = True


def begin(guard, caller="+491", tenant=""):
    line = Line(tenant)
    guard.begins(line, Start("CA1", {"from": caller}), 0)
    return line


def test_calls_at_once_hold_over_all_workers():
    tally = Tally(3, 8)
    one, two = (limits(tally, seat, calls_per_caller=3) for seat in (1, 2))
    lines = [begin(one), begin(two), begin(one)]
    with pytest.raises(ProtocolError, match="limits.calls_per_caller allows"):
        begin(two)
    begin(two, "+492")
    one.ends(lines[0])
    begin(two)
    with pytest.raises(ProtocolError) as refused:
        one.check("+491", "")
    assert (refused.value.code, refused.value.retry_after) == (429, 10)


def test_one_that_is_refused_is_told_in_its_own_protocol():
    guard = limits(calls_per_tenant=1)
    begin(guard, tenant="AC1")
    line = Line("AC1")
    with pytest.raises(ProtocolError) as refused:
        guard.begins(line, Start("CA2"), 0)
    assert refused.value.code == 1008 and line.connection.sent == [b"bye"]
    assert guard.metrics.counters[("refused_calls", (("reason", "calls_per_tenant"),))] == 1
    guard.begins(Line(), Start("CA3", tenant="AC2"), 0)          # an account that only the platform names
    with pytest.raises(ProtocolError):
        guard.begins(Line(), Start("CA4", tenant="AC2"), 0)


def test_calls_of_a_day_are_forgotten_at_midnight_and_refused_ones_are_none():
    guard = limits(calls_per_caller_a_day=2)
    guard.calendar = lambda: datetime.datetime(2026, 11, 22, 23, 59, 30)
    for _ in range(2):
        guard.ends(begin(guard))
    for _ in range(3):
        with pytest.raises(ProtocolError):
            begin(guard)
    with pytest.raises(ProtocolError) as refused:
        guard.check("+491", "")
    assert refused.value.retry_after == 30
    guard.check("+492", "")
    guard.calendar = lambda: datetime.datetime(2026, 11, 23)
    begin(guard)


def test_a_worker_that_dies_leaves_no_calls_behind_once_its_own_are_taken_over():
    tally = Tally(2, 4)
    before = limits(tally, 1, calls_per_caller=2)
    line = begin(before)
    begin(before, "+492")
    after = limits(tally, 1, calls_per_caller=2)                 # in the same seat
    after.goes_on(line, 0)
    assert tally.at_once(digest("caller +491")) == 2             # rather one too many than one too few
    after.look(SECOND)
    after.look(2 * SECOND)
    assert tally.at_once(digest("caller +491")) == 1 and tally.at_once(digest("caller +492")) == 0
    tally.leave(1)
    assert tally.at_once(digest("caller +491")) == 0


@pytest.mark.parametrize("limit", ["call_seconds", "silence_seconds"])
def test_a_call_that_another_worker_goes_on_with_gets_no_time_anew(limit):
    """Thirty seconds are thirty seconds, however often it is taken over."""
    def seconds(deaths):
        talk = Conversation(TALK)
        talk.server.call_ends = lambda call: None
        guard, ends = limits(**{limit: 30}), 0
        guard.goes_on(talk.call, talk.server.now)
        while not talk.call.usage.outcome and ends < 60:
            ends += 1
            talk.silence(1000)
            if ends in deaths:
                moved(talk)
                guard = limits(**{limit: 30})
                guard.goes_on(talk.call, talk.server.now)
            guard.look(talk.server.now)
        return ends, talk.call.usage.outcome
    assert seconds(()) == seconds((10, 20)) == seconds((29,)) and seconds((29,))[1] == limit


def test_memory_of_callers_is_bounded_and_the_busiest_are_remembered(monkeypatch):
    monkeypatch.setattr("opusagent.tally.digest", lambda payer: int(payer.partition(" ")[2]) << 12 | 5)
    tally = Tally(1, 4)
    entries = Entries(tally, 0)
    for _ in range(3):
        entries.ends(entries.begins(("caller 1",), 7))
    for other in range(2, 100):
        entries.ends(entries.begins((f"caller {other}",), 7))
    assert tally.on(7, 1 << 12 | 5) == 3
    assert sum(tally.on(7, other << 12 | 5) > 0 for other in range(100)) <= WAYS


@pytest.mark.parametrize("name", ["caller", "from", "ani"])
def test_the_caller_s_number_is_found_among_the_facts(name):
    assert caller_of({"other": "x", name: "+4930"}) == "+4930" and caller_of({}) == ""


# -- in real processes -------------------------------------------------------------------------------------------------

TALK = """
name = "patience"
start = "wait"
parting = "Goodbye then."
[states.wait]
say = "Hello."
waits = { no_input = 60000 }
on = [{ phrases = ["yes"], go = "bye" }]
[states.bye]
say = "Bye."
end = true
"""


@pytest.fixture
def dial(server):
    lines = []

    def dial(route):
        lines.append(WebSocketLine(server.host, server.port, route))
        return lines[-1]
    yield dial
    for line in lines:
        line.close()


def told(server, name):
    """A counter, of all workers: each publishes its own a few times a second."""
    time.sleep(0.6)
    found = re.search(rf"^opusagent_{re.escape(name)} (\S+)$", fetch(server, "/metrics").decode(), re.MULTILINE)
    return float(found[1]) if found else 0


def fetch(server, path):
    with urllib.request.urlopen(f"http://{server.host}:{server.port}{path}") as answer:
        return answer.read()


@pytest.fixture
def server(request, tmp_path):
    flow = tmp_path / "flow.toml"
    flow.write_text(TALK)
    with serving(*SCRIPTED[2:], *request.param, "--flow", str(flow)) as server:
        yield server


@pytest.mark.parametrize("server", [("--workers", "2", "--limits-calls-per-caller", "2")], indirect=True)
def test_a_third_call_of_the_same_number_is_refused_by_whichever_worker(server, dial):
    assert [dial("/ws/pcm?caller=%2B491&call_id=" + name).status for name in ("a", "b")] == [101, 101]
    time.sleep(0.3)                     # the 101 is out a moment before the call has begun
    for _ in range(4):
        refused = dial("/ws/pcm?caller=%2B491")
        assert refused.status == 429 and b"\r\nRetry-After: 10\r\n" in refused.head
    assert dial("/ws/pcm?caller=%2B492").status == 101
    assert told(server, 'refused_calls_total{reason="calls_per_caller"}') == 4


@pytest.mark.parametrize("server", [("--workers", "1", "--limits-silence-seconds", "3")], indirect=True)
def test_a_silent_call_is_ended_with_its_outcome_in_the_record(server, dial):
    assert dial("/ws/pcm?call_id=silent").until_closed(15) == 1000
    until = time.monotonic() + 5
    while (record := orjson.loads(fetch(server, "/calls/silent")))["live"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert record["outcome"] == "silence_seconds" and record["turns"][-1]["agent"] == "Goodbye then."
    assert 3 <= record["usage"]["telephone_seconds"] < 14
    assert told(server, 'limited_calls_total{limit="silence_seconds"}') >= 1
