"""What 20 ms of a call cost in each dialect, beside Twilio's: those of whole calls, and the dialect's own part.

    python bench/dialects.py [NAME ...] [--rounds 31] [--json]      also: bench/calls.py --dialect NAME

Whole calls are whole_calls.py's: CPU of the server on its sockets, frames in and out.  The dialect's own part is what
its code takes where a call needs it for every frame (one on TLS): a message of the simulated platform's read, and one
of the agent's written, no socket and no call.  Rounds are short, and each is divided by the Twilio rounds right before
and right after it, so that a slow moment of the machine falls on both; one that is not counted goes before them, so
that both find the caches full of the other.  A ratio is the median of those, its spread the middle half of them.  Where
a platform wants the agent's words in longer messages than 20 ms, they are written so, as in a call.  The rule: at the
rate of the telephone, 8 kHz, no dialect costs more than LIMIT times Twilio's, neither way; the others are told, too.
Over /v1/realtime a reply goes out as soon as it is made: there the whole calls are those of agents that listen, in
Twilio's as well, and are marked with an i, for in.
"""
import argparse
import asyncio
import gc
import json
import statistics
import time
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import whole_calls

from opusagent.dialects import CALLERS, TABLE, Audio

LIMIT = 1.3
FRAMES = 100                # messages in a round: 2 s of a call
AHEAD_MS = 10_000           # a platform that may be fed so far ahead paces nothing
ROUTES = ("twilio", "twilio?exotel=8000", "pcm?rate=8000", "pcm?rate=16000", "telnyx", "telnyx?codec=PCMA",
          "telnyx?codec=L16", "plivo", "plivo?codec=L16&rate=8000", "vonage?rate=8000", "vonage",
          "asterisk?format=ulaw", "asterisk?format=slin", "asterisk?format=slin16", "jambonz",
          "jambonz?mixType=stereo", "freeswitch", "freeswitch?play=json", "freeswitch?mix=stereo",
          "audiocodes?format=raw/mulaw", "audiocodes?format=raw/lpcm16_8", "audiocodes",
          "audiohook", "audiohook?channels=both",
          "openai-realtime?format=pcmu", "openai-realtime")


class Spoken:
    """One dialect in the midst of a call: what the platform sends, and our side."""

    def __init__(self, route: str):
        self.route = route
        name, _, query = route.partition("?")
        caller = CALLERS[name](urlsplit(f"ws://127.0.0.1/ws/{route}"))
        self.ours = TABLE[name](dict(parse_qsl(query)))
        self.ours.open()
        self._talk(caller, list(caller.open()))
        self.rate = self.ours.rate
        self.together = self.ours.message_ms // 20      # frames in a message of ours
        noise = np.random.default_rng(1).normal(0, 3000, (FRAMES, self.rate // 50)).astype(np.int16)
        self.pcm = list(noise)
        self.said = [noise[i:i + self.together].reshape(-1) for i in range(0, FRAMES, self.together)]
        self.messages, heard = [], 0
        for pcm in self.pcm:
            message = caller.audio(pcm)
            if message is not None:
                self.messages.append(message)
                event = self.read(message)
                heard += len(event.pcm) if isinstance(event, Audio) else 0
            self._talk(caller, [])
        if abs(heard - noise.size) > self.rate // 10:
            raise RuntimeError(f"{route}: {heard} samples were heard of {noise.size}")

    def _talk(self, caller, waiting: list) -> None:
        """The two sides talk until neither has anything left to say; `waiting` is what the platform says first."""
        box = caller.outbox
        while waiting or box or self.ours.outbox:
            for message in (*waiting, *box):
                self.read(message)
            box.clear()
            waiting = []
            answers = list(self.ours.outbox)
            self.ours.outbox.clear()
            for opcode, message in answers:
                caller.receive(opcode, memoryview(message))

    def read(self, message):
        return self.ours.receive(message[0], memoryview(message[1]))

    def round(self) -> tuple[float, float]:
        """(us to read, us to write) of 20 ms of audio."""
        receive, audio, count = self.ours.receive, self.ours.audio, len(self.pcm)
        messages = [(opcode, memoryview(message)) for opcode, message in self.messages]
        began = time.perf_counter_ns()
        for opcode, payload in messages:
            receive(opcode, payload)
        read = time.perf_counter_ns()
        for pcm in self.said:
            audio(pcm)
        written = time.perf_counter_ns()
        self.ours.outbox.clear()
        return (read - began) / count / 1e3, (written - read) / count / 1e3


def spread(ratios: list[float]) -> dict[str, float]:
    least, _, greatest = statistics.quantiles(ratios, n=4)
    return {"ratio": statistics.median(ratios), "least": least, "greatest": greatest}


def measure(routes: list[str], rounds: int) -> list[dict]:
    """The dialect's own part."""
    spoken, twilio = [Spoken(route) for route in routes], Spoken("twilio")
    seen: dict[str, list[tuple]] = {route: [] for route in routes}
    gc.disable()
    for _ in range(rounds):
        for each in spoken:
            _, before, mine, after = each.round(), twilio.round(), each.round(), twilio.round()
            floor = (sum(before) + sum(after)) / 2
            seen[each.route].append((*mine, sum(mine) / floor))
    gc.enable()
    rows = []
    for each in spoken:
        reads, writes, ratios = zip(*seen[each.route])
        rows.append({"route": each.route, "rate": each.rate, "read_us": statistics.median(reads),
                     "write_us": statistics.median(writes), **spread(ratios)})
    return rows


def paced(route: str) -> bool:
    """A reply goes out in its own time."""
    return TABLE[route.partition("?")[0]]({}).lead_ms < AHEAD_MS


def measure_calls(routes: list[str], rounds: int) -> list[dict]:
    """Whole calls.  `out`: the agent's messages in 20 ms."""
    found = {}
    for listening in (False, True):
        some = [route for route in routes if paced(route) is not listening]
        found |= asyncio.run(whole_calls.measure(some, rounds, listening)) if some else {}
    return [{"call_us": statistics.median(found[route][0]), "out": found[route][2],
             **spread([mine / twilio for mine, twilio in zip(*found[route][:2])])} for route in routes]


def over(row: dict, part: dict) -> bool:
    return row["rate"] == 8000 and part["ratio"] > LIMIT


def told(row: dict, part: dict) -> str:
    mark = " !" if over(row, part) else "  "
    return f"{part['ratio']:.2f} ({part['least']:.2f} to {part['greatest']:.2f}){mark}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", metavar="NAME", nargs="*", help="a dialect, or one with its query; all unless given")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--quick", action="store_true", help="three rounds, to show that it runs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    routes = [route for route in ROUTES if not args.names or route in args.names
              or route.partition("?")[0] in args.names] or args.names
    rounds = 3 if args.quick else args.rounds
    rows, calls = measure(routes, 2 * rounds), measure_calls(routes, rounds)
    if args.json:
        print(json.dumps([row | {"call": call} for row, call in zip(rows, calls)]))
    else:
        print(f"{'dialect':<32}{'Hz':>6}  {'whole calls: us, times Twilio':<32}its own part: to read, to write, times")
        for row, call in zip(rows, calls):
            spent = f"{call['call_us']:.1f}" + ("" if paced(row["route"]) else "i")
            print(f"{row['route']:<32}{row['rate']:>6}  {spent:>6} {told(row, call):<25}"
                  f"{row['read_us']:>5.2f}{row['write_us']:>6.2f}  {told(row, row)}")
        print("!: over the limit")
    return 1 if any(over(row, part) for row, call in zip(rows, calls) for part in (row, call)) else 0


if __name__ == "__main__":
    raise SystemExit(main())
