"""The throughput of two processes, each on a NeuronCore: python -m compile.receipt.cores ARTIFACT ROUNDS."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from neuron_sum.artifact import open_artifact
from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.runtimes.device import VISIBLE
from neuron_sum.runtimes.load import load_generator

MARK = "receipt:"
"""The start of the lines between the processes; the Neuron runtime also writes to standard output."""


def throughputs(artifact: Path, rounds: int) -> tuple[float, float]:
    """Batches per second of one process, and of two at the same time.

    Args:
        artifact: The folder of the artifact.
        rounds: The number of batches.

    Raises:
        RuntimeError: If the second process ends.
    """
    os.environ[VISIBLE] = "0"
    command = [sys.executable, "-m", "compile.receipt.cores", str(artifact), str(rounds)]
    with subprocess.Popen(
        command, env={**os.environ, VISIBLE: "1"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            run = _loaded(artifact, rounds)
            _wait(other)
            alone = run()
            assert other.stdin is not None
            other.stdin.write("go\n")
            other.stdin.flush()
            together = run()
            return rounds / alone, rounds / together + rounds / float(_wait(other))
        finally:
            other.kill()


def _wait(process: "subprocess.Popen[str]") -> str:
    """The next message of the other process."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(MARK):
            return line.removeprefix(MARK).strip()
    raise RuntimeError(f"the process on the second core ended with exit code {process.wait()}")


def _loaded(artifact: Path, rounds: int) -> Callable[[], float]:
    """Loads an artifact; the result runs batches of its largest bucket and returns the seconds."""
    opened = open_artifact(artifact)
    generator, _ = load_generator(opened)
    generator.warm_up()
    bucket = max(opened.manifest.buckets, key=lambda bucket: (bucket.batch, bucket.source_len))
    prompts = [[opened.manifest.tokens.ends[0]] * bucket.source_len] * bucket.batch
    asked = GenerateConfig(max_new_tokens=bucket.target_len, num_beams=max(opened.manifest.num_beams))
    asked = asked.model_copy(update={"min_new_tokens": bucket.target_len})

    def run() -> float:
        started = time.perf_counter()
        for _ in range(rounds):
            generator.generate(prompts, asked)
        return time.perf_counter() - started

    return run


def main(artifact: str, rounds: str) -> None:
    """Loads the artifact, waits for the other process, and prints the seconds of its batches."""
    run = _loaded(Path(artifact), int(rounds))
    print(MARK, "ready", flush=True)
    sys.stdin.readline()
    print(MARK, run(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
