"""Calls in the OpenAI Realtime protocol: the real Call, dialect and turn taking on a virtual clock, without a socket.

The client sends events and reads events; what it is sent is read by the strict simulated client besides, so that an
event out of place fails the test.  test_interop_realtime.py does the same with other people's clients.
"""
import asyncio
import base64
import json
from importlib import resources
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversation import SPEECH, Conversation
from opusagent import EngineError, ProtocolError
from opusagent.calls.realtime.call import RealtimeCall
from opusagent.calls.realtime.inbox import INBOX_SECONDS
from opusagent.continuity.takeover import freeze
from opusagent.credentials import Key
from opusagent.dialects import CALLERS, TEXT
from opusagent.dialects.keeping import resumed, state_of
from opusagent.dialects.realtime.chat import LOST, chat, functions, pictured
from opusagent.dialects.realtime.items import LARGEST_PICTURE, MOST, MOST_TEXT, Item, Items
from opusagent.flow import FunctionCall
from opusagent.trust.auth import TABLE as WAYS
from opusagent.trust.auth import Shown
from test_dialects import ALIEN, RECORDED

FLOW = """
start = "card"
[facts]
instructions = ""
member = ""
[states.card]
say = "Which card is printed on your slip?"
on = [{ phrases = ["ten of clubs", "two of clubs"], fact = "card", go = "more" }]
[states.more]
say = "Thank you. And which other one?"
on = [{ phrases = ["ten of clubs", "two of clubs"], go = "bye" }]
[states.bye]
say = "Goodbye."
end = true
"""
ASSISTANT = (resources.files("opusagent") / "assistant.toml").read_text()
PCMU = {"type": "audio/pcmu"}
LOUD, QUIET = (SPEECH, np.zeros(160, np.int16))


class Client(Conversation):
    """A client of a flow, or (`agent="assistant"`) of a model whose pieces the test gives; pcmu both ways."""

    def __init__(self, flow=FLOW, agent="", update=None, query=None):
        self.player = CALLERS["openai-realtime"](urlsplit("ws://h/v1/realtime?format=pcmu"))
        self.read = 0
        self.events = []
        super().__init__(flow, "openai-realtime", query, begin=False, agent=agent, make=RealtimeCall)
        self.does("session.update", session={
            "type": "realtime", "audio": {"input": {"format": PCMU, **(update or {})}, "output": {"format": PCMU}}})

    @classmethod
    def of_model(cls, *pieces, update=None):
        found = cls(ASSISTANT, "assistant", update)
        found.studio.llm.pieces = pieces
        return found

    def does(self, kind, **fields):
        self.receive(json.dumps({"type": kind, **fields}).encode())
        self.take()

    def writes(self, text, **item):
        self.does("conversation.item.create", item={
            "type": "message", "role": "user", "content": [{"type": "input_text", "text": text}], **item})

    def frame(self, pcm):
        self.call.on_message(*self.player.audio(pcm))
        self.studio.hearing.run()
        self.take()

    def passes(self, ms):
        super().passes(ms)
        self.take()

    def take(self):
        """What was sent since, read by the strict client too."""
        while self.read < len(self.connection.sent):
            opcode, message = self.connection.sent[self.read]
            self.read += 1
            self.events.append(SimpleNamespace(**json.loads(message)))
            if self.events[-1].type != "error":
                self.player.receive(opcode, memoryview(message))

    async def thinks(self, ms=100):
        """The model gets time, and so does the call."""
        for _ in range(ms // 5):
            for _ in range(5):
                await asyncio.sleep(0)
            self.passes(5)

    def of(self, kind):
        return [event for event in self.events if event.type == kind]

    def last(self, kind):
        return self.of(kind)[-1]

    @property
    def errors(self):
        return [event.error["code"] for event in self.of("error")]

    @property
    def said(self):
        """The transcripts, or texts, of the responses."""
        return ["".join(part.get("transcript") or part.get("text") for item in event.response["output"]
                        for part in item.get("content", ())) for event in self.of("response.done")]

    @property
    def statuses(self):
        return [event.response["status"] for event in self.of("response.done")]

    def heard_ms(self):
        deltas = self.of("response.output_audio.delta")
        return sum(len(base64.b64decode(delta.delta)) for delta in deltas) / 8


# ---- a flow ----------------------------------------------------------------------------------------------------------

def test_a_flow_greets_at_the_first_audio_and_the_conversation_goes_to_its_end():
    call = Client()
    assert not call.of("response.created")
    call.silence(20)
    call.silence(1500)
    call.says("ten of clubs")
    call.says("two of clubs")
    assert call.said == ["Which card is printed on your slip?", "Thank you. And which other one?", "Goodbye."]
    assert call.connection.closed == (1000, "the conversation is over")


def test_a_flow_greets_by_itself_where_nothing_is_said():
    call = Client()
    call.passes(990)
    assert not call.said
    call.passes(50)
    assert call.said == ["Which card is printed on your slip?"]


def test_a_flow_is_answered_in_writing_and_says_its_last_words_again():
    call = Client()
    call.does("response.create", response={"output_modalities": ["text"], "metadata": {"n": "1"}})
    call.passes(20)
    call.does("response.create")                    # nothing new
    call.passes(20)
    call.writes("the ten of clubs please")
    call.does("response.create", response={"output_modalities": ["text"]})
    call.passes(20)
    assert call.said == ["Which card is printed on your slip?"] * 2 + ["Thank you. And which other one?"]
    assert call.of("response.done")[0].response["metadata"] == {"n": "1"}
    assert call.state == "more" and call.call.dialogue.facts["card"] == "ten of clubs"


def test_what_the_client_tells_is_a_fact_of_a_flow_that_wants_it():
    call = Client(query={"member": "1", "model": "x"})
    assert call.call.dialogue.facts == {"instructions": "", "member": "1"}
    prompt = {"id": "p", "variables": {"member": "2"}}
    call.does("session.update", session={"instructions": "Be kind.", "prompt": prompt})
    assert call.call.dialogue.facts == {"instructions": "Be kind.", "member": "2"}


def test_what_an_ephemeral_key_brings_counts_from_the_first_word_on():
    brought = {"instructions": "be brief", "prompt": {"id": "p", "variables": {"member": "17"}},
               "audio": {"input": {"turn_detection": None, "format": PCMU}, "output": {"format": PCMU}}}
    client = Client(query={"session": json.dumps(brought)}, update={"turn_detection": None})
    assert client.of("session.created")[0].session["audio"]["input"]["turn_detection"] is None
    assert client.call.dialogue.facts["instructions"] == "be brief" and client.call.dialogue.facts["member"] == "17"
    assert "session" not in client.call.dialogue.facts and client.call.dialect.rate == 8000


def test_a_client_that_only_writes_is_not_asked_whether_it_is_there():
    call = Client()
    call.does("response.create")
    call.passes(60_000)
    assert len(call.said) == 1


def test_a_caller_who_goes_on_takes_the_turn_back():
    call = Client()
    call.silence(3000)
    call.studio.stt.silent = True                   # the recogniser takes its time
    call.speech(400, "ten")
    call.silence(420)
    assert call.of("input_audio_buffer.committed")
    call.studio.stt.silent = False
    call.says("ten of clubs")
    first, second = (event.item_id for event in call.of("input_audio_buffer.committed"))
    assert [event.item_id for event in call.of("conversation.item.deleted")] == [first] != [second]
    assert call.state == "more"


# ---- an assistant ----------------------------------------------------------------------------------------------------

def asked(call):
    """The last chat of the model, without the system's message."""
    chat = call.studio.llm.asked[-1]
    return [(message["role"], message["content"]) for message in chat if message["role"] != "system"]


def test_a_spoken_turn_is_answered_by_the_model_as_the_client_instructs():
    async def told():
        call = Client.of_model("Hello ", "there.", update={"transcription": {"model": "any"}})
        call.does("session.update", session={"instructions": "Speak like a pirate."})
        call.speech(600, "good morning")
        call.silence(700)
        await call.thinks()
        return call
    call = asyncio.run(told())
    assert call.said == ["Hello there."]
    assert call.studio.llm.asked[-1][0]["content"].startswith("Speak like a pirate.")
    assert asked(call) == [("user", "good morning")]
    started, stopped = call.last("input_audio_buffer.speech_started"), call.last("input_audio_buffer.speech_stopped")
    assert started.audio_start_ms == 0 and stopped.audio_end_ms == pytest.approx(600, abs=40)
    assert call.last("conversation.item.input_audio_transcription.completed").transcript == "good morning"
    assert call.heard_ms() >= 100


def test_an_interruption_ends_the_response_and_the_model_knows_what_was_heard():
    async def told():
        call = Client.of_model("One two three four five six. ", "Seven eight nine ten.")
        call.writes("count")
        call.does("response.create")
        await call.thinks()
        call.silence(100)
        call.speech(300, "stop")
        call.silence(900)
        await call.thinks()
        return call
    call = asyncio.run(told())
    kinds = [event.type for event in call.events]
    assert kinds.index("response.done") < kinds.index("input_audio_buffer.speech_started"), "it was all sent by then"
    answer = dict(asked(call)[1:2])["assistant"]
    assert answer and "One two three four five six. Seven eight nine ten.".startswith(answer)
    assert "ten" not in answer


def test_an_interruption_of_a_response_on_its_way_cancels_it():
    async def told():
        call = Client.of_model("One two three. ", "Four five six.")
        call.studio.llm.free.clear()
        call.writes("count")
        call.does("response.create")
        await call.thinks()
        call.speech(400, "stop")
        return call
    call = asyncio.run(told())
    done = call.last("response.done").response
    assert (done["status"], done["status_details"]["reason"]) == ("cancelled", "turn_detected")
    kinds = [event.type for event in call.events]
    assert kinds.index("input_audio_buffer.speech_started") < kinds.index("response.done")


def test_the_client_says_how_much_was_heard():
    async def told():
        call = Client.of_model("One two three four.")
        call.writes("count")
        call.does("response.create")
        await call.thinks(10)
        item = call.last("response.done").response["output"][0]["id"]
        call.does("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=100)
        assert call.call.mouth.turn is None, "nobody is listening to the rest"
        call.writes("and then?")
        call.does("response.create")
        await call.thinks()
        return call
    call = asyncio.run(told())
    assert asked(call) == [("user", "count"), ("assistant", "One two"), ("user", "and then?")]


@pytest.mark.parametrize("detector", [None, {"type": "server_vad", "create_response": False}])
def test_nothing_is_answered_unasked_where_the_client_wants_to_ask(detector):
    async def told():
        call = Client.of_model("Well.", update={"turn_detection": detector})
        call.speech(600, "hello")
        if detector is None:
            call.does("input_audio_buffer.commit")
        call.silence(2000)
        await call.thinks()
        assert not call.of("response.created")
        call.does("response.create")
        await call.thinks()
        return call
    call = asyncio.run(told())
    assert call.said == ["Well."] and asked(call) == [("user", "hello")]
    assert len(call.of("input_audio_buffer.committed")) == 1
    assert bool(call.of("input_audio_buffer.speech_started")) == (detector is not None)


def test_a_silence_as_long_as_the_client_allows_is_a_turn():
    async def told():
        call = Client.of_model("Are you there?", update={"turn_detection": {"type": "server_vad",
                                                                            "idle_timeout_ms": 2000}})
        call.silence(2500)
        await call.thinks()
        return call
    call = asyncio.run(told())
    kinds = [event.type for event in call.events if "buffer" in event.type or event.type == "response.created"]
    assert kinds == ["input_audio_buffer.timeout_triggered", "input_audio_buffer.committed", "response.created"]
    assert call.last("input_audio_buffer.timeout_triggered").audio_end_ms == pytest.approx(2000, abs=100)
    assert call.said == ["Are you there?"]


def test_a_response_asked_for_while_the_turn_is_recognised_waits_for_that():
    async def told():
        call = Client.of_model("Well.", update={"turn_detection": None})
        call.studio.stt.silent = True
        call.speech(600, "")
        call.does("input_audio_buffer.commit")
        call.does("response.create", event_id="e1")
        await call.thinks(50)
        assert not call.of("response.created")
        call.call.ear.on_final(call.call.ear.utterance, "hello", 1.0)
        await call.thinks()
        return call
    call = asyncio.run(told())
    assert call.said == ["Well."] and asked(call) == [("user", "hello")]


def test_a_response_asked_for_while_the_caller_speaks_ends_the_turn_and_is_its_answer():
    async def told():
        call = Client.of_model("Well.")
        call.speech(600, "hello")
        call.does("response.create", response={"metadata": {"asked": "yes"}})
        await call.thinks(300)
        call.silence(2000)
        await call.thinks(300)
        call.speech(600, "and then?")
        call.silence(700)
        await call.thinks()
        return call
    call = asyncio.run(told())
    assert call.said == ["Well.", "Well."] and not call.errors and asked(call)[1] == ("assistant", "Well.")
    assert [event.response["metadata"] for event in call.of("response.done")] == [{"asked": "yes"}, None]
    assert [("user", "hello"), ("user", "and then?")] == [asked(call)[0], asked(call)[-1]]
    assert len(call.of("input_audio_buffer.speech_started")) == len(call.of("input_audio_buffer.speech_stopped")) == 2


def test_a_commit_ends_the_turn_and_asks_for_no_answer_where_the_server_detects_turns_too():
    async def told():
        call = Client.of_model("Well.", update={"transcription": {"model": "any"}})
        call.speech(600, "hello")
        call.does("input_audio_buffer.commit")
        await call.thinks(300)
        kinds = [event.type for event in call.events]
        call.does("response.create")
        await call.thinks()
        call.silence(2000)
        call.speech(600, "and then?")           # the next turn is the detector's again
        call.silence(700)
        await call.thinks()
        return call, kinds
    call, kinds = asyncio.run(told())
    assert kinds[-6:] == [
        "input_audio_buffer.speech_stopped", "input_audio_buffer.committed", "conversation.item.added",
        "conversation.item.done", "conversation.item.input_audio_transcription.delta",
        "conversation.item.input_audio_transcription.completed"]
    assert call.said == ["Well.", "Well."] and asked(call)[-1] == ("user", "and then?") and not call.errors


def test_a_flow_answers_a_turn_that_the_client_has_ended_when_it_is_asked():
    call = Client()
    call.silence(3000)
    call.speech(600, "ten of clubs")
    call.does("input_audio_buffer.commit")
    call.silence(1000)
    assert len(call.said) == 1 and call.state == "card"
    call.does("response.create")
    call.silence(20)
    assert call.said[1] == "Thank you. And which other one?" and call.state == "more"


def test_a_spoken_response_beside_the_conversation_waits_for_the_one_that_is_on_its_way():
    async def told():
        call = Client.of_model("One two three.")
        call.studio.llm.free.clear()
        call.writes("count")
        call.does("response.create")
        await call.thinks(20)
        call.does("response.create", event_id="aside", response={
            "conversation": "none", "metadata": {"topic": "language"}, "input": []})
        call.does("response.create", event_id="second")
        call.studio.llm.free.set()
        await call.thinks(1000)
        return call
    call = asyncio.run(told())
    assert [(event.error["event_id"], event.error["code"]) for event in call.of("error")] == [
        ("second", "conversation_already_has_active_response")]
    first, aside = [event.response for event in call.of("response.done")]
    assert first["metadata"] is None and first["conversation_id"] and aside["conversation_id"] is None
    assert aside["metadata"] == {"topic": "language"}
    assert aside["output"][0]["content"][0]["transcript"] == "One two three."
    kinds = [event.type for event in call.events]
    assert kinds.index("response.done") < kinds.index("response.created", kinds.index("response.created") + 1)


NOTE = {"conversation": "none", "output_modalities": ["text"], "metadata": {"topic": "note"}}


def beside_one(answers, **request):
    """A client that has asked for a response beside one that the model has not begun to answer yet."""
    call = Client.of_model("One two three.")
    call.studio.llm.free.clear()
    call.writes("count")
    call.does("response.create")

    async def asks():
        await call.thinks(20)
        slow, call.studio.llm.free = call.studio.llm.free, asyncio.Event()
        call.studio.llm.free.set()
        call.studio.llm.answers = answers
        call.does("response.create", response=NOTE | request)
        await call.thinks(20)
        return slow
    return call, asks


def test_a_written_response_beside_the_conversation_waits_for_nobody():
    async def told():
        call, asks = beside_one([["A ", "note."]])
        slow = await asks()
        before = call.of("response.done")
        slow.set()
        await call.thinks(1000)
        return call, before
    call, (aside,) = asyncio.run(told())
    assert aside.response["metadata"] == {"topic": "note"} and call.said == ["A note.", "One two three."]
    assert [event.delta for event in call.of("response.output_text.delta")] == ["A ", "note."]
    (item,) = aside.response["output"]
    assert item["id"] not in [item.id for item in call.call.dialect.items.order]
    assert call.heard_ms() >= 150 and not call.call.writing and not call.call.dialect.asides


def test_what_is_said_is_heard_while_a_note_is_written():
    async def told():
        call = Client.of_model("One two three four five six seven eight.")
        call.writes("count")
        call.does("response.create")
        await call.thinks(100)
        heard = call.heard_ms()
        call.does("response.create", response=NOTE)
        call.does("response.create", response=NOTE)
        await call.thinks(1000)
        return call, heard
    call, heard = asyncio.run(told())
    assert call.statuses == ["completed"] * 3 and call.heard_ms() >= heard and not call.errors


def test_no_more_than_some_are_written_at_once():
    async def told():
        call = Client.of_model("A note.")
        call.writes("count")
        call.studio.llm.free.clear()
        for _ in range(6):
            call.does("response.create", response=NOTE)
        await call.thinks(20)
        begun = len(call.of("response.created"))
        call.studio.llm.free.set()
        await call.thinks(100)
        return call, begun
    call, begun = asyncio.run(told())
    assert begun == 4 and call.statuses == ["completed"] * 6 and len(call.studio.llm.asked) == 6


def test_a_note_is_cancelled_by_its_id_and_the_conversation_by_none():
    async def told():
        call = Client.of_model()
        call.studio.llm.free.clear()
        call.writes("count")
        call.does("response.create")
        call.does("response.create", response=NOTE)
        await call.thinks(20)
        spoken, note = [event.response["id"] for event in call.of("response.created")]
        call.does("response.cancel", response_id=note)
        await call.thinks(20)
        assert call.last("response.done").response["id"] == note and call.studio.llm.dropped == 1
        call.does("response.cancel", response_id=note)
        assert call.errors == ["response_cancel_not_active"]
        call.does("response.cancel")
        await call.thinks(20)
        return call, spoken
    call, spoken = asyncio.run(told())
    assert call.last("response.done").response["id"] == spoken and call.statuses == ["cancelled"] * 2


def test_a_call_that_moves_to_another_process_asks_no_model_here_any_more():
    async def told():
        call = Client.of_model()
        call.studio.llm.free.clear()
        call.does("response.create")
        call.does("response.create", response=NOTE)
        await call.thinks(20)
        connection = SimpleNamespace(session=call.call, forget=lambda: None)
        freeze(SimpleNamespace(
            close_doors=lambda: None, connections=[connection], keeper=SimpleNamespace(freeze=lambda: [call.call]),
            calls={call.call.id: call.call}, limits=SimpleNamespace(ends=lambda call: None), continuity=None,
            studio=call.studio))
        for _ in range(10):
            await asyncio.sleep(0)
        return call.studio.llm.dropped
    assert asyncio.run(told()) == 2


@pytest.mark.parametrize("answer, status, details", [
    (["one", "two", "three"], "incomplete", {"type": "incomplete", "reason": "max_output_tokens"}),
    ([EngineError("No model.")], "failed", "No model."), ([ValueError()], "failed", "The model's engine broke."),
    ([FunctionCall("note", {"a": 1}, "c1")], "completed", None)])
def test_a_note_ends_however_it_goes(answer, status, details):
    async def told():
        call, asks = beside_one([answer], max_output_tokens=2)
        await asks()
        return call
    response = asyncio.run(told()).last("response.done").response
    told = response["status_details"]
    assert response["status"] == status and (told["error"]["message"] if status == "failed" else told) == details
    if status == "completed":
        assert [(item["name"], item["arguments"]) for item in response["output"]] == [("note", '{"a":1}')]


def test_a_note_is_not_waited_for_longer_than_any_answer_and_no_longer_than_the_call():
    async def told():
        call = Client.of_model()
        call.studio.llm.free.clear()
        call.does("response.create", response=NOTE)
        await call.thinks(2100)
        late = call.last("response.done").response
        call.does("response.create", response=NOTE)
        await call.thinks(20)
        call.call.lost(1000, "")
        for _ in range(10):
            await asyncio.sleep(0)
        return call, late
    call, late = asyncio.run(told())
    assert late["status"] == "failed" and "sent nothing within 2" in late["status_details"]["error"]["message"]
    assert call.studio.llm.dropped == 2 and len(call.of("response.done")) == 1


def test_a_response_beside_the_conversation_waits_for_the_turn_and_is_not_its_answer():
    async def told():
        call = Client.of_model("Well.")
        call.studio.stt.silent = True
        call.speech(600, "")
        call.silence(700)
        call.does("response.create", response={"conversation": "none", "metadata": {"aside": "yes"}})
        await call.thinks(50)
        assert not call.of("response.created")
        call.call.ear.on_final(call.call.ear.utterance, "hello", 1.0)
        await call.thinks(1000)
        return call
    call = asyncio.run(told())
    assert [event.response["metadata"] for event in call.of("response.done")] == [None, {"aside": "yes"}]


def test_a_response_has_the_format_that_it_was_asked_for_in():
    async def told():
        call = Client.of_model("One two three four.")
        call.writes("count")
        for wanted in ({"type": "audio/pcm", "rate": 24000}, {"type": "audio/pcma"}, None):
            after = len(call.of("response.output_audio.delta"))
            call.does("response.create", response={"audio": {"output": {"format": wanted}}} if wanted else {})
            await call.thinks()
            made = b"".join(base64.b64decode(event.delta) for event in call.of("response.output_audio.delta")[after:])
            formats.append((call.last("response.done").response["audio"]["output"]["format"], len(made)))
    formats = []
    asyncio.run(told())
    assert formats == [({"type": "audio/pcm", "rate": 24000}, 6 * 1600), ({"type": "audio/pcma"}, 1600),
                       (PCMU, 1600)]


def test_an_error_has_the_name_of_the_event_that_it_is_of():
    call = Client.of_model(update={"turn_detection": None})
    minutes = base64.b64encode(bytes([0xFF]) * 8000 * 60).decode()
    for name in ("a1", "a2", "a3"):
        call.does("input_audio_buffer.append", audio=minutes, event_id=name)
    call.does("input_audio_buffer.append", audio=minutes)
    assert [event.error["event_id"] for event in call.of("error")] == ["a3", None]
    assert set(call.errors) == {"input_audio_buffer_full"}


@pytest.mark.parametrize("choice, wanted", [
    ("auto", (["f", "g"],)), ("none", ()), ("required", (["f", "g"], "required")),
    ({"type": "function", "name": "g"}, (["g"], "required"))])
def test_a_model_learns_which_function_must_be_called(choice, wanted):
    offered = []

    class Llm:
        async def reply(self, messages, *more):
            offered.append(more)
            yield "Well."

    async def told():
        call = Client.of_model()
        call.call.mouth.stage.llm.llm = Llm()
        call.does("session.update", session={"tools": [{"type": "function", "name": name} for name in "fg"]})
        call.writes("do it")
        call.does("response.create", response={"tool_choice": choice})
        await call.thinks(20)
    asyncio.run(told())
    (tools, *rest), = offered or [()]
    assert ([tool["function"]["name"] for tool in tools], *rest) == wanted if wanted else not tools


def test_what_waits_is_cancelled_too():
    async def told():
        call = Client.of_model("Well.", update={"turn_detection": None})
        call.studio.stt.silent = True
        call.speech(600, "")
        call.does("input_audio_buffer.commit")
        call.does("response.create")
        call.does("response.cancel")
        return call
    call = asyncio.run(told())
    assert call.statuses == ["cancelled"] and not call.errors


def test_audio_may_come_faster_than_it_is_spoken_and_not_without_end():
    call = Client.of_model(update={"turn_detection": None})
    second = base64.b64encode(bytes([0xFF]) * 8000).decode()
    for _ in range(INBOX_SECONDS + 5):
        call.does("input_audio_buffer.append", audio=second)
    assert set(call.errors) == {"input_audio_buffer_full"}
    assert call.call.inbox.samples <= INBOX_SECONDS * 8000
    call.passes(INBOX_SECONDS * 1000)
    assert call.call.inbox.samples == 0 and not call.call.inbox


def test_audio_that_was_refused_is_in_no_buffer():
    call = Client.of_model(update={"turn_detection": None})
    call.does("input_audio_buffer.append", audio=base64.b64encode(bytes([0xFF]) * 8000 * (INBOX_SECONDS + 1)).decode())
    call.does("input_audio_buffer.commit")
    assert call.errors == ["input_audio_buffer_full", "input_audio_buffer_commit_empty"]


def test_a_second_commit_finds_nothing_though_the_first_has_not_been_done_yet():
    async def told():
        call = Client.of_model(update={"turn_detection": None})
        call.does("input_audio_buffer.append", audio=base64.b64encode(bytes([0x90, 0x10]) * 16000).decode())
        call.does("input_audio_buffer.commit")
        call.does("input_audio_buffer.commit", event_id="again")
        assert call.call.inbox and not call.of("input_audio_buffer.committed")
        call.passes(4000)
        await call.thinks()
        return call
    call = asyncio.run(told())
    assert call.errors == ["input_audio_buffer_commit_empty"] and len(call.of("input_audio_buffer.committed")) == 1
    assert call.last("error").error["event_id"] == "again"


def test_the_callers_audio_is_counted_on_in_another_format():
    call = Client.of_model()
    call.silence(3000)
    call.does("session.update", session={"audio": {"input": {"format": {"type": "audio/pcm", "rate": 24000}}}})
    step = base64.b64encode(np.repeat(SPEECH[:160], 3).astype("<i2").tobytes()).decode()            # 20 ms
    for _ in range(50):
        call.does("input_audio_buffer.append", audio=step)
        call.passes(20)
        call.studio.hearing.run()
    call.take()
    assert 2500 < call.last("input_audio_buffer.speech_started").audio_start_ms <= 3100


def test_little_audio_is_no_more_in_another_format():
    call = Client.of_model(update={"turn_detection": None, "format": {"type": "audio/pcm", "rate": 24000}})
    call.does("input_audio_buffer.append", audio=base64.b64encode(bytes(2400)).decode())            # 50 ms
    call.does("session.update", session={"audio": {"input": {"format": PCMU}}})
    call.does("input_audio_buffer.commit")
    assert call.errors == ["input_audio_buffer_commit_empty"]
    assert call.last("error").error["message"] == "The input audio buffer holds 50 ms of audio; a commit needs 100."


@pytest.mark.parametrize("size", [1, 401, 2401])
def test_a_stream_of_samples_may_be_cut_anywhere(size):
    call = Client.of_model(update={"turn_detection": None, "format": {"type": "audio/pcm", "rate": 24000}})
    dialect, heard, sent = call.call.dialect, [], np.arange(1, 4001, dtype="<i2").tobytes()
    for at in range(0, len(sent), size):
        audio = base64.b64encode(sent[at:at + size]).decode()
        event = dialect.receive(TEXT, json.dumps({"type": "input_audio_buffer.append", "audio": audio}).encode())
        heard += [] if event is None else np.array(event.pcm).tolist()
        call.does("session.update", session={"instructions": f"{at}"})
    assert heard == list(range(1, 4001)) and dialect.appended == 4000


def test_half_a_sample_goes_with_the_buffer():
    call = Client.of_model(update={"turn_detection": None, "format": {"type": "audio/pcm", "rate": 24000}})
    odd = base64.b64encode(bytes(9601)).decode()
    for last in ("clear", "commit"):
        call.does("input_audio_buffer.append", audio=odd)
        assert call.call.dialect.halved and not call.call.dialect.throttle.open
        call.does(f"input_audio_buffer.{last}")
        assert not call.call.dialect.halved
    assert not call.errors


def test_pieces_that_come_late_are_one_utterance():
    call = Client.of_model("Well.")
    call.studio.stt.silent = True
    piece = base64.b64encode(bytes([0x90, 0x10] * 800)).decode()        # 200 ms
    for _ in range(5):
        call.does("input_audio_buffer.append", audio=piece)
        call.studio.hearing.run()
        call.passes(350)
    assert not call.call.ear.filled.latest and call.call.slot.written == 8000
    call.passes(500)
    assert call.call.ear.filled.latest, "now the caller is silent"


def test_a_discarded_utterance_is_nobodys():
    async def told():
        call = Client.of_model("Well.")
        call.speech(400, "hello")
        call.does("input_audio_buffer.clear")
        call.silence(2000)
        await call.thinks()
        return call
    call = asyncio.run(told())
    assert not call.of("input_audio_buffer.committed") and not call.said


def test_a_reply_that_is_not_to_be_interrupted_is_heard_out():
    async def told():
        call = Client.of_model("One two three four five six seven eight nine ten eleven twelve.",
                               update={"turn_detection": {"type": "server_vad", "interrupt_response": False}})
        call.writes("count")
        call.does("response.create")
        await call.thinks(20)
        call.speech(300, "me too")
        assert call.call.mouth.turn is not None
        call.silence(1500)
        await call.thinks()
        return call
    call = asyncio.run(told())
    assert call.statuses == ["completed", "completed"] and asked(call)[-1] == ("user", "me too")


def test_a_model_that_fails_is_told_to_the_client_and_nothing_else():
    class Broken:
        async def reply(self, messages, *tools):
            raise RuntimeError("no")
            yield

    async def told():
        call = Client.of_model()
        call.call.mouth.stage.llm.llm = Broken()
        call.writes("hello")
        call.does("response.create")
        await call.thinks()
        return call
    call = asyncio.run(told())
    done = call.last("response.done").response
    assert done["status"] == "failed" and done["status_details"]["error"]["message"]
    assert not call.connection.closed and not done["output"]


def test_the_client_bounds_what_a_model_says():
    async def told():
        call = Client.of_model("One ", "two ", "three ", "four.")
        call.writes("count")
        call.does("response.create", response={"max_output_tokens": 2})
        await call.thinks()
        return call
    call = asyncio.run(told())
    done = call.last("response.done").response
    assert (done["status"], done["status_details"]["reason"]) == ("incomplete", "max_output_tokens")
    assert call.said == ["One two "]


def test_functions_are_the_clients_to_call():
    call_of_model = SimpleNamespace(name="weather", arguments={"place": "Paris"}, id="call_1")

    class Llm:
        def __init__(self):
            self.asked = []

        async def reply(self, messages, tools=()):
            self.asked.append((messages, tools))
            if len(self.asked) == 1:
                yield "Let me see."
                yield call_of_model
            else:
                yield "It is sunny."

    async def told():
        call = Client.of_model()
        llm = call.call.mouth.stage.llm.llm = Llm()
        tool = {"type": "function", "name": "weather", "description": "Of a place.", "parameters": {"type": "object"}}
        call.does("session.update", session={"tools": [tool]})
        call.writes("the weather in Paris?")
        call.does("response.create")
        await call.thinks(20)
        call.does("conversation.item.create", item={"type": "function_call_output", "call_id": "call_1",
                                                    "output": "sunny"})
        call.does("response.create", response={"tool_choice": "none"})
        await call.thinks(20)
        return call, llm
    call, llm = asyncio.run(told())
    done = call.last("response.function_call_arguments.done")
    assert (done.name, done.arguments, done.call_id) == ("weather", '{"place":"Paris"}', "call_1")
    assert [item["type"] for item in call.of("response.done")[0].response["output"]] == ["message", "function_call"]
    assert llm.asked[0][1][0]["function"]["name"] == "weather" and llm.asked[1][1] == ()
    roles = [(message["role"], message.get("tool_calls") and message["tool_calls"][0]["id"], message["content"])
             for message in llm.asked[1][0][1:]]
    assert roles == [("user", None, "the weather in Paris?"), ("assistant", None, "Let me see."),
                     ("assistant", "call_1", None), ("tool", None, "sunny")]
    assert call.said[1] == "It is sunny."


def test_a_response_beside_the_conversation_leaves_it_as_it_is():
    async def told():
        call = Client.of_model("Oui.")
        call.writes("first", id="a")
        call.does("response.create", response={
            "conversation": "none", "instructions": "Translate.", "output_modalities": ["text"],
            "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Yes."}]}]})
        await call.thinks()
        return call
    call = asyncio.run(told())
    assert call.said == ["Oui."] and asked(call) == [("user", "Yes.")]
    assert call.studio.llm.asked[-1][0] == {"role": "system", "content": "Translate."}
    assert [item.id for item in call.call.dialect.items.order] == ["a"]


def picture(image_url="data:image/png;base64,iVBORw0K", **more):
    return {"type": "input_image", "image_url": image_url, **more}


def shows(client, *content):
    client.does("conversation.item.create", item={"type": "message", "role": "user", "content": list(content)})


def test_a_model_is_shown_the_pictures_of_an_item_and_nobody_else_is():
    async def told():
        call = Client.of_model("A cat.")
        shows(call, {"type": "input_text", "text": "What is that?"}, picture(detail="low"))
        call.does("response.create")
        await call.thinks(300)
        call.does("response.create", response=NOTE)
        await call.thinks(50)
        return call
    call = asyncio.run(told())
    content = [{"type": "text", "text": "What is that?"},
               {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0K", "detail": "low"}}]
    assert asked(call)[0] == ("user", content) and call.said == ["A cat."] * 2
    assert [part["type"] for part in call.of("conversation.item.added")[0].item["content"]] == [
        "input_text", "input_image"]
    kept = json.dumps(state_of(call.call.dialect))
    assert "iVBORw0K" not in kept, "what is written with every event is small"
    items = resumed("openai-realtime", json.loads(kept)).items.order
    assert chat(items, "", False)[0]["content"] == f"What is that? {LOST}"


def test_pictures_are_bounded_and_the_oldest_are_forgotten_first():
    client = Client.of_model()
    large = picture("data:image/png;base64," + "A" * (LARGEST_PICTURE - 22))
    for _ in range(3):
        shows(client, large)
    assert [len(item.images) for item in client.call.dialect.items.order] == [0, 1, 1] and not client.errors
    messages = pictured(chat(client.call.dialect.items.order, "", False), client.call.dialect.items)
    assert [message["content"] == LOST for message in messages] == [True, False, False]


@pytest.mark.parametrize("part, param", [
    (picture("https://example.com/cat.png"), "image_url"), (picture("data:image/png;base64,"), "image_url"),
    (picture("data:text/html;base64,AAAA"), "image_url"), (picture("data:image/png;base64,A\u00e4A"), "image_url"),
    (picture("data:image/png;base64," + "A" * LARGEST_PICTURE), "image_url"), (picture(None), "image_url"),
    (picture(detail="much"), "detail")])
def test_what_is_no_picture_is_an_error_that_says_so(part, param):
    client = Client.of_model()
    shows(client, part)
    assert client.last("error").error["param"] == f"item.content[0].{param}" and not client.call.dialect.items.order
    client.does("response.create", response={"input": [
        {"type": "message", "role": "user", "content": [picture()]}]})
    assert client.last("error").error["param"] == "response.input[0].content"


# ---- what is kept, and what a model gets -----------------------------------------------------------------------------

def test_a_conversation_forgets_its_beginning():
    items = Items()
    for i in range(2 * MOST):
        items.add(Item(str(i), "message", "user", "input_text", "x" * 10_000))
    assert sum(item.size for item in items.order) <= MOST_TEXT and items.last_id == str(2 * MOST - 1)


def test_a_chat_holds_no_call_without_its_output():
    items = [Item("a", "message", "user", "input_text", "hi"), Item("b", "function_call", call_id="1", name="f"),
             Item("c", "function_call_output", call_id="2", output="late"),
             Item("d", "message", "assistant", "output_audio", "Hello there", heard="Hello"),
             Item("e", "message", "user", "input_audio", None)]
    assert chat(items, "Be kind.", False) == (
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"},
        {"role": "user", "content": "late"}, {"role": "assistant", "content": "Hello"})
    tools = [{"type": "function", "name": "f"}, {"type": "function", "name": "g", "parameters": {}}]
    choices = "auto", "none", {"type": "function", "name": "g"}
    assert [len(functions(tools, choice)) for choice in choices] == [2, 0, 1]


# ---- who may call ----------------------------------------------------------------------------------------------------

def shown(**headers):
    fields = {name.replace("_", "-"): text for name, text in headers.items()}
    return Shown("GET", (), "/", "h", fields.get, {}, "", 0.0, None)


@pytest.mark.parametrize("headers, admitted", [
    ({"authorization": "Bearer first-secret"}, True), ({"authorization": "Bearer second-secret"}, True),
    ({"sec_websocket_protocol": "realtime, openai-insecure-api-key.second-secret"}, True),
    ({"sec_websocket_protocol": "openai-insecure-api-key.wrong, openai-insecure-api-key.first-secret"}, True),
    ({"sec_websocket_protocol": "realtime, openai-insecure-api-key.first-secreT"}, False),
    ({"sec_websocket_protocol": "realtime, first-secret"}, False),
    ({"sec_websocket_protocol": "realtime, openai-insecure-api-key."}, False), ({}, False),
    ({"authorization": "Bearer first"}, False)])
def test_a_key_comes_as_a_bearer_or_from_a_browser_as_a_subprotocol(headers, admitted):
    key = Key("realtime", secrets=("first-secret", "second-secret"))
    assert any([way(shown(**headers), key) for way in WAYS["realtime"]]) == admitted


# ---- whatever a client may send --------------------------------------------------------------------------------------

KINDS = st.sampled_from([
    {"type": "response.create"}, {"type": "response.cancel"}, {"type": "input_audio_buffer.commit"},
    {"type": "response.create", "response": {"conversation": "none", "output_modalities": ["text"]}},
    {"type": "response.create", "response": {"conversation": "none"}},
    {"type": "input_audio_buffer.clear"}, {"type": "conversation.item.delete", "item_id": "item_1"},
    {"type": "session.update", "session": {"audio": {"input": {"turn_detection": None}}}},
    {"type": "session.update", "session": {"audio": {"input": {"turn_detection": {"type": "server_vad"}}}}},
    {"type": "session.update", "session": {"audio": {"input": {"turn_detection": {"type": "semantic_vad"}}}}},
    {"type": "session.update", "session": {"output_modalities": ["text"]}},
    {"type": "session.update", "session": {"audio": {"output": {"format": {"type": "audio/pcm"}}}}},
    {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": [
        {"type": "input_text", "text": "ten of clubs"}]}},
    {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "id": "item_1", "content": [
        {"type": "input_audio", "audio": "////" * 1000}, {"type": "input_audio", "audio": "////"}]}},
    {"type": "conversation.item.truncate", "item_id": "item_2", "content_index": 0, "audio_end_ms": 10},
    {"type": "input_audio_buffer.dtmf", "event": "5"}])
STEPS = st.one_of(
    KINDS.map(lambda message: ("send", json.dumps(message).encode())),
    KINDS.map(lambda message: ("send", json.dumps(message).encode())),
    st.sampled_from(RECORDED["openai-realtime"]).map(lambda message: ("send", bytes(message[1]))),
    ALIEN.map(lambda message: ("send", json.dumps(message).encode())),
    st.binary(max_size=20).map(lambda octets: ("send", octets)),
    st.sampled_from([40, 200, 700]).map(lambda ms: ("speak", ms)),
    st.sampled_from([100, 800, 3000]).map(lambda ms: ("wait", ms)))


@pytest.mark.parametrize("agent", ["", "assistant"])
@settings(deadline=None, max_examples=30)
@given(steps=st.lists(STEPS, max_size=10), quick=st.booleans())
def test_whatever_is_sent_there_are_events_in_their_order_and_every_response_ends(agent, steps, quick):
    async def told():
        call = Client(ASSISTANT if agent else FLOW, agent)
        call.studio.free.insert(0, 1)
        call.studio.llm.pieces = ["One two. ", "Three four five."]
        call.studio.stt.silent = not quick
        for what, value in steps:
            if call.connection.closed:
                break
            if what == "send":
                call.receive(value)
                call.take()
            elif what == "speak":
                call.speech(value, "ten of clubs")
            else:
                call.silence(value)
            await call.thinks(10)
        call.studio.stt.silent = False
        for i in range(40):                     # a flow may ask whether somebody is there
            if i < 8 or call.call.mouth.turn is not None or call.call.recorded:
                call.passes(500)
                await call.thinks(10)
        return call
    call = asyncio.run(told())
    assert not call.connection.faults
    assert len(call.of("response.created")) == len(call.of("response.done")), "a response never ended"
    assert call.connection.closed or call.call.mouth.turn is None
    assert not call.call.inbox and call.call.inbox.samples == 0 and not call.call.deferred and not call.call.recorded
    assert len(call.call.dialect.items.order) <= MOST
    call.call.lost(1000, "")
    assert sorted(call.studio.free) == [0, 1]


def test_a_client_that_knows_nothing_of_the_protocol_is_told_and_stays():
    call = Client()
    call.call.on_message(2, memoryview(b"\x00\x01"))
    call.take()
    assert call.errors == ["invalid_json"] and not call.connection.closed


def test_the_strict_client_ends_its_call_at_an_error():
    caller = CALLERS["openai-realtime"](urlsplit("ws://h/v1/realtime"))
    with pytest.raises(ProtocolError, match="no such thing"):
        caller.receive(TEXT, b'{"type":"error","event_id":"e1","error":{"message":"no such thing"}}')
