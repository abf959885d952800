"""An engine process fails in mid-utterance: how long until another one answers, and is a word lost?

    python bench/recovery.py [--audio DIR] [--rounds 5] [--json]

A recording of five digits goes in as a call brings it, 20 ms at a time.  After a second of it something happens to the
recogniser's process: it is killed, stopped, crashes, exits, sleeps or computes for ever.  From then on its best
text is asked for every 20 ms; recovery is the time from the fault to the first answer of the process that takes over.
The floor is the same question without a fault.  The rule: the transcript has to be the same as without one.
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
from engines import AFTER_MS, BEFORE_MS, FLOW, recordings
from figures import median, table
from subjects import BENCH, Absent, machine

from opusagent._fastpath import Arena
from opusagent.config import Config
from opusagent.engines.local import Stt
from opusagent.flow import Flow

FAULTS = {"none": 0, "killed": signal.SIGKILL, "stopped": signal.SIGSTOP, "crashed": signal.SIGSEGV,
          "exits": signal.SIGUSR1, "sleeps": signal.SIGUSR2, "computes": signal.SIGALRM}
FAULT_MS = 1000                 # of the recording
CLIP, TEXT = "dhd_2934z", "two nine three four zero"
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


async def measure(args: argparse.Namespace) -> dict[str, dict[str, list]]:
    flow = Flow.parse(FLOW, "bench")
    silence = np.zeros(8000, np.int16)
    pcm = np.concatenate((silence[:8 * BEFORE_MS], recordings(args.audio, 8000)[CLIP][1], silence[:8 * AFTER_MS]))
    found: dict[str, dict[str, list]] = {name: {"ms": [], "text": []} for name in FAULTS}
    arena = Arena(2)
    stt = Stt(Config())
    await stt.open(arena, flow.searches)
    caller = Caller(arena.slot(0))
    caller.slot.take(8000, 8000)
    try:
        for _ in range(args.rounds):
            for name, number in FAULTS.items():
                while not all(process is not None and process.ready and not process.late(time.monotonic_ns())
                              for process in (*stt.host.live, stt.host.spare)):
                    await asyncio.sleep(0.01)
                ms, text = await utterance(stt, caller, flow.states["five"].expect.id, pcm, number)
                found[name]["ms"].append(ms)
                found[name]["text"].append(text)
    finally:
        await stt.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    audio = os.environ.get("OPUSAGENT_BENCH_AUDIO") or BENCH.parent.parent / "shared" / "audio"
    parser.add_argument("--audio", type=Path, default=Path(audio), metavar="DIR",
                        help="recordings with a manifest.json")
    parser.add_argument("--rounds", type=int, default=5, help="of each fault (default 5)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "sitecustomize.py").write_text(SICK)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (directory, os.environ.get("PYTHONPATH"))))
        try:
            found = asyncio.run(measure(args))
        except Absent as error:
            print(error, file=sys.stderr)
            return 1
    if args.json:
        print(json.dumps({"machine": machine(), "recovery": found}))
        return 0
    lines = [["the process", "recovery ms p50", "most", "same words"]]
    for name, row in found.items():
        same = sum(text == TEXT for text in row["text"])
        lines.append([name, f"{median(row['ms']):.0f}", f"{max(row['ms']):.0f}", f"{same} of {len(row['text'])}"])
    print("; ".join(f"{key} {value}" for key, value in machine().items()))
    print(f"{args.rounds} rounds\n\n{table(lines)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
