"""An engine process fails in mid-utterance: how long until another one goes on, and is a word lost or said twice?

    python bench/recovery.py [--audio DIR] [--rounds 5] [--only recogniser,voice] [--json]

Recogniser: a recording of five digits goes in as a call brings it, 20 ms at a time.  After a second of it something
happens to the process: it is killed, stopped, crashes, exits, sleeps or computes for ever.  From then on its best
text is asked for every 20 ms; recovery is the time from the fault to the first answer of the process that takes over.
The rule: the transcript has to be the same as without a fault.

Voice: two sentences are asked for and played, 20 ms at a time, as a call plays them.  The same happens to the process
of the voice, once before it has written a sample and once when it has written the first.  What the listener notices is
how late the first sample is, or the longest silence in the midst of the speech.  The rule: what is heard has to be,
sample for sample, what is heard without a fault.

The floor is the same without a fault.
"""
import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from clips import AFTER_MS, BEFORE_MS, FLOW, recordings
from figures import median, table
from subjects import BENCH, Absent, machine

from opusagent._fastpath import SEGMENT_SAMPLES, Arena
from opusagent.config import Config
from opusagent.engines.embedded.stages import Stt, Tts
from opusagent.flow import Flow

FAULTS = {"none": 0, "killed": signal.SIGKILL, "stopped": signal.SIGSTOP, "crashed": signal.SIGSEGV,
          "exits": signal.SIGUSR1, "sleeps": signal.SIGUSR2, "computes": signal.SIGALRM}
FAULT_MS = 1000                 # of the recording
CLIP, TEXT = "dhd_2934z", "two nine three four zero"
SENTENCES = ("Good. The ten of clubs is with robot seven.", "It is waiting in front of your house already.")
FRAME = 160                     # samples: 20 ms
# What an engine process can be told to do to itself, by signals that it does not use.
SICK = """
import os, signal, time
signal.signal(signal.SIGUSR1, lambda *_: os._exit(0))
signal.signal(signal.SIGUSR2, lambda *_: time.sleep(3600))
def spin(*_):
    while True:
        pass
signal.signal(signal.SIGALRM, spin)
"""


class Caller:
    """What the recogniser sees of a call."""

    def __init__(self, slot):
        self.slot = slot
        self.utterance = self.search = 0
        self.answered: list[float] = []         # when a text came, seconds
        self.final: asyncio.Future | None = None

    def on_partial(self, utterance, text):
        self.answered.append(time.monotonic())

    def on_final(self, utterance, text, confidence):
        self.final.set_result(text)

    def on_failure(self, utterance, sentence):
        self.final.set_result(sentence)


async def utterance(stt: Stt, caller: Caller, search: int, pcm: np.ndarray, number: int) -> tuple[float, str]:
    """ms from the fault to the next answer of a process that lives, and the text of all of it."""
    caller.utterance += 1
    caller.search = search
    caller.final = asyncio.get_running_loop().create_future()
    stt.listen(caller, caller.slot.written)
    began, fault_at = time.monotonic(), 0.0
    for i in range(0, len(pcm), 160):
        await asyncio.sleep(max(0.0, began + i / 8000 - time.monotonic()))
        caller.slot.write(pcm[i:i + 160])
        stt.audio(caller)
        if i * 1000 // 8000 >= FAULT_MS and not fault_at:
            caller.answered.clear()
            fault_at = time.monotonic()
            if number:
                os.kill(stt.host.live[0].process.pid, number)
        if fault_at:
            stt.ask(caller)
    stt.finish(caller, caller.slot.written)
    text = await asyncio.wait_for(caller.final, 20)
    answered = caller.answered or [time.monotonic()]
    return (answered[0] - fault_at) * 1e3, text


async def all_well(host) -> None:
    """The process that serves and the spare one are there."""
    while not all(process is not None and process.ready and not process.late(time.monotonic_ns())
                  for process in (*host.live, host.spare)):
        await asyncio.sleep(0.01)


async def recogniser(args: argparse.Namespace) -> dict[str, dict[str, list]]:
    """By fault: ms of each round, and whether it heard all."""
    flow = Flow.parse(FLOW, "bench")
    silence = np.zeros(8000, np.int16)
    pcm = np.concatenate((silence[:8 * BEFORE_MS], recordings(args.audio, 8000)[CLIP][1], silence[:8 * AFTER_MS]))
    found: dict[str, dict[str, list]] = {name: {"ms": [], "same": []} for name in FAULTS}
    arena = Arena(2)
    stt = Stt(Config())
    await stt.open(arena, flow.searches)
    caller = Caller(arena.slot(0))
    caller.slot.take(8000, 8000)
    try:
        for _ in range(args.rounds):
            for name, number in FAULTS.items():
                await all_well(stt.host)
                ms, text = await utterance(stt, caller, flow.states["five"].expect.id, pcm, number)
                found[name]["ms"].append(ms)
                found[name]["same"].append(text == TEXT)
    finally:
        await stt.close()
    return found


class Listener:
    """What the voice sees of a call, and what is heard over it: a frame every 20 ms, silence where none is there."""

    def __init__(self, slot):
        self.slot = slot
        self.epoch = 0
        self.begins: dict[int, int] = {}        # buffer -> counter of its first sample
        self.ends: dict[int, int] = {}          # ... after its last one
        self.frames: list[np.ndarray] = []
        self.gaps: list[int] = []               # frames of silence: before the first sample, and each one after it
        self.failed = ""

    def on_word_ends(self, epoch, k, ends):
        pass

    def on_speech(self, epoch, k, start, written, done):
        if epoch == self.epoch:
            self.begins[k] = start
            if done:
                self.ends[k] = written

    def on_speech_failed(self, epoch, k, sentence):
        self.failed = sentence

    def frame(self, k: int) -> bool:
        """Hear the next one of buffer k; False when all of that was heard."""
        slot = self.slot
        begin = max(self.begins.get(k, 0), slot.segment_read(k))
        end = min(begin + FRAME, slot.segment_written(k)) if k in self.begins else begin
        if k in self.ends and begin >= self.ends[k]:
            return False
        if end == begin:
            self.gaps[-1] += 1
        else:
            self.gaps.append(0)
            self.frames.append(np.asarray(slot.segment(k))[np.arange(begin, end) % SEGMENT_SAMPLES].copy())
            slot.set_segment_read(k, end)
        return True


async def listen(tts: Tts, listener: Listener, number: int, begun: bool) -> tuple[float, np.ndarray]:
    """ms of the longest silence that nobody wanted, and all that was heard.  `begun`: the fault comes when there is a
    sample already."""
    listener.epoch += 1
    listener.begins, listener.ends, listener.frames, listener.gaps = {}, {}, [], [0]
    victim = tts.host.live[0].process.pid
    for k, text in enumerate(SENTENCES):
        tts.speak(listener, listener.epoch, k, text, "rms")
    while begun and not listener.begins and not listener.failed:
        await asyncio.sleep(0)
    if number:
        os.kill(victim, number)
    began, beats = time.monotonic(), 0
    for k in range(len(SENTENCES)):
        while listener.frame(k):
            tts.played(listener, k)
            beats += 1
            await asyncio.sleep(max(0.0, began + beats * 0.02 - time.monotonic()))
            if listener.failed:
                raise SystemExit(listener.failed)
    return 20.0 * max(listener.gaps), np.concatenate(listener.frames)


async def voice(args: argparse.Namespace) -> dict[str, dict[str, list]]:
    """By fault, before and after the first sample: ms of each round, and whether all of it was heard, and once."""
    arena, tts = Arena(2), Tts(Config())
    await tts.open(arena)
    listener = Listener(arena.slot(0))
    listener.slot.take(8000, 8000)
    found: dict[str, dict[str, list]] = {}
    try:
        await all_well(tts.host)
        _, whole = await listen(tts, listener, 0, True)
        for _ in range(args.rounds):
            for name, number in FAULTS.items():
                for begun in (False, True):
                    await all_well(tts.host)
                    ms, heard = await listen(tts, listener, number, begun)
                    row = found.setdefault(f"{name}, {'begun' if begun else 'asked'}", {"ms": [], "same": []})
                    row["ms"].append(ms)
                    row["same"].append(bool(np.array_equal(heard, whole)))
    finally:
        await tts.close()
    return found


PARTS = {"recogniser": recogniser, "voice": voice}
WHAT = {"recogniser": "ms until another one answers", "voice": "ms of silence in the speech, or before it"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    audio = os.environ.get("OPUSAGENT_BENCH_AUDIO") or BENCH.parent.parent / "shared" / "audio"
    parser.add_argument("--audio", type=Path, default=Path(audio), metavar="DIR",
                        help="recordings with a manifest.json")
    parser.add_argument("--rounds", type=int, default=5, help="of each fault (default 5)")
    parser.add_argument("--only", default=",".join(PARTS), help="of " + ", ".join(PARTS))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "sitecustomize.py").write_text(SICK)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (directory, os.environ.get("PYTHONPATH"))))
        try:
            found = {name: asyncio.run(PARTS[name](args)) for name in PARTS if name in args.only.split(",")}
        except Absent as error:
            print(error, file=sys.stderr)
            return 1
    if args.json:
        print(json.dumps({"machine": machine(), "recovery": found}))
        return 0
    print("; ".join(f"{key} {value}" for key, value in machine().items()))
    for part, rows in found.items():
        lines = [[f"the {part}'s process", "p50", "most", "the same"]]
        lines += [[name, f"{median(row['ms']):.0f}", f"{max(row['ms']):.0f}",
                   f"{sum(row['same'])} of {len(row['same'])}"] for name, row in rows.items()]
        print(f"\n{WHAT[part]}, {args.rounds} rounds\n\n{table(lines)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
