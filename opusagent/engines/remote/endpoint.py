"""An endpoint of the OpenAI API: the package's client over connections that are kept warm.

It asks and listens; what is asked and what the answer means is known to the stages (openai/, realtime/).  The package
says where to ask and as whom; requests go straight to its HTTP client, since its own way there takes a millisecond of
the loop for each.  The rule: whatever goes wrong becomes one EngineError, a sentence that names whose endpoint it was
and what happened, and never shows the key, what was sent, or what the peer wrote.
"""
import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from urllib.request import getproxies, proxy_bypass

import openai
import orjson

from ... import ConfigError, EngineError
from ...endpoints import Target
from .breaker import CLOSED, OPEN, PROBING, Breaker
from .transport import BODY, CONNECT_SECONDS, Transport, httpx

log = logging.getLogger("opusagent")

NO_KEY = "no-key"               # self-hosted endpoints ask for none, the package insists on one
DRAIN_SECONDS = 0.5             # for the rest of an answer that is over, so that its connection can be used again
HELD_SECONDS = 10.0             # the longest that an endpoint can ask to be left alone
EVENT_BYTES = 1 << 20           # of one server-sent event
REFUSAL_BYTES = 1 << 16         # of the body of an error

# Options that not every model takes, and what they are called where they are not; None: nothing
RESPELT = {"max_tokens": "max_completion_tokens", "temperature": None, "prompt": None, "stream_options": None,
           "speed": None, "instructions": None}

OPENNESS = {CLOSED: 0, PROBING: 0.5, OPEN: 1}   # of a breaker, in the metrics
FAULTS = (httpx.HTTPError, OSError, UnicodeError)       # a TimeoutError is an OSError
KEY_WANTED = (401, 403)         # what they answer to a key that they do not know, or to none
NOT_HAD = (400, 404, 422)       # what endpoints answer when there is no such model or voice
ONE_EVENT = re.compile(rb"data:([^\r\n]*)\n\n")
CODE = re.compile(r"[a-z][a-z_]{2,40}")         # what an endpoint calls an error; no key looks like that


class Answer:
    """What an endpoint answers, from its head on."""

    __slots__ = ("finished", "rest", "pieces", "status", "_response")

    def __init__(self, response: httpx.Response):
        self.finished = False           # the rest of it says nothing more
        self.rest: Callable[[bytes], object] | None = None      # ... but may hear it
        self.pieces: AsyncIterator[bytes] = body(response)      # of the body, as they come
        self.status: int = response.status_code
        self._response = response

    def field(self, name: str) -> str:
        """A field of its head, in lower case."""
        return self._response.headers.get(name, "").lower()

    async def next(self, seconds: float) -> bytes:
        """The next piece of the body, b"" at its end.  Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            return await anext(self.pieces, b"")

    async def refusal(self) -> dict:
        """What it says of an error, as far as it does; this reads the body."""
        data = b""
        async for piece in self.pieces:
            data += piece
            if len(data) > REFUSAL_BYTES:
                return {}
        with suppress(ValueError, TypeError, LookupError):
            if isinstance(error := orjson.loads(data)["error"], dict):
                return error
        return {}

    async def close(self) -> None:
        """At once; unless all of it was read, the endpoint sees that nobody listens any more."""
        await self.pieces.aclose()
        await self._response.aclose()

    async def drain(self) -> None:
        with suppress(httpx.HTTPError, TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS), aclosing(self.pieces):
                async for data in self.pieces:
                    if self.rest is not None:
                        self.rest(data)
        await self._response.aclose()


class Endpoint:
    """`open` it, then `post` to it."""

    def __init__(self, target: Target, whose: str, spare: int, number: int = 0):
        """`whose` it is, as sentences say it ("model"); `spare` connections are kept open ahead; `number` is its place
        among several, from 1.  ConfigError."""
        try:
            self.url = httpx.URL(target.base_url)
        except httpx.InvalidURL:
            raise ConfigError(f"{target.place}: openai.base_url is not a URL.") from None
        self.target = target
        self.key = target.api_key or NO_KEY
        self.whose = whose
        self.subject = f"The {whose}'s endpoint" + (f" {number}" if number else "")
        self.labels = {"stage": whose} | ({"endpoint": number} if number else {})
        self.spare = spare
        self.http: httpx.AsyncClient | None = None
        self.headers: dict[str, str] = {}               # who asks
        self.transport: Transport | None = None         # None where a proxy is between: that is left to the package
        self.requests = 0                               # begun
        self.failures = 0
        self.held_until = 0.0                           # monotonic: it asked to be left alone until then
        self.breaker = Breaker()
        self.transient = True                           # what went wrong last may be well a moment later
        self._respelt: dict[str, str | None] = {}       # of RESPELT, what this endpoint asked for
        self._draining: set[asyncio.Task] = set()

    async def open(self) -> None:
        """Make the client and ask the endpoint for something, so that no call waits for TCP or TLS.

        An endpoint that does not answer is told of in the log: it may be back when it is needed.
        """
        logging.getLogger(httpx.__name__).setLevel(logging.WARNING)     # or it has a line for each request
        timeout = openai.Timeout(None, connect=CONNECT_SECONDS)
        self.transport = None if behind_proxy(self.url) else Transport()
        own = {} if self.transport is None else {"transport": self.transport}
        self.http = openai.DefaultAsyncHttpxClient(timeout=timeout, **own)
        client = openai.AsyncOpenAI(api_key=self.key, base_url=self.url, http_client=self.http)
        said = {**client.default_headers, **client.auth_headers, "Accept-Encoding": "identity"}     # packing takes time
        self.headers = {name: value for name, value in said.items() if isinstance(value, str)}
        await self._greet()
        if self.transport is not None:
            self.transport.keep(self.url, self.spare)

    async def _greet(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                answer = Answer(await self.http.send(self._request("GET", "/models"), stream=True))
                told = self._refusal_of(answer.status, await answer.refusal())
                await answer.close()
        except FAULTS as error:
            log.warning("%s %s.", self.subject, reason(error))
        else:
            if answer.status not in (200, 404):         # some have no list of models
                log.warning("%s %s.", self.subject, told)

    async def close(self) -> None:
        for task in self._draining:
            task.cancel()
        if self.http is not None:
            await self.http.aclose()

    @property
    def hold(self) -> float:
        """Seconds for which it is not to be asked; 0 or less: none."""
        return self.held_until - time.monotonic()

    @asynccontextmanager
    async def post(self, path: str, body: dict, accept: str, *, files: dict | None = None, what: str = "",
                   within: float | None = None) -> AsyncIterator[Answer]:
        """Ask; the answer, as soon as its head has come, and `within` so many seconds.

        `accept` is a pattern of the content types it may have, `what` is named where the endpoint refuses to give it.
        Raises EngineError, also for what the reader of its body stumbles over.  When it is left before the answer is
        `finished`, the connection is closed; what goes wrong after that is not the endpoint's failure.
        """
        if why := self.rests():
            raise EngineError(why)
        self.requests += 1
        self.breaker.begin(time.monotonic())
        self.transient = True
        answer = None
        try:
            async with asyncio.timeout(within):
                answer = await self._ask(path, body, files, what)
            if not re.match(accept, content_type := answer.field("content-type")):
                raise EngineError(f"{self.subject} answered with {kind_of(content_type)} instead.")
            yield answer
            self.breaker.succeeded()
        except FAULTS as error:
            self._failed(answer)
            if answer is None and isinstance(error, TimeoutError):
                self._suspect()
            raise EngineError(f"{self.subject} {reason(error)}.") from None
        except EngineError:
            self._failed(answer)
            raise
        except BaseException:                           # nobody wants the answer any more
            self.breaker.dropped()
            raise
        finally:
            if answer is not None and answer.finished:
                self._draining.add(task := asyncio.ensure_future(answer.drain()))
                task.add_done_callback(self._draining.discard)
            elif answer is not None:
                await answer.close()

    def rests(self) -> str:
        """Why it is not to be asked now; "" if it can be."""
        if (hold := self.hold) > 0:
            return f"{self.subject} asked to be left alone for {hold:.1f} s more."
        if (wait := self.breaker.wait(time.monotonic())) > 0:
            return f"{self.subject} failed too often and is left alone for {wait:.1f} s more."
        return ""

    def late(self) -> None:
        """It has not begun to answer in its time, which counts as a failure, though it may still do so."""
        self.failures += 1
        self.breaker.failed(time.monotonic())
        self._suspect()

    def _suspect(self) -> None:
        if self.transport is not None:
            self.transport.renew()

    def _failed(self, answer: Answer | None) -> None:
        self.failures += 1
        if answer is None or not answer.finished:
            self.breaker.failed(time.monotonic())

    async def _ask(self, path: str, body: dict, files: dict | None, what: str) -> Answer:
        """A good answer, its body unread.  An option that the endpoint refuses by its name is not tried again."""
        while True:
            spelt = {name: value for each, value in body.items() if (name := self._respelt.get(each, each))}
            answer = Answer(await self.http.send(self._request("POST", path, spelt, files), stream=True))
            if answer.status == 200:
                return answer
            try:
                refusal = await answer.refusal()
            finally:
                await answer.close()
            name = str(refusal.get("param"))
            if answer.status != 400 or name not in RESPELT.keys() - self._respelt.keys():
                self._hold_on(answer.field("retry-after"))
                self.transient = answer.status >= 500
                wanted = f", asked for {what}" if what and answer.status in NOT_HAD else ""
                raise EngineError(f"{self.subject} {self._refusal_of(answer.status, refusal)}{wanted}.")
            self._respelt[name] = RESPELT[name]

    def _refusal_of(self, status: int, refusal: dict) -> str:
        keyless = status in KEY_WANTED and not self.target.api_key
        return reason_of(status, refusal) + (": there is no key for it, since one goes to the origin that it was given "
                                             "for only" if keyless else "")

    def _request(self, method: str, path: str, body: dict | None = None, files: dict | None = None) -> httpx.Request:
        url = self.url.copy_with(path=self.url.path.rstrip("/") + path)
        if files is None:
            try:
                content = None if body is None else orjson.dumps(body)
            except orjson.JSONEncodeError:              # half a character, say
                raise EngineError(f"{self.subject} was not asked: the words are no Unicode.") from None
            return self.http.build_request(method, url, headers=self.headers, content=content)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "content-type"}
        return self.http.build_request(method, url, headers=headers, data=body, files=files)

    def _hold_on(self, retry_after: str) -> None:
        """An endpoint that says when it can be asked again is not asked before."""
        with suppress(ValueError):                      # it may be a date, or nothing
            self.held_until = time.monotonic() + min(max(float(retry_after), 0.0), HELD_SECONDS)

    def measure(self, metrics) -> None:
        metrics.gauge("endpoint_requests", self.requests, **self.labels)
        metrics.gauge("endpoint_failures", self.failures, **self.labels)
        metrics.gauge("endpoint_open", OPENNESS[self.breaker.state], **self.labels)
        metrics.gauge("endpoint_opened", self.breaker.opened, **self.labels)
        if self.transport is not None:
            metrics.gauge("endpoint_connections_opened", self.transport.opened, **self.labels)


class Events:
    """The data of server-sent events, from bytes that are cut anywhere.  What else an event has is dropped."""

    __slots__ = ("_held",)

    def __init__(self):
        self._held = b""                # the beginning of an event

    def feed(self, data: bytes) -> list[bytes]:
        """The events that are whole now.  Raises EngineError where one never ends."""
        if not self._held and (one := ONE_EVENT.fullmatch(data)):       # as most come
            return [found] if (found := one[1].strip()) else []
        data, tail = self._held + data, b""
        if b"\r" in data:
            tail = b"\r" if data.endswith(b"\r") else b""           # its \n may be next
            data = data.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *events, rest = data.split(b"\n\n")
        self._held = rest + tail
        if len(rest) > EVENT_BYTES:
            raise EngineError("The endpoint sent an event without an end.")
        return [found for event in events if (found := data_of(event))]


def data_of(event: bytes) -> bytes:
    if event.startswith(b"data:") and b"\n" not in event:
        return event[5:].strip()
    return b"\n".join(line[5:] for line in event.split(b"\n") if line.startswith(b"data:")).strip()


def body(response: httpx.Response) -> AsyncIterator[bytes]:
    """What is inside, as it comes: from our own transport without the layers of the package, unless it was packed."""
    own = response.extensions.get(BODY)
    return response.aiter_bytes() if own is None or "content-encoding" in response.headers else aiter(own)


def behind_proxy(url: httpx.URL) -> bool:
    """Whether the environment wants requests to it to go through a proxy."""
    proxies = getproxies()
    return bool(proxies.get(url.scheme) or proxies.get("all")) and not proxy_bypass(url.host)


# -- what happened, to follow the subject of a sentence ----------------------------------------------------------------

def reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "let us wait for too long"
    told = isinstance(error, httpx.TimeoutException | httpx.NetworkError | httpx.RemoteProtocolError)
    return f"failed: {str(error)[:100] if told and str(error) else type(error).__name__}"


def reason_of(status: int, refusal: dict) -> str:
    return f"answered with status {status}{code_of(refusal)}"


def code_of(refusal: object) -> str:
    """What kind of error it tells of, in brackets; its message may have a key in it."""
    words = (str(refusal.get(name)) for name in ("code", "type")) if type(refusal) is dict else ()
    return next((f" ({word})" for word in words if CODE.fullmatch(word)), "")


def kind_of(content_type: str) -> str:
    """A content type as a sentence shows it."""
    found = re.match(r"[a-z]+/[a-z0-9.+-]{1,40}", content_type)
    return found[0] if found else "something without a type"
