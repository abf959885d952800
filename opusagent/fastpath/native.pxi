cdef extern from "fastpath/native.h":
    ctypedef struct oa_utf8:
        uint8_t need
        uint8_t lo
        uint8_t hi
    void oa_xor(uint8_t *p, size_t n, uint32_t key) noexcept nogil
    uint32_t oa_rotate(uint32_t key, unsigned int offset) noexcept nogil
    bint oa_utf8_push(oa_utf8 *s, const uint8_t *p, size_t n) noexcept nogil
    int64_t oa_now() noexcept nogil
    void oa_soon(const void *p, size_t n) noexcept nogil
    int leading_zeros(uint64_t x) noexcept nogil
    uint64_t oa_load(const uint64_t *p) noexcept nogil
    void oa_store(uint64_t *p, uint64_t v) noexcept nogil
    uint64_t oa_swap(uint64_t *p, uint64_t v) noexcept nogil
    void oa_fence() noexcept nogil
    ssize_t oa_recv(int fd, void *to, size_t n) noexcept nogil
    ssize_t oa_send(int fd, const void *from_, size_t n) noexcept nogil
    int oa_epoll(int ep, epoll_event *events, int n, int64_t ns) noexcept nogil
    int oa_spin(int ep, epoll_event *events, int n, int64_t ns, int64_t spin) noexcept nogil
    ctypedef void oa_dense_fn(const float *src, int rows, int per, int stride, int group, const float *w, int depth,
                              int panels, const float *bias, float floor, float *out, int out_group) noexcept nogil
    oa_dense_fn *oa_dense_here() noexcept nogil

cdef extern from "unistd.h" nogil:
    int close_fd "close"(int fd)
    ssize_t posix_write "write"(int fd, const void *buf, size_t n)
    int usleep(unsigned int us)
cdef extern from "sys/mman.h" nogil:
    void *posix_mmap "mmap"(void *at, size_t n, int protection, int flags, int fd, int64_t offset)
    int posix_munmap "munmap"(void *at, size_t n)
    enum: PROT_READ, MAP_SHARED, MAP_POPULATE
    void *MAP_FAILED
cdef extern from "errno.h" nogil:
    int errno
    enum: EAGAIN, EINTR
cdef extern from "sys/socket.h" nogil:
    int posix_shutdown "shutdown"(int fd, int how)
    int posix_setsockopt "setsockopt"(int fd, int level, int name, const void *value, unsigned int size)
    int posix_getsockopt "getsockopt"(int fd, int level, int name, void *value, unsigned int *size)
    enum: SHUT_WR
cdef extern from "netinet/in.h" nogil:
    enum: IPPROTO_TCP
cdef extern from "netinet/tcp.h" nogil:
    enum: TCP_QUICKACK, TCP_INFO
cdef extern from "sys/ioctl.h" nogil:
    int posix_ioctl "ioctl"(int fd, unsigned long request, int *value)
    enum: TIOCOUTQ
cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int ep, int what, int fd, epoll_event *event)
    int epoll_wait(int ep, epoll_event *events, int n, int timeout)
    enum: EPOLLIN, EPOLLOUT, EPOLLHUP, EPOLLERR, EPOLL_CLOEXEC
    enum: EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD
