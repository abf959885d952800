"""The engine `realtime`: whole calls over real sockets to a local endpoint that converses, is strict, and misbehaves.

The call, its turn taking and its engine are the real ones; only the clock is not, so that a loaded machine changes
nothing (test_engine_faults.py).
"""
import asyncio
from collections import deque
from itertools import repeat
from types import SimpleNamespace

import numpy as np
import pytest
from conversation import Prompt, Server, Studio, spoken
from llm_endpoint import KEY, LocalEndpoint
from realtime_endpoint import realtime
from realtime_talker import Answer, Model, falls_deaf, falls_silent, resets, sends
from test_engine_faults import SILENCE, Clocked, LiveCall, Loop, babble, now
from test_replay import Kept, replayed

from opusagent.calls.call import Call
from opusagent.config import Config, OpenAI
from opusagent.dialects import TABLE
from opusagent.endpoints import Target
from opusagent.engines.realtime import context
from opusagent.engines.realtime.stages import Llm, Stt, Tts
from opusagent.engines.realtime.utterance import UNWRITTEN
from opusagent.engines.remote import endpoint as endpoint_module
from opusagent.flow import Flow

FLOW = """
persona = "You are the shop."
start = "hello"
[facts]
order = ""
[failure]
say = ["Something went wrong.", "It went wrong again."]
[states.hello]
say = "How can I help?"
on = [{ phrases = ["goodbye"], go = "bye" }, { free = true, go = "answer" }]
[states.answer]
prompt = "You answer a shop's telephone."
history = 4
tools = ["look"]
may_go = { bye = {}, ordered = { order = "digits" } }
on = [{ phrases = ["goodbye"], go = "bye" }, { free = true }]
[states.ordered]
say = "Your order {order} is on its way."
on = [{ free = true, go = "answer" }]
[states.bye]
say = "Goodbye."
end = true
[tools.look]
about = "Looks up an order."
url = "http://127.0.0.1:9/look"
arguments = { number = "digits" }
"""
SAID = "Your order left today and it comes to you on Monday morning before ten."
SORRY = "Something went wrong."
BEGUN = [("user", "(the call begins)"), ("assistant", "How can I help?")]     # what the flow tells a model of that


class Dialled(LiveCall):
    """A call by the engine `realtime`, with its journal."""

    journal, tape = Kept.journal, Kept.tape

    def __init__(self, config, stt, llm, tts, ahead=True, flow=FLOW):
        self.lines = []
        self.studio = studio = Studio(flow := Flow.parse(flow, "flow.toml"))
        studio.config, studio.stt, studio.llm, studio.tts = config, stt, llm, tts
        known = set(flow.prompts()) if ahead else ()
        studio.prompt = lambda voice, text, rate: Prompt(spoken(text, rate), rate) if text in known else None
        self.server = Server(studio)
        self.server.clock = lambda: round(now() * 1e9)
        self.server.now = self.server.clock()
        self.connection = Clocked()
        self.call = Call(self.server, self.connection, TABLE["twilio"]({}), "", self.journal())
        self.decided = None
        self.receive(b'{"event":"start","streamSid":"MZ1","start":{"callSid":"CA1","customParameters":{}}}')

    async def greeting(self):
        await self.hears(repeat(SILENCE), lambda: self.quiet and bool(self.receipts), 5)

    async def speaks(self, seconds):
        await self.hears(babble(), lambda: False, seconds)

    async def waits(self, seconds, until=lambda: False):
        await self.hears(repeat(SILENCE), until, seconds)


def dialled(told, *answers, transcripts=(), endpoints=1, engine=("stt", "llm"), flow=FLOW, ahead=True, **settings):
    """Runs told(call, model, ...) in a call; a Model for each endpoint, and the lines of the log."""
    async def everything():
        models = [Model() for _ in range(endpoints)]
        models[0].answers.extend(answers)
        models[0].transcripts.extend(transcripts)
        servers = [LocalEndpoint() for _ in models]
        for server, model in zip(servers, models):
            await server.__aenter__()
            server.realtime = realtime(model.converse, [])
        rows = tuple(Target(base_url=server.url, api_key=KEY) for server in servers)
        config = Config(endpoints={"realtime": rows}, openai=OpenAI(**settings), stt="realtime", llm="realtime")
        stages = {"stt": Stt(config), "llm": Llm(config), "tts": Tts(config)}
        stages["llm"].join(stages["stt"])
        stages["tts"].join(stages["stt"])
        await stages["stt"].open(None, ())
        call = Dialled(config, *stages.values(), ahead=ahead, flow=flow)
        try:
            await call.greeting()
            await told(call, *models)
            call.model, call.servers = models[0], servers
        finally:
            call.call.lost(1000, "")
            for stage in stages.values():
                await stage.close()
            for server in servers:
                await server.__aexit__()
        return call
    with asyncio.Runner(loop_factory=Loop) as runner, pytest.MonkeyPatch.context() as patch:
        patch.setattr(endpoint_module, "time", SimpleNamespace(monotonic=runner.get_loop().time))
        call = runner.run(asyncio.wait_for(everything(), 600))
    assert not call.connection.faults
    return call


def answers(call):
    return [receipt["agent"] for receipt in call.receipts]


def test_a_whole_call(tmp_path):
    async def told(call, model):
        await call.turn("")
        await call.turn("")
        await call.turn("")
    call = dialled(told, Answer(SAID, 3000, lead_ms=300), Answer("On foot.", 800),
                   transcripts=("I am calling about my order.", "How does it come?", "Goodbye."))
    model, (talker,) = call.model, call.model.used
    assert [receipt["caller"] for receipt in call.receipts] == [
        "", "I am calling about my order.", "How does it come?", "Goodbye."]
    assert [text.strip() for text in answers(call)] == ["How can I help?", SAID, "On foot.", "Goodbye."]
    assert not model.refused
    assert call.call.done and call.state == "bye"
    set_up = talker.session.updates
    assert set_up[0]["audio"]["input"]["turn_detection"] is None
    first = next(update for update in set_up if update.get("instructions"))
    assert "You are the shop." in first["instructions"] and "You answer a shop's telephone." in first["instructions"]
    names = [tool["name"] for tool in first["tools"]]
    assert "look" in names and len(names) == 3 and all(tool["type"] == "function" for tool in first["tools"])
    assert sum(bool(update.get("instructions")) for update in set_up) == 1     # it stays in the state
    assert talker.says() == [*BEGUN, ("user", "I am calling about my order."), ("assistant", SAID + " "),
                             ("user", "How does it come?"), ("assistant", "On foot. "), ("user", "Goodbye.")]
    assert call.receipts[1]["voice_to_voice_ms"] < 1500
    assert replayed(call.tape(tmp_path)).call.ledger.receipts == call.receipts


def test_what_is_scripted_is_decided_by_the_words_and_no_answer_is_asked_for():
    async def told(call, model):
        await call.turn("")
    call = dialled(told, transcripts=("Goodbye.",))
    assert answers(call) == ["How can I help?", "Goodbye."] and "response.create" not in call.model.kinds()


def test_a_barge_in_cuts_the_answer_where_it_was_heard(tmp_path):
    heard_ms = []

    async def told(call, model):
        await call.speaks(0.6)
        await call.waits(5, lambda: call.call.mouth.audible and call.call.mouth.turn is not None)
        await call.waits(1.5)
        before = call.call.mouth.playout
        await call.speaks(0.8)
        heard_ms.append(before.sent * 1000 // 8000)
        await call.waits(14, lambda: len(call.receipts) > 2 and call.quiet)
        await call.turn("")
    call = dialled(told, Answer(SAID, 6000, lead_ms=400), Answer("Sure.", 800), Answer("Yes.", 500),
                   transcripts=("Where is my order?", "No, the", "other one.", "Thanks."))
    stopped = call.receipts[1]
    assert stopped["stopped_by"] == "barge-in" and SAID.startswith(stopped["agent"]) \
        and 2 < len(stopped["agent"].split()) < 10
    truncated = [event for event in call.model.used[0].session.seen if event["type"] == "conversation.item.truncate"]
    assert len(truncated) == 1 and not [why for why in call.model.refused if "truncate" in why]
    lead = 400 - 10                                             # what is kept of it
    assert 1500 <= truncated[0]["audio_end_ms"] - lead <= 2600
    assert "response.cancel" in call.model.kinds()
    said = call.model.used[0].says()
    kinds = [kind for kind, _ in said if kind != "user"]
    assert kinds == ["assistant"] * 4 and said[:2] == BEGUN
    assert said[4:6] == [("user", "No, the"), ("user", "other one.")] \
        and call.receipts[2]["caller"] == "No, the other one."
    assert SAID.startswith(said[3][1].strip()) and len(said[3][1]) < len(SAID)
    assert [text.strip() for text in answers(call)[2:]] == ["Sure.", "Yes."]
    assert replayed(call.tape(tmp_path)).call.ledger.receipts == call.receipts


def test_a_noise_over_the_agent_leaves_nothing_in_the_session():
    async def told(call, model):
        await call.speaks(0.6)
        await call.waits(5, lambda: call.call.mouth.audible and call.call.mouth.turn is not None)
        await call.waits(0.8)
        await call.speaks(0.1)
        await call.waits(14, lambda: len(call.receipts) > 1 and call.quiet)
    call = dialled(told, Answer(SAID, 4000), transcripts=("Where is my order?", "uh-huh"))
    assert answers(call)[1].strip() == SAID
    assert [kind for kind, _ in call.model.used[0].says()[2:]] == ["user", "assistant"]


def test_a_function_leads_where_the_state_allows():
    async def told(call, model):
        await call.turn("")
        await call.turn("")
    ordered = next(tool["function"]["name"] for tool in Flow.parse(FLOW, "f").states["answer"].functions
                   if "ordered" in tool["function"]["name"])
    call = dialled(told, Answer("Let me see.", 600, calls=((ordered, {"order": "1234"}),)), Answer("Anything else?"),
                   transcripts=("It is order one two three four.", "No."))
    assert call.receipts[1]["agent"].startswith("Let me see.") and "one two three four" in call.receipts[1]["agent"]
    assert call.call.dialogue.facts["order"] == "1234" and call.receipts[1]["state"] == "ordered"
    assert not call.model.refused


def test_a_state_with_another_voice_has_a_session_that_is_told_the_chat():
    flow = FLOW.replace('say = "Your order {order} is on its way."',
                        'prompt = "You tell where orders are."\nvoice = "cedar"\nhistory = 4')

    async def told(call, model):
        await call.turn("")
        await call.turn("")
    ordered = next(tool["function"]["name"] for tool in Flow.parse(flow, "f").states["answer"].functions
                   if "ordered" in tool["function"]["name"])
    call = dialled(told, Answer("Let me see.", 600, calls=((ordered, {"order": "1234"}),)), Answer("On its way.", 800),
                   Answer("Anything else?", 800), flow=flow, transcripts=("It is order one two three four.", "Good."))
    first, second, third = call.model.used
    assert [each.spoke for each in (first, second, third)] == ["alloy", "cedar", "alloy"] and not call.model.refused
    assert ("user", "It is order one two three four.") in second.says()
    assert call.receipts[1]["agent"].split() == "Let me see. On its way.".split()


def test_a_function_that_is_not_allowed_is_refused_and_the_model_told():
    async def told(call, model):
        await call.turn("")
    call = dialled(told, Answer("", calls=(("wire_money", {"to": "me"}),)), Answer("I can not do that."),
                   transcripts=("Wire me the money.",))
    assert answers(call)[1].strip() == "I can not do that." and call.state == "answer"
    assert ("function_call_output", "That is not possible here.") in call.model.used[0].says()
    assert not call.model.refused


def test_words_that_cannot_be_written_down_in_time_are_answered_all_the_same():
    flow = FLOW.replace('[{ phrases = ["goodbye"], go = "bye" }, { free', "[{ free")

    async def told(call, model):
        model.transcript_after = 30.0
        await call.turn("")
    call = dialled(told, Answer(SAID, 2000), flow=flow)
    assert answers(call)[1].strip() == SAID and call.receipts[1]["caller"] == UNWRITTEN
    assert [kind for kind, _ in call.model.used[0].says()[2:]] == ["user", "assistant"]


# -- trouble -----------------------------------------------------------------------------------------------------------

IN_THE_MIDDLE = {
    "a reset": resets, "half open": falls_deaf, "silence": falls_silent,
    "audio that is no base64": sends("response.output_audio.delta", delta="%%%"),
    "audio that is no text": sends("response.output_audio.delta", delta=7),
    "audio of nobody": sends("response.output_audio.delta", delta="AAAA", item_id="item_x"),
    "an error": sends("error", error={"type": "server_error", "code": "overloaded", "message": "secret"}),
    "no event at all": lambda talker: talker.session.exchange.write(b"\x81\x02{]"),
}


@pytest.mark.parametrize("trouble", IN_THE_MIDDLE)
def test_an_answer_that_breaks_off_is_apologised_for_and_the_call_goes_on(trouble, caplog):
    async def told(call, model):
        await call.turn("")
        await call.waits(14, lambda: len(call.receipts) > 2 and call.quiet)
        await call.turn("")
    call = dialled(told, Answer(SAID, 4000, then=IN_THE_MIDDLE[trouble]), Answer("On Monday.", 800),
                   transcripts=("Where is my order?", "And when does it come?"))
    said = [text.strip() for text in answers(call)]
    assert SAID.startswith(said[1].replace("One moment please.", "").strip()[:20])
    assert SORRY in said[2] and said[-1] == "On Monday."
    assert "secret" not in caplog.text
    remembers = call.model.used[-1].says()
    assert ("user", "Where is my order?") in remembers          # told as text, to a session that did not hear it
    assert remembers[-2][0] == "user" and not [why for why in call.model.refused if "cancel" not in why]
    voiced = call.connection.voiced
    assert max(after - before for before, after in zip(voiced, voiced[1:]) if before > 4) > 0


async def refuses(talker):
    await talker.session.send("error", error={"type": "invalid_request_error", "code": "rate_limit_exceeded",
                                              "message": "secret", "event_id": talker.session.seen[-1]["event_id"]})
    await asyncio.Event().wait()


@pytest.mark.parametrize("first", [
    Answer(before=resets), Answer(before=refuses), Answer(before=sends("response.created", response=7)), Answer(),
    Answer(status="failed", details={"type": "failed", "error": {"type": "server_error", "code": "busy"}})],
    ids=["a reset", "an error", "a wrong event", "nothing at all", "a failure"])
def test_an_answer_of_which_nothing_was_heard_is_asked_for_again_elsewhere(first):
    async def told(call, model):
        await call.turn("")
    call = dialled(told, first, Answer("On Monday.", 800), transcripts=("When does it come?",) * 2)
    assert answers(call)[1].strip() == "On Monday." and len(call.receipts) == 2
    assert call.model.used[-1].says()[2] == ("user", "When does it come?") and len(call.model.used) == 2


def test_a_session_that_dies_while_the_caller_speaks_loses_no_word():
    async def told(call, model):
        await call.speaks(0.4)
        talker = model.used[0]
        talker.session.exchange.reset()
        await call.speaks(0.4)
        await call.waits(14, lambda: len(call.receipts) > 1 and call.quiet)
    call = dialled(told, Answer("On Monday.", 800), transcripts=("When does it come?",))
    assert call.receipts[1]["caller"] == "When does it come?" and answers(call)[1].strip() == "On Monday."
    assert call.model.used[-1].session.heard >= 8 * 800         # all of it, from the first sample on


def test_an_endpoint_that_says_nothing_is_not_waited_for_any_longer_than_the_turn_may():
    async def told(call, model):
        await call.speaks(0.6)
        began = now()
        await call.waits(14, lambda: len(call.receipts) > 1 and call.quiet)
        call.took = now() - began
    call = dialled(told, Answer(SAID, first=3600.0))
    said = answers(call)[1:]
    assert any(SORRY in text for text in said) and "One moment please." not in said and call.took < 8
    silences = np.diff([at for at in call.connection.voiced])
    assert silences.max() < 2.6                                 # the filler came in time


def test_the_next_endpoint_answers_where_the_first_is_late():
    async def told(call, first, second):
        second.answers.append(Answer("On Monday.", 800))
        await call.turn("")
        call.second = second
    call = dialled(told, Answer(SAID, first=3600.0), endpoints=2, transcripts=("When does it come?",))
    assert answers(call)[1].strip() == "On Monday." and len(call.second.used) == 1
    assert call.second.used[0].says()[2] == ("user", "When does it come?")


def test_without_a_session_the_call_is_kept():
    async def told(call, model):
        call.studio.stt.calls.reserve.idle.clear()
        for server in call.studio.stt.calls.reserve.endpoints.endpoints:
            server.breaker.state, server.breaker.rested_at = "open", 1e9
        await call.turn("")
    call = dialled(told)
    assert SORRY in answers(call)[1] and not call.connection.closed


# -- beside others' stages ---------------------------------------------------------------------------------------------

def replied(run, *asked):
    """What an Llm's reply to this was, and the model that gave it."""
    async def scenario():
        model = Model(answers=deque([Answer("On Monday.")]))
        async with LocalEndpoint() as endpoint:
            endpoint.realtime = realtime(model.converse, [])
            llm = Llm(Config(openai=OpenAI(base_url=endpoint.url, api_key=KEY)))
            await llm.open()
            try:
                return [piece async for piece in llm.reply(*asked)], model
            finally:
                await llm.close()
    return run(scenario())


def test_a_model_that_did_not_hear_the_caller_is_told_the_words(run):
    pieces, model = replied(run, ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "When?"}))
    assert "".join(pieces).strip() == "On Monday." and not model.refused
    assert model.used[0].says() == [("user", "When?"), ("assistant", "On Monday.")]


@pytest.mark.parametrize("more, wanted", [((), {}), (("required",), {"tool_choice": "required"})])
def test_an_answer_that_must_call_a_function_is_asked_for_as_such(run, more, wanted):
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    pieces, model = replied(run, ({"role": "user", "content": "When?"},), (tool,), *more)
    asked, = (event for event in model.used[0].session.seen if event["type"] == "response.create")
    assert pieces and asked["response"] == {"output_modalities": ["text"], **wanted} and not model.refused


def test_the_endpoint_s_voice_reads_what_is_scripted():
    flow = FLOW.replace('start = "hello"', 'start = "hello"\nvoice = "cedar"\nrate = 1.25\nlanguage = "en-GB"')

    async def told(call, model):
        await call.turn("")
        pcm = [piece async for piece in call.studio.tts.render(["Goodbye."], "cedar", 16000)]
        call.rendered = pcm
    call = dialled(told, Answer("How can I help?", 1500), Answer("Goodbye.", 700), Answer("Goodbye.", 700), ahead=False,
                   flow=flow, transcripts=("Goodbye.",))
    assert answers(call) == ["How can I help?", "Goodbye."]
    reading = [talker for talker in call.model.talkers if any("Read the user" in update.get("instructions", "")
                                                              for update in talker.session.updates)]
    output = reading[0].session.session["audio"]["output"]
    assert output["voice"] == "cedar" and output["speed"] == 1.25 \
        and "en-GB" in reading[0].session.session["instructions"]
    ((text, pcm),) = call.rendered
    assert text == "Goodbye." and abs(len(pcm) / 16000 - 0.7) < 0.1


def test_a_prompt_that_says_something_else_than_its_text_is_not_kept(run):
    async def scenario():
        model = Model(answers=deque([Answer("Hello! How are you today, my friend?")] * 3))
        async with LocalEndpoint() as endpoint:
            endpoint.realtime = realtime(model.converse, [])
            tts = Tts(Config(openai=OpenAI(base_url=endpoint.url, api_key=KEY)))
            await tts.open(None)
            try:
                with pytest.raises(Exception, match="reads something else than what is written"):
                    async for _ in tts.render(["Press one for sales."], "", 8000):
                        pass
            finally:
                await tts.close()
    run(scenario())


# -- what a session remembers ------------------------------------------------------------------------------------------

def items(*rows):
    return [context.Item(f"i{at}", kind, text, group) for at, (kind, text, group) in enumerate(rows)]


CHAT = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "two nine three"},
        {"role": "assistant", "content": "Thank you."}, {"role": "user", "content": "yes"})


def test_a_picture_of_the_chat_is_an_item_of_the_session():
    url = "data:image/png;base64,iVBORw0K"
    made, = context.wanted([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])
    assert made.content["content"] == [{"type": "input_image", "image_url": url}]


@pytest.mark.parametrize("known, gone, made", [
    (items(), [], ["two nine three", "Thank you.", "yes"]),
    (items(("user", "two nine three", 1), ("assistant", "Thank you.", 0), ("user", "yes", 2)), [], []),
    (items(("user", "two nine", 1), ("user", "three", 1), ("assistant", "Thank you. ", 0), ("user", "", 2)), [], []),
    (items(("user", "hello", 1), ("user", "yes", 2)), ["i0"], ["two nine three", "Thank you."]),
    (items(("user", "yes", 1), ("user", "two nine three", 2), ("assistant", "Never said.", 0), ("user", "yes", 3)),
     ["i2", "i0"], ["Thank you."]),
])
def test_items_stand_for_what_was_said(known, gone, made):
    going, after = context.difference(known, CHAT)
    assert [item.id for item in going] == gone
    assert [item.text for item in after if not item.id] == made
    kinds = [item.kind for item in after]
    assert [kind for kind, before in zip(kinds, [None, *kinds]) if kind != before] == ["user", "assistant", "user"]
