"""Machines in network namespaces of their own, on one switch: what runs in them is real, so is a cable that is pulled.

The rule: what is made here is removed here, whatever becomes of the test.
"""
import asyncio
import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Coroutine
from contextlib import ExitStack

CLONE_NEWNET = 0x40000000
NETWORK = "10.77.0"


class Machines:
    """`address[name]` is a machine's.  OSError, with what `ip` says, where namespaces are not to be had."""

    def __init__(self, *names: str):
        if shutil.which("ip") is None:
            raise OSError("iproute2 is not installed")
        self.stack = ExitStack()
        self.address = {name: f"{NETWORK}.{i}" for i, name in enumerate(names, 10)}
        try:
            self._add("switch")
            self._ip("switch", "link", "add", "name", "bridge", "type", "bridge")
            self._ip("switch", "link", "set", "dev", "bridge", "up")
            for name in names:
                self._connect(name)
        except BaseException:
            self.stop()
            raise

    def _connect(self, name: str) -> None:
        self._add(name)
        self._ip("switch", "link", "add", "name", name, "type", "veth",
                 "peer", "name", "eth0", "netns", self.space(name))
        self._ip("switch", "link", "set", "dev", name, "master", "bridge", "up")
        self._ip(name, "address", "add", f"{self.address[name]}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            self._ip(name, "link", "set", "dev", device, "up")

    @staticmethod
    def space(name: str) -> str:
        """The namespace's."""
        return f"opusagent-{os.getpid()}-{name}"

    def _add(self, name: str) -> None:
        run("ip", "netns", "add", self.space(name))
        self.stack.callback(subprocess.run, ["ip", "netns", "delete", self.space(name)], check=False)

    def _ip(self, name: str, *words: str) -> None:
        run("ip", "-netns", self.space(name), *words)

    def stop(self) -> None:
        self.stack.close()

    def inside(self, name: str) -> tuple[str, ...]:
        """What comes before a command that is to run there; its process keeps the id."""
        return "ip", "netns", "exec", self.space(name)

    def pull(self, name: str) -> None:
        """The machine's cable is out."""
        self._ip("switch", "link", "set", "dev", name, "down")

    def plug(self, name: str) -> None:
        """It is in again, and everybody has forgotten that nobody answered."""
        self._ip("switch", "link", "set", "dev", name, "up")
        for each in self.address:
            self._ip(each, "neighbour", "flush", "all")

    def run(self, name: str, scenario: Callable[[], Coroutine]):
        """The result of a coroutine whose connections are that machine's: a thread of its own has entered the space."""
        results: list = []

        def life():
            try:
                with open(f"/run/netns/{self.space(name)}") as space:
                    if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                results.append((asyncio.run(scenario()), None))
            except BaseException as error:
                results.append((None, error))
        thread = threading.Thread(target=life)
        thread.start()
        thread.join()
        found, error = results[0]
        if error is not None:
            raise error
        return found


def run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")
