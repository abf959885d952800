# How plain media messages look, each way.  A dialect gives it as data, and what is plain passes without it, as written
# in unattended.pxi.  What is not as described is the dialect's: a description may be narrow, and must not be wrong.

cdef enum:
    FRAME_ROOM = 960                    # samples of the largest frame: 20 ms at 48 kHz
    MOST_PLAIN = 65535                  # bytes of a message of ours


cdef class Throttle:
    """Audio is heard at once, but no faster than the recogniser follows: `pace` times as fast as it was spoken, after
    as much of it as is heard in `at_once`, ns."""
    cdef int64_t pace, at_once
    cdef public int64_t heard_by        # ns: until when what was heard keeps the recogniser busy
    cdef public int64_t appended        # samples of all messages, plain or not
    cdef public int64_t rate            # Hz, of a plain message,
    cdef public int64_t longest         # ... of which none has more samples
    cdef public bint open               # nothing else is in the way of one,
    cdef public object ear              # ... if this one is hearing; None: anyhow

    def __init__(self, int64_t pace, int64_t at_once):
        self.pace, self.at_once = pace, at_once

    cpdef void hears(self, int64_t samples, int64_t now, int64_t rate) noexcept:
        """So much is heard now, at `rate`, Hz."""
        self.heard_by = max(self.heard_by, now - self.at_once) + samples * 1000000000 // (self.pace * rate)

    cdef bint passes(self, int64_t samples, int64_t now) except -1:
        """Whether so much is heard now; it is, then."""
        if not self.open or self.heard_by > now or samples > self.longest \
                or self.ear is not None and not self.ear.hearing:
            return False
        self.hears(samples, now, self.rate)
        self.appended += samples
        return True


cdef class MediaIn:
    """A caller's plain media messages.

    Binary: samples of `encoding` and nothing else, of `channels` interleaved, of which the one `at` is heard.
    Text: Twilio's shape, or with `kind` the message of this "type" whose payload stands under `field`, of this
    participant (None: of no name).  `passes(chunk)` is asked of each that is so, with its number (-1: it has none);
    where it says False nothing has happened, and the message is the dialect's.  So it is with a `throttle`.
    """
    cdef int opcode
    cdef Coding coding
    cdef Py_ssize_t channels, at
    cdef bytes kind, field, participant     # what `stream` leads into
    cdef Stream stream
    cdef object passes
    cdef Throttle throttle

    def __init__(self, int opcode, str encoding not None, Py_ssize_t channels=1, Py_ssize_t at=0, bytes kind=None,
                 bytes field=b"", bytes participant=None, passes=None, Throttle throttle=None):
        if not 0 <= at < channels:
            raise ValueError(f"there is no channel {at} of {channels}")
        self.opcode, self.coding, self.channels, self.at = opcode, coding_of(encoding), channels, at
        self.kind, self.field, self.participant = kind, field, participant
        self.passes, self.throttle = passes, throttle
        self.stream.type, self.stream.field = span_of(kind), span_of(field)
        self.stream.who = span_of(participant)

    cdef Py_ssize_t read(self, int opcode, const uint8_t *message, Py_ssize_t length, int64_t now, int16_t *out,
                         Py_ssize_t room) except -2:
        """The count of samples, or -1 for a message that is another one, empty, or of more than `room`."""
        cdef Cursor cursor
        cdef Py_ssize_t count, chunk = -1
        if opcode != self.opcode:
            return -1
        cursor.at, cursor.end = message, message + length
        if opcode == OP_BINARY:
            count = self.separated(message, length, out, room)
        elif self.kind is None:
            count = take_message(&cursor, out, room, self.coding.table, &chunk)
        else:
            count = take_streamed(&cursor, out, room, self.coding.table, &self.stream)
        if count <= 0 or self.passes is not None and not self.passes(chunk) \
                or self.throttle is not None and not self.throttle.passes(count, now):
            return -1
        if self.coding.swapped:
            swap(out, <uint8_t *> out, count)
        return count

    cdef Py_ssize_t separated(self, const uint8_t *codes, Py_ssize_t length, int16_t *out, Py_ssize_t room) noexcept:
        cdef Py_ssize_t step = self.coding.width * self.channels
        if length % step or length // step > room:
            return -1
        separate(&self.coding, codes, self.channels, self.at, out, length // step)
        return length // step


cdef class MediaOut:
    """Our plain media messages: samples of `encoding` between two ends; a text message has them in base64.

    `lifted`: a sample of -1 goes out as 0.  `goes()` is told of each.
    """
    cdef int opcode
    cdef Coding coding
    cdef bytes before, after
    cdef bint lifted
    cdef object goes

    def __init__(self, int opcode, str encoding not None, bytes before not None=b"", bytes after not None=b"",
                 bint lifted=False, goes=None):
        self.opcode, self.coding = opcode, coding_of(encoding)
        self.before, self.after, self.lifted, self.goes = before, after, lifted, goes

    cdef Py_ssize_t length(self, Py_ssize_t count) noexcept:
        """Bytes of a message of so many samples."""
        cdef Py_ssize_t coded = count * self.coding.width
        return PyBytes_GET_SIZE(self.before) + PyBytes_GET_SIZE(self.after) + (
            coded if self.opcode == OP_BINARY else (coded + 2) // 3 * 4)

    cdef bint fits(self, Py_ssize_t count) noexcept:
        return count <= FRAME_ROOM and self.length(count) <= MOST_PLAIN

    cdef Py_ssize_t write(self, const int16_t *pcm, Py_ssize_t count, uint8_t *frame) noexcept:
        """The whole frame of a message of so many samples, which fits; how long it is."""
        cdef Py_ssize_t before = PyBytes_GET_SIZE(self.before), after = PyBytes_GET_SIZE(self.after)
        cdef Py_ssize_t coded = count * self.coding.width, length = self.length(count)
        cdef int16_t codes[FRAME_ROOM]
        cdef const uint8_t *payload = self.packed(pcm, count, codes)
        cdef uint8_t *out = frame + (2 if length < 126 else 4)
        write_head(frame, self.opcode, True, False, length)
        memcpy(out, PyBytes_AS_STRING(self.before), before)
        out += before
        if self.opcode == OP_BINARY:
            memcpy(out, payload, coded)
            out += coded
        else:
            out = encode(payload, coded, out)
        memcpy(out, PyBytes_AS_STRING(self.after), after)
        return out + after - frame

    cdef const uint8_t *packed(self, const int16_t *pcm, Py_ssize_t count, int16_t *room) noexcept:
        """Samples as codes: where they lie if they are those, otherwise in `room`."""
        cdef Py_ssize_t i
        if self.lifted:
            for i in range(count):
                room[i] = pcm[i] + (pcm[i] == -1)
            pcm = room
        if self.coding.pack == NULL:
            return <const uint8_t *> pcm
        self.coding.pack(pcm, <uint8_t *> room, count)
        return <const uint8_t *> room
