"""The items of a conversation: what was said, by whom, and what became of it.

It sends nothing.  The rules: there are never more than MOST items, nor more than MOST_TEXT characters in them and
MOST_PICTURED of pictures, and what is forgotten first is the oldest; audio itself is not kept.
"""
import math
import re
from dataclasses import dataclass, field

from .settings import LONGEST_TEXT, Fault

MOST = 256                      # items that are kept
MOST_TEXT = 400_000             # characters of all of them together
MOST_PICTURED = 4 << 20         # characters of base64,
LARGEST_PICTURE = 2 << 20       # ... and of one: more would be read for too long, while others speak
PICTURE = "input_image"
BEFORE_PICTURE = re.compile(r"data:image/(png|jpeg|webp|gif);base64,")
BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
DETAILS = (None, "auto", "low", "high")
USER_PARTS = ("input_text", "input_audio", PICTURE)
PARTS = {"user": USER_PARTS, "system": ("input_text",), "assistant": ("output_text", "output_audio", "text", "audio")}
COMPLETED, IN_PROGRESS, INCOMPLETE = "completed", "in_progress", "incomplete"


@dataclass(slots=True)
class Item:
    """One entry.  A message has one part: what several texts of a client's message come to is one text."""

    id: str
    kind: str                           # message, function_call, function_call_output
    role: str = ""                      # of a message: user, system, assistant
    part: str = ""                      # of a message: the type of its content
    text: str | None = ""               # or transcript; None: not recognised yet
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
        field_name = "transcript" if self.part.endswith("audio") else "text"
        said = self.opened and (self.text != "" or not self.pictures)
        content = [{"type": self.part, field_name: self.text}] if said else []
        return shown | {"role": self.role, "content": content + [{"type": PICTURE}] * self.pictures}

    def truncate(self, ms: int) -> None:
        """It was heard for so long: its text ends there, at a word."""
        said = []
        for text, begins, ends in self.spans or ((self.text or "", 0, self.audio_ms),):
            share = (ms - begins) / max(1, ends - begins)
            words = text.split()
            said += words if share >= 1 else words[:max(0, int(share * len(words)))]
        self.text = self.heard = " ".join(said)
        self.audio_ms = ms
        self.spans = ((self.text, 0, ms),)


@dataclass(slots=True)
class Items:
    """All that are kept, in the conversation's order."""

    order: list[Item] = field(default_factory=list)

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


def logprobs(text: str, confidence: float) -> list[dict]:
    """A recogniser is sure of an utterance, not of its tokens: they are one."""
    return [{"token": text, "logprob": math.log(confidence), "bytes": list(text.encode())}
            ] if text and confidence > 0 else []


def read_item(value, name: str, path: str = "item") -> Item | Fault:
    """A client's item; `name` is its id where it brings none."""
    if not isinstance(value, dict):
        return Fault("invalid_type", f"{path} must be an object.", path)
    given = value.get("id")
    if given is not None and not (isinstance(given, str) and 0 < len(given) <= 128):
        return Fault("invalid_value", f"{path}.id must be a name of 1 to 128 characters.", f"{path}.id")
    read = READ.get(value.get("type")) if isinstance(value.get("type"), str) else None
    if read is None:
        return Fault("invalid_value", f"{path}.type must be one of {', '.join(READ)}.", f"{path}.type")
    return read(value, given or name, path)


def _message(value: dict, name: str, path: str) -> Item | Fault:
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or role not in PARTS:
        return Fault("invalid_value", f"{path}.role must be one of {', '.join(PARTS)}.", f"{path}.role")
    if not isinstance(content, list) or not content or len(content) > 64:
        return Fault("invalid_value", f"{path}.content must be a list of 1 to 64 parts.", f"{path}.content")
    texts, images = [], []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in PARTS[role]:
            return Fault("invalid_value", f"{path}.content[{i}].type must be one of {', '.join(PARTS[role])} here.",
                         f"{path}.content[{i}].type")
        if kind == PICTURE:
            images.append(part)
            if fault := _picture(part, f"{path}.content[{i}]"):
                return fault
            continue
        field_name = "transcript" if kind.endswith("audio") else "text"
        text = part.get(field_name)
        if not isinstance(text, str) or len(text) > LONGEST_TEXT:
            return Fault("invalid_value", f"{path}.content[{i}].{field_name} must be a text of at most {LONGEST_TEXT} "
                         "characters; audio comes by input_audio_buffer.append.", f"{path}.content[{i}].{field_name}")
        texts.append(text)
    part = next((part["type"] for part in content if part["type"] != PICTURE), "input_text")
    part = {"audio": "output_audio", "text": "output_text"}.get(part, part)
    return Item(name, "message", role, part, "\n".join(texts)[:LONGEST_TEXT], opened=True, pictures=len(images),
                images=tuple({"url": image["image_url"], "detail": image.get("detail") or "auto"} for image in images))


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


def _function_call(value: dict, name: str, path: str) -> Item | Fault:
    fields = {"call_id": "", **value}
    return _text(fields, ("call_id", "name", "arguments"), path) or Item(
        name, "function_call", call_id=fields["call_id"], name=value["name"], arguments=value["arguments"])


def _function_output(value: dict, name: str, path: str) -> Item | Fault:
    return _text(value, ("call_id", "output"), path) or Item(
        name, "function_call_output", call_id=value["call_id"], output=value["output"])


READ = {"message": _message, "function_call": _function_call, "function_call_output": _function_output}
