"""Keep freed memory in the process between steps."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_ONE_GIB = 1 << 30


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to reuse large blocks instead of returning them to the kernel.

    A training step frees and takes the same activations again; returned to the kernel, every page of them faults
    anew (docs/training.md has the measurement). Does nothing where the C library is not glibc.

    Returns: whether the setting was made.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, _ONE_GIB) and mallopt(_M_TRIM_THRESHOLD, _ONE_GIB))
