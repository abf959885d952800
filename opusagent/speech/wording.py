"""Where the words of a text lie in the speech made of it: as the voice says, or else worked out from the sound.

It knows texts and samples.  The rule of an estimate: a pause in the sound belongs to the punctuation, the longest ones
first, and between two of them the voiced time is shared by how long each word is to say, which its letters tell better
than their number: a vowel lasts longer than a consonant, and a figure is a word.
"""
import numpy as np

from ..flow.phrases import words as in_words

WINDOW_MS = 10
QUIET = 0.03                    # of the loudest window's level: below it there is a pause
PAUSE_MS = 60                   # ... if that lasts so long
FAR = 0.25                      # of its length that a pause must be longer for lying so far from where it was expected
VOWELS = frozenset("aeiouyäöüáéíóúàèìòùâêîôûåøæ")
VOWEL, CONSONANT = 2.0, 0.8     # of a letter group's length, in no unit; measured on flite's voices (bench/words.py)
STOPS = (",", ";", ":", ".", "!", "?")


def effort(word: str) -> float:
    """How long a word takes to say, in no unit."""
    spoken = "".join(in_words(word)) or word.lower()
    groups = sum(letter in VOWELS and not (before in VOWELS) for before, letter in zip(" " + spoken, spoken))
    consonants = sum(letter not in VOWELS and letter != before for before, letter in zip(" " + spoken, spoken))
    if groups > 1 and spoken.endswith("e") and not spoken.endswith("le"):
        groups -= 1                                 # it is not heard
    return VOWEL * max(groups, 1) + CONSONANT * consonants


def estimated(text: str, pcm: np.ndarray, rate: int, length: int = 0) -> np.ndarray:
    """After which sample each word of `text` ends, int64.

    `pcm` (int16 at `rate` Hz) is the speech of it, as far as there is some; all of it will have about `length` samples.
    """
    told = text.split()
    if not told:
        return np.zeros(0, np.int64)
    size = rate * WINDOW_MS // 1000
    windows = pcm[:len(pcm) // size * size].reshape(-1, size).astype(np.float32)
    levels = np.sqrt((windows ** 2).mean(1)) if len(windows) else np.zeros(0)
    voiced = levels > QUIET * levels.max(initial=0)
    voiced = np.concatenate((voiced, np.ones(max(0, length // size - len(voiced)), bool)))
    if not voiced.any():
        voiced = np.ones(max(1, len(voiced)), bool)
    phrases, passed = _phrases(told), np.concatenate(([0], np.cumsum(voiced)))
    joints = _joints(phrases, _pauses(voiced), passed)
    ends, at, begin = [], 0, 0
    for upto, (pause, going_on) in (*joints, (len(phrases), (len(voiced), 0))):
        ends += _shared(sum(phrases[at:upto], []), passed, begin, pause)
        at, begin = upto, going_on
    return np.minimum(np.array(ends) * size, max(length, len(pcm))).astype(np.int64)


def _joints(phrases: list[list[str]], pauses: list[tuple[int, int]], passed: np.ndarray) -> list[tuple[int, tuple]]:
    """(phrases before it, the pause) for as many as belong to punctuation: long ones near where it should lie."""
    efforts = np.cumsum([sum(map(effort, phrase)) for phrase in phrases])
    wanted = efforts / efforts[-1] * passed[-1]
    best: list[tuple[float, list]] = [(0.0, [])] * (len(pauses) + 1)       # with the first so many pauses
    for i in range(1, len(phrases)):
        before, best = best, best[:1]
        for j, (begin, end) in enumerate(pauses, 1):
            worth = end - begin - FAR * abs(passed[begin] - wanted[i - 1])
            taken = before[j - 1][0] + worth, [*before[j - 1][1], (i, (begin, end))]
            best.append(max(before[j], best[j - 1], taken, key=lambda found: found[0]))
    return best[-1][1]


def _phrases(told: list[str]) -> list[list[str]]:
    """The words between two marks of punctuation."""
    phrases: list[list[str]] = [[]]
    for word, following in zip(told, [*told[1:], ""]):
        phrases[-1].append(word)
        if following and word.endswith(STOPS):
            phrases.append([])
    return phrases


def _pauses(voiced: np.ndarray) -> list[tuple[int, int]]:
    """From which window to which nothing is voiced for PAUSE_MS, between two that are."""
    edges = np.flatnonzero(np.diff(voiced.astype(np.int8))) + 1
    begins = [int(edge) for edge in edges if not voiced[edge]]
    ends = [int(edge) for edge in edges if voiced[edge]]
    if voiced[0] is np.False_ or not voiced[0]:
        ends = ends[1:]                             # the silence at the beginning is no pause
    return [(begin, end) for begin, end in zip(begins, ends) if (end - begin) * WINDOW_MS >= PAUSE_MS]


def _shared(told: list[str], passed: np.ndarray, begin: int, end: int) -> list[float]:
    """Where each of these words ends, in windows from `begin` to `end`: its share of what is voiced there."""
    shares = np.cumsum([effort(word) for word in told])
    wanted = passed[begin] + shares / shares[-1] * (passed[end] - passed[begin])
    return [float(at) for at in np.clip(np.searchsorted(passed, wanted - 1e-9), begin, end)]


def proportional(text: str, length: int) -> np.ndarray:
    """The same, as if every word were as long as any other."""
    count = len(text.split())
    return (np.arange(1, count + 1) * length // max(1, count)).astype(np.int64)
