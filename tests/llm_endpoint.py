"""A local server that speaks the wire format of the OpenAI API, strict in what it accepts, and misbehaves on command.

Not a model: it says what the test wrote down.  The rule: a request that the real one would refuse gets the real one's
refusal, whatever was to be said.
"""
import asyncio
import json
import re
import struct
from collections import deque
from collections.abc import Awaitable, Callable

import h11

KEY = "sk-test-0123456789abcdefABCDEF"
AUDIO_RATE = 24000              # Hz of audio/speech as PCM

NUMBER, TEXT, FLAG, LIST = (int, float), (str,), (bool,), (list,)
CHAT = {"tools": (list,), "tool_choice": TEXT, "model": TEXT, "messages": LIST, "stream": FLAG, "max_tokens": NUMBER,
        "max_completion_tokens": NUMBER, "temperature": NUMBER}
SPEECH = {"model": TEXT, "input": TEXT, "voice": TEXT, "response_format": TEXT, "speed": NUMBER, "instructions": TEXT}
TRANSCRIPTION = {"file", "model", "prompt", "stream", "response_format", "language"}
ROLES = {"system", "user", "assistant"}


class Refused(Exception):
    """What the request is answered with instead."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None):
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


class Exchange:
    """One request, and the way to answer it."""

    def __init__(self, request: h11.Request, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.method, self.path = request.method.decode(), request.target.decode()
        self.headers = {name.decode(): value.decode() for name, value in request.headers}
        self.raw = body
        self.body: dict = {}                    # of JSON, or the fields of a form
        self.gone = asyncio.Event()             # the client closed the connection before the answer was over
        self.over = False                       # the answer was sent whole
        self.reader, self.writer = reader, writer

    async def head(self, status: int = 200, content_type: str = "text/event-stream", length: int | None = None,
                   **headers: str) -> None:
        """The response's head; without a length its body is chunked."""
        framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        fields = f"Content-Type: {content_type}\r\n{framing}\r\n{more}"
        await self.write(f"HTTP/1.1 {status} Whatever\r\n{fields}\r\n".encode())

    async def write(self, data: bytes) -> None:
        """As it is, whatever HTTP says."""
        self.writer.write(data)
        await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        await self.write(b"%x\r\n%s\r\n" % (len(data), data))

    async def event(self, data: dict | str) -> None:
        await self.chunk(b"data: %s\n\n" % (data if isinstance(data, str) else json.dumps(data)).encode())

    async def end(self) -> None:
        await self.write(b"0\r\n\r\n")
        self.over = True

    async def whole(self, status: int, content_type: str, body: bytes, **headers: str) -> None:
        await self.head(status, content_type, len(body), **headers)
        await self.write(body)
        self.over = True

    def reset(self) -> None:
        """RST: the connection is gone, and what was on its way with it."""
        self.writer.get_extra_info("socket").setsockopt(*LINGER_NOT)
        self.writer.transport.abort()

    def close(self) -> None:
        """FIN in the middle of it."""
        self.writer.close()

    async def until_gone(self) -> None:
        """The client has closed the connection."""
        await self.reader.read(1)
        self.gone.set()


LINGER_NOT = (1, 13, struct.pack("ii", 1, 0))      # SOL_SOCKET, SO_LINGER: on, 0 s

Doing = Callable[[Exchange], Awaitable[None]]


class LocalEndpoint:
    """`async with LocalEndpoint() as endpoint`; then `endpoint.will(...)` says how the next requests are answered."""

    def __init__(self, ssl=None):
        self.seen: list[Exchange] = []          # requests, but for those to /models
        self.connections = 0                    # accepted
        self.has_models = True
        self.realtime: Doing | None = None      # what is done with who wants a Realtime session; None: there are none
        self.refuses: set[str] = set()          # options that the model does not take
        self.go = asyncio.Event()               # what waits for the test's word goes on
        self._doings: deque[Doing] = deque()
        self._ssl = ssl
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task] = set()

    async def __aenter__(self) -> "LocalEndpoint":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._ssl)
        return self

    async def __aexit__(self, *exc) -> None:
        self._server.close()
        self.cut()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    @property
    def url(self) -> str:
        scheme, host = ("https", "localhost") if self._ssl else ("http", "127.0.0.1")
        return f"{scheme}://{host}:{self._server.sockets[0].getsockname()[1]}/v1"

    def will(self, *doings: Doing) -> None:
        self._doings.extend(doings)

    def on_word(self, step: Callable[["Exchange"], object]) -> Callable[["Exchange"], Awaitable[None]]:
        """The step, once the test has set `go`."""
        async def waiting(exchange: Exchange) -> None:
            await self.go.wait()
            if (more := step(exchange)) is not None:
                await more
        return waiting

    def cut(self) -> None:
        """Close all connections, as a server does with those that are idle."""
        for writer in self._open:
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        self._serving.add(task := asyncio.ensure_future(self._serve(reader, writer)))
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (exchange := await read(reader, writer)) is not None:
                await self._answer(exchange)
                if not exchange.over:
                    break
        except ConnectionError:
            pass                                # the test's client went away, which some tests are about
        finally:
            writer.close()
            self._open.discard(writer)

    async def _answer(self, exchange: Exchange) -> None:
        if exchange.path.startswith("/v1/realtime"):
            if self.realtime is None:
                return await refuse(exchange, Refused(404, "no such route"))
            return await self.realtime(exchange)
        try:
            check(exchange, self.refuses)
            if exchange.path == "/v1/models":
                if not self.has_models:
                    raise Refused(404, "no such route")
                models = json.dumps({"object": "list", "data": []}).encode()
                return await exchange.whole(200, "application/json", models)
        except Refused as refused:
            return await refuse(exchange, refused)
        finally:
            if exchange.path != "/v1/models":
                self.seen.append(exchange)
        try:
            await self._doings.popleft()(exchange)
        except ConnectionError:
            exchange.gone.set()
            raise


async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange | None:
    """The next request of a connection; None where it is over."""
    http, request, body = h11.Connection(h11.SERVER), None, b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return Exchange(request, body, reader, writer)
        else:
            return None


# -- what the real one accepts -----------------------------------------------------------------------------------------

def check(exchange: Exchange, refuses: set[str]) -> None:
    """Raises Refused for what the real endpoint would not take."""
    if exchange.headers.get("authorization") != f"Bearer {KEY}":
        raise Refused(401, f"Incorrect API key provided: {exchange.headers.get('authorization')}", "invalid_api_key")
    if not exchange.headers.get("user-agent", "").startswith("AsyncOpenAI/Python "):
        raise Refused(403, "this is not the package")
    route = exchange.method, exchange.path
    if route == ("GET", "/v1/models"):
        return
    if route not in ROUTES:
        raise Refused(404, f"Invalid URL ({exchange.method} {exchange.path})")
    ROUTES[route](exchange)
    for name in exchange.body.keys() & refuses:
        raise Refused(400, f"Unsupported parameter: '{name}'", "unsupported_parameter", name)


def check_json(exchange: Exchange, known: dict[str, tuple], needed: set[str]) -> None:
    if exchange.headers.get("content-type") != "application/json":
        raise Refused(415, "the body is not announced as JSON")
    try:
        body = exchange.body = json.loads(exchange.raw)
    except ValueError:
        raise Refused(400, "We could not parse the JSON body of your request.") from None
    for name, value in body.items():
        if name not in known:
            raise Refused(400, f"Unrecognized request argument supplied: {name}", param=name)
        if not isinstance(value, known[name]) or isinstance(value, bool) and known[name] is not FLAG:
            raise Refused(400, f"Invalid type for '{name}'", "invalid_type", name)
    for name in needed - body.keys():
        raise Refused(400, f"Missing required parameter: '{name}'", "missing_required_parameter", name)


def check_chat(exchange: Exchange) -> None:
    check_json(exchange, CHAT, {"model", "messages"})
    body = exchange.body
    if not body["messages"] or not body.get("stream"):
        raise Refused(400, "there is nothing to stream an answer to")
    for message in body["messages"]:
        if message.get("role") == "tool":
            good = message.keys() == {"role", "tool_call_id", "content"} and type(message["content"]) is str
        elif "tool_calls" in message:
            good = message.keys() == {"role", "content", "tool_calls"} and message["role"] == "assistant" and all(
                call["type"] == "function" and call["id"] and type(json.loads(call["function"]["arguments"])) is dict
                for call in message["tool_calls"])
        else:
            good = message.keys() == {"role", "content"} and message["role"] in ROLES and (
                type(message["content"]) is str or message["role"] == "user" and all(map(is_part, message["content"])))
        if not good:
            raise Refused(400, "Invalid value in 'messages'", param="messages")
    for tool in body.get("tools", ()):
        if tool["type"] != "function" or not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", tool["function"]["name"]):
            raise Refused(400, "Invalid value in 'tools'", param="tools")
    if body.get("tool_choice", "auto") not in ("auto", "none", "required") or (
            "tool_choice" in body and not body.get("tools")):
        raise Refused(400, "Invalid value in 'tool_choice'", param="tool_choice")
    if not (0 <= body.get("temperature", 1) <= 2 and body.get("max_tokens", 1) >= 1):
        raise Refused(400, "a number is out of range")


def is_part(part: dict) -> bool:
    """Of a message that shows a picture."""
    match part:
        case {"type": "text", "text": str()}:
            return len(part) == 2
        case {"type": "image_url", "image_url": {"url": str(url), "detail": "auto" | "low" | "high"}}:
            return len(part) == 2 and url.startswith(("data:image/", "https://"))
    return False


def check_speech(exchange: Exchange) -> None:
    check_json(exchange, SPEECH, {"model", "input", "voice"})
    if exchange.body.get("response_format") != "pcm" or not 0 < len(exchange.body["input"]) <= 4096:
        raise Refused(400, "this is not what a telephone call can use")


def check_transcription(exchange: Exchange) -> None:
    boundary = re.fullmatch(r"multipart/form-data; boundary=(\S+)", exchange.headers.get("content-type", ""))
    if not boundary:
        raise Refused(415, "the body is not announced as a form")
    exchange.body = form(exchange.raw, boundary[1].strip('"').encode())
    if exchange.body.keys() - TRANSCRIPTION or not exchange.body.keys() >= {"file", "model"}:
        raise Refused(400, f"the form has the fields {sorted(exchange.body)}")
    rate, samples = wav(exchange.body["file"])
    if samples < rate // 10:
        raise Refused(400, "Audio file is too short. Minimum audio length is 0.1 seconds.", "audio_too_short", "file")


def form(raw: bytes, boundary: bytes) -> dict[str, str | bytes]:
    """The fields of multipart/form-data; `file` as bytes, which must have a name and a type."""
    first, *parts, last = raw.split(b"--" + boundary)
    if first or last.strip() != b"--":
        raise Refused(400, "the form is broken")
    fields = {}
    for part in parts:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        found = re.search(rb'Content-Disposition: form-data; name="(\w+)"(; filename="[\w.]+\.wav")?', head)
        value = content.removesuffix(b"\r\n")
        if found[1] == b"file":
            if not found[2] or b"Content-Type: audio/" not in head:
                raise Refused(400, "Unrecognized file format.", param="file")
        fields[found[1].decode()] = value if found[1] == b"file" else value.decode()
    return fields


def wav(data: bytes) -> tuple[int, int]:
    """Rate and samples of a WAV file of 16-bit mono PCM whose head says the truth."""
    riff, size, kind, _, length, coding, channels, rate, per_second, align, bits, data_tag, count = struct.unpack(
        "<4sI4s4sIHHIIHH4sI", data[:44])
    truth = (b"RIFF", len(data) - 8, b"WAVE", 16, 1, 1, rate * 2, 2, 16, b"data", len(data) - 44)
    if (riff, size, kind, length, coding, channels, per_second, align, bits, data_tag, count) != truth:
        raise Refused(400, "Invalid file format.", param="file")
    return rate, count // 2


ROUTES = {("POST", "/v1/chat/completions"): check_chat, ("POST", "/v1/audio/speech"): check_speech,
          ("POST", "/v1/audio/transcriptions"): check_transcription}


async def refuse(exchange: Exchange, refused: Refused, **headers: str) -> None:
    error = {"message": str(refused), "type": "invalid_request_error", "param": refused.param, "code": refused.code}
    await exchange.whole(refused.status, "application/json", json.dumps({"error": error}).encode(), **headers)


# -- answers -----------------------------------------------------------------------------------------------------------

def completion(content: str | None = None, finish: str | None = None) -> dict:
    """A chunk of a streamed completion as OpenAI sends it; the first one names the role."""
    delta = {} if content is None else {"content": content}
    return {"id": "chatcmpl-Cz0aQ8kP1r", "object": "chat.completion.chunk", "created": 1795340000,
            "model": "gpt-4o-mini-2024-07-18", "service_tier": "default", "system_fingerprint": "fp_0123456789",
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}], "usage": None,
            "obfuscation": "a1b2c3"}


def says(*pieces: str, finish: str | None = "stop", done: bool = True) -> Doing:
    """A streamed completion of these pieces; without `finish` or `done` its end is missing."""
    async def doing(exchange: Exchange) -> None:
        await exchange.head()
        first = completion("")
        first["choices"][0]["delta"]["role"] = "assistant"
        await exchange.event(first)
        for piece in pieces:
            await exchange.event(completion(piece))
        if finish:
            await exchange.event(completion(finish=finish))
            await exchange.event({**completion(), "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2,
                                                                           "total_tokens": 11}})
        if done:
            await exchange.event("[DONE]")
        await exchange.end()
    return doing


def answers(status: int, content_type: str, body: str | bytes, **headers: str) -> Doing:
    """A response with a length, whatever it may mean."""
    raw = body.encode() if isinstance(body, str) else body
    return lambda exchange: exchange.whole(status, content_type, raw, **headers)


def fails(status: int, code: str | None = None, **headers: str) -> Doing:
    """An error as the API tells it."""
    return lambda exchange: refuse(exchange, Refused(status, f"secret words about {KEY}", code), **headers)


def begins(*steps: bytes | str | dict, then: Callable[[Exchange], object],
           content_type: str = "text/event-stream") -> Doing:
    """A chunked response that comes as far as these chunks (bytes) and events; `then` decides how it goes on."""
    async def doing(exchange: Exchange) -> None:
        await exchange.head(content_type=content_type)
        for step in steps:
            await (exchange.chunk(step) if isinstance(step, bytes) else exchange.event(step))
        if (waiting := then(exchange)) is not None:
            await waiting
    return doing


def does(then: Callable[[Exchange], object]) -> Doing:
    """Nothing is said at all, or what `then` says."""
    async def doing(exchange: Exchange) -> None:
        if (waiting := then(exchange)) is not None:
            await waiting
    return doing
