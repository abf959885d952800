"""Whole calls at once, engines included: how long does a caller wait, and what does a call cost?

    python bench/calls.py --embedded [--calls 1,10,50] [--rounds 3] [--seconds 30] [--quick] [--json]

Callers made of recordings of people hold the demo's conversation over real WebSockets, as many at once as are asked
for; who has finished calls again.  Beside each stands the floor of its timing: as many bare 20 ms timers on the same
core.  Turns that the agent cut off are counted by themselves: nobody waited there.  The rule: each round holds every
number of calls on a server of its own, and ratios are taken within the round.
"""
import argparse
import asyncio
import json
import os
import subprocess
import sys

import uvloop
from figures import Ratio, median, paired_ratio, table
from opusagent.client.latency import Figures, traffic
from opusagent.client.localserver import fetch_json
from opusagent.client.people import person
from opusagent.client.terminal import summary as figures_of
from opusagent.client.terminal import waited
from subjects import BENCH, Absent, Cores, Running, machine, ours, processor_ns

RAMP_SECONDS = 20       # over which the callers begin, so that they do not speak in chorus; not measured
FLOOR_SECONDS = 2


def bare_timer(n: int, cores: Cores) -> dict:
    run = subprocess.run([sys.executable, str(BENCH / "peers" / "bare_timer.py"), str(n), str(FLOOR_SECONDS)],
                         capture_output=True, text=True, check=True, preexec_fn=lambda: cores.settle(cores.server))
    return json.loads(run.stdout)


async def hold(n: int, seconds: float, server: Running, says: list) -> dict:
    """`n` calls at once for so long; what they measured and what they cost."""
    url = f"ws://127.0.0.1:{server.port}/ws/twilio/demo"
    ramp = min(RAMP_SECONDS, seconds)
    figures = Figures()
    calls = asyncio.create_task(traffic(
        url, "twilio", says, argparse.Namespace(duration=ramp + seconds, rate=n / ramp, calls=n), figures))
    await asyncio.sleep(ramp)
    figures.gaps.clear()
    _, worker, *engines = server.pids()                 # the supervisor is the first
    before = processor_ns([worker]), processor_ns(engines)
    await asyncio.sleep(seconds - 0.1)
    after = processor_ns([worker]), processor_ns(engines)
    health = await fetch_json(url, "/health")
    await calls
    waits, cut_off = waited(figures.gaps)
    gaps, late = figures_of(waits), figures_of(figures.late)
    call_seconds = n * (seconds - 0.1)
    return {
        "turns": gaps["count"], "calls": figures.calls, "cut_off": cut_off, "unanswered": figures.unanswered,
        "failures": figures.failures[:3], "failed_calls": len(figures.failures),
        **{f"v2v_p{p}": gaps.get(f"p{p}", float("nan")) for p in (50, 95, 99)},
        "frame_p99": health["latency"]["p99_ms"], "lag_p99": health["loop_lag"]["p99_ms"],
        "worker_ms": (after[0] - before[0]) / 1e6 / call_seconds,
        "engines_ms": (after[1] - before[1]) / 1e6 / call_seconds,
        "caller_late_p99": late["p99"],
    }


def measure(args: argparse.Namespace, cores: Cores, says: list) -> dict[int, list[dict]]:
    """{calls at once: figures, one per round}"""
    results: dict[int, list[dict]] = {n: [] for n in args.calls}
    for i in range(args.rounds):
        for n in args.calls:
            floor = bare_timer(n, cores)
            server = Running(ours("", "--log-level", "warning"), cores)
            try:
                results[n].append(uvloop.run(hold(n, args.seconds, server, says)) | {"timer_p99": floor["p99"]})
            finally:
                server.stop()
            print(f"round {i + 1} of {args.rounds}, {n} calls", file=sys.stderr)
    return results


def summary(results: dict[int, list[dict]]) -> dict[int, dict]:
    """{calls at once: medians over the rounds, and ratios to the smallest number of calls}"""
    least = results[min(results)]
    out = {}
    for n, runs in results.items():
        row = {key: median([run[key] for run in runs]) for key in runs[0] if key != "failures"}
        row["turns"], row["cut_off"] = (sum(run[key] for run in runs) for key in ("turns", "cut_off"))
        row["failures"] = [sentence for run in runs for sentence in run["failures"]][:3]
        for key, name in (("v2v_p50", "x_wait"), ("worker_ms", "x_cost")):
            row[name] = paired_ratio([run[key] for run in runs], [run[key] for run in least])
        out[n] = row
    return out


def print_figures(rows: dict[int, dict]) -> None:
    least = min(rows)
    waits = [["calls", "turns", "voice-to-voice p50", "p95", "p99", f"p50 x {least} call", "cut off",
              "no answer", "callers late p99"]]
    costs = [["calls", "frame p99 ms", "loop lag p99 ms", "bare timer p99 ms", "worker ms/call-s", f"x {least} call",
              "engines ms/call-s"]]
    for n, row in rows.items():
        waits.append([str(n), str(row["turns"]), *(f"{row[f'v2v_p{p}']:.0f}" for p in (50, 95, 99)),
                      "1" if n == least else str(row["x_wait"]), str(row["cut_off"]), f"{row['unanswered']:.0f}",
                      f"{row['caller_late_p99']:.2f}"])
        costs.append([str(n), *(f"{row[key]:.3f}" for key in ("frame_p99", "lag_p99", "timer_p99")),
                      f"{row['worker_ms']:.2f}", "1" if n == least else str(row["x_cost"]), f"{row['engines_ms']:.1f}"])
    print(f"\nWhat callers waited, ms\n{table(waits)}\n\nWhat it cost the server\n{table(costs)}")
    for n, row in rows.items():
        for sentence in row["failures"]:
            print(f"{n} calls: {sentence}")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("calls.py --embedded", description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=lambda text: [int(n) for n in text.split(",")], default=[1, 10, 50],
                        help="at once (default 1,10,50)")
    parser.add_argument("--rounds", type=int, default=3, help="at least 5 give a 90 %% interval (default 3)")
    parser.add_argument("--seconds", type=float, default=30, help="of each number of calls (default 30)")
    parser.add_argument("--quick", action="store_true", help="1 round of 10 s with 1 and 5 calls: shows that it runs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if args.quick:
        args.calls, args.rounds, args.seconds = [1, 5], 1, 10
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    cores = Cores.here()
    who, says = person(8000)
    if cores.client is not None:
        os.sched_setaffinity(0, {cores.client})
    try:
        rows = summary(measure(args, cores, says))
    except Absent as why:
        print(f"bench/calls.py: {why}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({"machine": machine(), "callers": who, "calls": rows}, default=Ratio.as_json))
    else:
        print(f"The demo's conversation, {args.rounds} rounds of {args.seconds:g} s; the callers are {who}.\n"
              f"Server on core {cores.server}, callers on core {cores.client}; "
              + "; ".join(f"{key} {value}" for key, value in machine().items()))
        print_figures(rows)
        print("\nRatios are the median of the rounds' paired ratios, with their 90 % interval"
              + ("." if args.rounds >= 5 else ", which needs 5 rounds; '?' marks the mere range."))
    return int(any(not row["turns"] or row["failed_calls"] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
