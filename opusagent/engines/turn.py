"""The turn model, seen from the worker: asked in each pause, in a process of its own, and never waited for.

What is asked is not remembered: an answer that a process did not live to give is one that came too late.  The rule: a
call goes on without it as if there were none.
"""
from ..config import Config
from .processes.delays import Delays
from .processes.host import Host
from .processes.records import JUDGE, JUDGED
from .prosody import check


def make(config: Config) -> "TurnModel | None":
    """The model that the configuration names; None for none.  ConfigError where it cannot be had."""
    return TurnModel(config) if config.turns.model else None


class TurnModel:
    """`ask` from a pause; the answer goes to `on_complete(utterance, position, probability)` of who asked."""

    def __init__(self, config: Config):
        check(config.turns.model, config.origin("turns.model"))
        self.path = config.turns.model
        self.host = Host("turn", config, self._on_record, self._forget_share)
        self.asked: dict[int, tuple] = {}               # by slot: (who asks, its slot's generation)
        self.delays = Delays()                          # of questions, by slot

    async def open(self, arena) -> None:
        await self.host.open(arena, {"model": self.path})

    async def close(self) -> None:
        self.host.close()

    def ask(self, ear, begin: int, end: int) -> None:
        """Whether the utterance that lies at these positions of the slot is complete."""
        self.asked[ear.slot.index] = ear, ear.slot.generation
        self.delays.begin(ear.slot.index)
        self.host.send(ear.slot.index, JUDGE, ear.slot.generation, ear.utterance, begin, end)

    def forget(self, ear) -> None:
        self.asked.pop(ear.slot.index, None)
        self.delays.end(ear.slot.index)

    def measure(self, metrics) -> None:
        self.host.measure(metrics, self.delays.seconds)

    def _forget_share(self, share: int) -> None:
        for index in self.asked:
            if self.host.share(index) == share:
                self.delays.end(index)

    def _on_record(self, kind: int, index: int, generation: int, utterance: int, a: int, b: int, data: bytes) -> None:
        ear, known = self.asked.get(index, (None, 0))
        self.delays.end(index)
        if kind == JUDGED and ear is not None and known == generation:
            ear.on_complete(utterance, a, b / 1e6)
