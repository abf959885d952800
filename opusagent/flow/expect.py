"""What a state expects the caller to say or press, and what has been said so far comes to.

Pure matching: it chooses no state and says nothing.  An Answer is one row of a state, an Expect all rows that are
open in it.  The rule: one tree of patterns decides what is accepted, how long to wait for the rest, and what the
recogniser listens for, so the three cannot disagree.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, zip_longest

from .numerals import Day
from .phrases import MORE, Digits, Group, bare, pattern, words
from .quantities import Quantity

COMPLETE = "COMPLETE"           # exactly an expected answer, and more words would not make it another one
FREE = "FREE"                   # it may be over: free speech, or an answer that more words could make another one
INCOMPLETE = "INCOMPLETE"       # the beginning of an answer, or words that never end one ("my number is")
NO_MATCH = "NO_MATCH"           # nothing that is expected here
STRENGTH = (NO_MATCH, INCOMPLETE, FREE, COMPLETE)

VALUE = 100                     # characters kept of a free answer
SPELT = 60                      # ways to say an answer that a recogniser can be told of
SAID = 1_000                    # characters looked at of what a recogniser delivers

# Around an answer these do not count.  A grammar allows fewer, and no "um": what may come anywhere is heard anywhere.
SPOKEN_LEAD_INS = tuple(map(words, ("it's", "it is", "that's", "my number is", "the number is")))
SPOKEN_TAILS = "please | thank you"
LEAD_INS = (*SPOKEN_LEAD_INS, *map(words, (
    "that is", "this is", "I'd like", "I would like", "I want", "I'll take", "I will take", "I'll have", "I have",
    "I've got", "I think", "I said", "I mean", "I need", "give me", "let me have", "can I have", "could I have",
    "may I have", "I choose", "number", "okay", "so", "then", "my name is", "my answer is",
    "about", "around", "roughly", "it was", "I'd say", "I would say",
)))
TAILS = tuple(map(words, (
    "thank you", "thanks", "sir", "madam", "that's it", "that is it", "sure", "of course", "I would", "I will", "I can",
    "we can", "you can", "you may",
)))
UNFINISHED = frozenset((
    "and or but the a an of to is are was my your his her our their with for from at in on because so if that this um "
    "uh er erm hmm than as i it's that's i'm i'd i'll like want need have think mean said me number then").split())

# Words that interrupt whatever is expected, for a recogniser that knows no words but those that it is told of.
INTERRUPTIONS = ("stop", "wait", "no", "hold on", "excuse me")

YES = Group(tuple(pattern(form, {}) for form in (
    "yes [it is | i do | i am | i did | that's right | that is right | correct | of course | sure]", "yeah", "yep",
    "sure", "okay", "ok", "right", "correct", "exactly", "certainly", "absolutely", "of course",
    "(that's | that is) (right | correct)", "go ahead")), "yes")
NO = Group(tuple(pattern(form, {}) for form in (
    "no [it isn't | it is not | i don't | i do not | i'm not | i am not | i didn't | that's wrong | thanks | "
    "thank you | not really]", "nope", "wrong", "not (really | right | correct)",
    "(that's | that is) (wrong | not right | not correct)", "of course not")), "no")


@dataclass(frozen=True, slots=True)
class Waits:
    """How long, in ms."""

    complete: int = 140         # silence after which a complete answer is the end of the turn
    free: int = 400             # after free speech, or after something unexpected
    incomplete: int = 1_200     # after the beginning of an answer
    no_input: int = 6_000       # silence after the agent has spoken, before it speaks again
    keys: int = 2_500           # between two keys

    def after(self, judgement: str, pace: float = 1.0) -> int:
        """The silence that ends a turn whose words came to this; `pace`: how long this caller's pauses are, 1 is usual.
        A complete answer is complete at any pace."""
        if judgement == COMPLETE:
            return self.complete
        return max(self.complete, round(pace * (self.incomplete if judgement == INCOMPLETE else self.free)))


@dataclass(frozen=True, slots=True)
class Answer:
    """What one row accepts; several kinds may stand side by side."""

    spoken: tuple[Group | Digits | Quantity, ...] = ()      # ways of saying it
    free: bool = False                          # any words that no other row accepts
    keys: str = ""                              # DTMF; rows with digits accept those as keys too

    def read(self, said: tuple[str, ...]) -> Iterator[tuple[int, str | Day | None]]:
        """(len(said), value) where the words are this answer, (MORE, value) where they are the beginning of one."""
        for option in self.spoken:
            for end, value in option.walk(said, 0):
                if end == MORE or end == len(said):
                    yield end, value

    def press(self, keys: str) -> Iterator[tuple[int, str | None]]:
        """The same of DTMF keys."""
        if self.keys == keys:
            yield len(keys), self.pressed
        elif self.keys.startswith(keys):
            yield MORE, self.pressed
        for option in self.spoken:
            if not isinstance(option, Group):
                yield from option.press(keys)

    @property
    def pressed(self) -> str:
        """The value of the row's key: that of its words, if those have one value only."""
        values = [option.value for option in self.spoken if isinstance(option, Group)]
        return values[0] if len(values) == 1 and values[0] else self.keys

    def values(self) -> Iterator[str] | None:
        """Everything that a fact can be which keeps this answer; None where that has no end."""
        sources = [option.values() for option in self.spoken] + ([(self.pressed,)] if self.keys else [])
        return None if self.free or None in sources else chain.from_iterable(sources)


@dataclass(frozen=True, slots=True)
class Search:
    """What a recogniser is to listen for.  States that expect the same share one."""

    id: int
    kind: str                   # "grammar", or "free": a language model
    jsgf: str                   # the grammar; empty for a language model
    words: frozenset[str]       # of the grammar, which the recogniser's dictionary must have
    murmurs: tuple[str, ...] = ()       # beside the grammar, said while the agent speaks: no interruptions,
    interruptions: tuple[str, ...] = ()     # ... and some that are; a recogniser may know fewer of both


class Expect:
    """All that a state expects.  Rows count in their order: the state's own, then those that are open everywhere."""

    __slots__ = ("id", "kind", "waits", "answers", "lead_ins", "terms")

    def __init__(self, id: int, kind: str, waits: Waits, answers: tuple[Answer, ...], lead_ins: tuple = ()):
        self.id = id                            # of the Search; -1 if nothing that is said would count here
        self.kind = kind                        # "grammar", "free" or "none"
        self.waits = waits
        self.answers = answers
        self.terms = key_terms(answers)         # phrases that are likely to be said
        self.lead_ins = sorted(map(bare, (*LEAD_INS, *lead_ins)), key=len, reverse=True)

    def match(self, text: str, today: str = "") -> tuple[int, str] | None:
        """(row, value) of what was said; None if nothing expects it.  Exact answers go before free ones.

        `today` (2026-03-03) is the date of the call, which "tomorrow" needs.
        """
        said = bare(words(text[:SAID]))
        for reading in self.readings(said):
            for row, answer in enumerate(self.answers):
                for end, value in answer.read(reading):
                    if end != MORE and reading:
                        value = value.on(today) if isinstance(value, Day) else value
                        if value is not None:
                            return row, value
        if said:
            for row, answer in enumerate(self.answers):
                if answer.free:
                    return row, clip(" ".join(text.split()), VALUE)
        return None

    def judge(self, text: str) -> str:
        """What an utterance comes to so far: COMPLETE, FREE, INCOMPLETE or NO_MATCH."""
        raw = words(text[:SAID])
        readings = list(self.readings(bare(raw)))
        best = max((self._judged(reading, Answer.read) for reading in readings if reading),
                   key=STRENGTH.index, default=NO_MATCH)
        if best != NO_MATCH:
            return best
        if not raw or raw[-1] in UNFINISHED:
            return INCOMPLETE
        if any(answer.free for answer in self.answers):
            return FREE
        started = any(reading == lead[:len(reading)] for reading in readings for lead in self.lead_ins)
        return INCOMPLETE if started else NO_MATCH

    def match_keys(self, keys: str) -> tuple[int, str | None] | None:
        """(row, value) of the DTMF keys pressed since the agent's last word; # ends a number early."""
        for row, answer in enumerate(self.answers):
            for end, value in answer.press(keys):
                if end != MORE and keys:
                    return row, value
        return None

    def judge_keys(self, keys: str) -> str:
        """What they come to so far: COMPLETE: act; FREE, INCOMPLETE: wait `waits.keys` for another; NO_MATCH."""
        return self._judged(keys, Answer.press)

    def _judged(self, said, read) -> str:
        """The judgement of one reading.  A beginning of the very same answer ("no", "no thanks") takes nothing away."""
        whole, more = None, []
        for row, answer in enumerate(self.answers):
            for end, value in read(answer, said):
                if end == MORE:
                    more.append((row, value))
                elif whole is None:
                    whole = (row, value)
        if whole and said:
            return COMPLETE if all(meaning == whole for meaning in more) else FREE
        return INCOMPLETE if more else NO_MATCH

    def readings(self, said: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        """The words as they are, and without what people say before (three times at most) and after an answer."""
        for _ in range(4):
            yield said
            for tail in TAILS:
                if said[-len(tail):] == tail:
                    yield said[:-len(tail)]
            lead = next((lead for lead in self.lead_ins if lead and said[:len(lead)] == lead), None)
            if lead is None:
                return
            said = said[len(lead):]


def clip(text: str, limit: int) -> str:
    """The text, or as many whole words of it as fit."""
    if len(text) <= limit:
        return text
    return text[:limit + 1].rpartition(" ")[0] or text[:limit]


def grammar(answers: tuple[Answer, ...], lead_ins: tuple) -> str:
    """The JSGF of everything these rows let a caller say, as pocketsphinx reads it; empty if that is nothing."""
    rules: dict[str, str] = {}
    ways = [option.jsgf(rules) for answer in answers for option in answer.spoken]
    if not ways:
        return ""
    answer = f"( {' | '.join(ways)} ) [ {SPOKEN_TAILS} ]"
    if lead_ins:
        answer = f"[ {' | '.join(map(' '.join, lead_ins))} ] {answer}"
    lines = ["#JSGF V1.0;", "grammar expected;", f"public <an-answer> = {answer};"]
    return "\n".join(lines + [f"<{name}> = {rule};" for name, rule in rules.items()]) + "\n"


def key_terms(answers: tuple[Answer, ...]) -> tuple[str, ...]:
    """Phrases that a caller may say, whole: of each answer one, then another of each, and so on.  Digits are none."""
    groups = [option for answer in answers for option in answer.spoken if isinstance(option, Group)]
    ways = [islice(group.spell(), SPELT) for group in groups]
    phrases = (" ".join(way) for row in zip_longest(*ways) for way in row if way)
    return tuple(dict.fromkeys(phrases))


def spoken_words(jsgf: str) -> frozenset[str]:
    """The words of a grammar of ours."""
    rules = "".join(jsgf.splitlines(True)[2:])
    return frozenset(re.findall(r"[^][()|=;<>\s]+", re.sub(r"(public )?<[^>]+>", "", rules)))
