"""A conversation in an event loop, so that models and tools can answer: the loop turns whenever the caller has made a
sound of 20 ms."""
import asyncio

from conversation import Conversation


class Line:
    """`says` holds a turn; the agent's side is in `talk` (conversation.Conversation)."""

    def __init__(self, flow, conversation=Conversation, **settings):
        self.talk = conversation(flow, **settings)
        self.call = self.talk.call
        self.model = self.talk.studio.llm

    async def speech(self, ms, words):
        for _ in range(ms // 20):
            self.talk.speech(20, words)
            await turn()

    async def silence(self, ms):
        for _ in range(ms // 20):
            self.talk.silence(20)
            await turn()

    async def listens(self, most_ms=60_000):
        while self.call.mouth.turn is not None and most_ms > 0:
            await self.silence(20)
            most_ms -= 20

    async def says(self, words, ms=600):
        """The caller speaks, and the agent is heard to its end."""
        await self.speech(ms, words)
        await self.silence(1500)
        await self.listens()

    async def presses(self, keys):
        for key in keys:
            self.talk.receive(b'{"event":"dtmf","dtmf":{"digit":"%s"}}' % key.encode())
            await self.silence(100)
        await self.listens()

    @property
    def state(self):
        return self.talk.state

    @property
    def facts(self):
        return self.call.dialogue.facts

    @property
    def heard(self):
        """What the agent has said in its latest turn."""
        return self.talk.agent_says[-1]

    def count(self, name, **labels):
        return self.talk.server.metrics.counters.get((name, tuple(sorted(labels.items()))), 0)


async def turn():
    for _ in range(6):
        await asyncio.sleep(0)


def scenario(told):
    """A test that is a coroutine, in a loop of its own."""
    def test():
        asyncio.run(asyncio.wait_for(told(), 60))
    test.__name__, test.__doc__ = told.__name__, told.__doc__
    return test
