"""What of a call in the Realtime protocol goes along to another worker, besides what every call has.

What its client was told it is not told again: the messages that were about to go out lie in the snapshot, the slot
counts those that did.  The rule: what a model has said, the client may have read; so it is asked for the rest, and a
function of the client's is never called for twice.
"""
import base64

import numpy as np

from ..calls.realtime.aside import Aside, failed
from ..calls.realtime.assistant import Made
from ..calls.realtime.call import RealtimeCall
from ..dialects import ASK_RECOGNISE, ASK_RESPOND, Ask, Dtmf
from ..flow import FunctionCall
from .fields import REPLY, fields, fill, reply_of

SESSION = ("commits", "patience", "quiet", "behind", "greet_by", "answered")
MOST_WAITING = 20               # seconds of audio in the inbox that are kept


def kept(call: RealtimeCall) -> dict:
    made = call.made if call.mouth.turn is not None else Made()
    reads = [Ask(ASK_RECOGNISE, {"item_id": call.recorded.item.id})] if call.recorded else []
    return fields(call, SESSION) | {
        "heard_by": call.inbox.throttle.heard_by, "asides": [ask.details for ask in call.asides],
        "inbox": [_written(entry) for entry in _waiting(call)], "deferred": [*map(_written, (*reads, *call.deferred))],
        "made": [part if isinstance(part, str) else [part.name, part.arguments, part.id] for part in made.parts],
        "told": made.told, "limited": made.limited,
        "last": fields(call.last, REPLY) if call.last is not None else None,
        "noted": call.mouth.playout.place,      # the slot may say what a worker did that died before it kept this
        "sends": call.ahead.kept() if call.ahead is not None else []}


def restore(call: RealtimeCall, state: dict) -> None:
    fill(call, state, SESSION)
    call.last = reply_of(state["last"]) if state["last"] is not None else None
    call.deferred.extend(map(_read, state["deferred"]))
    call.asides.extend(Ask(ASK_RESPOND, details) for details in state.get("asides", ()))
    call.inbox.throttle.heard_by = state["heard_by"]
    for entry in map(_read, state["inbox"]):
        if isinstance(entry, np.ndarray):
            call.inbox.add_audio(entry, call.slot.rate_in)
        else:
            call.inbox.add(entry)
    made = call.made = Made()
    made.parts = [part if isinstance(part, str) else FunctionCall(*part) for part in state["made"]]
    made.told, made.limited = state["told"], state["limited"]
    call.follow_settings()
    if call.ahead is not None:
        call.ahead.resume(state["sends"], call.slot)


def go_on(call: RealtimeCall, now: int) -> None:
    """The responses beside the conversation that were on their way: what a model had not said yet, it is asked for."""
    for response in call.dialect.asides:
        call.writing.append(Aside(call, response))
        called = any(item.kind == "function_call" for item in response.output)
        call.writing[-1].begin(now, response.message.text if response.message is not None else "", called)


def pieces(call: RealtimeCall) -> tuple[str, ...] | None:
    """What the model has said of the reply that is on its way; None where it has said all."""
    if any(isinstance(part, FunctionCall) for part in call.made.parts) or call.made.limited:
        return None
    return tuple(call.made.parts)


def give_up(call: RealtimeCall) -> None:
    """A response whose reply cannot go on is over."""
    if call.dialect.response.active:
        call.finish(*failed("The server was restarted."))


def _waiting(call: RealtimeCall):
    """What is in the inbox, without the oldest of too much audio."""
    over = call.inbox.samples - MOST_WAITING * call.slot.rate_in
    for entry in call.inbox.entries:
        if over > 0 and isinstance(entry, np.ndarray):
            over -= len(entry)
        else:
            yield entry


def _written(entry) -> dict:
    match entry:
        case np.ndarray():
            return {"pcm": base64.b64encode(entry.astype("<i2").tobytes()).decode()}
        case Dtmf():
            return {"digit": entry.digit}
    return {"ask": entry.what, "details": entry.details}


def _read(entry: dict):
    match entry:
        case {"pcm": text}:
            return np.frombuffer(base64.b64decode(text), "<i2").astype(np.int16)
        case {"digit": digit}:
            return Dtmf(digit)
    return Ask(entry["ask"], entry["details"]) if "ask" in entry else Ask(ASK_RESPOND, entry)     # ... as once written
