"""What a job's container runs: installs the wheelhouse, asks `doctor`, then starts the command.

Nothing but the standard library is imported, for nothing else is there yet.

    python3 entry.py train --instance ml.trn1.2xlarge --nodes 1 --processes 2
    python3 entry.py compile --target inf2 --set=compile.batch_sizes=[1,8]

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
import zlib
from collections import deque
from pathlib import Path, PurePosixPath
from types import FrameType

FAILURE_CHARACTERS = 1000
"""SageMaker shows the first 1,024 of /opt/ml/output/failure as the reason."""

REMEMBERED_LINES = 40
PORT = 29500
NEURON = "ml.trn1."


class Failed(Exception):
    """A step ended with another code than 0, or could not begin.

    Args:
        what: Which, and how.
        code: How it ended.
        said: Its last lines.
    """

    def __init__(self, what: str, code: int, said: list[str]) -> None:
        super().__init__(what)
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
    compiling.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args(arguments)
    base = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))
    try:
        _install(base / "input" / "data" / "wheelhouse")
        if given.stage == "train":
            _train(base, given.instance, given.nodes, given.processes)
        else:
            _compile(base, given.target, given.set)
    except Failed as failure:
        reason = base / "output" / "failure"
        reason.parent.mkdir(parents=True, exist_ok=True)
        told = [line for line in failure.said if line.startswith(("error:", "hint:"))] or failure.said[-5:]
        reason.write_text("\n".join([*told, str(failure)])[:FAILURE_CHARACTERS], encoding="utf-8")
        print(failure, flush=True)
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
        meeting = [
            f"--nnodes={nodes}",
            f"--node_rank={rank}",
            f"--nproc_per_node={processes}",
            f"--master_addr={sorted(hosts['hosts'])[0]}",
            f"--master_port={PORT}",
        ]
        _run([sys.executable, "-m", "torch.distributed.run", *meeting, "-m", "neuron_sum", *train])
    else:
        _run([*neuron_sum, *train, *(["--processes", str(processes)] if processes > 1 else [])])
    if rank == 0:
        shutil.copytree(output, base / "model" / "run", ignore=shutil.ignore_patterns("checkpoints"))


def _compile(base: Path, target: str, overrides: list[str]) -> None:
    """Leaves in /opt/ml/model what an endpoint unpacks: SageMaker packs that into the job's model.tar.gz."""
    inputs, work = base / "input" / "data", base / "work"
    shutil.rmtree(work, ignore_errors=True)
    run = _run_folder(inputs / "run", work / "run")
    if (inputs / "model").is_dir() and not (run / "base").exists():
        # The adapter's base, which the run knows by a path of another container: a run's own base/ goes before that.
        (run / "base").symlink_to(inputs / "model")
    # SageMaker keeps this folder in S3, file by file: a graph comes under its name when it is whole, and what a killed
    # process leaves has another one.
    cache = base / "checkpoints" / "cache"
    for left in cache.rglob(".*.tmp-*"):
        left.unlink()
    os.environ["NEURON_SUM_CACHE"] = str(cache)
    neuron_sum = [sys.executable, "-m", "neuron_sum"]
    artifact, archive = work / "artifact", work / "model.tar.gz"
    _run([*neuron_sum, "doctor"])
    _run(
        [
            *neuron_sum,
            "compile",
            str(run),
            "--target",
            target,
            "--output",
            str(artifact),
            *(f"--set={override}" for override in overrides),
        ]
    )
    _run([*neuron_sum, "package", str(artifact), "--output", str(archive)])
    _unpack(archive, base / "model")


def _run_folder(channel: Path, folder: Path) -> Path:
    """The run of a channel, in a folder that can be written: unpacked, or links to what is there."""
    folder.mkdir(parents=True)
    archives = sorted(channel.glob("*.tar.gz"))
    if not archives:
        for path in channel.iterdir():
            (folder / path.name).symlink_to(path)
    for archive in archives:
        _unpack(archive, folder)
    found = min(folder.rglob("recipe.yaml"), key=lambda path: len(path.parts), default=None)
    if found is None:
        listing = ", ".join(path.name for path in sorted(channel.iterdir())) or "nothing"
        raise Failed(f"error: no run was given: the channel {channel.name} holds {listing}", 1, [])
    return found.parent


def _unpack(archive: Path, folder: Path) -> None:
    """Nothing but files and folders, under names that stay in the folder: an archive may come from anywhere."""
    try:
        with tarfile.open(archive) as packed:
            for member in packed:
                place = PurePosixPath(member.name)
                if place.is_absolute() or ".." in place.parts or not (member.isreg() or member.isdir()):
                    raise Failed(f"error: {archive.name} holds {member.name!r}, which is no file of a run", 1, [])
                target = folder / place
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                content = packed.extractfile(member)
                assert content is not None  # it is a file
                with content, target.open("wb") as file:
                    shutil.copyfileobj(content, file)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise Failed(f"error: {archive.name} cannot be unpacked: {error}", 1, []) from error


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
        raise Failed(f"{' '.join(command[1:])} ended with {code}", code, list(last))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
