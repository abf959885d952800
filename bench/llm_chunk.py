"""What does one chunk of a streamed completion cost the worker's loop, on its way from the socket to a piece of text?
And what does it cost to ask for one?

    python bench/llm_chunk.py [--streams 40] [--tokens 100] [--gap-ms 20] [--rounds 9] [--quick] [--json]

As many completions at once stream from stub_llm.py, a chunk each per gap, as in that many calls in which the agent is
about to speak.  Ours (engines/openai/llm.py) stands beside the `openai` package's typed events, the package's lines
parsed with orjson, and the floor: an asyncio protocol that counts bytes, which pays for the system calls and nothing
else.  Asking is measured by itself, on warm connections, from the call to the moment the request is out.
The rule: what is counted is CPU time of the loop's thread, and within a round all meet the same load one after another.
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
from opusagent.engines.openai.llm import Llm
from subjects import BENCH, Absent, Cores, Running, Subject, machine

FLOOR, OURS, LINES, TYPED = "bare protocol", "OpusAgent", "openai, lines + orjson", "openai, typed events"
TARGET_US = 30
REQUESTS = 40                   # of a round
TURNS_OF_THE_LOOP = 3           # until a request is out, at most: ours goes through a task of its own
BETWEEN_SECONDS = 0.01          # two of them: the caches are as cold as in a call
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


async def cost_of_asking(way) -> float:
    """us of the thread until a request is out."""
    spent = []
    for _ in range(REQUESTS):
        await asyncio.sleep(BETWEEN_SECONDS)
        before = time.thread_time_ns()
        asking = asyncio.ensure_future(way(Load(1)))
        for _ in range(TURNS_OF_THE_LOOP):
            await asyncio.sleep(0)
        spent.append((time.thread_time_ns() - before) / 1e3)
        await asking
    return median(spent)


async def measure(port: int, rounds: int, names: list[str], cost) -> dict[str, list[float]]:
    """{way: us, one per round}"""
    ways = Ways(port)
    await ways.llm.open()
    named = {name: way for name, way in ways.all().items() if name in names}
    for way in named.values():                      # what is made once costs no call anything
        await way(Load(1))
    results: dict[str, list[float]] = {name: [] for name in named}
    for i in range(rounds):
        for name in (names if i % 2 else names[::-1]):
            results[name].append(await cost(named[name]))
        print(f"round {i + 1} of {rounds}", file=sys.stderr)
    await ways.llm.close()
    await ways.client.close()
    return results


def summary(results: dict[str, list[float]]) -> dict[str, dict]:
    """{way: median and interval, of all of it and of what it adds to the floor if there is one; the ratio to ours}"""
    floor = results.get(FLOOR, [0.0] * len(results[OURS]))
    added = {name: [us - least for us, least in zip(runs, floor)] for name, runs in results.items()}
    return {name: {"us": median(runs), "interval": median_interval(runs), "added_us": median(added[name]),
                   "added_interval": median_interval(added[name]),
                   "x_ours": paired_ratio(added[name], added[OURS]) if name != FLOOR else None}
            for name, runs in results.items()}


def spread(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.1f}-{interval[1]:.1f}"


def print_figures(chunk: dict[str, dict], asking: dict[str, dict]) -> None:
    lines = [["CPU of a chunk, us", "all", "90 %", "above the floor", "90 %", "x ours"]]
    for name, row in chunk.items():
        above = [f"{row['added_us']:.1f}", spread(row["added_interval"])] if row["x_ours"] else ["", ""]
        lines.append([name, f"{row['us']:.1f}", spread(row["interval"]), *above, str(row["x_ours"] or "")])
    met = "met" if chunk[OURS]["added_us"] < TARGET_US else "missed"
    print(f"{table(lines)}\n\nTarget: ours adds less than {TARGET_US} us to the floor, {met}.\n")
    lines = [["CPU of asking, us", "all", "90 %", "x ours"]]
    lines += [[name, f"{row['us']:.0f}", spread(row["interval"]), str(row["x_ours"])] for name, row in asking.items()]
    print(table(lines))


def stub(gap_ms: float, tokens: int) -> Subject:
    return Subject("stub_llm.py", (sys.executable, str(BENCH / "stub_llm.py"), "--port", "PORT", "--ttft-ms", "0",
                                   "--itl-ms", str(gap_ms), "--tokens", str(tokens)))


def run(subject: Subject, cores: Cores, rounds: int, names: list[str], cost) -> dict[str, dict]:
    running = Running(subject, cores)
    try:
        return summary(uvloop.run(measure(running.port, rounds, names, cost)))
    finally:
        running.stop()


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
    if cores.client is not None:
        os.sched_setaffinity(0, {cores.client})
    try:
        chunk = run(stub(args.gap_ms, args.tokens), cores, args.rounds, [FLOOR, OURS, LINES, TYPED],
                    lambda way: cost(way, args.streams, args.tokens))
        asking = run(stub(0, 1), cores, args.rounds, [OURS, TYPED], cost_of_asking)
    except Absent as why:
        print(f"bench/llm_chunk.py: {why}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({"machine": machine(), "openai": openai.__version__, "chunk": chunk, "asking": asking},
                         default=Ratio.as_json))
        return 0
    print(f"{args.streams} completions at once, a chunk each per {args.gap_ms:g} ms, {args.rounds} rounds; openai "
          f"{openai.__version__}; " + "; ".join(f"{key} {value}" for key, value in machine().items()) + "\n")
    print_figures(chunk, asking)
    return 0


if __name__ == "__main__":
    sys.exit(main())
