"""Our server keeps RFC 6455, and the suite that says so can fail.

The first half plays the suite against the real server; the second against a server written to be wrong in one thing
at a time.  Cases run many at once, in an event loop of their own; the tests only look up what came of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from conformance import broken
from conformance.cases import CASES
from conformance.faults import FAULTS
from conformance.peer import Target
from conformance.runner import OK, Verdict, play_all
from conformance.script import Case
from served import SCRIPTED, missing, serving, tls_flags

DEFAULT = [case for case in CASES if not case.heavy]
BY_ID = {case.id: case for case in CASES}
AT_ONCE = 16
SHORT = 1.0  # s that a broken server is waited for
TLS_GROUPS = ("example.", "glued.", "ping.", "fragments.", "close.", "size.", "many.")
GROUPS = list(dict.fromkeys(case.id.partition(".")[0] for case in DEFAULT))


def not_ok(verdicts: Iterable[Verdict]) -> list[str]:
    """What there is to say about those that are less than right."""
    return [str(verdict) for verdict in verdicts if verdict.outcome != OK]


def test_ids_are_unique():
    assert len(BY_ID) == len(CASES)


@dataclass
class Played:
    """All verdicts, and what the server had to say meanwhile."""

    verdicts: list[Verdict]
    alive: bool
    written: str  # to stderr


def played(cases: Iterable[Case], *flags: str) -> Played:
    """The cases against our server."""
    with serving(*SCRIPTED, *flags) as server:
        verdicts = asyncio.run(play_all(cases, Target.of(server.ws("/ws/echo")), AT_ONCE))
        return Played(verdicts, server.alive(), server.written())


@pytest.fixture(scope="module")
def ours() -> Played:
    """What our server makes of every case."""
    if reason := missing():
        pytest.skip(reason)
    return played(DEFAULT)


@pytest.mark.parametrize("group", GROUPS)
def test_our_server(ours: Played, group: str):
    assert not_ok(verdict for verdict in ours.verdicts if verdict.case.id.startswith(group + ".")) == []


def test_our_server_raises_nothing(ours: Played):
    assert ours.alive and "Traceback" not in ours.written, ours.written[-2000:]


@pytest.fixture(scope="module")
def over_tls(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """The same over TLS, where the frames take another way through the server."""
    if reason := missing():
        pytest.skip(reason)
    cases = [case for case in DEFAULT if case.id.startswith(TLS_GROUPS)]
    return played(cases, *tls_flags(tmp_path_factory.mktemp("tls")))


def test_our_server_over_tls(over_tls: Played):
    assert not_ok(over_tls.verdicts) == []
    assert over_tls.alive and "Traceback" not in over_tls.written, over_tls.written[-2000:]


async def against(fault: str | None, cases: Iterable[Case], patience: float) -> list[Verdict]:
    """The cases against a server with the fault."""
    async with broken.serving(fault) as port:
        return await play_all(cases, Target("127.0.0.1", port, "/ws/echo", False), AT_ONCE, patience)


@pytest.fixture(scope="module")
def with_faults() -> dict[str, list[Verdict]]:
    """What the cases named by each fault make of it, all faults at once."""
    async def all_of_them() -> list[list[Verdict]]:
        return await asyncio.gather(*(against(fault, [BY_ID[id] for id in ids], SHORT) for fault,
        ids in FAULTS.items()))
    return dict(zip(FAULTS, asyncio.run(all_of_them())))


def test_a_right_server_passes_in_full():
    assert not_ok(asyncio.run(against(None, DEFAULT, 5.0))) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_caught_by_name(with_faults: dict[str, list[Verdict]], fault: str):
    missed = [verdict.case.id for verdict in with_faults[fault] if verdict.outcome == OK]
    assert missed == []


def test_no_case_passes_against_a_server_that_hangs_up():
    async def all_of_them() -> list[Verdict]:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()[:2]
        async with server:
            return await play_all(DEFAULT, Target(host, port, "/ws/echo", False), AT_ONCE, SHORT)
    assert [verdict.case.id for verdict in asyncio.run(all_of_them()) if verdict.outcome == OK] == []
