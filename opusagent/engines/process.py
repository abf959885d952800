"""An engine process: `python -m opusagent.engines.process STAGE SLOTS FD...`, started by host.py and by nobody else.

One thread, one loop: read the records, do a piece of work for each call that has some, tell the result, sleep when
there is nothing.  The rule: a call never waits for more than a piece of another call's work; and nothing is written
to a slot whose generation is not the one that was asked for.
"""
import ctypes
import json
import os
import select
import signal
import sys
import time
from collections import deque
from typing import NamedTuple

import numpy as np

from .. import ConfigError, EngineError
from .._fastpath import SEGMENT_SAMPLES, Arena, Ring, Slot
from .records import (ASK, CANCEL, FAILED, FINAL, FINISH, FORGET, FRESH, LISTEN, PARTIAL, READY, SPACE, SPEAK, SPEECH)

PR_SET_PDEATHSIG = 1
NICE = 5                        # below the loop that feeds us
BEAT_MS = 100                   # at least so often we say that we live
PIECE_MS = 60                   # of a call's audio recognised at once
RETRY_MS = 5                    # before a full ring is tried again


class Channel:
    """Our end of the rings."""

    def __init__(self, to: Ring, back: Ring):
        self.to = to                            # records for us
        self.back = back
        self.unsent: deque[tuple] = deque()     # records that found the ring full
        self.poll = select.poll()
        self.poll.register(to.eventfd, select.POLLIN)

    def send(self, kind: int, *record) -> None:
        if self.unsent or not self.back.push(kind, *record):
            self.unsent.append((kind, *record))

    def beat(self) -> None:
        self.to.beat = time.monotonic_ns()
        while self.unsent and self.back.push(*self.unsent[0]):
            self.unsent.popleft()

    def wait(self) -> None:
        """Until the worker has something for us, or it is time for a beat."""
        if self.to.sleep() and self.poll.poll(RETRY_MS if self.unsent else BEAT_MS):
            os.eventfd_read(self.to.eventfd)


# ---- recognising -----------------------------------------------------------------------------------------------------

class Search(NamedTuple):
    """What the recogniser may be asked to listen for; see flow.Search."""

    id: int
    kind: str
    jsgf: str
    words: list[str]


class Listening:
    """An utterance in progress."""

    __slots__ = ("slot", "generation", "number", "position", "search", "finish", "asked", "text", "utterance")

    def __init__(self, slot: Slot, generation: int, number: int, position: int, search: int):
        self.slot = slot
        self.generation = generation
        self.number = number
        self.position = position        # of the next sample to recognise
        self.search = search
        self.finish: int | None = None  # where it ends
        self.asked = False              # the best text is wanted once all that is there is recognised
        self.text = ""                  # as it was last told
        self.utterance = None           # the recogniser's; None while it has no decoder to spare


class Recognising:
    """The loop's work in an stt process."""

    def __init__(self, channel: Channel, arena: Arena, setup: dict):
        from .embedded import Recogniser
        self.channel = channel
        self.arena = arena
        self.recogniser = Recogniser([Search(*search) for search in setup["searches"]])
        self.listening: dict[int, Listening] = {}           # by slot
        self.levels: dict[int, tuple[int, float]] = {}      # by slot: of which generation, and what was learned of its caller
        self.room = np.empty(16000 * PIECE_MS // 1000, np.int16)

    def on_record(self, kind: int, index: int, generation: int, number: int, a: int, b: int, data: bytes) -> None:
        found = self.listening.get(index)
        if kind == LISTEN:
            self._drop(index)
            self.listening[index] = Listening(self.arena.slot(index), generation, number, a, b)
        elif kind == FORGET:
            self.levels.pop(index, None)
        elif found is None or found.generation != generation or found.number != number:
            return                                              # late
        elif kind == ASK:
            found.asked = True
        elif kind == FINISH:
            found.finish = a
        elif kind == CANCEL:
            self._drop(index)

    def _drop(self, index: int) -> None:
        found = self.listening.pop(index, None)
        if found is not None and found.utterance is not None:
            found.utterance.abandon()

    def _begin(self, index: int, found: Listening) -> bool:
        """Get a decoder for it; False while there is none to spare."""
        generation, level = self.levels.get(index, (0, 0.0))
        found.utterance = self.recogniser.start(found.search, found.slot.rate_in,
                                                level if generation == found.generation else 0.0)
        return found.utterance is not None

    def work(self) -> bool:
        """A piece for each utterance that has audio; False when nobody had any."""
        worked = False
        for index, found in list(self.listening.items()):
            try:
                worked |= self._work(index, found)
            except (LookupError, EngineError) as error:
                self._drop(index)
                self.channel.send(FAILED, index, found.generation, found.number, 0, 0, str(error).encode())
        return worked

    def _work(self, index: int, found: Listening) -> bool:
        slot = found.slot
        if slot.generation != found.generation:
            self._drop(index)
            return False
        if found.utterance is None and not self._begin(index, found):
            return False
        room = self.room[:slot.rate_in * PIECE_MS // 1000]
        if found.finish is not None:
            room = room[:max(0, found.finish - found.position)]
        count = slot.read_into(found.position, room) if len(room) else 0
        found.position += count
        due = found.utterance.feed(room[:count]) if count else False
        caught_up = found.position >= slot.written
        if found.finish is not None and found.position >= found.finish:
            self._finish(index, found)
        elif due or found.asked and caught_up:
            self._look(index, found, answer=found.asked and caught_up)
        return count > 0 and not caught_up

    def _lag(self, found: Listening) -> int:
        return max(0, found.slot.written - found.position) * 1000 // found.slot.rate_in

    def _look(self, index: int, found: Listening, answer: bool) -> None:
        text = found.utterance.partial()
        if text != found.text or answer:
            found.text = text
            self.channel.send(PARTIAL, index, found.generation, found.number, found.position, self._lag(found),
                              text.encode())
        if answer:
            found.asked = False

    def _finish(self, index: int, found: Listening) -> None:
        del self.listening[index]
        text, confidence = found.utterance.finish()
        self.levels[index] = (found.generation, found.utterance.level)
        self.channel.send(FINAL, index, found.generation, found.number, round(confidence * 1e6), self._lag(found),
                          text.encode())

    def rest(self) -> None:
        """Nothing to recognise: make a decoder that the next caller would have to wait for."""
        if self.recogniser.short():
            self.recogniser.make_one()


# ---- speaking --------------------------------------------------------------------------------------------------------

class Speech:
    """A segment in progress."""

    __slots__ = ("slot", "generation", "epoch", "k", "start", "skip", "voice", "text", "pieces", "spoken")

    def __init__(self, slot: Slot, generation: int, epoch: int, k: int, start: int, voice: str, text: str):
        self.slot = slot
        self.generation = generation
        self.epoch = epoch
        self.k = k
        self.start = start                              # counter of the buffer at its first sample
        self.skip = slot.segment_written(k) - start     # samples that another process wrote before it died
        self.voice = voice
        self.text = text
        self.pieces: deque[np.ndarray] = deque()        # spoken, and no room for them yet
        self.spoken = False                             # all of it is spoken


class Speaking:
    """The loop's work in a tts process."""

    def __init__(self, channel: Channel, arena: Arena, setup: dict):
        from .flite import Voices
        self.channel = channel
        self.arena = arena
        self.voices = Voices(setup["voice"])
        self.speeches: deque[Speech] = deque()

    def on_record(self, kind: int, index: int, generation: int, epoch: int, a: int, b: int, data: bytes) -> None:
        slot = self.arena.slot(index)
        if kind == CANCEL:
            self.speeches = deque(speech for speech in self.speeches if speech.slot is not slot)
        elif kind == SPEAK and slot.generation == generation:
            self.speeches = deque(each for each in self.speeches if each.slot is not slot or each.k != a)
            if b == FRESH:
                b = slot.segment_written(a)
                slot.set_segment_read(a, b)             # what lay there before is nobody's any more
            self.speeches.append(Speech(slot, generation, epoch, a, b, *data.decode().split("\0", 1)))

    def work(self) -> bool:
        """Speak or go on with the segment that waited longest; False when nothing could be written."""
        for _ in range(len(self.speeches)):
            speech = self.speeches.popleft()
            if speech.slot.generation != speech.generation:
                continue                                # the call is over
            try:
                wrote, done = self._work(speech)
            except (ConfigError, EngineError) as error:
                self.channel.send(FAILED, speech.slot.index, speech.generation, speech.epoch, speech.k, 0,
                                  str(error).encode())
                continue
            if not done:
                self.speeches.append(speech)
            if wrote or done:
                return True
        return False

    def _work(self, speech: Speech) -> tuple[bool, bool]:
        """(Something was written, all of it is)."""
        if not speech.spoken:
            self.voices.speak(speech.voice, speech.text, speech.slot.rate_out, lambda pcm: self._piece(speech, pcm))
            speech.spoken = True
        before = speech.slot.segment_written(speech.k)
        self._write(speech)
        done = not speech.pieces
        if done:
            self._tell(speech, done)
        return speech.slot.segment_written(speech.k) > before, done

    def _piece(self, speech: Speech, pcm: np.ndarray) -> None:
        """From the voice, while it speaks: it is written at once, as far as there is room."""
        skipped = min(speech.skip, len(pcm))
        speech.skip -= skipped
        if len(pcm) > skipped:
            speech.pieces.append(pcm[skipped:])
            self._write(speech)
        self.channel.beat()

    def _write(self, speech: Speech) -> None:
        slot, k = speech.slot, speech.k
        ring = np.asarray(slot.segment(k))
        begin = written = slot.segment_written(k)
        while speech.pieces and slot.generation == speech.generation:
            piece = speech.pieces[0]
            count = min(len(piece), SEGMENT_SAMPLES - (written - slot.segment_read(k)))
            if not count:
                break
            at = written % SEGMENT_SAMPLES
            first = min(count, SEGMENT_SAMPLES - at)
            ring[at:at + first] = piece[:first]
            ring[:count - first] = piece[first:count]
            written += count
            slot.set_segment_written(k, written)
            if count == len(piece):
                speech.pieces.popleft()
            else:
                speech.pieces[0] = piece[count:]
        if written > begin:
            self._tell(speech, False)

    def _tell(self, speech: Speech, done: bool) -> None:
        slot, k = speech.slot, speech.k
        self.channel.send(SPEECH, slot.index, speech.generation, speech.epoch, speech.start, slot.segment_written(k),
                          bytes((k, done)))

    def rest(self) -> None:
        """Nothing to do ahead of time."""


WORK = {"stt": Recognising, "tts": Speaking}


def run(stage: str, slots: int, fds: list[int]) -> int:
    arena_fd, to_fd, to_event, back_fd, back_event, setup_fd = fds
    channel = Channel(Ring(to_event, to_fd), Ring(back_event, back_fd))
    with os.fdopen(setup_fd, "rb") as setup_file:
        setup_file.seek(0)
        setup = json.load(setup_file)
    try:
        work = WORK[stage](channel, Arena(slots, arena_fd), setup)
    except (ConfigError, EngineError) as error:
        channel.send(FAILED, 0, 0, 0, isinstance(error, ConfigError), 0, str(error).encode())
        return 1
    channel.beat()
    channel.send(READY)
    while True:
        channel.beat()
        while (record := channel.to.pop()) is not None:
            work.on_record(*record)
        if not work.work():
            work.rest()
            channel.wait()


def main() -> int:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)        # Ctrl-C is the worker's to answer
    try:
        os.nice(NICE)
    except OSError:
        sys.stderr.write("opusagent: an engine process could not lower its priority\n")
    stage, slots, *fds = sys.argv[1:]
    return run(stage, int(slots), list(map(int, fds)))


if __name__ == "__main__":
    sys.exit(main())
