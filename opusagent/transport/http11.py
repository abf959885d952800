"""The little HTTP/1.1 we need, sans I/O: one request head in, one answer out, then close or speak WebSocket.

It reads no body (of a POST it says how long that is), keeps no connection alive and knows no route.  h11 reads the
grammar of a finished head; what stands here is what h11 lets through: sizes, line ends, bytes, and the one request
shape that is accepted.
The rule: a head is judged as its bytes arrive, in their order, so that every split of the stream gets the same
answer and nothing past the limits is ever kept.  Refusals are ProtocolError(status, sentence) and quote no input.
"""
import binascii
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha1
from urllib.parse import unquote_plus

import h11

from .. import ProtocolError

MAX_HEAD = 8192             # bytes of a whole head, with its line ends and the empty line
MAX_LINE = 4096             # bytes of one line, without its line end; an ephemeral key (ephemeral.py) is the longest
MAX_LINES = 64              # header lines; the first line is not one of them
MAX_BODY = 32768            # bytes of a POST; a platform's webhook has a few thousand
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

PLAIN = "text/plain; charset=utf-8"
MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"          # RFC 6455 section 1.3

# Each status we send: its phrase, and the fields it needs unless the caller gives its own.
STATUSES: dict[int, tuple[str, dict[str, str]]] = {
    200: ("OK", {}),
    400: ("Bad Request", {}),
    401: ("Unauthorized", {"WWW-Authenticate": "Bearer"}),
    403: ("Forbidden", {}),
    404: ("Not Found", {}),
    405: ("Method Not Allowed", {"Allow": "GET, HEAD"}),
    408: ("Request Timeout", {}),
    411: ("Length Required", {}),
    413: ("Content Too Large", {}),
    426: ("Upgrade Required", {"Connection": "close, Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}),
    429: ("Too Many Requests", {}),
    431: ("Request Header Fields Too Large", {}),
    500: ("Internal Server Error", {}),
    503: ("Service Unavailable", {"Retry-After": "1"}),
}

# Known methods that are answered with 405; any other word is no request at all.
OTHER_METHODS = frozenset(("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"))

# A second line of one of these could be read two ways by two programs on the request's path.
SINGLE = frozenset(("host", "upgrade", "origin", "authorization", "content-length", "transfer-encoding",
                    "sec-websocket-key", "sec-websocket-version", "sec-websocket-accept"))

_ALPHANUMERIC = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_TOKEN = _ALPHANUMERIC + b"!#$%&'*+-.^_`|~"                                 # RFC 9110 section 5.6.2
_TARGET = _ALPHANUMERIC + b"-._~!$&'()*+,;=:@/?%"                           # RFC 3986: path, query and escapes
_HOST = _ALPHANUMERIC + b"-._~:[]"                                          # names, addresses and a port
_IN_FIRST = bytes(range(0x20, 0x7F))                                        # visible ASCII and the space
_IN_LINE = bytes((9, *_IN_FIRST, *range(0x80, 0x100)))                      # no control character but the tab
_LENGTHS = re.compile(rb"^content-length:([^\r\n]*)\r\n", re.IGNORECASE | re.MULTILINE)
_HEXADECIMAL = frozenset("0123456789abcdefABCDEF")

Fields = Iterable[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Head:
    """A request head that has passed every rule of this module."""

    method: str                             # "GET", "HEAD", or "POST" where that is taken
    target: str                             # path and query exactly as sent: what a signature is made over
    path: str                               # as sent, never decoded: a route has one spelling only
    query: dict[str, str]                   # decoded; names are unique, no value holds a control character
    headers: tuple[tuple[str, str], ...]    # lower-case name and value (Latin-1), in the order they came
    length: int = 0                         # bytes of the body that follows; only a POST has one

    def get(self, name: str, default: str | None = None) -> str | None:
        """A header's value by its lower-case name; several lines are joined by commas (RFC 9110 section 5.3)."""
        return _joined(self.headers, name, default)

    def tokens(self, name: str) -> tuple[str, ...]:
        """The elements of a comma-separated header, empty ones left out."""
        return _elements(self.get(name, ""))

    @property
    def upgrade(self) -> bool:
        """True where another protocol is asked for; accept() judges whether it is properly ours."""
        return self.get("upgrade") is not None


@dataclass(frozen=True, slots=True)
class Response:
    """The head of a server's answer; 101 means that every rule of RFC 6455 section 4.1 was kept."""

    status: int
    headers: tuple[tuple[str, str], ...]    # as in Head

    def get(self, name: str, default: str | None = None) -> str | None:
        return _joined(self.headers, name, default)


# -- lines -----------------------------------------------------------------------------------------------------------

class HeadLines:
    """Collects one head from a stream cut anywhere, and refuses it at the first byte that cannot be part of one."""

    __slots__ = ("check_first", "held", "line", "lines", "rest")

    def __init__(self, check_first: Callable[[bytes], None]):
        self.check_first = check_first      # judges the first line as soon as it is whole
        self.held = bytearray()             # the head so far, at most MAX_HEAD bytes
        self.line = 0                       # where the unfinished line begins in `held`
        self.lines = 0                      # finished lines
        self.rest = b""                     # what followed the head

    def feed(self, data: bytes | bytearray | memoryview) -> bytes | None:
        """The whole head once its empty line is there, None before; raises ProtocolError.  Not to be fed after that."""
        room = MAX_HEAD - len(self.held)
        self.held += data[:room]
        while (end := self.held.find(b"\n", self.line)) >= 0:
            last = self._finish(bytes(self.held[self.line:end]))
            self.line = end + 1
            if last:
                self.rest = bytes(self.held[self.line:]) + bytes(data[room:])
                return bytes(self.held[:self.line])
        self._check(bytes(self.held[self.line:]).removesuffix(b"\r"))
        if len(self.held) == MAX_HEAD:
            raise ProtocolError(431, "The head is longer than 8192 bytes.")
        return None

    def _finish(self, ended: bytes) -> bool:
        """Judges a line without its LF; True for the empty one that ends the head."""
        line = ended.removesuffix(b"\r")
        self._check(line)
        if len(line) == len(ended):
            raise ProtocolError(400, "A line ends in a bare LF; lines end in CR LF.")
        if not line and self.lines:
            return True
        if not self.lines:
            self.check_first(line)
        if self.lines > MAX_LINES:
            raise ProtocolError(431, "The head has more than 64 header lines.")
        self.lines += 1
        return False

    def _check(self, line: bytes) -> None:
        """Judges what has come of a line: its bytes first, then its length."""
        if self.lines and line[:1] in (b" ", b"\t"):
            raise ProtocolError(400, "A header line begins with white space.")
        if wrong := line[:MAX_LINE].translate(None, _IN_LINE if self.lines else _IN_FIRST):
            raise ProtocolError(400, "A CR stands alone; lines end in CR LF." if wrong[:1] == b"\r"
                                else "The head holds a character that HTTP does not allow there.")
        if len(line) > MAX_LINE:
            raise ProtocolError(431, "A line of the head is longer than 4096 bytes.")


# -- the server's side -----------------------------------------------------------------------------------------------

class HeadParser:
    """A request head from arbitrary pieces.  `rest` holds what followed it: frames, and only after the 101."""

    __slots__ = ("_lines", "_takes_post")

    def __init__(self, takes_post: Callable[[str], bool] = lambda path: False) -> None:
        """`takes_post`: whether a path can be posted to."""
        self._lines = HeadLines(_check_request_line)
        self._takes_post = takes_post

    @property
    def rest(self) -> bytes:
        return self._lines.rest

    def feed(self, data: bytes | bytearray | memoryview) -> Head | None:
        """The head once it is whole, None before.  Raises ProtocolError(400, 405 or 431, sentence)."""
        head = self._lines.feed(data)
        return None if head is None else _read_request(head, self._takes_post)


def _check_request_line(line: bytes) -> None:
    parts = line.split(b" ")
    if len(parts) != 3 or not all(parts):
        raise ProtocolError(400, "The request line is not a method, a path and a version with one space between.")
    if parts[2] != b"HTTP/1.1":
        raise ProtocolError(400, "Only HTTP/1.1 is spoken here.")
    if not parts[1].startswith(b"/"):
        raise ProtocolError(400, "The request target is not a path.")
    if parts[1].translate(None, _TARGET):
        raise ProtocolError(400, "The path holds a character that must be percent-encoded.")
    if not _escaped_well(parts[1].decode()):
        raise ProtocolError(400, "The path holds a percent sign without two hexadecimal digits.")


def _read_request(raw: bytes, takes_post: Callable[[str], bool]) -> Head:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(raw)
    try:
        request = connection.next_event()
    except h11.RemoteProtocolError:
        raise ProtocolError(400, "The head is not well-formed HTTP/1.1, or its Host header is missing.") from None
    headers = _text(request.headers)
    target = request.target.decode()
    path, _, query = target.partition("?")
    head = Head(request.method.decode(), target, path, _read_query(query), headers)
    posted = head.method == "POST" and not head.upgrade and takes_post(path)
    _check_request(head, posted)
    return replace(head, length=_body_length(raw)) if posted else head


def _check_request(head: Head, posted: bool) -> None:
    names = [name for name, _ in head.headers]
    if any(name in SINGLE and names.count(name) > 1 for name in set(names)):
        raise ProtocolError(400, "A header that may come once came twice.")
    if head.method not in ("GET", "HEAD") and not posted:
        known = head.method in OTHER_METHODS and not head.upgrade
        raise ProtocolError(405 if known else 400, "Only GET and HEAD are answered here.")
    if "transfer-encoding" in names or "content-length" in names and not posted:
        raise ProtocolError(400, "A request here has no body.")
    host = head.get("host", "").encode("latin-1")
    if not host or host.translate(None, _HOST):
        raise ProtocolError(400, "The Host header is not a name or an address.")


def _body_length(raw: bytes) -> int:
    """Read where it stands: h11 lets a length that is given twice pass as one."""
    lengths = _LENGTHS.findall(raw)
    if not lengths:
        raise ProtocolError(411, "A POST here says how long its body is.")
    length = lengths[0].strip(b" \t")
    if len(lengths) > 1 or not length.isdigit():
        raise ProtocolError(400, "The Content-Length is not a number.")
    if len(length) > 9 or int(length) > MAX_BODY:
        raise ProtocolError(413, "The body is longer than 32768 bytes.")
    return int(length)


def _read_query(text: str) -> dict[str, str]:
    query: dict[str, str] = {}
    for piece in filter(None, text.split("&")):
        try:
            name, value = (unquote_plus(part, errors="strict") for part in piece.partition("=")[::2])
        except UnicodeDecodeError:
            raise ProtocolError(400, "The query is not UTF-8.") from None
        if any(c < " " or "\x7f" <= c <= "\x9f" for c in name + value):
            raise ProtocolError(400, "The query holds a control character.")
        if name in query:
            raise ProtocolError(400, "The query gives one name twice.")
        query[name] = value
    return query


def accept(head: Head, protocols: Sequence[str] = ()) -> bytes:
    """The 101 for this request, or ProtocolError(400 or 426, sentence).

    The first subprotocol of the client's that is also in `protocols` is chosen, none otherwise.  Every extension
    that is offered (permessage-deflate) is declined by not being named.
    """
    if not head.upgrade:
        raise ProtocolError(426, "This address speaks WebSocket: ask for an upgrade.")
    if head.method != "GET":
        raise ProtocolError(400, "A WebSocket begins with GET.")
    if not _has(head.get("upgrade", ""), "websocket"):
        raise ProtocolError(400, "The Upgrade header does not name websocket.")
    if not _has(head.get("connection", ""), "upgrade"):
        raise ProtocolError(400, "The Connection header does not name Upgrade.")
    if head.get("sec-websocket-version") != "13":
        raise ProtocolError(426, "Only version 13 of WebSocket is spoken here.")
    if not _is_key(head.get("sec-websocket-key", "")):
        raise ProtocolError(400, "The Sec-WebSocket-Key header is not 16 bytes in base64.")
    fields = {"Upgrade": "websocket", "Connection": "Upgrade",
              "Sec-WebSocket-Accept": accept_value(head.get("sec-websocket-key", ""))}
    if protocol := choose_protocol(head, protocols):
        fields["Sec-WebSocket-Protocol"] = protocol
    return _write("HTTP/1.1 101 Switching Protocols", fields.items())


def choose_protocol(head: Head, protocols: Sequence[str]) -> str | None:
    """The subprotocol that accept() answers with.  Raises ProtocolError(400) where an offer is no token."""
    offers = head.tokens("sec-websocket-protocol")
    if any(offer.encode("latin-1").translate(None, _TOKEN) for offer in offers):
        raise ProtocolError(400, "The Sec-WebSocket-Protocol header is not a list of tokens.")
    return next((offer for offer in offers if offer in protocols), None)


def accept_value(key: str) -> str:
    """What proves that the server has read the key (RFC 6455 section 4.2.2, step 5.4)."""
    return b64encode(sha1((key + MAGIC).encode()).digest()).decode()


def response(status: int, body: str | bytes = b"", content_type: str = PLAIN, headers: Fields = (),
             *, head_only: bool = False) -> bytes:
    """A whole answer, after which the connection closes.  ValueError for a field that cannot stand in a head.

    `headers` replace ours of the same spelling (Retry-After); `head_only` answers HEAD: the length without the body.
    """
    phrase, needed = STATUSES[status]
    content = body.encode() if isinstance(body, str) else body
    fields = {"Content-Type": content_type, "Content-Length": str(len(content)), "Cache-Control": "no-store",
              "X-Content-Type-Options": "nosniff", "Connection": "close", **needed, **dict(headers)}
    return _write(f"HTTP/1.1 {status} {phrase}", fields.items()) + (b"" if head_only else content)


def refusal(error: ProtocolError, *, head_only: bool = False) -> bytes:
    """The answer to a request that raised: its status and its sentence, nothing of what was sent."""
    own = [("Retry-After", str(error.retry_after))] if error.retry_after else []
    own += [("Allow", error.allow)] if error.allow else []
    return response(error.code, error.reason + "\n", headers=own, head_only=head_only)


def posted_to() -> ProtocolError:
    """The refusal of another method at an address that takes nothing but POST."""
    error = ProtocolError(405, "This address is posted to.")
    error.allow = "POST"
    return error


# -- the caller's side -----------------------------------------------------------------------------------------------

class ClientHandshake:
    """A caller's upgrade: send `request`, feed what comes back; `rest` holds frames, or the body of a refusal."""

    __slots__ = ("request", "_key", "_protocols", "_connection", "_lines")

    def __init__(self, host: str, target: str, nonce: bytes, headers: Fields = (), protocols: Sequence[str] = ()):
        """`host` as in the Host header, `target` path and query, `nonce` 16 random bytes."""
        self._key = b64encode(nonce).decode()
        self._protocols = tuple(protocols)
        self._lines = HeadLines(_check_status_line)
        self._connection = h11.Connection(h11.CLIENT)
        fields = {"Host": host, "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": self._key,
                  "Sec-WebSocket-Version": "13", **dict(headers)}
        if protocols:
            fields["Sec-WebSocket-Protocol"] = ", ".join(protocols)
        self.request: bytes = self._connection.send(
            h11.Request(method="GET", target=target, headers=list(fields.items())))
        self._connection.send(h11.EndOfMessage())

    @property
    def rest(self) -> bytes:
        return self._lines.rest

    def feed(self, data: bytes | bytearray | memoryview) -> Response | None:
        """The answer once its head is whole, None before.  ProtocolError where it is no HTTP, or no 101 for us."""
        raw = self._lines.feed(data)
        if raw is None:
            return None
        self._connection.receive_data(raw)
        try:
            event = self._connection.next_event()
        except h11.RemoteProtocolError:
            raise ProtocolError(400, "The server's answer is not well-formed HTTP/1.1.") from None
        answer = Response(event.status_code, _text(event.headers))
        if answer.status == 101:
            self._check(answer)
        return answer

    def _check(self, answer: Response) -> None:
        names = [name for name, _ in answer.headers]
        protocol = answer.get("sec-websocket-protocol")
        if any(name in SINGLE and names.count(name) > 1 for name in names):
            raise ProtocolError(400, "The server sent a header twice that may come once.")
        if answer.get("upgrade", "").lower() != "websocket" or not _has(answer.get("connection", ""), "upgrade"):
            raise ProtocolError(400, "The server switched to something that is not WebSocket.")
        if answer.get("sec-websocket-accept") != accept_value(self._key):
            raise ProtocolError(400, "The server's Sec-WebSocket-Accept does not fit our key.")
        if answer.get("sec-websocket-extensions"):
            raise ProtocolError(400, "The server chose an extension that was not offered.")
        if protocol and protocol not in self._protocols:
            raise ProtocolError(400, "The server chose a subprotocol that was not offered.")


def _check_status_line(line: bytes) -> None:
    if not line.startswith(b"HTTP/1.1 ") or not line[9:12].isdigit() or line[12:13] not in (b" ", b""):
        raise ProtocolError(400, "The server does not answer in HTTP/1.1.")


# -- text ------------------------------------------------------------------------------------------------------------

def _text(headers: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[str, str], ...]:
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)


def _joined(headers: Fields, name: str, default: str | None) -> str | None:
    values = [value for key, value in headers if key == name]
    return ", ".join(values) if values else default


def _elements(value: str) -> tuple[str, ...]:
    return tuple(filter(None, (element.strip(" \t") for element in value.split(","))))


def _has(value: str, token: str) -> bool:
    return any(element.lower() == token for element in _elements(value))


def _is_key(value: str) -> bool:
    try:
        return len(value) == 24 and len(binascii.a2b_base64(value, strict_mode=True)) == 16
    except ValueError:                      # binascii.Error is one; so is a character beyond ASCII
        return False


def _escaped_well(text: str) -> bool:
    return all(len(rest) >= 2 and _HEXADECIMAL.issuperset(rest[:2]) for rest in text.split("%")[1:])


def _write(first: str, fields: Fields) -> bytes:
    lines = [first]
    for name, value in fields:
        if not name or name.encode("latin-1").translate(None, _TOKEN) or not (value.isascii() and value.isprintable()):
            raise ValueError(f"the field {name!r} cannot stand in a head")
        lines.append(f"{name}: {value}")
    return "\r\n".join((*lines, "", "")).encode("ascii")
