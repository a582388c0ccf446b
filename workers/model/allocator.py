"""Keeps freed memory in the process instead of giving it back after every layer.

Exists because the temporaries of a step are large enough for glibc to map and unmap them one by
one, and the page faults of fresh mappings then cost more than the arithmetic: with a batch of 32
a step of a small model takes a third longer. A process that runs models calls this once, early.
"""

from __future__ import annotations

import ctypes
import platform

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_MMAP_THRESHOLD_BYTES = 32 * 2**20  # the most that glibc takes
_TRIM_THRESHOLD_BYTES = 2**30


def keep_freed_memory() -> bool:
    """Reuse up to 1 GiB of freed memory, in pieces of up to 32 MiB.

    Returns:
        False where the C library has no such setting (anything but glibc); nothing changes there.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mapped = mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
    return bool(mapped and mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES))
