"""The keypad of a call: what the caller presses is an answer like any other, and may come in pieces.

It hears and says nothing itself.  The rule: keys that something else has come after are no answer any more.
"""
from ..flow import ANSWERS, COMMIT, COMPLETE, NO_MATCH

MS = 1_000_000                  # ns
END = "#"                       # ends a number, which may have been complete without it


def press(call, digit: str) -> None:
    """A key: it stops the agent, and completes an answer or begins one."""
    call.usage.keys += 1
    if ignored(call, call.mouth.turn, digit):
        return
    if call.mouth.turn is not None:
        call.stop_talking("keys")
    call.keys += digit
    expect = call.dialogue.expect
    if expect.judge_keys(call.keys) == COMPLETE:
        answer(call)
    else:
        call.keys_by = call.server.now + expect.waits.keys * MS


def answer(call) -> None:
    """No more keys are awaited: what there is of them is decided on."""
    keys = call.keys
    call.ear.listen_no_more()
    if call.mouth.turn is not None:
        call.stop_talking("keys")
    call.ledger.begin(call.server.clock())
    end_by = may_end_by(call, keys)
    call.reply(call.dialogue.dtmf(keys))
    call.end_by = end_by


def forget(call) -> None:
    """Something else has come, and is the answer."""
    call.keys, call.keys_by = "", 0


def ignored(call, turn, digit: str) -> bool:
    """Whether this key does not count: it is the END of what was answered already, or the agent says what no key may
    interrupt, or not this one, or does what cannot be undone."""
    if ends_answered(call, digit):
        return True
    if turn is None:
        return False
    if turn.acting == COMMIT or not turn.reply.interruptible:
        return True
    return turn.reply.interrupt == ANSWERS and call.dialogue.expect.judge_keys(call.keys + digit) == NO_MATCH


def may_end_by(call, keys: str) -> int:
    """Until when, ns, END may follow keys that are answered without it; 0 where it would have been another answer."""
    expect = call.dialogue.expect
    ended = not keys.endswith(END) and expect.match_keys(keys + END)
    return call.server.now + expect.waits.keys * MS if ended and ended == expect.match_keys(keys) else 0


def ends_answered(call, digit: str) -> bool:
    """Whether this key is the END of what was answered already."""
    end_by, call.end_by = call.end_by, 0
    return (digit == END and not call.keys and call.server.now < end_by
            and call.dialogue.expect.judge_keys(END) == NO_MATCH)
