"""The voice of the engine `openai`: audio.speech, streamed as PCM into the segment buffers of a call.

It is heard as soon as there are 20 ms of it, and waits where the listener is slow.  The rule: what an endpoint sends
as audio is believed only as far as it can be speech: of the right form, no silence, not too short for its text and
not without an end.
"""
import asyncio
import re
import struct
from collections.abc import AsyncIterator
from contextlib import aclosing

import numpy as np

from ... import EngineError
from ..._fastpath import SEGMENTS
from ...config import Config
from ...flow.manner import manner_of
from ...usage import current
from ..level import Level, levelled
from ..rates import of_speech
from ..remote.endpoint import Endpoint
from ..remote.preference import Preference
from ..segments import Voice, side_by_side
from ..speech import Speech

RATE = 24000                    # Hz of what is sent, unless it says otherwise
AUDIO = r"audio/(x-)?(pcm|wav|wave)\b|application/octet-stream"
HEAD_BYTES = 4096               # of a WAV file, at most
FIRST_SECONDS = 2.0             # for the first audio of a segment
GAP_SECONDS = 1.0               # from piece to piece
LONGEST_SECONDS = 30.0          # of one segment, and of a short one ...
SLOW_SECONDS, SLOWEST = 3.0, 5  # ... so many, and one more for each so many characters
MS_PER_CHARACTER = 65           # of speech, until it is known better
EDGE_MS = 10                    # of what breaks off, faded out
LEARNING = 0.1                  # of what a segment shows of that
FASTEST = 40                    # characters that can be spoken in a second
LONGEST = 4096                  # characters that can be asked for at once
TRIES = 3                       # for each of them
AGAIN_SECONDS = 0.2             # between two of these, or longer where the endpoint wants it


class Tts(Voice):
    """Speech by an endpoint."""

    counts = True                               # it tells usage.current what was asked for

    def __init__(self, config: Config):
        super().__init__()
        self.settings = config.openai
        self.endpoints = Preference(config, "tts", "voice", SEGMENTS)
        self.pace = MS_PER_CHARACTER / 1000             # seconds of speech for a character, as it has been so far
        self.levels: dict[str, Level] = {}              # by voice
        self.resumed = 0                                # segments that another endpoint went on with

    def identity(self, voice: str) -> str:
        best = self.endpoints.best.target               # prompts that it spoke are kept, and are no other's
        return f"openai {best.base_url} {best.model} {best.voice or self.settings.voice}"

    async def open(self, arena) -> None:
        await self.endpoints.open()

    async def close(self) -> None:
        self.be_silent()
        await self.endpoints.close()

    async def render(self, texts, voice: str, rate: int) -> AsyncIterator[tuple[str, np.ndarray]]:
        """Each text as int16 at `rate`, in the order in which they get ready.  Raises EngineError."""
        async for text, pcm in side_by_side(texts, lambda text: self._whole(text, voice, rate)):
            yield text, pcm

    def measure(self, metrics) -> None:
        self.endpoints.measure(metrics)
        metrics.gauge("segments_resumed", self.resumed)
        metrics.gauge("segments_in_synthesis", len(self.speaking))

    async def _whole(self, text: str, voice: str, rate: int) -> np.ndarray:
        for tries_left in reversed(range(TRIES)):
            try:
                return levelled(np.concatenate([pcm async for pcm in self._pcm(text, voice, rate)]), rate)
            except EngineError:
                if not tries_left or not self.endpoints.best.breaker.closed:
                    raise
                await asyncio.sleep(max(AGAIN_SECONDS, self.endpoints.best.hold))

    async def _pcm(self, text: str, voice: str, rate: int) -> AsyncIterator[np.ndarray]:
        """The text as int16 at `rate`, while it comes.

        Where an endpoint fails in the middle, the next one goes on with the words of which nothing was spoken yet.
        Raises EngineError.
        """
        asked = [self.endpoints.first()]
        while True:
            spoken, tail = 0, np.zeros(0, np.int16)     # samples, and the last few of them, which may be a break's edge
            try:
                async with aclosing(self._ask(asked[-1], text, voice, rate, self.endpoints.next(asked) is None)) as it:
                    async for pcm in it:
                        spoken += len(pcm)
                        pcm, tail = split(np.concatenate((tail, pcm)), rate * EDGE_MS // 1000)
                        yield pcm
                yield tail
                self.pace += (spoken / rate / max(1, len(text)) - self.pace) * LEARNING
                return
            except EngineError as error:
                yield (tail * np.linspace(1, 0, len(tail))).astype(np.int16)
                rest = unspoken(text, spoken / rate / self.pace)
                if not rest or (endpoint := self.endpoints.fall_back(asked, str(error))) is None:
                    raise
                asked.append(endpoint)
                self.resumed += rest != text
                text = rest

    async def _ask(self, endpoint: Endpoint, text: str, voice: str, rate: int, last: bool) -> AsyncIterator[np.ndarray]:
        """`last`: there is no other endpoint to ask, so this one has more time."""
        target, manner = endpoint.target, manner_of(voice)
        voice = target.voice or manner.voice or self.settings.voice
        body = {"model": target.model, "input": text[:LONGEST], "voice": voice, "response_format": "pcm"}
        body |= {"speed": manner.rate} if manner.rate != 1.0 else {}
        body |= {"instructions": f"Speak {manner.language}."} if manner.language else {}
        what = f"voice {voice} of {target.model}"
        first, gap = (FIRST_SECONDS, GAP_SECONDS) if last else (target.first_seconds, target.gap_seconds)
        item = usage.item("tts", endpoint.url.host, target.model) if (usage := current.get()) is not None else None
        if item is not None:
            item.requests += 1
            item.characters += len(text)
        async with endpoint.post("/audio/speech", body, AUDIO, what=what, within=first) as answer:
            longest = min(LONGEST_SECONDS, SLOW_SECONDS + len(text) / SLOWEST)
            level = self.levels.setdefault(f"{target.base_url} {target.model} {voice}", Level())
            sound = Sound(answer.field("content-type"), rate, longest / manner.rate, level)
            wait = first
            while data := await answer.next(wait):
                if len(pcm := sound.feed(data)):
                    if item is not None:
                        item.seconds += len(pcm) / rate
                    yield pcm
                wait = gap
            rest = sound.finish(text)
            answer.finished = True
            yield rest


def split(pcm: np.ndarray, tail: int) -> tuple[np.ndarray, np.ndarray]:
    """All but the last `tail` samples, and these."""
    at = max(0, len(pcm) - tail)
    return pcm[:at], pcm[at:]


def unspoken(text: str, characters: float) -> str:
    """The words of a text that begin after its first so many characters."""
    if characters <= 0:
        return text
    begins = next((found.start() for found in re.finditer(r"(?<=\s)\S", text) if found.start() >= characters), None)
    return "" if begins is None else text[begins:]


class Sound:
    """Bytes of audio, cut anywhere, on their way to samples for the listener: no silence before or after them."""

    __slots__ = ("rate", "longest", "samples", "_speech", "_out", "_head", "_odd")

    def __init__(self, content_type: str, rate: int, longest: float = LONGEST_SECONDS, level: float | Level = 1.0):
        stated = re.search(r"\brate=(\d{1,6})", content_type)
        self.rate = int(stated[1]) if stated else RATE      # Hz of what comes
        self.longest = longest                              # seconds of speech that it can be
        self.samples = 0                                    # of what comes
        self._out: list[np.ndarray] = []                    # what is ready
        self._speech = Speech(rate, level, self._keep)
        self._head: bytes | None = b""                      # of a WAV file, perhaps; None: it was looked at
        self._odd = b""                                     # half a sample

    def feed(self, data: bytes) -> np.ndarray:
        """What of it can be heard now.  Raises EngineError for what cannot be speech."""
        if self._head is not None:
            data = self._look(data)
        data = self._odd + data
        whole = len(data) & ~1
        self._odd = data[whole:]
        if whole:
            if not of_speech(self.rate):
                raise EngineError(f"The voice's endpoint sends audio at {self.rate} Hz, which is not supported.")
            self.samples += whole // 2
            self._speech.push(np.frombuffer(data[:whole], "<i2"), self.rate)
        if self.samples > self.longest * self.rate:
            raise EngineError(f"The voice's endpoint did not end a segment within {self.longest:.0f} s of speech.")
        return self._ready()

    def finish(self, text: str) -> np.ndarray:
        """The last of it.  Raises EngineError where the whole was no speech of `text`."""
        if not self.samples:
            raise EngineError("The voice's endpoint sent no audio.")
        if self._speech.edges is None or not self._speech.edges.begun:
            raise EngineError("The voice's endpoint sent silence.")
        seconds = self.samples / self.rate
        if len(text) > seconds * FASTEST:
            raise EngineError(f"The voice's endpoint sent {seconds:.1f} s of audio for {len(text)} characters.")
        self._speech.finish()
        return self._ready()

    @property
    def skipped_ms(self) -> int:
        """The silence before the first sample that was kept."""
        edges = self._speech.edges
        return 0 if edges is None else edges.dropped * 1000 // self.rate

    def _keep(self, pcm: np.ndarray) -> bool:
        self._out.append(pcm)
        return True

    def _ready(self) -> np.ndarray:
        ready = np.concatenate(self._out) if self._out else np.zeros(0, np.int16)
        self._out.clear()
        return ready

    def _look(self, data: bytes) -> bytes:
        """The first bytes may be the head of a WAV file, though none was asked for; what is after that."""
        head = self._head + data
        if len(head) < 12 and b"RIFF".startswith(head[:4]):
            self._head = head
            return b""
        if head[:4] != b"RIFF":
            self._head = None
            return head
        found = wav_head(head)
        self._head = head if found is None else None
        if found is None:
            return b""
        self.rate, begin = found
        return head[begin:]


def wav_head(head: bytes) -> tuple[int, int] | None:
    """Rate of a WAV file and where its samples begin; None: more of it is needed.  Raises EngineError."""
    at, rate = 12, 0
    while at + 8 <= len(head):
        tag, size = struct.unpack_from("<4sI", head, at)
        at += 8
        if tag == b"data" and rate:
            return rate, at
        if tag == b"fmt " and at + 16 <= len(head):
            coding, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", head, at)
            if (coding, channels, bits) != (1, 1, 16):
                raise EngineError("The voice's endpoint sends a WAV file that is not 16-bit mono PCM.")
        at += size + (size & 1)
    if len(head) > HEAD_BYTES:
        raise EngineError("The voice's endpoint sends a WAV file without samples.")
    return None
