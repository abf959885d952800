"""Imports point down only, the pure modules stay pure, and the banned names stay out."""
import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "opusagent"

# from the bottom up; a layer's names in alphabetical order
LAYERS = [
    {"__init__"},
    {"_fastpath", "board", "config", "control", "credentials", "directories", "endpoints", "logs", "loop", "metrics",
     "net", "notify", "settings", "tally", "targets", "usage"},
    {"acoustics", "audio", "auth", "dialects", "ed25519", "ephemeral", "flow", "http11", "nonces", "pace", "playout",
     "signatures", "signing", "silero", "tones", "turns", "websocket", "wording"},
    {"carriers", "engines"},
    {"pipeline"},
    {"archive", "aside", "asks", "assistant", "bystander", "call", "clips", "departure", "ear", "earlier", "echo",
     "filled", "garbage", "inbox", "interruption", "journal", "keypad", "ledger", "meter", "mouth", "notices",
     "outbound", "prompts", "realtime", "recording", "registry", "relay", "replay", "resumption", "script", "shelf",
     "silence", "stalls", "stereo", "studio", "tape", "tools", "transaction", "unattended", "whatif", "writeahead"},
    {"admission", "audiosocket", "caller", "carried", "client", "client_secrets", "connection", "console", "continuity",
     "demo", "door", "fields", "flowcheck", "gate", "handover", "inquiry", "latency", "limits", "localserver", "pages",
     "people", "probe", "rehearse", "server", "takeover", "telephone", "terminal", "texting", "timeline",
     "transportwire", "webhooks"},
    {"daemon", "succession", "supervisor", "upgrade"},
    {"doctor", "unit"},
    {"__main__", "cli"},
]
PURE = LAYERS[2]
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


def imports(path):
    """(names of ours, names of others) that a file imports, wherever it does so."""
    ours, others = set(), set()
    depth = len(path.relative_to(ROOT).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            others |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            others.add(node.module.partition(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.level == depth:
            ours |= {node.module.partition(".")[0]} if node.module else {alias.name for alias in node.names}
    return ours, others


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    here = level(part(path))
    modules = {part(file) for file in FILES} | {"_fastpath"}
    for name in imports(path)[0] & modules:
        below = level(name)
        same_layer = below == here and here > 0
        assert below < here or same_layer, f"{part(path)} imports {name}, which is above it"


def test_no_circles_within_a_layer():
    graph = {}
    for path in FILES:
        graph.setdefault(part(path), set()).update(imports(path)[0] - {part(path)})
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


@pytest.mark.parametrize("path", [p for p in FILES if part(p) in PURE], ids=lambda path: str(path.relative_to(ROOT)))
def test_the_pure_layer_is_pure(path):
    assert not imports(path)[1] & IMPURE


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
