"""Peers that are gone before the agent's first word: the greeting finds no socket, and the others notice nothing."""
import os
import socket
import struct
import urllib.request

import pytest

from opusagent.transport.http11 import ClientHandshake
from served import SCRIPTED, serving


@pytest.mark.parametrize("leaves", ["with the request", "with the answer"])
def test_a_peer_that_leaves_at_the_handshake_takes_nobody_with_it(leaves):
    with serving(*SCRIPTED) as server:
        for _ in range(30):
            handshake = ClientHandshake(f"{server.host}:{server.port}", "/ws/pcm", os.urandom(16))
            with socket.create_connection((server.host, server.port), 5) as line:
                line.sendall(handshake.request)
                if leaves == "with the answer":
                    line.recv(200)
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))    # close() resets
        with urllib.request.urlopen(f"http://{server.host}:{server.port}/livez") as page:
            assert page.status == 200
        assert server.alive() and "Traceback" not in server.written()
