"""A call goes on in another worker: at the byte on the wire, the sample in the prompt, the word in the dialogue."""
import asyncio
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import orjson
import pytest
from hypothesis import given, settings, strategies as st

from conversation import MS, Connection, Conversation, Server
from opusagent._fastpath import FrameParser, build_frame
from opusagent.board import Board
from opusagent.continuity import handover, takeover
from opusagent.dialects import CALLERS, TABLE, TEXT
from opusagent.dialects.keeping import resumed, state_of
from opusagent.flow.authoring import Flow as Written
from opusagent.flow.authoring import State
from opusagent.speech.playout import Playout, Segment
from test_realtime import Client as RealtimeClient
from test_relay import Relayed

STORY = """
start = "story"
[states.story]
say = "one two three four five six seven eight nine ten. eleven twelve thirteen fourteen fifteen sixteen."
on = [{ phrases = ["yes"], fact = "liked", go = "more" }]
[states.more]
say = "then there is more to tell."
on = [{ phrases = ["no"], go = "bye" }]
[states.bye]
say = "goodbye {liked}."
end = true
"""
MODEL = """
start = "ask"
[states.ask]
say = "how can I help?"
on = [{ free = true, go = "answer" }]
[states.answer]
prompt = "Answer."
on = [{ free = true, go = "answer" }]
"""


# -- the parts ---------------------------------------------------------------------------------------------------------

def json(value):
    return orjson.loads(orjson.dumps(value))


@pytest.mark.parametrize("name", sorted(set(TABLE) & set(CALLERS) - {"openai-realtime"}))
def test_a_dialect_goes_on_as_it_was(name):
    caller = CALLERS[name](urlsplit(f"ws://here/ws/{name}"))
    dialect = TABLE[name]({})
    dialect.open()
    sound = np.arange(-800, 800, dtype=np.int16)[:caller.rate // 50]

    def hear(dialect, messages):
        events = [dialect.receive(opcode, memoryview(payload)) for opcode, payload in messages if payload is not None]
        return [type(event).__name__ for event in events]

    hear(dialect, caller.open())
    for message in dialect.outbox:              # the platform hears our answers, as some of them insist
        caller.receive(message[0], memoryview(message[1]))
    dialect.outbox.clear()
    said = [message for message in (*caller.outbox, caller.audio(sound)) if message is not None]
    hear(dialect, said)
    dialect.audio(np.zeros(dialect.rate // 50, np.int16))
    dialect.mark("1:160")
    dialect.outbox.clear()
    other = resumed(name, json(state_of(dialect)))
    assert state_of(other) == state_of(dialect)
    more = [message for message in (caller.audio(sound), caller.dtmf("5")) if message is not None]
    assert hear(dialect, more) == hear(other, more)
    pcm = np.arange(dialect.rate // 50, dtype=np.int16)
    assert bytes(dialect.audio(pcm)) == bytes(other.audio(pcm))
    assert (dialect.mark("2:1"), dialect.clear(), dialect.stop()) == (other.mark("2:1"), other.clear(), other.stop())
    assert dialect.outbox == other.outbox


def test_a_session_of_the_realtime_protocol_goes_on_as_it_was():
    client = RealtimeClient()
    client.silence(1500)
    client.says("ten of clubs")
    client.writes("and the two of clubs")
    dialect = client.call.dialect
    assert dialect.respond({"metadata": {"n": "1"}}) and dialect.response.say("Thank you.")
    assert dialect.response.active and dialect._spoken in dialect.items.order
    other = resumed(dialect.name, json(state_of(dialect)))
    assert json(state_of(other)) == json(state_of(dialect))
    assert other.response.message is None or other.response.message in other.items.order
    assert other._spoken is other.items.find(dialect._spoken.id)
    for each in (dialect, other):
        each.outbox.clear()
        each.finish("completed")
        each.receive(TEXT, memoryview(b'{"type": "conversation.item.retrieve", "item_id": "%s"}'
                                      % dialect.items.last_id.encode()))
    assert other.outbox == dialect.outbox and len(other.outbox) > 2


FRAMES = b"".join((build_frame(1, "grüße".encode(), False, b"abcd"), build_frame(9, b"ping", True, b"efgh"),
                   build_frame(0, "und mehr".encode(), True, b"ijkl"), build_frame(2, bytes(range(200)), True, b"mnop"),
                   build_frame(2, bytes(700), True, b"\0\0\0\0")))


def messages(parser):
    found = []
    parser.deliver(lambda opcode, payload: found.append((opcode, bytes(payload))),
                   lambda opcode, payload: found.append((opcode, bytes(payload))))
    return found


@settings(deadline=None, max_examples=300)
@given(st.integers(0, len(FRAMES)), st.integers(0, len(FRAMES)))
def test_frames_are_read_on_wherever_they_were_cut(first, second):
    first, second = sorted((first, second))
    whole = FrameParser(1 << 16)
    whole.feed_bytes(FRAMES)
    wanted, found = messages(whole), []
    parser = FrameParser(1 << 16)
    for piece in (FRAMES[:first], FRAMES[first:second], FRAMES[second:]):
        parser.feed_bytes(piece)
        found += messages(parser)
        successor = FrameParser(1 << 16)
        successor.load(parser.dump())
        parser = successor
        found += messages(parser)
    assert found == wanted


@given(st.binary(max_size=400))
def test_what_is_no_parser_state_is_refused_or_harmless(data):
    parser = FrameParser(1 << 10)
    try:
        parser.load(data)
    except ValueError:
        return
    assert parser.held <= 1 << 10


# -- a call ------------------------------------------------------------------------------------------------------------

def moved(call):
    """The conversation in another worker, which has its slot, its snapshot and where its playout stands."""
    old = call.call
    old.slot.keep(handover.snapshot(old))
    state = orjson.loads(old.slot.kept)
    slot, server = old.slot, Server(call.studio)
    server.now = call.server.now
    connection = Connection()
    connection.sent = call.connection.sent
    call.server, call.connection = server, connection
    call.call = new = handover.resume(server, connection, slot, state)
    handover.go_on(new, state, server.now)
    if old.mouth.turn is not None:
        old.mouth.turn.cancel()
    old.slot = old.mouth.slot = old.ear.slot = None
    return call


def spoken_ms(call):
    return call.count("media") * 20


def test_in_the_midst_of_a_prompt_nothing_is_said_twice_and_nothing_left_out():
    whole = Conversation(STORY)
    whole.listens()
    for at in range(40, spoken_ms(whole) - 40, 140):
        call = Conversation(STORY)
        call.silence(at)
        moved(call).listens()
        assert spoken_ms(call) == spoken_ms(whole), at
        assert call.receipts == [] or call.agent_says == whole.agent_says
        call.says("yes")
        assert call.state == "more" and call.agent_says[-1] == "then there is more to tell."


def test_what_a_worker_did_behind_its_last_snapshot_is_in_none_of_the_next_one():
    """It died before anything of that went out: whoever takes the session over begins where the snapshot stands."""
    client = RealtimeClient()
    client.silence(1500)
    stood = list(client.call.mouth.playout.place)
    client.call.slot.note(stood[0] + 11200, *stood[1:])
    assert json(handover.kept_of(client.call))["session"]["noted"] == stood


def test_what_got_no_further_than_into_the_frame_is_played_by_the_next_worker():
    """Where 200 ms go out together, the end of one sentence may wait for the beginning of the next."""
    playout = Playout(8000, lead_ms=600_000, message_ms=200)
    playout.begin()
    first, second = Segment("One.", np.ones(1600, np.int16)), Segment("Two.", np.ones(800, np.int16), pause_ms=20)
    for segment in (first, second, Segment("Three.", np.ones(24000, np.int16), growing=True)):
        playout.push(segment)
    assert len(playout.pop(MS)) == 1600 and playout.pop(MS) is None
    assert second.finished and playout.place == (1600, MS, 1, 1600, 0, 0)
    playout.queue[-1].supply(0, 500, done=False)
    assert playout.pop(MS) is None and playout.place == (1600, MS, 1, 1600, 0, 0)
    playout.queue[-1].supply(0, 1600, done=False)
    assert len(playout.pop(MS)) == 1600 and playout.place == (3200, MS, 3, 640, 0, 0)


def test_between_two_sentences_nobody_is_asked_to_wait(monkeypatch):
    """Where the platform is fed frame by frame, all that was sent has been heard by then."""
    monkeypatch.setattr(TABLE["twilio"], "lead_ms", 20)
    story = STORY.replace("one two three", "one two three " * 15)
    whole = Conversation(story)
    whole.listens()
    sentence = (7 + 45) * 50
    for at in range(sentence - 40, sentence + 280, 20):
        call = Conversation(story)
        call.silence(at)
        call.server.now += 100 * MS             # which the other worker has taken
        moved(call).listens()
        assert spoken_ms(call) <= spoken_ms(whole) + 20, at


def test_a_voice_in_mid_sentence_speaks_on():
    call = Conversation(STORY, ahead=False)
    call.studio.tts.deliver()
    call.silence(200)
    asked = []
    call.studio.tts.resume = lambda *args: asked.append(args)
    moved(call)
    assert len(asked) == 1 and asked[0][3].startswith("eleven") and asked[0][5] is None     # the other one is there
    call.studio.tts.asked = [asked[0][:4]]
    call.studio.tts.deliver()
    call.listens()
    assert spoken_ms(call) == 20 * -(-(10 * 50 + 220 + 6 * 50) // 20)


def test_an_utterance_in_progress_is_recognised_from_its_beginning():
    call = Conversation(STORY)
    call.listens()
    call.speech(400, "yes")
    began = call.call.ear.heard_from
    moved(call)
    assert call.studio.stt.log[-1] == ("listen", began)
    call.speech(200, "yes")
    call.silence(1500)
    call.listens()
    assert call.state == "more"


def test_what_was_heard_after_the_snapshot_is_heard_again():
    """A worker that was killed had written its last snapshot before the caller began to speak."""
    call = Conversation(STORY)
    call.listens()
    call.silence(200)
    old = call.call
    old.slot.keep(handover.snapshot(old))
    kept = old.slot.kept
    call.speech(300, "yes")
    old.slot.keep(kept)
    state, slot = orjson.loads(kept), old.slot
    call.call = handover.resume(call.server, call.connection, slot, state)
    handover.go_on(call.call, state, call.server.now)
    assert call.call.ear.hearing
    call.speech(200, "yes")
    call.silence(1500)
    call.listens()
    assert call.state == "more"


def test_a_reply_that_nobody_has_heard_is_made_again():
    async def conversation():
        call = Conversation(MODEL)
        call.listens()
        call.studio.llm.free.clear()
        call.speech(600, "what is the time")
        call.silence(1000)
        await asyncio.sleep(0)
        assert len(call.studio.llm.asked) == 1 and call.call.mouth.turn is not None
        moved(call)
        call.studio.llm.pieces = ["It is ten."]
        call.studio.llm.free.set()
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(call.studio.llm.asked) == 2
        call.listens()
        assert call.agent_says[-1] == "It is ten." and call.call.dialogue.state in ("ask", "answer")
    asyncio.run(conversation())


def test_history_facts_and_receipts_go_along():
    call = Conversation(STORY)
    call.listens()
    call.says("yes")
    receipts, history = list(call.receipts), list(call.call.dialogue.history)
    moved(call)
    assert call.receipts == receipts and list(call.call.dialogue.history) == history
    call.says("no")
    assert call.agent_says[-1] == "goodbye yes." and call.call.done


NUMBER = """
start = "number"
[states.number]
say = "your number?"
on = [{ digits = 3, fact = "number", go = "thanks" }]
[states.thanks]
say = "one two three four five six seven eight nine ten. thank you."
on = [{ phrases = ["more"], go = "number" }]
"""


def press(call, keys):
    for key in keys:
        call.receive(b'{"event":"dtmf","dtmf":{"digit":"%s"}}' % key.encode())


def test_the_end_of_a_number_that_was_answered_without_it_is_none_in_the_next_worker_either():
    call = Conversation(NUMBER)
    call.listens()
    press(call, "123")
    assert call.state == "thanks"
    call.silence(100)
    press(moved(call), "#")
    assert call.state == "thanks" and call.call.mouth.turn is not None     # nobody was interrupted


def test_the_callers_pace_and_what_had_no_sound_go_along():
    call = Conversation(STORY, ahead=False)
    call.call.turns.pace.paused(900)
    pace = call.call.turns.pace.factor
    call.studio.tts.deliver()
    call.studio.tts.deliver(sounds=False)
    call.silence(100)
    assert pace != 1.0 and call.call.mouth.turn.broken
    turn = moved(call).call.mouth.turn
    assert call.call.turns.pace.factor == pace and turn.broken and turn.told.endswith("nine ten.")


def test_another_version_or_another_flow_is_said_not_guessed():
    call = Conversation(STORY)
    state = orjson.loads(handover.snapshot(call.call))
    for change in ({"version": 99}, {"agent": "gone"}, {"dialogue": ["gone", {}, [], 0, {}, 0]}):
        with pytest.raises(handover.LostCall):
            handover.resume(call.server, SimpleNamespace(tenant=""), call.call.slot, state | change)


def test_a_call_that_must_end_says_so_and_hangs_up():
    call = Conversation(STORY)
    call.silence(100)
    call.call.part()
    call.listens()
    assert "I have to end this call" in call.agent_says[-1] and call.call.done
    assert call.receipts[0]["stopped_by"]


def another_goes_on(call):
    """A call in text, which is in another worker from now on."""
    old, state = call.call, json(handover.kept_of(call.call))
    old.turn.cancel()
    call.call = handover.resume(call.server, call.connection, old.slot, state)
    handover.go_on(call.call, state, call.server.now)


@pytest.mark.parametrize("words, said", [("book it", "Sorry. Yes?"), ("what is there?", "It is ten.")])
def test_a_call_in_text_calls_no_tool_twice_and_asks_its_model_again(words, said):
    """In text nothing lies in the slot; see test_relay_restart.py for a model that had begun."""
    async def conversation():
        flow, ran = Written(start="ask", failure={"say": ["Sorry."], "go": "ask"}), []
        flow.add(State("ask", say="Yes?", on=[{"phrases": ["book it"], "go": "book"}, {"free": True, "go": "answer"}]),
                 State("book", call="book", go="ask"), State("answer", prompt="Answer.", on=[{"free": True}]))

        @flow.tool(effect="commit")
        async def book():
            """Books it."""
            ran.append(1)
            await asyncio.Event().wait()
        call = Relayed(flow.compile())
        call.passes(3000)
        call.studio.llm.pieces = ["It is ten."]
        call.studio.llm.free.clear()
        call.says(words)
        await call.thinks()
        another_goes_on(call)
        call.studio.llm.free.set()
        await call.thinks()
        assert "".join(call.tokens) == "Yes?" + said and ran == [1] * (words == "book it")
        assert call.call.script.ends > call.server.now and call.call.dialogue.state in ("ask", "answer")
    asyncio.run(conversation())


@pytest.mark.parametrize("before, after, said", [
    (["We are #"], ["1."], "We are #1."), (["It is **ten"], ["**."], "It is ten."),
    (["*"], ["Ten* of *clubs*."], "Ten of clubs.")])
def test_a_sign_of_a_models_that_another_worker_has_had_is_read_together_with_what_follows(before, after, said):
    async def stalls(*chat):
        for piece in before:
            yield piece
        await asyncio.Event().wait()

    async def conversation():
        call = Relayed(MODEL)
        call.passes(3000)
        call.studio.llm.reply = stalls
        call.says("where are you")
        await call.thinks()
        del call.studio.llm.reply
        call.studio.llm.pieces = after
        another_goes_on(call)
        await call.thinks()
        assert "".join(call.tokens) == "how can I help?" + said
    asyncio.run(conversation())


class Held(SimpleNamespace):
    __hash__ = object.__hash__


def test_a_call_whose_state_cannot_be_kept_stays_and_holds_up_no_other(monkeypatch, caplog):
    calls = [Held(id=name, slot=SimpleNamespace(index=at, keep=lambda state: None))
             for at, name in enumerate(("good", "bad", "fine"))]

    def snapshot(call):
        if call.id == "bad":
            raise TypeError("Integer exceeds 64-bit range")
        return b"{}"
    monkeypatch.setattr(takeover, "wire_of", lambda call: call)
    monkeypatch.setattr(takeover, "snapshot", snapshot)
    erased = []
    keeper = takeover.Keeper(SimpleNamespace(erase_record=erased.append), None)
    keeper.known = {call: takeover.Kept(slot=0, record=call.slot.index) for call in calls}
    assert [call.id for call in keeper.freeze()] == ["good", "fine"]
    assert [call.id for call in keeper.known] == ["bad"] and erased == [0, 2]
    assert "call bad could not be taken over" in caplog.text


def test_what_a_tool_gave_after_the_end_of_its_call_is_told_too():
    board, facts = Board(2), {}
    keeper = takeover.Keeper(board.seats[1], None)
    calls = [Held(id=name, record=lambda name=name: {"id": name, "live": False, "turns": [], "facts": facts})
             for name in ("one", "two")]
    for call in calls:
        keeper.ended(call)
    facts["reference"] = "4711"
    keeper.amended(calls[0])
    told = {record["id"]: record["facts"] for record in board.latest(10)}
    assert told == {"one": {"reference": "4711"}, "two": {}}
    keeper.amended(Held(id="three", record=lambda: {"id": "three"}))        # long gone
    assert len(board.latest(10)) == 2
