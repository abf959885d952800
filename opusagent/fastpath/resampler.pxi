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
        cdef Py_ssize_t count = borrow(pcm, &src, 2)
        out = numpy.empty(self.due(count), numpy.int16)
        borrow(out, &dst, 2, PyBUF_WRITABLE)
        self.convert(<const int16_t *> src.buf, count, <int16_t *> dst.buf)
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

    cdef Py_ssize_t convert(self, const int16_t *pcm, Py_ssize_t count, int16_t *out) noexcept:
        """As push(), into memory with room for due(count); which may be `pcm`'s own where the rate does not grow."""
        cdef Py_ssize_t done, made = 0
        for done in range(0, count, STRETCH):
            made += self.work(pcm + done, min(count - done, <Py_ssize_t> STRETCH), out + made)
        return made

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
