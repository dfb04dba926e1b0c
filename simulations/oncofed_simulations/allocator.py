"""Memory that comes back: what many sites in one process need of the C library."""

from __future__ import annotations

import ctypes

__all__ = ["return_large_arrays"]

M_MMAP_THRESHOLD = -3
THRESHOLD = 1 << 20


def return_large_arrays() -> None:
    """Let arrays of a mebibyte and more be taken from the system and given back one by one.

    With glibc's own moving threshold, what a site keeps comes to lie between large arrays that are gone, and a process with a
    thousand sites holds the holes. `make bench` measures what is left. Another C library does nothing here.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, THRESHOLD)
