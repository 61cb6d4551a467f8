"""The error and the log of a graph that does not compile, with the known failures found in the log."""

import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

from neuron_sum import console, files
from neuron_sum.doctor.explain import explain
from neuron_sum.errors import CompileError
from neuron_sum.platform import cpu
from neuron_sum.platform.machine import total_memory

OUTPUT = "output.txt"
"""The file with the standard output and error of a compiling process and its children."""
OTHER_LOGS = "log-neuron-cc.txt"
"""The log of neuronx-cc in its work folder."""
KILLED = "killed, nearly always because memory ran out"
MEMORY_CAUSES = {"compiler-killed", "process-killed", "oom-killer", "host-memory"}
"""Names in neuron_sum/doctor/failures/."""


def exit_reason(exit_code: int | None) -> str:
    """The reason why a compiling process ended without reporting an error."""
    killed = f": {KILLED}" if exit_code == -signal.SIGKILL else ""
    return f"the compiling process ended with {exit_code}{killed}"


def compiler_logs(scratch: Path) -> list[Path]:
    """The logs of neuronx-cc below the temporary folder of a compiling process."""
    return sorted(scratch.rglob(OTHER_LOGS))


def compile_error(what: str, failure: str, logs: Iterable[Path], log: Path, memory_advice: str) -> CompileError:
    """The error to raise; writes its log.

    Args:
        what: The start of the message, without a full stop: "GRAPH did not compile".
        failure: A traceback, or the result of `exit_reason`.
        logs: Logs of the failed process; the existing ones are copied into `log`.
        log: The file to write; it may be one of `logs`.
        memory_advice: The hint if memory ran out.
    """
    files.write_text(log, "\n".join([*_texts(logs), failure]))
    with log.open("rb") as stream:
        causes = [finding.cause for finding in explain(stream).findings]
    message = f"{what}: {failure.strip().splitlines()[-1]:.200}"
    remedies = []
    if KILLED in failure or MEMORY_CAUSES & {cause.name for cause in causes}:
        free = console.size(cpu.available_memory())
        message += f"; this machine has {console.size(total_memory())} of memory, {free} free now"
        remedies.append(memory_advice)
    for cause in causes:
        message += f"\n  {cause.name}: {cause.cause}"
        if cause.name not in MEMORY_CAUSES:
            remedies.append(cause.remedy)
    return CompileError(message, "; ".join([*remedies, f"whole log: {log}"]))


def _texts(logs: Iterable[Path]) -> Iterator[str]:
    for log in logs:
        if log.is_file():
            yield log.read_text(encoding="utf-8", errors="replace")
