"""The command line: `opusagent COMMAND`.  Exit codes: 0 done, 1 the job failed, 2 wrong usage or configuration.

Each command is a function from the parsed arguments to an exit code, in COMMANDS.  The rule: whatever goes wrong
reaches the user as one sentence on stderr, never as a traceback; imports that take time happen in the command.
"""
import argparse
import difflib
import errno
import os
import re
import sys

from . import ConfigError, EngineError, ProtocolError, __version__
from . import config as settings
from .config import Config


def load_config(args: argparse.Namespace) -> Config:
    return Config.load(settings.flags(args), os.environ, getattr(args, "config", None))


def serve(args: argparse.Namespace) -> int:
    from . import flowcheck, logs
    from .daemon.serve import serve as run
    from .studio import studio

    def read() -> tuple:
        config = load_config(args)
        waits = studio.waits(config)
        return config, flowcheck.load(config.flow, waits, config) if config.flow else studio.demo_flow(waits)

    config, flow = read()
    logs.begin(config)
    return run(config, flow, read)


def doctor(args: argparse.Namespace) -> int:
    from . import doctor as examination
    return examination.doctor_command(load_config(args))


def upgrade(args: argparse.Namespace) -> int:
    from .daemon.upgrade import upgrade_command
    return upgrade_command(args.pid)


def install(args: argparse.Namespace) -> int:
    from .unit import install_command
    config = load_config(args)
    return install_command(config, config.config, args.user, args.dir, args.force, args.print)


def flow(args: argparse.Namespace) -> int:
    from . import flowcheck
    from .studio import studio
    config = load_config(args)
    return flowcheck.COMMANDS[args.what](args, config, studio.waits(config))


def show_config(args: argparse.Namespace) -> int:
    print(load_config(args).toml(), end="")
    return 0


def demo(args: argparse.Namespace) -> int:
    from .client import commands
    return commands.demo_command(args)


def call(args: argparse.Namespace) -> int:
    from .client import commands
    return commands.call_command(args)


def replay(args: argparse.Namespace) -> int:
    from .replay import rehearse
    return rehearse.replay_command(args)


def latency_test(args: argparse.Namespace) -> int:
    from .client import commands
    return commands.latency_test_command(args)


def dial(args: argparse.Namespace) -> int:
    from .carriers.dialling import dial_command
    return dial_command(load_config(args), args.number, args.via, args.agent, args.detect)


def serve_flags(parser: argparse.ArgumentParser) -> None:
    settings.add_flags(parser)


def upgrade_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pid", metavar="N", type=int, default=None,
                        help="the server's process; needed only where several run here")


def install_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--print", action="store_true", help="print the two files, and write nothing")
    parser.add_argument("--user", metavar="NAME", default="opusagent",
                        help="who the server runs as (default opusagent)")
    parser.add_argument("--dir", metavar="DIR", default="/etc/systemd/system", help="where they are written")
    parser.add_argument("--force", action="store_true", help="write over what is there")
    settings.add_flags(parser, ("config",))


def demo_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", default=".",
                        help="where the WAV and the picture are written; made if it is not there")


def flow_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("check", "draw"), help="say what is wrong with it, or draw its states")
    parser.add_argument("file", metavar="FILE", help="the flow: FILE.toml, or FILE.py:NAME")
    parser.add_argument("--out", metavar="OUT.svg", default=None, help="where the picture is written; default: printed")
    settings.add_flags(parser, ("config", "stt", "tts"))


def call_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="ws://HOST:PORT/ws/<dialect>[/<agent>]")
    parser.add_argument("--wav", metavar="FILE", action="append", default=[],
                        help="what the caller says in a turn; once for each turn")
    parser.add_argument("--say", metavar="WORDS", action="append", default=[],
                        help="the same where only text is carried (twilio-relay)")
    parser.add_argument("--dialect", metavar="NAME", default=None, help="default: as the URL says")
    parser.add_argument("--secret", metavar="env:NAME", default=None,
                        help="where the platform's secret is, or USER:SECRET: env:NAME or file:NAME")
    parser.add_argument("--returns", metavar="N", type=int, default=0,
                        help="dial again, so often, when the connection breaks, as the platform does; default 0")
    parser.add_argument("--save", metavar="OUT.wav", default=None,
                        help="write the call, the caller left, the agent right")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def replay_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("journal", metavar="CALL.jsonl", help="what a server with archive.directory has kept of a call")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[],
                        help="a setting that was another: what if?  May be given several times")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def dial_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("number", metavar="NUMBER", help="+4930123456 or sip:NAME@HOST, which `targets` must allow")
    parser.add_argument("--via", metavar="NAME", required=True, help="the account of [carriers.NAME]")
    parser.add_argument("--agent", metavar="NAME", default="", help="who is to speak, of the server at public_url")
    parser.add_argument("--detect", action=argparse.BooleanOptionalAction, default=True,
                        help="have the platform find out whether a machine answers (default)")
    settings.add_flags(parser, ("config", "public_url", "targets"))


def latency_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", nargs="?", default=None, help="default: a server of its own")
    parser.add_argument("--duration", metavar="S", type=float, default=60.0, help="seconds of calls (default 60)")
    parser.add_argument("--rate", metavar="N", type=float, default=5.0, help="calls begun per second (default 5)")
    parser.add_argument("--calls", metavar="N", type=int, default=50, help="most calls at once (default 50)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


# name -> what it does, its flags, the function
COMMANDS = {
    "demo": ("hold a demonstration call on this machine", demo_flags, demo),
    "serve": ("run the server", serve_flags, serve),
    "call": ("call a server as a caller made of recordings, and measure", call_flags, call),
    "latency-test": ("simulated voice traffic against a server, and its latencies", latency_flags, latency_test),
    "replay": ("take a call from its journal once more, or with other settings", replay_flags, replay),
    "dial": ("place a call by a platform, to an agent of the server at public_url", dial_flags, dial),
    "flow": ("check a flow, or draw it", flow_flags, flow),
    "doctor": ("look at this machine, and say what to change", serve_flags, doctor),
    "upgrade": ("replace the running server by the program as it is now, with its calls", upgrade_flags, upgrade),
    "install-service": ("write the systemd unit and socket of this installation", install_flags, install),
    "config": ("print all settings and where each came from", serve_flags, show_config),
}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="opusagent", description="A voice-agent server that answers within a breath.",
                                  epilog="opusagent COMMAND --help says more about a command.")
    top.add_argument("--version", action="version", version=f"opusagent {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (summary, add_flags, run) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        add_flags(command)
        command.set_defaults(run=run)
    return top


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The arguments.  SystemExit with 2, as argparse has it, where one is unknown; what it is near to is named."""
    top = parser()
    args, unknown = top.parse_known_args(argv)
    if unknown:
        word = unknown[0].partition("=")[0]
        known = ["--" + re.sub("[_.]", "-", name) for name in vars(args).keys() - {"run", "command"}]
        close = difflib.get_close_matches(word, known, 1, 0.7)
        meant = f" (did you mean {close[0]}?)" if close else f"; opusagent {args.command} --help says what it takes"
        top.error(f"opusagent {args.command} takes no {word}{meant}")
    return args


def open_streams() -> None:
    """Where stdin, stdout or stderr is closed, no file or socket of ours is to take its number."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)    # the lowest number that is free
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)


def unread() -> None:
    """Nobody reads what we print, or nothing keeps it: that is no fault, and is not tried again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def place_of(stream) -> str:
    """The file that a stream leads to."""
    try:
        return os.readlink(f"/proc/self/fd/{stream.fileno()}")
    except OSError:
        return "the output"


def main(argv: list[str] | None = None) -> int:
    open_streams()
    args = parsed(argv)
    try:
        return args.run(args)
    except ConfigError as error:
        print(f"opusagent: {error}", file=sys.stderr)
        return 2
    except (EngineError, ProtocolError) as error:
        print(f"opusagent: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        if error.name != "opusagent._fastpath":
            raise
        print(f"opusagent: The compiled module does not fit this code ({error.msg}): pip install opusagent "
              "builds it anew.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 1
    except BrokenPipeError:
        unread()
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename or place_of(sys.stdout)
        unread()
        print(f"opusagent: There is no room in {where} for what there is to write: {error.strerror}.", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
