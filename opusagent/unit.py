"""The command `install-service`: the systemd unit and its socket for this installation.

The texts are those of deploy/, shipped with the package, with the lines changed that name this installation.  The
rule: nothing that is there is written over without --force, and nothing is started; the next commands are printed.
"""
import grp
import ipaddress
import os
import pwd
import re
import shlex
import sys
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from . import ConfigError
from .config import SETTINGS, Config
from .daemon.serve import count_workers, needed_files

DIRECTORY = "/etc/systemd/system"
UNIT, SOCKET = "opusagent.service", "opusagent.socket"
SYSCTLS, DROP_IN = "/etc/sysctl.d", "60-opusagent.conf"
STOP_BESIDES = 30               # seconds beyond drain_seconds: for the last words, and the end
ARENAS = 4                      # of a worker and those that finish calls of settings before
MOST_KEPT = 5400                # descriptors: systemd names all of them in one variable of at most 128 KiB, and with a
                                # longer one nothing would start again; our names have up to 24 bytes each
TASKS = 64                      # of a worker: some ten, as many of its successor, and of those before
USER = re.compile(r"[A-Za-z_][\w-]*\$?|\d+", re.ASCII)     # what systemd takes for one; an empty User= would be root
OWN = ("/var/lib/opusagent", "/var/cache/opusagent")    # StateDirectory= and CacheDirectory= of the unit


def shipped(name: str) -> str:
    """A text of deploy/.  ConfigError if the installation lacks it."""
    if place_of(name).is_file():
        return place_of(name).read_text()
    raise ConfigError(f"The file {name} is missing from this installation: reinstall opusagent.")


def place_of(name: str) -> Traversable:
    """Where a text of deploy/ lies in this installation."""
    return resources.files("opusagent") / "deploy" / name


def command_line() -> list[str]:
    """How this installation is started: its own program, or its Python with the module."""
    program = Path(sys.executable).parent / "opusagent"
    return [str(program)] if program.is_file() else [sys.executable, "-P", "-m", "opusagent.cli"]


def with_lines(text: str, lines: dict[str, str]) -> str:
    """The unit `text`, with other values of the keys of `lines`, each of which it has."""
    out = []
    for line in text.splitlines():
        key, _, _ = line.partition("=")
        out.append(f"{key}={lines[key]}" if key in lines else line)
    missing = set(lines) - {line.partition("=")[0] for line in out}
    if missing:
        raise ConfigError(f"The unit has no line {', '.join(sorted(missing))}=: reinstall opusagent.")
    return "\n".join(out) + "\n"


def units(config: Config, file: str | None, user: str, program: list[str], besides: tuple = ()) -> dict[str, str]:
    """The texts by file name.  `file` is the configuration, as an absolute path; None is none.  `program` starts the
    server, and it needs what lies at `besides`, too."""
    check_places(config)
    words = [*program, "serve", *(["--config", file] if file else [])]
    lines = {"ExecStart": " ".join(_quoted(word) for word in words),
             "TimeoutStopSec": str(int(config.drain_seconds) + STOP_BESIDES), "User": user, "Group": _group(user),
             **room(config)}
    if any(place.startswith(("/home/", "/root/")) for place in (*words, *besides)):
        lines["ProtectHome"] = "read-only"      # or it would not find itself
    if written := written_to(config):
        lines["UMask"] = "0077\nReadWritePaths=" + " ".join(map(_quoted, written))
    listen = {"ListenStream": listening(config), "Backlog": str(config.net.backlog)}
    return {UNIT: with_lines(shipped(UNIT), lines), SOCKET: with_lines(shipped(SOCKET), listen)}


def room(config: Config) -> dict[str, str]:
    """Lines that have to grow with the machine: what the unit as it is shipped allows is the least."""
    workers = count_workers(config)
    wanted = {"FileDescriptorStoreMax": min(workers * (config.max_calls + ARENAS), MOST_KEPT),
              "TasksMax": workers * TASKS, "LimitNOFILE": needed_files(config)}
    least = dict(line.split("=", 1) for line in shipped(UNIT).splitlines() if "=" in line)
    return {name: str(max(int(least[name]), value)) for name, value in wanted.items()}


def check_places(config: Config) -> None:
    """Raises ConfigError for a file or directory that the server would look for somewhere else than we do now."""
    for key, known in SETTINGS.items():
        value = config.get(key) if known.unit in ("file", "directory") and key != "config" else ""
        if not value or os.path.isabs(value):
            continue
        if known.unit == "directory" or os.path.exists(value.partition(":")[0]):    # FILE.py:NAME is a flow, too
            raise ConfigError(f"{config.origin(key)}: systemd starts the server in /, and {value} is relative: write "
                              f"{os.path.abspath(value)}.")


def written_to(config: Config) -> list[str]:
    """Directories that must be there before the service starts, since it may write to them and not beside them."""
    named = filter(None, (config.archive.directory, config.prompts.directory, config.webhook.directory))
    return [path for path in map(os.path.abspath, named) if not any(Path(path).is_relative_to(own) for own in OWN)]


def listening(config: Config) -> str:
    """As in systemd.socket(5), which takes addresses and no names."""
    if not config.port:
        raise ConfigError("systemd listens on a port that is known: set port to another one than 0.")
    host = "127.0.0.1" if config.host == "localhost" else config.host.removeprefix("[").removesuffix("]")
    if not host:
        return str(config.port)
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        raise ConfigError(f"systemd listens on addresses, and {host} is a name: set host to an address.") from None
    return f"[{host}]:{config.port}" if version == 6 else f"{host}:{config.port}"


def _quoted(word: str) -> str:
    """A word of ExecStart=, where % and $ are special; systemd.service(5)."""
    word = word.replace("%", "%%").replace("$", "$$").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{word}"' if any(letter.isspace() or letter in "\"'\\;" for letter in word) else word


def _group(user: str) -> str:
    try:
        return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
    except KeyError:
        return user


def install_command(config: Config, file: str, user: str, directory: str, force: bool, show: bool) -> int:
    """Write the two files, or print them.  `file`: the configuration, "" for none."""
    if not USER.fullmatch(user):
        raise ConfigError(f"--user: {user[:60]!r} is no name of a user.")
    file = os.path.abspath(file) if file else None
    texts = units(config, file, user, command_line(), (os.path.realpath(sys.executable), __file__))
    if show:
        print("\n".join(f"# {Path(directory, name)}\n{text}" for name, text in texts.items()), end="")
        return 0
    write(texts, Path(directory), force)
    for name in texts:
        print(f"written: {Path(directory, name)}")
    print("next:")
    for line in next_commands(file, user, written_to(config)):
        print(f"  {line}")
    return 0


def write(texts: dict[str, str], directory: Path, force: bool) -> None:
    """All of them or none.  ConfigError where that is not possible, or not allowed."""
    if str(directory) == DIRECTORY and os.geteuid() != 0:
        raise ConfigError(f"Only root writes to {DIRECTORY}: run this with sudo, or see it with --print.")
    if not directory.is_dir():
        raise ConfigError(f"There is no directory {directory}: systemd reads {DIRECTORY}.")
    there = [name for name in texts if (directory / name).exists()]
    if there and not force:
        raise ConfigError(f"{directory / there[0]} is there already: --force writes over it.")
    try:
        for name, text in texts.items():
            part = directory / f".{name}.new"
            part.write_text(text)
            part.chmod(0o644)
            part.replace(directory / name)
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be written: {error.strerror}.") from None


def next_commands(file: str | None, user: str, written: list[str]) -> list[str]:
    """What is left to do; `written`: the directories that the service needs."""
    lines = []
    try:
        pwd.getpwnam(user)
    except KeyError:
        lines.append(f"useradd --system --home-dir /nonexistent --shell /usr/sbin/nologin {shlex.quote(user)}")
    lines += [shlex.join(["install", "-d", "-m", "700", "-o", user, "-g", _group(user), path])
              for path in dict.fromkeys(written) if not os.path.isdir(path)]
    if not Path(SYSCTLS, DROP_IN).exists():
        lines.append(shlex.join(["install", "-m", "644", str(place_of(DROP_IN)), SYSCTLS])
                     + f" && sysctl -q -p {SYSCTLS}/{DROP_IN}")
    return [*lines, "systemctl daemon-reload", "systemctl enable --now opusagent.socket opusagent.service",
            shlex.join([*command_line(), "doctor", *(["--config", file] if file else [])])]
