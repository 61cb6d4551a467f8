"""Entry script of a job's container: verify the inputs, install the wheelhouse, run `doctor`, then start the command.

It imports only the standard library, because nothing else is installed yet.

    python3 entry.py --verify=wheelhouse=SHA256 train --instance ml.trn1.2xlarge --nodes 1 --processes 2
    python3 entry.py --verify=wheelhouse=SHA256 compile --target inf2 --set=compile.batch_sizes=[1,8]
    python3 entry.py --verify=wheelhouse=SHA256 receipt --instance ml.trn1.2xlarge --size full

All paths are below /opt/ml, or SAGEMAKER_BASE_DIR.
"""

import argparse
import hashlib
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
"""SageMaker reports the first 1,024 characters of /opt/ml/output/failure as the reason of a failure."""

REMEMBERED_LINES = 40
PORT = 29500
NEURON = "ml.trn1."


class Failed(Exception):
    """A step that ended with a nonzero exit code or could not start.

    Args:
        message: The step and the reason.
        code: The exit code of the step.
        last_lines: The last lines of its output.
    """

    def __init__(self, message: str, code: int, last_lines: list[str]) -> None:
        super().__init__(message)
        self.code, self.last_lines = code, last_lines


def main(arguments: list[str]) -> int:
    """Run a job.

    Args:
        arguments: The stage and its options.

    Returns:
        The exit code of the step that failed; 0 if none failed.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--verify", action="append", default=[], metavar="CHANNEL=SHA256")
    stages = parser.add_subparsers(dest="stage", required=True)
    train = stages.add_parser("train", allow_abbrev=False)
    train.add_argument("--instance", required=True)
    train.add_argument("--nodes", type=int, required=True)
    train.add_argument("--processes", type=int, required=True)
    compiling = stages.add_parser("compile", allow_abbrev=False)
    compiling.add_argument("--target", required=True)
    compiling.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    receipt = stages.add_parser("receipt", allow_abbrev=False)
    receipt.add_argument("--instance", required=True)
    receipt.add_argument("--size", required=True)
    options = parser.parse_args(arguments)
    base = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))
    try:
        for name, _, sha256 in (each.partition("=") for each in options.verify):
            _verify(base / "input" / "data" / name, sha256)
        _install(base / "input" / "data" / "wheelhouse")
        if options.stage == "train":
            _train(base, options.instance, options.nodes, options.processes)
        elif options.stage == "compile":
            _compile(base, options.target, options.set)
        else:
            _receipt(base, options.instance, options.size)
    except Failed as failure:
        reason = base / "output" / "failure"
        reason.parent.mkdir(parents=True, exist_ok=True)
        output = failure.last_lines
        lines = [line for line in output if line.startswith(("error:", "hint:"))] or output[-5:]
        reason.write_text("\n".join([*lines, str(failure)])[:FAILURE_CHARACTERS], encoding="utf-8")
        print(failure, flush=True)
        return failure.code if failure.code > 0 else 128 - failure.code
    return 0


def _verify(channel: Path, expected: str) -> None:
    """Compare the names and contents of a channel's files with those that were uploaded (launch/channels.py)."""
    digest = hashlib.sha256()
    inside = {path.relative_to(channel).as_posix(): path for path in channel.rglob("*") if path.is_file()}
    for name, path in sorted(inside.items()):
        content = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                content.update(piece)
        digest.update(f"{name}\0{content.hexdigest()}\n".encode())
    if digest.hexdigest() != expected:
        raise Failed(
            f"error: the files of the channel {channel.name} are not those that were uploaded: SHA-256 "
            f"{digest.hexdigest()} instead of {expected}. Delete the objects below "
            f"inputs/{channel.name}/{expected[:20]}/ in the bucket and start the job again",
            1,
            [],
        )


def _install(wheelhouse: Path) -> None:
    """Install the wheels over the image's packages, without dependencies; the image keeps its torch and Neuron."""
    wheels = sorted(str(wheel) for wheel in wheelhouse.glob("*.whl")) if wheelhouse.is_dir() else []
    if wheels:
        _run([sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet", *wheels])


def _train(base: Path, instance: str, nodes: int, processes: int) -> None:
    recipe, output = base / "input" / "data" / "recipe" / "recipe.yaml", base / "checkpoints" / "run"
    hosts = json.loads((base / "input" / "config" / "resourceconfig.json").read_text(encoding="utf-8"))
    rank = sorted(hosts["hosts"]).index(hosts["current_host"])
    neuron_sum = [sys.executable, "-m", "neuron_sum"]
    checks = [str(recipe), "--instance", instance] if instance.startswith(NEURON) else []
    _run([*neuron_sum, "doctor", *checks])
    # SageMaker keeps this folder in S3 and restores it after a spot interruption, so that --resume can continue.
    train = ["train", str(recipe), "--output", str(output), "--resume"]
    if nodes > 1:
        rendezvous = [
            f"--nnodes={nodes}",
            f"--node_rank={rank}",
            f"--nproc_per_node={processes}",
            f"--master_addr={sorted(hosts['hosts'])[0]}",
            f"--master_port={PORT}",
        ]
        _run([sys.executable, "-m", "torch.distributed.run", *rendezvous, "-m", "neuron_sum", *train])
    else:
        _run([*neuron_sum, *train, *(["--processes", str(processes)] if processes > 1 else [])])
    if rank == 0:
        shutil.copytree(output, base / "model" / "run", ignore=shutil.ignore_patterns("checkpoints"))


def _compile(base: Path, target: str, overrides: list[str]) -> None:
    """Compile a run into /opt/ml/model, which SageMaker packs into the job's model.tar.gz for an endpoint."""
    inputs, work = base / "input" / "data", base / "work"
    shutil.rmtree(work, ignore_errors=True)
    run = _run_folder(inputs / "run", work / "run")
    if (inputs / "model").is_dir() and not (run / "base").exists():
        # The run records the adapter's base by a path of another container, but base/ in the run's folder has priority.
        (run / "base").symlink_to(inputs / "model")
    # SageMaker syncs this folder with S3, file by file. A complete graph has its final name; a killed process leaves
    # files with temporary names.
    cache = base / "checkpoints" / "cache"
    for unfinished in cache.rglob(".*.tmp-*"):
        unfinished.unlink()
    os.environ["NEURON_SUM_CACHE"] = str(cache)
    neuron_sum = [sys.executable, "-m", "neuron_sum"]
    artifact, archive = work / "artifact", work / "model.tar.gz"
    _run([*neuron_sum, "doctor"])
    sets = [f"--set={override}" for override in overrides]
    _run([*neuron_sum, "compile", str(run), "--target", target, "--output", str(artifact), *sets])
    _run([*neuron_sum, "package", str(artifact), "--output", str(archive)])
    _unpack(archive, base / "model")


def _receipt(base: Path, instance: str, size: str) -> None:
    """Make a receipt of the host's Neuron device; the results so far are kept in S3 if the job is stopped."""
    os.environ["SM_CURRENT_INSTANCE_TYPE"] = instance
    folder, kept = base / "work" / "receipt", base / "checkpoints" / "receipt"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _run([sys.executable, "-m", "neuron_sum", "receipt", "--output", str(folder), "--size", size])
    finally:
        for place in (kept, base / "model"):
            place.mkdir(parents=True, exist_ok=True)
            for path in folder.glob("receipt.*"):
                shutil.copy(path, place)


def _run_folder(channel: Path, folder: Path) -> Path:
    """Make the run of a channel available in a writable folder: unpack its archives, or link its files."""
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
        raise Failed(f"error: the channel {channel.name} contains no run: {listing}", 1, [])
    return found.parent


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack files and folders only, with paths inside the folder, because the archive may not be trusted."""
    try:
        with tarfile.open(archive) as packed:
            for member in packed:
                place = PurePosixPath(member.name)
                if place.is_absolute() or ".." in place.parts or not (member.isreg() or member.isdir()):
                    raise Failed(f"error: {archive.name} contains {member.name!r}, which is not a file of a run", 1, [])
                target = folder / place
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                content = packed.extractfile(member)
                assert content is not None  # the member is a file
                with content, target.open("wb") as file:
                    shutil.copyfileobj(content, file)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise Failed(f"error: {archive.name} cannot be unpacked: {error}", 1, []) from error


def _run(command: list[str]) -> None:
    """Run one step; forward its output, and SIGTERM (a spot interruption, a stop, the time limit) to it."""
    print("$ " + " ".join(command[1:]), flush=True)
    last: deque[str] = deque(maxlen=REMEMBERED_LINES)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        assert process.stdout is not None  # stdout is a pipe
        for line in process.stdout:
            last.append(line.rstrip("\n"))
            print(line, end="", flush=True)
        code = process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
    if code:
        raise Failed(f"{' '.join(command[1:])} ended with exit code {code}", code, list(last))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
