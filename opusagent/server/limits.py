"""Limits: how long a call may be, how silent and how costly, and how many calls a caller or a tenant may have.

A call that is over one is told to part: its caller hears the flow's `parting`, and the limit's name is its outcome.
One that is not to be is refused before any engine hears of it.  The rules: the clock's limits are looked at once a
second, beside the audio, and let a reply that is being spoken finish for a while; a budget that is spent ends the call
at the first request that is not made for it (meter.py), or as soon as the agent has finished.
"""
import datetime
import logging

from .. import ProtocolError
from ..config import Bounds
from ..dialects import TEXT, Start
from ..tally import Entries, Tally, digest

log = logging.getLogger("opusagent")

SECOND = 1_000_000_000          # ns
GRACE_NS = 10 * SECOND          # for a reply that is being spoken when a limit is reached
NUMBERS = ("caller", "from", "ani", "fromNumber", "caller_id")      # facts by which platforms tell the caller's number
BUSY_SECONDS = 10               # after which a caller who has too many calls at once may try again
KINDS = {"caller": ("calls_per_caller", "calls_per_caller_a_day"),
         "tenant": ("calls_per_tenant", "calls_per_tenant_a_day")}


def caller_of(facts) -> str:
    """The caller's number as the platform tells it, "" where it does not."""
    return next((str(facts[name]) for name in NUMBERS if facts.get(name)), "")


def payers_of(caller: str, tenant: str) -> tuple[str, ...]:
    """Whose call it is, as the tally knows them."""
    return tuple(f"{kind} {name}" for kind, name in (("caller", caller), ("tenant", tenant)) if name)


def sign_of(call) -> tuple | None:
    """What changes with all that a caller says or presses; None while there is something of it, or they are excused."""
    ear = getattr(call, "ear", None)
    if ear is None:
        return call.signs,
    if ear.hearing or ear.final_by or call.keys or call.excused > call.slot.written:
        return None
    return ear.utterance, call.usage.keys


def nobody() -> None:
    """Hears nothing."""


class Seen:
    """What is known of a live call."""

    __slots__ = ("row", "sign", "over_since")

    def __init__(self, row: int):
        self.row = row                  # in the tally
        self.sign: tuple | None = ()    # the caller's latest; (): it was not looked for yet
        self.over_since = 0             # ns; 0: it is within its limits


class Limits:
    """One worker's."""

    def __init__(self, bounds: Bounds, metrics, tally: Tally, seat: int):
        self.bounds = bounds
        self.metrics = metrics
        self.tally = tally
        self.entries = Entries(tally, seat)
        self.live: dict[object, Seen] = {}
        self.over: set = set()          # calls that are over a limit, or may be
        self.calendar = datetime.datetime.now
        self._looked = 0                # ns

    # -- who may call --------------------------------------------------------------------------------------------------

    def check(self, caller: str, tenant: str) -> None:
        """Raises ProtocolError(429) for a request of somebody who has too many calls already."""
        for payer in payers_of(caller, tenant):
            if limit := self._reached(payer, 1):
                self.metrics.count("refused_calls", reason=limit)
                error = ProtocolError(429, f"This is more than limits.{limit} allows.")
                error.retry_after = self._wait(limit)
                raise error

    def begins(self, call, start: Start, now: int) -> None:
        """A call is here.  One too many is told so in its own protocol, and ended: ProtocolError(1008)."""
        tenant = call.connection.tenant or start.tenant
        payers = call.usage.payers = payers_of(caller_of(start.facts), tenant)
        day = self.calendar().toordinal()
        row = self.entries.begins(payers, day)
        limit = next(filter(None, (self._reached(payer) for payer in payers)), "")
        if limit:
            self.entries.withdraw(row, payers, day)
            self.metrics.count("refused_calls", reason=limit)
            if (message := call.dialect.stop()) is not None:
                call.connection.send(TEXT, message)
            raise ProtocolError(1008, f"this call is more than limits.{limit} allows")
        self._watch(call, row, now)

    def goes_on(self, call, now: int) -> None:
        """Another worker has begun it."""
        self._watch(call, self.entries.begins(call.usage.payers), now)

    def _watch(self, call, row: int, now: int) -> None:
        self.live[call] = Seen(row)
        call.usage.heard_at = call.usage.heard_at or now
        call.usage.tell = lambda: self.over.add(call)

    def ends(self, call) -> None:
        if (seen := self.live.pop(call, None)) is not None:
            self.entries.ends(seen.row)
            self.over.discard(call)
            call.usage.tell = nobody

    def _reached(self, payer: str, more: int = 0) -> str:
        """The limit that a payer has gone over, or would with so many calls more; "" where there is none."""
        now, a_day = KINDS[payer.partition(" ")[0]]
        bounds, tally = self.bounds, self.tally
        if (most := getattr(bounds, now)) and tally.at_once(digest(payer)) + more > most:
            return now
        if (most := getattr(bounds, a_day)) and tally.on(self.calendar().toordinal(), digest(payer)) + more > most:
            return a_day
        return ""

    def _wait(self, limit: str) -> int:
        """Seconds until it may be worth trying again."""
        if not limit.endswith("_a_day"):
            return BUSY_SECONDS
        now = self.calendar()
        return 86400 - (now.hour * 60 + now.minute) * 60 - now.second

    # -- how long they may be ------------------------------------------------------------------------------------------

    def look(self, now: int) -> None:
        """Called at each tick: looks at all calls once a second, and at those that are over a limit now."""
        if now - self._looked >= SECOND:
            if self._looked:
                self.entries.settled()
            self._looked = now
            self.over.update(self.live)
        over, self.over = self.over, set()
        for call in over:
            if (seen := self.live.get(call)) is not None and self._look(call, seen, now):
                self.over.add(call)

    def _look(self, call, seen: Seen, now: int) -> bool:
        """True while a call is over a limit and not told so: it parts when what is being said is said."""
        if call.done or call.usage.outcome:
            return False
        limit = self._exceeded(call, seen, now)
        if not limit:
            seen.over_since = 0
            return False
        seen.over_since = seen.over_since or now
        if not call.usage.refused and call.mouth.turn is not None and now - seen.over_since < GRACE_NS:
            return True
        self.metrics.count("limited_calls", limit=limit)
        log.info("call %s has to end: limits.%s", call.id, limit)
        call.usage.outcome = limit
        call.part()
        return False

    def _exceeded(self, call, seen: Seen, now: int) -> str:
        bounds, sign = self.bounds, sign_of(call)
        if sign is None or sign != seen.sign != ():
            call.usage.heard_at = now
        seen.sign = sign
        if bounds.call_seconds and now - call.began >= bounds.call_seconds * SECOND:
            return "call_seconds"
        if bounds.silence_seconds and now - call.usage.heard_at >= bounds.silence_seconds * SECOND:
            return "silence_seconds"
        return call.usage.spent()
