"""Rows B1 to B8 and B11: attacks by what stands before the WebSocket.

The limits are the contract's: a head within 3 s, of 8 KiB, 64 lines of 4 KiB; one shape of request; no body.
"""

from __future__ import annotations

import asyncio
import time

from conformance import wire
from conformance.peer import Failed, Peer, Target
from conformance.script import Answer, Get, ask
from conformance.wire import PONG, TEXT, head, ping, text

from .siege import QUICK, TELEPHONY, WIDE, Attack, all_at_once, at, connected, crowd, opened

PLAIN = head()
EVIL = "x-evil"


async def slow_heads(target: Target) -> None:
    async def one(number: int) -> None:
        """A head octet by octet, or never: 408 by the deadline, or turned away before."""
        async with connected(target) as peer:
            deadline = time.monotonic() + 10
            while peer.ended is None and time.monotonic() < deadline and not peer.spoken:
                await peer.send(PLAIN[:1] if number % 2 else b"")
                await asyncio.sleep(0.3)
            if peer.ended is None and not peer.spoken:
                raise Failed("10 s after connecting, the head is still awaited")
            await Answer(408, also=(503, 400), quiet=True).run(peer)

    async def beside(_: int) -> None:
        await asyncio.sleep(1.0)
        began = time.monotonic()
        async with opened(target) as peer:
            await peer.send(ping())
            await Get(PONG, b"").run(peer)
        if time.monotonic() - began > QUICK:
            raise Failed(f"a handshake beside the slow ones took {time.monotonic() - began:.2f} s")

    await asyncio.gather(all_at_once(200, one), all_at_once(10, beside))


async def idle_connections(target: Target) -> None:
    async def one(_: int) -> None:
        """Nothing is ever said: the connection ends by the deadline."""
        async with connected(target) as peer:
            await Answer(408, also=(503,), quiet=True, within=10).run(peer)

    async def beside(_: int) -> None:
        await asyncio.sleep(1.5)
        async with opened(at(target, WIDE)) as peer:
            await peer.send(text("still served"))
            await Get(TEXT, b"still served").run(peer)

    await asyncio.gather(all_at_once(400, one), all_at_once(5, beside))


async def growing_head(target: Target) -> None:
    async def one(number: int) -> None:
        line = (b"X-A: " + b"a" * 93 + b"\r\n", b"X-A: " + b"a" * 200, b"a" * 100)[number % 3]
        async with connected(target) as peer:
            await peer.send(target.fill(PLAIN[:-2]))
            for _ in range(10000):
                if peer.spoken:
                    break
                await peer.send(line)
                await asyncio.sleep(0)
            await Answer(431, also=(400,) if number % 3 == 2 else ()).run(peer)
    await all_at_once(30, one)


async def many_lines(target: Target) -> None:
    for count, without in ((65, ()), (2000, ()), (2000, ("Upgrade",)), (100000, ())):
        async with connected(target) as peer:
            await ask(head(without=without, extra=tuple(f"X-{i}: {i}" for i in range(count)))).run(peer)
            await Answer(431).run(peer)


LONG_VALUES = (
    "Sec-WebSocket-Protocol: a" + " " * 3900 + "b", "Sec-WebSocket-Protocol: " + "," * 3900,
    "Sec-WebSocket-Protocol: " + "a, " * 1300, "Cookie: a=" + '"' * 3900, "Cookie: " + "; " * 1900,
    "Cookie: " + "=" * 3900, "Sec-WebSocket-Extensions: " + 'a; b="' * 600, "Sec-WebSocket-Extensions: " + ";" * 3900,
    "Connection: " + ", " * 1900 + "x", "X-Forwarded-For: " + "1.1.1.1," * 480, "Authorization: " + "Basic " * 600,
)


async def quadratic_values(target: Target) -> None:
    """Values that a regular expression chokes on: an answer within half a second, whatever it is."""
    async def one(number: int) -> None:
        async with connected(target) as peer:
            began = time.monotonic()
            await ask(head(extra=(LONG_VALUES[number],))).run(peer)
            await Answer(101, also=(400, 401, 403, 431)).run(peer)
            if time.monotonic() - began > QUICK:
                raise Failed(f"{LONG_VALUES[number][:40]!r}... took {time.monotonic() - began:.2f} s")
    for number in range(len(LONG_VALUES)):
        await one(number)


INNER = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
# (header lines, what is behind the head)
BODIES = (
    (("Content-Length: 5",), b"hello"), (("Content-Length: 5",), b""), (("Transfer-Encoding: chunked",), b"0\r\n\r\n"),
    (("Transfer-Encoding: chunked", "Content-Length: 4"), b"0\r\n\r\n" + INNER),
    (("Content-Length: 0", "Content-Length: 34"), INNER), (("Transfer-Encoding: xchunked",), INNER),
    (("Transfer-Encoding: chunked, identity",), INNER), (("Transfer-Encoding:\tchunked",), INNER),
    (("Content-Length: +34",), INNER), (("Content-Length: 34, 34",), INNER), (("Content-Length: 0x22",), INNER),
    (("Content-Length: 3_4",), INNER), (("Trailer: X", "TE: trailers", "Content-Length: 1"), b"x"),
)


async def smuggled_requests(target: Target) -> None:
    for extra, behind in BODIES:
        async with connected(target) as peer:
            await ask(head(extra=extra) + behind).run(peer)
            await Answer((400, 501)).run(peer)  # and nothing behind it
    for request in (head(without=("Upgrade", "Connection")), head(without=("Sec-WebSocket-Key",)), INNER):
        async with connected(target) as peer:  # what is glued to a request that is no upgrade is no second request
            await ask(request + INNER).run(peer)
            await one_answer(peer)
    async with connected(target) as peer:  # behind the 101 there are frames only
        await ask(PLAIN + INNER).run(peer)
        await Answer(101).run(peer)
        got = await peer.next("Close 1002")
        if got is None or got.opcode != wire.CLOSE or got.code != 1002:
            raise Failed(f"HTTP behind the 101 gave {got}")


async def one_answer(peer: Peer) -> None:
    """Exactly one response, then the end."""
    response = await peer.response()
    if response is None or response.status == 101:
        raise Failed(f"answered {response and response.status}")
    await peer.body(response)
    if await peer.have(1, "the end of the stream"):
        raise Failed(f"octets behind the one answer: {peer.take(1)!r}...")


# lines, request lines and ends of lines that no parser may take for something else: together over 120
ODD_LINES = tuple(
    "X" + odd + "Y: v"
    for odd in " \t()<>@,;\\\"/[]?={}\x00\x01\x0b\x1f\x7f\x80\xff"
) + tuple(
    "X-Y: a" + odd + "b"
    for odd in "\x00\x01\x07\x08\x0b\x0c\x0e\x1b\x1f\x7f"
) + tuple(
    f"{name}{space}: {value}"
    for name, value in wire.LINES.items() for space in (" ", "\t", "\x00")
) + (
    "", "X", ": v", " X: v", "\tX: v", "X: a\r\n b", "X: a\r\n\tb", "X: a\nY: b", "X: a\rY: b", "X: a\n\nb", "X: a\n b",
    "Content-Length: -1", "Content-Length: +1", "Content-Length: 1_0", "Content-Length: 0x1", "Content-Length: 1 1",
    "Content-Length: 1,1", "Content-Length: 1\r\nContent-Length: 2", "Content-Length: 1\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked", "Transfer-Encoding: gzip", "Transfer-Encoding: \x0bchunked",
    "Transfer-Encoding : chunked", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", "Host: second.example",
    "Host: {host}", f"Sec-WebSocket-Key: {wire.KEY}", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8",
    "X: \x80\x00", "Content-Length: 99999999999999999999",
)
ODD_FIRST = ("GET  {path} HTTP/1.1", "GET {path}  HTTP/1.1", "GET\t{path} HTTP/1.1", "GET {path}\tHTTP/1.1",
             " GET {path} HTTP/1.1", "GET {path} HTTP/1.1 ", "GET {path} HTTP/1.1\t", "get {path} HTTP/1.1",
             "Get {path} HTTP/1.1", "GET {path} http/1.1", "GET {path} HTTP/1.0", "GET {path} HTTP/0.9",
             "GET {path} HTTP/2.0", "GET {path} HTTP/3", "GET {path} HTTP/1.11", "GET {path} HTTP/1",
             "GET {path} HTTP/01.1", "GET {path} HTTP/1.1x", "GET {path} HTTP/1,1", "GET {path} HTTP", "GET {path}",
             "GET HTTP/1.1", "GET", "", "GET {path} x HTTP/1.1", "GET {path}\x00 HTTP/1.1", "GET {path}\x7f HTTP/1.1",
             "GET {path}\xff HTTP/1.1", "GET \\ HTTP/1.1", "GET * HTTP/1.1", "GET {host} HTTP/1.1",
             "CONNECT {host} HTTP/1.1", "POST {path} HTTP/1.1", "PUT {path} HTTP/1.1", "TRACE {path} HTTP/1.1",
             "G(T {path} HTTP/1.1", "\x16\x03\x01 {path} HTTP/1.1", "PRI * HTTP/2.0")


def odd_requests() -> list[bytes]:
    """All of them, each the plain request with one thing wrong."""
    requests = [head(extra=(line,)) for line in ODD_LINES if line]
    requests += [PLAIN.replace(b"\r\n", b"\r\n" + line.encode("latin-1") + b"\r\n", 1) for line in ODD_LINES if line]
    requests += [head(first) for first in ODD_FIRST]
    requests += [PLAIN.replace(b"\r\n", end, 1) for end in (b"\n", b"\r", b"\n\r", b"\r\r\n", b"\x00\r\n", b"\x0b\r\n")]
    requests += [PLAIN[:-4] + end for end in (b"\n\n", b"\r\n\n", b"\n\r\n", b"\r\r", b"\r\n\r\r\n")]
    return requests


async def odd_http(target: Target) -> None:
    """Over 200 requests: each refused, the stream ended, nothing served."""
    requests, served = odd_requests(), []
    gate = asyncio.Semaphore(16)

    async def one(request: bytes) -> None:
        async with gate, connected(target) as peer:
            await ask(request + b"\r\n\r\n").run(peer)
            response = await peer.response()
            if response is None or response.status not in (400, 404, 405, 426, 431, 501, 505):
                served.append(f"{request[:400]!r} -> {response and response.status}")
                return
            await peer.body(response)
            if await peer.have(1, "the end of the stream"):
                served.append(f"{request[:400]!r} -> a second answer")
    await asyncio.gather(*map(one, requests))
    if served:
        raise Failed(f"{len(served)} of {len(requests)} odd requests: {served[:10]}")


CRLF = f"%0d%0a{EVIL}:%201"
INJECTED_PATHS = (f"{TELEPHONY}?callId={CRLF}", f"{WIDE}{CRLF}", f"{WIDE}/{CRLF}", f"/health?{CRLF}", f"//{EVIL}",
                  f"/ws/{EVIL}", f"/{EVIL}%00")
INJECTED_LINES = (
    f"Sec-WebSocket-Protocol: {EVIL}", f"Origin: http://{EVIL}", f"X-Request-Id: {EVIL}",
    f"Sec-WebSocket-Extensions: {EVIL}", f"Sec-WebSocket-Protocol: a\r{EVIL}: 1", f"Origin: http://a\n{EVIL}: 1",
)


async def header_injection(target: Target) -> None:
    """What is sent in never comes back as a line of the response."""
    requests = [head(f"GET {path} HTTP/1.1") for path in INJECTED_PATHS]
    requests += [head(extra=(line,)) for line in INJECTED_LINES]
    requests += [head(swap={"Host": EVIL})]
    for request in requests:
        async with connected(target) as peer:
            await ask(request).run(peer)
            response = await peer.response()
            if response is None:
                raise Failed(f"{request[:60]!r} has no answer")
            body = b"" if response.status == 101 else await peer.body(response)
            if any(EVIL in name + value.lower() for name, value in response.lines) or EVIL.encode() in body:
                raise Failed(f"{request[:60]!r} is echoed: {response}")


FOREIGN = ("https://evil.example", "null", "http://localhost.evil.example", "file://", "http://evil.example:80",
           "http://{host}.evil.example", "http://evil@{host}.evil.example")


async def foreign_origins(target: Target) -> None:
    """A page of another site in a browser of this very machine is no caller."""
    for path in (TELEPHONY, WIDE):
        for origin in FOREIGN:
            async with connected(at(target, path)) as peer:
                await ask(head(extra=(f"Origin: {origin}",))).run(peer)
                await Answer((403, 400)).run(peer)
        async with connected(at(target, path)) as peer:  # a name that its owner lets point at this machine
            await ask(head(swap={"Host": "rebound.example"}, extra=("Origin: http://rebound.example",))).run(peer)
            await Answer((403, 400)).run(peer)
        async with opened(at(target, path)):
            pass


ATTACKS = (
    Attack("B1", "heads octet by octet: 408 by the deadline, handshakes beside them within a second", 210, slow_heads,
           slow=True, budget=16 << 10),
    Attack("B2", "a head of a MiB in pieces: 431 when the limit is passed", 30, growing_head),
    Attack("B3", "2000 and 100000 header lines: 431", 20, crowd(20, many_lines)),
    Attack("B4", "values that regular expressions choke on: an answer at once", 1, quadratic_values),
    Attack("B5", "requests with a body, requests behind requests: 400, one answer, frames only behind the 101", 20,
           crowd(20, smuggled_requests)),
    Attack("B6", "over 200 requests with one thing wrong: each refused, the stream ended", 16, odd_http),
    Attack("B7", "line ends smuggled into path, query, subprotocol, Origin: nothing is echoed", 20,
           crowd(20, header_injection)),
    Attack("B8", "foreign origins: 403, also on loopback", 20, crowd(20, foreign_origins)),
    Attack("B11", "400 connections that never say anything: ended by the deadline, calls beside them served", 405,
           idle_connections, slow=True, budget=16 << 10),
)
