"""Handing a call over: all that another worker needs to go on with it, at the sample and at the byte.

A call's audio lies in its slot of the arena, and outlives the worker.  Beside it lie a snapshot (what was decided, what
is being said, whose turn it is), written when one of them changes and once a second; where the playout stands, noted
whenever something goes out; and what the wire has not parsed or not sent, which is nothing nearly always.  The rules: a
snapshot names what it holds, so that another version leaves out what it does not know; what was heard since it was
written is heard again from the slot; and nothing that was played is played twice.
"""
import math
import sys
from collections.abc import Callable

import numpy as np
import orjson

from .._fastpath import Slot
from ..calls.bystander import Bystander
from ..calls.call import Call
from ..calls.ear import FINAL_WITHIN, Ear
from ..calls.pipeline import DONE, SPEAKING, Turn
from ..calls.realtime.call import RealtimeCall
from ..calls.kinds import call_of
from ..calls.relay import RelayCall
from ..dialects.keeping import resumed, state_of
from ..flow.dialogue import checkpoint_of, dialogue_state
from ..flow.phrasing import KEYS
from ..metrics import TurnTrace
from ..speech.playout import Segment
from ..speech.turns import LISTENING, PAUSED, REPLYING, TurnTaking
from . import carried, textual
from .fields import REPLY, fields, fill, reply_of
from .resumption import tenure_of

VERSION = 1                     # of a snapshot: another one is not read
LONGEST = 60_000                # bytes of a snapshot; the oldest receipts are left out for it
NO_MORE = 1 << 30               # replies that were begun in a pause: as many as there can be
ABSENT = -1                     # in place of infinity and of None, where a number is kept

CALL = ("id", "keys", "keys_by", "end_by", "began", "done", "leave_by")
EAR = ("utterance", "hearing", "overhearing", "weighed", "afterthought", "heard_from", "floor", "final_by")
MOUTH = ("epoch", "audible", "thrown", "held_back")
TURNS = ("state", "position", "speaking", "onset", "spoken", "last", "ended", "began", "wait", "reciting", "meant",
         "murmured", "dismissed", "swayed", "_judgement", "_silent", "_answers_only")
PACE = ("mean", "deviation")
TURN = ("epoch", "texts", "complete", "error", "broken", "audible", "began", "last_piece", "_silent", "_fillers")
TRACE = ("turn", "state", "kind", "caller", "agent", "confidence", "stopped_by", "end_ms", "measured", "saved_ms",
         "false_stops", "_at")
SEGMENT = ("text", "lead", "pause_ms", "supplied", "start", "read", "written", "done", "keys")


class LostCall(Exception):
    """A call that cannot go on here; says why in a sentence."""


# -- the parts ---------------------------------------------------------------------------------------------------------

def trace_of(state: dict) -> TurnTrace:
    trace = TurnTrace(state["turn"])
    fill(trace, state, TRACE)
    return trace


def turns_state(turns: TurnTaking) -> dict:
    return fields(turns, TURNS) | fields(turns.pace, PACE)


def fill_turns(turns: TurnTaking, state: dict) -> None:
    fill(turns, state, TURNS)
    fill(turns.pace, state, PACE)


def ear_state(ear: Ear) -> dict:
    return fields(ear, EAR) | {"silent": ear.filled.forgotten, "silences": list(ear.filled.latest)}


def fill_ear(ear: Ear, state: dict) -> None:
    fill(ear, state, EAR)
    ear.filled.forgotten = state.get("silent", 0)
    ear.filled.latest.extend(state.get("silences", ()))


def segments_of(turn: Turn) -> list[dict]:
    """All segments of a reply, in order; `place` of those that were begun, `buffer` of those the voice speaks."""
    playout = turn.stage.playout
    buffers = {id(segment): k for k, segment in turn.speaking.items()}
    begun = [(segment, place) for segment, place in playout.places]
    known = {id(segment) for segment, _ in begun}
    coming = [(segment, ABSENT) for segment in playout.queue if id(segment) not in known]
    return [fields(segment, SEGMENT) | {"place": place, "buffer": buffers.get(id(segment), ABSENT)}
            for segment, place in begun + coming]


def turn_state(turn: Turn | None) -> dict | None:
    """The reply on its way.  One that is only speculated is nothing: the turn's end begins it again."""
    if turn is None or turn.state not in (SPEAKING, DONE):
        return None
    return fields(turn, TURN) | {"reply": fields(turn.reply, REPLY),
                                 "waiting": [each for each in turn.waiting if isinstance(each[0], str)],
                                 "segments": segments_of(turn), "acts": bool(turn.reply.call or turn.reply.tools)}


def mouth_state(mouth) -> dict:
    """The agent's side.  A tool that runs in the caller's pause may be what ends us: whoever goes on with the call
    begins nothing in its pauses any more, and runs that tool for a turn that counts, or not at all."""
    tries = mouth.held is not None and mouth.held.acting
    return fields(mouth, MOUTH) | ({"thrown": NO_MORE} if tries else {})


def beside_state(beside: Bystander | None) -> dict | None:
    """The other side of a conversation of others; its audio lies in a slot of its own."""
    if beside is None:
        return None
    return {"slot": beside.slot.index, "turns": turns_state(beside.turns), "ear": ear_state(beside.ear),
            "ended": beside.ended, "waiting": beside.waiting}


# -- a snapshot --------------------------------------------------------------------------------------------------------

def conversation_of(call: Call | RelayCall) -> dict:
    """Where the conversation stands, of a call of any kind."""
    call.ledger.measure()
    trace, tenure = call.ledger.trace, tenure_of(call)
    return {
        "version": VERSION, "dialect": call.dialect.name, "spoken": state_of(call.dialect), "agent": call.agent,
        "dialogue": dialogue_state(call.dialogue.checkpoint()), "today": call.dialogue.today,
        "unheard": dialogue_state(call.transaction.unheard), "undo": dialogue_state(call.transaction.undo),
        "dropped": call.mouth.out.dropped, "trace": fields(trace, TRACE) if trace else None,
        "receipts": call.ledger.receipts, "tenant": call.connection.tenant, "usage": call.usage.kept(),
        "tenure": tenure.state if tenure is not None else None, "session": None,
    }


def kept_of(call: Call | RelayCall) -> dict:
    """All of a call that does not lie in its slot, as JSON can hold it."""
    if isinstance(call, RelayCall):
        return conversation_of(call) | textual.kept(call)
    return conversation_of(call) | {
        "call": fields(call, CALL) | {"excused": call.excused if call.excused != math.inf else ABSENT},
        "turns": turns_state(call.turns), "ear": ear_state(call.ear), "mouth": mouth_state(call.mouth),
        "beside": beside_state(call.ear.beside), "turn": turn_state(call.mouth.turn),
        "session": carried.kept(call) if isinstance(call, RealtimeCall) else None,
    }


def committed(call: Call) -> dict:
    """The same for a node that has neither slot nor socket of the call: where the conversation stands, and no reply
    that is under way.  `age`: ns since the call began.  The receipts are told beside it."""
    spoken = state_of(call.dialect) if call.dialect.come_back is not None else {}
    return kept_of(call) | {"turn": None, "receipts": [], "tenure": None, "spoken": spoken,
                            "age": call.server.epoll.now - call.began}


def snapshot(call: Call | RelayCall) -> bytes:
    """What lies beside a call's slot for another worker."""
    state = kept_of(call)
    written = orjson.dumps(state)
    most = LONGEST if state["session"] is None else len(written)
    while len(written) > most and state["receipts"]:
        state["receipts"] = state["receipts"][1 + len(state["receipts"]) // 8:]
        written = orjson.dumps(state)
    return written


def changed(call: Call | RelayCall) -> tuple:
    """What a snapshot must not be older than.  What the caller has said since is heard again, and leads to the same."""
    if isinstance(call, RelayCall):
        return textual.changed(call)
    mouth, turn = call.mouth, call.mouth.turn
    said = (len(turn.texts), len(turn.speaking), turn.complete, len(turn.stage.playout.queue)) if turn else None
    beside = call.ear.beside
    other = (beside.ear.utterance, beside.ear.floor) if beside else None
    wire = call.signals, mouth.out.texts            # what the platform has told us, and we it, is the dialect's to know
    return mouth.epoch, call.keys, call.done, said, mouth.audible, mouth.held_back, call.ear.floor, other, wire


# -- going on ----------------------------------------------------------------------------------------------------------

def resume(server, connection, slot: Slot, state: dict) -> Call | RelayCall:
    """The call of a slot, in this worker.  LostCall where that cannot be."""
    if state.get("version") != VERSION:
        raise LostCall("its snapshot is of another version")
    if state["agent"] not in server.studio.flows:
        raise LostCall(f"there is no agent {state['agent']} here any more")
    dialect = resumed(state["dialect"], state["spoken"])
    dialect.outbox.clear()
    make = call_of(dialect.name)
    call = in_text(make, server, connection, slot, dialect, state) if make is RelayCall else in_sound(
        make, server, connection, slot, dialect, state)
    call.mouth.out.dropped = state["dropped"]
    call.ledger.call_id = call.id
    call.ledger.receipts = state["receipts"]
    call.ledger.trace = trace_of(state["trace"]) if state["trace"] else None
    try:
        call.dialogue.restore(checkpoint_of(state["dialogue"]))
        call.dialogue.today = state["today"]
        call.transaction.unheard = checkpoint_of(state["unheard"])
        call.transaction.undo = checkpoint_of(state["undo"])
        call.transaction.turns.expect(call.dialogue.expect.waits)
    except KeyError:
        raise LostCall(f"its flow has no state {state['dialogue'][0]} any more") from None
    if isinstance(call, RelayCall):
        textual.restore(call, state)
    else:
        restore(call, state)
    return call


def in_text(make: Callable, server, connection, slot: Slot, dialect, state: dict) -> RelayCall:
    """The call before its conversation is as it was."""
    call = make(server, connection, dialect, state["agent"])
    call.usage.restore(state.get("usage", {}))
    call.id = state["call"]["id"]
    call.open(slot, {})
    return call


def in_sound(make: Callable, server, connection, slot: Slot, dialect, state: dict) -> Call:
    """The same, and its slot is listened to."""
    call = make(server, connection, dialect, state["agent"], begins=False)
    call.usage.restore(state.get("usage", {}))
    fill(call, state["call"], CALL)
    call.excused = math.inf if state["call"]["excused"] == ABSENT else state["call"]["excused"]
    call.slot = slot
    call.dialogue = call.new_dialogue({})
    call.open_line()
    fill_ear(call.ear, state["ear"])
    call.ledger.speaker = dialect.speaker
    fill(call.mouth, state["mouth"], MOUTH)
    if dialect.numbered is not None:
        dialect.numbered = max(dialect.numbered, slot.numbered)
    return call


def restore(call: Call, state: dict) -> None:
    """Whose turn it was, and what of it is not over."""
    fill_turns(call.turns, state["turns"])
    call.turns.state = sys.intern(call.turns.state)     # it is one of turns.py's own
    if state.get("session") is not None:
        carried.restore(call, state["session"])
    if call.ear.hearing or call.ear.final_by:
        call.ear.choose(call.ear.overhearing or call.ear.afterthought or call.mouth.held_back)
    resume_beside(call, state.get("beside"))


def resume_beside(call: Call, state: dict | None) -> None:
    """The other side, if it was heard and its slot is as it was."""
    slot = call.studio.arena.slot(state["slot"]) if state else None
    if slot is None or not slot.taken:
        return
    beside = call.ear.beside = Bystander(call, slot)
    fill_turns(beside.turns, state["turns"])
    fill_ear(beside.ear, state["ear"])
    beside.ended, beside.waiting = state["ended"], state["waiting"] and tuple(state["waiting"])
    expect = beside.dialogue.expect
    beside.ear.search = call.studio.search(call.flow, expect.id)
    if slot.index in call.studio.free:
        call.studio.free.remove(slot.index)


def go_on(call: Call | RelayCall, state: dict, now: int) -> None:
    """Everything that was under way is under way again."""
    if isinstance(call, RelayCall):
        return textual.go_on(call, state["turn"], now)
    turns, ear = call.turns, call.ear
    call.mouth.held_back &= state["turn"] is not None
    listen_on(ear, turns, now)
    if isinstance(call, RealtimeCall):
        carried.go_on(call, now)
    if state["turn"] is not None:
        session = state.get("session")
        resume_turn(call, state["turn"], now, session["noted"] if session else call.slot.noted)
    elif turns.state == REPLYING and not ear.final_by and not call.done:
        turns.state, turns.ended = LISTENING, turns.position    # the reply was over, and nobody has said so yet
    hear_again(ear, turns.position)
    if ear.beside is not None:
        listen_on(ear.beside.ear, ear.beside.turns, now)
        hear_again(ear.beside.ear, ear.beside.turns.position)


def listen_on(ear: Ear, turns: TurnTaking, now: int) -> None:
    """The utterance that was being recognised is, from where it began."""
    if ear.hearing or ear.final_by:
        ear.stt.listen(ear, ear.heard_from)
    if ear.final_by:
        ear.final_by = now + FINAL_WITHIN
        ear.stt.finish(ear, min(turns.position, ear.slot.written))
    elif ear.hearing and turns.state == PAUSED:
        ear.stt.ask(ear)
    ear.vad.position = turns.position


def hear_again(ear: Ear, position: int) -> None:
    """What came since it was kept how far the caller's audio was judged."""
    slot = ear.slot
    begin = max(position, slot.written - slot.capacity + slot.rate_in // 4)
    if begin < slot.written:
        ear.vad.push(slot.read(begin, slot.written - begin))


def resume_turn(call: Call, state: dict, now: int, noted: tuple) -> None:
    """The reply goes on where it stood: what was spoken of it is not spoken again, what was not begun begins."""
    mouth, playout, session = call.mouth, call.mouth.playout, isinstance(call, RealtimeCall)
    begun = mouth.audible or session and call.made.told > 0
    reply = reply_of(state["reply"])
    trace = call.ledger.trace or call.ledger.begin(now)
    if not begun and state["acts"]:
        if session:
            carried.give_up(call)
        return call.reply(call.dialogue.failure())     # a tool may have had its effect: it is not called twice
    if not begun:
        return mouth.say(reply, trace, now)         # nobody has heard anything of it: it is asked for again
    turn = mouth.turn = Turn(mouth.stage, reply, mouth.epoch, trace)
    fill(turn, state, TURN)
    turn.quiet = now                                # a pause that we came into is no longer than that
    turn.waiting.extend(map(tuple, state["waiting"]))
    said = carried.pieces(call) if session and not state["acts"] else None
    if said is None or not reply.messages:
        turn.complete = True                        # what a model had not said by then is not known
    play_on(call, turn, state["segments"], noted)
    if mouth.held_back:
        playout.hold(now)
    if not turn.complete:
        turn.go_on(said, now, call.dialect.response.audible)


def play_on(call: Call, turn: Turn, segments: list[dict], noted: tuple) -> None:
    """The playout stands where it was `noted`, with these segments before and behind it."""
    playout, (sent, origin, begun, read, silence, lag) = call.mouth.playout, noted
    playout.begin()
    playout.sent, playout.lag, playout.silence = sent, lag, silence
    playout.origin = None if origin == ABSENT else origin
    for i, kept in enumerate(segments):
        segment = segment_of(call, turn.reply.voice or call.mouth.stage.voice, kept)
        if i < begun:
            playout.places.append((segment, kept["place"] if kept["place"] != ABSENT else sent))
            segment.read = segment.written if i < begun - 1 else max(segment.start, min(read, segment.written))
        else:
            segment.read = segment.start
        if not segment.finished:
            playout.queue.append(segment)
            if kept["buffer"] != ABSENT:
                speak_on(call, turn, kept["buffer"], segment)


def speak_on(call: Call, turn: Turn, k: int, segment: Segment) -> None:
    """The voice goes on where the samples end that it has written."""
    turn.speaking[k] = segment
    turn.buffers.remove(k)
    if segment.supplied:
        call.slot.set_segment_read(k, segment.read)
    if not segment.done:
        start = segment.start if segment.supplied else None
        voice = turn.reply.voice or turn.stage.voice
        call.studio.tts.resume(call.mouth, turn.epoch, k, segment.text, voice, start)


def segment_of(call: Call, voice: str, kept: dict) -> Segment:
    """A segment whose samples lie among the prompts or in a buffer of the slot; one that was played may have none."""
    slot, stage = call.slot, call.mouth.stage
    if kept["buffer"] != ABSENT:
        segment = Segment(kept["text"], slot.segment(kept["buffer"]), growing=True)
        fill(segment, kept, SEGMENT)
        if segment.supplied:
            segment.written = max(segment.written, slot.segment_written(kept["buffer"]))
        return segment
    if kept["text"].startswith(KEYS) or not kept["text"]:
        return pressed_of(stage, kept)
    prompt = stage.prompt(stage.spoken_by(kept["text"], voice), kept["text"], slot.rate_out)
    segment = Segment(kept["text"], np.zeros(0, np.int16) if prompt is None else prompt.pcm)
    fill(segment, kept, SEGMENT)
    segment.done = True
    if prompt is None:
        segment.read = segment.written              # it was spoken by the voice, or is no prompt any more
    else:
        segment.written = len(prompt.pcm)
        segment.read = min(segment.read, segment.written)
    return segment


def pressed_of(stage, kept: dict) -> Segment:
    """A segment of keys, or of the silence before them; what the platform was to press it has been told."""
    made = stage.pressed(kept["text"])
    segment = made[0] if made else Segment("", np.zeros(kept["written"], np.int16))
    fill(segment, kept, SEGMENT)
    segment.written = len(segment.pcm)
    return segment
