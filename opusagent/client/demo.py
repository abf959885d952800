"""The command `demo`: a server of one's own, a person who calls it, and the whole call shown as it happens.

It measures nothing itself: the caller does (caller.py), and the server says what its part was.  The rule: the demo
uses nothing that a user's own call would not: the same server, a real WebSocket, the same caller as `call`.
"""
import argparse
import asyncio
import time
from pathlib import Path

from .. import ConfigError, directories
from ..metrics import receipt_line
from ..recording import write_wav
from .caller import Measured
from .localserver import LocalServer, fetch_json, matching
from .people import person
from .telephone import Caller, run
from .terminal import Terminal, summary, waited
from .timeline import Strip, draw

POLL_SECONDS = 0.1
NAME = "opusagent-demo"
INDENT = 10                     # of the words of the transcript


def demo_command(args: argparse.Namespace) -> int:
    """`opusagent demo`; returns the exit code: 0 only if the flow's final state was reached."""
    out = Path(args.out)
    try:
        directories.writable(out)               # before a call that could not be kept
    except OSError as error:
        raise ConfigError(f"The call cannot be kept in {out}: {error.strerror}.") from None
    return run("demo", demo(out, Terminal()))


async def demo(out: Path, terminal: Terminal) -> int:
    began = time.monotonic()
    terminal.say(f"{terminal.paint('bold', 'OpusAgent demo')}: a server and a caller on this machine, by WebSocket.")
    async with LocalServer() as server:
        url = f"ws://127.0.0.1:{server.port}/ws/twilio/demo"
        terminal.say(f"The server listens on http://127.0.0.1:{server.port} after {time.monotonic() - began:.1f} s.")
        who, says = person(8000)
        terminal.say(f"The caller is made of {who}.\n")
        caller = Caller(url, "twilio", says)
        conversation = asyncio.create_task(collect(caller))
        record = await watch(caller, conversation, terminal)
        turns = await conversation
    write_wav(out / f"{NAME}.wav", caller.rate, caller.script.tape.read(), caller.ear.tape.read())
    (out / f"{NAME}.svg").write_text(picture(caller, turns, record), encoding="utf-8")
    return conclude(out, terminal, caller, turns, record)


async def collect(caller: Caller) -> list[Measured]:
    return [turn async for turn in caller.converse()]


async def watch(caller: Caller, conversation: asyncio.Task, terminal: Terminal) -> dict:
    """Shows each turn as the server finishes it; returns the call's record when the conversation has ended."""
    record, shown, ended = {"turns": [], "state": "", "done": False}, 0, False
    while not ended:
        ended = conversation.done()                 # and one more look, for the turn that ended with the call
        record = await fetch_json(caller.url, f"/calls/{caller.call_id}") or record
        for receipt in record["turns"][shown:]:
            show(terminal, receipt)
        shown = len(record["turns"])
        await asyncio.sleep(POLL_SECONDS)
    return record


def show(terminal: Terminal, receipt: dict) -> None:
    """A turn of the transcript, and its receipt."""
    if receipt["caller"]:
        terminal.say(f"  {terminal.paint('blue', 'caller')}  {terminal.fold(receipt['caller'], INDENT)}")
    if receipt["agent"]:
        text = receipt["agent"] + (" ... (interrupted)" if receipt["stopped_by"] == "barge-in" else "")
        terminal.say(f"  {terminal.paint('green', 'agent')}   {terminal.fold(text, INDENT)}")
    if receipt["measured"]:
        terminal.say(" " * INDENT + receipt_line(receipt, terminal.colours, terminal.blocks))
    terminal.say()


def picture(caller: Caller, turns: list[Measured], record: dict) -> str:
    strips = [strip(turn, matching(record["turns"], turn)) for turn in turns]
    median = summary(waited(turn.gap_ms for turn in turns if turn.gap_ms is not None)[0]).get("p50")
    title = f"opusagent demo: {len(turns)} turns"
    if median is not None:
        title += f", voice-to-voice median {median:.0f} ms"
    return draw(title, caller.rate, caller.script.tape.read(), caller.ear.tape.read(), strips)


def strip(turn: Measured, receipt: dict | None) -> Strip:
    if receipt is None:
        return Strip(turn, turn.name, "")
    return Strip(turn, receipt["caller"], receipt["agent"], tuple(receipt["waits"].items()),
                 receipt["end_ms"] - turn.end_ms)


def verdict(terminal: Terminal, turn: Measured, receipt: dict | None) -> str:
    """A turn as the caller saw it, and what the receipt leaves of it unexplained."""
    if turn.gap_ms is None:
        return f"{turn.name}: {terminal.paint('red', 'no answer')}"
    words = [f"{turn.name}: {terminal.paint('bold', f'{turn.gap_ms:.0f} ms')}"]
    if receipt is not None:
        words.append(f"{turn.gap_ms - sum(receipt['waits'].values()):.1f} ms of it unexplained")
    if turn.reaction_ms is not None:
        words.append(f"the agent silent {turn.reaction_ms:.0f} ms into the barge-in")
    return ", ".join(words)


def conclude(out: Path, terminal: Terminal, caller: Caller, turns: list[Measured], record: dict) -> int:
    terminal.say("Measured by the caller in what was sent and heard, voice to voice:")
    for turn in turns:
        terminal.say("  " + verdict(terminal, turn, matching(record["turns"], turn)))
    terminal.say(f"\nThe call, caller left and agent right: {out / NAME}.wav\nIts timeline: {out / NAME}.svg")
    if record["done"]:
        terminal.say(terminal.paint("green", f"The conversation reached its end: {record['state']}."))
        return 0
    terminal.say(terminal.paint("red", f"The conversation did not reach its end; it stopped at: {record['state']}."))
    return 1
