"""The voices `piper`: Piper as a program of its own, with voice files that the user has.

A process has loaded one voice at one speed, and speaks one text at a time: a line in, raw samples out, and when these
are all written a line on its standard error that says so.  Processes are started ahead, one more than may speak at
once, and one of each other voice and speed that was spoken in; they are kept.  The rule: the loop never waits for one;
one that does nothing for a while, or computes for too long without a sound, is killed, and what it had not said yet
another one says.
"""
import asyncio
import hashlib
import json
import logging
import os
import re
import shutil
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, suppress
from pathlib import Path

import numpy as np

from .. import ConfigError, EngineError
from ..config import Config
from ..flow.manner import manner_of
from .level import Level, levelled
from .openai.tts import EDGE_MS, LEARNING, MS_PER_CHARACTER, split, unspoken
from .piper_process import COMPILED, PACKAGE, Speaker, keep_in_bounds, program_of
from .processes.delays import Delays
from .processes.host import RESTART_SECONDS
from .rates import of_speech
from .segments import Voice
from .speech import Speech

log = logging.getLogger("opusagent")

TRIES = 2                       # processes that are asked for one text


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
        self.stamps: dict[str, tuple] = {}                  # by voice file: which one it was when last loaded
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
        """With what lies in the voice's file and the one beside it when it is first asked for, or was replaced: another
        file under the same name is another voice, and all that are trained alike are of one size.  Reads all, 0.1 s."""
        try:
            file = self.file_of(manner_of(voice).voice)
            if file not in self.digests:
                self.digests[file] = contents(file)
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
        """So that no call waits for a voice to load, once anything was spoken in it."""
        griefs = 0
        while True:
            self.lacking.clear()
            if (manner := self._lacks()) is None:
                griefs = 0
                await self.lacking.wait()
                continue
            await asyncio.sleep(RESTART_SECONDS[min(griefs, len(RESTART_SECONDS) - 1)])
            try:
                self._rest(await self._start(*manner))
            except EngineError as error:
                griefs += 1
                log.warning("%s", error)
                if manner != self.own:
                    self.idle.pop(manner)           # who is to speak so is told why not

    def _lacks(self) -> tuple[str, float] | None:
        """A manner of which there are too few processes: of the usual one as many as may speak at once and a spare one,
        of each other that was spoken in an idle one, unless all that may speak at once do so in it."""
        busy = Counter((speaker.file, speaker.speed) for speaker in self.busy)
        for manner, idle in self.idle.items():
            lacking = len(idle) + busy[manner] <= self.settings.processes if manner == self.own else not idle
            if lacking and (manner == self.own or busy[manner] < self.settings.processes):
                return manner
        return None

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
        file = self.file_of(manner.voice)
        async with self.gate:
            while True:
                spoken, tail = 0, np.zeros(0, np.int16)     # samples, and the last few, which may be a break's edge
                speaker = await self._take(file, manner.rate)
                try:
                    async with aclosing(self._said_by(speaker, text, rate)) as pieces:
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

    async def _said_by(self, speaker: "Speaker", text: str, rate: int) -> AsyncIterator[np.ndarray]:
        """What one process makes of it, from its voice's rate to `rate`, levelled and without the silence around it."""
        out: list[np.ndarray] = []
        level = self.levels.setdefault(speaker.file, Level())
        speech = Speech(rate, level, lambda pcm: out.append(pcm) or True)
        async with aclosing(speaker.say(text)) as pieces:
            async for data in pieces:
                speech.push(np.frombuffer(data, "<i2"), speaker.described["rate"])
                while out:
                    yield out.pop(0)
        speech.finish()
        while out:
            yield out.pop(0)

    async def _take(self, file: str, speed: float) -> "Speaker":
        idle = self.idle.get((file, speed), [])             # no list: nothing was spoken so yet
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
        self.lacking.set()
        return speaker

    async def _give_back(self, speaker: "Speaker") -> None:
        """It is used again; one that is still speaking, once it has done that, and one that has failed not at all."""
        replaced = speaker.described is not self.described.get(speaker.file)
        if speaker.rested and not replaced:
            self._rest(speaker)
        elif replaced or speaker.failed or not speaker.alive:
            self.busy.discard(speaker)
            self.lost += not replaced
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

    async def _look(self, file: str) -> None:
        """A file that was replaced is another voice: what has loaded the one before says nothing more, and its prompts
        are none of this one's."""
        stamp = await asyncio.to_thread(stamp_of, file)
        if self.stamps.setdefault(file, stamp) == stamp or not stamp:
            return
        log.warning("%s was replaced: its new voice speaks from now on", file)
        self.stamps[file] = stamp
        self.described.pop(file, None)
        if file in self.digests:
            with suppress(OSError):
                self.digests[file] = await asyncio.to_thread(contents, file)
        for (name, _), idle in self.idle.items():
            while name == file and idle:
                self._begin(idle.pop().end())
        self.lacking.set()

    async def _start(self, file: str, speed: float) -> "Speaker":
        """A process that has loaded its voice.  Raises EngineError."""
        await self._look(file)
        try:
            said = self.describe(Path(file).name if file != self.own[0] else "")
        except ConfigError as error:            # it is no more what it was when the server began
            raise EngineError(str(error)) from None
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
        speaker = Speaker(process, file, speed, said, self.program, self._exited)
        try:
            async for _ in speaker.say("Hello."):
                pass
        except BaseException:
            await speaker.end()
            raise
        speaker.loaded = True
        return speaker


def contents(file: str) -> str:
    """What lies in a voice's file and the one beside it, as digests.  Raises OSError."""
    return " ".join(map(digest, (file, file + ".json")))


def digest(file: str) -> str:
    """Of its contents.  Raises OSError."""
    with open(file, "rb") as contents:
        return hashlib.file_digest(contents, "sha256").hexdigest()


def stamp_of(file: str) -> tuple:
    """Which file lies there now; () for none."""
    try:
        found = os.stat(file)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
