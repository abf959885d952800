"""A synthesised text on its way out, whichever voice speaks it: levelled, without its silences, at the listener's rate.

It knows samples only.  The rule: a piece goes out as soon as it is known not to be the silence at the end; and what
went out begins and ends at nothing, so that it can be joined to anything without a click.
"""
from collections.abc import Callable

import numpy as np

from .level import Level
from .rates import resampler

QUIET = 32768 * 10 ** (-45 / 20)    # root mean square of a window below which speech has not begun
OVER = 32768 * 10 ** (-40 / 20)     # ... below which it may be over
WINDOW_MS = 10
LEAD_MS = 10                # kept of the silence before the first sound: soft consonants begin in it
TRAIL_MS = 30               # kept of the silence after the last
FADE_MS = 4                 # at both ends


class Speech:
    """One text on its way out: levelled, without its silences, at the listener's rate."""

    __slots__ = ("rate", "gain", "level", "write", "edges", "resampler", "skip", "wanted")

    def __init__(self, rate: int, gain: float | Level, write: Callable[[np.ndarray], bool]):
        """`gain`: that of a voice which is known, or what is learned of one that is not."""
        self.level = gain if isinstance(gain, Level) else None
        self.rate = rate
        self.gain = gain.gain if isinstance(gain, Level) else gain
        self.write = write
        self.edges: Edges | None = None
        self.resampler = None               # from the voice's rate, where that is another
        self.skip = 0                       # samples of the resampler's delay that are still to come
        self.wanted = True

    def push(self, piece: np.ndarray, rate: int) -> bool:
        """The next samples of the voice, at `rate`; False when nobody wants more."""
        if self.edges is None:
            self.edges = Edges(rate)
            if rate != self.rate:
                self.resampler = resampler(rate, self.rate)
                self.skip = self.resampler.delay
        if self.level is not None:
            self.level.hears(piece, rate)
        self._out(self.edges.push(np.clip(piece * self.gain, -32768, 32767).astype(np.int16)))
        return self.wanted

    def finish(self) -> bool:
        """The end of it; True if all was wanted."""
        if self.edges is not None and self.wanted:
            self._out(self.edges.finish())
            if self.resampler is not None:
                self._deliver(self.resampler.flush())
        return self.wanted

    def _out(self, pcm: np.ndarray) -> None:
        if len(pcm):
            self._deliver(pcm if self.resampler is None else self.resampler.push(pcm))

    def _deliver(self, pcm: np.ndarray) -> None:
        skipped = min(self.skip, len(pcm))
        self.skip -= skipped
        if skipped < len(pcm) and self.wanted:
            self.wanted = self.write(pcm[skipped:])


class Edges:
    """Cuts the silence before and after a stretch of speech, and fades it in and out."""

    __slots__ = ("rate", "window", "lead", "trail", "fade", "begun", "held", "dropped")

    def __init__(self, rate: int):
        self.rate = rate
        self.window = rate * WINDOW_MS // 1000      # samples, these four
        self.lead = rate * LEAD_MS // 1000
        self.trail = rate * TRAIL_MS // 1000
        self.fade = rate * FADE_MS // 1000
        self.begun = False                          # a sound was found
        self.held = np.zeros(0, np.int16)           # silence that may be the last
        self.dropped = 0                            # samples of the silence before the first sound

    def push(self, pcm: np.ndarray) -> np.ndarray:
        """int16 samples; those of them, and of earlier ones, that are certainly neither lead nor trail."""
        pcm = np.concatenate((self.held, pcm))
        if not self.begun:
            loud = self._louder(pcm, QUIET)
            if not len(loud):
                self.held = pcm[max(0, len(pcm) - self.lead - self.window):]
                self.dropped += len(pcm) - len(self.held)
                return pcm[:0]
            self.begun = True
            silence = max(0, int(loud[0]) * self.window - self.lead)
            self.dropped += silence
            pcm = pcm[silence:]
            pcm[:self.fade] = pcm[:self.fade] * np.linspace(0, 1, self.fade)[:len(pcm)]
        loud = self._louder(pcm, OVER)
        sound = (loud[-1] + 1) * self.window if len(loud) else 0
        sound = max(0, min(sound, len(pcm) - self.fade))
        self.held = pcm[sound:]
        return pcm[:sound]

    def finish(self) -> np.ndarray:
        """What is kept of the silence after the last sound, faded out."""
        if not self.begun:
            return self.held[:0]
        pcm = self.held[:max(self.trail, self.fade)]
        end = min(self.fade, len(pcm))
        pcm[len(pcm) - end:] = pcm[len(pcm) - end:] * np.linspace(1, 0, end)
        return pcm

    def _louder(self, pcm: np.ndarray, least: float) -> np.ndarray:
        """The numbers of the whole windows that are at least so loud."""
        windows = pcm[:len(pcm) // self.window * self.window].reshape(-1, self.window).astype(np.float32)
        return np.flatnonzero((windows ** 2).mean(1) >= least ** 2)
