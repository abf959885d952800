# Frames that need no decision, which is nearly every one: in and out without a call of Python's, for a dozen of those
# cost as much as receiving or sending it.  What each step does is said where it is written in Python (ear.py, mouth.py,
# playout.py), and a test holds the two against one another.

cdef enum:
    ARRIVALS = 64                       # messages whose times are remembered
    MOST_SAMPLES = 1600                 # of a message that is taken here: 200 ms
    LATE_NS = 20000000                  # later than this a frame moves the reply's clock, which the playout sees to

ctypedef struct Arrival:
    int64_t position                    # of the caller's audio, after a message
    int64_t at                          # ns


cdef class Past:
    """The last `room` samples of a stream; silence before its beginning."""
    cdef int16_t[::1] ring
    cdef Py_ssize_t at                  # where in it the next sample goes

    def __init__(self, Py_ssize_t room):
        self.ring = numpy.zeros(room, numpy.int16)

    cdef void append(self, const int16_t *pcm, Py_ssize_t count) noexcept:
        cdef Py_ssize_t room = self.ring.shape[0], first
        if count > room:
            pcm += count - room
            count = room
        first = min(count, room - self.at)
        memcpy(&self.ring[self.at], pcm, first * sizeof(int16_t))
        memcpy(&self.ring[0], pcm + first, (count - first) * sizeof(int16_t))
        self.at = (self.at + count) % room

    def push(self, pcm):
        """int16 samples follow."""
        cdef Py_buffer view
        cdef Py_ssize_t count = borrow(pcm, &view, 2)
        self.append(<const int16_t *> view.buf, count)
        PyBuffer_Release(&view)

    def last(self, Py_ssize_t count):
        """The last `count` samples, all that are kept if that is less, as a new array."""
        ring = numpy.asarray(self.ring)
        return numpy.concatenate((ring[self.at:], ring[:self.at]))[max(0, len(ring) - count):]

    def take_back(self, Py_ssize_t count):
        """As if the last `count` samples, no more than are kept, had not been."""
        self.at = (self.at - count) % self.ring.shape[0]
        if self.at < 0:
            self.at += self.ring.shape[0]

    def __len__(self):
        return self.ring.shape[0]


cdef class Arrivals:
    """When the last 64 messages of a caller's audio came."""
    cdef Arrival ring[ARRIVALS]
    cdef uint64_t count                 # ever noted

    cpdef void add(self, int64_t position, int64_t at) noexcept:
        """The caller's audio up to `position` is here, at `at`, ns."""
        self.ring[self.count % ARRIVALS] = Arrival(position, at)
        self.count += 1

    def of(self, int64_t position):
        """(position after it, ns) of the oldest message kept with which `position` was reached; None if none did."""
        cdef uint64_t i
        for i in range(self.count - min(self.count, <uint64_t>ARRIVALS), self.count):
            if self.ring[i % ARRIVALS].position >= position:
                return self.ring[i % ARRIVALS].position, self.ring[i % ARRIVALS].at
        return None


cdef class MediaIntake(Intake):
    """A caller's plain media messages, from the wire to the slot and the detector.

    What Ear.hear() does, for messages that are as the dialect's `media_in` says.  That is asked for again after each
    message that the dialect has read itself: nothing else changes what it says.
    """
    cdef object call
    cdef object dialect
    cdef object ear
    cdef Slot slot
    cdef Vad vad
    cdef Resampler resampler            # from the wire's rate to the slot's, or None
    cdef Arrivals arrivals
    cdef Notes notes                    # of the call's journal; None: it keeps none
    cdef MediaIn plain                  # None: to be asked for, or nothing is plain now
    cdef Py_ssize_t longest             # samples of the longest message so far, as far as we know
    cdef int16_t pcm[MOST_SAMPLES]

    def __init__(self, call, ear, Slot slot not None, Vad vad not None, Resampler resampler,
                 Arrivals arrivals not None, Notes notes=None):
        if resampler is not None and resampler.rate_in < resampler.rate_out:
            raise ValueError("what is heard has no higher rate than what comes")
        self.call, self.dialect, self.ear = call, call.dialect, ear
        self.slot, self.vad, self.resampler, self.arrivals = slot, vad, resampler, arrivals
        self.notes = notes
        self.longest = ear.longest

    def receive(self, int opcode, message, int64_t now) -> bool:
        """True if it was one, which came at `now`, ns; otherwise nothing has been done."""
        cdef Py_buffer view
        cdef Py_ssize_t length = borrow(message, &view, 1)
        try:
            return self.take(opcode, <const uint8_t *> view.buf, length, now)
        finally:
            PyBuffer_Release(&view)

    cdef bint take(self, int opcode, const uint8_t *message, Py_ssize_t length, int64_t now) except -1:
        cdef Py_ssize_t count = -1
        if not self.call.done and (self.notes is None or self.notes.ready and length <= MOST_NOTED):
            if self.plain is None:
                self.plain = self.dialect.media_in
            if self.plain is not None:
                count = self.plain.read(opcode, message, length, now, self.pcm, MOST_SAMPLES)
        if count < 0:
            self.plain = None
            return False
        if self.notes is not None:
            self.notes.message(opcode, message, length, now)
        if count > self.longest:
            self.ear.expect_longer(count)
            self.longest = count
        if self.resampler is not None:
            count = self.resampler.convert(self.pcm, count, self.pcm)
        self.hear(count, now)
        return True

    cdef int hear(self, Py_ssize_t count, int64_t now) except -1:
        """So many samples of the slot's rate have come."""
        cdef int64_t position = self.slot.append(self.pcm, count)
        if self.call.recording is not None:
            self.call.recording.heard()
        self.ear.media_at = now
        self.arrivals.add(position, now)
        self.vad.hear(self.pcm, count)
        if self.ear.hearing:
            self.ear.stt.audio(self.ear)
        return 0


cdef class Mirror(Intake):
    """Gives every message back unchanged, at once."""
    cdef Wire wire

    def __init__(self, Wire wire not None):
        self.wire = wire

    cdef bint take(self, int opcode, const uint8_t *message, Py_ssize_t length, int64_t now) except -1:
        cdef Py_ssize_t head = 2 if length < 126 else 4
        if length >= 65536:
            return False
        write_head(send_room, opcode, True, False, length)
        memcpy(send_room + head, message, length)
        self.wire.put(send_room, head + length)
        return True


cdef class Stretch:
    """The next frames of a reply, from the midst of one segment, that go out by themselves: see Mouth.play().

    It goes on until they are out, end() is called, or something is not as usual; then the call is due at once.
    """
    cdef object mouth
    cdef object line                    # the call's connection, as no journal sees it
    cdef object playout
    cdef readonly Wire wire
    cdef Pacer pacer
    cdef Slot slot
    cdef Past sounded                   # what went out: the mouth's, or None where nobody asks for it,
    cdef Past kept                      # ... and the playout's
    cdef Track track                    # ... and the recording's, or None,
    cdef Notes notes                    # ... and the journal's, or None
    cdef object holder                  # the dialect, if its platform may ask for no audio (`held`), or None
    cdef MediaOut plain                 # how its messages look
    cdef object segment                 # what it is of,
    cdef Py_buffer pcm                  # ... its samples,
    cdef bint borrowed                  # ... which are held as long as
    cdef readonly int left              # frames are left to go out
    cdef Py_ssize_t at                  # the first of them
    cdef int64_t sent                   # samples of the reply that went out
    cdef int64_t origin                 # ns, when the first of them was due
    cdef int64_t lead                   # ns, how far ahead of the listener
    cdef int64_t rate                   # Hz
    cdef Py_ssize_t size                # samples of a frame
    cdef bint waits                     # it stands in the pacer's list

    def __init__(self, mouth, Wire wire not None, Pacer pacer not None, Track track=None, Notes notes=None):
        self.mouth, self.line, self.playout, self.slot = mouth, mouth.call.line, mouth.playout, mouth.slot
        self.sounded, self.kept = None if mouth.echo is None else mouth.echo.past, mouth.playout.kept
        self.wire, self.pacer, self.track, self.notes = wire, pacer, track, notes
        self.holder = mouth.dialect if mouth.dialect.held is not None else None
        self.rate, self.size, self.lead = self.playout.rate, self.playout.size, self.playout.lead
        if self.size > FRAME_ROOM:
            raise ValueError("a frame is 20 ms at 48000 Hz at most")

    def __dealloc__(self):
        self.give_back()

    cdef void give_back(self) noexcept:
        if self.borrowed:
            PyBuffer_Release(&self.pcm)
            self.borrowed = False

    def begin(self, MediaOut plain, segment, int64_t origin, int frames):
        """So many frames of `segment` follow, in messages like this; the reply's first sample was due at `origin`, ns.

        Nothing follows where no message is plain (None), or one were too long to be built here.
        """
        self.end()
        if plain is None or not plain.fits(self.size):
            return
        self.plain = plain
        borrow(segment.pcm, &self.pcm, 2)
        self.borrowed = True
        self.segment, self.origin, self.sent = segment, origin, self.playout.sent
        self.at = segment.read % (self.pcm.len // 2)
        if self.at + frames * self.size > self.pcm.len // 2:
            self.end()
            raise ValueError("a stretch lies in one piece")
        self.left = frames
        if not self.waits:
            self.waits = True
            self.pacer.stretches.append(self)

    @property
    def recorded(self) -> bool:
        """Whether a recording is told what goes out."""
        return self.track is not None

    cpdef void end(self) noexcept:
        """The rest of it does not go out by itself."""
        self.left = 0
        self.give_back()

    cdef inline int64_t due(self, int64_t sent) noexcept:
        """ns: when the frame is due before which so many samples went out."""
        return self.origin + sent * 1000000000 // self.rate - self.lead

    @property
    def ends(self) -> int:
        """ns: when the first frame is due that does not belong to it."""
        return self.due(self.sent + self.left * self.size)

    cdef int go_on(self, int64_t now) except -1:
        """Sends what is due."""
        while self.left and now >= self.due(self.sent):
            if self.wire.fd < 0 or self.wire.parser.muted or self.notes is not None and not self.notes.ready \
                    or self.line.congested \
                    or self.holder is not None and self.holder.held \
                    or now > self.due(self.sent) + self.lead + LATE_NS:
                self.end()
                self.mouth.call.due = 0
                return 0
            self.send()
        if not self.left:
            self.give_back()
        return 0

    cdef int send(self) except -1:
        cdef const int16_t *frame = <const int16_t *> self.pcm.buf + self.at
        cdef Py_ssize_t length = self.plain.write(frame, self.size, send_room)
        if self.plain.goes is not None:
            self.plain.goes()
        if self.notes is not None:
            self.notes.frame()
        self.count(frame)
        self.wire.put(send_room, length)
        return 0

    cdef int count(self, const int16_t *frame) except -1:
        """A frame goes out: everybody who counts them knows."""
        self.left -= 1
        self.at += self.size
        self.sent += self.size
        self.segment.read += self.size
        self.playout.sent = self.sent
        self.playout.last = frame[self.size - 1]
        self.kept.append(frame, self.size)
        if self.sounded is not None:
            self.sounded.append(frame, self.size)
        if self.track is not None:
            self.track.put(frame, self.size, self.slot.header.written)
        self.mouth.sounded = self.slot.header.written
        self.slot.header.place[0] = self.sent
        self.slot.header.place[3] += self.size
        return 0


cdef class Pacer:
    """The stretches of a worker's calls."""
    cdef list stretches

    def __init__(self):
        self.stretches = []

    def run(self, int64_t now):
        """Send every frame that is due: one pass over all calls."""
        cdef Stretch stretch
        cdef list going_on = []
        for stretch in self.stretches:
            try:
                stretch.go_on(now)
            except Exception as error:
                stretch.end()
                stretch.mouth.connection.fault(error)
            if stretch.left:
                going_on.append(stretch)
            else:
                stretch.waits = False
        self.stretches = going_on
