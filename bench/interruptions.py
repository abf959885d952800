"""What is heard over an agent that speaks, and what it does to it: real interruptions, murmurs, noises, its own echo.

It prints nothing.  Murmurs and further interruptions are spoken by synthetic voices, at three pitches and levels; what
was tuned was tuned on the voices TUNED, and the others are there to be believed.  Beside ours, on the same samples,
runs the detector by which Pipecat stops its agent (`theirs`), where Pipecat is installed.  The rule: all is counted in
samples, from the same first voiced window, so nothing depends on how fast the machine is.
"""
import asyncio
import random
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from itertools import accumulate

import numpy as np
from figures import percentile
from recordings import NOISES_DB, RATE, Caller, caller, listen, spoken, through_mulaw, trimmed, voiced_samples
from subjects import Absent

from opusagent.config import Turns
from opusagent.engines.embedded import recogniser as embedded
from opusagent.engines.embedded.espeak import HEAD, INSTALL, rate_of
from opusagent.engines.embedded.voices import Voices
from opusagent.engines.speech import Speech
from opusagent.flow import Dialogue, Flow
from opusagent.speech.acoustics import Echo
from opusagent.speech.audio import FULL_SCALE, VadBatch
from opusagent.speech.turns import (BARGE_IN, DUCK, END_OF_TURN, RAISE, RESTORE, SPEAKING, WEIGH, Settings,
                                    TurnTaking)

SETTINGS = Settings.of(Turns())         # the server's own
PREROLL_MS = Turns().preroll_ms
TUNED = ("slt", "kal16", "en-us", "en-us+f2", "en-us+m3", "en-gb+f4")       # flite's, espeak-ng's
OTHERS = ("rms", "awb", "en-gb", "en-us+f1", "en-us+m2", "en-us+m7")
PITCHES = (1.0, 0.9, 1.1)
LEVELS_DB = (-16, -20, -26)
# What a murmur is, and how espeak-ng is told to say it: both voices spell "mm-hm" letter by letter.
BACKCHANNELS = {"mm-hm": "[[m'mhm]]", "mhm": "[[mh'm]]", "uh-huh": "[[Vh'V]]", "oh": "", "yes": "", "yeah": "",
                "okay": "", "right": "", "sure": "", "I see": "", "good": "", "great": "", "fine": "", "all right": ""}
OFTEN = ("mm-hm", "mhm", "uh-huh", "yeah", "yes")      # the commonest of them
FLITE_SAYS = {"mm-hm": "um hum", "mhm": "um hum", "uh-huh": "uh huh"}
SENTENCES = ("no that is wrong", "wait a minute", "I want to speak to an agent", "stop stop it", "operator", "help me",
             "can you say that again", "excuse me please", "my number is four seven two", "what do you mean",
             "hold on please", "seven of clubs", "that is not what I said", "yes I know that already", "four five",
             "okay but I need something else", "right so what do I do now", "two nine", "listen to me",
             "how much is it")
# By state of the flow: what it expects, and what interrupts anywhere.
SINGLE = {"sure": ("no", "stop", "help", "wait", "agent", "goodbye", "yes"),
          "menu": ("balance", "payments", "stop", "no", "wait", "help", "agent", "goodbye"),
          "card": ("ten of clubs", "seven of hearts", "stop", "no", "wait"),
          "four": ("four five", "two", "nine", "stop", "no", "wait")}
INSIST_MS = (320, 400, 480, 560, 640)
BURST_MS = (30, 60, 120)        # noises: clicks, knocks, a cough's length
ECHO_DELAYS_MS = (50, 150, 250, 400)
ECHO_DB = -20
PEOPLE = ("digits", "commands", "sentences")
WORDED = ("interruptions", "single words", "backchannels")    # the kinds of sounds that are words
VOICES = Voices("slt")


class Oracle:
    """Knows a caller's words when each has ended."""

    def __init__(self, caller: Caller):
        self.words = caller.words

    def listen(self, onset: int) -> None: ...
    def ask(self, at: int) -> None: ...
    def close(self) -> None: ...

    def text(self, at: int) -> str:
        return next((text for end, text in reversed(self.words) if end <= at), "")

    last = text


class Recognised:
    """What the embedded recogniser hears of a caller, asked as the server asks it."""

    def __init__(self, caller: Caller, recogniser: embedded.Recogniser, search: int):
        self.caller, self.recogniser, self.search = caller, recogniser, search
        self.utterance, self.position, self.known = None, 0, ""

    def listen(self, onset: int) -> None:
        """An utterance whose first voiced window is at `onset`."""
        self.close()
        self.utterance = self.recogniser.start(self.search, RATE)
        self.position, self.known = max(0, onset - PREROLL_MS * RATE // 1000), ""

    def ask(self, at: int) -> None:
        self._feed(at)
        self.utterance.hurry()
        self._feed(at)
        self.known = self.utterance.partial()

    def text(self, at: int) -> str:
        if self.utterance is not None:
            self._feed(at)
        return self.known

    def last(self, at: int) -> str:
        self._feed(at)
        text, _ = self.utterance.finish()
        self.utterance = None
        return text

    def close(self) -> None:
        if self.utterance is not None:
            self.utterance.abandon()
            self.utterance = None

    def _feed(self, at: int) -> None:
        for begin in range(self.position, at, RATE // 50):
            self.utterance.feed(self.caller.pcm[begin:min(begin + RATE // 50, at)])
            while self.utterance.step():
                pass
            if self.utterance.due:
                self.known = self.utterance.partial()
        self.position = max(self.position, at)


@dataclass
class Overlap:
    """What a kind of sound does to an agent that speaks; times in ms from the detector's first voiced window."""

    ducked: list[float] = field(default_factory=list)
    stopped: list[float] = field(default_factory=list)
    stopped_from_onset: list[float] = field(default_factory=list)       # from the labelled one
    gone_on: list[float] = field(default_factory=list)      # after how long a stop was taken back
    decided: list[float] = field(default_factory=list)      # all that stood: stopped, or its level back
    raised: int = 0                 # its level was back for a murmur, and it stopped for the words after that
    late: int = 0                   # the agent had its level back, and stopped for what had been said
    count: int = 0

    def add(self, caller: Caller, dialogue: Dialogue, source, answers_only: bool = False,
            settings: Settings = SETTINGS) -> None:
        turns, at, first, known = TurnTaking(RATE, dialogue.expect.waits, settings), 0, None, ""
        turns.agent_starts(answers_only=answers_only)
        self.count += 1
        windows, weighed = iter(caller.windows), False      # as Ear.weighed
        level_back: float | None = None
        for score, samples, quiet in windows:
            events = turns.push(score, samples, quiet)
            at += samples
            first = at if first is None and score >= settings.on else first
            asked = any(event.kind == WEIGH for event in events)
            for event in events:
                if event.kind == DUCK:
                    source.listen(event.position)
            if asked:
                source.ask(at)
            heard = source.text(at)
            if heard != known or asked:
                known, interrupts = heard, dialogue.interrupts(heard)
                weighed = interrupts is not False and (asked or weighed)
                events += turns.weigh(interrupts, dialogue.murmured(heard))
            for event in events:
                since = (at - (first or at)) * 1000 / RATE
                if event.kind == DUCK:
                    self.ducked.append(since)
                if event.kind == RAISE:
                    level_back = since
                if event.kind == RESTORE:
                    late = weighed and dialogue.interrupts(source.last(at))
                    self.decided.append(since if late or level_back is None else level_back)
                    if late:
                        self.late += 1
                        return None
                    first, known, weighed, level_back = None, "", False, None
                if event.kind == BARGE_IN:
                    self.stopped.append(since)
                    self.decided.append(since)
                    self.raised += level_back is not None
                    self.stopped_from_onset.append((at - caller.begins) * 1000 / RATE)
                    return None if turns.meant else self._taken_back(turns, dialogue, source, windows, at)
            if score < settings.off and turns.state == SPEAKING:
                first = None

    def _taken_back(self, turns: TurnTaking, dialogue: Dialogue, source, windows, stopped: int) -> None:
        """What interruption.py does with the rest: a murmur gives the floor back at its first pause, no words do at the
        turn's end, and other words are what the agent stopped for."""
        at = stopped
        for score, samples, quiet in windows:
            events = turns.push(score, samples, quiet)
            at += samples
            over = any(event.kind == END_OF_TURN for event in events)
            interrupts = dialogue.interrupts(source.last(at) if over else source.text(at))
            silent = not turns.speaking and turns.onset is None
            if interrupts:
                return
            if interrupts is False and silent or over:
                self.gone_on.append((at - stopped) * 1000 / RATE)
                return

    def figures(self) -> dict:
        return {"sounds": self.count, "stopped": len(self.stopped) / max(1, self.count),
                "late": self.late / max(1, self.count),
                "for_good": (len(self.stopped) + self.late - len(self.gone_on)) / max(1, self.count),
                "gone_on_p50_ms": percentile(self.gone_on, 50),
                "level_down_p99_ms": percentile(self.ducked, 99), "stop_p50_ms": percentile(self.stopped, 50),
                "stop_p99_ms": percentile(self.stopped, 99), "stop_from_onset_p50_ms":
                percentile(self.stopped_from_onset, 50)}


def sounds(found: list[Caller], batch: VadBatch, voices_each: int) -> dict[str, list[Caller]]:
    """All that may be heard over an agent that speaks, by kind; from each set of voices so many."""
    kinds = {"interruptions": [caller for caller in found if caller.noise is None and caller.kind in PEOPLE]}
    for name, voices in (("the voices tuned on", TUNED[:voices_each]), ("other voices", OTHERS[:voices_each])):
        dice = random.Random(3)
        kinds[f"interruptions, {name}"] = [varied("interruptions", text, voice, number, dice)
                                           for voice in voices for number, text in enumerate(SENTENCES)]
        kinds[f"backchannels, {name}"] = [varied("backchannels", text, voice, number, dice) for voice in voices
                                          for text in BACKCHANNELS for number in range(len(PITCHES))]
        kinds[f"single words, {name}"] = [varied("single words", text, voice, number, dice, state)
                                          for state, texts in SINGLE.items() for voice in voices
                                          for number, text in enumerate(texts)]
    kinds["noises"] = [burst(ms, db, seed) for ms in BURST_MS for db in (-10, -20, -30) for seed in range(5)]
    for sound in (sound for heard in kinds.values() for sound in heard if not sound.windows):
        listen(sound, batch)
    kinds["echo of the agent"] = list(echoes(batch))
    return kinds


def varied(kind: str, text: str, voice: str, number: int, dice: random.Random, state: str = "card") -> Caller:
    """A voice's words, by their number at another pitch (and pace), level and noise."""
    pcm = said(text, voice)
    pitch = PITCHES[number % len(PITCHES)]
    pcm = np.interp(np.arange(0, len(pcm) - 1, pitch), np.arange(len(pcm)), pcm)
    loud = np.sqrt(FULL_SCALE * 10 ** (dice.choice(LEVELS_DB) / 10) / np.mean(pcm[voiced_samples(pcm)] ** 2))
    pcm = np.clip(pcm * loud, -32768, 32767).astype(np.int16)
    return caller(kind, state, spoken(trimmed(pcm), text), NOISES_DB[dice.randrange(len(NOISES_DB))], dice)


def asked(kinds: dict[str, list[Caller]]) -> dict[str, list[Caller]]:
    """Those with words where an answer is expected; of the murmurs the commonest once more."""
    found = {kind: [sound for sound in heard if sound.state != "free"] for kind, heard in kinds.items()
             if kind.startswith(WORDED)}
    return found | {f"{kind}, the commonest": [sound for sound in heard if sound.words[-1][1] in OFTEN]
                    for kind, heard in found.items() if kind.startswith("backchannels")}


def over(heard: list[Caller], flow: Flow, settings: Settings = SETTINGS, answers_only: bool = False,
         recogniser: embedded.Recogniser | None = None) -> Overlap:
    """With the words as they were said, or as the recogniser hears them."""
    overlap = Overlap()
    for sound in heard:
        dialogue = Dialogue(flow)
        dialogue.state = sound.state
        source = Recognised(sound, recogniser, dialogue.overhear) if recogniser else Oracle(sound)
        overlap.add(sound, dialogue, source, answers_only, settings)
        source.close()
    return overlap


def told(heard: list[Caller], flow: Flow) -> tuple[list[float], list[float]]:
    """When the words of each have told what it is, ms from its first voiced window: at the end of the word that does,
    and at the end of the window with which that has been heard.  A rule that waits for words is no sooner."""
    exact, seen = [], []
    for sound in (sound for sound in heard if sound.words):
        dialogue = Dialogue(flow)
        dialogue.state = sound.state
        meant = dialogue.interrupts(sound.words[-1][1])
        end = next(end for end, text in sound.words if dialogue.interrupts(text) == meant)
        windows = accumulate(samples for _, samples, _ in sound.windows)
        for at, found in (end, exact), (next(at for at in windows if at >= end), seen):
            found.append(max(0, at - first_window(sound)) * 1000 / RATE)
    return exact, seen


def decisions(kinds: dict[str, list[Caller]], found: dict[str, Overlap], flow: Flow) -> dict[str, dict]:
    """By kind, and of all together but the echo, which nobody says: after how long a decision that stood was taken
    (stopped, or the level is back), and after how long the words could tell."""
    rows = {kind: [kind] for kind in kinds}
    rows["all but the echo"] = [kind for kind in kinds if not kind.startswith("echo")]
    results = {}
    for name, parts in rows.items():
        decided = [ms for kind in parts for ms in found[kind].decided]
        exact, seen = told([sound for kind in parts for sound in kinds[kind]], flow)
        results[name] = {"decisions": len(decided), "raised_before": sum(found[kind].raised for kind in parts)}
        for prefix, times in (("", decided), ("told_", exact), ("told_window_", seen)):
            results[name] |= {f"{prefix}p50_ms": percentile(times, 50), f"{prefix}p99_ms": percentile(times, 99)}
    return results


def overlaps(kinds: dict[str, list[Caller]], flow: Flow, strict: Flow) -> dict[str, Overlap]:
    """By kind and policy; then, as a curve, by how long a voice must last that nobody knows the words of."""
    results = {}
    for kind, heard in kinds.items():
        results[kind] = over(heard, flow)
        results[f'{kind}, interrupt = "answers"'] = over(heard, strict, answers_only=True)
    for ms in INSIST_MS:
        for kind in kinds:
            if kind.startswith(WORDED):
                results[f"{kind}, insist_ms = {ms}"] = over(kinds[kind], flow, replace(SETTINGS, insist_ms=ms))
    return results


def said(text: str, voice: str) -> np.ndarray:
    """By one of flite's voices, or by espeak-ng's of that name, in phonemes where it would spell the word."""
    pieces: list[np.ndarray] = []
    if voice in ("slt", "kal16", "rms", "awb"):
        VOICES.speak(voice, FLITE_SAYS.get(text, text), RATE, lambda pcm: pieces.append(np.array(pcm)) or True)
        return trimmed(np.concatenate(pieces))
    if shutil.which("espeak-ng") is None:
        raise Absent(INSTALL)
    wav = subprocess.run(["espeak-ng", "-v", voice, "--stdout", BACKCHANNELS.get(text) or text], capture_output=True,
                         check=True).stdout
    speech = Speech(RATE, 1.0, lambda pcm: pieces.append(np.array(pcm)) or True)
    speech.push(np.frombuffer(wav[HEAD:HEAD + (len(wav) - HEAD) // 2 * 2], "<i2"), rate_of(wav[:HEAD], voice))
    speech.finish()
    return trimmed(np.concatenate(pieces))


def burst(ms: int, db: int, seed: int) -> Caller:
    noise = np.random.default_rng(seed).normal(0, 32768 * 10 ** (db / 20) / 3, ms * RATE // 1000)
    fading = noise * np.linspace(1, 0, len(noise))
    return caller("noises", "card", [(np.clip(fading, -32768, 32767).astype(np.int16), "")], None, random.Random(seed))


def echoes(batch: VadBatch):
    """The agent's own sentences, back at ECHO_DB after a delay, with the echo known as the server knows it."""
    for voice in ("slt", "rms"):
        for text in ("Thank you. There is one parcel for you. Which playing card is printed on your parcel slip?",
                     "I am sorry, I did not understand that. Please say the card on your slip."):
            spoke = said(text, voice).astype(np.float64)
            for delay in ECHO_DELAYS_MS:
                sent = np.concatenate([spoke, np.zeros(RATE)]).astype(np.int16)
                back = np.concatenate([np.zeros(delay * 8), spoke * 10 ** (ECHO_DB / 20), np.zeros(RATE)])[:len(sent)]
                back += np.random.default_rng(1).normal(0, 12, len(back))
                sound = Caller("echo", None, "card", through_mulaw(back), [], delay * 8, len(sent))
                listen(sound, batch, Echo(RATE, RATE), sent)
                yield sound


# -- Pipecat -----------------------------------------------------------------------------------------------------------

def theirs(kinds: dict[str, list[Caller]]) -> dict[str, Overlap]:
    """The same sounds through Pipecat's detector with its default settings, whose speech stops an agent of Pipecat's;
    counted from the window that is voiced first in ours.  Raises Absent without Pipecat."""
    try:
        from loguru import logger
        logger.remove()
        from pipecat.audio.vad.silero import SileroVADAnalyzer
        from pipecat.audio.vad.vad_analyzer import VADState
    except ImportError:
        raise Absent("Pipecat is left out: it is not installed; pip install '.[bench]'") from None

    async def stopped_at(sound: Caller) -> int | None:
        detector = SileroVADAnalyzer(sample_rate=RATE)
        detector.set_sample_rate(RATE)
        try:
            for at in range(0, len(sound.pcm), RATE // 50):
                state = await detector.analyze_audio(sound.pcm[at:at + RATE // 50].tobytes())
                if state == VADState.SPEAKING:
                    return at + RATE // 50
        finally:
            await detector.cleanup()
        return None

    async def all_of_them() -> dict[str, Overlap]:
        results: dict[str, Overlap] = {}
        for kind, heard in kinds.items():
            overlap = results[kind] = Overlap(count=len(heard))
            for sound in heard:
                if (at := await stopped_at(sound)) is not None:
                    overlap.stopped.append((at - first_window(sound, at)) * 1000 / RATE)
                    overlap.stopped_from_onset.append((at - sound.begins) * 1000 / RATE)
        return results

    return asyncio.run(all_of_them())


def first_window(sound: Caller, stopped: int = 1 << 60) -> int:
    """Where the first window ends that is speech in our ear, from the caller's first voiced sample on."""
    at = 0
    for score, samples, _ in sound.windows:
        at += samples
        if score >= SETTINGS.on and at > sound.begins:
            break
    return min(at, stopped)
