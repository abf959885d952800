"""The command `latency-test`: simulated voice traffic, and its latencies.

It holds no conversation itself (caller.py, telephone.py).  The rule: transport and conversation are measured apart:
how long a frame takes to the echo agent and back, and how long a person waits for an answer.
"""
import argparse
import asyncio
import json

from .. import ConfigError, ProtocolError
from .caller import Say
from .localserver import LocalServer
from .people import person
from .probe import Probe
from .telephone import Caller, address, line_rate, run, spoken_to
from .terminal import CUT_OFF, TOO_BUSY, Terminal, histogram, summary, summary_line, too_late, waited

PROBES = 2                      # echo calls that time frames while the others talk


class Figures:
    """What a test has measured so far."""

    __slots__ = ("frames", "gaps", "reactions", "late", "calls", "unanswered", "failures")

    def __init__(self) -> None:
        self.frames: list[float] = []       # ms, round trip of a frame to the echo agent
        self.gaps: list[float] = []         # ms, voice-to-voice; below 0: the turn was cut off
        self.reactions: list[float] = []    # ms, from barge-in to silence
        self.late: list[float] = []         # ms, of the callers' own beats
        self.calls = 0                      # begun
        self.unanswered = 0                 # turns
        self.failures: list[str] = []       # a sentence for each call that could not be held

    def as_json(self) -> dict:
        waits, cut_off = waited(self.gaps)
        return {"calls": self.calls, "unanswered_turns": self.unanswered, "failures": self.failures,
                "frame_round_trip_ms": summary(self.frames), "voice_to_voice_ms": summary(waits), "cut_off": cut_off,
                "barge_in_reaction_ms": summary(self.reactions), "caller_late_ms": summary(self.late)}


def latency_test_command(args: argparse.Namespace) -> int:
    """`opusagent latency-test`; the exit code is 0 if both latencies were measured.  ConfigError for wrong input."""
    if not (args.duration > 0 and args.rate > 0 and args.calls > 0):
        raise ConfigError("--duration, --rate and --calls must be above 0.")
    return run("latency-test", latency_test(args, Terminal()))


async def latency_test(args: argparse.Namespace, terminal: Terminal) -> int:
    if args.url:
        return await latency_test_at(args.url, args, terminal)
    async with LocalServer() as server:
        return await latency_test_at(f"ws://127.0.0.1:{server.port}/ws/twilio", args, terminal)


async def latency_test_at(url: str, args: argparse.Namespace, terminal: Terminal) -> int:
    dialect = spoken_to(url)
    who, says = person(line_rate(url, dialect))
    echo = echo_beside(url, dialect)
    if not args.json:
        terminal.say(f"{args.duration:g} s of calls to {url}, {args.rate:g} begun a second, up to {args.calls}.\n"
                     f"The callers are {who}.")
    figures = Figures()
    async with asyncio.TaskGroup() as tasks:
        for i in range(PROBES):
            tasks.create_task(time_frames(Probe(echo, dialect), args.duration, i * 0.02 / PROBES, figures))
        tasks.create_task(traffic(url, dialect, says, args, figures))
    if args.json:
        terminal.say(json.dumps({"url": url} | figures.as_json()))
    else:
        print_figures(terminal, echo, figures)
    return 0 if figures.frames and figures.gaps else 1


def echo_beside(url: str, dialect: str) -> str:
    """The address of the echo agent on the server that `url` is on."""
    parts = address(url)
    return f"{parts.scheme}://{parts.netloc}/ws/{dialect}/echo" + (f"?{parts.query}" if parts.query else "")


async def time_frames(probe: Probe, seconds: float, after: float, figures: Figures) -> None:
    """An echo call for the whole of the test; `after` sets its beats apart from the others'."""
    await asyncio.sleep(after)
    try:
        await probe.run(seconds)
    except (ProtocolError, OSError, TimeoutError) as error:
        figures.failures.append(f"The echo agent at {probe.url} did not take the call: {error or 'no answer in time'}")
    figures.frames += [ns / 1e6 for ns in probe.round_trips]
    figures.late += [ns / 1e6 for ns in probe.clock.late]


async def traffic(url: str, dialect: str, says: list[Say], args: argparse.Namespace, figures: Figures) -> None:
    """Calls begun at the rate while there is room, until the time is up; then those under way hang up."""
    loop = asyncio.get_running_loop()
    end = loop.time() + args.duration
    talking: dict[asyncio.Task, Caller] = {}
    while (left := end - loop.time()) > 0:
        talking = {task: caller for task, caller in talking.items() if not task.done()}
        if len(talking) < args.calls:
            caller = Caller(url, dialect, says)
            talking[asyncio.create_task(conversation(caller, figures))] = caller
        await asyncio.sleep(min(1 / args.rate, left))
    for caller in talking.values():
        caller.hang_up()
    await asyncio.gather(*talking)


async def conversation(caller: Caller, figures: Figures) -> None:
    figures.calls += 1
    try:
        async for turn in caller.converse():
            if turn.gap_ms is not None:
                figures.gaps.append(turn.gap_ms)
            if turn.reaction_ms is not None:
                figures.reactions.append(turn.reaction_ms)
            figures.unanswered += turn.gave_up
    except (ProtocolError, OSError, TimeoutError) as error:
        figures.failures.append(f"A call to {caller.url} was not taken: {error or 'no answer in time'}")
    figures.late += [ns / 1e6 for ns in caller.clock.late]


def print_figures(terminal: Terminal, echo: str, figures: Figures) -> None:
    print_section(terminal, f"Frame round trip: {len(figures.frames)} frames to {echo} and back", figures.frames)
    waits, cut_off = waited(figures.gaps)
    print_section(terminal, f"Voice-to-voice: {len(waits)} turns in {figures.calls} calls", waits)
    if cut_off:
        terminal.say(terminal.paint("red", f"{CUT_OFF}: {cut_off}."))
    if figures.reactions:
        print_section(terminal, f"Barge-in until silence: {len(figures.reactions)} times", figures.reactions)
    terminal.say(f"\nLateness of the callers' own frames:\n{summary_line(figures.late)}")
    if too_late(figures.late):
        terminal.say(terminal.paint("red", TOO_BUSY))
    if figures.unanswered:
        terminal.say(terminal.paint("red", f"{figures.unanswered} turns got no answer."))
    for sentence in dict.fromkeys(figures.failures):
        times = figures.failures.count(sentence)
        terminal.say(terminal.paint("red", sentence + (f" ({times} times)" if times > 1 else "")))


def print_section(terminal: Terminal, title: str, values: list[float]) -> None:
    terminal.say(f"\n{terminal.paint('bold', title)}\n{summary_line(values)}")
    for line in histogram(terminal, values):
        terminal.say(line)
