"""Conversations that nobody has written: callers who say anything, tools of all three kinds, models that call them, and
whatever can go wrong, at any moment.  What a turn does counts as a whole or not at all, and nothing happens twice.

    OPUSAGENT_CONVERSATIONS=5000 python -m pytest tests/test_generated.py

holds so many of them, and interrupts one at each of its frames instead of some.
"""
import asyncio
import os
import random

import pytest
from conversation import Conversation
from talking import turn

from opusagent.calls.transaction import Transaction
from opusagent.flow import FunctionCall
from opusagent.flow.authoring import Flow, State
from opusagent.flow.expect import clip

MANY = int(os.environ.get("OPUSAGENT_CONVERSATIONS", "0"))
COUNT = MANY or 80
SAYS = ("ten of clubs", "seven of clubs", "ten of", "yes", "no", "look it up", "hold it", "where is my parcel", "mm hm",
        "okay", "", "nothing", "something else", "yes but wait")
SURE = "The {card}. Is that right, or would you like to look at the slip once more?"
BOOKING = "One second, I am booking the {card} for you now, which may take a little while."
PIECES = (["It is about parcels, ", "all of them. ", "Some are large."], ["I do not know."], [], None,
          ["Let me see. ", FunctionCall("look", {"card": "ten of clubs"}, "c1")],
          [FunctionCall("hold", {"card": "ten of clubs"}, "c2")],
          ["I book it. ", FunctionCall("book", {"card": "seven of clubs"}, "c3")],
          [FunctionCall("book", {"card": "the ace"}, "c4")], [FunctionCall("go_to_bye", {}, "c5")],
          [FunctionCall("vault", {}, "c6")])


def written(tools) -> Flow:
    """A line with a tool of each effect, called by its states and by its model."""
    flow = Flow(start="ask", failure={"say": ["That did not work."]}, facts={"card": "ten of clubs"},
                waits={"complete": 140, "incomplete": 400, "free": 260, "no_input": 1500},
                silence={"say": ["Are you there?"], "go": "bye"})
    cards, where = ["ten of clubs", "seven of clubs"], {"dtmf": "9", "go": "bye"}
    flow.add(
        State("ask", say="Which card do you have?", on=[{"phrases": cards, "fact": "card", "go": "sure"}, where]),
        State("sure", say=SURE, on=[{"yes": True, "go": "booking"}, {"no": True, "go": "chat"}, where,
                                    {"phrases": ["look it up"], "call": "look", "go": "chat"},
                                    {"phrases": ["hold it"], "call": "hold", "go": "chat"}]),
        State("booking", say=BOOKING, call="book", go="booked", results={"taken": "chat", "failure": "chat"}),
        State("booked", say="Your number is {reference}.",
              on=[{"yes": True, "go": "booking"}, {"no": True, "go": "chat"}, where,
                  {"phrases": ["nothing"], "go": "bye"}]),
        State("chat", say="What else can I do?", prompt="Answer.", tools=["look", "hold", "book"], may_go={"bye": {}},
              on=[{"phrases": ["nothing"], "go": "bye"}, {"phrases": ["hold it"], "call": "hold", "go": "sure"},
                  {"free": True, "go": "chat"}, where]),
        State("bye", say="Thank you, goodbye.", end=True))
    for function, effect, results in tools:
        flow.tool(effect=effect, results=results, timeout=3000)(function)
    return flow


class Watching(Transaction):
    """A transaction that says what it is told, before it does it."""

    __slots__ = ()
    told = None

    def goes_on(self, reply):
        Watching.told("counts", reply)
        super().goes_on(reply)

    def take_back(self):
        Watching.told("taken back")
        super().take_back()

    def retract(self, kept):
        Watching.told("retracted", kept)
        super().retract(kept)

    def keep(self, facts):
        Watching.told("kept", facts)
        super().keep(facts)


class Book:
    """The same conversation kept a second time, from nothing but what counts: state, facts and effects."""

    def __init__(self, talk, dice):
        self.talk, self.dice = talk, dice
        self.state, self.facts = talk.state, dict(talk.call.dialogue.facts)
        self.before = (self.state, dict(self.facts))    # the turn that is spoken
        self.turn = 1                                   # turns that ever counted; the greeting has
        self.revoked = set()                            # ... and were taken back
        self.ran: list[tuple] = []                      # (effect, argument, turn) of what was begun
        self.booked: dict[str, str] = {}                # card -> reference, of what was done
        self.asked: list[tuple] = []                    # (epoch, text) that the voice was asked to speak

    def told(self, what, *more):
        if what == "counts":
            reply, = more
            if not reply.part:
                self.turn += 1
                self.before = (self.state, dict(self.facts))
            self.state = reply.next
            self.facts |= reply.facts
        elif what == "taken back":
            self.revoked.add(self.turn)
            self.state, self.facts = self.before[0], dict(self.before[1])
        elif what == "retracted":
            self.state, self.facts = self.before[0], self.before[1] | more[0]
        else:
            self.facts |= more[0]
            self.before = (self.before[0], self.before[1] | more[0])

    async def run(self, effect, card):
        """What a tool does: it takes a while, and may fail."""
        call = self.talk.call
        if effect != "pure":
            spoken = call.mouth.turn
            assert spoken is not None and spoken.state == "speaking" and not call.transaction.revocable
            assert not call.mouth.held_back and self.turn not in self.revoked
        if effect == "commit":
            assert ("commit", card) not in [row[:2] for row in self.ran], "the same effect twice"
        self.ran.append((effect, card, self.turn))
        for _ in range(self.dice.choice((0, 3, 30, 200, 700))):
            await asyncio.sleep(0)
        if self.dice.random() < 0.15:
            raise RuntimeError("it is broken")
        if effect != "commit":
            return {"result": "found"} if effect == "pure" else {"result": "held"}
        if self.dice.random() < 0.2:
            return {"result": "taken"}
        self.booked[card] = f"47{len(self.booked)}1"
        return {"result": "booked", "reference": self.booked[card]}


class Generated:
    """One conversation, by its seed; `at` and `kind`: what happens at which frame, or nothing."""

    def __init__(self, seed, at=-1, kind=""):
        self.dice = random.Random(seed)
        self.at, self.kind, self.frames = at, kind, 0
        self.asked = []

        async def look(card: str):
            return await self.book.run("pure", card)

        async def hold(card: str):
            return await self.book.run("idempotent", card)

        async def book(card: str):
            return await self.book.run("commit", card)

        flow = written([(look, "pure", {"found": {}}), (hold, "idempotent", {"held": {}}),
                        (book, "commit", {"booked": {"reference": "digits"}, "taken": {}})])
        self.talk = Conversation(flow.compile(), ahead=self.dice.random() < 0.6)
        self.book = Book(self.talk, self.dice)
        Watching.told = self.book.told
        self.talk.call.transaction.__class__ = Watching
        self.model, self.voice = self.talk.studio.llm, self.talk.studio.tts
        speak = self.voice.speak
        self.voice.speak = lambda call, epoch, k, text, voice: (self.book.asked.append((epoch, text)),
                                                                 speak(call, epoch, k, text, voice))

    @property
    def call(self):
        return self.talk.call

    @property
    def over(self):
        return self.call.slot is None or bool(self.talk.connection.closed)

    async def hold(self):
        for _ in range(self.dice.randint(3, 9)):
            words, frames = self.dice.choice(SAYS), self.dice.randint(8, 45)
            quiet = self.dice.choice((6, 14, 20, 60, 90))
            late = self.dice.random() < 0.3                 # the recogniser has no words before the end
            self.model.answers = [list(pieces) if pieces is not None else None
                                  for pieces in self.dice.choices(PIECES, k=3)]
            self.model.pieces = ["That is all I know."]
            for count, said in ((frames, words), (quiet, "")):
                for frame in range(count):
                    self.talk.studio.stt.silent = late and bool(said)
                    await self.frame(said or "", bool(frame < count and count is frames))
        for _ in range(1500):
            if self.over:
                break
            await self.frame("", False)
        assert self.over, f"it goes on for ever, in {self.talk.state}"
        await self.end()

    async def frame(self, words, voice):
        if self.frames == self.at:
            HAPPEN[self.kind](self)
        self.frames += 1
        if self.over:
            return
        if voice:
            self.talk.speech(20, words)
        else:
            self.talk.silence(20)
        while self.voice.asked and self.dice.random() < 0.5:
            self.voice.deliver()
        await turn()
        self.look()

    def look(self):
        """What must hold at any moment."""
        call = self.call
        if call.slot is None:
            return
        assert (call.dialogue.state, call.dialogue.facts) == (self.book.state, self.book.facts)
        assert not (call.mouth.turn and call.mouth.held), "two replies at once"
        assert not call.mouth.held_back or call.mouth.turn is not None
        reference = call.dialogue.facts.get("reference")
        assert reference is None or reference in self.book.booked.values(), "a fact of an effect that there never was"

    async def end(self):
        self.call.lost(1000, "")
        for _ in range(800):                                # a tool that cannot be undone has the rest of its time
            await asyncio.sleep(0)
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert not left and self.talk.studio.free == [0] and not self.talk.server.calls
        self.judge()

    def judge(self):
        """What must have held for all of it."""
        book, call, receipts = self.book, self.call, self.talk.receipts
        for effect, _, number in book.ran:
            assert effect == "pure" or number not in book.revoked, "an effect of a turn that does not count"
        counted = [receipt for receipt in receipts if receipt["kind"] and receipt["stopped_by"] != "going on"]
        history = [(each.caller, each.agent) for each in call.dialogue.history]
        for (caller, agent), row in zip(history, counted[-len(history):], strict=True):
            assert caller == clip(row["caller"], 100)
            assert agent == clip(row["agent"], 100) or any(text[:10] in agent for text in self.fillers)
        assert len(counted) == book.turn - len(book.revoked)
        assert [receipt["turn"] for receipt in receipts] == list(range(1, len(receipts) + 1))
        asked = [each for each in book.asked if each[1] not in self.fillers]
        assert len(asked) == len(set(asked)), "the voice was asked for a text twice"
        for receipt in receipts:
            sentences = [said for said in receipt["agent"].replace("?", ".").split(". ") if said]
            assert len(sentences) == len(set(sentences)), f"said twice: {receipt['agent']}"
            assert all(ms >= 0 for ms in receipt["waits"].values())
            if receipt["voice_to_voice_ms"] is not None:
                assert receipt["voice_to_voice_ms"] == pytest.approx(sum(receipt["waits"].values()), abs=0.002)

    @property
    def fillers(self):
        return self.call.flow.filler.fill({})


# ---- what may happen ----

def hang_up(generated):
    generated.call.lost(1006, "")


def press(generated):
    if generated.call.slot is not None:
        generated.talk.receive(b'{"event":"dtmf","dtmf":{"digit":"%d"}}' % generated.dice.choice((5, 9)))


def fail_recogniser(generated):
    generated.call.ear.on_failure(generated.call.ear.utterance, "it died")


def fail_voice(generated):
    if generated.voice.asked:
        call, epoch, k, _ = generated.voice.asked.pop(0)
        call.on_speech_failed(epoch, k, "it died")


def fail_model(generated):
    generated.model.answers, generated.model.pieces = [None] * 3, None


def interject(generated):
    generated.talk.speech(500, "no")


def murmur(generated):
    stt = generated.talk.studio.stt
    stt.silent = True
    generated.talk.speech(560, "mm hm")
    stt.silent = False


def click(generated):
    generated.talk.speech(60, "")


def pass_time(generated):
    generated.talk.passes(generated.dice.choice((40, 400, 2500)))


def part(generated):
    generated.call.part()


HAPPEN = {happen.__name__: happen for happen in (
    hang_up, press, fail_recogniser, fail_voice, fail_model, interject, murmur, click, pass_time, part)}


def held(seed, at=-1, kind=""):
    generated = Generated(seed, at, kind)
    try:
        asyncio.run(generated.hold())
    except BaseException as error:
        error.add_note(f"seed {seed}, {kind or 'nothing'} at frame {at}")
        raise
    return generated


@pytest.mark.parametrize("batch", range(10))
def test_any_conversation_with_anything_at_any_moment(batch):
    for seed in range(batch, COUNT, 10):
        dice = random.Random(-1 - seed)
        kind = dice.choice(("", *HAPPEN))
        held(seed, dice.randrange(400) if kind else -1, kind)


@pytest.mark.parametrize("kind", HAPPEN)
def test_one_conversation_at_each_of_its_moments(kind):
    frames = held(7).frames
    for at in range(0, frames, 1 if MANY else max(1, frames // 5)):
        held(7, at, kind)


def test_a_short_conversation_that_is_interrupted_at_each_of_its_frames():
    """It has a card in it, a no, and answers that are none."""
    for at in range(held(44).frames):
        held(44, at, "interject")


def test_they_are_conversations():
    """The generator gets everywhere, and everything happens."""
    states, effects, kinds, stops = set(), set(), set(), 0
    for seed in range(200, 240):
        generated = held(seed)
        states |= {receipt["state"] for receipt in generated.talk.receipts}
        kinds |= {receipt["stopped_by"] for receipt in generated.talk.receipts}
        effects |= {effect for effect, *_ in generated.book.ran}
        stops += sum(receipt["false_stops"] for receipt in generated.talk.receipts)
    assert states >= {"ask", "sure", "booked", "chat", "bye"} and effects == {"pure", "idempotent", "commit"}
    assert kinds >= {"", "barge-in", "going on"} and stops
