"""Prompts: the texts that are spoken ahead, kept on disk and mapped by every worker.

A prompt is a file, named by what makes it sound as it does: the engine, the voice, the text and the rate.  It is
written under another name, forced to the disk and renamed; a checksum over all of it tells whether it is whole.  The
rule: a file that is not what it should be, for whatever reason, is as good as none; and a disk that fails costs time,
no calls.
"""
import asyncio
import fcntl
import hashlib
import json
import logging
import os
import struct
import threading
import time
import zlib
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import ConfigError, EngineError, __version__, directories
from .._fastpath import RATES, MappedFile
from ..recording import resample
from ..speech.audio import first_voiced
from . import clips

log = logging.getLogger("opusagent")

SPOKEN_RATE = 16000             # Hz, what prompts are rendered at; the other rates are made from that
AHEAD = (SPOKEN_RATE, 8000)     # Hz, the rates that are made ahead; the others when a call first asks for one
RENDER_SECONDS = 60.0           # without another prompt of a flow, before the worker gives up
LOCK_SECONDS = 0.02             # between two looks whether another worker has rendered what we need
ABANDONED_SECONDS = 600         # after which a file that was never renamed is rubbish
ROOM = 0.9                      # of the limit that is left when something had to go

HEAD = struct.Struct("<8sIIQQII")   # MAGIC, bytes of the key, rate, samples, lead, word ends, CRC-32 of all the rest
RECORDED = "recording"              # in place of the engine: of what a flow plays
MAGIC = b"OAPROMPT"
FORMAT = 2                          # of a file
ENDS = "<u4"
SUFFIX = ".prompt"


class Prompt:
    """A text as speech, ready to play at one rate."""

    __slots__ = ("pcm", "lead", "ends")

    def __init__(self, pcm: np.ndarray, rate: int, lead: int | None = None, ends=()):
        self.pcm = pcm                          # int16, not to be written to
        self.ends = ends                        # samples after which each of its words ends; () if no voice told
        self.lead = lead                        # samples before its first voiced window
        if lead is None:
            self.lead = first_voiced(pcm, rate) or 0


class Key(NamedTuple):
    """What makes a prompt sound as it does."""

    engine: str                     # the engine and its settings: the same text in the same voice is the same speech
    voice: str
    text: str
    rate: int                       # Hz

    def encoded(self) -> bytes:
        return json.dumps([__version__, FORMAT, *self], ensure_ascii=False).encode("utf-8", "surrogatepass")


class Prompts:
    """All prompts of a worker, by voice, text and rate."""

    def __init__(self, tts, store: "Store | None"):
        self.tts = tts
        self.store = store                      # None: nothing is kept on disk
        self.ready: dict[tuple[str, str, int], tuple[str, Prompt]] = {}     # with the engine that spoke it, or RECORDED
        self.writing: set[asyncio.Future] = set()

    def get(self, voice: str, text: str, rate: int) -> Prompt | None:
        """A text that was spoken ahead; None if it was not."""
        found = self._ready(voice, text, rate)
        if found is None and rate not in AHEAD and (spoken := self._ready(voice, text, SPOKEN_RATE)) is not None:
            found = self._keep(voice, text, rate, resample(spoken.pcm, SPOKEN_RATE, rate), spoken.ends)
        return found

    def _ready(self, voice: str, text: str, rate: int) -> Prompt | None:
        """By the voice as it is now: a prompt of one that was replaced is none of its.  Most of what calls say is none,
        and then nobody is asked who the voice is, which may take reading files."""
        engine, prompt = self.ready.get((voice, text, rate), (RECORDED, None))
        return prompt if engine == RECORDED or engine == self.tts.identity(voice) else None

    async def prepare(self, texts: Iterable[str], voice: str) -> int:
        """Have these texts ready: from the disk, or else spoken now.  How many had to be spoken; raises EngineError."""
        await asyncio.to_thread(self.tts.identity, voice)   # which it may find out by reading files
        missing = self._missing(texts, voice)
        if not missing:
            return 0
        async with self.store.alone() if self.store else _nobody_else():
            missing = self._missing(missing, voice)         # another worker may have spoken them while we waited
            spoken, loop = 0, asyncio.get_running_loop()
            try:
                async with asyncio.timeout(RENDER_SECONDS) as patience:
                    async for text, pcm, *ends in self.tts.render(missing, voice, SPOKEN_RATE):
                        for rate in AHEAD:
                            self._keep(voice, text, rate, resample(pcm, SPOKEN_RATE, rate), *ends)
                        spoken += 1
                        patience.reschedule(loop.time() + RENDER_SECONDS)       # slow is no fault
            except TimeoutError:
                kept = "; starting again goes on from there" if spoken and self.store else ""
                raise EngineError(f"The voice spoke {spoken} of {len(missing)} prompts, and then nothing for "
                                  f"{RENDER_SECONDS:g} s{kept}.") from None
            finally:
                await self.written()
        return len(missing)

    def take(self, texts: Iterable[str], voice: str) -> bool:
        """What of these is on the disk is ready now; True if that is all."""
        return not self._missing(texts, voice)

    def plays(self, recording) -> bool:
        """It is one already."""
        return (recording.file, recording.text, SPOKEN_RATE) in self.ready

    def play(self, recording) -> None:
        """A recording of a flow's (flow/signals.py) is a prompt, from the disk or else as its file is now: it is heard
        as soon as any of it is.  ConfigError where it cannot be played."""
        kept = [self._kept_of(recording, rate) for rate in RATES] if self.store is not None else [None]
        if None in kept:
            pcm, rate_in = clips.read(recording.file)
            kept = [Prompt(clips.resampled(pcm, rate_in, rate), rate) for rate in RATES]
            for prompt, rate in zip(kept, RATES) if self.store is not None else ():
                self.store.save(self._key_of(recording, rate), prompt)
        for prompt, rate in zip(kept, RATES):
            prompt.ends = np.full(len(recording.text.split()), prompt.lead + 1)
            self.ready[recording.file, recording.text, rate] = RECORDED, prompt

    def _key_of(self, recording, rate: int) -> Key:
        return Key(RECORDED, clips.digest(recording.file), recording.name, rate)

    def _kept_of(self, recording, rate: int) -> Prompt | None:
        return self.store.load(self._key_of(recording, rate))

    async def written(self) -> None:
        """All that is to be kept is on the disk, or will never be."""
        while self.writing:
            await asyncio.wait(self.writing)

    def _missing(self, texts: Iterable[str], voice: str) -> list[str]:
        """Those that are not on the disk at every rate that is made ahead; what is there is taken from it."""
        return [text for text in texts if not all([self._load(voice, text, rate) or rate not in AHEAD
                                                   for rate in RATES])]

    def _load(self, voice: str, text: str, rate: int) -> bool:
        if self._ready(voice, text, rate) is None and self.store is not None:
            key = Key(self.tts.identity(voice), voice, text, rate)
            if (prompt := self.store.load(key)) is not None:
                self.ready[voice, text, rate] = key.engine, prompt
        return self._ready(voice, text, rate) is not None

    def _keep(self, voice: str, text: str, rate: int, pcm: np.ndarray, ends=()) -> Prompt:
        """It is a prompt from now on; the disk has it a little later.  Its words end at `ends`, at SPOKEN_RATE."""
        key = Key(self.tts.identity(voice), voice, text, rate)
        prompt = Prompt(pcm, rate, None, np.asarray(ends, np.int64) * rate // SPOKEN_RATE)
        self.ready[voice, text, rate] = key.engine, prompt
        if self.store is not None:
            writing = asyncio.get_running_loop().run_in_executor(None, self.store.save, key, prompt)
            self.writing.add(writing)
            writing.add_done_callback(self.writing.discard)
        return prompt


@asynccontextmanager
async def _nobody_else():
    yield


# -- on the disk -------------------------------------------------------------------------------------------------------

class Store:
    """A directory of prompts, of at most `limit` bytes.  What was used longest ago goes first."""

    def __init__(self, directory: Path, limit: int):
        self.directory = directory
        self.limit = limit                      # bytes
        self.used: dict[str, int] = {}          # files that this process needs -> bytes: these stay
        self.total: int | None = None           # bytes of all files, as last counted and added to; None: not yet
        self.counting = threading.Lock()        # of save(), which runs in several threads
        self.refused = False                    # a file could not be kept, and that was told

    def load(self, key: Key) -> Prompt | None:
        """The prompt, mapped; None where there is none that can be trusted."""
        name = file_name(key)
        try:
            fd = os.open(self.directory / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            data = memoryview(MappedFile(fd))
            os.utime(fd)                        # used now
        except OSError:
            return None
        finally:
            os.close(fd)
        prompt = decode(key, data)
        if prompt is None:
            log.warning("%s is not whole; its text is spoken again", self.directory / name)
        else:
            self.used[name] = len(data)
        return prompt

    def save(self, key: Key, prompt: Prompt) -> bool:
        """Keep it; False where that cannot be done.  Blocks until it is on the disk; any thread may call it."""
        name, data = file_name(key), encode(key, prompt)
        try:
            with self.counting:
                if sum(self.used.values()) + len(data) > self.limit:
                    return self._refuse(f"the prompts take more than the {self.limit >> 20} MiB that may be kept")
                self.used[name] = len(data)
                self._make_room(len(data))
            self._write(name, data)
        except OSError as error:
            self.used.pop(name, None)
            return self._refuse(f"a prompt cannot be kept in {self.directory}: {error.strerror}")
        return True

    def _write(self, name: str, data: bytes) -> None:
        """Either all of it is there under its name, or nothing is."""
        temporary = self.directory / f".{name}.{os.getpid()}"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.directory / name)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _refuse(self, sentence: str) -> bool:
        if not self.refused:
            self.refused = True
            log.warning("%s; the rest is spoken again at the next start", sentence)
        return False

    def _make_room(self, wanted: int) -> None:
        """Delete what was used longest ago, and what was never finished, until `wanted` bytes fit, and some more."""
        if self.total is not None and self.total + wanted <= self.limit:
            self.total += wanted
            return
        files = self._files()
        self.total = sum(size for _, size, _ in files) + wanted
        goal = self.limit if self.total <= self.limit else self.limit * ROOM
        for used_at, size, name in sorted(files):
            finished = not name.startswith(".")
            if self.total > goal and finished and name not in self.used or (
                    not finished and time.time() - used_at > ABANDONED_SECONDS):
                (self.directory / name).unlink(missing_ok=True)
                self.total -= size

    def _files(self) -> list[tuple[float, int, str]]:
        """When each was last used, its bytes and its name; also of those that are being written."""
        files = []
        with os.scandir(self.directory) as entries:
            for entry in entries:
                if SUFFIX in entry.name:
                    with suppress(FileNotFoundError):       # another worker was first
                        found = entry.stat(follow_symlinks=False)
                        files.append((found.st_mtime, found.st_size, entry.name))
        return files

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """While it lasts no other worker renders: each would speak what the first one leaves on the disk.

        One that dies is out of the way at once; one that takes too long is not waited for.
        """
        try:
            fd = os.open(self.directory / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            self._refuse(f"prompts cannot be kept in {self.directory}: {error.strerror}")
            yield
            return
        try:
            give_up = time.monotonic() + RENDER_SECONDS
            while time.monotonic() < give_up:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(LOCK_SECONDS)
            yield
        finally:
            os.close(fd)


def file_name(key: Key) -> str:
    return hashlib.blake2b(key.encoded(), digest_size=16).hexdigest() + SUFFIX


def encode(key: Key, prompt: Prompt) -> bytes:
    """The file of a prompt: HEAD, the key as JSON padded to whole samples, the samples, and the ends of its words."""
    name, body = key.encoded(), prompt.pcm.astype("<i2").tobytes() + np.asarray(prompt.ends, ENDS).tobytes()
    name += b" " * (len(name) & 1)
    head = HEAD.pack(MAGIC, len(name), key.rate, len(prompt.pcm), prompt.lead, len(prompt.ends), 0)[:-4]
    return head + struct.pack("<I", zlib.crc32(body, zlib.crc32(name, zlib.crc32(head)))) + name + body


def decode(key: Key, data: memoryview) -> Prompt | None:
    """What encode() made of it, without a copy; None unless it is whole and that of `key`."""
    if len(data) < HEAD.size:
        return None
    magic, length, rate, samples, lead, words, crc = HEAD.unpack_from(data)
    begin = HEAD.size + length
    end = begin + 2 * samples
    if magic != MAGIC or rate != key.rate or len(data) != end + 4 * words:
        return None
    if zlib.crc32(data[HEAD.size:], zlib.crc32(data[:HEAD.size - 4])) != crc:
        return None
    if bytes(data[HEAD.size:begin]).rstrip(b" ") != key.encoded():
        return None
    return Prompt(np.frombuffer(data[begin:end], "<i2"), rate, lead, np.frombuffer(data[end:], ENDS).astype(np.int64))


# -- where -------------------------------------------------------------------------------------------------------------

def open_store(config, environ: Mapping[str, str]) -> Store | None:
    """The directory that the configuration names, or the one that is usual; None where nothing is to be kept.

    ConfigError where the one that is named cannot be used; the usual one is then done without, in a sentence.
    """
    settings = config.prompts
    if not settings.megabytes:
        return None
    directory = None
    try:
        directory = Path(settings.directory) if settings.directory else usual_directory(environ)
        directories.made(directory, 0o700)
        found = directory.stat()
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
            raise PermissionError(0, "others than its user may write there")
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(0, "it may not be written to")
    except (OSError, RuntimeError) as error:
        reason = f"Prompts cannot be kept in {directory or 'the cache'}: {getattr(error, 'strerror', error)}."
        if settings.directory:
            raise ConfigError(f"{config.origin('prompts.directory')}: {reason}") from None
        log.warning("%s They are spoken at every start; set prompts.directory.", reason)
        return None
    return Store(directory, settings.megabytes << 20)


def usual_directory(environ: Mapping[str, str]) -> Path:
    """What systemd gives a service, or what the XDG says.  RuntimeError for a user without a home."""
    if given := environ.get("CACHE_DIRECTORY", "").partition(":")[0]:
        return Path(given)
    if (given := environ.get("XDG_CACHE_HOME", "")).startswith("/"):
        return Path(given) / "opusagent"
    return Path.home() / ".cache" / "opusagent"
