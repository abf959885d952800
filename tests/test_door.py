"""The turnstile: in what order calls that were let in begin, beside everything else that the loop has to do."""
import asyncio

from opusagent.transport.door import AT_A_TURN, Turnstile


def test_calls_that_come_at_once_begin_a_few_at_each_turn_of_the_loop():
    """Whatever else is to be done comes in between."""
    async def scenario():
        turnstile, begun, seen = Turnstile(), [], []
        for call in range(2 * AT_A_TURN):
            turnstile.enter(lambda call=call: begun.append(call))
        turnstile.enter(lambda: turnstile.enter(lambda: begun.append("late")))
        while "late" not in begun:
            await asyncio.sleep(0)
            seen.append(len(begun))
        turnstile.enter(lambda: begun.append("last"))       # and when it was empty, it goes on
        await asyncio.sleep(0)
        return begun, seen
    begun, seen = asyncio.run(scenario())
    assert begun == [*range(2 * AT_A_TURN), "late", "last"]
    assert seen == [AT_A_TURN, 2 * AT_A_TURN, 2 * AT_A_TURN, 2 * AT_A_TURN + 1]
