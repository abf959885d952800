"""Whatever happens, and whenever: a turn counts as a whole or not at all, one speaks at a time, and nobody is left in
silence.  A conversation is interrupted at every twentieth of a second by everything that can interrupt it."""
import asyncio

import pytest
from conversation import Conversation
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from talking import turn

FLOW = """
start = "card"
[waits]
complete = 140
incomplete = 500
free = 300
no_input = 1500
keys = 1000
[states.card]
say = "Which card do you have, please?"
on = [{ phrases = ["ten of clubs", "seven of clubs"], fact = "card", go = "sure" }, { dtmf = "9", go = "bye" }]
silence = { say = ["Hello?", "Are you there?"], go = "bye" }
[states.sure]
say = "The {card}. Are you sure of that, or would you like to look at it once more?"
on = [{ yes = true, go = "ask" }, { no = true, go = "card" }, { dtmf = "9", go = "bye" }]
silence = { say = ["Yes or no?"], go = "bye" }
[states.ask]
say = "What else?"
on = [{ phrases = ["nothing"], go = "bye" }, { free = true, fact = "wish", go = "model" }, { dtmf = "9", go = "bye" }]
silence = { say = ["Anything else?"], go = "bye" }
[states.model]
prompt = "Answer."
on = [{ phrases = ["nothing"], go = "bye" }, { free = true, go = "model" }, { dtmf = "9", go = "bye" }]
silence = { say = ["Anything else?"], go = "bye" }
[states.bye]
say = "Thank you, goodbye."
end = true
"""
SCRIPT = [("", 1000), ("ten of", 300), ("", 160), ("ten of clubs", 300), ("", 2000), ("yes", 300), ("", 1200),
          ("where is my parcel", 700), ("", 2500)]
KEPT = {"card": ("ten of clubs", "seven of clubs")}
STATES = ("card", "sure", "ask", "model", "bye")
LONGEST_SILENCE = 1500 + 600            # ms of nobody speaking: the state's, and what it takes to notice


class Watched(Conversation):
    """A conversation that is looked at after every frame."""

    def __init__(self):
        super().__init__(FLOW, ahead=True)
        self.studio.llm.pieces = ["It is ", "about parcels, ", "all of them."]
        self.quiet_ms = 0               # nobody spoke for so long
        self.sent = 0                   # messages of the agent's audio

    async def frame_of(self, words):
        self.speech(20, words) if words else self.silence(20)
        await turn()
        before, self.sent = self.sent, self.count("media")
        typing = self.server.clock() < self.call.keys_by        # the caller has the floor, until the keys' wait is over
        self.quiet_ms = 0 if words or typing or self.sent > before else self.quiet_ms + 20
        self.look()

    def look(self):
        call = self.call
        if call.slot is None:
            return
        assert not (call.mouth.turn and call.mouth.held), "two replies at once"
        assert call.dialogue.state in STATES
        for fact, value in call.dialogue.facts.items():
            assert value in KEPT.get(fact, (value,))
        if call.dialogue.state == "sure":
            assert call.dialogue.facts["card"]
        told = [receipt for receipt in self.receipts if receipt["kind"] == "answer"]
        assert len({receipt["turn"] for receipt in told}) == len(told), "a turn that counts twice"
        spoken = sum(len(segment.text.split()) for segment, _ in call.mouth.playout.places)
        assert spoken < 60, "something is said twice"
        if not call.done and not self.connection.closed:
            assert self.quiet_ms <= LONGEST_SILENCE, f"nobody speaks in {call.dialogue.state}, {call.turns.state}"


async def interrupted(at_ms, kind):
    talk = Watched()
    now = 0
    for words, ms in SCRIPT:
        for _ in range(ms // 20):
            if now == at_ms:
                HAPPEN[kind](talk)
            await talk.frame_of(words if talk.call.slot is not None else "")
            now += 20
    for _ in range(600):                # the caller says no more: it comes to an end by itself
        if talk.call.slot is None or talk.connection.closed:
            break
        await talk.frame_of("")
    assert talk.call.slot is None or talk.connection.closed, f"it goes on for ever, in {talk.state}"
    talk.call.lost(1000, "")
    await turn()
    assert talk.studio.free == [0] and not talk.server.calls and not talk.studio.tts.asked
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not left
    return talk


def fail_recogniser(talk):
    talk.call.ear.on_failure(talk.call.ear.utterance, "it died")


def fail_model(talk):
    talk.studio.llm.pieces = None


def stall_model(talk):
    talk.studio.llm.free.clear()


def mute_recogniser(talk):
    talk.studio.stt.silent = True


def hang_up(talk):
    talk.call.lost(1006, "")


def press(talk):
    if talk.call.slot is not None:
        talk.receive(b'{"event":"dtmf","dtmf":{"digit":"9"}}')


def press_nothing(talk):
    if talk.call.slot is not None:
        talk.receive(b'{"event":"dtmf","dtmf":{"digit":"5"}}')


def interject(talk):
    talk.speech(500, "no")


def murmur(talk):
    talk.speech(300, "mm hm")


def hold(talk):
    talk.passes(1000)


def late_words(talk):
    ear = talk.call.ear
    ear.on_partial(ear.utterance - 1, "seven of clubs")
    ear.on_final(ear.utterance - 1, "seven of clubs", 1.0)
    ear.on_final(ear.utterance + 1, "seven of clubs", 1.0)


def late_speech(talk):
    talk.call.mouth.on_speech(talk.call.mouth.epoch - 1, 0, 0, 400, True)
    talk.call.mouth.on_speech_failed(talk.call.mouth.epoch + 1, 0, "it died")


HAPPEN = {happen.__name__: happen for happen in (
    fail_recogniser, fail_model, stall_model, mute_recogniser, hang_up, press, press_nothing, interject, murmur, hold,
    late_words, late_speech)}
LENGTH = sum(ms for _, ms in SCRIPT)


@pytest.mark.parametrize("kind", HAPPEN)
def test_a_conversation_that_is_interrupted_at_any_moment(kind):
    for at in range(0, LENGTH, 140):
        try:
            asyncio.run(interrupted(at - at % 20, kind))
        except BaseException as error:
            error.add_note(f"{kind} at {at} ms")
            raise


def test_nothing_happens():
    talk = asyncio.run(interrupted(-1, "hold"))
    assert talk.call.dialogue.facts == {"card": "ten of clubs", "wish": "where is my parcel"}


@example([("", 7, "press_nothing"), ("", 50, "press"), ("", 120, "press"), ("", 60, None)])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(["", "", "ten of clubs", "yes", "no", "mm hm", "what", "nothing", "ten of"]),
                          st.integers(1, 60), st.sampled_from([None, None, None, *HAPPEN])), min_size=1, max_size=12))
def test_any_conversation(script):
    async def talk():
        talk = Watched()
        for words, frames, kind in script:
            if kind and talk.call.slot is not None:
                HAPPEN[kind](talk)
            for _ in range(frames):
                await talk.frame_of(words if talk.call.slot is not None else "")
        talk.call.lost(1000, "")
        await turn()
        assert talk.studio.free == [0] and not talk.server.calls
        assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    asyncio.run(talk())
