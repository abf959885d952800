"""A peer that is gone without a word is found by its silence; any byte, a pong too, is a sign of life."""
import json
import struct
import time

import pytest
from conformance import wire
from served import SCRIPTED, missing, serving
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
