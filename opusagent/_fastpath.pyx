# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=True, auto_pickle=False
"""The one compiled module: WebSocket framing, the memory shared with the engine processes, and the audio kernels.

It holds what must touch every byte.  It decides nothing about calls and opens no socket.
The rule: lengths that come from outside are checked in the function that receives them, before the loop
that trusts them; bounds checks of the compiler are off only because of that.

    framing          ReceiveBuffer, FrameParser, build_frame, unmask, utf8_valid
    sockets          Wire, EpollSet
    shared memory    Arena, Slot, Ring, MappedFile
    audio            G.711, Resampler, energy, the one-pass carrier media codec
    hearing          EnergyVad, Vad, Silero
    measuring        Histogram
"""
import mmap
import os

import numpy

from opusagent import ProtocolError, EngineError

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.math cimport INFINITY, ceil, expf, log, log10, sqrtf, tanhf
from libc.string cimport memcmp, memcpy, memmove, memset
from libc.stdlib cimport calloc, malloc, free
from cpython.buffer cimport (PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release,
                             PyObject_CheckBuffer, PyObject_GetBuffer, Py_buffer)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.bytearray cimport PyByteArray_AS_STRING

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #include <time.h>
    #include <unistd.h>

    /* A WebSocket mask or its inverse: XOR with a key that repeats every four bytes, eight bytes at a time. */
    static inline void oa_xor(uint8_t *p, size_t n, uint32_t key)
    {
        uint64_t wide = (uint64_t)key << 32 | key, x;
        size_t i = 0;
        for (; i + 8 <= n; i += 8) { memcpy(&x, p + i, 8); x ^= wide; memcpy(p + i, &x, 8); }
        for (; i < n; i++) p[i] ^= (uint8_t)(key >> (8 * (i & 3)));
    }

    /* The key as seen by a reader that starts `offset` bytes into the payload (little-endian machine word). */
    static inline uint32_t oa_rotate(uint32_t key, unsigned offset)
    {
        unsigned s = 8 * (offset & 3);
        return s ? key >> s | key << (32 - s) : key;
    }

    /* UTF-8 in pieces: how many continuation bytes are owed and the range the next one must lie in
       (RFC 3629 section 4, which excludes overlong forms, surrogates and values past U+10FFFF). */
    typedef struct { uint8_t need, lo, hi; } oa_utf8;

    static inline int oa_utf8_push(oa_utf8 *s, const uint8_t *p, size_t n)   /* 0: a byte that cannot stand here */
    {
        const uint8_t *end = p + n;
        uint64_t x;
        while (p < end) {
            uint8_t c;
            if (s->need) {
                c = *p++;
                if (c < s->lo || c > s->hi) return 0;
                s->lo = 0x80; s->hi = 0xBF; s->need--;
                continue;
            }
            while (end - p >= 8) {
                memcpy(&x, p, 8);
                if (x & 0x8080808080808080ULL) break;
                p += 8;
            }
            if (p == end) break;
            c = *p++;
            if (c < 0x80) continue;
            s->lo = 0x80; s->hi = 0xBF;
            if (c >= 0xC2 && c <= 0xDF) s->need = 1;
            else if (c >= 0xE0 && c <= 0xEF) {
                s->need = 2;
                if (c == 0xE0) s->lo = 0xA0;
                if (c == 0xED) s->hi = 0x9F;
            } else if (c >= 0xF0 && c <= 0xF4) {
                s->need = 3;
                if (c == 0xF0) s->lo = 0x90;
                if (c == 0xF4) s->hi = 0x8F;
            } else return 0;
        }
        return 1;
    }

    static inline int64_t oa_now(void)     /* ns, CLOCK_MONOTONIC, as time.monotonic_ns() */
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
    }

    static inline int leading_zeros(uint64_t x) { return __builtin_clzll(x); }
    static inline uint64_t oa_load(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void oa_store(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline uint64_t oa_swap(uint64_t *p, uint64_t v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
    static inline void oa_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

    #include <errno.h>
    #include <sys/epoll.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    /* epoll_wait for `ns` (negative: for ever), never shorter; to the ns where the kernel can (5.11), else to the ms */
    static int oa_epoll(int ep, struct epoll_event *events, int n, int64_t ns) {
    #ifdef SYS_epoll_pwait2
        static int exact = 1;
        if (ns > 0 && exact) {
            struct timespec wait = {ns / 1000000000, ns % 1000000000};
            int got = syscall(SYS_epoll_pwait2, ep, events, n, &wait, NULL, 8);
            if (got >= 0 || (errno != ENOSYS && errno != EPERM)) return got;
            exact = 0;      /* an older kernel, or a sandbox that does not know the call */
        }
    #endif
        int64_t ms = (ns + 999999) / 1000000;
        return epoll_wait(ep, events, n, ns < 0 ? -1 : ms > 60000 ? 60000 : (int)ms);
    }

    /* oa_epoll that asks for `spin` ns without sleeping before it sleeps */
    static int oa_spin(int ep, struct epoll_event *events, int n, int64_t ns, int64_t spin) {
        int64_t began = spin > 0 ? oa_now() : 0, spent = 0;
        while (spent < spin && (ns < 0 || spent < ns)) {
            int got = epoll_wait(ep, events, n, 0);
            if (got) return got;
            spent = oa_now() - began;
        }
        return oa_epoll(ep, events, n, ns < 0 ? ns : ns > spent ? ns - spent : 0);
    }

    /* out[row] = bias + in[row] x w, and nothing below `floor`.  Rows come in groups of `per`: those of `in` are
       `stride` floats apart and its groups `group`, those of `out` follow one another and its groups are `out_group`
       apart.  w is in panels of 32 columns, which stay in the cache for all rows.  The same for three widths of the
       processor's registers, each with as many rows together as these can hold sums of. */
    typedef float oa_v4 __attribute__((vector_size(16), aligned(4)));
    typedef float oa_v8 __attribute__((vector_size(32), aligned(4)));
    typedef float oa_v16 __attribute__((vector_size(64), aligned(4)));
    typedef void oa_dense_fn(const float *, int, int, int, int, const float *, int, int, const float *, float, float *,
                             int);
    #define OA_EACH _Pragma("GCC unroll 8") for
    #define OA_DENSE(name, target, vec, lanes, together)                                                            \\
    target static void name(const float *in, int rows, int per, int stride, int group, const float *w, int depth,   \\
                            int panels, const float *bias, float floor, float *out, int out_group)                  \\
    {                                                                                                               \\
        for (int p = 0; p < panels; p++, w += 32 * depth)                                                           \\
            for (int r = 0; r < rows; r += together) {                                                              \\
                vec sum[together][32 / lanes];                                                                      \\
                const float *x[together];                                                                           \\
                OA_EACH (int j = 0; j < together; j++) {                                                            \\
                    int row = r + j < rows ? r + j : rows - 1;                                                      \\
                    x[j] = in + row / per * group + row % per * stride;                                             \\
                    OA_EACH (int i = 0; i < 32 / lanes; i++)                                                        \\
                        sum[j][i] = bias ? *(const vec *)(bias + 32 * p + lanes * i) : (vec){ 0 };                  \\
                }                                                                                                   \\
                for (int k = 0; k < depth; k++)                                                                     \\
                    OA_EACH (int i = 0; i < 32 / lanes; i++) {                                                      \\
                        vec column = *(const vec *)(w + 32 * k + lanes * i);                                        \\
                        OA_EACH (int j = 0; j < together; j++) sum[j][i] += x[j][k] * column;                       \\
                    }                                                                                               \\
                OA_EACH (int j = 0; j < together; j++) {                                                            \\
                    if (r + j >= rows) break;                                                                       \\
                    float *y = out + (r + j) / per * out_group + (r + j) % per * 32 * panels + 32 * p;              \\
                    OA_EACH (int i = 0; i < 32 / lanes; i++) {                                                      \\
                        vec v = sum[j][i];                                                                          \\
                        for (int n = 0; n < lanes; n++) y[lanes * i + n] = v[n] > floor ? v[n] : floor;             \\
                    }                                                                                               \\
                }                                                                                                   \\
            }                                                                                                       \\
    }
    OA_DENSE(oa_dense_any, , oa_v4, 4, 1)
    #if defined(__x86_64__) && defined(__GNUC__)
    OA_DENSE(oa_dense_avx2, __attribute__((target("avx2,fma"))), oa_v8, 8, 2)
    OA_DENSE(oa_dense_avx512, __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,fma"))), oa_v16, 16, 4)
    static oa_dense_fn *oa_dense_here(void)
    {
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) return oa_dense_avx512;
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? oa_dense_avx2 : oa_dense_any;
    }
    #else
    static oa_dense_fn *oa_dense_here(void) { return oa_dense_any; }
    #endif
    """
    ctypedef struct oa_utf8:
        uint8_t need
        uint8_t lo
        uint8_t hi
    void oa_xor(uint8_t *p, size_t n, uint32_t key) noexcept nogil
    uint32_t oa_rotate(uint32_t key, unsigned int offset) noexcept nogil
    bint oa_utf8_push(oa_utf8 *s, const uint8_t *p, size_t n) noexcept nogil
    int64_t oa_now() noexcept nogil
    int leading_zeros(uint64_t x) noexcept nogil
    uint64_t oa_load(const uint64_t *p) noexcept nogil
    void oa_store(uint64_t *p, uint64_t v) noexcept nogil
    uint64_t oa_swap(uint64_t *p, uint64_t v) noexcept nogil
    void oa_fence() noexcept nogil
    int oa_epoll(int ep, epoll_event *events, int n, int64_t ns) noexcept nogil
    int oa_spin(int ep, epoll_event *events, int n, int64_t ns, int64_t spin) noexcept nogil
    ctypedef void oa_dense_fn(const float *src, int rows, int per, int stride, int group, const float *w, int depth,
                              int panels, const float *bias, float floor, float *out, int out_group) noexcept nogil
    oa_dense_fn *oa_dense_here() noexcept nogil

cdef extern from "unistd.h" nogil:
    int close_fd "close"(int fd)
    ssize_t posix_write "write"(int fd, const void *buf, size_t n)
cdef extern from "sys/mman.h" nogil:
    void *posix_mmap "mmap"(void *at, size_t n, int protection, int flags, int fd, int64_t offset)
    int posix_munmap "munmap"(void *at, size_t n)
    enum: PROT_READ, MAP_SHARED, MAP_POPULATE
    void *MAP_FAILED
cdef extern from "errno.h" nogil:
    int errno
    enum: EAGAIN, EINTR
cdef extern from "sys/socket.h" nogil:
    ssize_t posix_recv "recv"(int fd, void *buf, size_t n, int flags)
    ssize_t posix_send "send"(int fd, const void *buf, size_t n, int flags)
    int posix_shutdown "shutdown"(int fd, int how)
    int posix_setsockopt "setsockopt"(int fd, int level, int name, const void *value, unsigned int size)
    enum: MSG_NOSIGNAL, MSG_DONTWAIT, SHUT_WR
cdef extern from "netinet/in.h" nogil:
    enum: IPPROTO_TCP
cdef extern from "netinet/tcp.h" nogil:
    enum: TCP_QUICKACK
cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int ep, int what, int fd, epoll_event *event)
    int epoll_wait(int ep, epoll_event *events, int n, int timeout)
    enum: EPOLLIN, EPOLLOUT, EPOLLHUP, EPOLLERR, EPOLL_CLOEXEC
    enum: EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD


# ---- framing -------------------------------------------------------------------------------------------------------
# RFC 6455 section 5.  Opcodes and close codes have their numbers from there.

cdef enum:
    OP_CONTINUATION = 0x0
    OP_TEXT = 0x1
    OP_BINARY = 0x2
    OP_CLOSE = 0x8
    OP_PING = 0x9
    OP_PONG = 0xA
    NEED_MORE = -1
    FIRST_SPILL = 4096          # bytes of the first buffer a partial message gets


def unmask(buffer not None, bytes key not None, Py_ssize_t offset=0):
    """XOR `buffer` in place with the 4-byte `key`, as if `offset` bytes of the payload came before it."""
    cdef Py_buffer b
    cdef uint32_t k
    if len(key) != 4:
        raise ValueError("a masking key has 4 bytes")
    memcpy(&k, PyBytes_AS_STRING(key), 4)
    PyObject_GetBuffer(buffer, &b, PyBUF_WRITABLE)
    oa_xor(<uint8_t*>b.buf, b.len, oa_rotate(k, offset & 3))
    PyBuffer_Release(&b)


def utf8_valid(data not None) -> bool:
    """True if `data` is whole, well-formed UTF-8."""
    cdef Py_buffer b
    cdef oa_utf8 state
    state.need = 0
    PyObject_GetBuffer(data, &b, PyBUF_SIMPLE)
    cdef bint good = oa_utf8_push(&state, <const uint8_t*>b.buf, b.len) and state.need == 0
    PyBuffer_Release(&b)
    return good


def build_frame(int opcode, payload not None, bint fin=True, bytes mask=None) -> bytes:
    """One frame as bytes: header, masking key if `mask` (4 bytes) is given, payload (masked then)."""
    cdef Py_buffer b
    cdef uint8_t *out
    cdef uint8_t *q
    cdef uint32_t key = 0
    cdef size_t head
    cdef bint masked = mask is not None
    if masked:
        if len(mask) != 4:
            raise ValueError("a masking key has 4 bytes")
        memcpy(&key, PyBytes_AS_STRING(mask), 4)
    PyObject_GetBuffer(payload, &b, PyBUF_SIMPLE)
    try:
        head = 2 if b.len < 126 else 4 if b.len < 65536 else 10
        frame = PyBytes_FromStringAndSize(NULL, head + (4 if masked else 0) + b.len)
        out = <uint8_t*>PyBytes_AS_STRING(frame)
        write_head(out, opcode, fin, masked, b.len)
        q = out + head
        if masked:
            memcpy(q, &key, 4)
            q += 4
        memcpy(q, b.buf, b.len)
        if masked:
            oa_xor(q, b.len, key)
    finally:
        PyBuffer_Release(&b)
    return frame


cdef inline void write_head(uint8_t *out, int opcode, bint fin, bint masked, uint64_t n) noexcept nogil:
    cdef int i
    out[0] = (0x80 if fin else 0) | <uint8_t>opcode
    if n < 126:
        out[1] = <uint8_t>n
    elif n < 65536:
        out[1] = 126
        out[2] = <uint8_t>(n >> 8)
        out[3] = <uint8_t>n
    else:
        out[1] = 127
        for i in range(8):
            out[2 + i] = <uint8_t>(n >> (56 - 8 * i))
    if masked:
        out[1] |= 0x80


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
    cdef uint8_t control[125]           # a control frame's payload when it comes in pieces
    # set by the owner
    cdef public bint muted              # whole messages are read and dropped (the closing handshake has begun)
    cdef public bint stopped            # nothing more is read (the peer's close frame came, or its fault)
    # what next_message() found
    cdef readonly object payload        # memoryview, good until the next call of next_message() or feed()

    def __init__(self, uint64_t max_message, bint masked=True, uint32_t max_fragments=1 << 17):
        self.max_message = max_message
        self.max_fragments = max_fragments
        self.masked = masked

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

    def feed(self, ReceiveBuffer buffer not None, Py_ssize_t n):
        """Lend the first `n` bytes of `buffer`.  All earlier bytes must have been consumed: next_message() gave -1."""
        if n < 0 or n > buffer.size:
            raise ValueError("more bytes than the buffer holds")
        if self.at != self.end and not self.stopped:
            raise ValueError("the bytes of the last feed() are not consumed yet")
        self.lend(buffer, n)
        self.received += n

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

    cdef inline bint holds(self) noexcept:
        """There are bytes that only this parser has."""
        return not self.stopped and (self.at < self.end or self.head_got > 0 or self.in_payload or self.message != 0)

    def dump(self) -> bytes:
        """All that it holds, for load() in another process."""
        cdef oa_parsing state
        memset(&state, 0, sizeof(state))
        memcpy(state.head, self.head, sizeof(state.head))
        state.head_got, state.in_payload, state.opcode, state.fin = self.head_got, self.in_payload, self.opcode, self.fin
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
        while self.step(on_message, on_control):
            pass

    cdef bint step(self, on_message, on_control) except -1:
        """Hands over one message or control frame; False when the bytes ran out or nothing more is to be read."""
        cdef int opcode = self.next_message()
        if opcode == NEED_MORE:
            return False
        if opcode & 0x8:
            on_control(opcode, self.payload)
        elif not self.muted:
            on_message(opcode, self.payload)
        return True

    cdef object refuse(self, int code, str reason):
        """What to raise for a broken protocol.  From here on nothing is read, and nothing is kept."""
        self.stopped = True
        self.spill = None
        self.spilled = 0
        return ProtocolError(code, reason)

    cpdef int next_message(self) except -2:
        """The opcode of the next whole message (TEXT, BINARY) or control frame, its bytes in `.payload`; -1: none."""
        cdef int found
        self.payload = None
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
        cdef unsigned int length_end = 2
        while True:
            if self.head_got >= 2:
                length_end = 2 if self.head[1] & 0x7F < 126 else 4 if self.head[1] & 0x7F == 126 else 10
                if self.head_got == length_end + (4 if self.masked else 0):
                    break
            if self.at >= self.end:
                return False
            self.head[self.head_got] = src[self.at]
            self.head_got += 1
            self.at += 1
            if self.head_got == 2:
                self.check_first_two()
                length_end = 2 if self.head[1] & 0x7F < 126 else 4 if self.head[1] & 0x7F == 126 else 10
            if self.head_got == length_end:
                self.take_length()
        if self.masked:
            memcpy(&self.key, self.head + length_end, 4)
        self.begin_payload()
        return True

    cdef int check_first_two(self) except -1:
        """Everything the first two bytes can be refused for, before another byte is waited for."""
        cdef int opcode = self.head[0] & 0x0F
        cdef bint fin = self.head[0] & 0x80
        if self.head[0] & 0x70:
            raise self.refuse(1002, "a reserved bit is set and no extension was negotiated")
        if opcode not in (OP_CONTINUATION, OP_TEXT, OP_BINARY, OP_CLOSE, OP_PING, OP_PONG):
            raise self.refuse(1002, "reserved opcode")
        if bool(self.head[1] & 0x80) != self.masked:
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
            raise self.refuse(1009, "message too long")
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
        """Consumes what there is of the payload: the opcode when a message is whole, -1 at the end of the bytes, 0 to go on."""
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
            self.payload = self.window[self.at:self.at + <Py_ssize_t>here]
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
        if self.payload is None:
            self.payload = memoryview(self.spill if self.spill is not None else b"")[:self.spilled]
        self.spill = None
        self.spilled = 0
        self.fragments = 0
        self.message = 0
        return message

    cdef int read_control(self, uint8_t *p, uint64_t here) except -2:
        memcpy(self.control + self.got, p, here)        # got + here <= length <= 125, checked with the header
        self.at += here
        self.got += here
        if self.got < self.length:
            return NEED_MORE
        self.in_payload = False
        self.head_got = 0
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


# ---- sockets -------------------------------------------------------------------------------------------------------
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
            if not self.keeper.keep_framing(self.framing()):
                self.keeper.keep_framing(LOST)
        return 0

    def framing(self) -> bytes:
        """What is not parsed and not sent, for restore(); b"" if there is nothing."""
        if not self.unsent and not self.parser.holds():
            return b""
        return len(self.unsent).to_bytes(8, "little") + bytes(self.unsent) + self.parser.dump()

    def restore(self, bytes framing not None):
        """Go on where another process stood.  ValueError where that cannot be known."""
        if framing == LOST:
            raise ValueError("there was more on the wire than is kept")
        if framing:
            unsent = int.from_bytes(framing[:8], "little")
            self.unsent += framing[8:8 + unsent]
            self.parser.load(framing[8 + unsent:])

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
            if not self.parser.step(self.on_message, self.on_control):
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
            wire.on_message = wire.on_control = wire.on_fault = wire.on_end = wire.on_drained = None
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
        self.serve_round(epoll_wait(self.fd, self.events, MAX_EVENTS, 0), began)
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
                now = self.serve_round(n, now)
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


# ---- shared memory -------------------------------------------------------------------------------------------------
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
    KEPT_BYTES = 65536                  # of a call's snapshot, twice
    FRAMING_BYTES = 16384               # of what a wire has not parsed or not sent
    AUDIO_BYTES = 2 * N_CALLER_SAMPLES + 2 * N_SEGMENTS * N_SEGMENT_SAMPLES
    SLOT_BYTES = HEADER_BYTES + AUDIO_BYTES + 2 * KEPT_BYTES + FRAMING_BYTES
    LAYOUT = 1                          # grows when any of this changes: another version's slots are not read

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
    int64_t place[N_MARKS]              # of the playout, as it notes it: see Slot.note


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
        return PyBytes_FromStringAndSize(<char*>self.framing_at, min(self.header.framing_length, <uint64_t>FRAMING_BYTES))

    def note(self, int64_t sent, int64_t origin, int64_t segment, int64_t read, int64_t silence, int64_t lag):
        """Where the playout stands; what each number means is the playout's to say."""
        cdef int64_t *place = self.header.place
        place[0], place[1], place[2], place[3], place[4], place[5] = sent, origin, segment, read, silence, lag

    @property
    def noted(self) -> tuple:
        cdef int64_t *place = self.header.place
        return place[0], place[1], place[2], place[3], place[4], place[5]

    def write(self, pcm not None) -> int:
        """Append int16 samples of the caller; the position after them.  At most `capacity` samples a call."""
        cdef Py_buffer b
        cdef uint64_t n, at, first, capacity = self.header.capacity, written = self.header.written
        PyObject_GetBuffer(pcm, &b, PyBUF_SIMPLE)
        try:
            n = b.len // 2
            if b.len & 1 or n > capacity or not capacity:
                raise ValueError("whole int16 samples are written, at most 10 s at once, into a slot that is taken")
            at = written % capacity
            first = min(n, capacity - at)
            memcpy(self.caller + at, b.buf, 2 * first)
            memcpy(self.caller, <char*>b.buf + 2 * first, 2 * (n - first))
        finally:
            PyBuffer_Release(&b)
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

    The memory is sparse: a slot costs what its call has touched.  A descriptor that it was given is its giver's to close.
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

    def pop(self):
        """The next record as (kind, slot, generation, epoch, a, b, data), or None.  EngineError if it makes no sense."""
        cdef uint64_t tail = self.tail[0], at
        cdef Record *record
        while tail != oa_load(self.head):
            at = tail & (RING_DATA - 1)
            record = <Record*>(self.data + at)
            if record.size < 8 or record.size & 7 or record.size > RING_DATA - at:
                raise EngineError("a record of the ring is broken")
            if record.kind == SKIP:
                tail += record.size
                oa_store(self.tail, tail)
                continue
            if record.size < RECORD_HEAD or record.length > record.size - RECORD_HEAD:
                raise EngineError("a record of the ring is broken")
            found = (record.kind, record.slot, record.generation, record.epoch, record.a, record.b,
                     PyBytes_FromStringAndSize(<char*>self.data + at + RECORD_HEAD, record.length))
            oa_store(self.tail, tail + record.size)
            return found
        return None

    def sleep(self) -> bool:
        """Say that the reader is about to wait for the eventfd; False if a record came in the meantime: pop again."""
        oa_swap(self.sleeping, 1)
        oa_fence()
        if self.tail[0] != oa_load(self.head):
            oa_swap(self.sleeping, 0)
            return False
        return True


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


# ---- buffers --------------------------------------------------------------------------------------------------------
# Every kernel borrows the memory of its arguments, checks the lengths once, runs, returns it.  A typed memoryview
# argument costs 100 to 150 ns to open, this 20: as much as the kernels themselves.

cdef Py_ssize_t borrow(object source, Py_buffer *view, int item, int flags=PyBUF_SIMPLE) except -1:
    """How many items of `item` bytes `source` holds (1: any memory).  After an error nothing is left to release."""
    PyObject_GetBuffer(source, view, flags)
    if view.len % item or (item > 1 and view.itemsize != item and view.itemsize != 1):
        size = view.itemsize
        PyBuffer_Release(view)
        raise ValueError(f"items of {item} bytes wanted, not {size}")
    return view.len // item


cdef Py_ssize_t borrow_two(object source, Py_buffer *src, int src_item, object target, Py_buffer *dst, int dst_item,
                           ) except -1:
    """The count of items of `source`; `target` has room for one item for each, or it is a ValueError."""
    cdef Py_ssize_t count = borrow(source, src, src_item), room
    try:
        room = borrow(target, dst, dst_item, PyBUF_WRITABLE)
    except BaseException:
        PyBuffer_Release(src)
        raise
    if room < count:
        PyBuffer_Release(src)
        PyBuffer_Release(dst)
        raise ValueError(f"dst has room for {room} items, {count} wanted")
    return count


# ---- g.711 ----------------------------------------------------------------------------------------------------------
# Bit for bit as the ITU's reference software (G.191).  Decoding is a table.  Encoding needs the position of the
# highest bit and the four bits below it: that is what a float32 keeps, so converting does it, four samples at a time.
# (audioop rounds some negative samples away from zero in mu-law, even -1 to -8; the ITU's software does not.)

cdef int16_t ULAW[256]      # code -> sample
cdef int16_t ALAW[256]


cdef void fill_g711() noexcept:
    cdef int code, step, segment, size
    for code in range(256):
        step, segment = ~code & 0x0F, (~code & 0x70) >> 4
        size = 4 * (((2 * step + 33) << segment) - 33)
        ULAW[code] = <int16_t> (size if code & 0x80 else -size)
        step, segment = (code ^ 0x55) & 0x0F, ((code ^ 0x55) & 0x70) >> 4
        size = 16 * step + 8 if segment == 0 else (16 * step + 264) << (segment - 1)
        ALAW[code] = <int16_t> (size if code & 0x80 else -size)

fill_g711()


cdef void expand(const int16_t *table, const uint8_t *src, int16_t *dst, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(0, count - 3, 4):
        dst[i] = table[src[i]]
        dst[i + 1] = table[src[i + 1]]
        dst[i + 2] = table[src[i + 2]]
        dst[i + 3] = table[src[i + 3]]
    for i in range(count & ~3, count):
        dst[i] = table[src[i]]


cdef inline int32_t exponent_and_four_bits(int32_t size) noexcept nogil:
    """16 * (127 + position of the highest bit) + the four bits below it: the top of a float32's bits."""
    cdef float wide = <float> size
    cdef int32_t bits
    memcpy(&bits, &wide, 4)
    return bits >> 19


cdef void ulaw_compress(const int16_t *src, uint8_t *dst, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i
    cdef int32_t sign, size
    for i in range(count):
        sign = src[i] >> 15
        size = ((src[i] ^ sign) >> 2) + 33
        size = size if size < 8191 else 8191
        dst[i] = <uint8_t> ((exponent_and_four_bits(size) - 16 * (127 + 5)) ^ 0xFF ^ (sign & 0x80))


cdef void alaw_compress(const int16_t *src, uint8_t *dst, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i
    cdef int32_t sign, size, code
    for i in range(count):
        sign = src[i] >> 15
        size = (src[i] ^ sign) >> 4
        code = exponent_and_four_bits(size) - 16 * (127 + 3)
        size = size if size < 15 else 15            # below 16 the scale is linear, and there code <= size
        code = code if code > size else size
        dst[i] = <uint8_t> (code ^ 0xD5 ^ (sign & 0x80))


def ulaw_decode(src, dst):
    """mu-law bytes into int16 `dst`; returns the count of samples.  ValueError when `dst` is too small."""
    cdef Py_buffer a, b
    cdef Py_ssize_t count = borrow_two(src, &a, 1, dst, &b, 2)
    expand(ULAW, <const uint8_t *> a.buf, <int16_t *> b.buf, count)
    PyBuffer_Release(&a)
    PyBuffer_Release(&b)
    return count


def alaw_decode(src, dst):
    """A-law bytes into int16 `dst`; returns the count of samples.  ValueError when `dst` is too small."""
    cdef Py_buffer a, b
    cdef Py_ssize_t count = borrow_two(src, &a, 1, dst, &b, 2)
    expand(ALAW, <const uint8_t *> a.buf, <int16_t *> b.buf, count)
    PyBuffer_Release(&a)
    PyBuffer_Release(&b)
    return count


def ulaw_encode(src, dst):
    """int16 samples into mu-law bytes `dst`; returns the count.  ValueError when `dst` is too small."""
    cdef Py_buffer a, b
    cdef Py_ssize_t count = borrow_two(src, &a, 2, dst, &b, 1)
    ulaw_compress(<const int16_t *> a.buf, <uint8_t *> b.buf, count)
    PyBuffer_Release(&a)
    PyBuffer_Release(&b)
    return count


def alaw_encode(src, dst):
    """int16 samples into A-law bytes `dst`; returns the count.  ValueError when `dst` is too small."""
    cdef Py_buffer a, b
    cdef Py_ssize_t count = borrow_two(src, &a, 2, dst, &b, 1)
    alaw_compress(<const int16_t *> a.buf, <uint8_t *> b.buf, count)
    PyBuffer_Release(&a)
    PyBuffer_Release(&b)
    return count


# ---- level ----------------------------------------------------------------------------------------------------------

SILENCE_DBFS = -120.0       # what dbfs() says of digital silence and of no samples at all


cdef double mean_square(const int16_t *pcm, Py_ssize_t count) noexcept nogil:
    cdef int64_t total = 0
    cdef Py_ssize_t i
    for i in range(count):
        total += <int32_t> pcm[i] * <int32_t> pcm[i]
    return <double> total / count if count else 0.0


def energy(pcm):
    """Mean square of int16 samples, 0 to 2**30; 0.0 of none."""
    cdef Py_buffer view
    cdef Py_ssize_t count = borrow(pcm, &view, 2)
    cdef double square = mean_square(<const int16_t *> view.buf, count)
    PyBuffer_Release(&view)
    return square


def loud_span(pcm, int size, double least, double of_peak):
    """(first, after the last) of the windows of `size` samples whose mean square is above `least` and above `of_peak`
    times that of the loudest; (0, 0) where there are none."""
    cdef Py_buffer view
    cdef Py_ssize_t windows, i, first = 0, last
    cdef const int16_t *sample
    cdef double bound = 0.0
    if size < 1:
        raise ValueError("a window has at least one sample")
    windows = last = borrow(pcm, &view, 2) // size
    sample = <const int16_t *> view.buf
    for i in range(windows):
        bound = max(bound, mean_square(sample + i * size, size))
    bound = max(bound * of_peak, least)
    while last and mean_square(sample + (last - 1) * size, size) <= bound:
        last -= 1
    while first < last and mean_square(sample + first * size, size) <= bound:
        first += 1
    PyBuffer_Release(&view)
    return first, last


def dbfs(pcm):
    """Level in dB; 0 is a full-scale square wave, so a full-scale sine is -3.01.  Not below SILENCE_DBFS."""
    cdef Py_buffer view
    cdef Py_ssize_t count = borrow(pcm, &view, 2)
    cdef double square = mean_square(<const int16_t *> view.buf, count)
    PyBuffer_Release(&view)
    return 10.0 * log10(square / (1 << 30)) if square > 0.0 else SILENCE_DBFS


def peak(pcm):
    """The largest magnitude among int16 samples, 0 to 32768; 0 of none."""
    cdef Py_buffer view
    cdef Py_ssize_t i, count = borrow(pcm, &view, 2)
    cdef const int16_t *sample = <const int16_t *> view.buf
    cdef int16_t low = 0, high = 0
    for i in range(count):
        low = sample[i] if sample[i] < low else low
        high = sample[i] if sample[i] > high else high
    PyBuffer_Release(&view)
    return max(<int> high, -<int> low)


# ---- hearing --------------------------------------------------------------------------------------------------------
# A call's ear: windows, the gate of loudness, and the network behind it.  What is said here for each of them is told
# in audio.py, where they are used.

WINDOW_MS = 32              # what Silero scores at a time, at either rate
BATCH = 16                  # windows scored in one run of the model
ROOM = 8                    # windows a call can hold unscored
SETTLE = 3                  # silent windows the model still hears after speech
REST_MS = 250               # silence that puts the model's state at rest
UNSURE = 0.8                # the most that loudness alone scores
SPEECH = 11.2               # a window this much (10.5 dB) above the noise scores 0.5 by loudness
ABOVE_NOISE = 4.0           # one less than this (6 dB) above it is silent

cdef enum:
    MOST_READY = 8          # ROOM
    MOST_IN_RUN = 16        # BATCH
    UNITS = 128             # of the network's LSTM

cdef double FULL_SCALE = 1 << 30
cdef double QUIETEST = FULL_SCALE * 10 ** -7.1      # -71 dBFS: a line's noise is taken to be at least this
cdef double LOUDEST = FULL_SCALE * 10 ** -3.0       # and at most this: the bounds of its estimate
cdef double LOUD = FULL_SCALE * 10 ** -3.4          # a window above this is for the model to judge, whatever the noise
cdef double VOICED = FULL_SCALE * 10 ** -4.5        # audio.py's definition of voiced
cdef double VOICED_OF_PEAK = 0.001
cdef double NOISE_STEP = 10 ** (0.3 * 32 / 1000)    # the estimate of the noise rises by 3 dB a second
cdef double NOISE_FALL = 0.5                        # and goes half of the way down at once
cdef double NOISE_MARGIN = ABOVE_NOISE
cdef double LOG_SPEECH = log(SPEECH / ABOVE_NOISE)
cdef double MOST_UNSURE = UNSURE
cdef int SETTLING = SETTLE

cdef oa_dense_fn *oa_dense = oa_dense_here()


cdef class EnergyVad:
    """Loudness against the line's own noise: the gate before the model, and without one its stand-in.

    The noise is a minimum that is followed down fast and up slowly.
    """
    cdef readonly double noise          # mean square: the first quiet moment brings it down
    cdef readonly double peak           # the mean square of the loudest window, fading

    def __cinit__(self):
        self.noise = LOUDEST
        self.peak = 0.0

    cpdef double score(self, double level):
        """The score of the next window, of this mean square: 0.0 is silent, 0.5 is 10.5 dB above the noise."""
        cdef double noise = self.noise, above
        if level < noise:
            noise += (level - noise) * NOISE_FALL
        else:
            noise = min(noise * NOISE_STEP, level)
        self.noise = noise = min(max(noise, QUIETEST), LOUDEST)
        self.peak = max(self.peak / NOISE_STEP, level)
        above = level / (noise * NOISE_MARGIN)
        return min(log(above) / (2 * LOG_SPEECH), MOST_UNSURE) if above > 1.0 else 0.0

    @property
    def audible(self) -> float:
        """The mean square above which sound is voiced: as defined in audio.py, and above the noise."""
        return self.threshold()

    cdef inline double threshold(self) noexcept:
        return max(max(VOICED, self.peak * VOICED_OF_PEAK), self.noise * NOISE_MARGIN)


cdef class Vad:
    """One call's ear: audio of any chunking becomes windows of 32 ms, each of them scored, in order.

    `on_window(score, position, samples, quiet)` gets every window once: at once where the gate finds it silent or no
    model is there, otherwise from the batch's next run().  `position` is the sample after the window's last one,
    `quiet` how many of its last samples are not voiced: the model's score lags, loudness says where speech ended.
    """
    cdef readonly int rate              # Hz, 8000 or 16000
    cdef readonly int window            # samples
    cdef readonly int context           # samples before a window that the model hears again
    cdef public int64_t position        # samples scored since the call's start; a successor's ear begins further on
    cdef object batch
    cdef object on_window
    cdef Silero network                 # None: loudness scores
    cdef EnergyVad gate
    cdef int silent                     # silent windows in a row
    cdef bint resting                   # the state is the one of rest
    cdef float state[2 * UNITS]         # the model's memory of this call
    cdef int16_t *pcm                   # context + ROOM windows
    cdef int room                       # samples of it
    cdef int head                       # where in pcm the first unscored window starts,
    cdef int ready                      # where the first incomplete one does,
    cdef int filled                     # and where the next sample goes
    cdef int pending                    # complete windows from head on,
    cdef int first                      # and in these rings where the first of them stands:
    cdef bint wanted[MOST_READY]        # is it for the model?
    cdef int quiet[MOST_READY]

    def __cinit__(self, int rate, batch, on_window):
        if rate not in (8000, 16000):
            raise ValueError(f"8000 or 16000 Hz, not {rate}")
        self.rate = rate
        self.window = rate * 32 // 1000
        self.context = self.window // 8
        self.batch = batch
        self.on_window = on_window
        self.network = batch.network(rate)
        self.gate = EnergyVad()
        self.room = self.context + MOST_READY * self.window
        self.pcm = <int16_t *> calloc(self.room, sizeof(int16_t))
        if not self.pcm:
            raise MemoryError
        self.head = self.ready = self.filled = self.context

    def __dealloc__(self):
        free(self.pcm)

    def push(self, pcm):
        """Hear int16 samples.  More than 256 ms of them run the batch on the spot."""
        cdef Py_buffer view
        cdef Py_ssize_t count = borrow(pcm, &view, 2), n
        cdef const int16_t *sample = <const int16_t *> view.buf
        try:
            while count:
                if self.filled == self.room:
                    self.make_room()
                n = min(count, <Py_ssize_t> (self.room - self.filled))
                memcpy(self.pcm + self.filled, sample, n * sizeof(int16_t))
                self.filled += n
                sample += n
                count -= n
                while self.filled - self.ready >= self.window:
                    self.complete()
        finally:
            PyBuffer_Release(&view)

    def close(self):
        """The call is over: windows that wait are forgotten."""
        self.batch.forget(self)
        self.pending = 0

    cdef int make_room(self) except -1:
        cdef int by
        if self.head == self.context:           # all of it waits
            self.batch.run()
        by = self.head - self.context
        if not by:
            raise RuntimeError("a batch ran and left windows unscored")
        memmove(self.pcm, self.pcm + by, (self.filled - by) * sizeof(int16_t))
        self.head -= by
        self.ready -= by
        self.filled -= by
        return 0

    cdef int complete(self) except -1:
        """A window is whole: score it here if that takes no model, otherwise leave it to the batch."""
        cdef double level = mean_square(self.pcm + self.ready, self.window)
        cdef double score = self.gate.score(level)
        cdef int quiet, at
        self.ready += self.window
        quiet = self.not_voiced(level)
        self.silent = 0 if score > 0.0 or level > LOUD else self.silent + 1
        if self.network is None:
            return self.deliver(score, quiet)
        if not self.pending and self.silent > SETTLING:
            return self.skip(quiet)
        at = (self.first + self.pending) % MOST_READY
        self.wanted[at] = self.silent <= SETTLING
        self.quiet[at] = quiet
        self.pending += 1
        if self.pending == 1:
            self.batch.wait(self)
        return 0

    cdef int not_voiced(self, double level) noexcept:
        """How many samples at the end of the window that is now complete are not voiced, in quarters of it."""
        cdef double audible = self.gate.threshold()
        cdef int quarter = self.window // 4, quiet
        if level * 4 <= audible:
            return self.window
        for quiet in range(0, self.window, quarter):
            if mean_square(self.pcm + self.ready - quiet - quarter, quarter) > audible:
                return quiet
        return self.window

    cdef int skip(self, int quiet) except -1:
        """A silent window: the model need not hear it, and is found at rest by the next one that it does.

        Left where it was, it would take the next noise for speech; zeroed, it would miss soft beginnings.
        """
        if not self.resting:
            memcpy(self.state, self.network.rest, sizeof(self.state))
            self.resting = True
        return self.deliver(0.0, quiet)

    cdef int deliver(self, double score, int quiet) except -1:
        self.head += self.window
        self.position += self.window
        self.on_window(score, self.position, self.window, quiet)
        return 0

    cdef inline int take_pending(self) noexcept:
        """The quiet samples of the first window that waits, which does so no longer."""
        cdef int quiet = self.quiet[self.first]
        self.first = (self.first + 1) % MOST_READY
        self.pending -= 1
        return quiet

    def scored(self, double score):
        """For the batch: the score of the first window that waits.  True if another one waits for the model."""
        if not self.pending:
            return False                        # closed since the run began, by what another call was told
        self.resting = False
        self.deliver(score, self.take_pending())
        while self.pending and not self.wanted[self.first]:
            self.skip(self.take_pending())
        return self.pending > 0


cdef class Silero:
    """Silero's network (silero.py reads it): the scores of up to 16 windows of as many calls in one run.

    https://github.com/snakers4/silero-vad: windows of 32 ms with the last 4 ms of the one before, reflected at their
    end; the magnitudes of four spectra; four convolutions over these; an LSTM whose state each call keeps; one score.
    """
    cdef readonly int rate
    cdef int window, hop, bins, spectrum        # samples, samples, bins of a spectrum, floats of it with padding
    cdef tuple layers                           # what the pointers lead into
    cdef float *weight[14]
    cdef float rest[2 * UNITS]                  # the state after REST_MS of silence
    cdef float *memory
    cdef float *sound                           # 16 windows with context and reflection
    cdef float *real
    cdef float *imaginary
    cdef float *magnitudes                      # 4 spectra of each window between two of zeros
    cdef float *first                           # what the convolutions give: 4 steps between two of zeros,
    cdef float *second                          # 2,
    cdef float *third                           # 1 and
    cdef float *gated                           # 1 beside the LSTM's output: its next input
    cdef float *gates
    cdef float *cells
    cdef float *scores

    def __cinit__(self, int rate, tuple layers):
        """`layers`: as silero.layers() gives them for this rate; their shapes are checked."""
        cdef Py_buffer view
        self.rate = rate
        self.window = rate * 32 // 1000
        self.hop = rate // 125
        self.bins = self.hop + 1
        self.spectrum = (self.bins + 31) // 32 * 32
        sizes = (2 * self.hop * self.spectrum, 2 * self.hop * self.spectrum, 3 * self.bins * 128, 128, 384 * 64, 64,
                 128 * 64, 64, 64 * 128, 128, 2 * UNITS * 4 * UNITS, 4 * UNITS, UNITS, 1)
        if tuple(len(memoryview(layer).cast("B")) // 4 for layer in layers) != sizes:
            raise ValueError("these are not the layers of this network")
        self.layers = layers
        for i, layer in enumerate(layers):
            borrow(layer, &view, 4)
            self.weight[i] = <float *> view.buf
            PyBuffer_Release(&view)             # `layers` keeps it alive
        self.lay_memory()
        for i in range(REST_MS // WINDOW_MS):
            self.infer(1)
        memcpy(self.rest, self.gated + UNITS, UNITS * sizeof(float))
        memcpy(self.rest + UNITS, self.cells, UNITS * sizeof(float))

    def __dealloc__(self):
        free(self.memory)

    cdef int lay_memory(self) except -1:
        """The arrays between the layers, zeroed: the steps before and after what is convolved stay so."""
        cdef int n = MOST_IN_RUN, sound = 5 * self.hop * n, spectra = 4 * self.spectrum * n
        cdef float *at = <float *> calloc(sound + 2 * spectra + n * (6 * self.bins + 7 * 128 + 64 + 7 * UNITS + 1),
                                          sizeof(float))
        if not at:
            raise MemoryError
        self.memory = self.sound = at
        self.real = self.sound + sound
        self.imaginary = self.real + spectra
        self.magnitudes = self.imaginary + spectra
        self.first = self.magnitudes + n * 6 * self.bins
        self.second = self.first + n * 6 * 128
        self.third = self.second + n * 128
        self.gated = self.third + n * 64
        self.gates = self.gated + n * 2 * UNITS
        self.cells = self.gates + n * 4 * UNITS
        self.scores = self.cells + n * UNITS
        return 0

    def run(self, list calls not None) -> list:
        """The score of the first unscored window of each of these Vads, at most 16; their states go on."""
        cdef Py_ssize_t n = len(calls), i
        cdef Vad vad
        if n > MOST_IN_RUN:
            raise ValueError(f"{n} windows are more than go into a run")
        for i in range(n):
            vad = calls[i]
            if vad.network is not self:
                raise ValueError("this call is heard by another network")
            self.take(vad.pcm + vad.head - vad.context, i)
            memcpy(self.gated + i * 2 * UNITS + UNITS, vad.state, UNITS * sizeof(float))
            memcpy(self.cells + i * UNITS, vad.state + UNITS, UNITS * sizeof(float))
        self.infer(n)
        for i in range(n):
            vad = calls[i]
            memcpy(vad.state, self.gated + i * 2 * UNITS + UNITS, UNITS * sizeof(float))
            memcpy(vad.state + UNITS, self.cells + i * UNITS, UNITS * sizeof(float))
        return [self.scores[i] for i in range(n)]

    cdef void take(self, const int16_t *pcm, Py_ssize_t i) noexcept:
        """A window with its context, as floats, and reflected at its end."""
        cdef int count = self.window + self.window // 8, beyond = self.hop // 2, j
        cdef float *sound = self.sound + i * 5 * self.hop
        for j in range(count):
            sound[j] = pcm[j] * <float> (1.0 / 32768)
        for j in range(beyond):
            sound[count + j] = sound[count - 2 - j]

    cdef void infer(self, int n) noexcept nogil:
        cdef int hop = self.hop, bins = self.bins, i, j, t
        cdef float *re
        cdef float *im
        cdef float *out
        oa_dense(self.sound, 4 * n, 4, hop, 5 * hop, self.weight[0], 2 * hop, self.spectrum // 32, NULL, -INFINITY,
                 self.real, 4 * self.spectrum)
        oa_dense(self.sound, 4 * n, 4, hop, 5 * hop, self.weight[1], 2 * hop, self.spectrum // 32, NULL, -INFINITY,
                 self.imaginary, 4 * self.spectrum)
        for i in range(n):
            for t in range(4):
                re = self.real + (4 * i + t) * self.spectrum
                im = self.imaginary + (4 * i + t) * self.spectrum
                out = self.magnitudes + (6 * i + 1 + t) * bins
                for j in range(bins):
                    out[j] = sqrtf(re[j] * re[j] + im[j] * im[j])
        oa_dense(self.magnitudes, 4 * n, 4, bins, 6 * bins, self.weight[2], 3 * bins, 4, self.weight[3], 0,
                 self.first + 128, 6 * 128)
        oa_dense(self.first, 2 * n, 2, 2 * 128, 6 * 128, self.weight[4], 3 * 128, 2, self.weight[5], 0,
                 self.second, 2 * 64)
        oa_dense(self.second, n, 1, 0, 2 * 64, self.weight[6], 2 * 64, 2, self.weight[7], 0, self.third, 64)
        oa_dense(self.third, n, 1, 0, 64, self.weight[8], 64, 4, self.weight[9], 0, self.gated, 2 * UNITS)
        oa_dense(self.gated, n, 1, 0, 2 * UNITS, self.weight[10], 2 * UNITS, 16, self.weight[11], -INFINITY,
                 self.gates, 4 * UNITS)
        for i in range(n):
            self.scores[i] = self.remember(self.gates + i * 4 * UNITS, self.gated + i * 2 * UNITS + UNITS,
                                           self.cells + i * UNITS)

    cdef float remember(self, const float *gate, float *out, float *cell) noexcept nogil:
        """The LSTM's cells move on by one step, whose gates are there; returns the score that they come to."""
        cdef float total = self.weight[13][0]
        cdef int j
        for j in range(UNITS):
            cell[j] = sigmoid(gate[UNITS + j]) * cell[j] + sigmoid(gate[j]) * tanhf(gate[2 * UNITS + j])
            out[j] = sigmoid(gate[3 * UNITS + j]) * tanhf(cell[j])
            if out[j] > 0:
                total += self.weight[12][j] * out[j]
        return sigmoid(total)


cdef inline float sigmoid(float x) noexcept nogil:
    return 1 / (1 + expf(-x))


# ---- resampler ------------------------------------------------------------------------------------------------------
# A polyphase FIR: the filter belongs to the rate `up` times the input's, and only those products are computed that
# meet a real input sample and a wanted output sample.  Integer arithmetic, so that a sample does not depend on how the
# stream was cut, nor on the machine.

RATES = (8000, 16000, 24000, 48000)
cdef enum:
    LANES = 32              # taps are summed in int32 by this many, then in int64
    STRETCH = 960           # input samples worked on at once
cdef dict _designs = {}     # (rate_in, rate_out) -> _Design, shared by all resamplers of the process


def _lowpass(int half, double passband, double stopband):
    """An equiripple linear-phase lowpass of 2 * half + 1 taps; edges as fractions of the Nyquist frequency.

    Lawson's way to the minimax fit: weighted least squares on a dense grid, repeated, with each point's weight
    multiplied by its last error.  The passband may err 83 times as much as the stopband.  The normal equations
    of a sum of cosines are a Toeplitz matrix plus a Hankel one, so one row of sums gives all of them.
    """
    grid = numpy.linspace(0.0, 1.0, 8 * (half + 1))
    grid = numpy.concatenate([grid[grid < passband], (passband, stopband), grid[grid > stopband]])
    wanted = numpy.where(grid <= passband, 1.0, 0.0)
    care = numpy.where(grid <= passband, 0.012, 1.0)
    waves = numpy.cos(numpy.pi * numpy.outer(numpy.arange(2 * half + 1), grid))
    cosines, row, column = waves[:half + 1], numpy.arange(half + 1)[:, None], numpy.arange(half + 1)
    weight = numpy.ones(len(grid))
    for _ in range(12):
        scale = weight * care * care
        sums = waves @ scale
        side = numpy.linalg.solve((sums[abs(row - column)] + sums[row + column]) / 2, cosines @ (scale * wanted))
        error = numpy.abs(side @ cosines - wanted) * care
        weight *= error / error.max() + 0.001
        weight /= weight.sum()
    return numpy.concatenate([side[:0:-1] / 2, side[:1], side[1:] / 2])


cdef class _Design:
    """The taps of one pair of rates."""
    cdef int up, down       # output rate / input rate in lowest terms
    cdef int taps           # products per output sample, a multiple of LANES
    cdef int shift          # the taps are fixed point with this many fractional bits
    cdef int delay          # of the filter, in output samples
    cdef int16_t[::1] rows  # up rows of `taps`, each reversed: row[j] meets input sample (newest - taps + 1 + j)

    def __init__(self, int rate_in, int rate_out):
        common = numpy.gcd(rate_in, rate_out)
        self.up, self.down = rate_out // common, rate_in // common
        cdef int wide = max(self.up, self.down)     # the filter's own rate / the lower rate
        self.delay = (16 * wide - 1) // self.down if wide > 1 else 0
        taps = self.up * _lowpass(self.delay * self.down, 0.85 / wide, 1.0 / wide) if wide > 1 else numpy.ones(1)
        self.taps = (len(taps) + self.up * LANES - 1) // (self.up * LANES) * LANES
        table = numpy.zeros(self.up * self.taps)
        table[:len(taps)] = taps
        self.fix(table.reshape(self.taps, self.up).T[:, ::-1])

    cdef fix(self, table):
        """To integers, with as many bits as neither a tap nor a sum of LANES products overflows."""
        sizes = numpy.abs(table)
        room = min(32767 / sizes.max(), 65535 / sizes.reshape(-1, LANES).sum(axis=1).max())
        self.shift = int(numpy.log2(room))
        self.rows = numpy.rint(table * 2.0 ** self.shift).astype(numpy.int16).ravel()


cdef inline int16_t filtered(const int16_t *line, const int16_t *row, int taps, int shift) noexcept nogil:
    """One output sample: `taps` inputs from `line` on, times the taps of a row, rounded and saturated."""
    cdef int64_t total = <int64_t> 1 << (shift - 1)
    cdef int32_t part
    cdef int block, lane
    for block in range(taps // LANES):
        part = 0
        for lane in range(LANES):
            part += <int32_t> line[lane] * <int32_t> row[lane]
        total += part
        line += LANES
        row += LANES
    total >>= shift
    return <int16_t> (32767 if total > 32767 else -32768 if total < -32768 else total)


cdef class Resampler:
    """A stream of int16 samples from one of RATES to another.

    After n samples in, exactly ceil(n * rate_out / rate_in) samples are out, from the first push on: 20 ms give
    20 ms.  The output lags `delay` output samples behind: at most 2 ms, when one of the rates is 8000, and less
    in proportion to the lower rate.  Within 0.5 dB up to 0.85 of the lower rate's Nyquist frequency; aliases and
    images below -60 dB.
    """
    cdef readonly int rate_in, rate_out
    cdef readonly int delay         # output samples
    cdef _Design design
    cdef int16_t[::1] line          # the last taps - 1 inputs, then room for STRETCH new ones
    cdef int phase                  # row of the next output
    cdef Py_ssize_t newest          # its newest input, counted from the next input to come

    def __init__(self, int rate_in, int rate_out):
        if rate_in not in RATES or rate_out not in RATES:
            raise ValueError(f"rates are {', '.join(map(str, RATES))} Hz, not {rate_in} to {rate_out}")
        self.design = _designs.get((rate_in, rate_out))
        if self.design is None:
            self.design = _designs[rate_in, rate_out] = _Design(rate_in, rate_out)
        self.rate_in, self.rate_out, self.delay = rate_in, rate_out, self.design.delay
        self.line = numpy.zeros(self.design.taps - 1 + STRETCH, numpy.int16)
        self.phase = self.newest = 0

    def push(self, pcm):
        """int16 samples at rate_in; returns a new int16 array at rate_out."""
        cdef Py_buffer src, dst
        cdef Py_ssize_t count = borrow(pcm, &src, 2), done = 0, some
        out = numpy.empty(self.due(count), numpy.int16)
        cdef const int16_t *samples = <const int16_t *> src.buf
        borrow(out, &dst, 2, PyBUF_WRITABLE)
        cdef int16_t *write = <int16_t *> dst.buf
        while done < count:
            some = min(count - done, STRETCH)
            write += self.work(samples + done, some, write)
            done += some
        PyBuffer_Release(&dst)
        PyBuffer_Release(&src)
        return out

    def flush(self):
        """The last `delay` samples, as if silence followed; the next push begins a new stream."""
        rest = self.push(numpy.zeros(self.delay * self.design.down // self.design.up + 1, numpy.int16))[:self.delay]
        self.line[:] = 0
        self.phase = self.newest = 0
        return rest

    cdef Py_ssize_t due(self, Py_ssize_t count):
        """How many outputs the next `count` inputs will give."""
        cdef Py_ssize_t steps = (count - self.newest) * self.design.up - self.phase
        return (steps + self.design.down - 1) // self.design.down if steps > 0 else 0

    cdef Py_ssize_t work(self, const int16_t *pcm, Py_ssize_t count, int16_t *out) noexcept:
        cdef _Design d = self.design
        cdef int16_t *line = &self.line[0]
        cdef const int16_t *rows = &d.rows[0]
        cdef int up = d.up, taps = d.taps, shift = d.shift, phase = self.phase
        cdef int step = d.down // up, turn = d.down % up
        cdef Py_ssize_t newest = self.newest, made = 0
        memcpy(line + taps - 1, pcm, count * sizeof(int16_t))
        while newest < count:
            out[made] = filtered(line + newest, rows + phase * taps, taps, shift)
            made += 1
            newest += step
            phase += turn
            if phase >= up:
                phase -= up
                newest += 1
        memmove(line, line + count, (taps - 1) * sizeof(int16_t))
        self.newest, self.phase = newest - count, phase
        return made


# ---- histogram ------------------------------------------------------------------------------------------------------
# Gil Tene's HDR layout.  Values fall into powers of two, each cut into equal parts, so that a cell's width is at most
# 1 % (digits=2) of its value; memory never grows.  One writer; readers in other processes may see the count one ahead
# of the sum.

cdef enum:
    COUNT = 0               # values recorded
    SUM = 1
    MIN = 2                 # meaningless while COUNT is 0, so that zeroed memory is an empty histogram
    MAX = 3
    CELLS = 4               # the first cell


cdef class Histogram:
    """Counts of durations in ns.  `buffer`: writable memory of `nbytes`, zeroed or a Histogram's of the same shape."""
    cdef uint64_t[::1] words        # COUNT, SUM, MIN, MAX, then the cells
    cdef int unit                   # log2 of the narrowest cell's width, ns
    cdef int bits                   # log2 of the cells per power of two
    cdef Py_ssize_t last            # index of the last cell, which also takes everything above

    def __init__(self, long long lowest_ns=1_000, long long highest_ns=60_000_000_000, int digits=2, buffer=None):
        if not (0 < lowest_ns < highest_ns and 1 <= digits <= 3):
            raise ValueError("0 < lowest_ns < highest_ns and 1 to 3 digits wanted")
        self.bits = (4, 7, 10)[digits - 1]
        self.unit = max(63 - leading_zeros(lowest_ns) - self.bits, 0)
        self.last = self.cell(highest_ns)
        size = 8 * (CELLS + self.last + 1)
        words = memoryview(bytearray(size) if buffer is None else buffer).cast("B")
        if len(words) != size:
            raise ValueError(f"a buffer of {size} bytes wanted, not {len(words)}")
        self.words = words.cast("Q")

    cdef inline Py_ssize_t cell(self, uint64_t value) noexcept:
        cdef uint64_t steps = value >> self.unit
        cdef int octave = 63 - leading_zeros(steps | 1) - self.bits
        return (octave << self.bits) + <Py_ssize_t> (steps >> octave) if octave > 0 else <Py_ssize_t> steps

    cdef inline uint64_t top(self, Py_ssize_t cell) noexcept:
        """The largest value that falls into a cell."""
        cdef int octave = <int> max((cell >> self.bits) - 1, 0)
        return (<uint64_t> (cell - (octave << self.bits) + 1) << octave << self.unit) - 1

    cpdef void record(self, long long value_ns) noexcept:
        """Adds one value; below 0 counts as 0, above the highest as the highest (max and sum stay exact)."""
        cdef uint64_t value = <uint64_t> value_ns if value_ns > 0 else 0
        cdef uint64_t *word = &self.words[0]
        word[CELLS + min(self.cell(value), self.last)] += 1
        if word[COUNT] == 0 or value < word[MIN]:
            word[MIN] = value
        if value > word[MAX]:
            word[MAX] = value
        word[SUM] += value
        word[COUNT] += 1

    def percentile(self, double p):
        """The value in ns that p % of the values do not exceed: never too low, at most 1 % too high; 0 of none."""
        cdef uint64_t *word = &self.words[0]
        cdef uint64_t total = 0, wanted
        cdef Py_ssize_t cell
        if word[COUNT] == 0:
            return 0
        wanted = <uint64_t> max(1.0, ceil(min(p, 100.0) / 100.0 * word[COUNT]))
        for cell in range(self.last):
            total += word[CELLS + cell]
            if total >= wanted:
                return max(min(self.top(cell), word[MAX]), word[MIN])
        return word[MAX]

    def cumulative(self, bounds_ns):
        """For Prometheus: how many values lie at or below each bound (ascending; exact to a cell)."""
        cdef uint64_t *word = &self.words[0]
        cdef uint64_t total = 0, bound
        cdef Py_ssize_t cell = 0
        counts = []
        for bound in bounds_ns:
            while cell < self.last and self.top(cell) <= bound:
                total += word[CELLS + cell]
                cell += 1
            counts.append(total)
        return counts

    def add(self, Histogram other):
        """Adds all values of a histogram of the same shape."""
        cdef uint64_t *word = &self.words[0]
        cdef uint64_t *more = &other.words[0]
        cdef Py_ssize_t i
        if (self.unit, self.bits, self.last) != (other.unit, other.bits, other.last):
            raise ValueError("histograms of different shape")
        if more[COUNT] == 0:
            return
        word[MIN] = more[MIN] if word[COUNT] == 0 else min(word[MIN], more[MIN])
        word[MAX] = max(word[MAX], more[MAX])
        word[SUM] += more[SUM]
        word[COUNT] += more[COUNT]
        for i in range(CELLS, CELLS + self.last + 1):
            word[i] += more[i]

    def reset(self):
        memset(&self.words[0], 0, self.nbytes)

    @property
    def nbytes(self):
        return 8 * (CELLS + self.last + 1)

    @property
    def count(self):
        return self.words[COUNT]

    @property
    def min(self):
        return self.words[MIN]

    @property
    def max(self):
        return self.words[MAX]

    @property
    def sum(self):
        return self.words[SUM]

    @property
    def mean(self):
        return self.words[SUM] / <double> self.words[COUNT] if self.words[COUNT] else 0.0


# ---- base64 ---------------------------------------------------------------------------------------------------------
# Canonical only: the standard alphabet, padded, no bits left over, nothing in between.

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object, Py_ssize_t *) except NULL

cdef extern from "string.h" nogil:
    const void *memchr(const void *, int, size_t)

cdef uint8_t SEXTET[256]    # character -> 0 to 63, or 0xFF
cdef uint8_t PAIR[4096][2]  # twelve bits -> two characters


cdef void fill_base64() noexcept:
    cdef const uint8_t *letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    cdef int i
    memset(SEXTET, 0xFF, sizeof(SEXTET))
    for i in range(64):
        SEXTET[letters[i]] = <uint8_t> i
    for i in range(4096):
        PAIR[i][0], PAIR[i][1] = letters[i >> 6], letters[i & 63]

fill_base64()


cdef Py_ssize_t decode(const uint8_t *text, Py_ssize_t length, uint8_t *out, Py_ssize_t room) noexcept nogil:
    """The count of bytes written, or -1: not canonical, or more than `room`."""
    cdef Py_ssize_t quads = length // 4, i
    cdef uint32_t a, b, c, d
    if length & 3 or length == 0:
        return -1
    cdef int short_by = (text[length - 1] == c"=") + (text[length - 2] == c"=")
    if 3 * quads - short_by > room:
        return -1
    for i in range(quads - (short_by > 0)):
        a, b, c, d = SEXTET[text[0]], SEXTET[text[1]], SEXTET[text[2]], SEXTET[text[3]]
        if (a | b | c | d) & 0x80:
            return -1
        out[0], out[1], out[2] = <uint8_t> (a << 2 | b >> 4), <uint8_t> (b << 4 | c >> 2), <uint8_t> (c << 6 | d)
        text += 4
        out += 3
    return 3 * quads - short_by if short_by == 0 or decode_short(text, short_by, out) else -1


cdef bint decode_short(const uint8_t *text, int short_by, uint8_t *out) noexcept nogil:
    """The last four characters, of which one or two are padding."""
    cdef uint32_t a = SEXTET[text[0]], b = SEXTET[text[1]], c = SEXTET[text[2]] if short_by == 1 else 0
    cdef uint32_t left_over = c & 0x03 if short_by == 1 else b & 0x0F
    if (a | b | c) & 0x80 or left_over or text[3] != c"=":
        return False
    out[0] = <uint8_t> (a << 2 | b >> 4)
    if short_by == 1:
        out[1] = <uint8_t> (b << 4 | c >> 2)
    return True


cdef uint8_t *encode(const uint8_t *src, Py_ssize_t count, uint8_t *out) noexcept nogil:
    """Writes 4 * ceil(count / 3) characters and returns where they end."""
    cdef Py_ssize_t i
    cdef uint32_t bits
    for i in range(count // 3):
        bits = <uint32_t> src[0] << 16 | <uint32_t> src[1] << 8 | src[2]
        memcpy(out, PAIR[bits >> 12], 2)
        memcpy(out + 2, PAIR[bits & 0xFFF], 2)
        src += 3
        out += 4
    cdef int rest = <int> (count % 3)
    if rest:
        bits = <uint32_t> src[0] << 16 | (<uint32_t> src[1] << 8 if rest == 2 else 0)
        memcpy(out, PAIR[bits >> 12], 2)
        out[2] = PAIR[bits & 0xFFF][0] if rest == 2 else c"="
        out[3] = c"="
        out += 4
    return out


def base64_decode(src, dst):
    """Text (bytes or str) into the memory of `dst`: the count of bytes, or -1 if not canonical or too long."""
    cdef Py_buffer a, b
    cdef Py_ssize_t length, room, count
    cdef const char *text
    if isinstance(src, str):
        text = PyUnicode_AsUTF8AndSize(src, &length)
        room = borrow(dst, &b, 1, PyBUF_WRITABLE)
        count = decode(<const uint8_t *> text, length, <uint8_t *> b.buf, room)
    else:
        length = borrow(src, &a, 1)
        try:
            room = borrow(dst, &b, 1, PyBUF_WRITABLE)
            count = decode(<const uint8_t *> a.buf, length, <uint8_t *> b.buf, room)
        finally:
            PyBuffer_Release(&a)
    PyBuffer_Release(&b)
    return count


def base64_encode(src):
    """Any memory to base64, as bytes."""
    cdef Py_buffer view
    cdef Py_ssize_t count = borrow(src, &view, 1)
    text = PyBytes_FromStringAndSize(NULL, (count + 2) // 3 * 4)
    encode(<const uint8_t *> view.buf, count, <uint8_t *> PyBytes_AS_STRING(text))
    PyBuffer_Release(&view)
    return text


# ---- twilio media ---------------------------------------------------------------------------------------------------
# The media messages of Twilio, and of those who copied it, in one pass.  Inbound, only plain messages are taken: no
# escapes, no character outside ASCII, no surprise anywhere.  All else is left to a JSON parser, so whatever this
# accepts, that would have read alike.

cdef uint8_t PLAIN[256]     # 1 for the characters that stand for themselves inside a string


cdef void fill_plain() noexcept:
    cdef int i
    for i in range(256):
        PLAIN[i] = 0x20 <= i < 0x7F and i != c'"' and i != c"\\"

fill_plain()


cdef struct Cursor:
    const uint8_t *at
    const uint8_t *end

cdef struct Span:           # the inside of a string; start is NULL where there was none, or not a plain one
    const uint8_t *start
    Py_ssize_t length


cdef inline void skip_space(Cursor *c) noexcept nogil:
    while c.at < c.end and (c.at[0] == c" " or 9 <= c.at[0] <= 10 or c.at[0] == 13):
        c.at += 1


cdef inline bint take(Cursor *c, uint8_t wanted) noexcept nogil:
    """Steps over space and then `wanted`, if it is there."""
    skip_space(c)
    if c.at == c.end or c.at[0] != wanted:
        return False
    c.at += 1
    return True


cdef inline bint is_text(Span span, const char *text, Py_ssize_t length) noexcept nogil:
    return span.length == length and memcmp(span.start, text, length) == 0


cdef Span take_string(Cursor *c) noexcept nogil:
    cdef Span span
    span.start, span.length = NULL, 0
    if not take(c, c'"'):
        return span
    cdef const uint8_t *start = c.at
    while c.at < c.end and PLAIN[c.at[0]]:
        c.at += 1
    if c.at == c.end or c.at[0] != c'"':
        return span
    span.start, span.length = start, c.at - start
    c.at += 1
    return span


cdef bint take_plain(Cursor *c) noexcept nogil:
    """A string or a whole number of up to 18 digits."""
    skip_space(c)
    cdef const uint8_t *start = c.at
    while c.at < c.end and c"0" <= c.at[0] <= c"9":
        c.at += 1
    if c.at == start:
        return take_string(c).start != NULL
    return c.at - start <= 18 and (start[0] != c"0" or c.at - start == 1)


cdef Py_ssize_t take_payload(Cursor *c, int16_t *out, Py_ssize_t room, const int16_t *table) noexcept nogil:
    """Base64 of codes into the second half of `out`, and from there, always ahead of the writing, spread over all of it.

    `table` NULL: of samples, little-endian, straight into `out`.
    """
    if not take(c, c'"'):
        return -1
    cdef const uint8_t *quote = <const uint8_t *> memchr(c.at, c'"', c.end - c.at)
    cdef Py_ssize_t count
    if quote == NULL:
        return -1
    if table == NULL:
        count = decode(c.at, quote - c.at, <uint8_t *> out, 2 * room)
        if count < 0 or count & 1:
            return -1
        count >>= 1
    else:
        count = decode(c.at, quote - c.at, <uint8_t *> out + room, room)
        if count < 0:
            return -1
        expand(table, <const uint8_t *> out + room, out, count)
    c.at = quote + 1
    return count


cdef Py_ssize_t take_number(Cursor *c) noexcept nogil:
    """A whole number of up to 15 digits, or such a one as text; -1 for anything else."""
    cdef bint quoted = take(c, c'"')
    cdef const uint8_t *start = c.at
    cdef Py_ssize_t number = 0
    while c.at < c.end and c"0" <= c.at[0] <= c"9" and c.at - start < 16:
        number = 10 * number + (c.at[0] - c"0")
        c.at += 1
    if not 0 < c.at - start < 16 or not quoted and start[0] == c"0" and c.at - start > 1:
        return -1
    if quoted:
        if c.at == c.end or c.at[0] != c'"':
            return -1
        c.at += 1
    return number


cdef Py_ssize_t take_media(Cursor *c, int16_t *out, Py_ssize_t room, const int16_t *table,
                           Py_ssize_t *chunk) noexcept nogil:
    """The object under "media": the count of samples, or -1 unless it has a payload, and no track but inbound.

    Its number is left in `chunk`, unless that is NULL; -1 stays there if it has none.
    """
    cdef Py_ssize_t count = -1
    cdef bint tracked = False
    cdef Span key
    if not take(c, c"{"):
        return -1
    while True:
        key = take_string(c)
        if key.start == NULL or not take(c, c":"):
            return -1
        if is_text(key, "payload", 7):
            if count >= 0:
                return -1
            count = take_payload(c, out, room, table)
            if count < 0:
                return -1
        elif chunk != NULL and is_text(key, "chunk", 5):
            if chunk[0] >= 0:
                return -1
            chunk[0] = take_number(c)
            if chunk[0] < 0:
                return -1
        elif is_text(key, "track", 5):
            if tracked or not is_text(take_string(c), "inbound", 7):
                return -1
            tracked = True
        elif not take_plain(c):
            return -1
        if not take(c, c","):
            return count if take(c, c"}") else -1


cdef Py_ssize_t take_message(Cursor *c, int16_t *out, Py_ssize_t room, const int16_t *table,
                             Py_ssize_t *chunk) noexcept nogil:
    """A whole message: the count of samples, or -1 unless it is an event "media" and nothing follows."""
    cdef Py_ssize_t count = -1
    cdef bint named = False
    cdef Span key
    if not take(c, c"{"):
        return -1
    while True:
        key = take_string(c)
        if key.start == NULL or not take(c, c":"):
            return -1
        if is_text(key, "event", 5):
            if named or not is_text(take_string(c), "media", 5):
                return -1
            named = True
        elif is_text(key, "media", 5):
            if count >= 0:
                return -1
            count = take_media(c, out, room, table, chunk)
            if count < 0:
                return -1
        elif not take_plain(c):
            return -1
        if not take(c, c","):
            break
    if not named or not take(c, c"}"):
        return -1
    skip_space(c)
    return count if c.at == c.end else -1


def twilio_media(message, dst):
    """The mu-law payload of a plain inbound media message into int16 `dst`: the count of samples, at least one.

    -1 for every other message, also one that is too long for `dst`, whose content is then undefined.
    """
    cdef Py_buffer a, b
    cdef Cursor cursor
    cdef Py_ssize_t length = borrow(message, &a, 1), room, count
    try:
        room = borrow(dst, &b, 2, PyBUF_WRITABLE)
    except BaseException:
        PyBuffer_Release(&a)
        raise
    cursor.at = <const uint8_t *> a.buf
    cursor.end = cursor.at + length
    count = take_message(&cursor, <int16_t *> b.buf, room, ULAW, NULL)
    PyBuffer_Release(&a)
    PyBuffer_Release(&b)
    return count


cdef const int16_t *table_of(str encoding):
    return ULAW if encoding == "PCMU" else ALAW if encoding == "PCMA" else NULL


def media_samples(message, dst, str encoding not None):
    """As twilio_media(), of "PCMU", "PCMA" or "L16" (little-endian): (count of samples, number of the chunk).

    The count is -1 for every message that is not plain; the number is -1 where the message has none.
    """
    cdef Py_buffer a, b
    cdef Cursor cursor
    cdef Py_ssize_t length = borrow(message, &a, 1), room, count, chunk = -1
    try:
        room = borrow(dst, &b, 2, PyBUF_WRITABLE)
    except BaseException:
        PyBuffer_Release(&a)
        raise
    cursor.at = <const uint8_t *> a.buf
    cursor.end = cursor.at + length
    count = take_message(&cursor, <int16_t *> b.buf, room, table_of(encoding), &chunk)
    PyBuffer_Release(&a)
    PyBuffer_Release(&b)
    return count, chunk


cdef Py_ssize_t take_chunk(Cursor *c, int16_t *out, Py_ssize_t room, const int16_t *table, const uint8_t *who,
                           Py_ssize_t who_length) noexcept nogil:
    """A whole userStream.chunk of the participant `who`, NULL for one without a name: the count of samples, or -1."""
    cdef Py_ssize_t count = -1
    cdef bint typed = False, named = False
    cdef Span key, name
    if not take(c, c"{"):
        return -1
    while True:
        key = take_string(c)
        if key.start == NULL or not take(c, c":"):
            return -1
        if is_text(key, "type", 4):
            if typed or not is_text(take_string(c), "userStream.chunk", 16):
                return -1
            typed = True
        elif is_text(key, "participant", 11):
            name = take_string(c)
            if named or who == NULL or name.start == NULL or name.length != who_length \
                    or memcmp(name.start, who, who_length) != 0:
                return -1
            named = True
        elif is_text(key, "audioChunk", 10):
            if count >= 0:
                return -1
            count = take_payload(c, out, room, table)
            if count < 0:
                return -1
        elif not take_plain(c):
            return -1
        if not take(c, c","):
            break
    if not typed or named != (who != NULL) or not take(c, c"}"):
        return -1
    skip_space(c)
    return count if c.at == c.end else -1


def audiocodes_chunk(message, dst, str encoding not None, bytes participant):
    """The samples of a plain userStream.chunk of `participant` (None: of nobody's name) into int16 `dst`: the count.

    -1 for every other message, also one that is too long for `dst`, whose content is then undefined.
    """
    cdef Py_buffer a, b
    cdef Cursor cursor
    cdef Py_ssize_t length = borrow(message, &a, 1), room, count
    try:
        room = borrow(dst, &b, 2, PyBUF_WRITABLE)
    except BaseException:
        PyBuffer_Release(&a)
        raise
    cursor.at = <const uint8_t *> a.buf
    cursor.end = cursor.at + length
    count = take_chunk(&cursor, <int16_t *> b.buf, room, table_of(encoding),
                       <const uint8_t *> PyBytes_AS_STRING(participant) if participant is not None else NULL,
                       PyBytes_GET_SIZE(participant) if participant is not None else 0)
    PyBuffer_Release(&a)
    PyBuffer_Release(&b)
    return count


def media_message(bytes prefix not None, pcm, bytes suffix not None, str encoding not None):
    """As twilio_message(), in "PCMA" or (little-endian) "L16"; "PCMU" is twilio_message()'s."""
    cdef Py_buffer view
    cdef uint8_t codes[240]             # a multiple of three, so that padding comes at the end only
    cdef bint linear = encoding == "L16"
    cdef Py_ssize_t count = borrow(pcm, &view, 2), done = 0, some
    cdef Py_ssize_t before = PyBytes_GET_SIZE(prefix), after = PyBytes_GET_SIZE(suffix)
    cdef Py_ssize_t size = 2 * count if linear else count
    message = PyBytes_FromStringAndSize(NULL, before + (size + 2) // 3 * 4 + after)
    cdef uint8_t *out = <uint8_t *> PyBytes_AS_STRING(message)
    memcpy(out, PyBytes_AS_STRING(prefix), before)
    out += before
    if linear:
        out = encode(<const uint8_t *> view.buf, size, out)
    while not linear and done < count:
        some = min(count - done, <Py_ssize_t> sizeof(codes))
        alaw_compress(<const int16_t *> view.buf + done, codes, some)
        out = encode(codes, some, out)
        done += some
    memcpy(out, PyBytes_AS_STRING(suffix), after)
    PyBuffer_Release(&view)
    return message


def twilio_message(bytes prefix not None, pcm, bytes suffix not None):
    """One outgoing media message: prefix, int16 samples as mu-law in base64, suffix."""
    cdef Py_buffer view
    cdef uint8_t codes[240]             # a multiple of three, so that padding comes at the end only
    cdef Py_ssize_t count = borrow(pcm, &view, 2), done = 0, some
    cdef Py_ssize_t before = PyBytes_GET_SIZE(prefix), after = PyBytes_GET_SIZE(suffix)
    message = PyBytes_FromStringAndSize(NULL, before + (count + 2) // 3 * 4 + after)
    cdef uint8_t *out = <uint8_t *> PyBytes_AS_STRING(message)
    memcpy(out, PyBytes_AS_STRING(prefix), before)
    out += before
    while done < count:
        some = min(count - done, <Py_ssize_t> sizeof(codes))
        ulaw_compress(<const int16_t *> view.buf + done, codes, some)
        out = encode(codes, some, out)
        done += some
    memcpy(out, PyBytes_AS_STRING(suffix), after)
    PyBuffer_Release(&view)
    return message
