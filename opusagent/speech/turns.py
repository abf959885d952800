"""Whose turn it is: endpointing and barge-in, as one transition table.

It hears nothing and says nothing: scores of the voice detector come in, events go out, and what the caller's words
come to is told by judge().  The rules:
1. TRANSITIONS is the whole of it: a state changes only by a row of the table, and every event is in a row.
2. Only samples are counted: the same scores and calls at the same positions give the same events.
3. A silence is counted from the last voiced sample, not from where the detector noticed.

    caller  ..#########....#####..........................##..........#########.
    agent   ..................................##########################........
    event     1        2   3    2     4       A       5   6       5   7  8      (A: agent_starts)

1 UTTERANCE_START  2 PAUSE  3 RESUME  4 END_OF_TURN  5 DUCK  6 RESTORE  7 WEIGH  8 BARGE_IN (or RAISE: it said "mm-hm")
"""
from dataclasses import dataclass

from .._fastpath import Calm
from .pace import Pace

PACE = (0.75, 1.5)              # bounds of what a caller's own pauses make of the waits
SWAY = (1.4, 0.75)              # ... and of what the turn model does: what sounds unfinished, what sounds finished
NEVER = 1 << 62                 # samples

# ---- states: who has the floor ---------------------------------------------------------------------------------------
LISTENING = "LISTENING"         # the caller, who has said nothing yet
HEARING = "HEARING"             # the caller, speaking
PAUSED = "PAUSED"               # the caller, silent for a moment: is that all?
REPLYING = "REPLYING"           # the agent, of whom nothing can be heard yet
SPEAKING = "SPEAKING"           # the agent, and the caller may interrupt
OVERLAPPING = "OVERLAPPING"     # the agent, while the caller makes a sound as well: an interruption?
WEIGHING = "WEIGHING"           # the agent, while the caller speaks as well: what do the words say?
MURMURING = "MURMURING"         # the agent, while the caller says "mm-hm", as far as the words are known
RECITING = "RECITING"           # the agent, and it will not be interrupted

# ---- conditions: of the scores and the judgement, or a call by the owner ---------------------------------------------
SPEECH = "SPEECH"
SUSTAINED_SPEECH = "SUSTAINED_SPEECH"
INSISTENT_SPEECH = "INSISTENT_SPEECH"
MEANT = "MEANT"
MURMURED = "MURMURED"
SHORT_SILENCE = "SHORT_SILENCE"
LONG_SILENCE = "LONG_SILENCE"
ENOUGH = "ENOUGH"
NOBODY_SPEAKS = "NOBODY_SPEAKS"
TOO_LONG = "TOO_LONG"
AGENT_STARTS = "AGENT_STARTS"
AGENT_RECITES = "AGENT_RECITES"
AGENT_DONE = "AGENT_DONE"

# ---- events, each with a position in the caller's audio --------------------------------------------------------------
UTTERANCE_START = "UTTERANCE_START"     # of the first voiced window: recognise from (at least 400 ms) before it
PAUSE = "PAUSE"                         # of the last speech: ask the recogniser for its best text, begin to speculate
RESUME = "RESUME"                       # of the first voiced window: the speculation was too early
END_OF_TURN = "END_OF_TURN"             # of the last speech: the reply is the agent's to give
BARGE_IN = "BARGE_IN"                   # of the first voiced window: stop the agent; this is a new utterance
DUCK = "DUCK"                           # of the first voiced window: the agent may be lowered while this is decided
WEIGH = "WEIGH"                         # of the first voiced window: ask the recogniser whether it is an interruption
RAISE = "RAISE"                         # of the first voiced window: raise the agent again, though the voice goes on
RESTORE = "RESTORE"                     # of the last speech: it was nothing, raise the agent again
NO_INPUT = "NO_INPUT"                   # of the moment at which the caller should have spoken: the agent must

TRANSITIONS = {
    LISTENING: {
        SPEECH: (HEARING, UTTERANCE_START),
        NOBODY_SPEAKS: (REPLYING, NO_INPUT),
        AGENT_STARTS: (SPEAKING, None),
        AGENT_RECITES: (RECITING, None),
    },
    HEARING: {
        SHORT_SILENCE: (PAUSED, PAUSE),
        ENOUGH: (REPLYING, END_OF_TURN),
        TOO_LONG: (REPLYING, END_OF_TURN),
        AGENT_STARTS: (SPEAKING, None),
        AGENT_RECITES: (RECITING, None),
    },
    PAUSED: {
        SPEECH: (HEARING, RESUME),
        LONG_SILENCE: (REPLYING, END_OF_TURN),
        AGENT_STARTS: (SPEAKING, None),
        AGENT_RECITES: (RECITING, None),
    },
    REPLYING: {
        SUSTAINED_SPEECH: (HEARING, BARGE_IN),
        AGENT_STARTS: (SPEAKING, None),
        AGENT_RECITES: (RECITING, None),
        AGENT_DONE: (LISTENING, None),
    },
    SPEAKING: {
        SPEECH: (OVERLAPPING, DUCK),
        AGENT_RECITES: (RECITING, None),
        AGENT_DONE: (LISTENING, None),
    },
    OVERLAPPING: {
        SUSTAINED_SPEECH: (WEIGHING, WEIGH),
        SHORT_SILENCE: (SPEAKING, RESTORE),
        AGENT_DONE: (HEARING, UTTERANCE_START),
    },
    WEIGHING: {
        MEANT: (HEARING, BARGE_IN),
        INSISTENT_SPEECH: (HEARING, BARGE_IN),
        MURMURED: (MURMURING, RAISE),
        SHORT_SILENCE: (SPEAKING, RESTORE),
        AGENT_DONE: (HEARING, UTTERANCE_START),
    },
    MURMURING: {
        MEANT: (HEARING, BARGE_IN),
        INSISTENT_SPEECH: (HEARING, BARGE_IN),
        SHORT_SILENCE: (SPEAKING, RESTORE),
        AGENT_DONE: (HEARING, UTTERANCE_START),
    },
    RECITING: {
        SPEECH: (HEARING, UTTERANCE_START),
        AGENT_STARTS: (SPEAKING, None),
        AGENT_DONE: (LISTENING, None),
    },
}

CONDITIONS = {      # what a condition is, and how it is seen; the agent's three are told by the owner
    SPEECH: ("start_ms of speech", lambda t: t.spoken >= t.start),
    SUSTAINED_SPEECH: ("barge_in_ms of speech", lambda t: t.spoken >= t.barge_in),
    INSISTENT_SPEECH: ("insist_ms of speech, unless only an answer may interrupt or the words are none",
                       lambda t: not t.dismissed and min(t.spoken, t.last - (t.onset or 0)) >= t.insist),
    MEANT: ("the words are an interruption", lambda t: t.meant),
    MURMURED: ("the words are a backchannel, so far", lambda t: t.murmured),
    SHORT_SILENCE: ("pause_ms of silence", lambda t: t.onset is None),
    LONG_SILENCE: ("the silence that what was said calls for, and the agent does not recite",
                   lambda t: not t.reciting and t.silence >= t.wait),
    NOBODY_SPEAKS: ("no_input of silence", lambda t: t.silence >= t.no_input),
    ENOUGH: ("what was said calls for no silence at all, and the agent does not recite",
             lambda t: not t.reciting and t.wait == 0),
    TOO_LONG: ("an utterance of max_utterance_ms, and the agent does not recite",
               lambda t: not t.reciting and t.last - t.began >= t.longest),
    AGENT_STARTS: ("the first sample of a reply goes out (while the caller speaks: to keys that were pressed)", None),
    AGENT_RECITES: ("the first sample of a reply that will not be interrupted goes out", None),
    AGENT_DONE: ("all of the reply has been heard, or there is none", None),
}

SEEN = {            # of each state's rows those whose condition is seen here: how, and the row
    state: tuple((CONDITIONS[condition][1], row) for condition, row in rows.items() if CONDITIONS[condition][1])
    for state, rows in TRANSITIONS.items()}

SILENT = {          # conditions that nothing but more silence makes true: from which position on
    LONG_SILENCE: lambda t: NEVER if t.reciting else t.ended + t.wait,
    NOBODY_SPEAKS: lambda t: t.ended + t.no_input,
}
ENDURED = {         # ... of each state's rows
    state: tuple(SILENT[condition] for condition in rows if condition in SILENT)
    for state, rows in TRANSITIONS.items()}


@dataclass(frozen=True, slots=True)
class Event:
    kind: str
    position: int                   # samples since the call's start; never later than the decision


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for the whole call; the silences that end a turn belong to the flow's states."""

    on: float = 0.5                 # score from which silence becomes speech
    off: float = 0.35               # score below which speech becomes silence
    sure: float = 0.9               # score of which a single window counts as start_ms of speech
    lag_ms: int = 128               # speech may have ended at most this long before its last window that is scored so
    start_ms: int = 64              # speech that counts as speech
    pause_ms: int = 96              # silence that counts as a pause, and the least that ends a turn
    barge_in_ms: int = 200          # speech that can take the floor from the agent, if the words say so
    insist_ms: int = 480            # voice that takes it while nothing is known of the words
    run_on_ms: int = 500            # speech that may run on past the end of its turn before it counts again
    max_utterance_ms: int = 30_000
    pace_low: float = 1.0           # bounds of the factor by which the caller's own pauses change the waits
    pace_high: float = 1.0

    @classmethod
    def of(cls, turns) -> "Settings":
        """Those of the configuration's [turns]."""
        return cls(on=turns.threshold, start_ms=turns.start_ms, pause_ms=turns.pause_ms,
                   barge_in_ms=turns.barge_in_ms, insist_ms=turns.insist_ms,
                   **({"pace_low": PACE[0], "pace_high": PACE[1]} if turns.adapt else {}))


class TurnTaking:
    """Turn taking of one call.  Every input returns the events it has caused, in their order.

    `waits` is the current state's: `waits.after(judgement)` and `waits.no_input`, in ms.
    """

    __slots__ = ("state", "calm", "speaking", "onset", "spoken", "last", "ended", "began", "wait", "no_input",
                 "reciting", "meant", "murmured", "dismissed", "on", "off", "sure", "lag", "start", "pause", "barge_in",
                 "insist", "run_on", "longest", "pace", "swayed", "_judgement", "_silent", "_answers_only", "_waits",
                 "_rate")

    def __init__(self, rate: int, waits, settings: Settings = Settings()):
        self._rate = rate
        self.on = settings.on
        self.off = min(settings.off, settings.on)
        self.sure = settings.sure
        self.lag = self._samples(settings.lag_ms)
        self.start = max(self._samples(settings.start_ms), 1)
        self.pause = self._samples(settings.pause_ms)
        self.barge_in = self._samples(settings.barge_in_ms)
        self.insist = self._samples(max(settings.insist_ms, settings.barge_in_ms))
        self.run_on = self._samples(settings.run_on_ms)
        self.longest = self._samples(settings.max_utterance_ms)
        self.state = LISTENING
        self.calm = Calm(min(self.on, self.off))    # samples pushed, and up to where silence need not be
        self.speaking = False       # the last window was speech
        self.onset = None           # where the present stretch of speech began; None: there is none
        self.spoken = 0             # samples of speech in it; a stretch bridges silences shorter than a pause
        self.last = 0               # where its last speech ended
        self.ended = 0              # where that of the last stretch of start_ms did: silences count from here
        self.began = 0              # where the utterance began
        self.reciting = False       # the agent is speaking and will not be interrupted
        self.meant = False          # what is said over the agent is an interruption,
        self.murmured = False       # ... or a backchannel, by its words so far;
        self.dismissed = False      # ... it is none, however long it lasts
        self.swayed = 1.0           # what the turn model makes of the waits
        self._judgement = None      # what the utterance comes to, as it was last told
        self._answers_only = False  # only words can be one
        self._silent = 0            # where the latest pause began
        self.pace = Pace(settings.pace_low, settings.pace_high)
        self.expect(waits)

    def _samples(self, ms: int) -> int:
        return ms * self._rate // 1000

    @property
    def position(self) -> int:
        """Samples pushed; those that the detector has counted itself (see Calm) are among them."""
        return self.calm.position

    @position.setter
    def position(self, samples: int) -> None:
        self.calm.position, self.calm.until = samples, 0

    def hear_from(self, score: float) -> None:
        """From now on silence becomes speech at this score."""
        self.on = score
        self.calm.below = min(score, self.off)

    # ---- inputs ----
    def push(self, score: float, samples: int, quiet: int = 0) -> tuple[Event, ...]:
        """The caller's next window, scored 0 to 1 for speech; the last `quiet` of its samples are not voiced."""
        self.speaking = score >= (self.off if self.speaking else self.on)
        if self.speaking and self.onset is None:
            self.onset, self.spoken = self.calm.position, 0
        self.calm.position = position = self.calm.position + samples
        if self.speaking:
            self.spoken += samples
            if score >= self.sure:
                self.spoken = max(self.spoken, self.start)
            self.last = max(self.last, position - self.lag, self.onset)
            if quiet < samples:
                self.last = position - quiet
            if self.spoken >= self.start:
                self.ended = self.last
        elif self.onset is not None and position - self.last >= self.pause:
            self.onset, self.spoken = None, 0
        return self._settle()

    def expect(self, waits) -> None:
        """A state of the flow is entered: from now on its waits apply, and nothing has been said in it."""
        self.calm.until = 0
        self._waits = waits
        self.no_input = self._samples(waits.no_input)
        self._forget()

    def judge(self, judgement: str) -> tuple[Event, ...]:
        """What the utterance comes to so far (the flow's COMPLETE, INCOMPLETE, FREE, NO_MATCH).

        A wait of 0 ms ends the turn at once, though the caller may still be speaking.
        """
        self._judgement = judgement
        self.wait = self._samples(self._waits.after(judgement, self.pace.factor * self.swayed))
        return self._settle()

    def sway(self, complete: float) -> tuple[Event, ...]:
        """How complete the utterance sounds, 0 to 1: the wait is shortened or lengthened by that, until more is said.

        What the words complete is complete, whatever it sounds like, and no wait is shorter than that.
        """
        self.swayed = SWAY[0] + (SWAY[1] - SWAY[0]) * complete
        return self.judge(self._judgement)

    def weigh(self, interrupts: bool | None, murmured: bool = False) -> tuple[Event, ...]:
        """Whether what is said over the agent is an interruption, by its words so far; None: they do not say.
        `murmured`: they are a whole backchannel."""
        self.meant, self.murmured = interrupts is True, murmured and interrupts is False
        self.dismissed = interrupts is False or interrupts is None and self._answers_only
        return self._settle()

    def agent_starts(self, interruptible: bool = True, answers_only: bool = False) -> tuple[Event, ...]:
        """The agent can be heard from now on; `answers_only`: nothing but words that answer it may interrupt it.

        A caller who speaks while it recites (not interruptible) is heard as ever, but that turn ends, and is
        answered, only when the recital is done: nothing the caller says is lost, and the agent says one thing at once.
        """
        self._answers_only = answers_only
        if interruptible:
            self.reciting = False
        return self._call(AGENT_STARTS if interruptible else AGENT_RECITES)

    def agent_done(self) -> tuple[Event, ...]:
        """The agent has been heard to the end, or will say nothing: the floor is the caller's."""
        self.reciting = False
        return self._call(AGENT_DONE)

    # ---- the table at work ----
    @property
    def silence(self) -> int:
        """Samples since the caller's last speech, or since the floor became the caller's; 0 while it speaks."""
        return 0 if self.speaking else self.position - self.ended

    def _call(self, condition: str) -> tuple[Event, ...]:
        row = TRANSITIONS[self.state].get(condition)
        return (self._move(*row) if row else ()) + self._settle()

    def _settle(self) -> tuple[Event, ...]:
        """Follow the table until no condition of the state holds."""
        events = ()
        while row := self._due():
            events += self._move(*row)
        self.calm.until = self._endured() if self.onset is None and not self.speaking else 0
        return events

    def _endured(self) -> int:
        """The position before which silence changes nothing."""
        return min((reached(self) for reached in ENDURED[self.state]), default=NEVER)

    def _due(self) -> tuple | None:
        for holds, row in SEEN[self.state]:
            if holds(self):
                return row
        return None

    def _move(self, state: str, event: str | None) -> tuple[Event, ...]:
        position = self._place(event)
        if event == RESUME or event == BARGE_IN and self.state == REPLYING:     # a turn that was ended too early, too
            self.pace.paused((self.onset - self._silent) * 1000 / self._rate)
        if event in (PAUSE, END_OF_TURN):
            self._silent = self.ended
        if event in (UTTERANCE_START, BARGE_IN):
            self.began = self.onset
        if event in (UTTERANCE_START, BARGE_IN, RESUME):
            self._forget()
        if event == DUCK:
            self.meant, self.murmured, self.dismissed = False, False, self._answers_only
        if self.state in (HEARING, PAUSED) and state not in (HEARING, PAUSED):
            self._cut()
        if state == RECITING:
            self.reciting = True
        if state == LISTENING:
            self.ended = self.position
        self.state = state
        return (Event(event, position),) if event else ()

    def _place(self, event: str | None) -> int:
        if event in (UTTERANCE_START, BARGE_IN, DUCK, WEIGH, RAISE, RESUME):
            return self.onset
        return self.ended + self.no_input if event == NO_INPUT else self.ended

    def _forget(self) -> None:
        """What is said from here on has not been judged."""
        self._judgement, self.swayed = None, 1.0
        self.wait = self._samples(self._waits.after(None, self.pace.factor))

    def _cut(self) -> None:
        """The turn is over, maybe in the midst of speech: what runs on belongs to it, if it is not too much."""
        self.onset, self.spoken = (self.position, -self.run_on) if self.speaking else (None, 0)


def drawn() -> str:
    """The table as text, for the manual."""
    lines = []
    for state, rows in TRANSITIONS.items():
        for condition, (target, event) in rows.items():
            lines.append(f"{state:<12}{condition:<17}-> {target:<12}{event or ''}".rstrip())
    lines += [f"{condition:<17}{meaning}" for condition, (meaning, _) in CONDITIONS.items()]
    return "\n".join(lines)
