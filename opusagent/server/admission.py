"""Admission: what a worker is loaded with, what it leaves out before it is too much, and whether it takes new calls.

Each measure is a share of its own limit, and the load is the greatest of them.  Below the load at which calls are
refused stands a ladder: at each of its steps something is left out that callers need least.  The rules: a limit is
reached before the live calls notice, for the calls that were let in since the load was measured count with what they
are going to take; and what was left out comes back only when the load has fallen well below its step.
"""
import math
import os
import resource
import time
from collections import deque
from pathlib import Path

from .. import ProtocolError

SECOND = 1_000_000_000          # ns
WINDOW = 5                      # looks (seconds) of which the 99th percentiles are
ENOUGH = 200                    # ticks that they need
CPU_WINDOW = 3                  # looks (seconds) over which CPU time is averaged: a second of refusals is no load
KNOWN_FROM = 5                  # calls, from which on a second shows what they take
STEADY = 1.1                    # most calls in the window by fewest, up to which it does
UNSEEN = (1, 5 / 6, 1 / 2, 1 / 6)   # share of that window in which a call was not there yet, by the second it came in
RETRY_SECONDS = 5               # after which a call that was refused may be tried again

# The ladder: from which part of `refuse_above` on, and what is left out.
STEPS = ((0.80, "no_speculation"), (0.86, "no_turn_model"), (0.92, "no_hedging"), (0.97, "cached_prompts_only"))


class Ladder:
    """Which steps are taken at a load, and whether calls are refused: up at once, down when it has fallen by `gap`."""

    __slots__ = ("refuse_above", "gap", "level", "full")

    def __init__(self, refuse_above: float, resume_below: float):
        self.refuse_above = refuse_above
        self.gap = refuse_above - resume_below
        self.level = 0                  # steps taken
        self.full = False               # no new calls

    def look(self, load: float) -> None:
        if self.refuse_above >= 1:
            return                      # nobody is to be refused, so nothing is left out for them
        bounds = [share * self.refuse_above for share, _ in STEPS]
        while self.level < len(bounds) and load > bounds[self.level]:
            self.level += 1
        while self.level and load < bounds[self.level - 1] - self.gap:
            self.level -= 1
        self.full = load > (self.refuse_above - self.gap if self.full else self.refuse_above)

    @property
    def steps(self) -> tuple[str, ...]:
        return tuple(name for _, name in STEPS[:self.level])


class Curve:
    """What so many calls take of a core: scale * calls ** bend, by what was seen second by second.

    It grows more slowly than their number: the more there are, the more of them are served each time the loop wakes up
    (measured: from 20 to 300 calls with their square root).  Least squares over the logarithms, of which older seconds
    count less; where these say nothing, all being of the same number, the usual bend is taken (ridge regression).  So
    that a mistake fills a core at most, more calls than were seen take no less than ALIKE of what they would if each
    took as much.
    """

    __slots__ = ("bend", "middle", "seen", "_sums")

    USUAL = 200, 0.70               # calls, and what they take: docs/scaling.md
    BEND, LEAST, MOST = 0.7, 0.5, 1.0
    DOUBT = 0.02, 2.0               # seconds' worth of the usual load, and of the usual bend
    KEPT, SEEN_KEPT = 0.99, 0.9999  # of what a second says, after another; and of the most calls that were seen
    ALIKE = 0.7

    def __init__(self):
        self._sums = [0.0] * 5          # of 1, u, u * u, v, u * v: the logarithms of calls and load by the usual ones
        self.bend, self.middle = self.BEND, 0.0     # v = middle + bend * u
        self.seen = 0.0                 # the most calls of a second; 0: none was seen

    def learn(self, calls: float, load: float) -> None:
        """So many calls took so much, in a second."""
        u, v = math.log(calls / self.USUAL[0]), math.log(load / self.USUAL[1])
        self._sums = [kept * self.KEPT + new for kept, new in zip(self._sums, (1, u, u * u, v, u * v), strict=True)]
        n, su, suu, sv, suv = self._sums
        n, suu, suv = n + self.DOUBT[0], suu + self.DOUBT[1], suv + self.DOUBT[1] * self.BEND
        self.bend = min(self.MOST, max(self.LEAST, (n * suv - su * sv) / (n * suu - su * su)))
        self.middle = (sv - self.bend * su) / n
        self.seen = max(calls, self.seen * self.SEEN_KEPT)

    def load(self, calls: float) -> float:
        """What they take: a share of a core."""
        if calls <= 0:
            return 0.0
        load = self.USUAL[1] * math.exp(self.middle + self.bend * math.log(calls / self.USUAL[0]))
        return max(load, self.ALIKE * self.load(self.seen) * calls / self.seen) if 0 < self.seen < calls else load

    def calls(self, load: float) -> float:
        """Those that take so much."""
        return self.USUAL[0] * math.exp((math.log(load / self.USUAL[1]) - self.middle) / self.bend) if load > 0 else 0.0


class Admission:
    """One worker's."""

    def __init__(self, server):
        self.server = server
        self.config = server.config.admission
        self.ladder = Ladder(self.config.refuse_above, self.config.resume_below)
        self.load = 0.0                             # at the last look, at most 1
        self.by = ""                                # the measure that it is of
        self.shares: dict[str, float] = {}          # each measure's, of its limit
        self.curve = Curve()                        # what calls take
        self.counts: deque[int] = deque([0], CPU_WINDOW + 1)    # calls at the last looks
        self.let_in: deque[set] = deque([set()], CPU_WINDOW + 1)    # whom, in the second since the last look and before
        self.lags: deque[list[int]] = deque([[]], WINDOW)      # ns by which ticks were late, second by second
        self.lates: deque[list[int]] = deque([[]], WINDOW)     # ... and frames
        self.memory = Memory(server.config.workers or os.cpu_count())
        self._spent = deque([(server.now, self._worked())], CPU_WINDOW)

    @property
    def full(self) -> bool:
        """True while new calls are not taken, whatever the reason."""
        return self.why() != ""

    def why(self) -> str:
        """Why a new call would be refused for the load: "full", or "" where it would not."""
        server = self.server
        if len(server.calls) >= server.config.max_calls:
            return "full"
        return "full" if self.ladder.full or self.config.refuse_above < 1 and not self._fits() else ""

    def _fits(self) -> bool:
        """One more call does, beside those that are measured and those that are so only in part."""
        ages = reversed(self.let_in)                # since the last look, in the second before it, and so on
        unseen = sum(len(let_in & self.server.connections) * share for let_in, share in zip(ages, UNSEEN))
        return self.curve.load(self.curve.calls(self.load) + unseen + 1) <= self.config.refuse_above

    def check(self, connection) -> None:
        """Raises ProtocolError(503) for a call that is not taken; one that is counts from now on, while it is there."""
        server = self.server
        for reason, sentence in (("broken", server.broken),
                                 ("draining", server.draining and "This server is draining; new calls go elsewhere."),
                                 (self.why(), "This server is full.")):
            if reason and sentence:
                server.metrics.count("refused_calls", reason=reason)
                error = ProtocolError(503, sentence)
                error.retry_after = RETRY_SECONDS
                raise error
        self.let_in[-1].add(connection)

    # -- what is measured ----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """What it took to get ready is nobody's load."""
        self._spent = deque([(self.server.clock(), self._worked())], CPU_WINDOW)
        self.load, self.by, self.shares = 0.0, "", {}
        self.ladder = Ladder(self.config.refuse_above, self.config.resume_below)
        self._ease()
        self._tell()

    def tick(self, lag: int, due: list, now: int) -> None:
        """The loop came so late to a tick, ns, and these calls are due; while there are no calls nobody waits."""
        if self.server.calls:
            self.lags[-1].append(lag)
            times = [call.due for call in due if call.due]
            if times:
                self.lates[-1].append(now - min(times))

    def look(self, now: int) -> None:
        """Once a second."""
        server, config = self.server, self.config
        (then, before), spent = self._spent[0], self._worked()
        self._spent.append((now, spent))
        cpu = (spent - before) / max(1, now - then)
        self.counts.append(len(server.calls))
        if cpu > 0 and KNOWN_FROM <= max(self.counts) <= STEADY * min(self.counts):
            self.curve.learn(sum(self.counts) / len(self.counts), cpu)
        self.let_in.append(set())
        files, most_files = open_files()
        behind = max((engine.delays.seconds * 1000 for engine in (server.studio.stt, server.studio.tts)
                      if hasattr(engine, "delays")), default=0) if server.calls else 0
        measured = {"cpu": (cpu, 1.0), "loop_lag": (p99(self.lags) / 1e6, config.lag_ms),
                    "frames": (p99(self.lates) / 1e6, config.late_ms), "engines": (behind, config.engine_ms),
                    "descriptors": (files, most_files), "memory": (self.memory.used(), self.memory.limit)}
        for values in (self.lags, self.lates):
            values.append([])
        self.shares = {name: value / limit for name, (value, limit) in measured.items() if limit > 0}
        self.by = max(self.shares, key=self.shares.get)
        self.load = min(1.0, self.shares[self.by])
        self.ladder.look(self.load)
        self._ease()
        self._tell()

    def _ease(self) -> None:
        """What the ladder leaves out."""
        studio, steps = self.server.studio, self.ladder.steps
        studio.hearing.spared = "no_turn_model" in steps
        if (hedging := getattr(getattr(studio, "llm", None), "hedging", None)) is not None:
            hedging.spared = "no_hedging" in steps
        eased = "no_speculation" in steps, "cached_prompts_only" in steps
        for call in list(self.server.calls.values()):
            if getattr(call.mouth, "eased", eased) != eased:
                call.mouth.ease(*eased)

    def _tell(self) -> None:
        server, metrics = self.server, self.server.metrics
        metrics.gauge("load", round(self.load, 4))
        for name, share in self.shares.items():
            metrics.gauge("load_share", round(share, 4), by=name)
        for i, (_, name) in enumerate(STEPS):
            metrics.gauge("load_step", int(i < self.ladder.level), step=name)
        if server.seat is not None:
            server.seat.put("full", int(self.full or bool(server.broken)))

    def _worked(self) -> int:
        """ns that this worker has computed so far; what it spent looking for something to do is no work."""
        return time.process_time_ns() - self.server.epoll.spun


class Memory:
    """What this process holds, and its part of what there is: of its control group's limit, or of the machine."""

    __slots__ = ("limit",)

    def __init__(self, workers: int):
        self.limit = (group_limit() or machine_memory()) / max(1, workers)      # bytes

    @staticmethod
    def used() -> int:
        """Bytes that are its own: what it shares (the arena, prompts) is there once, and files can be dropped."""
        try:
            resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
        except OSError:
            return 0                            # there is no descriptor left, which open_files() says
        return (resident - shared) * resource.getpagesize()


def group_limit() -> int:
    """The limit of our control group (cgroup2), bytes; 0 where there is none."""
    try:
        group = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        texts = [(Path("/sys/fs/cgroup") / group / name).read_text().strip() for name in ("memory.high", "memory.max")]
    except OSError:
        return 0
    return min((int(text) for text in texts if text.isdigit()), default=0)


def machine_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * resource.getpagesize()


def open_files() -> tuple[int, int]:
    """Descriptors that this process has open, and how many it may have; 1 of 1 where none is left to look with.

    Linux from 6.2 on tells their number as the directory's size.  To list a thousand takes milliseconds.
    """
    try:
        count = os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))
    except OSError:
        return 1, 1
    return count, resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def p99(seconds: deque[list[int]]) -> int:
    """Of what was noted in the last seconds; 0 while that is too little to say anything."""
    values = sorted(value for second in seconds for value in second)
    return values[len(values) * 99 // 100] if len(values) >= ENOUGH else 0


def state(metrics) -> dict:
    """What /health says of the most loaded worker: `load`, `load_by`, and the steps that any worker has taken."""
    shares = {dict(labels)["by"]: value for (name, labels), value in metrics.gauges.items() if name == "load_share"}
    steps = {dict(labels)["step"] for (name, labels), value in metrics.gauges.items() if name == "load_step" and value}
    return {"load": metrics.gauges.get(("load", ()), 0.0), "load_by": max(shares, key=shares.get, default=""),
            "left_out": [name for _, name in STEPS if name in steps]}
