"""What a job's container runs: installs the wheelhouse, asks `doctor`, then starts the command.

Nothing but the standard library is imported, for nothing else is there yet.

    python3 entry.py train --instance ml.trn1.2xlarge --nodes 1 --processes 2
    python3 entry.py compile --target inf2

Everything is below /opt/ml, or SAGEMAKER_BASE_DIR.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections import deque
from pathlib import Path
from types import FrameType

FAILURE_CHARACTERS = 1000
"""SageMaker shows the first 1,024 of /opt/ml/output/failure as the reason."""

REMEMBERED_LINES = 40
PORT = 29500
NEURON = "ml.trn1."


class Failed(Exception):
    """A step ended with another code than 0.

    Args:
        command: What ran.
        code: How it ended.
        said: Its last lines.
    """

    def __init__(self, command: list[str], code: int, said: list[str]) -> None:
        super().__init__(f"{' '.join(command[1:])} ended with {code}")
        self.code, self.said = code, said


def main(arguments: list[str]) -> int:
    """Runs a job.

    Args:
        arguments: The stage and its options.

    Returns:
        The exit code of what failed; 0 if nothing did.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    stages = parser.add_subparsers(dest="stage", required=True)
    train = stages.add_parser("train", allow_abbrev=False)
    train.add_argument("--instance", required=True)
    train.add_argument("--nodes", type=int, required=True)
    train.add_argument("--processes", type=int, required=True)
    compiling = stages.add_parser("compile", allow_abbrev=False)
    compiling.add_argument("--target", required=True)
    given = parser.parse_args(arguments)
    base = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))
    try:
        _install(base / "input" / "data" / "wheelhouse")
        if given.stage == "train":
            _train(base, given.instance, given.nodes, given.processes)
        else:
            _compile(base, given.target)
    except Failed as failure:
        reason = base / "output" / "failure"
        reason.parent.mkdir(parents=True, exist_ok=True)
        told = [line for line in failure.said if line.startswith(("error:", "hint:"))] or failure.said[-5:]
        reason.write_text("\n".join([*told, str(failure)])[:FAILURE_CHARACTERS], encoding="utf-8")
        return failure.code if failure.code > 0 else 128 - failure.code
    return 0


def _install(wheelhouse: Path) -> None:
    """Ours over the image's, without dependencies: what it lacks (torch, Neuron's own) stays the image's."""
    wheels = sorted(str(wheel) for wheel in wheelhouse.glob("*.whl")) if wheelhouse.is_dir() else []
    if wheels:
        _run([sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet", *wheels])


def _train(base: Path, instance: str, nodes: int, processes: int) -> None:
    recipe, output = base / "input" / "data" / "recipe" / "recipe.yaml", base / "checkpoints" / "run"
    hosts = json.loads((base / "input" / "config" / "resourceconfig.json").read_text(encoding="utf-8"))
    rank = sorted(hosts["hosts"]).index(hosts["current_host"])
    neuron_sum = [sys.executable, "-m", "neuron_sum"]
    asked = [str(recipe), "--instance", instance] if instance.startswith(NEURON) else []
    _run([*neuron_sum, "doctor", *asked])
    # In the folder that SageMaker keeps in S3: after a spot interruption it is there again, and --resume goes on.
    train = ["train", str(recipe), "--output", str(output), "--resume"]
    if nodes > 1:
        meeting = [f"--nnodes={nodes}", f"--node_rank={rank}", f"--nproc_per_node={processes}",
                   f"--master_addr={sorted(hosts['hosts'])[0]}", f"--master_port={PORT}"]  # fmt: skip
        _run([sys.executable, "-m", "torch.distributed.run", *meeting, "-m", "neuron_sum", *train])
    else:
        _run([*neuron_sum, *train, *(["--processes", str(processes)] if processes > 1 else [])])
    if rank == 0:
        shutil.copytree(output, base / "model" / "run", ignore=shutil.ignore_patterns("checkpoints"))


def _compile(base: Path, target: str) -> None:
    work = base / "checkpoints" / "compile"
    for archive in (base / "input" / "data" / "run").glob("*.tar.gz"):
        work.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as packed:
            packed.extractall(work, filter="data")
    artifact = base / "model" / "artifact"
    _run([sys.executable, "-m", "neuron_sum", "compile", str(work / "run"), "--target", target,
          "--output", str(artifact)])  # fmt: skip


def _run(command: list[str]) -> None:
    """One step, its output passed on as it comes; SIGTERM (spot, a stop, the time limit) is passed on, too."""
    print("$ " + " ".join(command[1:]), flush=True)
    last: deque[str] = deque(maxlen=REMEMBERED_LINES)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        assert process.stdout is not None  # it is a pipe
        for line in process.stdout:
            last.append(line.rstrip("\n"))
            print(line, end="", flush=True)
        code = process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
    if code:
        raise Failed(command, code, list(last))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
