"""Telephone agents with engines that cost nothing, and callers in C: what of a turn is the agent's own, and its price.

It prints nothing.  The rules: ours and the peer get the same callers, the same model behind HTTP and voices of the
same length; and a turn's overhead is counted from the frame that ended the turn, by the sample position at which the
agent's own detector found that end, to the first voiced frame of the answer, both in the callers' clock.

    caller    ...####  silence  |                 frame that ends the turn leaves
    agent                       |<- overhead ->#####
"""
import json
import math
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from opusagent._fastpath import ulaw_encode
from opusagent.client.people import person
from subjects import BENCH, Cores, Running, Subject, build, ours

FRAME_NS = 20_000_000
ROOM_MS = 100               # of a recording around what is voiced in it
TURN = re.compile(r'^\{.*"event":"turn".*\}$', re.MULTILINE)
ENDPOINT = re.compile(r"^endpoint (\S+) (\d+) (\d+)$", re.MULTILINE)

FLOW = """
start = "chat"
[waits]
complete = 140
free = 200
[states.chat]
say = "Hello."
{prompt}
on = [{{ phrases = ["goodbye"], go = "bye" }}, {{ dtmf = "5", say = "You have pressed five." }}, {{ free = true{say} }}]
[states.bye]
say = "Goodbye."
end = true
"""
ASKS = FLOW.format(prompt='prompt = "You are a phone agent."', say="")
SAYS = FLOW.format(prompt="", say=', say = "Sure thing, I can help you."')


@dataclass(slots=True)
class Load:
    """What the callers do."""
    calls: int                          # at once
    warm: float                         # seconds, not measured
    seconds: float
    keys: bool = False                  # every second turn is a key
    short: bool = False                 # they say only the shortest of what they have to say


@dataclass(slots=True)
class Outcome:
    """What came of it."""
    summary: dict                       # the callers' own line
    overheads: list[float] = field(default_factory=list)    # ms, of spoken turns, sorted
    keys: list[float] = field(default_factory=list)         # ms from a key to the first voiced sample
    early: int = 0                      # turns that were ended before the caller had spoken to the end
    unmatched: int = 0                  # answered turns of which the agent told no end
    threaded: bool = False              # the server works in threads

    @property
    def call_ms(self) -> float:
        """Of the processor for a second of a call."""
        return self.summary["server_ns"] / 1e6 / self.summary["secs"] / self.summary["calls"]

    @property
    def core(self) -> float:
        """Share of a core."""
        return self.summary["server_ns"] / 1e9 / self.summary["secs"]

    @property
    def kept_off(self) -> float:
        """Share of the time in which the server could have run and something else had its core; nothing is known of a
        server whose threads wait for each other."""
        return 0.0 if self.threaded else self.summary["server_wait_ns"] / 1e9 / self.summary["secs"]


def percentile(ordered: list[float], p: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))] if ordered else math.nan


KEEPS = ("journals", "recordings", "transcripts")


class Scene:
    """The files and the model that all runs share; a context."""

    def __init__(self, cores: Cores, tokens: int):
        self.cores = cores
        self.tokens = tokens                    # of the model's answer
        self._folder = tempfile.TemporaryDirectory(prefix="opusagent-bench-")
        self.folder = Path(self._folder.name)

    def __enter__(self) -> "Scene":
        self.who, says = person(8000)
        self.speech = []
        for i, say in enumerate(sorted(says, key=lambda say: say.voiced_to - say.voiced_from)):
            room = ROOM_MS * 8
            pcm = np.ascontiguousarray(say.pcm[max(0, say.voiced_from - room):say.voiced_to + room])
            codes = bytearray(len(pcm))
            ulaw_encode(pcm, codes)
            self.speech.append(self.write(f"{i}.ulaw", bytes(codes)))
        model = Subject("the model", (sys.executable, str(BENCH / "stub_llm.py"), "--port", "PORT", "--itl-ms", "0",
                                      "--tokens", str(self.tokens)))
        self.model = Running(model, Cores(self.cores.client, None, self.cores.fifo))
        return self

    def __exit__(self, *error) -> None:
        self.model.stop()
        self._folder.cleanup()

    def write(self, name: str, content: str | bytes) -> str:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    # -- the subjects

    def agent(self, flow: str, calls: int, keeps: tuple[str, ...] = ()) -> Subject:
        """Ours.  Its calls are longer and more alike than people's, so what they may throw away is not bounded."""
        kept = [f"--{'' if what in keeps else 'no-'}archive-{what}" for what in KEEPS]
        return ours("/ws/twilio", "--flow", self.write("flow.toml", flow), "--stt", "scripted", "--scripted-stt",
                    self.write("heard.txt", "where is my order\n"), "--tts", "scripted", "--llm", "openai",
                    "--openai-base-url", f"http://127.0.0.1:{self.model.port}/v1", "--max-calls", str(calls + 10),
                    "--admission-refuse-above", "1", "--admission-resume-below", "1", "--turns-speculations", "100000",
                    "--log-format", "json",
                    *(("--archive-directory", str(self.folder / "kept"), *kept) if keeps else ()))

    def pipecat(self) -> Subject:
        return Subject("Pipecat", (sys.executable, str(BENCH / "peers" / "pipecat_agent.py"), "PORT",
                                   f"http://127.0.0.1:{self.model.port}/v1"), "/ws", ("pipecat", "fastapi", "uvicorn"))

    # -- a run

    def run(self, subject: Subject, load: Load) -> Outcome:
        """One load on a server of its own.  Raises Absent where it does not start."""
        program, records = build("callers"), self.folder / "turns.jsonl"
        server = Running(subject, self.cores)
        try:
            pids = [flag for pid in server.pids() for flag in ("-p", str(pid))]
            speech = [flag for path in self.speech[:1 if load.short else None] for flag in ("-f", path)]
            done = subprocess.run(
                [program, "-c", str(load.calls), "-w", str(load.warm), "-d", str(load.seconds), "-u", subject.path,
                 "-s", "200" if load.short else "500", "-o", str(records), *["-k"][:load.keys], *pids, *speech,
                 "127.0.0.1", str(server.port)],
                capture_output=True, text=True, preexec_fn=lambda: self.cores.settle(self.cores.client))
        finally:
            server.log.seek(0)
            said = server.log.read()
            server.stop()
        if not done.stdout:
            raise RuntimeError(f"the callers ended with {done.returncode}: {done.stderr.strip()}")
        turns = [json.loads(line) for line in records.read_text().splitlines()]
        outcome = judged(json.loads(done.stdout), turns, ends_of(said))
        outcome.threaded = subject.name == "Pipecat"
        return outcome


# -- which frame ended a turn ------------------------------------------------------------------------------------------

def ends_of(said: str) -> dict[str, list]:
    """Call id -> the ends of turns that the agent told: functions of a turn, the frame that brought it or None."""
    ends = defaultdict(list)
    for line in map(json.loads, TURN.findall(said)):
        if (decided := line["fields"]["decided_ms"]) is not None:
            ends[line["call"]].append(at_position(decided * 8))
    for call, frames, silent in ENDPOINT.findall(said):
        ends[call].append(after_silence(int(frames), int(silent)))
    return ends


def at_position(samples: float):
    """The agent has said at which sample of the call it knew."""
    frame = math.ceil(samples / 160) - 1
    return lambda turn: frame


def after_silence(frames: int, silent: int):
    """It has said how many frames it had taken, some of which may have been lost at the beginning of the call, and how
    many of the last were silence, which the callers send from the end of their words on."""
    return lambda turn: turn["last"] + silent if abs(turn["last"] + silent - frames) < 25 else None


def judged(summary: dict, turns: list[dict], ends: dict[str, list]) -> Outcome:
    outcome = Outcome(summary)
    for turn in turns:
        if not turn["measured"] or turn["arrived"] is None:
            continue
        if turn["kind"] == "key":
            outcome.keys.append((turn["answer"] - turn["end"]) / 1e6)
            continue
        if turn["answer"] < turn["end"]:
            outcome.early += 1
            continue
        frame = ended_by(turn, ends[turn["id"]])
        if frame is None:
            outcome.unmatched += 1
        else:
            left = frame * FRAME_NS + turn["late"][frame - turn["last"]] * 1000
            outcome.overheads.append((turn["arrived"] - left) / 1e6)
    outcome.overheads.sort()
    outcome.keys.sort()
    return outcome


def ended_by(turn: dict, ends: list) -> int | None:
    """The frame of the call that ended a turn: the last end that was told between its words and its answer."""
    frames = [frame for end in ends if (frame := end(turn)) is not None and
              0 <= frame - turn["last"] < len(turn["late"]) and frame * FRAME_NS <= turn["arrived"]]
    return max(frames, default=None)
