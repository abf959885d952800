"""Fuzzing led by coverage: atheris, with the compiled module built so that libFuzzer sees into it, too.

    python -m fuzz.guided [target ...] [--seconds 60] [--keep DIRECTORY]        in tests/; needs gcc and atheris

Each target (targets.py) begins with its files in corpus/ and runs with AddressSanitizer in the compiled module.  An
input that fails is left in the current directory, and its name is printed; as corpus/<target>/found-... it becomes a
test.  --keep keeps the inputs that reached something new, to go on from.
"""
from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
COVERED = ("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address", "-fsanitize-coverage=trace-pc,trace-cmp")
LONGEST = {"frames": 700, "heads": 1200, "messages": 1200, "connections": 300}      # bytes of an input
FIGURES = re.compile(r"stat::(\w+): +(\d+)|^#\d+\s+\w+\s+cov: (\d+) ft: (\d+)", re.MULTILINE)


def missing() -> str | None:
    """Why nothing can be run, or None."""
    import builds
    atheris = importlib.util.find_spec("atheris")
    return builds.missing() or builds.missing_source() or (None if atheris else "there is no atheris")


def built(directory: Path) -> Path:
    """The package, its module reporting where it has been.  gcc's own sanitizer runtime must not be linked to it."""
    import builds
    objects = []
    for source, flags in ((builds.in_c(directory), COVERED), (HERE / "coverage.c", ("-O1",))):
        objects.append(directory / f"{source.stem}.o")
        builds.compiled(objects[-1], source, *flags)
    return builds.package(directory, objects)


def fuzz(target: str, directory: Path, found: Path, seconds: int) -> bool:
    """Runs one target in a process of its own, prints its figures; True when nothing was found."""
    import atheris
    runtime = Path(atheris.path()) / "asan_with_fuzzer.so"
    environment = {**os.environ, "LD_PRELOAD": str(runtime), "PYTHONPATH": f"{directory}:{HERE.parent}",
                   "PYTHONMALLOC": "malloc", "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:handle_segv=0"}
    found.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "fuzz.guided", "--inside", target, str(found), str(HERE / "corpus" / target),
               f"-max_total_time={seconds}", f"-max_len={LONGEST[target]}", "-rss_limit_mb=1024", "-timeout=10",
               "-print_final_stats=1", f"-artifact_prefix=found-{target}-"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    matches = [match.groups() for match in FIGURES.finditer(done.stderr)]
    stats = {name: int(value) for name, value, _, _ in matches if name}
    coverage = [(int(cov), int(features)) for _, _, cov, features in matches if cov] or [(0, 0)]
    edges, features = coverage[-1]
    print(f"{target:12} {stats.get('number_of_executed_units', 0):>10} executions  "
          f"{stats.get('average_exec_per_sec', 0):>6} a second  {edges:>5} edges  {features:>6} features  "
          f"{'FOUND' if done.returncode else 'nothing found'}", flush=True)
    if done.returncode:
        print(done.stderr[-6000:])
    return done.returncode == 0


def inside(target: str, arguments: list[str]) -> None:
    """In the process that fuzzes: libFuzzer never comes back from here."""
    import atheris
    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=["opusagent", "h11"]):
        from fuzz.targets import TARGETS
    atheris.Setup([sys.argv[0], *arguments], TARGETS[target])
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz.guided", description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="target", help=f"{', '.join(LONGEST)}; without one: all of them")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default 60)")
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY", help="keep inputs that reached something new")
    options = parser.parse_args()
    if unknown := set(options.targets) - LONGEST.keys():
        parser.error(f"there is no target {', '.join(unknown)}")
    if reason := missing():
        parser.error(reason)
    with tempfile.TemporaryDirectory(prefix="guided-") as directory:
        module = built(Path(directory))
        kept = options.keep or Path(directory) / "corpus"
        return sum(not fuzz(target, module, kept / target, options.seconds) for target in options.targets or LONGEST)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2], sys.argv[3:])
    sys.exit(main())
