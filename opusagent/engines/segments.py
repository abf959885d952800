"""Voices that speak by tasks of this process: each segment is written into its buffer of the call's slot as it comes.

What a voice says, as samples, is its own (`_pcm`); here is when it begins, waits, goes on and ends.  The rule: a slot
that has got another call is not written any more, and what one buffer holds is never overtaken by what comes.
"""
import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing

import numpy as np

from .. import EngineError
from .._fastpath import SEGMENT_SAMPLES, SEGMENTS

log = logging.getLogger("opusagent")

AT_ONCE = 4                     # prompts that are spoken side by side


class Speaking:
    """A segment on its way into a buffer of its call's slot."""

    __slots__ = ("call", "slot", "generation", "epoch", "k", "start", "written", "skip", "room", "task")

    def __init__(self, call, epoch: int, k: int):
        self.call = call
        self.slot = call.slot
        self.generation = call.slot.generation      # of the slot; when that has another, the call is over
        self.epoch = epoch
        self.k = k
        self.start = self.written = self.slot.segment_written(k)    # counters of the buffer
        self.slot.set_segment_read(k, self.start)                   # what lay there before is nobody's any more
        self.skip = 0                           # samples that another process has written
        self.room = asyncio.Event()             # some of it was played
        self.task: asyncio.Task | None = None

    def go_on(self, start: int) -> None:
        """Another process has written from counter `start` to where the buffer stands."""
        self.skip, self.start = self.written - start, start

    async def write_all(self, pieces: AsyncIterator[np.ndarray]) -> None:
        try:
            async with aclosing(pieces):
                async for pcm in pieces:
                    await self._write(pcm)
        except EngineError as error:
            self.call.on_speech_failed(self.epoch, self.k, str(error))
        except Exception:
            log.exception("the voice's engine broke")
            self.call.on_speech_failed(self.epoch, self.k, "The voice's engine broke.")
        else:
            self.call.on_speech(self.epoch, self.k, self.start, self.written, True)

    async def _write(self, pcm: np.ndarray) -> None:
        """As far as there is room, and the rest when there is some again."""
        slot, k, ring = self.slot, self.k, np.asarray(self.slot.segment(self.k))
        skipped = min(self.skip, len(pcm))
        self.skip, pcm = self.skip - skipped, pcm[skipped:]
        while len(pcm):
            if slot.generation != self.generation:
                raise EngineError("The call ended before its speech did.")
            count = min(len(pcm), SEGMENT_SAMPLES - (self.written - slot.segment_read(k)))
            if not count:
                self.room.clear()
                await self.room.wait()
                continue
            at = self.written % SEGMENT_SAMPLES
            first = min(count, SEGMENT_SAMPLES - at)
            ring[at:at + first] = pcm[:first]
            ring[:count - first] = pcm[first:count]
            pcm = pcm[count:]
            self.written += count
            slot.set_segment_written(k, self.written)
            self.call.on_speech(self.epoch, k, self.start, self.written, False)


class Voice:
    """The part of an engine's Tts that is the same for all of them: its segments.

    `_pcm(text, voice, rate)` gives the text as int16 at `rate`, while it comes, or raises EngineError.
    """

    def __init__(self):
        self.speaking: dict[tuple[object, int], Speaking] = {}      # by call and buffer

    def speak(self, call, epoch: int, k: int, text: str, voice: str) -> None:
        self.speaking[call, k] = speaking = Speaking(call, epoch, k)
        speaking.task = asyncio.ensure_future(speaking.write_all(self._pcm(text, voice, call.slot.rate_out)))
        speaking.task.add_done_callback(lambda _: self._is_over(speaking))

    def resume(self, call, epoch: int, k: int, text: str, voice: str, start: int | None) -> None:
        """The text again, without the beginning that is written."""
        self.speak(call, epoch, k, text, voice)
        if start is not None:
            self.speaking[call, k].go_on(start)

    def _is_over(self, speaking: Speaking) -> None:
        if self.speaking.get((speaking.call, speaking.k)) is speaking:
            del self.speaking[speaking.call, speaking.k]

    def played(self, call, k: int) -> None:
        if speaking := self.speaking.get((call, k)):
            speaking.room.set()

    def cancel(self, call) -> None:
        for k in range(SEGMENTS):
            if speaking := self.speaking.pop((call, k), None):
                speaking.task.cancel()

    def be_silent(self) -> None:
        """Nothing is spoken any more."""
        for speaking in list(self.speaking.values()):
            speaking.task.cancel()


async def side_by_side(texts: Iterable[str], whole: Callable[[str], Awaitable[np.ndarray]],
                       ) -> AsyncIterator[tuple[str, np.ndarray]]:
    """Each text with what `whole` makes of it, in the order in which they get ready.  Raises EngineError."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def render_one(text: str) -> tuple[str, np.ndarray]:
        async with gate:
            return text, await whole(text)

    rendering = [asyncio.ensure_future(render_one(text)) for text in texts]
    try:
        for done in asyncio.as_completed(rendering):
            yield await done
    finally:
        for task in rendering:
            task.cancel()
        await asyncio.gather(*rendering, return_exceptions=True)
