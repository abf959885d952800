"""The embedded engines, seen from the worker: what is asked of the engine processes, and who gets the answers.

What was asked is remembered until it is answered, so that when a process dies another one is asked again: the
caller's audio is still in the slot, and so is what was already synthesised.  The rule: nothing here blocks.
"""
import asyncio
from collections.abc import AsyncIterator

import numpy as np

from ... import EngineError
from ..._fastpath import SEGMENT_SAMPLES, Arena
from ...config import Config
from ..processes.delays import Delays
from ..processes.host import Host
from ..processes.records import (ASK, CANCEL, ENDS, FAILED, FINAL, FINISH, FRESH, LEVEL, LISTEN, PARTIAL, SPACE, SPEAK,
                                 SPEECH, WORDS)


MARGIN_MS = 500                 # of the oldest audio that is kept: it may be overwritten while another process starts
LONGEST = 2000                  # characters of a text that is spoken at once
COMPUTED = 0.001                # seconds that a voice may compute for each character before it says anything
TRIES = 3                       # processes that may die over one request before it is given up


class Asked:
    """An utterance that is being recognised: what another process would have to be asked."""

    __slots__ = ("call", "slot", "generation", "utterance", "search", "position", "finish", "tries")

    def __init__(self, call, position: int):
        self.call = call
        self.slot = call.slot
        self.generation = call.slot.generation
        self.utterance = call.utterance
        self.search = call.search
        self.position = position
        self.finish: int | None = None
        self.tries = 0                              # times it was asked


class Stt:
    """pocketsphinx in engine processes."""

    def __init__(self, config: Config):
        self.host = Host("stt", config, self._on_record, self._ask_again, self._leave)
        self.asked: dict[int, Asked] = {}           # by slot
        self.levels: dict[int, float] = {}          # by slot: what was learned of its caller
        self.delays = Delays()                      # of the recogniser behind the audio, as it says

    async def open(self, arena: Arena, searches) -> None:
        await self.host.open(arena, {"searches": [
            [search.id, search.kind, search.jsgf, sorted(search.words), search.murmurs, search.interruptions]
            for search in searches]})

    async def close(self) -> None:
        self.host.close()

    def fault(self) -> str:
        return self.host.fault()

    def listen(self, call, position: int) -> None:
        self.asked[call.slot.index] = asked = Asked(call, position)
        self._listen(asked)

    def _listen(self, asked: Asked) -> None:
        """From its beginning, or from the oldest sample that is kept of it."""
        slot = asked.slot
        asked.tries += 1
        position = max(asked.position, slot.written - slot.capacity + slot.rate_in * MARGIN_MS // 1000)
        self.host.send(slot.index, LISTEN, asked.generation, asked.utterance, position, asked.search,
                       LEVEL.pack(self.levels.get(slot.index, 0.0)))
        if asked.finish is not None:
            self.host.send(slot.index, FINISH, asked.generation, asked.utterance, asked.finish)

    def audio(self, call) -> None:
        self.host.wake(call.slot.index)

    def ask(self, call) -> None:
        self.host.send(call.slot.index, ASK, call.slot.generation, call.utterance)

    def finish(self, call, position: int) -> None:
        asked = self.asked.get(call.slot.index)
        if asked is not None:
            asked.finish = position
            self.host.send(call.slot.index, FINISH, asked.generation, asked.utterance, position)

    def cancel(self, call) -> None:
        asked = self.asked.pop(call.slot.index, None)
        if asked is not None:
            self.host.send(call.slot.index, CANCEL, asked.generation, asked.utterance)

    def forget(self, call) -> None:
        self.levels.pop(call.slot.index, None)

    def measure(self, metrics) -> None:
        self.host.measure(metrics, self.delays.seconds)
        metrics.gauge("utterances_in_recognition", len(self.asked))

    def _ask_again(self, share: int) -> None:
        """Another process has taken over: it hears every utterance from its beginning."""
        for index, asked in list(self.asked.items()):
            if self.host.share(index) != share:
                continue
            if asked.tries < TRIES:
                self._listen(asked)
            else:
                del self.asked[index]
                asked.call.on_failure(asked.utterance, f"{TRIES} recognisers died over one utterance.")

    def _leave(self, process, share: int) -> None:
        """Another process hears these utterances: should this one come back, it need not."""
        for index, asked in self.asked.items():
            if self.host.share(index) == share:
                process.send(CANCEL, index, asked.generation, asked.utterance)
                asked.tries -= 1                    # nobody has died over it

    def _on_record(self, kind: int, index: int, generation: int, utterance: int, a: int, b: int, data: bytes) -> None:
        asked = self.asked.get(index)
        if asked is None or asked.utterance != utterance or asked.generation != generation:
            return                                  # late
        if kind == PARTIAL:
            self.delays.was(b / 1000)
            asked.call.on_partial(utterance, data.decode())
        elif kind == FINAL:
            self.delays.was(b / 1000)
            del self.asked[index]
            self.levels[index], = LEVEL.unpack_from(data)
            asked.call.on_final(utterance, data[LEVEL.size:].decode(), a / 1e6)
        elif kind == FAILED:
            del self.asked[index]
            asked.call.on_failure(utterance, data.decode())


class Spoken:
    """A segment that is being synthesised: what another process would have to be asked."""

    __slots__ = ("call", "slot", "generation", "epoch", "k", "text", "voice", "start", "tries")

    def __init__(self, call, epoch: int, k: int, text: str, voice: str):
        self.call = call
        self.slot = call.slot
        self.generation = call.slot.generation
        self.epoch = epoch
        self.k = k
        self.text = text
        self.voice = voice
        self.start = FRESH                          # counter of the buffer at its first sample, as the process said
        self.tries = 0                              # times it was asked


class Tts:
    """flite in engine processes."""

    def __init__(self, config: Config):
        self.host = Host("tts", config, self._on_record, self._ask_again, self._leave, self._work)
        self.voice = config.embedded.voice
        self.speaking: dict[tuple[int, int], Spoken] = {}       # by slot and buffer
        self.delays = Delays()                                  # by slot: of replies that no process has begun
        self.arena: Arena | None = None

    def identity(self, voice: str) -> str:
        return f"embedded {self.voice}"

    async def open(self, arena: Arena) -> None:
        self.arena = arena
        await self.host.open(arena, {"voice": self.voice})

    async def close(self) -> None:
        self.host.close()

    def fault(self) -> str:
        return self.host.fault()

    def speak(self, call, epoch: int, k: int, text: str, voice: str) -> None:
        spoken = Spoken(call, epoch, k, text, voice)
        self.speaking[call.slot.index, k] = spoken
        self._speak(spoken)

    def resume(self, call, epoch: int, k: int, text: str, voice: str, start: int | None) -> None:
        self.speaking[call.slot.index, k] = spoken = Spoken(call, epoch, k, text, voice)
        spoken.start = FRESH if start is None else start
        self._speak(spoken)

    def _speak(self, spoken: Spoken) -> None:
        """With `start`, when it is known: what is written of the segment already is skipped, not spoken twice."""
        spoken.tries += 1
        if spoken is next(each for each in self.speaking.values() if each.slot is spoken.slot):
            self.delays.begin(spoken.slot.index)    # what follows it, nobody waits for yet
        data = f"{spoken.voice}\0{spoken.text[:LONGEST]}".encode()
        self.host.send(spoken.slot.index, SPEAK, spoken.generation, spoken.epoch, spoken.k, spoken.start, data)

    def cancel(self, call) -> None:
        index = call.slot.index
        for key in [key for key in self.speaking if key[0] == index]:
            del self.speaking[key]
        self.delays.end(index)
        self.host.send(index, CANCEL, call.slot.generation, call.epoch)

    def played(self, call, k: int) -> None:
        """The worker has played some of a buffer: a voice that waits for room goes on."""
        if (call.slot.index, k) in self.speaking:
            self.host.send(call.slot.index, SPACE, call.slot.generation, call.epoch, k)

    async def render(self, texts, voice: str, rate: int) -> AsyncIterator[tuple[str, np.ndarray, np.ndarray]]:
        """Speak the texts one after another, in the last slot of the arena."""
        slot = self.arena.slot(self.arena.slots - 1)
        slot.take(8000, rate)
        try:
            rendering = Rendering(slot)
            for text in texts:
                yield text, await rendering.speak(self, text, voice), rendering.ends
        finally:
            slot.free()

    def measure(self, metrics) -> None:
        self.host.measure(metrics, self.delays.seconds)
        metrics.gauge("segments_in_synthesis", len(self.speaking))

    def _ask_again(self, share: int) -> None:
        """Another process has taken over: it goes on where the samples end that are written."""
        for (index, k), spoken in list(self.speaking.items()):
            if self.host.share(index) != share:
                continue
            if spoken.tries < TRIES:
                self._speak(spoken)
            else:
                del self.speaking[index, k]
                self.delays.end(index)
                spoken.call.on_speech_failed(spoken.epoch, k, f"{TRIES} voices died over one text.")

    def _work(self) -> float:
        """flite plans all of a text before its first sample."""
        return COMPUTED * max((len(spoken.text) for spoken in self.speaking.values()), default=0)

    def _leave(self, process, share: int) -> None:
        """Another process speaks these texts on: should this one come back, it must not."""
        for (index, _), spoken in self.speaking.items():
            if self.host.share(index) == share:
                process.send(CANCEL, index, spoken.generation, spoken.epoch)
                spoken.tries -= 1                   # nobody has died over it

    def _on_record(self, kind: int, index: int, generation: int, epoch: int, a: int, b: int, data: bytes) -> None:
        k = data[0] if kind == SPEECH else a
        spoken = self.speaking.get((index, k))
        if spoken is None or spoken.epoch != epoch or spoken.generation != generation:
            return                                  # late
        self.delays.end(index)                      # BEGUN says no more than that
        if kind == WORDS:
            spoken.call.on_word_ends(epoch, k, np.frombuffer(data, ENDS).astype(np.int64))
        elif kind == SPEECH:
            spoken.start = a
            if data[1]:
                del self.speaking[index, k]
            spoken.call.on_speech(epoch, k, a, b, bool(data[1]))
        elif kind == FAILED:
            del self.speaking[index, k]
            spoken.call.on_speech_failed(epoch, k, data.decode())


class Rendering:
    """A stand-in for a call while prompts are rendered: it collects what the voice writes."""

    def __init__(self, slot):
        self.slot = slot
        self.epoch = 0
        self.pieces: list[np.ndarray] = []
        self.ends = np.zeros(0, np.int64)
        self.done: asyncio.Future | None = None

    async def speak(self, tts: Tts, text: str, voice: str) -> np.ndarray:
        self.tts = tts
        self.epoch += 1
        self.pieces, self.ends = [], np.zeros(0, np.int64)
        self.done = asyncio.get_running_loop().create_future()
        tts.speak(self, self.epoch, 0, text, voice)
        await self.done
        return np.concatenate(self.pieces) if self.pieces else np.zeros(0, np.int16)

    def on_word_ends(self, epoch: int, k: int, ends: np.ndarray) -> None:
        self.ends = ends

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
