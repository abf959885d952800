# Bit for bit as the ITU's reference software (G.191).  Decoding is a table.  Encoding needs the position of the
# highest bit and the four bits below it: that is what a float32 keeps, so converting does it, four samples at a time.
# (audioop rounds some negative samples away from zero in mu-law, even -1 to -8; the ITU's software does not.)

cdef int16_t ULAW[256]      # code -> sample
cdef int16_t ALAW[256]

ctypedef void compressor(const int16_t *src, uint8_t *dst, Py_ssize_t count) noexcept nogil


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
