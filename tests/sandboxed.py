"""The suite, or a part of it, inside the sandbox of deploy/opusagent.service, under a real systemd; as root:

    python tests/sandboxed.py [arguments of pytest]

What the unit forbids the server it forbids the tests: what they do beyond that (a compiler that writes beside the
sources, other namespaces, scheduling) fails for that reason, and is to be told apart from what the server does.
"""
import sys
import time
from pathlib import Path

import systemd

ROOT = Path(__file__).parent.parent
UNIT = "suite.service"
# What of the unit is about the service and not about its sandbox.
DROPPED = ("Type", "NotifyAccess", "ExecStart", "ExecReload", "Restart", "RestartSec", "WatchdogSec", "WatchdogSignal",
           "TimeoutStopSec", "TimeoutStartSec", "KillMode", "FileDescriptorStoreMax", "Requires", "After", "TasksMax",
           "StartLimitIntervalSec", "StartLimitBurst", "ProtectHome", "CPUWeight", "Nice")


def unit(arguments: list[str], output: Path) -> str:
    kept = [line
            for line in Path(ROOT, "deploy", "opusagent.service").read_text().partition("[Install]")[0].splitlines()
            if line.partition("=")[0] not in DROPPED]
    command = " ".join([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments])
    return "\n".join([*kept, "Type=exec", f"ExecStart={command}", f"WorkingDirectory={ROOT}", "ProtectHome=read-only",
                      "TasksMax=4096", f"Environment=PYTHONPATH={ROOT} HOME=/var/lib/opusagent "
                      "HYPOTHESIS_STORAGE_DIRECTORY=/var/lib/opusagent/hypothesis PYTHONDONTWRITEBYTECODE=1",
                      f"StandardOutput=append:{output}", f"StandardError=append:{output}", ""])


def main() -> int:
    if reason := systemd.missing():
        print(reason, file=sys.stderr)
        return 2
    manager = systemd.Systemd()
    output = Path(manager.place.name, "output")
    output.touch()
    Path(manager.units, UNIT).write_text(unit(sys.argv[1:], output))
    try:
        manager.start(UNIT)
        with output.open() as told:
            while manager.show(UNIT, "ActiveState") in ("active", "activating"):
                print(told.read(), end="", flush=True)
                time.sleep(0.5)
            print(told.read(), end="")
        return int(manager.show(UNIT, "ExecMainStatus"))
    finally:
        manager.stop()


if __name__ == "__main__":
    sys.exit(main())
