"""A Conversation that is held with a platform's own side: the simulated caller of a dialect, which is strict.

The rule: everything the call sends is read by that caller at once, and what it would not take fails the test.
"""
from urllib.parse import parse_qsl, urlsplit

import numpy as np

from conversation import Conversation
from opusagent.dialects import CALLERS


class Dialled(Conversation):
    """`heard` are the events that the platform's side made of what it was sent, `sent` the messages themselves."""

    def __init__(self, flow, dialect, query=""):
        self.caller = CALLERS[dialect](urlsplit(f"ws://127.0.0.1/ws/{dialect}?{query}"))
        self.heard = []
        self.read = 0                   # of what the call has sent
        super().__init__(flow, dialect, dict(parse_qsl(query)), begin=False)
        for message in self.caller.open():
            self.send(message)
        self.exchange()

    @property
    def sent(self):
        return self.connection.sent

    def send(self, message):
        if message is not None:
            opcode, payload = message
            self.call.on_message(opcode, memoryview(payload))

    def exchange(self):
        """Both sides read until nothing is left to be read."""
        while self.read < len(self.sent) or self.caller.outbox:
            while self.read < len(self.sent):
                opcode, message = self.sent[self.read]
                self.read += 1
                event = self.caller.receive(opcode, memoryview(message))
                if event is not None:
                    self.heard.append(type(event).__name__)
            if self.caller.outbox:
                self.send(self.caller.outbox.pop(0))

    def frame(self, pcm):
        """20 ms, given at 8 kHz, spoken at the line's rate."""
        self.send(self.caller.audio(np.repeat(pcm, self.caller.rate // 8000)))
        self.studio.hearing.run()
        self.exchange()

    def passes(self, ms):
        for _ in range(ms // 5):
            super().passes(5)
            self.exchange()

    def presses(self, digits):
        for digit in digits:
            self.send(self.caller.dtmf(digit))
        self.exchange()
