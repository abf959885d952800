"""A server of one's own, and what a server says of its calls.

It speaks to no call.  The rule: what is asked here is asked beside the call, on a connection of its own, so that
asking disturbs nothing that is measured.
"""
import asyncio
import json
import re
import sys
import tempfile
import time

from .. import ConfigError
from .caller import Measured
from .telephone import address, port_of

START_SECONDS = 60
STOP_SECONDS = 5
SAME_END_MS = 500             # both count the call's samples, but may differ about the last voiced one
ANSWER_SECONDS = 2
RECEIPT_SECONDS = 0.5           # a receipt is written when its turn is over, which may be a little after we heard it


class LocalServer:
    """`opusagent serve` on a free loopback port, as a process of its own: `async with LocalServer() as server`."""

    def __init__(self, *flags: str):
        self.flags = flags
        self.port = 0
        self._log = tempfile.TemporaryFile("a+")
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    async def __aenter__(self) -> "LocalServer":
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-u", "-P", "-m", "opusagent.cli", "serve", "--port", "0", *self.flags,
            stdin=asyncio.subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        until = time.monotonic() + START_SECONDS
        while not (said := re.search(r"listening on http://\S+:(\d+)", self.said())):
            if self._process.returncode is not None or time.monotonic() > until:
                await self.__aexit__()
                last = self.said().strip().splitlines()[-1:] or ["it said nothing."]
                raise ConfigError(f"The server did not start: {last[0].removeprefix('opusagent: ')}")
            await asyncio.sleep(0.05)
        self.port = int(said[1])
        return self

    async def __aexit__(self, *exc) -> None:
        if self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    def said(self) -> str:
        """What it has printed so far."""
        self._log.seek(0)
        return self._log.read()


async def receipt(url: str, call_id: str, turn: Measured) -> dict | None:
    """The server's receipt of a turn that a caller measured; None where it shows none."""
    until = time.monotonic() + RECEIPT_SECONDS
    while (record := await fetch_json(url, f"/calls/{call_id}")) is not None:
        if (found := matching(record["turns"], turn)) is not None or time.monotonic() > until:
            return found
        await asyncio.sleep(0.05)
    return None


def matching(receipts: list[dict], turn: Measured) -> dict | None:
    """The receipt whose caller fell silent nearest to where the measured one did."""
    ends = [(abs(each["end_ms"] - turn.end_ms), each) for each in receipts
            if each["measured"] and each["end_ms"] is not None]
    apart, nearest = min(ends, key=lambda pair: pair[0], default=(SAME_END_MS, None))
    return nearest if apart < SAME_END_MS else None


async def fetch_json(url: str, path: str):
    """What GET `path` gives on the server that `url` is on; None where it gives us nothing."""
    parts = address(url)
    secure = parts.scheme == "wss"
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(parts.hostname, port_of(parts), ssl=secure or None)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
    except (OSError, TimeoutError):
        return None
    return json.loads(body) if head.startswith(b"HTTP/1.1 200 ") else None
