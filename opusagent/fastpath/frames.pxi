# RFC 6455 section 5.  Opcodes and close codes have their numbers from there.

cdef enum:
    OP_CONTINUATION = 0x0
    OP_TEXT = 0x1
    OP_BINARY = 0x2
    OP_CLOSE = 0x8
    OP_PING = 0x9
    OP_PONG = 0xA


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
