"""Usage: what a call takes of what costs money or time, by engine and endpoint, when it began and how it ended.

It asks nobody for anything.  An engine whose endpoints are paid says itself what it was asked for (`current`); what the
others do is counted by ear.py, mouth.py and meter.py.  The rule: what was asked for counts when it is asked, also where
nobody ever hears it, so that a budget that is spent stops the next request and not the one after it.
"""
import math
import time
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields
from operator import attrgetter

CHARACTERS_A_TOKEN = 4          # where an endpoint does not say how many tokens it has counted
TOKENS_A_PICTURE = 765          # ... as gpt-4o counts one of 1024 x 1024

# how a call came to its end, where no limit of config.Bounds, which has its own name, has ended it
COMPLETED, TRANSFERRED, FAILED, DRAINED = "completed", "transferred", "failed", "drained"
HUNG_UP, LOST = "hung up", "lost"
ORDERLY = (1000, 1001, 1005)    # close codes of a peer that meant to


@dataclass(slots=True)
class Item:
    """What one engine, or one endpoint of it, did for a call."""

    stage: str                          # "stt", "llm" or "tts"
    engine: str                         # "embedded"
    endpoint: str = ""                  # its host, where it has one
    model: str = ""
    requests: int = 0                   # utterances, answers, segments
    tokens_in: float = 0.0
    tokens_out: float = 0.0
    exact: bool = False                 # the tokens are as the endpoint counted them, in the latest request at least
    characters: int = 0                 # that were to be spoken
    seconds: float = 0.0                # of audio, recognised or spoken


ITEM = tuple(each.name for each in fields(Item))
READ = attrgetter(*ITEM)


class Usage:
    """One call's."""

    __slots__ = ("items", "telephone_seconds", "began_at", "outcome", "most_tokens", "most_spoken", "refused", "tell",
                 "keys", "heard_at", "payers", "engines", "_heights")

    def __init__(self, config, began_at: str = ""):
        self.items: dict[tuple[str, ...], Item] = {}
        self.telephone_seconds = 0.0
        self.began_at = began_at                        # as in 2026-03-03T14:15:16Z; "" until the call begins
        self.outcome = ""                               # how the call came to its end, as far as that is known
        self.most_tokens = config.limits.tokens         # 0: as many as there are
        self.most_spoken = config.limits.spoken_seconds
        self.refused = False                            # something was not asked for, because a budget is spent
        self.tell = lambda: None                        # is called then
        self.keys = 0                                   # that the caller has pressed
        self.heard_at = 0                               # ns: when the caller last gave a sign, as limits.py knows them
        self.payers: tuple[str, ...] = ()               # whose call it is: see limits.py
        self.engines = {"stt": config.stt, "llm": config.llm, "tts": config.tts}
        self._heights: dict[int, tuple[int, int, int]] = {}     # segment buffer -> epoch, begin, samples written

    def item(self, stage: str, endpoint: str = "", model: str = "") -> Item:
        engine = self.engines[stage]
        key = stage, engine, endpoint, model
        if key not in self.items:
            self.items[key] = Item(*key)
        return self.items[key]

    def heard(self, seconds: float) -> None:
        """The recogniser was given so much of an utterance."""
        item = self.item("stt")
        item.requests += 1
        item.seconds += seconds

    def asked_to_speak(self, characters: int) -> None:
        item = self.item("tts")
        item.requests += 1
        item.characters += characters

    def spoke(self, epoch: int, k: int, start: int, written: int, rate: int) -> None:
        """A voice has written buffer `k` from counter `start` to `written`, as it says again and again."""
        before = self._heights.get(k)
        done = before[2] if before is not None and before[:2] == (epoch, start) else start
        self._heights[k] = epoch, start, written
        self.item("tts").seconds += max(0, written - done) / rate

    # -- the budgets ---------------------------------------------------------------------------------------------------

    def _sum(self, stage: str, *names: str) -> float:
        return sum(getattr(item, name) for item in self.items.values() if item.stage == stage for name in names)

    @property
    def tokens(self) -> float:
        return self._sum("llm", "tokens_in", "tokens_out")

    @property
    def spoken_seconds(self) -> float:
        return self._sum("tts", "seconds")

    def spent(self) -> str:
        """The budget that is used up, by its setting's name; "" if there is none."""
        if self.most_tokens and self.tokens >= self.most_tokens:
            return "tokens"
        return "spoken_seconds" if self.most_spoken and self.spoken_seconds >= self.most_spoken else ""

    def refuse(self) -> None:
        """Something is not asked for."""
        self.refused = True
        self.tell()

    # -- the beginning and the end -------------------------------------------------------------------------------------

    def begins(self, wall: float) -> None:
        """At this time of day, s since 1970, if it has not begun elsewhere."""
        self.began_at = self.began_at or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall))

    def leaves(self, turn) -> None:
        """The conversation is over with this turn; a limit that has ended it stays what has ended it."""
        self.outcome = self.outcome or (FAILED if turn.failed else TRANSFERRED if turn.reply.transfer else COMPLETED)

    def parts(self) -> None:
        """The server has to end it."""
        self.outcome = self.outcome or DRAINED

    def ends(self, code: int, seconds: float) -> None:
        """The connection has ended, with this close code, and the call was so long."""
        self.telephone_seconds = seconds
        self.outcome = self.outcome or (HUNG_UP if code in ORDERLY else LOST)

    # -- what is told --------------------------------------------------------------------------------------------------

    def told(self, slot=None) -> dict:
        """`began_at`, `outcome` and `usage` of a call's record; `slot` has the audio of one that is live."""
        if slot is not None:
            self.telephone_seconds = slot.written / slot.rate_in
        return {"began_at": self.began_at, "outcome": self.outcome, "usage": self.record()}

    def record(self) -> dict:
        """Sums, then `items` by engine and endpoint."""
        models = [item for item in self.items.values() if item.stage == "llm"]
        return {"telephone_seconds": round(self.telephone_seconds, 2),
                "tokens_in": math.ceil(self._sum("llm", "tokens_in")),
                "tokens_out": math.ceil(self._sum("llm", "tokens_out")),
                "tokens_estimated": not all(item.exact for item in models),
                "synthesised_seconds": round(self.spoken_seconds, 2),
                "synthesised_characters": int(self._sum("tts", "characters")),
                "recognised_seconds": round(self._sum("stt", "seconds"), 2),
                "items": [{name: shown(value) for name, value in asdict(item).items() if value not in ("", 0)}
                          for item in self.items.values()]}

    def measure(self, metrics) -> None:
        """A call is over: what it took, in /metrics."""
        metrics.count("calls_ended", outcome=self.outcome)
        metrics.count("telephone_seconds", self.telephone_seconds)
        for item in self.items.values():
            labels = {"engine": item.engine, **({"endpoint": item.endpoint} if item.endpoint else {})}
            if item.stage == "llm":
                metrics.count("tokens", item.tokens_in, way="in", **labels)
                metrics.count("tokens", item.tokens_out, way="out", **labels)
            else:
                metrics.count("recognised_seconds" if item.stage == "stt" else "synthesised_seconds", item.seconds,
                              **labels)

    # -- for another worker --------------------------------------------------------------------------------------------

    def kept(self) -> dict:
        return {"began_at": self.began_at, "outcome": self.outcome, "payers": self.payers, "keys": self.keys,
                "heard_at": self.heard_at, "items": [
            dict(zip(ITEM, READ(item))) for item in self.items.values()]}

    def restore(self, kept: dict) -> None:
        for values in kept.get("items", ()):
            item = Item(**{name: value for name, value in values.items() if name in ITEM})
            self.items[item.stage, item.engine, item.endpoint, item.model] = item
        self.began_at = kept.get("began_at", self.began_at)
        self.outcome = kept.get("outcome", "")
        self.payers = tuple(kept.get("payers", ()))
        self.keys, self.heard_at = kept.get("keys", 0), kept.get("heard_at", 0)


class Question:
    """One request to a model: its tokens by its characters, until the endpoint says how many it has counted."""

    __slots__ = ("item", "tokens_in", "tokens_out")

    def __init__(self, endpoint: str, model: str, messages):
        usage = current.get()
        self.item = usage.item("llm", endpoint, model) if usage is not None else None
        self.tokens_in = self.tokens_out = 0.0
        if self.item is not None:
            self.item.requests += 1
            self._count(asked(messages), 0.0)

    def answered(self, characters: int) -> None:
        """So many more characters of the answer came."""
        if self.item is not None:
            self._count(0.0, characters / CHARACTERS_A_TOKEN)

    def told(self, usage) -> None:
        """The `usage` of a completion, in OpenAI's form; what is none is left alone."""
        tokens = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else []
        if self.item is not None and tokens and all(type(each) is int and each >= 0 for each in tokens):
            self._count(tokens[0] - self.tokens_in, tokens[1] - self.tokens_out)
            self.item.exact = True

    def _count(self, tokens_in: float, tokens_out: float) -> None:
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        self.item.tokens_in += tokens_in
        self.item.tokens_out += tokens_out


def asked(messages) -> float:
    """The tokens of a chat, as far as its characters and pictures tell."""
    return sum(len(words_of(message)) / CHARACTERS_A_TOKEN + len(pictures_of(message)) * TOKENS_A_PICTURE
               for message in messages)


def words_of(message: dict) -> str:
    """What a message of a chat says."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content).strip()


def pictures_of(message: dict) -> list[str]:
    """The addresses of the pictures that it shows."""
    content = message.get("content")
    return [part["image_url"]["url"] for part in content if part["type"] == "image_url"] if isinstance(
        content, list) else []


def shown(value):
    return round(value, 2) if isinstance(value, float) else value


current: ContextVar[Usage | None] = ContextVar("usage", default=None)     # of the call for which an engine is asked
