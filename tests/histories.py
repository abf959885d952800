"""Nodes, platforms and a Redis in virtual time: what a history does to them, and whether two nodes ever spoke at once.

Real are the registry and the calls' continuity (their code, on an event loop for each node) and Redis, which runs the
scripts; virtual are the clock, the network, the calls' audio, and the platforms.  The rules: everything follows from a
seed; a node that stands still keeps its clock and gets later what comes meanwhile; and a history is looked at after
each of its events.
"""
import asyncio
import heapq
import random
import selectors
from contextlib import asynccontextmanager
from types import SimpleNamespace

from redis.exceptions import ConnectionError as Refused
from redis.exceptions import RedisError

from opusagent.config import Redis
from opusagent.continuity import returning as calls_here
from opusagent.continuity import registry as leases
from opusagent.continuity.handover import VERSION
from opusagent.continuity.registry import Registry
from opusagent.continuity.returning import Continuity
from opusagent.continuity.shelf import Shelf
from opusagent.metrics import Metrics

MS, SECOND = 1_000_000, 1_000_000_000
CLOCK = "local now = tonumber(KEYS[#KEYS])\n"       # instead of Redis' own
PUBLISH = "redis.call('RPUSH', 'published', "       # what a script tells the workers waits for the network
NET_MS = 0.2, 3.0               # a message takes so long, one way
SLOW_MS = 20.0, 900.0           # ... to a slow Redis
LOST_MS = 1000                  # what a failover loses
TURN_MS = 700                   # a conversation goes on so often
LEFT_MS = leases.LEAST_MS + leases.NOTICED_MS   # after which a node that cannot ask is silent, its platform having left
FLOWS = {"": SimpleNamespace(states={"talk"})}


class Violation(AssertionError):
    """Something happened that must not."""


class Stillness(selectors.SelectSelector):
    """Nothing comes from outside."""

    def select(self, timeout=None):
        return []


class Loop(asyncio.SelectorEventLoop):
    """A node's: it turns when it is told to, and its time is the history's."""

    def __init__(self, world):
        self.world = world
        self.dues: list[float] = []         # seconds: when timers are due, the next first; some were cancelled
        self.stirred = False
        super().__init__(Stillness())

    def time(self) -> float:
        return self.world.now / SECOND

    def call_soon(self, callback, *args, context=None):
        self.stirred = True
        return super().call_soon(callback, *args, context=context)

    def call_at(self, when, callback, *args, context=None):
        heapq.heappush(self.dues, when)
        return super().call_at(when, callback, *args, context=context)

    def turn(self) -> None:
        """Everything that can happen now."""
        now = self.time() + 1e-9
        while self.stirred or self.dues and self.dues[0] <= now:
            self.stirred = False
            while self.dues and self.dues[0] <= now:
                heapq.heappop(self.dues)
            super().call_soon(self.stop)
            self.run_forever()

    @property
    def due(self) -> int:
        """ns: when it has something to do by itself."""
        return round(self.dues[0] * SECOND) if self.dues else 1 << 62


class Client:
    """A node's connection to Redis, as registry.py uses redis.asyncio's."""

    def __init__(self, node):
        self.node = node
        self.heard: asyncio.Queue | None = None
        self._commands: list[tuple] = []

    async def execute_command(self, *words):
        answer = await self.node.ask([words])
        if isinstance(answer[0], Exception):
            raise answer[0]
        return answer[0]

    @asynccontextmanager
    async def pipeline(self, transaction: bool):
        commands: list[tuple] = []
        yield SimpleNamespace(execute_command=lambda *words: commands.append(words),
                              execute=lambda raise_on_error: self.node.ask(commands))

    @asynccontextmanager
    async def pubsub(self):
        yield self

    async def subscribe(self, channel: str) -> None:
        await self.node.ask([("PING",)])
        self.heard = asyncio.Queue()
        self.node.channel = channel

    async def listen(self):
        while True:
            message = await self.heard.get()
            if isinstance(message, Exception):
                raise message
            yield {"type": "message", "data": message}

    async def aclose(self) -> None:
        pass


class Line:
    """A connection of a platform's to a node, as a session sees it."""

    tenant, wire, congested, rtt_ns = "", None, False, 0

    def __init__(self, node, key: str):
        self.node = node
        self.server = node.server
        self.key = key
        self.session = None
        self.open = True                    # this end of it
        self.left: int | None = None        # ns: since when the platform sends nothing on it

    @property
    def heard(self) -> int:
        """ns: when something came last; the connection notices it a few times a second, and what came while its node
        stood still when that goes on."""
        node, every = self.node, leases.NOTICED_MS * MS
        if self.left is None:
            return node.world.now // every * every
        last = node.went_on if node.stood <= self.left <= node.went_on else self.left
        return -(-last // every) * every

    def send(self, opcode, payload) -> bool:
        return True

    def close(self, code: int = 1000, reason: str = "") -> None:
        self.node.loop.call_soon(self.ends)

    def ends(self) -> None:
        if self.open:
            self.open = False
            session, self.session = self.session, None
            if session is not None:
                session.lost(1000, "")

    def fault(self, error: Exception) -> None:
        raise error


class Talk:
    """As much of a call as is asked for here: it has said something every TURN_MS."""

    def __init__(self, line, node, dialect):
        self.connection = self.line = line
        self.node = node
        self.dialect = dialect
        before = line.earlier or {"dialogue": ["talk", 0], "receipts": []}
        self.dialogue = SimpleNamespace(turn=before["dialogue"][1], part=0)
        self.ledger = SimpleNamespace(receipts=list(before["receipts"]))
        self.transaction = SimpleNamespace(revocable=False)
        self.mouth = SimpleNamespace(out=SimpleNamespace(late=[]))
        self.slot = SimpleNamespace(written=0)
        self.excused, self.began = 0, node.world.now
        self.done = False
        self.id = dialect.token
        node.talks.append(self)
        node.world.note(node.name, "begins", self.id, "at turn", self.dialogue.turn)

    def on_message(self, opcode, payload) -> None:
        pass

    drained = on_message

    def overdue(self, now: int) -> bool:
        return False

    @property
    def tenure(self):
        return self.connection.tenure

    @property
    def speaks(self) -> bool:
        line = self.connection.connection
        return self.slot is not None and line is not None and line.open and not self.connection.congested

    def goes_on(self) -> None:
        """The caller is answered, if the agent may speak."""
        if self.slot is None:
            return
        if self.speaks:
            self.dialogue.turn += 1
            self.ledger.receipts.append({"turn": self.dialogue.turn})
        self.node.continuity.keep(self, self.node.world.now)

    def lost(self, code: int, reason: str) -> None:
        if self.slot is not None:
            self.node.world.note(self.node.name, "ends", self.id)
            self.slot = None
            self.node.continuity.ended(self)


def committed(call: Talk) -> dict:
    return {"version": VERSION, "dialogue": ["talk", call.dialogue.turn], "call": {"id": call.id}}


class Node:
    """A worker of its own machine."""

    def __init__(self, world, name: str, settings: Redis):
        self.world = world
        self.name = name
        self.loop = Loop(world)
        self.alive, self.stopped = True, False
        self.stood = self.went_on = 0       # ns: when it stood still last, and until when
        self.cut_off = False                # from Redis
        self.channel = ""
        self.later: list = []               # what came while it stood still
        self.talks: list[Talk] = []
        self.client = Client(self)
        metrics = SimpleNamespace(count=lambda *name, **labels: None, gauge=lambda *name, **labels: None)
        self.registry = Registry(settings, 60, metrics, clock=lambda: world.now)
        self.registry.worker = name
        self.continuity = Continuity(self.registry, metrics, 60, Shelf(16), clock=lambda: world.now)
        self.server = SimpleNamespace(
            config=SimpleNamespace(net=SimpleNamespace(resume_seconds=60)), metrics=metrics, waiting=set(), calls={},
            draining=False, studio=SimpleNamespace(flows=FLOWS), continuity=self.continuity, tock=lambda: world.now)
        self.do(lambda: self.loop.create_task(self._open()))

    async def _open(self) -> None:
        client = SimpleNamespace(Redis=SimpleNamespace(from_url=lambda url, **how: self.client))
        leases.load = lambda: (client, RedisError, None)
        await self.registry.open()

    @property
    def runs(self) -> bool:
        return self.alive and not self.stopped

    def do(self, what) -> None:
        """As the event loop of a process that runs would, else when it runs again."""
        if self.stopped:
            self.later.append(what)
        elif self.alive:
            self.loop.call_soon(what)

    def turn(self) -> None:
        if self.runs:
            asyncio.events._set_running_loop(None)
            self.loop.turn()

    def goes_on(self) -> None:
        self.stopped, self.went_on = False, self.world.now
        later, self.later = self.later, []
        for what in later:
            self.loop.call_soon(what)

    async def ask(self, commands: list[tuple]) -> list:
        """What Redis says; for ever where nothing comes."""
        answer = self.loop.create_future()
        self.world.send(self, commands, answer)
        return await answer

    def told(self, future, answer) -> None:
        if not future.done():
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def die(self) -> None:
        self.alive = False
        for talk in self.talks:
            talk.slot = None

    def close(self) -> None:
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.stirred = True
        self.alive, self.stopped = True, False
        self.loop.turn()
        self.loop.close()
        self.alive = False


class World:
    """One history.  `redis`: a synchronous client of a real one, which is emptied; `faults`: what may happen."""

    def __init__(self, seed: int, redis, faults: tuple[str, ...], faithful: bool = True, nodes: int = 3,
                 seconds: float = 12.0):
        self.dice = random.Random(seed)
        self.redis = redis
        self.faults = faults
        self.faithful = faithful            # a platform leaves a connection before it dials again
        self.now = 100 * SECOND
        self.until = self.now + int(seconds * SECOND)
        self.events: list = []              # (ns, number, what)
        self.number = 0
        self.redis_up, self.slow = True, False
        self.past: list[tuple[int, dict]] = []      # what Redis knew, and when
        self.epochs: dict[str, dict] = {}   # of each call those that Redis has given, by owner, as far as it remembers
        self.alone: set = set()             # talks that began while Redis could not be asked
        self.log: list[str] = []
        redis.flushdb()
        self.settings = Redis(url="redis://virtual")
        self.nodes = [Node(self, "abcdef"[i], self.settings) for i in range(nodes)]
        self.lines: dict[str, Line] = {}    # each call's latest
        for key in ("one", "two"):
            self.after(self.dice.uniform(50, 800), lambda key=key: self.dial(key))
        for _ in range(self.dice.randint(2, 6)):
            self.after(self.dice.uniform(500, seconds * 800), self.fault)
        self.after(TURN_MS, self.talk)
        if "failover" in faults:
            self.after(250, self.remember)

    # -- time ----------------------------------------------------------------------------------------------------------

    def after(self, ms: float, what) -> None:
        self.number += 1
        heapq.heappush(self.events, (self.now + int(ms * MS), self.number, what))

    def note(self, *words) -> None:
        self.log.append(f"{(self.now - 100 * SECOND) / SECOND:7.3f} " + " ".join(map(str, words)))

    def run(self) -> None:
        try:
            while self.now < self.until:
                due = min([node.loop.due for node in self.nodes if node.runs], default=1 << 62)
                if self.events and self.events[0][0] <= due:
                    self.now, _, what = heapq.heappop(self.events)
                    what()
                else:
                    self.now = max(self.now, due)
                self.check()                        # a node that goes on may speak before it hears of anything
                for node in self.nodes:
                    node.turn()
                self.check()
        finally:
            for node in self.nodes:
                node.close()

    def check(self) -> None:
        """Never two at once."""
        speaking: dict[str, list] = {}
        for node in self.nodes:
            if node.runs:
                for talk in node.talks:
                    if talk.speaks:
                        speaking.setdefault(talk.id, []).append(talk)
        for key, talks in speaking.items():
            if len(talks) > 1 and not self.excused(talks):
                who = ", ".join(f"{talk.node.name} ({talk.tenure.epoch})" for talk in talks)
                raise Violation(f"{who} speak on {key} at once:\n" + "\n".join(self.log[-60:]))

    def excused(self, talks: list[Talk]) -> bool:
        """Some could not ask Redis, and go by their platform: it is at one node only, but for those that know of their
        leases, and those whom it has only just left."""
        owners = {talk for talk in talks if talk.tenure.epoch and talk.node.registry.sure()}
        there = [talk for talk in talks if talk.connection.connection.left is None
                 or talk not in owners and self.now - talk.connection.connection.left > LEFT_MS * MS]
        return len(owners) < len(talks) and len(there) <= 1

    # -- the network, and Redis ----------------------------------------------------------------------------------------

    def delay(self) -> float:
        return self.dice.uniform(*(SLOW_MS if self.slow else NET_MS))

    def send(self, node: Node, commands: list[tuple], future) -> None:
        if node.cut_off:
            return
        if not self.redis_up:
            return self.after(0.1, lambda: node.do(lambda: node.told(future, Refused("refused"))))
        self.after(self.delay(), lambda: self.arrives(node, commands, future))

    def arrives(self, node: Node, commands: list[tuple], future) -> None:
        if node.cut_off or not self.redis_up:
            return
        answers = [self.execute(node, words) for words in commands]
        self.after(self.delay(), lambda: node.cut_off or node.do(lambda: node.told(future, answers)))

    def execute(self, node: Node, words: tuple):
        if words[0] == "PUBLISH":
            return self.publish(words[1], words[2].encode())
        if words[0] == "EVAL":
            script = words[1]
            if leases.NOW in script:                    # its time is the history's, and its news go our way
                keys = words[3:3 + words[2]]
                words = ("EVAL", script.replace(leases.NOW, CLOCK).replace("redis.call('PUBLISH', ", PUBLISH),
                         len(keys) + 1, *keys, self.now // MS, *words[3 + len(keys):])
            try:
                answer = self.redis.execute_command(*words)
            except RedisError as error:
                raise Violation(f"a script failed: {error}") from error
            self.judge(node, script, words, answer)
            return answer
        return self.redis.execute_command(*words)

    def judge(self, node: Node, script: str, words: tuple, answer) -> None:
        """The lease as a register: its epoch grows with each owner, and who is not the owner writes nothing."""
        if script == leases.TAKE:
            key, epoch = words[3].rpartition(":")[2], answer[0]
            if not epoch:
                return self.note(node.name, "comes too late for", key[:4])
            known = self.epochs.setdefault(key, {})
            if epoch <= max((each for owner, each in known.items() if owner != words[6]), default=0):
                raise Violation(f"epoch {epoch} was given twice:\n" + "\n".join(self.log[-60:]))
            known[words[6]] = epoch
            self.note(node.name, "takes", key[:4], "epoch", epoch, "waits", answer[1], "ms")
            pairs = self.redis.lpop("published", 10) or []
            for channel, message in zip(pairs[::2], pairs[1::2], strict=True):
                self.publish(channel.decode(), message)
        elif script == leases.COMMIT and answer == 1:
            key, epoch = words[3].rpartition(":")[2], words[7]
            if epoch < max(self.epochs.get(key, {}).values(), default=0):
                raise Violation(f"{node.name} wrote with epoch {epoch}:\n" + "\n".join(self.log[-60:]))

    def publish(self, channel: str, message: bytes) -> int:
        for node in self.nodes:
            if node.channel == channel and node.client.heard is not None:
                self.after(self.delay(), lambda node=node: node.cut_off or node.do(
                    lambda: node.client.heard.put_nowait(message)))
        return 1

    def remember(self) -> None:
        """What a replica would have."""
        if self.redis_up:
            keys = self.redis.keys("*")
            self.past.append((self.now, {key: self.redis.dump(key) for key in keys}))
            del self.past[:-8]
        self.after(250, self.remember)

    def forget(self, how: str) -> None:
        """Redis comes back without what it knew, or without the last of it."""
        kept: dict = {}
        if how == "failover":
            kept = next((known for when, known in reversed(self.past) if when <= self.now - LOST_MS * MS), {})
        self.redis.flushdb()
        for key, value in kept.items():
            if value is not None:
                self.redis.restore(key, 60000, value)
        self.epochs.clear()
        for node in self.nodes:
            if node.client.heard is not None:
                node.do(lambda node=node: node.client.heard.put_nowait(Refused("closed")))
                node.channel = ""

    # -- platforms -----------------------------------------------------------------------------------------------------

    def dial(self, key: str) -> None:
        """A platform connects for a call; where it had a connection, it has left that one, or says nothing of it."""
        before = self.lines.get(key)
        if before is not None and self.faithful and before.left is None:
            before.left = self.now
            if before.node.alive and self.dice.random() < 0.5:
                self.after(self.delay(), lambda: before.node.do(before.ends))
        choices = [node for node in self.nodes if node.alive]
        if not choices:
            return
        node = self.dice.choice(choices)
        line = self.lines[key] = Line(node, key)
        self.note("the platform dials", node.name, "for", key)
        dialect = SimpleNamespace(name="virtual", token=key, resumable=True, came=None, resumes=None)
        self.after(self.dice.uniform(0.5, 300), lambda: node.do(lambda: self.arrive(node, line, dialect)))
        if self.dice.random() < 0.8:
            self.after(self.dice.uniform(20, 3000), lambda: self.dial(key))

    def arrive(self, node: Node, line: Line, dialect) -> None:
        node.server.now = self.now
        line.session = node.continuity.meet(line, dialect, "", lambda taken: Talk(taken, node, dialect))

    def talk(self) -> None:
        for node in self.nodes:
            for talk in node.talks:
                if talk.slot is not None:
                    node.do(talk.goes_on)
        self.after(TURN_MS, self.talk)

    # -- what may happen -----------------------------------------------------------------------------------------------

    def fault(self) -> None:
        what = self.dice.choice(self.faults)
        FAULTS[what](self, self.dice.choice(self.nodes), self.dice.uniform(50, 4000))

    def stop(self, node: Node, ms: float) -> None:
        if node.runs:
            self.note(node.name, "stands still")
            node.stopped, node.stood, node.went_on = True, self.now, 1 << 62
            self.after(ms, lambda: (self.note(node.name, "goes on"), node.goes_on()))

    def kill(self, node: Node, ms: float) -> None:
        if node.alive and sum(each.alive for each in self.nodes) > 1:
            self.note(node.name, "dies")
            node.die()
            for key, line in self.lines.items():
                if line.node is node:
                    self.after(self.dice.uniform(1, 200), lambda key=key: self.dial(key))

    def cut(self, node: Node, ms: float) -> None:
        self.note(node.name, "is cut off from Redis")
        node.cut_off = True
        self.after(ms, lambda: self.heal(node))

    def heal(self, node: Node) -> None:
        self.note(node.name, "reaches Redis again")
        node.cut_off = False
        if node.client.heard is not None:
            node.do(lambda: node.client.heard.put_nowait(Refused("reset")))

    def down(self, node: Node, ms: float, how: str = "kept") -> None:
        if self.redis_up:
            self.note("Redis is down")
            self.redis_up = False
            self.after(ms, lambda: self.up(how))

    def up(self, how: str) -> None:
        self.note("Redis is back:", how)
        self.redis_up = True
        if how != "kept":
            self.forget(how)

    def sluggish(self, node: Node, ms: float) -> None:
        self.note("Redis is slow")
        self.slow = True
        self.after(ms, lambda: setattr(self, "slow", False))


FAULTS = {"stop": World.stop, "kill": World.kill, "cut": World.cut, "slow": World.sluggish, "down": World.down,
          "emptied": lambda world, node, ms: world.down(node, ms, "empty"),
          "failover": lambda world, node, ms: world.down(node, ms / 10, "failover")}
