"""Rows B9, B10, B13 and B14: attacks by what messages and tokens say; and B12, which needs a server of its own.

A message that no call can mean is either passed over or ends its own call: 1003, 1007 or 1008.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import resource
import statistics
import time

from conformance import wire
from conformance.peer import Failed, Peer, Target
from conformance.script import Fails, Get, ask
from conformance.wire import PONG, head, ping, text
from served import Served

from .siege import Attack, all_at_once, at, connected, in_call, opened
from .vitals import descriptors

TOKEN = "correct-horse-battery-staple-000"  # the admin token of the server under siege
FORGED = '{"level":"error","message":"forged"}'  # what a line of the log must never be
ESCAPE = "\x1b[31m"
REFUSALS = (1003, 1007, 1008)  # closes that a call may end with, after a message that it cannot read
PRIME = (1 << 61) - 1  # ints that differ by it share their hash


async def survives_or_refuses(peer: Peer, data: bytes) -> None:
    """After the data the call goes on, or is closed with one of REFUSALS."""
    await peer.send(data + ping(b"alive"))
    while (got := await peer.next("the Pong, or a Close")) is not None:
        if got.opcode == PONG:
            return
        if got.opcode == wire.CLOSE:
            peer.keep(got)
            return await Fails(1008, also=REFUSALS).run(peer)


async def colliding_keys(target: Target) -> None:
    ids = [str(PRIME * i + 7) for i in range(1, 2000)]
    crowded = [json.dumps({"event": "media", **{key: 1 for key in ids[:1500]}}),
               json.dumps({key: key for key in ids[:1200]})]
    marks = [json.dumps({"event": "mark", "streamSid": "MZattacker", "sequenceNumber": key, "mark": {"name": key}})
             for key in ids]

    async def one(number: int) -> None:
        async with in_call(target, ids[number]) as peer:
            await survives_or_refuses(peer, text(crowded[number % 2]) * 20 if number < 4
                                      else b"".join(map(text, marks)))
    await all_at_once(8, one)


MEDIA = '{"event":"media","streamSid":"MZattacker","media":{"payload":%s}}'
# JSON that is deep, huge, odd or none; each fits into 64 KiB
BOMBS = (
    "[" * 65000, "{" * 65000, '{"a":' * 13000, "[" * 32000 + "]" * 32000, '{"event":' * 6000 + "1" + "}" * 6000,
    "9" * 65000, "-" + "9" * 64000, "1e" + "9" * 6000, "0." + "1" * 60000, MEDIA % ("9" * 60000), MEDIA % ("[" * 60000),
    "NaN", "Infinity", '{"event":NaN}', '{"event":"media","event":"start","event":{}}', '{"event":"\\ud800"}',
    '{"event":"\\udc00\\ud800"}', MEDIA % '"\\ud800"', MEDIA % "null", MEDIA % "[]", MEDIA % "{}", MEDIA % "1",
    MEDIA % '"%%%"', MEDIA % '"AAA"', MEDIA % '"A"', '{"event":"media","media":null}', '{"event":"media","media":[]}',
    '{"event":"media","media":"x"}', '{"event":"start"}', '{"event":"start","start":[]}',
    '{"event":"start","start":{"mediaFormat":{"sampleRate":1e999}}}', '{"event":null}', '{"event":[]}', "{}", "[]",
    "null", "true", '""', "", " ", "\x00", "\ufeff{}", '{"event":"\\u0000"}',
    '{"event":"dtmf","dtmf":{"digit":"' + "1" * 60000 + '"}}', '{"event":"mark","mark":{"name":"' + "m" * 60000 + '"}}',
    '"' + "\\" * 65000, '{"\\u0065vent":"mark"}',
)


async def json_bombs(target: Target) -> None:
    async def one(number: int) -> None:
        async with in_call(target) as peer:
            await survives_or_refuses(peer, text(BOMBS[number]))
        async with opened(target) as peer:  # and as the first message, before any start
            await survives_or_refuses(peer, text(BOMBS[number]))
    await all_at_once(len(BOMBS), one)


async def forged_log_lines(target: Target) -> None:
    tricks = ("\n" + FORGED + "\n", ESCAPE + "red", "\u202egnitirw", "\r\n" + FORGED, "a\x00b\x07\x08", "x" * 8000)

    async def one(number: int) -> None:
        trick = tricks[number % len(tricks)]
        start = {"event": "start", "streamSid": trick, "start": {
            "streamSid": trick, "callSid": trick, "accountSid": trick, "customParameters": {trick: trick},
            "mediaFormat": {"encoding": trick, "sampleRate": 8000, "channels": 1}}}
        async with opened(target) as peer:
            unknown = {"event": trick, "streamSid": trick}
            await survives_or_refuses(peer, text(json.dumps(start)) + text(json.dumps(unknown)))
        async with connected(at(target, "/ws/twilio/echo?callId=" + "%0a%7b%22level%22%3a%1b")) as peer:
            await ask(head()).run(peer)
            await peer.response()
        async with opened(target) as peer:
            await peer.send(wire.close(1008, trick.encode()[:100].decode(errors="ignore")))

    async def broken(_: int) -> None:
        """Bad frames, over and over."""
        async with opened(target) as peer:
            await peer.send(text("bare", mask=None) * 1000)
            await Fails(1002).run(peer)
    await all_at_once(2 * len(tricks), one)
    for _ in range(5):
        await all_at_once(40, broken)


async def token_timing(target: Target) -> None:
    """Does a token that is wrong at its end take longer than one that is wrong at its start?  Welch's t says no."""
    async def seconds(token: str) -> float:
        async with connected(target) as peer:
            began = time.perf_counter()
            await ask(b"GET /metrics HTTP/1.1\r\nHost: {host}\r\nOrigin: http://evil.example\r\nAuthorization: Bearer "
                      + token.encode() + b"\r\n\r\n").run(peer)
            response = await peer.response()
            took = time.perf_counter() - began
            if response is None or response.status != (200 if token == TOKEN else 403):
                raise Failed(f"the token {token!r} is answered {response and response.status}")
            return took

    await seconds(TOKEN)
    for wrong in ("", TOKEN[:-1], TOKEN + "0", TOKEN.upper(), "\xe9" * 8, "x" * 2000):
        await seconds(wrong)
    late, early = TOKEN[:-1] + "1", "X" + TOKEN[1:]
    times: dict[str, list[float]] = {late: [], early: []}
    order = [late, early] * 1000
    random.Random(1).shuffle(order)
    for token in order:
        times[token].append(await seconds(token))
    t = welch(*(sorted(found)[:int(0.9 * len(found))] for found in times.values()))
    if abs(t) >= 4.5:
        raise Failed(f"the first and the last octet of a token take different times: t = {t:.1f}")


def welch(a: list[float], b: list[float]) -> float:
    """Welch's t of two samples."""
    spread = math.sqrt(statistics.variance(a) / len(a) + statistics.variance(b) / len(b))
    return (statistics.fmean(a) - statistics.fmean(b)) / spread


ATTACKS = (
    Attack("B9", "keys and numbers whose hashes collide: served or 1008, nobody waits", 8, colliding_keys),
    Attack("B10", "JSON that is deep, huge, odd or none: served, or 1003, 1007 or 1008", 47, json_bombs),
    Attack("B13", "line ends, escapes and bad frames for the log: no forged line, no escape, no flood", 40,
           forged_log_lines),
    Attack("B14", "tokens wrong at the first and at the last octet: the same answer in the same time", 1,
           token_timing),
)


async def no_descriptors(server: Served) -> dict[str, float]:
    """B12, on a server of its own: 12 descriptors left, 150 clients.

    Returns what is to be judged: `lines` of log a second, `held` messages echoed to the call that was
    there, `refused` clients.
    """
    target = Target(server.host, server.port, "/ws/echo", False)
    async with opened(target) as call:
        before = server.written().count("\n")
        pid = server.family()[-1]
        limit = descriptors(pid) + 12
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
        crowd = [Peer(target, 3.0) for _ in range(150)]
        began = time.monotonic()
        await asyncio.gather(*(peer.connect() for peer in crowd), return_exceptions=True)
        held = 0
        while time.monotonic() - began < 4.0:
            await call.send(text("held"))
            await Get(wire.TEXT, b"held").run(call)
            held += 1
            await asyncio.sleep(0.02)
        lines = (server.written().count("\n") - before) / (time.monotonic() - began)
        refused = sum(peer.ended is not None for peer in crowd)
        await asyncio.gather(*(peer.release() for peer in crowd))
        await asyncio.sleep(1.5)
        async with opened(target) as after:
            await after.send(text("back"))
            await Get(wire.TEXT, b"back").run(after)
    return {"lines": lines, "held": held, "refused": refused}
