"""Figures as text: nothing is lost between the values and what a reader sees."""
import io

import pytest

from opusagent.client.commands import print_end, print_turn
from opusagent.client.latency import Figures, print_figures
from opusagent.client.terminal import Terminal, histogram, percentile, summary, summary_line, waited


class Screen(io.StringIO):
    encoding = "utf-8"

    def __init__(self, tty=True):
        super().__init__()
        self.isatty = lambda: tty


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def counts(lines):
    return sum(int(line[20:28]) for line in lines)


@pytest.mark.parametrize("values", [
    [0], [0, 0.5], [5], [1e-3, 1e-3], [0.04, 15.2, 0.3, 0.31], [180, 200, 333, 250], [-5, -1], [-5, 0, 12],
    [1, 2, 10, 100], [0.999999, 1.0, 1e6],
])
def test_every_value_is_in_one_bucket(values):
    assert counts(histogram(Terminal(Screen()), values)) == len(values)


def test_nothing_has_no_histogram():
    assert histogram(Terminal(Screen()), []) == []
    assert summary([]) == {"count": 0}
    assert summary_line([]) == "nothing to measure"


def test_percentiles_are_values_that_occurred():
    ordered = list(range(1, 101))
    assert [percentile(ordered, p) for p in (0, 1, 50, 95, 99, 99.9, 100)] == [1, 1, 50, 95, 99, 100, 100]
    assert summary([3, 1, 2]) == {"count": 3, "avg": 2, "min": 1, "max": 3, "p50": 2, "p95": 3, "p99": 3, "p99.9": 3}


def test_a_turn_that_was_cut_off_is_no_fast_answer():
    assert waited([150, -400, 0, 250]) == ([150, 0, 250], 1)
    figures, screen = Figures(), Screen(tty=False)
    figures.gaps = [150, -400, 250, -20]
    told = figures.as_json()
    assert told["cut_off"] == 2 and told["voice_to_voice_ms"]["min"] == 150 and told["voice_to_voice_ms"]["avg"] == 200
    print_figures(Terminal(screen), "ws://h/echo", figures)
    assert "Voice-to-voice: 2 turns" in screen.getvalue() and "figures: 2.\n" in screen.getvalue()


def test_the_call_s_own_turns_are_told_so_as_well():
    screen = Screen(tty=False)
    print_turn(Terminal(screen), {"turn": 1, "name": "a.wav", "voice_to_voice_ms": -400.0, "barge_in_reaction_ms": None,
                                  "receipt": None, "unexplained_ms": None})
    print_end(Terminal(screen), "", *waited([-400.0]), [])
    assert screen.getvalue().startswith("turn 1  a.wav  cut off 400 ms before its end\nvoice-to-voice: nothing to ")
    assert screen.getvalue().endswith("figures: 1.\n")


def test_colours_are_for_people_who_look_on(monkeypatch):
    assert Terminal(Screen()).paint("red", "no") == "\x1b[31mno\x1b[0m"
    assert Terminal(Screen(tty=False)).paint("red", "no") == "no"
    monkeypatch.setenv("NO_COLOR", "")
    assert Terminal(Screen()).paint("red", "no") == "no"


def test_a_bar_is_as_long_as_its_share_and_never_nothing_for_something():
    screen, plain = Terminal(Screen()), Terminal(io.StringIO())
    assert len(screen.bar(1, 40)) == 40 and len(screen.bar(0.5, 40)) == 20
    assert screen.bar(0) == "" and len(screen.bar(1e-9)) == 1
    assert plain.bar(0.5, 10) == "#####" and plain.bar(1e-9) == "#"
