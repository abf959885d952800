"""The embedded voices: flite, by ctypes, streamed.

It knows texts and samples, no calls and no processes.  What comes out begins with speech, ends with speech, and can
be joined to anything: leading and trailing silence is trimmed, both ends are faded.
The rule: a piece goes out as soon as it is known not to be the silence at the end.
"""
import ctypes
from collections.abc import Callable

import numpy as np

from .. import ConfigError, EngineError
from .._fastpath import Resampler

INSTALL = "The embedded voice needs flite's library: apt install libflite1."

# name -> (library, function that registers it, gain that brings its speech to -20 dBFS)
VOICES = {
    "rms": ("libflite_cmu_us_rms.so.1", "register_cmu_us_rms", 1.0),
    "slt": ("libflite_cmu_us_slt.so.1", "register_cmu_us_slt", 0.55),
    "awb": ("libflite_cmu_us_awb.so.1", "register_cmu_us_awb", 0.85),
    "kal16": ("libflite_cmu_us_kal16.so.1", "register_cmu_us_kal16", 2.26),
    "kal": ("libflite_cmu_us_kal.so.1", "register_cmu_us_kal", 0.92),
}

PIECE_MS = 40               # of speech that flite gives at a time
QUIET = 150                 # peak of a window of silence, int16
WINDOW_MS = 5
KEPT_MS = 10                # of the silence before the first speech
TAIL_MS = 30                # of the silence after the last
FADE_MS = 4
LONGEST = 2000              # characters spoken at once

GO_ON = 0                   # what a callback tells flite


class Wave(ctypes.Structure):
    """cst_wave"""
    _fields_ = [("type", ctypes.c_char_p), ("sample_rate", ctypes.c_int), ("num_samples", ctypes.c_int),
                ("num_channels", ctypes.c_int), ("samples", ctypes.POINTER(ctypes.c_int16))]


class Streaming(ctypes.Structure):
    """cst_audio_streaming_info"""


Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Wave), ctypes.c_int, ctypes.c_int, ctypes.c_int,
                            ctypes.POINTER(Streaming))
Streaming._fields_ = [("min_buffsize", ctypes.c_int), ("asc", Callback), ("utt", ctypes.c_void_p),
                      ("item", ctypes.c_void_p), ("userdata", ctypes.c_void_p)]


class Voice(ctypes.Structure):
    """cst_voice, as far as it is looked at"""
    _fields_ = [("name", ctypes.c_char_p), ("features", ctypes.c_void_p)]


class Trim:
    """Takes the silence off both ends of a stream and fades what is left in and out.  int16 in, int16 out."""

    def __init__(self, rate: int):
        self.window = rate * WINDOW_MS // 1000
        self.kept = rate * KEPT_MS // 1000
        self.tail = rate * TAIL_MS // 1000
        self.fade = rate * FADE_MS // 1000
        self.held = np.zeros(0, np.int16)       # what may turn out to be the silence at an end
        self.begun = False                      # speech has come

    def push(self, pcm: np.ndarray) -> np.ndarray:
        """What is known to stand before or within speech."""
        self.held = np.concatenate((self.held, pcm))
        count = len(self.held) // self.window
        windows = self.held[:count * self.window].reshape(count, self.window)
        loud = np.flatnonzero((windows.max(axis=1, initial=0) > QUIET) | (windows.min(axis=1, initial=0) < -QUIET))
        if not len(loud):
            if not self.begun:
                self.held = self.held[-(self.kept + self.window):]
            return self.held[:0]
        start = 0 if self.begun else max(0, int(loud[0]) * self.window - self.kept)
        end = (int(loud[-1]) + 1) * self.window
        out, self.held = self.held[start:end], self.held[end:]
        if not self.begun:
            self.begun = True
            out = ramp(out, self.fade, up=True)
        return out

    def finish(self) -> np.ndarray:
        """The little silence that stays after the last speech."""
        return ramp(self.held[:self.tail], self.fade, up=False) if self.begun else self.held[:0]


def ramp(pcm: np.ndarray, count: int, up: bool) -> np.ndarray:
    """A copy that begins at nothing (up), or ends there, over `count` samples."""
    pcm, count = pcm.copy(), min(count, len(pcm))
    slope = np.linspace(0, 1, count, endpoint=False, dtype=np.float32)
    if up:
        pcm[:count] = pcm[:count] * slope
    elif count:
        pcm[-count:] = pcm[-count:] * slope[::-1]
    return pcm


class Voices:
    """The voices of a process, each loaded when it is first wanted; `default` at once."""

    def __init__(self, default: str):
        self.default = default
        try:
            self.flite = ctypes.CDLL("libflite.so.1")
        except OSError:
            raise ConfigError(INSTALL) from None
        self.flite.flite_init()
        self.flite.flite_text_to_wave.restype = ctypes.POINTER(Wave)
        self.flite.flite_text_to_wave.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
        self.flite.delete_wave.argtypes = [ctypes.POINTER(Wave)]
        self.flite.new_audio_streaming_info.restype = ctypes.POINTER(Streaming)
        self.flite.audio_streaming_info_val.restype = ctypes.c_void_p
        self.flite.audio_streaming_info_val.argtypes = [ctypes.POINTER(Streaming)]
        self.flite.feat_set.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        self.loaded: dict[str, ctypes._Pointer] = {}
        self.on_wave = Callback(self._on_wave)          # kept alive here; flite keeps its address
        self.emit: Callable[[np.ndarray], None] = lambda pcm: None
        self.voice(default)

    def voice(self, name: str):
        """The voice of that name ("" is the default).  EngineError where there is none, ConfigError where it is missing."""
        name = name or self.default
        if name not in VOICES:
            raise EngineError(f"There is no embedded voice {name!r}; there are {', '.join(VOICES)}.")
        if name not in self.loaded:
            library, register, _ = VOICES[name]
            try:
                function = getattr(ctypes.CDLL(library), register)
            except (OSError, AttributeError):
                raise ConfigError(INSTALL) from None
            function.restype = ctypes.POINTER(Voice)
            self.loaded[name] = function(None)
        return self.loaded[name]

    def speak(self, name: str, text: str, rate: int, emit: Callable[[np.ndarray], None]) -> None:
        """Speak `text`; `emit` gets int16 pieces at `rate` while it is being spoken.  EngineError if it cannot be."""
        voice = self.voice(name)
        spoken = Spoken(rate, VOICES[name or self.default][2], emit)
        self.emit = spoken.push
        streaming = self.flite.new_audio_streaming_info()
        streaming.contents.min_buffsize = PIECE_MS * 16
        streaming.contents.asc = self.on_wave
        self.flite.feat_set(voice.contents.features, b"streaming_info", self.flite.audio_streaming_info_val(streaming))
        wave = self.flite.flite_text_to_wave(text[:LONGEST].encode("ascii", "ignore"), voice)
        if not wave:
            raise EngineError("The voice could not speak a text.")
        self.flite.delete_wave(wave)
        spoken.finish()

    def _on_wave(self, wave, start: int, size: int, last: int, streaming) -> int:
        """From flite, on this thread: samples start..start+size of the wave are there."""
        whole = wave.contents
        if size > 0:
            pcm = np.ctypeslib.as_array(whole.samples, (whole.num_samples,))[start:start + size]
            self.emit(pcm.copy(), whole.sample_rate)
        return GO_ON


class Spoken:
    """A text on its way from flite: trimmed, levelled, at the rate that is wanted."""

    def __init__(self, rate: int, gain: float, emit: Callable[[np.ndarray], None]):
        self.rate = rate
        self.gain = gain
        self.emit = emit
        self.trim: Trim | None = None           # made when flite says at what rate it speaks
        self.resampler: Resampler | None = None
        self.skip = 0                           # samples of the resampler's delay still to be left out

    def push(self, pcm: np.ndarray, rate: int) -> None:
        if self.trim is None:
            self.trim = Trim(rate)
            if rate != self.rate:
                self.resampler = Resampler(rate, self.rate)
                self.skip = self.resampler.delay
        self._out(self.trim.push(self._level(pcm)))

    def finish(self) -> None:
        if self.trim is not None:
            self._out(self.trim.finish())
            if self.resampler is not None:
                self._emit(self.resampler.flush())

    def _level(self, pcm: np.ndarray) -> np.ndarray:
        return pcm if self.gain == 1.0 else np.clip(pcm * self.gain, -32768, 32767).astype(np.int16)

    def _out(self, pcm: np.ndarray) -> None:
        if len(pcm):
            self._emit(pcm if self.resampler is None else self.resampler.push(np.ascontiguousarray(pcm)))

    def _emit(self, pcm: np.ndarray) -> None:
        skipped = min(self.skip, len(pcm))
        self.skip -= skipped
        if len(pcm) > skipped:
            self.emit(pcm[skipped:])
