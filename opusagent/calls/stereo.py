"""Stereo: the recording of a call, the caller left and the agent right, streamed to the archive while the call lasts.

It hears what the ear hears and what the mouth sends; of a conversation of others, both of its sides.  The rule: the
caller's sample clock is the time of both sides.  A frame of the agent's stands where the listener hears it: behind the
one before, or, after a pause, at the caller's position when it was sent; what is cleared before it was heard is not in
the recording.
"""
import struct

import numpy as np

from .._fastpath import Resampler, Track
from ..dialects import CALLER

PIECE_MS = 500                  # of both sides, written at once
JITTER_MS = 60                  # by which the two clocks may differ within a reply; a longer gap is a pause
LONGEST_AHEAD = 120             # seconds of the agent's that may be sent before they are heard; beyond, none is kept
UNKNOWN = 0xFFFFFFFF            # size of a file that is not finished: readers take all that there is
HEAD = 44                       # bytes


def wav_head(rate: int, size: int) -> bytes:
    """The head of a stereo WAV of 16 bits with `size` bytes of audio; those that do not fit are UNKNOWN."""
    known = size <= UNKNOWN - HEAD
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", size + HEAD - 8 if known else UNKNOWN, b"WAVE", b"fmt ", 16, 1, 2,
                       rate, rate * 4, 4, 16, b"data", size if known else UNKNOWN)


def begin(archive, call, before: "Stereo | None" = None) -> "Stereo | None":
    """The recording of a call that has its slot; None where none is kept.  `archive` may be None, as in a rehearsal.

    `before` is the one of the same call at another rate, which ends.
    """
    if archive is None or not archive.recordings:
        return None
    if before is not None:
        before.file.close()
    stereo = Stereo(archive, call.id, call.slot, call.dialect.rate, call.usage.began_at)
    if call.ear.beside is not None:
        stereo.other, stereo.right = call.ear.beside.slot, call.ear.beside.speaker != CALLER
    return stereo


class Stereo:
    """One call's.  heard(), sent(), cut() and close() are called by the call; what is sent ahead bounds the memory."""

    __slots__ = ("slot", "other", "right", "file", "track", "_resampler")

    def __init__(self, archive, name: str, slot, wire_rate: int, began_at: str):
        rate = slot.rate_in
        self.slot = slot
        self.other = None                               # the slot of the other side, in place of the agent's audio
        self.right = True                               # that one is the agent
        self.file = archive.file(name + ".wav", began_at, lambda size: wav_head(rate, size))
        self.track = Track(slot.written, JITTER_MS * rate // 1000, LONGEST_AHEAD * rate)    # the agent's
        self._resampler = Resampler(wire_rate, rate) if wire_rate != rate else None

    @property
    def as_sent(self) -> Track | None:
        """What takes the agent's frames as they go out, where they need no resampling."""
        return self.track if self._resampler is None else None

    def heard(self) -> None:
        """The caller's audio in the slot has grown."""
        written = (self.other or self.slot).written         # of both sides: the other one comes second
        until = written - self.slot.rate_in * JITTER_MS // 1000     # what comes may go on where the agent was
        if until - self.track.done >= self.slot.rate_in * PIECE_MS // 1000:
            self._write(until)

    def sent(self, pcm: np.ndarray) -> None:
        """A frame of the agent's goes out, at the wire's rate."""
        if self._resampler is not None:
            pcm = self._resampler.push(np.ascontiguousarray(pcm))
        self.track.sent(np.ascontiguousarray(pcm, np.int16), self.slot.written)

    def cut(self) -> None:
        """What was sent and not heard yet never will be."""
        self.track.cut(self.slot.written)

    def close(self) -> None:
        """The call is over."""
        self.cut()
        self._write(self.slot.written)
        self.file.close()

    def _write(self, until: int) -> None:
        """Both sides up to a position."""
        done = self.track.done                          # position up to which both sides are written
        count = until - done
        if count <= 0:
            return
        start = max(done, self.slot.written - self.slot.capacity)       # older ones are not kept by the slot
        frames = np.zeros((count, 2), "<i2")
        if start < until:
            frames[start - done:, 0] = self.slot.read(start, until - start)
            if self.other is not None:
                frames[start - done:, 1] = self.other.read(start, until - start)
                frames = frames if self.right else frames[:, ::-1]
        agent = self.track.take(count)
        frames[:len(agent), 1 if self.right else 0] += agent
        self.file.append(frames.tobytes())
