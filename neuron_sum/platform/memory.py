"""How the C library treats freed memory."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""The options of glibc's mallopt; see malloc.h."""


def keep_freed() -> None:
    """Keep freed memory for the next allocation of any thread, whose pages the kernel then need not clear again.

    For a process whose main work is to run graphs, before it starts threads. It keeps what the largest graph needs.
    Other C libraries than glibc are left as they are.
    """
    if set_option := getattr(ctypes.CDLL(None), "mallopt", None):
        set_option(M_ARENA_MAX, 1)
        set_option(M_MMAP_MAX, 0)
        set_option(M_TRIM_THRESHOLD, 2**31 - 1)
