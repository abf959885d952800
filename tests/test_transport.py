"""HTTP below the `openai` package: bodies taken out of their frame wherever it is cut, and readers that are slow."""
import asyncio
from collections import deque

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_endpoint import Exchange, LocalEndpoint

from opusagent import EngineError
from opusagent.engines.remote.bodies import Chunked, Sized, Unsized, body_of
from opusagent.engines.remote.endpoint import EVENT_BYTES, Events
from opusagent.engines.remote.transport import UNREAD_BYTES, Transport, httpx


def chunked(*chunks: bytes, trailer: bytes = b"") -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n" + trailer + b"\r\n"


def unframed(body, *pieces: bytes) -> bytes:
    found: deque[bytes] = deque()
    for piece in pieces:
        body.feed(piece, found)
    return b"".join(found)


def by_h11(wire: bytes) -> bytes:
    """The twin: what h11 finds in a chunked body."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + wire)
    found = b""
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        found += bytes(event.data) if isinstance(event, h11.Data) else b""
    return found


def test_a_chunked_body_cut_at_every_byte():
    wire = chunked(b"data: one\n\n", b"\r\n", b"0\r\n\r\n", b"x" * 300, trailer=b"Expires: never\r\n")
    for cut in range(len(wire) + 1):
        body = Chunked()
        assert unframed(body, wire[:cut], wire[cut:]) == by_h11(wire)
        assert body.over and body.close() and not body.held
    body = Chunked()
    assert unframed(body, *(wire[i:i + 1] for i in range(len(wire)))) == by_h11(wire) and body.over


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.lists(st.integers(0, 400), max_size=8))
def test_a_chunked_body_is_what_h11_makes_of_it(chunks, cuts):
    wire = chunked(*chunks)
    places = [0, *sorted(min(cut, len(wire)) for cut in cuts), len(wire)]
    body = Chunked()
    assert unframed(body, *(wire[a:b] for a, b in zip(places, places[1:]))) == by_h11(wire) == b"".join(chunks)


def test_a_chunk_is_passed_on_before_it_is_whole():
    assert unframed(Chunked(), b"ffff\r\nthe first of many") == b"the first of many"


@pytest.mark.parametrize("wire", [b"\r\n", b"-1\r\n", b"0x4\r\n", b"+4\r\n", b"1_0\r\n", b" 4\r\n", b"g\r\n",
                                  b"4;a=b\rx\n" * 2000, b"3\r\nabcd\r\n", b"1234567890abc\r\n", b"0" * 9000])
def test_what_is_no_chunk(wire):
    with pytest.raises(ValueError):
        unframed(Chunked(), wire)


def test_extensions_and_trailers_are_dropped():
    body = Chunked()
    assert unframed(body, b"3;name=\"value\"\r\nabc\r\n0;last\r\nA: b\r\nC: d\r\n\r\n") == b"abc" and body.over


def test_a_body_with_a_length_is_that_long():
    body = Sized(5)
    assert unframed(body, b"abc", b"de") == b"abcde" and body.over
    with pytest.raises(ValueError):
        unframed(body, b"f")
    assert not Sized(1).close() and Sized(0).over


def test_a_body_without_a_length_ends_with_its_connection():
    body = Unsized()
    assert unframed(body, b"abc") == b"abc" and not body.over and body.close() and body.over


@pytest.mark.parametrize("status, headers, kind", [
    (200, [("Content-Length", "3")], Sized), (200, [("Transfer-Encoding", "chunked")], Chunked), (200, [], Unsized),
    (204, [], Sized), (304, [("Content-Length", "3")], Sized)])
def test_how_a_body_ends_is_in_its_head(status, headers, kind):
    assert type(body_of(h11.Response(status_code=status, headers=headers))) is kind


# -- server-sent events ------------------------------------------------------------------------------------------------

STREAM = (b": comment\n\ndata: {\"a\": 1}\n\nevent: x\r\ndata:one\r\ndata: two\r\n\r\n\n\ndata: three\r\rid: 4\n\n"
          b"data: \xf0\x9f\x91\x8d\n\ndata: [DONE]\n\ndata: cut sho")
DATA = [b"{\"a\": 1}", b"one\n two", b"three", "👍".encode(), b"[DONE]"]


def test_events_cut_at_every_byte():
    for cut in range(len(STREAM) + 1):
        events = Events()
        assert events.feed(STREAM[:cut]) + events.feed(STREAM[cut:]) == DATA
    events = Events()
    assert [found for i in range(len(STREAM)) for found in events.feed(STREAM[i:i + 1])] == DATA


def test_events_that_come_alone():
    events = Events()
    assert [events.feed(data) for data in (b"data: {}\n\n", b"data:\n\n", b"data:  \n\n", b"data: a\n", b"\n: no\n\n",
                                           b"data: b\n\n")] == [[b"{}"], [], [], [], [b"a"], [b"b"]]


def test_an_event_has_an_end():
    events = Events()
    with pytest.raises(EngineError):
        for _ in range(EVENT_BYTES // 1024 + 2):
            events.feed(b"data" * 256)


# -- connections -------------------------------------------------------------------------------------------------------

def test_a_peer_that_sends_faster_than_anybody_reads_has_to_wait():
    size = 64 * UNREAD_BYTES
    most = 0

    async def scenario():
        nonlocal most
        async with LocalEndpoint() as endpoint:
            endpoint._answer = lambda exchange: exchange.whole(200, "audio/pcm", b"ab" * (size // 2))
            transport = Transport()
            response = await transport.handle_async_request(httpx.Request("GET", endpoint.url))
            connection, got = response.stream.connection, 0
            async for piece in response.stream:
                got += len(piece)
                await asyncio.sleep(0.001)
                most = max(most, connection._size)
            await response.stream.aclose()
            await transport.aclose()
            return got
    assert asyncio.run(asyncio.wait_for(scenario(), 20)) == size
    assert most < 4 * UNREAD_BYTES


@pytest.mark.parametrize("more", [b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntwo", b"t"])
def test_an_answer_that_nobody_asked_for_ends_the_connection(more):
    async def scenario():
        async with LocalEndpoint() as endpoint:
            async def answer_twice(exchange: Exchange) -> None:
                await exchange.head(content_type="text/plain")
                await exchange.chunk(b"one")
                await exchange.end()
                await endpoint.go.wait()
                await exchange.write(more)
            endpoint._answer = answer_twice
            transport = Transport()
            response = await transport.handle_async_request(httpx.Request("GET", endpoint.url))
            text = await response.aread()
            await response.aclose()
            idle = sum(map(len, transport.idle.values()))
            endpoint.go.set()
            while sum(map(len, transport.idle.values())):
                await asyncio.sleep(0.01)
            await transport.aclose()
            return text, idle
    assert asyncio.run(asyncio.wait_for(scenario(), 10)) == (b"one", 1)
