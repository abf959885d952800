"""The finite-state agent: what may be said in each state of a conversation, and what is answered.

Pure: no clock, no network, no randomness; the only files it reads are the flow's own, in Flow.load().  Read it in this
order: phrasing (texts and segments) and manner (how they are spoken), signals (recordings and keys beside them),
phrases, quantities, numerals (patterns of words), sounds (words that sound alike), expect (what a state listens for),
states (a flow; rows and reader read it, tomlfile gives the lines, check the verdict; authoring writes one in Python),
tools (what it may do), dialogue (one call's way through it), drawing (the flow as a picture).
"""

from .dialogue import FAILURE, Dialogue, Exchange, Reply
from .expect import COMPLETE, FREE, INCOMPLETE, NO_MATCH, Expect, Search, Waits
from .phrasing import Cutter, cut
from .states import ANSWERS, Flow, Ladder, State, Transition
from .tools import COMMIT, PURE, FunctionCall, Outcome, Tool, ToolCall

__all__ = [
    "ANSWERS", "COMMIT", "COMPLETE", "FAILURE", "FREE", "INCOMPLETE", "NO_MATCH", "PURE", "Cutter", "Dialogue",
    "Exchange", "Expect", "Flow", "FunctionCall", "Ladder", "Outcome", "Reply", "Search", "State", "Tool", "ToolCall",
    "Transition", "Waits", "cut",
]
