"""Freed memory is kept for the next allocation."""

import os
import platform
import subprocess
import sys

import pytest


@pytest.mark.parametrize("environment", [{}, {"MALLOC_ARENA_MAX": "4"}], ids=["unset", "set"])
def test_freed_memory_is_kept_in_every_thread_unless_the_environment_says_how(environment: dict[str, str]) -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("not glibc")
    code = (
        "import ctypes, resource, threading\n"
        "from neuron_sum.platform import memory\n"
        "memory.keep_freed()\n"
        "library = ctypes.CDLL(None)\n"
        "library.malloc.restype = ctypes.c_void_p\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    address = ctypes.c_void_p(library.malloc(64 << 20))\n"
        "    library.memset(address, 1, 64 << 20)\n"
        "    library.free(address)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "found = [faults()]\n"
        "thread = threading.Thread(target=lambda: found.append(faults()))\n"
        "thread.start()\n"
        "thread.join()\n"
        "print(*found)\n"
    )
    others = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=others | environment
    )
    first, second = map(int, made.stdout.split())
    assert first > 100
    assert (second < first / 10) == (not environment)
