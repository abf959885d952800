"""A real systemd as process 1 of namespaces of its own, with the units of a directory and nothing else of this machine.

It shares the network with the tests, so that these can call; /etc, /var and homes are written to in memory only.  The
rule: what it starts dies with it.
"""
from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

PROGRAM = Path("/lib/systemd/systemd")
TARGETS = ("sysinit", "basic", "sockets", "network", "shutdown", "umount", "final", "local-fs", "swap", "slices",
           "paths", "timers", "multi-user")
NAMESPACES = ("--pid", "--mount", "--uts", "--ipc", "--cgroup")
PATIENCE = 60                   # seconds
BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs {room}
for place in etc var {homes}; do
    mkdir -p {room}/$place/upper {room}/$place/work
    mount -t overlay overlay -o lowerdir=/$place,upperdir={room}/$place/upper,workdir={room}/$place/work /$place
done
chmod a+rx {homes_here}
mount -t tmpfs tmpfs /run
while umount -l /sys/fs/cgroup 2>/dev/null; do :; done
mount -t cgroup2 none /sys/fs/cgroup
useradd --system --no-create-home opusagent
cp -r {etc}/. /etc/
export container=test SYSTEMD_UNIT_PATH={units}
exec {program} --system --log-target=null --show-status=no
"""


def missing() -> str | None:
    """Why there can be no systemd of our own here, or None."""
    if os.geteuid() != 0:
        return "only root can make the namespaces for a systemd of one's own"
    for program in (str(PROGRAM), "systemctl", "unshare", "nsenter", "useradd"):
        if shutil.which(program) is None:
            return f"there is no {program}; apt install systemd"
    tried = subprocess.run(["unshare", *NAMESPACES, "--fork", "sh", "-c", "mount -t cgroup2 none /mnt"],
                           capture_output=True)
    return None if tried.returncode == 0 else f"no namespaces can be made here: {tried.stderr.decode().strip()}"


class Systemd:
    """Before start(): put units into the directory `units`, what they need into `etc`.  `said` is how it came up."""

    def __init__(self):
        self.place = tempfile.TemporaryDirectory(prefix="opusagent-systemd-")
        os.chmod(self.place.name, 0o755)
        self.units = Path(self.place.name, "units")
        self.etc = Path(self.place.name, "etc")
        self.units.mkdir()
        self.etc.mkdir()
        for name in TARGETS:
            shutil.copy(PROGRAM.parent / "system" / f"{name}.target", self.units)
        self.process: subprocess.Popen | None = None
        self.pid = 0                            # of systemd, as this namespace sees it

    def start(self, *wanted: str) -> None:
        """Boot; `wanted` are the units that are started then."""
        Path(self.units, "default.target").write_text("[Unit]\nRequires=multi-user.target\nAfter=multi-user.target\n"
                                                      + "".join(f"Wants={name}\n" for name in wanted))
        homes = [home for home in ("root", "home") if Path("/", home).is_dir()]
        room = Path(self.place.name, "room")
        room.mkdir()
        boot = Path(self.place.name, "boot.sh")
        boot.write_text(BOOT.format(room=room, homes=" ".join(homes), homes_here=" ".join(f"/{home}" for home in homes),
                                    units=self.units, etc=self.etc, program=PROGRAM))
        with open(Path(self.place.name, "said"), "wb") as said:
            self.process = subprocess.Popen(["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc",
                                             "sh", boot], stdout=said, stderr=said, preexec_fn=die_with_us)
        until = time.monotonic() + PATIENCE
        while not self.running():
            assert self.process.poll() is None and time.monotonic() < until, self.said
            time.sleep(0.05)

    def running(self) -> bool:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        if not children or Path(f"/proc/{children[0]}/comm").read_text() != "systemd\n":
            return False
        self.pid = int(children[0])
        return self.run("systemctl", "is-active", "multi-user.target", check=False).strip() == "active"

    @property
    def said(self) -> str:
        return Path(self.place.name, "said").read_text(errors="replace")

    def run(self, *command: str, check: bool = True) -> str:
        """What a command says in there."""
        done = subprocess.run(["nsenter", "-t", str(self.pid), "-m", "-p", "-u", "-i", "-C", "--", *command],
                              capture_output=True, text=True, timeout=PATIENCE)
        assert not check or done.returncode == 0, f"{command}: {done.stdout} {done.stderr}\n{self.said}"
        return done.stdout

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).strip()

    def pids(self, unit: str) -> list[int]:
        """The processes of a unit, as this namespace numbers them; the main one first."""
        main = self.show(unit, "MainPID")
        group = Path(f"/proc/{self.pid}/root/sys/fs/cgroup", self.show(unit, "ControlGroup").strip("/"), "cgroup.procs")
        inside = {status(int(pid)).get("NSpid", "0").split()[-1]: int(pid)
                  for pid in group.read_text().split() if pid != "0"} if group.exists() else {}
        return sorted(inside.values(), key=lambda pid: pid != inside.get(main))

    def stop(self) -> None:
        if self.process is not None:
            if self.pid:
                os.kill(self.pid, signal.SIGKILL)           # and with process 1 all others of its namespace
            self.process.kill()
            self.process.wait()
        self.place.cleanup()


def die_with_us() -> None:
    """SIGKILL for the process that calls this when the one that started it is gone; prctl(2)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def status(pid: int) -> dict[str, str]:
    """What /proc says of a process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)
