"""Interruption: the agent has stopped for a voice that nobody knows the words of, and may have to go on after all.

It hears and says nothing itself.  The rules: such a stop is kept, not the end of the reply, until the words say that it
was meant; a murmur, or a voice in which nobody finds a word, gives the floor back, and the agent goes on from what was
heard; and while that is open nothing of another reply is begun.
"""
from ..flow import ANSWERS, COMMIT

EARLIER_MS = 150                # said once more, at least, of what was heard before the stop


def stop(call) -> None:
    """The caller interrupts: for good if the words say so, else until it is known."""
    mouth = call.mouth
    if call.turns.meant or not mouth.resumes or mouth.turn.acting == COMMIT or not call.ear.overhearing:
        call.stop_talking("barge-in")
    elif not mouth.held_back:
        mouth.hold_back(call.server.clock())
        call.note("hold back", mouth.playout.heard(0))


def words(call, text: str) -> None:
    """What the caller said meanwhile, so far: an interruption, a murmur, or not to be told yet."""
    interrupts = call.dialogue.interrupts(text)
    if interrupts:
        call.stop_talking("barge-in")
    elif interrupts is False and not call.turns.speaking and call.turns.onset is None:
        go_on(call)


def heard(call, text: str) -> bool:
    """The caller is done and said this; True if that was an interruption, which is to be answered."""
    if call.dialogue.interrupts(text):
        call.stop_talking("barge-in")
        if call.ledger.trace is None:           # another worker has begun it
            call.ledger.begin(call.server.clock())
        return True
    go_on(call)
    return False


def over(call) -> None:
    """A voice over the agent has ended before it was known for an interruption: the agent speaks on, but if it was long
    enough for a word, what it said is waited for."""
    if call.ear.weighed and call.mouth.resumes:
        call.ear.finish(call.server.clock(), afterthought=True)
    else:
        call.ear.listen_no_more()


def afterthought(call, text: str) -> bool:
    """That is known now; True if the agent has stopped for it, and it is to be answered."""
    turn = call.mouth.turn
    if call.done or call.turns.reciting or not call.dialogue.interrupts(text) \
            or turn is not None and turn.acting == COMMIT:
        return False
    if turn is not None:
        call.stop_talking("barge-in")
    call.ledger.begin(call.server.clock(), call.slot, call.connection.rtt_ns, call.turns.position)
    return True


def go_on(call) -> None:
    """It was nothing: the agent goes on where it was heard last, or a little before that."""
    now, mouth = call.server.clock(), call.mouth
    reply = mouth.turn.reply
    call.ear.listen_no_more()
    call.ledger.aside = None
    mouth.turn.trace.false_stops += 1
    call.server.metrics.count("false_stops")
    mouth.go_on(now, EARLIER_MS)
    call.note("go on", mouth.playout.sent)
    call.has_floor(reply.interruptible, reply.interrupt == ANSWERS)
    mouth.play(now)
