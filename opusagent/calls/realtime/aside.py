"""Aside: a response beside the conversation, in writing.  It needs neither the mouth nor its turn.

The model is asked as for any response, and what it answers goes to the client piece by piece; nobody hears it, no item
of it is the conversation's.  The rule: however it goes, its response ends.
"""
import asyncio
import logging
from contextlib import aclosing

from ... import EngineError
from ...dialects.realtime.chat import pictured
from ...dialects.realtime.response import Response
from ...engines.remote.continuing import GoingOn
from ..pipeline import overdue
from .assistant import asks_for, call_for

log = logging.getLogger("opusagent")

MOST = 4                        # of a call at once


def failed(sentence: str) -> tuple[str, dict]:
    """How a response ends of which the model did not say all."""
    return "failed", {"error": {"type": "server_error", "code": None, "message": sentence}}


class Aside:
    """`begin` asks the model, `tick` keeps its deadlines, `finish` ends it; `response` says how far it is."""

    __slots__ = ("call", "response", "began", "last_piece", "_task")

    def __init__(self, call, response: Response):
        self.call = call
        self.response = response                # it has begun
        self.began = self.last_piece = 0        # ns: when the model was asked, and last sent something
        self._task: asyncio.Task | None = None

    def begin(self, now: int, said: str = "", all_of_it: bool = False) -> None:
        """`said`: what the client has of it already, where another worker had begun it, maybe `all_of_it`."""
        self.began = now
        messages = pictured(self.call.dialogue.respond(self.response.request).messages, self.call.dialect.items)
        self._task = asyncio.ensure_future(self._write(messages, said, all_of_it))

    def tick(self, now: int) -> None:
        if sentence := overdue(self.call.mouth.stage.deadlines, self.began, self.last_piece, now):
            self.finish(*failed(sentence))

    def finish(self, status: str = "completed", details: dict | None = None) -> None:
        self.cancel()
        self.call.writing.remove(self)
        self.call.finish(status, details, self.response)

    def cancel(self) -> None:
        """The model is not listened to any more."""
        self._task.cancel()

    async def _write(self, messages: tuple[dict, ...], said: str, all_of_it: bool) -> None:
        try:
            ending = ("completed",) if all_of_it else await self._answer(messages, said)
        except EngineError as error:
            ending = failed(str(error))
        except Exception:
            log.exception("the model's engine broke")
            ending = failed("The model's engine broke.")
        self.finish(*ending)

    async def _answer(self, messages: tuple[dict, ...], said: str) -> tuple:
        """Tells the client what comes; how it ended."""
        call, response = self.call, self.response
        settings, pieces, llm = response.settings, 0, call.mouth.stage.llm.llm
        if said:
            llm = GoingOn(llm, said)
        async with aclosing(llm.reply(messages, *asks_for(settings))) as answer:
            async for piece in answer:
                self.last_piece, pieces = call.server.clock(), pieces + 1
                if isinstance(piece, str):
                    response.say(piece)
                else:
                    call_for(response, piece)
                call.mouth.out.answers()
                if settings["max_output_tokens"] != "inf" and pieces >= settings["max_output_tokens"]:
                    return "incomplete", {"reason": "max_output_tokens"}
        return ("completed",)
