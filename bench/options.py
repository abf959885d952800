"""What each socket option costs and brings: our server as it ships, and with one option the other way.

    python bench/options.py [--rounds 9] [--seconds 1] [--connections 200] [--fifo] [--json]

CPU per frame and round trip of paced 640-byte echoes, as a ratio to the server as it ships, round by round; and how
much the kernel keeps for a peer that reads nothing: audio that no barge-in can take back.  --spin adds the busy poll
(`net.spin_us`), with one connection in a closed loop: what it brings is there, what it costs is a core.
The rule: the first row is measured like all others, twice, so that its ratio shows the doubt of them all.
"""
import argparse
import json
import math
import socket
import sys
import time

from echo import NO_ENGINES, measure
from figures import Ratio, median, paired_ratio, table
from subjects import Cores, Running, Subject, allow_connections, build, machine, ours

SHIPPED = "as it ships"
VARIANTS = {
    SHIPPED: (),
    "as it ships, again": (),
    "TCP_NODELAY off": ("--no-net-nodelay",),
    "TCP_QUICKACK at accept off": ("--no-net-quickack",),
    "TCP_QUICKACK after each receive": ("--net-quickack-rearm",),
    "SO_RCVBUF, SO_SNDBUF the kernel's": ("--net-receive-buffer=0", "--net-send-buffer=0"),
    "TCP_NOTSENT_LOWAT off": ("--net-notsent-lowat=0",),
    "both of these": ("--net-receive-buffer=0", "--net-send-buffer=0", "--net-notsent-lowat=0"),
    "TCP_USER_TIMEOUT off": ("--net-user-timeout-seconds=0",),
    "keep-alive off": ("--net-keepalive-seconds=0",),
    "DSCP 46 (EF) on": ("--net-dscp=46",),
}
SPIN = {SHIPPED: (), "spin_us = 20000": ("--net-spin-us=20000",)}
SPEECH = bytes(640)


def swallowed(server: Running) -> float:
    """KiB of echoes that the kernel holds for a peer that reads nothing, with a window of 4 KiB; NaN: it was reset."""
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        peer.settimeout(10)
        peer.connect(("127.0.0.1", server.port))
        peer.sendall(b"GET /ws/echo HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
        peer.recv(4096)
        peer.setblocking(False)
        frame, waited = b"\x82\xfe\x02\x80\0\0\0\0" + SPEECH, 0
        while waited < 10:
            try:
                peer.send(frame)
                waited = 0
            except BlockingIOError:
                waited += 1
                time.sleep(0.02)
            except ConnectionError:
                return math.nan
        return queued(server, peer) / 1024


def queued(server: Running, peer: socket.socket) -> int:
    """Bytes in the send queue of the server's end (the fifth column of /proc/net/tcp, before the colon)."""
    mine = f":{peer.getsockname()[1]:04X}"
    for line in open("/proc/net/tcp"):
        fields = line.split()
        if fields[2].endswith(mine) and fields[1].endswith(f":{server.port:04X}"):
            return int(fields[4].partition(":")[0], 16)
    return 0


def subjects_of(variants: dict) -> list[Subject]:
    made = []
    for name, flags in variants.items():
        subject = ours("/ws/echo", *NO_ENGINES, *flags)
        made.append(Subject(name, subject.command, subject.path))
    return made


def rounds(args, cores: Cores, variants: dict, load: list[str]) -> dict[str, list[dict]]:
    results = {name: [] for name in variants}
    chosen = subjects_of(variants)
    for i in range(args.rounds):
        for subject in chosen[i % len(chosen):] + chosen[:i % len(chosen)]:
            server = Running(subject, cores)
            try:
                figures = measure(server, load, args, cores)
                if isinstance(figures, dict) and not args.spin:
                    figures["held"] = swallowed(server)
                results[subject.name].append(figures)
            finally:
                server.stop()
        print(f"round {i + 1} of {args.rounds}", file=sys.stderr)
    return results


def column(runs: list, key: str) -> list:
    return [run[key] if isinstance(run, dict) else None for run in runs]


def rows(results: dict[str, list]) -> dict[str, dict]:
    out = {}
    for name, runs in results.items():
        good = [run for run in runs if isinstance(run, dict)]
        cpu = column(runs, "cpu_us_per_msg")
        out[name] = {"cpu_us": median([run["cpu_us_per_msg"] for run in good]), "cpu_pct": median(
            [run["cpu_pct"] for run in good]), "ratio": paired_ratio(cpu, column(results[SHIPPED], "cpu_us_per_msg")),
            "p50": median([run["p50"] for run in good]), "p99": median([run["p99"] for run in good]),
            "held": median([run["held"] for run in good if "held" in run])}
    return out


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--spin", action="store_true", help="the busy poll, with one connection in a closed loop")
    parser.add_argument("--fifo", action="store_true", help="server and client under SCHED_FIFO (as root)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.twilio, args.size = False, 640
    return args


def main() -> int:
    args = parse()
    build("wsload")
    allow_connections(args.connections)
    load = ["-m", "closed", "-c", "1"] if args.spin else ["-m", "paced", "-c", str(args.connections), "-r", "50"]
    found = rows(rounds(args, Cores.here(args.fifo), SPIN if args.spin else VARIANTS, load))
    if args.json:
        print(json.dumps({"machine": machine(), "rows": found}, default=Ratio.as_json))
        return 0
    cells = [["options", "CPU us/frame", "x as it ships", "CPU %", "p50 us", "p99", "KiB held"]]
    cells += [[name, f"{row['cpu_us']:.2f}", str(row["ratio"]), f"{row['cpu_pct']:.0f}", f"{row['p50']:.0f}",
               f"{row['p99']:.0f}", f"{row['held']:.0f}" if row["held"] == row["held"] else "-"]
              for name, row in found.items()]
    print(f"{'; '.join(f'{key} {value}' for key, value in machine().items())}\n{table(cells)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
