"""The voices `piper`: Piper as a program of its own, with voice files that the user has.

A process has loaded one voice at one speed, and speaks one text at a time: a line in, raw samples out, and when these
are all written a line on its standard error that says so.  Processes are started ahead, one more than may speak at
once, and kept.  The rule: the loop never waits for one; one that does nothing for a while, or says nothing in its time,
is killed, and what it had not said yet another one says.
"""
import asyncio
import hashlib
import json
import logging
import os
import re
import resource
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import ConfigError, EngineError
from ..config import Config
from ..flow.manner import manner_of
from .level import Level, levelled
from .openai.tts import EDGE_MS, LEARNING, MS_PER_CHARACTER, split, unspoken
from .processes.delays import Delays
from .processes.host import RESTART_SECONDS
from .processes.vitals import Watch
from .rates import of_speech
from .segments import Voice
from .speech import Speech

log = logging.getLogger("opusagent")

NICE = 5                        # below the loop, as engine processes are
MEMORY = 2 << 30                # bytes of a process's own; it has a thread for each core
LOAD_SECONDS = 30.0             # for a process to load its voice and say a word
FIRST_SECONDS = 2.0             # for the first samples of a text
GAP_SECONDS = 2.0               # from piece to piece
IDLE_SECONDS = 0.4              # asleep or stopped, with a text to speak: it hangs
LOOK_SECONDS = 0.1              # between two looks at that
PIECE = 4096                    # bytes read at once
LONGEST = 2000                  # characters of a text
MOST_BYTES = 1 << 24            # of a text's samples: minutes
WRITTEN_SECONDS = 0.005         # in which what it has written is read: it is in the pipe by then
TRIES = 2                       # processes that are asked for one text


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
        told, _ = await asyncio.wait_for(process.communicate(), LOAD_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise EngineError(f"{command} --help does not end: this is not Piper.") from None
    return COMPILED if b"json" in told else PACKAGE


class Tts(Voice):
    """Speech by Piper."""

    def __init__(self, config: Config):
        super().__init__()
        self.settings = settings = config.piper
        if not settings.voice:
            raise ConfigError(f"{config.origin('piper.voice', 'tts')}: the voice piper needs a voice file: set "
                              "piper.voice to its .onnx file.")
        paths = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
        if (command := shutil.which(settings.command, path=paths)) is None:
            raise ConfigError(f"{config.origin('piper.command', 'tts')}: there is no program {settings.command!r}: "
                              "pip install 'opusagent[piper]', or set piper.command.")
        self.command = command
        self.program = COMPILED                             # open() knows better
        self.described: dict[str, dict] = {}                # by voice file: what the file beside it says
        self.describe("")
        self.digests: dict[str, str] = {}                   # by voice file: of what lies in it
        self.idle: dict[tuple[str, float], list[Speaker]] = {}      # by voice file and speed
        self.busy: set[Speaker] = set()
        self.levels: dict[str, Level] = {}                  # by voice file
        self.pace = MS_PER_CHARACTER / 1000                 # seconds of speech for a character, as it has been so far
        self.gate = asyncio.Semaphore(settings.processes)
        self.delays = Delays()                              # by task: of replies that no process has begun
        self.started = self.lost = self.resumed = 0         # processes; those of them that failed; texts gone on with
        self.lacking = asyncio.Event()                      # there may be fewer than there should be
        self.tasks: set[asyncio.Task] = set()

    def file_of(self, voice: str) -> str:
        """The file of a voice that a flow names.  EngineError where there is none."""
        own = Path(self.settings.voice)
        if not voice:
            return str(own)
        if not re.fullmatch(r"[\w-][\w.-]*", voice):
            raise EngineError(f"{voice[:60]!r} is no name of a Piper voice.")
        return str(own.with_name(voice.removesuffix(".onnx") + ".onnx"))

    def identity(self, voice: str) -> str:
        """With what lies in the voice's file and the one beside it when it is first asked for: another file under the
        same name is another voice, and all that are trained alike are of one size.  Reads all of them, 0.1 s."""
        try:
            file = self.file_of(manner_of(voice).voice)
            if file not in self.digests:
                self.digests[file] = " ".join(map(digest, (file, file + ".json")))
        except (EngineError, OSError):
            return "piper"                                  # which speaks nothing in that voice
        return f"piper {Path(file).name} {self.digests[file]}"

    def describe(self, voice: str) -> dict:
        """What the file beside the voice says.  ConfigError where that is not there, or is none."""
        file = self.file_of(voice)
        if file not in self.described:
            try:
                said = json.loads(Path(file + ".json").read_text("utf-8"))
                rate, scale = said["audio"]["sample_rate"], said.get("inference", {}).get("length_scale", 1.0)
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{file}.json: the description of the voice cannot be read: "
                                  f"{getattr(error, 'strerror', 'it is no text')}.") from None
            except (ValueError, LookupError, TypeError, AttributeError):
                rate = scale = 0
            if not isinstance(rate, int) or not of_speech(rate):
                raise ConfigError(f"{file}.json: this does not say audio.sample_rate, as a Piper voice's does.")
            if not isinstance(scale, (int, float)) or not 0.1 <= scale <= 10:
                raise ConfigError(f"{file}.json: inference.length_scale is no number from 0.1 to 10.")
            if not os.access(file, os.R_OK):
                raise ConfigError(f"{file}: the voice cannot be read.")
            self.described[file] = {"rate": rate, "scale": scale, "phonemes": said.get("phoneme_type", "espeak")}
        return self.described[file]

    async def open(self, arena) -> None:
        """A process has spoken: the program and the voice are what they should be.  EngineError."""
        self.program = await program_of(self.command)
        self._rest(await self._start(*self.own))
        self._begin(self._keep_ahead())

    async def close(self) -> None:
        self.be_silent()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for speaker in [*self.busy, *(each for idle in self.idle.values() for each in idle)]:
            await speaker.end()

    @property
    def own(self) -> tuple[str, float]:
        """The manner in which most is spoken: the configured voice, at its own speed."""
        return self.file_of(""), 1.0

    async def _keep_ahead(self) -> None:
        """As many processes for that as may speak at once, and a spare one."""
        griefs = 0
        while True:
            self.lacking.clear()
            busy = sum((speaker.file, speaker.speed) == self.own for speaker in self.busy)
            if len(self.idle[self.own]) + busy > self.settings.processes:
                griefs = 0
                await self.lacking.wait()
                continue
            await asyncio.sleep(RESTART_SECONDS[min(griefs, len(RESTART_SECONDS) - 1)])
            try:
                self._rest(await self._start(*self.own))
            except EngineError as error:
                griefs += 1
                log.warning("%s", error)

    def speak(self, call, epoch: int, k: int, text: str, voice: str) -> None:
        begins = all(each is not call for each, _ in self.speaking)     # what follows, nobody waits for yet
        super().speak(call, epoch, k, text, voice)
        if begins:
            self.delays.begin(task := self.speaking[call, k].task)
            task.add_done_callback(self.delays.end)

    async def render(self, texts, voice: str, rate: int) -> AsyncIterator[tuple[str, np.ndarray]]:
        """Each text as int16 at `rate`, in their order.  Raises EngineError."""
        for text in texts:
            pieces = [pcm async for pcm in self._pcm(text, voice, rate)]
            yield text, levelled(np.concatenate(pieces) if pieces else np.zeros(0, np.int16), rate)

    def measure(self, metrics) -> None:
        metrics.gauge("engine_alive", len(self.busy) + sum(map(len, self.idle.values())), stage="tts")
        metrics.gauge("engine_restarts", self.lost, stage="tts")
        metrics.gauge("engine_queue_seconds", self.delays.seconds, stage="tts")
        metrics.gauge("segments_resumed", self.resumed)
        metrics.gauge("segments_in_synthesis", len(self.speaking))

    async def _pcm(self, text: str, voice: str, rate: int) -> AsyncIterator[np.ndarray]:
        """The text as int16 at `rate`, while it comes.

        Where a process fails in the middle, another one goes on with the words of which nothing was spoken yet.
        Raises EngineError.
        """
        manner, tries = manner_of(voice), TRIES
        file, own_rate = self.file_of(manner.voice), self.describe(manner.voice)["rate"]
        async with self.gate:
            while True:
                spoken, tail = 0, np.zeros(0, np.int16)     # samples, and the last few, which may be a break's edge
                speaker = await self._take(file, manner.rate)
                try:
                    async with aclosing(self._said_by(speaker, text, own_rate, rate)) as pieces:
                        async for pcm in pieces:
                            spoken += len(pcm)
                            pcm, tail = split(np.concatenate((tail, pcm)), rate * EDGE_MS // 1000)
                            yield pcm
                    yield tail
                    self.pace += (spoken / rate * manner.rate / max(1, len(text)) - self.pace) * LEARNING
                    return
                except EngineError as error:
                    tries -= 1
                    yield (tail * np.linspace(1, 0, len(tail))).astype(np.int16)
                    rest = unspoken(text, spoken / rate * manner.rate / self.pace)
                    if not rest or not tries:
                        raise
                    log.warning("%s Another one is asked.", error)
                    self.resumed += rest != text
                    text = rest
                finally:
                    await self._give_back(speaker)

    async def _said_by(self, speaker: "Speaker", text: str, own_rate: int, rate: int) -> AsyncIterator[np.ndarray]:
        """What one process makes of it, from `own_rate` to `rate`, levelled and without the silence around it."""
        out: list[np.ndarray] = []
        level = self.levels.setdefault(speaker.file, Level())
        speech = Speech(rate, level, lambda pcm: out.append(pcm) or True)
        async with aclosing(speaker.say(text)) as pieces:
            async for data in pieces:
                speech.push(np.frombuffer(data, "<i2"), own_rate)
                while out:
                    yield out.pop(0)
        speech.finish()
        while out:
            yield out.pop(0)

    async def _take(self, file: str, speed: float) -> "Speaker":
        idle = self.idle.setdefault((file, speed), [])
        while idle:
            if (speaker := idle.pop()).alive:
                break
            self.lost += 1
        else:
            if (file, speed) != self.own:
                self.delays.end(asyncio.current_task())     # its voice is loaded: that is no queue
            speaker = await self._start(file, speed)
        self.delays.end(asyncio.current_task())
        self.busy.add(speaker)
        return speaker

    async def _give_back(self, speaker: "Speaker") -> None:
        """It is used again; one that is still speaking, once it has done that, and one that has failed not at all."""
        if speaker.rested:
            self._rest(speaker)
        elif speaker.failed or not speaker.alive:
            self.busy.discard(speaker)
            self.lost += 1
            await speaker.end()
        else:
            self._begin(self._let_finish(speaker))
        self.lacking.set()

    async def _let_finish(self, speaker: "Speaker") -> None:
        """Nobody wants to hear the rest of a text."""
        with suppress(EngineError):
            async for _ in speaker.finish():
                pass
        await self._give_back(speaker)

    def _rest(self, speaker: "Speaker") -> None:
        self.busy.discard(speaker)
        self.idle.setdefault((speaker.file, speaker.speed), []).append(speaker)

    def _begin(self, work: Coroutine) -> None:
        self.tasks.add(task := asyncio.ensure_future(work))
        task.add_done_callback(self.tasks.discard)

    def _exited(self, speaker: "Speaker") -> None:
        """It died.  One that was speaking is seen to where it was listened to."""
        if speaker in (idle := self.idle.get((speaker.file, speaker.speed), [])):
            idle.remove(speaker)
            self.lost += 1
            log.warning("the Piper process %d died (%s)", speaker.process.pid, speaker.process.returncode)
            self.lacking.set()

    async def _start(self, file: str, speed: float) -> "Speaker":
        """A process that has loaded its voice.  Raises EngineError."""
        said = self.describe(Path(file).name if file != self.own[0] else "")
        if self.program is PACKAGE and said["phonemes"] != "espeak":
            raise EngineError(f"{file}: piper-tts is used with voices whose phonemes are espeak's; these are "
                              f"{said['phonemes']!r}.")
        try:
            process = await asyncio.create_subprocess_exec(
                self.command, "--model", file, "--length_scale", f"{said['scale'] / speed:.3f}", "--output-raw",
                *self.program.flags, stdin=PIPE, stdout=PIPE, stderr=PIPE, limit=1 << 20,
                start_new_session=True)         # what a terminal interrupts is the server, which needs it to its end
        except OSError as error:
            raise EngineError(f"Piper cannot be started: {error.strerror}.") from None
        with suppress(OSError):
            keep_in_bounds(process.pid)
        self.started += 1
        speaker = Speaker(process, file, speed, self.program, self._exited)
        try:
            async for _ in speaker.say("Hello.", LOAD_SECONDS):
                pass
        except BaseException:
            await speaker.end()
            raise
        speaker.loaded = True
        return speaker


def digest(file: str) -> str:
    """Of its contents.  Raises OSError."""
    with open(file, "rb") as contents:
        return hashlib.file_digest(contents, "sha256").hexdigest()


def keep_in_bounds(pid: int) -> None:
    """As an engine process keeps itself (process.py): below the worker, beside its cores, and within its memory."""
    os.setpriority(os.PRIO_PROCESS, pid, NICE)
    resource.prlimit(pid, resource.RLIMIT_DATA, (MEMORY, MEMORY))
    if cores := os.environ.get("OA_CORES"):
        os.sched_setaffinity(pid, set(map(int, cores.split(","))))


class Speaker:
    """One process."""

    def __init__(self, process: Process, file: str, speed: float, program: Program, on_exit: Callable):
        self.process = process
        self.file = file
        self.speed = speed
        self.program = program
        self.on_exit = on_exit                  # it died by itself
        self.loaded = False                     # it has spoken: from now on it is not asleep while it should speak
        self.rested = True                      # it has said all that it was asked for
        self.failed = False                     # it did not, and is asked for nothing more
        self.told = asyncio.Event()             # it has written all of the present text
        self.reading = asyncio.ensure_future(self._listen())

    @property
    def alive(self) -> bool:
        return self.process.returncode is None

    async def say(self, text: str, first: float = FIRST_SECONDS) -> AsyncIterator[bytes]:
        """Its samples, 16 bit, whole ones.  Raises EngineError."""
        if not any(map(str.isalnum, text)):
            return                              # there is nothing to say
        self.rested, odd = False, b""
        self.told.clear()
        line = self.program.line(" ".join(text[:LONGEST].split())).encode()
        try:
            self.process.stdin.write(line)
        except (OSError, RuntimeError):
            self.failed = True
            raise EngineError("Piper takes no text any more.") from None
        async with aclosing(self.finish(first)) as pieces:
            async for data in pieces:
                data = odd + data
                odd = data[len(data) & ~1:]
                if len(data) > 1:
                    yield data[:len(data) & ~1]

    async def finish(self, first: float = GAP_SECONDS) -> AsyncIterator[bytes]:
        """What it has still to say of its text, bytes.  Raises EngineError."""
        got = 0
        try:
            while data := await self._next(GAP_SECONDS if got else first):
                got += len(data)
                if got > MOST_BYTES:
                    raise EngineError("Piper speaks without an end.")
                yield data
        except EngineError:
            self.failed = True
            raise
        self.rested = True

    async def _next(self, seconds: float) -> bytes:
        """More of its samples, or b"" when all of them were read.  Raises EngineError."""
        reading = asyncio.ensure_future(self.process.stdout.read(PIECE))
        telling = asyncio.ensure_future(self.told.wait())
        try:
            await self._patiently((reading, telling), seconds)
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

    async def _patiently(self, awaited: tuple[asyncio.Future, ...], seconds: float) -> None:
        """Until one of these is done, if the process works for it.  What we were kept from looking does not count.
        Raises EngineError."""
        silent, watch = 0.0, Watch(self.process.pid)
        while not (await asyncio.wait(awaited, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED))[0]:
            silent += LOOK_SECONDS
            if silent > seconds or self.loaded and watch.idles(silent) > IDLE_SECONDS:
                raise EngineError(f"Piper said nothing for {silent:.1f} s.")

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
