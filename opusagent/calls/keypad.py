"""The keypad of a call: what the caller presses is an answer like any other, and may come in pieces.

It hears and says nothing itself.  The rule: keys that something else has come after are no answer any more.
"""
from ..flow import COMMIT, COMPLETE

MS = 1_000_000                  # ns


def press(call, digit: str) -> None:
    """A key: it stops the agent, and completes an answer or begins one."""
    turn = call.mouth.turn
    if turn is not None:
        if turn.acting == COMMIT:
            return                          # what is being done is done; a key cannot stop it any more
        call.stop_talking("keys")
    call.keys += digit
    call.usage.keys += 1
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
    call.reply(call.dialogue.dtmf(keys))


def forget(call) -> None:
    """Something else has come, and is the answer."""
    call.keys, call.keys_by = "", 0
