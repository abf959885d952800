"""An answer that broke off, taken up by another endpoint, or by another worker: what is asked, and what of the words
that come is new.

Pure.  Models told to go on with the next word mostly do; some begin again, or repeat their last words.  The rule: no
word that was passed on is passed on again; what differs from it is new.
"""
import re
from collections.abc import AsyncIterator
from contextlib import aclosing

GO_ON = "(You were cut off there. Go on with the very next word of that answer, and repeat nothing.)"
LIKELY = 2                      # words in which a new answer agrees with the old one's beginning, to be that again

WORD = re.compile(r"\S+")


def going_on(messages: tuple[dict, ...], said: str) -> tuple[dict, ...]:
    """What another endpoint is asked."""
    return (*messages, {"role": "assistant", "content": said.strip()}, {"role": "user", "content": GO_ON})


def bare(word: str) -> str:
    return re.sub(r"[^\w']", "", word).lower()


class Continuing:
    """Takes what was said already off the beginning of a text that comes in pieces.

    `feed` gives (what is new, self or None): None once the rest is all new.
    """

    __slots__ = ("said", "half", "held")

    def __init__(self, said: str):
        words = said.split()
        self.said = [bare(word) for word in words]
        self.half = "" if said[-1:].isspace() else words[-1]    # the last word, which may have been cut
        self.held = ""                                          # what may still turn out to have been said

    def feed(self, text: str) -> tuple[str, "Continuing | None"]:
        self.held += text
        words = list(WORD.finditer(self.held))
        if words and words[-1].end() == len(self.held):
            words.pop()                                         # it may go on
        new = [bare(word[0]) for word in words]
        if len(new) < len(self.said) and self._is_inside(new):
            return "", self
        rest = self._after(words, self._repeated(new))
        return (rest, None) if rest.strip() else ("", self)

    def finish(self) -> str:
        """The text has ended: what is new of what was held."""
        words = list(WORD.finditer(self.held))
        return self._after(words, self._repeated([bare(word[0]) for word in words])).rstrip()

    def _is_inside(self, new: list[str]) -> bool:
        """They may yet become the beginning or the end of what was said."""
        return any(self.said[i:i + len(new)] == new for i in range(len(self.said) - len(new) + 1))

    def _repeated(self, new: list[str]) -> int:
        """How many of these words were said."""
        count = min(len(new), len(self.said))
        again = next((i for i in range(count) if not self._same(new[i], i)), count)
        tail = next((n for n in range(count, 0, -1)
                     if all(self._same(new[i], len(self.said) - n + i) for i in range(n))), 0)
        return max(again if again >= LIKELY else 0, tail)

    def _same(self, word: str, i: int) -> bool:
        """Whether it is the i-th word that was said, or the whole of it where that was cut."""
        cut = self.half.isalnum() and i == len(self.said) - 1
        return word == self.said[i] or cut and word.startswith(self.said[i])

    def _after(self, words: list[re.Match], repeated: int) -> str:
        """The text after so many words; it follows what was said without a gap or a second one."""
        if not repeated:
            return self.held
        last = words[repeated - 1]
        word = bare(last[0])
        cut = self.half and word != self.said[-1] and self._same(word, len(self.said) - 1)
        text = self.held[last.start() + len(self.half) if cut else last.end():]
        return text if self.half else text.lstrip()


class GoingOn:
    """A model, for an answer of which it has said something already.  While it says that again there come empty pieces:
    it is not late."""

    __slots__ = ("llm", "said")

    def __init__(self, llm, said: str):
        self.llm = llm
        self.said = said

    async def reply(self, messages, *more) -> AsyncIterator:
        new = Continuing(self.said)
        async with aclosing(self.llm.reply(going_on(messages, self.said), *more)) as pieces:
            async for piece in pieces:
                if new is not None and isinstance(piece, str):
                    piece, new = new.feed(piece)
                yield piece
        if new is not None and (rest := new.finish()):
            yield rest
