"""Instruction sets of this machine's CPU, from /proc/cpuinfo, and its free memory."""

import re
from functools import cache
from pathlib import Path

import psutil

RELEVANT = re.compile(
    r"^(sse\w*|ssse3|avx\w*|amx\w*|fma|f16c|bmi\d|abm|popcnt|movbe|adx|vaes|vpclmulqdq|gfni|aes|sha_ni)$"
)
"""Instruction sets that a C++ compiler may use when it builds for this machine."""

NEEDED = {"fp32": ({"avx2"},), "bf16": ({"avx512_bf16"}, {"amx_bf16"}), "int8": ({"avx512_vnni"},)}
"""Alternative sets of CPU flags for each dtype: one is required to run it, or to be faster than fp32."""


@cache
def flags() -> frozenset[str]:
    """The relevant instruction sets of this CPU; empty if /proc/cpuinfo has none."""
    return frozenset(flag for flag in _cpuinfo("flags").split() if RELEVANT.match(flag))


@cache
def name() -> str:
    """The CPU's name."""
    return _cpuinfo("model name") or "unknown CPU"


def missing(dtype: str) -> str | None:
    """The instruction sets that this CPU lacks for a dtype; None if it lacks nothing."""
    if any(needed <= flags() for needed in NEEDED[dtype]):
        return None
    return " or ".join(" and ".join(sorted(needed)) for needed in NEEDED[dtype])


def available_memory() -> float:
    """Free bytes of main memory, or of the container's limit if that is lower."""
    free = float(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()) != "max":
        free = min(free, float(text) - float(used.read_text()))
    return free


def _cpuinfo(field: str) -> str:
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    match = re.search(rf"^{field}\s*:\s*(.*)$", text, re.MULTILINE)
    return match[1] if match else ""
