"""How loud a voice is, learned from what it says, so that all voices sound as loud as one another.

A voice that is known has its gain in a table; one of somebody's endpoint is listened to.  The rule: within a sentence
the gain stays as it is; what was learned of one is used for the next, and what is rendered ahead is measured whole.
"""
import numpy as np

TARGET = 32768 * 10 ** (-20 / 20)   # root mean square of voiced windows that all voices are brought to
VOICED = 32768 * 10 ** (-45 / 20)   # ... above which a window counts
WINDOW_MS = 10
LEAST, MOST = 0.125, 8.0        # gains
FULL = 32000                    # that no sample goes beyond
KNOWN_SECONDS = 10.0            # of voiced sound after which the older counts less than the newer


class Level:
    """One voice's."""

    __slots__ = ("power", "seconds", "peak")

    def __init__(self):
        self.power = 0.0            # mean square of what is voiced, before any gain
        self.seconds = 0.0          # that it was learned from
        self.peak = 1.0             # greatest sample

    @property
    def gain(self) -> float:
        """What brings the voice to TARGET; 1 while nothing is known of it."""
        if not self.seconds:
            return 1.0
        return float(np.clip(min(TARGET / self.power ** 0.5, FULL / self.peak), LEAST, MOST))

    def hears(self, pcm: np.ndarray, rate: int) -> None:
        """int16 samples as the voice gave them."""
        window = rate * WINDOW_MS // 1000
        windows = pcm[:len(pcm) // window * window].reshape(-1, window).astype(np.float32)
        powers = (windows ** 2).mean(1)
        powers = powers[powers > VOICED ** 2]
        if len(powers):
            seconds = len(powers) * WINDOW_MS / 1000
            self.power = (self.power * self.seconds + float(powers.mean()) * seconds) / (self.seconds + seconds)
            self.seconds = min(self.seconds + seconds, KNOWN_SECONDS)
            self.peak = max(self.peak * 0.999, float(np.abs(pcm.astype(np.int32)).max()))


def levelled(pcm: np.ndarray, rate: int) -> np.ndarray:
    """All of a text, int16, as loud as any other."""
    level = Level()
    level.hears(pcm, rate)
    return np.clip(pcm * level.gain, -32768, 32767).astype(np.int16)
