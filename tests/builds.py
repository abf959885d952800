"""Other builds for tests: the compiled module with sanitizers or coverage in it, and small libraries of the tests' own.

Everything is built by gcc into a directory of the caller's; the module that is installed is never touched.
The rule: where something is missing, `missing` says what, and the test is skipped with that sentence.
"""
from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "opusagent"
SOURCE = PACKAGE / "_fastpath.pyx"
PARTS = (SOURCE, *PACKAGE.glob("fastpath/*"))     # what it includes
INCLUDES = (f"-I{sysconfig.get_paths()['include']}", f"-I{PACKAGE}")
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
PLAIN = ("-O1", "-g", "-fno-omit-frame-pointer")
WATCHED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
SANITIZED = (*PLAIN, *WATCHED)
SOON_SANITIZED = ("-O0", *WATCHED)      # built in a quarter of the time; reports name no lines
# PYTHONMALLOC: with Python's own allocator a byte behind an object is still inside its arena, and nothing is noticed.
WATCHING = {"PYTHONMALLOC": "malloc", "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:handle_segv=0",
            "UBSAN_OPTIONS": "print_stacktrace=1"}


def missing(*libraries: str) -> str | None:
    """Why nothing can be built here, or None; `libraries` are runtimes of gcc that are needed, such as libasan.so."""
    if shutil.which("gcc") is None:
        return "there is no gcc"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "there is no Python.h"
    for library in libraries:
        if not Path(runtime(library)).is_absolute():
            return f"gcc has no {library}"
    return None


def missing_source() -> str | None:
    """Why the compiled module cannot be had as C, or None."""
    if fresh(SOURCE.with_suffix(".c")) or importlib.util.find_spec("Cython"):
        return None
    return "the last build's C is not there or is older than its source, and there is no cython to make it again"


def fresh(path: Path) -> bool:
    """True for the module in C if it is not older than its source."""
    return path.exists() and path.stat().st_mtime >= max(part.stat().st_mtime for part in PARTS)


def runtime(library: str) -> str:
    """The path of one of gcc's libraries; its mere name where gcc has none."""
    return subprocess.check_output(["gcc", f"-print-file-name={library}"], text=True).strip()


def compiled(target: Path, source: Path, *flags: str) -> Path:
    """An object, to be part of a shared library."""
    subprocess.run(["gcc", "-c", "-fPIC", *INCLUDES, *flags, "-o", target, source], check=True)
    return target


def shared(target: Path, sources: Iterable[Path], *flags: str) -> Path:
    """A shared library, which may be an extension module, of C sources and objects."""
    subprocess.run(["gcc", "-shared", "-fPIC", *INCLUDES, *flags, "-o", target, *sources, "-ldl"], check=True)
    return target


def in_c(directory: Path) -> Path:
    """The compiled module as C: what the last build left, if it is not older than its source, or made again."""
    left = SOURCE.with_suffix(".c")
    if fresh(left):
        return left
    made = directory / "_fastpath.c"
    subprocess.run([sys.executable, "-m", "cython", "-3", "-o", made, SOURCE], check=True)
    return made


def package(directory: Path, sources: Iterable[Path] = (), *flags: str) -> Path:
    """A copy of the package, its module built of `sources`; the directory is to be put on PYTHONPATH."""
    copy = directory / "opusagent"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__"))
    shared(copy / f"_fastpath{SUFFIX}", sources, *flags)
    return directory
