"""The agent's reply on its way to the listener: segments in order, cut into 20 ms, each at its time.

Pure: times come in as monotonic ns.  Pacing is against absolute deadlines, so that lateness never adds up.  The rule:
what was sent is counted in samples of the reply, and what was heard is an estimate from the pacing clock, corrected
by what the platform tells.
"""
from collections import deque

import numpy as np

from .._fastpath import Past
from . import wording

FRAME_MS = 20
MS = 1_000_000                  # ns
FADE_MS = 4                     # down and up again, where the voice is late in mid-segment: no click
MS_PER_CHARACTER = 65           # of speech: how long a segment is, until its end is known
KEPT_MS = 1_000                 # of what went out, besides the lead: it can be said once more
MOST_LEAD_MS = 500              # ... of that
RESUME_MS = 60                  # within which the level is up again, once it was stopped


class Segment:
    """A stretch of speech: whole from the start (a prompt), or growing in a ring of shared memory."""

    __slots__ = ("text", "pcm", "lead", "pause_ms", "supplied", "read", "written", "start", "done", "ends", "source",
                 "keys")

    def __init__(self, text: str, pcm, lead: int = 0, pause_ms: int = 0, growing: bool = False, ends=()):
        self.text = text
        self.pcm = np.asarray(pcm)      # int16 at the wire's rate: all of it, or the ring it grows in
        self.lead = lead                # samples before its first voiced window
        self.pause_ms = pause_ms        # silence between it and the next one
        self.supplied = not growing     # there is something of it
        self.start = 0                  # counter of its first sample
        self.read = 0                   # counter of the next sample to play
        self.written = 0 if growing else len(self.pcm)      # counter after the last sample there is
        self.done = not growing         # no more will come
        self.ends = ends                # samples of it after which each word of the text ends; () if no voice told
        self.source = None              # who makes it, if that is not the voice: it is told what was played
        self.keys = ""                  # what the platform is to press as it begins

    @property
    def finished(self) -> bool:
        return self.done and self.read == self.written

    @property
    def length(self) -> int | None:
        """Samples of all of it; None while that is not known."""
        return self.written - self.start if self.done else None

    def words(self, rate: int) -> np.ndarray:
        """Samples of it after which each word of the text ends; worked out from the sound where no voice told."""
        if len(self.ends):
            return np.asarray(self.ends)
        length = self.length
        if length is None:
            length = max(self.written - self.start, len(self.text) * MS_PER_CHARACTER * rate // 1000)
        kept = max(self.start, self.written - len(self.pcm))
        pcm = self.pcm[np.arange(kept, self.written) % max(1, len(self.pcm))]
        if kept > self.start:
            return wording.proportional(self.text, length)      # its beginning is overwritten
        return wording.estimated(self.text, pcm, rate, length)

    def supply(self, start: int, written: int, done: bool) -> None:
        """The voice has written samples start..written (counters of the ring)."""
        if not self.supplied:
            self.supplied, self.start, self.read = True, start, start
        self.written, self.done = written, done

    def take_into(self, dst: np.ndarray) -> int:
        """Move as many samples as there are into `dst`; how many that was."""
        count = min(len(dst), self.written - self.read)
        at = self.read % len(self.pcm) if count else 0
        first = min(count, len(self.pcm) - at)
        dst[:first] = self.pcm[at:at + first]
        dst[first:count] = self.pcm[:count - first]
        self.read += count
        return count


class Playout:
    """One call's.  `begin` starts a reply, `push` adds segments, `pop` gives what is due."""

    __slots__ = ("rate", "size", "most", "lead", "queue", "sent", "underruns", "_frame", "_filled", "origin", "lag",
                 "silence", "places", "_marks", "_gain", "_target", "_step", "last", "_faded", "_gap", "kept",
                 "_ends", "_again", "_held", "words", "_pressed")

    def __init__(self, rate: int, lead_ms: int = 0, message_ms: int = FRAME_MS):
        self.rate = rate                            # Hz on the wire
        self.size = rate * FRAME_MS // 1000         # samples of a frame; what goes out is whole frames
        self.most = rate * message_ms // 1000       # samples that go out together, if there are so many
        self.lead = lead_ms * MS                    # how far ahead of the listener the platform is fed
        self.queue: deque[Segment] = deque()
        self.sent = 0                               # samples of the reply that went out
        self.underruns = 0                          # times the voice was late in mid-reply, and a pause was heard
        self._frame = np.zeros(self.most, np.int16)     # the frames being filled, and handed out
        self._filled = 0                            # samples of it
        self.origin: int | None = None              # ns: when sample 0 of the reply is due; None: nothing went out
        self.lag = 0                                # ns: how much later than due the platform says it plays
        self.silence = 0                            # samples of silence before the next segment
        self.places: list[tuple[Segment, int]] = []     # each segment begun, and where in the reply it begins
        self._marks: list[int] = []                 # ends of segments since take_marks()
        self._gain = self._target = 1.0
        self._step = 0.0                            # change of the gain per sample
        self.last = 0                               # the last sample that went out, before the gain
        self._faded = False                         # the voice was late: what it says next is faded in
        self._gap = False                           # nothing has gone out since it was late; that is counted
        kept = KEPT_MS + min(lead_ms, MOST_LEAD_MS)
        self.kept = Past(rate * kept // 1000)       # what went out last, as it was spoken
        self._ends: list[int] = []                  # of the segments that were given to take_marks()
        self.words = Segment.words                  # (segment, rate): where its words end; a journal wants to know
        self._again: Segment | None = None          # what is said once more, before anything else
        self._held: int | None = None               # samples that were heard when it was held; None: it is not
        self._pressed: list[str] = []               # keys of the segments that were begun since take_keys()

    def begin(self) -> None:
        """A new reply: nothing of the old one is left."""
        self.queue.clear()
        self.sent = self._filled = self.silence = self.lag = self.underruns = 0
        self.origin = None
        self.places.clear()
        self._marks.clear()
        self._gain = self._target = 1.0
        self.last, self._faded, self._gap = 0, False, False
        self._ends.clear()
        self._pressed.clear()
        self._again = self._held = None

    def push(self, segment: Segment) -> None:
        self.queue.append(segment)

    def interject(self, segment: Segment) -> bool:
        """Before what has not begun; False, and nothing is done, where the next segment has."""
        if self.queue:
            front = self.queue[0]
            if front.read != front.start:
                return False
            if self.places and self.places[-1][0] is front:
                self.places.pop()              # it was only waited for
        self.queue.appendleft(segment)
        return True

    def audible(self, now: int) -> bool:
        """Whether something that was sent has not been heard yet."""
        return self.heard(now) < self.sent

    @property
    def quiet_ns(self) -> int:
        """How long after the reply's first sample its first voiced window begins."""
        return self.places[0][0].lead * 1_000_000_000 // self.rate if self.places else 0

    @property
    def due(self) -> int:
        """ns: when the next frame goes out; 0 where that hangs on more than time, or nothing is left."""
        return 0 if self.origin is None or self.spent or self._held is not None else self._due()

    def pop(self, now: int) -> np.ndarray | None:
        """The next message, 20 ms or as much as goes out together, if it is due, else None.

        Good until the next pop().
        """
        if self.spent or self._held is not None or self.origin is not None and now < self._due():
            return None
        if self.origin is not None and not self._filled and self._again is None:
            if not self.silence:
                if self._whole(1):
                    self._set_off(now)
                    self._gap = False
                    return self.next_whole()
            else:
                self.silence = max(0, self.silence - self._kept_waiting(now))
        self._fill()
        count = self._ready(now)
        late = not count
        if late:
            count = self._fade_out(now)
        if not count:
            return None
        self._set_off(now)
        self._gap = late
        self.last = int(self._frame[count - 1])
        self.kept.push(self._frame[:count])
        frames, rest = self._with_gain(self._frame[:count]), self._filled - count
        if rest > 0:
            frames = frames.copy()
            self._frame[:rest] = self._frame[count:self._filled]
        self._filled = max(0, rest)
        self.sent += count
        return frames

    def next_whole(self) -> np.ndarray:
        """A frame from the midst of a segment, where it lies, which is nearly every one."""
        segment = self.queue[0]
        at = segment.read % len(segment.pcm)
        frame = segment.pcm[at:at + self.size]
        segment.read += self.size
        self.sent += self.size
        self.last = int(frame[-1])
        self.kept.push(frame)
        return frame

    def _whole(self, most: int) -> int:
        """How many frames, at most so many, lie in one piece in the midst of the segment and are sent as they are."""
        size, segment = self.size, self.queue[0]
        if size != self.most or self._gain != 1.0 or self._target != 1.0 or self._faded:
            return 0
        if not self.places or self.places[-1][0] is not segment:
            return 0
        room = len(segment.pcm)
        in_one_piece = (room - segment.read % room) // size if room else 0
        return max(0, min(most, (segment.written - segment.read - 1) // size, in_one_piece))

    def ahead(self, most: int) -> tuple[Segment, int, int] | None:
        """What follows without anything to decide, for a Stretch: of this segment so many frames, at most `most`, and
        when the reply's first sample was due, ns.  None where there is no such frame."""
        if self.origin is None or self.held or self._again is not None or self._gap or not self.queue:
            return None
        if self._filled or self.silence:
            return None
        frames = self._whole(most)
        return (self.queue[0], self.origin, frames) if frames > 0 else None

    def _ready(self, now: int) -> int:
        """How many samples, whole frames, go out now: as many as go together, or what there is if that is all of the
        reply, its beginning, or more than the listener can wait for."""
        filled = self._filled
        if filled == self.most:
            return filled
        if not self.queue and self._again is None:  # the reply's last samples
            count = -(-filled // self.size) * self.size
            self._frame[filled:count] = 0
            return count
        runs_dry = self.origin is None or now >= self._due() + self.lead - FRAME_MS * MS
        return filled // self.size * self.size if runs_dry else 0

    def _fade_out(self, now: int) -> int:
        """The listener has heard all there is of a segment that is not over: it ends at nothing, and goes on from
        nothing.  How many samples, whole frames, go out for that: 0 where it is not so, or has been done.  What the
        samples are does not matter: a call that is replayed has none."""
        filled, frame = self._filled, self._frame
        last = int(frame[filled - 1]) if filled else self.last
        speaking = bool(self.queue) and self.queue[0].read > self.queue[0].start
        if self._gap or not speaking or self.origin is None or now < self._due() + self.lead:
            return 0
        count, fade = (filled // self.size + 1) * self.size, self.rate * FADE_MS // 1000
        frame[filled:count] = 0
        if count - filled >= fade:
            frame[filled:filled + fade] = last * np.linspace(1, 0, fade)
        else:
            frame[filled - fade:filled] = frame[filled - fade:filled] * np.linspace(1, 0, fade)
        self._filled = count
        self._faded = self._gap = True
        self.underruns += 1
        return count

    def _kept_waiting(self, now: int) -> int:
        """Samples of silence that the listener has heard already because nothing came."""
        waited = now - self.origin - self.sent * 1_000_000_000 // self.rate
        return max(0, waited) * self.rate // 1_000_000_000

    def _due(self) -> int:
        return self.origin + self.sent * 1_000_000_000 // self.rate - self.lead

    def _set_off(self, now: int) -> None:
        """The clock starts with the first frame, and goes on from now when the voice has kept the listener waiting."""
        heard_by = self.sent * 1_000_000_000 // self.rate
        if self.origin is None:
            self.origin = now
        elif now > self.origin + heard_by + FRAME_MS * MS:
            self.origin = now - heard_by
            self.underruns += not self._gap

    def _fill(self) -> None:
        while self._filled < self.most and not (self._again is None and not self.queue):
            if self._again is not None:
                self._filled += self._again.take_into(self._frame[self._filled:])
                self._again = None if self._again.finished else self._again
                continue
            if self.silence:
                count = min(self.silence, self.most - self._filled)
                self._frame[self._filled:self._filled + count] = 0
                self.silence -= count
                self._filled += count
                continue
            segment = self.queue[0]
            if not self.places or self.places[-1][0] is not segment:
                self.places.append((segment, self.sent + self._filled))
                self._pressed += [segment.keys] if segment.keys else []
            count = segment.take_into(self._frame[self._filled:])
            if self._faded and count:
                self._fade_in(self._frame[self._filled:self._filled + count])
            self._filled += count
            if segment.finished:
                self.queue.popleft()
                said = segment.read > segment.start     # no pause after what could not be spoken
                self.silence = segment.pause_ms * self.rate // 1000 if said else 0
                self._marks.append(self.sent + self._filled)
            elif not count:
                return

    def _fade_in(self, pcm: np.ndarray) -> None:
        fade = min(len(pcm), self.rate * FADE_MS // 1000)
        pcm[:fade] = pcm[:fade] * np.linspace(0, 1, fade)
        self._faded = False

    def clear(self) -> None:
        """Barge-in: nothing more goes out.  What was sent and heard is still told until the next begin()."""
        self.queue.clear()
        self._filled = 0
        self._again = None
        self._marks.clear()

    # ---- a stop that may prove false ----

    def hold(self, now: int) -> None:
        """Nothing goes out for now, and what was sent but not heard is lost: the platform was told to drop it."""
        self._held = self.heard(now)

    @property
    def held(self) -> bool:
        return self._held is not None

    def go_on(self, now: int, earlier: int) -> None:
        """From where it was heard, or at most about `earlier` samples before, at the beginning of a word."""
        heard, self._held = self._held, None
        begin = max(0, self.sent - len(self.kept), self._word_before(heard, earlier))
        sent = self.kept.last(self.sent - begin)
        self.kept.take_back(self.sent - begin)
        again = np.concatenate((sent, self._frame[:self._filled]))
        self._again = Segment("", again) if len(again) else None
        self._marks += [end for end in self._ends if end > begin]
        self.sent, self._filled = begin, 0
        self.origin = now - begin * 1_000_000_000 // self.rate
        self.last, self._faded, self._gap, self._gain = 0, False, False, 0.0
        self.gain(1.0, RESUME_MS)

    def _word_before(self, heard: int, earlier: int) -> int:
        """Where the last word begins that does so at least `earlier` before `heard`, or a segment in between."""
        for segment, begins in reversed(self.places):
            if begins > heard - earlier:
                if heard - 2 * earlier <= begins <= heard:
                    return begins
                continue
            starts = [0, *self.words(segment, self.rate)[:-1]]
            return max(begins + int(start) for start in starts if start <= heard - earlier - begins)
        return 0

    # ---- what the listener has heard ----

    def heard(self, now: int) -> int:
        """Samples of the reply that the listener has heard."""
        if self._held is not None:
            return self._held
        if self.origin is None:
            return 0
        return max(0, min(self.sent, (now - self.origin - self.lag) * self.rate // 1_000_000_000))

    def heard_of(self, segment: Segment, now: int) -> int:
        """... of one segment of it."""
        for i, (begun, place) in enumerate(self.places):
            if begun is segment:
                end = self.places[i + 1][1] if i + 1 < len(self.places) else self.sent
                return max(0, min(self.heard(now), end, place + segment.written - segment.start) - place)
        return 0

    def playing(self, now: int) -> bool:
        """True while something is queued, or sent and not yet heard."""
        return not self.spent or self.held or self.heard(now) < self.sent

    def reached(self, position: int, now: int) -> None:
        """The platform says that everything before `position` has been heard by now: pacing stays as it is, the
        estimate of what was heard follows.  The word's own way back to us makes it an upper bound of the lag."""
        if self.origin is not None and self._held is None and 0 <= position <= self.sent:
            self.lag = max(0, now - self.origin - position * 1_000_000_000 // self.rate)

    def behind(self, ns: int) -> None:
        """The listener is still hearing what was sent before this reply: all of it is heard so much later."""
        self.lag = ns

    def unheard_ns(self, now: int) -> int:
        """How long the listener will be hearing what was sent."""
        return (self.sent - self.heard(now)) * 1_000_000_000 // self.rate

    @property
    def spent(self) -> bool:
        """Nothing waits to be sent."""
        return not self.queue and not self._filled and self._again is None

    def spans(self) -> list[tuple[str, int, int]]:
        """(text, from ms, to ms) of the segments that were begun, as far as they were sent."""
        ends = [begins for _, begins in self.places[1:]] + [self.sent]
        return [(segment.text, begins * 1000 // self.rate, min(end, self.sent) * 1000 // self.rate)
                for (segment, begins), end in zip(self.places, ends)]

    @property
    def place(self) -> tuple[int, ...]:
        """Where it stands, for Slot.note(): samples sent, origin (-1: nothing went out), segments begun, the next
        sample to play of the last of them, samples of silence before the next one, lag.  What has got no further than
        into the frame counts as not begun."""
        begun, sent = len(self.places), self.sent
        while begun > 1 and self.places[begun - 1][1] >= sent:
            begun -= 1
        silence, read = self.silence, max(0, self.places[-1][0].read - self._filled) if begun else 0
        if begun < len(self.places):
            segment, begins = self.places[begun - 1]
            read = min(segment.start + sent - begins, segment.written)
            silence = self.places[begun][1] - max(sent, begins + segment.written - segment.start)
        return sent, -1 if self.origin is None else self.origin, begun, read, silence, self.lag

    def take_marks(self) -> list[int]:
        """Where segments ended since this was last asked: positions to ask the platform about."""
        if self._again is not None:
            return []                               # they lie in what is said once more
        marks, self._marks = self._marks, []
        self._ends += [mark for mark in marks if mark not in self._ends]
        return marks

    def take_keys(self) -> list[str]:
        """What the platform is to press now."""
        pressed, self._pressed = self._pressed, []
        return pressed

    def heard_text(self, now: int) -> str:
        """The text of what was heard; the segment being heard is cut after its last word that was heard to the end."""
        heard, texts = self.heard(now), []
        for segment, begins in self.places:
            length = segment.length
            if length is not None and heard >= begins + length:
                texts.append(segment.text if length else "")        # "": the voice had no sound for it
            elif heard > begins:
                count = int(np.searchsorted(self.words(segment, self.rate), heard - begins, "right"))
                texts.append(" ".join(segment.text.split()[:count]))
        return " ".join(filter(None, texts))

    # ---- level ----

    def gain(self, target: float, ms: int) -> None:
        """Move the level to `target` (1.0 is as spoken) within `ms`, without a step."""
        self._target = target
        self._step = (target - self._gain) / max(1, ms * self.rate // 1000)

    def _with_gain(self, pcm: np.ndarray) -> np.ndarray:
        if self._gain == self._target == 1.0:
            return pcm
        ramp = self._gain + self._step * np.arange(1, len(pcm) + 1)
        ramp = np.minimum(ramp, self._target) if self._step > 0 else np.maximum(ramp, self._target)
        self._gain = float(ramp[-1])
        return (pcm * ramp).astype(np.int16)
