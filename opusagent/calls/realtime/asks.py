"""What a client of the Realtime protocol asks of its call, each wish as a function of the call.

It hears and says nothing itself.  The rule: a wish is done as the call would do it by itself; how it is spelt, and what
of it is refused, is the dialect's.
"""
import math
from collections import deque

from ...dialects import (ASK_COMMIT, ASK_DISCARD, ASK_RECOGNISE, ASK_RESPOND, ASK_TRUNCATED, ASK_UPDATE, RECOGNITION,
                         SPEECH_STOPPED, Ask)
from ...dialects.realtime.settings import Fault
from ...flow import FREE, Dialogue, Waits
from ...flow.expect import clip
from .assistant import NEVER_MS

MOST_DEFERRED = 16                  # responses that wait
ENDED = Waits(0, 0, 0, NEVER_MS)   # what has been said is all of it


def update(call) -> None:
    dialect = call.dialect
    if dialect.rate != call.slot.rate_out:
        call.slot.free()                    # nothing has gone over the line: it is another one
        call.open_line()
    call.follow_settings()
    if dialect.detector is None:
        call.excused = math.inf
    if call.assistant:
        call.turns.expect(call.dialogue.expect.waits)
    elif isinstance(call.dialogue, Dialogue):
        known = {name: clip(text, call.dialogue.side) for name, text in dialect.facts.items()}
        call.dialogue.keep({name: known[name] for name in known.keys() & call.flow.facts.keys()})


def commit(call) -> None:
    """The caller's turn ends here, whatever the detector thinks, and is not answered unless the client asks."""
    if call.dialect.detector is not None and call.mouth.turn is not None:
        call.stop_talking("barge-in")
        call.follow(call.turns.agent_done())
    if call.ear.hearing and call.dialect.detector is not None:
        call.commits = True
        call.turns.expect(ENDED)
        return call.follow(call.turns.judge(FREE))
    if call.ear.final_by:
        return                              # the detector was faster
    if not call.ear.hearing:
        call.listen(call.ear.floor)
    call.commits = True
    position, counts = call.slot.written, call.ear.hearing
    call.dialect.at(call.ear.ms(position))
    call.end_of_turn(position)
    if not counts:                          # nothing that is said does, in this state of the flow
        call.mouth.out.tell(SPEECH_STOPPED)
        call.mouth.out.tell(RECOGNITION, "", 0.0, call.ear.span)


def defer(call, waiting: deque, request: dict, event_id: str) -> None:
    """A response has to wait."""
    if sum(ask.what == ASK_RESPOND for ask in waiting) < MOST_DEFERRED:
        return waiting.append(Ask(ASK_RESPOND, {"request": request, "event_id": event_id}))
    call.dialect.waiting -= 1
    call.dialect.refuse(Fault("rate_limit_exceeded", "Too many responses wait for their turn."), event_id)


def owed(call) -> bool:
    """A response waits that is to be the conversation's."""
    return any(ask.what == ASK_RESPOND for ask in call.deferred)


def recognise(call, item_id: str) -> None:
    """The audio of an item, as soon as what was asked for before it is done."""
    call.deferred.append(Ask(ASK_RECOGNISE, {"item_id": item_id}))


def go_through(call) -> bool:
    """What has waited, in its order, as far as it need not wait any longer; whether a response is among it."""
    responds = False
    while call.deferred and not call.recorded:
        ask = call.deferred[0]
        if ask.what == ASK_RESPOND and (call.speaking or not call.may_begin(ask.details["request"])):
            break
        call.deferred.popleft()
        if ask.what == ASK_RESPOND:
            responds = True
            call.begin_response(**ask.details)
        elif (item := call.dialect.items.find(ask.details["item_id"])) is not None:
            call.recorded.begin(item)
    return responds


def discard(call) -> None:
    call.ear.floor = call.slot.written
    if call.ear.hearing:
        call.ear.listen_no_more()
        call.mouth.forget()


def cancel(call, response_id: str | None = None) -> None:
    """One beside the conversation, by its id; else what is on its way in it, or, if nothing is, what has been asked for
    and not begun."""
    for aside in call.writing:
        if aside.response.id == response_id:
            return aside.finish("cancelled", {"reason": "client_cancelled"})
    if call.dialect.response.active:
        if call.mouth.turn is not None:
            call.stop_talking("cancelled")
            return call.follow(call.turns.agent_done())
        return call.finish("cancelled", {"reason": "client_cancelled"})
    waiting = [entry for entry in (*call.deferred, *call.asides, *call.inbox.entries)
               if entry.__class__ is Ask and entry.what == ASK_RESPOND]
    call.deferred = deque(ask for ask in call.deferred if ask.what != ASK_RESPOND)
    call.asides.clear()
    call.inbox.take_out(waiting)
    for ask in waiting:
        if call.dialect.respond(**ask.details):
            call.finish("cancelled", {"reason": "client_cancelled"})


def truncated(call, item_id: str) -> None:
    """The client has stopped playing: nobody hears the rest of it."""
    message = call.dialect.response.message
    if call.mouth.turn is not None and message is not None and message.id == item_id:
        call.stop_talking("truncated")
        call.follow(call.turns.agent_done())


ON = {ASK_UPDATE: update, ASK_COMMIT: commit, ASK_DISCARD: discard, ASK_TRUNCATED: truncated,
      ASK_RESPOND: lambda call, **wanted: call.respond(**wanted),
      ASK_RECOGNISE: recognise}
