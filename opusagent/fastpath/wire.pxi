# One upgraded socket: what comes is parsed and delivered, what goes out is sent at once, and kept if it does not fit.

cdef enum:
    MAX_RECEIVE = 65536                 # bytes received from one socket per wake-up
    MAX_MESSAGES = 64                   # messages delivered from one socket per wake-up: a flood delays nobody
    SEND_ROOM = 65536 + 16
    NS = 1000000000                     # in a second
    PARSER_HOT = 256                    # bytes of a FrameParser that every frame needs

LOST = b"lost"                          # in place of a wire's framing that was too long to keep

cdef uint8_t send_room[SEND_ROOM]       # one frame is built here and sent; nothing else runs in between

cdef class Slot                         # below: a call's place in shared memory,
cdef class EpollSet                     # ... and what serves the wires


cdef class Wire:
    """One upgraded socket that an EpollSet serves, and owns: the descriptor closes with close().

    The owner gives five callbacks: on_message(opcode, payload), on_control(opcode, payload), on_fault(exception)
    for whatever these or the parser raised, on_end(error or None) when the peer is gone, on_drained() when
    everything unsent has gone out.  None of them is called after close().
    """
    # what every frame needs: these lie together, for a process that has slept finds its caches cold
    cdef readonly int fd                # -1 once closed
    cdef uint32_t generation
    cdef readonly FrameParser parser
    cdef public Intake intake           # what takes plain media messages in place of on_message, or None
    cdef EpollSet home
    cdef bytearray unsent               # what the socket did not take; None, as nearly always: nothing
    cdef public Slot keeper             # where what is not parsed and not sent is kept for a successor, or None
    cdef bint waiting                   # received bytes are left in the parser: its turn comes again
    cdef bint queued                    # it stands in the set's turns, once
    cdef public bint quickack           # acknowledge each receive at once: TCP_QUICKACK does not last
    cdef public bint lockstep           # do not read on while something is unsent (echo: the peer sets the pace)
    # the rest
    cdef public object on_message
    cdef object on_control
    cdef object on_fault
    cdef object on_end
    cdef object on_drained
    cdef int slot
    cdef uint32_t armed                 # the events epoll watches for
    cdef int64_t calm_until             # ns: before that nothing is due, see calm()
    cdef uint64_t rate                  # bytes a second that the peer may send meanwhile; 0: any number
    cdef readonly int64_t looked        # ns: the last look, by flows() or by the owner,
    cdef readonly int64_t flowed        # ... and the last at which media flowed
    cdef readonly uint64_t taken        # bytes of `unsent` that the socket took later: a peer that reads makes it grow
    cdef Py_ssize_t discarded           # bytes that came after the end

    def __init__(self, int fd, FrameParser parser not None, on_message, on_control, on_fault, on_end, on_drained):
        self.fd = fd
        self.parser = parser
        self.on_message = on_message
        self.on_control = on_control
        self.on_fault = on_fault
        self.on_end = on_end
        self.on_drained = on_drained

    @property
    def backlog(self) -> int:
        """Bytes that the socket has not taken yet."""
        return self.owed()

    cdef inline Py_ssize_t owed(self) noexcept:
        return 0 if self.unsent is None else PyByteArray_GET_SIZE(self.unsent)

    cpdef bint send(self, int opcode, payload) except -1:
        """Send one unmasked frame now; False when (part of) it had to be queued, or the wire is closed."""
        cdef Py_buffer b
        cdef size_t head
        cdef bint gone
        if self.fd < 0:
            return False
        PyObject_GetBuffer(payload, &b, PyBUF_SIMPLE)
        try:
            if b.len <= 65536:
                head = 2 if b.len < 126 else 4 if b.len < 65536 else 10
                write_head(send_room, opcode, True, False, b.len)
                memcpy(send_room + head, b.buf, b.len)
                return self.put(send_room, head + b.len)
        finally:
            PyBuffer_Release(&b)
        return self.write(build_frame(opcode, payload))

    def write(self, bytes data not None) -> bool:
        """Send bytes as they are (whole frames); False when part of them had to be queued, or the wire is closed."""
        return self.put(<uint8_t*>PyBytes_AS_STRING(data), len(data))

    cdef bint put(self, uint8_t *p, size_t n) except -1:
        cdef ssize_t sent = 0
        if self.fd < 0:
            return False
        if self.unsent is None:
            sent = oa_send(self.fd, p, n)
            if sent == <ssize_t>n:
                return True
            sent = max(sent, 0)         # a broken socket is noticed by poll(), not in the middle of its owner's work
        self.owe(PyBytes_FromStringAndSize(<char*>p + sent, n - sent))
        self.keep()
        self.watch()
        return False

    cdef int owe(self, bytes data) except -1:
        if self.unsent is None:
            self.unsent = bytearray()
        self.unsent += data
        return 0

    cdef int keep(self) except -1:
        """For a successor: nothing, as nearly always, or the bytes that this process alone has."""
        if self.keeper is not None and (self.owed() or self.parser.holds() or self.keeper.header.framing_length):
            if self.parser.spilled + self.owed() > FRAMING_BYTES or not self.keeper.keep_framing(self.framing()):
                self.keeper.keep_framing(LOST)
        return 0

    def framing(self) -> bytes:
        """What is not parsed and not sent, for restore(); b"" if there is nothing."""
        if self.unsent is None and not self.parser.holds():
            return b""
        return framing_head(self.fd, self.owed()) + bytes(self.unsent or b"") + self.parser.dump()

    def restore(self, bytes framing not None):
        """Go on where another process stood.  ValueError where that cannot be known."""
        if framing == LOST:
            raise ValueError("there was more on the wire than is kept")
        if framing:
            unsent, end = unsent_of(self.fd, framing)
            if unsent:
                self.owe(unsent)
            self.parser.load(framing[end:])

    cdef inline uint32_t wanted(self) noexcept:
        """The events that this socket waits for now."""
        return (0 if self.held_back() else EPOLLIN) | (EPOLLOUT if self.unsent is not None else 0)

    cdef int watch(self) except -1:
        """Tell epoll, once the wire is in a set."""
        cdef uint32_t events = self.wanted()
        if self.home is not None and events != self.armed:
            self.home.change(self, EPOLL_CTL_MOD, events)
        return 0

    cdef int writable(self, uint32_t events) except -1:
        """Sends on.  What a broken socket has still received is read first: its end is told when that is through."""
        cdef ssize_t sent
        if self.unsent is not None:
            sent = oa_send(self.fd, PyByteArray_AS_STRING(self.unsent), len(self.unsent))
            if sent < 0 and errno != EAGAIN and errno != EINTR and not events & EPOLLIN:
                self.on_end(OSError(errno, os.strerror(errno)))
                return 0
            sent = max(sent, 0)
            self.taken += sent
            del self.unsent[:sent]
            if not self.unsent:
                self.unsent = None
            self.keep()
            if self.unsent is not None:
                return 0
        self.watch()
        if self.waiting:
            self.queue()
        self.on_drained()
        return 0

    cdef int queue(self) except -1:
        """Takes a place in the next round's turns, if it has none yet."""
        if not self.queued:
            self.queued = True
            self.home.turns.append(self)
        return 0

    cdef int readable(self, ReceiveBuffer buffer) except -1:
        cdef ssize_t n
        cdef int one = 1
        if self.waiting:
            return 0 if self.queued or self.held_back() else self.deliver()
        oa_soon(<void*>self.parser, PARSER_HOT)
        oa_soon(<void*>self.intake, 64)
        n = oa_recv(self.fd, buffer.data, min(buffer.size, MAX_RECEIVE))
        if n > 0:
            if self.quickack:
                posix_setsockopt(self.fd, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof(one))
            if self.parser.stopped:
                return self.discard(n)
            self.parser.take_in(buffer, n)
            return self.deliver()
        if n == 0:
            self.on_end(None)
        elif errno != EAGAIN and errno != EINTR:
            self.on_end(OSError(errno, os.strerror(errno)))
        return 0

    cdef int discard(self, ssize_t n) except -1:
        """After the end a peer's last bytes are read, so that ours reach it; not a flood of them."""
        self.discarded += n
        if self.discarded > MAX_RECEIVE:
            self.on_end(None)
        return 0

    cdef int deliver(self) except -1:
        """Hand over what is whole, at most MAX_MESSAGES of it; the rest is kept for the next round."""
        cdef int left = MAX_MESSAGES
        while self.fd >= 0:
            if left == 0 or self.held_back():
                return self.wait_for_turn()
            left -= 1
            if not self.parser.step(<PyObject*>self.on_message, <PyObject*>self.on_control, self.intake, self.home.now):
                break
            if self.parser.through():
                break
        self.waiting = False
        self.keep()
        return 0

    cdef inline bint held_back(self) noexcept:
        return self.lockstep and self.unsent is not None

    cdef int wait_for_turn(self) except -1:
        """Keep the bytes that are lent but not delivered: the receive buffer is about to be used by others."""
        if not self.waiting:
            self.parser.keep_lent()
            self.waiting = True
        self.keep()
        if not self.held_back():
            self.queue()
        return 0

    def calm(self, int64_t until, int64_t now, uint64_t rate):
        """The owner has looked, at `now`: before `until` it has nothing to look for, as long as media flows, which is
        at most `rate` bytes a second (0: any number).  All times in ns."""
        self.calm_until, self.looked, self.rate = until, now, rate
        self.parser.controlled = False

    def flows(self, int64_t now) -> bool:
        """True while that is so: bytes came since the last look, no more than they may and no control frame, and
        neither side waits for the rest of anything.  Otherwise the owner has to look, and nothing is changed."""
        cdef FrameParser parser = self.parser
        cdef uint64_t came = parser.received
        if now >= self.calm_until or came == 0 or parser.controlled or parser.muted:
            return False
        if self.rate and came > self.rate * <uint64_t>(now - self.looked) // NS:
            return False
        if self.unsent is not None or self.waiting or parser.holds():
            return False
        parser.received = parser.finished = 0
        self.looked = self.flowed = now
        return True

    def close(self):
        """Leave the set and close the descriptor; harmless when done twice."""
        if self.fd >= 0:
            if self.home is not None:
                self.home.remove(self)
            os.close(self.fd)
            self.fd = -1

    def shutdown(self):
        """Send FIN: nothing more will be sent; the peer may still be heard."""
        if self.fd >= 0:
            posix_shutdown(self.fd, SHUT_WR)
