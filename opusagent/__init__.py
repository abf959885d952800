"""OpusAgent: a daemon that holds telephone conversations.

The version and the three kinds of error live here, below every other module.
The rule: a fault of the peer ends that peer's connection, a fault of the configuration ends the
program before it listens, a fault of an engine becomes an event of the turn.  There is no fourth kind.
"""

__version__ = "0.1.0"


class ProtocolError(Exception):
    """The peer broke the protocol: an HTTP status before the upgrade, a WebSocket close code after it."""

    retry_after = 0         # seconds after which a refused request may succeed; 0: what is usual for its status
    allow = ""              # the methods that the address takes, of a 405; "": those of nearly all

    def __init__(self, code: int, reason: str):
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.code} {self.reason}"


class ConfigError(Exception):
    """The configuration, the flow or the machine does not allow it: one sentence that says what to do."""


class EngineError(Exception):
    """A recogniser, a model or a voice failed: one sentence; the turn falls back and the call goes on."""

    whole = False           # what came before it is all that will ever come, and no failure: a limit, say
