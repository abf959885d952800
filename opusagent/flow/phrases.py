"""What a caller may say: words, and patterns of words.

A pattern is written as in JSGF, the grammar format of recognisers: words, [optional], (one | other), <list>.  It
becomes a small tree whose nodes answer the same four questions: where can you end (walk), how are you said (spell),
what are you called (flat), what are you in JSGF (jsgf).  The rule: what is said and what is written here meet in the
same normal form, made by words(), in which fillers do not count.
"""

import itertools
import re
from collections.abc import Iterator

from .numerals import CURRENCIES, DIGITS, TEENS, TENS, cardinal, ordinal

SPELLED = 1_000         # ways of saying a pattern that are looked at when it is checked
DEEPEST = 20            # brackets within brackets, those of lists that are named in them too
LONGEST = 200           # words that a pattern can have
READINGS = 200          # of the same words by a part of a pattern, which come to different things
MORE = -1               # instead of a place: the words said ended where a further one could follow
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|\d+")
FIGURE = re.compile(r"\d")
PATTERN = re.compile(r"\s*(<\w+>|[][()|]|[^][()|<>\s]+|.)")

FILLERS = frozenset("um uh uhm er erm hmm mm ah please well the a an".split())
SOUNDS_LIKE = {"oh": "0", "o": "0", "won": "1", "to": "2", "too": "2", "for": "4", "ate": "8"}
REPEATS = {"double": 2, "triple": 3}


def words(text: str) -> tuple[str, ...]:
    """Text as words in lower case, numbers as they are said: up to 99 as a number, else and "07" digit by digit."""
    found: list[str] = []
    text = text.lower().replace("’", "'")
    if FIGURE.search(text):
        for written, said in WRITTEN:
            text = written.sub(said, text)
    for word in WORD.findall(text):
        found += numeral(word) if word.isdecimal() else (word,)
    return tuple(found)


def money(found: re.Match) -> str:
    """€23.50 -> 23 euros 50"""
    whole, cents = found["whole"].replace(",", ""), found["cents"]
    units = CURRENCIES[SIGNS[found["sign"]]][0]
    return f" {cardinal(int(whole[:9]))} {units[whole != '1']} {cents if cents and cents != '00' else ''} "


# What recognisers write where people say more, or less: money, thousands, "3rd", "3 p.m."
SIGNS = {"€": "EUR", "$": "USD", "£": "GBP"}
WRITTEN = (
    (re.compile(r"(?P<sign>[€$£])\s?(?P<whole>\d{1,3}(?:,\d{3})+|\d+)(?:\.(?P<cents>\d\d))?(?![\d.]*\d)"), money),
    (re.compile(r"(?P<whole>\d{1,3}(?:,\d{3})+|\d+)(?:[.,](?P<cents>\d\d))?\s?(?P<sign>[€$£])"), money),
    (re.compile(r"\b\d{1,3}(?:,\d{3})+\b"), lambda found: found[0].replace(",", "")),
    (re.compile(r"\b([1-9]|[12]\d|3[01])(?:st|nd|rd|th)\b"), lambda found: ordinal(int(found[1]))),
    (re.compile(r"(\d|o'clock)\s?([ap])\.?\s?m\b\.?"), r"\1 \2 m"),
)


def numeral(number: str) -> list[str]:
    if len(number) == 1 or len(number) > 2 or number[0] == "0":
        return [DIGITS[int(digit)] for digit in number]
    ten, unit = divmod(int(number), 10)
    if ten == 1:
        return [TEENS[unit]]
    return [TENS[ten], DIGITS[unit]] if unit else [TENS[ten]]


def bare(said: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for word in said if word not in FILLERS)


def murmured(said: tuple[str, ...], murmurs: frozenset[tuple[str, ...]], begun: bool = True) -> bool:
    """Whether the words are some of these one after the other, as in "yes, okay"; `begun`: or are to be."""
    reached = [True] + [False] * len(said)
    for at in range(len(said)):
        if reached[at]:
            for murmur in murmurs:
                rest = said[at:at + len(murmur)]
                if rest == murmur[:len(rest)] and (begun or len(rest) == len(murmur)):
                    reached[at + len(rest)] = True
    return reached[-1]


def each_way(parts: tuple, ways, at: int = 0) -> Iterator[tuple]:
    """itertools.product of ways(part), but none is made before it is asked for: there may be more than ever end."""
    if at == len(parts):
        yield ()
        return
    for way in ways(parts[at]):
        for rest in each_way(parts, ways, at + 1):
            yield way, *rest


class Word:
    """One word.  A filler may be left out when it is said."""

    __slots__ = ("text", "filler")
    depth, longest = 0, 1

    def __init__(self, text: str):
        self.text = text
        self.filler = text in FILLERS

    def walk(self, said, at: int) -> Iterator[tuple[int, tuple]]:
        if self.filler:
            yield at, ()
        elif at == len(said):
            yield MORE, ()
        elif said[at] == self.text:
            yield at + 1, ()

    def spell(self) -> Iterator[tuple[str, ...]]:
        yield (self.text,)

    def flat(self) -> tuple:
        return (self.text,)

    def jsgf(self, rules: dict[str, str]) -> str:
        return f"[ {self.text} ]" if self.filler else self.text


class Sequence:
    """One part after the other."""

    __slots__ = ("parts", "depth", "longest", "_said", "_walked")

    def __init__(self, parts: tuple):
        self.parts = parts
        self.depth = max((getattr(part, "depth", 0) for part in parts), default=0)
        self.longest = sum(getattr(part, "longest", 1) for part in parts)      # words
        self._said: tuple | None = None         # what was walked last
        self._walked: dict[int, list] = {}      # place in it -> the ways from there

    def walk(self, said, at: int) -> Iterator[tuple[int, tuple]]:
        """Each way once, and from a place the same for everyone: what is optional would else double them each time."""
        if self._said is not said:
            self._said, self._walked = said, {}
        if at not in self._walked:
            self._walked[at] = self._walk(said, at)
        return iter(self._walked[at])

    def _walk(self, said, at: int) -> list[tuple[int, tuple]]:
        reached, more = {(at, ()): None}, {}
        for part in self.parts:
            further: dict = {}
            for here, found in reached:
                for end, value in part.walk(said, here):
                    (more if end == MORE else further)[end, found + value] = None
            reached = dict.fromkeys(itertools.islice(further, READINGS))
        return [*more, *reached]

    def spell(self) -> Iterator[tuple[str, ...]]:
        for ways in each_way(self.parts, lambda part: part.spell()):
            yield sum(ways, ())

    def flat(self) -> tuple:
        return sum((part.flat() for part in self.parts), ())

    def jsgf(self, rules: dict[str, str]) -> str:
        return " ".join(part.jsgf(rules) for part in self.parts)


class Choice:
    """One of several, or none if that is optional."""

    __slots__ = ("options", "optional", "depth", "longest")

    def __init__(self, options: tuple, optional: bool):
        self.options = options
        self.depth = 1 + max(option.depth for option in options)
        self.longest = max(option.longest for option in options)
        self.optional = optional

    def walk(self, said, at: int) -> Iterator[tuple[int, tuple]]:
        for option in self.options:
            yield from option.walk(said, at)
        if self.optional:
            yield at, ()

    def spell(self) -> Iterator[tuple[str, ...]]:
        for option in self.options:
            yield from option.spell()
        if self.optional:
            yield ()

    def flat(self) -> tuple:
        return () if self.optional else self.options[0].flat()

    def jsgf(self, rules: dict[str, str]) -> str:
        inside = " | ".join(option.jsgf(rules) for option in self.options)
        return f"[ {inside} ]" if self.optional else f"( {inside} )"


class Named:
    """A list of the flow: one of its groups.  The only node that finds something: the value of that group."""

    __slots__ = ("name", "groups", "depth", "longest")

    def __init__(self, name: str, groups: tuple["Group", ...]):
        self.name = name
        self.groups = groups
        forms = [form for group in groups for form in group.forms]
        self.depth = 1 + max((form.depth for form in forms), default=0)
        self.longest = max((form.longest for form in forms), default=0)

    def walk(self, said, at: int) -> Iterator[tuple[int, tuple]]:
        for group in self.groups:
            for end, value in group.walk(said, at):
                yield (end, ()) if end == MORE else (end, ((self.name, value),))

    def spell(self) -> Iterator[tuple[str, ...]]:
        for group in self.groups:
            yield from group.spell()

    def flat(self) -> tuple:
        return (self,)

    def values(self) -> Iterator[str]:
        for group in self.groups:
            yield from group.values()

    def jsgf(self, rules: dict[str, str]) -> str:
        if self.name not in rules:
            rules[self.name] = " | ".join(group.jsgf(rules) for group in self.groups)
        return f"<{self.name}>"


class Group:
    """Several ways to say one thing, which has a value: a name that was given, or the first way of saying it without
    what is optional in it."""

    __slots__ = ("forms", "value", "_flat")

    def __init__(self, forms: tuple[Sequence, ...], value: str | None = None):
        self.forms = forms
        self._flat = forms[0].flat()            # words, and Named nodes that are filled as they are said
        dynamic = any(isinstance(item, Named) for item in self._flat)
        self.value = value or (None if dynamic else " ".join(self._flat))     # None: it depends on the lists

    def walk(self, said, at: int) -> Iterator[tuple[int, str | None]]:
        """(end, value) of every way to say this from `at` on; (MORE, value) where that needs more words than were said,
        with None where further words decide the value."""
        for form in self.forms:
            for end, found in form.walk(said, at):
                value = self.value or self.named(list(found))
                yield end, value or (None if end == MORE else " ".join(said[at:end]))

    def named(self, found: list[tuple[str, str]]) -> str | None:
        """The first form, its lists filled by what was found in them, whatever the order; None if one lacks that."""
        parts = []
        for item in self._flat:
            if isinstance(item, Named):
                place = next((place for place, (name, _) in enumerate(found) if name == item.name), None)
                if place is None:
                    return None
                item = found.pop(place)[1]
            parts.append(item)
        return " ".join(parts)

    def spell(self) -> Iterator[tuple[str, ...]]:
        for form in self.forms:
            yield from form.spell()

    def values(self) -> Iterator[str]:
        """Every value this can have."""
        if self.value:
            yield self.value
            return
        for way in each_way(self._flat, lambda item: item.values() if isinstance(item, Named) else (item,)):
            yield " ".join(way)

    def jsgf(self, rules: dict[str, str]) -> str:
        return " | ".join(form.jsgf(rules) for form in self.forms)


class Digits:
    """From `low` to `high` digits; the value is the digits as text.  A group of its own kind: walk, values, jsgf."""

    __slots__ = ("low", "high")

    def __init__(self, low: int, high: int):
        self.low = low
        self.high = high

    def walk(self, said, at: int) -> Iterator[tuple[int, str | None]]:
        found, end, announced = digits(said, at)
        if self.low <= len(found) <= self.high and not announced:
            yield end, found
        if end == len(said) and len(found) + (announced or 1) <= self.high:
            yield MORE, None

    def press(self, keys: str) -> Iterator[tuple[int, str | None]]:
        """The same of keys; # ends them early."""
        number = keys.removesuffix("#")
        if number.isdecimal() or not keys:
            if self.low <= len(number) <= self.high:
                yield len(keys), number
            if len(number) < self.high and number == keys:
                yield MORE, None

    def spell(self) -> Iterator[tuple[str, ...]]:
        for count in range(self.low, self.high + 1):
            yield from itertools.product(DIGITS, repeat=count)

    def values(self) -> Iterator[str]:
        for count in range(self.low, self.high + 1):
            yield from map("".join, itertools.product("0123456789", repeat=count))

    def jsgf(self, rules: dict[str, str]) -> str:
        rules["any-digit"] = " | ".join((*DIGITS, "oh"))
        more = self.high - self.low
        return " ".join(["<any-digit>"] * self.low + ["[ <any-digit>"] * more + ["]"] * more)


def digits(said, at: int) -> tuple[str, int, int]:
    """The digits said from `at` on, where they end, and how many a last "double" or "triple" announces."""
    found, repeat = "", 0
    while at < len(said):
        word = said[at]
        if word in REPEATS:
            repeat = REPEATS[word]
        elif word in DIGITS or word in SOUNDS_LIKE:
            found += (SOUNDS_LIKE.get(word) or str(DIGITS.index(word))) * (repeat or 1)
            repeat = 0
        elif word in TEENS:
            found += f"1{TEENS.index(word)}"
        elif word in TENS:
            unit = said[at + 1] if said[at + 1:at + 2] and said[at + 1] in DIGITS[1:] else ""
            found += f"{TENS.index(word)}{DIGITS.index(unit) if unit else 0}"
            at += bool(unit)
        else:
            break
        at += 1
    return found, at, repeat


def pattern(text: str, lists: dict[str, tuple[Group, ...]]) -> Sequence:
    """The tree of a pattern.  Raises ValueError with the rest of a sentence where it is malformed."""
    tokens = [token for token in PATTERN.findall(text) if token.strip()]
    node = _sequence(tokens, lists)
    if tokens:
        raise ValueError(f"has `{tokens[0]}` out of place")
    if node.depth > DEEPEST:
        raise ValueError(f"is nested more than {DEEPEST} deep, its lists included")
    if node.longest > LONGEST:
        raise ValueError(f"can be longer than {LONGEST} words")
    if not all(map(bare, itertools.islice(node.spell(), SPELLED))):
        raise ValueError("can be said without a word that counts; `please`, `the` and the like do not")
    return node


def _sequence(tokens: list[str], lists: dict, depth: int = 0) -> Sequence:
    if depth > DEEPEST:
        raise ValueError(f"is nested more than {DEEPEST} deep")
    parts: list = []
    while tokens and tokens[0] not in "])|":
        token = tokens.pop(0)
        if token in "[(":
            parts.append(_choice(tokens, lists, "]" if token == "[" else ")", depth + 1))
        elif token[0] == "<" and len(token) > 1:
            if token[1:-1] not in lists:
                raise ValueError(f"names the list {token}, which is not above it under [lists]")
            named = lists[token[1:-1]]
            parts.append(Named(token[1:-1], named) if isinstance(named, tuple) else named)
        else:
            said = words(token)
            if not said:
                raise ValueError(f"has `{token}` in it, which cannot be said")
            parts += map(Word, said)
    if not parts:
        raise ValueError("has an empty part")
    return Sequence(tuple(parts))


def _choice(tokens: list[str], lists: dict, close: str, depth: int) -> Choice:
    options = [_sequence(tokens, lists, depth)]
    while tokens and tokens[0] == "|":
        tokens.pop(0)
        options.append(_sequence(tokens, lists, depth))
    if not tokens or tokens.pop(0) != close:
        raise ValueError(f"lacks a `{close}`")
    return Choice(tuple(options), close == "]")
