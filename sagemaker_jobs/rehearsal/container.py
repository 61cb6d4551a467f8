"""A job's container on this machine: runs a CreateTrainingJob request as SageMaker does.

SageMaker's developer guide describes the inputs and outputs of a container: "How Amazon SageMaker AI Provides Training
Information", "… Runs Your Training Image" and "… Processes Training Output".
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tarfile
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from neuron_sum import files
from neuron_sum.errors import AwsError
from neuron_sum.subprocesses import ending_with_parent
from sagemaker_jobs.jobs.requests import RECIPE
from sagemaker_jobs.launch.quotas import STOP_GRACE_S
from sagemaker_jobs.rehearsal import namespace
from sagemaker_jobs.rehearsal.image import LocalImage
from sagemaker_jobs.rehearsal.namespace import BASE
from sagemaker_jobs.stack.stack import Request

HOST = "algo-1"
"""SageMaker's name of the first machine of a job."""

GROUP = "homogeneousCluster"
INPUT = {"S3DistributionType": "FullyReplicated", "RecordWrapperType": "None"}
"""SageMaker's name of the group of all machines, and the values of a channel that jobs do not set."""

JOB_VARIABLE = "TRAINING_JOB_NAME"

REASON_CHARACTERS = 1024
"""Number of characters of /opt/ml/output/failure that SageMaker reports."""

REMEMBERED_LINES = 40
LOOK_S = 0.02
KILLED_S = 10.0
"""Maximum seconds until a killed process is gone, which is usually immediate."""

LOST_S = 1.0
"""Seconds to look for the process of an interrupted start, which may not exist."""

Fetch = Callable[[Request, Path], None]
"""Function that copies a channel's files into a folder; the channel is an element of the request's InputDataConfig."""


@dataclass(frozen=True)
class Ended:
    """The end of a container.

    Attributes:
        status: The status at SageMaker: Completed, Failed or Stopped.
        code: The exit code of the entrypoint; if negative, the signal that ended it.
        reason: The failure reason as SageMaker would report it.
        last_lines: The last lines of the output.
    """

    status: str
    code: int
    reason: str | None
    last_lines: tuple[str, ...]


class Container:
    """A container that is started by a `with` statement, which ends all of its processes, also if the start fails.

    Args:
        request: The CreateTrainingJob request.
        fetch: Called to copy the files of each channel.
        image: The image to run.
        folder: The folder for /opt/ml, which is emptied first because each job gets a new machine.
        checkpoints: The folder for /opt/ml/checkpoints, which keeps its files as S3 does.
        on_line: Called with each line of the output.

    Raises:
        AwsError: If the job needs several machines.
    """

    def __init__(
        self,
        request: Request,
        fetch: Fetch,
        image: LocalImage,
        folder: Path,
        checkpoints: Path,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        if (number := request["ResourceConfig"]["InstanceCount"]) != 1:
            raise AwsError(f"a job of {number} machines cannot be rehearsed on one", "Use --instances 1.")
        self.name: str = request["TrainingJobName"]
        self._request, self._fetch, self._image, self._on_line = request, fetch, image, on_line
        self._folder, self._checkpoints = folder, checkpoints
        self._last_lines: deque[str] = deque(maxlen=REMEMBERED_LINES)
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._launched = self._stopped = False

    def __enter__(self) -> "Container":
        try:
            self._start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _start(self) -> None:
        """Prepare /opt/ml and start the entrypoint."""
        shutil.rmtree(self._folder, ignore_errors=True)
        for name in ("input/config", "input/data", "model", "output", "checkpoints"):
            (self._folder / name).mkdir(parents=True)
        self._checkpoints.mkdir(parents=True, exist_ok=True)
        config, instance = self._folder / "input" / "config", self._request["ResourceConfig"]["InstanceType"]
        channels = self._request.get("InputDataConfig", [])
        group = {"instance_group_name": GROUP, "instance_type": instance, "hosts": [HOST]}
        resources = {
            "current_host": HOST,
            "current_instance_type": instance,
            "current_group_name": GROUP,
            "hosts": [HOST],
            "instance_groups": [group],
            "network_interface_name": "eth0",
        }
        inputs = {each["ChannelName"]: {"TrainingInputMode": "File", **INPUT} for each in channels}
        files.write_json(config / "hyperparameters.json", self._request.get("HyperParameters", {}))
        files.write_json(config / "inputdataconfig.json", inputs)
        files.write_json(config / "resourceconfig.json", resources)
        for each in channels:
            into = self._folder / "input" / "data" / each["ChannelName"]
            into.mkdir()
            self._fetch(each, into)
        algorithm = self._request["AlgorithmSpecification"]
        command = [*algorithm["ContainerEntrypoint"], *algorithm.get("ContainerArguments", [])]
        # The guide documents these two variables; SageMaker's training toolkit sets SM_HOSTS and others.
        account, registry = self._request["RoleArn"].split(":")[4], algorithm["TrainingImage"]
        region = found[1] if (found := re.search(r"\.ecr\.([a-z0-9-]+)\.", registry)) else "us-east-1"
        arn = f"arn:aws:sagemaker:{region}:{account}:training-job/{self.name}"
        documented = {JOB_VARIABLE: self.name, "TRAINING_JOB_ARN": arn}
        environment = {**self._image.environment, **documented, **self._request.get("Environment", {})}
        if self._image.unshare is not None:
            command = namespace.inside(
                self._image.unshare, self._folder, self._checkpoints, self._image.folder / "opt", command
            )
        else:
            command = self._as_folders(command)
            environment["SAGEMAKER_BASE_DIR"] = str(self._folder)
        self._launched = True
        self._process = subprocess.Popen(
            ending_with_parent(command, "KILL"),
            env=environment,
            cwd=self._image.environment["HOME"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait(self, until: Callable[[], bool] = lambda: False) -> Ended | None:
        """Wait until the container ends; it is stopped after the request's MaxRuntimeInSeconds.

        Args:
            until: A condition that also ends the wait.

        Returns:
            The end of the container; None if `until` became true first and the container still runs.
        """
        assert self._process is not None
        end = time.monotonic() + self._request["StoppingCondition"]["MaxRuntimeInSeconds"]
        while self._process.poll() is None:
            if until():
                return None
            if time.monotonic() > end:
                self.stop()
            time.sleep(LOOK_S)
        return self._ended()

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Stop the container as StopTrainingJob and the time limit do: SIGTERM, then SIGKILL after the grace period."""
        self._stopped = True
        for process in self._entrypoint():
            process.send_signal(signal.SIGTERM)
        assert self._process is not None
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill all processes of the container at once, as the loss of the machine would; may be called twice."""
        if not self._launched:
            return
        begun, killed = time.monotonic(), False
        while (now := time.monotonic()) < begun + KILLED_S:
            processes = [*self._entrypoint(), *running(self.name)]
            # If Popen was interrupted: a process cannot be found while it executes a new file.
            ended = (killed or now > begun + LOST_S) if self._process is None else self._process.poll() is not None
            if ended and not processes:
                break
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
                    killed = True
            time.sleep(LOOK_S)
        if self._process is None:
            return
        self._process.wait()
        if self._reader is not None and self._reader.ident is not None:
            self._reader.join(timeout=5)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def write_model(self, archive: Path) -> None:
        """Pack /opt/ml/model into an archive, as SageMaker does after a completed job."""
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive, "w:gz", compresslevel=1) as packed:
            for path in sorted((self._folder / "model").iterdir()):
                packed.add(path, path.name)

    def _entrypoint(self) -> list[psutil.Process]:
        """Process 1 of the container, as seen from outside; without namespaces, the started process itself."""
        with contextlib.suppress(psutil.NoSuchProcess):
            if self._process is not None and self._process.poll() is None:
                outer = psutil.Process(self._process.pid)
                return outer.children() if self._image.isolated else [outer]
        return []

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None  # stdout is a pipe
        with contextlib.suppress(ValueError):  # kill closes the pipe
            for line in self._process.stdout:
                self._last_lines.append(line.rstrip("\n"))
                if self._on_line is not None:
                    self._on_line(line.rstrip("\n"))

    def _ended(self) -> Ended:
        assert self._process is not None and self._reader is not None
        self._reader.join(timeout=KILLED_S)
        code, failure = self._process.returncode, self._folder / "output" / "failure"
        status = "Stopped" if self._stopped else "Failed" if code else "Completed"
        reason = None
        if status == "Failed":
            text = failure.read_text(encoding="utf-8")[:REASON_CHARACTERS] if failure.is_file() else ""
            reason = f"AlgorithmError: {text}, exit code: {code}"
        return Ended(status, code, reason, tuple(self._last_lines))

    def _as_folders(self, command: list[str]) -> list[str]:
        """Replace /opt/ml in the command, and in the recipe, whose paths the entry script does not adapt."""
        (self._folder / "checkpoints").rmdir()
        (self._folder / "checkpoints").symlink_to(self._checkpoints.resolve())
        for recipe in (self._folder / "input" / "data" / RECIPE).glob("*.yaml"):
            files.write_text(recipe, recipe.read_text(encoding="utf-8").replace(f"{BASE}/", f"{self._folder}/"))
        return [word.replace(f"{BASE}/", f"{self._folder}/") for word in command]


def running(name: str, variable: str = JOB_VARIABLE) -> list[psutil.Process]:
    """All processes of a job's container, found by their environment variables, even if their parent has changed.

    Args:
        name: The name of the job.
        variable: The environment variable with that value.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            matches = process.environ().get(variable) == name
            if matches and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
