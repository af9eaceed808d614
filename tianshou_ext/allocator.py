"""What the C library does with freed memory."""

from __future__ import annotations

import contextlib
import ctypes


def keep_freed_memory() -> None:
    """Let the process keep freed pieces of up to 32 MB for its next allocations.

    Else glibc returns each to the system, which clears it page by page when it is wanted again; the
    activations of CQL's critics are 16 MB each, at every step. Elsewhere than on glibc: nothing.
    """
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 1 << 25)
        mallopt(trim_threshold, 1 << 30)
