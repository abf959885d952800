"""The benchmarks' own arithmetic, and that what they build runs: figures nobody checks are worth nothing."""
import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from opusagent import logs

BENCH = Path(__file__).parent.parent / "bench"
sys.path.insert(0, str(BENCH))

import figures      # noqa: E402
import overload     # noqa: E402
import stubbed      # noqa: E402
import subjects     # noqa: E402


def test_the_median_of_pairs_is_not_the_pair_of_medians():
    ratio = figures.paired_ratio([10, 20, 40], [10, 10, 10])
    assert (ratio.median, ratio.low, ratio.high, ratio.rounds) == (2, 1, 4, 3)


def test_a_round_that_failed_on_either_side_is_left_out():
    ratio = figures.paired_ratio([1, None, 3], [1, 1, None])
    assert (ratio.median, ratio.rounds) == (1, 1)
    assert figures.paired_ratio([None], [1]) is None


def test_too_few_rounds_are_marked_as_doubtful():
    assert str(figures.paired_ratio([1.0] * 4, [1.0] * 4)) == "1.00 (1.00-1.00)?"
    assert str(figures.paired_ratio([1.0] * 5, [1.0] * 5)) == "1.00 (1.00-1.00)"


def test_the_interval_holds_the_median_nine_times_in_ten():
    import random
    dice = random.Random(7)
    for n in (5, 6, 9, 15):
        hits = 0
        for _ in range(3000):
            low, high = figures.median_interval([dice.gauss(0, 1) for _ in range(n)])
            hits += low <= 0 <= high
        assert 0.885 <= hits / 3000 <= 0.94, n              # n = 5 cannot be narrower than 93.75 % to 87.5 %


def test_the_interval_is_made_of_order_statistics():
    low, high = figures.median_interval(range(1, 10))
    assert 2 < low < 3 and 7 < high < 8 and low + high == pytest.approx(10)


def test_the_interval_of_a_share_holds_it():
    assert figures.wilson(0, 0) == (0, 1)
    assert figures.wilson(6, 172) == pytest.approx((0.01814, 0.06603), abs=1e-5)   # 3.5 %
    assert figures.wilson(0, 20)[0] == 0 and figures.wilson(20, 20)[1] == pytest.approx(1)
    for share in (0.03, 0.5):
        hits = [low <= share <= high for low, high in (figures.wilson(k, 100) for k in range(101))]
        seen = sum(math.comb(100, k) * share**k * (1 - share)**(100 - k) for k in range(101) if hits[k])
        assert 0.85 < seen < 0.97, share


def test_tables_line_up():
    assert figures.table([["server", "us"], ["a", "10.0"], ["longer", "9.0"]]).splitlines() == [
        "server    us", "------  ----", "a       10.0", "longer   9.0"]


def test_a_process_and_its_children_are_found():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    try:
        assert child.pid in subjects.descendants(os.getpid())
        assert subjects.descendants(child.pid) == [child.pid]
        assert subjects.processor_ns([os.getpid()]) > 0
    finally:
        child.kill()
        child.wait()


def test_what_is_not_installed_is_a_sentence():
    subject = subjects.Subject("rival", ("true",), modules=("no_such_module",))
    assert subject.absent() == "rival is left out: no_such_module is not installed; pip install '.[bench]'"
    assert subjects.Subject("rival", ("true",)).absent() is None


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc builds the load client and the floor")
@pytest.mark.parametrize("flags", [["-m", "closed"], ["-m", "paced", "-t"], ["-m", "closed", "-s", "70000"]],
                         ids=["closed", "paced, Twilio", "large frames"])
def test_the_load_client_and_the_floor_understand_each_other(flags):
    floor = subjects.Subject("floor", (subjects.build("echo_limit"), "PORT"))
    server = subjects.Running(floor, subjects.Cores(None, None))
    load = [subjects.build("wsload"), "-j", "-b", "-c", "4", "-d", "0.2", "-w", "0.05", *flags,
            "-p", str(server.process.pid), "127.0.0.1", str(server.port)]
    try:
        run = subprocess.run(load, capture_output=True, text=True)
    finally:
        server.stop()
    assert run.returncode == 0, run.stderr
    measured = json.loads(run.stdout)
    assert measured["msgs"] > 0 and measured["wrong"] == measured["lost"] == 0


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc builds the load client")
def test_a_server_that_is_not_there_is_a_sentence():
    run = subprocess.run([subjects.build("wsload"), "127.0.0.1", "1"], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (1, "connect: Connection refused\n")


# ---- turns of the callers in C: from the frame that ended one to its answer ----

def turn(**more):
    return {"id": "CA1", "kind": "speech", "measured": True, "last": 100, "end": 1_990_000_000, "answer": 2_203_000_000,
            "arrived": 2_203_000_000, "late": [0] * 30} | more


SUMMARY = {"server_ns": 0, "secs": 1.0, "calls": 1}
def logged(**receipt) -> str:
    """A receipt as the server's log has it."""
    record = logging.makeLogRecord({"msg": "call %s turn %d", "args": ("CA1", receipt["turn"]),
                                    **logs.about("CA1", "turn", **receipt)})
    return logs.spell_json(record, speech=True) + "\n"


OURS = "listening on http://127.0.0.1:1\n" + logged(turn=2, decided_ms=2208.0) + logged(turn=3, decided_ms=None)


def test_overhead_counts_from_the_frame_that_ended_the_turn():
    outcome = stubbed.judged(SUMMARY, [turn()], stubbed.ends_of(OURS))      # 2208 ms lie in frame 110, due at 2200 ms
    assert outcome.overheads == [pytest.approx(3.0)] and not outcome.unmatched
    late = [0] * 10 + [500] + [0] * 10
    assert stubbed.judged(SUMMARY, [turn(late=late)], stubbed.ends_of(OURS)).overheads == [pytest.approx(2.5)]


def test_a_peer_that_counts_silence_is_judged_alike():
    said = "endpoint CA1 60 3\nendpoint CA1 109 10\n"
    assert stubbed.judged(SUMMARY, [turn()], stubbed.ends_of(said)).overheads == [pytest.approx(3.0)]


def test_turns_that_prove_nothing_are_left_out():
    turns = [turn(measured=False), turn(answer=None, arrived=None), turn(answer=1_900_000_000), turn(id="CA2"),
             turn(kind="key", answer=1_992_000_000)]
    outcome = stubbed.judged(SUMMARY, turns, stubbed.ends_of(OURS))
    assert (outcome.overheads, outcome.early, outcome.unmatched, outcome.keys) == ([], 1, 1, [pytest.approx(2.0)])


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc builds the callers")
def test_the_callers_want_something_to_say():
    callers = subjects.build("callers")
    run = subprocess.run([callers, "127.0.0.1", "1"], capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.startswith("usage: callers")
    run = subprocess.run([callers, "-f", "/dev/null", "127.0.0.1", "1"], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (1, "/dev/null: no mu-law in it\n")


def test_a_server_that_takes_no_call_is_a_sentence():
    taken = {"calls": 80, "taken": 40, "server_ns": 400_000_000, "secs": 2.0}
    assert overload.room_for(taken) == 140                      # 5 ms of the core for a second of a call
    with pytest.raises(subjects.Absent, match="none of 80 calls was taken"):
        overload.room_for(taken | {"taken": 0})


@pytest.mark.parametrize("script", sorted(file.name for file in BENCH.glob("*.py") if "argparse" in file.read_text()))
def test_every_benchmark_says_how_it_is_used(script):
    run = subprocess.run([sys.executable, BENCH / script, "--help"], capture_output=True, text=True,
                         env=os.environ | {"PYTHONPATH": str(BENCH.parent)})
    if missing := re.search(r"No module named '(matplotlib|soxr)'", run.stderr):
        pytest.skip(f"{missing[1]} is not installed: pip install '.[bench]'")
    assert run.returncode == 0 and run.stdout.startswith("usage: "), run.stderr


@pytest.mark.parametrize("script", ["ring.py"])
def test_benchmarks_that_need_no_server_run(script):
    run = subprocess.run([sys.executable, BENCH / script, "--quick", "--json"], capture_output=True, text=True,
                         timeout=120, env=os.environ | {"PYTHONPATH": str(BENCH.parent)})
    assert run.returncode == 0, run.stderr
    ratios = json.loads(run.stdout)["ratios"]
    assert ratios["eventfd"]["p99"]["median"] == 1 and ratios["our ring"]["p50"]["median"] > 0


@pytest.fixture
def audio():
    """The directory of recordings, for what hears them."""
    audio = Path(os.environ.get("OPUSAGENT_BENCH_AUDIO", BENCH.parent.parent / "shared" / "audio"))
    if not (audio / "manifest.json").is_file():
        pytest.skip("there are no recordings with a manifest.json beside the project")
    pytest.importorskip("pocketsphinx", reason="pocketsphinx is not installed")
    return audio


def test_turn_taking_is_measured_on_recordings(audio):
    run = subprocess.run([sys.executable, BENCH / "turns.py", "--audio", audio, "--callers", "2", "--partials",
                          "oracle", "--quick", "--json"], capture_output=True, text=True, timeout=120,
                         env=os.environ | {"PYTHONPATH": str(BENCH.parent)})
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    digits = {row["setting"]: row for row in found["turns"]["oracle"]["digits"]}
    assert digits["complete 140 ms"]["cut_ins"] == 0 and digits["fixed silence 300 ms"]["cut_ins"] > 0.5
    assert found["overlaps"]["noises"]["stopped"] == 0 and found["overlaps"]["echo of the agent"]["stopped"] == 0


def test_what_rejecting_costs_is_counted_by_kind_and_noise(audio):
    run = subprocess.run([sys.executable, BENCH / "engines.py", "--audio", audio, "--only", "rejection", "--quick",
                          "--kinds", "command", "--json"], capture_output=True, text=True, timeout=300,
                         env=os.environ | {"PYTHONPATH": str(BENCH.parent)})
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)["rejection"]
    assert {key for key in found} == {f"{kind}, noise {noise}" for kind in ("commands", "all by people")
                                      for noise in (None, 20, 10)}
    assert found["commands, noise None"] == {"clips": 1, "right": 1, "others": 0, "alone": 1, "lost": 0}
