"""What may be used once: the nonces of signatures and of tickets, remembered for as long as they could be used again.

They are kept in memory that workers share, so that what one of them has seen none takes again.  The rule: when there is
no room to remember a nonce, it is refused.
"""
import fcntl
import mmap
import os
import struct
from hashlib import blake2b

ENTRY = struct.Struct("<16sd")      # digest of key and nonce, until when it counts (seconds since 1970)
LOOKS = 32                          # entries in which a nonce may be


class SharedNonces:
    """Made before the workers are forked.  `take` is the only way in; two workers never do it at the same time."""

    __slots__ = ("_fd", "_memory", "_entries")

    def __init__(self, entries: int = 1 << 16):
        self._entries = entries
        self._fd = os.memfd_create("nonces", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, (entries + LOOKS) * ENTRY.size)
        self._memory = mmap.mmap(self._fd, 0)       # untouched pages cost nothing

    def __del__(self):
        os.close(self._fd)

    def take(self, key: str, nonce: str, now: float, until: float) -> bool:
        """True the first time that `nonce` is used with `key`, as long as it is remembered: `until`."""
        digest = blake2b(f"{len(key)}:{key}{nonce}".encode("utf-8", "replace"), digest_size=16).digest()
        begin = int.from_bytes(digest[:8], "little") % self._entries
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            return self._take(begin, digest, now, until)
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def _take(self, begin: int, digest: bytes, now: float, until: float) -> bool:
        free = None
        for at in range(begin * ENTRY.size, (begin + LOOKS) * ENTRY.size, ENTRY.size):
            kept, its_until = ENTRY.unpack_from(self._memory, at)
            if its_until < now:
                free = at if free is None else free
            elif kept == digest:
                return False
        if free is None:
            return False
        ENTRY.pack_into(self._memory, free, digest, until)
        return True
