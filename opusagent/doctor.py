"""The command `doctor`: looks at this machine and says in a sentence each what to change.

It changes nothing.  A check is a function that yields findings; CHECKS is the list of them.  The rule: BREAKS is said
of what would lose or spoil a call, CHANGE of what would make calls better, FINE of the rest.
"""
import importlib
import importlib.util
import os
import platform
import resource
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import ConfigError, EngineError, net
from .config import Config
from .endpoints import STAGES, URL, targets

FINE, CHANGE, BREAKS = "fine", "change", "breaks"
SIGNS = {FINE: "ok    ", CHANGE: "change", BREAKS: "BREAKS"}

FILES_PER_CALL = 2              # the socket, and room for what surrounds it
FILES_BESIDES = 256

# name -> (least, what less of it does)
SYSCTLS = {
    "net.core.somaxconn": (4096, "connections that come at once are refused before they are accepted"),
    "net.ipv4.tcp_max_syn_backlog": (4096, "connections that come at once are dropped before they are accepted"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    grade: str                  # FINE, CHANGE or BREAKS
    sentence: str


def python(config: Config) -> Iterator[Finding]:
    version = platform.python_version()
    good = sys.version_info >= (3, 11)
    yield Finding(FINE if good else BREAKS, f"Python {version}" + ("." if good else " is too old: 3.11 or newer is needed."))


def packages(config: Config) -> Iterator[Finding]:
    for name in ("uvloop", "numpy", "openai", "orjson", "h11"):
        if importlib.util.find_spec(name) is None:
            yield Finding(BREAKS, f"The package {name} is missing: pip install opusagent brings it.")
    try:
        from . import _fastpath
    except ImportError as error:
        yield Finding(BREAKS, f"The compiled module cannot be loaded ({error}): pip install opusagent builds it, with gcc.")
    else:
        yield Finding(FINE, f"The compiled module is {Path(_fastpath.__file__).name}.")


def cores(config: Config) -> Iterator[Finding]:
    count = len(os.sched_getaffinity(0))
    if count < 2:
        yield Finding(CHANGE, "There is one core for the calls and the engines: give the engines one of their own.")
    else:
        yield Finding(FINE, f"{count} cores.")


def files(config: Config) -> Iterator[Finding]:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    needed = config.max_calls * FILES_PER_CALL + FILES_BESIDES
    if limit < needed:
        yield Finding(BREAKS, f"The limit of open files is {limit}, and {config.max_calls} calls need {needed}: raise it "
                              "(ulimit -n, or LimitNOFILE= of the service), or lower max_calls.")
    else:
        yield Finding(FINE, f"The limit of open files is {limit}.")


def sysctls(config: Config) -> Iterator[Finding]:
    for name, (least, harm) in SYSCTLS.items():
        try:
            value = int(Path("/proc/sys", *name.split(".")).read_text())
        except (OSError, ValueError):
            yield Finding(CHANGE, f"{name} cannot be read here.")
            continue
        if value < least:
            yield Finding(CHANGE, f"{name} is {value}, and {harm}: sysctl -w {name}={least}.")
        else:
            yield Finding(FINE, f"{name} is {value}.")


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
    from .audio import VadBatch
    from .engines import make
    for stage in ("stt", "llm", "tts"):
        try:
            make(stage, config)
        except (ConfigError, EngineError) as error:
            yield Finding(BREAKS, str(error))
    if config.stt == "embedded":
        yield from _made("the recogniser", "opusagent.engines.embedded", "model_path")
    if config.tts == "embedded":
        yield from _made("the voice", "opusagent.engines.flite", "Voices", config.embedded.voice)
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


def keys(config: Config) -> Iterator[Finding]:
    for stage in STAGES:
        if getattr(config, stage) == "openai" and not all(at.api_key or at.base_url != URL
                                                          for at in targets(config, stage)):
            yield Finding(BREAKS, f"The {stage} engine is openai, and there is no key: set OPENAI_API_KEY.")


CHECKS = (python, packages, cores, files, sysctls, sockets, scheduling, engines, keys)


def examine(config: Config) -> list[Finding]:
    return [finding for check in CHECKS for finding in check(config)]


def doctor_command(config: Config) -> int:
    """Print all findings, the grave ones last; 1 if something would break a call."""
    findings = sorted(examine(config), key=lambda finding: list(SIGNS).index(finding.grade))
    for finding in findings:
        print(f"{SIGNS[finding.grade]}  {finding.sentence}")
    return int(any(finding.grade == BREAKS for finding in findings))
