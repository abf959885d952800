"""Frames that go in and out without Python: the same call, to the bit and to the tick, as the ordinary way."""
import asyncio
import base64
import itertools
import json
import random
import socket
from types import SimpleNamespace
from urllib.parse import parse_qsl, urlsplit

import conversation
import numpy as np
import pytest
from conversation import MS, WORD_MS, Connection, Conversation
from opusagent import ProtocolError
from opusagent._fastpath import EpollSet, FrameParser, Pacer, ReceiveBuffer, Wire, build_frame
from opusagent.calls import journal
from opusagent.calls.call import Call
from opusagent.calls.realtime.call import RealtimeCall
from opusagent.config import SETTINGS
from opusagent.continuity import resumption
from opusagent.dialects import BINARY, CALLERS, TEXT, Clear, Mark
from opusagent.dialects.keeping import state_of
from opusagent.replay import rerun
from opusagent.replay.tape import load

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
ROUTES = ("twilio", "twilio?exotel=8000", "plivo", "plivo?codec=L16", "plivo?codec=L16&rate=16000", "telnyx",
          "telnyx?disorder=7", "telnyx?codec=PCMA", "telnyx?codec=L16&l16=big", "vonage?rate=8000", "vonage?rate=24000",
          "pcm?rate=8000", "pcm?rate=16000", "pcm?rate=48000", "asterisk?format=ulaw", "asterisk?format=slin",
          "asterisk?format=alaw&control=json", "jambonz", "jambonz?rate=16000", "freeswitch", "freeswitch?play=json",
          "freeswitch?module=fork", "audiocodes?format=raw/mulaw", "audiocodes?format=raw/lpcm16_8", "audiocodes",
          "audiocodes?format=wav/mulaw", "audiohook", "audiohook?channels=both", "audiohook?media=L16",
          "openai-realtime?format=pcmu", "openai-realtime?format=pcma", "openai-realtime")


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
        """What has come to the other end is read, and what waits for that is sent; the messages."""
        self.set.poll()
        came = []
        try:
            while self.reads and (data := self.peer.recv(1 << 16)):
                self.parser.feed_bytes(data)
                self.parser.deliver(lambda opcode, payload: came.append((opcode, bytes(payload))), None)
        except BlockingIOError:
            pass
        self.sent += [(self.clock(), *message) for message in came]
        return came

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
    """A call of a platform's.  `taken` and `sent_on` count the frames in and out that Python had nothing to do with."""

    def __init__(self, line, returns, route="twilio", stream="", kept=False, noted=False, **how):
        """`returns`: the platform may come back on another connection; `kept`: the call is recorded; `noted`: it has a
        journal."""
        self.kept, self.noted, self.route = kept, noted, route
        self.lines = []                 # of its journal
        self.taken, self.sent_on, self.said, self.line, self.returns = 0, 0, [], line, returns
        self.recorded = bytearray()     # of the call's recording
        name, _, query = route.partition("?")
        CALLERS[name]._calls = itertools.count(1)
        self.platform = CALLERS[name](urlsplit(f"ws://localhost/ws/{route}"))
        if stream:
            self.platform.stream = stream
        self.marks = []                 # that the platform has not given back
        self.errors = []
        super().__init__(FLOW, name, dict(parse_qsl(query)), begin=False, make=self.make, **how)
        for message in self.platform.open():
            self.takes(message)
        while came := self.connection.passes():
            self.hears(came)

    def journal(self):
        if not self.noted:
            return None
        name, _, query = self.route.partition("?")
        file = SimpleNamespace(append=self.lines.append, close=lambda: None)
        return journal.Journal(lambda call_id: file, journal.header(
            name, dict(parse_qsl(query)), "", self.studio.flows[""], self.studio.config, SETTINGS, self.server.today))

    def make(self, server, connection, *more):
        server.pacer = Pacer()
        server.archive = SimpleNamespace(recordings=self.kept, file=lambda name, began_at, head: SimpleNamespace(
            append=self.recorded.extend, close=lambda: None))
        self.connection = self.line(server.clock, lambda: self.call.drained())
        self.connection.tenant = ""
        made = RealtimeCall if self.platform.name == "openai-realtime" else Call
        return made(server, resumption.Line(self.connection) if self.returns else self.connection, *more)

    # -- the platform

    def takes(self, message):
        """A message of the platform's, and what it has to say besides."""
        waiting = [message] if message is not None else []
        while waiting:
            for opcode, content in waiting:
                self.receives(opcode, content)
            waiting = self.drain()

    def receives(self, opcode, content):
        intake = self.connection.socket.intake
        if intake is not None and intake.receive(opcode, content, self.server.now):
            self.taken += 1
        elif self.connection.closed is None:
            try:
                self.call.on_message(opcode, memoryview(content))
            except ProtocolError as error:          # would end the call; here it goes on, to be compared further
                self.errors.append(str(error))

    def hears(self, messages):
        """The platform is as strict as the real one: what that would not take raises."""
        for opcode, content in messages:
            if content.startswith(b'{"type":"error"'):      # what was spoilt is refused; the strict client would go
                self.errors.append(content)
                continue
            match self.platform.receive(opcode, content):
                case Mark(name):
                    self.marks.append(name)
                case Clear():
                    for name in self.marks:
                        self.takes(self.platform.mark(name))
                    self.marks.clear()
            for message in self.drain():
                self.takes(message)

    def drain(self):
        messages = list(self.platform.outbox)
        self.platform.outbox.clear()
        return messages

    # -- the caller

    def frame(self, pcm):
        self.takes(self.platform.audio(pcm))
        self.studio.hearing.run()

    def silence(self, ms):
        self.audio(ms, np.zeros(self.platform.rate // 50, np.int16))

    def speech(self, ms, words=""):
        self.studio.stt.words = words
        self.audio(ms, tone(self.platform.rate // 50, self.platform.rate))

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
            self.hears(self.connection.passes())
        self.said.append(self.told())

    def told(self):
        """All that anybody could ask of the call at this moment."""
        mouth, turns, slot = self.call.mouth, self.call.turns, self.call.slot
        if slot is None:
            return None
        place = slot.noted if mouth.turn is not None else None
        heard = bytes(slot.read(max(0, slot.written - 400), min(400, slot.written)))
        return (heard, slot.written, turns.state, turns.position, mouth.epoch, mouth.playout.sent, mouth.sounded, place,
                mouth.playout.heard(self.server.now), self.call.ear.media_at, self.call.ear.gap, mouth.out.dropped,
                state_of(self.call.dialect))


def tone(count, rate):
    """Loud, and with samples of -1 in it."""
    pcm = (8000 * np.sin(np.arange(count) * 2 * np.pi * 300 / rate)).astype(np.int16)
    pcm[::50] = -1
    return pcm


# ---- what a platform may send besides --------------------------------------------------------------------------------

def twisted(message, chance):
    """The same in another form, or something like it."""
    opcode, content = message
    if opcode == BINARY:
        cut = chance.randrange(1, len(content))
        return chance.choice([[(BINARY, content[:cut]), (BINARY, content[cut:])], [(BINARY, content * 9)],
                              [(BINARY, content[:-1]), (BINARY, content), (BINARY, content[-1:])]])
    read = json.loads(content)
    fields = list(read.items())
    chance.shuffle(fields)
    more = dict([("unknown", {"a": [1, None]}), *fields])
    texts = [json.dumps(dict(fields)), json.dumps(read, indent=1), json.dumps(more), content.decode() + "  ",
             content.decode().replace("=", ""), content.decode().replace('"inbound"', '"outbound"')]
    return [(TEXT, chance.choice([*texts, *(spoiled(content.decode(), chance) for _ in texts)]).encode())]


def spoiled(text, chance):
    """With a character too many, too few, or another."""
    at = chance.randrange(len(text))
    return text[:at] + chance.choice(["", *'"{}[],:\\=A9 -']) + text[at + chance.randrange(2):]


def later(messages):
    """One after the other, the second one first, and that again."""
    first, second = messages
    return [second, first, second]


def rarely(platform):
    """Messages that come in pairs: something stops, and goes on."""
    match platform.name:
        case "asterisk" if platform._json:
            return [platform._event("MEDIA_XOFF"), platform._event("MEDIA_XON")]
        case "asterisk":
            return [(TEXT, b"MEDIA_XOFF"), (TEXT, b"MEDIA_XON")]
        case "audiohook":
            return [platform._message("error", {"code": 429, "message": "slowly", "retryAfter": "PT0.3S"}),
                    platform._message("paused", {}), platform._message("resumed", {})]
        case "audiocodes":
            return [(TEXT, b'{"type":"userStream.stop"}'), (TEXT, b'{"type":"userStream.start"}')]
    return [(TEXT, b'{"event":"unknown"}')]


def script(call, chance):
    """A caller who does whatever comes next in `chance`."""
    platform, per_frame = call.platform, call.platform.rate // 50
    call.listens(2_000)
    for _ in range(10):
        match chance.randrange(11):
            case 0 | 1:
                call.says(chance.choice(["tell me more", "what is that", "mm hm"]), chance.randrange(300, 900, 20))
            case 2:
                call.speech(chance.randrange(40, 1200, 20), chance.choice(["stop it now", "mm hm", ""]))
                call.silence(chance.randrange(100, 900, 20))
            case 3:
                call.takes(platform.dtmf("5"))
                call.silence(chance.randrange(100, 900, 20))
            case 4:
                if call.marks:
                    call.takes(platform.mark(call.marks.pop()))
            case 5:
                call.passes(chance.randrange(5, 400, 5))        # no media
            case 6:
                call.server.now += chance.randrange(1, 120) * MS        # the loop was late
            case 7:
                call.connection.reads = False
                call.silence(chance.randrange(500, 1500, 20))
                call.connection.reads = True
            case 8:
                for _ in range(3):
                    if (message := platform.audio(tone(per_frame, platform.rate))) is not None:
                        for each in twisted(message, chance):
                            call.takes(each)
                    call.silence(40)
                call.silence(chance.randrange(100, 2500, 20))
            case 9:
                for message in rarely(platform):
                    call.takes(message)
                    call.silence(chance.randrange(100, 700, 20))
            case 10:
                call.speech(100)
                messages = [message for _ in range(2) if (message := platform.audio(tone(per_frame, platform.rate)))]
                for message in later(messages) if len(messages) == 2 else messages:
                    call.takes(message)


@pytest.fixture(autouse=True)
def a_voice_with_samples_of_minus_one(monkeypatch):
    monkeypatch.setattr(conversation, "spoken",
                        lambda text, rate: tone(len(text.split()) * WORD_MS * rate // 1000, rate))


@pytest.mark.parametrize("route, seed", [("twilio", seed) for seed in range(12)]
                         + [(route, seed) for route in ROUTES[1:] for seed in range(2)])
def test_nothing_can_be_told_from_the_ordinary_way(route, seed):
    ordinary, other = calls = [Compared(line, seed % 2 > 0, route, kept=seed % 4 > 1 or seed == 1, ahead=seed % 3 > 0)
                               for line in (Line, Plain)]
    for call in calls:
        script(call, random.Random(f"{route} {seed}"))
        if call.call.recording is not None:
            call.call.recording.close()
        call.connection.hang_up()
    assert other.said == ordinary.said and other.recorded == ordinary.recorded
    assert bool(other.recorded) == other.kept
    assert other.connection.sent == ordinary.connection.sent
    assert other.receipts == ordinary.receipts and other.errors == ordinary.errors
    assert not ordinary.taken and not ordinary.sent_on
    assert other.taken > 20 or "wav" in route               # whose chunks may begin with a header
    resampled = other.kept and other.call.recording.as_sent is None     # which Python does
    assert other.sent_on > 20 or resampled or other.call.mouth.playout.most > other.call.mouth.playout.size


WISHES = (
    {"type": "session.update", "session": {"audio": {"input": {"turn_detection": None}}}},
    {"type": "session.update", "session": {"audio": {"input": {"turn_detection": {"type": "server_vad"}}}}},
    {"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/pcma"}}}}},
    {"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 24000}}}}},
    {"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}},
    {"type": "input_audio_buffer.commit"}, {"type": "input_audio_buffer.clear"}, {"type": "response.create"},
    {"type": "response.cancel"}, {"type": "input_audio_buffer.dtmf", "event": "5"})


def leads(call, chance):
    """A client that sends audio in pieces of any length, as fast as it likes, and has wishes besides."""
    for _ in range(60):
        match chance.randrange(6):
            case 0:
                wish = chance.choice(WISHES)
                call.receives(TEXT, json.dumps(wish).encode())
            case 1:
                call.passes(chance.randrange(5, 900, 5))
            case _:
                ms, pace = chance.choice([(20, 1), (20, 1), (20, 3), (60, 1), (100, 1), (100, 9), (300, 2)])
                sound = chance.choice([bytes([0x90, 0x10] * 4 * ms), bytes([0xFF] * 8 * ms)])
                audio = base64.b64encode(sound).decode()
                call.studio.stt.words = chance.choice(["tell me more", "mm hm", ""])
                for i in range(chance.randrange(5, 40)):
                    fields = [("type", "input_audio_buffer.append"), ("audio", audio), ("event_id", f"e{i}")]
                    chance.shuffle(fields)
                    call.receives(TEXT, json.dumps(dict(fields[chance.randrange(2):])).encode())
                    call.studio.hearing.run()
                    if i % pace == 0:
                        call.passes(ms)
    call.passes(5_000)


@pytest.mark.parametrize("seed", range(8))
def test_a_client_that_leads_cannot_tell_either(seed):
    ordinary, other = calls = [Compared(line, False, "openai-realtime?format=pcmu") for line in (Line, Plain)]
    for call in calls:
        leads(call, random.Random(seed))
        call.connection.hang_up()
    assert other.said == ordinary.said
    assert other.connection.sent == ordinary.connection.sent and other.errors == ordinary.errors
    assert other.receipts == ordinary.receipts and other.taken > 20 and not ordinary.taken


# ---- a journal of it -------------------------------------------------------------------------------------------------

def told_of(tape, heeded=0.0):
    """What a journal says, but for when the call was looked at and its frames went out; and when messages came.  A
    score that is not `heeded` is 0."""
    told = []
    for entry in tape.entries:
        if entry.kind == journal.WINDOW and entry.args[0] < heeded:
            told.append((entry.kind, [0.0, *entry.args[1:]], 0))
        elif entry.kind not in (journal.TICK, journal.FRAME):
            told.append((entry.kind, entry.args, entry.at if entry.kind == journal.MESSAGE and entry.readings else 0))
    return told


def both_noted(talk, route, tmp_path, returns=False, heeded=0.0, **how):
    """A call that Python has every frame of, and one that it has not; and the journals of both, which say the same."""
    calls, tapes = [Compared(line, returns, route, noted=True, **how) for line in (Line, Plain)], []
    for call in calls:
        talk(call)
        call.connection.hang_up()
        path = tmp_path / f"{len(tapes)}.jsonl"
        path.write_bytes(b"".join(call.lines))
        tapes.append(load(str(path)))
    ordinary, other = calls
    assert told_of(tapes[1], heeded) == told_of(tapes[0], heeded)
    assert other.said == ordinary.said and other.connection.sent == ordinary.connection.sent
    assert other.receipts == ordinary.receipts and not ordinary.taken and not ordinary.sent_on
    return calls, tapes


def replayed(tape):
    again = rerun.Replay(tape, rerun.World(tape, rerun.config_of(tape, {})))
    asyncio.run(again.run())
    return again.call


@pytest.mark.parametrize("route, seed", [("twilio", seed) for seed in range(6)]
                         + [(route, seed) for route in ROUTES[1:] for seed in range(2)])
def test_a_journal_is_the_same_as_on_the_ordinary_way(route, seed, tmp_path):
    (_, other), tapes = both_noted(lambda call: script(call, random.Random(f"{route} {seed}")), route, tmp_path,
                                   seed % 2 > 0, ahead=seed % 3 > 0)
    frames, playout = sum(entry.kind == journal.FRAME for entry in tapes[1].entries), other.call.mouth.playout
    assert other.taken > 20 or "wav" in route
    assert frames >= other.sent_on and (frames > 20 or playout.most > playout.size)
    again = [replayed(tape) for tape in tapes]
    assert all(call.ledger.receipts == other.receipts and call.mouth.playout.sent == playout.sent for call in again)
    assert state_of(again[0].dialect) == state_of(again[1].dialect)


@pytest.mark.parametrize("seed", range(4))
def test_a_journal_of_a_client_that_leads_is_the_same(seed, tmp_path):
    (_, other), _ = both_noted(lambda call: leads(call, random.Random(seed)), "openai-realtime?format=pcmu", tmp_path,
                               heeded=0.35)
    assert other.taken > 20


def test_a_journal_has_messages_of_any_shape(tmp_path):
    def talk(call):
        read = json.loads(call.platform.audio(tone(160, 8000))[1])
        for text in (json.dumps(read, indent="\t").replace("\n", "\r\n"), json.dumps(read | {"more": "x" * 8_000})):
            before = call.taken
            call.receives(TEXT, text.encode())
            call.passes(20)
            assert call.line is Line or call.taken - before == (len(text) < 8192)
        call.call.lost(1000, "")

    both_noted(talk, "twilio", tmp_path)


def test_a_stream_whose_name_fills_a_message_is_spoken_to_the_ordinary_way():
    ordinary, other = calls = [Compared(line, False, stream="MZ" + "0" * 65_300) for line in (Line, Plain)]
    for call in calls:
        call.listens()
        call.connection.hang_up()
    assert other.connection.sent == ordinary.connection.sent and len(other.connection.sent[9][2]) > 65_500
    assert not other.sent_on


def test_messages_that_came_in_pieces_are_taken_too():
    heard = []
    ours, peer = socket.socketpair()
    call = Compared(Plain, False)
    wire = Wire(ours.detach(), FrameParser(1 << 16), lambda *message: heard.append(message), None, None, None, None)
    wire.intake = call.connection.socket.intake
    served = EpollSet(ReceiveBuffer())
    served.add(wire)
    opcode, message = call.platform.audio(tone(160, 8000))
    before = call.call.slot.written
    cut = len(message) // 2
    for piece in (build_frame(opcode, message[:cut], False, b"mask"), build_frame(0, message[cut:], True, b"mask")[:9],
                  build_frame(0, message[cut:], True, b"mask")[9:]):
        peer.send(piece)
        served.poll()
    assert call.call.slot.written == before + 160 and not heard
    wire.close()
    served.close()
    peer.close()
    call.connection.hang_up()
