"""The command: play the cases against a URL, print what failed, count.

Exit 0 when nothing failed, 1 when something did (with --strict also when something was only tolerated), 2 for wrong
usage.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter

from .cases import CASES
from .peer import Target
from .runner import FAILED, OK, TOLERATED, Verdict, play_all
from .script import HOUSE, Case


def chosen(options: argparse.Namespace) -> list[Case]:
    """The cases that the flags leave."""
    return [case for case in CASES
            if (options.all or not case.heavy)
            and (not options.rfc or case.section != HOUSE)
            and (not options.only or any(case.id.startswith(start) for start in options.only))]


def report(verdicts: list[Verdict], seconds: float) -> str:
    """What was not ok, then a line for each group of cases, then the counts."""
    lines = [str(verdict) for outcome in (FAILED, TOLERATED) for verdict in verdicts if verdict.outcome == outcome]
    groups: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        groups.setdefault(verdict.case.id.partition(".")[0], Counter())[verdict.outcome] += 1
    for group, counts in groups.items():
        lines.append(f"{group:14} " + ", ".join(f"{counts[outcome]} {outcome}" for outcome in (OK, TOLERATED,
        FAILED) if counts[outcome]))
    counts = Counter(verdict.outcome for verdict in verdicts)
    lines.append(f"{len(verdicts)} cases: {counts[OK]} ok, {counts[TOLERATED]} tolerated, {counts[FAILED]} failed, "
                 f"in {seconds:.1f} s")
    return "\n".join(lines)


def report_json(url: str, verdicts: list[Verdict], seconds: float) -> str:
    counts = Counter(verdict.outcome for verdict in verdicts)
    return json.dumps({
        "url": url, "seconds": round(seconds, 2), "ok": counts[OK], "tolerated": counts[TOLERATED],
        "failed": counts[FAILED],
        "cases": [{"id": v.case.id, "title": v.case.title, "section": v.case.section, "outcome": v.outcome,
        "reason": v.reason}
                  for v in verdicts]}, indent=1)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__.splitlines()[0])
    parser.add_argument("url", nargs="?", help="of an echo route, ws:// or wss://")
    parser.add_argument("--only", action="append", metavar="START",
    help="only the cases whose id starts so; may be repeated")
    parser.add_argument("--rfc", action="store_true", help="leave out what only this project's contract asks for")
    parser.add_argument("--all", action="store_true", help="also the heavy cases")
    parser.add_argument("--strict", action="store_true", help="what is only tolerated fails too")
    parser.add_argument("--at-once", type=int, default=16, metavar="N", help="cases at a time (16)")
    parser.add_argument("--patience", type=float, default=5.0, metavar="S", help="seconds that any answer may take (5)")
    parser.add_argument("--json", action="store_true", help="every verdict, as JSON")
    parser.add_argument("--list", action="store_true", help="print the cases and exit")
    options = parser.parse_args(arguments)
    cases = chosen(options)
    if options.list:
        print("\n".join(f"{case.id:44} {case.section:14} {case.title}" for case in cases))
        return 0
    try:
        target = Target.of(options.url or "")
    except ValueError as error:
        parser.error(str(error))
    begun = time.monotonic()
    verdicts = asyncio.run(play_all(cases, target, options.at_once, options.patience))
    print((report_json(options.url, verdicts, time.monotonic() - begun) if options.json
           else report(verdicts, time.monotonic() - begun)))
    bad = {FAILED, TOLERATED} if options.strict else {FAILED}
    return 1 if any(verdict.outcome in bad for verdict in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
