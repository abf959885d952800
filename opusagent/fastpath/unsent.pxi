# What a socket was given and has not taken, told to another process.

cdef enum:
    BYTES_ACKED = 120                   # where this stands in Linux's struct tcp_info, which the C library has older


def bytes_written(int fd) -> int:
    """Bytes that the kernel ever took from whoever wrote to a TCP socket, but for a constant of the connection's; -1
    where it does not say.  A process may be killed before it knows what its last write has done: this tells later."""
    cdef uint8_t info[256]
    cdef uint64_t acked
    cdef int before = 0, after = -1, tries
    cdef unsigned int size
    for tries in range(16):
        size = sizeof(info)
        if posix_ioctl(fd, TIOCOUTQ, &before) < 0 or posix_getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &size) < 0:
            return -1
        if posix_ioctl(fd, TIOCOUTQ, &after) < 0 or size < BYTES_ACKED + 8:
            return -1
        if before == after:             # no acknowledgement came in between
            memcpy(&acked, info + BYTES_ACKED, 8)
            return acked + before
    return -1


def framing_head(int fd, Py_ssize_t unsent) -> bytes:
    """What stands before so many unsent bytes, where a successor finds them."""
    return unsent.to_bytes(8, "little") + bytes_written(fd).to_bytes(8, "little", signed=True)


def unsent_of(int fd, bytes framing not None):
    """(what is still unsent, where it ends in the framing): some may have gone out since it was kept."""
    unsent, wrote = int.from_bytes(framing[:8], "little"), int.from_bytes(framing[8:16], "little", signed=True)
    now = bytes_written(fd)
    since = max(0, now - wrote) if wrote >= 0 and now >= 0 else 0
    return framing[16 + min(since, unsent):16 + unsent], 16 + unsent
