"""How a text is said: slots filled, digits one by one, cut into segments at natural breaks.

Text only: no voice and no audio.  A segment is what is synthesised in one piece.  The rule: where a text is cut
depends on the text alone, not on how it arrived, so that a stream cut in other places gives the same segments and
a segment rendered ahead is the segment that is asked for later.
"""

import itertools
import re

from .numerals import DIGITS, readable

LIMIT = 120             # characters of a segment, at most
FIRST = 60              # of the first segment of a text that is still being written
EARLY = 10              # characters a first clause needs to be worth a segment of its own
COMBINATIONS = 32       # more ways than these to fill a sentence are not rendered ahead

ABBREVIATIONS = {"mr", "mrs", "ms", "dr", "st", "vs", "etc", "e.g", "i.e", "a.m", "p.m", "inc", "ltd", "approx"}

TODAY = "today"         # the fact that has the date of the call
SLOT = re.compile(r"\{([\w/]+)\}")
SENTENCE = re.compile(r"""[.!?…]+["')\]’”*_]*(?=\s)|\n""")
CLAUSE = re.compile(r"""[,;:—–]["')\]’”*_]*(?=\s)|\s[-—–](?=\s)""")
JOINT = re.compile(r"\s(?=(?:and|or|but|so|because|which|that|who|if|when|while|with|for|to|from|in|on|at)\s)")
PLAIN = re.compile(r" ?[\w']+(?: [\w']+)*")     # words with nothing between or behind them at which a text could be cut
PLAY, KEYS = "\N{BEAMED EIGHTH NOTES} ", "\N{KEYBOARD} "       # what a segment begins with that is no words: signals.py
UNSEEN = {*range(9), *range(14, 32), *range(127, 160), 0x200B, 0x2060, 0xFEFF}     # control characters, no white space
MARKS = dict.fromkeys({*UNSEEN, *map(ord, f"`~{PLAY[0]}{KEYS[0]}")}) | {ord("|"): " "}     # what is never spoken
RUN = re.compile(r"[*_]+|#+")                               # what is mostly meant for the eye
LINK = re.compile(r"\[([^][\n]{0,200})\]\([^()\s]{0,400}\)")                        # [text](address)
LINK_BEGINS = re.compile(r"\[[^][\n]{0,200}(?:\](?:\([^()\s]{0,400})?)?\Z")         # ... that may go on
PICTURE = "\u2600-\u27bf\u2b00-\u2bff\ufe0f\u20e3\U0001f000-\U0001faff"             # emoji
LINE = re.compile(r"(?:(?:[-+>•–*]|#{1,6})\s+)+")       # how one of a list, a quotation or a heading begins
EYE = re.compile(                       # what of a segment is for the eye alone
    r"^(?:[-+>•–]\s+)+"
    r"|(?<![\w{/])(?!\*(?=\d)(?!.*[^\s*]\*(?!\w)))[*_]+(?=[^\s.,;:!?)])"         # **emphasis**, _emphasis_, not *67,
    r"|(?<=\S)[*_]+(?![\w}/])|(?!#\d+#)#+(?=\w)"                                  # ... and #tag, not #31#
    rf"|(?P<picture>\s*[{PICTURE}][\u200d\s{PICTURE}]*)")


def spoken(value: str, kind: str = "", today: str = "") -> str:
    """How a fact's value is said: dates, times and amounts in words, digits one by one (unless `kind` is "number"),
    anything else as it is, but never as the end of a sentence."""
    if (words := readable(value, kind, today)) is not None:
        return words
    if value.isdecimal():
        return " ".join(DIGITS[int(digit)] for digit in value)
    return re.sub(r"[.!?…]+(?=\s|$)|[{}\n]", "", value).strip()


class Text:
    """A scripted text, with slots such as {member} that are filled when it is said."""

    __slots__ = ("source", "line", "sentences", "slots", "kinds")

    def __init__(self, source: str, line: int = 0, kinds: dict[str, str] | None = None):
        self.source = source
        self.line = line                        # of the file
        self.kinds = kinds or {}                # fact -> its kind, for those that are numbers
        self.sentences = tuple(cut(source, limit=len(source) + 1))
        self.slots = tuple(dict.fromkeys(SLOT.findall(source)))

    def fill(self, facts: dict[str, str]) -> tuple[str, ...]:
        """The segments, in the order of speaking.  Slots of unknown facts are left out."""
        return tuple(itertools.chain.from_iterable(cut(filled(line, facts, self.kinds)) for line in self.sentences))

    def ahead(self, values: dict[str, tuple[str, ...] | None]) -> list[str]:
        """The segments that can be rendered before the call; `values`: what each fact can be, None for anything."""
        found = []
        for line in self.sentences:
            names = tuple(dict.fromkeys(SLOT.findall(line)))
            choices = [values.get(name) for name in names]
            if None in choices:
                continue
            ways = list(itertools.islice(itertools.product(*choices), COMBINATIONS + 1))
            if len(ways) <= COMBINATIONS:
                for way in ways:
                    found += cut(filled(line, dict(zip(names, way)), self.kinds))
        return found


def filled(line: str, facts: dict[str, str], kinds: dict[str, str]) -> str:
    """The line with its slots filled; the space before a slot that stays empty goes with it."""
    today = facts.get(TODAY, "")
    said = SLOT.sub(lambda slot: spoken(facts.get(slot[1], ""), kinds.get(slot[1], ""), today), line)
    return re.sub(r"\s+(?=[,.!?])", "", said)


def cut(text: str, limit: int = LIMIT) -> list[str]:
    """The segments of a text that is complete."""
    cutter = Cutter(limit, first=limit, clauses=False)
    return cutter.feed(text) + cutter.finish()


class Cutter:
    """Cuts a text that is still being written: feed() what arrives, finish() at its end; both return segments.

    A segment ends with its sentence.  The first one may end with its first clause already, so that speech starts
    early, and a sentence over the limit is cut at its last clause, else before a joining word, else between words.
    """

    __slots__ = ("_held", "_line", "_link", "_plain", "_limit", "_first", "_clauses")

    def __init__(self, limit: int = LIMIT, first: int = FIRST, clauses: bool = True):
        self._held = ""             # what has arrived and belongs to no segment yet
        self._line = True           # it begins a line
        self._link = ""             # what follows it, and may be a link
        self._plain = False         # it is PLAIN, so that another word ends nothing
        self._limit = limit
        self._first = first         # the limit until the first segment is out
        self._clauses = clauses     # the first segment may be a clause

    def feed(self, chunk: str) -> list[str]:
        if self._plain and len(self._held) + len(chunk) <= self._first and PLAIN.fullmatch(chunk):
            self._held += chunk
            return []
        text, whole = self._link + chunk.translate(MARKS), 0
        for link in LINK.finditer(text):
            whole = link.end()
        begun = LINK_BEGINS.search(text, whole)
        self._link = begun[0] if begun else ""
        found = self._cut(LINK.sub(r"\1", text[:len(text) - len(self._link)]))
        self._plain = not self._link and PLAIN.fullmatch(self._held) is not None
        return found

    def finish(self) -> list[str]:
        found, self._link = self._cut(self._link), ""
        self._take(len(self._held), found)
        return found

    def _cut(self, more: str) -> list[str]:
        """The segments that are certain once this has come, too."""
        text = self._held + more
        self._hold(re.sub(r"\s+", lambda white: "\n" if "\n" in white[0] else " ", text))
        found: list[str] = []
        while (end := self._end()) is not None:
            self._take(end, found)
        return found

    def _hold(self, text: str) -> None:
        self._held = text.lstrip()
        self._line = self._line or text.startswith("\n")

    def _take(self, end: int, found: list[str]) -> None:
        text, rest = self._held[:end], self._held[end:]
        segment, self._line = heard(text, self._line), text.endswith("\n")
        self._hold(rest)
        if any(map(str.isalnum, segment)):
            found.append(segment)
            self._first, self._clauses = self._limit, False

    def _end(self) -> int | None:
        """Where the first segment of what is held ends; None: that is not known yet."""
        held, limit = self._held, self._first
        end = next((match.end() for match in SENTENCE.finditer(held, 0, limit + 1) if ends(held, match)), None)
        if self._clauses:
            clauses = (match.end() for match in CLAUSE.finditer(held, 0, limit + 1))
            early = (place for place in clauses if place >= EARLY and " " in held[:place].rstrip())
            end = min(filter(None, (end, next(early, None))), default=None)
        if end is None and len(held.rstrip()) > limit:
            end = last_break(held, limit)
        return end


def heard(segment: str, line: bool) -> str:
    """What is for the ear in a segment, which begins a line or does not."""
    begins = LINE.match(segment) if line else None
    plain = EYE.sub(lambda found: " " if found["picture"] else "", segment[begins.end() if begins else 0:].strip())
    return plain if plain == segment else re.sub(r" +(?=[,.!?]|\Z)|\A +", "", plain)


def ends(held: str, stop: re.Match) -> bool:
    """Whether this stop ends a sentence; those of "Dr. Smith", "J. Smith" and of the "1." of a list do not."""
    if not stop[0].startswith("."):
        return True
    before = held[:stop.start()].rpartition(" ")[2].lstrip("*_")
    initial = len(before) == 1 and before.isupper() and before != "I"
    return not (initial or before.lower() in ABBREVIATIONS or before == held[:stop.start()] and before.isdecimal())


def last_break(held: str, limit: int) -> int:
    """The best place to cut a sentence that is over the limit; never in its first third, unless in mid-word."""
    for pattern in (CLAUSE, JOINT):
        places = [match.end() for match in pattern.finditer(held, limit // 3, limit + 1)]
        if places:
            return places[-1]
    space = held.rfind(" ", 1, limit + 1)
    return space if space > 0 else limit


class Plain:
    """A text as it is written, without what is for the eye alone: **emphasis**, # headings, the stars of a list.

    It holds back such signs only, until the next character says what they are.  A sign that is spoken stays: "#1",
    "C#", "dial *67", "rated 5*", "press # or *".
    """

    __slots__ = ("_held", "_before", "_open")

    def __init__(self):
        self._held = ""         # signs of which the next character is not known
        self._before = "\n"     # the character before them
        self._open = False      # an emphasis has begun

    def feed(self, piece: str) -> str:
        return self._read(self._held + piece.translate(MARKS), False)

    def finish(self) -> str:
        return self._read(self._held, True)

    def _read(self, text: str, whole: bool) -> str:
        found, at, self._held = [], 0, ""
        for run in RUN.finditer(text):
            if run.end() == len(text) and not whole:
                self._held = run[0]
                break
            before = text[run.start() - 1] if run.start() else self._before
            found.append(text[at:run.start()])
            if self._spoken(run[0], before, text[run.end():run.end() + 1] or "\n"):
                found.append(run[0])
            at = run.end()
        known = text.removesuffix(self._held)
        self._before = known[-1:] or self._before
        return "".join(found) + known[at:]

    def _spoken(self, run: str, before: str, after: str) -> bool:
        if before == "\n" and after.isspace():
            return False                        # of a heading, or a list
        if run[0] == "#":
            return before.isalnum() or not after.isalpha()
        if not (before.isalnum() or after.isspace() or after in ".,;:!?)"):
            self._open = True
            return run == "*" and after.isdigit()
        if not (before.isspace() or after.isalnum()):
            was, self._open = self._open, False
            return run == "*" and before.isdigit() and not was
        return True
