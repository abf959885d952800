"""Mel cepstra of a caller's voice, of the band that a telephone carries.

pocketsphinx has a front end of its own, for 16 kHz.  Given 8 kHz audio brought up to that it sees an empty band above
4 kHz that its model was never taught, and its normalisation drifts over the digital silence of telephone lines.  Here
only the bands below 3.4 kHz are looked at, whatever the rate, and the model is told so (narrowing.py).  8 kHz needs no
upsampling, because a spectrum of 256 points has the same bins below 4 kHz as one of 512 at 16 kHz; loudness is brought
to one level before anything else; a hiss is told by the quietest frames and taken off; so is what a caller's voice and
line add to every frame, as it is learned; and a floor of comfort noise, added as energy, makes digital silence look
like a quiet room.
The rule: the same samples give the same cepstra, however they are cut into pieces.
"""
import numpy as np

MODEL_CEPSTRA = 13          # numbers a frame of the model as it comes,
MODEL_BANDS = 25            # ... and its mel bands, as its feat.params say, with what follows
LOW_HZ, HIGH_HZ = 130, 6800
LIFTER = 22
BANDS = 18                  # of these, the ones below 3.4 kHz, which every line carries
CEPSTRA = 9                 # numbers a frame: what 13 numbers tell of 25 bands, 9 tell of 18
PRE_EMPHASIS = 0.97         # at 16 kHz
BIN_HZ = 31.25              # of the spectrum, at both rates
FRAMES = 100                # a second
WINDOW_SECONDS = 0.025625

FLOOR_RMS = 40              # of the comfort noise, int16 at 16 kHz, beside speech brought to LEVEL
LEVEL = 21.6                # log of a loud frame's energy that speech is brought to
START = 16.0                # what a caller's loudness is taken for at least, before anything was heard: -24 dB
SILENT = 12.0               # a frame below that says nothing of a caller's loudness: -42 dB
HOLD = 80                   # frames at the start of an utterance, pre-roll with it, that wait for its loudness
LOUD = 4                    # of these, the fourth loudest is its loudness
CLIMB = 0.3                 # of the way to a louder frame that the loudness then goes
VOICE = 6.0                 # below a caller's loudness (26 dB) down to which a frame tells of voice and line
TRUST = 60                  # frames: after so many the mean is half the caller's own
HISS = 10                   # frames whose mean tells of a hiss, where it is among the quietest
QUIETEST = 0.1              # of all such means at the start of an utterance
OVER = 2.0                  # times what they tell is taken off each frame (Berouti, Schwartz and Makhoul, 1979),
LEFT = 0.1                  # ... which keeps so much of itself at least
FADE = 1.0                  # how much softer (4 dB) than the last utterance of a call the next one may begin


def _bands() -> np.ndarray:
    """The mel bands over the bins of 16 kHz: triangles of equal area with corners on bins.  float32 [257, BANDS]"""
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (LOW_HZ, HIGH_HZ))
    corners = 700 * (10 ** (np.linspace(low, high, MODEL_BANDS + 2) / 2595) - 1)
    left, peak, right = (np.round(corners / BIN_HZ)[i:i + BANDS] * BIN_HZ for i in range(3))
    hz = np.arange(257)[:, None] * BIN_HZ
    rise, fall = (hz - left) / (peak - left), (right - hz) / (right - peak)
    return (np.maximum(np.minimum(rise, fall), 0) * 2 / (right - left)).astype(np.float32)


def cosines(bands: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """From log energies of bands to so many cepstra (orthonormal DCT II), [bands, count], and what lifts these."""
    k = np.arange(count)
    table = np.cos(np.pi / bands * np.outer(np.arange(bands) + 0.5, k)) * np.sqrt(2 / bands)
    table[:, 0] *= np.sqrt(0.5)
    return table, 1 + LIFTER / 2 * np.sin(np.pi * k / LIFTER)


def _narrowing() -> np.ndarray:
    """From the model's cepstra to ours: back to its bands, and from those that are left to ours."""
    wide, wide_lifts = cosines(MODEL_BANDS, MODEL_CEPSTRA)
    narrow, lifts = cosines(BANDS, CEPSTRA)
    return (wide / wide_lifts).T[:, :BANDS] @ (narrow * lifts)


def _weights(rate: int) -> np.ndarray:
    """From a power spectrum at `rate` to bands: pre-emphasis, bands, and a window of half the samples at 8 kHz."""
    emphasis = np.abs(1 - PRE_EMPHASIS * np.exp(-2j * np.pi * np.arange(257) * BIN_HZ / 16000)) ** 2
    weights = _bands() * emphasis[:, None].astype(np.float32)
    return weights if rate == 16000 else 4 * weights[:129]


NARROWING = _narrowing()
_COSINES = np.multiply(*cosines(BANDS, CEPSTRA)).astype(np.float32)
_WEIGHTS = {rate: _weights(rate) for rate in (8000, 16000)}
_WINDOWS = {rate: np.hamming(int(rate * WINDOW_SECONDS)).astype(np.float32) for rate in (8000, 16000)}
_NOISE = (np.sum(_WINDOWS[16000] ** 2) * _WEIGHTS[16000].sum(0) * FLOOR_RMS ** 2).astype(np.float32)

# The mean of the cepstra of voiced frames: what is subtracted.  Over recordings of 12 people at 16 kHz, half of them
# sentences and half digits and commands; as the model counts.
_MEAN = (np.array((67.9, 5.2, -5.3, 10.3, -8.9, -1.2, -6.8, -9.0, 0.9, -1.0, 2.8, -1.2, 2.8))
         @ NARROWING).astype(np.float32)


class Cepstra:
    """One utterance of a caller: samples in, cepstra out.  `level` of a call's last utterance goes into its next."""

    __slots__ = ("rate", "least", "level", "hop", "window", "rest", "held", "weights", "hiss", "voiced", "sum")

    def __init__(self, rate: int, level: float = 0.0):
        self.rate = rate                        # Hz: 8000 or 16000
        self.least = level - FADE if level else START   # what loudness is taken for at least
        self.level = SILENT                     # log energy of the loud frames so far
        self.hop = rate // FRAMES               # samples
        self.window = _WINDOWS[rate]
        self.rest = np.zeros(0, np.int16)       # samples whose frame is not complete
        self.held: list | None = []             # power spectra of the first frames, until there are HOLD; then None
        self.weights = _WEIGHTS[rate]           # from power spectra to bands
        self.hiss = np.zeros(BANDS, np.float32)     # what of every frame is its
        self.voiced = 0                         # frames of the caller's voice so far
        self.sum = np.zeros(CEPSTRA)            # of their cepstra, beside the mean

    def push(self, pcm: np.ndarray) -> np.ndarray:
        """int16 samples; the cepstra that are ready, float32 [frames, CEPSTRA]."""
        pcm = np.concatenate((self.rest, pcm))
        count = max(0, (len(pcm) - len(self.window)) // self.hop + 1)
        self.rest = pcm[count * self.hop:]
        if not count:
            return _NOTHING
        frames = np.lib.stride_tricks.as_strided(pcm, (count, len(self.window)), (2 * self.hop, 2))
        spectrum = np.fft.rfft(frames * self.window, 2 * len(_WEIGHTS[self.rate]) - 2)
        power = (spectrum.real ** 2 + spectrum.imag ** 2).astype(np.float32)
        if self.held is None:
            return self._follow(power)
        self.held.append(power)
        return self.flush() if sum(map(len, self.held)) >= HOLD else _NOTHING

    def flush(self) -> np.ndarray:
        """The cepstra of what was held back; from here on nothing is."""
        held, self.held = self.held, None
        if not held:
            return _NOTHING
        power = np.concatenate(held)
        return np.concatenate((self._begin(power[:HOLD]), self._follow(power[HOLD:])))

    def _begin(self, power: np.ndarray) -> np.ndarray:
        """The first frames: they tell how loud the caller is, and the line."""
        self.hiss = _hiss(power @ self.weights)
        bands = self._bands(power)
        loudness = _loudness(bands)
        self.level = max(SILENT, float(np.sort(loudness)[-LOUD:][0]))
        return self._cepstra(bands, np.full((len(bands), 1), self.level, np.float32), loudness, at_once=True)

    def _follow(self, power: np.ndarray) -> np.ndarray:
        """The frames that follow; a voice that gets louder is followed, a click is not."""
        if not len(power):
            return _NOTHING
        bands = self._bands(power)
        levels = np.empty((len(bands), 1), np.float32)
        loudness = _loudness(bands)
        for i, loud in enumerate(loudness.tolist()):
            self.level += CLIMB * max(0.0, loud - self.level)
            levels[i] = self.level
        return self._cepstra(bands, levels, loudness)

    def _bands(self, power: np.ndarray) -> np.ndarray:
        bands = power @ self.weights
        return np.maximum(bands - self.hiss, LEFT * bands)

    def _cepstra(self, bands: np.ndarray, levels: np.ndarray, loudness: np.ndarray, at_once=False) -> np.ndarray:
        gains = np.exp(LEVEL - np.maximum(levels, self.least))
        cepstra = np.log(bands * gains + _NOISE) @ _COSINES - _MEAN
        return cepstra - self._centre(cepstra, loudness > np.maximum(levels[:, 0] - VOICE, SILENT), at_once)

    def _centre(self, cepstra: np.ndarray, voiced: np.ndarray, at_once: bool) -> np.ndarray:
        """What this caller's voice and line add to every frame's cepstra, as far as is known at that frame, or of all
        of them at once.  Loudness, the first number, has been seen to already."""
        counts = self.voiced + np.cumsum(voiced)
        sums = self.sum + np.cumsum(voiced[:, None] * cepstra, 0, np.float64)
        self.voiced, self.sum = int(counts[-1]), sums[-1]
        centres = (sums / (counts + TRUST)[:, None]).astype(np.float32)
        centres[:, 0] = 0
        return centres[-1:] if at_once else centres


def _hiss(bands: np.ndarray) -> np.ndarray:
    """What to take off each frame.  float32 [BANDS]"""
    if len(bands) < HISS:
        return np.zeros(BANDS, np.float32)
    sums = np.cumsum(np.concatenate((np.zeros((1, BANDS)), bands)), 0)
    return (OVER * np.quantile((sums[HISS:] - sums[:-HISS]) / HISS, QUIETEST, axis=0)).astype(np.float32)


def _loudness(bands: np.ndarray) -> np.ndarray:
    """The log energy of each frame."""
    return np.log(bands.sum(1) + 1e-3)


_NOTHING = np.zeros((0, CEPSTRA), np.float32)
