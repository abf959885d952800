"""Answers that a recogniser cannot tell apart: written otherwise, spoken alike.

What a word sounds like is asked of a recogniser's dictionary where there is one, else of a short list of English
words that sound the same.  The rule: two answers that lead to different things must not sound the same; two that
differ by one sound are worth a remark.
"""

import itertools
from collections.abc import Callable, Iterator

from .phrases import Group, bare

SPELLED = 300               # ways of saying the rows of a state that are compared
WAYS = 8                    # ways to pronounce one of them
CLOSE = 4                   # sounds that two answers need to be worth a remark when they differ by one

ALIKE = """
    one won; two to too; four for fore; eight ate; no know; yes yeas; right write rite; buy by bye; here hear;
    there their; week weak; meet meat; sale sail; male mail; pair pear pare; our hour; son sun; sea see; red
    read; blue blew; new knew; wait weight; wear where ware; whole hole; plane plain; peace piece; flour flower;
    cell sell; cent sent scent; check cheque czech; days daze; dear deer; fair fare; him hymn; knight night;
    lead led; made maid; none nun; pause paws; principal principle; rain reign rein; role roll; root route;
    steal steel; tail tale; threw through; tide tied; vary very; way weigh; which witch; would wood; council
    counsel; complement compliment; stationary stationery; board bored
"""
GROUPS = {word: words.split()[0] for words in ALIKE.split(";") for word in words.split()}

Sounds = tuple[str, ...]
Pronounce = Callable[[str], tuple[Sounds, ...]]


def listed(word: str) -> tuple[Sounds, ...]:
    """What a word sounds like as far as the list knows: like the first of those that sound the same."""
    return ((GROUPS.get(word, word),),)


def alike(states, pronounce: Pronounce = listed) -> Iterator[tuple[int, str]]:
    """(line, sentence) of every two answers of a state that sound the same and mean different things."""
    for state in states:
        seen: dict[Sounds, tuple] = {}
        for line, meaning, said in answers(state):
            for sounds in ways(said, pronounce):
                other = seen.setdefault(sounds, (meaning, said))
                if other[0] != meaning and bare(other[1]) != bare(said):
                    yield line, (f"\"{' '.join(other[1])}\" and \"{' '.join(said)}\" sound the same, and mean "
                                 f"different things in state \"{state.name}\".")


def close(flow, pronounce: Pronounce) -> Iterator[tuple[int, str]]:
    """The same of answers that differ by one sound; each two words once."""
    told = set()
    for state in flow.states.values():
        known = [(line, meaning, said, next(ways(said, pronounce), ())) for line, meaning, said in answers(state)]
        for (_, one, first, low), (line, other, second, high) in itertools.combinations(known[:SPELLED], 2):
            if one != other and min(len(low), len(high)) >= CLOSE and one_apart(low, high):
                differ = frozenset(pair for pair in zip(first, second) if pair[0] != pair[1])
                if differ not in told:
                    told.add(differ)
                    yield line, (f"\"{' '.join(first)}\" and \"{' '.join(second)}\" differ by one sound, and mean "
                                 f"different things in state \"{state.name}\".")


def answers(state) -> Iterator[tuple[int, tuple, tuple[str, ...]]]:
    """(line, what it means, words) of what can be said in a state; not of digits and other quantities."""
    for place, row in enumerate(state.on):
        for option in row.answer.spoken:
            if isinstance(option, Group):
                for said in itertools.islice(option.spell(), SPELLED):
                    value = option.value or next((value for end, value in option.walk(bare(said), 0)), None)
                    yield row.line, (place, value if row.fact else None), said


def ways(said: tuple[str, ...], pronounce: Pronounce) -> Iterator[Sounds]:
    """How these words can sound; nothing where one is unknown."""
    for way in itertools.islice(itertools.product(*map(pronounce, said)), WAYS):
        yield sum(way, ())


def one_apart(one: Sounds, other: Sounds) -> bool:
    """Whether one sound more, less or other makes one of the other."""
    if abs(len(one) - len(other)) > 1 or one == other:
        return False
    place = next((place for place, pair in enumerate(zip(one, other)) if pair[0] != pair[1]), min(len(one), len(other)))
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    rest = shorter[place + (len(one) == len(other)):]
    return longer[place + 1:] == rest
