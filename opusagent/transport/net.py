"""Sockets: listening, inherited from systemd, and tuned for 20 ms of audio at a time.

It reads and writes no byte.  The rule: an option is never taken for granted; each is set, read back from the kernel
and reported, and one that the kernel refuses costs nothing but its line in the report.
"""
import errno
import ipaddress
import os
import socket
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass

from .. import ConfigError

FIRST_INHERITED = 3             # SD_LISTEN_FDS_START of sd_listen_fds(3)
PROBES = 3                      # TCP_KEEPCNT
ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)      # a machine without IPv6, say


@dataclass(frozen=True, slots=True)
class Option:
    """One socket option as it was asked for and as the kernel has it."""

    name: str                   # "TCP_NODELAY"
    wanted: int
    got: int | None             # read back; the kernel says twice the size of a buffer.  None: not even readable
    fault: str = ""             # why it is not as wanted; empty where it is


def tune(sock: socket.socket, net) -> tuple[Option, ...]:
    """Sets every option of the section `net` of the configuration that is not left to the kernel; the report."""
    return tuple(_set(sock, *wanted) for wanted in _wanted(sock.family, net))


def _wanted(family: int, net) -> Iterator[tuple[str, int, int, int]]:
    """(name, level, option, value) for each option; those left to the kernel are left out."""
    tcp = socket.IPPROTO_TCP
    yield "TCP_NODELAY", tcp, socket.TCP_NODELAY, int(net.nodelay)
    if net.quickack:
        yield "TCP_QUICKACK", tcp, socket.TCP_QUICKACK, 1
    if net.receive_buffer:
        yield "SO_RCVBUF", socket.SOL_SOCKET, socket.SO_RCVBUF, net.receive_buffer
    if net.send_buffer:
        yield "SO_SNDBUF", socket.SOL_SOCKET, socket.SO_SNDBUF, net.send_buffer
    if net.notsent_lowat:
        yield "TCP_NOTSENT_LOWAT", tcp, socket.TCP_NOTSENT_LOWAT, net.notsent_lowat
    if net.user_timeout_seconds:
        yield "TCP_USER_TIMEOUT", tcp, socket.TCP_USER_TIMEOUT, round(net.user_timeout_seconds * 1000)
    if net.keepalive_seconds:
        yield "SO_KEEPALIVE", socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1
        yield "TCP_KEEPIDLE", tcp, socket.TCP_KEEPIDLE, net.keepalive_seconds
        yield "TCP_KEEPINTVL", tcp, socket.TCP_KEEPINTVL, net.keepalive_seconds
        yield "TCP_KEEPCNT", tcp, socket.TCP_KEEPCNT, PROBES
    if net.dscp and family == socket.AF_INET6:
        yield "IPV6_TCLASS", socket.IPPROTO_IPV6, socket.IPV6_TCLASS, net.dscp << 2
    elif net.dscp:
        yield "IP_TOS", socket.IPPROTO_IP, socket.IP_TOS, net.dscp << 2


def _set(sock: socket.socket, name: str, level: int, option: int, value: int) -> Option:
    try:
        sock.setsockopt(level, option, value)
        got = sock.getsockopt(level, option)
    except OSError as error:
        return Option(name, value, None, error.strerror or str(error))
    if name in ("SO_RCVBUF", "SO_SNDBUF"):
        limit = "net.core.rmem_max" if name == "SO_RCVBUF" else "net.core.wmem_max"
        return Option(name, value, got, "" if got >= 2 * value else f"{limit} allows {got // 2}")
    return Option(name, value, got, "" if got == value else f"the kernel made it {got}")


# -- listening -------------------------------------------------------------------------------------------------------

def listen(host: str, port: int, backlog: int = 4096) -> list[socket.socket]:
    """Non-blocking listening sockets on every address of `host` ("" is all of the machine's), all on one port.

    Port 0 is a free one.  ConfigError says in a sentence what is in the way.
    """
    sockets: list[socket.socket] = []
    try:
        for family, address in _addresses(host, port):
            chosen = sockets[0].getsockname()[1] if sockets else port
            try:
                sockets.append(_listen(family, (address[0], chosen, *address[2:]), backlog))
            except OSError as error:
                if error.errno not in ABSENT:
                    raise
        if not sockets:
            raise ConfigError(f"This machine has no address {host}.")
        return sockets
    except OSError as error:
        refused = ConfigError(_why_not(error, host, port))
    except ConfigError as error:
        refused = error
    for sock in sockets:
        sock.close()
    raise refused


def _addresses(host: str, port: int) -> list[tuple[int, tuple]]:
    """(family, address) of each, IPv4 first."""
    try:
        found = socket.getaddrinfo(host.removeprefix("[").removesuffix("]") or None, port, type=socket.SOCK_STREAM,
                                   flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise ConfigError(f"The host {host!r} has no address.") from None
    return sorted({(family, address) for family, _, _, _, address in found})


def _listen(family: int, address: tuple, backlog: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(backlog)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _why_not(error: OSError, host: str, port: int) -> str:
    where = host or "every address"
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} of {where} is in use: end what listens there, or choose another port."
    if error.errno == errno.EACCES:
        return f"Port {port} of {where} is only for root: choose one above 1023, or let systemd pass the socket."
    return f"Port {port} of {where} cannot be listened on: {error.strerror}."


def inherited(environ: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """The listening sockets that systemd passed to this process (sd_listen_fds(3)); its variables are taken out.

    A descriptor that is no listening socket belongs to somebody else, such as the descriptor store: it is left alone.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()):
        return []
    if not (count.isascii() and count.isdigit()):
        raise ConfigError("LISTEN_FDS is not a number of sockets.")
    found = (_adopt(fd) for fd in range(FIRST_INHERITED, FIRST_INHERITED + int(count)))
    return [sock for sock in found if sock is not None]


def _adopt(fd: int) -> socket.socket | None:
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        return None
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()
        return None
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock


# -- addresses -------------------------------------------------------------------------------------------------------

def spelled(sock: socket.socket) -> str:
    """A socket's own address as it stands in a URL: HOST:PORT, IPv6 in brackets; a path for a Unix socket."""
    address = sock.getsockname()
    if not isinstance(address, tuple):
        return os.fsdecode(address)
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(peer: tuple | str | None) -> bool:
    """True for a peer (an address, or a tuple that begins with one) on this machine; False for one that is unknown."""
    host = peer[0] if isinstance(peer, tuple) and peer else peer
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except (AttributeError, TypeError, ValueError):
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def is_loopback_name(host: str) -> bool:
    """True for a Host header that can only mean this machine: any other may be made to lead here (DNS rebinding)."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    return name.lower() == "localhost" or is_loopback(name.removeprefix("[").removesuffix("]"))


def same_place(origin: str, host: str) -> bool:
    """True for a page that came from the very address that it connects to."""
    return origin.partition("://")[2].lower() == host.lower()
