"""What a client of the Realtime protocol has sent and the call has not come to yet, in its order.

The recogniser has to follow, so audio waits where it comes much faster than it is spoken.  The rule: no more waits than
INBOX_SECONDS of audio and INBOX_ENTRIES of anything.
"""
from collections import deque

import numpy as np

from ..._fastpath import Throttle
from ...dialects import Ask, Dtmf

PIECE_MS = 200                  # of audio that waits
INBOX_SECONDS = 120             # of audio that may wait
INBOX_ENTRIES = 4096


class Inbox:
    """True while anything waits."""

    __slots__ = ("entries", "samples", "throttle")

    def __init__(self, throttle: Throttle):
        self.entries: deque[np.ndarray | Ask | Dtmf] = deque()
        self.samples = 0                        # of the audio in it
        self.throttle = throttle                # how fast it is emptied

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, event: Ask | Dtmf) -> bool:
        """False: there are too many."""
        if len(self.entries) >= INBOX_ENTRIES:
            return False
        self.entries.append(event)
        return True

    def add_audio(self, pcm, rate: int) -> bool:
        """int16 samples at `rate`, Hz, in pieces if they are long; False: too much waits."""
        if self.samples + len(pcm) > INBOX_SECONDS * rate or len(self.entries) >= INBOX_ENTRIES:
            return False
        pcm, most = np.array(pcm), PIECE_MS * rate // 1000
        self.entries.extend(pcm[at:at + most] for at in range(0, len(pcm), most))
        self.samples += len(pcm)
        return True

    def take(self, now: int, rate: int) -> np.ndarray | Ask | Dtmf:
        """The next, which there is."""
        entry = self.entries.popleft()
        if isinstance(entry, np.ndarray):
            self.samples -= len(entry)
            self.throttle.hears(len(entry), now, rate)
        return entry

    def ready(self, now: int) -> bool:
        """The recogniser can follow."""
        return self.throttle.heard_by <= now

    def take_out(self, unwanted: list[Ask]) -> None:
        """They need not be done any more."""
        self.entries = deque(entry for entry in self.entries if not any(entry is one for one in unwanted))

    def clear(self) -> None:
        self.entries.clear()
        self.samples = 0
