"""Listening, inheriting and tuning, on real sockets of the loopback."""
import contextlib
import ctypes
import errno
import os
import socket
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from lines import WebSocketLine
from served import SCRIPTED, serving

from opusagent import ConfigError
from opusagent.config import Net
from opusagent.transport.net import Option, inherited, is_loopback, is_loopback_name, listen, spelled, tune

PLAIN_NET = Net(nodelay=False, quickack=False, receive_buffer=0, send_buffer=0, notsent_lowat=0,
                user_timeout_seconds=0, keepalive_seconds=0)

has_ipv6 = pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="this machine has no IPv6")


@pytest.fixture
def opened():
    """Sockets put into this list are closed after the test."""
    sockets = []
    yield sockets
    for sock in sockets:
        sock.close()


def connected(opened, host="127.0.0.1"):
    """A caller's socket and our accepted one."""
    listener, = listen(host, 0)
    caller = socket.create_connection(listener.getsockname()[:2], timeout=5)
    listener.setblocking(True)
    ours, _ = listener.accept()
    opened += listener, caller, ours
    return caller, ours


# -- tuning ----------------------------------------------------------------------------------------------------------

def test_the_defaults_are_applied_and_read_back(opened):
    caller, ours = connected(opened)
    report = {option.name: option for option in tune(ours, Net())}
    assert [option for option in report.values() if option.fault] == []
    assert report["TCP_NODELAY"].got == report["TCP_QUICKACK"].got == report["SO_KEEPALIVE"].got == 1
    assert report["SO_RCVBUF"].wanted == report["SO_SNDBUF"].wanted == 65536
    assert report["SO_RCVBUF"].got == report["SO_SNDBUF"].got == 131072         # the kernel doubles it for itself
    assert report["TCP_NOTSENT_LOWAT"].got == 16384
    assert report["TCP_USER_TIMEOUT"].got == 10_000
    assert (report["TCP_KEEPIDLE"].got, report["TCP_KEEPINTVL"].got, report["TCP_KEEPCNT"].got) == (5, 5, 3)
    assert "IP_TOS" not in report
    assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_what_is_left_to_the_kernel_is_not_touched(opened):
    caller, ours = connected(opened)
    untouched = socket.socket()
    opened.append(untouched)
    assert [option.name for option in tune(ours, PLAIN_NET)] == ["TCP_NODELAY"]
    for option in (socket.SO_KEEPALIVE, socket.SO_RCVTIMEO):
        assert (ours.getsockopt(socket.SOL_SOCKET, option)) == untouched.getsockopt(socket.SOL_SOCKET, option)


def test_nodelay_can_be_turned_off(opened):
    caller, ours = connected(opened)
    tune(ours, Net())
    assert tune(ours, PLAIN_NET) == (Option("TCP_NODELAY", 0, 0),)


def test_packets_are_marked_on_either_protocol(opened):
    caller, ours = connected(opened)
    assert tune(ours, replace(PLAIN_NET, dscp=46))[-1] == Option("IP_TOS", 0xB8, 0xB8)


@has_ipv6
def test_packets_are_marked_over_ipv6(opened):
    caller, ours = connected(opened, "::1")
    assert tune(ours, replace(PLAIN_NET, dscp=46))[-1] == Option("IPV6_TCLASS", 0xB8, 0xB8)


def test_a_buffer_that_the_machine_does_not_allow_is_reported(opened):
    caller, ours = connected(opened)
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 30)
    most = caller.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    report = tune(ours, replace(PLAIN_NET, receive_buffer=most + 4096))
    assert report[-1].fault == f"net.core.rmem_max allows {most}" and report[-1].got == 2 * most


def test_what_a_socket_does_not_know_is_reported_and_costs_nothing(opened):
    ours, theirs = socket.socketpair()
    opened += ours, theirs
    report = {option.name: option for option in tune(ours, replace(Net(), dscp=46))}
    assert report["TCP_NODELAY"].got is None and report["TCP_NODELAY"].fault == os.strerror(errno.EOPNOTSUPP)
    assert report["SO_SNDBUF"].fault == ""


def test_an_option_that_the_kernel_changes_is_reported():
    sock = SimpleNamespace(family=socket.AF_INET, setsockopt=lambda *args: None, getsockopt=lambda *args: 0)
    faults = {option.name: option.fault for option in tune(sock, Net())}
    assert faults["TCP_NODELAY"] == "the kernel made it 0" and faults["SO_SNDBUF"] == "net.core.wmem_max allows 0"


# -- listening -------------------------------------------------------------------------------------------------------

def test_port_0_is_a_free_port_and_the_socket_is_ready(opened):
    sock, = listen("127.0.0.1", 0)
    opened.append(sock)
    assert sock.getsockname()[0] == "127.0.0.1" and sock.getsockname()[1] > 0
    assert not sock.getblocking() and not sock.get_inheritable()
    assert spelled(sock) == f"127.0.0.1:{sock.getsockname()[1]}"


@has_ipv6
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6(opened, host):
    sock, = listen(host, 0)
    opened.append(sock)
    assert spelled(sock) == f"[::1]:{sock.getsockname()[1]}"


def test_a_name_or_every_address_is_listened_on_with_one_port(opened):
    for host in ("localhost", ""):
        sockets = listen(host, 0)
        opened += sockets
        assert sockets and len({sock.getsockname()[1] for sock in sockets}) == 1
        assert len({sock.family for sock in sockets}) == len(sockets)


def test_a_port_in_use_is_one_sentence_and_leaves_nothing_open(opened):
    sock, = listen("127.0.0.1", 0)
    opened.append(sock)
    port, before = sock.getsockname()[1], set(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match=rf"^Port {port} of 127.0.0.1 is in use: .*\.$"):
        listen("127.0.0.1", port)
    with pytest.raises(ConfigError, match=f"Port {port} of every address is in use"):
        listen("", port)
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_port_can_be_taken_again_at_once_after_a_restart(opened):
    caller, ours = connected(opened)
    port = ours.getsockname()[1]
    for sock in (opened[0], ours, caller):         # ours closes first: its port stays in TIME_WAIT
        sock.close()
    opened += listen("127.0.0.1", port)


@pytest.mark.parametrize(("host", "sentence"), [
    ("192.0.2.1", "This machine has no address 192.0.2.1."),
    ("no such host", "The host 'no such host' has no address."),
    ("a" * 300, f"The host '{'a' * 300}' has no address."),
])
def test_a_host_that_is_not_ours(host, sentence):
    with pytest.raises(ConfigError) as caught:
        listen(host, 0)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(("number", "sentence"), [
    (errno.EACCES, "Port 80 of 127.0.0.1 is only for root: choose one above 1023, or let systemd pass the socket."),
    (errno.ENOBUFS, f"Port 80 of 127.0.0.1 cannot be listened on: {os.strerror(errno.ENOBUFS)}."),
    (errno.EAFNOSUPPORT, "This machine has no address 127.0.0.1."),
])
def test_whatever_else_is_in_the_way_is_a_sentence_too(monkeypatch, number, sentence):
    def fail(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("opusagent.transport.net._listen", fail)
    with pytest.raises(ConfigError) as caught:
        listen("127.0.0.1", 80)
    assert str(caught.value) == sentence


# -- inheriting ------------------------------------------------------------------------------------------------------

CHILD = """
import os, sys
passed = [os.dup2(int(fd), 100 + i) for i, fd in enumerate(sys.argv[2:])]
for i, fd in enumerate(passed):
    os.dup2(fd, 3 + i)
os.environ |= {"LISTEN_PID": str(os.getpid() + int(sys.argv[1])), "LISTEN_FDS": str(len(passed))}
from opusagent.transport.net import inherited, spelled
taken = inherited()
print(*(spelled(sock) for sock in taken), sep=",")
print(len(inherited()), "LISTEN_FDS" in os.environ)
print(*(os.get_inheritable(3 + i) for i in range(len(passed))))
"""


def activated(*sockets, pid_offset=0):
    """The lines printed by a process that has `sockets` as descriptors 3, 4, ... and is told so as systemd does it."""
    fds = [sock.fileno() for sock in sockets]
    done = subprocess.run([sys.executable, "-c", CHILD, str(pid_offset), *map(str, fds)], capture_output=True,
                          text=True, timeout=30, pass_fds=fds)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_sockets_from_systemd_are_taken_over_and_others_left_alone(opened):
    first, = listen("127.0.0.1", 0)
    second, = listen("127.0.0.1", 0)
    caller, ours = connected(opened)
    pipe, other_end = os.pipe()
    opened += first, second, os.fdopen(pipe, "rb"), os.fdopen(other_end, "wb")
    lines = activated(first, ours, opened[-2], second)
    assert lines[0] == f"{spelled(first)},{spelled(second)}"
    assert lines[1] == "0 False"                                    # taken once, and not passed on
    assert lines[2] == "False True True False"


def test_sockets_meant_for_another_process_are_not_ours(opened):
    first, = listen("127.0.0.1", 0)
    opened.append(first)
    assert activated(first, pid_offset=1)[0] == ""


def test_nothing_is_inherited_without_systemd():
    environ = {"PATH": "/bin"}
    assert inherited(environ) == [] and environ == {"PATH": "/bin"}
    with pytest.raises(ConfigError, match="LISTEN_FDS"):
        inherited({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"})


# -- addresses -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("peer", [("127.0.0.1", 4000), ("127.255.0.9", 1), ("::1", 4000, 0, 0),
                                  ("::ffff:127.0.0.1", 1, 0, 0), ("::1%lo", 1, 0, 1), "127.0.0.1", "::1"])
def test_peers_on_this_machine(peer):
    assert is_loopback(peer)


@pytest.mark.parametrize("peer", [("192.0.2.1", 4000), ("0.0.0.0", 1), ("::", 1, 0, 0), ("::ffff:192.0.2.1", 1, 0, 0),
                                  ("fe80::1%eth0", 1, 0, 2), (), "", None, b"", ("localhost", 1), "127.1", (None, 1)])
def test_peers_elsewhere_or_nowhere(peer):
    assert not is_loopback(peer)


def test_a_unix_socket_is_spelled_by_its_path(tmp_path, opened):
    sock = socket.socket(socket.AF_UNIX)
    opened.append(sock)
    sock.bind(str(tmp_path / "s"))
    assert spelled(sock) == str(tmp_path / "s")


@pytest.mark.parametrize("host, inside", [("127.0.0.1", True), ("127.0.0.1:8000", True), ("localhost:8000", True),
                                          ("[::1]:8000", True), ("[::1]", True), ("rebound.example", False),
                                          ("rebound.example:8000", False), ("10.0.0.1:8000", False)])
def test_only_names_of_this_machine_are_loopback(host, inside):
    assert is_loopback_name(host) is inside


# -- in a server's own process -----------------------------------------------------------------------------------------

PIDFD_GETFD = 438               # pidfd_getfd(2)


@pytest.mark.parametrize("host, level, option", [
    ("127.0.0.1", socket.IPPROTO_IP, socket.IP_TOS),
    pytest.param("::1", socket.IPPROTO_IPV6, socket.IPV6_TCLASS, marks=has_ipv6)])
def test_the_dscp_of_a_call_is_what_the_configuration_says(host, level, option):
    """Read from the server's own socket of a live call, which the call's upgrade has duplicated."""
    with serving(*SCRIPTED, "--host", host, "--net-dscp", "46") as server:
        line = WebSocketLine(host, server.port, "/ws/pcm")
        assert line.status == 101
        assert {sock.getsockopt(level, option) for sock in sockets_to(server.worker, line.sock.getsockname())} == {0xB8}
        line.close()


def sockets_to(pid, address):
    """Duplicates of a process's sockets whose peer is `address`."""
    syscall, pidfd = ctypes.CDLL(None, use_errno=True).syscall, os.pidfd_open(pid)
    for name in os.listdir(f"/proc/{pid}/fd"):
        if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
            continue
        fd = syscall(PIDFD_GETFD, pidfd, int(name), 0)
        if fd < 0:
            os.close(pidfd)
            pytest.skip(f"the server's sockets cannot be looked at: {os.strerror(ctypes.get_errno())}")
        with socket.socket(fileno=fd) as sock, contextlib.suppress(OSError):
            if sock.getpeername()[:2] == address[:2]:
                yield sock
    os.close(pidfd)
