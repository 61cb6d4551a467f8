"""What is said, and kept, when a graph does not compile: the compiler's log, and what is known of it."""

import signal
from collections.abc import Iterator
from pathlib import Path

from compile.target import Target
from neuron_sum import console, cpu, files
from neuron_sum.errors import CompileError
from neuron_sum.explain import explain
from neuron_sum.machine import total_memory

OUTPUT = "output.txt"
"""What a compiling process and its children write to standard output and error."""
OTHER_LOGS = "log-neuron-cc.txt"
"""neuronx-cc's own log, in its work folder."""
KILLED = "killed, nearly always because memory ran out"
MEMORY_CAUSES = {"compiler-killed", "process-killed"}
"""Names in neuron_sum/causes.py."""


def ended(exit_code: int | None) -> str:
    """What a compiling process died of, where it could not say so itself."""
    killed = f": {KILLED}" if exit_code == -signal.SIGKILL else ""
    return f"the compiling process ended with {exit_code}{killed}"


def failed(target: Target, graph: str, failure: str, scratch: Path, path: Path) -> CompileError:
    """The error, its log beside where the graph would be.

    Args:
        target: What was compiled for.
        graph: The graph's name.
        failure: A trace, or what `ended` says.
        scratch: The compiling process's folder.
        path: Of the graph in the cache.
    """
    log = path.with_suffix(".log")
    files.write_text(log, "\n".join([*_logs(scratch), failure]))
    with log.open("rb") as stream:
        causes = [finding.cause for finding in explain(stream).findings]
    message = f"{graph} did not compile: {failure.strip().splitlines()[-1]:.200}"
    remedies = []
    if KILLED in failure or MEMORY_CAUSES & {cause.name for cause in causes}:
        free = console.size(cpu.available_memory())
        message += f"; this machine has {console.size(total_memory())} of memory, {free} free now"
        remedies.append(target.memory_advice())
    for cause in causes:
        message += f"\n  {cause.name}: {cause.cause}"
        if cause.name not in MEMORY_CAUSES:
            remedies.append(cause.remedy)
    return CompileError(message, "; ".join([*remedies, f"whole log: {log}"]))


def _logs(scratch: Path) -> Iterator[str]:
    for log in (scratch / OUTPUT, *sorted(scratch.rglob(OTHER_LOGS))):
        if log.is_file():
            yield log.read_text(encoding="utf-8", errors="replace")
