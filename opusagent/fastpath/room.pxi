# Samples as they stand on the wire, both ways, and the memory they land in.  A message is borrowed, and read or written
# in one go; the memory for samples is taken once for a call.

cdef void swap(const int16_t *src, uint8_t *dst, Py_ssize_t count) noexcept nogil:
    """The two bytes of each sample change places; `dst` may be `src`."""
    cdef uint16_t *out = <uint16_t *> dst
    cdef Py_ssize_t i
    for i in range(count):
        out[i] = <uint16_t> (<uint16_t> src[i] >> 8 | <uint16_t> src[i] << 8)


cdef struct Coding:         # how samples stand on the wire
    const int16_t *table    # code -> sample; NULL: codes are samples
    compressor *pack            # samples -> codes; NULL likewise
    int width               # bytes of a code
    bint swapped            # the high byte comes first


cdef Coding coding_of(str encoding) except *:
    cdef Coding coding
    coding.table, coding.pack, coding.width, coding.swapped = NULL, NULL, 2, False
    if encoding == "PCMU":
        coding.table, coding.pack, coding.width = ULAW, ulaw_compress, 1
    elif encoding == "PCMA":
        coding.table, coding.pack, coding.width = ALAW, alaw_compress, 1
    elif encoding == "L16BE":
        coding.pack, coding.swapped = swap, True
    elif encoding != "L16":
        raise ValueError(f"an encoding is PCMU, PCMA, L16 or L16BE, not {encoding}")
    return coding


def media_message(bytes prefix not None, pcm, bytes suffix not None, str encoding not None):
    """One outgoing message: prefix, int16 samples in base64 of "PCMU", "PCMA", "L16" or "L16BE", suffix."""
    cdef Coding coding = coding_of(encoding)
    cdef Py_buffer view
    cdef uint8_t codes[240]             # a multiple of three, so that padding comes at the end only
    cdef Py_ssize_t count = borrow(pcm, &view, 2), done = 0, most = 240 // coding.width, some
    cdef Py_ssize_t before = PyBytes_GET_SIZE(prefix), after = PyBytes_GET_SIZE(suffix)
    message = PyBytes_FromStringAndSize(NULL, before + (count * coding.width + 2) // 3 * 4 + after)
    cdef uint8_t *out = <uint8_t *> PyBytes_AS_STRING(message)
    memcpy(out, PyBytes_AS_STRING(prefix), before)
    out += before
    if coding.pack == NULL:
        out = encode(<const uint8_t *> view.buf, 2 * count, out)
    while coding.pack and done < count:
        some = min(count - done, most)
        coding.pack(<const int16_t *> view.buf + done, codes, some)
        out = encode(codes, some * coding.width, out)
        done += some
    memcpy(out, PyBytes_AS_STRING(suffix), after)
    PyBuffer_Release(&view)
    return message


def codes_of(pcm, str encoding not None):
    """int16 samples as the bytes of "PCMU", "PCMA", "L16" or "L16BE"."""
    cdef Coding coding = coding_of(encoding)
    cdef Py_buffer view
    cdef Py_ssize_t count = borrow(pcm, &view, 2)
    codes = PyBytes_FromStringAndSize(NULL, count * coding.width)
    if coding.pack == NULL:
        memcpy(PyBytes_AS_STRING(codes), view.buf, 2 * count)
    else:
        coding.pack(<const int16_t *> view.buf, <uint8_t *> PyBytes_AS_STRING(codes), count)
    PyBuffer_Release(&view)
    return codes


cdef class Room:
    """Memory for the samples of one encoding, and the event that lends them, which is the same again and again.

    `memory`: its bytes, `pcm`: its samples, `event`: whatever has a `pcm`, which becomes the part that was filled last;
    `chunk`: the number of what media() took last, -1 where that has none.  What is lent is valid until the next call.
    The readers give None for what is not plain, or too long; then what was lent before is undefined.
    """
    cdef readonly object memory, pcm, event
    cdef readonly Py_ssize_t chunk
    cdef Coding coding
    cdef int16_t *out
    cdef Py_ssize_t size    # samples,
    cdef Py_ssize_t lent    # and how many of them are
    cdef Py_buffer held

    def __cinit__(self, event, Py_ssize_t samples, str encoding not None="L16"):
        self.coding = coding_of(encoding)
        self.event = event
        self.reserve(samples)

    def __dealloc__(self):
        PyBuffer_Release(&self.held)

    cpdef reserve(self, Py_ssize_t samples):
        """Room for so many; what was lent before keeps the old memory."""
        PyBuffer_Release(&self.held)
        self.memory = memoryview(bytearray(2 * samples))
        PyObject_GetBuffer(self.memory, &self.held, PyBUF_WRITABLE)
        self.out, self.size = <int16_t *> self.held.buf, samples
        self.pcm = self.memory.cast("h")
        self.lent = -1
        self.first(0)

    cpdef first(self, Py_ssize_t samples):
        """The event, its pcm being the first so many samples of the memory."""
        if samples != self.lent:
            self.event.pcm = self.pcm[:samples]
            self.lent = samples
        return self.event

    cdef filled(self, Py_ssize_t samples):
        if samples <= 0:
            return None
        if self.coding.swapped:
            swap(self.out, <uint8_t *> self.out, samples)
        return self.first(samples)

    def media(self, message):
        """A media message like Twilio's."""
        cdef Py_buffer view
        cdef Cursor cursor
        PyObject_GetBuffer(message, &view, PyBUF_SIMPLE)
        cursor.at = <const uint8_t *> view.buf
        cursor.end = cursor.at + view.len
        self.chunk = -1
        cdef Py_ssize_t count = take_message(&cursor, self.out, self.size, self.coding.table, &self.chunk)
        PyBuffer_Release(&view)
        return self.filled(count)

    def streamed(self, message, bytes kind not None, bytes field not None, bytes participant=None):
        """A message of this "type", whose payload stands under `field`; of this participant (None: of no name)."""
        cdef Py_buffer view
        cdef Cursor cursor
        cdef Stream stream
        stream.type, stream.field, stream.who = span_of(kind), span_of(field), span_of(participant)
        PyObject_GetBuffer(message, &view, PyBUF_SIMPLE)
        cursor.at = <const uint8_t *> view.buf
        cursor.end = cursor.at + view.len
        cdef Py_ssize_t count = take_streamed(&cursor, self.out, self.size, self.coding.table, &stream)
        PyBuffer_Release(&view)
        return self.filled(count)

    def text(self, str payload not None):
        """Base64."""
        cdef Py_ssize_t length
        cdef const char *text = PyUnicode_AsUTF8AndSize(payload, &length)
        return self.filled(unpack(<const uint8_t *> text, length, self.out, self.size, self.coding.table))

    def codes(self, payload, Py_ssize_t channels=1, Py_ssize_t at=0):
        """Binary codes of `channels` (from 1) interleaved, of which the one `at` is heard; the memory grows with them.

        None for none, or if the last one is not there in all channels.
        """
        cdef Py_buffer view
        cdef Py_ssize_t step = self.coding.width * channels, count
        if not 0 <= at < channels:
            raise ValueError(f"there is no channel {at} of {channels}")
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        count = view.len // step if view.len % step == 0 else -1
        try:
            if count > self.size:
                self.reserve(count)
            if count > 0:
                separate(&self.coding, <const uint8_t *> view.buf, channels, at, self.out, count)
        finally:
            PyBuffer_Release(&view)
        return self.filled(count)


cdef void separate(const Coding *coding, const uint8_t *src, Py_ssize_t channels, Py_ssize_t at, int16_t *out,
                   Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i
    if coding.table != NULL and channels == 1:
        expand(coding.table, src, out, count)
    elif coding.table != NULL:
        for i in range(count):
            out[i] = coding.table[src[i * channels + at]]
    elif channels == 1:
        memcpy(out, src, 2 * count)
    else:
        for i in range(count):
            memcpy(&out[i], src + 2 * (i * channels + at), 2)
