cdef class Track:
    """The agent's side of a recording, from the caller's position `done` on; what nobody said is silence.

    What is sent stands behind what was sent before; or, where the caller is more than `jitter` samples beyond that, at
    his position.  More than `most` samples ahead of `done` nothing is added to.  The plain twin is in the tests.
    """
    cdef readonly int64_t done
    cdef int64_t end                    # position after the last of what was sent
    cdef int64_t jitter, most
    cdef int16_t[::1] pcm               # from `done` to `end`, and room

    def __init__(self, int64_t done, int64_t jitter, int64_t most):
        self.done, self.end = done, done - jitter - 1
        self.jitter, self.most = jitter, most
        self.pcm = numpy.zeros(0, numpy.int16)

    @property
    def ahead(self) -> int:
        """Samples there are from `done` on."""
        return max(0, self.end - self.done)

    cdef int put(self, const int16_t *pcm, Py_ssize_t count, int64_t written) except -1:
        """So much is sent, while the caller stands at `written`."""
        cdef int64_t ahead = max(0, self.end - self.done)
        cdef int64_t start = max(self.done, self.end if written - self.end <= self.jitter else written) - self.done
        if ahead > self.most:
            return 0
        if start + count > self.pcm.shape[0]:
            grown = numpy.zeros(2 * (start + count), numpy.int16)
            grown[:ahead] = self.pcm[:ahead]
            self.pcm = grown
        memset(&self.pcm[ahead], 0, (start - ahead) * sizeof(int16_t))
        memcpy(&self.pcm[start], pcm, count * sizeof(int16_t))
        self.end = self.done + start + count
        return 0

    def sent(self, pcm, int64_t written):
        """int16 samples."""
        cdef Py_buffer view
        cdef Py_ssize_t count = borrow(pcm, &view, 2)
        try:
            if count:
                self.put(<const int16_t *> view.buf, count, written)
        finally:
            PyBuffer_Release(&view)

    def cut(self, int64_t written):
        """What was sent and would be heard behind `written` never will be."""
        self.end = min(self.end, written)

    def take(self, Py_ssize_t count):
        """The next `count` samples of the recording, or fewer if silence follows; `done` is behind them."""
        cdef Py_ssize_t ahead = max(0, self.end - self.done), taken = min(count, ahead)
        pcm = numpy.array(self.pcm[:taken])
        if ahead > taken:
            memmove(&self.pcm[0], &self.pcm[taken], (ahead - taken) * sizeof(int16_t))
        self.done += count
        return pcm
