"""What a call in text (relay.py) has in the place of voice and playout: a reply as it is written, sent and spoken.

The rule: what is written goes out in its order and at once, and only the platform knows when it is heard; where it does
not say so, that is estimated from the length of the text.
"""
from ..flow import ANSWERS, Reply
from ..flow.phrasing import KEYS, Plain
from ..flow.signals import is_recording
from .meter import MeteredModel
from .outbound import Outbound
from .pipeline import Stage, Turn, going_on

MS = 1_000_000                  # ns
CHARACTER_NS = 70 * MS          # of speech; most voices are a little faster
BEFORE_NS = 400 * MS            # from the first words sent to the first heard
KEYS_NS = 2_000 * MS            # until the first key is heard; Twilio takes its time
KEY_NS = 250 * MS               # a key; a pause is longer, and there are few
PLAY_NS = 2_000 * MS            # a recording, as far as we know
DOUBT_NS = 10_000 * MS          # beyond the estimate: what the platform says it is still speaking


class Script:
    """What is sent of one reply.  To a Turn it is slot and playout, and nothing ever waits in it."""

    __slots__ = ("out", "dialect", "clock", "interruptible", "preemptible", "text", "pending", "open", "closed",
                 "began", "ends", "plain", "spaced", "wordy", "sounding", "spoken", "since")
    rate_out = 0                            # there are no samples
    queue = ()
    held = False                            # what was sent cannot be held, as a Playout can be

    def __init__(self, out: Outbound, dialect, clock):
        self.out = out
        self.dialect = dialect
        self.clock = clock
        self.begin()

    def begin(self) -> None:
        """Another reply."""
        self.interruptible = self.preemptible = True    # by the caller, and by our own next words
        self.text = ""                      # all that was written
        self.pending = ""                   # of it what is not sent yet
        self.open = False                   # words were sent, and that more of them follow
        self.closed = False                 # its last words were sent
        self.began = self.ends = 0          # ns: between which it is spoken, as far as we know
        self.plain = Plain()                # what a model writes,
        self.spaced = False                 # and whether a sentence of its own begins there
        self.wordy = True                   # it is words only
        self.sounding = False               # the platform says that it is speaking
        self.spoken = 0                     # characters of it that the platform says it has spoken,
        self.since = 0                      # and, ns, when it said so

    def may_be_cut(self, reply: Reply) -> None:
        """Who may interrupt what is written now.  Only we can tell an answer from other words, and cut it off."""
        self.preemptible = reply.interruptible
        self.interruptible = reply.interruptible and reply.interrupt != ANSWERS

    def write(self, text: str, spaced: bool = False) -> None:
        """More of the reply; `spaced`: it begins a sentence of its own."""
        text = text.replace("\n", " ")
        if spaced and self.text and not self.text[-1].isspace():
            text = " " + text
        text = text if self.text else text.lstrip()
        self.text += text
        self.pending += text

    def take(self, piece: str, first: bool) -> bool:
        """More of what a model writes; True if there is something to be heard in it."""
        self.spaced = self.spaced or first
        if words := self.plain.feed(piece):
            self.write(words, self.spaced)
            self.spaced = False
        return bool(words)

    def flush(self, last: bool) -> bool:
        """Sends what was written; True if there was something to be heard in it."""
        if last:
            self.write(self.plain.finish())
        heard = bool(self.pending)
        if not self.closed and (heard or last and self.open):
            if heard:
                self._takes(len(self.pending) * CHARACTER_NS)
            words = self.pending if self.open else self.pending.lstrip()
            self.out.text(self.dialect.text(words, last, self.interruptible, self.preemptible))
            self.pending, self.open, self.closed = "", not last, last
        return heard

    def give_up(self) -> None:
        """What is not sent yet will not be."""
        self.pending, self.plain = "", Plain()
        self.flush(True)

    def _takes(self, ns: int) -> None:
        """What is sent now will be heard for so long, behind what was sent before."""
        now = self.clock()
        self.began = self.began or now
        self.ends = max(self.ends, now + BEFORE_NS) + ns

    def send(self, message: bytes, told: str, ns: int) -> None:
        """Something that is no words, which takes so long; `told` is what is known of it afterwards.  It must not cut
        off the words before it."""
        preemptible, self.preemptible = self.preemptible, False
        self.flush(False)
        self.preemptible, self.wordy = preemptible, False
        self._takes(ns)
        self.out.text(message)
        self.text += f" {told}" if self.text else told

    def said(self, words: str, now: int) -> None:
        """The platform has spoken these; how long the rest takes is estimated anew."""
        words = words.strip()
        if (place := self.text.find(words, self.spoken)) < 0:
            words = " ".join(words.replace(" ", ""))        # keys, as a flow writes them
            place = self.text.find(words, self.spoken)
        if place < 0 or self.ahead(now):
            return          # they are none of this reply's
        self.spoken, self.since = place + len(words), now
        rest = len(self.text) - len(self.pending) - self.spoken
        if self.wordy or not rest:
            self.ends = now + rest * CHARACTER_NS

    def audible(self, now: int) -> bool:
        return now < self.ends or self.sounding and now < self.ends + DOUBT_NS

    def recall(self, pieces: list[str]) -> None:
        """A model has written these, elsewhere: what is a sign for the eye in what follows depends on them."""
        for piece in pieces:
            self.plain.feed(piece)

    @property
    def cut_off(self) -> bool:
        """Our next words end it in its middle, and the platform will not say so."""
        return self.preemptible and (self.sounding or not self.interruptible)

    def ahead(self, now: int) -> bool:
        """Nothing of it can have been heard yet."""
        return not self.began or now < self.began + BEFORE_NS

    def heard(self, now: int) -> str:
        """What can have been heard of it, in whole words."""
        if self.began and not self.audible(now):
            return self.text
        since = self.since or self.began + BEFORE_NS
        share = self.text[:self.spoken + max(0, now - since) // CHARACTER_NS] if self.began else ""
        return max(share.rpartition(" ")[0], self.text[:self.spoken], key=len)

    def heard_until(self, said: str) -> str:
        """The same by what the platform says it had spoken last, which may be the end of it only."""
        said = said.strip()
        place = self.text.find(said, max(0, self.spoken - len(said)))
        return self.text[:place + len(said)] if place >= 0 else self.text[:self.spoken] or said[:len(self.text)]


class Written(Turn):
    """A Turn whose segments are not spoken here, but sent as text."""

    __slots__ = ()

    def _say(self, text: str) -> None:
        self.texts.append(text)
        self._speak(text)

    def _speak(self, text: str) -> None:
        if text.startswith(KEYS):
            return self._press(text)
        if is_recording(text):
            return self._play(self.stage.sounds.get(text))
        self.audible = self.audible or text not in self.stage.filler
        self.stage.playout.write(text, spaced=True)

    def _press(self, text: str) -> None:
        """The platform presses them, and knows our pauses."""
        digits = text.removeprefix(KEYS).replace(" ", "")
        self._send(self.stage.playout.dialect.send_digits(digits), text, KEYS_NS + len(digits) * KEY_NS)

    def _play(self, recording) -> None:
        """The platform fetches it, and does not say how long it takes."""
        if recording is None or not recording.url:
            self.error, self.broken = f"There is no `url` to play {recording and recording.name} from.", False
            return
        script = self.stage.playout
        self._send(script.dialect.play(recording.url, interruptible=script.interruptible), recording.text, PLAY_NS)

    def _send(self, message: bytes, told: str, ns: int) -> None:
        self.audible = True
        self.stage.playout.send(message, told, ns)
        self.stage.owner.acts(self)

    def _say_segments(self, texts: list[str]) -> None:
        """A model's; the tokens they are made of were sent when they came."""
        self.texts += texts


class Tokens:
    """The language model; every piece of its answer is sent on at once."""

    __slots__ = ("call", "llm", "begun")

    def __init__(self, call, llm, begun: bool = False):
        self.call = call
        self.llm = llm
        self.begun = begun                  # what it says follows what was said of the answer before

    def going_on(self, said: str) -> "Tokens":
        return Tokens(self.call, going_on(self.llm, said), begun=True)

    async def reply(self, messages, *more):
        epoch, first = self.call.epoch, not self.begun
        async for piece in self.llm.reply(messages, *more):
            yield piece
            if isinstance(piece, str) and self.call.epoch == epoch:
                self.call.token(piece, first)
                first = False


def staged(call, tools) -> Stage:
    """What the turns of a call in text are made with."""
    studio, flow, script = call.studio, call.flow, call.script
    filler = " ".join(flow.filler.fill({}))
    llm = MeteredModel(studio.llm, call.usage)
    if call.journal is not None:
        llm = call.journal.watched(llm)
    return Stage(script, script, lambda *prompt: None, Tokens(call, llm), flow.manner, call.server.config.openai,
                 (filler,) if filler else (), call.server.clock, dialogue=call.dialogue, perform=tools.start,
                 owner=call, sounds=flow.sounds)
