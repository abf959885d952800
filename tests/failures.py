"""Every send and every recv fails once, in every way: run by test_failures.py under failing.c.

A scene is played once as it is, to count its calls, then again for each n, kind of call and way to fail.
The rule: a wire that meets a failure delivers everything in order or ends; nobody else notices anything.
"""
import contextlib
import ctypes
import errno
import itertools
import json
import logging
import os
import select
import sys

from fuzz.standing import UPGRADE, Call
from test_sockets import BINARY, Owner, frame, pair

from opusagent._fastpath import EpollSet, ReceiveBuffer, build_frame

FAILING = ctypes.CDLL(None)
KINDS = {"send": 0, "recv": 1}
WAYS = {"short": -1, "EAGAIN": errno.EAGAIN, "EINTR": errno.EINTR, "ECONNRESET": errno.ECONNRESET, "EPIPE": errno.EPIPE}
FATAL = ("ECONNRESET", "EPIPE")
ALWAYS = 1 << 30
ROUNDS = 3000                   # after which a scene is said to hang, or to spin
SAID = [bytes([i]) * size for i, size in enumerate((0, 1, 125, 126, 2000, 9000, 70_000, 3, 5))]


class Caller:
    """One wire whose owner echoes, and the peer at its other end."""

    def __init__(self, home: EpollSet, lockstep: bool):
        ours, self.end = pair(small=True)
        self.end.setblocking(False)
        self.fd = ours.fileno()
        self.owner = Owner(ours, home, lambda owner: owner.wire.send(BINARY, owner.messages[-1]))
        self.owner.wire.lockstep = lockstep
        self.unsent = b"".join(map(frame, SAID))
        self.heard = b""

    def speak(self) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            self.unsent = self.unsent[self.end.send(self.unsent[:5000]):]

    def hear(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while piece := self.end.recv(3000):
                self.heard += piece

    def ended(self) -> bool:
        return self.owner.wire.fd < 0

    def whole(self) -> bool:
        return self.heard == b"".join(build_frame(BINARY, body) for body in SAID)

    def close(self) -> None:
        self.owner.wire.close()
        self.end.close()


def echoes(lockstep: bool, way: str):
    """Three callers; the first meets the failures.  Yields its descriptor, then what is wrong."""
    home = EpollSet(ReceiveBuffer(1 << 16))
    first, *others = callers = [Caller(home, lockstep) for _ in range(3)]
    yield first.fd
    for _ in range(ROUNDS):
        if all(caller.whole() or caller.ended() for caller in callers):
            break
        for caller in callers:
            caller.speak()
        home.poll()
        for caller in callers:
            caller.hear()
    want = b"".join(build_frame(BINARY, body) for body in SAID)
    if not all(other.whole() and not other.ended() and not other.owner.faults for other in others):
        yield "another call was harmed"
    if not first.ended() and not first.whole():
        yield "it neither delivered nor ended"
    if not want.startswith(first.heard) or first.owner.messages != SAID[:len(first.owner.messages)]:
        yield "bytes came in another order"
    if first.ended() and (way not in FATAL or len(first.owner.ends) != 1 or first.owner.faults):
        yield f"it ended by {way}: {first.owner.ends} {first.owner.faults}"
    for caller in callers:
        caller.close()
    if len(home) or select.select([home], [], [], 0)[0]:
        yield "the set is not empty, or not at rest"
    home.close()


def conversation(lockstep: bool, way: str):
    """A whole connection: the head, messages, a ping, and the closing handshake."""
    def echo(connection, opcode, payload):
        connection.send(opcode, payload)

    def hold_back(connection, opcode, payload):
        connection.wire.lockstep = True

    deeds = {**dict.fromkeys(range(1, 9), echo), **({"begin": hold_back} if lockstep else {})}
    with Call(False, deeds, max_message=1 << 20) as call:
        call.give(UPGRADE)
        yield call.connection.wire.fd
        said = [frame(body) for body in SAID[:6]] + [frame(b"still there?", 9), frame(b"\x03\xe8", 8)]
        for sent in said:
            call.give(sent)
        want = (b"".join(build_frame(BINARY, body) for body in SAID[:6])
                + build_frame(10, b"still there?") + build_frame(8, b"\x03\xe8"))
        heard = call.sent.split(b"\r\n\r\n", 1)[1]
        if not want.startswith(heard) or heard != want and way not in FATAL:
            yield "its peer did not hear what it should"
        call.finish()
        if call.session.losses not in ([1000], [1006]) or not call.over():
            yield f"it did not end once and for all: {call.session.losses}"


def play(scene, lockstep: bool, kind: str, way: str, n: int, times: int) -> tuple[int, list[str]]:
    """(how many calls of the kind there were, what was wrong)."""
    descriptors = len(os.listdir("/proc/self/fd"))
    playing = scene(lockstep, way)
    fd = next(playing)
    FAILING.failing_watch(fd, 1)
    FAILING.failing_plan(KINDS[kind], WAYS[way], ctypes.c_long(n), ctypes.c_long(times))
    wrong = []
    try:
        wrong.extend(playing)
    except AssertionError as error:
        wrong.append(str(error))
    FAILING.failing_watch(fd, 0)
    if len(os.listdir("/proc/self/fd")) != descriptors:
        wrong.append("a descriptor is left behind")
    return FAILING.failing_calls(), wrong


def sweep() -> dict:
    runs, wrong = 0, []
    for scene, lockstep, kind in itertools.product((echoes, conversation), (False, True), KINDS):
        calls, faults = play(scene, lockstep, kind, "EAGAIN", ALWAYS, 1)
        assert calls > 5 and not faults, (scene.__name__, kind, calls, faults)
        for n, (way, times) in itertools.product(range(1, calls + 1), [*itertools.product(WAYS, (1, 3)),
                                                                       *((way, ALWAYS) for way in FATAL)]):
            runs += 1
            wrong += [f"{scene.__name__} lockstep={lockstep} {kind} {n} {way} x{times}: {fault}"
                      for fault in play(scene, lockstep, kind, way, n, times)[1]]
    return {"runs": runs, "wrong": wrong}


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    json.dump(sweep(), sys.stdout)
