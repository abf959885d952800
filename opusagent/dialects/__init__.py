"""Wire dialects: how one kind of peer spells a call over WebSocket.  One file each, found in TABLE.

A dialect turns messages into events and the agent's wishes into messages.  It knows no socket, no clock and no
conversation.  What several share is in `payload` (audio inside JSON), `channels` (binary audio), `wav` and `keeping`
(what is kept of a call for another process).  The rule: whatever a peer sends, out come events or a ProtocolError, and
nothing else; what it does not know it ignores and counts.

A class in TABLE is made from the query of the peer's URL (ProtocolError(400) if that is wrong), and has
    name, rate      rate: Hz of the audio, both ways
    opcode          of an outgoing audio message; all other outgoing messages are text
    lead_ms         how far ahead of the listener the platform may be fed
    max_message     bytes, the largest message it takes
    ignored         messages that led to nothing so far
    outbox          (opcode, message) that the protocol itself wants sent now, before anything it was asked for; whoever
                    sends them clears the list
    open() -> Start | None                      what the open socket alone says
    receive(opcode, payload) -> event | None    `payload` may die with the call
    audio(pcm) -> bytes                         one message of int16 samples
    mark(name), clear(), stop() -> bytes | None     "tell me when this has been heard", "drop what you have buffered",
                                                "we hang up"; None where the dialect has no message for it
It is a Dialect, whose fields say what else may be so of a platform.  What is None there it may have (one in TEXTUAL has
no audio, and other events and messages: see relay.py):
    media_in        a MediaIn: which messages of the caller's are audio and nothing else; they pass without receive().
                    It holds until the next message that is another one; None: at the moment none is.  And
    media_out       a MediaOut: how the frames look that follow one of a reply, which pass without audio(); see
                    unattended.py.  `held` may change meanwhile, and nothing else that it depends on; None: none passes
    held            whether the platform asks us, at the moment, to send no audio; what is due waits.  Each frame looks
                    at it, so only a dialect whose platform may do that has it
    came(opcode, payload) -> str | None         the call that a connection's first messages say it is of, where its
                                                platform comes back with the same over a new connection; "": it
                                                begins; None while they do not say; or the field `token`; and
                                                `resumable`: it may
    come_back()                                 what was kept of a call's state is filled in; a new connection follows
    resumes(payload) -> str                     the call that a connection's first message wants to go on with, or "";
                                                and `resumable`: ours may; paused(): see resumption.py
    transfer(target) -> bytes                   "hand the caller over", to +49... or sip:...
    send_digits(digits) -> bytes                "press these keys", 0123456789*#; where there is none, they are sounded
    tell(news, *details)                        what happens in the conversation, one of the NEWS; what the platform
                                                wants to hear of it goes into the outbox

A class in CALLERS is the platform's side of the same, for our simulated callers.  It is made from the split URL that
is dialled, is a PlatformSide and has `name`, `rate`, `call_id`; its messages are (opcode, bytes):
    open() -> list of messages                  how it begins
    audio(pcm) -> message | None                None while the platform sends none
    dtmf(digit) -> message
    mark(name), stop() -> message | None        "this has been played, or cleared", "the caller hangs up"; None where
                                                the platform is silent about it
    again() -> list of messages                 and how it begins anew, over a connection that follows one that broke;
                                                None of a platform that does not come back
    receive(opcode, payload) -> Audio | Mark (to be given back when played) | Clear | Pressed | Stop | None
    patience_ms                                 without an answer for so long, the caller goes on; None: for 12 s
    outbox                                      as above, where the platform's protocol has answers of its own
"""
from collections import deque
from dataclasses import dataclass, field

import orjson

from .. import ProtocolError
from .._fastpath import Room

TEXT, BINARY = 1, 2         # RFC 6455 opcodes
REMEMBERED_MARKS = 256      # a peer that echoes none costs no more memory than this

# ---- NEWS: what tell() is told, with its details ---------------------------------------------------------------------
SPEECH_STARTED = "SPEECH_STARTED"       # the caller speaks
SPEECH_STOPPED = "SPEECH_STOPPED"       # and has finished
HYPOTHESIS = "HYPOTHESIS"               # text: what it is recognised as so far
RECOGNITION = "RECOGNITION"             # text, confidence (0 to 1): what it was, "" for nothing; from where to where
                                        # in the audio that came, (ms, ms), pre-roll included
REPLYING = "REPLYING"                   # text: what the agent begins to say, as far as it is known
REPLIED = "REPLIED"                     # kind of the reply (flow/dialogue.py), text: all of it has been heard
OVERHEARD = "OVERHEARD"                 # the same of what the other side of a conversation of others has said
RECEIPT = "RECEIPT"                     # dict: the receipt of the turn that is over (metrics.TurnTrace)
FACTS = "FACTS"                         # dict of str: what the conversation came to; stop() follows


@dataclass(frozen=True, slots=True)
class Start:
    """The call exists, audio may follow."""
    call_id: str            # the platform's, "" if it has none
    facts: dict[str, str] = field(default_factory=dict)     # what the platform was told to pass on
    tenant: str = ""        # the platform's account that the call says it is of


@dataclass(slots=True)
class Audio:
    """Caller audio at the dialect's rate.  Each dialect has one, which it uses again and again."""
    pcm: memoryview         # int16; valid until the next receive()


CALLER, AGENT = "caller", "agent"       # the sides of a conversation of others: who called, and whom


@dataclass(slots=True)
class Both:
    """Audio of both sides of a conversation of others, as many samples of each; valid until the next receive()."""
    pcm: memoryview         # int16, whom the flow follows
    other: memoryview       # int16, the other side


@dataclass(frozen=True, slots=True)
class Dtmf:
    digit: str              # one of 0123456789*#ABCD, or several where the platform collects them


@dataclass(frozen=True, slots=True)
class Mark:
    """The platform says: everything before this mark has been played, or, if `cleared`, been thrown away by a clear."""
    name: str
    cleared: bool = False


@dataclass(frozen=True, slots=True)
class Pause:
    """The platform has stopped sending the caller's audio for a while, and says so; or (`over`) sends it again."""
    over: bool = False


# ---- what a client that leads the conversation itself asks of the call -----------------------------------------------
ASK_UPDATE = "ASK_UPDATE"               # take note of the session's settings
ASK_COMMIT = "ASK_COMMIT"               # the caller's turn ends here
ASK_DISCARD = "ASK_DISCARD"             # forget what the caller has said since the last turn
ASK_RESPOND = "ASK_RESPOND"             # request, event_id: say something now
ASK_RECOGNISE = "ASK_RECOGNISE"         # item_id: write down what the audio in that says
ASK_CANCEL = "ASK_CANCEL"               # say nothing more
ASK_TRUNCATED = "ASK_TRUNCATED"         # item_id: the caller has heard the end of that


@dataclass(frozen=True, slots=True)
class Ask:
    """The client wants something done that other platforms leave to us."""
    what: str
    details: dict = field(default_factory=dict)


SENTENCE = 200              # characters of a complaint that are kept


@dataclass(frozen=True, slots=True)
class Complaint:
    """The platform could not do something with what we sent; the call goes on."""
    sentence: str
    code: str = ""          # the platform's own, "" if it has none


@dataclass(frozen=True, slots=True)
class Stop:
    """The other side has ended the call."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Returned:
    """Nobody took the call that the platform was to hand over: it is here still."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Clear:
    """To a caller only: drop what has not been played, and give its marks back."""


@dataclass(frozen=True, slots=True)
class Pressed:
    """To a caller only: press these keys."""
    digits: str


class Dialect:
    """What may be so of a platform, as it is where its dialect does not say otherwise."""

    __slots__ = ()
    platform = ""           # whose credentials its calls show (auth.py), where that is not its name
    protocols: tuple[str, ...] = ()     # subprotocols; the server chooses the first of them that is offered
    token = ""              # the call that its URL says it is of, if its platform comes back with the same
    numbered: int | None = None     # of our last message, where the platform wants them numbered without a gap
    mute = False            # the platform takes no audio: nothing is said, and nobody has to answer
    speaker = ""            # whom the flow follows, CALLER or AGENT, where a conversation of others is listened to
    two_sided = False       # from Start on: both sides of such a conversation come, as Both
    deaf_ms = 0             # how long after a clear the platform may drop what it is sent, too; what is due waits
    patient = False         # audio that the peer has not taken yet waits instead of being dropped
    message_ms = 20         # the most audio in one message of a reply, where the platform counts messages
    detector: object = ()   # None while the peer sends audio when it likes, and what does not come is no silence
    parting_ms = 0          # how long after stop() the platform may end the call itself, before we close
    hangs_up = False        # the stream's address wants the call ended by the platform's REST interface, too
    rate = 8000             # Hz, before anything is known of it
    audio = media_in = media_out = held = None      # what is None a dialect may have: see above
    came = come_back = resumes = transfer = send_digits = tell = None


class PlatformSide:
    """The same of a simulated platform."""

    __slots__ = ()
    protocols: tuple[str, ...] = ()     # subprotocols that it offers
    outbox: list[tuple[int, bytes]] = []    # stays empty: who puts something in has one of its own
    patience_ms = again = None


class Audible(Room):
    """The memory behind a dialect's Audio, with the readers that fill it, and the Audio itself.

    `encoding`: PCMU, PCMA, L16 (little-endian) or L16BE, which is how samples come.
    """

    __slots__ = ()

    def __new__(cls, samples: int, encoding: str = "L16"):
        return super().__new__(cls, Audio(memoryview(b"").cast("h")), samples, encoding)


class Marks:
    """The marks sent and not yet echoed, in order.

    After a clear the platform gives all of them back at once, and nothing in the echo says that they were not heard.
    One that had been played, its echo still on the way when we cleared, counts as cleared: better forgotten than
    wrongly believed to be heard.
    """

    __slots__ = ("_waiting",)

    def __init__(self):
        self._waiting: deque[Mark] = deque((), REMEMBERED_MARKS)

    def sent(self, name: str) -> None:
        self._waiting.append(Mark(name))

    def clear(self) -> None:
        self._waiting = deque([Mark(mark.name, cleared=True) for mark in self._waiting], REMEMBERED_MARKS)

    def echoed(self, name: str) -> Mark | None:
        """The oldest mark of that name; None if none is waiting."""
        for i, mark in enumerate(self._waiting):
            if mark.name == name:
                del self._waiting[i]
                return mark
        return None

    def forget_cleared(self) -> None:
        """The platform has cleared, and will not echo what was in it."""
        self._waiting = deque([mark for mark in self._waiting if not mark.cleared], REMEMBERED_MARKS)


def parse(payload, dialect: str) -> dict:
    """A text message as a JSON object; ProtocolError(1007) for anything else."""
    try:
        message = orjson.loads(payload)
    except orjson.JSONDecodeError:
        raise ProtocolError(1007, f"{dialect}: a message is not JSON") from None
    if not isinstance(message, dict):
        raise ProtocolError(1007, f"{dialect}: a message is not a JSON object")
    return message


def text_of(value) -> str:
    """A text or a whole number as text; "" for anything else."""
    return str(value) if type(value) in (str, int) else ""


def number_of(value) -> int | None:
    """A whole number of up to 15 digits, sent as text or as a number; None if it is neither."""
    text = text_of(value)
    return int(text) if text.isdecimal() and len(text) <= 15 else None


def digit_of(value) -> str | None:
    """A DTMF digit, sent as text or as a number; None if it is neither."""
    text = text_of(value).upper()
    return text if len(text) == 1 and text in "0123456789*#ABCD" else None


def digits_of(value) -> str:
    """DTMF digits that were collected, at most 64 of them; "" if there is anything else among them."""
    text = text_of(value).upper()
    return text[:64] if all(digit in "0123456789*#ABCD" for digit in text) else ""


def facts_of(value) -> dict[str, str]:
    """A JSON object as facts: strings as they are, numbers and truth values in JSON's spelling, the rest left out."""
    if not isinstance(value, dict):
        return {}
    return {name: fact if isinstance(fact, str) else orjson.dumps(fact).decode()
            for name, fact in value.items() if isinstance(fact, str | int | float)}


from .asterisk import Asterisk, AsteriskCaller      # noqa: E402  (a dialect imports the events above)
from .audiocodes import AudioCodes      # noqa: E402
from .audiocodes_caller import AudioCodesCaller     # noqa: E402
from .audiohook import AudioHook            # noqa: E402
from .audiohook_caller import AudioHookCaller       # noqa: E402
from .audiosocket import AudioSocket, AudioSocketCaller     # noqa: E402
from .freeswitch import FreeSwitch, FreeSwitchCaller    # noqa: E402
from .jambonz import Jambonz, JambonzCaller     # noqa: E402
from .pcm import Pcm, PcmCaller             # noqa: E402
from .plivo import Plivo, PlivoCaller       # noqa: E402
from .realtime import OpenAIRealtime, OpenAIRealtimeCaller      # noqa: E402
from .relay import TwilioRelay, TwilioRelayCaller, Words     # noqa: E402, F401
from .telnyx import Telnyx, TelnyxCaller    # noqa: E402
from .twilio import Twilio, TwilioCaller    # noqa: E402
from .vonage import Vonage, VonageCaller    # noqa: E402

ROWS = (
    (Pcm, PcmCaller),
    (Twilio, TwilioCaller),
    (Telnyx, TelnyxCaller),
    (Plivo, PlivoCaller),
    (Vonage, VonageCaller),
    (Asterisk, AsteriskCaller),
    (Jambonz, JambonzCaller),
    (FreeSwitch, FreeSwitchCaller),
    (AudioCodes, AudioCodesCaller),
    (AudioHook, AudioHookCaller),
    (OpenAIRealtime, OpenAIRealtimeCaller),
)
TABLE = {dialect.name: dialect for dialect, _ in ROWS}
BARE = {AudioSocket.name: AudioSocket}          # without a request: their connection is audiosocket.py's,
BARE_CALLERS = {AudioSocketCaller.name: AudioSocketCaller}      # and their caller's bareline.py's
TEXTUAL = {TwilioRelay.name: TwilioRelay}       # without audio: their session is relay.py's,
TEXT_CALLERS = {TwilioRelayCaller.name: TwilioRelayCaller}      # and their caller texting.py's
DIALECTS = TABLE | TEXTUAL              # all that calls may come in, by WebSocket
SPOKEN = DIALECTS | BARE                # ... and all
CALLERS = {caller.name: caller for _, caller in ROWS}


def dialect_of(path: str) -> str:
    """The dialect that the path of a request names; "" where it is none of a call's."""
    if path == "/v1/realtime":
        return OpenAIRealtime.name
    parts = path.split("/")
    return parts[2] if len(parts) > 2 and parts[1] == "ws" else ""
