# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=True, auto_pickle=False
"""The one compiled module: WebSocket framing, the memory shared with the engine processes, and the audio kernels.

It holds what must touch every byte.  It decides nothing about calls and opens no socket.
The rule: lengths that come from outside are checked in the function that receives them, before the loop
that trusts them; bounds checks of the compiler are off only because of that.

It is one module in several files, which see each other's names as if they were one:

    native       what C says better than Cython, and what the system lends
    frames       build_frame, unmask, utf8_valid
    framing      ReceiveBuffer, FrameParser
    unsent       bytes_written, framing_head, unsent_of: what a socket has not taken, for another process
    wire         Wire
    sockets      EpollSet
    memory       Arena, Slot, MappedFile: what is shared with the engine processes
    ring         Ring: what is told to them, and by them
    buffers      how the kernels borrow their arguments' memory
    g711         mu-law and A-law
    level        energy, dbfs, peak, loud_span
    notes        Notes: what a journal has of frames that need no decision
    hearing      EnergyVad, Calm, Vad, Silero
    resampler    Resampler
    histogram    Histogram
    base64       base64_decode, base64_encode
    media        the carriers' media messages, in one pass
    room         Room, media_message, codes_of: samples as they stand on the wire, both ways
    plain        MediaIn, MediaOut: how the media messages look that need no decision
    track        Track: the agent's side of a recording
    unattended   Past, Arrivals, MediaIntake, Mirror, Stretch, Pacer: frames that need no decision
"""
import mmap
import os

import numpy

from opusagent import ProtocolError, EngineError

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.math cimport INFINITY, ceil, expf, log, log10, sqrtf, tanhf
from libc.string cimport memcmp, memcpy, memmove, memset, strlen
from libc.stdlib cimport calloc, malloc, free
from cpython.buffer cimport (PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release,
                             PyObject_CheckBuffer, PyObject_GetBuffer, Py_buffer)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.object cimport PyObject
from cpython.list cimport PyList_GET_ITEM

include "fastpath/native.pxi"
include "fastpath/frames.pxi"
include "fastpath/framing.pxi"
include "fastpath/unsent.pxi"
include "fastpath/wire.pxi"
include "fastpath/sockets.pxi"
include "fastpath/memory.pxi"
include "fastpath/ring.pxi"
include "fastpath/buffers.pxi"
include "fastpath/g711.pxi"
include "fastpath/level.pxi"
include "fastpath/notes.pxi"
include "fastpath/hearing.pxi"
include "fastpath/resampler.pxi"
include "fastpath/histogram.pxi"
include "fastpath/base64.pxi"
include "fastpath/media.pxi"
include "fastpath/room.pxi"
include "fastpath/plain.pxi"
include "fastpath/track.pxi"
include "fastpath/unattended.pxi"
