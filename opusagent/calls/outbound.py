"""What a call sends: the protocol's own answers, the dialect's messages, and the agent's audio.

It knows no conversation and paces nothing.  The rules: what the dialect has put into its outbox goes out before
whatever it was asked for, and only audio is ever dropped, the oldest first, for a peer that reads slowly.
"""
import logging
from collections import deque

from ..dialects import TEXT, Complaint

log = logging.getLogger("opusagent")

MS = 1_000_000                  # ns
CODES = 10                      # different complaints of one call that are logged
LATE_CHUNKS = 5                 # audio messages kept for a peer that reads slowly; then the oldest is dropped


def send_answers(connection, dialect) -> None:
    """What the protocol itself wants sent now."""
    for answer in dialect.outbox:
        connection.send(*answer)
    dialect.outbox.clear()


class Outbound:
    """One call's.  The news in `tell` reach dialects whose platform wants to hear of the conversation."""

    __slots__ = ("connection", "dialect", "slot", "texts", "late", "dropped", "_blamed", "_deaf_ns", "_deaf_until",
                 "_tell", "_told", "_metrics", "_patient")

    def __init__(self, connection, dialect, metrics):
        self.connection = connection
        self.dialect = dialect
        self.slot = None                                        # where the number of our last message is noted
        self.texts = 0                                          # messages that went out and were not the agent's audio
        self.late: deque[bytes] = deque(maxlen=LATE_CHUNKS)     # audio the peer has not taken
        self.dropped = 0                                        # audio messages a slow peer never got
        self._blamed: set[str] = set()                          # codes of complaints that were logged
        self._deaf_ns = dialect.deaf_ms * MS
        self._deaf_until = 0                                    # ns: what is sent before then may be dropped
        self._tell = dialect.tell
        self._told: tuple = ()                                  # the last news
        self._patient = dialect.patient                         # what is not taken waits
        self._metrics = metrics

    def held(self, now: int) -> bool:
        """True while the platform takes no audio; what is due stays where it is."""
        return self.deaf(now) or self._patient and self.connection.congested

    def deaf(self, now: int) -> bool:
        """True while the platform itself says so."""
        return now < self._deaf_until or bool(self.dialect.held)

    def answers(self) -> None:
        if self.dialect.outbox:
            send_answers(self.connection, self.dialect)
            self._went_out()

    def audio(self, pcm) -> None:
        """One message of int16 samples, now or as soon as the peer reads."""
        message = self.dialect.audio(pcm)
        self.answers()
        if not self.late and not self.connection.congested:
            self.connection.send(self.dialect.opcode, message)
            return
        if len(self.late) == LATE_CHUNKS:
            self.dropped += 1
            self._metrics.count("dropped_chunks")
        self.late.append(message)

    def text(self, message: bytes | None) -> None:
        """A message that the dialect was asked for; None where it has none."""
        self.answers()
        if message is not None:
            self.connection.send(TEXT, message)
            self._went_out()

    def _went_out(self) -> None:
        """Whoever goes on with the call has to know of it."""
        self.texts += 1
        if self.dialect.numbered is not None and self.slot is not None:
            self.slot.numbered = self.dialect.numbered

    def clear(self, now: int) -> None:
        """What the platform has buffered is to be dropped."""
        self.text(self.dialect.clear())
        self._deaf_until = now + self._deaf_ns

    def tell(self, *news) -> None:
        """News and their details, unless they are the last once more."""
        if self._tell is not None and news != self._told:
            self._told = news
            self._tell(*news)
            self.answers()

    def blamed(self, call_id: str, complaint: Complaint) -> None:
        """The platform could not do something with what it was sent: counted, and logged once for each code."""
        code = complaint.code
        self._metrics.count("platform_errors", platform=self.dialect.name)
        if code not in self._blamed and len(self._blamed) < CODES:
            self._blamed.add(code)
            log.warning("call %s: %s says%s: %s", call_id, self.dialect.name, f" ({code})" if code else "",
                        complaint.sentence or "an error")

    def drained(self) -> None:
        """The peer reads again: what is left of the late audio goes out."""
        while self.late and not self.connection.congested:
            self.connection.send(self.dialect.opcode, self.late.popleft())
