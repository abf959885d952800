"""What a client does to the conversation's items: each event as a function of the dialect and the message.

The rule: what cannot be done changes nothing, and is an `error` event that says why.
"""
from .. import ASK_TRUNCATED, Ask
from . import recorded
from .items import Item, read_item
from .settings import Fault


def create(dialect, message: dict) -> Ask | None:
    item, items = read_item(message.get("item"), dialect.named("item"), recorded.reader(dialect)), dialect.items
    after = message.get("previous_item_id")
    if not isinstance(item, Fault):
        if items.find(item.id) is not None:
            item = Fault("item_create_item_exists", "There is an item of this id already.", "item.id")
        elif after not in (None, "root") and items.find(after) is None:
            item = Fault("item_create_previous_item_not_found", "There is no such item to follow.", "previous_item_id")
        else:
            item = recorded.fault_of(dialect, item) or item
    if isinstance(item, Fault):
        return dialect.refuse(item)
    items.add(item, after)
    dialect.emit("conversation.item.added", previous_item_id=items.before(item), item=item.wire())
    dialect.emit("conversation.item.done", previous_item_id=items.before(item), item=item.wire())
    return recorded.take(dialect, item)


def find(dialect, message: dict, verb: str) -> Item | None:
    item = dialect.items.find(message.get("item_id"))
    if item is None:
        dialect.refuse(Fault(f"item_{verb}_invalid_item_id", "There is no item of this id.", "item_id"))
    return item


def retrieve(dialect, message: dict) -> None:
    if (item := find(dialect, message, "retrieve")) is not None:
        dialect.emit("conversation.item.retrieved", item=item.wire())


def delete(dialect, message: dict) -> None:
    if (item := find(dialect, message, "delete")) is not None:
        dialect.items.order.remove(item)
        dialect.emit("conversation.item.deleted", item_id=item.id)


def truncate(dialect, message: dict) -> Ask | None:
    if (item := find(dialect, message, "truncate")) is None:
        return None
    ms, has = message.get("audio_end_ms"), int(item.audio_ms)
    if item.part != "output_audio":
        return dialect.refuse(Fault("invalid_value", "Only a message of the agent's audio can be cut.", "item_id"))
    if message.get("content_index", 0) != 0:
        return dialect.refuse(Fault("invalid_value", "An item has one part: content_index is 0.", "content_index"))
    if type(ms) is not int or not 0 <= ms <= has:
        return dialect.refuse(Fault("invalid_value", f"audio_end_ms must be a whole number from 0 to {has}, the "
                                    "milliseconds of its audio.", "audio_end_ms"))
    if dialect.response.active and item is dialect.response.message:
        dialect.finish("cancelled", {"reason": "client_cancelled"})
    item.truncate(ms)
    dialect.emit("conversation.item.truncated", item_id=item.id, content_index=0, audio_end_ms=ms)
    return Ask(ASK_TRUNCATED, {"item_id": item.id})


EDITS = {
    "conversation.item.create": create,
    "conversation.item.retrieve": retrieve,
    "conversation.item.truncate": truncate,
    "conversation.item.delete": delete,
}
