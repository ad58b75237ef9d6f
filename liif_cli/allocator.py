"""Keeping freed memory for the next tensor, where large tensors come and go: in painting and in training."""

from __future__ import annotations

import ctypes
import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
NEVER = -1
# Where glibc's thresholds arrive by themselves once a process has freed large blocks, and its default count.
LARGEST_THRESHOLD = 32 * 2**20
DEFAULT_MMAP_MAX = 65536
# So much free memory stays for the next picture, where the process has no limit: with small ones, clearing pages anew
# is a sixth of the time.
KEPT_BYTES = 256 * 2**20

_lock = threading.Lock()
_users = 0


def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc and nobody has tuned it from outside."""
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return None
    try:
        libc = ctypes.CDLL(None)
    except OSError:
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


class _Info(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
                     "keepcost")
    )  # fmt: skip


def _freed_bytes(libc: ctypes.CDLL) -> float:
    """What is free between the blocks in use, given back or not; more than anything where that cannot be asked (glibc
    before 2.33)."""
    if not hasattr(libc, "mallinfo2"):
        return math.inf
    libc.mallinfo2.restype = _Info
    return int(libc.mallinfo2().fordblks)


def give_back() -> None:
    """Return to the system what is kept for the next picture."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@contextmanager
def reused_memory() -> Iterator[None]:
    """Meanwhile what the main thread frees stays with the process; at the end it goes back to the system, unless it is
    little.

    By default glibc gets every block above 32 MB from the system and returns it at once, so that each layer of an
    encoder waits while the system clears the pages of its output: 40 % more time for tiles of 1000 x 1000 pixels in
    bfloat16 on two cores, a quarter of an iteration of training. It concerns the whole process, and lasts as long as
    anybody is in it. Does nothing where the C library is not glibc, or was tuned by environment variables.
    """
    global _users
    libc = _glibc()
    if libc is None:
        yield
        return
    with _lock:
        _users += 1
        if _users == 1:
            libc.mallopt(M_MMAP_MAX, 0)
            libc.mallopt(M_TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                libc.mallopt(M_MMAP_MAX, DEFAULT_MMAP_MAX)
                libc.mallopt(M_MMAP_THRESHOLD, LARGEST_THRESHOLD)
                libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
                if _freed_bytes(libc) > KEPT_BYTES:
                    libc.malloc_trim(0)
