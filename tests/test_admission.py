"""Admission: the load, what is left out before it is too much, who is refused; and a worker without descriptors."""
import json
import os
import re
import resource
import time
import urllib.request
from types import SimpleNamespace

import pytest
from conversation import MS, Conversation
from lines import SILENCE, WebSocketLine
from served import SCRIPTED, serving

from opusagent import ProtocolError
from opusagent.config import Config
from opusagent.engines.remote.race import ENOUGH, Hedging
from opusagent.metrics import Metrics
from opusagent.server.admission import STEPS, Admission, Curve, Ladder, Memory, state
from opusagent.speech.audio import VadBatch

SECOND = 1000 * MS


def test_steps_are_taken_before_calls_are_refused_and_given_back_later():
    ladder = Ladder(0.7, 0.6)
    climbed = []
    for load in (0.50, 0.57, 0.61, 0.65, 0.69, 0.71, 0.65, 0.61, 0.59, 0.55, 0.50, 0.40):
        ladder.look(load)
        climbed.append((ladder.level, ladder.full))
    assert climbed == [(0, False), (1, False), (2, False), (3, False), (4, False), (4, True), (4, True), (4, True),
                       (4, False), (3, False), (1, False), (0, False)]
    ladder.look(1.0)
    assert ladder.steps == tuple(name for _, name in STEPS)


def behind(seconds):
    """An engine with processes."""
    return SimpleNamespace(delays=SimpleNamespace(seconds=seconds))


class Worker:
    """As much of a server as admission looks at; time and work are the test's."""

    def __init__(self, **settings):
        self.config = Config(max_calls=100)
        self.now = 10 * SECOND
        self.worked = 0
        self.metrics = Metrics()
        self.calls, self.connections = {}, set()
        self.draining, self.broken, self.seat = False, "", None
        self.studio = SimpleNamespace(hearing=VadBatch("energy"), stt=behind(0), tts=behind(0),
                                      llm=SimpleNamespace(hedging=Hedging(0.1)))
        self.epoll = SimpleNamespace(spun=0)
        self.clock = lambda: self.now
        self.admission = Admission(self)
        self.admission._worked = lambda: self.worked
        self.admission.memory = SimpleNamespace(limit=100, used=lambda: 10)
        self.admission.begin()

    def second(self, cpu=0.0):
        """Another second, in which this is the share of a core that the last few come to."""
        self.now += SECOND
        then, before = self.admission._spent[0]
        self.worked = before + round(cpu * (self.now - then))
        self.admission.look(self.now)
        return self.admission

    def has(self, count):
        self.calls = {i: SimpleNamespace(due=0, mouth=SimpleNamespace()) for i in range(count)}


def test_the_load_is_the_greatest_share_of_a_limit_and_it_is_said_which():
    worker = Worker()
    assert worker.second(0.3).by == "cpu" and worker.admission.load == pytest.approx(0.3)
    worker.studio.stt = behind(0.5)
    assert worker.second(0.3).by == "cpu"               # nobody waits for the recogniser
    worker.has(1)
    assert worker.second(0.3).by == "engines" and worker.admission.load == pytest.approx(0.5)
    worker.studio.tts = behind(0.55)
    assert worker.second(0.3).by == "engines" and worker.admission.load == pytest.approx(0.55)
    worker.studio.stt = worker.studio.tts = SimpleNamespace()
    assert worker.second(0.3).by == "cpu"               # engines without processes have no queue here
    worker.admission.memory.used = lambda: 65
    assert worker.second(0.3).by == "memory"
    assert state(worker.metrics) == {"load": 0.65, "load_by": "memory",
                                     "left_out": ["no_speculation", "no_turn_model", "no_hedging"]}


@pytest.mark.parametrize("measure", ["loop_lag", "frames"])
def test_lateness_counts_at_its_99th_percentile_while_there_are_calls(measure):
    worker = Worker()
    worker.has(1)
    late = {"loop_lag": (112 * MS, 0), "frames": (0, 112 * MS)}[measure]
    for i in range(1000):
        call = SimpleNamespace(due=worker.now - (late[1] if i % 50 == 0 else 0))
        worker.admission.tick(late[0] if i % 50 == 0 else 0, [call], worker.now)
    assert worker.second(0.1).by == measure and worker.admission.load == pytest.approx(0.8) and worker.admission.full
    worker.has(0)
    for _ in range(6):
        worker.admission.tick(1000 * MS, [], worker.now)
        worker.second(0.1)
    assert worker.admission.by != measure


def seen(curve, takes, *numbers, seconds=10):
    """What `takes` says of these numbers of calls is seen by a curve."""
    for calls in numbers:
        for _ in range(seconds):
            curve.learn(calls, takes(calls))


def test_what_calls_take_is_told_by_what_was_seen():
    """Of calls that take the root of their number, as of those that all take the same."""
    curve, even = Curve(), Curve()
    assert curve.load(200) == pytest.approx(0.7) and curve.calls(0.7) == pytest.approx(200)     # nothing is known
    seen(curve, lambda calls: 0.05 * calls ** 0.5, 10, 30, 80, 120)
    seen(even, lambda calls: 0.004 * calls, 10, 30, 80, 120)
    assert 0.5 <= curve.bend < 0.55 and even.bend > 0.95
    assert 170 < curve.calls(0.7) < 200 and 170 < even.calls(0.7) < 180         # 196 and 175
    for load in (0.1, 0.4):
        assert curve.load(curve.calls(load)) == pytest.approx(load)
    assert curve.load(0) == curve.calls(0) == 0


def test_where_only_one_number_was_seen_the_usual_bend_is_taken_and_a_mistake_fills_a_core_at_most():
    curve = Curve()
    seen(curve, lambda calls: 0.2, 20)
    assert 0.65 < curve.bend < 0.75 and curve.load(20) == pytest.approx(0.2, rel=0.02)
    most = next(calls for calls in range(20, 1000) if curve.load(calls) > 0.7)
    assert 90 < most <= 102                                 # at 0.01 of a core for each that would be all of it
    seen(curve, lambda calls: 0.4, 60, seconds=600)
    assert curve.load(60) == pytest.approx(0.4, rel=0.02)   # what was seen long ago is forgotten


def let_in(worker) -> int:
    """How many calls are let in until one is refused."""
    count = 0
    while True:
        worker.connections.add(count)
        try:
            worker.admission.check(count)
        except ProtocolError as refused:
            assert (refused.code, refused.retry_after) == (503, 5)
            return count
        count += 1


def test_calls_that_were_let_in_count_before_they_can_be_measured():
    """1,000 calls that are dialled within a second are not all there before anybody has looked."""
    worker = Worker()
    for calls in (10, 20, 40):
        worker.has(calls)
        for _ in range(40):
            worker.second(0.01 * calls)                     # 0.01 of a core for each
    worker.has(20)
    for _ in range(4):
        worker.second(0.2)
    assert 45 <= (first := let_in(worker)) <= 52            # 0.7 is 70 calls
    assert worker.metrics.counters[("refused_calls", (("reason", "full"),))] == 1
    worker.has(20 + first)
    worker.second(0.2)                                      # the second in which they came says nothing of them
    assert let_in(worker) <= 10
    for _ in range(4):
        worker.second(0.01 * (20 + first))
    assert let_in(worker) <= 10                             # and when all of it is measured, they are not counted twice
    worker.connections.clear()
    worker.has(20)
    worker.second(0.2)
    worker.admission.check(0)                               # who has come and gone is no load


def test_what_calls_take_is_learned_while_some_come_and_go():
    worker = Worker()
    for i in range(60):
        worker.has(50 + i % 3)
        worker.connections.add(i)
        worker.admission.check(i)
        worker.second(0.3)
    assert worker.admission.curve.load(51) == pytest.approx(0.3, rel=0.05)


def test_a_draining_and_a_broken_worker_say_why():
    worker = Worker()
    worker.draining = True
    with pytest.raises(ProtocolError, match="draining"):
        worker.admission.check(0)
    worker.broken = "The voice is gone."
    with pytest.raises(ProtocolError, match="voice"):
        worker.admission.check(0)


def test_who_refuses_nobody_is_never_full():
    worker = Worker()
    worker.admission.config = SimpleNamespace(refuse_above=1.0, resume_below=0.6, lag_ms=1, late_ms=1, engine_ms=1)
    worker.admission.begin()
    worker.second(1.0)
    worker.second(3.0)
    worker.connections |= {1, 2, 3}
    for connection in worker.connections:
        worker.admission.check(connection)
    assert not worker.admission.full and not worker.admission.ladder.steps


def test_what_each_step_leaves_out():
    worker = Worker()
    talk = Conversation("""
name = "cards"
start = "card"
[states.card]
prompt = "Ask."
on = [{ free = true }]
""", begin=False)
    assert talk.call.mouth.eased == (False, False)
    hedging = worker.studio.llm.hedging
    for _ in range(ENOUGH):
        hedging.took(0.1)
    assert hedging.after is not None
    worker.has(1)
    mouth = worker.calls[0].mouth
    mouth.eased, mouth.ease = (False, False), lambda *eased: setattr(mouth, "eased", eased)
    seen = []
    for cpu in (0.5, 0.57, 0.61, 0.66, 0.69, 0.1):
        worker.second(cpu)
        seen.append((mouth.eased, worker.studio.hearing.spared, hedging.after is None))
    assert seen == [((False, False), False, False), ((True, False), False, False), ((True, False), True, False),
                    ((True, False), True, True), ((True, True), True, True), ((False, False), False, False)]
    batch = VadBatch("energy")
    batch._lanes[8000].network = "a model"
    assert batch.network(8000) == "a model"
    batch.spared = True
    assert batch.network(8000) is None


def test_memory_is_this_process_s_own_part_of_what_there_is():
    memory = Memory(2)
    assert 1 << 20 < memory.used() < memory.limit <= os.sysconf("SC_PHYS_PAGES") * resource.getpagesize() / 2


# -- in a real process -------------------------------------------------------------------------------------------------

def fetch(server, path):
    with urllib.request.urlopen(f"http://{server.host}:{server.port}{path}") as answer:
        return answer.read().decode()


def test_health_says_the_load_and_a_full_worker_says_when_to_come_back():
    with serving(*SCRIPTED, "--max-calls", "2") as server:
        lines = [WebSocketLine(server.host, server.port, "/ws/pcm") for _ in range(3)]
        assert [line.status for line in lines] == [101, 101, 503]
        assert b"\r\nRetry-After: 5\r\n" in lines[2].head
        health = json.loads(fetch(server, "/health"))
        assert 0 <= health["load"] <= 1 and health["left_out"] == []
        text = fetch(server, "/metrics")
        assert 'opusagent_refused_calls_total{reason="full"} 1' in text
        for line in lines:
            line.close()


def test_without_descriptors_live_calls_go_on_and_the_log_has_a_line_a_second():
    """A worker whose descriptors are all taken while calls are on: 503 at once, and no frame is late for it."""
    files = 48
    with serving(*SCRIPTED, "--admission-refuse-above", "1", "--admission-resume-below", "1") as server:
        live = [WebSocketLine(server.host, server.port, "/ws/pcm/echo") for _ in range(4)]
        used = max(map(int, os.listdir(f"/proc/{server.worker}/fd")))
        resource.prlimit(server.worker, resource.RLIMIT_NOFILE, (max(files, used + 4), max(files, used + 4)))
        began, answers, echoed = time.monotonic(), [], 0
        while time.monotonic() - began < 3:
            answers.append(WebSocketLine(server.host, server.port, "/ws/pcm/echo"))
            for line in live:
                line.send(SILENCE)
                echoed += line.frame() == (2, SILENCE)
            time.sleep(0.01)
        refused = [line for line in answers if line.status == 503]
        assert len(refused) > 20 and all(b"Retry-After" in line.head for line in refused)
        assert echoed == 4 * len(answers)               # every frame of every call came back
        lines = re.findall("connections are turned away", server.written())
        assert 1 <= len(lines) <= 1 + int(time.monotonic() - began) + 1
        for line in (*live, *answers):
            line.close()
        assert server.alive() and "Traceback" not in server.written()
        for _ in range(100):                            # and as soon as there are some again, calls are taken
            line = WebSocketLine(server.host, server.port, "/ws/pcm/echo")
            line.close()
            if line.status == 101:
                break
            time.sleep(0.05)
        assert line.status == 101
