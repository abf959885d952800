"""A TOML document whose every value knows its line.

It wraps the standard library's `tomllib`, which reads the values but keeps no positions; a second, small pass finds
them.  It knows nothing of flows.  The rule: what is wrong becomes a fault with a line and reading goes on, so that
an author sees every mistake at once; only a document that is no TOML at all is an error here.
"""

import difflib
import json
import re
import tomllib

from .. import ConfigError

TOKEN = re.compile(
    r'''(?P<text>"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|'[^'\n]*')
      | (?P<comment>\#[^\n]*) | (?P<newline>\n) | (?P<mark>[][{}=,.]) | (?P<bare>[^][{}=,.\#"'\s]+)''',
    re.VERBOSE | re.DOTALL,
)

QUOTED = re.compile("'([^']*)'")

NAMES = {str: "text", bool: "true or false", int: "a whole number", float: "a number", list: "a list", dict: "a table"}


class Line(int):
    """A line of a file that is part of another: sentences about it name that file."""

    file: str

    @classmethod
    def of(cls, number: int, file: str) -> "Line":
        line = cls(number)
        line.file = file
        return line


class Document:
    """One file: its values, where each stands, and what was found wrong with it."""

    __slots__ = ("name", "text", "root", "lines", "faults", "refused", "inner")

    def __init__(self, text: str, name: str, inner: bool = False):
        """Raises ConfigError where `text` is not TOML.  `inner`: it is part of another document."""
        self.name = name                            # of the file, as sentences give it
        self.text = text
        self.inner = inner
        self.faults: list[tuple[int, str]] = []     # (line, sentence)
        self.refused: set[tuple] = set()            # the paths that faults are about
        try:
            tree = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            reason, _, place = str(error).partition(" (at ")
            line = re.search(r"line (\d+)", place)
            number = line[1] if line else text.count("\n") + 1
            raise ConfigError(f"{name}:{number}: this is not TOML: {plainly(reason)}.") from None
        except RecursionError:
            raise ConfigError(f"{name}:1: something in it is nested too deep.") from None
        self.lines = places(text)                   # path -> line; a path is a tuple of keys and list indices
        self.root = Node(self, (), tree)

    @classmethod
    def of(cls, tree: dict, lines: dict[tuple, int], name: str) -> "Document":
        """What was written elsewhere than in TOML: its values, and the lines that they have there."""
        document = cls("", name)
        document.text = json.dumps(tree, default=str)       # what is no JSON is a fault
        document.lines = lines
        document.root = Node(document, (), tree)
        return document

    def sentences(self) -> list[str]:
        """Every fault once, in the order of the lines, those of this file first."""
        found = {(getattr(line, "file", self.name), line, sentence) for line, sentence in self.faults}
        ordered = sorted(found, key=lambda fault: (fault[0] != self.name, *fault))
        return [f"{file}:{line}: {sentence}" for file, line, sentence in ordered]


class Node:
    """One value.  The readers return None where the value is not what they want, after noting the fault."""

    __slots__ = ("document", "path", "value")

    def __init__(self, document: Document, path: tuple, value: object):
        self.document = document
        self.path = path
        self.value = value

    @property
    def line(self) -> int:
        """Of the value itself, or of the nearest thing around it that has one."""
        lines, length = self.document.lines, len(self.path)
        while length and self.path[:length] not in lines:
            length -= 1
        number = lines.get(self.path[:length], 1)
        return Line.of(number, self.document.name) if self.document.inner else number

    @property
    def label(self) -> str:
        return "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in self.path).lstrip(".")

    def fault(self, sentence: str) -> None:
        self.document.faults.append((self.line, sentence))
        self.document.refused.add(self.path)

    def of(self, *kinds: type):
        """The value if it is of one of these types (a bool is no int here), else None and a fault."""
        if type(self.value) in kinds:
            return self.value
        given = type(self.value)
        other = "a date or time" if given.__module__ == "datetime" else given.__name__      # of a flow in Python
        self.fault(f"`{self.label}` must be {' or '.join(NAMES[kind] for kind in kinds)}, "
                   f"not {NAMES.get(given, other)}.")
        return None

    def flag(self) -> bool | None:
        return self.of(bool)

    def text(self) -> str | None:
        """Text that is not blank, without the white space around it."""
        text = self.of(str)
        if text is None or text.strip():
            return text and text.strip()
        self.fault(f"`{self.label}` is empty.")
        return None

    def texts(self) -> tuple[str, ...] | None:
        """A list of text; one text alone counts as a list of one."""
        items = [self] if type(self.value) is str else self.items()
        found = [item.text() for item in items]
        return None if not found or None in found else tuple(found)

    def whole(self, low: int, high: int) -> int | None:
        number = self.of(int)
        if number is None or low <= number <= high:
            return number
        self.fault(f"`{self.label}` must be from {low} to {high}, not {number}.")
        return None

    def items(self) -> list["Node"]:
        """The members of a list that is not empty."""
        items = self.of(list)
        if items == []:
            self.fault(f"`{self.label}` is empty.")
        return [Node(self.document, (*self.path, index), item) for index, item in enumerate(items or ())]

    def members(self) -> dict[str, "Node"]:
        """The members of a table whose keys are the author's own."""
        return {key: Node(self.document, (*self.path, key), value) for key, value in (self.of(dict) or {}).items()}

    def read(self, readers: dict) -> dict:
        """The members of a table whose keys are ours: {key: reader(member)}, without those that were refused."""
        found = {}
        for key, node in self.members().items():
            if key in readers:
                value = readers[key](node)
                if value is not None:
                    found[key] = value
            else:
                where = f"in `{self.label}`" if self.path else "at the top of a flow"
                node.fault(f"there is no key `{key}` {where}{did_you_mean(key, readers)}.")
        return found


def plainly(reason: str) -> str:
    """What tomllib says, as an author would."""
    if key := re.match(r"Cannot (?:declare|mutate immutable namespace) \((.*)\)", reason):
        return f"{'.'.join(re.findall(QUOTED, key[1]))} is there already"
    if reason.startswith(("Cannot overwrite a value", "Duplicate inline table key")):
        return "this key is there already"
    return reason[:1].lower() + reason[1:]


def nearest(word: str, known) -> str | None:
    """The known word that was probably meant."""
    return next(iter(difflib.get_close_matches(word, list(known), 1)), None)


def did_you_mean(word: str, known) -> str:
    """A remark for a sentence about an unknown word; empty if no known one is near."""
    near = nearest(word, known)
    return f" (did you mean `{near}`?)" if near else ""


def places(text: str) -> dict[tuple, int]:
    """path -> line, of every key and list member of a text that is valid TOML."""
    return _Places(text).found


class _Places:
    """A walk over the tokens of a valid document: structure only, the values themselves are skipped."""

    __slots__ = ("tokens", "at", "found", "counts")

    def __init__(self, text: str):
        self.tokens = []                            # (kind, text, line)
        line = 1
        for match in TOKEN.finditer(text):
            if match.lastgroup != "comment":
                self.tokens.append((match.lastgroup, match[0], line))
            line += match[0].count("\n")
        self.tokens.append(("newline", "\n", line))
        self.at = 0
        self.found: dict[tuple, int] = {}
        self.counts: dict[tuple, int] = {}          # path of an array of tables -> tables so far
        self.document()

    def document(self) -> None:
        table: tuple = ()
        while self.at < len(self.tokens):
            if self.skip("["):
                table = self.header()
            elif not self.skip("\n"):
                self.entry(table)

    def header(self) -> tuple:
        several, line = self.skip("["), self.tokens[self.at][2]
        keys = self.keys()
        if several:
            outer = (*self.resolved(keys[:-1]), keys[-1])
            self.counts[outer] = self.counts.get(outer, 0) + 1
        table = self.resolved(keys)
        for length in range(1, len(table)):
            self.found.setdefault(table[:length], line)
        self.found[table] = line                    # `[a.b]` gave `a` a place; `[a]` itself gives a better one
        while self.skip("]"):
            pass
        return table

    def resolved(self, keys: tuple) -> tuple:
        """The path as the values have it: after the name of an array of tables comes the last index."""
        path: tuple = ()
        for key in keys:
            path += (key,)
            if path in self.counts:
                path += (self.counts[path] - 1,)
        return path

    def keys(self) -> tuple:
        """The parts of a dotted key."""
        found: tuple = ()
        while not found or self.skip("."):
            kind, text, _ = self.tokens[self.at]
            found += (next(iter(tomllib.loads(f"{text} = 0"))) if kind == "text" else text,)
            self.at += 1
        return found

    def entry(self, table: tuple) -> None:
        """key = value"""
        line = self.tokens[self.at][2]
        for key in self.keys():
            table += (key,)
            self.found.setdefault(table, line)
        self.skip("=")
        self.value(table)

    def value(self, path: tuple) -> None:
        if self.skip("["):
            index = 0
            while not self.skip("]"):
                if not self.skip("\n") and not self.skip(","):
                    self.found[(*path, index)] = self.tokens[self.at][2]
                    self.value((*path, index))
                    index += 1
        elif self.skip("{"):
            while not self.skip("}"):
                if not self.skip("\n") and not self.skip(","):
                    self.entry(path)
        else:
            while self.peek() not in (",", "]", "}", "\n"):
                self.at += 1

    def peek(self) -> str:
        return self.tokens[self.at][1]

    def skip(self, text: str) -> bool:
        if self.at < len(self.tokens) and self.tokens[self.at][1] == text:
            self.at += 1
            return True
        return False
