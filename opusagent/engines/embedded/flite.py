"""The embedded voice: flite, through ctypes, as an engine process runs it.

It knows texts and samples, no calls and no processes.  flite speaks a whole text at a time, in pieces as it goes, with
a leading silence (140 to 330 ms) that costs more than its computing: speech.py cuts it off.  The rule: the same text
gives the same samples, so that another process can go on with it.
"""
import ctypes
import unicodedata
from collections.abc import Callable

import numpy as np

from ... import ConfigError, EngineError
from ..speech import Speech

# name -> gain that brings it to -20 dBFS (measured over voiced windows of a few sentences)
VOICES = {"rms": 0.98, "slt": 0.54, "awb": 0.87, "kal16": 2.0, "kal": 0.75}

PIECE_MS = 20               # of speech that flite hands over at once, at least

INSTALL = "The embedded voice needs flite: apt install libflite1."


# -- flite's C structures, as far as they are used -------------------------------------------------------------------

class _Wave(ctypes.Structure):
    _fields_ = [("type", ctypes.c_char_p), ("rate", ctypes.c_int), ("count", ctypes.c_int), ("channels", ctypes.c_int),
                ("samples", ctypes.POINTER(ctypes.c_short))]


class _Streaming(ctypes.Structure):
    pass


_On_piece = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Wave), ctypes.c_int, ctypes.c_int, ctypes.c_int,
                             ctypes.POINTER(_Streaming))
_Streaming._fields_ = [("least", ctypes.c_int), ("on_piece", _On_piece), ("utterance", ctypes.c_void_p),
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
    "flite_get_param_float": (ctypes.c_float, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float]),
    "flite_feat_set_float": (None, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float]),
    "utt_relation": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]),
    "relation_head": (ctypes.c_void_p, [ctypes.c_void_p]),
    "item_next": (ctypes.c_void_p, [ctypes.c_void_p]),
    "item_feat_float": (ctypes.c_float, [ctypes.c_void_p, ctypes.c_char_p]),
    "path_to_item": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]),
}
TOKEN = b"R:SylStructure.parent.parent.R:Token.parent"     # from a sound to what was written there
STRETCH = b"duration_stretch"
GO_ON, STOP = 0, -1         # what a callback returns
LONGEST = 2000              # characters spoken at once: a minute or two


def load(name: str) -> ctypes.CDLL:
    """A library of flite's.  ConfigError where it is not installed."""
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise ConfigError(f"{INSTALL} ({error})") from None


class Library:
    """flite itself, without a voice.  ConfigError where it is not installed."""

    def __init__(self):
        self.library = load("libflite.so.1")
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(self.library, name)
            function.restype, function.argtypes = result, arguments
        self.library.flite_init()
        self.library.srand = ctypes.CDLL(None).srand

    def voice(self, name: str) -> "Voice":
        """One of VOICES.  ConfigError without its library."""
        return Voice(self.library, name)


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
        self.stretch = library.flite_get_param_float(self.voice.contents.features, STRETCH, 1.0)   # of its own
        self.speech: Speech | None = None           # in progress
        self.text = ""                              # ... of this
        self.ends: list[float] | None = None        # seconds of the voice's own after which each of its words ends
        self.error: Exception | None = None         # what `write` raised, which cannot cross flite

    def speak(self, text: str, rate: int, write: Callable[[np.ndarray], bool], speed: float = 1.0,
              language: str = "") -> bool:
        """Speak `text` at `rate` Hz: write(pcm) for each piece, until it returns False.  True if all was spoken.

        pcm is int16 and new each time.  Nothing is written of a text without a word in it.  It reads English, whatever
        the language is; `speed` is 1 as the voice was recorded.
        """
        self.library.flite_feat_set_float(self.voice.contents.features, STRETCH, self.stretch / speed)
        self.speech, self.error, self.text, self.ends = Speech(rate, self.gain, write), None, text, None
        self.library.srand(1)               # flite makes its breath noise with rand()
        wave = self.library.flite_text_to_wave(ascii_text(text)[:LONGEST], self.voice)
        if not wave:
            raise EngineError("flite could not speak a text.")
        self.library.delete_wave(wave)
        if self.error is not None:
            raise self.error
        return self.speech.finish()

    @property
    def words(self) -> list[int]:
        """After which of the samples that were written each word of the text ends; [] while that is not known.

        A word is what stands between two spaces, as in str.split().
        """
        speech = self.speech
        if not self.ends or speech is None or speech.edges is None or not speech.edges.begun:
            return []
        dropped, rate = speech.edges.dropped / speech.edges.rate, speech.rate
        return [max(0, round((end - dropped) * rate)) for end in self.ends]

    def _piece(self, wave, start: int, count: int, last: int, streaming) -> int:
        if self.ends is None:
            self.ends = self._word_ends(streaming.contents.utterance)
        wave = wave.contents
        piece = np.ctypeslib.as_array(wave.samples, (start + count,))[start:]
        try:
            return GO_ON if self.speech.push(piece, wave.rate) else STOP
        except Exception as error:      # goes on in speak(): an exception does not find its way through C
            self.error = error
            return STOP


    def _word_ends(self, utterance) -> list[float]:
        """By what flite has planned; [] where its words are not those of the text."""
        library, ends, last = self.library, [], None
        sound = library.relation_head(library.utt_relation(utterance, b"Segment"))
        while sound:
            token = library.path_to_item(sound, TOKEN)
            if token:                               # else it is a pause
                if token != last:
                    ends.append(0.0)
                ends[-1], last = library.item_feat_float(sound, b"end"), token
            sound = library.item_next(sound)
        return ends if len(ends) == len(self.text.split()) else []


def ascii_text(text: str) -> bytes:
    """What flite can read: letters without their accents, a space for what it does not know."""
    plain = unicodedata.normalize("NFKD", text.replace("\u2019", "'"))
    return "".join(c if " " <= c <= "~" else "" if unicodedata.combining(c) else " " for c in plain).encode()
