"""Signals: what a reply has besides words: a recording that is played, and keys that are pressed towards the platform.

Among the segments of a reply they are texts that begin with PLAY or KEYS.  The rule: no script, no fact and no model
can say such a text (phrasing.py leaves these marks out), so whatever begins with one is the flow's author's.
"""
import re
from dataclasses import dataclass

from .phrasing import KEYS, PLAY, SLOT

PRESSED = "0123456789*#"
PAUSE = "w"                     # half a second
MOST = 64                       # of them at once


@dataclass(frozen=True, slots=True)
class Recording:
    """What `play` names."""

    name: str
    line: int
    file: str = ""              # where its WAV file lies; "" if there is none
    url: str = ""               # where platforms find it that play it themselves; "" if nowhere

    @property
    def text(self) -> str:
        """As a segment, and as it is told of in transcripts."""
        return PLAY + self.name


class Keys:
    """What `send_digits` says: keys, pauses, and slots whose values are keys; in its use, a Text without words."""

    __slots__ = ("source", "line", "slots")

    def __init__(self, source: str, line: int):
        self.source = source
        self.line = line
        self.slots = tuple(dict.fromkeys(SLOT.findall(source)))

    def fill(self, facts: dict[str, str]) -> tuple[str, ...]:
        """The segment; none where no key is left.  Of a fact only what can be pressed counts."""
        source = SLOT.sub(lambda slot: "".join(c for c in facts.get(slot[1], "") if c in PRESSED), self.source)[:MOST]
        return (KEYS + " ".join(source),) if source.strip(PAUSE) else ()

    def ahead(self, values) -> list[str]:
        """There is nothing to render."""
        return []


def fault_of(source: str) -> str:
    """What is wrong with the value of `send_digits`, "" for nothing."""
    rest = SLOT.sub("", source)
    wrong = re.sub(f"[{re.escape(PRESSED)}{PAUSE}]", "", rest)
    if wrong:
        return f"has \"{wrong[0]}\", which is no key: 0 to 9, * and # are, w is half a second, and {{fact}} its digits."
    if len(rest) > MOST:
        return f"has {len(rest)} keys; {MOST} are the most."
    return "" if rest.strip(PAUSE) or SLOT.search(source) else "has no key in it."


def is_recording(text: str) -> bool:
    return text.startswith(PLAY)


def groups(text: str) -> list[tuple[str, int]]:
    """The keys of a segment, (keys, half seconds to wait then); the first may have none.  [] for what are no keys."""
    if not text.startswith(KEYS):
        return []
    found = re.findall(rf"([^{PAUSE}]*)({PAUSE}*)", text.removeprefix(KEYS).replace(" ", ""))
    return [(keys, len(waits)) for keys, waits in found if keys or waits]
