"""What a running server weighs, read from /proc: memory, descriptors, lines of log."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from served import Served

SAMPLE_SECONDS = 0.05


@dataclass(slots=True)
class Weight:
    """One look at the server and its descendants."""

    memory: int  # octets of anonymous and shared memory that are resident
    descriptors: int
    lines: int  # written to stderr so far


def weigh(server: Served) -> Weight:
    family = server.family()
    return Weight(sum(map(memory, family)), sum(map(descriptors, family)), server.written().count("\n"))


def memory(pid: int) -> int:
    """Octets of a process that are its own; 0 when it has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def descriptors(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


@dataclass(slots=True)
class Peak:
    """The most memory seen while it was watched."""

    memory: int


@asynccontextmanager
async def watched(server: Served) -> AsyncIterator[Peak]:
    """Sample the memory as long as the context lasts."""
    family = server.family()
    peak = Peak(sum(map(memory, family)))

    async def watch() -> None:
        while True:
            peak.memory = max(peak.memory, sum(map(memory, family)))
            await asyncio.sleep(SAMPLE_SECONDS)

    watching = asyncio.ensure_future(watch())
    try:
        yield peak
    finally:
        watching.cancel()
        peak.memory = max(peak.memory, sum(map(memory, family)))
