"""The start of a training command: environment variables, several processes, extraction of graphs.

The environment must be set before torch, transformers or accelerate are imported, so nothing heavy is imported here.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from neuron_sum import console
from neuron_sum.errors import PlatformError, RecipeError
from neuron_sum.platform import threads
from neuron_sum.recipes.schema import TrainConfig

EXTRACTOR = "neuron_parallel_compile"

NEURON_ENVIRONMENT = {
    "NEURON_CC_FLAGS": "--model-type transformer --retry_failed_compilation",
    "NEURON_FUSE_SOFTMAX": "1",
    "NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS": "3",
    "MALLOC_ARENA_MAX": "64",
}
"""The settings of optimum-neuron's examples. The last keeps glibc from retaining main memory while saving."""


def environment(config: TrainConfig) -> dict[str, str]:
    """The environment variables of the recipe's backend.

    Args:
        config: The recipe's train section.
    """
    if config.backend == "torch":
        # If torch_xla is also installed, accelerate would otherwise use the XLA device.
        return {"USE_TORCH_XLA": "0"}
    cache = {"NEURON_COMPILE_CACHE_URL": config.neuron.cache_url} if config.neuron.cache_url else {}
    return {**NEURON_ENVIRONMENT, **cache}


def set_environment(config: TrainConfig) -> None:
    """Set the variables that the caller has not set, and print the resulting environment.

    Args:
        config: The recipe's train section.
    """
    defaults = environment(config)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if config.backend == "neuron":
        console.note("environment: " + " ".join(f"{name}={os.environ[name]!r}" for name in defaults))


@contextmanager
def preserve_environment() -> Iterator[None]:
    """Restore the environment afterwards, so that changes by heavy imports do not reach processes started later."""
    previous = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(previous)


def extracts_graphs() -> bool:
    """Whether neuron_parallel_compile runs this process, which then extracts graphs and computes nothing."""
    return os.environ.get("NEURON_EXTRACT_GRAPHS_ONLY") == "1"


def is_launched() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def planned_processes(config: TrainConfig, processes: int | None) -> int | None:
    """The number of processes that a dry run assumes, without starting any.

    Args:
        config: The recipe's train section.
        processes: The value of --processes.

    Returns:
        None if torchrun has started the processes, or if the backend trains in this process.
    """
    if processes is not None or is_launched() or config.backend == "torch":
        return processes
    minimum = config.neuron.tensor_parallel_size
    console.note(f"--processes is not set; assuming the minimum for this recipe: {minimum}")
    return minimum


def start(arguments: Sequence[str], processes: int, *, precompile: bool) -> int:
    """Run `neuron-sum train` again in several processes; if one fails, its error is printed.

    Args:
        arguments: The arguments of `neuron-sum train`.
        processes: The number of processes.
        precompile: Only extract graphs, and compile all of them in parallel; the only output is the compile cache.

    Returns:
        The exit code.

    Raises:
        NeuronSumError: If one of the processes was killed.
        PlatformError: If neuron_parallel_compile is not installed.
    """
    with socket.socket() as probe:  # another run may use torchrun's default port
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads.divide(os.environ, processes)
    if not precompile:
        from neuron_sum.training.processes import run_processes

        return run_processes(["train", *arguments], processes, port)
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    command = [*torchrun, "-m", "neuron_sum", "train", *arguments]
    if shutil.which(EXTRACTOR) is None:
        raise PlatformError(
            f"--precompile needs the program {EXTRACTOR}, which is not on the PATH",
            "use a Neuron image from AWS (torch-neuronx contains it), or omit --precompile to compile during training",
        )
    with tempfile.TemporaryDirectory(prefix="neuron-sum-precompile-") as folder:
        return subprocess.run([EXTRACTOR, *command, "--output", f"{folder}/run"], check=False).returncode


def check_options(config: TrainConfig, processes: int | None, *, precompile: bool) -> None:
    """Reject contradictory launch options.

    Args:
        config: The recipe's train section.
        processes: The value of --processes.
        precompile: The value of --precompile.

    Raises:
        RecipeError: If options contradict each other or the recipe; the hint names valid ones.
    """
    if precompile and config.backend != "neuron":
        raise RecipeError("--precompile requires train.backend=neuron; the torch backend compiles nothing in advance")
    if (precompile or processes is not None) and is_launched():
        raise RecipeError(
            "--processes and --precompile cannot be used in a process that torchrun started",
            "run `neuron-sum train RECIPE --processes N` without torchrun",
        )
    if precompile and processes is None:
        raise RecipeError(
            "--precompile requires --processes N because the graphs depend on the number of processes",
            "use the number that will train: 2 on a trn1.2xlarge, 32 on a trn1.32xlarge",
        )
