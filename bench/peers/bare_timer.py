"""Floor: N timers of 20 ms on a bare uvloop, and how late they are.  usage: bare_timer.py N SECONDS

Not a server: what is late here is the kernel, the loop and the machine, before any work is done.
Prints one line of JSON, ms: {"p50": ..., "p99": ..., "max": ...}.
"""
import asyncio
import json
import sys
import time

import uvloop

PERIOD = 20_000_000


async def timer(phase: int, until: int, late: list[int]) -> None:
    due = time.monotonic_ns() + phase
    while due < until:
        await asyncio.sleep(max(0, due - time.monotonic_ns()) / 1e9)
        late.append(max(0, time.monotonic_ns() - due))
        due += PERIOD


async def main(n: int, seconds: float) -> None:
    late: list[int] = []
    until = time.monotonic_ns() + int(seconds * 1e9)
    await asyncio.gather(*(timer(PERIOD * i // n, until, late) for i in range(n)))
    late.sort()
    print(json.dumps({name: late[int((len(late) - 1) * share)] / 1e6
                      for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1))}))


uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
