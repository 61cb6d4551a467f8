"""How the C library treats freed memory."""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""The options of glibc's mallopt; see malloc.h."""
KEPT_BYTES = 256 << 20


def keep_freed() -> None:
    """Keep freed memory for the next allocation of any thread, whose pages the kernel then need not clear again.

    For a process whose main work is to run graphs, before it starts threads. At most `KEPT_BYTES` are kept above the
    last allocation that is in use. Other C libraries and settings of the environment are left as they are.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    set_option(M_ARENA_MAX, 1)
    set_option(M_MMAP_MAX, 0)
    set_option(M_TRIM_THRESHOLD, KEPT_BYTES)
