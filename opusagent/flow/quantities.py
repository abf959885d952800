"""Dates, times, amounts and numbers as answers: kinds of what a row can accept, beside words and digits.

Each is a tree of patterns as in phrases.py, with leaves of its own (a number, a word of a table), and a function that
makes the value of what was found in it.  The rule: as everywhere in a flow, the one tree is what is accepted, what is
waited for, and what the recogniser listens for.
"""

from collections.abc import Iterator

from .numerals import (CURRENCIES, DIGITS, MONTHS, TEENS, TENS, WEEKDAYS, Day, cardinal, exists, number_of, ordinal)
from .phrases import MORE, SOUNDS_LIKE, Sequence, bare, digits, pattern

NUMBERS = frozenset((*DIGITS, *TEENS, *filter(None, TENS), "hundred", "thousand", "and"))
LONGEST = 10                # words of a number
NEXT = (("one",), ("ten",), ("hundred",), ("thousand",), ("and", "one"))

Found = tuple[tuple[str, object], ...]      # (name of a leaf, what was found there)


class Table:
    """One of several words or runs of words, each with a value.  `quiet`: it may follow, and is never waited for."""

    __slots__ = ("name", "spelled", "entries", "beginnings", "longest", "quiet")

    def __init__(self, name: str, entries: dict[str, object], quiet: bool = False):
        self.name = name
        self.spelled = tuple(entries)
        self.entries = {bare(tuple(words.split())): value for words, value in entries.items()}
        self.beginnings = {words[:length] for words in self.entries for length in range(len(words))}
        self.longest = max(map(len, self.entries))
        self.quiet = quiet

    def walk(self, said, at: int) -> Iterator[tuple[int, Found]]:
        for end in range(at + 1, min(at + self.longest, len(said)) + 1):
            if said[at:end] in self.entries:
                yield end, ((self.name, self.entries[said[at:end]]),)
        if not self.quiet and said[at:] in self.beginnings:
            yield MORE, ()

    def spell(self) -> Iterator[tuple[str, ...]]:
        yield from (tuple(words.split()) for words in self.spelled)

    def flat(self) -> tuple:
        return (self,)

    def jsgf(self, rules: dict[str, str]) -> str:
        rules[self.name] = " | ".join(self.spelled)
        return f"<{self.name}>"


class Count:
    """A number in words, from `low` to `high` (below 1,000,000)."""

    __slots__ = ("name", "low", "high")

    def __init__(self, name: str, low: int, high: int):
        self.name = name
        self.low = low
        self.high = high

    def walk(self, said, at: int) -> Iterator[tuple[int, Found]]:
        run, end = (), at
        for end in range(at + 1, min(at + LONGEST, len(said)) + 1):
            word = said[end - 1]
            word = DIGITS[int(SOUNDS_LIKE[word])] if word in SOUNDS_LIKE else word
            if word not in NUMBERS:
                break
            run += (word,)
            number = number_of(run)
            if number is not None and self.low <= number <= self.high:
                yield end, ((self.name, number),)
        if len(run) == len(said) - at and (not run or any(self._within(run + more) for more in NEXT)):
            yield MORE, ()

    def _within(self, run: tuple[str, ...]) -> bool:
        number = number_of(run)
        return number is not None and number <= self.high

    def spell(self) -> Iterator[tuple[str, ...]]:
        numbers = {self.low, self.high, *(n for n in range(0, 100) if self.low <= n <= self.high)}
        yield from (tuple(cardinal(number).split()) for number in sorted(numbers))

    def flat(self) -> tuple:
        return (self,)

    def jsgf(self, rules: dict[str, str]) -> str:
        if self.high < 100:
            rules[self.name] = " | ".join(cardinal(number) for number in range(self.low, self.high + 1))
            return f"<{self.name}>"
        rules["from-one"] = " | ".join(DIGITS[1:])
        rules["to-99"] = (f"<from-one> | {' | '.join(TEENS)} | ( {' | '.join(filter(None, TENS))} ) [ <from-one> ]"
                          + (" | zero" if self.low == 0 else ""))
        rules["to-999"] = "<to-99> | ( <from-one> | a ) hundred [ [ and ] <to-99> ]"
        if self.high < 1000:
            return "( <to-999> )"
        rules["to-million"] = "<to-999> | ( <to-999> | a ) thousand [ [ and ] <to-999> ]"
        return "( <to-million> )"


class Year:
    """Four digits from 1900 to 2099, as a year is said."""

    __slots__ = ()
    name = "year"

    def walk(self, said, at: int) -> Iterator[tuple[int, Found]]:
        found, end, _ = digits(said, at)
        if len(found) == 4 and found[:2] in ("19", "20"):
            yield end, ((self.name, int(found)),)
        for last in range(at + 2, min(at + 6, len(said)) + 1):
            number = number_of(said[at:last]) if "thousand" in said[at:last] else None
            if number is not None and 2000 <= number < 2100:
                yield last, ((self.name, number),)
        begun = len(found) < 4 and any(century.startswith(found[:2]) for century in ("19", "20"))
        if end == len(said) and begun or said[at:] == ("two", "thousand"):
            yield MORE, ()

    def spell(self) -> Iterator[tuple[str, ...]]:
        yield from (("nineteen", "eighty"), ("two", "thousand", "six"), ("twenty", "twenty", "six"))

    def flat(self) -> tuple:
        return (self,)

    def jsgf(self, rules: dict[str, str]) -> str:
        rules["from-one"] = " | ".join(DIGITS[1:])
        rules["year-end"] = (f"{' | '.join(TEENS)} | ( {' | '.join(filter(None, TENS))} ) [ <from-one> ] | "
                             "oh <from-one>")
        return "( ( nineteen | twenty ) <year-end> | two thousand [ [ and ] <from-one> ] )"


class Quantity:
    """A kind of answer: ways to say it, and what they come to.  A group of its own kind: walk, spell, values, jsgf.

    `patient` forms are waited for; of the `other` ones, beginnings count only while nothing whole was said.
    """

    __slots__ = ("kind", "patient", "other", "make", "keys")

    def __init__(self, kind: str, make, patient: tuple[Sequence, ...], other: tuple[Sequence, ...] = (), keys: int = 0):
        self.kind = kind                        # "date", "time", "amount" or "number"
        self.make = make                        # what was found -> the value, or a Day; None where there is no such
        self.patient = patient
        self.other = other
        self.keys = keys                        # how many keys at most may give it; 0: none can

    def walk(self, said, at: int) -> Iterator[tuple[int, object]]:
        whole, begun = False, False
        for forms in (self.patient, self.other):
            for form in forms:
                for end, found in form.walk(said, at):
                    if end == MORE:
                        begun = begun or forms is self.patient or not whole
                    elif (value := self.make(dict(found))) is not None:
                        whole = whole or end == len(said)
                        yield end, value
        if begun:
            yield MORE, None

    def press(self, keys: str) -> Iterator[tuple[int, object]]:
        """The same of keys; # ends them early."""
        number = keys.removesuffix("#")
        if self.keys and (number.isdecimal() or not keys):
            value = self.make({"number": int(number)}) if number else None
            if value is not None:
                yield len(keys), value
            if len(number) < self.keys and number == keys:
                yield MORE, None

    def spell(self) -> Iterator[tuple[str, ...]]:
        for form in (*self.patient, *self.other):
            for said in form.spell():
                if any(end == len(said) for end, _ in self.walk(said, 0)):
                    yield said

    def values(self) -> None:
        """Nobody renders all of them ahead."""
        return None

    def jsgf(self, rules: dict[str, str]) -> str:
        return " | ".join(form.jsgf(rules) for form in (*self.patient, *self.other))


def number(low: int, high: int) -> Quantity:
    """A number in words, or as keys; the value is its figures."""
    def make(found: dict) -> str | None:
        return str(found["number"]) if low <= found["number"] <= high else None
    return Quantity("number", make, (Sequence((Count("number", low, high),)),), keys=len(str(high)))


# -- dates -------------------------------------------------------------------------------------------------------------

LEAVES = {
    "coming": Table("offset", {"today": 0, "tomorrow": 1, "the day after tomorrow": 2}),
    "gone": Table("offset", {"today": 0, "yesterday": -1, "the day before yesterday": -2}),
    "week": Table("offset", {"week": 7}),
    "next": Table("weeks", {"next": 1, "next week": 1}),
    "weekday": Table("weekday", {name: place for place, name in enumerate(WEEKDAYS)}),
    "month": Table("month", {name: place + 1 for place, name in enumerate(MONTHS)}),
    "ordinal": Table("day", {ordinal(day): day for day in range(1, 32)}),
    "cardinal": Count("day", 1, 31),
    "some": Count("some", 2, 31),
    "unit": Table("unit", {"days": 1, "weeks": 7}),
    "year": Year(),
}
# when a day may be -> the forms that are waited for, the others ("Friday" is whole, though a date may follow)
IN_MONTH = "[on] <month> [the] (<ordinal> | <cardinal>)"
OF_MONTH = "[on] [the] <cardinal> [of] <month>"
DATES = {
    "future": (("<coming>", "[on] [this | coming] <weekday>", "[on] <next> [on] <weekday>", "in [a] <week>",
                "in <some> <unit>", "[on] [the] <ordinal> [[of] <month>]", IN_MONTH, OF_MONTH),
               ("[on] <weekday> [the] <ordinal> [[of] <month>]",
                "[on] <weekday> <month> [the] (<ordinal> | <cardinal>)")),
    "past": (("<gone>", "[on] [last] <weekday>", "[on] [the] <ordinal> [[of] <month> [<year>]]", f"{IN_MONTH} [<year>]",
              f"{OF_MONTH} [<year>]"), ()),
}
DATES["any"] = tuple(tuple(dict.fromkeys(past + future)) for past, future in zip(DATES["past"], DATES["future"]))


def date(when: str) -> Quantity:
    """A day; `when` it may be: "future", "past" (then a year may be said), or "any"."""
    def make(found: dict) -> Day | None:
        offset = found["some"] * found["unit"] if "some" in found else found.get("offset")
        day, month = found.get("day", 0), found.get("month", 0)
        if day > 28 and month and not exists(2000, month, day):
            return None
        weekday = None if day else found.get("weekday")
        year = found.get("year", 0)
        if year and not exists(year, month, day):
            return None
        return Day(offset, weekday, found.get("weeks", 0), day, month, year, when)
    return Quantity("date", make, *(tuple(pattern(text, LEAVES) for text in texts) for texts in DATES[when]))


# -- times and amounts -------------------------------------------------------------------------------------------------

CLOCK = {
    "hour": Count("hour", 0, 24),
    "minute": Table("minute", {**{cardinal(minute): minute for minute in range(10, 60)},
                               **{f"{zero} {cardinal(minute)}": minute for zero in ("oh", "zero")
                                  for minute in range(1, 10)}, "zero zero": 0, "hundred": 0}),
    "minutes": Count("minutes", 1, 29),
    "quarter": Table("minutes", {"quarter": 15}),
    "half": Table("minutes", {"half": 30}),
    "past": Table("sign", {"past": 1, "after": 1}),
    "to": Table("sign", {"to": -1, "before": -1}),
    "sharp": Table("sharp", {"o'clock": 0}, quiet=True),
    "part": Table("part", {"a m": "am", "p m": "pm", "in the morning": "am", "in the afternoon": "pm",
                           "in the evening": "pm", "at night": "pm"}),
    "noon": Table("at", {"noon": 12 * 60, "midnight": 0}),
}
TIMES = ("[at] <noon>", "[at] <hour> [<minute>] [<sharp>] [<part>]", "[at] <half> <past> <hour> [<part>]",
         "[at] (<quarter> | <minutes>) [minutes] (<past> | <to>) <hour> [<part>]")


def time(low: str = "07:00", high: str = "23:59") -> Quantity:
    """A time of the day between two; an hour that may be in the morning or after noon is the first one that fits."""
    first, last = (int(text[:2]) * 60 + int(text[3:]) for text in (low, high))

    def make(found: dict) -> str | None:
        if "at" in found:
            choices = [found["at"]]
        else:
            minute = found.get("minute", 0) + found.get("minutes", 0) * found.get("sign", 1)
            hours = hours_of(found["hour"], found.get("part"))
            choices = [(hour * 60 + minute) % 1440 for hour in hours]
        fits = [minute for minute in choices if first <= minute <= last]
        return "{:02}:{:02}".format(*divmod(fits[0], 60)) if fits else None
    return Quantity("time", make, tuple(pattern(text, CLOCK) for text in TIMES))


def hours_of(hour: int, part: str | None) -> list[int]:
    """The hours of the day that an hour as said can be, earliest first."""
    if hour > 12 or hour == 0:
        return [hour % 24] if part is None else []
    morning = hour % 12
    return {"am": [morning], "pm": [morning + 12]}.get(part, [morning, morning + 12])


def amount(code: str, low: int = 0, high: int = 100_000) -> Quantity:
    """An amount of money, from `low` to `high` whole units; the currency may be left out."""
    units, parts = CURRENCIES[code]
    leaves = {
        "whole": Count("whole", 0, high), "unit": Table("unit", dict.fromkeys(units)),
        "cents": Table("cents", {**{cardinal(n): n for n in range(1, 100)}, "zero zero": 0,
                                 **{f"{zero} {cardinal(n)}": n for zero in ("oh", "zero") for n in range(1, 10)}}),
        "part": Table("part", dict.fromkeys(parts), quiet=True), "parts": Table("part", dict.fromkeys(parts)),
    }

    def make(found: dict) -> str | None:
        whole, cents = found.get("whole", 0), found.get("cents", 0)
        return f"{whole}.{cents:02} {code}" if low <= whole <= high else None
    texts = ("<whole> [<unit>]", "<whole> <unit> [and] <cents> [<part>]", "<whole> [point] <cents> [<unit>]",
             "<cents> <parts>")
    return Quantity("amount", make, tuple(pattern(text, leaves) for text in texts))
