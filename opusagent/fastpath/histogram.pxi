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
