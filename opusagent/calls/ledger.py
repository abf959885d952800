"""The receipts of a call's turns: where the time between the caller's last word and the agent's first one went.

It decides nothing and sends nothing.  The rule: a turn's waits are counted from the caller's last voiced sample, found
in the audio itself, by the definition that callers measure with.
"""
import logging
from collections.abc import Callable

from .._fastpath import Arrivals
from ..dialects import AGENT, RECEIPT
from ..logs import about
from ..metrics import Metrics, TurnTrace
from ..speech.audio import last_voiced

log = logging.getLogger("opusagent")

LOOK_BACK_MS = 1500             # before an endpoint, to find the last voiced window in
OVERHEARD = "overheard"         # kind of a receipt that is of no turn of the flow's


class Ledger:
    """`trace` is the receipt being written, `receipts` are those that are finished.

    `aside` is that of a turn of which is not known yet whether it is one: the reply before it may go on.
    """

    __slots__ = ("metrics", "journal", "tell", "call_id", "speaker", "receipts", "trace", "aside", "arrivals",
                 "_unmeasured")

    def __init__(self, metrics: Metrics, journal=None, tell: Callable = lambda *news: None):
        self.metrics = metrics
        self.journal = journal
        self.tell = tell                # who may want to hear of a receipt (Outbound.tell)
        self.call_id = ""               # for the log
        self.speaker = ""               # whose turns these are, where a conversation of others is listened to
        self.receipts: list[dict] = []
        self.trace: TurnTrace | None = None
        self.aside: TurnTrace | None = None
        self.arrivals = Arrivals()      # of the caller's audio
        self._unmeasured: tuple | None = None       # the receipt for which measure() has something to do, and that

    def arrived(self, position: int, now: int) -> None:
        """The caller's audio up to `position` is here."""
        self.arrivals.add(position, now)

    def begin(self, now: int, slot=None, rtt_ns: int = 0, decided: int = 0, aside: bool = False) -> TurnTrace:
        """A turn ends now.  With its audio in `slot`, of which `decided` samples have been judged, the wait for it is
        measured, by measure(), which can wait until the reply is on its way; else nobody's voice began it.  `aside`: it
        may be none, and the one before it is not finished."""
        if aside:
            self.aside = trace = TurnTrace(len(self.receipts) + 2)
        else:
            self.finish()
            self.trace = trace = TurnTrace(len(self.receipts) + 1)
        trace.measured = slot is not None
        if slot is not None:
            self.measure()
            self._unmeasured = trace, slot, slot.written, rtt_ns, now
            trace.decided_ms = decided * 1000 / slot.rate_in
        trace.mark("endpointing", now)
        return trace

    def measure(self) -> None:
        """Looks up where the caller's words ended, if that has not been done: within the seconds that a slot keeps."""
        if self._unmeasured is not None:
            (trace, slot, written, rtt_ns, now), self._unmeasured = self._unmeasured, None
            heard = self._last_voiced(trace, slot, written, now)
            trace.mark("speech_end", heard - rtt_ns // 2)
            trace.mark("transport", heard)

    def _last_voiced(self, trace: TurnTrace, slot, written: int, now: int) -> int:
        """When the caller's last voiced window of the first `written` samples arrived here, ns."""
        rate = slot.rate_in
        count = min(LOOK_BACK_MS * rate // 1000, written)
        position = written - count + (last_voiced(slot.read(written - count, count), rate) or count)
        trace.end_ms = position * 1000 / rate
        after, at = self.arrivals.of(position) or (position, now)
        return at - (after - position) * 1_000_000_000 // rate

    def finish(self, stopped_by: str = "") -> None:
        """The turn is over, if one is being written; the one aside is the next."""
        self.measure()
        trace, self.trace, self.aside = self.trace, self.aside, None
        if trace is not None:
            trace.stopped_by = trace.stopped_by or stopped_by
            self._keep(attributed(trace.receipt(), self.speaker))

    def overheard(self, speaker: str, text: str, confidence: float, state: str, end_ms: float) -> None:
        """The other side of a conversation of others has said something, which ended there in its audio."""
        trace = TurnTrace(len(self.receipts) + 1)
        trace.kind, trace.state, trace.caller, trace.confidence = OVERHEARD, state, text, confidence
        trace.end_ms, trace.measured = end_ms, False
        for later in filter(None, (self.trace, self.aside)):
            later.turn += 1
        self._keep(attributed(trace.receipt(), speaker))

    def _keep(self, receipt: dict) -> None:
        self.receipts.append(receipt)
        if self.journal is not None:
            self.journal.note("receipt", receipt)
        self.metrics.turn(receipt)
        self.tell(RECEIPT, receipt)
        log.info("call %s turn %d", self.call_id, receipt["turn"], extra=about(self.call_id, "turn", **receipt))

    def named(self, call_id: str, dialect) -> None:
        """The call has begun."""
        self.call_id, self.speaker = call_id, dialect.speaker
        log.info("call %s begins: %s at %d Hz", call_id, dialect.name, dialect.rate,
                 extra=about(call_id, "begin", dialect=dialect.name, rate=dialect.rate))

    def remark(self, reply) -> None:
        """What the reply goes on without, for who has written the flow: a function or a tool that was not called."""
        if reply.refused:
            self.metrics.count("refused_functions")
        if why := reply.refused or reply.missed:
            log.warning("call %s: %s", self.call_id, why)

    def end(self, outcome: str, seconds: float, state: str, code: int) -> None:
        """The call is over."""
        log.info("call %s ended: %s, %d turns, %.1f s, state %s", self.call_id, outcome, len(self.receipts), seconds,
                 state, extra=about(self.call_id, "end", outcome=outcome, code=code, state=state))


def attributed(receipt: dict, speaker: str) -> dict:
    """Where a conversation of others is listened to: the words stand under who has spoken them, and `speaker` says
    who that is.  Where we answer, they are the caller's."""
    if speaker and receipt["caller"]:
        receipt["speaker"] = speaker
        if speaker == AGENT:
            receipt["agent"], receipt["caller"] = receipt["caller"], ""
    return receipt
