"""HTTP/1.1 below the `openai` package's client, for answers that come in many small pieces.

The package's own spends several times as much on each piece (bench/llm_chunk.py measures both).  h11 reads and writes
the heads, bodies.py takes what follows them out of its frame.  There are no proxies and there is no HTTP/2.
The rule: connections are open before they are needed, and a response that is closed before its end takes its
connection with it at once, so that the peer stops working for nobody.
"""
import asyncio
import os
import socket
import time
from collections import deque
from collections.abc import AsyncIterator
from functools import cached_property
from importlib import import_module

import h11
import openai

from .bodies import Chunked, Sized, Unsized, body_of

httpx = import_module(openai.DefaultAsyncHttpxClient.__base__.__module__)     # or httpx2, where the package uses that

Origin = tuple[str, str, int]   # scheme, host, port

CONNECT_SECONDS = 2.0           # for name, TCP and TLS together
HEAD_BYTES = 65536              # of a response
UNREAD_BYTES = 262144           # of a body that nobody reads yet; beyond that the peer has to wait
CALM_SECONDS = 5.0              # an idle connection that lived for so long did not come to grief
PAUSES = (0.0, 1.0, 3.0, 10.0, 30.0)    # seconds before another is opened, by how many came to grief in a row

BODY = "opusagent.body"         # the extension of a response that is its Stream

# A peer that is gone is found out while the connection is idle, and the probes keep it in the memory of a NAT.
OPTIONS = ((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
           (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2), (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
           (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 3000))


class Connection(asyncio.Protocol):
    """One connection: a request, its response, then the next one."""

    __slots__ = ("origin", "opened", "head", "body", "fault", "silent", "_on_idle_lost", "_idle", "_parser",
                 "_transport", "_unread", "_size", "_waiter")

    def __init__(self, origin: Origin, on_idle_lost):
        self.origin = origin
        self.opened = time.monotonic()
        self.head: h11.Response | None = None       # of the response to the request in progress
        self.body: Chunked | Sized | Unsized | None = None
        self.fault: Exception | None = None         # why nothing more will come
        self.silent = True                          # no byte has come in answer to the request in progress
        self._on_idle_lost = on_idle_lost           # (connection): it ended between two requests
        self._idle = False
        self._parser: h11.Connection | None = None
        self._transport: asyncio.Transport | None = None
        self._unread: deque[bytes] = deque()        # of the body
        self._size = 0                              # bytes of that, with what is around it
        self._waiter: asyncio.Future | None = None  # of the reader

    @property
    def complete(self) -> bool:
        return self.body is not None and self.body.over

    @property
    def reusable(self) -> bool:
        return (self.complete and self.fault is None and self.head.http_version == b"1.1"
                and b"close" not in dict(self.head.headers).get(b"connection", b"").lower())

    def ask(self, request: httpx.Request, content: bytes) -> None:
        """Send a request.  Raises httpx.LocalProtocolError where it is none."""
        self.head = self.body = None
        self.silent, self._idle = True, False
        self._parser = parser = h11.Connection(h11.CLIENT, HEAD_BYTES)
        try:
            head = parser.send(h11.Request(method=request.method, target=request.url.raw_path,
                                           headers=request.headers.raw))
            rest = parser.send(h11.Data(data=content)) + parser.send(h11.EndOfMessage())
        except h11.LocalProtocolError:              # its text shows the header, and that may be the key
            raise httpx.LocalProtocolError("a header of the request is not allowed") from None
        self._transport.write(head + rest)

    async def wait(self) -> None:
        """Until something has come, or nothing more will."""
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def take(self) -> bytes:
        """What has come of the body since the last take()."""
        data = self._unread[0] if len(self._unread) == 1 else b"".join(self._unread)
        self._unread.clear()
        if self._size > UNREAD_BYTES and self.fault is None:
            self._transport.resume_reading()
        self._size = 0
        return data

    def rest(self) -> None:
        """Idle from now on; what nobody has read of the response is dropped."""
        self.take()
        self._idle = True

    def abort(self) -> None:
        self._idle = False                          # nobody has to be told
        self._transport.abort()

    # -- from the loop -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        sock = transport.get_extra_info("socket")
        for option in OPTIONS:
            sock.setsockopt(*option)

    def data_received(self, data: bytes) -> None:
        self.silent = False
        try:
            if self._idle:
                raise ValueError("an answer to nothing")
            if self.body is None:
                data = self._read_head(data)
            if self.body is not None and data:
                self._size += len(data)
                self.body.feed(data, self._unread)
        except (h11.RemoteProtocolError, ValueError):
            self._break(httpx.RemoteProtocolError("what it sent is not HTTP"))
            self._transport.abort()
        if self._size > UNREAD_BYTES and self.fault is None:
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self._break(httpx.ReadError(said(error)))
        elif self.body is None:
            self._break(httpx.RemoteProtocolError("it closed the connection without an answer"))
        elif not self.body.close():
            self._break(httpx.RemoteProtocolError("it closed the connection in mid-answer"))
        else:
            self._break(httpx.ReadError("it closed the connection"))
        self._wake()
        if self._idle:
            self._on_idle_lost(self)

    def _read_head(self, data: bytes) -> bytes:
        """Bytes of the head; what follows it.  Raises h11.RemoteProtocolError."""
        self._parser.receive_data(data)
        while (event := self._parser.next_event()) is not h11.NEED_DATA:
            if event.__class__ is h11.Response:
                self.head, self.body = event, body_of(event)
                return self._parser.trailing_data[0]
        return b""

    def _break(self, fault: Exception) -> None:
        self.fault = self.fault or fault

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Stream(httpx.AsyncByteStream):
    """The body of a response while it comes."""

    def __init__(self, connection: Connection, release):
        self.connection: Connection | None = connection
        self.release = release                      # (connection): nobody reads its response any more

    async def __aiter__(self) -> AsyncIterator[bytes]:
        connection = self.connection
        while True:
            if data := connection.take():
                yield data
            elif connection.complete:
                return
            elif connection.fault is not None:
                raise connection.fault
            else:
                await connection.wait()

    async def aclose(self) -> None:
        """The connection rests if the response is complete, and is closed otherwise."""
        connection, self.connection = self.connection, None
        if connection is not None:
            self.release(connection)


class Transport(httpx.AsyncBaseTransport):
    """The connections of one client.  `keep` has some of them opened ahead."""

    def __init__(self):
        self.idle: dict[Origin, list[Connection]] = {}      # the one that was used last comes last
        self.opened = 0                                     # connections ever
        self.stale = 0                                      # idle connections that turned out to be dead when asked
        self._griefs = 0                                    # connections in a row that ended soon after they began
        self._lacking = asyncio.Event()                     # there may be fewer idle ones than are kept
        self._keepers: list[asyncio.Task] = []

    @cached_property
    def context(self):
        return httpx.create_ssl_context()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Ask on an idle connection, and once more on a new one if the peer had ended that without a word."""
        origin = origin_of(request.url)
        content = await request.aread()
        if idle := self.idle.get(origin):
            connection = idle.pop()
            self._lacking.set()
            try:
                return await self._exchange(connection, request, content)
            except httpx.TransportError:
                if not (connection.silent and connection.fault is not None):
                    raise
                self.stale += 1
        return await self._exchange(await self._connect(origin), request, content)

    async def _exchange(self, connection: Connection, request: httpx.Request, content: bytes) -> httpx.Response:
        """The response to a request as soon as its head is there."""
        try:
            connection.ask(request, content)
            while (head := connection.head) is None:
                if connection.fault is not None:
                    raise connection.fault
                await connection.wait()
        except BaseException:
            connection.abort()
            raise
        stream = Stream(connection, self._release)
        return httpx.Response(head.status_code, headers=head.headers.raw_items(), stream=stream,
                              extensions={"http_version": b"HTTP/" + head.http_version, "reason_phrase": head.reason,
                                          BODY: stream})

    def _release(self, connection: Connection) -> None:
        if not connection.reusable:
            connection.abort()
            return
        self._griefs = 0
        connection.rest()
        self.idle.setdefault(connection.origin, []).append(connection)

    async def _connect(self, origin: Origin) -> Connection:
        scheme, host, port = origin
        tls = {"ssl": self.context, "server_hostname": host} if scheme == "https" else {}
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await loop.create_connection(lambda: Connection(origin, self._idle_lost), host, port,
                                                             **tls)
        except TimeoutError:
            raise httpx.ConnectTimeout(f"no connection within {CONNECT_SECONDS:.0f} s") from None
        except OSError as error:
            raise httpx.ConnectError(said(error)) from None
        self.opened += 1
        return connection

    async def aclose(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for connection in [each for idle in self.idle.values() for each in idle]:
            connection.abort()
        self.idle.clear()

    # -- connections opened ahead --------------------------------------------------------------------------------------

    def keep(self, url: httpx.URL, count: int) -> None:
        """From now on have `count` idle connections to the origin of `url`, whenever the peer lets us."""
        self._lacking.set()
        self._keepers.append(asyncio.ensure_future(self._keep(origin_of(url), count)))

    async def _keep(self, origin: Origin, count: int) -> None:
        idle = self.idle.setdefault(origin, [])
        while True:
            await self._lacking.wait()
            self._lacking.clear()
            while len(idle) < count:
                await asyncio.sleep(PAUSES[min(self._griefs, len(PAUSES) - 1)])
                try:
                    connection = await self._connect(origin)
                except httpx.TransportError:
                    self._griefs += 1
                else:
                    connection.rest()
                    idle.insert(0, connection)

    def renew(self) -> None:
        """Somebody waited in vain: what is idle may be half open as well, and is opened anew."""
        for idle in self.idle.values():
            for connection in idle:
                connection.abort()
            idle.clear()
        self._lacking.set()

    def _idle_lost(self, connection: Connection) -> None:
        idle = self.idle.get(connection.origin, [])
        if connection in idle:
            idle.remove(connection)
            self._griefs = 0 if time.monotonic() - connection.opened > CALM_SECONDS else self._griefs + 1
            self._lacking.set()


def origin_of(url: httpx.URL) -> Origin:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def said(error: Exception) -> str:
    """What the system says of a connection that failed, without addresses."""
    if isinstance(error, socket.gaierror):
        return "its name has no address"
    if certificate := getattr(error, "verify_message", ""):
        return f"its certificate is not trusted, {certificate}"
    number = getattr(error, "errno", None)
    return os.strerror(number).lower() if isinstance(number, int) and number > 0 else "it does not take connections"
