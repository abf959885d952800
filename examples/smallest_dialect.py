"""The smallest dialect: binary messages are mu-law at 8 kHz, both ways; the text "bye" ends a call.

As `opusagent/dialects/tiny.py`, with the row `(Tiny, TinyCaller)` in dialects/__init__.py, it is served at /ws/tiny and
called by `opusagent call ws://HOST:PORT/ws/tiny --wav one.wav`.  The rule: only text that is not "bye" is ignored.
"""
from urllib.parse import SplitResult

from opusagent._fastpath import MediaIn, MediaOut, codes_of
from opusagent.dialects import BINARY, TEXT, Audible, Audio, Dialect, PlatformSide, Start, Stop


class Tiny(Dialect):
    """Mu-law, and nothing around it."""                # the first line stands in /docs

    __slots__ = ("ignored", "outbox", "_facts", "_heard")
    name, rate, opcode = "tiny", 8000, BINARY
    lead_ms = 60                # nothing is taken back from this platform: stay close to the listener
    max_message = 8000          # bytes: a second
    media_in, media_out = MediaIn(BINARY, "PCMU"), MediaOut(BINARY, "PCMU")     # what is just that needs no Python

    def __init__(self, query: dict[str, str]):
        self.ignored, self.outbox = 0, []
        self._facts = dict(query)
        self._heard = Audible(1600, "PCMU")     # room for 200 ms; it grows

    def open(self) -> Start:
        return Start(self._facts.pop("call_id", ""), self._facts)       # the open socket is the call

    def receive(self, opcode: int, payload) -> Audio | Stop | None:
        if opcode == BINARY:
            return self._heard.codes(payload)
        if bytes(payload) == b"bye":
            return Stop()
        self.ignored += 1
        return None

    def audio(self, pcm) -> bytes:
        return codes_of(pcm, "PCMU")

    def mark(self, name: str) -> None: ...              # nothing tells what has been heard

    def clear(self) -> None: ...                        # or takes back what was sent

    def stop(self) -> bytes:
        return b"bye"


class TinyCaller(PlatformSide):
    """The platform's side, for tests and `opusagent call`."""

    name, rate = "tiny", 8000

    def __init__(self, url: SplitResult):
        self.call_id, self._heard = "call", Audible(1600, "PCMU")
        self.open, self.mark, self.stop = list, lambda name: None, lambda: (TEXT, b"bye")
        self.audio = lambda pcm: (BINARY, codes_of(pcm, "PCMU"))

    def receive(self, opcode: int, payload) -> Audio | Stop | None:
        return self._heard.codes(payload) if opcode == BINARY else Stop()
