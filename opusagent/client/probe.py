"""A call to the echo agent that times each frame's round trip.

The rule: as with any simulated caller, a frame leaves at its absolute deadline (telephone.py).
"""
import asyncio
import time
from collections import deque

import numpy as np

from ..dialects import Audio
from .telephone import Line, Metronome, answer, place, samples_of


class Probe:
    """A call to the echo agent that times each frame's round trip."""

    def __init__(self, url: str, dialect: str):
        self.url, self.dialect = place(url, dialect)
        self.round_trips: list[int] = []                # ns
        self.clock = Metronome(self._tick)
        self._line: Line | None = None
        self._sent: deque[int] = deque()                # when those left that are on their way
        self._frame = np.random.default_rng(1).normal(0, 3000, samples_of(self.dialect.rate)).astype(np.int16)

    async def run(self, seconds: float) -> None:
        """Raises as Line.dial does."""
        self._line = await Line.dial(self.url, self._heard, lambda code, reason: self.clock.stop(),
                                     self.dialect.protocols)
        try:
            for message in self.dialect.open():
                self._line.send(*message)
            self.clock.start()
            await asyncio.sleep(seconds)
            self.clock.stop()
            await self._line.hang_up()
        finally:
            self.clock.stop()
            self._line.abort()

    def _tick(self) -> None:
        if (message := self.dialect.audio(self._frame)) is not None:
            self._sent.append(time.monotonic_ns())
            self._line.send(*message)
        answer(self._line, self.dialect)

    def _heard(self, opcode: int, payload: memoryview, now: int) -> None:
        if isinstance(self.dialect.receive(opcode, payload), Audio) and self._sent:
            self.round_trips.append(now - self._sent.popleft())
        answer(self._line, self.dialect)
