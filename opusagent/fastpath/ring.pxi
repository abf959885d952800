# What a worker and an engine process tell one another: descriptors of what lies in the slots (memory.pxi).

cdef enum:
    RING_DATA = 131072                  # bytes of records, a power of two
    RING_HEADER = 192                   # three cache lines: writer's, reader's, the sleeper's
    RECORD_HEAD = 40
    SKIP = 0xFFFF                       # kind of the filler at the end of the data, before a record that did not fit

RING_BYTES = RING_HEADER + RING_DATA

cdef struct Record:
    uint32_t size                       # bytes with head and data, a multiple of 8
    uint16_t kind
    uint16_t slot
    uint64_t generation
    uint32_t epoch
    uint32_t length                     # bytes of data
    uint64_t a
    uint64_t b


cdef class Ring:
    """One direction of a channel: records from one writer process to one reader process.

    A record is a descriptor (kind, slot, generation, epoch, two numbers) with at most a few hundred bytes of text;
    audio never travels here, it lies in the slot.  `eventfd` wakes the reader, and only when it said it sleeps.
    push() never blocks: False means full, and the writer keeps what it has.
    """
    cdef object memory
    cdef uint8_t *data
    cdef uint64_t *head                 # bytes ever written (writer's)
    cdef uint64_t *tail                 # bytes ever read (reader's)
    cdef uint64_t *sleeping             # 1 while the reader waits for the eventfd
    cdef uint64_t *alive                # the reader's last beat, ns
    cdef readonly int fd
    cdef readonly int eventfd

    def __init__(self, int eventfd, int fd=-1):
        cdef Py_buffer b
        if fd < 0:
            fd = os.memfd_create("opusagent-ring", os.MFD_CLOEXEC)
            os.ftruncate(fd, RING_BYTES)
        self.fd = fd
        self.eventfd = eventfd
        self.memory = mmap.mmap(fd, RING_BYTES)
        PyObject_GetBuffer(self.memory, &b, PyBUF_WRITABLE)
        self.head = <uint64_t*>b.buf
        self.tail = <uint64_t*>(<uint8_t*>b.buf + 64)
        self.sleeping = <uint64_t*>(<uint8_t*>b.buf + 128)
        self.alive = self.sleeping + 1
        self.data = <uint8_t*>b.buf + RING_HEADER
        PyBuffer_Release(&b)

    def push(self, uint16_t kind, uint16_t slot=0, uint64_t generation=0, uint32_t epoch=0,
             uint64_t a=0, uint64_t b=0, bytes data=b"") -> bool:
        """Append one record and wake the reader if it sleeps; False when there is no room."""
        cdef uint64_t head = self.head[0]
        cdef uint64_t size = (RECORD_HEAD + <uint64_t>len(data) + 7) & ~<uint64_t>7
        cdef uint64_t at = head & (RING_DATA - 1)
        cdef uint64_t skip = 0 if at + size <= RING_DATA else RING_DATA - at
        cdef Record *record
        if size > RING_DATA // 4:
            raise ValueError("a record carries a descriptor, not %d bytes" % len(data))
        if head + skip + size - oa_load(self.tail) > RING_DATA:
            return False
        if skip:
            record = <Record*>(self.data + at)
            record.size = skip          # at least 8 bytes: sizes and positions are multiples of 8
            record.kind = SKIP
            at = 0
        record = <Record*>(self.data + at)
        record.size = size
        record.kind = kind
        record.slot = slot
        record.generation = generation
        record.epoch = epoch
        record.length = len(data)
        record.a = a
        record.b = b
        memcpy(self.data + at + RECORD_HEAD, PyBytes_AS_STRING(data), len(data))
        oa_store(self.head, head + skip + size)
        self.wake()
        return True

    cpdef void wake(self) noexcept:
        """Wake the reader if it sleeps: for what it finds in a slot and needs no record for."""
        cdef uint64_t one = 1
        oa_fence()                      # what was written before the look at `sleeping`; the reader does the reverse
        if oa_load(self.sleeping) and oa_swap(self.sleeping, 0):
            posix_write(self.eventfd, &one, 8)

    @property
    def beat(self) -> int:
        """When the reader last said that it is alive, ns; 0: never."""
        return oa_load(self.alive)

    @beat.setter
    def beat(self, uint64_t now):
        oa_store(self.alive, now)

    def deliver(self, on_record):
        """Read what has come: on_record(kind, slot, generation, epoch, a, b, data) for each record, which is read by
        then, so that it may raise or deliver the rest.  EngineError if one makes no sense."""
        cdef uint64_t at
        cdef Record *record
        cdef Record head
        while self.tail[0] != oa_load(self.head):
            at = self.tail[0] & (RING_DATA - 1)
            record = <Record*>(self.data + at)
            if (record.size < 8 or record.size & 7 or record.size > RING_DATA - at or record.kind != SKIP
                    and (record.size < RECORD_HEAD or record.length > record.size - RECORD_HEAD)):
                raise EngineError("a record of the ring is broken")
            if record.kind == SKIP:
                oa_store(self.tail, self.tail[0] + record.size)
                continue
            head = record[0]
            data = PyBytes_FromStringAndSize(<char*>record + RECORD_HEAD, head.length)
            oa_store(self.tail, self.tail[0] + head.size)       # from here on the writer may write over it
            on_record(head.kind, head.slot, head.generation, head.epoch, head.a, head.b, data)

    def sleep(self) -> bool:
        """Say that the reader is about to wait for the eventfd; False if a record came in the meantime."""
        oa_swap(self.sleeping, 1)
        oa_fence()
        if self.tail[0] != oa_load(self.head):
            oa_swap(self.sleeping, 0)
            return False
        return True
