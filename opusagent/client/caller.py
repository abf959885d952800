"""The simulated caller without its telephone: what it hears, when it speaks, and what it measured.

It knows no socket and no time.  The rule: everything is a position in samples on the call's one clock.  Sample p of
either side is at the caller's mouth or ear p / rate seconds after the call began; a frame leaves when its last
sample has been spoken, and the agent's audio is heard in the order of its arrival, never before it arrived.
"""
from collections import deque
from dataclasses import dataclass

import numpy as np

from .. import ConfigError
from ..recording import Tape
from ..speech.audio import VOICED, first_voiced, last_voiced

SAME_SPEECH_MS = 100        # voiced windows closer than this are one stretch of speech
QUIET_MS = 300              # silence after which the agent has finished
LEAVING_MS = 1500           # the same after the last turn
PATIENCE_MS = 12_000        # without an answer for so long, the caller goes on


@dataclass(frozen=True, slots=True)
class Say:
    """One turn of the script."""
    pcm: np.ndarray                     # at the rate of the call
    name: str
    voiced_from: int                    # start of its first voiced window, samples
    voiced_to: int                      # end of its last one
    barge_in_ms: int | None = None      # so long into the agent's speech; None: when the agent has finished

    @classmethod
    def of(cls, pcm: np.ndarray, rate: int, name: str, barge_in_ms: int | None = None) -> "Say":
        """ConfigError where nothing in `pcm` is voiced: such a turn has no end to measure from."""
        start, end = first_voiced(pcm, rate), last_voiced(pcm, rate)
        if start is None or end is None:
            raise ConfigError(f"{name} holds nothing louder than -45 dBFS.")
        return cls(pcm, name, start, end, barge_in_ms)


@dataclass(frozen=True, slots=True)
class Measured:
    """One turn as the caller saw it; positions in samples from the start of the call."""
    index: int
    name: str
    rate: int
    spoke_from: int                     # start of the first voiced window sent
    spoke_to: int                       # end of the last one
    stopped: int | None                 # where the agent, which was speaking at spoke_from, fell silent
    answered: int | None                # start of the first voiced window of the answer, as heard
    answered_to: int | None             # end of the last one
    gave_up: bool = False               # no answer for as long as the caller's patience lasted
    late_from: int = 0                  # by so much the frame with spoke_from left late,
    late_to: int = 0                    # and the one with spoke_to: the caller's fault, not the agent's

    @property
    def end_ms(self) -> float:
        """Where the caller's voice ended, from the start of the call."""
        return self.spoke_to * 1e3 / self.rate

    @property
    def gap_ms(self) -> float | None:
        """Voice-to-voice; negative when the agent did not wait for the end."""
        return None if self.answered is None else (self.answered - self.spoke_to - self.late_to) * 1e3 / self.rate

    @property
    def reaction_ms(self) -> float | None:
        """Barge-in: from the caller's first voiced window to the agent's silence."""
        return None if self.stopped is None else (self.stopped - self.spoke_from - self.late_from) * 1e3 / self.rate


class Ear:
    """What the caller hears: a player that queues what arrives, and a tape of what came out of it."""

    __slots__ = ("rate", "tape", "end", "speech", "clears", "_marks", "_apart")

    def __init__(self, rate: int):
        self.rate = rate
        self.tape = Tape()
        self.end = 0                                    # of what is queued
        self.speech: list[list[int]] = []               # [start, end] of voiced stretches, in order
        self.clears: list[int] = []                     # when the agent took back what was queued
        self._marks: deque[tuple[int, str]] = deque()   # (where it is reached, name)
        self._apart = False                             # the next voice is a new stretch, however close

    def hear(self, now: int, pcm: np.ndarray) -> None:
        """Audio has arrived."""
        start = max(now, self.end)
        self.tape.write(start, pcm)
        self.end = start + len(pcm)
        for at in loud_windows(pcm, self.rate):
            self._voiced(start + at, start + min(at + self.rate // 100, len(pcm)))

    def _voiced(self, start: int, end: int) -> None:
        if self.speech and not self._apart and start - self.speech[-1][1] < SAME_SPEECH_MS * self.rate // 1000:
            self.speech[-1][1] = end
        else:
            self.speech.append([start, end])
        self._apart = False

    def mark(self, now: int, name: str) -> None:
        self._marks.append((max(now, self.end), name))

    def reached(self, now: int) -> list[str]:
        """The marks that have been heard since the last call."""
        names = []
        while self._marks and self._marks[0][0] <= now:
            names.append(self._marks.popleft()[1])
        return names

    def clear(self, now: int) -> list[str]:
        """What is queued is dropped; returns the marks in it, which are told at once, as a telephone platform does."""
        self.tape.cut(now)
        self.end = min(self.end, now)
        self.clears.append(now)
        self._apart = True
        while self.speech and self.speech[-1][0] >= now:
            self.speech.pop()
        if self.speech:
            self.speech[-1][1] = min(self.speech[-1][1], now)
        names = [name for _, name in self._marks]
        self._marks.clear()
        return names

    def speech_from(self, position: int) -> list[int] | None:
        """The first stretch of speech, [start, end], that begins at or after `position`."""
        return next((stretch for stretch in self.speech if stretch[0] >= position), None)

    def silenced_after(self, position: int) -> int | None:
        """Where the speech that was heard at `position` ended, by a clear or by itself; None: there was none."""
        at = next((i for i, (start, end) in enumerate(self.speech) if start <= position < end), None)
        if at is None:
            return None
        end = self.speech[at][1]
        for start, later in self.speech[at + 1:]:
            if start - end >= QUIET_MS * self.rate // 1000 or any(end <= clear <= start for clear in self.clears):
                break
            end = later
        return end


LISTENING, SPEAKING, OVER = "listening", "speaking", "over"


class Script:
    """The caller's turns, spoken one by one as the agent leaves room for them, and measured.

    A turn is finished when the next begins, or the call ends: by then its answer has been heard, or given up on.
    """

    __slots__ = ("says", "ear", "turns", "tape", "phase", "_begun", "_at", "_since", "_patience_ms")

    def __init__(self, says: list[Say], ear: Ear, patience_ms: int = PATIENCE_MS):
        self.says = says
        self.ear = ear
        self.turns: list[Measured] = []     # those that are finished
        self.tape = Tape()                  # as spoken
        self.phase = LISTENING              # to OVER, when it is time to hang up
        self._begun: int | None = None      # where the turn that is not finished began
        self._at = 0                        # samples of it that have been spoken
        self._since = 0                     # where the listening began
        self._patience_ms = patience_ms

    def frame(self, position: int, n: int) -> np.ndarray:
        """What the caller says during the `n` samples from `position` on."""
        pcm = np.zeros(n, np.int16)
        if self.phase is LISTENING and self._may_speak(position):
            self._next(position)
        if self.phase is SPEAKING:
            self._speak(pcm, position)
        self.tape.write(position, pcm)
        return pcm

    def finish(self, position: int) -> None:
        """The turn that is under way ends here: it is measured with what has been heard."""
        if self._begun is not None:
            self.turns.append(self._measure(position))
            self._begun = None

    @property
    def upcoming(self) -> Say | None:
        """The turn that is spoken next."""
        i = len(self.turns) + (self._begun is not None)
        return self.says[i] if i < len(self.says) else None

    def _may_speak(self, position: int) -> bool:
        answer, say = self._answer(), self.upcoming
        if answer is None:
            return self._out_of_patience(position)
        if say is not None and say.barge_in_ms is not None and position - answer[0] >= self._samples(say.barge_in_ms):
            return True
        return position - self.ear.speech[-1][1] >= self._samples(QUIET_MS if say is not None else LEAVING_MS)

    def _next(self, position: int) -> None:
        self.finish(position)
        if len(self.turns) < len(self.says):
            self.phase, self._begun, self._at = SPEAKING, position, 0
        else:
            self.phase = OVER

    def _speak(self, pcm: np.ndarray, position: int) -> None:
        whole = self.says[len(self.turns)].pcm
        part = whole[self._at:self._at + len(pcm)]
        pcm[:len(part)] = part
        self._at += len(part)
        if self._at == len(whole):
            self.phase, self._since = LISTENING, position + len(pcm)

    def _spoke_from(self) -> int:
        return self._begun + self.says[len(self.turns)].voiced_from

    def _answer(self) -> list[int] | None:
        """The begin of the answer that is waited for.  What was being said when we began to speak is none."""
        if self._begun is None:
            return self.ear.speech_from(0)
        stopped = self.ear.silenced_after(self._spoke_from())
        return self.ear.speech_from(self._spoke_from() if stopped is None else stopped)

    def _measure(self, until: int) -> Measured:
        say, ear = self.says[len(self.turns)], self.ear
        answered = answered_to = None
        if (answer := self._answer()) is not None and answer[0] < until:
            begin, whole = ear.tape.read(answer[0], min(answer[1], until)), ear.tape.read(answer[0], until)
            start, end = first_voiced(begin, ear.rate), last_voiced(whole, ear.rate)
            if start is not None and end is not None:
                answered, answered_to = answer[0] + start, answer[0] + end
        return Measured(len(self.turns), say.name, ear.rate, self._spoke_from(), self._begun + say.voiced_to,
                        ear.silenced_after(self._spoke_from()), answered, answered_to,
                        answered is None and self._out_of_patience(until))

    def _out_of_patience(self, position: int) -> bool:
        return self.phase is LISTENING and position - self._since >= self._samples(self._patience_ms)

    def _samples(self, ms: int) -> int:
        return ms * self.ear.rate // 1000


def loud_windows(pcm: np.ndarray, rate: int) -> list[int]:
    """The starts of the 10 ms windows of `pcm` whose mean power is above -45 dBFS; the last may be shorter."""
    n = rate // 100
    whole = len(pcm) // n * n
    power = (pcm[:whole].reshape(-1, n).astype(np.float32) ** 2).mean(axis=1)
    starts = (np.flatnonzero(power > VOICED) * n).tolist()
    if whole < len(pcm) and (pcm[whole:].astype(np.float32) ** 2).mean() > VOICED:
        starts.append(whole)
    return starts
