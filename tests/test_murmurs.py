"""What the embedded recogniser tells of an utterance over the agent: its answers, its murmurs, and when."""
from types import SimpleNamespace

import pytest
from opusagent.engines.embedded import recogniser as embedded, murmurs
from opusagent.engines.embedded.murmurs import HOLD, LONGEST, TOO_LONG, UNCLEAR, Overheard
from opusagent.flow import Flow
from test_embedded import recognises

FLOW = """
backchannels = ["mm-hm", "all right", "qqzz", "yes qqzz"]
start = "a"
[states.a]
say = "Yes?"
on = [{ digits = 4, go = "a" }]
"""
KNOWN = {"all": ["AO L"], "right": ["R AY T"], "fine": ["F AY N", "F IH N AH"], "hold": ["HH OW L D"]}


def told(*looks, asked=0):
    """What is told at each look: (frame, hypothesis) or (frame, hypothesis, whether it fits)."""
    overheard = Overheard(("mm hm", "all right", "five"))
    if asked is not None:
        overheard.ask(asked)
    return [overheard.told(text, (*fits, True)[0], frame) for frame, text, *fits in looks]


def test_an_answer_is_told_when_it_has_stood_for_a_moment():
    assert told((0, "five two"), (HOLD - 1, "five"), (HOLD, "four")) == ["", "", "four"]
    assert told((0, "five"), (2, "~mm_hm", False), (HOLD, "five"), (2 * HOLD - 1, "five")) == [""] * 4
    assert told((0, "~hold_on"), (HOLD, "~hold_on")) == ["", "hold on"]     # no murmur, and no answer of that grammar


def test_a_murmur_is_told_where_it_fits_and_takes_itself_back():
    assert told((0, "~all_right"), (4, "~mm_hm", False), (6, "~mm_hm ~mm_hm")) == ["all right", "", "mm hm mm hm"]
    assert told((LONGEST - 1, "~mm_hm"), (LONGEST, "~mm_hm"), (TOO_LONG - 1, "")) == ["mm hm", "", ""]
    assert told((TOO_LONG, "~mm_hm"), (TOO_LONG + 2, ""), (TOO_LONG + 4, "two")) == [UNCLEAR, UNCLEAR, ""]


def test_an_answer_of_the_same_word_is_none():
    assert told((0, "~five"), (HOLD, "five"), (2 * HOLD, "five")) == ["five", "", "five"]


def test_nothing_is_told_before_somebody_asks_and_the_first_time_counts():
    assert told((0, "five"), (40, "~mm_hm"), asked=None) == ["", ""]
    overheard = Overheard(("mm hm",))
    overheard.ask(10)
    overheard.ask(50)
    assert overheard.asked == 10


def test_each_phrase_is_one_entry_in_all_its_ways():
    assert murmurs.lines(("all right", "fine", "mm hm", "hold on"), KNOWN) == [
        "~all_right AO L R AY T\n", "~fine F AY N\n", "~fine(2) F IH N AH\n",
        "~mm_hm M HH M\n", "~mm_hm(2) AH M HH AH M\n", "~mm_hm(3) M HH AH M\n"]         # nobody knows "on"
    assert murmurs.phrases("~all_right four ~mm_hm") == "all right four mm hm"


def test_the_answers_stand_beside_what_is_known():
    search = SimpleNamespace(jsgf="#JSGF V1.0;\ngrammar g;\npublic <an-answer> = one;\n", murmurs=("mm hm", "qqzz"),
                             interruptions=("stop", "wait"))
    assert murmurs.grammar(search, {"~mm_hm", "~stop", "one"}).splitlines()[2:] == [
        "public <all-heard> = /1e-9/ <an-answer> | /1/ <no-answer>;", "<no-answer> = ~stop | <murmurs>;",
        "<murmurs> = /1/ <a-murmur> | /1e-4/ <a-murmur> <a-murmur>;", "<a-murmur> = ~mm_hm;", "<an-answer> = one;"]
    assert murmurs.grammar(search, {"one"}) == search.jsgf


@recognises
@pytest.mark.parametrize("flow", [FLOW, FLOW.replace('"mm-hm", "all right", ', "")])
def test_the_recogniser_takes_the_grammar_of_a_flow(flow):
    flow = Flow.parse(flow, "murmurs.toml")
    state = flow.states["a"]
    assert "qqzz" in flow.searches[state.overhear].murmurs
    recogniser = embedded.Recogniser(flow.searches)
    assert "qqzz" not in recogniser.jsgf[state.overhear] and "~" not in recogniser.jsgf[state.expect.id]
    recogniser.start(state.overhear, 8000).abandon()
