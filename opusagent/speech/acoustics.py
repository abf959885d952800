"""Acoustic echo: is what comes in only what went out, come back?

A handset or a speakerphone gives the agent's own words back, some 20 dB lower and up to 400 ms late; a detector of
voices hears a voice in that.  The rule: a stretch of the caller's audio is an echo when one delay of what was sent
explains nearly all of it (the peak of the normalised cross-correlation), so a caller who speaks over the echo is heard.
"""
import numpy as np

from .._fastpath import Past, Resampler

KEPT_MS = 800                   # of what was sent: the longest delay, what the platform buffers, and the stretch itself
STRETCH_MS = 96                 # of the caller's audio that is compared; shorter ones resemble each other by chance
EXPLAINED = 0.7                 # correlation from which a stretch is an echo


class Echo:
    """One call's: `sent` what went out, `explains` what came in."""

    __slots__ = ("_rate", "_wire_rate", "_stretch", "past", "sent")

    def __init__(self, rate: int, wire_rate: int):
        """`rate`: of the caller's audio as it is heard, Hz; `wire_rate`: of what is sent."""
        self._rate, self._wire_rate = rate, wire_rate
        self._stretch = STRETCH_MS * rate // 1000                       # samples
        self.past = Past(KEPT_MS * wire_rate // 1000)                   # what was sent
        self.sent = self.past.push

    def explains(self, heard: np.ndarray) -> bool:
        """True where the last STRETCH_MS of `heard`, int16, are an echo of what was sent."""
        stretch = np.asarray(heard[-self._stretch:], np.float32)
        power = float(stretch @ stretch)
        if len(stretch) < self._stretch or not power:
            return False
        sent = self.past.last(len(self.past))
        if self._wire_rate != self._rate:
            sent = Resampler(self._wire_rate, self._rate).push(sent)
        sent = sent.astype(np.float32)
        size = 1 << (len(sent) - 1).bit_length()
        products = np.fft.irfft(np.fft.rfft(sent, size) * np.conj(np.fft.rfft(stretch, size)), size)
        sums = np.cumsum(np.square(sent, dtype=np.float64))
        begins = len(sent) - len(stretch) + 1
        powers = sums[len(stretch) - 1:].copy()
        powers[1:] -= sums[:begins - 1]
        loud = powers > power                       # an echo is never louder than what it is of
        if not loud.any():
            return False
        likeness = np.abs(products[:begins][loud]) / np.sqrt(powers[loud] * power)
        return float(likeness.max()) >= EXPLAINED
