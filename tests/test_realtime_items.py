"""Audio inside the items of a conversation of the Realtime protocol, on the virtual clock of test_realtime.py.

The recogniser knows what is said, or keeps it to itself; the strict simulated client reads every event besides.
"""
import asyncio
import base64
import json

import numpy as np
import pytest

from opusagent.continuity import carried
from opusagent.dialects.keeping import resumed, state_of
from opusagent.dialects.realtime.items import LONGEST_AUDIO, MOST_SOUNDING, MOST_UNHEARD
from test_realtime import ASSISTANT, QUIET, Client

SECOND = np.full(8000, 0x80, np.uint8)          # of mu-law


def sound(seconds=1.0, **more):
    audio = base64.b64encode(np.resize(SECOND, int(seconds * 8000)).tobytes()).decode()
    return {"type": "input_audio", "audio": audio, **more}


def message(*content, role="user", **more):
    return {"type": "message", "role": role, "content": list(content), **more}


class Caller(Client):
    """A client whose recogniser says `words`, and whose worker has room for what is recorded."""

    def __init__(self, *args, words="ten of clubs", update=None, **more):
        super().__init__(*args, update={"transcription": {"model": "any"}, **(update or {})}, **more)
        self.studio.free.insert(0, 1)
        self.studio.stt.words = words

    def makes(self, *content, **more):
        self.does("conversation.item.create", item=message(*content, **more))

    @property
    def transcripts(self):
        kind = "conversation.item.input_audio_transcription.completed"
        return [(event.item_id, event.content_index, event.transcript) for event in self.of(kind)]

    def content(self, name):
        self.does("conversation.item.retrieve", item_id=name)
        return self.last("conversation.item.retrieved").item["content"]


def modelled(*pieces, **more):
    call = Caller(ASSISTANT, "assistant", **more)
    call.studio.llm.pieces = pieces
    return call


# ---- what is recognised ----------------------------------------------------------------------------------------------

def test_what_an_item_says_is_recognised_and_answered_by_the_flow():
    call = Caller()
    call.makes(sound(3), id="slip")
    call.does("response.create")
    added = call.last("conversation.item.added").item
    assert added["content"] == [{"type": "input_audio", "transcript": None}] and not call.of("response.created")
    call.passes(600)
    assert call.transcripts == [("slip", 0, "ten of clubs")]
    completed = call.last("conversation.item.input_audio_transcription.completed")
    assert completed.usage == {"type": "duration", "seconds": 3.0}
    assert call.content("slip") == [{"type": "input_audio", "transcript": "ten of clubs"}]
    call.passes(4000)
    assert call.said[0] == "Thank you. And which other one?" and call.call.dialogue.facts["card"] == "ten of clubs"
    assert not call.errors and call.studio.free == [1]
    kinds = [event.type for event in call.events]
    assert kinds.index("conversation.item.input_audio_transcription.completed") < kinds.index("response.created")


def test_a_model_is_told_what_the_items_of_a_conversation_said():
    async def told():
        call = modelled("A red card.")
        call.makes({"type": "input_text", "text": "I was asked for a card, and said:"}, sound(0.5), id="asked")
        call.makes({"type": "output_audio", "audio": sound()["audio"], "transcript": "Which colour has it?"},
                   role="assistant", id="was")
        call.makes(sound(0.5, transcript="It is black."), id="known")
        call.does("response.create")
        await call.thinks(800)
        return call
    call = asyncio.run(told())
    assert call.studio.llm.asked[-1][1:] == (
        {"role": "user", "content": "I was asked for a card, and said:\nten of clubs"},
        {"role": "assistant", "content": "Which colour has it?"}, {"role": "user", "content": "It is black."})
    assert call.transcripts == [("known", 0, "It is black."), ("asked", 1, "ten of clubs")]
    assert call.said == ["A red card."] and not call.errors
    assert call.content("asked") == [{"type": "input_text", "text": "I was asked for a card, and said:"},
                                     {"type": "input_audio", "transcript": "ten of clubs"}]
    assert call.content("was") == [{"type": "output_audio", "transcript": "Which colour has it?"}]


def test_the_client_cuts_what_it_says_that_the_agent_said():
    call = Caller()
    call.makes({"type": "output_audio", "audio": sound()["audio"], "transcript": "one two three four"},
               role="assistant", id="was")
    call.does("conversation.item.truncate", item_id="was", content_index=0, audio_end_ms=500)
    assert call.content("was") == [{"type": "output_audio", "transcript": "one two"}] and not call.errors


def test_nobody_is_told_who_does_not_ask_for_transcripts():
    call = Caller(update={"transcription": None})
    call.makes(sound(), id="slip")
    call.passes(400)
    assert not call.transcripts and call.content("slip") == [{"type": "input_audio", "transcript": "ten of clubs"}]


def test_the_caller_is_heard_meanwhile_and_each_has_his_own_words():
    """The caller's turn goes its way: begun, recognised and answered, while an item waits for its recogniser."""
    call = Caller()
    call.passes(1500)                           # the flow has begun by itself, and ended
    call.passes(3000)
    call.studio.stt.silent = True
    call.speech(200)
    call.makes(sound(), id="slip")
    call.speech(200)
    assert call.call.recorded.slot is not None
    call.studio.stt.silent = False
    call.speech(600, "two of clubs")
    call.silence(600)
    assert call.transcripts[-1][2] == "two of clubs" and call.call.recorded.slot is not None
    assert call.call.dialogue.facts["card"] == "two of clubs"
    heard = call.call.recorded
    heard.on_final(heard.utterance, "ten of clubs", 0.5)
    call.take()
    assert call.transcripts[-1] == ("slip", 0, "ten of clubs") and call.call.recorded.slot is None


def test_a_response_that_waits_for_an_item_does_not_end_what_the_caller_is_saying():
    async def told():
        call = modelled("Yes.")
        call.frame(QUIET)
        call.studio.stt.silent = True
        call.makes(sound(), id="slip")
        call.does("response.create")
        call.passes(300)
        call.speech(400)                        # the caller has begun to speak
        heard = call.call.recorded
        heard.on_final(heard.utterance, "ten of clubs", 1.0)
        call.speech(200)
        assert not call.of("response.created") and call.call.turns.state == "HEARING"
        call.studio.stt.silent, call.studio.stt.words = False, "and another"
        call.silence(1200)
        await call.thinks(300)
        return call
    call = asyncio.run(told())
    assert len(call.of("response.created")) == 1 and call.said == ["Yes."]
    assert [message["content"] for message in call.studio.llm.asked[-1][1:]] == ["ten of clubs", "and another"]


def test_a_recogniser_that_fails_or_says_nothing_is_told_and_the_response_goes_on():
    async def told():
        call = modelled("Pardon?")
        call.studio.stt.silent = True
        call.makes(sound(), id="first")
        call.makes(sound(), id="second")
        call.does("response.create")
        call.passes(300)
        heard = call.call.recorded
        heard.on_failure(heard.utterance, "The recogniser died.")
        call.passes(6000)
        await call.thinks(300)
        return call
    call = asyncio.run(told())
    failed = call.of("conversation.item.input_audio_transcription.failed")
    assert [(event.item_id, event.error["message"]) for event in failed] == [
        ("first", "The recogniser died."), ("second", "The recogniser gave no answer in time.")]
    assert failed[0].error["code"] == "transcription_failed" and call.said == ["Pardon?"]
    assert sorted(call.studio.free) == [1] and not call.call.deferred


def test_where_there_is_no_room_it_is_told():
    call = Caller()
    call.studio.free.clear()
    call.makes(sound(), id="slip")
    call.passes(50)
    assert call.last("conversation.item.input_audio_transcription.failed").error["message"] == (
        "There is no room to hear it.")


def test_a_deleted_item_is_not_listened_to_and_a_cancelled_response_does_not_begin():
    call = Caller()
    call.studio.stt.silent = True
    for name in ("one", "two"):
        call.makes(sound(), id=name)
    call.does("conversation.item.delete", item_id="two")
    call.does("response.create")
    call.does("response.cancel")
    assert call.statuses == ["cancelled"]
    call.passes(8000)
    assert [event.item_id for event in call.of("conversation.item.input_audio_transcription.failed")] == ["one"]
    assert not call.call.recorded and not call.errors


def test_an_item_that_is_deleted_while_it_is_recognised_holds_nobody_up():
    async def told():
        call = modelled("Yes?")
        call.studio.stt.silent = True
        call.makes(sound(), id="one")
        call.does("response.create")
        call.passes(300)
        call.does("conversation.item.delete", item_id="one")
        await call.thinks(300)
        return call
    call = asyncio.run(told())
    assert call.said == ["Yes?"] and call.studio.free == [1] and not call.transcripts and not call.errors


def test_an_item_is_recognised_after_the_response_that_was_asked_for_before_it():
    """In the state that this leads to, and not as its question."""
    call = Caller()
    call.passes(4000)
    call.does("session.update", session={"type": "realtime", "output_modalities": ["text"]})
    call.studio.stt.silent = True
    for words in ("ten of clubs", "two of clubs"):
        call.makes(sound(), id=words)
        call.does("response.create")
    for words, state in (("ten of clubs", "card"), ("two of clubs", "more")):
        call.passes(300)
        assert call.call.dialogue.state == state and call.call.recorded.item.id == words
        heard = call.call.recorded
        heard.on_final(heard.utterance, words, 1.0)
    call.passes(300)
    assert call.said[1:] == ["Thank you. And which other one?", "Goodbye."] and not call.errors


def test_the_end_of_the_call_leaves_no_slot_taken():
    call = Caller()
    call.studio.stt.silent = True
    call.makes(sound())
    call.passes(100)
    assert call.studio.free == []
    call.call.lost(1000, "")
    assert sorted(call.studio.free) == [0, 1] and not call.studio.arena.slot(1).taken


def test_a_state_in_which_nothing_that_is_said_counts_recognises_nothing():
    call = Caller(FLOW_SAYS_ON)
    call.makes(sound(), id="slip")
    call.passes(50)
    assert call.transcripts == [("slip", 0, "")] and ("listen", 0) not in call.studio.stt.log


FLOW_SAYS_ON = """
start = "hold"
[states.hold]
say = "Please hold the line."
on = [{ dtmf = "1", go = "bye" }]
[states.bye]
say = "Goodbye."
end = true
"""


# ---- its bounds ------------------------------------------------------------------------------------------------------

NO_AUDIO = (f"item.content[0].audio must be base64 of samples in the session's format, at most {LONGEST_AUDIO} s of "
            "them.")


@pytest.mark.parametrize("part", [
    {"audio": "no base64!"}, {"audio": "AAA"[:1]}, {"audio": 7}, {"audio": ["AAAA"]},
    {"audio": base64.b64encode(bytes(LONGEST_AUDIO * 8000 + 8000)).decode()},
    {"audio": "*", "transcript": "what is said does not make up for that"}])
def test_what_is_no_audio_is_an_error_with_the_events_name(part):
    call = Caller()
    call.does("conversation.item.create", event_id="e7", item=message({"type": "input_audio", **part}))
    assert call.last("error").error == {"type": "invalid_request_error", "code": "invalid_value", "message": NO_AUDIO,
                                        "param": "item.content[0].audio", "event_id": "e7"}
    assert not call.call.dialect.items.order and not call.call.dialect.items.unheard


@pytest.mark.parametrize("role, part", [
    ("user", {"type": "input_audio"}), ("user", {"type": "input_audio", "audio": "", "transcript": None}),
    ("assistant", {"type": "output_audio", "audio": "////"}), ("user", {"type": "input_audio", "transcript": 7}),
    ("assistant", {"type": "audio"})])
def test_without_audio_of_the_callers_there_must_be_words(role, part):
    call = Caller()
    call.does("conversation.item.create", event_id="e7", item=message(part, role=role))
    assert (call.last("error").error["param"], call.last("error").error["event_id"]) == (
        "item.content[0].transcript", "e7")


def test_no_more_waits_than_the_limit_and_what_was_heard_makes_room():
    call = Caller()
    call.studio.stt.silent = True
    for _ in range(MOST_UNHEARD // LONGEST_AUDIO):
        call.makes(sound(LONGEST_AUDIO))
    call.does("conversation.item.create", event_id="e9", item=message(sound(1)))
    assert call.last("error").error == {
        "type": "invalid_request_error", "code": "rate_limit_exceeded", "param": "item", "event_id": "e9",
        "message": f"No more than {MOST_SOUNDING} items and {MOST_UNHEARD} s of audio may wait to be recognised: "
                   "wait for their transcripts."}
    call.studio.stt.silent = False
    call.passes(LONGEST_AUDIO * 1000 // 8 + 500)
    assert len(call.transcripts) == 1
    call.makes(sound(1))
    assert call.errors == ["rate_limit_exceeded"]


def test_audio_of_a_request_alone_needs_its_transcript():
    async def told():
        call = modelled("A note.")
        call.does("response.create", event_id="e1", response={"conversation": "none", "input": [message(sound())]})
        call.does("response.create", response={"conversation": "none", "output_modalities": ["text"], "input": [
            message(sound(transcript="ten of clubs"))]})
        await call.thinks(200)
        return call
    call = asyncio.run(told())
    error = call.last("error").error
    assert (error["code"], error["param"], error["event_id"]) == (
        "unsupported_value", "response.input[0].content", "e1")
    assert call.said == ["A note."] and call.studio.llm.asked[-1][-1]["content"] == "ten of clubs"


# ---- and in another worker -------------------------------------------------------------------------------------------

def test_what_was_not_recognised_yet_goes_along_as_far_as_it_is_short():
    call = Caller()
    call.studio.stt.silent = True
    call.makes(sound(2), id="short")
    call.makes(sound(LONGEST_AUDIO), id="long")
    dialect = resumed("openai-realtime", json.loads(json.dumps(state_of(call.call.dialect))))
    short, long = dialect.items.order
    kept = short.sounds[0]
    assert (len(kept.pcm), kept.rate, kept.part) == (16000, 8000, 0) and not long.sounds
    assert (kept.pcm == call.call.dialect.items.order[0].sounds[0].pcm).all()
    call.passes(100)
    state = json.loads(json.dumps(carried.kept(call.call)))
    assert [entry["details"] for entry in state["deferred"]] == [{"item_id": "short"}, {"item_id": "long"}]
    call.call.dialect.items.order = dialect.items.order
    call.call.recorded.close()
    call.call.deferred.clear()
    carried.restore(call.call, state)
    call.studio.stt.silent = False
    call.passes(800)
    assert call.transcripts == [("short", 0, "ten of clubs")]
    failed = call.last("conversation.item.input_audio_transcription.failed")
    assert (failed.item_id, failed.error["message"]) == ("long", "The server was restarted before it was heard.")
