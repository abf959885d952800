"""What the calls of a worker share: the flows, the engines, the arena, the ear, and every prompt already spoken.

It is opened before the worker listens and closed after its last call.  The rule: what could make a call wait (a
model, a process, a file, an import) is done in open().
"""
import asyncio
import logging
import os
import time
from dataclasses import replace
from importlib import resources

from .. import ConfigError, engines
from .._fastpath import RATES, Arena, Resampler
from ..board import slots
from ..config import Config
from ..engines import turn
from ..flow import Flow, Waits
from ..speech.audio import VadBatch
from . import tools
from .prompts import SPOKEN_RATE, Prompts, open_store

log = logging.getLogger("opusagent")

HEARD_RATE = 16000              # Hz, what callers with more than 8 kHz are heard at


class Studio:
    """`flows` is by agent name; "" is the one the server was started with."""

    def __init__(self, config: Config, flow: Flow, arena: Arena | None = None):
        self.config = config
        demo = demo_flow(waits(config))
        self.flows = {"": flow, "demo": flow if flow.file == demo.file else demo}
        if config.llm != "scripted" or config.scripted.llm:     # there is a model to talk to
            self.flows["assistant"] = own_flow("assistant.toml", waits(config))
        self._functions = {id(each): tools.functions(each) for each in self.flows.values()}
        self.arena = arena or Arena(slots(config))              # the last slot is the voice's, to render prompts in
        self.free = list(range(self.arena.slots - 2, -1, -1))   # slots, the next one last
        self.hearing = VadBatch()
        self.stt = engines.make("stt", config)
        self.llm = engines.make("llm", config)
        self.tts = engines.make("tts", config)
        for engine in (self.llm, self.tts):
            if hasattr(engine, "join"):
                engine.join(self.stt)
        self.turn_model = turn.make(config)         # None: there is none
        self.prompts = Prompts(self.tts, open_store(config, os.environ))
        self.prompt = self.prompts.get                          # (voice, text, rate): a text that was spoken ahead

    async def open(self, metrics) -> None:
        """Start the engines and render the prompts.  EngineError or ConfigError when calls could not be served."""
        searches, self.search_base = [], {}
        for flow in self._distinct():
            self.search_base[id(flow)] = len(searches)
            searches += [replace(search, id=len(searches) + search.id) for search in flow.searches]
        await asyncio.gather(self.stt.open(self.arena, searches), self.tts.open(self.arena), self.llm.open())
        if self.turn_model is not None:
            await self.turn_model.open(self.arena)
        for flow in self._distinct():
            await self._prepare(flow)
        self._miss_model()
        for rate in RATES:
            Resampler(rate, HEARD_RATE)             # a filter is designed once; no call waits for that
            Resampler(SPOKEN_RATE, rate)

    def _miss_model(self) -> None:
        """Whoever runs a flow that asks a language model hears that there is none, and not the callers alone."""
        asking = [state.name for state in self.flows[""].states.values() if state.prompt] if self.config.flow else []
        if asking and self.config.llm == "scripted" and not self.config.scripted.llm:
            log.warning("state \"%s\" of %s asks a language model, and there is none: say which by `llm`, as in "
                        "--llm openai.", asking[0], self.config.flow)

    def _distinct(self) -> list[Flow]:
        return list({id(flow): flow for flow in self.flows.values()}.values())

    def take_prompts(self) -> bool:
        """What is known ahead and lies on the disk is ready now; True if that is all of it."""
        for flow in self._distinct():
            self._take_recordings(flow)
        return all([self.prompts.take(flow.prompts(voice), voice)
                    for flow in self._distinct() for voice in flow.voices()])

    def _take_recordings(self, flow: Flow) -> None:
        """What the flow plays is ready.  ConfigError where a file cannot be played any more."""
        for recording in flow.sounds.values():
            if recording.file and not self.prompts.plays(recording):
                self.prompts.play(recording)

    async def _prepare(self, flow: Flow) -> None:
        """Every text of the flow that is known ahead."""
        began, count, spoken = time.monotonic(), 0, 0
        self._take_recordings(flow)
        for voice in flow.voices():
            texts = flow.prompts(voice)
            spoken += await self.prompts.prepare(texts, voice)
            count += len(texts)
        log.info("%d prompts of %s are ready after %.2f s: %d had been spoken before", count,
                 flow.name or flow.file, time.monotonic() - began, count - spoken)

    async def close(self) -> None:
        for engine in filter(None, (self.stt, self.tts, self.llm, self.turn_model)):
            await engine.close()
        for found in self._functions.values():
            await tools.close(found)

    def agent_of(self, model: str) -> str:
        """The agent that a client of the Realtime protocol means by a model's name.

        One that has this name; else the flow that --flow gave, else the assistant if there is one, else the demo.
        """
        if model in self.flows or model == "echo":
            return model
        return "assistant" if not self.config.flow and "assistant" in self.flows else ""

    def toolbox(self, flow: Flow, call_id: str, tell, late) -> tools.Toolbox:
        """The tools of a call."""
        return tools.Toolbox(self._functions[id(flow)], call_id, tell, late)

    def search(self, flow: Flow, number: int) -> int:
        """The recogniser's number of a search of `flow`."""
        return self.search_base[id(flow)] + number

    def fault(self) -> str:
        """Why calls cannot be served at present, in a sentence; "" if they can."""
        return next(filter(None, (getattr(engine, "fault", str)() for engine in (self.stt, self.tts, self.llm))), "")

    def measure(self, metrics) -> None:
        """What the engines have to say in /metrics."""
        for engine in filter(None, (self.stt, self.tts, self.llm, self.turn_model)):
            engine.measure(metrics)


# A wait of a flow, and the setting of [turns] that it is where the flow sets none.
WAITS = {"complete": "complete_ms", "free": "silence_ms", "incomplete": "incomplete_ms", "no_input": "no_input_ms"}


def waits(config: Config) -> Waits:
    """The waits of a flow that sets none."""
    return Waits(**{wait: getattr(config.turns, setting) for wait, setting in WAITS.items()})


def demo_flow(default_waits: Waits) -> Flow:
    """The demo's conversation."""
    return own_flow("demo.toml", default_waits)


def own_flow(name: str, default_waits: Waits) -> Flow:
    """A flow that is part of the package.  ConfigError if the installation lacks it."""
    path = resources.files("opusagent") / name
    if not path.is_file():
        raise ConfigError(f"The flow {name} is missing from this installation: reinstall opusagent.")
    return Flow.load(path, default_waits)
