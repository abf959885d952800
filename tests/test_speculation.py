"""A reply is begun in the caller's pause and held: the end of the turn gives it, more speech throws it away."""
import asyncio

import pytest
import talking
from talking import scenario, turn

from opusagent.calls import mouth

FLOW = """
start = "ask"
[waits]
complete = 300
incomplete = 800
free = 400
[states.ask]
say = "What is it about?"
on = [{ phrases = ["ten of clubs"], fact = "card", go = "card" }, { free = true, go = "model" },
      { dtmf = "9", go = "bye" }]
[states.card]
say = "The {card} it is."
on = [{ yes = true, go = "bye" }]
[states.model]
prompt = "Answer."
on = [{ free = true, go = "model" }, { phrases = ["goodbye"], go = "bye" }]
[states.bye]
say = "Goodbye."
end = true
"""


class Line(talking.Line):
    """It says what it will be recognised as, and its model has an answer."""

    def __init__(self, ahead=True):
        super().__init__(FLOW, ahead=ahead)
        self.model.pieces = ["It is ", "about parcels. ", "Is that all?"]

    async def speech(self, ms, words):
        self.talk.studio.stt.words = words
        await super().speech(ms, words)

    async def greeted(self):
        while self.talk.studio.tts.asked:
            self.talk.studio.tts.deliver()
        await self.listens()

    def speculations(self, outcome):
        return self.count("speculations", outcome=outcome)


@scenario
async def test_the_model_is_asked_at_the_pause_and_its_answer_given_at_the_end_of_the_turn():
    line = Line()
    await line.greeted()
    await line.speech(600, "where is my parcel")
    await line.silence(240)
    assert len(line.model.asked) == 1 and line.talk.state == "ask" and line.talk.call.mouth.turn is None
    sent = line.talk.count("media")
    await line.silence(100)
    assert line.talk.count("media") == sent         # nothing of it can be heard
    await line.silence(400)
    assert line.talk.state == "model" and len(line.model.asked) == 1
    await line.silence(40)
    assert [text for *_, text in line.talk.studio.tts.asked] == [] or line.talk.count("media") > sent
    assert line.speculations("kept") == 1


@scenario
async def test_the_receipt_says_what_was_saved():
    line = Line(ahead=False)
    await line.greeted()
    await line.speech(600, "ten of clubs")
    await line.silence(160)
    assert line.talk.state == "ask" and [text for *_, text in line.talk.studio.tts.asked] == ["The ten of clubs it is."]
    await line.silence(20)
    line.talk.studio.tts.deliver()                  # the voice is done before the turn is over
    await line.silence(200)
    assert line.talk.state == "card" and line.talk.call.mouth.audible
    while line.talk.call.mouth.turn is not None:
        await line.silence(20)
    receipt = line.talk.receipts[-1]
    assert receipt["saved_ms"] >= 20 and receipt["waits"]["synthesis"] == 0


@scenario
async def test_more_speech_throws_it_away_and_nothing_of_it_has_an_effect():
    line = Line(ahead=False)
    await line.greeted()
    await line.speech(400, "ten of clubs")
    await line.silence(160)
    before = line.talk.call.dialogue.checkpoint()
    held = line.talk.call.mouth.held
    await line.speech(300, "ten of clubs no wait where is my parcel")
    assert held.state == "cancelled" and line.talk.call.mouth.held is None
    assert line.talk.call.dialogue.checkpoint() == before and line.speculations("thrown") == 1
    await line.silence(600)
    assert line.talk.state == "model" and "card" not in line.talk.call.dialogue.facts


@scenario
async def test_other_words_with_the_same_meaning_keep_the_work():
    line = Line(ahead=False)
    await line.greeted()
    await line.speech(400, "ten of clubs")
    await line.silence(160)
    held = line.talk.call.mouth.held
    line.talk.studio.stt.words = "um the ten of clubs please"
    await line.silence(200)
    assert line.talk.call.mouth.turn is held and held.reply.caller == "um the ten of clubs please"


@scenario
async def test_another_final_text_throws_it_away():
    line = Line()
    await line.greeted()
    await line.speech(400, "where is my parcel")
    await line.silence(240)
    line.model.free.clear()
    held = line.talk.call.mouth.held
    line.talk.studio.stt.words = "where is my other parcel"
    await line.silence(300)
    assert held.state == "cancelled" and len(line.model.asked) == 2
    assert line.talk.call.mouth.turn.reply.caller == "where is my other parcel"


@scenario
async def test_what_is_rendered_already_is_not_begun():
    line = Line()
    await line.greeted()
    await line.speech(400, "ten of clubs")
    await line.silence(160)
    assert line.talk.call.mouth.held is None and line.talk.call.mouth.epoch == 1


@scenario
async def test_a_call_throws_away_only_so_much():
    line = Line()
    line.talk.call.mouth.most_thrown = 2
    await line.greeted()
    for _ in range(5):
        await line.speech(200, "where is my")
        await line.silence(180)
    assert line.speculations("thrown") == 2 and len(line.model.asked) == 2


@scenario
async def test_a_model_that_fails_while_it_is_held_is_asked_again():
    line = Line()
    await line.greeted()
    line.model.pieces = None                        # it breaks
    await line.speech(400, "where is my parcel")
    await line.silence(240)
    line.model.pieces = ["There."]
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mouth.log, "warning", lambda form, *words: told.append(form % words))
        await line.silence(300)
    assert len(line.model.asked) == 2 and line.talk.agent_says[-1] == "There."
    assert len(told) == 1 and told[0].endswith("it is asked again.")


@pytest.mark.parametrize("why", ["hang-up", "keys"])
def test_nothing_is_left_of_a_held_reply(why):
    async def told():
        line = Line()
        line.model.free.clear()
        await line.greeted()
        await line.speech(400, "where is my parcel")
        await line.silence(240)
        held = line.talk.call.mouth.held
        assert held is not None
        if why == "hang-up":
            line.talk.call.lost(1006, "")
        else:
            line.talk.receive(b'{"event":"dtmf","dtmf":{"digit":"9"}}')
            await line.silence(3000)
        await turn()
        assert held.state == "cancelled" and line.model.dropped >= 1 and line.talk.state != "model"
        line.talk.call.lost(1006, "")
        assert line.talk.studio.free == [0]
        await turn()

    asyncio.run(told())
