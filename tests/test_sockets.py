"""The epoll set of our own, on real socket pairs: delivery, budgets, blocked peers, and everything that closes."""
import gc
import os
import select
import socket
import tracemalloc

import pytest

from opusagent import ProtocolError
from opusagent._fastpath import EpollSet, FrameParser, ReceiveBuffer, Wire, build_frame, bytes_written
from opusagent.calls.writeahead import taken

KEY = b"\x01\x02\x03\x04"
BINARY = 2


class Owner:
    """Keeps what its wire tells it; `script` is called with each message."""

    def __init__(self, ours, home, script=None, max_message=1 << 20):
        self.messages, self.controls, self.faults, self.ends, self.drained = [], [], [], [], 0
        self.script = script
        self.wire = Wire(ours.detach(), FrameParser(max_message), self.on_message,
                         lambda opcode, payload: self.controls.append((opcode, bytes(payload))),
                         self.on_fault, self.on_end, self.on_drained)
        home.add(self.wire)

    def on_message(self, opcode, payload):
        self.messages.append(bytes(payload))
        if self.script:
            self.script(self)

    def on_fault(self, error):
        self.faults.append(error)
        self.wire.close()

    def on_end(self, error):
        self.ends.append(error)
        self.wire.close()

    def on_drained(self):
        self.drained += 1


@pytest.fixture
def home():
    home = EpollSet(ReceiveBuffer())
    yield home
    home.close()


def pair(small=False):
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    if small:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    ours.setblocking(False)
    theirs.settimeout(5)
    return ours, theirs


def frame(payload, opcode=BINARY):
    return build_frame(opcode, payload, True, KEY)


def serve(home, rounds=50):
    """As the loop would: while it is readable or somebody's turn is due."""
    for _ in range(rounds):
        again = home.poll()
        if not again and not select.select([home], [], [], 0)[0]:
            return
    pytest.fail("the set never came to rest")


def test_messages_and_control_frames_reach_their_owner(home):
    ours, theirs = pair()
    owner = Owner(ours, home)
    theirs.sendall(frame(b"one") + frame(b"", 9) + frame(b"two")[:5])
    serve(home)
    assert owner.messages == [b"one"] and owner.controls == [(9, b"")]
    theirs.sendall(frame(b"two")[5:])
    serve(home)
    assert owner.messages == [b"one", b"two"]
    theirs.close()
    serve(home)
    assert owner.ends == [None] and len(home) == 0


def test_send_is_one_whole_unmasked_frame(home):
    ours, theirs = pair()
    owner = Owner(ours, home)
    for n in (0, 125, 126, 65535, 65536, 65537):
        assert owner.wire.send(BINARY, bytes(n)) or owner.wire.backlog
        serve_until_read(home, theirs, build_frame(BINARY, bytes(n)))
    theirs.close()
    serve(home)


def serve_until_read(home, theirs, want):
    got = b""
    while len(got) < len(want):
        home.poll()
        got += theirs.recv(1 << 20)
    assert got == want


def test_what_the_socket_does_not_take_goes_out_later_in_order(home):
    ours, theirs = pair(small=True)
    owner = Owner(ours, home)
    want = b"".join(build_frame(BINARY, bytes([i]) * 5000) for i in range(40))
    sent = [owner.wire.send(BINARY, bytes([i]) * 5000) for i in range(40)]
    assert sent[0] is True and sent[-1] is False and owner.wire.backlog > 0
    serve_until_read(home, theirs, want)
    home.poll()
    assert owner.wire.backlog == 0 and owner.drained == 1
    theirs.close()
    serve(home)


def test_only_what_waits_is_kept_though_the_peer_never_takes_all_of_it(home):
    ours, theirs = pair(small=True)
    owner = Owner(ours, home)
    tracemalloc.start()
    for _ in range(2000):
        owner.wire.send(BINARY, bytes(1000))
        while owner.wire.backlog > 20_000:
            theirs.recv(1000)
            home.poll()
    assert owner.wire.backlog and not owner.drained
    assert tracemalloc.get_traced_memory()[1] < 200_000
    tracemalloc.stop()
    theirs.close()
    serve(home)


@pytest.mark.parametrize("gone", [False, True])
def test_a_wire_may_speak_before_it_is_served(home, gone):
    """A session's first words, to a peer that does not read yet, or has gone already."""
    ours, theirs = pair(small=True)
    ends = []
    wire = Wire(ours.detach(), FrameParser(1000), None, None, None,
                lambda error: (ends.append(error), wire.close()), lambda: None)
    if gone:
        theirs.close()
    assert wire.send(BINARY, bytes(60000)) is False and wire.backlog > 0
    home.add(wire)
    if not gone:
        serve_until_read(home, theirs, build_frame(BINARY, bytes(60000)))
        theirs.close()
    serve(home)
    assert len(ends) == 1 and len(home) == 0


def test_who_sends_after_the_end_is_told_and_does_not_spin(home):
    ours, theirs = pair()
    owner = Owner(ours, home)
    owner.wire.shutdown()
    assert owner.wire.send(BINARY, b"late") is False
    serve(home)
    assert [type(error) for error in owner.ends] == [BrokenPipeError] and len(home) == 0
    theirs.close()


def test_what_a_peer_said_last_is_heard_though_it_cannot_be_answered(home):
    ours, theirs = pair()
    owner = Owner(ours, home, script=lambda owner: owner.wire.send(BINARY, b"answer"))
    theirs.sendall(frame(b"one") + frame(b"two"))
    theirs.close()
    serve(home)
    assert owner.messages == [b"one", b"two"] and len(owner.ends) == 1


def test_a_flood_is_served_in_turns(home):
    flood, calm = pair(), pair()
    flooding, calling = Owner(flood[0], home), Owner(calm[0], home)
    flood[1].sendall(frame(b"x") * 1000)
    calm[1].sendall(frame(b"hello"))
    assert home.poll() is True
    assert len(flooding.messages) == 64 and calling.messages == [b"hello"]
    serve(home)
    assert len(flooding.messages) == 1000
    for _, theirs in (flood, calm):
        theirs.close()
    serve(home)


def test_a_flood_that_never_ends_has_one_turn_a_round(home):
    """Its readable socket and its waiting messages do not add up to more turns from round to round."""
    ours, theirs = pair()
    owner, wire, at = Owner(ours, home), frame(b"") * 10000, 0
    theirs.setblocking(False)
    for _ in range(20):
        try:
            while True:
                at = (at + theirs.send(wire[at:])) % len(wire)
        except BlockingIOError:
            home.poll()
        assert 0 < len(owner.messages) <= 128 and not owner.faults
        owner.messages.clear()
    owner.wire.close()
    theirs.close()


def test_lockstep_reads_no_more_than_it_can_give_back(home):
    ours, theirs = pair(small=True)
    owner = Owner(ours, home, script=lambda owner: owner.wire.send(BINARY, owner.messages[-1]))
    owner.wire.lockstep = True
    wire, want = b"", b""
    for i in range(60):
        wire += frame(bytes([i]) * 1000)
        want += build_frame(BINARY, bytes([i]) * 1000)
    theirs.sendall(wire)
    serve(home)
    assert owner.wire.backlog <= 1004 and len(owner.messages) < 60
    serve_until_read(home, theirs, want)
    assert len(owner.messages) == 60
    theirs.close()
    serve(home)
    assert owner.ends == [None]


def test_lockstep_notices_a_peer_that_dies_while_it_does_not_read(home):
    ours, theirs = pair(small=True)
    owner = Owner(ours, home, script=lambda owner: owner.wire.send(BINARY, bytes(100000)))
    owner.wire.lockstep = True
    theirs.sendall(frame(b"x"))
    serve(home)
    theirs.close()
    serve(home)
    assert owner.ends and len(home) == 0


def test_a_broken_protocol_and_a_broken_callback_are_faults_of_that_wire_alone(home):
    bad, worse, good = pair(), pair(), pair()
    owners = [Owner(bad[0], home), Owner(worse[0], home, script=lambda owner: 1 / 0), Owner(good[0], home)]
    bad[1].sendall(b"\xff\xff")
    worse[1].sendall(frame(b"x") * 3)
    good[1].sendall(frame(b"fine"))
    serve(home)
    assert isinstance(owners[0].faults[0], ProtocolError) and isinstance(owners[1].faults[0], ZeroDivisionError)
    assert owners[1].messages == [b"x"] and owners[2].messages == [b"fine"] and len(home) == 1
    owners[2].wire.close()
    for _, theirs in (bad, worse, good):
        theirs.close()


def test_closing_in_mid_callback_ends_delivery_at_once(home):
    ours, theirs = pair()
    owner = Owner(ours, home, script=lambda owner: owner.wire.close())
    theirs.sendall(frame(b"a") + frame(b"b"))
    serve(home)
    assert owner.messages == [b"a"] and owner.wire.fd == -1 and not owner.faults
    assert owner.wire.send(BINARY, b"late") is False
    theirs.close()


def test_an_event_for_a_wire_closed_in_the_same_round_finds_nobody(home):
    first, second = pair(), pair()
    owners = []

    def close_the_others(owner):
        for other in owners:
            other.wire.close()
        # a new wire takes the freed slot, and likely the freed descriptor number, before the round goes on
        fresh = pair()
        owners.append(Owner(fresh[0], home))
        keep.append(fresh[1])

    keep = []
    owners.append(Owner(first[0], home, close_the_others))
    owners.append(Owner(second[0], home, close_the_others))
    for _, theirs in (first, second):
        theirs.sendall(frame(b"x"))
    home.poll()
    assert sum(len(owner.messages) for owner in owners) == 1
    assert len(home) == 1 and not any(owner.faults for owner in owners)
    owners[-1].wire.close()
    for theirs in (first[1], second[1], *keep):
        theirs.close()


def test_bytes_that_came_with_the_upgrade_are_delivered_first(home):
    ours, theirs = pair()
    parser = FrameParser(1000)
    parser.feed_bytes(frame(b"early") + frame(b"later")[:3])
    messages = []
    wire = Wire(ours.detach(), parser, lambda opcode, payload: messages.append(bytes(payload)), None, None,
                lambda error: wire.close(), None)
    home.add(wire)
    theirs.sendall(frame(b"later")[3:])
    serve(home)
    assert messages == [b"early", b"later"]
    theirs.close()
    serve(home)


def test_no_descriptor_is_left_behind():
    gc.collect()                            # what other tests have left is theirs
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        home = EpollSet(ReceiveBuffer())
        ours, theirs = pair()
        owner = Owner(ours, home)
        theirs.close()
        serve(home)
        assert owner.ends == [None]
        home.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_kernel_knows_what_it_was_given_by_a_process_that_is_gone():
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()) as peer:
        sock, _ = listening.accept()
        with sock:
            began = bytes_written(sock.fileno())
            sock.sendall(bytes(1000))
            assert bytes_written(sock.fileno()) - began == 1000
            peer.recv(400)
            sock.sendall(bytes(234))
            assert bytes_written(sock.fileno()) - began == 1234
    with open("/dev/null") as nothing:
        assert bytes_written(nothing.fileno()) == -1


@pytest.mark.parametrize("count, whole, left", [
    (-5, 0, 0), (0, 0, 0), (1, 0, 4), (5, 1, 0), (6, 1, 6), (12, 2, 0), (13, 3, 0), (99, 3, 0)])
def test_of_frames_that_were_taken_some_lie_whole_and_one_may_be_cut(count, whole, left):
    assert taken([bytes(5), bytes(7), bytes(1)], count) == (whole, left)


def test_media_flows_while_neither_side_waits_for_the_rest_of_anything(home):
    ours, theirs = pair(small=True)
    owner = Owner(ours, home)
    size = len(frame(b"media"))

    def comes(data):
        theirs.sendall(data)
        serve(home)

    second = 1_000_000_000
    comes(frame(b"media"))
    assert not owner.wire.flows(0)                      # the owner has not looked yet
    owner.wire.calm(9 * second, second, 3 * size)       # three a second
    assert owner.wire.flows(2 * second - 1) and owner.wire.flowed == 2 * second - 1
    assert not owner.wire.flows(2 * second)             # nothing came
    comes(frame(b"media") * 3)
    assert not owner.wire.flows(2 * second)             # more than may come by then, which is still to be told
    assert owner.wire.flows(3 * second) and not owner.wire.flows(3 * second)
    assert owner.wire.parser.take_finished() == owner.wire.parser.take_received() == 0
    comes(frame(b"media") + frame(b"media")[:7])
    assert not owner.wire.flows(4 * second)             # the second is not whole
    comes(frame(b"media")[7:])
    assert owner.wire.flows(4 * second) and owner.wire.looked == owner.wire.flowed == 4 * second
    comes(frame(b"media") + frame(b"", 0x9))
    assert not owner.wire.flows(5 * second)             # there is a budget for control frames, which the owner knows
    owner.wire.calm(9 * second, 5 * second, 0)          # any number
    comes(frame(b"media") * 9)
    assert not owner.wire.flows(9 * second) and owner.wire.flows(9 * second - 1)        # then something is due
    while owner.wire.send(BINARY, bytes(5000)):
        pass
    comes(frame(b"media"))
    assert not owner.wire.flows(9 * second - 1)         # the peer does not take what is sent to it
    theirs.close()
    serve(home)
