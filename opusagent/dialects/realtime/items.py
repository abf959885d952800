"""The items of a conversation: what was said, by whom, and what became of it.

It sends nothing.  The rules: there are never more than MOST items, nor more than MOST_TEXT characters in them and
MOST_PICTURED of pictures, and what is forgotten first is the oldest; audio is kept until it is recognised.
"""
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .settings import LONGEST_TEXT, Fault

MOST = 256                      # items that are kept
MOST_TEXT = 400_000             # characters of all of them together
LONGEST_AUDIO = 60              # seconds of it in one part of an item,
MOST_UNHEARD = 120              # ... and of all that waits to be recognised,
MOST_SOUNDING = 64              # in so many items
MOST_PICTURED = 4 << 20         # characters of base64,
LARGEST_PICTURE = 2 << 20       # ... and of one: more would be read for too long, while others speak
PICTURE = "input_image"
BEFORE_PICTURE = re.compile(r"data:image/(png|jpeg|webp|gif);base64,")
BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
DETAILS = (None, "auto", "low", "high")
USER_PARTS = ("input_text", "input_audio", PICTURE)
PARTS = {"user": USER_PARTS, "system": ("input_text",), "assistant": ("output_text", "output_audio", "text", "audio")}
COMPLETED, IN_PROGRESS, INCOMPLETE = "completed", "in_progress", "incomplete"


Decode = Callable[[object, str], "tuple[np.ndarray, int] | None"]       # see recorded.reader


@dataclass(slots=True, eq=False)
class Sound:
    """Audio of the caller's in an item, until it is known what it says."""

    part: int                           # which of the item's
    pcm: np.ndarray                     # int16
    rate: int                           # Hz

    @property
    def seconds(self) -> float:
        return len(self.pcm) / self.rate


@dataclass(slots=True)
class Item:
    """One entry.  What several texts of a client's message come to is one text."""

    id: str
    kind: str                           # message, function_call, function_call_output
    role: str = ""                      # of a message: user, system, assistant
    part: str = ""                      # of a message: the type of its content
    text: str | None = ""               # or transcript; None: not recognised yet
    parts: list[list] = field(default_factory=list)     # [type, text] of each, if a client has made it
    sounds: list[Sound] = field(default_factory=list)
    status: str = COMPLETED
    heard: str | None = None            # what the caller heard of it, if that is known to be less than all
    audio_ms: int = 0                   # of its audio
    spans: tuple = ()                   # (text, from ms, to ms) of its audio
    pictures: int = 0                   # that came with it
    images: tuple[dict, ...] = ()       # those that are still here, as a chat completion takes them: url, detail
    opened: bool = False                # it has its part
    call_id: str = ""                   # of the two others
    name: str = ""
    arguments: str = ""
    output: str = ""

    @property
    def size(self) -> int:
        return len(self.text or "") + len(self.arguments) + len(self.output)

    def wire(self) -> dict:
        """As the client sees it."""
        shown = {"id": self.id, "object": "realtime.item", "type": self.kind, "status": self.status}
        if self.kind == "function_call":
            return shown | {"call_id": self.call_id, "name": self.name, "arguments": self.arguments}
        if self.kind == "function_call_output":
            return shown | {"call_id": self.call_id, "output": self.output}
        parts = self.parts or ([(self.part, self.text)] if self.opened and not self.pictures else [])
        content = [{"type": kind, text_field(kind): text} for kind, text in parts]
        return shown | {"role": self.role, "content": content + [{"type": PICTURE}] * self.pictures}

    def is_told(self, sound: Sound, text: str) -> None:
        """What a sound of it says."""
        self.parts[sound.part][1] = text
        self.sounds.remove(sound)
        self.read()

    def read(self) -> None:
        """Its text is known when that of all its parts is."""
        texts = [text for _, text in self.parts]
        self.text = None if None in texts else "\n".join(filter(None, texts))

    def truncate(self, ms: int) -> None:
        """It was heard for so long: its text ends there, at a word."""
        said = []
        for text, begins, ends in self.spans or ((self.text or "", 0, self.audio_ms),):
            share = (ms - begins) / max(1, ends - begins)
            words = text.split()
            said += words if share >= 1 else words[:max(0, int(share * len(words)))]
        self.text = self.heard = " ".join(said)
        self.parts = []
        self.audio_ms = ms
        self.spans = ((self.text, 0, ms),)


@dataclass(slots=True)
class Items:
    """All that are kept, in the conversation's order."""

    order: list[Item] = field(default_factory=list)

    @property
    def unheard(self) -> list[Item]:
        """Those with sounds."""
        return [item for item in self.order if item.sounds]

    def find(self, name) -> Item | None:
        return next((item for item in self.order if item.id == name), None)

    @property
    def last_id(self) -> str | None:
        return self.order[-1].id if self.order else None

    def before(self, item: Item) -> str | None:
        """The id of the one before it."""
        at = self.order.index(item)
        return self.order[at - 1].id if at else None

    def add(self, item: Item, after: str | None = None) -> None:
        """At the end, or behind the item of that id, or first for "root"."""
        if after is None:
            self.order.append(item)
        else:
            self.order.insert(0 if after == "root" else self.order.index(self.find(after)) + 1, item)
        while len(self.order) > 1 and (len(self.order) > MOST or sum(one.size for one in self.order) > MOST_TEXT):
            del self.order[0 if self.order[0] is not item else 1]
        if item.images:
            self._forget_pictures()

    def _forget_pictures(self) -> None:
        left = MOST_PICTURED
        for item in reversed(self.order):
            left -= sum(len(image["url"]) for image in item.images)
            if left < 0:
                item.images = ()


def text_field(kind: str) -> str:
    """What the words of a part of this type are called."""
    return "transcript" if kind.endswith("audio") else "text"


def logprobs(text: str, confidence: float) -> list[dict]:
    """A recogniser is sure of an utterance, not of its tokens: they are one."""
    return [{"token": text, "logprob": math.log(confidence), "bytes": list(text.encode())}
            ] if text and confidence > 0 else []


def read_item(value, name: str, decode: Decode, path: str = "item") -> Item | Fault:
    """A client's item; `name` is its id where it brings none.  `decode` reads audio."""
    if not isinstance(value, dict):
        return Fault("invalid_type", f"{path} must be an object.", path)
    given = value.get("id")
    if given is not None and not (isinstance(given, str) and 0 < len(given) <= 128):
        return Fault("invalid_value", f"{path}.id must be a name of 1 to 128 characters.", f"{path}.id")
    read = READ.get(value.get("type")) if isinstance(value.get("type"), str) else None
    if read is None:
        return Fault("invalid_value", f"{path}.type must be one of {', '.join(READ)}.", f"{path}.type")
    return read(value, given or name, decode, path)


def _message(value: dict, name: str, decode: Decode, path: str) -> Item | Fault:
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or role not in PARTS:
        return Fault("invalid_value", f"{path}.role must be one of {', '.join(PARTS)}.", f"{path}.role")
    if not isinstance(content, list) or not content or len(content) > 64:
        return Fault("invalid_value", f"{path}.content must be a list of 1 to 64 parts.", f"{path}.content")
    item, images = Item(name, "message", role, opened=True), []
    for i, part in enumerate(content):
        kind, place = part.get("type") if isinstance(part, dict) else None, f"{path}.content[{i}]"
        if kind not in PARTS[role]:
            return Fault("invalid_value", f"{place}.type must be one of {', '.join(PARTS[role])} here.",
                         f"{place}.type")
        if fault := _picture(part, place) if kind == PICTURE else _said(item, part, kind, decode, place):
            return fault
        images += [{"url": part["image_url"], "detail": part.get("detail") or "auto"}] if kind == PICTURE else []
    item.part = item.parts[0][0] if item.parts else "input_text"
    item.read()
    item.pictures, item.images = len(images), tuple(images)
    return item


def _said(item: Item, part: dict, kind: str, decode: Decode, path: str) -> Fault | None:
    """A part of words, or of audio, which may have its words beside it."""
    name = text_field(kind)
    text, audio = part.get(name), part.get("audio") if kind.endswith("audio") else None
    read = decode(audio, item.role) if audio not in (None, "") else ()
    if read is None:
        return Fault("invalid_value", f"{path}.audio must be base64 of samples in the session's format, at most "
                     f"{LONGEST_AUDIO} s of them.", f"{path}.audio")
    told = isinstance(text, str) and len(text) <= LONGEST_TEXT
    if not (told or read and text is None and item.role == "user"):
        return Fault("invalid_value", f"{path}.{name} must be a text of at most {LONGEST_TEXT} characters.",
                     f"{path}.{name}")
    if read:
        sound = Sound(len(item.parts), *read)
        item.audio_ms += round(sound.seconds * 1000)
        item.sounds += [sound] if item.role == "user" else []
    left = LONGEST_TEXT - sum(len(said or "") for _, said in item.parts)
    item.parts.append([{"audio": "output_audio", "text": "output_text"}.get(kind, kind), text and text[:max(0, left)]])
    return None


def is_picture(url: str) -> bool:
    before = BEFORE_PICTURE.match(url)
    data = url[before.end():].rstrip("=") if before else ""
    return bool(data) and data.isascii() and not data.encode().translate(None, BASE64)


def _picture(part: dict, path: str) -> Fault | None:
    url = part.get("image_url")
    if not isinstance(url, str) or len(url) > LARGEST_PICTURE or not is_picture(url):
        return Fault("invalid_value", f"{path}.image_url must be a picture of at most {LARGEST_PICTURE} characters, as "
                     "data:image/png;base64,...; jpeg, webp and gif are taken, too.", f"{path}.image_url")
    if part.get("detail") not in DETAILS:
        return Fault("invalid_value", f"{path}.detail must be auto, low or high.", f"{path}.detail")
    return None


def _text(value: dict, fields: tuple[str, ...], path: str) -> Fault | None:
    for name in fields:
        if not isinstance(value.get(name), str) or len(value[name]) > LONGEST_TEXT:
            return Fault("invalid_value", f"{path}.{name} must be a text of at most {LONGEST_TEXT} characters.",
                         f"{path}.{name}")
    return None


def _function_call(value: dict, name: str, decode: Decode, path: str) -> Item | Fault:
    fields = {"call_id": "", **value}
    return _text(fields, ("call_id", "name", "arguments"), path) or Item(
        name, "function_call", call_id=fields["call_id"], name=value["name"], arguments=value["arguments"])


def _function_output(value: dict, name: str, decode: Decode, path: str) -> Item | Fault:
    return _text(value, ("call_id", "output"), path) or Item(
        name, "function_call_output", call_id=value["call_id"], output=value["output"])


READ = {"message": _message, "function_call": _function_call, "function_call_output": _function_output}
