"""An engine process: `python -m opusagent.engines.processes.process STAGE SLOTS PARENT FD...`, started by host.py only.

One thread, one loop: read the records, do a piece of work for each call that has some, tell the result, sleep when
there is nothing.  The rule: a call never waits for more than a piece of another call's work; and nothing is written
to a slot whose generation is not the one that was asked for.
"""
import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from collections import deque
from importlib import import_module
from typing import NamedTuple

import numpy as np

from ... import ConfigError, EngineError
from ..._fastpath import SEGMENT_SAMPLES, Arena, Ring, Slot
from .records import (ASK, BEGUN, CANCEL, ENDS, FAILED, FINAL, FINISH, FRESH, JUDGE, JUDGED, LEVEL, LISTEN, PARTIAL,
                      READY, SPEAK, SPEECH, WORDS)

PR_SET_PDEATHSIG = 1
NICE = 5                        # below the loop that feeds us
MEMORY = 1 << 30                # bytes of our own; a process that wants more has lost its way, and is replaced
BEAT_MS = 100                   # at least so often we say that we live ...
LONG_SECONDS = 3.0              # ... or before a longer piece of work for so long ahead: a busy machine takes its time
PIECE_MS = 60                   # of a call's audio taken at once
RETRY_MS = 5                    # before a full ring is tried again
TELL_MS = 100                   # of a segment written between two records about it, or half of what was told before


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

    def receive(self, on_record) -> None:
        """Say that we live, tell what could not be told before, and read what has come."""
        self.live()
        while self.unsent and self.back.push(*self.unsent[0]):
            self.unsent.popleft()
        self.to.deliver(on_record)

    def live(self, seconds: float = 0.0) -> None:
        """Say that we live, and will, though we say nothing for so long."""
        self.to.beat = time.monotonic_ns() + round(seconds * 1e9)

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
    murmurs: list[str]
    interruptions: list[str]


class Listening:
    """An utterance in progress."""

    __slots__ = ("slot", "generation", "number", "position", "search", "level", "finish", "asked", "text", "utterance")

    def __init__(self, slot: Slot, generation: int, number: int, position: int, search: int, level: float):
        self.slot = slot
        self.generation = generation
        self.number = number
        self.position = position        # of the next sample to recognise
        self.search = search
        self.level = level              # what the caller's last utterance taught
        self.finish: int | None = None  # where it ends
        self.asked = False              # the best text is wanted once all that is there is recognised
        self.text = ""                  # as it was last told
        self.utterance = None           # the recogniser's; None while it has no decoder to spare

    @property
    def end(self) -> int:
        """The position up to which there is audio for it."""
        return self.slot.written if self.finish is None else min(self.finish, self.slot.written)

    @property
    def lag_ms(self) -> int:
        return max(0, self.slot.written - self.position) * 1000 // self.slot.rate_in


class Recognising:
    """The loop's work in an stt process."""

    def __init__(self, channel: Channel, arena: Arena, setup: dict):
        module = import_module(f"..{setup.get('recogniser', 'embedded.recogniser')}", __package__)
        self.channel = channel
        self.arena = arena
        self.recogniser = module.recogniser(setup, [Search(*search) for search in setup["searches"]])
        self.listening: dict[int, Listening] = {}           # by slot
        self.room = np.empty(16000 * PIECE_MS // 1000, np.int16)

    def on_record(self, kind: int, index: int, generation: int, number: int, a: int, b: int, data: bytes) -> None:
        found = self.listening.get(index)
        if kind == LISTEN:
            self._drop(index)
            self.listening[index] = Listening(self.arena.slot(index), generation, number, a, b, *LEVEL.unpack(data))
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

    def work(self) -> bool:
        """A piece for each utterance that has audio; False when nobody has any more."""
        more = False
        for index, found in list(self.listening.items()):
            self.channel.live()                                 # a round of many is long
            try:
                more |= self._work(index, found)
            except (IndexError, EngineError) as error:          # of audio that is no longer kept; of the recogniser
                self._drop(index)
                self._send(FAILED, index, found, 0, 0, str(error).encode())
        return more

    def _work(self, index: int, found: Listening) -> bool:
        """A piece of one utterance; True while there is more of it."""
        slot = found.slot
        if slot.generation != found.generation:
            self._drop(index)
            return False
        if found.utterance is None:
            found.utterance = self.recogniser.start(found.search, slot.rate_in, found.level)
            if found.utterance is None:
                return self._make()                             # it is its own in the next round
        room = self.room[:min(slot.rate_in * PIECE_MS // 1000, max(0, found.end - found.position))]
        if len(room):
            slot.read_into(found.position, room)
            found.position += len(room)
            found.utterance.feed(room)
        if found.asked and found.position >= found.end:
            found.utterance.hurry()
        more = found.utterance.step() or found.position < found.end
        if found.finish is not None and found.position >= found.finish and not more:
            self._finish(index, found)
        elif found.utterance.due or found.asked and not more:
            self._look(index, found, answer=found.asked and not more)
        return more

    def _look(self, index: int, found: Listening, answer: bool) -> None:
        text = found.utterance.partial()
        if text != found.text or answer:
            found.text = text
            self._send(PARTIAL, index, found, found.position, found.lag_ms, text.encode())
        if answer:
            found.asked = False

    def _finish(self, index: int, found: Listening) -> None:
        del self.listening[index]
        text, confidence = found.utterance.finish()
        level = LEVEL.pack(found.utterance.level)
        self._send(FINAL, index, found, round(confidence * 1e6), found.lag_ms, level + text.encode())

    def _send(self, kind: int, index: int, found: Listening, a: int, b: int, data: bytes) -> None:
        self.channel.send(kind, index, found.generation, found.number, a, b, data)

    def rest(self) -> bool:
        """Nothing to recognise: make a decoder that the next caller would have to wait for.  True if one was made."""
        return self._make()

    def _make(self) -> bool:
        """Make a decoder, if there should be another; True if one was made."""
        if not (kind := self.recogniser.short()):
            return False
        if kind == "free":                                      # 0.3 s, where it gets a core of its own
            self.channel.live(LONG_SECONDS)
        self.recogniser.make(kind)
        return True


# ---- speaking --------------------------------------------------------------------------------------------------------

class Speech:
    """A segment in progress."""

    __slots__ = ("slot", "generation", "epoch", "k", "start", "at", "skip", "voice", "text", "pieces", "told",
                 "wanted", "spoken", "worded")

    def __init__(self, slot: Slot, generation: int, epoch: int, k: int, start: int, voice: str, text: str):
        self.slot = slot
        self.generation = generation
        self.epoch = epoch
        self.k = k
        self.start = start                              # counter of the buffer at its first sample
        self.at = slot.segment_written(k)               # ... and after its last one so far
        self.skip = self.at - start                     # samples that another process has written
        self.voice = voice
        self.text = text
        self.pieces: deque[np.ndarray] = deque()        # spoken, and no room for them yet
        self.told = start                               # counter that the worker was told last
        self.wanted = True                              # nobody has cancelled it
        self.spoken = False                             # all of it is spoken
        self.worded = False                             # the worker knows where its words end, if we do

    @property
    def live(self) -> bool:
        return self.wanted and self.slot.generation == self.generation

    def write(self) -> None:
        """Move what is spoken into the slot, as far as there is room.

        One that was taken for dead, and was only slow, may still write a piece while another process goes on: it
        counts for itself, so that the same samples come to lie where they lie already.
        """
        slot, k = self.slot, self.k
        ring = np.asarray(slot.segment(k))
        while self.pieces and self.live:
            piece = self.pieces.popleft()
            count = min(len(piece), SEGMENT_SAMPLES - (self.at - slot.segment_read(k)))
            at = self.at % SEGMENT_SAMPLES
            first = min(count, SEGMENT_SAMPLES - at)
            ring[at:at + first] = piece[:first]
            ring[:count - first] = piece[first:count]
            self.at += count
            slot.set_segment_written(k, max(self.at, slot.segment_written(k)))
            if count < len(piece):
                self.pieces.appendleft(piece[count:])
                return


class Speaking:
    """The loop's work in a tts process."""

    def __init__(self, channel: Channel, arena: Arena, setup: dict):
        from ..embedded.voices import Voices
        self.channel = channel
        self.arena = arena
        self.voices = Voices(setup["voice"])
        self.speeches: deque[Speech] = deque()

    def on_record(self, kind: int, index: int, generation: int, epoch: int, a: int, b: int, data: bytes) -> None:
        slot = self.arena.slot(index)
        if kind == CANCEL:
            self._forget(slot)
        elif kind == SPEAK and slot.generation == generation:
            self._forget(slot, a)
            if b == FRESH:
                b = slot.segment_written(a)
                slot.set_segment_read(a, b)             # what lay there before is nobody's any more
            self.speeches.append(Speech(slot, generation, epoch, a, b, *data.decode().split("\0", 1)))

    def _forget(self, slot: Slot, k: int | None = None) -> None:
        """What was asked for in the slot, or in its buffer k, is not wanted any more."""
        for speech in self.speeches:
            if speech.slot is slot and k in (None, speech.k):
                speech.wanted = False

    def work(self) -> bool:
        """Speak the segment that waited longest, and move what waits for room; False when nothing could be done."""
        worked = False
        for speech in list(self.speeches):
            begun = speech.spoken
            if speech.live and not (worked and not begun):      # one new segment, then look for new records
                worked |= self._work(speech)
            if not speech.live or speech.spoken and not speech.pieces:
                self.speeches.remove(speech)
        return worked

    def _work(self, speech: Speech) -> bool:
        """Speak it, or go on writing it; True if samples were written."""
        slot, before = speech.slot, speech.at
        try:
            if not speech.spoken:
                self.channel.send(BEGUN, slot.index, speech.generation, speech.epoch, speech.k)
                self.voices.speak(speech.voice, speech.text, slot.rate_out, lambda pcm: self._piece(speech, pcm))
        except (ConfigError, EngineError) as error:
            speech.wanted = False
            self.channel.send(FAILED, slot.index, speech.generation, speech.epoch, speech.k, 0, str(error).encode())
            return True
        speech.spoken = True
        speech.write()
        self._tell(speech)
        return speech.at > before

    def _piece(self, speech: Speech, pcm: np.ndarray) -> bool:
        """From the voice, while it speaks: written at once, as far as there is room.  False if it may stop."""
        self.channel.receive(self.on_record)            # first: it may not be wanted of us any more
        if not speech.worded:
            self._tell_words(speech)
        skipped = min(speech.skip, len(pcm))
        speech.skip -= skipped
        if len(pcm) > skipped:
            speech.pieces.append(pcm[skipped:])
            speech.write()
            self._tell(speech)
        return speech.live

    def _tell_words(self, speech: Speech) -> None:
        speech.worded = True
        ends = np.array(self.voices.voice(speech.voice).words, ENDS)
        if speech.live and len(ends):
            self.channel.send(WORDS, speech.slot.index, speech.generation, speech.epoch, speech.k, 0, ends.tobytes())

    def _tell(self, speech: Speech) -> None:
        """The worker hears of the first piece, then the more is written the less often, and of the end."""
        slot, k, written = speech.slot, speech.k, speech.at
        done = speech.spoken and not speech.pieces
        enough = min((speech.told - speech.start) // 2, TELL_MS * slot.rate_out // 1000)
        if speech.live and (done or written > speech.told and (written - speech.told >= enough or speech.pieces)):
            speech.told = written
            self.channel.send(SPEECH, slot.index, speech.generation, speech.epoch, speech.start, written,
                              bytes((k, done)))

    def rest(self) -> bool:
        """There is nothing to do ahead of time."""
        return False


# ---- judging whether a turn is complete ------------------------------------------------------------------------------

class Judging:
    """The loop's work in a turn process: the latest question of each call, one after the other."""

    def __init__(self, channel: Channel, arena: Arena, setup: dict):
        from ..prosody import SAMPLES, TurnModel
        self.channel = channel
        self.arena = arena
        self.model = TurnModel(setup["model"])
        self.most = SAMPLES
        self.asked: dict[int, tuple] = {}               # slot -> (generation, utterance, from position, to position)

    def on_record(self, kind: int, index: int, generation: int, number: int, a: int, b: int, data: bytes) -> None:
        if kind == JUDGE:
            self.asked[index] = generation, number, a, b

    def work(self) -> bool:
        """An answer; False when nobody has asked."""
        if not self.asked:
            return False
        index = next(iter(self.asked))
        generation, number, begin, end = self.asked.pop(index)
        slot = self.arena.slot(index)
        if slot.generation == generation:
            begin = max(begin, end - self.most * slot.rate_in // 16000)
            try:
                probable = self.model.complete(slot.read(begin, end - begin), slot.rate_in)
            except IndexError:                          # that audio is no longer kept
                return True
            self.channel.send(JUDGED, index, generation, number, end, round(probable * 1e6))
        return True

    def rest(self) -> bool:
        """There is nothing to do ahead of time."""
        return False


# ---- the process -----------------------------------------------------------------------------------------------------

WORK = {"stt": Recognising, "tts": Speaking, "turn": Judging}


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
    channel.receive(work.on_record)
    channel.send(READY)
    while True:
        channel.receive(work.on_record)
        if not work.work() and not work.rest():
            channel.wait()


def settle(parent: int) -> None:
    """Bind this process to the worker that started it, below it, and within bounds."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)                                     # it died before we asked to die with it
    for number in (signal.SIGINT, signal.SIGTERM):      # a worker that drains needs us to its last call
        signal.signal(number, signal.SIG_IGN)
    if cores := os.environ.get("OA_CORES"):             # the worker's own are not ours
        os.sched_setaffinity(0, set(map(int, cores.split(","))))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    try:
        os.nice(NICE)
    except OSError:
        sys.stderr.write("opusagent: an engine process could not lower its priority\n")


def main() -> int:
    stage, slots, parent, *fds = sys.argv[1:]
    settle(int(parent))
    return run(stage, int(slots), list(map(int, fds)))


if __name__ == "__main__":
    sys.exit(main())
