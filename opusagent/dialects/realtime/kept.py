"""A session of the Realtime protocol as JSON, so that another process can go on speaking it.

The rule: an item that is shared (the conversation has it, the response, and whoever waits for its transcript) is
written once, and shared again.
"""
import base64
from dataclasses import fields

import numpy as np

from .dialect import OpenAIRealtime
from .items import Item, Items, Sound
from .response import Response

PLAIN = ("ignored", "session", "limits", "waiting", "rate", "_names", "_numbers", "_used", "_voiced",
         "_at_ms", "_committed", "_asked", "_speech")
RESPONSE = ("state", "id", "request", "settings", "audible", "aside", "asked_text", "asked_ms", "_before")
ITEM = tuple(each.name for each in fields(Item) if each.name not in ("images", "sounds"))     # too large to be written
MOST_KEPT = 20                  # ... so often; seconds of sounds that are all the same, the oldest first


def state_of(dialect: OpenAIRealtime) -> dict:
    response, order = dialect.response, dialect.items.order
    responses = (response, *dialect.asides)
    shared = (item for each in responses for item in (*each.output, each.message))
    everything = list({id(item): item for item in (*order, *shared, dialect._spoken) if item is not None}.values())
    places = {id(item): i for i, item in enumerate(everything)}
    return {
        "query": dialect._query, "appended": dialect.appended, "half": dialect._in.half.hex(),
        **{name: getattr(dialect, name) for name in PLAIN},
        "items": [{name: getattr(item, name) for name in ITEM} for item in everything], "kept": len(order),
        "sounds": [[places[id(item)], sounds] for item, sounds in sounds_of(dialect.items)],
        "response": response_state(response, places), "asides": [response_state(aside, places)
                                                                 for aside in dialect.asides],
        "spoken": places.get(id(dialect._spoken))}


def sounds_of(items: Items):
    """Each item that waits to be recognised, and its audio, as far as it is kept."""
    left = MOST_KEPT
    for item in items.unheard:
        left -= sum(sound.seconds for sound in item.sounds)
        if left >= 0:
            yield item, [[sound.part, sound.rate, base64.b64encode(sound.pcm.astype("<i2").tobytes()).decode()]
                         for sound in item.sounds]


def response_state(response: Response, places: dict[int, int]) -> dict:
    """`places`: of the items, by their identity."""
    return {name: getattr(response, name) for name in RESPONSE} | {
        "output": [places[id(item)] for item in response.output], "message": places.get(id(response.message))}


def resumed(state: dict) -> OpenAIRealtime:
    """The dialect as state_of() found it."""
    dialect = OpenAIRealtime(state["query"])
    for name in PLAIN:
        if name in state:
            setattr(dialect, name, state[name])
    dialect.throttle.appended = state["appended"]
    everything = [Item(**{name: value for name, value in item.items() if name in ITEM}) for item in state["items"]]
    dialect.items.order = everything[:state["kept"]]
    for place, sounds in state.get("sounds", ()):
        everything[place].sounds = [Sound(part, np.frombuffer(base64.b64decode(pcm), "<i2").astype(np.int16), rate)
                                    for part, rate, pcm in sounds]
    dialect._spoken = everything[state["spoken"]] if state["spoken"] is not None else None
    response = dialect.response
    resume_response(response, state["response"], everything)
    for kept in state.get("asides", ()):
        dialect.asides.append(Response(dialect.emit, dialect.named, dialect._add))
        resume_response(dialect.asides[-1], kept, everything)
    used, dialect._used = dialect._used, True       # the line's rate stays
    dialect._tune()
    dialect._used = used
    dialect._in.half = bytes.fromhex(state.get("half", ""))
    if response.active:
        dialect.voice_in(response.settings["audio"]["output"]["format"])
    return dialect


def resume_response(response: Response, state: dict, items: list[Item]) -> None:
    for name in RESPONSE:
        if name in state:
            setattr(response, name, state[name])
    response.output = [items[place] for place in state["output"]]
    response.message = items[state["message"]] if state["message"] is not None else None
