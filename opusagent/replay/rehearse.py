"""`opusagent replay`: a call from its journal, and with --set how it would have gone with other settings.

The rule: what is printed of the call as it was is only printed when every decision was made again, bit by bit.
"""
import argparse
import asyncio
import json
import time
from typing import Any

from .. import ConfigError
from ..calls import journal
from ..client.terminal import Terminal, summary
from ..config import SETTINGS
from ..metrics import receipt_line
from ..studio.studio import WAITS, waits
from .rerun import Parted, Replay, World, config_of, refuse_text
from .tape import Tape, load
from .whatif import Study, WhatIf

PARTED = "The decisions part where the program is not the one that kept the journal, or the journal was changed."

TRIED = ("turns.", *journal.DEADLINES, *journal.BUDGETS)    # settings that a what-if decides by begin so
RECORDED = ("turns.model",)                     # ... but this, whose answers only the journal has


def replay_command(args: argparse.Namespace) -> int:
    """Returns the exit code: 0 if every decision was made again.  ConfigError for wrong input."""
    tape = load(args.journal)
    changes = dict(map(change, args.set))
    config_of(tape, changes)                        # what is wrong with them is said before anything else
    for key in changes:
        check_tried(key)
    if changes:
        refuse_text(tape)
    terminal = Terminal()
    began = time.monotonic()
    study = Study(tape, World(tape, config_of(tape, {})))
    try:
        asyncio.run(study.run())
    except Parted as parted:
        terminal.say(str(parted))
        terminal.say(f"{PARTED} It was kept by opusagent {tape.header['opusagent']}.")
        return 1
    took = time.monotonic() - began
    if not changes:
        return tell(terminal, args.json, tape, study, took)
    other = WhatIf(tape, World(tape, config_of(tape, changes)), study.known)
    asyncio.run(other.run())
    return compare(terminal, args.json, tape, study, other, changes)


def change(given: str) -> tuple[str, str]:
    """--set KEY=VALUE"""
    key, equals, value = given.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {given}: write it as KEY=VALUE, such as turns.silence_ms=150.")
    return key.strip(), value.strip()


def check_tried(key: str) -> None:
    """ConfigError for a setting that would change nothing, because what hangs on it was recorded."""
    tried = [known for known in SETTINGS if known.startswith(TRIED) and known not in RECORDED]
    if key not in tried:
        raise ConfigError(f"--set {key}: a replay has what was recorded of the engines and of the platform, so {key} "
                          f"would change nothing.  What can be tried: {', '.join(tried)}.")


def tell(terminal: Terminal, as_json: bool, tape: Tape, replay: Replay, took: float) -> int:
    receipts = replay.call.ledger.receipts if replay.call else []
    if as_json:
        terminal.say(json.dumps({"identical": True, "seconds": tape.seconds, "took_seconds": round(took, 3),
                                 "decisions": len(replay.decisions), "turns": receipts}))
        return 0
    for receipt in receipts:
        print_turn(terminal, receipt)
    terminal.say(f"Every one of {len(replay.decisions)} decisions was made again: {tape.seconds:.1f} s of a call in "
                 f"{took:.2f} s.")
    if not tape.whole:
        terminal.say("The journal ends in the middle of a line, and with it the replay.")
    return 0


def print_turn(terminal: Terminal, receipt: dict[str, Any]) -> None:
    if receipt["caller"]:
        terminal.say(f"  caller  {receipt['caller']}")
    if receipt["agent"]:
        terminal.say(f"  agent   {receipt['agent']}")
    if receipt["measured"]:
        terminal.say(f"          {receipt_line(receipt, terminal.colours)}")


def compare(terminal: Terminal, as_json: bool, tape: Tape, study: Study, other: WhatIf, changes: dict) -> int:
    """Both calls beside each other: what was waited, and what was cut off."""
    was, would = answered(study.known.receipts), answered(other.receipts)
    cut = other.cut_in
    rows = [{"caller": row["caller"], "end_ms": row["end_ms"], "was_ms": match(row, was), "would_be_ms":
             row["voice_to_voice_ms"], "made_up": sorted(other.made_up.get(row["turn"], ()))} for row in would]
    figures = {"set": changes, "was": summary([row["voice_to_voice_ms"] for row in was]),
               "would_be": summary([row["voice_to_voice_ms"] for row in would]), "cut_off": len(cut), "turns": rows,
               "overruled": overruled(other.world, changes)}
    if as_json:
        terminal.say(json.dumps(figures))
        return 0
    terminal.say("What if " + ", ".join(f"{key} = {value}" for key, value in changes.items()))
    for sentence in figures["overruled"]:
        terminal.say(sentence)
    for row in rows:
        before = "     -" if row["was_ms"] is None else f"{row['was_ms']:6.0f}"
        remark = f"   (never recorded: {', '.join(row['made_up'])})" if row["made_up"] else ""
        terminal.say(f"  {before} -> {row['would_be_ms']:6.0f} ms  {row['caller'] or '(nothing)'}{remark}")
    p50 = [figures[key].get("p50") for key in ("was", "would_be")]
    if None not in p50:
        terminal.say(f"Voice to voice, median: {p50[0]:.0f} ms as it was, {p50[1]:.0f} ms with that.")
    terminal.say(f"Turns that would have been cut off in the middle: {len(cut)}.")
    return 0


def overruled(world: World, changes: dict) -> list[str]:
    """A sentence for each wait that is changed where the flow sets its own: there the change has no effect."""
    hearing = {name: state.expect.waits for name, state in world.flow.states.items() if state.expect.id >= 0}
    sentences = []
    for wait, setting in WAITS.items():
        ms = getattr(waits(world.config), wait)
        own = [name for name, found in hearing.items() if getattr(found, wait) != ms]
        if own and f"turns.{setting}" in changes:
            where = "everywhere" if len(own) == len(hearing) else f"in {', '.join(own)}"
            sentences.append(f"turns.{setting} changes nothing {where}: there the flow's own waits rule "
                             f"(`waits.{wait}`, or `eager`).")
    return sentences


def answered(receipts: list[dict]) -> list[dict]:
    return [row for row in receipts if row["measured"] and row["voice_to_voice_ms"] is not None]


def match(row: dict, others: list[dict]) -> float | None:
    """The wait of the turn that ended at the same place in the caller's audio."""
    near = min(others, key=lambda other: abs(other["end_ms"] - row["end_ms"]), default=None)
    return near["voice_to_voice_ms"] if near and abs(near["end_ms"] - row["end_ms"]) < 400 else None
