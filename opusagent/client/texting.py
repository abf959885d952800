"""The simulated caller of a platform that passes text: it says its words, reads the answer, and measures the wait.

It stands beside telephone.py, which is the same for audio.  The rule: the next words are said when the agent's have
been spoken, at the pace of a voice, as a caller would; a wait is from our words sent to the first of the answer.
"""
import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from .. import ConfigError
from ..dialects import AGENT, TEXT_CALLERS, Stop, Words
from .localserver import fetch_json
from .telephone import Line, address, ending, shown
from .terminal import Terminal, summary, summary_line

PATIENCE_SECONDS = 12.0         # without an answer for so long, the caller goes on
CHARACTER_SECONDS = 0.07        # of speech
BEFORE_SECONDS = 0.5            # from the words sent to the first heard, and from the last heard to ours
PARTING_SECONDS = 3.0           # for the server to end a call, when all has been said


@dataclass(frozen=True, slots=True)
class Exchange:
    """What was said, and answered."""
    caller: str                 # "": nothing yet, the call begins
    agent: str                  # "": nothing
    wait_ms: float | None       # None: there was no answer


class Texter:
    """One call, which says `says` one after the other."""

    def __init__(self, url: str, dialect: str, says: list[str], credentials: str = ""):
        self.url = url
        self.dialect = TEXT_CALLERS[dialect](address(url))
        self.dialect.call_id = "CA" + secrets.token_hex(16)
        self.says = says
        self.closed = ""                # how it ended, if we did not hang up
        self._credentials = credentials
        self._came: asyncio.Queue[tuple[float, Words | Stop]] = asyncio.Queue()

    async def converse(self) -> AsyncIterator[Exchange]:
        """Dials, speaks, hangs up.  Raises as Line.dial does."""
        line = await Line.dial(self.url, self._heard, self._lost, (),
                               shown(self.dialect.name, self.url, self._credentials))
        try:
            for message in self.dialect.open():
                line.send(*message)
            for words in ("", *self.says):
                if words:
                    line.send(*self.dialect.prompt(words))
                exchange = await self._answer(words, time.monotonic())
                yield exchange
                if self.closed:
                    break
                await self._listen(line, exchange.agent)
            if not self.closed:
                await self._answer("", time.monotonic(), PARTING_SECONDS)
            await line.hang_up()
        finally:
            line.abort()

    async def _listen(self, line: Line, words: str) -> None:
        """The agent's words are spoken, and that they are is told."""
        line.send(*self.dialect.speaking(AGENT, True))
        await asyncio.sleep(BEFORE_SECONDS + len(words) * CHARACTER_SECONDS)
        line.send(*self.dialect.spoken(words))
        line.send(*self.dialect.speaking(AGENT, False))

    async def _answer(self, words: str, since: float, patience: float = PATIENCE_SECONDS) -> Exchange:
        """What comes up to the end of the answer, or of the call."""
        said, first = "", None
        while not self.closed:
            try:
                at, event = await asyncio.wait_for(self._came.get(), patience)
            except TimeoutError:
                break
            if isinstance(event, Stop):
                self.closed = event.reason
                break
            said += event.text
            first = first or (at if event.text else None)
            if event.last and said:
                break
        return Exchange(words, said, None if first is None else (first - since) * 1e3)

    def _heard(self, opcode: int, payload: memoryview, now: int) -> None:
        if (event := self.dialect.receive(opcode, payload)) is not None:
            self._came.put_nowait((time.monotonic(), event))

    def _lost(self, code: int, reason: str) -> None:
        self._came.put_nowait((time.monotonic(), Stop(ending(code, reason))))


async def text(args, dialect: str, terminal: Terminal, credentials: str) -> int:
    """`opusagent call` in text; the exit code: 0 if all that was said was answered."""
    if not args.say or args.wav or args.save:
        raise ConfigError(f"{dialect} carries text, not audio: --say WORDS, once for each turn, says what the "
                          "caller says.")
    caller = Texter(args.url, dialect, args.say, credentials)
    rows = []
    async for exchange in caller.converse():
        rows.append({"caller": exchange.caller, "agent": exchange.agent, "wait_ms": exchange.wait_ms})
        if not args.json:
            show(terminal, exchange)
    waits = [row["wait_ms"] for row in rows[1:] if row["wait_ms"] is not None]
    record = await fetch_json(args.url, f"/calls/{caller.dialect.call_id}")
    if args.json:
        terminal.say(json.dumps({"url": args.url, "dialect": dialect, "call_id": caller.dialect.call_id, "turns": rows,
                                 "wait_ms": summary(waits), "closed": caller.closed, "record": record}))
    else:
        terminal.say(f"{caller.closed[:1].upper()}{caller.closed[1:]}." if caller.closed else "The caller hung up.")
        terminal.say(f"from the caller's words to the agent's: {summary_line(waits)}")
    return 0 if len(waits) == len(args.say) else 1


def show(terminal: Terminal, exchange: Exchange) -> None:
    if exchange.caller:
        terminal.say(f"caller  {exchange.caller}")
    wait = "" if exchange.wait_ms is None or not exchange.caller else f"   {exchange.wait_ms:.0f} ms"
    terminal.say(f"agent   {exchange.agent or 'says nothing'}{wait}")
