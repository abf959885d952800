"""What a connection may cost, on the real server: system calls, memory, bytes unsent, and how soon a dead one is gone.

The bounds are of the transport, whatever is said over it; the speeds are measured in bench/.
"""
import fcntl
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from served import SCRIPTED, missing, serving

from opusagent._fastpath import build_frame

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
KEY = b"\1\2\3\4"
SIOCOUTQNSD = 0x894B            # linux/sockios.h: bytes that were never sent
START = {"event": "start", "sequenceNumber": "1", "streamSid": "MZ1", "start": {
    "accountSid": "AC1", "streamSid": "MZ1", "callSid": "CA1", "tracks": ["inbound"], "customParameters": {},
    "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}}}
FRAME = build_frame(2, bytes(640), True, KEY)


def upgrade(route, address, receive_buffer=0, tls=None):
    """A connection to `route` whose 101 has come; `tls`: the context of one that speaks it."""
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    sock.settimeout(10)
    sock.connect(address)
    if tls is not None:
        sock = tls.wrap_socket(sock)
    sock.sendall(f"GET {route} HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                 "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    assert head.startswith(b"HTTP/1.1 101")
    return sock


def exactly(sock, n):
    data = b""
    while len(data) < n:
        piece = sock.recv(n - len(data))
        assert piece, "the server closed"
        data += piece
    return data


def echo(sock, times):
    for _ in range(times):
        sock.sendall(FRAME)
        exactly(sock, 644)


@contextmanager
def traced(pid, into):
    """System calls of a process, while it lasts."""
    tracer = subprocess.Popen(["strace", "-f", "-qq", "-o", str(into), "-p", str(pid)], stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 10
        while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text():
            if tracer.poll() is not None or time.monotonic() > until:
                pytest.skip(f"strace may not trace here: {tracer.stderr.read(200)}")
            time.sleep(0.01)
        yield
    finally:
        tracer.terminate()
        tracer.wait(10)
        tracer.stderr.close()


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_frame_takes_one_receive_one_send_and_one_wait(tmp_path):
    with serving(*SCRIPTED) as server, upgrade("/ws/echo", (server.host, server.port)) as sock:
        echo(sock, 10)
        with traced(server.worker, tmp_path / "calls"):
            echo(sock, 200)
        calls = Counter(re.findall(r"^\d+ +(\w+)\(", (tmp_path / "calls").read_text(), re.M))
    assert 200 <= calls["recvfrom"] + calls["recvmsg"] + calls["read"] <= 210      # the tick's own, and no second try
    assert 200 <= calls["sendto"] + calls["sendmsg"] + calls["write"] + calls["writev"] <= 210
    waits = calls["epoll_wait"] + calls["epoll_pwait"] + calls["epoll_pwait2"]
    assert waits <= 300         # one for a frame, and the clock's ticks
    assert not calls["epoll_ctl"] and not calls["setsockopt"]


def test_a_peer_that_reads_nothing_holds_no_more_than_its_bound():
    """What is unsent in the kernel stays within TCP_NOTSENT_LOWAT, what waits in the process within one message."""
    with serving(*SCRIPTED) as server:
        with upgrade("/ws/echo", (server.host, server.port), receive_buffer=4096) as sock:
            sock.setblocking(False)
            sent, quiet = 0, 0
            while quiet < 20:                       # until the server takes no more
                try:
                    sent += sock.send(FRAME[sent % len(FRAME):])    # a frame that went out in part goes on
                    quiet = 0
                except BlockingIOError:
                    quiet += 1
                    time.sleep(0.02)
            unsent = [left for left in unsent_bytes(server.worker) if left]
            assert len(unsent) == 1 and unsent[0] <= 16384 + 65536    # what is asked for, and a receive's echoes beyond
            assert sent < 1 << 20
            sock.settimeout(10)
            rest = sent // len(FRAME)
            for _ in range(rest):
                exactly(sock, 644)                  # nothing is lost, nothing is out of order


def test_a_caller_who_reads_nothing_costs_sixteen_kibibytes_and_what_is_stale_is_dropped_and_counted():
    """The agent speaks on; at most LATE_CHUNKS messages (100 ms) wait in the process, and the rest is counted."""
    with serving(*SCRIPTED) as server, upgrade("/ws/twilio", (server.host, server.port), receive_buffer=2048) as sock:
        for message in ({"event": "connected", "protocol": "Call", "version": "1.0.0"}, START):
            sock.sendall(build_frame(1, json.dumps(message).encode(), True, KEY))
        most, until, dropped = 0, time.monotonic() + 15, None
        while dropped is None and time.monotonic() < until:
            media = {"event": "media", "streamSid": "MZ1", "media": {"track": "inbound", "payload": "////" * 40}}
            for _ in range(20):
                sock.sendall(build_frame(1, json.dumps(media).encode(), True, KEY))
                time.sleep(0.015)
            most = max(most, *unsent_bytes(server.worker), 0)
            with urllib.request.urlopen(f"http://{server.host}:{server.port}/metrics") as answer:
                dropped = re.search(r"^opusagent_dropped_chunks_total (\d+)", answer.read().decode(), re.M)
    assert 0 < most <= 16384 + 2048
    assert int(dropped[1]) > 0


def unsent_bytes(pid):
    """Of each TCP connection of a process, the bytes that its kernel has not sent once."""
    pidfd, found = os.pidfd_open(pid), []
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                    continue
                fd = pidfd_getfd(pidfd, int(name))
            except OSError:
                continue
            try:
                found.append(struct.unpack("i", fcntl.ioctl(fd, SIOCOUTQNSD, bytes(4)))[0])
            except OSError:
                pass                                # it listens, or is no TCP
            finally:
                os.close(fd)
    finally:
        os.close(pidfd)
    return found


def pidfd_getfd(pidfd, fd):
    import ctypes
    got = ctypes.CDLL(None, use_errno=True).syscall(438, pidfd, fd, 0)
    if got < 0:
        if ctypes.get_errno() == 1:
            pytest.skip("descriptors of another process may not be looked at here")
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return got


def test_a_refused_head_request_has_no_body():
    with serving(*SCRIPTED) as server:
        for request, status in ((b"HEAD /nothing HTTP/1.1\r\nHost: here\r\n\r\n", b"404"),
                                (b"HEAD /health HTTP/1.1\r\nHost: here\r\n\r\n", b"200"),
                                (b"GET /nothing HTTP/1.1\r\nHost: here\r\n\r\n", b"404")):
            with socket.create_connection((server.host, server.port), 10) as sock:
                sock.sendall(request)
                answer = b""
                while piece := sock.recv(4096):
                    answer += piece
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.split()[1] == status
            assert bool(body) == request.startswith(b"GET")
            assert b"content-length: 0" not in head.lower()


def test_the_lag_of_the_loop_is_always_measured():
    """Without calls as well, if more rarely."""
    def measured() -> int:
        with urllib.request.urlopen(where + "/metrics") as answer:
            return int(re.search(r"^opusagent_loop_lag_seconds_count (\d+)", answer.read().decode(), re.M)[1])

    with serving(*SCRIPTED) as server:
        where = f"http://{server.host}:{server.port}"
        until = time.monotonic() + 20
        first = measured()
        while measured() < first + 3 and time.monotonic() < until:
            time.sleep(0.1)
        assert measured() >= first + 3
        with urllib.request.urlopen(where + "/health") as answer:
            health = json.load(answer)
    assert set(health["loop_lag"]) == {"avg_ms", "min_ms", "max_ms", "p50_ms", "p95_ms", "p99_ms"}
    assert health["loop_lag"]["max_ms"] > 0


def test_frames_leave_nothing_behind_for_a_collector():
    """10,000 frames through a wire: no object more, and nothing that only a collector could free."""
    import gc

    from opusagent._fastpath import EpollSet, FrameParser, ReceiveBuffer, Wire
    home = EpollSet(ReceiveBuffer())
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        wire = Wire(ours.detach(), FrameParser(1 << 16), None, None, None, None, None)
        wire.on_message = wire.send
        home.add(wire)

        def frames(times):
            for _ in range(times):
                theirs.send(FRAME)
                home.poll()
                theirs.recv(1000)
        frames(100)
        gc.collect()
        gc.disable()
        try:
            before = sys.getallocatedblocks()
            frames(10_000)
            assert sys.getallocatedblocks() - before < 50
            assert gc.collect() < 50
        finally:
            gc.enable()
        wire.close()
    home.close()
