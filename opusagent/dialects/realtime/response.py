"""A response of the Realtime protocol from response.created to response.done: one table, and the events of each step.

It knows neither audio formats nor a call: what is said, how long its audio is and how it ended come in, events go out
through `emit`.  The rule: whatever is opened is closed again, in the reverse order, however the response ends.

    NONE --create--> EMPTY --speak--> SPEAKING --call, finish--> (the message is closed) EMPTY or NONE
"""
from collections.abc import Callable

from .items import COMPLETED, IN_PROGRESS, INCOMPLETE, Item

# ---- states, and steps: what may follow in each ----------------------------------------------------------------------
NONE, EMPTY, SPEAKING = "NONE", "EMPTY", "SPEAKING"
CREATE, SPEAK, CALL, FINISH = "CREATE", "SPEAK", "CALL", "FINISH"

TRANSITIONS = {
    NONE: {CREATE: EMPTY},
    EMPTY: {SPEAK: SPEAKING, CALL: EMPTY, FINISH: NONE},
    SPEAKING: {SPEAK: SPEAKING, CALL: EMPTY, FINISH: NONE},
}

MS_PER_TOKEN = 50               # of audio that is spoken; what is heard counts half as much
CHARACTERS_PER_TOKEN = 4        # an estimate: the model's own count is not known here


def tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)


class Response:
    """One at a time.  A step that the table does not have in this state is no step: it returns False."""

    __slots__ = ("state", "id", "request", "settings", "audible", "aside", "output", "message", "asked_text",
                 "asked_ms", "_before", "_emit", "_name", "_add")

    def __init__(self, emit: Callable, name: Callable[[str], str], add: Callable[[Item], str | None]):
        self._emit = emit                       # (type, **fields)
        self._name = name                       # (what) -> an id
        self._add = add                         # (item) -> the id of the item before it; it is in the conversation now
        self.state: str = NONE
        self.id = ""
        self.request: dict = {}                 # response.create's own settings
        self.settings: dict = {}                # those that apply
        self.audible = True                     # it is spoken; otherwise it is text
        self.aside = False                      # no part of the conversation
        self.output: list[Item] = []
        self.message: Item | None = None        # the last one; it lives on when the response is over
        self.asked_text = self.asked_ms = 0     # characters, ms of audio: what it answers
        self._before: str | None = None         # id of the item before the one that is open

    @property
    def active(self) -> bool:
        return self.state != NONE

    def _step(self, step: str) -> bool:
        """Moves on; False where the table has no such step."""
        target = TRANSITIONS[self.state].get(step)
        if target is None:
            return False
        self.state = target
        return True

    # -- the steps -----------------------------------------------------------------------------------------------------

    def create(self, request: dict, settings: dict, text: int = 0, ms: int = 0) -> bool:
        """It begins, with the settings that apply to it; `text` characters and `ms` of audio are what it answers."""
        if not self._step(CREATE):
            return False
        self.id = self._name("resp")
        self.request, self.settings = request, settings
        self.audible = settings["output_modalities"] == ["audio"]
        self.aside = request.get("conversation") == "none"
        self.output, self.message = [], None
        self.asked_text, self.asked_ms = text, ms
        self._emit("response.created", response=self.wire(IN_PROGRESS))
        return True

    def say(self, text: str) -> bool:
        """More of what is said: a transcript, or text."""
        if not text or not self._speak():
            return False
        self.message.text += text
        self._delta("output_audio_transcript" if self.audible else "output_text", text)
        return True

    def audio(self) -> dict | None:
        """The fields of a delta of audio, which is the caller's to write; None if there is nothing to speak in."""
        if not self.audible or not self._speak():
            return None
        return self._where()

    def heard(self, ms: float) -> None:
        """So much audio went out with a delta."""
        self.message.audio_ms += ms

    def call(self, name: str, arguments: str, call_id: str) -> bool:
        """The client is to call a function of its own."""
        if not self._allows(CALL):
            return False
        self._close_message(COMPLETED)
        self._step(CALL)
        item = Item(self._name("item"), "function_call", call_id=call_id or self._name("call"), name=name,
                    status=IN_PROGRESS)
        self._open(item)
        where = {"response_id": self.id, "item_id": item.id, "output_index": len(self.output) - 1,
                 "call_id": item.call_id}
        item.arguments = arguments
        self._emit("response.function_call_arguments.delta", **where, delta=arguments)
        self._emit("response.function_call_arguments.done", **where, name=name, arguments=arguments)
        self._close(item, COMPLETED)
        return True

    def finish(self, status: str = COMPLETED, details: dict | None = None) -> bool:
        """It is over; the item that was open ends with it."""
        if not self._allows(FINISH):
            return False
        self._close_message(COMPLETED if status == COMPLETED else INCOMPLETE)
        self._step(FINISH)
        self._emit("response.done", response=self.wire(status, {"type": status, **details} if details else None))
        return True

    def _allows(self, step: str) -> bool:
        return step in TRANSITIONS[self.state]

    def _speak(self) -> bool:
        """A message is open."""
        opened = self.state == EMPTY
        if not self._step(SPEAK):
            return False
        if opened:
            self.message = Item(self._name("item"), "message", "assistant",
                                "output_audio" if self.audible else "output_text", status=IN_PROGRESS)
            self._open(self.message)
            self.message.opened = True
            self._emit("response.content_part.added", **self._where(), part=self._part(""))
        return True

    # -- items ---------------------------------------------------------------------------------------------------------

    def _open(self, item: Item) -> None:
        self.output.append(item)
        shown = item.wire()
        self._emit("response.output_item.added", response_id=self.id, output_index=len(self.output) - 1, item=shown)
        if not self.aside:
            self._before = self._add(item)
            self._emit("conversation.item.added", previous_item_id=self._before, item=shown)

    def _close_message(self, status: str) -> None:
        if self.state != SPEAKING:
            return
        message, where = self.message, self._where()
        message.audio_ms = round(message.audio_ms)
        if self.audible:
            self._emit("response.output_audio.done", **where)
            self._emit("response.output_audio_transcript.done", **where, transcript=message.text)
        else:
            self._emit("response.output_text.done", **where, text=message.text)
        self._emit("response.content_part.done", **where, part=self._part(message.text))
        self._close(message, status)

    def _close(self, item: Item, status: str) -> None:
        item.status = status
        shown = item.wire()
        if not self.aside:
            self._emit("conversation.item.done", previous_item_id=self._before, item=shown)
        self._emit("response.output_item.done", response_id=self.id, output_index=self.output.index(item), item=shown)

    # -- how it looks --------------------------------------------------------------------------------------------------

    def _where(self) -> dict:
        return {"response_id": self.id, "item_id": self.message.id, "output_index": self.output.index(self.message),
                "content_index": 0}

    def _part(self, text: str) -> dict:
        return {"type": "audio", "transcript": text} if self.audible else {"type": "text", "text": text}

    def _delta(self, kind: str, text: str) -> None:
        self._emit(f"response.{kind}.delta", **self._where(), delta=text)

    def wire(self, status: str, details: dict | None = None) -> dict:
        settings = self.settings
        done = status != IN_PROGRESS
        return {
            "id": self.id, "object": "realtime.response", "status": status, "status_details": details,
            "output": [item.wire() for item in self.output] if done else [],
            "conversation_id": None if self.aside else self._name("conv"),
            "output_modalities": settings["output_modalities"], "max_output_tokens": settings["max_output_tokens"],
            "audio": {"output": {name: settings["audio"]["output"][name] for name in ("format", "voice")}},
            "metadata": self.request.get("metadata"), "usage": self._usage() if done else None,
        }

    def _usage(self) -> dict:
        """An estimate: four characters are a token, and so are 50 ms of our audio and 100 ms of the caller's."""
        said = tokens(sum(item.size for item in self.output))
        spoken = int(sum(item.audio_ms for item in self.output)) // MS_PER_TOKEN
        read, heard = tokens(self.asked_text), self.asked_ms // (2 * MS_PER_TOKEN)
        return {
            "total_tokens": said + spoken + read + heard, "input_tokens": read + heard, "output_tokens": said + spoken,
            "input_token_details": {"text_tokens": read, "audio_tokens": heard, "image_tokens": 0, "cached_tokens": 0,
                                    "cached_tokens_details": {"text_tokens": 0, "audio_tokens": 0, "image_tokens": 0}},
            "output_token_details": {"text_tokens": said, "audio_tokens": spoken},
        }
