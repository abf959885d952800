"""A peer that is gone without a word is found by its silence; any byte, a pong too, is a sign of life."""
import json
import socket
import ssl
import struct
import threading
import time
from contextlib import contextmanager

import pytest
from conformance import wire
from opusagent.dialects.audiosocket import AUDIO, UUID, message
from served import SCRIPTED, free_port, missing, serving, tls_flags
from test_transport_bounds import upgrade

QUICK = ("--net-ping-interval-seconds", "0.2", "--net-ping-timeout-seconds", "1.0",
         "--net-media-timeout-seconds", "1.0")
START = json.dumps({"event": "start", "streamSid": "MZ1", "start": {"callSid": "CA1", "customParameters": {}}})


@pytest.fixture(scope="module")
def server():
    if reason := missing():
        pytest.skip(reason)
    with serving(*SCRIPTED, *QUICK) as served:
        yield served


def dial(server, route):
    return upgrade(route, (server.host, server.port))


def frames(buffer):
    """(opcode, payload) of the whole frames in `buffer`, which a server sends unmasked; what is left."""
    found = []
    while len(buffer) >= 2:
        count, at = buffer[1] & 127, 2
        if count == 126:
            count, at = struct.unpack_from(">H", buffer, 2)[0], 4
        if len(buffer) < at + count:
            break
        found.append((buffer[0] & 15, buffer[at:at + count]))
        buffer = buffer[at + count:]
    return found, buffer


def lasts(sock, answers, most=6.0):
    """Seconds until the server ends the connection; `answers` are what each of its pings gets."""
    began, left = time.monotonic(), b""
    sock.settimeout(0.1)
    while (gone := time.monotonic() - began) < most:
        try:
            piece = sock.recv(65536)
        except TimeoutError:
            continue
        except ConnectionError:
            return gone
        if not piece:
            return gone
        got, left = frames(left + piece)
        for opcode, payload in got:
            if opcode == 9:
                for answer in answers(payload):
                    sock.sendall(answer)
            if opcode == 8:
                return gone
    return most


def pong(payload):
    return bytes([0x8A, 0x80 | len(payload)]) + b"\0\0\0\0" + payload


@pytest.mark.parametrize("route", ["/ws/echo", "/ws/twilio"])
def test_a_peer_without_a_sign_of_life_is_let_go(server, route):
    with dial(server, route) as sock:
        if "twilio" in route:
            sock.sendall(wire.text(START))
        assert 0.8 < lasts(sock, lambda payload: []) < 5


def test_a_pong_is_a_sign_of_life(server):
    with dial(server, "/ws/echo") as sock:
        assert lasts(sock, lambda payload: [pong(payload)], most=3.0) == 3.0


def test_a_call_that_is_silent_by_nature_goes_on_while_its_peer_answers(server):
    """No media for a while (a hold): the platform's pongs keep the call."""
    with dial(server, "/ws/twilio") as sock:
        sock.sendall(wire.text(START))
        assert lasts(sock, lambda payload: [pong(payload)], most=3.0) == 3.0


@contextmanager
def a_call_by_audiosocket(port):
    """One whose caller is silent for as long as this lasts."""
    def speaks():
        while not over.wait(0.02):
            sock.sendall(message(AUDIO, bytes(320)))

    over, caller = threading.Event(), threading.Thread(target=speaks)
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(message(UUID, bytes(range(16))))
        caller.start()
        try:
            yield sock
        finally:
            over.set()
            caller.join()


@pytest.mark.parametrize("secret", [False, True], ids=["plain", "tls"])
def test_it_is_let_go_whatever_kinds_of_connection_are_beside_it(secret, tmp_path):
    """A look at one of them that fails would hide all the others, and the worker's own sign of life."""
    if reason := missing():
        pytest.skip(reason)
    port = free_port()
    tls = ssl._create_unverified_context() if secret else None
    flags = tls_flags(tmp_path) if secret else ()
    with (serving(*SCRIPTED, *QUICK, *flags, "--audiosocket", str(port)) as server,
          a_call_by_audiosocket(port) as call, socket.create_connection((server.host, server.port)),
          upgrade("/ws/echo", (server.host, server.port), tls=tls) as silent):
        assert 0.8 < lasts(silent, lambda payload: []) < 5
        assert call.recv(65536) and "Traceback" not in server.written()
