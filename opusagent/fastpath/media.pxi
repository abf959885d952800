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


cdef Py_ssize_t unpack(const uint8_t *text, Py_ssize_t length, int16_t *out, Py_ssize_t room,
                       const int16_t *table) noexcept nogil:
    """Base64 of codes into the second half of `out`; from there, always ahead of the writing, spread over all of it.

    `table` NULL: of samples, straight into `out`.  The count of samples, or -1: not canonical, not whole, or too many.
    """
    cdef Py_ssize_t count
    if table == NULL:
        count = decode(text, length, <uint8_t *> out, 2 * room)
        return -1 if count < 0 or count & 1 else count >> 1
    count = decode(text, length, <uint8_t *> out + room, room)
    if count > 0:
        expand(table, <const uint8_t *> out + room, out, count)
    return count


cdef Py_ssize_t take_payload(Cursor *c, int16_t *out, Py_ssize_t room, const int16_t *table) noexcept nogil:
    if not take(c, c'"'):
        return -1
    cdef const uint8_t *quote = <const uint8_t *> memchr(c.at, c'"', c.end - c.at)
    if quote == NULL:
        return -1
    cdef Py_ssize_t count = unpack(c.at, quote - c.at, out, room, table)
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

    Its number is left in `chunk`; -1 stays there if it has none.
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
        elif is_text(key, "chunk", 5):
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


cdef struct Stream:         # messages of one "type" that carry a stream of audio
    Span type
    Span field              # the name of what holds the payload
    Span who                # the participant; NULL: one without a name


cdef Py_ssize_t take_streamed(Cursor *c, int16_t *out, Py_ssize_t room, const int16_t *table, Stream *stream
                              ) noexcept nogil:
    """A whole message of the stream: the count of samples, or -1 for any other, also of another participant's."""
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
            if typed or not is_text(take_string(c), <const char *> stream.type.start, stream.type.length):
                return -1
            typed = True
        elif is_text(key, "participant", 11):
            name = take_string(c)
            if named or stream.who.start == NULL or name.start == NULL \
                    or not is_text(name, <const char *> stream.who.start, stream.who.length):
                return -1
            named = True
        elif is_text(key, <const char *> stream.field.start, stream.field.length):
            if count >= 0:
                return -1
            count = take_payload(c, out, room, table)
            if count < 0:
                return -1
        elif not take_plain(c):
            return -1
        if not take(c, c","):
            break
    if not typed or named != (stream.who.start != NULL) or not take(c, c"}"):
        return -1
    skip_space(c)
    return count if c.at == c.end else -1


cdef Span span_of(bytes text):
    """NULL for None; valid while `text` is."""
    cdef Span span
    span.start, span.length = NULL, 0
    if text is not None:
        span.start, span.length = <const uint8_t *> PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text)
    return span
