"""What the calls of a worker share: the flows, the engines, the arena, the ear, and every prompt already spoken.

It is opened before the worker listens and closed after its last call.  The rule: what could make a call wait (a
model, a process, a file, an import) is done in open().
"""
import asyncio
import logging
import time
from dataclasses import replace
from importlib import resources

import numpy as np

from . import ConfigError, EngineError, engines
from ._fastpath import Arena, Resampler
from .audio import VadBatch, first_voiced
from .config import Config
from .flow import Flow, Waits

log = logging.getLogger("opusagent")

RATES = (8000, 16000, 24000, 48000)     # Hz, of the dialects
HEARD_RATE = 16000              # Hz, what callers with more than 8 kHz are heard at
SPOKEN_RATE = 16000             # Hz, what prompts are rendered at; the other rates are made from that
RENDER_SECONDS = 60.0           # for all prompts together, before the worker gives up


class Prompt:
    """A text as speech, ready to play at one rate."""

    __slots__ = ("pcm", "lead")

    def __init__(self, pcm: np.ndarray, rate: int):
        self.pcm = pcm
        self.lead = first_voiced(pcm, rate) or 0        # samples before its first voiced window


class Studio:
    """`flows` is by agent name; "" is the one the server was started with."""

    def __init__(self, config: Config, flow: Flow):
        self.config = config
        demo = demo_flow(waits(config))
        self.flows = {"": flow, "demo": flow if flow.file == demo.file else demo}
        self.arena = Arena(config.max_calls + 1)                # the last slot is the voice's, to render prompts in
        self.free = list(range(config.max_calls - 1, -1, -1))   # slots, the next one last
        self.hearing = VadBatch()
        self.prompts: dict[tuple[str, str, int], Prompt] = {}   # by voice, text and rate
        self.stt = engines.make("stt", config)
        self.llm = engines.make("llm", config)
        self.tts = engines.make("tts", config)

    async def open(self, metrics) -> None:
        """Start the engines and render the prompts.  EngineError or ConfigError when calls could not be served."""
        searches, self.search_base = [], {}
        for flow in self._distinct():
            self.search_base[id(flow)] = len(searches)
            searches += [replace(search, id=len(searches) + search.id) for search in flow.searches]
        await asyncio.gather(self.stt.open(self.arena, searches), self.tts.open(self.arena), self.llm.open())
        for flow in self._distinct():
            await self._render(flow)
        for rate in RATES:
            Resampler(rate, HEARD_RATE)             # a filter is designed once; no call waits for that

    def _distinct(self) -> list[Flow]:
        return list({id(flow): flow for flow in self.flows.values()}.values())

    async def _render(self, flow: Flow) -> None:
        """Every text of the flow that is known ahead, at every rate that a dialect may ask for."""
        began = time.monotonic()
        texts = [text for text in flow.prompts() if (flow.voice, text, RATES[0]) not in self.prompts]
        try:
            async with asyncio.timeout(RENDER_SECONDS):
                async for text, pcm in self.tts.render(texts, flow.voice, SPOKEN_RATE):
                    for rate in RATES:
                        self.prompts[flow.voice, text, rate] = Prompt(resampled(pcm, SPOKEN_RATE, rate), rate)
        except TimeoutError:
            raise EngineError(f"The voice did not speak {len(texts)} prompts within {RENDER_SECONDS:.0f} s.") from None
        log.info("%d prompts of %s rendered in %.2f s", len(texts), flow.name or flow.file, time.monotonic() - began)

    async def close(self) -> None:
        for engine in (self.stt, self.tts, self.llm):
            await engine.close()

    def prompt(self, voice: str, text: str, rate: int) -> Prompt | None:
        """A text that was rendered ahead; None if it was not."""
        return self.prompts.get((voice, text, rate))

    def search(self, flow: Flow, number: int) -> int:
        """The recogniser's number of a search of `flow`."""
        return self.search_base[id(flow)] + number

    def measure(self, metrics) -> None:
        """What the engines have to say in /metrics."""
        for engine in (self.stt, self.tts, self.llm):
            engine.measure(metrics)


def resampled(pcm: np.ndarray, rate_in: int, rate_out: int) -> np.ndarray:
    """All of `pcm` at another rate, the filter's delay taken off."""
    if rate_in == rate_out:
        return pcm
    resampler = Resampler(rate_in, rate_out)
    return np.concatenate((resampler.push(pcm), resampler.flush()))[resampler.delay:]


def waits(config: Config) -> Waits:
    """The waits of a flow that sets none."""
    turns = config.turns
    return Waits(turns.complete_ms, turns.silence_ms, turns.incomplete_ms, turns.no_input_ms)


def demo_flow(default_waits: Waits) -> Flow:
    """The demo's conversation, which is part of the package.  ConfigError if the installation lacks it."""
    path = resources.files("opusagent") / "demo.toml"
    if not path.is_file():
        raise ConfigError("The demo flow is missing from this installation: reinstall opusagent.")
    return Flow.load(path, default_waits)
