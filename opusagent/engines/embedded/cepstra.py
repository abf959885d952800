"""Mel cepstra of a caller's voice, as pocketsphinx's en-us model wants them, from telephone audio as it is.

pocketsphinx has a front end of its own.  Given 8 kHz audio brought up to 16 kHz it sees an empty band above 4 kHz
that its model was never taught, and its normalisation drifts over the digital silence of telephone lines: of 13
recorded answers it got 4 right, where what follows gets all.  Here 8 kHz needs no upsampling, because a
spectrum of 256 points has the same bins below 4 kHz as one of 512 at 16 kHz; what lies above is estimated from what
lies below, since an "s" has left its mark there, too; loudness is brought to one level before anything else; what a
caller's voice and line add to every frame is learned and taken off; and a floor of comfort noise, added as energy,
makes digital silence look like a quiet room.
The rule: the same samples give the same cepstra, however they are cut into pieces.
"""
import numpy as np

CEPSTRA = 13                # numbers a frame
BANDS = 25                  # mel bands, as the model's feat.params say, with what follows
LOW_HZ, HIGH_HZ = 130, 6800
LIFTER = 22
PRE_EMPHASIS = 0.97         # at 16 kHz
BIN_HZ = 31.25              # of the spectrum, at both rates
FRAMES = 100                # a second
WINDOW_SECONDS = 0.025625

FLOOR_RMS = 40              # of the comfort noise, int16 at 16 kHz, beside speech brought to LEVEL
LEVEL = 21.1                # log of a loud frame's energy that speech is brought to
START = 18.0                # what a caller's loudness is taken for at least, before anything was heard: -13 dB
SILENT = 12.0               # a frame below that says nothing of a caller's loudness: -40 dB
LEVEL_BANDS = 18            # loudness is that of the bands below 3.4 kHz, which every line carries
WIDE_BANDS = 21             # the bands from there on lie above 4.4 kHz, which no telephone line carries
NARROW = 3e-4               # of the energy below 3.4 kHz: with less above, it is telephone audio brought to 16 kHz
HOLD = 80                   # frames at the start of an utterance, pre-roll with it, that wait for its loudness
LOUD = 4                    # of these, the fourth loudest is its loudness
CLIMB = 0.3                 # of the way to a louder frame that the loudness then goes
HISS_BANDS = slice(16, 18)  # 2.5 to 3.4 kHz, where an "s" is, of what a telephone carries
VOICE_BANDS = slice(4, 10)  # 0.5 to 1.4 kHz
HISS = 2.0                  # by so much (9 dB) the former are above the latter in a frame that is half a hiss
VOICE = 6.0                 # below a caller's loudness (26 dB) down to which a frame tells of voice and line
TRUST = 60                  # frames: after so many the mean is half the caller's own
FADE = 1.0                  # how much softer (4 dB) than the last utterance of a call the next one may begin


def _bands() -> np.ndarray:
    """The mel bands over the bins of 16 kHz: triangles of equal area with corners on bins.  float32 [257, BANDS]"""
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (LOW_HZ, HIGH_HZ))
    corners = 700 * (10 ** (np.linspace(low, high, BANDS + 2) / 2595) - 1)
    left, peak, right = (np.round(corners / BIN_HZ)[i:i + BANDS] * BIN_HZ for i in range(3))
    hz = np.arange(257)[:, None] * BIN_HZ
    rise, fall = (hz - left) / (peak - left), (right - hz) / (right - peak)
    return (np.maximum(np.minimum(rise, fall), 0) * 2 / (right - left)).astype(np.float32)


def _cosines() -> np.ndarray:
    """From log energies of bands to liftered cepstra (orthonormal DCT II).  float32 [BANDS, CEPSTRA]"""
    k = np.arange(CEPSTRA)
    cosines = np.cos(np.pi / BANDS * np.outer(np.arange(BANDS) + 0.5, k)) * np.sqrt(2 / BANDS)
    cosines[:, 0] *= np.sqrt(0.5)
    return (cosines * (1 + LIFTER / 2 * np.sin(np.pi * k / LIFTER))).astype(np.float32)


def _weights(rate: int) -> np.ndarray:
    """From a power spectrum at `rate` to bands: pre-emphasis, bands, and a window of half the samples at 8 kHz."""
    emphasis = np.abs(1 - PRE_EMPHASIS * np.exp(-2j * np.pi * np.arange(257) * BIN_HZ / 16000)) ** 2
    weights = _BANDS * emphasis[:, None].astype(np.float32)
    return weights if rate == 16000 else 4 * weights[:129]


_BANDS = _bands()
_COSINES = _cosines()
_WEIGHTS = {rate: _weights(rate) for rate in (8000, 16000)}
_WINDOWS = {rate: np.hamming(int(rate * WINDOW_SECONDS)).astype(np.float32) for rate in (8000, 16000)}
_NOISE = (np.sum(_WINDOWS[16000] ** 2) * _WEIGHTS[16000].sum(0) * FLOOR_RMS ** 2).astype(np.float32)

# The mean of the cepstra of voiced frames: what is subtracted.  Over recordings of 12 people, half of them sentences
# and half digits and commands; with all bands, and without the upper ones, which shows in every number.
_MEAN = np.array((67.9, 5.2, -5.3, 10.3, -8.9, -1.2, -6.8, -9.0, 0.9, -1.0, 2.8, -1.2, 2.8), np.float32)
_MEAN_NARROW = np.array((67.1, 14.5, -14.9, 21.8, -9.6, -7.8, 2.4, -22.2, 7.9, -7.1, -2.9, 4.0, -5.6), np.float32)

# The log energies of the bands that a telephone does not carry, by least squares over those that it does, and one; as
# far as a frame is a voice, and as far as it is a hiss.  From bench/upper_bands.py: sentences and commands of people,
# none of them one by whose digits this is measured.
_ABOVE_VOICE = np.array((
    (0.03, 0.03, -0.01, -0.02, 0.04, -0.07, 0.08, 0.01, -0.04, -0.05,
     0.07, 0.03, 0.02, -0.10, -0.04, 0.30, -0.34, 0.97, 0.46),
    (0.14, -0.01, 0.05, -0.10, 0.16, -0.14, 0.10, -0.03, -0.08, 0.07,
     -0.02, 0.05, 0.05, -0.10, 0.13, -0.03, 0.04, 0.57, 0.95),
    (0.18, -0.00, -0.01, -0.07, 0.17, -0.14, 0.10, -0.14, 0.05, 0.07,
     -0.09, 0.02, 0.12, -0.10, 0.12, -0.00, -0.00, 0.50, 1.59),
    (0.12, 0.07, -0.10, -0.01, 0.17, -0.14, 0.14, -0.18, 0.17, 0.01,
     -0.06, -0.01, 0.10, -0.16, 0.11, 0.16, 0.01, 0.19, 3.22),
    (0.07, 0.04, 0.01, -0.00, 0.09, -0.16, 0.22, -0.05, 0.08, 0.05,
     -0.04, 0.01, 0.04, -0.01, 0.13, 0.06, 0.11, -0.18, 4.59),
    (0.12, -0.02, 0.04, -0.01, -0.01, -0.16, 0.30, -0.05, 0.08, 0.02,
     -0.07, -0.02, 0.12, -0.02, 0.12, -0.00, 0.12, -0.17, 5.50),
    (0.11, -0.07, 0.03, 0.07, -0.01, -0.16, 0.24, -0.03, -0.00, 0.10,
     -0.18, 0.07, 0.09, 0.00, 0.16, -0.05, 0.11, -0.13, 6.03),
), np.float32).T
_ABOVE_HISS = np.array((
    (-0.13, 0.18, -0.13, -0.02, -0.00, -0.08, 0.07, 0.24, -0.08, -0.04,
     0.11, 0.08, 0.02, 0.15, -0.42, 0.47, -0.29, 0.89, 1.00),
    (-0.17, 0.10, -0.21, 0.19, -0.23, 0.04, 0.11, 0.35, 0.03, 0.11,
     0.02, 0.16, -0.12, 0.13, -0.38, 0.44, -0.17, 0.64, 2.25),
    (-0.19, -0.00, -0.20, 0.23, -0.33, 0.14, 0.14, 0.30, 0.13, 0.53,
     -0.29, 0.29, -0.31, 0.24, -0.39, 0.43, -0.51, 0.82, 2.97),
    (-0.12, -0.07, -0.15, -0.02, -0.40, 0.11, 0.13, 0.35, 0.29, 0.78,
     -0.41, 0.44, -0.36, 0.33, -0.22, 0.20, -0.69, 0.80, 3.89),
    (-0.16, -0.09, -0.14, -0.08, -0.38, 0.13, 0.14, 0.32, 0.46, 0.81,
     -0.36, 0.39, -0.26, 0.14, 0.07, -0.01, -0.83, 0.78, 5.04),
    (-0.13, -0.06, -0.18, -0.09, -0.44, 0.08, 0.26, 0.16, 0.46, 0.74,
     -0.24, 0.38, -0.33, 0.11, 0.06, 0.10, -0.76, 0.76, 5.27),
    (-0.12, -0.09, -0.14, -0.06, -0.40, -0.02, 0.09, 0.23, 0.43, 0.79,
     -0.20, 0.38, -0.32, 0.12, -0.01, 0.11, -0.66, 0.71, 5.16),
), np.float32).T


class Cepstra:
    """One utterance of a caller: samples in, cepstra out.  `level` of a call's last utterance goes into its next."""

    __slots__ = ("rate", "least", "level", "hop", "window", "rest", "held", "weights", "narrow", "centred",
                 "voiced", "sum")

    def __init__(self, rate: int, level: float = 0.0, centred: bool = True):
        self.rate = rate                        # Hz: 8000 or 16000
        self.least = level - FADE if level else START   # what loudness is taken for at least
        self.level = SILENT                     # log energy of the loud frames so far
        self.hop = rate // FRAMES               # samples
        self.window = _WINDOWS[rate]
        self.rest = np.zeros(0, np.int16)       # samples whose frame is not complete
        self.held: list | None = []             # power spectra of the first frames, until there are HOLD; then None
        self.weights = _WEIGHTS[rate]           # from power spectra to bands
        self.narrow = rate == 8000              # nothing is known of the upper bands
        self.centred = centred                  # what the caller's voice and line add is taken off
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
        """The first frames: how loud the caller is, and whether 16 kHz carry more than a telephone's band."""
        bands = power @ self.weights
        loudness = _loudness(bands)
        loud = np.argsort(loudness)[-LOUD:]
        self.level = max(SILENT, float(loudness[loud[0]]))
        if self.rate == 16000 and bands[loud, WIDE_BANDS:].sum() < NARROW * bands[loud, :LEVEL_BANDS].sum():
            self.weights = np.where(np.arange(257)[:, None] < 129, self.weights, 0)
            self.narrow = True
            bands = power @ self.weights
            loudness = _loudness(bands)
        return self._cepstra(bands, np.full((len(bands), 1), self.level, np.float32), loudness, at_once=True)

    def _follow(self, power: np.ndarray) -> np.ndarray:
        """The frames that follow; a voice that gets louder is followed, a click is not."""
        if not len(power):
            return _NOTHING
        bands = power @ self.weights
        levels = np.empty((len(bands), 1), np.float32)
        loudness = _loudness(bands)
        for i, loud in enumerate(loudness.tolist()):
            self.level += CLIMB * max(0.0, loud - self.level)
            levels[i] = self.level
        return self._cepstra(bands, levels, loudness)

    def _cepstra(self, bands: np.ndarray, levels: np.ndarray, loudness: np.ndarray, at_once=False) -> np.ndarray:
        gains = np.exp(LEVEL - np.maximum(levels, self.least))
        energies = np.log(bands * gains + _NOISE)
        if not self.centred:                # a language model is no better with what is estimated
            return energies @ _COSINES - (_MEAN_NARROW if self.narrow else _MEAN)
        if self.narrow:
            carried = energies[:, :LEVEL_BANDS]
            energies = np.hstack((carried, _above(carried)))
        cepstra = energies @ _COSINES - _MEAN
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


def _hiss(carried: np.ndarray) -> np.ndarray:
    """How much of a hiss each frame is, from 0 to 1, by the log energies of the bands that a telephone carries."""
    return 1 / (1 + np.exp(HISS + carried[:, VOICE_BANDS].mean(1) - carried[:, HISS_BANDS].mean(1)))[:, None]


def _above(carried: np.ndarray) -> np.ndarray:
    """The log energies of the bands that it does not carry, estimated."""
    hiss = _hiss(carried)
    voice_says, hiss_says = (carried @ table[:-1] + table[-1] for table in (_ABOVE_VOICE, _ABOVE_HISS))
    return voice_says + hiss * (hiss_says - voice_says)


def _loudness(bands: np.ndarray) -> np.ndarray:
    """The log energy of each frame."""
    return np.log(bands[:, :LEVEL_BANDS].sum(1) + 1e-3)


_NOTHING = np.zeros((0, CEPSTRA), np.float32)
