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
