"""How a TLS connection ends: with a close_notify behind the answer, also where the peer has sent its own already, and
at once where records come with nothing in them."""
import _ssl
import asyncio
import ctypes
import os
import socket
import ssl

import pytest

from opusagent.transport.http11 import ClientHandshake
from opusagent.transport.transportwire import TransportWire
from served import SCRIPTED, serving, tls_flags

MASKED_CLOSE, MASKED_PING, MASKED_LETTER = b"\x88\x82\0\0\0\0\x03\xe8", b"\x89\x80\0\0\0\0", b"\x81\x81\0\0\0\0a"
REQUEST = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(*SCRIPTED, *tls_flags(tmp_path_factory.mktemp("tls"))) as served:
        yield served


class Peer:
    """A client that decides itself which records leave together."""

    def __init__(self, server):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.line = socket.create_connection((server.host, server.port), 10)
        self.came, self.goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.came, self.goes)
        self.waits(self.tls.do_handshake)

    def waits(self, wanted):
        """What `wanted` gives when enough has come for it."""
        while True:
            try:
                return wanted()
            except ssl.SSLWantReadError:
                self.flush()
                if data := self.line.recv(65536):
                    self.came.write(data)
                else:
                    self.came.write_eof()

    def flush(self):
        self.line.sendall(self.goes.read())

    def ends_with(self, data):
        """Send this and a close_notify at once; everything that is still on the line."""
        self.tls.write(data)
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.unwrap()
        self.flush()
        while data := self.line.recv(65536):
            self.came.write(data)
        self.line.close()


    def upgrades(self, route):
        handshake = ClientHandshake("localhost", route, os.urandom(16))
        self.tls.write(handshake.request)
        assert self.waits(lambda: self.tls.read(4096)).startswith(b"HTTP/1.1 101 ")

    def updates_its_keys(self, times):
        """So often, and asks each time that the other side does as well; the module does not offer it."""
        update = getattr(ctypes.CDLL(_ssl.__file__), "SSL_key_update", None)
        if update is None or self.tls.version() != "TLSv1.3":
            pytest.skip("OpenSSL's update of keys cannot be reached here")
        session = ctypes.c_void_p.from_address(id(self.tls._sslobj) + 3 * ctypes.sizeof(ctypes.c_void_p))
        for _ in range(times):
            assert update(session, 1) == 1
            self.tls.do_handshake()


def test_an_answer_is_whole_and_ends_with_a_close_notify(server):
    peer = Peer(server)
    peer.tls.write(REQUEST)
    answer = b""
    while data := peer.waits(lambda: peer.tls.read(4096)):      # SSLEOFError where the line ends without one
        answer += data
    peer.line.close()
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"alive\n")


def test_who_closes_its_side_behind_the_request_is_answered(server):
    peer = Peer(server)
    peer.ends_with(REQUEST)
    assert peer.came.pending > 200
    assert "Traceback" not in server.written()


@pytest.mark.parametrize("last", [MASKED_CLOSE, b"\xff\xff", b"\x81\x81\0\0\0\0\xff"])
def test_the_last_frame_and_a_close_notify_at_once_are_no_error_of_ours(server, last):
    peer = Peer(server)
    peer.upgrades("/ws/echo")
    peer.ends_with(last)
    assert server.alive() and "Traceback" not in server.written()


@pytest.mark.parametrize("request_head", [b"\0\0", b"GET / HTTP/1.0\r\n\r\n"])
def test_a_refusal_and_a_close_notify_at_once_are_no_error_of_ours(server, request_head):
    peer = Peer(server)
    peer.ends_with(request_head)
    assert server.alive() and "Traceback" not in server.written()


def test_who_only_updates_keys_and_never_reads_is_gone_before_much_waits_for_it(server):
    peer = Peer(server)
    peer.upgrades("/ws/pcm?call_id=updates")
    with pytest.raises(ConnectionError):
        for _ in range(300):
            peer.updates_its_keys(1000)
            peer.tls.write(MASKED_PING)
            peer.flush()
    peer.line.close()


def test_a_record_around_every_small_frame_and_now_and_then_new_keys_are_nothing_to_complain_of(server):
    peer = Peer(server)
    peer.upgrades("/ws/echo")
    for _ in range(50):
        for _ in range(100):
            peer.tls.write(MASKED_LETTER)
        peer.updates_its_keys(1)
        peer.flush()
        echoes = b""
        while len(echoes) < 100 * 3:
            echoes += peer.waits(lambda: peer.tls.read(4096))
        assert echoes == b"\x81\x01a" * 100
    peer.ends_with(MASKED_CLOSE)


def test_a_transport_that_is_over_can_be_looked_at_until_the_connection_is_told():
    """TLS's has no socket any more, for the rest of that turn of the loop."""
    class Over(asyncio.Transport):
        def is_reading(self):
            return True

        def get_write_buffer_size(self):
            return 0

    wire = TransportWire(Over())
    assert wire.taken == 0 and not wire.floods(0, 1) and not wire.floods(0, 2)
