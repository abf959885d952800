"""Prompts from the cache: how soon a server is ready that starts for the first time and again, and how soon a prompt
that was spoken ahead goes out once it is decided.

    python bench/prompts.py [--rounds 5] [--calls 100] [--quick] [--json]

Each round starts the demo's server twice with one new directory of prompts: cold, it speaks them all; warm, it maps
them.  Then calls come to the warm one, one after the other, and hang up when they hear the greeting.  The floor of the
start is the same server without prompts of its own to speak (tones); of the first audio, that it takes no wait at all.
The rule: the receipt's own waits are taken, from the decision to the first voiced sample handed to the socket; the
soft beginning that is kept of a prompt (at most 10 ms) is told apart, since it is sound, though below "voiced".
"""
import argparse
import asyncio
import json
import re
import sys
import tempfile
import time

from pathlib import Path

from figures import Ratio, median, paired_ratio, table
from subjects import Cores, Running, machine, ours

from opusagent.flow import Waits
from opusagent.studio.prompts import Key, Store
from opusagent.studio.studio import demo_flow

AFTER = ("llm_first_token", "segment", "synthesis", "playout")      # waits of a receipt after the decision
TURN = re.compile(r'^\{.*"event":"turn".*\}$', re.MULTILINE)
READY = re.compile(r"(\d+) prompts of .* are ready after ([\d.]+) s: (\d+) had been spoken before")


def start(directory: str, *flags: str) -> tuple[Running, float]:
    began = time.perf_counter()
    server = Running(ours("/", "--stt", "scripted", "--prompts-directory", directory, "--log-format", "json",
                          *flags), Cores.here())
    return server, time.perf_counter() - began


def written(server: Running) -> str:
    server.log.seek(0)
    return server.log.read()


async def call(port: int, count: int) -> None:
    from websockets.asyncio.client import connect
    for _ in range(count):
        async with connect(f"ws://127.0.0.1:{port}/ws/pcm/demo?rate=8000", compression=None) as peer:
            while not isinstance(await peer.recv(), bytes):
                pass


def lead_ms(directory: str) -> float:
    """Of the greeting: what is kept before its first voiced sample."""
    flow = demo_flow(Waits())
    return Store(Path(directory), 1 << 30).load(Key("embedded rms", flow.voice, flow.prompts()[0], 8000)).lead / 8


def measure(args: argparse.Namespace) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {
        name: [] for name in ("cold", "warm", "tones", "first_ms", "lead_ms", "spoken_warm")}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as directory:
            for name, flags in (("tones", ("--tts", "scripted")), ("cold", ()), ("warm", ())):
                server, seconds = start(directory, *flags)
                try:
                    found[name].append(seconds)
                    if name == "warm":
                        asyncio.run(call(server.port, args.calls))
                        time.sleep(0.2)
                        log = written(server)
                        found["spoken_warm"] += [int(all_) - int(before) for all_, _, before in READY.findall(log)]
                        lead = lead_ms(directory)
                        found["lead_ms"].append(lead)
                        receipts = [json.loads(line)["fields"] for line in TURN.findall(log)]
                        found["first_ms"] += [sum(receipt["waits"].get(wait, 0.0) for wait in AFTER) - lead
                                              for receipt in receipts]
                finally:
                    server.stop()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="at least 5 give a 90 %% interval (default 5)")
    parser.add_argument("--calls", type=int, default=100, help="of a round (default 100)")
    parser.add_argument("--quick", action="store_true", help="show that it runs; the figures mean nothing")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.calls = 1, 10
    found = measure(args)
    ratios = {name: paired_ratio(found[name], found["tones"]) for name in ("cold", "warm")}
    if args.json:
        print(json.dumps({"machine": machine(), "seconds": found, "ratios": ratios}, default=Ratio.as_json))
        return 0
    lines = [["start", "seconds until it listens", "beside tones"], ["tones", f"{median(found['tones']):.2f}", ""]]
    lines += [[name, f"{median(found[name]):.2f}", str(ratio)] for name, ratio in ratios.items()]
    first = sorted(found["first_ms"])
    print("; ".join(f"{key} {value}" for key, value in machine().items()))
    print(f"{args.rounds} rounds; texts spoken by warm servers: {sum(found['spoken_warm'])}\n\n{table(lines)}\n")
    print(f"first audio after the decision, {len(first)} greetings: p50 {median(first):.2f} ms, "
          f"p99 {first[min(len(first) - 1, len(first) * 99 // 100)]:.2f} ms, most {first[-1]:.2f} ms"
          f"; then {found['lead_ms'][0]:.0f} ms of it are not voiced")
    return 0


if __name__ == "__main__":
    sys.exit(main())
