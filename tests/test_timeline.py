"""The picture of a call is well-formed SVG, whatever was said and however the call went."""
from xml.etree import ElementTree

import numpy as np
import pytest

from opusagent.client.caller import Measured
from opusagent.client.timeline import WAITS, Strip, draw

RATE = 8000
SVG = "{http://www.w3.org/2000/svg}"


def noise(seconds):
    return np.random.default_rng(3).normal(0, 4000, int(seconds * RATE)).clip(-32768, 32767).astype(np.int16)


def turn(index=0, spoke_to=8000, answered=9600, stopped=None):
    return Measured(index, "words", RATE, spoke_to - 4000, spoke_to, stopped, answered, answered and answered + 8000)


def strip(waits=(("endpointing", 120.0), ("synthesis", 60.0)), **more):
    return Strip(turn(**more), "two nine three four zero", "Thank you.", waits)


def picture(*strips, caller=noise(4), agent=noise(4), title="A call"):
    return ElementTree.fromstring(draw(title, RATE, caller, agent, list(strips)))


def texts(root):
    return [element.text for element in root.iter(SVG + "text")]


def test_each_wait_is_drawn_as_long_as_it_was():
    bars = {bar.find(SVG + "title").text: float(bar.get("width"))
            for bar in picture(strip()).iter(SVG + "rect") if bar.find(SVG + "title") is not None}
    assert bars.keys() == {"endpointing 120.0 ms", "synthesis 60.0 ms", "unexplained 20.0 ms"}
    assert bars["endpointing 120.0 ms"] == pytest.approx(2 * bars["synthesis 60.0 ms"], abs=0.2)


def test_turns_are_numbered_and_the_barge_in_is_named():
    said = texts(picture(strip(), strip(index=1, spoke_to=20000, answered=22000, stopped=17000)))
    assert said.count("1") == said.count("2") == 2                  # in the overview and beside the strip
    assert "barge-in" in said
    assert any("answered after 200 ms" == text for text in said)


@pytest.mark.parametrize("odd", [
    strip(answered=None), strip(waits=()), strip(waits=(("a part of tomorrow", 20.0),)), strip(answered=7000),
    strip(spoke_to=4000, answered=4000), strip(answered=80_000),
], ids=["no answer", "no receipt", "unknown part", "agent too early", "at once", "beyond the tape"])
def test_odd_turns_are_drawn_too(odd):
    assert texts(picture(odd))


def test_words_cannot_break_the_picture():
    nasty = Strip(turn(), '<script>&"\x00\x1b', "]]> \ud7ff " + "long " * 100, ())
    said = texts(picture(nasty, title="<&>"))
    assert any("<script>" in text for text in said if text) and "<&>" in said


@pytest.mark.parametrize("seconds", [0, 0.01, 2, 700])
def test_calls_of_any_length(seconds):
    assert texts(picture(caller=noise(seconds), agent=noise(seconds / 2)))


def test_every_part_has_a_colour_of_its_own():
    assert len(set(WAITS.values())) == len(WAITS)
