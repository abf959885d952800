# A call's ear: windows, the gate of loudness, and the network behind it.  What is said here for each of them is told
# in audio.py, where they are used.

WINDOW_MS = 32              # what Silero scores at a time, at either rate
BATCH = 16                  # windows scored in one run of the model
ROOM = 8                    # windows a call can hold unscored
SETTLE = 3                  # silent windows the model still hears after speech
REST_MS = 250               # silence that puts the model's state at rest
UNSURE = 0.8                # the most that loudness alone scores
SPEECH = 11.2               # a window this much (10.5 dB) above the noise scores 0.5 by loudness
ABOVE_NOISE = 4.0           # one less than this (6 dB) above it is silent

cdef enum:
    MOST_READY = 8          # ROOM
    MOST_IN_RUN = 16        # BATCH
    UNITS = 128             # of the network's LSTM

cdef double FULL_SCALE = 1 << 30
cdef double QUIETEST = FULL_SCALE * 10 ** -7.1      # -71 dBFS: a line's noise is taken to be at least this
cdef double LOUDEST = FULL_SCALE * 10 ** -3.0       # and at most this: the bounds of its estimate
cdef double LOUD = FULL_SCALE * 10 ** -3.4          # a window above this is for the model to judge, whatever the noise
cdef double VOICED = FULL_SCALE * 10 ** -4.5        # audio.py's definition of voiced
cdef double VOICED_OF_PEAK = 0.001
cdef double NOISE_STEP = 10 ** (0.3 * 32 / 1000)    # the estimate of the noise rises by 3 dB a second
cdef double NOISE_FALL = 0.5                        # and goes half of the way down at once
cdef double NOISE_MARGIN = ABOVE_NOISE
cdef double LOG_SPEECH = log(SPEECH / ABOVE_NOISE)
cdef double MOST_UNSURE = UNSURE
cdef int SETTLING = SETTLE

cdef oa_dense_fn *oa_dense = oa_dense_here()


cdef class EnergyVad:
    """Loudness against the line's own noise: the gate before the model, and without one its stand-in.

    The noise is a minimum that is followed down fast and up slowly.
    """
    cdef readonly double noise          # mean square: the first quiet moment brings it down
    cdef readonly double peak           # the mean square of the loudest window, fading

    def __cinit__(self):
        self.noise = LOUDEST
        self.peak = 0.0

    cpdef double score(self, double level):
        """The score of the next window, of this mean square: 0.0 is silent, 0.5 is 10.5 dB above the noise."""
        cdef double noise = self.noise, above
        if level < noise:
            noise += (level - noise) * NOISE_FALL
        else:
            noise = min(noise * NOISE_STEP, level)
        self.noise = noise = min(max(noise, QUIETEST), LOUDEST)
        self.peak = max(self.peak / NOISE_STEP, level)
        above = level / (noise * NOISE_MARGIN)
        return min(log(above) / (2 * LOG_SPEECH), MOST_UNSURE) if above > 1.0 else 0.0

    @property
    def audible(self) -> float:
        """The mean square above which sound is voiced: as defined in audio.py, and above the noise."""
        return self.threshold()

    cdef inline double threshold(self) noexcept:
        return max(max(VOICED, self.peak * VOICED_OF_PEAK), self.noise * NOISE_MARGIN)


cdef class Calm:
    """How long a caller may be silent before that means anything: windows without speech, up to there, are counted
    here and need not be told.  turns.py says so, and counts by the same position."""
    cdef public int64_t position        # samples of the call that were told or counted
    cdef public int64_t until           # where silence comes to mean something; 0: everything does
    cdef public double below            # the score under which a window is without speech

    def __init__(self, double below):
        self.below = below

    cpdef bint covers(self, double score, int samples) noexcept:
        """True, and it is counted, for a window that need not be told."""
        if score >= self.below or self.position + samples >= self.until:
            return False
        self.position += samples
        return True


cdef class Vad:
    """One call's ear: audio of any chunking becomes windows of 32 ms, each of them scored, in order.

    `on_window(score, position, samples, quiet)` gets every window once: at once where the gate finds it silent or no
    model is there, otherwise from the batch's next run().  `position` is the sample after the window's last one,
    `quiet` how many of its last samples are not voiced: the model's score lags, loudness says where speech ended.
    With `calm`, it does not get those that mean nothing; `notes` has them, where it can take them.
    """
    cdef readonly int rate              # Hz, 8000 or 16000
    cdef readonly int window            # samples
    cdef readonly int context           # samples before a window that the model hears again
    cdef public int64_t position        # samples scored since the call's start; a successor's ear begins further on
    cdef object batch
    cdef object on_window
    cdef Calm calm                      # None: every window is told
    cdef Notes notes                    # of the call's journal; None: it keeps none
    cdef Silero network                 # None: loudness scores
    cdef EnergyVad gate
    cdef int silent                     # silent windows in a row
    cdef bint resting                   # the state is the one of rest
    cdef float state[2 * UNITS]         # the model's memory of this call
    cdef int16_t *pcm                   # context + ROOM windows
    cdef int room                       # samples of it
    cdef int head                       # where in pcm the first unscored window starts,
    cdef int ready                      # where the first incomplete one does,
    cdef int filled                     # and where the next sample goes
    cdef int pending                    # complete windows from head on,
    cdef int first                      # and in these rings where the first of them stands:
    cdef bint wanted[MOST_READY]        # is it for the model?
    cdef int quiet[MOST_READY]

    def __cinit__(self, int rate, batch, on_window, Calm calm=None, Notes notes=None):
        if rate not in (8000, 16000):
            raise ValueError(f"8000 or 16000 Hz, not {rate}")
        self.rate = rate
        self.window = rate * 32 // 1000
        self.context = self.window // 8
        self.batch = batch
        self.on_window = on_window
        self.calm, self.notes = calm, notes
        self.network = batch.network(rate)
        self.gate = EnergyVad()
        self.room = self.context + MOST_READY * self.window
        self.pcm = <int16_t *> calloc(self.room, sizeof(int16_t))
        if not self.pcm:
            raise MemoryError
        self.head = self.ready = self.filled = self.context

    def __dealloc__(self):
        free(self.pcm)

    def push(self, pcm):
        """Hear int16 samples.  More than 256 ms of them run the batch on the spot."""
        cdef Py_buffer view
        cdef Py_ssize_t count = borrow(pcm, &view, 2)
        try:
            self.hear(<const int16_t *> view.buf, count)
        finally:
            PyBuffer_Release(&view)

    cdef int hear(self, const int16_t *sample, Py_ssize_t count) except -1:
        cdef Py_ssize_t n
        while count:
            if self.filled == self.room:
                self.make_room()
            n = min(count, <Py_ssize_t> (self.room - self.filled))
            memcpy(self.pcm + self.filled, sample, n * sizeof(int16_t))
            self.filled += n
            sample += n
            count -= n
            while self.filled - self.ready >= self.window:
                self.complete()
        return 0

    def close(self):
        """The call is over: windows that wait are forgotten."""
        self.batch.forget(self)
        self.pending = 0

    cdef int make_room(self) except -1:
        cdef int by
        if self.head == self.context:           # all of it waits
            self.batch.run()
        by = self.head - self.context
        if not by:
            raise RuntimeError("a batch ran and left windows unscored")
        memmove(self.pcm, self.pcm + by, (self.filled - by) * sizeof(int16_t))
        self.head -= by
        self.ready -= by
        self.filled -= by
        return 0

    cdef int complete(self) except -1:
        """A window is whole: score it here if that takes no model, otherwise leave it to the batch."""
        cdef double level = mean_square(self.pcm + self.ready, self.window)
        cdef double score = self.gate.score(level)
        cdef int quiet, at
        self.ready += self.window
        quiet = self.not_voiced(level)
        self.silent = 0 if score > 0.0 or level > LOUD else self.silent + 1
        if self.network is None:
            return self.deliver(score, quiet)
        if not self.pending and self.silent > SETTLING:
            return self.skip(quiet)
        at = (self.first + self.pending) % MOST_READY
        self.wanted[at] = self.silent <= SETTLING
        self.quiet[at] = quiet
        self.pending += 1
        if self.pending == 1:
            self.batch.wait(self)
        return 0

    cdef int not_voiced(self, double level) noexcept:
        """How many samples at the end of the window that is now complete are not voiced, in quarters of it."""
        cdef double audible = self.gate.threshold()
        cdef int quarter = self.window // 4, quiet
        if level * 4 <= audible:
            return self.window
        for quiet in range(0, self.window, quarter):
            if mean_square(self.pcm + self.ready - quiet - quarter, quarter) > audible:
                return quiet
        return self.window

    cdef int skip(self, int quiet) except -1:
        """A silent window: the model need not hear it, and is found at rest by the next one that it does.

        Left where it was, it would take the next noise for speech; zeroed, it would miss soft beginnings.
        """
        if not self.resting:
            memcpy(self.state, self.network.rest, sizeof(self.state))
            self.resting = True
        return self.deliver(0.0, quiet)

    cdef int deliver(self, double score, int quiet) except -1:
        self.head += self.window
        self.position += self.window
        if self.calm is not None and (self.notes is None or self.notes.ready) and self.calm.covers(score, self.window):
            return 0 if self.notes is None else self.notes.window(score, self.position, self.window, quiet)
        self.on_window(score, self.position, self.window, quiet)
        return 0

    cdef inline int take_pending(self) noexcept:
        """The quiet samples of the first window that waits, which does so no longer."""
        cdef int quiet = self.quiet[self.first]
        self.first = (self.first + 1) % MOST_READY
        self.pending -= 1
        return quiet

    def scored(self, double score):
        """For the batch: the score of the first window that waits.  True if another one waits for the model."""
        if not self.pending:
            return False                        # closed since the run began, by what another call was told
        self.resting = False
        self.deliver(score, self.take_pending())
        while self.pending and not self.wanted[self.first]:
            self.skip(self.take_pending())
        return self.pending > 0


cdef class Silero:
    """Silero's network (silero.py reads it): the scores of up to 16 windows of as many calls in one run.

    https://github.com/snakers4/silero-vad: windows of 32 ms with the last 4 ms of the one before, reflected at their
    end; the magnitudes of four spectra; four convolutions over these; an LSTM whose state each call keeps; one score.
    """
    cdef readonly int rate
    cdef int window, hop, bins, spectrum        # samples, samples, bins of a spectrum, floats of it with padding
    cdef tuple layers                           # what the pointers lead into
    cdef float *weight[14]
    cdef float rest[2 * UNITS]                  # the state after REST_MS of silence
    cdef float *memory
    cdef float *sound                           # 16 windows with context and reflection
    cdef float *real
    cdef float *imaginary
    cdef float *magnitudes                      # 4 spectra of each window between two of zeros
    cdef float *first                           # what the convolutions give: 4 steps between two of zeros,
    cdef float *second                          # 2,
    cdef float *third                           # 1 and
    cdef float *gated                           # 1 beside the LSTM's output: its next input
    cdef float *gates
    cdef float *cells
    cdef float *scores

    def __cinit__(self, int rate, tuple layers):
        """`layers`: as silero.layers() gives them for this rate; their shapes are checked."""
        cdef Py_buffer view
        self.rate = rate
        self.window = rate * 32 // 1000
        self.hop = rate // 125
        self.bins = self.hop + 1
        self.spectrum = (self.bins + 31) // 32 * 32
        sizes = (2 * self.hop * self.spectrum, 2 * self.hop * self.spectrum, 3 * self.bins * 128, 128, 384 * 64, 64,
                 128 * 64, 64, 64 * 128, 128, 2 * UNITS * 4 * UNITS, 4 * UNITS, UNITS, 1)
        if tuple(len(memoryview(layer).cast("B")) // 4 for layer in layers) != sizes:
            raise ValueError("these are not the layers of this network")
        self.layers = layers
        for i, layer in enumerate(layers):
            borrow(layer, &view, 4)
            self.weight[i] = <float *> view.buf
            PyBuffer_Release(&view)             # `layers` keeps it alive
        self.lay_memory()
        for i in range(REST_MS // WINDOW_MS):
            self.infer(1)
        memcpy(self.rest, self.gated + UNITS, UNITS * sizeof(float))
        memcpy(self.rest + UNITS, self.cells, UNITS * sizeof(float))

    def __dealloc__(self):
        free(self.memory)

    cdef int lay_memory(self) except -1:
        """The arrays between the layers, zeroed: the steps before and after what is convolved stay so."""
        cdef int n = MOST_IN_RUN, sound = 5 * self.hop * n, spectra = 4 * self.spectrum * n
        cdef float *at = <float *> calloc(sound + 2 * spectra + n * (6 * self.bins + 7 * 128 + 64 + 7 * UNITS + 1),
                                          sizeof(float))
        if not at:
            raise MemoryError
        self.memory = self.sound = at
        self.real = self.sound + sound
        self.imaginary = self.real + spectra
        self.magnitudes = self.imaginary + spectra
        self.first = self.magnitudes + n * 6 * self.bins
        self.second = self.first + n * 6 * 128
        self.third = self.second + n * 128
        self.gated = self.third + n * 64
        self.gates = self.gated + n * 2 * UNITS
        self.cells = self.gates + n * 4 * UNITS
        self.scores = self.cells + n * UNITS
        return 0

    def run(self, list calls not None) -> list:
        """The score of the first unscored window of each of these Vads, at most 16; their states go on."""
        cdef Py_ssize_t n = len(calls), i
        cdef Vad vad
        if n > MOST_IN_RUN:
            raise ValueError(f"{n} windows are more than go into a run")
        for i in range(n):
            vad = calls[i]
            if vad.network is not self:
                raise ValueError("this call is heard by another network")
            self.take(vad.pcm + vad.head - vad.context, i)
            memcpy(self.gated + i * 2 * UNITS + UNITS, vad.state, UNITS * sizeof(float))
            memcpy(self.cells + i * UNITS, vad.state + UNITS, UNITS * sizeof(float))
        self.infer(n)
        for i in range(n):
            vad = calls[i]
            memcpy(vad.state, self.gated + i * 2 * UNITS + UNITS, UNITS * sizeof(float))
            memcpy(vad.state + UNITS, self.cells + i * UNITS, UNITS * sizeof(float))
        return [self.scores[i] for i in range(n)]

    cdef void take(self, const int16_t *pcm, Py_ssize_t i) noexcept:
        """A window with its context, as floats, and reflected at its end."""
        cdef int count = self.window + self.window // 8, beyond = self.hop // 2, j
        cdef float *sound = self.sound + i * 5 * self.hop
        for j in range(count):
            sound[j] = pcm[j] * <float> (1.0 / 32768)
        for j in range(beyond):
            sound[count + j] = sound[count - 2 - j]

    cdef void infer(self, int n) noexcept nogil:
        cdef int hop = self.hop, bins = self.bins, i, j, t
        cdef float *re
        cdef float *im
        cdef float *out
        oa_dense(self.sound, 4 * n, 4, hop, 5 * hop, self.weight[0], 2 * hop, self.spectrum // 32, NULL, -INFINITY,
                 self.real, 4 * self.spectrum)
        oa_dense(self.sound, 4 * n, 4, hop, 5 * hop, self.weight[1], 2 * hop, self.spectrum // 32, NULL, -INFINITY,
                 self.imaginary, 4 * self.spectrum)
        for i in range(n):
            for t in range(4):
                re = self.real + (4 * i + t) * self.spectrum
                im = self.imaginary + (4 * i + t) * self.spectrum
                out = self.magnitudes + (6 * i + 1 + t) * bins
                for j in range(bins):
                    out[j] = sqrtf(re[j] * re[j] + im[j] * im[j])
        oa_dense(self.magnitudes, 4 * n, 4, bins, 6 * bins, self.weight[2], 3 * bins, 4, self.weight[3], 0,
                 self.first + 128, 6 * 128)
        oa_dense(self.first, 2 * n, 2, 2 * 128, 6 * 128, self.weight[4], 3 * 128, 2, self.weight[5], 0,
                 self.second, 2 * 64)
        oa_dense(self.second, n, 1, 0, 2 * 64, self.weight[6], 2 * 64, 2, self.weight[7], 0, self.third, 64)
        oa_dense(self.third, n, 1, 0, 64, self.weight[8], 64, 4, self.weight[9], 0, self.gated, 2 * UNITS)
        oa_dense(self.gated, n, 1, 0, 2 * UNITS, self.weight[10], 2 * UNITS, 16, self.weight[11], -INFINITY,
                 self.gates, 4 * UNITS)
        for i in range(n):
            self.scores[i] = self.remember(self.gates + i * 4 * UNITS, self.gated + i * 2 * UNITS + UNITS,
                                           self.cells + i * UNITS)

    cdef float remember(self, const float *gate, float *out, float *cell) noexcept nogil:
        """The LSTM's cells move on by one step, whose gates are there; returns the score that they come to."""
        cdef float total = self.weight[13][0]
        cdef int j
        for j in range(UNITS):
            cell[j] = sigmoid(gate[UNITS + j]) * cell[j] + sigmoid(gate[j]) * tanhf(gate[2 * UNITS + j])
            out[j] = sigmoid(gate[3 * UNITS + j]) * tanhf(cell[j])
            if out[j] > 0:
                total += self.weight[12][j] * out[j]
        return sigmoid(total)


cdef inline float sigmoid(float x) noexcept nogil:
    return 1 / (1 + expf(-x))
