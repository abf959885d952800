"""The command `doctor`: looks at this machine and says in a sentence each what to change.

It changes nothing.  A check is a function that yields findings; CHECKS is the list of them.  The rule: BREAKS is said
of what would lose or spoil a call, CHANGE of what would make calls better, FINE of the rest.
"""
import importlib
import importlib.util
import os
import platform
import resource
import shlex
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import ConfigError, EngineError, directories, unit
from .config import Config
from .daemon.serve import CORES_TO_PIN, count_workers, needed_files
from .endpoints import STAGES, URL, targets
from .studio.prompts import open_store
from .transport import net

FINE, CHANGE, BREAKS = "fine", "change", "breaks"
SIGNS = {FINE: "ok    ", CHANGE: "change", BREAKS: "BREAKS"}

AT_LEAST = ("net.core.somaxconn", "net.ipv4.tcp_max_syn_backlog")      # more than the drop-in says is as good
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@dataclass(frozen=True, slots=True)
class Finding:
    grade: str                  # FINE, CHANGE or BREAKS
    sentence: str


def python(config: Config) -> Iterator[Finding]:
    version = platform.python_version()
    good = sys.version_info >= (3, 11)
    yield Finding(FINE if good else BREAKS,
                  f"Python {version}" + ("." if good else " is too old: 3.11 or newer is needed."))


def packages(config: Config) -> Iterator[Finding]:
    for name in ("uvloop", "numpy", "openai", "orjson", "h11"):
        if importlib.util.find_spec(name) is None:
            yield Finding(BREAKS, f"The package {name} is missing: pip install opusagent brings it.")
    try:
        from . import _fastpath
    except ImportError as error:
        yield Finding(BREAKS, f"The compiled module cannot be loaded ({error}): pip install opusagent builds it, "
                              "with gcc.")
    else:
        yield Finding(FINE, f"The compiled module is {Path(_fastpath.__file__).name}.")


def cores(config: Config) -> Iterator[Finding]:
    count = len(os.sched_getaffinity(0))
    if count < 2:
        yield Finding(CHANGE, "There is one core for the calls and the engines: give the engines one of their own.")
    else:
        yield Finding(FINE, f"{count} cores.")


def files(config: Config) -> Iterator[Finding]:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]       # up to which the server raises its own
    needed, calls = needed_files(config), count_workers(config) * config.max_calls
    if limit != resource.RLIM_INFINITY and limit < needed:
        yield Finding(BREAKS, f"The limit of open files is {limit}, and {calls} calls need {needed}: raise it (ulimit "
                              "-Hn, or LimitNOFILE= of the service), or lower max_calls or workers.")
    elif limit == resource.RLIM_INFINITY:
        yield Finding(FINE, "Open files have no limit.")
    else:
        yield Finding(FINE, f"The limit of open files is {limit}.")


def tls(config: Config) -> Iterator[Finding]:
    if config.tls_cert:
        yield Finding(CHANGE, "TLS ends in the server itself: a call is lost with the worker that has it, and stays "
                              "behind at an upgrade.  Calls survive both where a proxy ends TLS: deploy/haproxy.cfg.")


def sysctls(config: Config) -> Iterator[Finding]:
    """The lines of deploy's drop-in, each after the comment that says why."""
    reason = ""
    for line in unit.shipped(unit.DROP_IN).splitlines()[1:]:
        if line.startswith("# "):
            reason = line[2:]
            continue
        name, _, wanted = line.partition(" = ")
        try:
            value = " ".join(Path("/proc/sys", *name.split(".")).read_text().split())
        except OSError:
            yield Finding(FINE, f"{name} cannot be read here.")
            continue
        if right(name, value, wanted):
            yield Finding(FINE, f"{name} is {value}.")
        else:
            yield Finding(CHANGE, f"{name} is {value} and should be {wanted} ({reason}): sysctl -w '{name}={wanted}'.")


def right(name: str, value: str, wanted: str) -> bool:
    """Whether a sysctl is as it should be; of several numbers the last, the most, counts."""
    if name in AT_LEAST:
        return int(value) >= int(wanted)
    return int(value.split()[-1]) <= int(wanted.split()[-1]) if " " in wanted else value == wanted


def backlog(config: Config) -> Iterator[Finding]:
    try:
        most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    except (OSError, ValueError):
        return
    if most < config.net.backlog:
        yield Finding(CHANGE, f"net.backlog is {config.net.backlog}, and the kernel makes {most} of it: "
                              f"sysctl -w net.core.somaxconn={config.net.backlog}.")


def huge_pages(config: Config) -> Iterator[Finding]:
    try:
        chosen = HUGE_PAGES.read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return
    if chosen == "always":
        yield Finding(CHANGE, "Transparent huge pages are always made, and making one stops a worker: "
                              f"echo madvise > {HUGE_PAGES}.")
    else:
        yield Finding(FINE, f"Transparent huge pages: {chosen}.")


def pinning(config: Config) -> Iterator[Finding]:
    count, workers = len(os.sched_getaffinity(0)), count_workers(config)
    if not config.pin:
        yield Finding(FINE, "Workers are not pinned to cores, as it is configured.")
    elif count < CORES_TO_PIN:
        yield Finding(FINE, f"Workers are pinned to cores from {CORES_TO_PIN} cores on, and here are {count}.")
    elif workers >= count:
        yield Finding(CHANGE, f"{workers} workers on {count} cores leave none to the engines, and none is pinned: "
                              f"set workers to {count - 1} or fewer.")
    else:
        yield Finding(FINE, f"{workers} workers have a core each.")


def places(config: Config) -> Iterator[Finding]:
    """Where calls, notices and prompts are kept."""
    for what, directory in (("Calls", config.archive.directory), ("Notices", config.webhook.directory)):
        if directory:
            yield _tried(what, Path(directory))
    if not config.prompts.megabytes:
        yield Finding(CHANGE, "Prompts are spoken anew at every start: set prompts.megabytes to more than 0.")
        return
    try:
        store = open_store(config, os.environ)
    except ConfigError as error:
        yield Finding(BREAKS, str(error))
    else:
        yield Finding(FINE, "Prompts are kept.") if store is not None else Finding(
            CHANGE, "Prompts are not kept, and spoken anew at every start: set prompts.directory.")


def _tried(what: str, place: Path) -> Finding:
    try:
        directories.tried(place)
    except OSError as error:
        return Finding(BREAKS, f"{what} cannot be kept in {place} ({error.strerror}): name a directory that this user "
                               "may write to, or can make.")
    return Finding(FINE, f"{what} are kept in {place}.")


def accounts(config: Config) -> Iterator[Finding]:
    """What is set of each account, and nothing of its value."""
    for name, account in config.accounts.items():
        yield Finding(FINE, f"The account carriers.{name} of {account.platform} has its id and its secret"
                      + ("." if account.sender else "; it has no sender, which dialling may need."))


def installed(config: Config) -> Iterator[Finding]:
    """The unit under systemd: there, with paths that exist, and as closed as the shipped one."""
    if not Path("/run/systemd/system").is_dir():
        yield Finding(FINE, "systemd does not run here.")
        return
    place = Path(unit.DIRECTORY, unit.UNIT)
    try:
        text = place.read_text()
    except OSError as error:
        yield Finding(CHANGE, f"The unit {place} cannot be read ({error.strerror}): opusagent install-service "
                              "writes it.")
        return
    yield from faults_of_unit(text, str(place))
    yield from walls_of_unit(text, str(place), unit.written_to(config))
    place = Path(unit.DIRECTORY, unit.SOCKET)
    yield from faults_of_socket(place.read_text() if place.exists() else "", str(place), config)


def lines_of(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


def paths_in(text: str, key: str) -> list[str]:
    """The absolute paths in a line of a unit."""
    try:
        words = shlex.split(lines_of(text).get(key, ""))
    except ValueError:
        words = []
    return [word.replace("%%", "%") for word in words if word.startswith("/")]


def faults_of_socket(text: str, place: str, config: Config) -> Iterator[Finding]:
    """Whether systemd listens where the configuration says, for the server takes what it is given."""
    try:
        wanted = unit.listening(config)
    except ConfigError as error:
        yield Finding(BREAKS, str(error))
        return
    listens = lines_of(text).get("ListenStream", "nothing")
    if listens != wanted:
        yield Finding(CHANGE, f"{place} listens on {listens}, and the configuration says {wanted}: opusagent "
                              "install-service --force writes it anew.")


def walls_of_unit(text: str, place: str, written: list[str]) -> Iterator[Finding]:
    """Whether the service may write where it has to: what the unit does not name is shut, what it names must be."""
    opened = paths_in(text, "ReadWritePaths")
    shut = [path for path in written if not any(Path(path).is_relative_to(each) for each in opened)]
    missing = [path for path in opened if not Path(path).exists()]
    if shut:
        yield Finding(BREAKS, f"{place} does not let the server write to {', '.join(shut)}: opusagent install-service "
                              "--force writes it anew.")
    if missing:
        yield Finding(BREAKS, f"{place} lets the server write to {', '.join(missing)}, which is not there, and so it "
                              "does not start: make it, for the server's user.")


def faults_of_unit(text: str, place: str) -> Iterator[Finding]:
    paths = paths_in(text, "ExecStart")
    missing = [path for path in paths if not Path(path).exists()]
    if not paths or missing:
        yield Finding(BREAKS, f"{place} starts {', '.join(missing) or 'nothing'}, which is not there: "
                              "opusagent install-service --force writes it anew.")
    lines = unit.shipped(unit.UNIT).splitlines()
    closed = [line for line in lines[lines.index("NoNewPrivileges=yes"):]
              if "=" in line and not line.startswith(("#", "[", "WantedBy", "Also", "ProtectHome"))]
    opened = [line.partition("=")[0] for line in closed if line not in text.splitlines()]
    if opened:
        yield Finding(CHANGE, f"{place} is not as closed as it could be, by {', '.join(dict.fromkeys(opened))}: "
                              "opusagent install-service --force writes it anew.")
    if paths and not missing and not opened:
        yield Finding(FINE, f"{place} is as it should be.")


def sockets(config: Config) -> Iterator[Finding]:
    """The options of a call's socket, on a real connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()) as near:
        far, _ = listening.accept()
        with far:
            faults = [option for option in net.tune(near, config.net) if option.fault]
    for option in faults:
        yield Finding(CHANGE, f"{option.name} = {option.wanted} is not to be had: {option.fault}.")
    if not faults:
        yield Finding(FINE, "Every socket option is applied as it is configured.")


def scheduling(config: Config) -> Iterator[Finding]:
    try:
        load = os.getloadavg()[0]
    except OSError:
        return
    count = len(os.sched_getaffinity(0))
    if load > count:
        yield Finding(CHANGE, f"The load is {load:.1f} on {count} cores: other programs take the time that calls need.")
    else:
        yield Finding(FINE, f"The load is {load:.1f} on {count} cores.")


def engines(config: Config) -> Iterator[Finding]:
    from .engines import make
    from .speech.audio import VadBatch
    for stage in ("stt", "llm", "tts"):
        try:
            make(stage, config)
        except (ConfigError, EngineError) as error:
            yield Finding(BREAKS, str(error))
    if config.stt == "embedded":
        yield from _made("the recogniser", "opusagent.engines.embedded.recogniser", "model_path")
    if config.tts == "embedded":
        yield from _made("the voice", "opusagent.engines.embedded.voices", "Voices", config.embedded.voice)
    hearing = VadBatch().model_name
    yield Finding(FINE, "Callers are heard by Silero.") if hearing == "silero" else Finding(
        CHANGE, "Callers are heard by loudness alone, which takes noise for speech: pip install 'opusagent[local]'.")


def _made(what: str, module: str, name: str, *words) -> Iterator[Finding]:
    try:
        getattr(importlib.import_module(module), name)(*words)
    except (ConfigError, EngineError) as error:
        yield Finding(BREAKS, str(error))
    else:
        yield Finding(FINE, f"The embedded engine has {what}.")


def conversation(config: Config) -> Iterator[Finding]:
    from . import flowcheck
    from .studio import studio
    if not config.flow:
        return
    try:
        flowcheck.load(config.flow, studio.waits(config), config)
    except ConfigError as error:
        yield Finding(BREAKS, str(error))
    else:
        yield Finding(FINE, f"The flow {config.flow} has no mistakes.")


def keys(config: Config) -> Iterator[Finding]:
    for stage in STAGES[:3]:
        engine = getattr(config, stage)
        asked = targets(config, stage if engine == "openai" else "realtime")
        if engine in ("openai", "realtime") and not all(at.api_key or at.base_url != URL for at in asked):
            yield Finding(BREAKS, f"The {stage} engine is {engine}, and there is no key: set OPENAI_API_KEY.")


def registry(config: Config) -> Iterator[Finding]:
    if config.redis.url and importlib.util.find_spec("redis") is None:
        yield Finding(BREAKS, "redis.url needs the extra redis: pip install 'opusagent[redis]'.")


CHECKS = (python, packages, cores, pinning, files, tls, sysctls, backlog, huge_pages, sockets, scheduling, places,
          engines, conversation, keys, accounts, installed, registry)


def examine(config: Config) -> list[Finding]:
    return [finding for check in CHECKS for finding in check(config)]


def doctor_command(config: Config) -> int:
    """Print all findings, the grave ones last; 1 if something would break a call."""
    findings = sorted(examine(config), key=lambda finding: list(SIGNS).index(finding.grade))
    for finding in findings:
        print(f"{SIGNS[finding.grade]}  {finding.sentence}")
    return int(any(finding.grade == BREAKS for finding in findings))
