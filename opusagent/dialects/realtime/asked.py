"""What a client asks of the agent: that it responds, or does not.  Each event as a function, of dialect and message.

The rule: a request that cannot be done as it stands is not begun, and is an `error` event that says why.
"""
from .. import ASK_CANCEL, ASK_RESPOND, Ask
from .items import Item, read_item
from .recorded import reader
from .settings import REQUEST, TRANSCRIPTION, Fault, check, check_choice, check_tools


def respond(dialect, message: dict) -> Ask | None:
    request = message.get("response")
    request = {} if request is None else request
    if fault := _fault(dialect, request):
        return dialect.refuse(fault)
    dialect.waiting += 1
    return Ask(ASK_RESPOND, {"request": request, "event_id": dialect.client_event or ""})


def _fault(dialect, request) -> Fault | None:
    if fault := check(request, REQUEST, "response") or check_tools(request.get("tools") or [], "response.tools"):
        return fault
    if dialect.session["type"] == TRANSCRIPTION:
        return Fault("invalid_value", "This session transcribes only.", "type")
    applies = dialect.applying(request)
    if fault := check_choice(applies, "response") or dialect.keeps_voice(applies, "response"):
        return fault
    for i, one in enumerate(request.get("input") or ()):
        item = item_of(dialect, one, f"response.input[{i}]")
        if isinstance(item, Fault):
            return item
        if (item.images or item.text is None) and item not in dialect.items.order:
            what = "A picture is" if item.images else "Audio without its transcript is"
            return Fault("unsupported_value", f"{what} the conversation's: create an item of it, and refer to that by "
                         "an item_reference.", f"response.input[{i}].content")
    return None


def item_of(dialect, value, path: str = "") -> Item | Fault:
    """An item of a request's own, or one of the conversation's that it names."""
    if isinstance(value, dict) and value.get("type") == "item_reference":
        found = dialect.items.find(value.get("id"))
        return found or Fault("invalid_value", "There is no item of this id.", f"{path}.id")
    return read_item(value, "", reader(dialect), path)


def cancel(dialect, message: dict) -> Ask | None:
    name, response = message.get("response_id"), dialect.response
    if isinstance(name, str) and any(aside.id == name for aside in dialect.asides):
        return Ask(ASK_CANCEL, {"response_id": name})
    known = response.active and name in (None, response.id) or dialect.waiting and name is None
    if not known:
        return dialect.refuse(Fault("response_cancel_not_active", "There is no such response on its way.",
                                    None if name is None else "response_id"))
    return Ask(ASK_CANCEL)


def clear_output(dialect, message: dict) -> None:
    dialect.refuse(Fault("invalid_value", "output_audio_buffer.clear is for WebRTC and SIP; on a WebSocket the client "
                         "plays, and truncates the item.", "type"))


ASKED = {"response.create": respond, "response.cancel": cancel, "output_audio_buffer.clear": clear_output}
