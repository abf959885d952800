"""Engine processes, seen from the worker: what computes for more than a millisecond runs there, not on the loop.

A process and the worker share the arena and two rings (records.py).  What was asked is remembered here until it is
answered, so that when a process dies another one is asked again: the caller's audio is still in the slot.
The rule: nothing here blocks the loop, and an engine process is never trusted to live.
"""
import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

import numpy as np

from .. import ConfigError, EngineError
from .._fastpath import SEGMENT_SAMPLES, Arena, Ring
from ..config import Config
from .records import ASK, CANCEL, FAILED, FINAL, FINISH, FORGET, FRESH, LISTEN, PARTIAL, READY, SPACE, SPEAK, SPEECH

log = logging.getLogger("opusagent")

READY_WITHIN = 60.0             # seconds for a process to load what it needs
BEAT_SECONDS = 0.1              # how often a process must say that it lives
DEAD_AFTER = 1.0                # seconds without that mean that it hangs
RESTART_SECONDS = (0.0, 0.2, 1.0, 5.0)      # before the next start after so many deaths in a row
CALM_SECONDS = 30.0             # a process that lived for so long has died for the first time
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


class EngineProcess:
    """One process and our end of its channel.  `on_record` gets each record, `on_exit` is called once."""

    def __init__(self, stage: str, arena: Arena, setup: dict, on_record: Callable, on_exit: Callable):
        self.stage = stage                          # "stt" or "tts"
        self.on_record = on_record
        self.on_exit = on_exit
        self.to = Ring(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self.back = Ring(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self.unsent: deque[tuple] = deque()         # records that found the ring full
        self.began = time.monotonic()
        self.ready = False
        self.over = False
        self.process = self._spawn(arena, setup)
        self.pidfd = os.pidfd_open(self.process.pid)
        loop = asyncio.get_running_loop()
        loop.add_reader(self.pidfd, self._exited)
        loop.add_reader(self.back.eventfd, self._readable)
        self._readable()                            # arms the wake-up

    def _spawn(self, arena: Arena, setup: dict) -> subprocess.Popen:
        setup_fd = os.memfd_create("opusagent-setup")
        os.write(setup_fd, json.dumps(setup).encode())
        fds = (arena.fd, self.to.fd, self.to.eventfd, self.back.fd, self.back.eventfd, setup_fd)
        words = [sys.executable, "-m", "opusagent.engines.process", self.stage, str(arena.slots), *map(str, fds)]
        try:
            return subprocess.Popen(words, pass_fds=fds, stdin=subprocess.DEVNULL, env=os.environ | ONE_THREAD)
        except OSError as error:
            raise EngineError(f"The {self.stage} process cannot be started: {error.strerror}.") from None
        finally:
            os.close(setup_fd)

    def send(self, kind: int, *record) -> None:
        """A record to the process, now or as soon as its ring has room."""
        if self.unsent or not self.to.push(kind, *record):
            self.unsent.append((kind, *record))

    def _readable(self) -> None:
        try:
            os.eventfd_read(self.back.eventfd)
        except BlockingIOError:
            pass                                    # the wake-up was for something that was read already
        try:
            while True:
                while (record := self.back.pop()) is not None:
                    self.on_record(self, *record)
                if self.back.sleep():
                    break
        except EngineError as error:
            log.error("the %s process wrote what is no record: %s", self.stage, error)
            self.kill()
        self.flush()

    def flush(self) -> None:
        while self.unsent and self.to.push(*self.unsent[0]):
            self.unsent.popleft()

    def look(self, now: int) -> None:
        """Called a few times a second: a process that says nothing is as good as dead."""
        self.flush()
        if self.ready and now - self.to.beat > DEAD_AFTER * 1e9:
            log.warning("the %s process hangs; it is killed", self.stage)
            self.kill()

    def kill(self) -> None:
        if not self.over:
            self.process.send_signal(signal.SIGKILL)

    def _exited(self) -> None:
        self._leave()
        self.process.wait()
        self.on_exit(self)

    def _leave(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.pidfd)
        loop.remove_reader(self.back.eventfd)
        self.over = True
        for fd in (self.pidfd, self.to.fd, self.to.eventfd, self.back.fd, self.back.eventfd):
            os.close(fd)

    def close(self) -> None:
        """End the process: it has nothing that it must save."""
        if not self.over:
            self._leave()
            self.process.kill()
            self.process.wait()


class Host:
    """The processes of one stage: one for each share of the slots, and a spare one that is warm."""

    def __init__(self, stage: str, config: Config, on_record: Callable, on_takeover: Callable):
        self.stage = stage
        self.count = config.embedded.processes
        self.on_record = on_record              # (kind, slot, generation, epoch, a, b, data)
        self.on_takeover = on_takeover          # (share): all that was asked of that share's process is asked again
        self.arena: Arena | None = None
        self.setup: dict = {}
        self.live: list[EngineProcess | None] = []
        self.spare: EngineProcess | None = None
        self.deaths = 0                         # in a row
        self.restarts = 0                       # in all
        self.closing = False
        self._opened: asyncio.Future | None = None
        self._look: asyncio.TimerHandle | None = None

    async def open(self, arena: Arena, setup: dict) -> None:
        """Start the processes and wait until they are warm.  EngineError where they do not become so."""
        self.arena, self.setup = arena, setup
        self._opened = asyncio.get_running_loop().create_future()
        self.live = [self._start() for _ in range(self.count)]
        try:
            await asyncio.wait_for(self._opened, READY_WITHIN)
        except TimeoutError:
            raise EngineError(f"The {self.stage} process was not ready within {READY_WITHIN:.0f} s.") from None
        self.spare = self._start()
        self._watch()

    def close(self) -> None:
        self.closing = True
        if self._look is not None:
            self._look.cancel()
        for process in (*self.live, self.spare):
            if process is not None:
                process.close()

    def share(self, slot: int) -> int:
        return slot % self.count

    def send(self, slot: int, kind: int, *record) -> None:
        """A record about a slot; dropped while its process is being replaced, since all is asked again then."""
        process = self.live[self.share(slot)]
        if process is not None and process.ready:
            process.send(kind, slot, *record)

    def wake(self, slot: int) -> None:
        process = self.live[self.share(slot)]
        if process is not None:
            process.to.wake()

    def _start(self) -> EngineProcess:
        return EngineProcess(self.stage, self.arena, self.setup, self._record, self._exited)

    def _record(self, process: EngineProcess, kind: int, *record) -> None:
        if kind == READY:
            self._became_ready(process)
        elif kind == FAILED and not process.ready:
            if not self._opened.done():
                kind_of_error = ConfigError if record[3] else EngineError
                self._opened.set_exception(kind_of_error(record[-1].decode(errors="replace")))
        elif process is not self.spare:
            self.on_record(kind, *record)

    def _became_ready(self, process: EngineProcess) -> None:
        process.ready = True
        if process in self.live:
            self._take_over(self.live.index(process))
        elif None in self.live:
            share = self.live.index(None)
            self.live[share], self.spare = process, None
            self._take_over(share)
        if all(live is not None and live.ready for live in self.live):
            if not self._opened.done():
                self._opened.set_result(None)
            elif self.spare is None:
                self.spare = self._start()

    def _take_over(self, share: int) -> None:
        self.on_takeover(share)

    def _exited(self, process: EngineProcess) -> None:
        """A process died: the spare one takes its place at once, another one becomes the spare."""
        if self.closing:
            return
        if not self._opened.done():
            self._opened.set_exception(EngineError(f"The {self.stage} process ended while it was starting."))
            return
        self.restarts += 1
        self.deaths = 1 if time.monotonic() - process.began > CALM_SECONDS else self.deaths + 1
        log.warning("the %s process %d died (%s)", self.stage, process.process.pid, process.process.returncode)
        if process is self.spare:
            self.spare = None
        elif process in self.live:
            share = self.live.index(process)
            ready = self.spare is not None and self.spare.ready
            self.live[share] = self.spare if ready else None
            if ready:
                self.spare = None
                self._take_over(share)
        if self.spare is None:
            wait = RESTART_SECONDS[min(self.deaths, len(RESTART_SECONDS)) - 1]
            asyncio.get_running_loop().call_later(wait, self._start_spare)

    def _start_spare(self) -> None:
        if self.spare is None and not self.closing:
            try:
                self.spare = self._start()
            except EngineError as error:
                log.error("%s", error)
                asyncio.get_running_loop().call_later(RESTART_SECONDS[-1], self._start_spare)

    def _watch(self) -> None:
        now = time.monotonic_ns()
        for process in (*self.live, self.spare):
            if process is not None:
                process.look(now)
        self._look = asyncio.get_running_loop().call_later(BEAT_SECONDS, self._watch)

    def measure(self, metrics) -> None:
        metrics.gauge("engine_restarts", self.restarts, stage=self.stage)
        metrics.gauge("engine_alive", sum(process is not None and process.ready for process in self.live),
                      stage=self.stage)
        metrics.gauge("engine_records_waiting", sum(len(process.unsent) for process in self.live if process),
                      stage=self.stage)


class Asked:
    """An utterance that is being recognised: what another process would have to be asked."""

    __slots__ = ("call", "utterance", "search", "position", "finish")

    def __init__(self, call, position: int):
        self.call = call
        self.utterance = call.utterance
        self.search = call.search
        self.position = position
        self.finish: int | None = None


class Stt:
    """pocketsphinx in engine processes."""

    def __init__(self, config: Config):
        self.host = Host("stt", config, self._on_record, self._ask_again)
        self.asked: dict[int, Asked] = {}           # by slot
        self.lag_ms = 0                             # of the recogniser behind the audio, as it last said

    async def open(self, arena: Arena, searches) -> None:
        await self.host.open(arena, {"searches": [[search.id, search.kind, search.jsgf, sorted(search.words)]
                                                  for search in searches]})

    async def close(self) -> None:
        self.host.close()

    def listen(self, call, position: int) -> None:
        self.asked[call.slot.index] = asked = Asked(call, position)
        self._listen(asked)

    def _listen(self, asked: Asked) -> None:
        slot = asked.call.slot
        self.host.send(slot.index, LISTEN, slot.generation, asked.utterance, asked.position, asked.search)

    def audio(self, call) -> None:
        self.host.wake(call.slot.index)

    def ask(self, call) -> None:
        self.host.send(call.slot.index, ASK, call.slot.generation, call.utterance)

    def finish(self, call, position: int) -> None:
        asked = self.asked.get(call.slot.index)
        if asked is not None:
            asked.finish = position
            self.host.send(call.slot.index, FINISH, call.slot.generation, call.utterance, position)

    def cancel(self, call) -> None:
        if self.asked.pop(call.slot.index, None) is not None:
            self.host.send(call.slot.index, CANCEL, call.slot.generation, call.utterance)

    def forget(self, call) -> None:
        self.host.send(call.slot.index, FORGET, call.slot.generation)

    def measure(self, metrics) -> None:
        self.host.measure(metrics)
        metrics.gauge("recogniser_lag_seconds", self.lag_ms / 1000)

    def _ask_again(self, share: int) -> None:
        for index, asked in self.asked.items():
            if self.host.share(index) == share:
                self._listen(asked)
                if asked.finish is not None:
                    self.host.send(index, FINISH, asked.call.slot.generation, asked.utterance, asked.finish)

    def _on_record(self, kind: int, index: int, generation: int, utterance: int, a: int, b: int, data: bytes) -> None:
        asked = self.asked.get(index)
        if asked is None or asked.utterance != utterance or asked.call.slot.generation != generation:
            return                                  # late
        text = data.decode(errors="replace")
        if kind == PARTIAL:
            self.lag_ms = b
            asked.call.on_partial(utterance, text)
        elif kind == FINAL:
            self.lag_ms = b
            del self.asked[index]
            asked.call.on_final(utterance, text, a / 1e6)
        elif kind == FAILED:
            del self.asked[index]
            asked.call.on_failure(utterance, text)


class Spoken:
    """A segment that is being synthesised: what another process would have to be asked."""

    __slots__ = ("call", "epoch", "k", "text", "voice", "start")

    def __init__(self, call, epoch: int, k: int, text: str, voice: str):
        self.call = call
        self.epoch = epoch
        self.k = k
        self.text = text
        self.voice = voice
        self.start = FRESH                          # counter of the buffer at its first sample, as the process said


class Tts:
    """flite in engine processes."""

    def __init__(self, config: Config):
        self.host = Host("tts", config, self._on_record, self._ask_again)
        self.voice = config.embedded.voice
        self.speaking: dict[tuple[int, int], Spoken] = {}       # by slot and buffer
        self.arena: Arena | None = None

    async def open(self, arena: Arena) -> None:
        self.arena = arena
        await self.host.open(arena, {"voice": self.voice})

    async def close(self) -> None:
        self.host.close()

    def speak(self, call, epoch: int, k: int, text: str, voice: str) -> None:
        spoken = Spoken(call, epoch, k, text, voice)
        self.speaking[call.slot.index, k] = spoken
        self._speak(spoken)

    def _speak(self, spoken: Spoken) -> None:
        """With `start`, when it is known: what is written of the segment already is skipped, not spoken twice."""
        slot = spoken.call.slot
        data = f"{spoken.voice}\0{spoken.text}".encode()
        self.host.send(slot.index, SPEAK, slot.generation, spoken.epoch, spoken.k, spoken.start, data)

    def cancel(self, call) -> None:
        index = call.slot.index
        for key in [key for key in self.speaking if key[0] == index]:
            del self.speaking[key]
        self.host.send(index, CANCEL, call.slot.generation, call.epoch)

    def played(self, call, k: int) -> None:
        """The worker has played some of a buffer: a voice that waits for room goes on."""
        if (call.slot.index, k) in self.speaking:
            self.host.send(call.slot.index, SPACE, call.slot.generation, call.epoch, k)

    async def render(self, texts, voice: str, rate: int) -> AsyncIterator[tuple[str, np.ndarray]]:
        """Speak the texts one after another, in the last slot of the arena."""
        slot = self.arena.slot(self.arena.slots - 1)
        slot.take(8000, rate)
        try:
            rendering = Rendering(slot)
            for text in texts:
                yield text, await rendering.speak(self, text, voice)
        finally:
            slot.free()

    def measure(self, metrics) -> None:
        self.host.measure(metrics)
        metrics.gauge("segments_in_synthesis", len(self.speaking))

    def _ask_again(self, share: int) -> None:
        for (index, _), spoken in self.speaking.items():
            if self.host.share(index) == share:
                self._speak(spoken)

    def _on_record(self, kind: int, index: int, generation: int, epoch: int, a: int, b: int, data: bytes) -> None:
        k = data[0] if kind == SPEECH else a
        spoken = self.speaking.get((index, k))
        if spoken is None or spoken.epoch != epoch or spoken.call.slot.generation != generation:
            return                                  # late
        if kind == SPEECH:
            spoken.start = a
            if data[1]:
                del self.speaking[index, k]
            spoken.call.on_speech(epoch, k, a, b, bool(data[1]))
        elif kind == FAILED:
            del self.speaking[index, k]
            spoken.call.on_speech_failed(epoch, k, data.decode(errors="replace"))


class Rendering:
    """A stand-in for a call while prompts are rendered: it collects what the voice writes."""

    def __init__(self, slot):
        self.slot = slot
        self.epoch = 0
        self.pieces: list[np.ndarray] = []
        self.done: asyncio.Future | None = None

    async def speak(self, tts: Tts, text: str, voice: str) -> np.ndarray:
        self.tts = tts
        self.epoch += 1
        self.pieces = []
        self.done = asyncio.get_running_loop().create_future()
        tts.speak(self, self.epoch, 0, text, voice)
        await self.done
        return np.concatenate(self.pieces) if self.pieces else np.zeros(0, np.int16)

    def on_speech(self, epoch: int, k: int, start: int, written: int, done: bool) -> None:
        read = max(start, self.slot.segment_read(k))
        ring = np.asarray(self.slot.segment(k))
        self.pieces.append(ring[np.arange(read, written) % SEGMENT_SAMPLES])
        self.slot.set_segment_read(k, written)
        self.tts.played(self, k)
        if done and not self.done.done():
            self.done.set_result(None)

    def on_speech_failed(self, epoch: int, k: int, sentence: str) -> None:
        if not self.done.done():
            self.done.set_exception(EngineError(sentence))
