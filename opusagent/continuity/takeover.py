"""Taking calls over: what a worker keeps for its successor while it lives, and how a successor begins with it.

The rules: the supervisor holds a duplicate of each call's socket from the call's beginning to its end, and a slot that
nobody goes on with is freed.
"""
import asyncio
import logging
import os
import socket
from collections import deque
from contextlib import suppress

import orjson

from .._fastpath import Wire, build_frame
from ..calls.call import Call
from ..calls.realtime.call import RealtimeCall
from ..calls.relay import RelayCall
from ..calls.writeahead import WriteAhead
from ..dialects import BARE, SPOKEN
from ..transport.audiosocket import AudioSocketConnection, BareWire
from ..transport.connection import Connection
from ..transport.websocket import CLOSE, close_payload
from .handover import ABSENT, LostCall, changed, go_on, resume, snapshot
from .resumption import Line, Resumable

log = logging.getLogger("opusagent")

EVERY_NS = 1_000_000_000        # between two snapshots of a call in which nothing happens


def wire_of(call: Call | RelayCall) -> Wire | BareWire | None:
    """The socket of a call that can move.  Not a TLS connection's, whose keys are this process's alone, and there is
    none while a platform is away."""
    connection = call.line.connection if isinstance(call.line, Line | WriteAhead) else call.line
    wire = connection.wire if connection is not None else None
    return wire if isinstance(wire, Wire | BareWire) else None


class Kept:
    """What a Keeper knows of a call."""

    __slots__ = ("slot", "wire", "changed", "at", "record", "told")

    def __init__(self, slot: int, record: int):
        self.slot = slot
        self.wire: Wire | BareWire | None = None    # the one that the supervisor knows
        self.changed: tuple = ()            # what the snapshot is of
        self.at = 0                         # ns: when it was written
        self.record = record                # its number on the board
        self.told: tuple = ()               # what is written there


class Keeper:
    """A worker's: keeps every call's state in its slot, its record on the board, and its socket with the supervisor."""

    def __init__(self, seat, tell, continuity=None):
        self.seat = seat
        self.tell = tell                            # (message, descriptors): to the supervisor
        self.continuity = continuity                # of what other workers and nodes need
        self.known: dict[Call, Kept] = {}
        self.complaints: deque[str] = deque(maxlen=1000)    # ids of calls whose state could not be kept

    @property
    def records(self) -> set[int]:
        """The numbers of ours on the board."""
        return {kept.record for kept in self.known.values()}

    def keep(self, calls, now: int) -> None:
        """Told at every tick of the calls that were due, as a call is in which anything has happened."""
        if self.continuity is not None:
            self.continuity.look()
        for call in calls:
            if call.slot is None:
                continue
            try:
                self._look(call, now)
                if self.continuity is not None:
                    self.continuity.keep(call, now)
            except Exception as error:              # it could not be taken over, but it is held
                self._complain(call, error)

    def _complain(self, call: Call, error: Exception) -> None:
        if call.id not in self.complaints:
            self.complaints.append(call.id)
            log.error("call %s could not be taken over: its state cannot be kept", call.id, exc_info=error)

    def keep_soon(self, call: Call) -> None:
        """A tool is about to run: kept is that it does before it begins, for it may end us, and must not run twice."""
        asyncio.get_running_loop().call_soon(self.keep_now, call)

    def look_soon(self, call: Call) -> None:
        """A reply is heard from now on: that is kept as soon as this callback is over, not to be begun twice."""
        asyncio.get_running_loop().call_soon(self.keep, (call,), call.server.epoll.now)

    def keep_now(self, call: Call) -> bool:
        """Something is about to go out that must not go out twice; False if nobody could go on with the call."""
        if call.slot is None:
            return False
        try:
            kept, wire = self._known(call)
            if wire is not None:
                self._write(call, kept, wire, changed(call), call.server.epoll.now)      # which no journal notes
            return wire is not None
        except Exception as error:
            self._complain(call, error)
            call.slot.keep(b"{}")               # what is there is of a state that is over
            return False

    def _known(self, call: Call) -> tuple[Kept, Wire | BareWire | None]:
        """What is known of a call, which is told of to the supervisor if it is new."""
        kept, wire = self.known.get(call) or self.begun(call), wire_of(call)
        if wire is not None and wire is not kept.wire:
            self.tell({"say": "call", "slot": kept.slot}, (wire.fd,))
            kept.wire, kept.changed = wire, ()      # what is kept is of the connection before
        return kept, wire

    @staticmethod
    def _write(call: Call, kept: Kept, wire: Wire | BareWire | None, state: tuple, now: int) -> None:
        kept.changed, kept.at = state, now
        if wire is not None:
            call.slot.keep(snapshot(call))
            wire.keeper = call.slot

    def _look(self, call: Call, now: int) -> None:
        kept, wire = self._known(call)
        if isinstance(call, RealtimeCall | RelayCall) and call.ahead is not None and call.ahead.waiting:
            return                              # it is kept before that goes out
        state = changed(call)
        if state == kept.changed and now - kept.at < EVERY_NS:
            return
        self._write(call, kept, wire, state, now)
        told = call.dialogue.state, len(call.ledger.receipts)
        if told != kept.told:
            kept.told = told
            self.seat.write_record(kept.record, call.record())

    def begun(self, call: Call, wire: Wire | BareWire | None = None) -> Kept:
        """A call is here, from now on; the supervisor knows its `wire` if it has given it to us."""
        kept = self.known[call] = Kept(call.slot.index, self.seat.new_record())
        if wire is not None:
            kept.wire, wire.keeper = wire, call.slot
        return kept

    def ended(self, call: Call) -> None:
        if self.continuity is not None:
            self.continuity.ended(call)
        kept = self.known.pop(call, None)
        if kept is None:
            kept = Kept(ABSENT, self.seat.new_record())
        else:
            self.tell({"say": "over", "slot": kept.slot}, ())
        self.seat.write_record(kept.record, call.record())

    def amended(self, call: Call) -> None:
        """A tool that could not be stopped has done its work after the call's end: what it gave is told, too."""
        self.seat.amend_record(call.record())

    def freeze(self) -> list[Call]:
        """Keep everything as it is now, for a worker that goes on from here; the calls that can move."""
        return [call for call in list(self.known) if wire_of(call) is not None and self._frozen(call)]

    def _frozen(self, call: Call) -> bool:
        try:
            call.slot.keep(snapshot(call))
        except Exception as error:                  # it finishes here, and holds up no other
            self._complain(call, error)
            return False
        self.seat.erase_record(self.known.pop(call).record)
        return True


# -- in the successor --------------------------------------------------------------------------------------------------

def adopt(server, index: int, fd: int) -> bool:
    """The call of a slot goes on in this worker, on its socket `fd`; False if it cannot, and then it is closed."""
    slot = server.studio.arena.slot(index)
    try:
        _resume(server, slot, fd)
    except Exception as error:
        known = isinstance(error, (LostCall, ValueError, OSError))
        log.warning("a call could not be taken over: %s", error, exc_info=None if known else error)
        server.metrics.count("calls_taken_over", outcome="lost")
        dismiss(fd, slot)
        slot.free()
        return False
    server.metrics.count("calls_taken_over", outcome="kept")
    return True


def _resume(server, slot, fd: int) -> None:
    now = server.tock()
    if not slot.taken or slot.kept is None:
        raise LostCall("there is no snapshot of it")
    state = orjson.loads(slot.kept)
    dialect = SPOKEN.get(state["dialect"])
    if dialect is None or state["call"]["id"] in server.calls:
        raise LostCall("its dialect is not spoken here" if dialect is None else "it is here already")
    if state.get("tenure") and server.continuity is not None and server.continuity.gone(state["tenure"]):
        raise LostCall("it goes on over another connection")
    connection = (AudioSocketConnection if dialect.name in BARE else Connection)(server)
    connection.go_on(os.dup(fd), server.routes.allowance(dialect, state["agent"]), slot.framing)
    connection.tenant = state["tenant"]
    try:
        if state.get("tenure") or dialect.resumes is not None:
            connection.session = Resumable(server, connection, lambda line: resume(server, line, slot, state))
            call = connection.session.call
        else:
            call = connection.session = resume(server, connection, slot, state)
    except BaseException:
        connection.forget()
        raise
    if isinstance(connection.wire, Wire):       # which nobody stands behind
        connection.wire.on_message = connection.session.on_message
    if slot.index in server.studio.free:
        server.studio.free.remove(slot.index)
    server.calls[call.id] = call
    server.calls_changed()
    server.limits.goes_on(call, now)
    if server.keeper is not None:
        server.keeper.begun(call, connection.wire)
    if server.continuity is not None and state.get("tenure"):
        server.continuity.adopt(call, state["tenure"])
    go_on(call, state, now)
    server.epoll.again()


def dismiss(fd: int, slot) -> None:
    """A call that cannot go on here is told so (RFC 6455, 1012: the service restarts), and may be dialled again."""
    farewell = build_frame(CLOSE, close_payload(1012, "the server was restarted"))
    with suppress(ValueError, TypeError, KeyError):
        farewell = BARE[orjson.loads(slot.kept)["dialect"]]({}).stop()
    with suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
        sock.send(farewell, socket.MSG_DONTWAIT)
        sock.shutdown(socket.SHUT_RDWR)


# -- in the one that ends ----------------------------------------------------------------------------------------------

def freeze(server) -> list[int]:
    """Stop where we are, for a worker that goes on from there: the slots of the calls that move.

    What cannot move (a TLS connection, whose keys are this process's alone; an echo) stays.
    """
    server.close_doors()
    server.draining = True
    slots = []
    connections = {getattr(connection.session, "call", connection.session): connection
                   for connection in list(server.connections)}
    for call in server.keeper.freeze():
        slots.append(call.slot.index)
        connections[call].session = None
        connections[call].forget()
        if server.continuity is not None:
            server.continuity.moves(call)
        del server.calls[call.id]
        server.limits.ends(call)
        if call.journal is not None:
            call.journal.end()
        if call.mouth.turn is not None:
            call.mouth.turn.cancel()
        if isinstance(call, Call):
            _hush(server.studio, call)
        call.slot = None
    return slots


def _hush(studio, call: Call) -> None:
    """Nothing of its audio is this worker's any more."""
    studio.stt.cancel(call.ear)
    studio.tts.cancel(call.mouth)
    call.ear.vad.close()
    if call.ear.beside is not None:
        call.ear.beside.let_go()
    if isinstance(call, RealtimeCall):
        call.recorded.close()
        for aside in call.writing:
            aside.cancel()
    if call.recording is not None:
        call.recording.close()
    call.ear.slot = call.mouth.slot = None
