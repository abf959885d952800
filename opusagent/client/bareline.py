"""The simulated caller's line by AudioSocket: a TCP connection, cut into messages, in place of a WebSocket.

It is to a Caller what telephone.py's Line is.  The rule: what Asterisk would take for an error ends the call.
"""
import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

from .. import ConfigError, ProtocolError
from ..dialects import BARE_CALLERS
from ..dialects.audiosocket import Messages, message
from ..transport.websocket import ABNORMAL

DIAL_SECONDS = 10
HANG_UP_SECONDS = 2         # for the server's end of it


def is_bare(url: str) -> bool:
    return url.startswith("tcp://")


def bare_dialect(url: str, name: str | None) -> str:
    """The dialect that `url` is called in; ConfigError for one that is not spoken without a WebSocket."""
    end_of(url)
    if name not in (None, *BARE_CALLERS):
        raise ConfigError(f"{url} is an address of {', '.join(BARE_CALLERS)}; {name} is called at "
                          f"ws://HOST:PORT/ws/{name}.")
    return name or next(iter(BARE_CALLERS))


def end_of(url: str) -> tuple[str, int]:
    """Host and port; ConfigError for another address."""
    try:
        parts = urlsplit(url)
        if parts.scheme == "tcp" and parts.hostname and parts.port and not parts.path.strip("/"):
            return parts.hostname, parts.port
    except ValueError:                  # a port that is no number
        pass
    raise ConfigError(f"{url} is no address of AudioSocket; one is written tcp://HOST:PORT.")


class BareLine(asyncio.Protocol):
    """The client's end.  `heard(kind, payload, now)` is called for each message, payload dying with the call;
    `lost(code, reason)` once, when it has ended."""

    def __init__(self, heard: Callable, lost: Callable[[int, str], None]):
        self.heard = heard
        self.lost = lost
        self.transport: asyncio.Transport | None = None
        self._messages = Messages()
        self._why = ABNORMAL, ""                # how it ends, as a WebSocket would say it
        self._gone = asyncio.Event()

    @classmethod
    async def dial(cls, url: str, heard: Callable, lost: Callable, protocols=(), headers=None) -> "BareLine":
        """ConfigError for what is no address, OSError where nobody listens.  There are no headers to send."""
        host, port = end_of(url)
        async with asyncio.timeout(DIAL_SECONDS):
            _, line = await asyncio.get_running_loop().create_connection(lambda: cls(heard, lost), host, port)
        return line

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        try:
            for kind, payload in self._messages.feed(data):
                self.heard(kind, payload, now)
        except ProtocolError as error:
            self._why = error.code, error.reason
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone.set()
        self.lost(*self._why)

    def send(self, kind: int, payload: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(message(kind, payload))

    async def hang_up(self) -> None:
        """Closes, and waits a while for the end."""
        self._why = 1000, ""
        self.transport.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._gone.wait(), HANG_UP_SECONDS)

    def abort(self) -> None:
        self.transport.abort()
