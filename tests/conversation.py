"""A call without sockets, processes or waiting: the real Call, dialect, ear, turn taking and flow on a virtual clock.

    call = Conversation(FLOW)
    call.says("ten of clubs")
    assert call.agent_says == ["Which card?", "Thank you."]

The recogniser knows what the caller says, the voice speaks a tone of 50 ms for each word.
"""
import asyncio
import base64

import numpy as np

from opusagent._fastpath import Arena, ulaw_encode
from opusagent.calls.call import Call
from opusagent.calls.departure import Departures
from opusagent.config import Config
from opusagent.dialects import TABLE, TEXT
from opusagent.flow import Flow
from opusagent.metrics import Metrics
from opusagent.speech.audio import VadBatch
from opusagent.studio.prompts import Prompt
from opusagent.studio.tools import Toolbox, functions

MS = 1_000_000
WORD_MS = 50
SPEECH = (8000 * np.sin(np.arange(160) * 2 * np.pi * 300 / 8000)).astype(np.int16)


class Studio:
    """What studio.Studio is to a call, with engines that a test holds in its hand."""

    def __init__(self, flow, agent=""):
        self.config = Config()
        self.flows = {agent: flow}
        self.arena = Arena(2)
        self.free = [0]
        self.hearing = VadBatch("energy")
        self.stt, self.tts, self.llm = Recogniser(), Voice(), Model()
        self.ahead = True               # prompts are rendered ahead

    def prompt(self, voice, text, rate):
        return Prompt(spoken(text, rate), rate) if self.ahead else None

    def toolbox(self, flow, call_id, tell, late):
        return Toolbox(functions(flow), call_id, tell, late)

    def search(self, flow, number):
        return number


def spoken(text, rate):
    count = len(text.split()) * WORD_MS * rate // 1000
    return (4000 * np.sin(np.arange(count) * 2 * np.pi * 500 / rate)).astype(np.int16)


class Recogniser:
    def __init__(self):
        self.words = ""                 # what the caller is saying
        self.silent = False             # it never answers
        self.log = []

    def listen(self, call, position):
        self.log.append(("listen", position))

    def audio(self, call):
        pass

    def ask(self, call):
        if not self.silent:
            call.on_partial(call.utterance, self.words)

    def finish(self, call, position):
        self.log.append(("finish", position))
        if not self.silent:
            call.on_final(call.utterance, self.words, 1.0)

    def cancel(self, call):
        self.log.append(("cancel",))

    def forget(self, call):
        self.log.append(("forget",))


class Voice:
    """Asked to speak, it waits for the test to call `deliver`."""

    def __init__(self):
        self.asked = []                 # (call, epoch, k, text)

    def speak(self, call, epoch, k, text, voice):
        self.asked.append((call, epoch, k, text))

    def deliver(self, index=0, sounds=True):
        call, epoch, k, text = self.asked.pop(index)
        pcm, slot = spoken(text, call.slot.rate_out)[:None if sounds else 0], call.slot
        start = slot.segment_written(k)
        np.asarray(slot.segment(k))[np.arange(start, start + len(pcm)) % len(slot.segment(k))] = pcm
        slot.set_segment_written(k, start + len(pcm))
        call.on_speech(epoch, k, start, start + len(pcm), True)

    def played(self, call, k):
        pass

    def cancel(self, call):
        self.asked.clear()


class Model:
    """It says its pieces as soon as it is asked, or when the test lets it."""

    def __init__(self):
        self.pieces = []
        self.answers = []               # the pieces of the next answers, before those
        self.asked = []                 # the chats
        self.tools = []                 # ... and the functions that it was offered
        self.dropped = 0                # answers that nobody waited for
        self.free = asyncio.Event()
        self.free.set()

    async def reply(self, messages, tools=()):
        self.asked.append(messages)
        self.tools.append(tools)
        try:
            await self.free.wait()
            for piece in self.answers.pop(0) if self.answers else self.pieces:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        except (asyncio.CancelledError, GeneratorExit):
            self.dropped += 1
            raise


class Server:
    today = "2026-11-22"

    def __init__(self, studio):
        self.studio = studio
        self.config = studio.config
        self.metrics = Metrics()
        self.now = 1_000_000 * MS
        self.calls = []
        self.departures = Departures(self.config, self.metrics)
        self.departures.soon = lambda told: told()

    def clock(self):
        return self.now

    def call_begins(self, call, start):
        self.calls.append(call)

    def call_ends(self, call):
        self.calls.remove(call)


class Connection:
    def __init__(self):
        self.sent = []                  # (opcode, message)
        self.congested = False
        self.closed = None
        self.faults = []
        self.rtt_ns = 0
        self.tenant = ""

    def send(self, opcode, message):
        self.sent.append((opcode, bytes(message)))
        return True

    def close(self, code=1000, reason=""):
        self.closed = (code, reason)

    def fault(self, error):
        self.faults.append(error)
        raise error


class Conversation:
    """A call in the Twilio dialect.  Time passes in 20 ms of the caller's audio; the server ticks every 5 ms."""

    def __init__(self, flow, dialect="twilio", query=None, begin=True, ahead=True, agent="", make=Call):
        self.studio = Studio(Flow.parse(flow, "flow.toml") if isinstance(flow, str) else flow, agent)
        self.studio.ahead = ahead
        self.server = Server(self.studio)
        self.connection = Connection()
        self.call = make(self.server, self.connection, TABLE[dialect](query or {}), agent, self.journal())
        self.eager = False              # tick it whether anything is due or not
        self.place = 0                  # in what was sent: what agent_says has told
        if begin:
            self.receive(b'{"event":"start","streamSid":"MZ1","start":{"callSid":"CA1","customParameters":{}}}')

    def journal(self):
        """None: none is kept."""

    # -- the caller

    def receive(self, message):
        self.call.on_message(TEXT, memoryview(message))

    def frame(self, pcm):
        codes = bytearray(len(pcm))
        ulaw_encode(pcm, codes)
        self.receive(b'{"event":"media","media":{"payload":"%s"}}' % base64.b64encode(codes))
        self.studio.hearing.run()

    def audio(self, ms, pcm):
        for _ in range(ms // 20):
            if self.call.slot is None or self.connection.closed:
                return
            self.frame(pcm)
            self.passes(20)

    def passes(self, ms):
        for _ in range(ms // 5):
            self.server.now += 5 * MS
            if self.eager or self.call.due <= self.server.now:
                self.call.tick(self.server.now)

    def silence(self, ms):
        self.audio(ms, np.zeros(160, np.int16))

    def speech(self, ms, words=""):
        self.studio.stt.words = words
        self.audio(ms, SPEECH)

    def says(self, words, ms=600):
        """The caller speaks, then waits until the agent has answered and is heard to the end."""
        self.speech(ms, words)
        self.silence(1500)
        self.listens()

    def listens(self, most_ms=60_000):
        while self.call.mouth.turn is not None and most_ms > 0:
            self.silence(20)
            most_ms -= 20

    # -- the agent

    @property
    def receipts(self):
        return self.call.ledger.receipts

    @property
    def agent_says(self):
        return [receipt["agent"] for receipt in self.receipts]

    @property
    def state(self):
        return self.call.dialogue.state

    def count(self, kind):
        return sum(b'"event":"%s"' % kind.encode() in message for _, message in self.connection.sent)
