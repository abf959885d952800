"""The voices `piper`: Piper as a program of its own, with voice files that the user has.

A process has loaded one voice at one speed, and speaks one text at a time: a line of JSON in, raw samples out, and
when these are all written a line on its standard error that says how long it took.  Processes are started ahead, and
kept.  The rule: the loop never waits for one; one that says nothing in its time is killed, and what it had not begun to
say another one says.
"""
import asyncio
import json
import logging
import os
import re
import shutil
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from .. import ConfigError, EngineError
from ..config import Config
from ..flow.manner import manner_of
from .level import Level, levelled
from .openai_tts import EDGE_MS, split
from .rates import of_speech
from .segments import Voice
from .speech import Speech

log = logging.getLogger("opusagent")

NICE = 5                        # below the loop, as engine processes are
LOAD_SECONDS = 30.0             # for a process to load its voice and say a word
FIRST_SECONDS = 2.0             # for the first samples of a text
GAP_SECONDS = 2.0               # from piece to piece
PIECE = 8192                    # bytes read at once
LONGEST = 2000                  # characters of a text
MOST_BYTES = 1 << 24            # of a text's samples: minutes
WRITTEN_SECONDS = 0.03          # in which what it has written is read
SPOKEN = b"Real-time factor"    # is in what it says when it has written a text
TRIES = 2                       # processes that are asked for one text


class Tts(Voice):
    """Speech by Piper."""

    def __init__(self, config: Config):
        super().__init__()
        self.settings = settings = config.piper
        if not settings.voice:
            raise ConfigError(f"{config.origin('piper.voice')}: the voice piper needs a voice file: set piper.voice to "
                              "its .onnx file.")
        if (command := shutil.which(settings.command)) is None:
            raise ConfigError(f"{config.origin('piper.command')}: there is no program {settings.command!r}: install "
                              "Piper, or set piper.command.")
        self.command = command
        self.identity = f"piper {Path(settings.voice).name}"
        self.rates: dict[str, int] = {}                     # by voice file: Hz
        self.rate_of("")
        self.idle: dict[tuple[str, float], list[Speaker]] = {}      # by voice file and speed
        self.busy: set[Speaker] = set()
        self.levels: dict[str, Level] = {}                  # by voice file
        self.gate = asyncio.Semaphore(settings.processes)
        self.started = 0                                    # processes ever

    def file_of(self, voice: str) -> str:
        """The file of a voice that a flow names.  EngineError where there is none."""
        own = Path(self.settings.voice)
        if not voice:
            return str(own)
        if not re.fullmatch(r"[\w-][\w.-]*", voice):
            raise EngineError(f"{voice[:60]!r} is no name of a Piper voice.")
        return str(own.with_name(voice.removesuffix(".onnx") + ".onnx"))

    def rate_of(self, voice: str) -> int:
        """Hz, as the file beside the voice says.  ConfigError where that is not there, or is none."""
        file = self.file_of(voice)
        if file not in self.rates:
            try:
                rate = json.loads(Path(file + ".json").read_text("utf-8"))["audio"]["sample_rate"]
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{file}.json: the description of the voice cannot be read: "
                                  f"{getattr(error, 'strerror', 'it is no text')}.") from None
            except (ValueError, LookupError, TypeError):
                rate = 0
            if not isinstance(rate, int) or not of_speech(rate):
                raise ConfigError(f"{file}.json: this does not say audio.sample_rate, as a Piper voice's does.")
            if not os.access(file, os.R_OK):
                raise ConfigError(f"{file}: the voice cannot be read.")
            self.rates[file] = rate
        return self.rates[file]

    async def open(self, arena) -> None:
        """A process has spoken: the program and the voice are what they should be.  EngineError."""
        speaker = await self._start(self.file_of(""), 1.0)
        self.idle.setdefault((speaker.file, speaker.speed), []).append(speaker)

    async def close(self) -> None:
        self.be_silent()
        for speaker in [*self.busy, *(each for idle in self.idle.values() for each in idle)]:
            await speaker.end()

    async def render(self, texts, voice: str, rate: int) -> AsyncIterator[tuple[str, np.ndarray]]:
        """Each text as int16 at `rate`, in their order.  Raises EngineError."""
        for text in texts:
            pieces = [pcm async for pcm in self._pcm(text, voice, rate)]
            yield text, levelled(np.concatenate(pieces) if pieces else np.zeros(0, np.int16), rate)

    def measure(self, metrics) -> None:
        metrics.gauge("engine_alive", len(self.busy) + sum(map(len, self.idle.values())), stage="tts")
        metrics.gauge("segments_in_synthesis", len(self.speaking))

    async def _pcm(self, text: str, voice: str, rate: int) -> AsyncIterator[np.ndarray]:
        """The text as int16 at `rate`, while it comes; what breaks off ends at nothing.  Raises EngineError."""
        manner, tries = manner_of(voice), TRIES
        file, own_rate, out = self.file_of(manner.voice), self.rate_of(manner.voice), []
        speech = Speech(rate, self.levels.setdefault(file, Level()), lambda pcm: out.append(pcm) or True)
        tail = np.zeros(0, np.int16)
        async with self.gate:
            while True:
                speaker, begun = await self._take(file, manner.rate), False
                try:
                    async for data in speaker.say(text):
                        begun = True
                        speech.push(np.frombuffer(data, "<i2"), own_rate)
                        pcm, tail = split(np.concatenate((tail, *out)), rate * EDGE_MS // 1000)
                        out.clear()
                        yield pcm
                    speech.finish()
                    yield np.concatenate((tail, *out))
                    return
                except EngineError as error:
                    tries -= 1
                    if begun or not tries:
                        yield (tail * np.linspace(1, 0, len(tail))).astype(np.int16)
                        raise
                    log.warning("%s Another one is asked.", error)
                finally:
                    await self._give_back(speaker)

    async def _take(self, file: str, speed: float) -> "Speaker":
        idle = self.idle.setdefault((file, speed), [])
        while idle:
            if (speaker := idle.pop()).alive:
                break
        else:
            speaker = await self._start(file, speed)
        self.busy.add(speaker)
        return speaker

    async def _give_back(self, speaker: "Speaker") -> None:
        """It is used again if it has said all that it was asked for; otherwise it is not waited for."""
        self.busy.discard(speaker)
        if speaker.alive and speaker.rested:
            self.idle[speaker.file, speaker.speed].append(speaker)
        else:
            await speaker.end()

    async def _start(self, file: str, speed: float) -> "Speaker":
        """A process that has loaded its voice.  Raises EngineError."""
        try:
            process = await asyncio.create_subprocess_exec(
                self.command, "--model", file, "--length_scale", f"{1 / speed:.3f}", "--output-raw", "--json-input",
                stdin=PIPE, stdout=PIPE, stderr=PIPE, limit=1 << 20)
        except OSError as error:
            raise EngineError(f"Piper cannot be started: {error.strerror}.") from None
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, NICE)
        self.started += 1
        speaker = Speaker(process, file, speed)
        try:
            async for _ in speaker.say("Hello.", LOAD_SECONDS):
                pass
        except BaseException:
            await speaker.end()
            raise
        return speaker


class Speaker:
    """One process."""

    def __init__(self, process: Process, file: str, speed: float):
        self.process = process
        self.file = file
        self.speed = speed
        self.rested = True                      # it has said all that it was asked for
        self.told = asyncio.Event()             # it has written all of the present text
        self.reading = asyncio.ensure_future(self._listen())

    @property
    def alive(self) -> bool:
        return self.process.returncode is None

    async def say(self, text: str, first: float = FIRST_SECONDS) -> AsyncIterator[bytes]:
        """Its samples, 16 bit, whole ones.  Raises EngineError."""
        self.rested, got, odd = False, 0, b""
        self.told.clear()
        line = json.dumps({"text": " ".join(text[:LONGEST].split())}) + "\n"
        try:
            self.process.stdin.write(line.encode())
            while data := await self._next(GAP_SECONDS if got else first):
                got += len(data)
                if got > MOST_BYTES:
                    raise EngineError("Piper speaks without an end.")
                data = odd + data
                odd = data[len(data) & ~1:]
                if len(data) > 1:
                    yield data[:len(data) & ~1]
        except (OSError, RuntimeError):
            raise EngineError("Piper takes no text any more.") from None
        self.rested = True

    async def _next(self, seconds: float) -> bytes:
        """More of its samples, or b"" when all of them were read.  Raises EngineError."""
        reading = asyncio.ensure_future(self.process.stdout.read(PIECE))
        telling = asyncio.ensure_future(self.told.wait())
        try:
            await asyncio.wait((reading, telling), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done() and telling.done():       # what it has written is on its way here, if there is any
                await asyncio.wait((reading,), timeout=WRITTEN_SECONDS)
                if not reading.done():
                    return b""
            if not reading.done():
                raise EngineError(f"Piper said nothing for {seconds:g} s.")
            if not (data := reading.result()):
                raise EngineError("Piper ended in the middle of a text.")
            return data
        finally:
            for each in (reading, telling):
                each.cancel()
            await asyncio.gather(reading, telling, return_exceptions=True)

    async def _listen(self) -> None:
        """What it says on its standard error: that a text is written, and much that is of no interest."""
        while line := await self.process.stderr.readline():
            if SPOKEN in line:
                self.told.set()
            else:
                log.debug("piper: %s", line.decode(errors="replace").strip())

    async def end(self) -> None:
        self.reading.cancel()
        if self.alive:
            self.process.kill()
        await self.process.wait()
