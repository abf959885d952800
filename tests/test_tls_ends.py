"""How a TLS connection ends: with a close_notify behind the answer, also where the peer has sent its own already."""
import os
import socket
import ssl

import pytest

from opusagent.transport.http11 import ClientHandshake
from served import SCRIPTED, serving, tls_flags

MASKED_CLOSE = b"\x88\x82\0\0\0\0\x03\xe8"
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
    peer, handshake = Peer(server), ClientHandshake("localhost", "/ws/echo", os.urandom(16))
    peer.tls.write(handshake.request)
    assert peer.waits(lambda: peer.tls.read(4096)).startswith(b"HTTP/1.1 101 ")
    peer.ends_with(last)
    assert server.alive() and "Traceback" not in server.written()


@pytest.mark.parametrize("request_head", [b"\0\0", b"GET / HTTP/1.0\r\n\r\n"])
def test_a_refusal_and_a_close_notify_at_once_are_no_error_of_ours(server, request_head):
    peer = Peer(server)
    peer.ends_with(request_head)
    assert server.alive() and "Traceback" not in server.written()
