"""What does one chunk of a streamed completion cost the worker's loop, on its way from the socket to a piece of text?

    python bench/llm_chunk.py [--streams 40] [--tokens 100] [--gap-ms 20] [--rounds 9] [--quick] [--json]

As many completions at once stream from stub_llm.py, a chunk each per gap, as in that many calls in which the agent is
about to speak.  Ours (engines/openai.py) stands beside the `openai` package's typed events, the package's lines parsed
with orjson, and the floor: an asyncio protocol that counts bytes, which pays for the system calls and nothing else.
The rule: what is counted is CPU time of the loop's thread once all of them have begun, so that asking is not in it;
and within a round all meet the same load one after another.
"""
import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator

import openai
import orjson
import uvloop
from figures import Ratio, median, median_interval, paired_ratio, table
from opusagent.config import Config, OpenAI
from opusagent.engines.openai import Llm
from subjects import BENCH, Absent, Cores, Running, Subject, machine

FLOOR, OURS, LINES, TYPED = "bare protocol", "OpusAgent", "openai, lines + orjson", "openai, typed events"
TARGET_US = 30
MESSAGES = [{"role": "system", "content": "You answer a theatre's telephone."}, {"role": "user", "content": "Hello?"}]


class Load:
    """What all streams of a run have brought.  It counts from the moment on at which the last of them has begun."""

    def __init__(self, streams: int):
        self.waiting = streams          # streams that have brought nothing yet
        self.chunks = 0
        self.began: tuple[int, int] | None = None       # chunks and ns of the thread at that moment

    def first(self) -> None:
        self.waiting -= 1
        if not self.waiting:
            self.began = self.chunks, time.thread_time_ns()

    def cost(self) -> float:
        """us of the thread per chunk since then."""
        chunks, ns = self.began
        return (time.thread_time_ns() - ns) / 1e3 / (self.chunks - chunks)


class Counting(asyncio.Protocol):
    """The floor: asks by hand, and counts what comes."""

    def __init__(self, load: Load):
        self.load = load
        self.begun = False
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:
        body = orjson.dumps({"model": "stub", "messages": MESSAGES, "stream": True})
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: stub\r\nContent-Length: %d\r\n\r\n" % len(body)
        transport.write(head + body)

    def data_received(self, data: bytes) -> None:
        self.load.chunks += data.count(b'"content"')
        if not self.begun:
            self.begun = True
            self.load.first()
        if data.endswith(b"0\r\n\r\n"):
            self.ended.set_result(None)


class Ways:
    """The ways to stream a completion: asynchronous iterators of its pieces, and the floor."""

    def __init__(self, port: int):
        self.port = port
        url = f"http://127.0.0.1:{port}/v1"
        self.client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
        self.llm = Llm(Config(openai=OpenAI(base_url=url, llm_model="stub")))

    async def floor(self, load: Load) -> None:
        loop = asyncio.get_running_loop()
        transport, counting = await loop.create_connection(lambda: Counting(load), "127.0.0.1", self.port)
        await counting.ended
        transport.close()

    def ours(self) -> AsyncIterator[str]:
        return self.llm.reply(MESSAGES)

    async def lines(self) -> AsyncIterator[str]:
        async with self.client.chat.completions.with_streaming_response.create(
                model="stub", messages=MESSAGES, stream=True) as response:
            async for line in response.iter_lines():
                if line.startswith("data: {") and (choices := orjson.loads(line[6:])["choices"]):
                    if piece := choices[0]["delta"].get("content"):
                        yield piece

    async def typed(self) -> AsyncIterator[str]:
        stream = await self.client.chat.completions.create(model="stub", messages=MESSAGES, stream=True)
        async for chunk in stream:
            if chunk.choices and (piece := chunk.choices[0].delta.content):
                yield piece

    @staticmethod
    async def read(pieces: AsyncIterator[str], load: Load) -> None:
        begun = False
        async for _ in pieces:
            load.chunks += 1
            if not begun:
                begun = True
                load.first()

    def all(self) -> dict:
        """{name: how a stream is read to its end, given the load}"""
        ways = {OURS: self.ours, LINES: self.lines, TYPED: self.typed}
        return {FLOOR: self.floor} | {name: lambda load, way=way: self.read(way(), load) for name, way in ways.items()}


async def cost(way, streams: int, tokens: int) -> float:
    """us of the thread per chunk."""
    load = Load(streams)
    await asyncio.gather(*(way(load) for _ in range(streams)))
    assert load.chunks == streams * tokens, "a piece was lost"
    return load.cost()


async def measure(args: argparse.Namespace, port: int) -> dict[str, list[float]]:
    """{way: us per chunk, one per round}"""
    ways = Ways(port)
    await ways.llm.open()
    named = ways.all()
    for way in named.values():                      # what is made once is not a chunk's cost
        await way(Load(1))
    results: dict[str, list[float]] = {name: [] for name in named}
    for i in range(args.rounds):
        for name in (list(named) if i % 2 else list(named)[::-1]):
            results[name].append(await cost(named[name], args.streams, args.tokens))
        print(f"round {i + 1} of {args.rounds}", file=sys.stderr)
    await ways.llm.close()
    await ways.client.close()
    return results


def summary(results: dict[str, list[float]]) -> dict[str, dict]:
    """{way: median and interval of all of it, and of what it adds to the floor; the ratio of that to ours}"""
    added = {name: [us - floor for us, floor in zip(runs, results[FLOOR])] for name, runs in results.items()}
    return {name: {"us": median(runs), "interval": median_interval(runs), "added_us": median(added[name]),
                   "added_interval": median_interval(added[name]),
                   "x_ours": paired_ratio(added[name], added[OURS]) if name != FLOOR else None}
            for name, runs in results.items()}


def print_figures(rows: dict[str, dict]) -> None:
    def spread(interval: tuple[float, float]) -> str:
        return f"{interval[0]:.1f}-{interval[1]:.1f}"

    lines = [["CPU of a chunk, us", "all", "90 %", "above the floor", "90 %", "x ours"]]
    for name, row in rows.items():
        above = [f"{row['added_us']:.1f}", spread(row["added_interval"])] if row["x_ours"] else ["", ""]
        lines.append([name, f"{row['us']:.1f}", spread(row["interval"]), *above, str(row["x_ours"] or "")])
    print(table(lines))
    met = "met" if rows[OURS]["added_us"] < TARGET_US else "missed"
    print(f"\nTarget: ours adds less than {TARGET_US} us to the floor, {met}.")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=40, help="completions at once (default 40)")
    parser.add_argument("--tokens", type=int, default=100, help="chunks of each (default 100)")
    parser.add_argument("--gap-ms", type=float, default=20, help="from chunk to chunk (default 20)")
    parser.add_argument("--rounds", type=int, default=9, help="at least 5 give a 90 %% interval (default 9)")
    parser.add_argument("--quick", action="store_true", help="2 short rounds: shows that it runs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if args.quick:
        args.rounds, args.tokens = 2, 20
    return args


def main() -> int:
    args = parse()
    cores = Cores.here()
    stub = Subject("stub_llm.py", (sys.executable, str(BENCH / "stub_llm.py"), "--port", "PORT", "--ttft-ms", "0",
                                   "--itl-ms", str(args.gap_ms), "--tokens", str(args.tokens)))
    try:
        running = Running(stub, cores)
    except Absent as why:
        print(f"bench/llm_chunk.py: {why}", file=sys.stderr)
        return 1
    try:
        if cores.client is not None:
            os.sched_setaffinity(0, {cores.client})
        rows = summary(uvloop.run(measure(args, running.port)))
    finally:
        running.stop()
    if args.json:
        print(json.dumps({"machine": machine(), "openai": openai.__version__, "chunk": rows}, default=Ratio.as_json))
        return 0
    print(f"{args.streams} completions at once, a chunk each per {args.gap_ms:g} ms, {args.rounds} rounds; openai "
          f"{openai.__version__}; " + "; ".join(f"{key} {value}" for key, value in machine().items()) + "\n")
    print_figures(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
