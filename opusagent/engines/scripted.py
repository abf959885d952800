"""The engine `scripted`: it hears, answers and speaks what a file says, after set times.

For tests, for benchmarks of everything around the engines, and as the answer where no language model is configured.
The rule: the same script gives the same call.
"""
import asyncio
import math
import re
import tomllib
from collections.abc import AsyncIterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from .. import ConfigError
from .._fastpath import SEGMENT_SAMPLES
from ..config import Config
from ..flow import FunctionCall
from ..usage import words_of

NO_MODEL = "I am sorry, there is no language model behind this line yet."
TONE_HZ = 440
TONE_PEAK = 6000
MS_PER_CHARACTER = 60           # of speech
MS_PER_WORD = 200               # of a fast caller's
PREROLL_MS = 400                # before an utterance that nobody spoke in


def later(ms: float, call, *args) -> None:
    """Call it after `ms`, never before the present callback has returned."""
    loop = asyncio.get_running_loop()
    loop.call_later(ms / 1000, call, *args) if ms else loop.call_soon(call, *args)


class Stt:
    """Every utterance of a call is the next line of the script; after the last, the first again."""

    def __init__(self, config: Config):
        self.settings = config.scripted
        self.lines = read_lines(self.settings.stt) if self.settings.stt else [""]
        self.began: dict[object, int] = {}          # call -> where its utterance begins, in samples

    async def open(self, arena, searches) -> None:
        pass

    async def close(self) -> None:
        pass

    def listen(self, call, position: int) -> None:
        self.began[call] = position

    def audio(self, call) -> None:
        pass

    def ask(self, call) -> None:
        """As many words as fit into what has been said: a caller who hesitates has not finished."""
        spoken_ms = (call.slot.written - self.began.get(call, 0)) * 1000 // call.slot.rate_in - PREROLL_MS
        words = self._line(call).split()[:max(1, spoken_ms // MS_PER_WORD)]
        later(0, call.on_partial, call.utterance, " ".join(words))

    def finish(self, call, position: int) -> None:
        later(self.settings.stt_ms, call.on_final, call.utterance, self._line(call), 1.0)

    def cancel(self, call) -> None:
        pass

    def forget(self, call) -> None:
        self.began.pop(call, None)

    def measure(self, metrics) -> None:
        pass

    def _line(self, call) -> str:
        return self.lines[(call.utterance - 1) % len(self.lines)]


class Llm:
    """Answers with the first rule whose pattern is found in what the caller said."""

    def __init__(self, config: Config):
        self.settings = config.scripted
        self.rules = read_rules(self.settings.llm) if self.settings.llm else [(re.compile(""), NO_MODEL, None)]

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def reply(self, messages: tuple[dict, ...], tools: tuple[dict, ...] = (),
                    choice: str = "auto") -> AsyncIterator[str | FunctionCall]:
        said = words_of(messages[-1])
        text, call = next((answer for pattern, *answer in self.rules if pattern.search(said)), (NO_MODEL, None))
        await asyncio.sleep(self.settings.llm_first_ms / 1000)
        for i, piece in enumerate(re.findall(r"\S+\s*", text)):
            if i:
                await asyncio.sleep(self.settings.llm_piece_ms / 1000)
            yield piece
        if call is not None:
            yield call

    def measure(self, metrics) -> None:
        pass


class Tts:
    """Speaks tones as long as the text would take."""

    def __init__(self, config: Config):
        self.settings = config.scripted

    def identity(self, voice: str) -> str:
        return "scripted"

    async def open(self, arena) -> None:
        pass

    async def close(self) -> None:
        pass

    def speak(self, call, epoch: int, k: int, text: str, voice: str) -> None:
        later(self.settings.tts_ms, self._write, call, epoch, k, text)

    def resume(self, call, epoch: int, k: int, text: str, voice: str, start: int | None) -> None:
        if start is None:
            self.speak(call, epoch, k, text, voice)
        else:                                       # it writes all of a segment at once
            later(0, call.on_speech, epoch, k, start, call.slot.segment_written(k), True)

    def cancel(self, call) -> None:
        pass

    def played(self, call, k: int) -> None:
        pass

    async def render(self, texts, voice: str, rate: int) -> AsyncIterator[tuple[str, np.ndarray]]:
        for text in texts:
            yield text, tone(text, rate)

    def measure(self, metrics) -> None:
        pass

    def _write(self, call, epoch: int, k: int, text: str) -> None:
        slot = call.slot
        if slot is None or epoch != call.epoch:
            return
        pcm = tone(text, slot.rate_out)[:SEGMENT_SAMPLES]
        start = slot.segment_written(k)
        ring, at = np.asarray(slot.segment(k)), start % SEGMENT_SAMPLES
        first = min(len(pcm), SEGMENT_SAMPLES - at)
        ring[at:at + first], ring[:len(pcm) - first] = pcm[:first], pcm[first:]
        slot.set_segment_written(k, start + len(pcm))
        call.on_speech(epoch, k, start, start + len(pcm), True)


def tone(text: str, rate: int) -> np.ndarray:
    """A tone of MS_PER_CHARACTER for each character, faded in and out, as int16 that nobody may change."""
    return sine(max(1, len(text)) * MS_PER_CHARACTER * rate // 1000, rate)


@lru_cache(maxsize=64)
def sine(count: int, rate: int) -> np.ndarray:
    wave = TONE_PEAK * np.sin(np.arange(count) * (2 * math.pi * TONE_HZ / rate))
    fade = rate // 200
    wave[:fade] *= np.linspace(0, 1, fade)
    wave[-fade:] *= np.linspace(1, 0, fade)
    pcm = wave.astype(np.int16)
    pcm.flags.writeable = False
    return pcm


def read_lines(path: str) -> list[str]:
    """A script of a recogniser: a line for each utterance.  ConfigError where it cannot be read or is empty."""
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise ConfigError(f"{path}: there is no line for the recogniser to hear.")
    return lines


def read_rules(path: str) -> list[tuple[re.Pattern, str, FunctionCall | None]]:
    """A script of a model: [[reply]] tables of `when`, a pattern (optional), and `say`, or `call` (a function's name)
    with `arguments`, or both.  ConfigError if it is not that."""
    try:
        rules = tomllib.loads(read_text(path)).get("reply", [])
        return [(re.compile(rule.get("when", ""), re.IGNORECASE), rule["say"] if "call" not in rule else
                 rule.get("say", ""), FunctionCall(rule["call"], rule.get("arguments", {})) if "call" in rule else None)
                for rule in rules]
    except (tomllib.TOMLDecodeError, re.error, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path}: this is not a list of [[reply]] with `when` and `say`: {error}.") from None


def read_text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the script cannot be read: "
                          f"{getattr(error, 'strerror', 'it is not UTF-8')}.") from None
