"""What the tests of several dialects check alike, beyond test_dialects.py."""
import tracemalloc

import numpy

from opusagent import ProtocolError
from opusagent.dialects import Audio

KIB = 1024


def echoed(caller, ours, pcm):
    """`pcm` as the caller hears it from an agent that gives it back."""
    heard = ours.receive(*caller.audio(pcm))
    assert isinstance(heard, Audio) and len(heard.pcm) == len(pcm)
    back = caller.receive(ours.opcode, ours.audio(numpy.array(heard.pcm)))
    assert isinstance(back, Audio)
    return numpy.array(back.pcm)


def noise(samples, seed=7):
    return numpy.random.default_rng(seed).integers(-30000, 30000, samples).astype(numpy.int16)


def growth(dialect, messages, rounds=300):
    """Bytes that a dialect keeps of so many rounds of messages beyond what it kept of the first; answers are taken."""
    def play():
        for opcode, payload in messages:
            try:
                dialect.receive(opcode, memoryview(bytes(payload)))
            except ProtocolError:
                pass
            dialect.mark("never echoed")
            dialect.outbox.clear()

    tracemalloc.start()
    try:
        for _ in range(300):            # by then every bounded list is full
            play()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(rounds):
            play()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
