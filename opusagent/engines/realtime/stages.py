"""The engine `realtime`: speech to speech, over somebody else's OpenAI Realtime endpoint.

    stt     the caller's audio goes to the call's session; what it writes down is what the flow decides by
    llm     the session answers what it has heard, and its audio is played: the answer's pieces are Spoken
    tts     a session reads out what the flow says, in the same voice

Each can be used with others' stages: a model that did not hear the caller is told the words, one whose answer nobody
can play answers in text.  What a call's session does is conversation.py's.  The rule: turns, transitions and facts
are the flow's; the endpoint hears, answers and speaks.
"""
import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import aclosing

import numpy as np

from ... import EngineError
from ...config import Config
from ...flow import FunctionCall
from ...flow.manner import manner_of
from ..level import levelled
from ..openai.tts import TRIES
from ..segments import Voice, side_by_side
from ..spoken import Spoken
from .conversation import Conversation, parts, update
from .reserve import Reserve

READ = ("You are a voice that reads out. Read the user's message aloud, word for word, in a friendly tone. Say nothing "
        "else, and never answer it.")
ALIKE = 0.9                     # of the words that were to be read


class Calls:
    """The conversations of a worker's calls, by slot."""

    def __init__(self, config: Config):
        self.settings = config.openai
        self.reserve = Reserve(config, update(parts(config.openai, 8000, 8000)))
        self.known: dict[int, Conversation] = {}

    def of(self, slot) -> Conversation:
        conversation = self.known.get(slot.index)
        if conversation is None:
            conversation = self.known[slot.index] = Conversation(self.reserve, self.settings,
                                                                 (slot.rate_in, slot.rate_out))
        return conversation

    def end(self, slot) -> None:
        if (conversation := self.known.pop(slot.index, None)) is not None:
            conversation.close()

    async def close(self) -> None:
        for conversation in list(self.known.values()):
            conversation.close()
        await self.reserve.close()


class Stt:
    """The caller's audio over the session of the call."""

    def __init__(self, config: Config):
        self.calls = Calls(config)

    async def open(self, arena, searches) -> None:
        await self.calls.reserve.open()

    async def close(self) -> None:
        await self.calls.close()

    def listen(self, call, position: int) -> None:
        self.calls.of(call.slot).listen(call, position)

    def audio(self, call) -> None:
        if (utterance := self._heard(call)) is not None:
            utterance.send()

    def ask(self, call) -> None:
        if (utterance := self._heard(call)) is not None:
            utterance.commit()

    def finish(self, call, position: int) -> None:
        if (utterance := self._heard(call)) is not None:
            utterance.finish(position)

    def cancel(self, call) -> None:
        if (utterance := self._heard(call)) is not None:
            utterance.drop()

    def forget(self, call) -> None:
        self.calls.end(call.slot)

    def measure(self, metrics) -> None:
        self.calls.reserve.measure(metrics)
        metrics.gauge("utterances_in_recognition", sum(self._hears(each) for each in self.calls.known.values()))

    @staticmethod
    def _hears(conversation: Conversation) -> bool:
        return conversation.utterance is not None and not conversation.utterance.over

    def _heard(self, call):
        """What the caller is saying; None if that is known already, or nobody wants to know it."""
        conversation = self.calls.known.get(call.slot.index)
        return conversation.utterance if conversation is not None and self._hears(conversation) else None


class Llm:
    """Answers of the session."""

    counts = True                               # it tells usage.current what was asked for

    def __init__(self, config: Config):
        self.calls = Calls(config)
        self.own = True                         # they are nobody else's

    def join(self, stt) -> None:
        """The model answers over the sessions that hear the callers, if there are such."""
        if isinstance(stt, Stt):
            self.calls, self.own = stt.calls, False

    async def open(self) -> None:
        if self.own:
            await self.calls.reserve.open()

    async def close(self) -> None:
        if self.own:
            await self.calls.close()

    def of(self, call) -> "Model":
        """The model as one call has it; `call.speaks` is the voice of the reply that is being made."""
        return Model(self.calls, call)

    async def reply(self, messages, tools=(), choice="auto") -> AsyncIterator[str | FunctionCall]:
        """For who cannot play what it says: in text, over a session of its own."""
        conversation = Conversation(self.calls.reserve, self.calls.settings)
        try:
            async with aclosing(conversation.reply(messages, tools, "", False, choice)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            conversation.close()

    def measure(self, metrics) -> None:
        if self.own:
            self.calls.reserve.measure(metrics)


class Model:
    """One call's."""

    counts = True

    def __init__(self, calls: Calls, call):
        self.calls = calls
        self.call = call

    async def reply(self, messages, tools=(), choice="auto") -> AsyncIterator[str | FunctionCall | Spoken]:
        conversation = self.calls.of(self.call.slot)
        async with aclosing(conversation.reply(messages, tools, self.call.speaks, True, choice)) as pieces:
            async for piece in pieces:
                yield piece

    def forget(self) -> None:
        """The call is over."""
        self.calls.end(self.call.slot)


class Tts(Voice):
    """Texts that a session reads out."""

    def __init__(self, config: Config):
        super().__init__()
        self.settings = config.openai
        self.reserve = Reserve(config, update(parts(config.openai, 8000, 8000)), "voice")
        self.own = True
        self.readers: dict[tuple[str, int], list[Conversation]] = {}    # idle ones, by voice and rate

    def identity(self, voice: str) -> str:
        best = self.reserve.endpoints.best.target
        return f"realtime {best.base_url} {best.model} {self.settings.voice}"

    def join(self, stt) -> None:
        """It reads over sessions as those that hear the callers."""
        if isinstance(stt, Stt):
            self.reserve, self.own = stt.calls.reserve, False

    async def open(self, arena) -> None:
        if self.own:
            await self.reserve.open()

    async def close(self) -> None:
        self.be_silent()
        for readers in self.readers.values():
            for reader in readers:
                reader.close()
        if self.own:
            await self.reserve.close()

    async def render(self, texts, voice: str, rate: int) -> AsyncIterator[tuple[str, np.ndarray]]:
        """Each text as int16 at `rate`, in the order in which they get ready.  Raises EngineError."""
        async for text, pcm in side_by_side(texts, lambda text: self._whole(text, voice, rate)):
            yield text, pcm

    def measure(self, metrics) -> None:
        if self.own:
            self.reserve.measure(metrics)
        metrics.gauge("segments_in_synthesis", len(self.speaking))

    async def _whole(self, text: str, voice: str, rate: int) -> np.ndarray:
        """What is kept has to say what was written: a model may say something else."""
        for tries_left in reversed(range(TRIES)):
            said: list[str] = []
            try:
                pcm = np.concatenate([pcm async for pcm in self._pcm(text, voice, rate, said)])
            except EngineError:
                if not tries_left:
                    raise
            else:
                if same_words("".join(said), text):
                    return levelled(pcm, rate)
        raise EngineError(f"The voice reads something else than what is written: {text[:60]!r}.")

    async def _pcm(self, text: str, voice: str, rate: int, said: list[str] | None = None) -> AsyncIterator[np.ndarray]:
        """The text as int16 at `rate`, while it comes; what it says, as text, goes to `said`.  Raises EngineError."""
        name = manner_of(voice).voice or self.settings.voice
        idle = self.readers.setdefault((name, rate), [])
        reader = idle.pop() if idle else Conversation(self.reserve, self.settings, (8000, rate), counts=False)
        messages = {"role": "system", "content": READ}, {"role": "user", "content": text}
        try:
            async with aclosing(reader.reply(messages, (), voice, True)) as pieces:
                speech = await self._begun(pieces)
                reading = asyncio.ensure_future(self._listen(pieces, said))
                try:
                    async with aclosing(speech.pcm(rate)) as pcm:
                        async for piece in pcm:
                            yield piece
                    await reading
                finally:
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)
        finally:
            idle.append(reader)

    @staticmethod
    async def _begun(pieces):
        async for piece in pieces:
            if isinstance(piece, Spoken):
                return piece
        raise EngineError("The voice said nothing.")

    @staticmethod
    async def _listen(pieces, said: list[str] | None) -> None:
        async for piece in pieces:
            if said is not None and isinstance(piece, str):
                said.append(piece)


def same_words(said: str, text: str) -> bool:
    """Whether nearly all words of a text were said; how they are written does not matter."""
    theirs, ours = (re.findall(r"[^\W_]+", each.casefold()) for each in (said, text))
    return not theirs or not ours or (len(set(ours) & set(theirs)) >= ALIKE * len(set(ours))
                                      and len(theirs) <= 2 * len(ours) + 2)
