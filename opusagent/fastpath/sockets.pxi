# An epoll set of our own for all upgraded sockets: one run of calls receives, parses and delivers for all that are
# ready.  What a loop spends per socket is not spent.  The set can be nested in any event loop's, which then watches one
# descriptor, or be what the loop sleeps in (loop.py): then a wake-up costs the loop nothing either.

cdef enum:
    MAX_EVENTS = 256                    # sockets served per wake-up
    WIRE_HOT = 128                      # bytes of a Wire that every frame needs
    SLOW_ROUND = 5000000                # ns
    LONGEST_LOOK = 100000000            # ns for which nobody looks whether the loop is late

cdef uint64_t OTHERS = <uint64_t>-1     # the token of what join() was given: no slot has this number


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
    cdef public int64_t due             # ns: when the event loop looks after its calls next
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

    def overdue(self, int64_t late, int64_t seen) -> int:
        """For a thread: waits until the loop is `late` ns behind what is due; gives when that was due, 0 once closed.

        `seen` was given before, and is not given again.  It waits without the GIL, and wakes up when the loop would be
        late if it were not heard of before: once in `late` and what is between two ticks.
        """
        cdef int64_t left, due = 0      # as it was then: the loop may have come round before the GIL is had
        with nogil:
            while self.fd >= 0:
                due = self.due
                left = late if due == seen else due + late - oa_now()
                if left <= 0:
                    break
                usleep(min(left, LONGEST_LOOK) // 1000 + 1)
        return due if self.fd >= 0 else 0

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
            if i + 1 < n and self.events[i + 1].data.u64 != OTHERS:
                oa_soon(<void*>PyList_GET_ITEM(self.wires, self.events[i + 1].data.u64 >> 32), WIRE_HOT)
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
            if events & (EPOLLHUP | EPOLLERR) and wire.fd >= 0 and wire.held_back():
                wire.on_end(None)       # reading would tell the same, but it waits for what cannot be sent any more
            elif wire.fd >= 0 and events & (EPOLLIN | EPOLLHUP | EPOLLERR):
                wire.readable(self.buffer)
        except Exception as error:
            if wire.fd >= 0:
                wire.on_fault(error)
        return 0
