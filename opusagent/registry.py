"""The registry: what nodes know of one another's calls, in Redis.

A call has a lease there (its owner, an epoch that grows with each owner, when it was renewed last) and a stream of its
committed turns.  It knows no call and no connection: a key is a digest, a state is bytes.  The rules: nothing that a
caller hears waits for Redis, and what does not fit into the queue is dropped and counted; who has not renewed a lease
in time may not speak until it has asked; and while Redis does not answer nobody can take a call away, so everybody
goes on.
"""
import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from . import ConfigError

log = logging.getLogger("opusagent")

BATCH = 32                      # jobs in one round trip
AT_ONCE = 500                   # leases in one
MOST_BYTES = 32 << 20           # of states that wait
ENTRIES = 1000                  # of a stream, about; the oldest are left out
NEVER = 1 << 62                 # ns
CLOSE_SECONDS = 1.0             # for what still waits when a worker ends
STALE = 0                       # the answer to who is not the owner any more

NOW = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
"""
# lease, stream; owner, lease ms, life ms, least wait ms, prefix -> epoch, ms to wait, the stream
TAKE = NOW + """
local had = redis.call('HMGET', KEYS[1], 'owner', 'epoch', 'renewed')
local epoch = tonumber(had[2] or '0') + 1
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'epoch', epoch, 'renewed', now)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
if not had[1] or had[1] == ARGV[1] then return {epoch, 0, redis.call('XRANGE', KEYS[2], '-', '+')} end
local wait = 0
if had[3] ~= '0' then
  wait = math.max(tonumber(had[3]) + tonumber(ARGV[2]) - now, tonumber(ARGV[4]))
  redis.call('PUBLISH', ARGV[5] .. ':worker:' .. string.match(had[1], '^[^/]*'), 'taken ' .. KEYS[1] .. ' ' .. ARGV[1])
end
return {epoch, wait, redis.call('XRANGE', KEYS[2], '-', '+')}
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
# ; life ms, prefix, then owner, epoch and key of each -> the keys that others have
RENEW = NOW + """
local stale = {}
for i = 3, #ARGV, 3 do
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

    epoch: int
    entries: list[tuple[int, bytes, bytes]]     # (number, state, turns) of what was committed before, in order


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
        self.up = False                         # Redis has answered the last time
        self.deadline = NEVER                   # ns: until when our leases are ours, for all that we know
        self.leases: dict[str, tuple[str, int]] = {}        # key -> (owner, epoch): what we hold
        self.on_lost: Callable[[str], None] = lambda key: None      # another has this call now
        self.on_back: Callable[[], None] = lambda: None         # Redis answers again, and may have forgotten all
        self._redis = None
        self._waiting: deque[tuple] = deque()   # (script, keys, arguments) that are to be written
        self._bytes = 0                         # of them
        self._wake = asyncio.Event()
        self._stopped: dict[str, asyncio.Event] = {}        # lease that we take -> its owner says that it has stopped
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

    async def take(self, key: str, owner: str) -> Taken | None:
        """The call is ours from now on; returns when nobody else speaks on it.  None where Redis does not say."""
        lease, stream = self._names(key)
        stopped = self._stopped[lease] = asyncio.Event()
        try:
            answer = await self._ask(TAKE, (lease, stream), owner, self.lease_ns // 1_000_000, self.life_ms,
                                     int(self.beat_seconds * 1000), self.prefix)
            if answer is None:
                return None
            epoch, wait, entries = answer
            if wait:
                try:
                    async with asyncio.timeout(wait / 1000):
                        await stopped.wait()
                except TimeoutError:
                    pass
        finally:
            if self._stopped.get(lease) is stopped:
                del self._stopped[lease]
        return Taken(epoch, [entry_of(fields) for _, fields in entries])

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
                self._lost(job[1][0].rpartition(":")[2])
        self.metrics.gauge("registry_waiting", len(self._waiting))

    # -- leases --------------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        """Renews all leases, again and again."""
        while True:
            began = self.clock()
            await self._renew()
            await asyncio.sleep(max(0.0, self.beat_seconds - (self.clock() - began) / 1e9))

    async def _renew(self) -> None:
        began = self.clock()
        held = [(owner, epoch, key) for key, (owner, epoch) in self.leases.items()]
        try:
            for at in range(0, max(1, len(held)), AT_ONCE):
                async with asyncio.timeout(self.timeout):
                    words = [word for lease in held[at:at + AT_ONCE] for word in lease]
                    stale = await self._redis.execute_command("EVAL", RENEW, 0, self.life_ms, self.prefix, *words)
                for key in stale:
                    self._lost(key.decode())
        except self._errors as error:
            return self._failed(error, began)
        self.deadline = began + self.lease_ns
        self._answers()

    def _lost(self, key: str) -> None:
        if self.leases.pop(key, None) is not None:
            self.on_lost(key)

    def _failed(self, error: Exception, began: int) -> None:
        """Redis has not answered.  If it is we that stood still, that says nothing about Redis: we ask again."""
        if self.clock() - began > 3 * self.timeout * 1e9:
            return
        self.deadline = NEVER                   # nobody else can have taken a call through it either
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
            case "taken", lease, owner:
                self._lost(lease.rpartition(":")[2])
                await self._command("PUBLISH", f"{self.prefix}:worker:{owner.partition('/')[0]}", f"stopped {lease}")
            case "stopped", lease if lease in self._stopped:
                self._stopped[lease].set()


def entry_of(fields: list[bytes]) -> tuple[int, bytes, bytes]:
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    return int(named[b"number"]), named[b"state"], named[b"turns"]


def size_of(job: tuple) -> int:
    return sum(len(each) for each in job[2] if isinstance(each, bytes)) + 200
