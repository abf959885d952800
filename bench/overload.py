"""A thousand calls dialled within a second: how many are served, how well, and how soon the others are told?

    python bench/overload.py [--dialled 1000] [--seconds 15] [--fifo] [--quick] [--json]

One server with one worker on one core, scripted engines and its own admission as it comes; callers in C (callers.c) on
another.  First some calls, then more, as a server sees them in the course of a day, to see what they cost; then half of
what the server would hold by that, which is what the others are compared with; then the storm, on the same server.
The rule: beside a turn as callers hear it, from their last voiced sample to the agent's first, stands what of it is the
server's own, counted as in calls.py from the frame that ended the turn: the flow's wait of 200 ms, which is the same
under any load, would hide it.
"""
import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path

from figures import table
from stubbed import SAYS, Outcome, Scene, ends_of, judged, percentile
from subjects import Absent, Cores, Running, Subject, allow_connections, build, machine, ours

FIRST = (20, 40, 80)            # calls, to see what they cost
FULL = 0.70                     # admission.refuse_above, as it comes
PAUSE = 4                       # seconds between two loads
RAMP = 0.6                      # of the callers' time before they measure, in which they dial
TARGETS = {"turn_ratio": 1.2, "refused_ms": 50.0}


def agent(scene: Scene) -> Subject:
    """Ours, whose admission is the only thing that refuses a call."""
    return ours("/ws/twilio", "--flow", scene.write("flow.toml", SAYS), "--stt", "scripted", "--scripted-stt",
                scene.write("heard.txt", "where is my order\n"), "--tts", "scripted", "--llm", "scripted",
                "--max-calls", "5000", "--log-format", "json")


def drive(scene: Scene, server: Running, calls: int, warm: float, seconds: float) -> tuple[dict, list[dict]]:
    """The callers' own line, and their turns."""
    records = scene.folder / "turns.jsonl"
    pids = [flag for pid in server.pids() for flag in ("-p", str(pid))]
    done = subprocess.run(
        [build("callers"), "-r", "-c", str(calls), "-w", str(warm), "-d", str(seconds), "-u", server.subject.path, "-s",
         "200", "-o", str(records), *pids, "-f", scene.speech[0], "127.0.0.1", str(server.port)],
        capture_output=True, text=True, preexec_fn=lambda: scene.cores.settle(scene.cores.client))
    if not done.stdout:
        raise RuntimeError(f"the callers ended with {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout), [json.loads(line) for line in Path(records).read_text().splitlines()]


def measure(scene: Scene, dialled: int, seconds: float) -> dict:
    """One round."""
    server = Running(agent(scene), scene.cores)
    try:
        for calls in FIRST:
            first, _ = drive(scene, server, calls, 2, seconds / 2)
            time.sleep(PAUSE)
        room = room_for(first)
        half = drive(scene, server, max(1, room // 2), 3, seconds)
        time.sleep(PAUSE)
        storm = drive(scene, server, dialled, 1 / RAMP, seconds)
        said = server.said()
    finally:
        server.stop()
    ends = ends_of(said)
    calm, busy = (judged(summary, turns, ends) for summary, turns in (half, storm))
    for outcome, turns in ((calm, half[1]), (busy, storm[1])):
        outcome.keys = sorted((turn["answer"] - turn["end"]) / 1e6 for turn in turns
                              if turn["measured"] and turn["answer"] is not None)
    calm, busy = figures(calm), figures(busy)
    return {"room": room, "half": calm, "storm": busy, "answers": storm[0],
            "turn_ratio": busy["turn_p99"] / calm["turn_p99"], "overhead_ratio": busy["p99"] / calm["p99"]}


def room_for(first: dict) -> int:
    """Calls that FULL of the core holds, if each costs as much as one of these.  Absent where none was taken."""
    if not first["taken"]:
        raise Absent(f"none of {first['calls']} calls was taken, so it is not known what one costs: others hold the "
                     "server's core; try again when the machine is calmer")
    return int(FULL / (first["server_ns"] / 1e9 / first["secs"] / first["taken"]))


def figures(outcome: Outcome) -> dict:
    summary, values = outcome.summary, outcome.overheads
    return {"calls": summary["taken"], "core": outcome.core, "kept_off": outcome.kept_off, "turns": len(values),
            "p50": percentile(values, 50), "p99": percentile(values, 99), "turn_p50": percentile(outcome.keys, 50),
            "turn_p99": percentile(outcome.keys, 99), "lost": summary["lost"],
            "callers_late_p99": summary["late_p99"], "unanswered": summary["unanswered"]}


def shown(row: dict) -> str:
    rows = [["", "calls", "core", "turns", "turn p50", "p99", "of it ours p50", "p99 ms", "lost", "unanswered",
             "kept off", "callers late p99 ms"]]
    for name in ("half", "storm"):
        each = row[name]
        rows.append([name, str(each["calls"]), f"{each['core']:.0%}", str(each["turns"]), f"{each['turn_p50']:.0f}",
                     f"{each['turn_p99']:.0f}", f"{each['p50']:.2f}", f"{each['p99']:.2f}", str(each["lost"]),
                     str(each["unanswered"]), f"{each['kept_off']:.0%}", f"{each['callers_late_p99']:.2f}"])
    answers = row["answers"]
    return (f"{table(rows)}\n\nRoom for {row['room']} calls, if each cost as much as one of {FIRST[-1]}.  Of "
            f"{answers['calls']} dialled within a second {answers['taken']} were taken (101 after "
            f"{answers['taken_p50']:.0f} ms, p99 {answers['taken_p99']:.0f}) and {answers['refused']} refused after "
            f"{answers['refused_p50']:.1f} ms, p99 {answers['refused_p99']:.1f}, max {answers['refused_max']:.1f} "
            f"({answers['without_retry_after']} without Retry-After); {answers['lost']} lost.\n"
            f"A turn at p99: {row['turn_ratio']:.2f} times that at half load (wished for: at most "
            f"{TARGETS['turn_ratio']:g}), what of it is ours {row['overhead_ratio']:.2f} times; "
            f"refused within {TARGETS['refused_ms']:g} ms: "
            f"{'all' if answers['refused_max'] <= TARGETS['refused_ms'] else 'not all'}.")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dialled", type=int, default=1000, help="calls, within a second (default 1000)")
    parser.add_argument("--seconds", type=float, default=15, help="of each load (default 15)")
    parser.add_argument("--fifo", action="store_true", help="SCHED_FIFO on both cores (as root, where others work too)")
    parser.add_argument("--quick", action="store_true", help="seconds only: shows that it runs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if args.quick:
        args.dialled, args.seconds = 50, 4
    cores = Cores.here(args.fifo)
    allow_connections(args.dialled + 100)
    try:
        with Scene(cores, 7) as scene:
            row = measure(scene, args.dialled, args.seconds)
    except Absent as why:
        print(f"bench/overload.py: {why}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({"machine": machine(), **row}))
        return 0
    print(f"Server on core {cores.server}, callers on core {cores.client}{', SCHED_FIFO' if args.fifo else ''}; "
          + "; ".join(f"{key} {value}" for key, value in machine().items()) + "\n")
    print(shown(row))
    return 0 if not row["answers"]["lost"] and not math.isnan(row["turn_ratio"]) else 1


if __name__ == "__main__":
    sys.exit(main())
