"""The daemon: opens the sockets, runs workers under a supervisor, and ends them politely.

What a worker's process does from its beginning to its end is here; who starts it, and when, is supervisor.py's.
The rule: SIGTERM never cuts a call that drain_seconds would let finish.
"""
import asyncio
import faulthandler
import logging
import os
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from .. import ConfigError, EngineError, logs
from .. import config as settings
from ..board import Board, most_calls, slots
from ..config import Config
from ..continuity import registry, takeover
from ..flow import Flow
from ..transport import net
from ..transport.loop import Loop
from .notify import Notify
from .succession import Inheritance
from .supervisor import Supervisor, Worker

log = logging.getLogger("opusagent")

MOST_PER_CORE = 4               # workers; more only wait for each other
FILES_BESIDES = 256             # descriptors of whatever is no call
CORES_TO_PIN = 4                # with fewer, the engines and the kernel need all of them
A_START, AN_UPGRADE = "the server is started anew", "the server is upgraded, or started anew"
LEFT_ALONE = {"host": A_START, "port": A_START, "admin": A_START, "audiosocket": A_START, "net.backlog": A_START,
              "workers": AN_UPGRADE}        # by a reload, until then


class Listening(NamedTuple):
    """What a worker listens on, as Server.start() takes it."""

    calls: list[socket.socket]
    admin: list[socket.socket]          # for pages; without any, those for calls serve them, too
    tls: ssl.SSLContext | None          # of those for calls
    bare: list[socket.socket]           # for AudioSocket


def serve(config: Config, flow: Flow, again: Callable[[], tuple[Config, Flow]]) -> int:
    """Serve until SIGTERM or SIGINT; the exit code.  ConfigError where it cannot begin.

    `again` reads the configuration and the flow anew, for a reload.
    """
    notify = Notify()
    allow_files(config)
    tls = tls_context(config)
    if config.redis.url:
        registry.load()
    inherited = Inheritance()
    sockets, admin, bare = listening_sockets(config, inherited)
    cores, workers = len(os.sched_getaffinity(0)), count_workers(config)
    if workers > max(16, MOST_PER_CORE * cores):
        raise ConfigError(f"{config.origin('workers')}: {workers} workers are more than {cores} cores can serve: "
                          f"one for each core is enough, and {max(16, MOST_PER_CORE * cores)} are the most.")
    scheme = "https" if tls else "http"

    def announce() -> None:
        lines = [f"listening on {scheme}://{net.spelled(sockets[0])}",
                 *(f"pages on http://{net.spelled(sock)}" for sock in admin[:1]),
                 *(f"AudioSocket on {net.spelled(sock)}" for sock in bare[:1])]
        try:
            print("\n".join(lines), flush=True)
        except OSError as error:            # who read it has gone, or the disk is full: calls can come all the same
            log.warning("stdout cannot be written to: %s", error.strerror)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def work(config: Config, flow: Flow, context: ssl.SSLContext | None) -> Callable[[Worker, Board], int]:
        return lambda worker, board: run_worker(config, flow, Listening(sockets, admin, context, bare), worker, board)

    def reload() -> tuple[Callable[[Worker, Board], int], int]:
        new, flow = again()
        logs.begin(new)
        new = fitting(new, most_calls(config))
        for key, when in LEFT_ALONE.items():
            if new.get(key) != config.get(key):
                log.warning("%s: %s stays %r until %s", new.origin(key), key, config.get(key), when)
        log.info("the configuration and the flow are read anew: calls get them when new workers are ready")
        context = tls_context(new)
        allow_files(new)
        return work(new, flow, context), slots(new)

    names = [(name, sock.fileno()) for name, group in (("calls", sockets), ("admin", admin), ("bare", bare))
             for sock in group]
    return Supervisor(workers, slots(config), work(config, flow, tls), reload, announce, notify, names,
                      inherited).run()


def count_workers(config: Config) -> int:
    """As many as are configured, or one for each core but one, which is for the engines."""
    return config.workers or max(1, len(os.sched_getaffinity(0)) - 1)


def needed_files(config: Config) -> int:
    """Descriptors of the supervisor, which has each call's socket, and twice while it hands calls over."""
    return 2 * count_workers(config) * config.max_calls + FILES_BESIDES


def allow_files(config: Config) -> None:
    """The soft limit of open files, made for programs that call select(2), is raised as far as it is needed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = needed_files(config)
    if resource.RLIM_INFINITY != hard < wanted:
        log.warning("%s: for max_calls = %d up to %d descriptors are needed, and %d are allowed (ulimit -Hn, or "
                    "LimitNOFILE= of the service)", config.origin("max_calls"), config.max_calls, wanted, hard)
        wanted = hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def fitting(config: Config, most: int) -> Config:
    """As many calls at once as can be counted in what was made when the server was started."""
    if config.max_calls <= most:
        return config
    log.warning("%s: max_calls is %d, and more not until %s", config.origin("max_calls"), most, AN_UPGRADE)
    return replace(config, max_calls=most)


def listening_sockets(config: Config, inherited: Inheritance) -> tuple[list, list, list]:
    """For calls, for pages alone, and for AudioSocket: those of a predecessor, of systemd, or new ones."""
    if inherited.sockets:
        return tuple([socket.socket(fileno=fd) for fd in inherited.named(name)] for name in ("calls", "admin", "bare"))
    sockets = net.inherited()
    for sock in sockets:
        settings.check_exposure(config, sock.getsockname()[0] if isinstance(sock.getsockname(), tuple) else "localhost")
    return (sockets or net.listen(config.host, config.port, config.net.backlog),
            net.listen(*config.admin_address, config.net.backlog) if config.admin_address else [],
            net.listen(config.host, config.audiosocket, config.net.backlog) if config.audiosocket else [])


def tls_context(config: Config) -> ssl.SSLContext | None:
    if not config.tls_cert:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"The certificate {config.tls_cert} with the key {config.tls_key} cannot be used: "
                          f"{error.strerror or error}.") from None
    return context


# -- in a worker's process ---------------------------------------------------------------------------------------------

def run_worker(config: Config, flow: Flow, listening: Listening, mine: Worker, board: Board) -> int:
    """A worker's life; its exit code.  What is in the way of it is said in a sentence."""
    import uvloop   # whose TLS takes two thirds of the time of asyncio's; without TLS calls are faster in our own loop
    faulthandler.enable(all_threads=False)      # what an abort, or a fault in compiled code, leaves behind
    settle(config, mine.seat)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop if listening.tls else Loop) as runner:
            return runner.run(Life(config, flow, listening, mine, board).live())
    except (ConfigError, EngineError) as error:
        print(f"opusagent: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1


def settle(config: Config, seat: int) -> None:
    """A core and a priority of its own, as far as they are to be had."""
    cores = sorted(os.sched_getaffinity(0))
    count = count_workers(config)
    if config.pin and len(cores) >= CORES_TO_PIN and count < len(cores):
        os.environ["OA_CORES"] = ",".join(map(str, cores[count:]))      # the engine processes keep off the workers'
        os.sched_setaffinity(0, {cores[(seat - 1) % count]})
    if config.nice:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, config.nice)
        except OSError as error:
            log.warning("the priority %d is not to be had: %s", config.nice, error.strerror)


class Life:
    """A worker's, from the first model that it loads to the last call that ends."""

    def __init__(self, config: Config, flow: Flow, listening: Listening, mine: Worker, board: Board):
        from .._fastpath import SLOT_SIZE, Arena
        from ..continuity.returning import Continuity
        from ..server.worker import Server
        from ..studio.studio import Studio
        self.listening = listening
        self.control = mine.control
        self.seat = board.seats[mine.seat]
        arena = Arena(os.fstat(mine.arena).st_size // SLOT_SIZE, mine.arena)
        self.studio = Studio(config, flow, arena)
        metrics = self.seat.metrics()
        seconds = config.net.resume_seconds
        self.registry = registry.Registry(config.redis, seconds, metrics) if config.redis.url else None
        continuity = Continuity(self.registry, metrics, seconds)
        keeper = takeover.Keeper(self.seat, self.tell, continuity)
        self.server = Server(config, self.studio, metrics, board, self.seat, keeper)
        self.over = asyncio.Event()
        self.alone = asyncio.Event()                # nobody else of this server finishes calls
        self.ways: list[asyncio.Task] = []          # in which it comes to its end: drained, parted

    async def live(self) -> int:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.drain)
        outlet = logs.begin(self.server.config, self.server.metrics)
        try:
            self.server.begin()
            if self.registry is not None:
                await self.registry.open()
            opening = asyncio.ensure_future(self.studio.open(self.server.metrics))
            if self.studio.take_prompts():
                await asyncio.sleep(0)              # the engines are starting; calls of another worker need not wait
                loop.add_reader(self.control.fileno(), self.hear)
                await opening
            else:
                await opening
                loop.add_reader(self.control.fileno(), self.hear)
            if not self.server.draining:
                await self.server.start(*self.listening)
            self.tell({"say": "ready"})
            await self.over.wait()
            await self.server.stop()
            return 0
        finally:
            await self.studio.close()
            if self.registry is not None:
                await self.registry.close()
            outlet.close()

    # -- the supervisor ------------------------------------------------------------------------------------------------

    def tell(self, message: dict, fds: tuple[int, ...] = ()) -> None:
        if self.control.send(message, fds):
            self._flush()

    def _flush(self) -> None:
        """What did not fit is sent as soon as there is room."""
        if not self.control.flush():
            asyncio.get_running_loop().call_later(0.005, self._flush)

    def hear(self) -> None:
        try:
            for message, fds in self.control.messages():
                ORDERS[message["do"]](self, message, fds)
        except EOFError:                            # it is dead: nobody is let in, and who is here may finish
            asyncio.get_running_loop().remove_reader(self.control.fileno())
            self.server.close_doors()
            self.drain()

    def adopt(self, message: dict, fds: list[int]) -> None:
        for slot, fd in zip(message["slots"], fds, strict=True):
            if not takeover.adopt(self.server, slot, fd):
                self.tell({"say": "over", "slot": slot})
            os.close(fd)

    def adopted(self, message: dict, fds: list[int]) -> None:
        """Nothing more comes: what is left in the arena is nobody's."""
        for index in self.studio.free if message["all"] else ():
            self.studio.arena.slot(index).free()
        self.studio.free = [index for index in self.studio.free if not self.studio.arena.slot(index).taken]
        self.seat.bury(self.server.keeper.records)
        log.info("%d calls were taken over", len(self.server.calls))

    def freeze(self, message: dict, fds: list[int]) -> None:
        self.tell({"say": "frozen", "slots": takeover.freeze(self.server)})
        self.drain()

    def news(self, message: dict, fds: list[int]) -> None:
        """A platform has told another worker of a call that may be ours."""
        self.server.answered_by(message["call"], message["who"], message["asked"])

    def retire(self, message: dict, fds: list[int]) -> None:
        self.server.close_doors()
        self.drain()

    def drain(self, message: dict | None = None, fds: list[int] | None = None) -> None:
        """Live calls finish; who is to `stay` answers at the door until it is told once more."""
        if not (message and message["stay"]):
            self.alone.set()
        if not self.ways:
            log.info("no new calls here; %d live ones finish", len(self.server.calls))
            self.ways.append(asyncio.ensure_future(self._end(self.server.drain())))

    def part(self, message: dict, fds: list[int]) -> None:
        """Callers are told, and the calls end."""
        self.alone.set()
        if len(self.ways) > 1:
            self.over.set()
        self.ways.append(asyncio.ensure_future(self._end(self.server.part())))

    async def _end(self, way) -> None:
        await way
        await self.alone.wait()
        self.over.set()


ORDERS = {"adopt": Life.adopt, "adopted": Life.adopted, "freeze": Life.freeze, "news": Life.news,
          "retire": Life.retire, "drain": Life.drain, "part": Life.part}
