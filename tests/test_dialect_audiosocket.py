"""AudioSocket: its bytes wherever they are cut, a call on them, and a server that older Asterisks can call."""
import asyncio
import json
import os
import socket
import time
import urllib.request
from contextlib import suppress
from types import SimpleNamespace
from unittest.mock import Mock
from uuid import UUID as Uuid

import numpy as np
import pytest
from conversation import Conversation
from hypothesis import given
from hypothesis import strategies as st

from opusagent import ConfigError, ProtocolError, cli
from opusagent.client.people import person
from opusagent.config import Config
from opusagent.dialects import TABLE, Audio, Dtmf, Start, Stop
from opusagent.dialects.audiosocket import AUDIO, DTMF, ERROR, HANGUP, UUID, AudioSocket, Messages, message
from opusagent.server.routes import Routes
from opusagent.transport.audiosocket import MOST_RECEIVED, AudioSocketConnection, BareWire
from opusagent.transport.door import AT_A_TURN, Turnstile
from served import SCRIPTED, free_port, serving

RAW = bytes.fromhex("40325ec25efd4bd38bc3b7f7a4c1e6d0")
NAME = "40325ec2-5efd-4bd3-8bc3-b7f7a4c1e6d0"
CALL = (message(UUID, RAW) + message(AUDIO, b"\x01\x00\xff\xff") + message(DTMF, b"5") + message(AUDIO, b"") +
        message(AUDIO, b"\x02") + message(AUDIO, b"\x00") + message(0x77, b"new") + message(HANGUP))


def plain(event):
    return list(event.pcm) if isinstance(event, Audio) else event


def heard(*pieces, call=None):
    """The events of bytes in pieces."""
    messages, call = Messages(), call or AudioSocket({})
    events = [plain(call.receive(kind, payload)) for piece in pieces for kind, payload in messages.feed(piece)]
    return [event for event in events if event is not None]


def test_a_call_as_it_stands_on_the_wire():
    assert CALL.startswith(bytes.fromhex("010010" "40325ec25efd4bd38bc3b7f7a4c1e6d0" "100004" "0100ffff" "030001" "35"))
    assert CALL.endswith(bytes.fromhex("000000"))
    assert heard(CALL) == [Start(NAME), [1, -1], Dtmf("5"), [2], Stop()]


def test_it_reads_the_same_wherever_it_is_cut():
    for cut in range(len(CALL) + 1):
        assert heard(CALL[:cut], CALL[cut:]) == heard(CALL)
    assert heard(*(CALL[i:i + 1] for i in range(len(CALL)))) == heard(CALL)


def test_what_we_send_is_whole_messages_of_the_one_kind_that_every_release_knows():
    call = AudioSocket({})
    assert call.audio(np.array([1, -2], np.int16)) == bytes.fromhex("100004" "0100feff")
    assert call.stop() == bytes.fromhex("000000") and call.mark("1") is None and call.clear() is None


@pytest.mark.parametrize("kind", range(0x11, 0x19))
def test_audio_at_another_rate_ends_the_call_by_name(kind):
    with pytest.raises(ProtocolError, match="slin at 8000 Hz"):
        heard(message(UUID, RAW) + message(kind, bytes(640)))


def test_nothing_counts_before_the_uuid_or_after_the_end():
    call = AudioSocket({})
    assert heard(message(AUDIO, bytes(320)) + message(DTMF, b"1") + message(HANGUP), call=call) == []
    assert heard(message(UUID, RAW) * 2 + message(ERROR, b"\x01") + message(AUDIO, bytes(2)) + message(UUID, RAW),
                 call=call) == [Start(NAME), Stop("an error, 01")]
    assert call.ignored == 6
    with pytest.raises(ProtocolError, match="16 bytes"):
        heard(message(UUID, RAW[:15]))


@given(st.lists(st.binary(max_size=30) | st.sampled_from([CALL, CALL[:19], message(UUID, RAW), b"\x10\xff\xff"]),
                max_size=8))
def test_events_or_protocol_errors_and_nothing_else(pieces):
    messages, call, events = Messages(), AudioSocket({}), []
    for piece in pieces:
        for kind, payload in messages.feed(piece):
            try:
                event = call.receive(kind, payload)
            except ProtocolError as error:
                assert error.code in (1007, 1008) and 0 < len(error.reason.encode()) <= 123
                continue
            if event is not None:
                assert isinstance(event, (Start, Audio, Dtmf, Stop))
                events.append(type(event))
        assert len(messages.rest) < 65538
    assert events.count(Start) <= 1 and events.count(Stop) <= 1 and (not events or events[0] is Start)


# ---- a call ----------------------------------------------------------------------------------------------------------

FLOW = """
start = "welcome"
[states.welcome]
say = "Press one."
on = [{ dtmf = "1", go = "bye" }, { phrases = ["ten of clubs"], go = "bye" }]
[states.bye]
say = "Goodbye."
end = true
"""


def test_speech_is_sent_at_the_listeners_pace(monkeypatch):
    monkeypatch.setitem(TABLE, "audiosocket", AudioSocket)
    talk = Conversation(FLOW.replace("Press one.", "a " * 40), dialect="audiosocket", begin=False)
    talk.call.on_message(UUID, memoryview(RAW))
    for _ in range(20):
        before = len(talk.connection.sent)
        talk.passes(100)
        assert len(talk.connection.sent) - before <= 5
    assert all(sent[:3] == bytes((AUDIO, 1, 64)) for _, sent in talk.connection.sent)


class Kept:
    """A slot's place for what a wire has not parsed or not sent."""

    framing = b""

    def keep_framing(self, framing):
        self.framing = bytes(framing)
        return len(framing) <= 16384


SAID = message(UUID, RAW) + message(AUDIO, bytes(range(200)) * 2) + message(DTMF, b"5") + message(AUDIO, b"")


@pytest.mark.parametrize("cut", [*range(0, 30), 300, len(SAID) - 1])
def test_another_process_reads_on_wherever_a_message_was_cut_and_sends_what_was_not_sent(cut):
    async def scenario():
        ours, peer = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        heard, kept, errors = [], Kept(), []

        def wire(sock):
            made = BareWire(sock, lambda kind, payload: heard.append((kind, bytes(payload))), errors.append,
                            errors.append, lambda: None)
            made.keeper = kept
            made.listen()
            return made
        before = wire(ours.dup())
        sent = bytes(range(256)) * 60
        while before.write(sent):
            pass
        peer.sendall(SAID[:cut])
        while len(SAID[:cut]) > sum(3 + len(payload) for _, payload in heard) + len(before._messages.rest):
            await asyncio.sleep(0)
        framing = kept.framing
        before.close()
        after = wire(ours)
        after.restore(framing)
        peer.sendall(SAID[cut:])
        peer.setblocking(False)
        came = b""
        while len(heard) < 4 or after.backlog:
            await asyncio.sleep(0)
            with suppress(BlockingIOError):
                came += peer.recv(65536)
        with suppress(BlockingIOError):
            while data := peer.recv(65536):
                came += data
        after.close()
        peer.close()
        assert came == sent * (len(came) // len(sent)) and not errors
        assert heard == [(UUID, RAW), (AUDIO, bytes(range(200)) * 2), (DTMF, b"5"), (AUDIO, b"")]
        assert kept.framing == b""              # a third process has nothing to read
    asyncio.run(scenario())


def test_a_flood_of_empty_messages_leaves_the_others_their_turn():
    async def scenario():
        ours, peer = socket.socketpair()
        heard, ends = [], []
        wire = BareWire(ours, lambda kind, payload: heard.append(kind), ends.append, ends.append, lambda: None)
        wire.listen()
        peer.sendall(message(AUDIO) * 10000)
        seen = []
        while len(heard) < 10000:
            seen.append(len(heard))
            await asyncio.sleep(0)
        assert max(after - before for before, after in zip(seen, seen[1:])) <= MOST_RECEIVED // 3 + 1
        wire.muted = True                       # and nothing is kept of what comes after the end
        peer.sendall(message(AUDIO, bytes(1000))[:500])
        peer.close()
        while not ends:
            await asyncio.sleep(0)
        assert wire._messages.rest == b"" and len(heard) == 10000
        wire.close()
    asyncio.run(scenario())


def bare_connection(session):
    """A connection in a server that has no other, at a standing clock."""
    connection = AudioSocketConnection(Mock(tock=lambda: 1, clock=lambda: 1,
                                            routes=Mock(narrow=SimpleNamespace(bytes_per_second=1000))))
    connection.wire, connection.session = Mock(backlog=0), session
    return connection


def test_calls_that_come_at_once_begin_a_few_at_each_turn_of_the_loop():
    async def scenario():
        sessions, pairs = [], [socket.socketpair() for _ in range(3 * AT_A_TURN)]
        routes = Mock(narrow=SimpleNamespace(bytes_per_second=1000, idle_seconds=60),
                      bare_session=lambda *made: sessions.append(Mock(overdue=lambda now: False)) or sessions[-1])
        server = Mock(tock=lambda: 1, clock=lambda: 1, turnstile=Turnstile(), config=Config(), connections=set(),
                      routes=routes)
        made = [AudioSocketConnection(server) for _ in pairs]
        for connection, (ours, peer) in zip(made, pairs):
            connection.accepted(ours)
            peer.send(message(UUID, bytes(16)))
        made[1].close()                             # who leaves before that does not begin,
        made[2].ended(None)
        begun = []
        for _ in range(10):
            for connection in made:
                connection.sweep(2)                 # ... and who waits is not overdue
            begun.append((len(sessions), sum(session.on_message.called for session in sessions)))
            await asyncio.sleep(0)
        counts, read = zip(*begun)
        assert counts[:4] == (0, AT_A_TURN - 2, 2 * AT_A_TURN - 2, 3 * AT_A_TURN - 2) and counts[-1] == read[-1]
        assert all(after - before <= AT_A_TURN for before, after in zip(read, read[1:]))
        for connection, (ours, peer) in zip(made, pairs):
            connection.ended(None)
            peer.close()
    asyncio.run(scenario())


def test_the_budget_is_not_waited_for_until_the_next_look():
    call = Mock()
    connection = bare_connection(call)
    with pytest.raises(ProtocolError, match="more comes than a call needs"):
        for _ in range(2000):
            connection._message(AUDIO, memoryview(b""))
    assert call.on_message.call_count == 1000


def test_strangers_that_are_refused_fill_no_log(caplog, monkeypatch):
    async def scenario():
        monkeypatch.setattr(AudioSocketConnection, "told", -10**9)
        for _ in range(50):
            bare_connection(None).fault(ProtocolError(503, "This server is full."))
        for _ in range(2):
            bare_connection(Mock()).fault(ProtocolError(1008, "the peer does not read"))    # of a call, always
    asyncio.run(scenario())
    assert [line.rpartition(": ")[2] for line in caplog.messages] == [
        "This server is full.", "the peer does not read", "the peer does not read"]


# ---- over real sockets -----------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(the served, the port for AudioSocket)."""
    folder = tmp_path_factory.mktemp("audiosocket")
    (folder / "flow.toml").write_text(FLOW)
    (folder / "said.txt").write_text("ten of clubs\n")
    port = free_port()
    with serving(*SCRIPTED, "--flow", str(folder / "flow.toml"), "--scripted-stt", str(folder / "said.txt"),
                 "--audiosocket", str(port)) as served:
        yield served, port


class Asterisk:
    """The dialplan's application: audio at its pace, and what comes back."""

    def __init__(self, port, name=None):
        self.name = name or os.urandom(16)
        self.line = socket.create_connection(("127.0.0.1", port), 5)
        self.messages = Messages()
        self.heard = []                 # (kind, payload)
        self.over = False
        self.line.sendall(message(UUID, self.name))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.line.close()

    def passes(self, ms):
        self.says(bytes(320) * (ms // 20))

    def says(self, pcm):
        for at in range(0, len(pcm), 320):
            if not self.over:
                self.beat(pcm[at:at + 320])

    def beat(self, pcm):
        until = time.monotonic() + 0.02
        try:
            self.line.sendall(message(AUDIO, pcm))
            while (left := until - time.monotonic()) > 0 and not self.over:
                self.line.settimeout(left)
                self.take(self.line.recv(4096))
        except TimeoutError:
            pass
        except ConnectionError:
            self.over = True

    def take(self, data):
        self.over = not data
        self.heard += [(kind, bytes(payload)) for kind, payload in self.messages.feed(data)]

    @property
    def ms(self):
        """Of audio that was heard."""
        return sum(len(payload) for kind, payload in self.heard if kind == AUDIO) / 16


def test_a_call_from_greeting_to_goodbye(server):
    served, port = server
    with Asterisk(port) as call:
        call.passes(1500)
        greeting = call.ms
        assert greeting > 200
        call.line.sendall(message(DTMF, b"1"))
        call.passes(4000)
    assert call.ms > greeting + 200 and call.over
    assert call.heard[-1] == (HANGUP, b"") and {kind for kind, _ in call.heard} == {AUDIO, HANGUP}
    assert all(len(payload) == 320 for kind, payload in call.heard if kind == AUDIO)
    with urllib.request.urlopen(f"http://{served.host}:{served.port}/calls/{Uuid(bytes=call.name)}") as page:
        record = json.load(page)
    assert (record["dialect"], record["done"], record["state"]) == ("audiosocket", True, "bye")
    assert "Traceback" not in served.written()


def test_calls_are_kept_whatever_bytes_name_them_and_taken_once_more(tmp_path, capsys):
    (tmp_path / "flow.toml").write_text(FLOW)
    port, names = free_port(), [b"\xff" * 16, b"sixteen letters!"]
    with serving(*SCRIPTED, "--flow", str(tmp_path / "flow.toml"), "--audiosocket", str(port), "--archive-directory",
                 str(tmp_path / "kept"), "--archive-recordings") as served:
        for name in names:
            with Asterisk(port, name) as call:
                call.passes(1000)
                call.line.sendall(message(DTMF, b"1"))
                call.passes(4000)
            assert call.heard[-1] == (HANGUP, b"")
        assert "Traceback" not in served.written()
    for name in names:
        [journal] = tmp_path.glob(f"kept/*/*-{Uuid(bytes=name)}.jsonl")
        assert cli.main(["replay", str(journal)]) == 0, capsys.readouterr()


def test_a_caller_is_heard(server):
    served, port = server
    try:
        voice = next(say.pcm for say in person(8000)[1] if say.name == "ten of clubs")
    except ConfigError as error:
        pytest.skip(str(error))
    with Asterisk(port) as call:
        call.passes(1500)
        call.says(voice.tobytes())
        call.passes(4000)
    assert call.over and call.heard[-1] == (HANGUP, b"")


@pytest.mark.parametrize("data", [message(0x12, bytes(640)), message(HANGUP), message(ERROR, b"\x01"), b""])
def test_a_call_that_cannot_be_or_is_over_is_ended(server, data):
    served, port = server
    with Asterisk(port) as call:
        if data:
            call.line.sendall(data)
        else:
            call.line.shutdown(socket.SHUT_WR)
        call.line.settimeout(5)
        try:
            while call.line.recv(4096):
                pass
        except ConnectionError:
            pass
    assert served.alive() and "Traceback" not in served.written()


def test_a_call_that_is_here_already_is_refused_and_the_first_goes_on(server):
    served, port = server
    with Asterisk(port) as first:
        first.passes(100)
        with Asterisk(port, first.name) as second:
            second.passes(200)
            assert second.over and second.ms == 0
        before = first.ms
        first.passes(200)
        assert not first.over and first.ms > before


def test_messages_of_any_kind_end_at_most_their_own_call(server):
    served, port = server
    with Asterisk(port) as witness:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port), 5) as line:
                line.sendall(os.urandom(3000))
        witness.passes(300)
        assert not witness.over and served.alive() and "Traceback" not in served.written()


@pytest.mark.parametrize("peer, insecure, allowed", [
    (("127.0.0.1", 1), False, True), (("192.0.2.1", 1), False, False), (("192.0.2.1", 1), True, True),
    ((), False, False)])
def test_strangers_are_refused_for_nothing_says_who_they_are(peer, insecure, allowed):
    room = Mock(config=Config(insecure=insecure))
    room.admission.check.side_effect = EOFError             # it got as far as that
    with pytest.raises(EOFError if allowed else ProtocolError):
        Routes(room).bare_session(SimpleNamespace(peer=peer), None)


def test_more_than_a_call_can_say_is_refused(server):
    served, port = server
    with Asterisk(port) as call, pytest.raises(ConnectionError):
        for _ in range(200):
            call.line.sendall(message(AUDIO, bytes(32000)))
            time.sleep(0.02)
    assert "more comes than a call needs" in served.written()
