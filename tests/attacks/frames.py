"""Rows A1 to A14: attacks by frames, after a proper handshake.

The limits are the contract's: 64 KiB and 16 fragments a message on telephony routes, 16 MiB on /ws/echo, 5 s for a
message that has begun, 8 control frames a second for 3 s, declared lengths refused by the header alone.
"""

from __future__ import annotations

import asyncio
import json
import socket
import zlib

from conformance import wire
from conformance.peer import Failed, Target
from conformance.script import Fails, Get
from conformance.wire import BINARY, CONTINUATION, PONG, TEXT, binary, frame, head, more, ping, text

from .healthy import media, opening
from .siege import PATIENCE, PER_ATTACKER, TELEPHONY, WIDE, Attack, all_at_once, at, crowd, flood, in_call, opened

SPEECH = media("MZattacker", bytes(range(1, 127)) + bytes(34))  # 20 ms
BUDGETS = (1008, 1009)  # either says that a budget is spent


async def tiny_fragments(target: Target) -> None:
    async def one(_: int) -> None:
        async with in_call(target) as peer:
            await flood(peer, lambda turn: text("{", fin=False) if not turn else more(b"x") * 500, 1009, also=(1008,))
    await all_at_once(50, one)


async def empty_fragments(target: Target) -> None:
    async def one(_: int) -> None:
        async with in_call(target) as peer:
            await flood(peer, lambda turn: text("", fin=False) if not turn else more() * 500, 1009, also=(1008,))
    await all_at_once(50, one)


async def fragments_below_the_limit(target: Target) -> None:
    async def one(_: int) -> None:
        async with in_call(target) as peer:
            await peer.send(text("x" * 60000, fin=False) + frame(CONTINUATION, announced=60000, fin=False))
            await Fails(1009).run(peer)  # before an octet of the second is there
    await all_at_once(50, one)


async def fragments_below_the_wide_limit(target: Target) -> None:
    async with opened(at(target, WIDE)) as peer:
        await peer.send(binary(bytes(15 << 20), fin=False) + frame(CONTINUATION, announced=2 << 20))
        await Fails(1009).run(peer)


async def dribbled_frame(target: Target) -> None:
    async def one(_: int) -> None:
        async with in_call(target) as peer:
            data = text("x" * 65000)
            await flood(peer, lambda turn: data[turn:turn + 1], 1008, most=1000, gap=0.02)
    await all_at_once(60, one)


async def unfinished_payload(target: Target) -> None:
    async def one(_: int) -> None:
        async with in_call(target) as peer:
            await peer.send(text("x" * (60 << 10))[:59 << 10])
            await Fails(1008, within=12).run(peer)
    await all_at_once(50, one)


async def lying_lengths(target: Target) -> None:
    around = [(1 << power) + step for power in (31, 32, 62) for step in (-1, 0, 1)]
    lengths = [(size, 1009) for size in (*around, (1 << 63) - 1, (1 << 16) + 1)]
    lengths += [(size, 1002) for size in (1 << 63, (1 << 63) + 1, (1 << 64) - 1)]

    async def one(number: int) -> None:
        size, code = lengths[number // 2]
        async with in_call(target) as peer:
            await peer.send(frame(TEXT, announced=size) if number % 2
                            else text("x" * 100, fin=False) + frame(CONTINUATION, announced=size))
            await Fails(code).run(peer)
    await all_at_once(2 * len(lengths), one)
    for size, wide in ((0, 2), (125, 2), (125, 8), (126, 8), (65535, 8)):
        async with in_call(target) as peer:
            await peer.send(text("x" * size, wide=wide))
            await Fails(1002).run(peer)


async def deflate_that_overflows(target: Target) -> None:
    blocks = (b"\x00\x00\x00\xff\xff", b"\x01\xff\xff\x00\x00", bytes(range(256)), b"\x04\xc0\x31\x01\x00" * 50)
    for block in blocks:
        async with in_call(target) as peer:
            await peer.send(binary(block, rsv=4))
            await Fails(1002).run(peer)


async def zip_bomb(target: Target) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(bytes(32 << 20)) + packer.flush(zlib.Z_SYNC_FLUSH)
    offer = head(extra=("Sec-WebSocket-Extensions: permessage-deflate",))

    async def one(_: int) -> None:
        async with opened(at(target, TELEPHONY), offer) as peer:
            await peer.send(text(bomb[:60000], rsv=4))
            await Fails(1002).run(peer)
    await all_at_once(20, one)


async def rsv_without_an_offer(target: Target) -> None:
    for rsv in range(1, 8):
        async with in_call(target) as peer:
            await peer.send(text(SPEECH, rsv=rsv))
            await Fails(1002).run(peer)


async def odd_window_bits(target: Target) -> None:
    for bits in ("7", "16", "999", "abc", "", "-1", "8.5", '"', "9" * 500):
        for name in ("client_max_window_bits", "server_max_window_bits"):
            offer = head(extra=(f"Sec-WebSocket-Extensions: permessage-deflate; {name}={bits}",))
            async with opened(at(target, TELEPHONY), offer) as peer:
                await peer.send(opening("MZattacker") + ping(b"alive"))
                await Get(PONG, b"alive").run(peer)


async def ping_flood(target: Target) -> None:
    async def unread(_: int) -> None:
        """Two million octets of Pings; of the Pongs none is read."""
        loop, sock = asyncio.get_running_loop(), socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)     # or the kernel would take all of it at once
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, (target.host, target.port))
            await loop.sock_sendall(sock, at(target, TELEPHONY).fill(head()))
            async with asyncio.timeout(PATIENCE):
                for _ in range(400):
                    await loop.sock_sendall(sock, ping(bytes(125)) * 40)
            raise Failed("16000 unread Pongs did not end the connection")
        except ConnectionError:
            pass  # as it should be
        except TimeoutError:
            raise Failed("the server neither reads nor ends the connection") from None
        finally:
            sock.close()

    async def read(_: int) -> None:
        """Three times what is everybody's right, by the clock: a machine that is late sends the more at once."""
        async with in_call(target) as peer:
            failing, loop = asyncio.ensure_future(pongs_until_closed(peer)), asyncio.get_running_loop()
            due = loop.time()
            while not failing.done():
                await peer.send(ping(b"24 a second"))
                due += 1 / 24
                await asyncio.sleep(due - loop.time())
            await failing

    async def modest(_: int) -> None:
        """Six a second are everybody's right."""
        async with in_call(target) as peer:
            for turn in range(24):
                await peer.send(ping(b"%d" % turn))
                await Get(PONG, b"%d" % turn).run(peer)
                await asyncio.sleep(1 / 6)

    await asyncio.gather(all_at_once(30, unread), all_at_once(5, read), all_at_once(5, modest))


async def pongs_until_closed(peer) -> None:
    async with asyncio.timeout(PATIENCE):
        while (got := await peer.next("Close 1008")) is not None and got.opcode == PONG:
            pass
    if got is not None:
        peer.keep(got)
    await Fails(1008).run(peer)


async def slow_reader(target: Target) -> None:
    """Speaks, and reads nothing: the echo must not pile up, and a stalled peer is let go."""
    async def one(number: int) -> None:
        frames, gap = ((4, 0.02), (100, 0.01))[number % 2]  # four times real time, and two hundred times
        loop, sock = asyncio.get_running_loop(), socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)     # or the kernel would take all of it at once
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, (target.host, target.port))
            await loop.sock_sendall(sock, at(target, TELEPHONY).fill(head()) + opening("MZslow"))
            async with asyncio.timeout(20):
                while True:
                    await loop.sock_sendall(sock, text(SPEECH) * frames)
                    await asyncio.sleep(gap)
        except ConnectionError:
            pass  # let go
        except TimeoutError:
            raise Failed("after 20 s of reading nothing the connection still lives") from None
        finally:
            sock.close()
    await all_at_once(20, one)


async def a_gibibyte_announced(target: Target) -> None:
    async def one(number: int) -> None:
        path, opcode = ((TELEPHONY, TEXT), (WIDE, BINARY))[number % 2]
        async with opened(at(target, path)) as peer:
            await peer.send(frame(opcode, announced=1 << 30) + bytes(1000))
            await Fails(1009).run(peer)
    await all_at_once(20, one)


async def messages_in_a_burst(target: Target) -> None:
    kinds = (SPEECH, json.dumps({"event": "mark", "streamSid": "MZattacker", "mark": {"name": "m"}}).encode(),
             json.dumps({"event": "nobody-knows"}).encode(), b"{}")

    async def one(number: int) -> None:
        """20000 messages as fast as they go: the call's budget ends it, or it goes on as if nothing had been."""
        async with in_call(target) as peer:
            burst = text(kinds[number % len(kinds)]) * 100
            for _ in range(200):
                await peer.send(burst)
                await asyncio.sleep(0)
            await peer.send(ping(b"done"))
            while (got := await peer.next("the Pong, or Close 1008")) is not None:
                if got.opcode == PONG:
                    return
                if got.opcode == wire.CLOSE:
                    peer.keep(got)
                    return await Fails(1008, also=(1007,)).run(peer)
    await all_at_once(8, one)


ATTACKS = (
    Attack("A1", "a million fragments of one octet: 1009 or 1008 at the 17th", 50, tiny_fragments),
    Attack("A2", "a million fragments of none: counted like any other", 50, empty_fragments),
    Attack("A3", "fragments below the limit, together above it: 1009 by the second header", 50,
           fragments_below_the_limit),
    Attack("A3-wide", "the same on /ws/echo: the message so far, and the buffers it grew out of", 1,
           fragments_below_the_wide_limit, budget=(27 << 20) + PER_ATTACKER),
    Attack("A4", "a frame octet by octet: 1008 after 5 s", 60, dribbled_frame, slow=True, budget=96 << 10),
    Attack("A5", "59 of 60 KiB, then nothing: 1008 after 5 s", 50, unfinished_payload, slow=True, budget=96 << 10),
    Attack("A6", "lengths around every power of two: 1009 by the header, 1002 for the top bit and spellings", 28,
           lying_lengths),
    Attack("A7", "deflate blocks that overflow inflaters: RSV1 is 1002", 20, crowd(20, deflate_that_overflows)),
    Attack("A8", "a zip bomb, with the extension offered: declined, 1002, nothing inflated", 20, zip_bomb),
    Attack("A9", "RSV bits without an offer: 1002", 20, crowd(20, rsv_without_an_offer)),
    Attack("A10", "window bits of nonsense: declined, the call goes on", 20, crowd(20, odd_window_bits)),
    Attack("A11", "Pings in floods, read and unread: 1008; six a second are served", 40, ping_flood, slow=True,
           budget=64 << 10),
    Attack("A12", "a caller who speaks and never reads: nothing piles up, then let go", 20, slow_reader, slow=True),
    Attack("A13", "a GiB announced: 1009 by the header", 20, a_gibibyte_announced),
    Attack("A14", "20000 messages in a burst: 1008, or served", 8, messages_in_a_burst),
)
