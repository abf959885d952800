"""The embedded recogniser: pocketsphinx, as an engine process runs it.

It knows searches and samples, no calls and no processes.  It is good for what a flow names (menus, digits, words
from lists) and poor at free speech.  The rule: a decoder is made ahead and serves one utterance at a time; what was
learned of a caller is in Cepstra's `level`, never in a decoder, so any decoder serves any caller alike.
"""
import importlib.util
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ... import ConfigError, EngineError
from . import murmurs
from .cepstra import CEPSTRA, Cepstra
from .narrowing import narrowed

# Decoders by kind: idle ones to have beside those in use, and while nobody speaks; and the most that are made, beyond
# which an utterance waits for another one's end: of those with a language model, 99 MB each, a core serves no more.
AHEAD = {"grammar": 2, "free": 1}
CALM = {"grammar": 8, "free": 2}
MOST = {"grammar": 64, "free": 6}
POLL = 4                    # frames between two looks at a hypothesis (one takes 6 us, 100 us with a language model)
CERTAIN = 0.5               # confidence below which a result of a grammar counts as none of its sentences
LOUD = 17.0                 # of a cepstrum's first number: frames so near to the loudest (17 dB) are somebody's voice
POLL_OVERHEARD = 2          # ... while the agent speaks
STEP = 6                    # frames that an utterance may decode before the next one has its turn
FRAME_BYTES = 4 * CEPSTRA

RARE = {"oh": 1e-21}        # words that any vowel sounds like -> how much rarer than its neighbours in a choice
# What the telephone leaves of a word, beside what the model's dictionary has.
SOUNDS = {
    "six": ("S IH K", "IH K S", "S IY K S"),
    "zero": ("IH R OW", "IY R OW", "S IH R OW", "S IY R OW"),
}

MODEL = "model/en-us"
INSTALL = "The embedded recogniser needs pocketsphinx: pip install 'opusagent[local]'."

# Cepstra are normalised before they come here, so the decoder's own normalisation is off.
FEATURES = (f"-feat 1s_c_d_dd\n-ncep {CEPSTRA}\n-ceplen {CEPSTRA}\n-svspec 0-8/9-17/18-26\n"
            "-agc none\n-cmn none\n-varnorm no\n-model ptm\n")
LANGUAGE_MODEL = "_default"     # what pocketsphinx calls the search it makes of a language model
GRAMMAR = {"lm": None, "fwdflat": False, "bestpath": False}
# The lookahead by phones ("pl_window") fails on blocks of many frames, and costs a sixth of the words at 8 kHz.
LANGUAGE = {"fwdflat": False, "pl_window": 0, "maxhmmpf": 3000, "maxwpf": 10}


def model_path() -> Path:
    """Where the wheel keeps its model; the wheel is not imported.  ConfigError where it is not installed."""
    found = importlib.util.find_spec("pocketsphinx")
    if found is None:
        raise ConfigError(INSTALL)
    return Path(found.submodule_search_locations[0]) / MODEL


def dictionary(words: Iterable[str], phrases: Iterable[str] = ()) -> str:
    """The lines of the model's dictionary for these words.  ConfigError that names the words it does not have.
    `phrases`: what is to be one entry, if it has the words of that.

    A decoder whose dictionary has only these is made in a twentieth of the time and takes a tenth of the memory.
    """
    wanted, phrases, lines, known = set(words), list(phrases), [], defaultdict(list)
    parts = {word for phrase in phrases for word in phrase.split()}
    with open(model_path() / "cmudict-en-us.dict", encoding="utf-8") as everything:
        for line in everything:
            name, _, sounds = line.partition(" ")
            word = name.partition("(")[0]       # a second way to say it is spelled "word(2)"
            if word in wanted:
                lines.append(line)
            if word in wanted or word in parts:
                known[word].append(sounds.strip())
    if missing := sorted(wanted - known.keys()):
        names = ", ".join(map(repr, missing))
        raise ConfigError(f"The recogniser does not know how {names} is spoken: choose another word, or spell it "
                          "as words that sound like it.")
    for word in wanted & SOUNDS.keys():
        lines += [f"{word}({number}) {sounds}\n" for number, sounds in enumerate(SOUNDS[word], 9)]
    return "".join(lines + murmurs.lines(phrases, known))


def weighed(jsgf: str) -> str:
    """The grammar with the weights of RARE where such a word is one of a choice."""
    for word, weight in RARE.items():
        jsgf = re.sub(rf"([|=(]\s*)({word}\s*[|;)])", rf"\1/{weight}/ \2", jsgf)
    return jsgf


def recogniser(setup: dict, searches: Iterable) -> "Recogniser":
    return Recogniser(searches)


class Recogniser:
    """All decoders of a process.  `searches` are as flow.Search."""

    def __init__(self, searches: Iterable):
        self.searches = {search.id: search for search in searches}
        self.grammars = [search for search in self.searches.values() if search.kind == "grammar"]
        free = len(self.grammars) < len(self.searches)              # some state expects free speech
        self.kinds = ["grammar"] * bool(self.grammars) + ["free"] * free
        lines = dictionary((word for search in self.grammars for word in search.words), dict.fromkeys(
            phrase for search in self.grammars for phrase in (*search.murmurs, *search.interruptions)))
        known = {line.partition(" ")[0] for line in lines.splitlines()}
        self.jsgf = {search.id: weighed(murmurs.grammar(search, known)) for search in self.grammars}
        gaussians = narrowed(model_path() / "en-us")
        self.files = [memory_file(each) for each in (FEATURES.encode(), lines.encode(), *gaussians)]
        self.idle: dict[str, list] = {"grammar": [], "free": []}
        self.made = {"grammar": 0, "free": 0}
        self.import_decoder()
        for kind in self.kinds:
            for _ in range(AHEAD[kind]):
                self.make(kind)

    def import_decoder(self) -> None:
        try:
            from pocketsphinx import Decoder
        except ImportError as error:
            raise ConfigError(f"{INSTALL} ({error})") from None
        self.decoder = Decoder

    def short(self) -> str:
        """The kind of decoder that should be made when there is time; "" while enough are idle."""
        ahead = AHEAD if any(self.made[kind] > len(self.idle[kind]) for kind in self.kinds) else CALM
        lacking = [kind for kind in self.kinds
                   if len(self.idle[kind]) < ahead[kind] and self.made[kind] < MOST[kind]]
        return min(lacking, key=lambda kind: len(self.idle[kind]), default="")

    def make(self, kind: str) -> None:
        """Make a decoder.  20 ms for grammars, 0.3 s with a language model.  EngineError where that cannot be done."""
        features, words, means, variances = (f"/proc/self/fd/{file}" for file in self.files)
        model = {"featparams": features, "mean": means, "var": variances, "loglevel": "FATAL"}
        try:
            if kind == "free":
                decoder = self.decoder(**model, **LANGUAGE)
            else:
                decoder = self.decoder(**model, dict=words, **GRAMMAR)
                for search in self.grammars:
                    decoder.add_jsgf_string(str(search.id), self.jsgf[search.id])
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"pocketsphinx takes neither its model nor the flow's grammars: {error}") from None
        self.made[kind] += 1
        self.idle[kind].append(decoder)

    def start(self, search_id: int, rate: int, level: float = 0.0) -> "Utterance | None":
        """Begin an utterance at `rate` (8000 or 16000 Hz); None while no decoder is idle.

        `level` is what the call's last utterance left in `.level`.  EngineError where there is no such search.
        """
        search = self.searches.get(search_id)
        if search is None:
            raise EngineError(f"The recogniser was asked for search {search_id}, which it does not have.")
        idle = self.idle[search.kind]
        if not idle:
            return None
        decoder = idle.pop()
        decoder.activate_search(str(search_id) if search.kind == "grammar" else LANGUAGE_MODEL)
        return Utterance(decoder, search, idle, Cepstra(rate, level))


class Utterance:
    """One stretch of a caller's speech on its way to text.  It ends with finish() or abandon()."""

    __slots__ = ("decoder", "free", "overheard", "idle", "cepstra", "pending", "loudness", "seen", "unseen", "text")

    def __init__(self, decoder, search, idle: list, cepstra: Cepstra):
        self.decoder = decoder
        self.free = search.kind == "free"   # with a language model: any words may be meant
        self.overheard = murmurs.Overheard(search.murmurs) if search.murmurs else None
        self.idle = idle                    # where the decoder goes back to
        self.cepstra = cepstra
        self.pending = b""                  # cepstra that are not decoded
        self.loudness: list[np.ndarray] = []    # of all frames: the first of their cepstra
        self.seen = 0                       # frames decoded,
        self.unseen = 0                     # ... since the last look at the hypothesis
        self.text = ""                      # what it was
        decoder.start_utt()

    @property
    def level(self) -> float:
        """What was learned of the caller's loudness, for the call's next utterance."""
        return self.cepstra.level

    def feed(self, pcm: np.ndarray) -> None:
        """More of it, int16; step() decodes it."""
        self._take(self.cepstra.push(pcm))

    def _take(self, cepstra: np.ndarray) -> None:
        self.pending += cepstra.tobytes()
        self.loudness.append(cepstra[:, 0])

    def step(self) -> bool:
        """Decode at most STEP frames, so that utterances share a process fairly; True while more are pending."""
        part, self.pending = self.pending[:STEP * FRAME_BYTES], self.pending[STEP * FRAME_BYTES:]
        if part:
            self.decoder.process_cep(part, False, False)
            self.seen += len(part) // FRAME_BYTES
            self.unseen += len(part) // FRAME_BYTES
        return bool(self.pending)

    def hurry(self) -> None:
        """Somebody asks before the loudness is certain: what was held back for it is decoded now."""
        self._take(self.cepstra.flush())
        if self.overheard is not None:
            self.overheard.ask(self.seen + len(self.pending) // FRAME_BYTES)

    def partial(self) -> str:
        """The best text so far; not necessarily a whole sentence of the grammar.  Worth a look when `due`."""
        self.unseen = 0
        found = self.decoder.hyp()
        self.text = found.hypstr if found else ""
        if self.overheard is not None:
            self.text = self.overheard.told(self.text, self._fit() >= CERTAIN, self.seen)
        return self.text

    def _fit(self) -> float:
        return fit(self.decoder.seg(), np.concatenate(self.loudness))

    @property
    def due(self) -> bool:
        """Enough was decoded since the last partial() for another."""
        return self.unseen >= (POLL if self.overheard is None else POLL_OVERHEARD)

    def finish(self) -> tuple[str, float]:
        """Nothing more follows: (text, confidence from 0 to 1).  No text where no sentence of a grammar fits."""
        self.hurry()
        while self.step():
            pass
        self.decoder.end_utt()
        found = self.decoder.hyp()
        confidence = self._fit() if found else 0.0
        self.idle.append(self.decoder)
        certain = confidence >= CERTAIN or self.free and found
        return (murmurs.phrases(found.hypstr) if certain else "", confidence)

    def abandon(self) -> None:
        """Nobody wants to know any more."""
        self.decoder.end_utt()
        self.idle.append(self.decoder)


def fit(segments: Iterable, loudness: np.ndarray) -> float:
    """How well the words of a result fit what was heard, from 0 to 1, in place of a model of everything else.

    `loudness` is the first of the cepstra of every frame.  pocketsphinx scores every frame against the best of all
    sounds at that frame: a word that was not said fits badly.  And where words were said that no grammar expected,
    the silence between those that were has swallowed them, and is loud.  Weights by logistic regression over recordings
    of people: answers that were understood, against sentences from books, other answers, and misunderstandings.
    """
    worst, swallowed, said = 0.0, 0, False      # log score of a frame; loud frames that are no word's
    loud = loudness > loudness.max(initial=-np.inf) - LOUD
    for segment in segments:
        first, after = segment.start_frame, segment.end_frame + 1
        if first >= 0 and after > first and segment.word != "(NULL)":
            if segment.word[0] in "<[(":
                swallowed += int(loud[first:after].sum())
            else:
                said = True
                worst = min(worst, 1000 * math.log(max(segment.ascore, 1e-300)) / (after - first))
    if not said:
        return 0.0
    evidence = 10 + 2.3 * worst - 6.7 * swallowed / max(1, loud.sum())
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, evidence))))


def memory_file(contents: bytes) -> int:
    """A file without a name: its descriptor, which /proc/self/fd turns into a path."""
    file = os.memfd_create("opusagent-pocketsphinx", os.MFD_CLOEXEC)
    os.write(file, contents)
    return file
