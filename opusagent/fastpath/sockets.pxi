# An epoll set of our own for all upgraded sockets: one run of calls receives, parses and delivers for all that are
# ready.  What a loop spends per socket is not spent.  The set can be nested in any event loop's, which then watches one
# descriptor, or be what the loop sleeps in (loop.py): then a wake-up costs the loop nothing either.

cdef enum:
    MAX_EVENTS = 256                    # sockets served per wake-up
    MAX_RECEIVE = 65536                 # bytes received from one socket per wake-up
    MAX_MESSAGES = 64                   # messages delivered from one socket per wake-up: a flood delays nobody
    SEND_ROOM = 65536 + 16
    SLOW_ROUND = 5000000                # ns

cdef uint64_t OTHERS = <uint64_t>-1     # the token of what join() was given: no slot has this number
LOST = b"lost"                          # in place of a wire's framing that was too long to keep

cdef uint8_t send_room[SEND_ROOM]       # one frame is built here and sent; nothing else runs in between

cdef class Slot                         # below: a call's place in shared memory


cdef class Wire:
    """One upgraded socket that an EpollSet serves, and owns: the descriptor closes with close().

    The owner gives five callbacks: on_message(opcode, payload), on_control(opcode, payload), on_fault(exception)
    for whatever these or the parser raised, on_end(error or None) when the peer is gone, on_drained() when
    everything unsent has gone out.  None of them is called after close().
    """
    cdef readonly int fd                # -1 once closed
    cdef readonly FrameParser parser
    cdef public object on_message
    cdef object on_control
    cdef object on_fault
    cdef object on_end
    cdef object on_drained
    cdef EpollSet home
    cdef int slot
    cdef uint32_t generation
    cdef uint32_t armed                 # the events epoll watches for
    cdef bytearray unsent               # what the socket did not take
    cdef readonly uint64_t taken        # bytes of it that the socket took later: a peer that reads makes it grow
    cdef Py_ssize_t discarded           # bytes that came after the end
    cdef bint waiting                   # received bytes are left in the parser: its turn comes again
    cdef bint queued                    # it stands in the set's turns, once
    cdef public bint quickack           # acknowledge each receive at once: TCP_QUICKACK does not last
    cdef public bint lockstep           # do not read on while something is unsent (echo: the peer sets the pace)
    cdef public Intake intake           # what takes plain media messages in place of on_message, or None
    cdef public Slot keeper             # where what is not parsed and not sent is kept for a successor, or None

    def __init__(self, int fd, FrameParser parser not None, on_message, on_control, on_fault, on_end, on_drained):
        self.fd = fd
        self.parser = parser
        self.on_message = on_message
        self.on_control = on_control
        self.on_fault = on_fault
        self.on_end = on_end
        self.on_drained = on_drained
        self.unsent = bytearray()

    @property
    def backlog(self) -> int:
        """Bytes that the socket has not taken yet."""
        return len(self.unsent)

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
        if not self.unsent:
            sent = posix_send(self.fd, p, n, MSG_NOSIGNAL | MSG_DONTWAIT)
            if sent == <ssize_t>n:
                return True
            sent = max(sent, 0)         # a broken socket is noticed by poll(), not in the middle of its owner's work
        self.unsent += PyBytes_FromStringAndSize(<char*>p + sent, n - sent)
        self.keep()
        self.watch()
        return False

    cdef int keep(self) except -1:
        """For a successor: nothing, as nearly always, or the bytes that this process alone has."""
        if self.keeper is not None and (self.unsent or self.parser.holds() or self.keeper.header.framing_length):
            if self.parser.spilled + len(self.unsent) > FRAMING_BYTES or not self.keeper.keep_framing(self.framing()):
                self.keeper.keep_framing(LOST)
        return 0

    def framing(self) -> bytes:
        """What is not parsed and not sent, for restore(); b"" if there is nothing."""
        if not self.unsent and not self.parser.holds():
            return b""
        return framing_head(self.fd, len(self.unsent)) + bytes(self.unsent) + self.parser.dump()

    def restore(self, bytes framing not None):
        """Go on where another process stood.  ValueError where that cannot be known."""
        if framing == LOST:
            raise ValueError("there was more on the wire than is kept")
        if framing:
            unsent, end = unsent_of(self.fd, framing)
            self.unsent += unsent
            self.parser.load(framing[end:])

    cdef inline uint32_t wanted(self) noexcept:
        """The events that this socket waits for now."""
        return (0 if self.held_back() else EPOLLIN) | (EPOLLOUT if self.unsent else 0)

    cdef int watch(self) except -1:
        """Tell epoll, once the wire is in a set."""
        cdef uint32_t events = self.wanted()
        if self.home is not None and events != self.armed:
            self.home.change(self, EPOLL_CTL_MOD, events)
        return 0

    cdef int writable(self, uint32_t events) except -1:
        """Sends on.  What a broken socket has still received is read first: its end is told when that is through."""
        cdef ssize_t sent
        if self.unsent:
            sent = posix_send(self.fd, PyByteArray_AS_STRING(self.unsent), len(self.unsent),
                              MSG_NOSIGNAL | MSG_DONTWAIT)
            if sent < 0 and errno != EAGAIN and errno != EINTR and not events & EPOLLIN:
                self.on_end(OSError(errno, os.strerror(errno)))
                return 0
            sent = max(sent, 0)
            self.taken += sent
            del self.unsent[:sent]
            self.keep()
            if self.unsent:
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
        n = posix_recv(self.fd, buffer.data, min(buffer.size, MAX_RECEIVE), MSG_DONTWAIT)
        if n > 0:
            if self.quickack:
                posix_setsockopt(self.fd, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof(one))
            if self.parser.stopped:
                return self.discard(n)
            self.parser.feed(buffer, n)
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
            if not self.parser.step(self.on_message, self.on_control, self.intake, self.home.now):
                break
        self.waiting = False
        self.keep()
        return 0

    cdef inline bint held_back(self) noexcept:
        return self.lockstep and len(self.unsent) > 0

    cdef int wait_for_turn(self) except -1:
        """Keep the bytes that are lent but not delivered: the receive buffer is about to be used by others."""
        if not self.waiting:
            self.parser.keep_lent()
            self.waiting = True
        self.keep()
        if not self.held_back():
            self.queue()
        return 0

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


cdef class EpollSet:
    """Serves its wires: when poll() is called, which a loop does when fileno() is readable, or while a loop wait()s.

    `spent` gets the ns that each round took; on_slow(ns) hears of a round that took over SLOW_ROUND, on_again() is
    called when some wire has more to deliver, so that poll() must be called again soon (wait() sees to that itself).
    An event names a slot and a generation, never a pointer, so an event for a wire that was closed in the same round
    finds nobody.
    """
    cdef readonly int fd
    cdef readonly ReceiveBuffer buffer
    cdef list wires                     # by slot; None: free
    cdef list free_slots
    cdef uint32_t generation
    cdef list turns                     # wires that have received bytes left to deliver
    cdef Histogram spent
    cdef public object on_again
    cdef object on_slow
    cdef bint others                    # the descriptor given to join() was ready in this round
    cdef public int64_t spin            # ns that wait() asks again and again before it sleeps
    cdef readonly int64_t spun          # ns spent on that: no load
    cdef public bint stirred            # a callback gave the event loop something to do: wait() returns to it
    cdef readonly bint serving          # a round is being served,
    cdef public object afterwards       # ... and this is called once when it is over; None: nothing
    cdef public int64_t now             # ns: when the current round began; others may set it for theirs
    cdef list closed                    # wires closed since the last round, whose callbacks may still be running
    cdef epoll_event events[MAX_EVENTS]

    def __init__(self, ReceiveBuffer buffer not None, Histogram spent=None, on_again=None, on_slow=None):
        self.spent = Histogram() if spent is None else spent
        self.on_again = on_again
        self.on_slow = on_slow
        self.fd = epoll_create1(EPOLL_CLOEXEC)
        if self.fd < 0:
            raise OSError(errno, os.strerror(errno))
        self.buffer = buffer
        self.wires = []
        self.free_slots = []
        self.turns = []
        self.closed = []

    def __len__(self):
        return len(self.wires) - len(self.free_slots)

    def fileno(self):
        return self.fd

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def add(self, Wire wire not None):
        """Serve `wire` from now on; bytes its parser was fed already are delivered in the next round."""
        if self.free_slots:
            wire.slot = self.free_slots.pop()
        else:
            wire.slot = len(self.wires)
            self.wires.append(None)
        self.generation += 1
        wire.generation = self.generation
        wire.home = self
        self.wires[wire.slot] = wire
        self.change(wire, EPOLL_CTL_ADD, wire.wanted())
        if wire.parser.at < wire.parser.end:
            wire.waiting = True
            wire.queue()

    cdef int change(self, Wire wire, int what, uint32_t events) except -1:
        cdef epoll_event event
        event.events = events
        event.data.u64 = <uint64_t>wire.slot << 32 | wire.generation
        if epoll_ctl(self.fd, what, wire.fd, &event) < 0:
            raise OSError(errno, os.strerror(errno))
        wire.armed = events
        return 0

    cdef int remove(self, Wire wire) except -1:
        epoll_ctl(self.fd, EPOLL_CTL_DEL, wire.fd, NULL)
        self.wires[wire.slot] = None
        self.free_slots.append(wire.slot)
        self.closed.append(wire)
        wire.home = None
        return 0

    cdef int let_go(self) except -1:
        """The callbacks of closed wires lead back to them; without them each is freed at once, without a collector."""
        cdef Wire wire
        for wire in self.closed:
            wire.on_message = wire.on_control = wire.on_fault = wire.on_end = wire.on_drained = wire.intake = None
        self.closed = []
        return 0

    def join(self, int fd):
        """Have wait() return when this descriptor, the event loop's own epoll set, is readable."""
        cdef epoll_event event
        event.events = EPOLLIN
        event.data.u64 = OTHERS
        if epoll_ctl(self.fd, EPOLL_CTL_ADD, fd, &event) < 0:
            raise OSError(errno, os.strerror(errno))

    def again(self):
        """Some wire has bytes to deliver that no event will tell of."""
        if self.on_again is not None:
            self.on_again()

    def poll(self) -> bool:
        """Serve what is ready, once each; True when some have more to deliver."""
        cdef int64_t began = oa_now()
        self.serve_and_follow(epoll_wait(self.fd, self.events, MAX_EVENTS, 0), began)
        if self.turns:
            self.again()
        return len(self.turns) > 0

    def wait(self, timeout: float | None) -> bool:
        """Serve until the event loop has something to do, for at most `timeout` seconds (None: for ever).

        True when what join() was given is ready.  It sleeps without the GIL, and a signal wakes it.
        """
        cdef int64_t now = oa_now(), before, left = -1, until = -1
        cdef int n
        if timeout is not None:
            until = now + max(0, <int64_t>min(1e18, <double>timeout * 1e9))
        self.stirred = self.others = False
        while True:
            if self.turns:
                left = 0
            elif until >= 0:
                left = max(0, until - now)
            else:
                left = -1
            if left == 0:
                n = oa_epoll(self.fd, self.events, MAX_EVENTS, 0)
            else:
                with nogil:
                    n = oa_spin(self.fd, self.events, MAX_EVENTS, left, self.spin)
            before, now = now, oa_now()
            if left != 0:
                self.spun += min(now - before, self.spin)
            if n < 0 and errno == EINTR:
                return False
            if n > 0 or self.turns:
                now = self.serve_and_follow(n, now)
            if self.others or self.stirred or 0 <= until <= now:
                return self.others

    cdef int64_t serve_round(self, int n, int64_t began) except -1:
        """Serve the turns that are due, and `n` events; the time when that was done."""
        cdef list turns = self.turns
        cdef int i
        cdef uint64_t token
        cdef Wire wire
        cdef int64_t now
        self.now = began
        if self.closed:
            self.let_go()
        if turns:
            self.turns = []
            for wire in turns:
                wire.queued = False
                if wire.fd >= 0:
                    self.serve(wire, EPOLLIN)
        for i in range(n):
            token = self.events[i].data.u64
            if token == OTHERS:
                self.others = True
                continue
            wire = <Wire>self.wires[token >> 32]
            if wire is not None and wire.generation == <uint32_t>token:
                self.serve(wire, self.events[i].events)
        now = oa_now()
        if n > self.others or turns:
            self.spent.record(now - began)
            if now - began > SLOW_ROUND and self.on_slow is not None:
                self.on_slow(now - began)
        return now

    cdef int64_t serve_and_follow(self, int n, int64_t began) except -1:
        """serve_round(), and what its callbacks have left for when it is over; the time when that was done."""
        cdef int64_t now
        self.serving = True
        try:
            now = self.serve_round(n, began)
        finally:
            self.serving = False
        if self.afterwards is None:
            return now
        afterwards, self.afterwards = self.afterwards, None
        afterwards()
        return oa_now()

    cdef int serve(self, Wire wire, uint32_t events) except -1:
        try:
            if events & EPOLLOUT:
                wire.writable(events)
            if wire.fd >= 0 and wire.held_back() and events & (EPOLLHUP | EPOLLERR):
                wire.on_end(None)       # reading would tell the same, but it waits for what cannot be sent any more
            elif wire.fd >= 0 and events & (EPOLLIN | EPOLLHUP | EPOLLERR):
                wire.readable(self.buffer)
        except Exception as error:
            if wire.fd >= 0:
                wire.on_fault(error)
        return 0
