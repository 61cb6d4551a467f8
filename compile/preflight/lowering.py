"""Graphs to HLO without a Neuron package: jobs for xla_process.py, in a process of a Python with torch_xla."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compile.preflight.hlo import Account
from neuron_sum import files
from neuron_sum.artifact import AdapterSpec, GraphFile
from neuron_sum.errors import CompileError, PlatformError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PYTHON = "NEURON_SUM_XLA_PYTHON"
"""The variable that names a Python with torch_xla."""
WriteForm = Literal["in_place", "where"]
"""compile.neuron.cache_write: a step writes its column by HLO's dynamic-update-slice, or by a choice for every slot."""
ENVIRONMENT = {"PJRT_DEVICE": "CPU", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class LoweringOptions:
    """What GraphOptions are made of, in words.

    Attributes:
        dtype: fp32 or bf16, of weights and products.
        kv_dtype: Of keys and values.
        source_len: The longest.
        target_len: The longest.
        write: How a step writes its column.
        soft_prompt_tokens: Before the source.
        adapters: Slots; None for graphs without.
    """

    dtype: str
    kv_dtype: str
    source_len: int
    target_len: int
    write: WriteForm = "in_place"
    soft_prompt_tokens: int = 0
    adapters: AdapterSpec | None = None

    def as_dict(self) -> dict[str, Any]:
        """For a request."""
        adapters = self.adapters.model_dump(mode="json") if self.adapters else None
        return {**vars(self), "adapters": adapters}


@dataclass(frozen=True)
class LoweringJob:
    """Graphs of one model.

    Attributes:
        config: Of the model.
        options: What they share.
        graphs: Which; `file` names what a kept text is called.
    """

    config: "PretrainedConfig"
    options: LoweringOptions
    graphs: tuple[GraphFile, ...]


@dataclass(frozen=True)
class Lowered:
    """One graph's account.

    Attributes:
        graph: Which.
        write: How its column is written.
        account: What was counted.
        weights: Bytes of all weights of the model, once, those that this graph does not read too.
        inputs: Bytes of what the call is given beside weights: tokens, constants, state.
        state: Bytes of these that are keys and values.
        seconds: That lowering took.
    """

    graph: GraphFile
    write: WriteForm
    account: Account
    weights: int
    inputs: int
    state: int
    seconds: float


def lower(jobs: Sequence[LoweringJob], keep: Path | None = None) -> Iterator[Lowered]:
    """Lowers, and yields each graph when it is done; whatever ends the iteration ends the process.

    Args:
        jobs: In order.
        keep: A folder for the HLO texts; None to drop them.

    Raises:
        PlatformError: If there is no Python with torch_xla.
        CompileError: If a graph does not lower.
    """
    python = xla_python()
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [str(python), "-m", "compile.preflight.xla_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            json.dump(request(jobs, keep), process.stdin)
            process.stdin.close()
            for job in jobs:
                for graph in job.graphs:
                    line = process.stdout.readline()
                    if not line:
                        process.wait()
                        log.seek(0)
                        raise _failed(graph, process.returncode, log.read())
                    answer = json.loads(line)
                    account = answer.pop("account")
                    made = Account(**{**account, "dynamic": tuple(account["dynamic"])})
                    yield Lowered(graph=graph, write=job.options.write, account=made, **answer)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def request(jobs: Sequence[LoweringJob], keep: Path | None = None) -> dict[str, Any]:
    """What compile/preflight/xla_process.py reads.

    Args:
        jobs: In order.
        keep: A folder for the HLO texts.
    """
    return {
        "folder": str(keep.resolve()) if keep else None,
        "jobs": [
            {
                "config": job.config.to_dict(),
                "options": job.options.as_dict(),
                "graphs": [graph.model_dump(mode="json") for graph in job.graphs],
            }
            for job in jobs
        ],
    }


def xla_python() -> Path:
    """A Python that has torch_xla: the one named by NEURON_SUM_XLA_PYTHON, this one, or that of .venv-xla beside .venv.

    Raises:
        PlatformError: If none has.
    """
    if named := os.environ.get(PYTHON):
        if not Path(named).exists():
            raise PlatformError(
                f"{PYTHON} = {named}: there is no such file", "the Python of an environment with torch_xla"
            )
        return Path(named)
    if find_spec("torch_xla") is not None:
        return Path(sys.executable)
    beside = Path(sys.prefix).parent / ".venv-xla" / "bin" / "python"
    if not beside.exists():
        raise PlatformError(
            f"graphs are lowered by torch_xla, and neither this Python nor {beside} has it",
            f"make .venv-xla/.installed builds that environment; or {PYTHON}=PYTHON names one with torch_xla",
        )
    return beside


def _failed(graph: GraphFile, code: int, log: str) -> CompileError:
    kept = files.cache_folder() / "graphs" / "preflight.log"
    kept.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(kept, log)
    name = f"{graph.kind} {graph.batch}x{graph.source_len}"
    if code == -signal.SIGSEGV:  # a placeholder was asked for its values
        why = "an operator without an XLA lowering left the graph for the CPU"
    else:
        why = (log.strip().splitlines() or [f"the process ended with {code}"])[-1]
    return CompileError(f"{name} did not lower: {why:.200}", f"whole log: {kept}")
