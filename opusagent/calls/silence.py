"""Whose silence it is: who has to speak next on a call, and whether that has taken too long.

It changes nothing: reprompts, fillers and apologies are the flow's and the turn's, and this is the check that they
work.  The rule: nobody speaks for longer than the state's no-input time and GRACE_MS, or it is counted, and told once
with the name of the one who should have spoken.
"""
import logging

from ..speech.turns import REPLYING

log = logging.getLogger("opusagent")

GRACE_MS = 3000
NEVER_MS = 3_600_000            # no-input times from here on mean that nobody has to speak


def whose(call) -> str:
    """"caller", or what the agent's next word waits for: "recogniser", "tool", "model", "voice", "agent"."""
    turn = call.mouth.turn
    if call.ear.final_by:
        return "recogniser"
    if turn is None:
        return "agent" if call.done or call.turns.state == REPLYING else "caller"
    if turn.acting:
        return "tool"
    if not turn.complete:
        return "model"
    return "voice" if any(not segment.supplied for segment in turn.speaking.values()) else "agent"


def notice(call) -> int:
    """Looks at a call; the position in the caller's audio from which it should be looked at again."""
    written, per_ms = call.slot.written, call.slot.rate_in // 1000
    if call.turns.no_input >= NEVER_MS * per_ms or written < call.excused:
        return written + GRACE_MS * per_ms
    most = call.turns.no_input + GRACE_MS * per_ms
    heard = call.turns.position if call.turns.speaking else call.turns.ended
    since = max(call.mouth.sounded, heard, call.excused)
    if written - since <= most:
        return since + most
    owner = whose(call)
    call.server.metrics.count("dead_air", whose=owner)
    log.warning("call %s: nobody has spoken for %.1f s; it is for the %s to do so", call.id,
                (written - since) / per_ms / 1000, owner)
    return written + most
