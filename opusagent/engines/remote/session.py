"""A WebSocket to an endpoint that speaks the OpenAI Realtime API: JSON events, both ways.

It knows no session's purpose (openai/live.py transcribes over it, realtime/ converses).  Framing is websocket.py's,
the client's end.  The rule: `heard(event)` is called for each event until `lost(sentence)` is called, once, for
whatever ended it; and no sentence shows a key or what the peer wrote.
"""
import asyncio
import os
from collections.abc import Callable
from typing import Any, Self

import orjson

from ... import EngineError, ProtocolError
from ...transport.http11 import ClientHandshake
from ...transport.websocket import CLOSED, TEXT, WebSocket
from .endpoint import CODE, Endpoint
from .transport import CONNECT_SECONDS, OPTIONS, said

LARGEST = 16 << 20              # bytes of an event
UNSENT = 1 << 18                # bytes that may wait to be sent: seconds of audio.  Whoever reads more slowly is gone
TRANSCRIPTION = "conversation.item.input_audio_transcription."      # begins the types of what a passage's text comes in
REFUSED = {401: "does not take our key", 403: "does not take our key", 404: "has no Realtime API",
           405: "has no Realtime API", 426: "has no Realtime API"}


class Session(asyncio.Protocol):
    """One connection; begin it with open()."""

    def __init__(self, endpoint: Endpoint, query: str, heard: Callable[[dict], Any], lost: Callable[[str], Any]):
        self.endpoint = endpoint
        self.heard = heard
        self.lost = lost
        url = endpoint.url
        target = url.raw_path.decode().rstrip("/") + "/realtime" + (f"?{query}" if query else "")
        headers = {name: value for name, value in endpoint.headers.items() if name.lower() not in NOT_OURS}
        self.handshake = ClientHandshake(url.netloc.decode(), target, os.urandom(16), headers.items())
        self.ws = WebSocket(LARGEST, mask=lambda: os.urandom(4))
        self.transport: asyncio.Transport | None = None
        self.opened: asyncio.Future = asyncio.get_running_loop().create_future()
        self.began = self.heard_at = self._clock()      # when it began, and when anything last came
        self.over = False

    @classmethod
    async def open(cls, endpoint: Endpoint, query: str, heard: Callable[[dict], Any],
                   lost: Callable[[str], Any]) -> Self:
        """A session to `endpoint`, which has been opened; `query` follows its path.  Raises EngineError."""
        scheme, host = endpoint.url.scheme, endpoint.url.host
        port = endpoint.url.port or (443 if scheme == "https" else 80)
        tls = {"ssl": endpoint.transport.context, "server_hostname": host} if scheme == "https" else {}
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, session = await asyncio.get_running_loop().create_connection(
                    lambda: cls(endpoint, query, heard, lost), host, port, **tls)
                try:
                    await session.opened
                except BaseException:
                    session.transport.abort()
                    raise
        except TimeoutError:
            raise EngineError(f"{endpoint.subject} let us wait for too long.") from None
        except OSError as error:
            raise EngineError(f"{endpoint.subject} failed: {said(error)}.") from None
        return session

    def send(self, event: dict) -> None:
        if not self.over:
            self.ws.send(TEXT, orjson.dumps(event))
            self._flush()

    def ping(self) -> None:
        """Whoever is there answers, and heard_at shows it."""
        if not self.over:
            self.ws.ping(b"")
            self._flush()

    def quiet(self) -> float:
        """Seconds since anything came."""
        return self._clock() - self.heard_at

    def age(self) -> float:
        return self._clock() - self.began

    def close(self) -> None:
        """We are done with it: nothing is heard of it any more."""
        if not self.over:
            self.over = True
            self.ws.close(1000)
            self._flush()
            self.transport.close()

    def fail(self, why: str) -> None:
        """It is of no use any more; `why` follows the subject of a sentence."""
        if not self.over:
            self.over = True
            self.transport.abort()
            self.lost(f"{self.endpoint.subject} {why}.")

    # -- from the loop -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        for option in OPTIONS:
            transport.get_extra_info("socket").setsockopt(*option)
        transport.write(self.handshake.request)

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._clock()
        try:
            if not self.opened.done():
                data = self._open(data)
            messages = self.ws.receive_bytes(data) if data else ()
            for _, payload in messages:
                if not self.over:
                    self.heard(event_of(payload))
        except ProtocolError:
            self._refuse(EngineError(f"{self.endpoint.subject} sent what is not WebSocket."))
            return self.fail("sent what is no event")
        if not self.over:
            self._flush()
            if self.ws.state is CLOSED:
                self.fail(f"closed the session with code {self.ws.close_code}")

    def connection_lost(self, error: Exception | None) -> None:
        self._refuse(EngineError(f"{self.endpoint.subject} closed the connection without an answer."))
        self.fail(f"failed: {said(error)}" if error else "closed the connection")

    def _open(self, data: bytes) -> bytes:
        """Through the handshake; returns the frames that came behind it."""
        answer = self.handshake.feed(data)
        if answer is None:
            return b""
        if answer.status != 101:
            why = REFUSED.get(answer.status, f"answered with status {answer.status}")
            self._refuse(EngineError(f"{self.endpoint.subject} {why}."))
            self.over = True
            self.transport.abort()
            return b""
        self.opened.set_result(True)
        return self.handshake.rest

    def _refuse(self, error: EngineError) -> None:
        if not self.opened.done():
            self.over = True
            self.opened.set_exception(error)
            self.opened.exception()             # it is told of, whether or not anybody still waits for it

    def _flush(self) -> None:
        if self.ws.outbox:
            self.transport.write(b"".join(self.ws.outbox))
            self.ws.outbox.clear()
        if self.transport.get_write_buffer_size() > UNSENT:
            self.fail("takes nothing of what is sent")

    @staticmethod
    def _clock() -> float:
        return asyncio.get_running_loop().time()


NOT_OURS = {"accept", "accept-encoding", "content-type", "host", "connection"}


def event_of(payload: bytes) -> dict:
    """Raises ProtocolError where it is none."""
    try:
        event = orjson.loads(payload)
    except orjson.JSONDecodeError:
        event = None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise ProtocolError(1007, "no event")
    return event


def complaint(event: dict) -> str:
    """What an `error` event says, as the rest of a sentence, as far as that can be shown."""
    error = event.get("error")
    code = str(error.get("code") or error.get("type")) if isinstance(error, dict) else ""
    return "answered with an error" + (f" ({code})" if CODE.fullmatch(code) else "")
