"""Twilio ConversationRelay (<Connect><ConversationRelay>): Twilio recognises and speaks, and both sides send text.

JSON text messages, told apart by `type`.  No audio passes here, so this is a dialect of a session of its own
(calls/relay.py) and stands in TEXTUAL, not in TABLE: whoever looks there for an audio dialect does not find it.
Who speaks, and what has been spoken, is told by `info` where the TwiML says events="speaker-events tokens-played";
what is said and pressed while the agent speaks, where it says reportInputDuringAgentSpeech="any".
Uncertain: the shape of `info`, which calls show and no page describes; whether a `play` cuts off words that may be cut
off, in the reply that it is part of, or is cut off by them (no words before one, and none itself, are sent as such).
The rule: whatever a peer sends, out come events or a ProtocolError; a message that comes at the wrong time, or that
says nothing we know, is ignored and counted.
"""
import itertools
from dataclasses import dataclass
from urllib.parse import SplitResult

import orjson

from .. import ProtocolError
from . import (AGENT, CALLER, FACTS, SENTENCE, TEXT, Complaint, Dialect, Dtmf, PlatformSide, Start, Stop, digit_of,
               facts_of, parse, text_of)

LONGEST = 4_000             # characters that are looked at of what a caller said, or heard
DIGITS = frozenset("0123456789w#*")
END, TRANSFER = "end", "transfer"       # what handoffData says is to be done
SPEAKERS = {"agentSpeaking": AGENT, "clientSpeaking": CALLER}


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the caller said, as Twilio has recognised it."""
    text: str
    last: bool              # False: more of it follows
    language: str = ""      # as in en-US


@dataclass(frozen=True, slots=True)
class Interrupt:
    """The caller has interrupted: Twilio has stopped speaking and thrown away what it had been sent."""
    heard: str              # what it had spoken by then
    ms: int = 0             # of speech


@dataclass(frozen=True, slots=True)
class Speaking:
    """The caller, or the agent, has begun to speak, or (not `on`) stopped."""
    who: str                # CALLER or AGENT
    on: bool


@dataclass(frozen=True, slots=True)
class Spoken:
    """Twilio has spoken these of our words, behind those that it told before."""
    text: str


def joined(before: str, text: str) -> str:
    """What was said before and now; platforms that tell an utterance as it grows say its beginning again."""
    text = " ".join(text.split())
    whole = text if text.lower().startswith(before.lower()) else f"{before} {text}".strip()
    return whole[:LONGEST]


class TwilioRelay(Dialect):
    """Twilio ConversationRelay: text both ways, Twilio recognises and speaks."""

    __slots__ = ("ignored", "outbox", "_live", "_facts")
    name = "twilio-relay"
    platform = "twilio"
    opcode = TEXT
    max_message = 64 << 10
    detector = None                         # no audio comes
    parting_ms = 5_000

    def __init__(self, query: dict[str, str]):
        self.ignored = 0
        self.outbox: list[tuple[int, bytes]] = []
        self._live = False                  # after setup
        self._facts: dict[str, str] = {}    # what the conversation came to, for handoffData

    def open(self) -> None:
        return None

    # -- what comes in -------------------------------------------------------------------------------------------------

    def receive(self, opcode: int, payload) \
            -> Start | Prompt | Dtmf | Interrupt | Speaking | Spoken | Complaint | None:
        if opcode != TEXT:
            raise ProtocolError(1003, "twilio-relay: messages are text")
        message = parse(payload, self.name)
        kind = message.get("type")
        event = self._told(message) if kind == "info" else self._read(kind, message)
        self.ignored += event is None and kind != "info"
        return event

    def _told(self, message: dict) -> Speaking | Spoken | None:
        """What happens, as it happens; some of it is for people who look for faults."""
        name, value = text_of(message.get("name")), message.get("value")
        if name in SPEAKERS and value in ("on", "off") and self._live:
            return Speaking(SPEAKERS[name], value == "on")
        return Spoken(value[:LONGEST]) if name == "tokensPlayed" and isinstance(value, str) and self._live else None

    def _read(self, kind, message: dict) -> Start | Prompt | Dtmf | Interrupt | Complaint | None:
        if kind == "setup" and not self._live:
            self._live = True
            parties = {"caller": text_of(message.get("from")), "callee": text_of(message.get("to")),
                       "direction": text_of(message.get("direction"))}
            known = {name: value for name, value in parties.items() if value}
            return Start(text_of(message.get("callSid")) or text_of(message.get("sessionId")),
                         known | facts_of(message.get("customParameters")), text_of(message.get("accountSid")))
        if kind == "error":
            return Complaint(text_of(message.get("description"))[:SENTENCE])
        if not self._live:
            return None
        if kind == "prompt" and isinstance(message.get("voicePrompt"), str):
            return Prompt(message["voicePrompt"][:LONGEST], message.get("last") is not False,
                          text_of(message.get("lang"))[:20])
        if kind == "dtmf":
            digit = digit_of(message.get("digit"))
            return Dtmf(digit) if digit else None
        if kind == "interrupt":
            ms = text_of(message.get("durationUntilInterruptMs"))
            return Interrupt(text_of(message.get("utteranceUntilInterrupt"))[:LONGEST],
                             int(ms) if ms.isascii() and ms.isdecimal() and len(ms) < 10 else 0)
        return None

    # -- what goes out -------------------------------------------------------------------------------------------------

    @staticmethod
    def text(token: str, last: bool, interruptible: bool = True, preemptible: bool = True) -> bytes:
        """Words to be spoken; `last` ends what is said in one go.  The caller may interrupt them, and what we say
        afterwards may cut them off."""
        return orjson.dumps({"type": "text", "token": token, "last": last, "interruptible": interruptible,
                             "preemptible": preemptible})

    @staticmethod
    def play(source: str, loop: int = 1, interruptible: bool = True) -> bytes:
        """A recording, by its address, so many times; 0: a thousand times.  Words that follow it wait for its end."""
        return orjson.dumps({"type": "play", "source": source, "loop": loop, "interruptible": interruptible,
                             "preemptible": False})

    @staticmethod
    def send_digits(digits: str) -> bytes:
        """Keys pressed to the caller's side, w for half a second of waiting.  ValueError for what is no key."""
        if not digits or not DIGITS.issuperset(digits):
            raise ValueError(f"{digits[:30]!r} are no keys; they are made of 0 to 9, w, # and *")
        return orjson.dumps({"type": "sendDigits", "digits": digits})

    @staticmethod
    def language(tag: str) -> bytes:
        """What is spoken and recognised from now on, as in es-ES."""
        return orjson.dumps({"type": "language", "ttsLanguage": tag, "transcriptionLanguage": tag})

    def tell(self, news: str, *details) -> None:
        if news == FACTS:
            self._facts = dict(details[0])

    def stop(self) -> bytes:
        """The session is over; Twilio asks its `action` address what to do, and tells it this."""
        return self._end({"do": END})

    def transfer(self, target: str) -> bytes:
        return self._end({"do": TRANSFER, "target": target})

    def _end(self, what: dict[str, str]) -> bytes:
        return orjson.dumps({"type": "end", "handoffData": orjson.dumps({**what, "facts": self._facts}).decode()})


@dataclass(frozen=True, slots=True)
class Words:
    """To a caller only: something to be spoken; `last`: that was all of it."""
    text: str
    last: bool


class TwilioRelayCaller(PlatformSide):
    """Twilio's side, for calls in text.  Stricter than Twilio: what it would answer with error 64107 ends the call."""

    __slots__ = ("call_id", "_over")
    name = "twilio-relay"
    _calls = itertools.count(1)

    def __init__(self, url: SplitResult):
        self.call_id = f"CA{next(self._calls):032x}"
        self._over = False

    def open(self) -> list[tuple[int, bytes]]:
        return [self._message("setup", sessionId="VX" + self.call_id[2:], accountSid="AC" + "0" * 32,
                              callSid=self.call_id, customParameters={}, direction="inbound", callStatus="RINGING",
                              **{"from": "+15550100", "to": "+15550199"})]

    @staticmethod
    def _message(kind: str, **content) -> tuple[int, bytes]:
        return TEXT, orjson.dumps({"type": kind, **content})

    def prompt(self, words: str) -> tuple[int, bytes]:
        """What the caller has said."""
        return self._message("prompt", voicePrompt=words, lang="en-US", last=True)

    def interrupt(self, heard: str, ms: int) -> tuple[int, bytes]:
        return self._message("interrupt", utteranceUntilInterrupt=heard, durationUntilInterruptMs=ms)

    def speaking(self, who: str, on: bool) -> tuple[int, bytes]:
        name = next(name for name, each in SPEAKERS.items() if each == who)
        return self._message("info", name=name, value="on" if on else "off")

    def spoken(self, words: str) -> tuple[int, bytes]:
        return self._message("info", name="tokensPlayed", value=words)

    def dtmf(self, digit: str) -> tuple[int, bytes]:
        return self._message("dtmf", digit=digit)

    def receive(self, opcode: int, payload) -> Words | Stop | None:
        message = parse(payload, self.name)
        if opcode != TEXT or self._over:
            raise ProtocolError(1008, "twilio-relay: a binary message, or one after the end")
        match message:
            case {"type": "text", "token": str(token), "last": bool(last)}:
                return Words(token, last)
            case {"type": "play", "source": str()} | {"type": "language", "ttsLanguage": str()}:
                return None
            case {"type": "sendDigits", "digits": str(digits)} if digits and DIGITS.issuperset(digits):
                return None
            case {"type": "end"} if isinstance(message.get("handoffData", ""), str):
                self._over = True
                return Stop("the agent ended the session")
        raise ProtocolError(1008, "twilio-relay: a message that Twilio would not take (its error 64107)")
