"""Frames that go in and out without Python: the same call, to the bit and to the tick, as the ordinary way."""
import random
import socket
from urllib.parse import urlsplit

import pytest
from conversation import MS, Connection, Conversation
from opusagent import resumption
from opusagent._fastpath import EpollSet, FrameParser, Pacer, ReceiveBuffer, Wire
from opusagent.call import Call
from opusagent.dialects import TEXT
from opusagent.dialects.twilio import TwilioCaller

FLOW = """
start = "chat"
[waits]
complete = 120
free = 300
no_input = 2500
[states.chat]
say = "Good morning to you, this is the line for everybody who likes to hear somebody speak for quite a while indeed."
on = [{ phrases = ["goodbye"], go = "bye" },
      { dtmf = "5", say = "You have pressed five, which is a digit like any other." },
      { free = true, say = "Yes, go on. I am listening to all that you say here." }]
silence = { say = ["Are you still there? Then say something, please, whatever it is."], go = "bye" }
[states.bye]
say = "Goodbye."
end = true
"""

class Line(Connection):
    """A connection with a socket, whose other end reads unless it is told not to."""

    def __init__(self, clock, drained):
        ours, self.peer = socket.socketpair()
        for end in (ours, self.peer):
            end.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.parser, self.clock, self.reads = FrameParser(1 << 20, masked=False), clock, True
        self.socket = Wire(ours.detach(), FrameParser(1 << 16), None, None, None, None, drained)
        self.set = EpollSet(ReceiveBuffer())
        self.set.add(self.socket)
        super().__init__()

    @property
    def congested(self):
        return self.socket.backlog > 0

    @congested.setter
    def congested(self, value):
        """Nobody's to say."""

    def send(self, opcode, message):
        return self.socket.send(opcode, message)

    def passes(self):
        """What has come to the other end is read, and what waits for that is sent."""
        self.set.poll()
        try:
            while self.reads and (data := self.peer.recv(1 << 16)):
                self.parser.feed_bytes(data)
                self.parser.deliver(lambda opcode, payload: self.sent.append((self.clock(), bytes(payload))), None)
        except BlockingIOError:
            pass


    def hang_up(self):
        self.socket.close()
        self.set.close()
        self.peer.close()


class Plain(Line):
    """One of which the call sees the socket."""

    @property
    def wire(self):
        return self.socket


class Compared(Conversation):
    """`taken` and `sent_on` count the frames in and out that Python had nothing to do with."""

    def __init__(self, line, returns, **how):
        """`returns`: the platform may come back on another connection."""
        self.taken, self.sent_on, self.said, self.line, self.returns = 0, 0, [], line, returns
        super().__init__(FLOW, make=self.make, **how)

    def make(self, server, connection, *more):
        server.pacer = Pacer()
        self.connection = self.line(server.clock, lambda: self.call.drained())
        self.connection.tenant = ""
        return Call(server, resumption.Line(self.connection) if self.returns else self.connection, *more)

    def frame(self, pcm):
        """As Twilio sends it."""
        if not hasattr(self, "caller"):
            self.caller = TwilioCaller(urlsplit("ws://localhost/ws/twilio"))
        self.receive(self.caller.audio(pcm)[1])
        self.studio.hearing.run()

    def receive(self, message):
        intake = self.connection.socket.intake
        if intake is not None and intake.receive(TEXT, message, self.server.now):
            self.taken += 1
        else:
            super().receive(message)

    def passes(self, ms):
        for _ in range(ms // 5):
            self.server.now += 5 * MS
            sent = self.call.mouth.playout.sent
            self.server.pacer.run(self.server.now)
            self.sent_on += self.call.mouth.playout.sent > sent
            if self.call.due <= self.server.now:
                self.call.tick(self.server.now)
            while self.studio.tts.asked:
                self.studio.tts.deliver()
            self.connection.passes()
            self.said.append(self.told())

    def told(self):
        """All that anybody could ask of the call at this moment."""
        mouth, turns = self.call.mouth, self.call.turns
        if self.call.slot is None:
            return None
        place = self.call.slot.noted if mouth.turn is not None else None
        return (self.call.slot.written, turns.state, turns.position, mouth.epoch, mouth.playout.sent, mouth.sounded,
                place, mouth.playout.heard(self.server.now), self.call.ear.media_at, self.call.mouth.out.dropped)


def script(call, chance):
    """A caller who does whatever comes next in `chance`."""
    call.listens(2_000)
    for _ in range(12):
        match chance.randrange(9):
            case 0 | 1:
                call.says(chance.choice(["tell me more", "what is that", "mm hm"]), chance.randrange(300, 900, 20))
            case 2:
                call.speech(chance.randrange(40, 1200, 20), chance.choice(["stop it now", "mm hm", ""]))
                call.silence(chance.randrange(100, 900, 20))
            case 3:
                call.receive(b'{"event":"dtmf","dtmf":{"digit":"5"}}')
                call.silence(chance.randrange(100, 900, 20))
            case 4:
                marks = [message for _, message in call.connection.sent if b'"mark"' in message]
                if marks:
                    call.receive(marks[-1])
            case 5:
                call.passes(chance.randrange(5, 400, 5))        # no media
            case 6:
                call.server.now += chance.randrange(1, 120) * MS        # the loop was late
            case 7:
                call.connection.reads = False
                call.silence(chance.randrange(500, 1500, 20))
                call.connection.reads = True
            case 8:
                call.receive(b'{"event":"media","media":{"track":"outbound","payload":"AAAA"}}')
                call.silence(chance.randrange(100, 2500, 20))


@pytest.mark.parametrize("seed", range(24))
def test_nothing_can_be_told_from_the_ordinary_way(seed):
    ordinary, other = calls = [Compared(line, seed % 2 > 0, ahead=seed % 3 > 0) for line in (Line, Plain)]
    for call in calls:
        script(call, random.Random(seed))
        call.connection.hang_up()
    assert other.said == ordinary.said
    assert other.connection.sent == ordinary.connection.sent
    assert other.receipts == ordinary.receipts
    assert not ordinary.taken and not ordinary.sent_on and other.taken > 100 and other.sent_on > 20
