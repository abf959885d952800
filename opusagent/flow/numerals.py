"""Numbers, dates, times and amounts: as words, as they are kept in a fact, and as they are said back.

Values are text: a date is 2026-03-03, a time 15:30, an amount "23.50 EUR", a number 12.  The rule: what a caller
says is kept in one form, whatever way it was said, and said back from that form alone; no clock is read, so a day
such as "tomorrow" becomes a date only with the date of the call (Day.on).
"""

import re
from dataclasses import dataclass

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEENS = ("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen").split()
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
MONTHS = ("january february march april may june july august september october november december").split()
WEEKDAYS = ("monday tuesday wednesday thursday friday saturday sunday").split()
FIRST = ("", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
         "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth", "nineteenth")
# code -> its units, its hundredths, as they are said
CURRENCIES = {"EUR": (("euro", "euros"), ("cent", "cents")), "USD": (("dollar", "dollars"), ("cent", "cents")),
              "GBP": (("pound", "pounds"), ("penny", "pence"))}

DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)\Z")
TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)\Z")
AMOUNT = re.compile(r"(\d{1,9})\.(\d\d) ([A-Z]{3})\Z")
LATER = 40                  # years that are looked at for a date that not every year has


def cardinal(number: int) -> str:
    """In words, from 0 to 999,999,999."""
    if number < 10:
        return DIGITS[number]
    if number < 20:
        return TEENS[number - 10]
    if number < 100:
        ten, unit = divmod(number, 10)
        return TENS[ten] + (f" {DIGITS[unit]}" if unit else "")
    size, name = next(pair for pair in ((1_000_000, "million"), (1_000, "thousand"), (100, "hundred"))
                      if number >= pair[0])
    head, rest = divmod(number, size)
    return f"{cardinal(head)} {name}" + (f" {cardinal(rest)}" if rest else "")


def ordinal(number: int) -> str:
    """In words, from 1 to 31."""
    if number < 20:
        return FIRST[number]
    ten, unit = divmod(number, 10)
    return f"{TENS[ten]} {FIRST[unit]}" if unit else f"{TENS[ten][:-1]}ieth"


def number_of(words: tuple[str, ...]) -> int | None:
    """The number that these words are, as said ("fifteen hundred and six") or digit by digit ("one five zero")."""
    if len(words) > 1 and all(word in DIGITS for word in words):
        return int("".join(str(DIGITS.index(word)) for word in words)) if words[0] != "zero" else None
    if "thousand" not in words:
        return below_thousand(words, 100)
    place = words.index("thousand")
    head = below_thousand(words[:place]) if place else 1
    rest = below_thousand(after_and(words[place + 1:])) if words[place + 1:] else 0
    return head * 1000 + rest if head and rest is not None else None


def below_thousand(words: tuple[str, ...], hundreds: int = 10) -> int | None:
    """... [hundred [and] ...]; `hundreds`: below how many of them ("fifteen hundred")."""
    if "hundred" not in words:
        return below_hundred(words)
    place = words.index("hundred")
    head = below_hundred(words[:place]) if place else 1
    rest = below_hundred(after_and(words[place + 1:])) if words[place + 1:] else 0
    return head * 100 + rest if head and head < hundreds and rest is not None else None


def after_and(words: tuple[str, ...]) -> tuple[str, ...]:
    return words[1:] if words[:1] == ("and",) else words


def below_hundred(words: tuple[str, ...]) -> int | None:
    match words:
        case (word,) if word in DIGITS:
            return DIGITS.index(word)
        case (word,) if word in TEENS:
            return 10 + TEENS.index(word)
        case (word,) if word and word in TENS:
            return 10 * TENS.index(word)
        case (ten, unit) if ten and ten in TENS and unit in DIGITS[1:]:
            return 10 * TENS.index(ten) + DIGITS.index(unit)
    return None


# -- days --------------------------------------------------------------------------------------------------------------

def day_number(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01, Gregorian (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms")."""
    year -= month <= 2
    era, of_era = divmod(year, 400)
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


def civil(number: int) -> tuple[int, int, int]:
    """Year, month and day of a day's number; the same source."""
    era, of_era = divmod(number + 719_468, 146_097)
    year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153
    day = of_year - (153 * month + 2) // 5 + 1
    month += 3 if month < 10 else -9
    return year + era * 400 + (month <= 2), month, day


def exists(year: int, month: int, day: int) -> bool:
    return 1 <= month <= 12 and 1 <= day <= 31 and civil(day_number(year, month, day)) == (year, month, day)


def iso(number: int) -> str:
    return "{:04}-{:02}-{:02}".format(*civil(number))


def number_of_day(date: str) -> int | None:
    """The day's number of a date such as 2026-03-03; None if there is no such day."""
    found = DATE.match(date)
    return day_number(*map(int, found.groups())) if found and exists(*map(int, found.groups())) else None


def with_weekday(value: str) -> str:
    """A date as in 2026-03-03 (Tuesday), which models do not work out reliably; anything else as it is."""
    number = number_of_day(value)
    return value if number is None else f"{value} ({WEEKDAYS[(number + 3) % 7].title()})"


@dataclass(frozen=True, slots=True)
class Day:
    """A day as it was said: what is missing in it, the date of the call tells."""

    offset: int | None = None       # days from that of the call
    weekday: int | None = None      # 0 is Monday
    weeks: int = 0                  # 1: of the week after that of the call
    day: int = 0
    month: int = 0                  # 0: the month was not said
    year: int = 0                   # 0: nor the year
    when: str = "future"            # "future", "past" or "any": where the day may be; an incomplete one is the nearest

    def on(self, today: str) -> str | None:
        """The date, if the call is on `today` (2026-03-03); None: there is no such day, or not where it may be."""
        now = number_of_day(today)
        if self.year and self.day:
            number = day_number(self.year, self.month, self.day)
        elif now is None:
            return None
        else:
            number = self._near(now)
        if number is None or now is not None and (self.when == "future" and number < now
                                                  or self.when == "past" and number > now):
            return None
        return iso(number)

    def _near(self, now: int) -> int | None:
        if self.offset is not None:
            return now + self.offset
        if self.weekday is not None:
            today = (now + 3) % 7                   # 1970-01-01 was a Thursday
            if self.weeks:
                return now - today + 7 * self.weeks + self.weekday
            return now + ((self.weekday - today - 1) % 7 + 1) if self.when != "past" else (
                now - ((today - self.weekday - 1) % 7 + 1))
        return self._next(now)

    def _next(self, now: int) -> int | None:
        """The nearest day with this day and month; today counts."""
        step = -1 if self.when == "past" else 1
        year, month, _ = civil(now)
        for _ in range(LATER * 12):
            if self.month in (0, month) and exists(year, month, self.day):
                number = day_number(year, month, self.day)
                if (number - now) * step >= 0:
                    return number
            month += step
            if not 1 <= month <= 12:
                year, month = year + step, 1 if step > 0 else 12
        return None


# -- said back ---------------------------------------------------------------------------------------------------------

def readable(value: str, kind: str = "", today: str = "") -> str | None:
    """A value in words: "Tuesday the third of March", "three thirty in the afternoon"; None if it is nothing of that.

    A date within half a year of `today` is said with its weekday, any other with its year.
    """
    if kind == "number":
        return cardinal(int(value)) if value.isdecimal() and len(value) < 10 else None
    if (number := number_of_day(value)) is not None:
        year, month, day = civil(number)
        said = f"the {ordinal(day)} of {MONTHS[month - 1].title()}"
        now = number_of_day(today)
        near = now is not None and abs(number - now) < 183
        return f"{WEEKDAYS[(number + 3) % 7].title()} {said}" if near else f"{said} {said_year(year)}"
    if found := TIME.match(value):
        return said_time(int(found[1]), int(found[2]))
    if found := AMOUNT.match(value):
        return said_amount(int(found[1]), int(found[2]), found[3])
    return None


def said_year(year: int) -> str:
    century, rest = divmod(year, 100)
    if 2000 <= year < 2010 or not 1000 <= year < 10_000:
        return cardinal(year)
    return f"{cardinal(century)} {cardinal(rest) if rest > 9 else f'oh {DIGITS[rest]}' if rest else 'hundred'}"


def said_time(hour: int, minute: int) -> str:
    if minute == 0 and hour in (0, 12):
        return "noon" if hour else "midnight"
    said = cardinal(hour % 12 or 12)
    if minute:
        said += f" {cardinal(minute)}" if minute > 9 else f" oh {DIGITS[minute]}"
    return f"{said} in the {'morning' if hour < 12 else 'afternoon' if hour < 18 else 'evening'}"


def said_amount(whole: int, cents: int, code: str) -> str:
    units, parts = CURRENCIES.get(code, ((code, code), ("", "")))
    said = []
    if whole or not cents:
        said.append(f"{cardinal(whole)} {units[whole != 1]}")
    if cents:
        said.append(f"{cardinal(cents)} {parts[cents != 1]}".rstrip())
    return " and ".join(said)
