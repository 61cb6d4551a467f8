"""Lowering of graphs to HLO without Neuron packages, in a separate Python with torch_xla (xla_process.py)."""

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
from typing import TYPE_CHECKING, Any

from compile.preflight.error_codes import Rejections
from compile.preflight.hlo import Account
from neuron_sum import files
from neuron_sum.artifact import AdapterSpec, GraphFile
from neuron_sum.errors import CompileError, PlatformError
from neuron_sum.recipes.schema import CacheWrite
from neuron_sum.subprocesses import ending_with_parent

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PYTHON = "NEURON_SUM_XLA_PYTHON"
"""The environment variable with the path of a Python with torch_xla."""
NONE = Rejections()
ENVIRONMENT = {"PJRT_DEVICE": "CPU", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class LoweringOptions:
    """GraphOptions in a form that can be sent as JSON.

    Attributes:
        dtype: The dtype of weights and products: fp32 or bf16.
        kv_dtype: The dtype of keys and values.
        source_len: The longest source in tokens.
        target_len: The longest target in tokens.
        write: The form of the cache write.
        soft_prompt_tokens: The number of positions before the source.
        adapters: The adapter slots; None for graphs without them.
    """

    dtype: str
    kv_dtype: str
    source_len: int
    target_len: int
    write: CacheWrite = "in_place"
    soft_prompt_tokens: int = 0
    adapters: AdapterSpec | None = None

    def as_dict(self) -> dict[str, Any]:
        """The options as JSON values."""
        adapters = self.adapters.model_dump(mode="json") if self.adapters else None
        return {**vars(self), "adapters": adapters}


@dataclass(frozen=True)
class LoweringJob:
    """Graphs of one model.

    Attributes:
        config: The model's configuration.
        options: The options of all graphs.
        graphs: The graphs to lower; the HLO text of a graph is named after its `file`.
    """

    config: "PretrainedConfig"
    options: LoweringOptions
    graphs: tuple[GraphFile, ...]


@dataclass(frozen=True)
class Lowered:
    """A lowered graph.

    Attributes:
        graph: The graph.
        write: The form of the cache write.
        account: Operators, operations and bytes of the graph.
        weights: Bytes of one copy of all weights of the model, including those that this graph does not read.
        inputs: Bytes of the other inputs of a call: tokens, constants, state.
        state: Bytes of the keys and values among the inputs.
        seconds: Duration of the lowering.
        rejections: The compiler's documented error codes that the graph shows.
    """

    graph: GraphFile
    write: CacheWrite
    account: Account
    weights: int
    inputs: int
    state: int
    seconds: float
    rejections: Rejections = NONE


def lower(jobs: Sequence[LoweringJob], keep: Path | None = None) -> Iterator[Lowered]:
    """Lowers graphs and yields each when it is done; the process ends when the iteration ends, for any reason.

    Args:
        jobs: The jobs, in order.
        keep: The folder to write the HLO texts to; None to discard them.

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
            ending_with_parent([str(python), "-m", "compile.preflight.xla_process"]),
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
                    account = Account(**{**account, "dynamic": tuple(account["dynamic"])})
                    found = {kind: tuple(lines) for kind, lines in answer.pop("rejections").items()}
                    yield Lowered(
                        graph=graph,
                        write=job.options.write,
                        account=account,
                        rejections=Rejections(**found),
                        **answer,
                    )
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def request(jobs: Sequence[LoweringJob], keep: Path | None = None) -> dict[str, Any]:
    """The input of compile/preflight/xla_process.py.

    Args:
        jobs: The jobs, in order.
        keep: The folder to write the HLO texts to, or None.
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
    """A Python with torch_xla: that of NEURON_SUM_XLA_PYTHON, this one, or that of .venv-xla next to .venv.

    Raises:
        PlatformError: If none of them has torch_xla.
    """
    if configured := os.environ.get(PYTHON):
        if not Path(configured).exists():
            raise PlatformError(
                f"{PYTHON} = {configured}: no such file", f"set {PYTHON} to the Python of an environment with torch_xla"
            )
        return Path(configured)
    if find_spec("torch_xla") is not None:
        return Path(sys.executable)
    default = Path(sys.prefix).parent / ".venv-xla" / "bin" / "python"
    if not default.exists():
        raise PlatformError(
            f"lowering needs torch_xla, but this Python does not have it and {default} does not exist",
            f"run `make .venv-xla/.installed` to create it, or set {PYTHON} to a Python with torch_xla",
        )
    return default


def check_xla_python() -> None:
    """Check in a moment that graphs can be lowered, before models and data are read.

    Raises:
        PlatformError: If there is no Python with torch_xla.
    """
    python = xla_python()
    if python == Path(sys.executable):
        return
    remedy = f"run `make .venv-xla/.installed`, or set {PYTHON} to a Python with torch_xla"
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch_xla') is None)"
    try:
        found = subprocess.run([python, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        raise PlatformError(f"{python} cannot be run: {error.strerror}", remedy) from error
    if found.returncode != 0:
        raise PlatformError(f"{python} does not have torch_xla", remedy)


def _failed(graph: GraphFile, code: int, log: str) -> CompileError:
    path = files.cache_folder() / "graphs" / "preflight.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, log)
    name = f"{graph.kind} {graph.batch}x{graph.source_len}"
    if code == -signal.SIGSEGV:  # the values of a placeholder were read
        reason = "an operator without an XLA lowering left the graph for the CPU"
    else:
        reason = (log.strip().splitlines() or [f"the process ended with {code}"])[-1]
    return CompileError(f"{name} did not lower: {reason:.200}", f"whole log: {path}")
