"""The embedded voice: flite, through ctypes, as an engine process runs it.

It knows texts and samples, no calls and no processes.  flite speaks a whole text at a time, in pieces as it goes; its
leading silence (140 to 330 ms) costs more than its computing, so it is cut off here.  The rule: a piece goes out as
soon as it is known not to be the silence at the end; what went out begins and ends at nothing, so that it can be
joined to anything without a click; and the same text gives the same samples, so that another process can go on with it.
"""
import ctypes
import unicodedata
from collections.abc import Callable

import numpy as np

from .. import ConfigError, EngineError
from .._fastpath import Resampler

# name -> gain that brings it to -20 dBFS (measured over voiced windows of a few sentences)
VOICES = {"rms": 0.98, "slt": 0.54, "awb": 0.87, "kal16": 2.0, "kal": 0.75}

PIECE_MS = 20               # of speech that flite hands over at once, at least
QUIET = 32768 * 10 ** (-45 / 20)    # root mean square of a window below which speech has not begun
OVER = 32768 * 10 ** (-40 / 20)     # ... below which it may be over
WINDOW_MS = 10
LEAD_MS = 10                # kept of the silence before the first sound: soft consonants begin in it
TRAIL_MS = 30               # kept of the silence after the last
FADE_MS = 4                 # at both ends

INSTALL = "The embedded voice needs flite: apt install libflite1."


# -- flite's C structures, as far as they are used -------------------------------------------------------------------

class _Wave(ctypes.Structure):
    _fields_ = [("type", ctypes.c_char_p), ("rate", ctypes.c_int), ("count", ctypes.c_int), ("channels", ctypes.c_int),
                ("samples", ctypes.POINTER(ctypes.c_short))]


class _Streaming(ctypes.Structure):
    pass


_On_piece = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Wave), ctypes.c_int, ctypes.c_int, ctypes.c_int,
                             ctypes.POINTER(_Streaming))
_Streaming._fields_ = [("least", ctypes.c_int), ("on_piece", _On_piece), ("text", ctypes.c_void_p),
                       ("item", ctypes.c_void_p), ("data", ctypes.c_void_p)]


class _Voice(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("features", ctypes.c_void_p), ("functions", ctypes.c_void_p),
                ("begin", ctypes.c_void_p)]


FUNCTIONS = {               # name -> (result, arguments)
    "flite_init": (ctypes.c_int, []),
    "flite_text_to_wave": (ctypes.POINTER(_Wave), [ctypes.c_char_p, ctypes.POINTER(_Voice)]),
    "delete_wave": (None, [ctypes.POINTER(_Wave)]),
    "new_audio_streaming_info": (ctypes.POINTER(_Streaming), []),
    "audio_streaming_info_val": (ctypes.c_void_p, [ctypes.POINTER(_Streaming)]),
    "feat_set": (None, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]),
}
GO_ON, STOP = 0, -1         # what a callback returns
LONGEST = 2000              # characters spoken at once: a minute or two


def load(name: str) -> ctypes.CDLL:
    """A library of flite's.  ConfigError where it is not installed."""
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise ConfigError(f"{INSTALL} ({error})") from None


class Voices:
    """The voices of a process, each loaded when it is first wanted; `default` at once."""

    def __init__(self, default: str):
        self.library = load("libflite.so.1")
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(self.library, name)
            function.restype, function.argtypes = result, arguments
        self.library.flite_init()
        self.library.srand = ctypes.CDLL(None).srand
        self.default = default
        self.loaded: dict[str, Voice] = {}
        self.voice(default)

    def voice(self, name: str) -> "Voice":
        """The voice of that name; "" is the default.  EngineError if there is none, ConfigError without its library."""
        name = name or self.default
        if name not in self.loaded:
            if name not in VOICES:
                raise EngineError(f"There is no embedded voice {name!r}; there are {', '.join(VOICES)}.")
            self.loaded[name] = Voice(self.library, name)
        return self.loaded[name]

    def speak(self, name: str, text: str, rate: int, write: Callable[[np.ndarray], bool]) -> bool:
        """Voice.speak() of that voice."""
        return self.voice(name).speak(text, rate, write)


class Voice:
    """One voice.  It speaks one text at a time."""

    def __init__(self, library: ctypes.CDLL, name: str):
        register = getattr(load(f"libflite_cmu_us_{name}.so.1"), f"register_cmu_us_{name}")
        register.restype, register.argtypes = ctypes.POINTER(_Voice), [ctypes.c_void_p]
        self.library = library
        self.gain = VOICES[name]
        self.voice = register(None)
        self.on_piece = _On_piece(self._piece)      # kept as long as flite may call it
        streaming = library.new_audio_streaming_info()
        streaming.contents.on_piece = self.on_piece
        streaming.contents.least = PIECE_MS * 16
        library.feat_set(self.voice.contents.features, b"streaming_info", library.audio_streaming_info_val(streaming))
        self.speech: Speech | None = None           # in progress
        self.error: Exception | None = None         # what `write` raised, which cannot cross flite

    def speak(self, text: str, rate: int, write: Callable[[np.ndarray], bool]) -> bool:
        """Speak `text` at `rate` Hz: write(pcm) for each piece, until it returns False.  True if all was spoken.

        pcm is int16 and new each time.  Nothing is written of a text without a word in it.
        """
        self.speech, self.error = Speech(rate, self.gain, write), None
        self.library.srand(1)               # flite makes its breath noise with rand()
        wave = self.library.flite_text_to_wave(ascii_text(text)[:LONGEST], self.voice)
        if not wave:
            raise EngineError("flite could not speak a text.")
        self.library.delete_wave(wave)
        speech, self.speech = self.speech, None
        if self.error is not None:
            raise self.error
        return speech.finish()

    def _piece(self, wave, start: int, count: int, last: int, streaming) -> int:
        wave = wave.contents
        piece = np.ctypeslib.as_array(wave.samples, (start + count,))[start:]
        try:
            return GO_ON if self.speech.push(piece, wave.rate) else STOP
        except Exception as error:      # goes on in speak(): an exception does not find its way through C
            self.error = error
            return STOP


# -- from flite's samples to ours --------------------------------------------------------------------------------------

class Speech:
    """One text on its way out: levelled, without its silences, at the listener's rate."""

    __slots__ = ("rate", "gain", "write", "edges", "resampler", "skip", "wanted")

    def __init__(self, rate: int, gain: float, write: Callable[[np.ndarray], bool]):
        self.rate = rate
        self.gain = gain
        self.write = write
        self.edges: Edges | None = None
        self.resampler: Resampler | None = None
        self.skip = 0                       # samples of the resampler's delay that are still to come
        self.wanted = True

    def push(self, piece: np.ndarray, rate: int) -> bool:
        """The next samples of flite, at `rate`; False when nobody wants more."""
        if self.edges is None:
            self.edges = Edges(rate)
            if rate != self.rate:
                self.resampler = Resampler(rate, self.rate)
                self.skip = self.resampler.delay
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

    __slots__ = ("window", "lead", "trail", "fade", "begun", "held")

    def __init__(self, rate: int):
        self.window = rate * WINDOW_MS // 1000      # samples, these four
        self.lead = rate * LEAD_MS // 1000
        self.trail = rate * TRAIL_MS // 1000
        self.fade = rate * FADE_MS // 1000
        self.begun = False                          # a sound was found
        self.held = np.zeros(0, np.int16)           # silence that may be the last

    def push(self, pcm: np.ndarray) -> np.ndarray:
        """int16 samples; those of them, and of earlier ones, that are certainly neither lead nor trail."""
        pcm = np.concatenate((self.held, pcm))
        if not self.begun:
            loud = self._louder(pcm, QUIET)
            if not len(loud):
                self.held = pcm[max(0, len(pcm) - self.lead - self.window):]
                return pcm[:0]
            self.begun = True
            pcm = pcm[max(0, loud[0] * self.window - self.lead):]
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


def ascii_text(text: str) -> bytes:
    """What flite can read: letters without their accents, a space for what it does not know."""
    plain = unicodedata.normalize("NFKD", text.replace("\u2019", "'"))
    return "".join(c if " " <= c <= "~" else "" if unicodedata.combining(c) else " " for c in plain).encode()
