"""The daemon: opens the sockets, runs the workers, and ends them politely.

One worker runs in this process; more are forked before anything heavy is made, share the listening sockets, and
are replaced when they die.  The rule: a signal is answered here and nowhere else, and SIGTERM never cuts a call
that drain_seconds would let finish.
"""
import asyncio
import logging
import os
import signal
import ssl
import sys
import time

from . import ConfigError, net
from . import config as settings
from .config import Config
from .flow import Flow
from .loop import Loop

log = logging.getLogger("opusagent")

RESTART_AFTER = 0.2             # seconds between a worker's death and its successor
GIVE_UP_AFTER = 5               # deaths within GIVE_UP_SECONDS mean that no worker can live here
GIVE_UP_SECONDS = 10


def serve(config: Config, flow: Flow) -> int:
    """Serve until SIGTERM or SIGINT; the exit code.  ConfigError where it cannot begin."""
    tls = tls_context(config)
    sockets = net.inherited()
    for sock in sockets:
        settings.check_exposure(config, sock.getsockname()[0] if isinstance(sock.getsockname(), tuple) else "localhost")
    sockets = sockets or net.listen(config.host, config.port, config.net.backlog)
    admin = net.listen(*config.admin_address, config.net.backlog) if config.admin_address else []
    bare = net.listen(config.host, config.audiosocket, config.net.backlog) if config.audiosocket else []
    workers = config.workers or max(1, len(os.sched_getaffinity(0)) - 1)
    scheme = "https" if tls else "http"

    def announce() -> None:
        print(f"listening on {scheme}://{net.spelled(sockets[0])}", flush=True)
        for sock in admin[:1]:
            print(f"pages on http://{net.spelled(sock)}", flush=True)
        for sock in bare[:1]:
            print(f"AudioSocket on {net.spelled(sock)}", flush=True)

    if workers == 1:
        return run_worker(config, flow, (sockets, admin, tls, bare), announce)
    return Workers(workers, lambda ready: run_worker(config, flow, (sockets, admin, tls, bare), ready), announce).run()


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


def run_worker(config: Config, flow: Flow, listening: tuple, ready) -> int:
    """One worker, in this process, until a signal ends it; `listening` is what Server.start takes."""
    import uvloop       # whose TLS takes two thirds of the time of asyncio's; calls without TLS are faster in our own loop
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if listening[2] else Loop) as runner:
        return runner.run(worker(config, flow, listening, ready))


async def worker(config: Config, flow: Flow, listening: tuple, ready) -> int:
    from .studio import Studio
    from .metrics import Metrics
    from .server import Server
    ending = asyncio.Event()
    at_once = asyncio.Event()

    def on_signal() -> None:
        (at_once if ending.is_set() else ending).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    studio = Studio(config, flow)
    server = Server(config, studio, Metrics())
    try:
        await studio.open(server.metrics)
        await server.start(*listening)
        ready()
        await ending.wait()
        draining = asyncio.ensure_future(server.drain())
        await asyncio.wait({draining, asyncio.ensure_future(at_once.wait())},
                           return_when=asyncio.FIRST_COMPLETED)
        await server.stop()
        return 0
    finally:
        await studio.close()


class Workers:
    """Forked workers around shared listening sockets."""

    def __init__(self, count: int, work, announce):
        self.count = count
        self.work = work                        # runs a worker to its end; called in the child
        self.announce = announce
        self.live: dict[int, int] = {}          # pid -> the pipe on which it says that it is ready
        self.deaths: list[float] = []           # monotonic seconds
        self.ending = False

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        for _ in range(self.count):
            self._fork()
        if all([self._wait_ready(pipe) for pipe in list(self.live.values())]):
            self.announce()
        return self._watch()

    def _fork(self) -> None:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid:
            os.close(writer)
            self.live[pid] = reader
            return
        os.close(reader)
        try:
            code = self.work(lambda: (os.write(writer, b"r"), os.close(writer)))
        except ConfigError as error:
            print(f"opusagent: {error}", file=sys.stderr)
            code = 2
        except BaseException:
            log.exception("a worker ended by an error of ours")
            code = 1
        os._exit(code)

    @staticmethod
    def _wait_ready(pipe: int) -> bool:
        try:
            return os.read(pipe, 1) == b"r"
        finally:
            os.close(pipe)

    def _on_signal(self, number: int, frame) -> None:
        self.ending = True
        for pid in self.live:
            os.kill(pid, number)

    def _watch(self) -> int:
        code = 0
        while self.live:
            try:
                pid, status = os.wait()
            except InterruptedError:
                continue
            self.live.pop(pid, None)
            code = code or os.waitstatus_to_exitcode(status)
            if self.ending:
                continue
            code = 0
            log.error("worker %d died (%d); another takes its place", pid, os.waitstatus_to_exitcode(status))
            now = time.monotonic()
            self.deaths = [at for at in self.deaths if now - at < GIVE_UP_SECONDS] + [now]
            if len(self.deaths) >= GIVE_UP_AFTER:
                log.error("%d workers died within %d s; giving up", len(self.deaths), GIVE_UP_SECONDS)
                self._on_signal(signal.SIGTERM, None)
                code = 1
                continue
            time.sleep(RESTART_AFTER)
            self._fork()
        return code
