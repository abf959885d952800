"""A process of Piper: which of the programs it is, what it is given, and what it says.

The rule: one that does nothing for a while, or computes for too long without a sound, has failed, and is asked for
nothing more; one that waits for a core is only slow.
"""
import asyncio
import json
import logging
import os
import re
import resource
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import NamedTuple

from .. import EngineError
from .processes.vitals import Watch

log = logging.getLogger("opusagent")

NICE = 5                        # below the loop, as engine processes are
MEMORY = 2 << 30                # bytes of a process's own; it has a thread for each core
SILENT_SECONDS = 30.0           # for a process to load its voice and say a word, and the longest wait for any piece
WORK_SECONDS = 2.0              # CPU time from one piece to the next; it is looped, or broken, beyond that,
WORK_CHARACTER = 0.25           # ... and so much more for each character, as all of a sentence comes before its sound
IDLE_SECONDS = 0.4              # asleep or stopped, with a text to speak: it hangs
LOOK_SECONDS = 0.1              # between two looks at that
PIECE = 4096                    # bytes read at once
LONGEST = 2000                  # characters of a text
MOST_BYTES = 1 << 24            # of a text's samples: minutes
WRITTEN_SECONDS = 0.005         # in which what it has written is read: it is in the pipe by then


class Program(NamedTuple):
    """One of the programs that are called piper."""

    flags: tuple[str, ...]
    line: Callable[[str], str]  # what it is given for a text
    spoken: bytes               # is in what it says when it has written that


MARK = "[[ ]]"                  # phonemes, and none of them: nothing is sounded, and the log tells when it is its turn
COMPILED = Program(("--json-input",), lambda text: json.dumps({"text": text}) + "\n", b"Real-time factor")
PACKAGE = Program(("--debug",), lambda text: re.sub(r"\[\[+", "[", text) + f"\n{MARK}\n",
                  f"text={MARK}, ".encode())


async def program_of(command: str) -> Program:
    """Which of them it is, as its help says: the package piper-tts takes no JSON.  Raises EngineError."""
    try:
        process = await asyncio.create_subprocess_exec(command, "--help", stdin=DEVNULL, stdout=PIPE, stderr=STDOUT)
    except OSError as error:
        raise EngineError(f"Piper cannot be started: {error.strerror}.") from None
    try:
        told, _ = await asyncio.wait_for(process.communicate(), SILENT_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise EngineError(f"{command} --help does not end: this is not Piper.") from None
    return COMPILED if b"json" in told else PACKAGE


def keep_in_bounds(pid: int) -> None:
    """As an engine process keeps itself (process.py): below the worker, beside its cores, and within its memory."""
    os.setpriority(os.PRIO_PROCESS, pid, NICE)
    resource.prlimit(pid, resource.RLIMIT_DATA, (MEMORY, MEMORY))
    if cores := os.environ.get("OA_CORES"):
        os.sched_setaffinity(pid, set(map(int, cores.split(","))))


class Speaker:
    """One process."""

    def __init__(self, process: Process, file: str, speed: float, described: dict, program: Program,
                 on_exit: Callable):
        self.process = process
        self.file = file
        self.speed = speed
        self.described = described              # its voice, as it was loaded
        self.program = program
        self.on_exit = on_exit                  # it died by itself
        self.loaded = False                     # it has spoken: from now on it is not asleep while it should speak
        self.rested = True                      # it has said all that it was asked for
        self.failed = False                     # it did not, and is asked for nothing more
        self.told = asyncio.Event()             # it has written all of the present text,
        self.work = 0.0                         # ... which may take it so much CPU time, seconds, from piece to piece
        self.reading = asyncio.ensure_future(self._listen())

    @property
    def alive(self) -> bool:
        return self.process.returncode is None

    async def say(self, text: str) -> AsyncIterator[bytes]:
        """Its samples, 16 bit, whole ones.  Raises EngineError."""
        if not any(map(str.isalnum, text)):
            return                              # there is nothing to say
        self.rested, odd = False, b""
        self.told.clear()
        self.work = WORK_SECONDS + WORK_CHARACTER * len(text)
        line = self.program.line(" ".join(text[:LONGEST].split())).encode()
        try:
            self.process.stdin.write(line)
        except (OSError, RuntimeError):
            self.failed = True
            raise EngineError("Piper takes no text any more.") from None
        async with aclosing(self.finish()) as pieces:
            async for data in pieces:
                data = odd + data
                odd = data[len(data) & ~1:]
                if len(data) > 1:
                    yield data[:len(data) & ~1]

    async def finish(self) -> AsyncIterator[bytes]:
        """What it has still to say of its text, bytes.  Raises EngineError."""
        got = 0
        try:
            while data := await self._next():
                got += len(data)
                if got > MOST_BYTES:
                    raise EngineError("Piper speaks without an end.")
                yield data
        except EngineError:
            self.failed = True
            raise
        self.rested = True

    async def _next(self) -> bytes:
        """More of its samples, or b"" when all of them were read.  Raises EngineError."""
        reading = asyncio.ensure_future(self.process.stdout.read(PIECE))
        telling = asyncio.ensure_future(self.told.wait())
        try:
            await self._patiently((reading, telling))
            if not reading.done() and telling.done():       # what it has written is on its way here, if there is any
                await asyncio.wait((reading,), timeout=WRITTEN_SECONDS)
                if not reading.done():
                    return b""
            if not (data := reading.result()):
                raise EngineError("Piper ended in the middle of a text.")
            return data
        finally:
            for each in (reading, telling):
                each.cancel()
            await asyncio.gather(reading, telling, return_exceptions=True)

    async def _patiently(self, awaited: tuple[asyncio.Future, ...]) -> None:
        """Until one of these is done, if the process works for it.  What we were kept from looking does not count.
        Raises EngineError."""
        silent, watch = 0.0, Watch(self.process.pid)
        before = watch.spent
        while not (await asyncio.wait(awaited, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED))[0]:
            silent += LOOK_SECONDS
            idle = watch.idles(silent) > IDLE_SECONDS
            if silent > SILENT_SECONDS or self.loaded and (idle or watch.spent - before > self.work):
                raise EngineError(f"Piper said nothing for {silent:.1f} s, in which it computed for "
                                  f"{watch.spent - before:.1f} s.")

    async def _listen(self) -> None:
        """What it says on its standard error: that a text is written, and much that is of no interest."""
        while line := await self.process.stderr.readline():
            if self.program.spoken in line:
                self.told.set()
            elif not line.startswith(b"DEBUG:"):
                log.debug("piper: %s", line.decode(errors="replace").strip())
        await self.process.wait()
        self.on_exit(self)

    async def end(self) -> None:
        self.reading.cancel()
        if self.alive:
            self.process.kill()
        await self.process.wait()
