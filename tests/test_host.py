"""Engine processes that are real: they are killed, stopped and told to be quiet, and no word is lost."""
import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytest_asyncio

from opusagent import ConfigError
from opusagent._fastpath import SEGMENT_SAMPLES, Arena
from opusagent.config import Config, Embedded
from opusagent.engines.embedded.stages import TRIES, Stt, Tts
from opusagent.engines.processes.host import Host
from test_embedded import CARD, DIGITS, FREE, SAID, SEARCHES, Search, people, recognises, recording, speaks

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from recovery import SICK       # noqa: E402

pytestmark = pytest.mark.asyncio(loop_scope="function")

PATIENCE = 20                   # seconds; not a measure of anything
SENTENCE = "Good. The ten of clubs is with robot seven. It is waiting in front of your house already."


class Call:
    """What the engines see of a call."""

    def __init__(self, slot, rate_in=8000, rate_out=8000):
        slot.take(rate_in, rate_out)
        self.slot = slot
        self.utterance = self.search = self.epoch = 0
        self.partials = []
        self.speech = []                        # (epoch, k, start, written, done)
        self.ends = {}                          # buffer -> where its words end
        self.answers = asyncio.Queue()          # final texts, and failures as a sentence

    def on_partial(self, utterance, text):
        self.partials.append((utterance, text))

    def on_final(self, utterance, text, confidence):
        self.answers.put_nowait((utterance, text))

    def on_failure(self, utterance, sentence):
        self.answers.put_nowait((utterance, sentence))

    def on_word_ends(self, epoch, k, ends):
        self.ends[k] = list(ends)

    def on_speech(self, epoch, k, start, written, done):
        self.speech.append((epoch, k, start, written, done))
        if done:
            self.answers.put_nowait((epoch, (start, written)))

    def on_speech_failed(self, epoch, k, sentence):
        self.answers.put_nowait((epoch, sentence))

    async def answer(self):
        async with asyncio.timeout(PATIENCE):
            return await self.answers.get()

    def listen(self, stt, search):
        self.utterance += 1
        self.search = search
        stt.listen(self, self.slot.written)

    async def say(self, stt, pcm):
        """In pieces of 20 ms, faster than a person."""
        for i in range(0, len(pcm), 160):
            self.slot.write(pcm[i:i + 160])
            stt.audio(self)
            await asyncio.sleep(0.001)

    def segment(self, k, start, written):
        return np.asarray(self.slot.segment(k))[np.arange(start, written) % SEGMENT_SAMPLES]


async def until(condition):
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
def arena():
    arena = Arena(4)
    yield arena


@pytest_asyncio.fixture
async def stt(arena):
    stt = Stt(Config())
    await stt.open(arena, SEARCHES)
    yield stt
    await stt.close()


@pytest_asyncio.fixture
async def tts(arena):
    tts = Tts(Config())
    await tts.open(arena)
    yield tts
    await tts.close()


@pytest.fixture(autouse=True)
def sick(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(SICK)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH")))))


def fault(host, number):
    """What is done to the process that serves; 0 is nothing."""
    if number:
        os.kill(host.live[0].process.pid, number)


async def answer_despite(number, stt, call, search, pcm, at):
    """What is answered to an utterance, at whose sample `at` that is done."""
    call.listen(stt, search)
    await call.say(stt, pcm[:at])
    await until(lambda: call.partials)
    fault(stt.host, number)
    await call.say(stt, pcm[at:])
    stt.finish(call, call.slot.written)
    return await call.answer()


FAULTS = pytest.mark.parametrize(
    "number", [0, signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM],
    ids=["nothing", "killed", "stopped", "crashed", "exits", "hangs", "spins"])

# ---- recognising -----------------------------------------------------------------------------------------------------


@recognises
@people
@FAULTS
async def test_what_was_said_is_heard_whatever_happens_to_the_process(arena, stt, number):
    search, file, text = SAID[0]
    assert await answer_despite(number, stt, Call(arena.slot(1)), search, recording(file), 12000) == (1, text)
    await until(lambda: stt.host.restarts == bool(number))      # one that computes for ever is killed a little later


@recognises
@people
async def test_one_that_is_only_slow_changes_places_with_the_spare_one_and_stays(arena, stt):
    """A process that gets no CPU time for a while, and then goes on as if nothing had been."""
    await until(lambda: stt.host.spare is not None and stt.host.spare.ready)
    call, slow, spare = Call(arena.slot(1)), stt.host.live[0], stt.host.spare
    search, file, text = SAID[0]
    pcm = recording(file)
    call.listen(stt, search)
    await call.say(stt, pcm[:12000])
    await until(lambda: call.partials)
    slow.late = lambda now: True                                # as its beat would say
    await until(lambda: stt.host.live[0] is spare and stt.host.spare is slow)
    del slow.late
    await call.say(stt, pcm[12000:])
    stt.finish(call, call.slot.written)
    assert await call.answer() == (1, text)
    assert stt.host.restarts == 0 and not slow.over


@recognises
@people
async def test_a_process_that_dies_between_two_words_is_replaced_for_the_next_turn(arena, stt):
    call = Call(arena.slot(0))
    for turn, (search, file, text) in enumerate(SAID[:3], 1):
        call.listen(stt, search)
        await call.say(stt, recording(file))
        stt.finish(call, call.slot.written)
        assert await call.answer() == (turn, text)
        fault(stt.host, signal.SIGKILL)
        await until(lambda: stt.host.restarts == turn and stt.host.spare is not None and stt.host.spare.ready)


@recognises
@people
async def test_calls_share_a_process(arena, stt):
    calls = [Call(arena.slot(i)) for i in range(3)]
    for call, (search, file, _) in zip(calls, SAID):
        call.listen(stt, search)
    await asyncio.gather(*(call.say(stt, recording(file)) for call, (_, file, _) in zip(calls, SAID)))
    for call in calls:
        stt.finish(call, call.slot.written)
    assert [await call.answer() for call in calls] == [(1, text) for _, _, text in SAID[:3]]


@recognises
@people
async def test_nobody_who_speaks_freely_waits_until_another_one_has_ended(arena):
    stt = Stt(Config())
    await stt.open(arena, [FREE])
    try:
        stt.host.on_aside = None                        # one that is late on a busy machine is waited for
        calls = [Call(arena.slot(i)) for i in range(4)]
        for call in calls:
            call.listen(stt, FREE.id)
        await asyncio.gather(*(call.say(stt, recording("something.raw")) for call in calls))
        await until(lambda: all(call.partials and "something" in call.partials[-1][1] for call in calls))
    finally:
        await stt.close()


@recognises
@people
async def test_partial_words_come_while_the_caller_speaks_and_when_asked_for(arena, stt):
    call = Call(arena.slot(0))
    search, file, text = SAID[3]
    call.listen(stt, search)
    await call.say(stt, recording(file))
    await until(lambda: call.partials and call.partials[-1] == (1, text))
    told = len(call.partials)
    stt.ask(call)
    await until(lambda: len(call.partials) == told + 1)         # the same text again: it is an answer
    assert call.partials[-1] == (1, text)


@recognises
@people
async def test_what_was_cancelled_is_never_heard_of_again(arena, stt):
    call = Call(arena.slot(0))
    call.listen(stt, DIGITS)
    await call.say(stt, recording(SAID[0][1]))
    stt.cancel(call)
    call.partials.clear()
    call.listen(stt, CARD)
    await call.say(stt, recording(SAID[1][1]))
    stt.finish(call, call.slot.written)
    assert await call.answer() == (2, "ten of clubs")
    assert {number for number, _ in call.partials} == {2}


@recognises
async def test_the_next_call_in_a_slot_is_not_told_what_the_last_one_said(arena, stt):
    first = Call(arena.slot(0))
    first.listen(stt, DIGITS)
    await first.say(stt, np.zeros(8000, np.int16))
    stt.cancel(first)
    stt.forget(first)
    first.slot.free()
    second = Call(arena.slot(0))
    second.listen(stt, CARD)
    stt.finish(second, 0)
    assert await second.answer() == (1, "")
    assert first.answers.empty()


@recognises
async def test_a_word_that_nobody_can_say_is_named_before_calls_are_taken(arena):
    stt = Stt(Config())
    with pytest.raises(ConfigError, match="'xyzzy'"):
        await stt.open(arena, [Search(0, "grammar", "#JSGF V1.0; grammar g; public <g> = xyzzy;", {"xyzzy"})])
    await stt.close()


@recognises
async def test_an_utterance_that_kills_its_recognisers_is_given_up(arena, stt):
    call = Call(arena.slot(0))
    call.listen(stt, DIGITS)
    for death in range(TRIES):
        await until(lambda: stt.host.live[0] is not None and stt.host.spare is not None and stt.host.spare.ready)
        fault(stt.host, signal.SIGKILL)
        await until(lambda: stt.host.restarts == death + 1)
    assert await call.answer() == (1, f"{TRIES} recognisers died over one utterance.")


@pytest.mark.skipif(importlib.util.find_spec("pocketsphinx") is not None, reason="pocketsphinx is installed")
async def test_a_missing_recogniser_is_told_before_calls_are_taken(arena):
    stt = Stt(Config())
    with pytest.raises(ConfigError, match="pip install"):
        await stt.open(arena, SEARCHES)
    await stt.close()


# ---- speaking --------------------------------------------------------------------------------------------------------

async def spoken(tts, call, k=0, text=SENTENCE):
    call.epoch += 1
    tts.speak(call, call.epoch, k, text, "rms")
    epoch, found = await call.answer()
    assert epoch == call.epoch
    return call.segment(k, *found)


@speaks
@FAULTS
async def test_a_sentence_goes_on_sample_for_sample_in_another_process(arena, tts, number):
    call = Call(arena.slot(1))
    whole = await spoken(tts, call)
    await until(lambda: tts.host.spare is not None and tts.host.spare.ready)
    call.epoch += 1
    tts.speak(call, call.epoch, 2, SENTENCE, "rms")
    await until(lambda: call.slot.segment_written(2) > 4000)
    fault(tts.host, number)
    _, found = await call.answer()
    assert np.array_equal(call.segment(2, *found), whole)


@speaks
async def test_segments_side_by_side_are_each_whole(arena, tts):
    call = Call(arena.slot(0))
    texts = ("One.", "Two of them.", "And here is the third.", "Four.")
    alone = [await spoken(tts, call, k, text) for k, text in enumerate(texts)]
    call.epoch += 1
    for k, text in enumerate(texts):
        tts.speak(call, call.epoch, k, text, "rms")
    for _ in texts:
        await call.answer()
    ends = {k: (start, written) for epoch, k, start, written, done in call.speech if done and epoch == call.epoch}
    for k, whole in enumerate(alone):
        assert np.array_equal(call.segment(k, *ends[k]), whole)


@speaks
async def test_a_reply_waits_until_a_voice_begins_it_and_what_follows_it_does_not(arena, tts):
    call = Call(arena.slot(0))
    call.epoch = 1
    for k in range(2):
        tts.speak(call, 1, k, SENTENCE, "rms")
        time.sleep(0.01)
    assert 0.02 <= tts.delays.seconds                   # nobody has listened to the process yet
    for _ in range(2):
        await call.answer()
    waited = tts.delays.seconds
    await asyncio.sleep(0.02)
    assert tts.delays.seconds <= waited                 # nothing waits any more
    tts.speak(call, 2, 0, SENTENCE, "rms")
    tts.cancel(call)
    await asyncio.sleep(0.02)
    assert tts.delays.seconds <= waited


@speaks
async def test_what_was_cancelled_is_not_spoken_on(arena, tts):
    call = Call(arena.slot(0))
    tts.speak(call, 1, 0, SENTENCE * 5, "rms")
    await until(lambda: call.speech)
    call.epoch = 2
    tts.cancel(call)
    call.speech.clear()
    await spoken(tts, call, 0, "Hello.")
    assert {epoch for epoch, *_ in call.speech} == {3}


@speaks
async def test_a_voice_waits_for_its_listener(arena, tts):
    call = Call(arena.slot(0), rate_out=48000)
    tts.speak(call, 1, 0, SENTENCE, "rms")
    await until(lambda: call.slot.segment_written(0) == SEGMENT_SAMPLES)        # the buffer is full
    heard = []
    while not (call.speech and call.speech[-1][4] and call.slot.segment_read(0) == call.speech[-1][3]):
        read, written = call.slot.segment_read(0), call.slot.segment_written(0)
        assert written - read <= SEGMENT_SAMPLES
        end = min(written, read + 20_000)
        heard.append(call.segment(0, read, end).copy())
        call.slot.set_segment_read(0, end)
        tts.played(call, 0)
        await asyncio.sleep(0.002)
    again = Call(arena.slot(1), rate_out=16000)
    assert len(np.concatenate(heard)) // 3 == pytest.approx(len(await spoken(tts, again)), abs=2)


@speaks
async def test_a_voice_that_is_late_writes_nothing_into_the_next_call(arena, tts):
    call = Call(arena.slot(0))
    tts.speak(call, 1, 0, SENTENCE * 10, "rms")
    await until(lambda: call.speech)
    tts.cancel(call)
    call.slot.free()
    other = Call(arena.slot(0))
    voice = await spoken(tts, other, 1, "Hello.")
    assert len(voice)
    assert other.slot.segment_written(0) == 0
    assert {k for _, k, *_ in other.speech} == {1}


@speaks
async def test_an_unknown_voice_is_a_failure_of_that_segment_only(arena, tts):
    call = Call(arena.slot(0))
    tts.speak(call, 1, 0, "Hello.", "nobody")
    epoch, sentence = await call.answer()
    assert epoch == 1 and "no embedded voice 'nobody'" in sentence
    assert len(await spoken(tts, call))


@speaks
async def test_prompts_are_rendered_in_one_piece_each(arena, tts):
    texts = ["Hello.", SENTENCE, "..."]
    rendered, ends = {}, {}
    async for text, rendered[text], ends[text] in tts.render(texts, "rms", 16000):
        pass
    assert list(rendered) == texts
    call = Call(arena.slot(0), rate_out=16000)
    assert np.array_equal(rendered[SENTENCE], await spoken(tts, call))
    assert list(ends[SENTENCE]) == call.ends[0] and len(call.ends[0]) == len(SENTENCE.split())
    assert not len(ends["..."])
    assert len(rendered["..."]) == 0


@speaks
async def test_the_voice_says_where_its_words_end(arena, tts):
    call = Call(arena.slot(0))
    pcm = await spoken(tts, call)
    ends = call.ends[0]
    assert all(np.diff(ends) > 0) and 0 < ends[0] < 0.5 * 8000 and abs(len(pcm) - ends[-1]) < 0.2 * 8000
    loud = np.abs(pcm[:len(pcm) // 80 * 80].reshape(-1, 80)).max(1) > 500
    assert not loud[ends[0] // 80 + 5:ends[0] // 80 + 15].all()         # "Good." and a pause
    await call_of("It costs $23.50 on May 3rd.", tts, call)
    assert len(call.ends[0]) == 6                                       # as they are written, not as they are said


async def call_of(text, tts, call):
    call.speech.clear()
    tts.speak(call, 2, 0, text, "")
    await call.answer()


# ---- the processes ---------------------------------------------------------------------------------------------------

def state(pid):
    """Of a process, as ps shows it; "" where there is none."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@speaks
async def test_engine_processes_die_with_their_worker():
    script = textwrap.dedent("""
        import asyncio, sys
        from opusagent._fastpath import Arena
        from opusagent.config import Config
        from opusagent.engines.embedded.stages import Tts

        async def main():
            tts = Tts(Config())
            await tts.open(Arena(2))
            while tts.host.spare is None or not tts.host.spare.ready:
                await asyncio.sleep(0.01)
            print(tts.host.live[0].process.pid, tts.host.spare.process.pid, flush=True)
            await asyncio.sleep(60)

        asyncio.run(main())
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as worker:
        pids = [int(pid) for pid in worker.stdout.readline().split()]
        assert len(pids) == 2 and all(map(state, pids))
        for pid in pids:
            os.kill(pid, signal.SIGTERM)                # is the worker's to answer: calls may still be live
        worker.kill()
    deadline = time.monotonic() + PATIENCE
    while any(state(pid) not in ("", "Z") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert all(state(pid) in ("", "Z") for pid in pids)


class Starved:
    """A process that gets no CPU time: it says nothing, and is not on the processor when it is looked at."""

    def __init__(self):
        self.ready, self.killed = True, False
        self.to = SimpleNamespace(beat=0)
        self.process = SimpleNamespace(pid=1)

    def late(self, now):
        return True

    def hangs(self, now, work):
        return True

    def kill(self):
        assert not self.killed
        self.killed = True


@pytest.mark.asyncio
async def test_on_a_machine_that_is_too_busy_the_second_process_lives_until_there_is_another():
    host = Host("stt", Config(), None, None)
    host.live, host.spare = [Starved()], Starved()
    first, second = host.live[0], host.spare
    for _ in range(3):
        host._watch()
        host._look.cancel()
    assert first.killed and not second.killed
    host.live, host.spare = [second], Starved()
    host.spare.ready = False                            # the next one loads what it needs
    host._watch()
    host._look.cancel()
    assert not second.killed
    host.spare.ready = True
    host._watch()
    host._look.cancel()
    assert second.killed and not host.spare.killed


@pytest.mark.parametrize("workers, cores, left, count", [
    (0, 16, None, 1),                           # the workers leave one core
    (1, 2, None, 1), (1, 4, "1,2,3", 3), (1, 32, None, 4), (2, 8, "2,3,4,5,6,7", 3), (8, 8, None, 1)])
async def test_processes_are_as_many_as_the_cores_that_the_workers_leave(monkeypatch, workers, cores, left, count):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.delenv("OA_CORES", raising=False)
    if left is not None:
        monkeypatch.setenv("OA_CORES", left)
    assert Host("stt", Config(workers=workers), None, None).count == count
    assert Host("stt", Config(workers=workers, embedded=Embedded(processes=7)), None, None).count == 7


def late(stuck):
    """A process that says nothing where it serves, but gets to say that it lives while it is spare."""
    return SimpleNamespace(ready=True, stuck=stuck, late=lambda now: True, process=SimpleNamespace(pid=1),
                           to=SimpleNamespace(beat=time.monotonic_ns()))


async def test_two_that_get_no_cpu_time_do_not_change_places_to_and_fro():
    asked_again = []
    host = Host("stt", Config(), None, asked_again.append, lambda process, share: None)
    one, other = late(stuck=False), late(stuck=False)
    host.live, host.spare = [one], other
    for _ in range(3):
        host._relieve(time.monotonic_ns())
    assert (host.live, host.spare) == ([other], one) and asked_again == [0]
    other.stuck = True                                          # it hangs, which is another matter
    one.to.beat = time.monotonic_ns()
    host._relieve(time.monotonic_ns())
    assert (host.live, host.spare) == ([one], other)
