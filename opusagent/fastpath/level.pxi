# How loud a stretch of audio is.

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
