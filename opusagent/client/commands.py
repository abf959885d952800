"""The commands that make calls; `call` stands here, `latency-test` and `demo` in files of their own.

It holds no conversation itself (caller.py, telephone.py).  The rule: every latency printed was found by the caller
in the audio that it sent and heard; what the server says of itself stands beside it, never in its place.
"""
import argparse
import json
import os
from pathlib import Path

from .. import ConfigError, credentials
from ..dialects import BARE_CALLERS, TEXT_CALLERS, dialect_of
from ..metrics import receipt_line
from ..recording import read_wav, resample, write_wav
from .bareline import bare_dialect, is_bare
from .caller import Measured, Say
from .demo import demo_command
from .latency import latency_test_command
from .localserver import receipt
from .telephone import Caller, address, run, spoken_to
from .terminal import CUT_OFF, TOO_BUSY, Terminal, summary, summary_line, too_late, waited
from .texting import text

__all__ = ["call_command", "demo_command", "latency_test_command"]


def call_command(args: argparse.Namespace) -> int:
    """`opusagent call`; returns the exit code: 0 if every turn was answered.  ConfigError for wrong input."""
    return run("call", call(args, Terminal()))


async def call(args: argparse.Namespace, terminal: Terminal) -> int:
    name = args.dialect or ("" if is_bare(args.url) else dialect_of(address(args.url).path))
    if name in TEXT_CALLERS:
        return await text(args, name, terminal, credentials_of(args.secret))
    dialect = (bare_dialect if is_bare(args.url) else spoken_to)(args.url, args.dialect)
    if args.save and not Path(args.save).parent.is_dir():
        raise ConfigError(f"{args.save} cannot be written: there is no such directory.")
    if not args.wav or args.say:
        raise ConfigError(f"{dialect} carries audio: --wav FILE, once for each turn, says what the caller says.")
    caller = Caller(args.url, dialect, [], credentials_of(args.secret), args.returns)
    caller.script.says += read_script(args.wav, caller.rate)
    rows = []
    async for turn in caller.converse():
        known = None if dialect in BARE_CALLERS else await receipt(args.url, caller.call_id, turn)
        rows.append(row := turn_row(turn, known))
        if not args.json:
            print_turn(terminal, row)
    if args.save:
        write_wav(args.save, caller.rate, caller.script.tape.read(), caller.ear.tape.read())
    gaps = [row["voice_to_voice_ms"] for row in rows if row["voice_to_voice_ms"] is not None]
    waits, cut_off = waited(gaps)
    late = [ns / 1e6 for ns in caller.clock.late]
    if args.json:
        terminal.say(json.dumps({
            "url": args.url, "dialect": dialect, "call_id": caller.call_id, "turns": rows,
            "voice_to_voice_ms": summary(waits), "cut_off": cut_off, "caller_late_ms": summary(late),
            "closed": caller.closed, "away_ms": [(back - broke) / 1e6 for broke, back in whole(caller.away)]}))
    else:
        for broke, back in whole(caller.away):
            terminal.say(f"The connection broke; the agent was heard again after {(back - broke) / 1e6:.0f} ms.")
        print_end(terminal, caller.closed, waits, cut_off, late)
    return 0 if len(gaps) == len(args.wav) else 1


def whole(away: list[list[int]]) -> list[list[int]]:
    """Those absences after which the agent was heard again."""
    return [times for times in away if len(times) == 2]


def credentials_of(name: str | None) -> str:
    """What the file or the variable holds that `--secret` names; "" for none."""
    if not name:
        return ""
    if not name.startswith(("file:", "env:")):
        raise ConfigError("--secret names where the secret is, file:NAME or env:NAME: others can read a command line.")
    return credentials.lines_of(name, os.environ, "--secret")[0]


def read_script(paths: list[str], rate: int) -> list[Say]:
    """One turn for each WAV file, at the rate of the call."""
    says = []
    for path in paths:
        pcm, its_rate = read_wav(path)
        says.append(Say.of(resample(pcm, its_rate, rate), rate, Path(path).name))
    return says


def turn_row(turn: Measured, its_receipt: dict | None) -> dict:
    """A turn as `call --json` gives it: what the caller measured, and what the server says of the same wait."""
    row = {"turn": turn.index + 1, "name": turn.name, "end_ms": turn.end_ms, "voice_to_voice_ms": turn.gap_ms,
           "barge_in_reaction_ms": turn.reaction_ms, "receipt": its_receipt, "unexplained_ms": None}
    if its_receipt is not None and turn.gap_ms is not None:
        row["unexplained_ms"] = round(turn.gap_ms - sum(its_receipt["waits"].values()), 3)
    return row


def print_turn(terminal: Terminal, row: dict) -> None:
    gap, reaction = row["voice_to_voice_ms"], row["barge_in_reaction_ms"]
    verdict = terminal.paint("red", "no answer") if gap is None else terminal.paint("bold", f"{gap:.0f} ms")
    if gap is not None and gap < 0:
        verdict = terminal.paint("red", f"cut off {-gap:.0f} ms before its end")
    if reaction is not None:
        verdict += f"   barge-in: the agent fell silent after {terminal.paint('bold', f'{reaction:.0f} ms')}"
    terminal.say(f"turn {row['turn']}  {row['name']}  {verdict}")
    if row["receipt"] is not None:
        line = receipt_line(row["receipt"], terminal.colours, terminal.blocks)
        terminal.say(f"        by the server's receipt: {line}")
    if row["unexplained_ms"] is not None:
        terminal.say(f"        unexplained {row['unexplained_ms']:.1f} ms")


def print_end(terminal: Terminal, closed: str, waits: list[float], cut_off: int, late: list[float]) -> None:
    if closed:
        terminal.say(f"{closed[0].upper()}{closed[1:]}.")
    terminal.say(f"voice-to-voice: {summary_line(waits)}")
    if cut_off:
        terminal.say(terminal.paint("red", f"{CUT_OFF}: {cut_off}."))
    if too_late(late):
        terminal.say(terminal.paint("red", TOO_BUSY))
