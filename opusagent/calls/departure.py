"""How a call leaves us: handed over to somebody else, or ended where closing its stream does not end it.

A platform that has a message for it is sent that one; another is asked by its REST interface (carriers/), in a task
beside the audio.  The rule: nobody is called whom the list `targets` does not allow, whoever asked for it.
"""
import asyncio
import logging
from functools import partial

from .. import ConfigError, EngineError, targets
from ..carriers import TABLE, webhook
from ..credentials import Carrier
from ..dialects import FACTS, SENTENCE

log = logging.getLogger("opusagent")

ASKED, REFUSED, IMPOSSIBLE, FAILED = "asked", "refused", "impossible", "failed"      # outcomes of a transfer
MS = 1_000_000              # ns
LEAVE_MS = 15_000           # that a platform may take to end the stream of a call that it hands over


def patience_ms(call, target: str) -> int:
    """How long the platform may take to end a call itself, which is handed over to `target` or ("") ended."""
    return LEAVE_MS if target else call.dialect.parting_ms


def leave(call, target: str = "") -> None:
    """The platform ends the call, or hands it over, and has a while for that; then we close."""
    call.done, call.due = True, 0
    call.mouth.out.tell(FACTS, dict(call.dialogue.facts))
    call.leave_by = call.server.clock() + patience_ms(call, target) * MS
    call.server.departures.leave(call, target)


class Departures:
    """One for a worker."""

    __slots__ = ("config", "metrics", "rest", "soon", "_accounts", "_tasks")

    def __init__(self, config, metrics):
        self.config = config
        self.metrics = metrics
        self.rest = None                    # made by open(), where there are accounts
        self.soon = lambda told: asyncio.get_running_loop().call_soon(told)     # what is told to a call, by itself
        self._accounts = config.accounts
        self._tasks: set[asyncio.Task] = set()

    async def open(self) -> None:
        if self._accounts and self.rest is None:
            from ..carriers.rest import Rest         # takes a while to import
            self.rest = Rest()

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self.rest is not None:
            await self.rest.close()

    def leave(self, call, target: str) -> None:
        """The flow is over: the call is handed over to `target`, or ("") ended."""
        if target:
            return self.hand_over(call, target)
        call.mouth.out.text(call.dialect.stop())
        self.hang_up(call)

    def account_of(self, call) -> Carrier | None:
        """By which a call's platform can be asked: the account that its credentials are of, else the first."""
        platform = call.dialect.platform or call.dialect.name
        tenant = getattr(call.connection, "tenant", "")
        fitting = [each for each in self._accounts.values() if each.platform == platform]
        return next((each for each in fitting if tenant and each.account == tenant), fitting[0] if fitting else None)

    def hand_over(self, call, wanted: str) -> None:
        """Begins to hand a call over.  Where that is not allowed or not possible the call is told so, and goes on."""
        target = targets.spelled(wanted)
        account = self.account_of(call)
        if not targets.allowed(target, self.config.targets):
            self._not(call, REFUSED, "`targets` does not allow whom its flow names")
        elif (message := call.dialect.transfer) is not None:
            self.metrics.count("transfers", outcome=ASKED)
            call.mouth.out.text(message(target))
        elif account is None or self.rest is None:
            self._not(call, IMPOSSIBLE, f"{call.dialect.name} needs an account under [carriers] for that")
        else:
            self.metrics.count("transfers", outcome=ASKED)
            ours = partial(webhook, self.config.public_url.rstrip("/"), call.agent)
            request = TABLE[account.platform].transfer(account, call.id, target, ours)
            self._send(self._transfer(call, account, request))

    def _not(self, call, outcome: str, why: object) -> None:
        log.warning("call %s: it is not handed over: %s", call.id, why)
        self.metrics.count("transfers", outcome=outcome)
        self.soon(call.not_handed_over)

    def came_back(self, call, why: str) -> None:
        """The platform has found nobody who would take it."""
        self._not(call, FAILED, f"{call.dialect.name} says: {why[:SENTENCE] or 'it failed'}")

    def hang_up(self, call) -> None:
        """Ends a call by its account, where that wants to be asked (`hang_up = true`), or the stream's address does."""
        account = self.account_of(call)
        wanted = account is not None and (account.hang_up or call.dialect.hangs_up)
        if wanted and self.rest is not None:
            self._send(self._end(call.id, account, TABLE[account.platform].hang_up(account, call.id)))

    # -- the tasks -----------------------------------------------------------------------------------------------------

    def _send(self, work) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _transfer(self, call, account: Carrier, request) -> None:
        try:
            await self.rest.send(account, request)
        except (EngineError, ConfigError) as error:
            self._not(call, FAILED, error)

    async def _end(self, call_id: str, account: Carrier, request) -> None:
        try:
            await self.rest.send(account, request)
        except (EngineError, ConfigError) as error:
            log.warning("call %s: it was not ended at its platform: %s", call_id, error)
