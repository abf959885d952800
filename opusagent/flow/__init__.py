"""The finite-state agent: what may be said in each state of a conversation, and what is answered.

Pure: no clock, no network, no randomness; the only file it reads is the flow's own, in Flow.load().  Read it in this
order: phrasing (texts and segments), phrases (patterns of words), expect (what a state listens for), states (a flow
and its file; tomlfile gives the lines, check the verdict), dialogue (one call's way through it).
"""

from .dialogue import Dialogue, Exchange, Reply
from .expect import COMPLETE, FREE, INCOMPLETE, NO_MATCH, Expect, Search, Waits
from .phrasing import Cutter, cut
from .states import Flow, Ladder, State, Transition

__all__ = [
    "COMPLETE", "FREE", "INCOMPLETE", "NO_MATCH", "Cutter", "Dialogue", "Exchange", "Expect", "Flow", "Ladder", "Reply",
    "Search", "State", "Transition", "Waits", "cut",
]
