"""The steps of a receipt: python -m compile.receipt.steps STEP SIZE TRAIN RUNNER_PID, in the folder of the receipt."""

import gc
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compile.receipt.cells import SIZES, STEPS, Size
from compile.receipt.processes import end_with_runner
from compile.receipt.records import Finding, Records, Stopped
from neuron_sum import files

if TYPE_CHECKING:
    from neuron_sum.artifact import Artifact

MODELS, ARTIFACTS, RUNS = Path("models"), Path("artifacts"), Path("runs")
SHORT = "compile.source_lens=[96]"
"""The shorter source of the two-layer T5, for an artifact with shorter buffers."""
READ = 0.7
"""Reads of the unused part of a buffer: from this number, it is read."""
UNDECIDED, COPIED = 0.3, 2.0
"""Reads of the additional buffers: up to the first number, their time is not measurable; from the second one, they are
copied, because a copy reads and writes them again."""
MEMORY = (0.9, 1.5)
"""The limits of the memory relative to that of weights and buffers."""
CORES = 1.9
"""The expected throughput of two cores relative to one."""


@dataclass(frozen=True)
class Context:
    """What a step gets.

    Attributes:
        records: The results.
        size: The size of the models.
        train: The command that trains a recipe.
    """

    records: Records
    size: Size
    train: tuple[str, ...]


def main(name: str, size: str, train: str, runner: str) -> None:
    """Runs a step; every cell is recorded, or the runner records that it is missing."""
    end_with_runner(int(runner))
    step = next(step for step in STEPS if step.name == name)
    records = Records(step, Path("steps", f"{name}.json"))
    try:
        FUNCTIONS[name](Context(records, SIZES[size], tuple(json.loads(train))))  # type: ignore[index]
    except Stopped as stopped:
        print(f"stopped after {stopped}", file=sys.stderr)
    records.end()


def machine(context: Context) -> None:
    """Compares versions and driver with the platform table."""
    from neuron_sum.doctor import machine_check
    from neuron_sum.platform.machine import describe_machine

    here = describe_machine(machine_check.distributions())
    platform = machine_check.nearest_platform(here)
    checks = {check.name: check for check in machine_check.check_machine(here, platform)}
    for name, sources in (("driver", ("driver",)), ("packages", ("packages", "neuron packages"))):
        with context.records.cell(name) as cell:
            found = [checks[source] for source in sources if source in checks]
            text = "; ".join(check.found for check in found) or f"no {name}"
            cell.expect(bool(found) and all(check.verdict == "ok" for check in found), text)


def two_layers(context: Context) -> None:
    """Compiles, inspects and runs a T5 of two layers."""
    from compile.receipt.latency import bytes_read, inputs, step_times
    from compile.receipt.models import compare_tokens, compile_t5
    from neuron_sum.platform.matrix import CORE_BANDWIDTH
    from neuron_sum.runtimes.load import load_generator

    records, size = context.records, context.size
    with records.cell("two-layer T5 compiles", needed=True) as cell:
        artifact = compile_t5("two-layers", size, 2, size.two_layers)
        cell.observed = f"{len(artifact.manifest.graphs)} graphs"
    with records.cell("inputs by name") as cell:
        rows = [inputs(artifact, graph) for graph in artifact.manifest.graphs]
        cell.data = {"graphs": rows}
        tensors = [tensor for row in rows for tensor in row["inputs"]]
        state, weights, given = (
            {tensor["name"] for tensor in tensors if tensor["type"] == kind}
            for kind in ("state", "weight", "user input")
        )
        unnamed = "" in state | weights | given
        aliased = {name for row in rows for name in row["aliases"].values()}
        cell.expect(
            bool(aliased) and aliased <= state and not unnamed,
            f"{len(state)} inputs are state, {len(weights)} are weights, {len(aliased)} have an aliased output, "
            f"{'not all' if unnamed else 'all'} are named; buffers that are only read count as "
            + ("state" if state - aliased else "weights"),
        )
    with records.cell("copied values are read", needed=True) as cell:
        generator, _ = load_generator(artifact)
        generator.warm_up()
        cell.observed = f"{len(artifact.manifest.graphs)} graphs give other results"
    with records.cell("two-layer T5 tokens") as cell:
        compare_tokens(cell, generator, artifact, Path(artifact.manifest.source.path), size.examples)
    with records.cell("buffers are not copied") as cell:
        alone = compile_t5("two-layers-short", size, 2, (*size.two_layers, SHORT))
        generator_alone, _ = load_generator(alone)
        generator_alone.warm_up()
        timed = [
            {**row, "buffer_bytes": bytes_read(graph, only_buffers=True)}
            for each, loaded in ((generator_alone, alone), (generator, artifact))
            for row, graph in step_times(each, loaded, size.rounds)
        ]
        cell.data = {"rows": timed, "profiler": shutil.which("neuron-profile")}
        # The same source in buffers of its length, then in those of the longest; then the longest.
        short, part, long = timed[0], timed[len(timed) // 3], timed[-1]
        read_ms = 1000 * (long["buffer_bytes"] - short["buffer_bytes"]) / CORE_BANDWIDTH
        reads, whole = ((row["step_ms"] - short["step_ms"]) / read_ms for row in (long, part))
        shown = (
            f"a short source in long buffers costs {whole:.1f} times the read of the rest; a long one, with "
            f"{read_ms * CORE_BANDWIDTH / 1e9:.1f} MB more, {long['step_ms'] - short['step_ms']:.3f} ms a step: "
            f"{reads:.1f} times one read"
        )
        if reads > UNDECIDED:
            cell.expect(reads < COPIED and whole < READ, shown)
        else:
            cell.skip(f"the times do not show the buffers: {shown}")


def greedy_steps(context: Context) -> None:
    """Compiles and runs a T5 of two layers with a graph of several greedy steps per call."""
    from compile.machine_report import latency
    from compile.receipt.models import compare_tokens, compile_t5
    from neuron_sum.runtimes.load import load_generator

    records, size = context.records, context.size
    with records.cell("several greedy steps compile", needed=True) as cell:
        artifact = compile_t5("greedy-steps", size, 2, size.greedy_steps)
        steps = artifact.manifest.greedy_steps
        cell.observed = f"{len(artifact.manifest.graphs)} graphs, {steps} steps per call"
    with records.cell("several greedy steps tokens", needed=True) as cell:
        generator, _ = load_generator(artifact)
        generator.warm_up()
        compare_tokens(cell, generator, artifact, Path(artifact.manifest.source.path), size.examples)
    with records.cell("several greedy steps latency") as cell:
        rows = list(latency(generator, artifact, size.rounds))
        cell.data = {"rows": rows}
        ratios = [steps * row["step_ms"] / row["greedy_ms"] for row in rows]
        cell.expect(min(ratios) > 1, f"{min(ratios):.2f} to {max(ratios):.2f} times as fast as single steps")


def base(context: Context) -> None:
    """Compiles and measures a T5 of the dimensions of FLAN-T5-base."""
    from compile.receipt.latency import floor_ms, step_times
    from compile.receipt.models import compare_tokens, compile_t5, device_bytes, expected_bytes, missing_weights
    from neuron_sum.runtimes.load import load_generator
    from neuron_sum.runtimes.neuronx import device_tensors

    records, size = context.records, context.size
    with records.cell("FLAN-T5-base compiles", needed=True) as cell:
        artifact = compile_t5("base", size, size.layers, size.base)
        cell.observed = f"{len(artifact.manifest.graphs)} graphs, {size.layers} layers"
    before, after = device_bytes(), None
    with records.cell("weights are present") as cell, device_tensors(artifact) as tensors:
        after = device_bytes()
        names, missing = missing_weights(artifact, tensors)
        cell.data = {"missing": missing}
        cell.expect(not missing, f"{len(missing)} of {names} weights are missing or zero")
    with records.cell("device memory") as cell:
        size_bytes = expected_bytes(artifact)
        if before is None:
            cell.skip(f"the driver does not report it; weights and buffers {size_bytes / 1e6:.1f} MB")
        elif after is None:
            cell.skip("`weights are present` failed")
        else:
            cell.data = {"before": before, "after": after, "expected": size_bytes}
            used, (least, most) = after - before, MEMORY
            cell.expect(
                least * size_bytes <= used <= most * size_bytes,
                f"{used / 1e6:.1f} MB; weights and buffers {size_bytes / 1e6:.1f} MB",
            )
    gc.collect()
    with records.cell("FLAN-T5-base runs", needed=True) as cell:
        generator, _ = load_generator(artifact)
        generator.warm_up()
        cell.observed = f"{len(artifact.manifest.graphs)} graphs"
    with records.cell("FLAN-T5-base tokens") as cell:
        compare_tokens(cell, generator, artifact, Path(artifact.manifest.source.path), size.examples)
    with records.cell("FLAN-T5-base verify") as cell:
        _verify(cell, artifact, size.examples)
    with records.cell("FLAN-T5-base latency") as cell:
        rows = [
            {**row, "floor_ms": round(floor_ms(graph), 4)}
            for row, graph in step_times(generator, artifact, size.rounds)
        ]
        cell.data = {"rows": rows}
        ratios = [row["floor_ms"] / row["step_ms"] for row in rows]
        cell.expect(max(ratios) <= 1, f"floor / measured {min(ratios):.2f} to {max(ratios):.2f}")


def cores(context: Context) -> None:
    """Compares the throughput of two processes, each on a core, with that of one."""
    from compile.receipt.cores import throughputs

    with context.records.cell("both cores") as cell:
        one, both = throughputs(ARTIFACTS / "base", context.size.rounds)
        cell.data = {"batches_per_s_one": one, "batches_per_s_both": both}
        cell.expect(both / one >= CORES, f"{both / one:.2f} times, {both:.2f} instead of {one:.2f} batches per second")


def host(context: Context) -> None:
    """Measures the time of the search on the host."""
    import torch

    from compile.receipt.host import host_times

    torch.set_num_threads(1)
    with context.records.cell("host time per step") as cell:
        times = list(host_times(*context.size.searches))
        cell.data = {"rows": [row.as_dict() for row in times]}
        shown = "; ".join(
            f"{row.batch} x {row.beams}{' with an n-gram ban' if row.ngram else ''} {row.ms:.3f} ms"
            for row in times
            if row.target
        )
        cell.expect(all(row.holds for row in times), shown)


def llama(context: Context) -> None:
    """Exports a small Llama with optimum-neuron, and verifies it."""
    from compile.receipt.models import compile_llama

    records, size = context.records, context.size
    with records.cell("Llama compiles", needed=True) as cell:
        artifact = compile_llama("llama", size)
        cell.observed = f"{size.llama['num_hidden_layers']} layers, exporter optimum"
    with records.cell("Llama verify") as cell:
        _verify(cell, artifact, size.examples)


def _verify(cell: Finding, artifact: "Artifact", examples: int) -> None:
    from compile.verify import verify

    record = verify(artifact, None, examples, 1.0).record
    cell.data = {"verification": record.model_dump(mode="json")}
    if record.undecided:
        cell.skip(f"{record.examples} dialogues do not decide it")
    else:
        cell.expect(record.passed, f"{'passed' if record.passed else 'failed'}, {record.examples} dialogues")


def training(context: Context) -> None:
    """Trains a run, stops another one in the middle and resumes it, and compares their weights."""
    from compile.receipt.models import changes, largest_difference

    records, size = context.records, context.size
    shutil.rmtree(RUNS, ignore_errors=True)
    command = [*context.train, "tiny", *changes(size.t5, 2, size, size.training)]
    with records.cell("training", needed=True) as cell:
        seconds = _train([*command, "--output", str(RUNS / "whole")])
        losses = [row["loss"] for row in files.read_jsonl(RUNS / "whole" / "log.jsonl") if "loss" in row]
        cell.observed = f"{len(losses)} steps, loss {losses[0]:.2f} to {losses[-1]:.2f}"
        cell.data = {"seconds": round(seconds, 1), "losses": losses}
    with records.cell("resume") as cell:
        step = _stop_in_the_middle([*command, "--output", str(RUNS / "stopped")], RUNS / "stopped")
        _train([*command, "--output", str(RUNS / "stopped"), "--resume"])
        weights = [RUNS / run / "checkpoint" / "model.safetensors" for run in ("whole", "stopped")]
        if files.sha256(weights[0]) == files.sha256(weights[1]):
            cell.observed = f"stopped after step {step}, equal bit for bit"
        else:
            cell.expect(False, f"stopped after step {step}; largest difference {largest_difference(*weights):.1e}")


def _train(command: Sequence[str]) -> float:
    started = time.monotonic()
    finished = subprocess.run(command, check=False, stdin=subprocess.DEVNULL)
    if finished.returncode:
        raise RuntimeError(f"the training ended with exit code {finished.returncode}")
    return time.monotonic() - started


def _stop_in_the_middle(command: Sequence[str], run: Path) -> str:
    """Stops a run by SIGTERM after its first checkpoint; returns the step of its newest checkpoint."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while not list(run.glob("checkpoints/checkpoint-*/complete")):
        if process.poll() is not None:
            raise RuntimeError(f"the training ended with exit code {process.returncode} before a checkpoint")
        time.sleep(0.005)
    process.terminate()
    code = process.wait()
    if not (checkpoints := list(run.glob("checkpoints/checkpoint-*/complete"))):
        raise RuntimeError(f"the run was not stopped in the middle: exit code {code}")
    return str(max(int(path.parent.name.rpartition("-")[2]) for path in checkpoints))


FUNCTIONS: dict[str, Callable[[Context], None]] = {
    function.__name__: function for function in (machine, two_layers, greedy_steps, base, cores, host, llama, training)
}

if __name__ == "__main__":
    main(*sys.argv[1:])
