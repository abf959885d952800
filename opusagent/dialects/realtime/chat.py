"""A conversation of the Realtime protocol as a chat for a language model, and its tools as functions of the chat.

A picture stands in it by its item's id, under "pictures"; pictured() puts it there for the model, so that a chat stays
small wherever it is kept.
The rule: what the caller did not hear is not in it, and neither is what nobody has recognised yet.
"""
from .items import Item, Items

LOST = "(There was a picture here, which is not kept any more.)"
SPOKEN = "What you answer is spoken to a caller: plain words, no markup, no lists."


def chat(items: list[Item], instructions: str, spoken: bool, latest: str | None = None) -> tuple[dict, ...]:
    """The messages; `latest` are words of the user's that are in no item yet."""
    system = "\n\n".join(filter(None, (instructions, SPOKEN if spoken else "")))
    messages: list[dict] = [{"role": "system", "content": system}] if system else []
    answered = {item.call_id for item in items if item.kind == "function_call_output"}
    for item in items:
        WRITE[item.kind](messages, item, answered)
    if latest:
        messages.append({"role": "user", "content": latest})
    return tuple(messages)


def _message(messages: list[dict], item: Item, answered: set) -> None:
    text = item.text if item.heard is None else item.heard
    if item.pictures > len(item.images):
        text = f"{text or ''} {LOST}".lstrip()
    if item.images:
        messages.append({"role": item.role, "content": text, "pictures": item.id})
    elif text:
        messages.append({"role": item.role, "content": text})


def pictured(messages: tuple[dict, ...], items: Items) -> tuple[dict, ...]:
    """The chat as a model takes it."""
    return tuple(_shown(message, items.find(message["pictures"])) if "pictures" in message else message
                 for message in messages)


def _shown(message: dict, item: Item | None) -> dict:
    if item is None or not item.images:
        return {"role": message["role"], "content": message["content"] or LOST}
    said = [{"type": "text", "text": message["content"]}] if message["content"] else []
    return {"role": message["role"],
            "content": said + [{"type": "image_url", "image_url": image} for image in item.images]}


def _function_call(messages: list[dict], item: Item, answered: set) -> None:
    """Calls side by side are one message; one that was never answered is left out, as no model takes it."""
    if item.call_id not in answered:
        return
    if not messages or "tool_calls" not in messages[-1]:
        messages.append({"role": "assistant", "content": None, "tool_calls": []})
    messages[-1]["tool_calls"].append({"id": item.call_id, "type": "function",
                                       "function": {"name": item.name, "arguments": item.arguments}})


def _function_output(messages: list[dict], item: Item, answered: set) -> None:
    asked = any(call["id"] == item.call_id for message in messages for call in message.get("tool_calls", ()))
    if asked:
        messages.append({"role": "tool", "tool_call_id": item.call_id, "content": item.output})
    else:
        messages.append({"role": "user", "content": item.output})


WRITE = {"message": _message, "function_call": _function_call, "function_call_output": _function_output}


def functions(tools: list[dict], choice) -> tuple[dict, ...]:
    """The tools that may be called now, as a chat completion takes them."""
    if choice == "none":
        return ()
    wanted = choice.get("name") if isinstance(choice, dict) else None
    return tuple({"type": "function", "function": {name: tool[name] for name in ("name", "description", "parameters")
                                                   if tool.get(name) is not None}}
                 for tool in tools if wanted in (None, tool["name"]))


def needs(choice) -> tuple[str, ...]:
    """Whether one of those must be called, as a chat completion is told so: there is but one where it was named."""
    return ("required",) if isinstance(choice, dict) or choice == "required" else ()
