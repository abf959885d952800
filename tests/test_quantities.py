"""Dates, times, amounts and numbers: what may be said, what is kept, what is said back, what a recogniser hears."""
import datetime
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opusagent.flow import COMPLETE, FREE, INCOMPLETE, NO_MATCH, Dialogue, Flow
from opusagent.flow.expect import Answer, Expect, Waits, grammar, spoken_words
from opusagent.flow.numerals import Day, cardinal, civil, day_number, exists, number_of, readable
from opusagent.flow.quantities import amount, date, number, time

TODAY = "2026-11-22"            # a Sunday


def expect(quantity):
    return Expect(0, "grammar", Waits(), (Answer((quantity,)),))


FUTURE, PAST, ANY = (expect(date(when)) for when in ("future", "past", "any"))
EUROS, POUNDS = expect(amount("EUR")), expect(amount("GBP", 5, 50))
COUNT, FEW = expect(number(0, 9999)), expect(number(1, 12))
CLOCK, OFFICE = expect(time()), expect(time("08:00", "18:00"))


@pytest.mark.parametrize("what, said, value", [
    (FUTURE, "the third of march", "2027-03-03"), (FUTURE, "tomorrow", "2026-11-23"), (FUTURE, "today please", TODAY),
    (FUTURE, "um, next friday", "2026-11-27"), (FUTURE, "friday", "2026-11-27"), (FUTURE, "this sunday", "2026-11-29"),
    (FUTURE, "March 3rd", "2027-03-03"), (FUTURE, "3 March", "2027-03-03"), (FUTURE, "in two weeks", "2026-12-06"),
    (FUTURE, "in a week", "2026-11-29"), (FUTURE, "the day after tomorrow", "2026-11-24"),
    (FUTURE, "on the 31st", "2026-12-31"),
    (FUTURE, "Friday the 4th of December", "2026-12-04"), (FUTURE, "the 29th of february", "2028-02-29"),
    (FUTURE, "the thirtieth of february", None), (FUTURE, "yesterday", None), (FUTURE, "bananas", None),
    (PAST, "march third nineteen eighty", "1980-03-03"), (PAST, "3 March 1980", "1980-03-03"),
    (PAST, "yesterday", "2026-11-21"),
    (PAST, "the first of may two thousand and six", "2006-05-01"), (PAST, "last friday", "2026-11-20"),
    (PAST, "the third of december", "2025-12-03"), (PAST, "the third of december twenty forty", None),
    (ANY, "the third of december twenty forty", "2040-12-03"),
    (EUROS, "twenty three euros fifty", "23.50 EUR"), (EUROS, "€23.50", "23.50 EUR"), (EUROS, "23.50", "23.50 EUR"),
    (EUROS, "€1,500.00", "1500.00 EUR"), (EUROS, "150,50 €", "150.50 EUR"), (EUROS, "fifty cents", "0.50 EUR"),
    (EUROS, "a hundred and five euros and ten cents", "105.10 EUR"), (EUROS, "fifteen hundred", "1500.00 EUR"),
    (EUROS, "twenty dollars", None), (POUNDS, "£7", "7.00 GBP"), (POUNDS, "four pounds", None), (POUNDS, "sixty", None),
    (COUNT, "one hundred and five", "105"), (COUNT, "150", "150"), (COUNT, "two thousand", "2000"),
    (COUNT, "twenty-one", "21"),
    (FEW, "twelve", "12"), (FEW, "thirteen", None), (FEW, "too", "2"), (FEW, "zero", None),
    (CLOCK, "three", "15:00"), (CLOCK, "half past three", "15:30"), (CLOCK, "quarter to four", "15:45"),
    (CLOCK, "3 p.m.", "15:00"), (CLOCK, "3:30pm", "15:30"), (CLOCK, "7 a.m.", "07:00"), (CLOCK, "noon", "12:00"),
    (CLOCK, "nine o'clock in the morning", "09:00"), (CLOCK, "fifteen thirty", "15:30"),
    (CLOCK, "eight oh five", "08:05"),
    (CLOCK, "ten past nine", "09:10"), (CLOCK, "three a m", None), (OFFICE, "seven", None), (OFFICE, "six", "18:00"),
])
def test_what_is_said_and_what_is_kept(what, said, value):
    assert what.match(said, TODAY) == (None if value is None else (0, value))


@pytest.mark.parametrize("what, said, judgement", [
    (FUTURE, "the day after", INCOMPLETE), (FUTURE, "the day after tomorrow", COMPLETE), (FUTURE, "friday", COMPLETE),
    (FUTURE, "the third", FREE), (FUTURE, "the third of", INCOMPLETE), (FUTURE, "the third of march", COMPLETE),
    (FUTURE, "the twenty", INCOMPLETE), (FUTURE, "in two", INCOMPLETE), (FUTURE, "some day", NO_MATCH),
    (PAST, "the third of march", FREE), (PAST, "the third of march nineteen", INCOMPLETE),
    (PAST, "the third of march nineteen eighty one", COMPLETE),
    (EUROS, "twenty", FREE), (EUROS, "twenty euros and", INCOMPLETE),
    (EUROS, "twenty three euros fifty five", COMPLETE),
    (FEW, "twelve", COMPLETE), (COUNT, "one hundred and", INCOMPLETE), (COUNT, "one hundred and five", COMPLETE),
    (CLOCK, "half past", INCOMPLETE), (CLOCK, "three", FREE), (CLOCK, "three p m", COMPLETE), (CLOCK, "noon", COMPLETE),
])
def test_how_long_to_wait(what, said, judgement):
    assert what.judge(said) == judgement


@pytest.mark.parametrize("value, kind, said", [
    ("2026-12-03", "", "Thursday the third of December"), ("1980-03-03", "", "the third of March nineteen eighty"),
    ("2006-01-31", "", "the thirty first of January two thousand six"), ("15:30", "", "three thirty in the afternoon"),
    ("09:05", "", "nine oh five in the morning"), ("12:00", "", "noon"),
    ("23.50 EUR", "", "twenty three euros and fifty cents"),
    ("1.00 GBP", "", "one pound"), ("0.01 GBP", "", "one penny"), ("12", "number", "twelve"), ("12", "", None),
    ("2026-02-30", "", None), ("25:00", "", None), ("Main Street", "", None)])
def test_what_is_said_back(value, kind, said):
    assert readable(value, kind, TODAY) == said


@given(st.dates(datetime.date(1600, 1, 1), datetime.date(2600, 12, 31)))
def test_days_are_those_of_the_calendar(day):
    number = day_number(day.year, day.month, day.day)
    assert number == day.toordinal() - datetime.date(1970, 1, 1).toordinal()
    assert civil(number) == (day.year, day.month, day.day) and exists(day.year, day.month, day.day)
    assert (number + 3) % 7 == day.weekday()


@given(st.dates(datetime.date(2020, 1, 1), datetime.date(2040, 12, 31)), st.integers(1, 31), st.integers(0, 12))
def test_a_day_without_a_year_is_the_nearest_one(today, day, month):
    for when, sign in (("future", 1), ("past", -1)):
        found = Day(day=day, month=month, when=when).on(today.isoformat())
        if found is None:
            assert month and not exists(2000, month, day)
            continue
        near = datetime.date.fromisoformat(found)
        assert near.day == day and near.month in (month or near.month, near.month) and (near - today).days * sign >= 0


@given(st.integers(0, 999_999))
def test_a_number_is_understood_as_it_is_said(number):
    assert number_of(tuple(cardinal(number).split())) == number


@pytest.mark.parametrize("what", [FUTURE, PAST, ANY, EUROS, POUNDS, COUNT, FEW, CLOCK], ids=str)
def test_whatever_can_be_said_is_accepted_and_its_beginning_is_waited_for(what):
    option = what.answers[0].spoken[0]
    every = list(itertools.islice(option.spell(), 4000))
    for said in random.Random(1).sample(every, min(150, len(every))):
        assert what.judge(" ".join(said)) in (COMPLETE, FREE)
        for length in range(1, len(said)):
            assert what.judge(" ".join(said[:length])) != NO_MATCH, said[:length]


def test_the_recogniser_knows_every_word():
    pocketsphinx = pytest.importorskip("pocketsphinx", reason="the extra `local` is not installed")
    decoder = pocketsphinx.Decoder(lm=None, fwdflat=False, loglevel="FATAL")
    for place, what in enumerate((FUTURE, PAST, ANY, EUROS, POUNDS, COUNT, FEW, CLOCK)):
        jsgf = grammar(what.answers, ())
        assert [word for word in spoken_words(jsgf) if not decoder.lookup_word(word)] == []
        decoder.add_jsgf_string(str(place), jsgf)


FLOW = """
start = "many"
[states.many]
say = "Today is {today}. How many?"
on = [{ number = { min = 1, max = 12 }, fact = "people", go = "sum" }]
[states.sum]
say = "{people} people. How much?"
eager = true
on = [{ amount = "EUR", fact = "sum", go = "bye" }]
[states.bye]
say = "{sum}."
end = true
"""


def test_values_in_a_flow():
    dialogue = Dialogue(Flow.parse(FLOW, "x.toml"), today=TODAY)
    reply = dialogue.begin()
    assert reply.say[0] == "Today is Sunday the twenty second of November."
    dialogue.commit(reply)
    assert dialogue.dtmf("12").say == dialogue.answer("twelve").say == ("twelve people.", "How much?")
    assert dialogue.expect.judge_keys("1") == FREE and dialogue.expect.judge_keys("12") == COMPLETE
    dialogue.commit(dialogue.answer("twelve"))
    assert dialogue.expect.waits.after(COMPLETE) == 0           # eager
    assert dialogue.answer("nine fifty").say == ("nine euros and fifty cents.",)
    assert "today" not in dialogue.facts
