"""What is said while the agent speaks, as the embedded recogniser hears it: an answer, a murmur, or not to be told yet.

A grammar of answers makes an answer of any sound.  So here murmurs compete with them, and a few words that interrupt
whatever is expected; each of these is one entry of the dictionary, however many words it has, so that none is heard
before it is whole, and none is taken for an answer of the same words.  The rule: this tells of words, or keeps them
back; what follows from them is the flow's and turn taking's.
"""
from collections.abc import Iterable, Mapping
from itertools import islice, product

MARK = "~"                  # begins such an entry
ANSWER = "1e-9"             # an answer, to a murmur or an interruption: any sound is some answer
AGAIN = "1e-4"              # a second murmur, to one; more are none
HOLD = 4                    # frames (10 ms) that an answer must stand, once somebody has asked, before it is told
LONGEST = 44                # frames from then on in which a murmur is told: it is over by then
TOO_LONG = 72               # ... after which what is heard as one, or as nothing, was something else
UNCLEAR = "unclear"         # ... of which no more is known
WAYS = 8                    # to say a phrase

# How murmurs sound that the model's dictionary does not have, or has otherwise.
SOUNDS = {
    "mm hm": ("M HH M", "AH M HH AH M", "M HH AH M"), "mhm": ("M HH M", "AH M HH AH M", "AH M HH M"),
    "hm": ("HH M", "HH AH M"), "hmm": ("HH M", "HH AH M"), "mm": ("M", "AH M"),
}


def entry(phrase: str) -> str:
    return MARK + phrase.replace(" ", "_")


def phrases(hypothesis: str) -> str:
    """The words of a hypothesis, or of an entry."""
    return hypothesis.replace(MARK, "").replace("_", " ")


def lines(said: Iterable[str], known: Mapping[str, list[str]]) -> list[str]:
    """The dictionary's lines for these phrases; `known`: how words are spoken.  What has other words is left out."""
    found = []
    for phrase in said:
        ways = SOUNDS.get(phrase) or map(" ".join, islice(product(*(known.get(word, ()) for word in phrase.split())),
                                                          WAYS))
        found += [f"{entry(phrase)}{f'({number})' if number > 1 else ''} {sounds}\n"
                  for number, sounds in enumerate(ways, 1)]
    return found


def grammar(search, known: set[str]) -> str:
    """The JSGF for a search with murmurs: its answers, and what `known`, the dictionary's entries, has of the rest."""
    murmurs, others = ([entry(phrase) for phrase in said if entry(phrase) in known]
                       for said in (search.murmurs, search.interruptions))
    if not murmurs:
        return search.jsgf
    rules = (f"public <all-heard> = /{ANSWER}/ <an-answer> | /1/ <no-answer>;",
             f"<no-answer> = {' | '.join((*others, '<murmurs>'))};",
             f"<murmurs> = /1/ <a-murmur> | /{AGAIN}/ <a-murmur> <a-murmur>;", f"<a-murmur> = {' | '.join(murmurs)};")
    return search.jsgf.replace("public <an-answer>", "\n".join((*rules, "<an-answer>")), 1)


class Overheard:
    """What is told of one utterance, look by look.  An answer must stand for a moment, for any sound is one at first; a
    murmur is told where it fits, and takes itself back when the voice lasts."""

    __slots__ = ("murmurs", "asked", "since")

    def __init__(self, said: Iterable[str]):
        self.murmurs = frozenset(map(entry, said))      # their entries
        self.asked: int | None = None       # frame at which somebody first asked: there is voice enough for a word
        self.since: int | None = None       # ... from which on an answer has stood, up to now

    def ask(self, frame: int) -> None:
        self.asked = frame if self.asked is None else self.asked

    def told(self, hypothesis: str, fits: bool, frame: int) -> str:
        if self.asked is None:
            return ""
        if self.murmurs.issuperset(hypothesis.split()):
            self.since, lasts = None, frame - self.asked
            if lasts >= TOO_LONG:
                return UNCLEAR
            return phrases(hypothesis) if fits and lasts < LONGEST else ""
        self.since = frame if self.since is None else self.since
        return phrases(hypothesis) if frame - self.since >= HOLD else ""
