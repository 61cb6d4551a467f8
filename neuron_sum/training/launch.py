"""How a training command starts: the environment its backend needs, several processes, the extraction of graphs.

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
from neuron_sum.recipes.schema import TrainConfig

EXTRACTOR = "neuron_parallel_compile"

NEURON_ENVIRONMENT = {
    "NEURON_CC_FLAGS": "--model-type transformer --retry_failed_compilation",
    "NEURON_FUSE_SOFTMAX": "1",
    "NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS": "3",
    "MALLOC_ARENA_MAX": "64",
}
"""What optimum-neuron's own examples set. The last keeps glibc from holding on to main memory while saving."""


def environment(config: TrainConfig) -> dict[str, str]:
    """What a backend wants in its environment.

    Args:
        config: The recipe's train section.
    """
    if config.backend == "torch":
        # Where torch_xla is installed too, accelerate would take the XLA device without being asked.
        return {"USE_TORCH_XLA": "0"}
    cache = {"NEURON_COMPILE_CACHE_URL": config.neuron.cache_url} if config.neuron.cache_url else {}
    return {**NEURON_ENVIRONMENT, **cache}


def set_environment(config: TrainConfig) -> None:
    """Sets what the caller has not set himself, and says what training then sees.

    Args:
        config: The recipe's train section.
    """
    wanted = environment(config)
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    if config.backend == "neuron":
        console.note("environment: " + " ".join(f"{name}={os.environ[name]!r}" for name in wanted))


@contextmanager
def environment_stays() -> Iterator[None]:
    """Keeps what heavy imports set in this process from the processes that it will start."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def extracts_graphs() -> bool:
    """Whether neuron_parallel_compile runs this process, which then finds out graphs and computes nothing."""
    return os.environ.get("NEURON_EXTRACT_GRAPHS_ONLY") == "1"


def is_launched() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def planned_processes(config: TrainConfig, processes: int | None) -> int | None:
    """How many processes a dry run reckons with, which needs none of them: those that there are, or those to come.

    Args:
        config: The recipe's train section.
        processes: As given on the command line.

    Returns:
        None where torchrun has started them, or where the backend trains in this one.
    """
    if processes is not None or is_launched() or config.backend == "torch":
        return processes
    fewest = config.neuron.tensor_parallel_size
    console.note(f"without --processes N, this reckons with the fewest that the recipe can have: {fewest}")
    return fewest


def start(arguments: Sequence[str], processes: int, *, precompile: bool) -> int:
    """Runs `neuron-sum train` once more, in several processes; an error of theirs is printed.

    Args:
        arguments: What follows `neuron-sum train`.
        processes: How many.
        precompile: Only extract graphs, and compile all of them side by side; nothing is left but the compile cache.

    Returns:
        The exit code.

    Raises:
        NeuronSumError: If one of the processes was killed.
        PlatformError: If neuron_parallel_compile is not there.
    """
    with socket.socket() as free:  # torchrun's own default port may be another run's
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if not precompile:
        from neuron_sum.training.processes import run_processes

        return run_processes(["train", *arguments], processes, port)
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    command = [*torchrun, "-m", "neuron_sum", "train", *arguments]
    if shutil.which(EXTRACTOR) is None:
        raise PlatformError(
            f"--precompile needs the program {EXTRACTOR}, which is not on the PATH",
            "it comes with torch-neuronx, in AWS's Neuron images; without --precompile, training compiles as it goes",
        )
    with tempfile.TemporaryDirectory(prefix="neuron-sum-precompile-") as folder:
        return subprocess.run([EXTRACTOR, *command, "--output", f"{folder}/run"], check=False).returncode


def check_options(config: TrainConfig, processes: int | None, *, precompile: bool) -> None:
    """Refuses launch options that cannot be meant.

    Args:
        config: The recipe's train section.
        processes: As given on the command line.
        precompile: As given on the command line.

    Raises:
        RecipeError: With what to give instead.
    """
    if precompile and config.backend != "neuron":
        raise RecipeError("--precompile is for train.backend=neuron; the torch backend compiles nothing ahead")
    if (precompile or processes is not None) and is_launched():
        raise RecipeError(
            "torchrun has started this process, and --processes or --precompile would start it anew",
            "neuron-sum train RECIPE --processes N, without torchrun",
        )
    if precompile and processes is None:
        raise RecipeError(
            "--precompile needs --processes N: the graphs differ with the number of processes",
            "as many as will train: 2 on a trn1.2xlarge, 32 on a trn1.32xlarge",
        )
