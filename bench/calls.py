"""Whole calls with engines that cost nothing: what of a turn is the server's own, and how many calls does a core hold?

    python bench/calls.py [--fifo] [--seconds 20] [--turns 300] [--ramp 100,200,300] [--peer-ramp 5,10,15] [--quick]
                          [--keeps journals,recordings,transcripts]
    python bench/calls.py --embedded [...]      the embedded engines instead, see embedded_calls.py
    python bench/calls.py --dialect [NAME ...]  what a frame costs in a dialect, beside Twilio's: see dialects.py

Callers in C (callers.c) hold calls in the Twilio dialect with OpusAgent and with Pipecat, one server and one load after
the other, on the same core; both ask the same model (stub_llm.py, which answers at once).  Beside them stands the floor
of all timing: a bare 20 ms timer on the same core.  The rule: a figure that the callers' own lateness or another
process may have spoiled is marked.
"""
import argparse
import json
import os
import sys
from dataclasses import replace

from dialects import main as dialects
from embedded_calls import bare_timer
from embedded_calls import main as embedded
from figures import table
from stubbed import ASKS, SAYS, Load, Outcome, Scene, percentile
from subjects import Absent, Cores, allow_connections, machine

OVERHEAD_CALLS = 10
TURN_SECONDS = 3.3              # of the short turns that overhead is measured with, about
FULL = 0.70                     # of the core, and
LATE_MS = 5.0                   # of overhead at p99: beyond either a core is full
SPOILED = 0.02                  # of the time kept off the core, and
CALLERS_LATE_MS = 1.0           # at p99


def doubts(outcome: Outcome) -> str:
    """Why the figures of a run are doubtful; "" where nothing speaks against them."""
    summary = outcome.summary
    reasons = []
    if outcome.kept_off > SPOILED:
        reasons.append(f"kept off its core {outcome.kept_off:.0%}")
    if summary["late_p99"] > CALLERS_LATE_MS:
        reasons.append(f"callers late by {summary['late_p99']:.1f} ms")
    if summary["lost"] or summary["unanswered"]:
        reasons.append(f"{summary['lost']} calls lost, {summary['unanswered']} turns unanswered")
    if outcome.unmatched:
        reasons.append(f"{outcome.unmatched} turns left out")
    return "; ".join(reasons)


def overheads(args: argparse.Namespace, scene: Scene) -> dict[str, Outcome]:
    """What a turn takes beyond its endpoint: ours, with prompts and keys instead of a model, and the peer's; these two
    have a third of the turns, whose p99 needs no more."""
    seconds = args.turns * TURN_SECONDS / OVERHEAD_CALLS
    load = Load(OVERHEAD_CALLS, 6, max(8.0, seconds), short=True)
    found = {"OpusAgent, model": scene.run(scene.agent(ASKS, load.calls), load)}
    load = replace(load, seconds=max(8.0, seconds / 3))
    found["OpusAgent, prompts"] = scene.run(scene.agent(SAYS, load.calls), replace(load, keys=True))
    if args.peer:
        found["Pipecat, model"] = scene.run(scene.pipecat(), load)
    return found


def ramp(args: argparse.Namespace, scene: Scene) -> dict[str, list[Outcome]]:
    """More and more calls, until a core is full or the list is at its end."""
    found: dict[str, list[Outcome]] = {"OpusAgent": [], **({"Pipecat": []} if args.peer else {})}
    for name, steps in (("OpusAgent", args.ramp), ("Pipecat", args.peer_ramp)):
        for calls in steps if name in found else []:
            subject = scene.agent(ASKS, calls, args.keeps) if name == "OpusAgent" else scene.pipecat()
            warm = 8 + calls * (0.02 if name == "OpusAgent" else 0.5)
            found[name].append(scene.run(subject, Load(calls, warm, args.seconds)))
            print(f"{name}, {calls} calls", file=sys.stderr)
            if not holds(found[name][-1], FULL * 1.2, LATE_MS * 4):
                break
    return found


def holds(outcome: Outcome, share: float = FULL, late_ms: float = LATE_MS) -> bool:
    """The core held these calls: not too busy, no turn lost, and p99 in time."""
    return outcome.core <= share and percentile(outcome.overheads, 99) < late_ms \
        and not outcome.summary["lost"] and not outcome.summary["unanswered"]


def overhead_rows(found: dict[str, Outcome], timer: dict) -> list[list[str]]:
    rows = [["", "turns", "p50 ms", "p95", "p99", "above the timer: p50", "p99", "CPU ms/call-s", ""]]
    rows.append(["a bare timer", "", f"{timer['p50']:.2f}", "", f"{timer['p99']:.2f}", "", "", "", ""])
    for name, outcome in found.items():
        rows.append(row_of(name, outcome.overheads, timer, f"{outcome.call_ms:.1f}", doubts(outcome)))
        if outcome.keys:
            rows.append(row_of("   a key, to the first voiced sample", outcome.keys, timer))
    return rows


def row_of(name: str, values: list[float], timer: dict, cost: str = "", doubt: str = "") -> list[str]:
    p50, p95, p99 = (percentile(values, p) for p in (50, 95, 99))
    return [name, str(len(values)), *(f"{value:.2f}" for value in (p50, p95, p99, p50 - timer["p50"],
                                                                   p99 - timer["p99"])), cost, doubt]


def ramp_rows(found: dict[str, list[Outcome]]) -> list[list[str]]:
    rows = [["calls", "core", "CPU ms/call-s", "turns", "overhead p50 ms", "p95", "p99", "holds", ""]]
    for name, outcomes in found.items():
        for outcome in outcomes:
            values = outcome.overheads
            rows.append([f"{name} {outcome.summary['calls']}", f"{outcome.core:.0%}", f"{outcome.call_ms:.2f}",
                         str(len(values)), *(f"{percentile(values, p):.2f}" for p in (50, 95, 99)),
                         "yes" if holds(outcome) else "no", doubts(outcome)])
    return rows


def most(outcomes: list[Outcome]) -> int:
    return max((outcome.summary["calls"] for outcome in outcomes if holds(outcome)), default=0)


def as_json(outcome: Outcome) -> dict:
    return {"callers": outcome.summary, "overhead_ms": outcome.overheads, "keys_ms": outcome.keys,
            "early": outcome.early, "unmatched": outcome.unmatched}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    steps = lambda text: [int(n) for n in text.split(",")]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=300, help=f"to measure overhead with, at {OVERHEAD_CALLS} calls")
    parser.add_argument("--ramp", type=steps, default=[50, 100, 200, 300, 400], help="calls at once, ours")
    parser.add_argument("--peer-ramp", type=steps, default=[5, 10, 15, 20], help="... and the peer's")
    parser.add_argument("--seconds", type=float, default=20, help="of each number of calls (default 20)")
    parser.add_argument("--only", choices=("overhead", "ramp"), help="one of the two measurements")
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="without Pipecat")
    parser.add_argument("--keeps", type=lambda text: tuple(text.split(",")), default=(), metavar="WHAT,...",
                        help="what the calls of the ramp leave on disk: journals, recordings, transcripts")
    parser.add_argument("--fifo", action="store_true", help="SCHED_FIFO on both cores (as root, where others work too)")
    parser.add_argument("--quick", action="store_true", help="seconds only: shows that it runs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if args.quick:
        args.turns, args.ramp, args.peer_ramp, args.seconds = 20, [5, 20], [2], 6
    return args


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if "--embedded" in argv:
        return embedded([word for word in argv if word != "--embedded"])
    if "--dialect" in argv:
        return dialects([word for word in argv if word != "--dialect"])
    args, cores = parse(argv), None
    cores = Cores.here(args.fifo)
    os.environ["OPENAI_API_KEY"] = "stub"
    allow_connections(max(args.ramp))
    try:
        with Scene(cores, 7) as scene:
            if args.peer and (absent := scene.pipecat().absent()):
                print(absent, file=sys.stderr)
                args.peer = False
            who, timer = scene.who, bare_timer(OVERHEAD_CALLS, cores)
            found = overheads(args, scene) if args.only != "ramp" else {}
        with Scene(cores, 20) as scene:
            ramps = ramp(args, scene) if args.only != "overhead" else {}
    except Absent as why:
        print(f"bench/calls.py: {why}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({"machine": machine(), "callers": who, "timer_ms": timer,
                          "overhead": {name: as_json(outcome) for name, outcome in found.items()},
                          "ramp": {name: [as_json(each) for each in outcomes] for name, outcomes in ramps.items()}}))
        return 0
    print(f"The callers are {who}.  Servers on core {cores.server}, callers and the model on core {cores.client}"
          f"{', SCHED_FIFO' if args.fifo else ''}; " + "; ".join(f"{key} {value}" for key, value in machine().items()))
    if found:
        print(f"\nA turn's own overhead, {OVERHEAD_CALLS} calls\n{table(overhead_rows(found, timer))}")
    if ramps:
        print(f"\nMore and more calls\n{table(ramp_rows(ramps))}")
    for name, outcomes in ramps.items():
        print(f"{name}: {most(outcomes)} calls on a core, of those tried, at p99 below {LATE_MS:g} ms and "
              f"at most {FULL:.0%} of it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
