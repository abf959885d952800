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

cdef struct Reading:        # a message and the room for its samples, both borrowed
    Py_buffer message
    Py_buffer samples
    Cursor cursor           # at the message's first byte
    int16_t *out
    Py_ssize_t room         # samples

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
    """Base64 of codes into the second half of `out`; from there, always ahead of the writing, spread over all of it.

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


cdef int begin(Reading *reading, object message, object dst) except -1:
    """Borrows both; after an error there is nothing to end()."""
    cdef Py_ssize_t length = borrow(message, &reading.message, 1)
    try:
        reading.room = borrow(dst, &reading.samples, 2, PyBUF_WRITABLE)
    except BaseException:
        PyBuffer_Release(&reading.message)
        raise
    reading.out = <int16_t *> reading.samples.buf
    reading.cursor.at = <const uint8_t *> reading.message.buf
    reading.cursor.end = reading.cursor.at + length
    return 0


cdef void end(Reading *reading) noexcept:
    PyBuffer_Release(&reading.message)
    PyBuffer_Release(&reading.samples)


cdef const int16_t *table_of(str encoding):
    return ULAW if encoding == "PCMU" else ALAW if encoding == "PCMA" else NULL


def twilio_media(message, dst):
    """The mu-law payload of a plain inbound media message into int16 `dst`: the count of samples, at least one.

    -1 for every other message, also one that is too long for `dst`, whose content is then undefined.
    """
    cdef Reading reading
    begin(&reading, message, dst)
    cdef Py_ssize_t count = take_message(&reading.cursor, reading.out, reading.room, ULAW, NULL)
    end(&reading)
    return count


def media_samples(message, dst, str encoding not None):
    """As twilio_media(), of "PCMU", "PCMA" or "L16" (little-endian): (count of samples, number of the chunk).

    The count is -1 for every message that is not plain; the number is -1 where the message has none.
    """
    cdef Reading reading
    cdef Py_ssize_t chunk = -1
    begin(&reading, message, dst)
    cdef Py_ssize_t count = take_message(&reading.cursor, reading.out, reading.room, table_of(encoding), &chunk)
    end(&reading)
    return count, chunk


def audiocodes_chunk(message, dst, str encoding not None, bytes participant):
    """The samples of a plain userStream.chunk of `participant` (None: of nobody's name) into int16 `dst`: the count.

    -1 for every other message, also one that is too long for `dst`, whose content is then undefined.
    """
    cdef Reading reading
    cdef const uint8_t *who = NULL
    cdef Py_ssize_t who_length = 0
    if participant is not None:
        who, who_length = <const uint8_t *> PyBytes_AS_STRING(participant), PyBytes_GET_SIZE(participant)
    begin(&reading, message, dst)
    cdef Py_ssize_t count = take_chunk(&reading.cursor, reading.out, reading.room, table_of(encoding), who, who_length)
    end(&reading)
    return count


cdef bytes written(bytes prefix, object pcm, bytes suffix, compressor *compress):
    """`compress` NULL: the samples as they are."""
    cdef Py_buffer view
    cdef uint8_t codes[240]             # a multiple of three, so that padding comes at the end only
    cdef Py_ssize_t count = borrow(pcm, &view, 2), done = 0, some
    cdef Py_ssize_t before = PyBytes_GET_SIZE(prefix), after = PyBytes_GET_SIZE(suffix)
    cdef Py_ssize_t size = count if compress else 2 * count
    message = PyBytes_FromStringAndSize(NULL, before + (size + 2) // 3 * 4 + after)
    cdef uint8_t *out = <uint8_t *> PyBytes_AS_STRING(message)
    memcpy(out, PyBytes_AS_STRING(prefix), before)
    out += before
    if compress == NULL:
        out = encode(<const uint8_t *> view.buf, size, out)
    while compress and done < count:
        some = min(count - done, <Py_ssize_t> sizeof(codes))
        compress(<const int16_t *> view.buf + done, codes, some)
        out = encode(codes, some, out)
        done += some
    memcpy(out, PyBytes_AS_STRING(suffix), after)
    PyBuffer_Release(&view)
    return message


def twilio_message(bytes prefix not None, pcm, bytes suffix not None):
    """One outgoing media message: prefix, int16 samples as mu-law in base64, suffix."""
    return written(prefix, pcm, suffix, ulaw_compress)


def media_message(bytes prefix not None, pcm, bytes suffix not None, str encoding not None):
    """As twilio_message(), in "PCMU", "PCMA" or (little-endian) "L16"."""
    cdef compressor *compress = NULL
    if encoding == "PCMU":
        compress = ulaw_compress
    elif encoding == "PCMA":
        compress = alaw_compress
    return written(prefix, pcm, suffix, compress)
