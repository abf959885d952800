# What a call's journal notes of frames that need no decision: lines as calls/journal.py writes them, made here.

cdef enum:
    MOST_NOTED = 8192                   # bytes of a message that is noted here

cdef extern from "Python.h":
    char *PyOS_double_to_string(double, char, int, int, int *) except NULL
    void PyMem_Free(void *)
    int Py_DTSF_ADD_DOT_0

cdef uint8_t line_room[2 * MOST_NOTED + 128]    # the line being made: a character is escaped with one more at most


cdef inline uint8_t *put_text(uint8_t *out, const char *text) noexcept:
    cdef Py_ssize_t length = strlen(text)
    memcpy(out, text, length)
    return out + length


cdef uint8_t *put_number(uint8_t *out, int64_t number) noexcept:
    cdef uint8_t digits[20]
    cdef int count = 0
    cdef uint64_t rest = <uint64_t> number
    if number < 0:
        out[0] = c"-"
        out += 1
        rest = 0 - rest
    while True:
        digits[count] = <uint8_t> (c"0" + rest % 10)
        count += 1
        rest //= 10
        if not rest:
            break
    while count:
        count -= 1
        out[0] = digits[count]
        out += 1
    return out


cdef uint8_t *put_real(uint8_t *out, double number) except NULL:
    """The shortest digits that are read as this number again."""
    cdef char *text = PyOS_double_to_string(number, c"r", 0, Py_DTSF_ADD_DOT_0, NULL)
    out = put_text(out, text)
    PyMem_Free(text)
    return out


cdef uint8_t *put_plain(uint8_t *out, const uint8_t *text, Py_ssize_t length) noexcept:
    """As the inside of a string: ASCII without a backslash, and of control characters only tabs and ends of lines."""
    cdef Py_ssize_t i
    for i in range(length):
        if text[i] == c'"' or text[i] < 0x20:
            out[0] = c"\\"
            out[1] = c'"' if text[i] == c'"' else c"n" if text[i] == 10 else c"r" if text[i] == 13 else c"t"
            out += 2
        else:
            out[0] = text[i]
            out += 1
    return out


cdef class Notes:
    """A journal's, for what passes its call by: each line is kept at once, behind those before it.

    While an entry of the journal is open its lines wait: then this is not `ready`, and every frame goes the ordinary
    way, on which it is a nested entry.
    """
    cdef public int64_t time            # ns: the last reading of the call's clock
    cdef public bint ready              # a line may follow
    cdef public object append           # where lines go: called with bytes

    cdef int message(self, int opcode, const uint8_t *message, Py_ssize_t length, int64_t now) except -1:
        """A plain one, which came at `now`, ns; that was read once."""
        cdef uint8_t *out = put_text(line_room, b'["message",[')
        out = put_number(out, opcode)
        out = put_text(out, b',"')
        out = put_plain(out, message, length) if opcode == OP_TEXT else encode(message, length, out)
        out = put_text(out, b'"],[')
        out = put_number(out, now - self.time)
        self.time = now
        return self.ends(put_text(out, b"]]\n"))

    cdef int window(self, double score, int64_t position, int samples, int quiet) except -1:
        """One that means nothing."""
        cdef uint8_t *out = put_real(put_text(line_room, b'["window",['), score)
        out = put_number(put_text(out, b","), position)
        out = put_number(put_text(out, b","), samples)
        out = put_number(put_text(out, b","), quiet)
        return self.ends(put_text(out, b"],[]]\n"))

    cdef int frame(self) except -1:
        """One has gone out."""
        self.append(b'["frame",[],[]]\n')
        return 0

    cdef int ends(self, uint8_t *end) except -1:
        self.append(PyBytes_FromStringAndSize(<char *> line_room, end - line_room))
        return 0
