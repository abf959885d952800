"""What a setting is: one dataclass field that makes its flag, environment variable, TOML key, help and check.

It knows no setting by name (config.py has them all) and opens nothing but the file it is told to.  The rule: whatever
cannot be meant (a key nobody knows, a value nobody could use) is a ConfigError that names the place and, where there
is one, the setting that was probably meant.  Secrets are never printed.
"""
import argparse
import difflib
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from . import ConfigError

PREFIX = "OPUSAGENT_"

# Not settings: ours at build time, and what Kubernetes sets in every pod beside a Service that is named opusagent.
FOREIGN = re.compile(r"OPUSAGENT_(ANNOTATE|SERVICE_.*|PORT_\d.*)")

class Table(dict):
    """A setting that is a table of tables, whose names are the user's own; the file alone can give all of it."""

    __hash__ = object.__hash__          # a dataclass takes no default that could not be one


Given = dict[str, tuple[Any, str]]          # key -> value and the place it came from


def setting(default: Any, doc: str, unit: str = "", *, low: float | None = None, high: float | None = None,
            choices: tuple[str, ...] = (), secret: bool = False, also: str = "") -> Any:
    """A field with all there is to say about it; `unit` where the name does not end in it.

    A `secret` has no flag, which any user of the machine could read; `also` is another variable that means the same.
    """
    return field(default=default, repr=not secret, metadata={
        "doc": doc, "unit": unit, "low": low, "high": high, "choices": choices, "secret": secret, "also": also})


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of one setting, taken from its field."""

    key: str                            # "port", "net.dscp"
    kind: type                          # bool, int, float, str, tuple (of str) or Table
    default: Any
    doc: str
    unit: str
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    secret: bool
    also: str

    @property
    def section(self) -> str:
        return self.key.rpartition(".")[0]

    @property
    def flag(self) -> str:
        return "--" + self.key.replace(".", "-").replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.key.replace(".", "_").upper()

    @property
    def wanted(self) -> str:
        """What a value must be, to end the sentence "KEY must be ..."."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        kind = {bool: "true or false", int: "a whole number", float: "a number", str: "text",
                tuple: "a list of texts", Table: "a table of tables"}[self.kind]
        return kind if self.low is None else f"{kind} from {self.low:.13g} to {self.high:.13g}"

    def read(self, value: Any, place: str, *, text: bool) -> Any:
        """`value` as this setting's kind; `text` where it was written as words.  Raises ConfigError."""
        try:
            read = _from_text(self.kind, value) if text and isinstance(value, str) else _typed(self.kind, value)
        except ValueError:
            read = None
        if read is None or not self._allowed(read):
            shown = "" if self.secret else f", not {str(value)[:60]!r}"
            raise ConfigError(f"{place}: {self.key} must be {self.wanted}{shown}{_meant(str(value), self.choices)}.")
        return read

    def _allowed(self, value: Any) -> bool:
        texts = value if self.kind is tuple else (value,) if self.kind is str else ()
        if not all(text.isprintable() for text in texts):
            return False
        return (not self.choices or value in self.choices) and (self.low is None or self.low <= value <= self.high)


def known_settings(owner: type) -> dict[str, Setting]:
    """The settings of a dataclass by key, those of its sections (fields that are dataclasses) after its own."""
    owners = [("", owner), *((section.name + ".", section.type) for section in sections(owner))]
    return {prefix + each.name: Setting(prefix + each.name, tuple if each.type == tuple[str, ...] else each.type,
                                        each.default, **each.metadata)
            for prefix, each_owner in owners for each in fields(each_owner) if each.metadata}


def sections(owner: type) -> list:
    return [each for each in fields(owner) if is_dataclass(each.type)]


# -- the sources -----------------------------------------------------------------------------------------------------

def from_flags(settings: Mapping[str, Setting], overrides: Mapping[str, Any]) -> Given:
    """`overrides` by key, as words or as values; None is not given."""
    given = {}
    for key, value in overrides.items():
        if key not in settings:
            raise ConfigError(f"There is no setting {key!r}{_meant(key, settings)}.")
        if value is not None:
            known = settings[key]
            given[key] = known.read(value, known.flag, text=True), known.flag
    return given


def from_environment(settings: Mapping[str, Setting], environ: Mapping[str, str]) -> Given:
    """An empty variable is one that is not given."""
    variables = {known.variable: known for known in settings.values()}
    others = {known.also: known for known in settings.values() if known.also and environ.get(known.also)}
    given = {known.key: (known.read(environ[name], name, text=True), name) for name, known in others.items()}
    for name, value in environ.items():
        if not value or not name.startswith(PREFIX) or FOREIGN.fullmatch(name):
            continue
        if (table := _table_of(settings, name)) is not None:
            _put(given.setdefault(table.key, (Table(), name))[0], name[len(table.variable) + 1:], value)
            continue
        if name == PREFIX + "PORT" and "://" in value:          # Kubernetes again: the address of the Service
            continue
        if name not in variables:
            raise ConfigError(f"{name}: there is no such setting{_meant(name, variables)}.")
        known = variables[name]
        given[known.key] = known.read(value, name, text=True), name
    return given


def _table_of(settings: Mapping[str, Setting], name: str) -> Setting | None:
    """The Table that a variable OPUSAGENT_TABLE_ROW_FIELD gives a field of."""
    return next((known for known in settings.values()
                 if known.kind is Table and re.fullmatch(known.variable + "_[A-Z0-9]+_[A-Z0-9_]+", name)), None)


def _put(table: Table, name: str, value: str) -> None:
    row, _, last = name.lower().partition("_")
    plural = last.endswith("s")         # secrets, tokens, public_keys: commas between them
    table.setdefault(row, {})[last] = [each.strip() for each in value.split(",")] if plural else value


def from_file(settings: Mapping[str, Setting], path: Path, readers: Mapping[str, Callable] = {}) -> Given:
    """A TOML file's settings; the place is FILE:LINE.  A key of `readers` is no setting: its reader makes of what
    stands there, the file's text and its path what it is to be.  ConfigError has a line for each mistake."""
    try:
        text = path.read_text(encoding="utf-8-sig")         # some editors put a mark before it
        table = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"The configuration file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"The configuration file {path} is not UTF-8 text.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}.") from None
    except RecursionError:
        raise ConfigError(f"{path}: something in it is nested too deep.") from None
    names = {known.section for known in settings.values() if known.section}
    given, mistakes = {}, []
    for key in readers.keys() & table.keys():
        given[key] = readers[key](table.pop(key), text, path), str(path)
    for key, value in _flat(table, names, {known.key for known in settings.values() if known.kind is Table}):
        place = f"{path}:{_line(text, key)}"
        try:
            given[key] = _read(settings, names, key, value, place), place
        except ConfigError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return given


def _read(settings: Mapping[str, Setting], sections: set[str], key: str, value: Any, place: str) -> Any:
    """The value of a setting of a file.  ConfigError."""
    if key in sections:
        raise ConfigError(f"{place}: {key} is a section, to be written as [{key}].")
    if key == "config":
        raise ConfigError(f"{place}: a configuration file cannot name another.")
    if key not in settings:
        raise ConfigError(f"{place}: there is no setting {key!r}{_meant(key, settings)}.")
    return settings[key].read(value, place, text=False)


def joined(below: Given, above: Given) -> Given:
    """What `above` gives goes before what `below` gives; of a Table, row by row and field by field."""
    found = {**below, **above}
    for key in below.keys() & above.keys():
        (old, _), (new, place) = below[key], above[key]
        if isinstance(new, Table):
            rows = {name: {**old[name], **row} if isinstance(old.get(name), dict) else row for name, row in new.items()}
            found[key] = Table({**old, **rows}), place
    return found


def _flat(table: Mapping[str, Any], names: set[str], tables: set[str]) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict) and (key in names or value) and key not in tables:
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            yield key, value


def _line(text: str, key: str) -> int:
    """The line of a TOML text in which `key` is set, as far as can be told; 1 otherwise."""
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\[?\s*([\w.-]+)\s*\]", line):
            section = header[1] + "."
            if header[1].partition(".")[0] == key:
                return number
        elif (name := re.match(r"\s*[\"']?([\w.-]+)[\"']?\s*=", line)) and section + name[1] == key:
            return number
    return 1


def _meant(name: str, names: Iterable[str]) -> str:
    """The middle of a sentence that says which known name is nearest, if any is near: with its section or without."""
    known = {each.rpartition(".")[2]: each for each in names} | {each: each for each in names}
    close = difflib.get_close_matches(name.replace("-", "_"), known, 1, 0.7)
    return f" (did you mean {known[close[0]]}?)" if close else ""


# -- values ----------------------------------------------------------------------------------------------------------

def _from_text(kind: type, text: str) -> Any:
    """A value written as words, in a flag or a variable.  Raises ValueError."""
    if kind is str:
        return text
    if kind is Table:
        return None                     # written as words, it has a variable for each field
    if kind is tuple:
        return tuple(filter(None, (element.strip() for element in text.split(","))))
    if kind is bool:
        return {"true": True, "yes": True, "on": True, "1": True,
                "false": False, "no": False, "off": False, "0": False}.get(text.lower())
    if not text.isascii() or "_" in text:
        return None
    return kind(text)


def _typed(kind: type, value: Any) -> Any:
    """A value that has a type already, from TOML or from a program; None where it is the wrong one."""
    if kind is Table:
        return Table(value) if isinstance(value, dict) else None
    if kind is tuple and isinstance(value, (list, tuple)):
        return tuple(value) if all(isinstance(element, str) for element in value) else None
    if kind is float and type(value) is int:
        return float(value)
    return value if type(value) is kind else None


# -- what is made from them ------------------------------------------------------------------------------------------

def toml_lines(known: Setting, value: Any, origin: str) -> list[str]:
    """A setting as commented TOML; a secret is said to be set, not shown."""
    name = known.key.rpartition(".")[2]
    about = f"# {known.doc}" + (f" [{known.unit}]" if known.unit else "")
    if known.kind is Table:
        said = f"set for {', '.join(value)}" if value else "not set"
        return [about, f"# {name} is {said}, and not shown  ({origin})"]
    if known.secret:
        return [about, f"# {name} is {'set' if value else 'not set'}, and not shown  ({origin})"]
    written = repr(value) if known.kind is float else json.dumps(value, ensure_ascii=False)
    return [about, f"{name} = {written}  # {origin}"]


class HelpAll(argparse.Action):
    """The help with what is in sections, too."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        for flag in parser._actions:
            flag.help = getattr(flag, "about", flag.help)
        parser.print_help()
        parser.exit()


def add_flags(parser: argparse.ArgumentParser, settings: Iterable[Setting]) -> None:
    """A flag for each setting but the secrets; `dest` is the key, the default None.

    The help tells of those in no section; where there are others, --help-all tells of all, by section.
    """
    groups: dict[str, Any] = {"": parser}
    for known in settings:
        if known.secret:
            continue
        if known.section not in groups:
            groups[known.section] = parser.add_argument_group(known.section)
        last = known.key.rpartition("_")[2]
        unit = known.unit or (last if last in ("seconds", "ms") else "name" if known.kind is str else "n")
        kind: dict[str, Any] = {"metavar": unit.upper()}
        if known.kind is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        default = "" if known.default in ("", (), False) else f"default {known.default}; "
        about = f"{known.doc} ({default}{known.variable})".replace("%", "%%")
        flag = groups[known.section].add_argument(known.flag, dest=known.key, default=None, **kind,
                                                  help=argparse.SUPPRESS if known.section else about)
        flag.about = about
    if len(groups) > 1:
        parser.add_argument("--help-all", action=HelpAll, nargs=0, help="show the settings of all sections, too")
