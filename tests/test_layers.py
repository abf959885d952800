"""Imports point down only, the pure modules stay pure, and the banned names stay out."""
import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "opusagent"

# from the bottom up; a layer's names in alphabetical order
LAYERS = [
    {"__init__"},
    {"_fastpath", "board", "config", "credentials", "directories", "endpoints", "logs", "metrics", "recording",
     "settings", "tally", "targets", "usage"},
    {"dialects", "flow", "speech", "transport", "trust"},
    {"carriers", "engines"},
    {"client", "studio"},
    {"calls"},
    {"continuity"},
    {"replay", "server"},
    {"daemon"},
    {"doctor", "flowcheck", "unit"},
    {"__main__", "cli"},
]
PURE = ("dialects/**/*.py", "flow/*.py", "speech/*.py", "trust/*.py", "transport/http11.py", "transport/websocket.py")
IMPURE = {"asyncio", "socket", "time", "threading", "random", "secrets", "selectors", "subprocess", "multiprocessing",
          "uvloop", "datetime"}
BANNED = re.compile(r"manager|handler|helper|utils?\b|base\b|common|factory|service|processor|abstract", re.IGNORECASE)
STANDARD = {"BaseException", "basicConfig"}

FILES = sorted(ROOT.rglob("*.py"))
WIDEST = 120                    # characters of a line


def part(path):
    """The layer's name of a file: its module, or the package it stands in."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def level(name):
    found = [i for i, layer in enumerate(LAYERS) if name in layer]
    assert found, f"{name} is in no layer: give it one"
    return found[0]


def module(path):
    """The dotted name of a file below the package: `calls.ear`; a package's is its own."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path) for path in FILES} | {"_fastpath"}


def imports(path, whole=True):
    """(modules of ours, names of others) that a file imports: wherever it does so, or (not whole) at once."""
    ours, others = set(), set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if whole else tree.body:
        if isinstance(node, ast.Import):
            others |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            others.add(node.module.partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            here = path.relative_to(ROOT).parent.parts
            place = [*here[:len(here) - node.level + 1], *filter(None, [node.module])]
            named = [".".join([*place, alias.name]) for alias in node.names]
            ours |= {name if name in MODULES else ".".join(place) or "__init__" for name in named}
    return ours, others


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    here = level(part(path))
    for name in imports(path)[0] - {"__init__"}:
        below = level(name.partition(".")[0])
        assert below <= here, f"{module(path)} imports {name}, which is above it"


def packages():
    """What each module or package right below ours imports of the others."""
    graph = {}
    for path in FILES:
        below = {name.partition(".")[0] for name in imports(path)[0]}
        graph.setdefault(part(path), set()).update(below - {part(path)})
    return graph


def modules():
    """What each module imports of the others when it is itself imported; its own package's table does not count."""
    return {module(path): {name for name in imports(path, whole=False)[0]
                           if not module(path).startswith(name + ".")} for path in FILES}


@pytest.mark.parametrize("graph", [packages(), modules()], ids=["packages", "modules"])
def test_no_circles(graph):
    done, trail = set(), []

    def visit(name):
        assert name not in trail, f"a circle: {' -> '.join([*trail, name])}"
        if name in done or name not in graph:
            return
        trail.append(name)
        for other in sorted(graph[name]):
            visit(other)
        done.add(trail.pop())

    for name in sorted(graph):
        visit(name)


@pytest.mark.parametrize("path", [path for row in PURE for path in sorted(ROOT.glob(row))],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_the_pure_layer_is_pure(path):
    assert not imports(path)[1] & IMPURE


@pytest.mark.parametrize("path", [path for path in FILES if path.stem == "__init__" and path.parent != ROOT],
                         ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_a_package_says_at_its_head_what_is_in_it(path):
    said, parts = path.read_text(), {other.stem for other in FILES if other.parent == path.parent}
    assert not {name for name in parts - {"__init__"} if not re.search(rf"\b{name}\b", said)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_classes_have_names_of_their_field(path):
    names = {path.stem} | {node.name for node in ast.walk(ast.parse(path.read_text()))
                           if isinstance(node, ast.ClassDef)}
    assert not [name for name in names - STANDARD if BANNED.search(name)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_can_be_read_in_one_go(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 450
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} is too long"


@pytest.mark.parametrize("path", sorted(ROOT.glob("fastpath/*")), ids=lambda path: path.name)
def test_the_parts_of_the_compiled_module_can_be_read_in_one_go(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 450
    assert max(map(len, lines)) <= WIDEST


def test_no_line_is_longer_than_a_screen_is_wide():
    files = [path for place in ("opusagent", "tests", "bench", "examples")
             for path in (ROOT.parent / place).rglob("*.py")]
    long = [f"{path.relative_to(ROOT.parent)}:{number}" for path in sorted(files)
            for number, line in enumerate(path.read_text().split("\n"), 1) if len(line) > WIDEST]
    assert not long


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_imported_is_used(path):
    if path.name == "__init__.py":
        return                              # gives others what it imports
    nodes = list(ast.walk(ast.parse(path.read_text())))
    imported = {alias.asname or alias.name.partition(".")[0] for node in nodes for alias in getattr(node, "names", ())
                if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") != "__future__"}
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    in_quotes = {name for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)
                 for name in imported if name in node.value}
    assert not imported - used - in_quotes


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_error_is_swallowed(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            wide = node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException")
            silent = all(isinstance(statement, ast.Pass) for statement in node.body)
            assert not (wide and silent), f"line {node.lineno}"
