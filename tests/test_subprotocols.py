"""Subprotocols over real sockets: a route answers with what its dialect speaks, and with nothing else."""
import os
import socket

import pytest

from opusagent.transport.http11 import ClientHandshake
from served import SCRIPTED, serving


@pytest.fixture(scope="module")
def server():
    with serving(*SCRIPTED) as served:
        yield served


def answer(server, route, offered):
    """(status, the subprotocol chosen) of an upgrade."""
    handshake = ClientHandshake(f"{server.host}:{server.port}", route, os.urandom(16), protocols=offered)
    with socket.create_connection((server.host, server.port), 5) as line:
        line.sendall(handshake.request)
        while (heard := handshake.feed(line.recv(4096))) is None:
            pass
    return heard.status, heard.get("sec-websocket-protocol")


@pytest.mark.parametrize("route, offered, chosen", [
    ("asterisk/echo", ("media",), "media"),
    ("asterisk", ("ari", "media"), "media"),
    ("asterisk/echo", ("ari",), None),
    ("asterisk/echo", (), None),
    ("jambonz/echo", ("audio.jambonz.org",), "audio.jambonz.org"),
    ("freeswitch/echo", ("audio.drachtio.org",), "audio.drachtio.org"),
    ("freeswitch/echo", (), None),
    ("twilio/echo", ("media", "audio.jambonz.org"), None),
    ("pcm", ("media",), None),
    ("echo", ("media",), None),
])
def test_the_first_that_is_offered_and_spoken_is_chosen(server, route, offered, chosen):
    assert answer(server, f"/ws/{route}", offered) == (101, chosen)


@pytest.mark.parametrize("route, status", [("/ws/nobody", 404), ("/media", 404), ("/ws/asterisk/nobody", 404)])
def test_an_offer_makes_no_route(server, route, status):
    assert answer(server, route, ("media",)) == (status, None)
