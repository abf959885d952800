"""What a client of the Realtime protocol has sent and the call has not come to yet, in its order.

Audio is let through PACE times as fast as it was spoken, the first AT_ONCE of it at once, for the recogniser has to
follow.  The rule: no more waits than INBOX_SECONDS of audio and INBOX_ENTRIES of anything.
"""
from collections import deque

import numpy as np

from .dialects import Ask, Dtmf

MS = 1_000_000                  # ns
PACE = 8                        # times as fast as it was spoken, audio is heard
AT_ONCE = 125 * MS              # ... after as much of it as is heard in so long
PIECE_MS = 200                  # of audio that waits
INBOX_SECONDS = 120             # of audio that may wait
INBOX_ENTRIES = 4096


class Inbox:
    """True while anything waits."""

    __slots__ = ("entries", "samples", "heard_by")

    def __init__(self):
        self.entries: deque[np.ndarray | Ask | Dtmf] = deque()
        self.samples = 0                        # of the audio in it
        self.heard_by = 0                       # ns: until when what was heard keeps the recogniser busy

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
            self.hears(len(entry), now, rate)
        return entry

    def ready(self, now: int) -> bool:
        """The recogniser can follow."""
        return self.heard_by <= now

    def hears(self, samples: int, now: int, rate: int) -> None:
        """So much audio is heard now."""
        self.heard_by = max(self.heard_by, now - AT_ONCE) + samples * 1000 * MS // (PACE * rate)

    def take_out(self, unwanted: list[Ask]) -> None:
        """They need not be done any more."""
        self.entries = deque(entry for entry in self.entries if not any(entry is one for one in unwanted))

    def clear(self) -> None:
        self.entries.clear()
        self.samples = 0
