"""The meter between a call and what costs something: it counts what engines are asked for, and knows when to stop.

It ends no call (limits.py does).  The rule: once a budget of the call is spent no further request is made for it; who
would have made one hears of a failure, as of any other.
"""
import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from .. import EngineError
from ..flow import FunctionCall
from ..usage import CHARACTERS_A_TOKEN, Usage, asked, current

SPENT = "The call has spent its budget: see [limits]."


class MeteredModel:
    """A call's model."""

    __slots__ = ("llm", "usage")

    def __init__(self, llm, usage: Usage):
        self.llm = llm
        self.usage = usage

    async def reply(self, messages, *more) -> AsyncIterator[str | FunctionCall]:
        usage = self.usage
        if usage.spent():
            usage.refuse()
            raise EngineError(SPENT)
        current.set(usage)                      # of the turn's own task, and of those that it starts
        item = None if getattr(self.llm, "counts", False) else usage.item("llm")
        if item is not None:
            item.requests += 1
            item.tokens_in += asked(messages)
        async with aclosing(self.llm.reply(messages, *more)) as pieces:
            async for piece in pieces:
                if item is not None:
                    item.tokens_out += len(piece if isinstance(piece, str) else str(piece)) / CHARACTERS_A_TOKEN
                yield piece


def speak(mouth, usage: Usage, epoch: int, k: int, text: str, voice: str) -> None:
    """Have the voice of a call speak, unless it may not any more."""
    if usage.spent():
        usage.refuse()
        asyncio.get_running_loop().call_soon(mouth.on_speech_failed, epoch, k, SPENT)
        return
    if mouth.metered:
        before = current.set(usage)             # for the task that it starts
        try:
            mouth.voice.speak(mouth, epoch, k, text, voice)
        finally:
            current.reset(before)
        return
    usage.asked_to_speak(len(text))
    mouth.voice.speak(mouth, epoch, k, text, voice)
