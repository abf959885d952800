# Whole messages out of a stream of bytes that is cut anywhere.

cdef enum:
    NEED_MORE = -1
    FIRST_SPILL = 4096          # bytes of the first buffer a partial message gets


cdef class ReceiveBuffer:
    """The memory one worker receives into: one for all connections, since each read is parsed before the next.

    `view` is a writable memoryview of all of it.  Payloads that FrameParser hands out may point here.
    """
    cdef uint8_t *data
    cdef readonly Py_ssize_t size       # bytes

    def __cinit__(self, Py_ssize_t size=262144):
        self.size = size
        self.data = <uint8_t*>malloc(size + 16)
        if self.data == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.data)

    def __getbuffer__(self, Py_buffer *b, int flags):
        PyBuffer_FillInfo(b, self, self.data, self.size, 0, flags)

    @property
    def view(self):
        return memoryview(self)         # never kept here: a reference in a circle would outlive its use


cdef struct oa_parsing:                 # a FrameParser between two processes
    uint8_t head[14]
    uint32_t head_got
    uint32_t in_payload
    int opcode
    uint32_t fin
    uint32_t key
    uint64_t length
    uint64_t got
    int message
    uint32_t fragments
    oa_utf8 utf8
    uint64_t spilled                    # bytes of the message that follow this; then come those that were only received
    uint8_t control[125]


cdef class Intake:
    """Takes messages where they lie on the wire, in place of a callback: a MediaIntake or a Mirror."""
    cdef bint take(self, int opcode, const uint8_t *message, Py_ssize_t length, int64_t now) except -1:
        """True if it was one for us, which came at `now`, ns; otherwise nothing has been done.  It sees every one."""
        return False


cdef class FrameParser:
    """Whole messages and control frames out of a byte stream that is cut anywhere.

    feed(buffer, n) lends it the n bytes just received; next_message() is called until it returns -1.  A message
    that lies whole in the buffer is unmasked there and handed out as a view of it; anything partial is gathered
    in one buffer of the parser that grows with what has arrived, never with what a header claims.
    Text is checked as UTF-8 byte by byte as it arrives, across fragments.
    Raises ProtocolError with the close code of RFC 6455 section 7.4.1 (1002, 1007, 1009); after that the parser
    is spent.  `masked` says which side the peer is: clients must mask, servers must not (section 5.1).
    """
    # limits
    cdef readonly uint64_t max_message  # bytes of a message's payload, all fragments together
    cdef readonly uint32_t max_fragments
    cdef readonly bint masked
    cdef uint64_t received              # bytes fed since take_received()
    cdef uint64_t finished              # messages, and control frames between them, since take_finished()
    cdef bint controlled                # a control frame came since the owner looked
    # the bytes lent by feed(), not yet consumed
    cdef ReceiveBuffer lent
    cdef object window                  # a memoryview of it
    cdef Py_ssize_t at
    cdef Py_ssize_t end
    # the frame in progress
    cdef uint8_t head[14]
    cdef unsigned int head_got          # bytes of the header gathered so far
    cdef bint in_payload                # header complete, payload not
    cdef int opcode
    cdef bint fin
    cdef uint32_t key
    cdef uint64_t length                # payload bytes the header announced
    cdef uint64_t got                   # of these, bytes consumed
    # the message in progress
    cdef int message                    # TEXT or BINARY while a message is unfinished, else 0
    cdef uint32_t fragments
    cdef oa_utf8 utf8
    cdef bytearray spill                # the message's bytes so far, room included
    cdef Py_ssize_t spilled             # bytes used of it
    # set by the owner
    cdef public bint muted              # whole messages are read and dropped (the closing handshake has begun)
    cdef public bint stopped            # nothing more is read (the peer's close frame came, or its fault)
    # what next_message() found
    cdef readonly object payload        # memoryview, good until the next call of next_message() or feed()
    cdef Py_ssize_t whole_at            # where the message lies in what is lent; -1: it does not, or is viewed already
    cdef uint8_t control[125]           # a control frame's payload when it comes in pieces (last: it is seldom touched)

    def __init__(self, uint64_t max_message, bint masked=True, uint32_t max_fragments=1 << 17):
        self.max_message = max_message
        self.max_fragments = max_fragments
        self.masked = masked
        self.whole_at = -1

    @property
    def partial(self) -> bool:
        """True while a frame or a fragmented message is unfinished: its deadline runs."""
        return self.head_got > 0 or self.in_payload or self.message != 0

    @property
    def held(self) -> int:
        """Bytes of memory held for an unfinished message."""
        return 0 if self.spill is None else len(self.spill)

    def take_received(self) -> int:
        """How many bytes were fed since the last time this was asked."""
        cdef uint64_t count = self.received
        self.received = 0
        return count

    def take_finished(self) -> int:
        """How many messages, and control frames that came between them, ended since the last time this was asked.

        A control frame inside a fragmented message does not count: it brings that message no nearer to its end.
        """
        cdef uint64_t count = self.finished
        self.finished = 0
        return count

    def feed(self, ReceiveBuffer buffer not None, Py_ssize_t n):
        """Lend the first `n` bytes of `buffer`.  All earlier bytes must have been consumed: next_message() gave -1."""
        if n < 0 or n > buffer.size:
            raise ValueError("more bytes than the buffer holds")
        self.take_in(buffer, n)

    cdef inline int take_in(self, ReceiveBuffer buffer, Py_ssize_t n) except -1:
        if self.at != self.end and not self.stopped:
            raise ValueError("the bytes of the last feed() are not consumed yet")
        self.lend(buffer, n)
        self.received += n
        return 0

    cdef inline int lend(self, ReceiveBuffer buffer, Py_ssize_t n) except -1:
        if buffer is not self.lent:
            self.lent = buffer
            self.window = memoryview(buffer)
        self.at = 0
        self.end = n
        return 0

    def feed_bytes(self, data not None):
        """Lend a copy of `data` (any length): for bytes that came behind an upgrade request, and for tests."""
        cdef ReceiveBuffer own = ReceiveBuffer(max(1, len(data)))
        own.view[:len(data)] = data
        self.feed(own, len(data))

    cdef int keep_lent(self) except -1:
        """Copy what is lent and not consumed, so that the receive buffer can be used for another connection."""
        cdef Py_ssize_t n = self.end - self.at
        cdef ReceiveBuffer own = ReceiveBuffer(max(1, n))
        memcpy(own.data, self.lent.data + self.at, n)
        return self.lend(own, n)

    cdef inline bint through(self) noexcept:
        """All that was lent is consumed, and no view of it is left: another look would find nothing."""
        return self.at == self.end and self.payload is None

    cdef inline bint holds(self) noexcept:
        """There are bytes that only this parser has."""
        return not self.stopped and (self.at < self.end or self.head_got > 0 or self.in_payload or self.message != 0)

    def dump(self) -> bytes:
        """All that it holds, for load() in another process."""
        cdef oa_parsing state
        memset(&state, 0, sizeof(state))
        memcpy(state.head, self.head, sizeof(state.head))
        state.head_got, state.in_payload = self.head_got, self.in_payload
        state.opcode, state.fin = self.opcode, self.fin
        state.key, state.length, state.got = self.key, self.length, self.got
        state.message, state.fragments, state.utf8 = self.message, self.fragments, self.utf8
        state.spilled = self.spilled if self.spill is not None else 0
        memcpy(state.control, self.control, sizeof(state.control))
        spilled = bytes(self.spill[:state.spilled]) if state.spilled else b""
        lent = bytes(self.window[self.at:self.end]) if self.at < self.end else b""
        return PyBytes_FromStringAndSize(<char*>&state, sizeof(state)) + spilled + lent

    def load(self, bytes dumped not None):
        """Go on where another parser stood.  ValueError for what dump() has not made."""
        cdef oa_parsing state
        if len(dumped) < <Py_ssize_t>sizeof(state):
            raise ValueError("this is no parser's state")
        memcpy(&state, PyBytes_AS_STRING(dumped), sizeof(state))
        rest = dumped[sizeof(state):]
        if not state.in_payload:
            state.got = 0                       # of the frame before
        if (state.head_got > 14 or state.spilled > <uint64_t>len(rest) or state.spilled > self.max_message
                or state.got > state.length or state.length > max(self.max_message, <uint64_t>125)
                or state.opcode & 0x8 and state.length > sizeof(state.control)
                or state.in_payload and not state.opcode & 0x8 and not state.message):
            raise ValueError("this is no parser's state")
        memcpy(self.head, state.head, sizeof(state.head))
        self.head_got, self.in_payload = state.head_got, state.in_payload != 0
        self.opcode, self.fin = state.opcode, state.fin != 0
        self.key, self.length, self.got = state.key, state.length, state.got
        self.message, self.fragments, self.utf8 = state.message, state.fragments, state.utf8
        memcpy(self.control, state.control, sizeof(state.control))
        self.spill = bytearray(rest[:state.spilled])
        self.spilled = state.spilled
        self.feed_bytes(rest[state.spilled:])

    def deliver(self, on_message, on_control):
        """Call on_message(opcode, payload) or on_control(opcode, payload) for all that is whole, in order."""
        while self.step(<PyObject*>on_message, <PyObject*>on_control):
            pass

    cdef bint step(self, PyObject *on_message, PyObject *on_control, Intake intake=None, int64_t now=0) except -1:
        """Hands over one message or control frame; False when the bytes ran out or nothing more is to be read.

        What `intake` takes nobody else hears of; `now`: ns, when it came.  The callbacks are borrowed: to count a
        reference would bring each into the cache for every frame that needs neither.
        """
        cdef int opcode = self.find_message()
        if opcode == NEED_MORE:
            return False
        if opcode & 0x8:
            (<object>on_control)(opcode, self.payload)
        elif not self.muted:
            if intake is not None and self.offer(intake, opcode, now):
                return True
            self.view_whole()
            (<object>on_message)(opcode, self.payload)
        return True

    cdef bint offer(self, Intake intake, int opcode, int64_t now) except -1:
        cdef Py_buffer view
        if self.whole_at >= 0:
            return intake.take(opcode, self.lent.data + self.whole_at, self.at - self.whole_at, now)
        PyObject_GetBuffer(self.payload, &view, PyBUF_SIMPLE)
        try:
            return intake.take(opcode, <const uint8_t *> view.buf, view.len, now)
        finally:
            PyBuffer_Release(&view)

    cdef object refuse(self, int code, str reason):
        """What to raise for a broken protocol.  From here on nothing is read, and nothing is kept."""
        self.stopped = True
        self.spill = None
        self.spilled = 0
        return ProtocolError(code, reason)

    cpdef int next_message(self) except -2:
        """The opcode of the next whole message (TEXT, BINARY) or control frame, its bytes in `.payload`; -1: none."""
        cdef int found = self.find_message()
        self.view_whole()
        return found

    cdef inline int view_whole(self) except -1:
        if self.whole_at >= 0:
            self.payload = self.window[self.whole_at:self.at]
            self.whole_at = -1
        return 0

    cdef int find_message(self) except -2:
        """As next_message(), but a message that lies whole in what is lent is only at `whole_at`, up to `at`."""
        cdef int found
        self.payload = None
        self.whole_at = -1
        if self.stopped:
            self.at = self.end
            return NEED_MORE
        while True:
            if not self.in_payload and not self.read_head():
                return NEED_MORE
            found = self.read_payload()
            if found != 0:
                return found

    cdef bint read_head(self) except -1:
        """Gathers one header and checks it; False when bytes are missing."""
        cdef uint8_t *src = self.lent.data if self.lent is not None else NULL
        cdef unsigned int mask = 4 if self.masked else 0
        if self.head_got == 0 and self.end - self.at >= <Py_ssize_t>sizeof(self.head):
            memcpy(self.head, src + self.at, sizeof(self.head))     # at least all of it: the ordinary case
            self.head_got = 2
            self.check_first_two()
            self.head_got = self.length_end()
            self.take_length()
            self.head_got += mask
            self.at += self.head_got
        while self.head_got < 2 or self.head_got < self.length_end() + mask:
            if self.at >= self.end:
                return False
            self.head[self.head_got] = src[self.at]
            self.head_got += 1
            self.at += 1
            if self.head_got == 2:
                self.check_first_two()
            if self.head_got >= 2 and self.head_got == self.length_end():
                self.take_length()
        if self.masked:
            memcpy(&self.key, self.head + self.length_end(), 4)
        self.begin_payload()
        return True

    cdef inline unsigned int length_end(self) noexcept:
        """Where the length ends in a header of which the first two bytes are known."""
        return 2 if self.head[1] & 0x7F < 126 else 4 if self.head[1] & 0x7F == 126 else 10

    cdef int check_first_two(self) except -1:
        """Everything the first two bytes can be refused for, before another byte is waited for."""
        cdef int opcode = self.head[0] & 0x0F
        cdef bint fin = self.head[0] & 0x80
        if self.head[0] & 0x70:
            raise self.refuse(1002, "a reserved bit is set and no extension was negotiated")
        if opcode not in (OP_CONTINUATION, OP_TEXT, OP_BINARY, OP_CLOSE, OP_PING, OP_PONG):
            raise self.refuse(1002, "reserved opcode")
        if (self.head[1] >> 7) != <int>self.masked:
            raise self.refuse(1002, "frame not masked" if self.masked else "frame masked by a server")
        if opcode & 0x8:
            if not fin:
                raise self.refuse(1002, "fragmented control frame")
            if self.head[1] & 0x7F > 125:
                raise self.refuse(1002, "control frame longer than 125 bytes")
        elif opcode == OP_CONTINUATION and not self.message:
            raise self.refuse(1002, "continuation without a message")
        elif opcode != OP_CONTINUATION and self.message:
            raise self.refuse(1002, "new message inside a fragmented one")
        return 0

    cdef int take_length(self) except -1:
        """The length from a header that is complete up to it; the limit is checked here, before anything follows."""
        cdef uint64_t n = self.head[1] & 0x7F
        cdef int i
        if n == 126:
            n = <uint64_t>self.head[2] << 8 | self.head[3]
            if n < 126:
                raise self.refuse(1002, "length not in its shortest form")
        elif n == 127:
            n = 0
            for i in range(8):
                n = n << 8 | self.head[2 + i]
            if n >> 63:
                raise self.refuse(1002, "length with its top bit set")
            if n < 65536:
                raise self.refuse(1002, "length not in its shortest form")
        # max_message - spilled cannot wrap: no more than max_message bytes are ever gathered
        if not self.head[0] & 0x8 and n > self.max_message - <uint64_t>self.spilled:
            raise self.refuse(1009, f"message too long: at most {self.max_message} bytes")
        self.length = n
        return 0

    cdef int begin_payload(self) except -1:
        self.opcode = self.head[0] & 0x0F
        self.fin = self.head[0] & 0x80
        self.got = 0
        self.in_payload = True
        if not self.opcode & 0x8:
            self.fragments += 1
            if self.fragments > self.max_fragments:
                raise self.refuse(1009, "too many fragments")
            if self.opcode != OP_CONTINUATION:
                self.message = self.opcode
                self.utf8.need = 0
        return 0

    cdef int read_payload(self) except -2:
        """Consumes what there is of the payload: a whole message's opcode, -1 after the last byte, 0 to go on."""
        cdef uint64_t here = min(<uint64_t>(self.end - self.at), self.length - self.got)
        cdef uint8_t *p = self.lent.data + self.at
        cdef bint whole = self.got == 0 and here == self.length
        if self.masked and here:
            oa_xor(p, here, oa_rotate(self.key, self.got & 3))
        if self.opcode & 0x8:
            return self.read_control(p, here)
        if self.message == OP_TEXT and not oa_utf8_push(&self.utf8, p, here):
            raise self.refuse(1007, "text is not UTF-8")
        if whole and self.fin and self.spilled == 0:
            self.whole_at = self.at
        else:
            self.spill_bytes(p, here)
        self.at += here
        self.got += here
        if self.got < self.length:
            return NEED_MORE
        self.in_payload = False
        self.head_got = 0
        if not self.fin:
            return 0
        return self.finish_message()

    cdef int finish_message(self) except -2:
        cdef int message = self.message
        if message == OP_TEXT and self.utf8.need:
            raise self.refuse(1007, "text ends inside a character")
        if self.whole_at < 0:
            self.payload = memoryview(self.spill if self.spill is not None else b"")[:self.spilled]
        self.spill = None
        self.spilled = 0
        self.fragments = 0
        self.message = 0
        self.finished += 1
        return message

    cdef int read_control(self, uint8_t *p, uint64_t here) except -2:
        memcpy(self.control + self.got, p, here)        # got + here <= length <= 125, checked with the header
        self.at += here
        self.got += here
        if self.got < self.length:
            return NEED_MORE
        self.in_payload = False
        self.head_got = 0
        self.finished += self.message == 0
        self.controlled = True
        self.payload = memoryview(PyBytes_FromStringAndSize(<char*>self.control, self.length))
        return self.opcode

    cdef int spill_bytes(self, uint8_t *p, uint64_t n) except -1:
        """Appends to the spill.  It is replaced when it must grow, never resized, so views of it stay good."""
        cdef Py_ssize_t need = self.spilled + <Py_ssize_t>n
        cdef Py_ssize_t room = 0 if self.spill is None else len(self.spill)
        cdef bytearray larger
        if need > room:
            larger = bytearray(min(max(need, 2 * room, FIRST_SPILL), max(need, <Py_ssize_t>self.max_message)))
            if self.spilled:
                memcpy(PyByteArray_AS_STRING(larger), PyByteArray_AS_STRING(self.spill), self.spilled)
            self.spill = larger
        if n:
            memcpy(PyByteArray_AS_STRING(self.spill) + self.spilled, p, n)
        self.spilled = need
        return 0
