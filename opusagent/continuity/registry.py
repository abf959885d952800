"""The registry: what nodes know of one another's calls, in Redis.

A call has a lease there (its owner, an epoch that grows with each owner, when it was renewed last) and a stream of its
committed turns.  It knows no call and no connection: a key is a digest, a state is bytes.  The rules: nothing that a
caller hears waits for Redis, and what does not fit into the queue is dropped and counted; who has not renewed a lease
in time may not speak until it has asked; while Redis does not answer, only those go on whose platform is there; and
for the length of a lease after Redis may have forgotten something, nobody takes its word for it that a call is free.
"""
import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from .. import ConfigError

log = logging.getLogger("opusagent")

BATCH = 32                      # jobs in one round trip
AT_ONCE = 500                   # leases in one
MOST_BYTES = 32 << 20           # of states that wait
ENTRIES = 1000                  # of a stream, about; the oldest are left out
CLOSE_SECONDS = 1.0             # for what still waits when a worker ends
STALE = 0                       # the answer to who is not the owner any more
LEAST_MS = 750                  # that an owner has to say that it has stopped; see `patience_ns`
NOTICED_MS = 250                # after which a connection knows that something has come (server.SWEEP_NS)

# Every node looks in here several times in the length of a lease: a longer gap means that Redis was away, or has lost
# what it knew.  Its end is `since`.
NOW = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
"""
MEMORY = NOW + """
local function since(prefix, gap)
  local seen = redis.call('HMGET', prefix .. ':memory', 'seen', 'since')
  local begun = seen[2]
  if not seen[1] or now - tonumber(seen[1]) > tonumber(gap) then begun = now end
  redis.call('HSET', prefix .. ':memory', 'seen', now, 'since', begun)
  return tonumber(begun)
end
"""
# lease, stream; owner, lease ms, life ms, least wait ms, prefix, gap ms, ms since the platform came, 1: who had it says
# that it has stopped -> epoch (0: the platform has come to another since), ms until it is to be taken once more (0:
# nobody else speaks), the stream.  An epoch is the time at which the platform came, so that it grows even where Redis
# has forgotten the one before; `free`: when nobody speaks any more, said or not.
TAKE = MEMORY + """
local had = redis.call('HMGET', KEYS[1], 'owner', 'epoch', 'renewed', 'free')
local epoch = now - tonumber(ARGV[7])
local free = since(ARGV[5], ARGV[6]) + tonumber(ARGV[2])
if had[1] == ARGV[1] then
  epoch = tonumber(had[2])
  if ARGV[8] == '0' then free = math.max(free, tonumber(had[4] or '0')) end
elseif had[1] then
  if tonumber(had[2]) > epoch and had[3] ~= '0' then return {0, 0, {}} end
  epoch = math.max(epoch, tonumber(had[2]) + 1)
  if had[3] ~= '0' then
    free = math.max(free, tonumber(had[4] or '0'), tonumber(had[3]) + tonumber(ARGV[2]), now + tonumber(ARGV[4]))
    redis.call('PUBLISH', ARGV[5] .. ':worker:' .. string.match(had[1], '^[^/]*'),
      'taken ' .. KEYS[1] .. ' ' .. ARGV[1] .. ' ' .. had[1])
  end
end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'epoch', epoch, 'renewed', now, 'free', free)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return {epoch, math.max(0, free - now), redis.call('XRANGE', KEYS[2], '-', '+')}
"""
OURS = """
local had = redis.call('HMGET', KEYS[1], 'owner', 'epoch')
if had[1] and had[1] ~= ARGV[1] and tonumber(had[2]) >= tonumber(ARGV[2]) then return 0 end
"""
# lease, stream; owner, epoch, life ms, 1: what is there is of another conversation, 1: nobody speaks, then the entry
COMMIT = NOW + OURS + f"""
if ARGV[4] == '1' then redis.call('DEL', KEYS[2]) end
if ARGV[5] == '1' then now = 0 end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'epoch', ARGV[2], 'renewed', now)
redis.call('XADD', KEYS[2], 'MAXLEN', '~', {ENTRIES}, '*', 'number', ARGV[6], 'state', ARGV[7], 'turns', ARGV[8])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
"""
# lease, stream; owner, epoch
RELEASE = OURS + "redis.call('HSET', KEYS[1], 'renewed', 0) return 1"
END = OURS + "redis.call('DEL', KEYS[1], KEYS[2]) return 1"
# ; life ms, prefix, gap ms, then owner, epoch and key of each -> the keys that others have
RENEW = MEMORY + """
local stale = {}
since(ARGV[2], ARGV[3])
for i = 4, #ARGV, 3 do
  local lease = ARGV[2] .. ':call:' .. ARGV[i + 2]
  local had = redis.call('HMGET', lease, 'owner', 'epoch')
  if had[1] and had[1] ~= ARGV[i] and tonumber(had[2]) >= tonumber(ARGV[i + 1]) then
    stale[#stale + 1] = ARGV[i + 2]
  else
    redis.call('HSET', lease, 'owner', ARGV[i], 'epoch', had[1] == ARGV[i] and had[2] or ARGV[i + 1], 'renewed', now)
    redis.call('PEXPIRE', lease, ARGV[1])
    redis.call('PEXPIRE', ARGV[2] .. ':turns:' .. ARGV[i + 2], ARGV[1])
  end
end
return stale
"""


@dataclass(frozen=True, slots=True)
class Taken:
    """A lease that is ours now."""

    epoch: int                                  # 0: Redis was asked once more whether it is, and did not answer
    entries: list[tuple[int, bytes, bytes]]     # (number, state, turns) of what was committed before, in order
    lost: bool = False                          # another has taken it meanwhile


class Taking:
    """A lease that is being taken."""

    __slots__ = ("stopped", "lost", "lost_to")

    def __init__(self):
        self.stopped = asyncio.Event()  # who had it says so
        self.lost = False               # its platform has come to another since
        self.lost_to = ""               # who takes it from us, and wants to know when it is free


def load() -> tuple:
    """The client, what it raises, and how often it tries: once.  ConfigError where the package is missing.

    Done before workers are forked, it costs none of them time that callers of a dead one would wait.
    """
    try:
        from redis import RedisError, asyncio as client
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError:
        raise ConfigError("redis.url needs the extra redis: pip install 'opusagent[redis]'.") from None
    return client, RedisError, Retry(NoBackoff(), 0)


class Registry:
    """A worker's.  Everything happens on its loop; only take(), once() and known() are waited for, and not for long."""

    def __init__(self, settings, life_seconds: float, metrics, clock: Callable[[], int] = time.monotonic_ns):
        """`settings`: config.Redis; a call that nobody holds is forgotten after `life_seconds`."""
        self.url, self.prefix = settings.url, settings.prefix
        self.lease_ns = int(settings.lease_seconds * 1e9)
        self.beat_seconds = settings.lease_seconds / 3
        self.timeout = settings.timeout_ms / 1000
        self.most = settings.waiting
        self.life_ms = int((life_seconds + settings.lease_seconds) * 1000)
        self.metrics = metrics
        self.clock = clock
        self.worker = secrets.token_hex(8)
        self.least_ms = max(LEAST_MS, int(self.beat_seconds * 1000))
        self.gap_ms = int(self.beat_seconds * 1000) + settings.timeout_ms       # without anybody looking into Redis
        # a platform that has been silent for so long may have gone elsewhere: who was asked there waits for longer
        self.patience_ns = (self.least_ms - NOTICED_MS) * 1_000_000
        self.up = False                         # Redis has answered the last time
        self.deadline = 0                       # ns: until when our leases are ours, for all that we know
        self.sure_from = 0                      # ns: from when on that is true; Redis may have forgotten something
        self.stood_until = 0                    # ... or others have heard nothing of us, for we stood still
        self.beaten = self.clock()              # ns: our last sign of life
        self.leases: dict[str, tuple[str, int]] = {}        # key -> (owner, epoch): what we hold
        self.on_lost: Callable[[str], None] = lambda key: None      # another has this call now
        self.on_back: Callable[[], None] = lambda: None         # Redis answers again, and may have forgotten all
        self._redis = None
        self._waiting: deque[tuple] = deque()   # (script, keys, arguments) that are to be written
        self._bytes = 0                         # of them
        self._wake = asyncio.Event()
        self._takings: dict[str, Taking] = {}   # owner that we want to be -> how that stands
        self._left: dict[str, int] = {}         # owner that we were and gave up -> ns until when that is worth knowing
        self._tasks: list[asyncio.Task] = []
        self._told = True                       # the log knows whether Redis answers

    def new_owner(self) -> str:
        return f"{self.worker}/{secrets.token_hex(4)}"

    # -- life ----------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """ConfigError where the package is missing; a Redis that does not answer is none of our troubles."""
        client, error, once = load()
        self._errors = error, OSError, TimeoutError
        try:
            self._redis = client.Redis.from_url(self.url, socket_timeout=None, socket_connect_timeout=self.timeout,
                                                protocol=2, retry=once, health_check_interval=0)
        except ValueError:                      # its message would hold the URL, and that a password
            raise ConfigError("redis.url is written redis://[:PASSWORD@]HOST[:PORT][/DATABASE], or rediss://, or "
                              "unix://PATH.") from None
        await self._renew()
        self._tasks = [asyncio.ensure_future(work()) for work in (self._beat, self._write, self._listen)]

    async def close(self) -> None:
        """What waits is written, if that takes no longer than a moment."""
        until = self.clock() + int(CLOSE_SECONDS * 1e9)
        while self._waiting and self.up and self.clock() < until:
            await asyncio.sleep(0.01)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._redis is not None:
            await self._redis.aclose()

    def place(self) -> str:
        """Where Redis is, without its password."""
        parts = urlsplit(self.url)
        return f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else parts.path

    def _names(self, key: str) -> tuple[str, str]:
        return f"{self.prefix}:call:{key}", f"{self.prefix}:turns:{key}"

    # -- what is waited for --------------------------------------------------------------------------------------------

    async def take(self, key: str, owner: str, came: int) -> Taken | None:
        """The call is ours from now on, whose platform came at `came`, ns; returns when nobody else speaks on it.  None
        where Redis does not say."""
        names = self._names(key)
        taking = self._takings[owner] = Taking()
        epoch, wait, entries = 0, 1, None
        try:
            while wait and not taking.lost_to:
                answer = await self._ask(TAKE, names, owner, self.lease_ns // 1_000_000, self.life_ms, self.least_ms,
                                         self.prefix, self.gap_ms, (self.clock() - came) // 1_000_000,
                                         int(taking.stopped.is_set()))
                if answer is None and self.up:
                    continue                            # it is we that stood still
                epoch, wait, entries = answer or (0, 0, entries)
                taking.lost |= answer is not None and not epoch
                if wait:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(wait / 1000):
                            await taking.stopped.wait()
        finally:
            del self._takings[owner]
        if taking.lost_to:
            await self._stopped(names[0], taking.lost_to)
        lost = taking.lost or bool(taking.lost_to)
        return None if entries is None else Taken(epoch, [entry_of(fields) for _, fields in entries], lost)

    def sure(self) -> bool:
        """Our leases are ours, and nobody can take one without our hearing of it."""
        return self.sure_from <= self.clock() <= self.deadline

    @property
    def stands(self) -> bool:
        """We have stood still, for all that we know: whose a call is has to be asked first."""
        now = self.clock()
        return now < self.stood_until or self.up and now > self.deadline or self._still(now)

    def _still(self, now: int) -> bool:
        return now - self.beaten > self.least_ms * 1_000_000

    def leave(self, key: str) -> None:
        """A call of ours is over here, and who wants it may have it."""
        if (held := self.leases.pop(key, None)) is not None:
            now = self.clock()
            self._left = {owner: until for owner, until in self._left.items() if until > now}
            self._left[held[0]] = now + self.lease_ns

    async def once(self, digest: str, seconds: float) -> bool:
        """False if a nonce, which counts for so long, has been used at another node; True where nobody can say."""
        name = f"{self.prefix}:nonce:{digest}"
        return await self._command("SET", name, "1", "NX", "PX", max(1, int(seconds * 1000))) is not None or not self.up

    async def known(self, key: str) -> bool:
        """Whether there is such a call, live or lately lost."""
        return bool(await self._command("EXISTS", self._names(key)[1]))

    async def _ask(self, script: str, keys: tuple, *args):
        return await self._command("EVAL", script, len(keys), *keys, *args)

    async def _command(self, *words):
        """The answer; None where Redis does not give one in time.  While it is known not to, it is not asked."""
        if not self.up:
            return None
        began = self.clock()
        try:
            async with asyncio.timeout(self.timeout):
                return await self._redis.execute_command(*words)
        except self._errors as error:
            self._failed(error, began)
            return None

    # -- what is written when there is time ----------------------------------------------------------------------------

    def commit(self, key: str, owner: str, epoch: int, number: int, state: bytes, turns: bytes, anew: bool = False,
               silent: bool = False) -> None:
        """A turn counts.  `anew`: what the stream holds is not of this conversation; `silent`: nobody speaks now."""
        self._put(COMMIT, key, (owner, epoch, self.life_ms, int(anew), int(silent), number, state, turns))

    def release(self, key: str, owner: str, epoch: int) -> None:
        """Nobody speaks on the call any more; who wants it may have it at once."""
        self._put(RELEASE, key, (owner, epoch))

    def end(self, key: str, owner: str, epoch: int) -> None:
        """The conversation is over: nothing of it stays."""
        self._put(END, key, (owner, epoch))

    def _put(self, script: str, key: str, args: tuple) -> None:
        job = script, self._names(key), args
        self._waiting.append(job)
        self._bytes += size_of(job)
        while len(self._waiting) > self.most or self._bytes > MOST_BYTES:
            self._bytes -= size_of(self._waiting.popleft())
            self.metrics.count("registry_dropped")
        self._wake.set()

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting and self.up:
                batch = [self._waiting[i] for i in range(min(BATCH, len(self._waiting)))]
                began = self.clock()
                try:
                    async with asyncio.timeout(self.timeout), self._redis.pipeline(transaction=False) as pipe:
                        for script, keys, args in batch:
                            pipe.execute_command("EVAL", script, len(keys), *keys, *args)
                        answers = await pipe.execute(raise_on_error=False)
                except self._errors as error:
                    self._failed(error, began)
                    break
                self._written(batch, answers)

    def _written(self, batch: list, answers: list) -> None:
        """What was refused is not tried again; a commit that was dropped meanwhile may have been written after all."""
        for job, answer in zip(batch, answers, strict=True):
            if self._waiting and self._waiting[0] is job:
                self._waiting.popleft()
                self._bytes -= size_of(job)
            if isinstance(answer, Exception):
                self.metrics.count("registry_dropped")
                self._say_failed(answer)
            elif answer == STALE:
                self._lost(job[1][0].rpartition(":")[2], job[2][0])
        self.metrics.gauge("registry_waiting", len(self._waiting))

    # -- leases --------------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        """Renews all leases, again and again."""
        while True:
            began = self.clock()
            if self._still(began):
                self.stood_until = began + self.lease_ns
            self.beaten = began
            await self._renew()
            await asyncio.sleep(max(0.0, self.beat_seconds - (self.clock() - began) / 1e9))

    async def _renew(self) -> None:
        began = self.clock()
        held = [(owner, epoch, key) for key, (owner, epoch) in self.leases.items()]
        try:
            for at in range(0, max(1, len(held)), AT_ONCE):
                async with asyncio.timeout(self.timeout):
                    words = [word for lease in held[at:at + AT_ONCE] for word in lease]
                    stale = await self._redis.execute_command("EVAL", RENEW, 0, self.life_ms, self.prefix, self.gap_ms,
                                                              *words)
                owners = {key: owner for owner, _, key in held}
                for key in map(bytes.decode, stale):
                    self._lost(key, owners[key])
        except self._errors as error:
            return self._failed(error, began)
        if self.clock() > self.deadline:
            self.sure_from = self.clock() + self.lease_ns       # whoever else believes to be an owner has asked by then
            self.stood_until = self.sure_from if self.up else self.stood_until
        self.deadline = began + self.lease_ns
        self._answers()

    def _lost(self, key: str, owner: str) -> bool:
        """The call is another's; False if we have not held it as `owner`."""
        if self.leases.get(key, ("",))[0] != owner:
            return False
        del self.leases[key]
        self.on_lost(key)
        return True

    def _failed(self, error: Exception, began: int) -> None:
        """Redis has not answered.  If it is we that stood still, that says nothing about Redis: we ask again."""
        if self.clock() - began > 1.5 * self.timeout * 1e9:
            return
        self.up = False
        self.metrics.gauge("registry_up", 0)
        self._say_failed(error)

    def _say_failed(self, error: Exception) -> None:
        if self._told:
            self._told = False
            log.warning("Redis at %s does not serve (%s%s): calls go on, and cannot be taken over by another node",
                        self.place(), type(error).__name__, f": {error}" if str(error) else "")

    def _answers(self) -> None:
        self.metrics.gauge("registry_up", 1)
        self.metrics.gauge("registry_waiting", len(self._waiting))
        if not self.up:
            self.up = True
            self._wake.set()
            self.on_back()
            if not self._told:
                self._told = True
                log.warning("Redis at %s serves again; %d entries waited for it", self.place(), len(self._waiting))

    # -- what others say -----------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Who takes a call of ours says so, and hears when we have stopped."""
        while True:
            try:
                async with self._redis.pubsub() as heard:
                    await heard.subscribe(f"{self.prefix}:worker:{self.worker}")
                    async for message in heard.listen():
                        if message["type"] == "message":
                            await self._hear(message["data"].decode().split())
            except self._errors:
                pass                            # _renew says it
            await asyncio.sleep(self.beat_seconds)

    async def _hear(self, words: list[str]) -> None:
        match words:
            case "taken", lease, owner, before:
                if before in self._takings:
                    self._takings[before].lost_to = owner
                elif self._lost(lease.rpartition(":")[2], before) or self._left.get(before, 0) > self.clock():
                    await self._stopped(lease, owner)       # else another may have it, for Redis knows better than we
            case "stopped", _, owner if owner in self._takings:
                self._takings[owner].stopped.set()

    async def _stopped(self, lease: str, owner: str) -> None:
        await self._command("PUBLISH", f"{self.prefix}:worker:{owner.partition('/')[0]}", f"stopped {lease} {owner}")


def entry_of(fields: list[bytes]) -> tuple[int, bytes, bytes]:
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    return int(named[b"number"]), named[b"state"], named[b"turns"]


def size_of(job: tuple) -> int:
    return sum(len(each) for each in job[2] if isinstance(each, bytes)) + 200
