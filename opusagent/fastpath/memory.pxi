# One arena per worker, mapped by the worker and by its engine processes.  A slot belongs to one call at a time;
# `generation` is odd while it is taken, and a record that carries another generation is late and is dropped.
#
#   slot:  header (4096 bytes) | caller's audio, a ring | SEGMENTS rings of agent's audio | two snapshots | framing
#
# Each ring has one writer.  Counters run over and never wrap in a call's life (64 bits); index = counter % capacity.

SEGMENTS = 4                    # segments of a reply that may be synthesised side by side
SEGMENT_SAMPLES = 131072        # int16 samples of each: 16.4 s at 8 kHz, 2.7 s at 48 kHz
CALLER_SAMPLES = 163840         # 10.24 s at 16 kHz, the highest rate the caller's audio is kept at

cdef enum:
    N_SEGMENTS = 4
    N_SEGMENT_SAMPLES = 131072
    N_CALLER_SAMPLES = 163840
    HEADER_BYTES = 4096
    N_MARKS = 8
    KEPT_BYTES = 2097152                # of a call's snapshot, twice
    FRAMING_BYTES = 1048576             # of what a wire has not parsed or not sent
    AUDIO_BYTES = 2 * N_CALLER_SAMPLES + 2 * N_SEGMENTS * N_SEGMENT_SAMPLES
    SLOT_BYTES = HEADER_BYTES + AUDIO_BYTES + 2 * KEPT_BYTES + FRAMING_BYTES
    LAYOUT = 2                          # grows when any of this changes: another version's slots are not read

SLOT_SIZE = SLOT_BYTES

cdef struct SlotHeader:
    uint64_t generation                 # odd: taken
    uint64_t rate_in                    # Hz of the caller's audio in the slot
    uint64_t rate_out                   # Hz of the agent's audio in the slot
    uint64_t capacity                   # samples the caller's ring uses: 10.24 s at rate_in
    uint64_t written                    # caller samples ever written
    uint64_t segment_written[N_SEGMENTS]    # agent samples ever written, by the engine
    uint64_t segment_read[N_SEGMENTS]       # agent samples ever played, by the worker
    uint64_t layout                     # LAYOUT of the worker that took it
    uint64_t snapshots                  # ever kept; the last one lies in the half of its parity
    uint64_t kept_length[2]             # bytes of each half
    uint64_t framing_length             # bytes; 0: the wire stands between two frames, and everything is sent
    int64_t place[N_MARKS]              # of the playout, as it notes it: see Slot.note; [6]: Slot.numbered
    uint64_t gone_of                    # a snapshot,
    uint64_t gone                       # ... and how many of the messages in it went out,
    int64_t wrote                       # ... and bytes_written() before the first of them


cdef class Slot:
    """One call's place in the arena: what the caller said in the last 10 s, and what the agent is about to say."""
    cdef object memory                  # the mmap, kept alive
    cdef SlotHeader *header
    cdef int16_t *caller
    cdef uint8_t *snapshots             # two halves of KEPT_BYTES
    cdef uint8_t *framing_at
    cdef readonly int index
    cdef tuple _segments                # memoryviews, format 'h', one per segment ring

    @property
    def generation(self) -> int:
        return oa_load(&self.header.generation)

    @property
    def rate_in(self) -> int:
        return self.header.rate_in

    @property
    def rate_out(self) -> int:
        return self.header.rate_out

    @property
    def capacity(self) -> int:
        """Caller samples that are kept."""
        return self.header.capacity

    @property
    def written(self) -> int:
        """Caller samples ever written: the position of the next one."""
        return oa_load(&self.header.written)

    def take(self, uint64_t rate_in, uint64_t rate_out):
        """Begin a call here: counters to zero, a new odd generation.  Raises ValueError if it is taken."""
        cdef uint64_t generation = oa_load(&self.header.generation)
        cdef int k
        if generation & 1:
            raise ValueError("the slot is taken")
        if not 0 < rate_in <= 16000:
            raise ValueError("a caller's audio is kept at 16000 Hz at most")
        self.header.rate_in = rate_in
        self.header.rate_out = rate_out
        self.header.capacity = N_CALLER_SAMPLES * rate_in // 16000
        self.header.written = 0
        self.header.layout = LAYOUT
        self.header.snapshots = 0
        self.header.framing_length = 0
        self.header.gone_of = self.header.gone = 0
        memset(self.header.place, 0, sizeof(self.header.place))
        for k in range(N_SEGMENTS):
            self.header.segment_written[k] = 0
            self.header.segment_read[k] = 0
        oa_store(&self.header.generation, generation + 1)

    def free(self):
        """End the call: from here on every record with the old generation is late."""
        cdef uint64_t generation = oa_load(&self.header.generation)
        if generation & 1:
            oa_store(&self.header.generation, generation + 1)

    @property
    def taken(self) -> bool:
        return oa_load(&self.header.generation) & 1

    # What a worker that takes a call over needs to know of it, kept where its death does not reach.

    def keep(self, bytes snapshot not None):
        """Keep the call's snapshot.  The one before stays whole until this one is.  ValueError if it is too long."""
        cdef uint64_t number = self.header.snapshots + 1
        cdef uint64_t n = len(snapshot)
        if n > KEPT_BYTES:
            raise ValueError("a snapshot of %d bytes is too long" % n)
        memcpy(self.snapshots + (number & 1) * KEPT_BYTES, PyBytes_AS_STRING(snapshot), n)
        self.header.kept_length[number & 1] = n
        oa_store(&self.header.snapshots, number)

    @property
    def kept(self) -> bytes | None:
        """The last snapshot; None where there is none, or a version of ours with another layout has left it."""
        cdef uint64_t number = oa_load(&self.header.snapshots)
        cdef uint64_t half = number & 1
        if not number or self.header.layout != LAYOUT or self.header.kept_length[half] > KEPT_BYTES:
            return None
        return PyBytes_FromStringAndSize(<char*>self.snapshots + half * KEPT_BYTES, self.header.kept_length[half])

    @property
    def gone(self) -> int:
        """How many of the messages that wait in the last snapshot went out."""
        return self.header.gone if self.header.gone_of == self.header.snapshots else 0

    @gone.setter
    def gone(self, uint64_t count):
        oa_store(&self.header.gone, count)

    def goes(self, int64_t wrote):
        """They go out from now on."""
        self.header.gone_of = 0             # nobody may take these numbers for another snapshot's
        self.header.gone, self.header.wrote = 0, wrote
        oa_store(&self.header.gone_of, self.header.snapshots)

    @property
    def wrote(self) -> int:
        return self.header.wrote if self.header.gone_of == self.header.snapshots else -1

    def keep_framing(self, bytes framing not None) -> bool:
        """Keep what is not parsed or not sent; False if it is too long for that.  b"": there is nothing."""
        cdef uint64_t n = len(framing)
        if n > FRAMING_BYTES:
            return False
        memcpy(self.framing_at, PyBytes_AS_STRING(framing), n)
        oa_store(&self.header.framing_length, n)
        return True

    @property
    def framing(self) -> bytes:
        return PyBytes_FromStringAndSize(<char*>self.framing_at,
                                         min(self.header.framing_length, <uint64_t>FRAMING_BYTES))

    def note(self, int64_t sent, int64_t origin, int64_t segment, int64_t read, int64_t silence, int64_t lag):
        """Where the playout stands; what each number means is the playout's to say."""
        cdef int64_t *place = self.header.place
        place[0], place[1], place[2], place[3], place[4], place[5] = sent, origin, segment, read, silence, lag

    @property
    def noted(self) -> tuple:
        cdef int64_t *place = self.header.place
        return place[0], place[1], place[2], place[3], place[4], place[5]

    @property
    def numbered(self) -> int:
        """The number of our last message, where the platform counts them; it is newer than the snapshot."""
        return self.header.place[6]

    @numbered.setter
    def numbered(self, int64_t number):
        self.header.place[6] = number

    def write(self, pcm not None) -> int:
        """Append int16 samples of the caller; the position after them.  At most `capacity` samples a call."""
        cdef Py_buffer b
        PyObject_GetBuffer(pcm, &b, PyBUF_SIMPLE)
        try:
            if b.len & 1:
                raise ValueError("whole int16 samples are written")
            return self.append(<int16_t*>b.buf, b.len // 2)
        finally:
            PyBuffer_Release(&b)

    cdef int64_t append(self, const int16_t *pcm, uint64_t n) except -1:
        cdef uint64_t at, first, capacity = self.header.capacity, written = self.header.written
        if n > capacity or not capacity:
            raise ValueError("at most 10 s are written at once, into a slot that is taken")
        at = written % capacity
        first = min(n, capacity - at)
        memcpy(self.caller + at, pcm, 2 * first)
        memcpy(self.caller, pcm + first, 2 * (n - first))
        oa_store(&self.header.written, written + n)
        return written + n

    def read_into(self, uint64_t position, dst not None) -> int:
        """Copy caller samples from `position` on into int16 `dst`; how many there were (0: none yet).

        Raises IndexError when `position` is older than what is kept.
        """
        cdef Py_buffer b
        cdef uint64_t n, at, first, capacity = self.header.capacity, written = oa_load(&self.header.written)
        if position >= written:
            return 0
        PyObject_GetBuffer(dst, &b, PyBUF_WRITABLE)
        try:
            n = min(<uint64_t>(b.len // 2), written - position)
            if written - position > capacity:
                raise IndexError("the caller's audio at %d is no longer kept" % position)
            at = position % capacity
            first = min(n, capacity - at)
            memcpy(b.buf, self.caller + at, 2 * first)
            memcpy(<char*>b.buf + 2 * first, self.caller, 2 * (n - first))
            oa_fence()
            if oa_load(&self.header.written) - position > capacity:
                raise IndexError("the caller's audio at %d was overwritten while it was read" % position)
        finally:
            PyBuffer_Release(&b)
        return n

    def read(self, uint64_t position, uint64_t count):
        """`count` caller samples from `position` on, as a new int16 array; IndexError unless all of them are there."""
        cdef uint64_t written = oa_load(&self.header.written)
        if count > self.header.capacity or count > written or position > written - count:
            raise IndexError("the caller's audio up to %d is not there yet" % (position + count))
        pcm = numpy.empty(count, numpy.int16)
        self.read_into(position, pcm)
        return pcm

    def segment(self, int k):
        """The ring of segment `k` as a writable view of SEGMENT_SAMPLES int16 samples."""
        return self._segments[k]

    cdef int check_segment(self, int k) except -1:
        if not 0 <= k < N_SEGMENTS:
            raise IndexError("no such segment")
        return 0

    def segment_written(self, int k) -> int:
        self.check_segment(k)
        return oa_load(&self.header.segment_written[k])

    def set_segment_written(self, int k, uint64_t n):
        self.check_segment(k)
        oa_store(&self.header.segment_written[k], n)

    def segment_read(self, int k) -> int:
        self.check_segment(k)
        return oa_load(&self.header.segment_read[k])

    def set_segment_read(self, int k, uint64_t n):
        self.check_segment(k)
        oa_store(&self.header.segment_read[k], n)


cdef class Arena:
    """`slots` slots in one memfd.  Made with no `fd` by the worker; mapped with the worker's `fd` by an engine process.

    The memory is sparse: a slot costs what its call has touched.  A descriptor it was given is its giver's to close.
    """
    cdef readonly int fd
    cdef readonly int slots
    cdef bint own
    cdef object memory
    cdef list _slots

    def __init__(self, int slots, int fd=-1):
        cdef Py_buffer b
        self.own = fd < 0
        if self.own:
            fd = os.memfd_create("opusagent-arena", os.MFD_CLOEXEC)
            os.ftruncate(fd, slots * <Py_ssize_t>SLOT_BYTES)
        self.fd = fd
        self.slots = slots
        self.memory = mmap.mmap(fd, slots * <Py_ssize_t>SLOT_BYTES)
        PyObject_GetBuffer(self.memory, &b, PyBUF_WRITABLE)
        self._slots = [self.lay_slot(i, <uint8_t*>b.buf + i * <Py_ssize_t>SLOT_BYTES) for i in range(slots)]
        PyBuffer_Release(&b)            # the address stays: nobody closes or resizes this mmap

    def __dealloc__(self):
        if self.own:
            close_fd(self.fd)

    cdef Slot lay_slot(self, int index, uint8_t *at):
        cdef Slot slot = Slot.__new__(Slot)
        cdef Py_ssize_t start = index * <Py_ssize_t>SLOT_BYTES + HEADER_BYTES + 2 * N_CALLER_SAMPLES
        slot.memory = self.memory
        slot.index = index
        slot.header = <SlotHeader*>at
        slot.caller = <int16_t*>(at + HEADER_BYTES)
        slot.snapshots = at + HEADER_BYTES + AUDIO_BYTES
        slot.framing_at = slot.snapshots + 2 * KEPT_BYTES
        view = memoryview(self.memory)
        slot._segments = tuple([
            view[start + k * 2 * N_SEGMENT_SAMPLES:start + (k + 1) * 2 * N_SEGMENT_SAMPLES].cast("h")
            for k in range(N_SEGMENTS)])
        return slot

    def slot(self, int i) -> Slot:
        return self._slots[i]


cdef class MappedFile:
    """All of a file, read-only, as a buffer: pages that every process with the same file shares, read in already.

    The file may be closed and unlinked, but must never be made shorter.  (Python's mmap keeps a descriptor for each.)
    """
    cdef void *data
    cdef Py_ssize_t size                # bytes

    def __cinit__(self, int fd):
        self.size = os.fstat(fd).st_size
        self.data = posix_mmap(NULL, max(self.size, 1), PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0)
        if self.data == MAP_FAILED:
            self.data = NULL
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        if self.data != NULL:
            posix_munmap(self.data, max(self.size, 1))

    def __getbuffer__(self, Py_buffer *b, int flags):
        PyBuffer_FillInfo(b, self, self.data, self.size, 1, flags)
