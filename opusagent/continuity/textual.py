"""What of a call in text goes along to another worker: there is no audio, so all of it lies in the snapshot.

What goes out is kept before it does (calls/writeahead.py), and so is what has come in: the platform speaks nothing
twice, and nothing that the caller has said is lost.  The rules: what a model has said was sent, so it is asked for the
rest; and a tool that may have had its effect is not called twice.
"""
from ..calls.pipeline import DONE, SPEAKING
from ..calls.relay import RelayCall
from ..calls.script import Written
from .fields import REPLY, fields, fill, reply_of

CALL = ("id", "signs", "began", "done", "leave_by", "saying", "waiting", "answered", "keys", "keys_by", "end_by",
        "no_input", "speaking", "silent_by", "epoch", "said", "spoken")
SCRIPT = ("interruptible", "preemptible", "text", "pending", "open", "closed", "began", "ends", "wordy", "sounding",
          "spaced", "spoken", "since")
TURN = ("epoch", "texts", "complete", "error", "broken", "audible", "began", "last_piece", "kept")


def kept(call: RelayCall) -> dict:
    """Besides what every call has."""
    return {"call": fields(call, CALL), "script": fields(call.script, SCRIPT), "turn": _turn(call.turn),
            "last": fields(call.last, REPLY) if call.last is not None else None,
            "sends": call.ahead.kept() if call.ahead is not None else []}


def _turn(turn: Written | None) -> dict | None:
    """The reply that is said."""
    if turn is None or turn.state not in (SPEAKING, DONE):
        return None
    return fields(turn, TURN) | {"reply": fields(turn.reply, REPLY), "acts": bool(turn.reply.call or turn.reply.tools)}


def changed(call: RelayCall) -> tuple:
    """What a snapshot must not be older than, besides what came in or went out, which is kept at once."""
    turn = call.turn
    return call.epoch, call.keys, call.done, call.silent_by, turn is not None and (turn.complete, turn.audible)


def restore(call: RelayCall, state: dict) -> None:
    """Everything but the reply that was said."""
    fill(call, state["call"], CALL)
    fill(call.script, state["script"], SCRIPT)
    call.last = reply_of(state["last"]) if state["last"] is not None else None
    if call.ahead is not None:
        call.ahead.resume(state["sends"], call.slot)


def go_on(call: RelayCall, kept: dict | None, now: int) -> None:
    """The reply goes on behind the last word that was sent."""
    if kept is None:
        return
    trace = call.ledger.trace or call.ledger.begin(now)
    if kept["acts"] and not kept["complete"] and not kept["audible"]:
        return call.reply(call.dialogue.failure())     # a tool may have had its effect: it is not called twice
    turn = call.turn = Written(call.stage, reply_of(kept["reply"]), call.epoch, trace)
    fill(turn, kept, TURN)
    turn.quiet = now                        # a pause that we came into is no longer than that
    if kept["acts"] or not turn.reply.messages:
        turn.complete = True                # what a model had not said by then is not known
    if not turn.complete:
        call.script.recall(call.said)
        turn.go_on(tuple(call.said), now, aloud=False)      # it was sent as it came
