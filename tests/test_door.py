"""The turnstile: in what order calls that were let in begin, beside everything else that the loop has to do."""
import asyncio

from opusagent import door
from opusagent.door import Turnstile


def test_calls_that_come_at_once_begin_one_at_each_turn_of_the_loop():
    """Whatever else is to be done comes in between."""
    async def scenario():
        loop, turnstile, done = asyncio.get_running_loop(), Turnstile(), []
        for call in "abc":
            turnstile.enter(lambda call=call: done.append(call))
        turns = 0
        while len(done) < 3:
            loop.call_soon(done.append, "-")
            await asyncio.sleep(0)
            turns += 1
            assert turns < 10
        turnstile.enter(lambda: done.append("d"))           # and when it was empty, it goes on
        await asyncio.sleep(0)
        return done
    done = asyncio.run(scenario())
    assert [what for what in done if what != "-"] == ["a", "b", "c", "d"]
    assert "-" in done[done.index("a"):done.index("b")] and "-" in done[done.index("b"):done.index("c")]


def test_those_that_have_waited_for_long_begin_together_but_not_all_at_once(monkeypatch):
    monkeypatch.setattr(door, "PATIENCE", -1)

    async def scenario():
        turnstile, begun, seen = Turnstile(), [], []
        for call in range(10):
            turnstile.enter(lambda call=call: begun.append(call))
        while len(begun) < 10:
            await asyncio.sleep(0)
            seen.append(len(begun))
        return begun, seen
    begun, seen = asyncio.run(scenario())
    assert begun == list(range(10)) and [count for count in seen if count] == [2, 4, 6, 8, 10]
