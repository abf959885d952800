"""Where the engines `openai` and `realtime` ask: the endpoints of each stage, in order of preference.

[openai] describes one endpoint for all stages, and with names like llm_base_url another for one of them.  A file can
have several instead, as tables [[endpoints.stt]], [[endpoints.llm]], [[endpoints.tts]] and, of those that do all three
over one session, [[endpoints.realtime]]; what a table leaves out is what [openai] says.  The rule: a key is sent to the
origin it was given for, and to no other.
"""
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from . import ConfigError
from .credentials import resolved
from .settings import known_settings, setting

STAGES = ("stt", "llm", "tts", "realtime")     # the last one is all three over one session
URL = "https://api.openai.com/v1"       # the package's own

Tables = Mapping[str, tuple["Target", ...]]     # by stage


@dataclass(frozen=True, slots=True)
class Target:
    """One endpoint as a stage asks it."""

    base_url: str = setting("", "where it is; empty is [openai]'s", "URL")
    api_key: str = setting("", "its key; [openai]'s goes to [openai]'s origin only", secret=True)
    model: str = setting("", "its model; empty is [openai]'s for the stage", "name")
    voice: str = setting("", "its voice, whatever the flow wants; empty is the flow's, or else [openai]'s", "name")
    first_seconds: float = setting(0.0, "wait for the first piece of an answer until the next endpoint is asked; 0 is "
                                   "[openai]'s for the stage", low=0, high=60)
    gap_seconds: float = setting(1.0, "wait between two pieces until the next endpoint is asked", low=0.05, high=60)
    place: str = field(default="default", compare=False)        # where it, or its key, was written


SETTINGS = known_settings(Target)


def read(tables: Any, text: str, path: Any) -> Tables:
    """The `endpoints` of the TOML file `text`.  Raises ConfigError."""
    if not isinstance(tables, dict):
        raise ConfigError(f"{path}: endpoints are written as tables, each as [[endpoints.llm]].")
    found = {}
    for stage, rows in tables.items():
        if stage not in STAGES:
            raise ConfigError(f"{path}: there are no endpoints.{stage[:40]}; there are those of {', '.join(STAGES)}.")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ConfigError(f"{path}: endpoints.{stage} is a list of tables, each written as [[endpoints.{stage}]].")
        header = re.compile(rf"\s*\[\[\s*endpoints\s*\.\s*{stage}\s*\]\]")
        lines = [number for number, line in enumerate(text.splitlines(), 1) if header.match(line)]
        places = [f"{path}:{line}" for line in lines] if len(lines) == len(rows) else [str(path)] * len(rows)
        found[stage] = tuple(map(one, rows, places))
    return found


def one(row: Mapping[str, Any], place: str) -> Target:
    for name in row:
        if name not in SETTINGS:
            raise ConfigError(f"{place}: there is no {name[:40]!r} of an endpoint; there are {', '.join(SETTINGS)}.")
    target = Target(**{name: SETTINGS[name].read(value, place, text=False) for name, value in row.items()}, place=place)
    if target.base_url and (wrong := flaw(target.base_url)):
        raise ConfigError(f"{place}: base_url {wrong}.")
    return target


def with_keys(tables: Tables, environ: Mapping[str, str]) -> Tables:
    """The keys that are written as env:NAME or file:NAME, put in.  Raises ConfigError where there is none."""
    return {stage: tuple(replace(target, api_key=resolved(target.api_key, environ, target.place)) for target in rows)
            for stage, rows in tables.items()}


def targets(config, stage: str) -> tuple[Target, ...]:
    """The endpoints of a stage, the best one first, with everything said of each.  Raises ConfigError."""
    settings = config.openai

    def said(name: str) -> Any:
        return getattr(settings, f"{stage}_{name}")

    place = config.origin("openai.api_key")
    shared = Target(settings.base_url or URL, settings.api_key, place=place)
    own = Target(said("base_url") or shared.base_url, said("api_key"), place=config.origin(f"openai.{stage}_api_key"))
    found = []
    for each in config.endpoints.get(stage) or (replace(own, place=own.place if own.api_key else place),):
        base_url = each.base_url or own.base_url
        key = each.api_key or next((at.api_key for at in (own, shared)
                                    if at.api_key and origin(at.base_url) == origin(base_url)), "")
        if not re.fullmatch(r"[!-~]*", key):
            raise ConfigError(f"{each.place}: the key has a space, a line end or another character that no key has.")
        found.append(replace(each, base_url=base_url, api_key=key, model=each.model or said("model"),
                             first_seconds=each.first_seconds or said("first_seconds")))
    return tuple(found)


def flaw(url: str) -> str:
    """What is wrong with the URL of an endpoint, to follow its name; "" if nothing is."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is not a URL"
    if parts.scheme not in ("http", "https"):
        return "must begin with http:// or https://"
    return "" if host and not re.search(r"\s", url) else "names no host"


def origin(url: str) -> tuple[str, str]:
    """Scheme and authority of a URL, which is all that a key is given for."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def toml(tables: Tables) -> list[str]:
    """The tables as TOML that loads back to the same; keys are said to be set, not shown."""
    lines = []
    for stage, rows in tables.items():
        for row in rows:
            lines += ["", f"[[endpoints.{stage}]]"]
            for name, known in SETTINGS.items():
                value = getattr(row, name)
                if known.secret and value:
                    lines.append(f"# {name} is set, and not shown")
                elif not known.secret and value != known.default:
                    lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    return lines
