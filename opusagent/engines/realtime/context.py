"""What a Realtime session remembers, against what the flow wants its model to know.

A session keeps the audio of everything that was said; a flow gives its model a bounded chat.  Items stand for
messages: the caller's audio for the words it was understood as, an answer for as much of it as was heard.  What
stands for no message is taken out, and what nothing stands for is put in as text.  The rule: after difference() was
done the session knows what the chat says and no more, whatever became of it before, also if it is a new one.
"""
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ...usage import pictures_of, words_of

ALIKE = 40                      # characters that two texts have in common if they are the same: chats are clipped

USER, ASSISTANT, CALL, RESULT = "user", "assistant", "function_call", "function_call_output"


@dataclass(slots=True, eq=False)
class Item:
    """One of a session's, or one that a chat wants it to have."""

    id: str
    kind: str                   # USER, ASSISTANT, CALL or RESULT
    text: str = ""              # what it says, as far as that is known; of the last two, what it is called by
    group: int = 0              # items of one utterance stand for one message together; 0 is in no group
    content: dict[str, Any] = field(default_factory=dict)       # of one that is to be made


def instructions(messages: Iterable[dict]) -> str:
    return "\n\n".join(message["content"] for message in messages if message["role"] == "system")


def functions(tools: Iterable[dict]) -> list[dict]:
    """A chat's tools as a session has them."""
    return [{"type": "function", **tool["function"]} for tool in tools]


def wanted(messages: Iterable[dict]) -> list[Item]:
    """A chat as items, in order."""
    items = []
    for message in messages:
        role, text = message["role"], words_of(message)
        if role == "tool":
            called = message["tool_call_id"]
            items.append(Item("", RESULT, called, content={"type": RESULT, "call_id": called, "output": text}))
        elif role != "system":
            parts = [{"type": "input_text" if role == USER else "output_text", "text": text}] if text else []
            parts += [{"type": "input_image", "image_url": url} for url in pictures_of(message)]
            if parts:
                items.append(Item("", role, text, content={"type": "message", "role": role, "content": parts}))
            for call in message.get("tool_calls", ()):
                function = call["function"]
                items.append(Item("", CALL, call["id"], content={"type": CALL, "call_id": call["id"], **function}))
    return items


def difference(items: list[Item], messages: Iterable[dict]) -> tuple[list[Item], list[Item]]:
    """(items that must go, what the session has then in its order): those without an `id` have to be made.

    Later items count first: what was said last is what the answer is about.
    """
    asked = wanted(messages)
    standing: dict[int, list[Item]] = {}        # place of a message -> the items that stand for it
    gone, last = [], len(asked)
    for item in reversed(items):
        at = next((at for at in range(min(last, len(asked) - 1), -1, -1)
                   if fits(item, asked[at])
                   and (at < last or item.group and standing[at][0].group == item.group)), None)
        if at is None:
            gone.append(item)
        else:
            standing.setdefault(at, []).insert(0, item)
            last = at
    after = []
    for at, item in enumerate(asked):
        after += standing.get(at, [item])
    return gone, after


def fits(item: Item, message: Item) -> bool:
    """Whether an item stands for a message; one whose words are not known stands for any of its kind."""
    if item.kind != message.kind:
        return False
    if item.kind in (CALL, RESULT):
        return item.text == message.text
    ours, theirs = " ".join(item.text.split()), " ".join(message.text.split())
    return ours[:ALIKE] in theirs or bool(theirs) and ours.startswith(theirs[:ALIKE])
