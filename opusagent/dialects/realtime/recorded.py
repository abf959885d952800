"""Audio inside the items that a client makes: how it is read, and how the client learns what was said in it.

The rule: what a client says that it said is believed; what it does not say, the call's recogniser does, and until then
no response is begun.
"""
import numpy as np

from ... import ProtocolError
from .. import ASK_RECOGNISE, Ask
from ..payload import CODE_BYTES, L16, PCMA, PCMU, Payload
from . import settings
from .items import LONGEST_AUDIO, MOST_SOUNDING, MOST_UNHEARD, Decode, Item, logprobs
from .settings import LOGPROBS, TRANSCRIPTION, Fault

ENCODINGS = {settings.PCM: L16, settings.PCMU: PCMU, settings.PCMA: PCMA}
KIND = "conversation.item.input_audio_transcription"


def rate_of(audio_format: dict) -> int:
    """Hz."""
    return audio_format.get("rate", 8000)


def reader(dialect) -> Decode:
    """What reads base64 of a role's audio, in the session's format for that side, as int16 samples and their Hz; None
    where it is none, or too much."""
    def decode(audio, role: str):
        speaks = dialect.session["audio"]["input" if role == "user" else "output"]["format"]
        encoding, rate = ENCODINGS[speaks["type"]], rate_of(speaks)
        if not isinstance(audio, str) or len(audio) // 4 * 3 > LONGEST_AUDIO * rate * CODE_BYTES[encoding] + 3:
            return None
        try:
            heard = Payload(encoding).decode(audio, dialect.name)
        except ProtocolError:
            return None
        return None if heard is None else (np.array(heard.pcm), rate)
    return decode


def fault_of(dialect, item: Item) -> Fault | None:
    """Why its audio cannot wait until it is recognised."""
    unheard = [*dialect.items.unheard, item]
    waiting = sum(sound.seconds for each in unheard for sound in each.sounds)
    if item.sounds and (waiting > MOST_UNHEARD or len(unheard) > MOST_SOUNDING):
        return Fault("rate_limit_exceeded", f"No more than {MOST_SOUNDING} items and {MOST_UNHEARD} s of audio may "
                     "wait to be recognised: wait for their transcripts.", "item")
    return None


def take(dialect, item: Item) -> Ask | None:
    """It is the conversation's, and what its sounds say is told, or asked for."""
    for sound in [sound for sound in item.sounds if item.parts[sound.part][1] is not None]:
        text = item.parts[sound.part][1]
        item.is_told(sound, text)
        recognised(dialect, item, sound.part, text, 1.0, sound.seconds)
    return Ask(ASK_RECOGNISE, {"item_id": item.id}) if item.sounds else None


def transcribes(session: dict) -> bool:
    """The client wants to know what is recognised."""
    return session["audio"]["input"]["transcription"] is not None or session["type"] == TRANSCRIPTION


def recognised(dialect, item: Item, part: int, text: str, confidence: float, seconds: float) -> None:
    """What audio of an item says, to a client that wants to know."""
    if not transcribes(dialect.session):
        return
    where = {"item_id": item.id, "content_index": part}
    if LOGPROBS in (dialect.session["include"] or ()):
        where["logprobs"] = logprobs(text, confidence)
    if text:
        dialect.emit(f"{KIND}.delta", **where, delta=text)
    dialect.emit(f"{KIND}.completed", **where, transcript=text, usage={"type": "duration", "seconds": seconds})


def not_recognised(dialect, item: Item, part: int, sentence: str) -> None:
    if transcribes(dialect.session):
        dialect.emit(f"{KIND}.failed", item_id=item.id, content_index=part, error={
            "type": "server_error", "code": "transcription_failed", "message": sentence, "param": None})
