"""Which calls' frames go in and out without Python, as long as there is nothing to decide about them.

The dialect says how plain media messages look, each way (`media_in`, `media_out`).  The compiled MediaIntake takes the
caller's, a Stretch sends the frames of replies; all else goes the ordinary way, through Call.on_message() and
Mouth.play().  The rule: the two ways differ in nothing but their cost, so a journal has these frames too, from its
Notes; and a call whose connection is no plain socket has the ordinary one.
"""
from .._fastpath import MediaIntake, Stretch, Wire

FRAMES = 5                      # of a reply that go out before the call is looked at again,
MOST_FRAMES = 25                # ... where nothing more of it is to be made


def wire_of(connection) -> Wire | None:
    """The plain socket behind what a call takes for its connection, which may be one that a platform comes back to."""
    wire = getattr(getattr(connection, "connection", connection), "wire", None)
    return wire if isinstance(wire, Wire) else None


def begin(call) -> None:
    """The call has its slot, its ear and its mouth, or has them or its socket anew."""
    wire, dialect = wire_of(call.line), type(call.dialect)
    if wire is None:
        return
    notes = call.journal and call.journal.notes
    if dialect.media_in is not None:
        wire.intake = MediaIntake(call, call.ear, call.slot, call.ear.vad, call.ear.resampler, call.ledger.arrivals,
                                  notes)
    if dialect.media_out is not None:
        recording = call.recording
        call.mouth.stretch = Stretch(call.mouth, wire, call.server.pacer, recording.as_sent if recording else None,
                                    notes)


def follow(mouth, now: int) -> None:
    """What follows in the reply goes out by itself, as far as nothing has to be decided."""
    stretch, out = mouth.stretch, mouth.out
    stretch.end()
    if wire_of(mouth.call.line) is not stretch.wire:
        return begin(mouth.call)
    recorded = mouth.call.recording is not None
    if stretch.recorded == recorded and not out.late and not out.deaf(now):
        ahead = mouth.playout.ahead(FRAMES if more_comes(mouth) else MOST_FRAMES)
        if ahead is not None:
            stretch.begin(mouth.dialect.media_out, *ahead)


def more_comes(mouth) -> bool:
    """Whether the reply is still being made."""
    return not mouth.turn.complete or bool(mouth.turn.waiting)
