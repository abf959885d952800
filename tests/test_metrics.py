"""Receipts that add up, histograms that Prometheus can read, and the line that a person reads."""
import re

import pytest
from hypothesis import given, settings, strategies as st

from opusagent import __version__
from opusagent.metrics import (BEGIN, COARSE, FINE, INDEX, WAITS, Metrics, TurnTrace, receipt_line, summary,
                               total)

MS = 1_000_000


def trace(turn=1, **marks_ms):
    """A trace with marks at so many ms."""
    written = TurnTrace(turn)
    for name, ms in marks_ms.items():
        written.mark(name, round(ms * MS))
    return written


def spent(written):
    """The waits of a trace that are not 0."""
    return {name: ms for name, ms in written.waits().items() if ms}


# -- the receipt -----------------------------------------------------------------------------------------------------

def test_each_wait_runs_from_the_mark_before_it_to_its_own():
    receipt = trace(3, speech_end=1000, transport=1002, endpointing=1162, recognition=1190.5, decision=1190.6,
                    llm_first_token=1400, segment=1420, synthesis=1440, playout=1445).receipt()
    assert receipt["waits"] == {"transport": 2.0, "endpointing": 160.0, "recognition": 28.5, "decision": 0.1,
                                "llm_first_token": 209.4, "segment": 20.0, "synthesis": 20.0, "playout": 5.0}
    assert receipt["voice_to_voice_ms"] == 445.0 and receipt["turn"] == 3


def test_a_wait_that_did_not_happen_is_nothing():
    written = trace(speech_end=0, endpointing=160, decision=170, playout=180)
    assert spent(written) == {"endpointing": 160.0, "decision": 10.0, "playout": 10.0}
    assert tuple(written.waits()) == WAITS


def test_work_done_ahead_of_the_endpoint_costs_nothing():
    written = trace(speech_end=0, recognition=60, decision=61, synthesis=90, endpointing=160, playout=162)
    assert spent(written) == {"endpointing": 160.0, "playout": 2.0}


def test_what_comes_after_the_first_audio_is_not_waited_for():
    written = trace(speech_end=0, endpointing=160, playout=1400, llm_first_token=1900, segment=1950)
    assert spent(written) == {"endpointing": 160.0, "llm_first_token": 1240.0}
    assert written.receipt()["voice_to_voice_ms"] == 1400.0


def test_the_first_time_counts():
    written = trace(speech_end=0, synthesis=100)
    written.mark("synthesis", 300 * MS)
    assert written.marked("synthesis") == 100 * MS and written.marked("playout") is None


def test_a_turn_that_was_never_heard_has_no_voice_to_voice():
    receipt = trace(speech_end=5, endpointing=165).receipt()
    assert receipt["voice_to_voice_ms"] is None and receipt["waits"]["endpointing"] == 160.0


def test_a_turn_without_any_mark_or_without_its_beginning():
    assert spent(TurnTrace(1)) == {} and TurnTrace(1).receipt()["voice_to_voice_ms"] is None
    assert spent(trace(decision=100, playout=120)) == {"playout": 20.0}


def test_an_agent_that_spoke_before_the_caller_had_ended_waited_for_nothing():
    assert trace(speech_end=100, playout=90).receipt()["voice_to_voice_ms"] == 0.0


def test_a_mark_that_nobody_knows_is_a_fault_of_ours():
    with pytest.raises(KeyError):
        TurnTrace(1).mark("thinking", 0)


def test_a_receipt_says_who_and_what():
    written = trace(speech_end=0, playout=1)
    written.state, written.kind, written.caller, written.agent = "card", "grammar", "ace of spades", "Is that right?"
    written.confidence, written.stopped_by, written.end_ms = 0.9, "barge-in", 4210.0
    receipt = written.receipt()
    said = {"state": "card", "kind": "grammar", "caller": "ace of spades", "agent": "Is that right?",
            "confidence": 0.9, "stopped_by": "barge-in", "end_ms": 4210.0, "measured": True}
    assert said.items() <= receipt.items()


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(list(INDEX)), st.integers(0, 10**13)), st.integers(0, 2**62))
def test_the_waits_always_add_up_to_voice_to_voice(marks, clock):
    written = TurnTrace(1)
    for name, at in marks.items():
        written.mark(name, clock + at)
    waits = written.waits()
    assert min(waits.values()) >= 0
    if BEGIN in marks and "playout" in marks:
        gap = max(0, marks["playout"] - marks[BEGIN])
        assert written.receipt()["voice_to_voice_ms"] == total(waits) == round((gap + 500) // 1000 / 1000, 3)


# -- a worker's figures ----------------------------------------------------------------------------------------------

def values(text):
    """Every sample of an exposition, name and labels to value; fails where a line is not of the format."""
    samples = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            found = re.fullmatch(r'(opusagent_[a-z0-9_]+(?:\{(?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)+\})?) '
                                 r"([0-9.e+-]+|\+Inf)", line)
            assert found, line
            assert found[1] not in samples, line
            samples[found[1]] = float(found[2])
    return samples


def test_counters_and_gauges_are_written_with_their_meaning():
    metrics = Metrics()
    metrics.count("calls")
    metrics.count("calls", 2)
    metrics.count("protocol_errors", code=1002)
    metrics.count("protocol_errors", code=400)
    metrics.gauge("active_calls", 7)
    metrics.gauge("active_calls", 6)
    text = metrics.text()
    assert ("# HELP opusagent_calls_total Calls begun.\n# TYPE opusagent_calls_total counter\n"
            "opusagent_calls_total 3\n") in text
    assert 'opusagent_protocol_errors_total{code="1002"} 1\nopusagent_protocol_errors_total{code="400"} 1\n' in text
    assert "# TYPE opusagent_active_calls gauge\nopusagent_active_calls 6\n" in text
    assert f'opusagent_info{{version="{__version__}"}} 1\n' in text
    assert text.endswith("\n")


def test_a_name_without_a_meaning_is_still_printed():
    metrics = Metrics()
    metrics.gauge("llm_requests", 3)
    assert "# HELP opusagent_llm_requests Llm requests.\n" in metrics.text()


def test_labels_are_escaped():
    metrics = Metrics()
    metrics.count("odd", why='a "quoted"\\ word\nand a line')
    assert 'opusagent_odd_total{why="a \\"quoted\\"\\\\ word\\nand a line"} 1\n' in metrics.text()
    values(metrics.text())


def test_each_family_is_declared_once_and_before_its_samples():
    metrics = Metrics()
    metrics.count("calls")
    lines = metrics.text().splitlines()
    declared = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(declared) == len(set(declared))
    family = ""
    for line in lines:
        if line.startswith("# TYPE"):
            family = line.split()[2]
        elif not line.startswith("#"):
            assert re.match(rf"{family}(_bucket|_sum|_count)?[ {{]", line), line


def test_histograms_are_cumulative_and_in_seconds():
    metrics = Metrics()
    for ns in (8_000, 8_000, 30_000, 4 * MS, 400 * MS):
        metrics.frame(ns)
    samples = values(metrics.text())
    buckets = [samples[f'opusagent_frame_seconds_bucket{{le="{bound / 1e9:g}"}}'] for bound in FINE]
    assert buckets == sorted(buckets) and buckets[0] == 2 and buckets[-1] == 4
    assert samples['opusagent_frame_seconds_bucket{le="5e-05"}'] == 3
    assert samples['opusagent_frame_seconds_bucket{le="0.005"}'] == 4
    assert samples['opusagent_frame_seconds_bucket{le="+Inf"}'] == samples["opusagent_frame_seconds_count"] == 5
    assert samples["opusagent_frame_seconds_sum"] == pytest.approx(0.404046)


def test_a_turn_is_recorded_with_each_of_its_waits():
    metrics = Metrics()
    metrics.turn(trace(speech_end=0, endpointing=160, playout=182).receipt())
    samples = values(metrics.text())
    assert samples["opusagent_turns_total"] == 1
    assert samples["opusagent_voice_to_voice_seconds_sum"] == pytest.approx(0.182)
    assert samples['opusagent_wait_seconds_sum{wait="endpointing"}'] == pytest.approx(0.16)
    assert samples['opusagent_wait_seconds_count{wait="recognition"}'] == 1
    assert len([name for name in samples if name.startswith("opusagent_wait_seconds_count")]) == len(WAITS)
    assert samples['opusagent_wait_seconds_bucket{wait="endpointing",le="0.2"}'] == 1
    assert len(COARSE) == sum(name.startswith("opusagent_voice_to_voice_seconds_bucket") for name in samples) - 1


def test_turns_that_nobody_waited_for_are_left_out():
    metrics = Metrics()
    greeting = trace(speech_end=0, playout=20)
    greeting.measured = False
    greeting.stopped_by = "barge-in"
    metrics.turn(greeting.receipt())
    metrics.turn(trace(speech_end=0, endpointing=160).receipt())
    assert metrics.voice_to_voice.count == 0
    assert values(metrics.text())["opusagent_barge_ins_total"] == 1


def test_a_slow_frame_is_counted_and_told():
    metrics = Metrics()
    assert not metrics.frame(5 * MS) and metrics.frame(5 * MS + 1)
    assert values(metrics.text())["opusagent_slow_frames_total"] == 1


def test_health_has_the_same_six_figures_of_everything():
    metrics = Metrics()
    names = {"avg_ms", "min_ms", "max_ms", "p50_ms", "p95_ms", "p99_ms"}
    assert set(metrics.health()) == {"latency", "voice_to_voice", "loop_lag"}
    assert all(set(figures) == names and set(figures.values()) == {0} for figures in metrics.health().values())
    for ms in range(1, 101):
        metrics.frame(ms * MS)
    metrics.lag(2 * MS)
    latency = metrics.health()["latency"]
    assert (latency["avg_ms"], latency["min_ms"], latency["max_ms"]) == (50.5, 1.0, 100.0)
    assert latency["p50_ms"] == pytest.approx(50, rel=0.02) and latency["p99_ms"] == pytest.approx(99, rel=0.02)
    assert summary(metrics.lags)["max_ms"] == 2.0


# -- for people ------------------------------------------------------------------------------------------------------

def test_a_receipt_in_a_line():
    receipt = trace(2, speech_end=0, endpointing=160.2, recognition=191.6, synthesis=214).receipt()
    assert receipt_line(receipt) == (
        "turn 2  no answer  ████████████████▓▓▓▒▒  endpointing 160.2 + recognition 31.4 + synthesis 22.4")
    receipt = trace(12, speech_end=0, endpointing=160, playout=180).receipt() | {"stopped_by": "barge-in"}
    assert receipt_line(receipt, blocks=False) == (
        "turn 12    180 ms  ################==  endpointing 160.0 + playout 20.0  stopped by barge-in")


def test_the_bar_is_as_long_as_the_wait_but_never_longer_than_a_line():
    for ms, cells in ((4, 0), (20, 2), (399, 40), (5000, 40)):
        line = receipt_line(trace(speech_end=0, endpointing=ms / 3, recognition=ms / 2, playout=ms).receipt())
        assert len(re.findall("[█▓▒░]", line)) == cells


def test_colours_only_repeat_what_the_words_say():
    receipt = trace(speech_end=0, endpointing=160, recognition=190, playout=214).receipt()
    painted = receipt_line(receipt, colours=True)
    assert "\x1b[" in painted
    assert re.sub("[█▓▒░]", "#", re.sub(r"\x1b\[\d+m", "", painted)) == re.sub("[█▓▒░]", "#", receipt_line(receipt))


def test_an_empty_receipt_is_a_line_too():
    assert receipt_line(TurnTrace(1).receipt()) == "turn 1  no answer"
