"""The transport beside its floor and its peers: what does a frame cost, and how long does it take?

    python bench/echo.py [--twilio] [--rounds 9] [--seconds 3] [--beside CHECKOUT] [--quick] [--json]

The C floor (echo_limit.c), OpusAgent, picows, websockets and FastAPI + uvicorn each echo 640-byte frames for one C
client (wsload.c): 64 connections in a closed loop, then 50 frames a second on each of 200, 500 and 1000 connections.
--twilio: Twilio media messages instead (JSON, base64, mu-law, both ways), where ours runs as a call of the echo agent;
the floor then returns the text unread.  The rule: within a round every server meets the same load right after the
others, in an order that changes, and ratios are taken within the round.
"""
import argparse
import json
import subprocess
import sys

from figures import Ratio, median, paired_ratio, table
from subjects import Absent, Cores, Running, Subject, allow_connections, build, machine, ours, peer

FLOOR, OURS, RIVAL = "C floor", "OpusAgent", "picows"
NO_ENGINES = ("--stt", "scripted", "--llm", "scripted", "--tts", "scripted",     # an echo hears and says nothing
              "--admission-refuse-above", "1", "--admission-resume-below", "1")  # a closed loop takes a whole core
NOT_CLEAN = 2.0         # per cent of the time kept off the CPU above which a run is doubtful


def subjects(twilio: bool, wanted: str, checkout: str = "") -> list[Subject]:
    what, path = ("twilio", "/ws/twilio/echo") if twilio else ("echo", "/ws/echo")
    peers = [
        peer("picows", "echo_picows.py", what, "picows", "orjson", "uvloop"),
        peer("websockets", "echo_websockets.py", what, "websockets", "uvloop"),
        peer("FastAPI", "echo_fastapi.py", what, "fastapi", "uvicorn", "websockets"),
    ]
    return [Subject(FLOOR, (build("echo_limit"), "PORT")),
            ours(path, *NO_ENGINES), *([ours(path, *NO_ENGINES, checkout=checkout)] if checkout else ()),
            *(each for each in peers if each.name in wanted.split(","))]


def loads(args) -> dict[str, list[str]]:
    """What the client is told, by the name of the load."""
    counts = args.connections or ([200] if args.twilio or args.quick else [200, 500, 1000])
    return {"closed loop, 64 connections": ["-m", "closed", "-c", "64"]} | {
        f"{n} connections, 50 frames/s each": ["-m", "paced", "-c", str(n), "-r", "50"] for n in counts}


def measure(server: Running, load: list[str], args, cores: Cores) -> dict | str:
    """One run of the client: its figures, or a sentence that says what went wrong."""
    command = [build("wsload"), "-j", "-d", str(args.seconds), "-u", server.subject.path, *load]
    command += ["-C", str(cores.client)] if cores.client is not None else ["-b"]
    command += ["-t"] if args.twilio else ["-s", str(args.size)]
    for pid in server.pids():
        command += ["-p", str(pid)]
    run = subprocess.run([*command, "127.0.0.1", str(server.port)], capture_output=True, text=True,
                         preexec_fn=lambda: cores.settle(cores.client))
    if run.returncode == 1:
        return run.stderr.strip()
    figures = json.loads(run.stdout)
    if run.returncode:
        return f"{figures['wrong']} wrong and {figures['lost']} lost replies"
    server.rss_kb = server.rss_kb or figures["rss_before_kb"]
    figures["kib_per_conn"] = (figures["rss_kb"] - server.rss_kb) / figures["conns"]
    return figures


def rounds(chosen: list[Subject], args, cores: Cores) -> dict[str, dict[str, list]]:
    """{load: {subject: [figures or a sentence, one per round]}}"""
    results = {load: {subject.name: [] for subject in chosen} for load in loads(args)}
    for i in range(args.rounds):
        order = chosen[i % len(chosen):] + chosen[:i % len(chosen)]
        running = []
        try:
            for subject in order:
                try:
                    running.append(Running(subject, cores))
                except Absent as why:
                    for by_subject in results.values():
                        by_subject[subject.name].append(str(why))
            for load, flags in loads(args).items():
                for server in running:
                    results[load][server.subject.name].append(measure(server, flags, args, cores))
        finally:
            for server in running:
                server.stop()
        print(f"round {i + 1} of {args.rounds}", file=sys.stderr)
    return results


def column(runs: list, key: str) -> list[float | None]:
    return [run[key] if isinstance(run, dict) else None for run in runs]


def summary(by_subject: dict[str, list]) -> dict[str, dict]:
    """{subject: medians over the rounds (None where nothing could be measured), ratios, doubts}"""
    out = {}
    for name, runs in by_subject.items():
        good = [run for run in runs if isinstance(run, dict)]
        timed = [run for run in good if run["timed"]]       # a client that was kept off its core times nothing
        cpu = column(runs, "cpu_us_per_msg")
        row = {"failed": [run for run in runs if isinstance(run, str)], "rounds": len(runs)}
        for keys, measured in ((("cpu_us_per_msg", "kib_per_conn"), good), (("p50", "p99", "p999"), timed)):
            row |= {key: median([run[key] for run in measured]) if measured else None for key in keys}
        row["p99_worst"] = max((run["p99"] for run in timed), default=None)
        row["kept_off"] = max((max(run["srv_wait_pct"], run["client_wait_pct"]) for run in good), default=0.0)
        for against, key in ((FLOOR, "x_floor"), (RIVAL, "x_picows")):
            rival = by_subject.get(against)
            row[key] = paired_ratio(cpu, column(rival, "cpu_us_per_msg")) if rival else None
        out[name] = row
    return out


def figure(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def ratio_text(name: str, against: str, ratio) -> str:
    return "1" if name == against else str(ratio or "-")


def print_load(load: str, rows: dict[str, dict]) -> None:
    cells = [["server", "CPU us/frame", "x floor", "x picows", "p50 us", "p99", "p99.9", "worst p99", "KiB/conn"]]
    for name, row in rows.items():
        cells.append([name, figure(row["cpu_us_per_msg"], 2), ratio_text(name, FLOOR, row["x_floor"]),
                      ratio_text(name, RIVAL, row["x_picows"]),
                      *(figure(row[key]) for key in ("p50", "p99", "p999", "p99_worst")),
                      figure(row["kib_per_conn"], 1)])
    print(f"\n{load}\n{table(cells)}")
    for name, row in rows.items():
        if row["failed"]:
            print(f"{name} failed in {len(row['failed'])} of {row['rounds']} rounds: {row['failed'][0]}")
    doubt = max(row["kept_off"] for row in rows.values())
    if doubt > NOT_CLEAN:
        print(f"doubtful: others held a core for up to {doubt:.0f} % of a run")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--twilio", action="store_true", help="Twilio media messages instead of binary frames")
    parser.add_argument("--rounds", type=int, default=9, help="at least 5 give a 90 %% interval (default 9)")
    parser.add_argument("--seconds", type=float, default=3, help="measured time of each run (default 3)")
    parser.add_argument("--size", type=int, default=640, help="bytes of a binary frame (default 640)")
    parser.add_argument("--connections", type=lambda text: [int(n) for n in text.split(",")],
                        help="of the paced loads (default 200,500,1000; 200 with --twilio)")
    parser.add_argument("--peers", default="picows,websockets,FastAPI", help="which of them (default all)")
    parser.add_argument("--beside", default="", metavar="CHECKOUT", help="another checkout of ours, as one more server")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 1 s, 200 connections: shows that it runs")
    parser.add_argument("--fifo", action="store_true", help="server and client under SCHED_FIFO (as root)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if args.quick:
        args.rounds, args.seconds = 2, 1
    return args


def main() -> int:
    args = parse()
    cores = Cores.here(args.fifo)
    allow_connections(max(args.connections or [1000]))
    try:
        chosen = []
        for subject in subjects(args.twilio, args.peers, args.beside):
            if why := subject.absent():
                print(why, file=sys.stderr)
            else:
                chosen.append(subject)
        build("wsload")
        results = {load: summary(by_subject) for load, by_subject in rounds(chosen, args, cores).items()}
    except Absent as why:
        print(f"bench/echo.py: {why}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({"machine": machine(), "rounds": args.rounds, "seconds": args.seconds, "loads": results},
                         default=Ratio.as_json))
    else:
        what = "Twilio media messages" if args.twilio else f"{args.size}-byte frames"
        print(f"Echo of {what}, {args.rounds} rounds of {args.seconds:g} s; server on core {cores.server}, "
              f"client on core {cores.client}\n{'; '.join(f'{key} {value}' for key, value in machine().items())}")
        for load, rows in results.items():
            print_load(load, rows)
        print("\nRatios are of CPU per frame: the median of the rounds' paired ratios, with its 90 % interval"
              + ("." if args.rounds >= 5 else ", which needs 5 rounds; '?' marks the mere range."))
    return int(any(rows[OURS]["failed"] for rows in results.values()))


if __name__ == "__main__":
    sys.exit(main())
