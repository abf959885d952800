"""From one process to another: our descriptor rings over shared memory, beside what else there is.

    python bench/ring.py [--rounds 9] [--hops 4000] [--chunks 20000] [--quick] [--json]

A hop is one way of a ping-pong between two processes, each on a core of its own where there are two, both asleep
whenever they wait: writing, waking the other, its waking up, reading.  The floor of that is a bare eventfd, which says
nothing but "wake up".  Then as many chunks as will go, of 2048 bytes of audio each, the reader moving every one into a
buffer of its own; the floor of that is a memcpy within one process.
The rule: within a round every subject runs right after the others, and ratios are taken within the round.
"""
import argparse
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

import numpy as np
from figures import Ratio, median, paired_ratio, table
from subjects import Cores, machine

from opusagent._fastpath import Arena, Ring
from opusagent.engines.processes.process import Channel

CHUNK = 2048                    # bytes of audio
WINDOW = 100                    # chunks that may be on their way: a call's slot keeps 160 of them
ACK = 25                        # chunks after which the reader says how far it is
RATE = 16000


class Eventfd:
    """Nothing but the wake-up."""

    name = "eventfd"

    def __init__(self):
        self.to, self.back = os.eventfd(0), os.eventfd(0)

    def ping(self) -> None:
        os.eventfd_write(self.to, 1)
        os.eventfd_read(self.back)

    def pong(self) -> None:
        while True:
            os.eventfd_read(self.to)
            os.eventfd_write(self.back, 1)


class Rings:
    """Ours: descriptors on the rings, the audio in the call's slot."""

    name = "our ring"

    def __init__(self):
        self.arena = Arena(1)
        self.slot = self.arena.slot(0)
        self.slot.take(RATE, RATE)
        self.ends = [Ring(os.eventfd(0, os.EFD_NONBLOCK)) for _ in range(2)]
        self.heard = 0                          # chunks that the reader has told of
        self.channel = Channel(self.ends[1], self.ends[0])      # the worker's end reads the second ring

    def take(self, kind: int, slot: int, generation: int, epoch: int, a: int, b: int, data: bytes) -> None:
        self.heard = a

    def ping(self) -> None:
        self.heard = 0
        self.channel.send(1, 0, 1, 1, 1, 0, b"")
        self.hear(1)

    def hear(self, least: int) -> None:
        """Until the reader tells of so many chunks."""
        self.ends[1].deliver(self.take)
        while self.heard < least:
            self.channel.wait()
            self.ends[1].deliver(self.take)

    def pong(self) -> None:
        channel = Channel(*self.ends)
        while True:
            self.ends[0].deliver(channel.send)
            channel.wait()

    def write(self, pcm: np.ndarray, count: int) -> None:
        for number in range(count):
            if number - self.heard >= WINDOW:
                self.hear(number - WINDOW + 1)
            self.channel.send(1, 0, 1, 1, self.slot.write(pcm) - len(pcm), 0, b"")
        self.hear(count)
        self.heard = 0

    def read(self, room: np.ndarray, count: int) -> None:
        channel, number = Channel(*self.ends), 0

        def take(kind: int, slot: int, generation: int, epoch: int, position: int, b: int, data: bytes) -> None:
            nonlocal number
            self.slot.read_into(position, room)
            number += 1
            if not number % ACK or number == count:
                channel.send(1, 0, 1, 1, number, 0, b"")

        while number < count:
            self.ends[0].deliver(take)
            if number < count:
                channel.wait()


class SocketPair:
    """A Unix socket pair, messages kept apart."""

    name = "Unix socket pair"

    def __init__(self):
        self.here, self.there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def ping(self) -> None:
        self.here.send(b"x" * 40)
        self.here.recv(64)

    def pong(self) -> None:
        while True:
            self.there.send(self.there.recv(64))

    def write(self, pcm: np.ndarray, count: int) -> None:
        for _ in range(count):
            self.here.send(pcm)
        self.here.recv(64)

    def read(self, room: np.ndarray, count: int) -> None:
        for _ in range(count):
            self.there.recv_into(room)
        self.there.send(b"all of it")


class Queue:
    """multiprocessing.Queue: pickles through a pipe, by a thread."""

    name = "multiprocessing.Queue"

    def __init__(self):
        self.to, self.back = multiprocessing.Queue(), multiprocessing.Queue()

    def ping(self) -> None:
        self.to.put((1, 0, 1, 1, 0, 0, b""))
        self.back.get()

    def pong(self) -> None:
        while True:
            self.back.put(self.to.get())

    def write(self, pcm: np.ndarray, count: int) -> None:
        for _ in range(count):
            self.to.put(pcm.tobytes())
        self.back.get()

    def read(self, room: np.ndarray, count: int) -> None:
        for _ in range(count):
            room[:] = np.frombuffer(self.to.get(), np.int16)
        self.back.put("all of it")


SUBJECTS = (Eventfd, Rings, SocketPair, Queue)


class Other:
    """The other process, which runs `work` until it is done or the block ends."""

    def __init__(self, cores: Cores, work: Callable, *arguments):
        self.pid = os.fork()
        if not self.pid:
            try:
                cores.settle(cores.client)
                work(*arguments)
                signal.pause()                  # a queue's thread may still be sending
            finally:
                os._exit(0)

    def __enter__(self) -> "Other":
        return self

    def __exit__(self, *exception) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def hops(subject, cores: Cores, count: int) -> list[float]:
    """One-way times in us: half of each round trip, the first tenth left out."""
    with Other(cores, subject.pong):
        times = []
        for _ in range(count):
            began = time.perf_counter_ns()
            subject.ping()
            times.append((time.perf_counter_ns() - began) / 2000)
    return times[count // 10:]


def bytes_a_second(subject, cores: Cores, count: int) -> float:
    pcm, room = np.arange(CHUNK // 2, dtype=np.int16), np.empty(CHUNK // 2, np.int16)
    with Other(cores, subject.read, room, count):
        began = time.perf_counter()
        subject.write(pcm, count)
        return count * CHUNK / (time.perf_counter() - began)


def memcpy(count: int) -> float:
    """Bytes a second of moving chunks into and out of a ring as large as a slot's, in one process."""
    pcm, room = np.arange(CHUNK // 2, dtype=np.int16), np.empty(CHUNK // 2, np.int16)
    ring = np.zeros((160, CHUNK // 2), np.int16)
    began = time.perf_counter()
    for number in range(count):
        ring[number % 160] = pcm
        room[:] = ring[number % 160]
    return count * CHUNK / (time.perf_counter() - began)


def percentile(times: list[float], p: float) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * p / 100))]


def measure(args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """By subject: p50 and p99 of a hop in us, and bytes a second, round by round."""
    cores = Cores.here()
    cores.settle(cores.server)
    found: dict[str, dict[str, list[float]]] = {kind.name: {"p50": [], "p99": [], "bytes": []} for kind in SUBJECTS}
    found["memcpy"] = {"bytes": []}
    for turn in range(args.rounds):
        for kind in SUBJECTS[turn % len(SUBJECTS):] + SUBJECTS[:turn % len(SUBJECTS)]:
            times = hops(kind(), cores, args.hops)
            found[kind.name]["p50"].append(percentile(times, 50))
            found[kind.name]["p99"].append(percentile(times, 99))
            if hasattr(kind, "write"):
                found[kind.name]["bytes"].append(bytes_a_second(kind(), cores, args.chunks))
        found["memcpy"]["bytes"].append(memcpy(args.chunks))
    return found


def ratios(found: dict) -> dict[str, dict[str, Ratio]]:
    """Each subject against its floor: of hops the eventfd, of bytes the memcpy."""
    floors = {"p50": found["eventfd"]["p50"], "p99": found["eventfd"]["p99"], "bytes": found["memcpy"]["bytes"]}
    return {name: {what: paired_ratio(values, floors[what]) for what, values in figures.items() if values}
            for name, figures in found.items()}


def lines(found: dict) -> list[list[str]]:
    rows = [["", "hop p50 us", "p99 us", "p50 / eventfd", "p99 / eventfd", "MB/s", "of memcpy"]]
    against = ratios(found)
    for name, figures in found.items():
        hop = [f"{median(figures[what]):.1f}" for what in ("p50", "p99")] if "p50" in figures else ["", ""]
        beside = [str(against[name][what]) if what in figures else "" for what in ("p50", "p99")]
        rate = [f"{median(figures['bytes']) / 1e6:.0f}", str(against[name]["bytes"])] if figures["bytes"] else ["", ""]
        rows.append([name, *hop, *beside, *rate])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="at least 5 give a 90 %% interval (default 9)")
    parser.add_argument("--hops", type=int, default=4000, help="of a round (default 4000)")
    parser.add_argument("--chunks", type=int, default=20000, help="of a round (default 20000)")
    parser.add_argument("--quick", action="store_true", help="show that it runs; the figures mean nothing")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.hops, args.chunks = 2, 200, 500
    found = measure(args)
    if args.json:
        print(json.dumps({"machine": machine(), "rounds": found, "ratios": ratios(found)}, default=Ratio.as_json))
        return 0
    print("; ".join(f"{key} {value}" for key, value in machine().items()))
    print(f"{args.rounds} rounds of {args.hops} hops and {args.chunks} chunks of {CHUNK} bytes; ratios are medians of "
          f"the rounds' paired ratios\n\n{table(lines(found))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
