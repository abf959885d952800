"""Who may call, and by what account we call: the tables [auth.PLATFORM] and [carriers.NAME] of the configuration.

It checks nothing that a caller shows (auth.py does) and calls nobody (carriers/).  The rule: a secret may be written
as file:NAME or env:NAME, is read once, and stands in no message, no log and no repr.
"""
import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from . import ConfigError

# The platforms whose routes can ask for credentials: the dialects by name, and the OpenAI Realtime protocol's clients.
PLATFORMS = ("pcm", "twilio", "telnyx", "plivo", "vonage", "asterisk", "jambonz", "freeswitch", "audiocodes",
             "audiohook", "realtime")
CARRIERS = ("twilio", "telnyx", "plivo", "vonage", "jambonz")
SHORTEST = 8                # characters of a secret
CREDENTIALS = "CREDENTIALS_DIRECTORY"       # where systemd puts them


@dataclass(frozen=True, slots=True)
class Key:
    """One account of a platform's that may call.  All its secrets count at once, so that one can follow another."""

    platform: str
    secrets: tuple[str, ...] = field(default=(), repr=False)    # as the platform signs, or shows, them
    tokens: tuple[str, ...] = field(default=(), repr=False)     # to be shown as they are: bearer, basic, ?token=
    public_keys: tuple[str, ...] = ()   # Ed25519, base64: of those who sign webhooks with the other half (Telnyx)
    user: str = ""                      # the name beside a secret: AudioHook's API key, basic authentication's user
    agent: str = ""                     # the only agent that may be called; "": any that no other key is bound to
    tenant: str = ""                    # the account that the call must say it is of; "": any
    once: bool = False                  # Twilio: only calls that a webhook here has connected, and each address once


@dataclass(frozen=True, slots=True)
class Carrier:
    """An account by which numbers are dialled, and calls ended and handed over."""

    name: str
    platform: str
    account: str                        # account SID, auth id, application id
    secret: str = field(repr=False)     # auth token, API key, private key
    sender: str = ""                    # the number that we call from
    connection: str = ""                # Telnyx: id of the Call Control application
    api: str = ""                       # another address of the API: a region's
    hang_up: bool = False               # end calls by the API when the flow has, not only by closing the stream


def keys(table: Mapping, place: str) -> tuple[Key, ...]:
    """The keys of [auth.PLATFORM] tables, one or several of each.  ConfigError, with `place`, for what is none."""
    found = []
    for platform, rows in table.items():
        if platform not in PLATFORMS:
            raise ConfigError(f"{place}: there is no platform {platform!r} to ask for credentials; "
                              f"there are {', '.join(PLATFORMS)}.")
        for row in rows if isinstance(rows, list) else [rows]:
            found.append(key_of(platform, row, place))
    return tuple(found)


def key_of(platform: str, row, place: str) -> Key:
    where = f"{place}: auth.{platform}"
    values = fields_of(Key, row, where, {"platform"})
    key = Key(platform, **values)
    if not key.secrets + key.tokens:
        raise ConfigError(f"{where} needs secrets = [\"...\"] for its calls.")
    if any(len(secret) < SHORTEST for secret in key.secrets + key.tokens):
        raise ConfigError(f"{where}: a secret has fewer than {SHORTEST} characters, which can be guessed.")
    if platform == "audiohook" and key.secrets and not (key.user and all(map(is_base64, key.secrets))):
        raise ConfigError(f"{where} needs the API key as user, and its client secrets in base64.")
    if key.once and platform != "twilio":
        raise ConfigError(f"{where}.once is for twilio, whose signature of an upgrade does not change.")
    if not all(map(is_base64, key.public_keys)):
        raise ConfigError(f"{where}.public_keys are in base64, as Telnyx shows them.")
    return key


def carriers(table: Mapping, place: str) -> dict[str, Carrier]:
    """The accounts of [carriers.NAME] tables by name; platform is the name's where it is not said."""
    found = {}
    for name, row in table.items():
        where = f"{place}: carriers.{name}"
        values = {"platform": name} | fields_of(Carrier, row, where, {"name"})
        if values["platform"] not in CARRIERS:
            raise ConfigError(f"{where} needs platform = one of {', '.join(CARRIERS)}.")
        for needed in ("account", "secret"):
            if not values.get(needed):
                raise ConfigError(f"{where} needs {needed}.")
        carrier = found[name] = Carrier(name, **values)
        if carrier.api and not re.fullmatch(r"https?://[^\s?#]+", carrier.api):
            raise ConfigError(f"{where}.api must begin with https:// and hold no query.")
    return found


def fields_of(kind: type, row, where: str, without: set[str]) -> dict:
    """A table's values as the fields of a dataclass; one text stands for a list of one."""
    if not isinstance(row, Mapping):
        raise ConfigError(f"{where} must be a table, [{where.rpartition(' ')[2]}].")
    types = {name: each for name, each in kind.__annotations__.items() if name not in without}
    values = {}
    for name, value in row.items():
        if name not in types:
            raise ConfigError(f"{where} has no {name!r}; it has {', '.join(types)}.")
        if types[name] == tuple[str, ...]:
            rows = value.splitlines() if isinstance(value, str) else value
            value = tuple(rows) if isinstance(rows, list) else None
            right = value is not None and all(isinstance(each, str) and each.isprintable() for each in value)
        else:
            right = isinstance(value, types[name]) and (types[name] is bool or readable(value))
        if not right:
            raise ConfigError(f"{where}.{name} must be {WANTED[types[name]]}.")
        values[name] = value
    return values


WANTED = {tuple[str, ...]: "a list of texts", str: "text", bool: "true or false"}


def readable(text: str) -> bool:
    """True for text of one line, and for a PEM key of several."""
    return text.replace("\n", "").isprintable()


def is_base64(text: str) -> bool:
    try:
        return bool(base64.b64decode(text, validate=True))
    except ValueError:
        return False


# ---- where secrets are kept ------------------------------------------------------------------------------------------

def resolved(value, environ: Mapping[str, str], place: str):
    """`value` with each text file:NAME or env:NAME in it replaced by what is there; in a list, by all lines of a file.

    A relative name is one in systemd's credentials directory, where there is one.  Raises ConfigError.
    """
    if isinstance(value, str):
        return "\n".join(lines_of(value, environ, place))
    if isinstance(value, Mapping):
        return type(value)({name: resolved(inner, environ, place) for name, inner in value.items()})
    if isinstance(value, list):
        return [line for each in value for line in (lines_of(each, environ, place) if isinstance(each, str)
                                                    else [resolved(each, environ, place)])]
    return value


def lines_of(text: str, environ: Mapping[str, str], place: str) -> list[str]:
    scheme, _, name = text.partition(":")
    if scheme == "env" and name:
        if not environ.get(name):
            raise ConfigError(f"{place}: the variable {name} is not set.")
        return [environ[name]]
    if scheme != "file" or not name:
        return [text]
    path = Path(environ.get(CREDENTIALS, ""), name)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"{place}: the secret in {path} cannot be read: {why}.") from None
    if not any(lines):
        raise ConfigError(f"{place}: the file {path} holds no secret.")
    return [line for line in lines if line]
