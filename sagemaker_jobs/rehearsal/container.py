"""A job's container on this machine: a CreateTrainingJob request, run as SageMaker runs it.

What SageMaker gives a container, and takes from it, is in its developer guide: "How Amazon SageMaker AI Provides
Training Information", "… Runs Your Training Image" and "… Processes Training Output".
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

from neuron_sum import files
from neuron_sum.errors import AwsError
from sagemaker_jobs.aws.place import STOP_GRACE_S, Request
from sagemaker_jobs.jobs.requests import RECIPE
from sagemaker_jobs.rehearsal import namespace
from sagemaker_jobs.rehearsal.image import LocalImage
from sagemaker_jobs.rehearsal.namespace import BASE

HOST = "algo-1"
"""What SageMaker calls the first machine of a job."""

JOB_VARIABLE = "TRAINING_JOB_NAME"

REASON_CHARACTERS = 1024
"""Of /opt/ml/output/failure SageMaker shows so many."""

REMEMBERED_LINES = 40
LOOK_S = 0.02
KILLED_S = 10.0
"""A process that was killed is gone at once, unless the kernel has it."""

Fetch = Callable[[Request, Path], None]
"""Puts a channel's files into a folder; the channel is as in the request's InputDataConfig."""


@dataclass(frozen=True)
class Ended:
    """How a container ended.

    Attributes:
        status: SageMaker's word: Completed, Failed or Stopped.
        code: Of its entrypoint; negative: the signal that ended it.
        reason: As SageMaker would give it, if it failed.
        said: Its last lines.
    """

    status: str
    code: int
    reason: str | None
    said: tuple[str, ...]


class Container:
    """One container; use it in a `with` statement, at whose end nothing of it runs any more.

    Args:
        request: What would be sent.
        fetch: Gives the channels' files.
        image: What it runs in.
        folder: Becomes /opt/ml, and is emptied first: each job gets a new machine.
        checkpoints: Becomes /opt/ml/checkpoints; what is there stays, as in S3.
        on_line: Told of each line that it writes.

    Raises:
        AwsError: If it is for several machines.
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
            raise AwsError(f"a job of {number} machines cannot be run on one", "--instances 1")
        self.name: str = request["TrainingJobName"]
        self._request, self._fetch, self._image, self._on_line = request, fetch, image, on_line
        self._folder, self._checkpoints = folder, checkpoints
        self._said: deque[str] = deque(maxlen=REMEMBERED_LINES)
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._stopped = False

    def __enter__(self) -> "Container":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Lays out /opt/ml and starts the entrypoint."""
        shutil.rmtree(self._folder, ignore_errors=True)
        for name in ("input/config", "input/data", "model", "output", "checkpoints"):
            (self._folder / name).mkdir(parents=True)
        self._checkpoints.mkdir(parents=True, exist_ok=True)
        config = self._folder / "input" / "config"
        channels = self._request.get("InputDataConfig", [])
        files.write_json(config / "hyperparameters.json", self._request.get("HyperParameters", {}))
        files.write_json(config / "inputdataconfig.json", {each["ChannelName"]: _described(each) for each in channels})
        files.write_json(config / "resourceconfig.json", _resources(self._request["ResourceConfig"]["InstanceType"]))
        for each in channels:
            into = self._folder / "input" / "data" / each["ChannelName"]
            into.mkdir()
            self._fetch(each, into)
        algorithm = self._request["AlgorithmSpecification"]
        command = [*algorithm["ContainerEntrypoint"], *algorithm.get("ContainerArguments", [])]
        environment = {**self._image.environment, **_documented(self._request), **self._request.get("Environment", {})}
        if self._image.unshare is not None:
            command = namespace.inside(
                self._image.unshare, self._folder, self._checkpoints, self._image.folder / "opt", command
            )
        else:
            command = self._as_folders(command)
            environment["SAGEMAKER_BASE_DIR"] = str(self._folder)
        # Whatever ends this process, even SIGKILL, ends the container too.
        follow = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        self._process = subprocess.Popen(
            [*follow, *command],
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
        """Waits for its end, which comes at the latest with the request's MaxRuntimeInSeconds.

        Args:
            until: Ends the waiting, too.

        Returns:
            How it ended; None if `until` came first, and it still runs.
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
        """What StopTrainingJob and the end of the time do: SIGTERM, and SIGKILL after the grace."""
        self._stopped = True
        for process in self._entrypoint():
            process.send_signal(signal.SIGTERM)
        assert self._process is not None
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Ends every process of it at once, as the loss of the machine does; safe to call twice."""
        if self._process is None:
            return
        end = time.monotonic() + KILLED_S
        while (left := [*self._entrypoint(), *running(self.name)]) and time.monotonic() < end:
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            # Our own child is waited for as such: whoever else does that takes its exit code away.
            psutil.wait_procs([process for process in left if process.pid != self._process.pid], timeout=1)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
        self._process.wait()
        if self._reader is not None:
            self._reader.join(timeout=5)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def write_model(self, archive: Path) -> None:
        """What SageMaker makes of /opt/ml/model after a job that completed."""
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive, "w:gz", compresslevel=1) as packed:
            for path in sorted((self._folder / "model").iterdir()):
                packed.add(path, path.name)

    def _entrypoint(self) -> list[psutil.Process]:
        """Process 1 of the container, seen from outside; the one that was started itself where there is none."""
        assert self._process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            if self._process.poll() is None:
                outer = psutil.Process(self._process.pid)
                return outer.children() if self._image.isolated else [outer]
        return []

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None  # it is a pipe
        with contextlib.suppress(ValueError):  # closed by a kill
            for line in self._process.stdout:
                self._said.append(line.rstrip("\n"))
                if self._on_line is not None:
                    self._on_line(line.rstrip("\n"))

    def _ended(self) -> Ended:
        assert self._process is not None and self._reader is not None
        self._reader.join(timeout=KILLED_S)
        code, failure = self._process.returncode, self._folder / "output" / "failure"
        status = "Stopped" if self._stopped else "Failed" if code else "Completed"
        reason = None
        if status == "Failed":
            told = failure.read_text(encoding="utf-8")[:REASON_CHARACTERS] if failure.is_file() else ""
            reason = f"AlgorithmError: {told}, exit code: {code}"
        return Ended(status, code, reason, tuple(self._said))

    def _as_folders(self, command: list[str]) -> list[str]:
        """What names /opt/ml is told where that is; the recipe's paths, too: no entry script can know of those."""
        (self._folder / "checkpoints").rmdir()
        (self._folder / "checkpoints").symlink_to(self._checkpoints.resolve())
        for recipe in (self._folder / "input" / "data" / RECIPE).glob("*.yaml"):
            files.write_text(recipe, recipe.read_text(encoding="utf-8").replace(f"{BASE}/", f"{self._folder}/"))
        return [word.replace(f"{BASE}/", f"{self._folder}/") for word in command]


def running(name: str, variable: str = JOB_VARIABLE) -> list[psutil.Process]:
    """Every process of a job's container, whoever its parent is by now: a container's processes have its variables.

    Args:
        name: The job's.
        variable: Another one tells the processes of something else.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            mine = process.environ().get(variable) == name
            if mine and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@contextlib.contextmanager
def started(container: Container) -> Iterator[Container]:
    """A container that runs in this block."""
    with container:
        container.start()
        yield container


def _documented(request: Request) -> dict[str, str]:
    """The two variables that the guide promises; SM_HOSTS and the like come from the toolkit, in images with it."""
    account = request["RoleArn"].split(":")[4]
    image = re.search(r"\.ecr\.([a-z0-9-]+)\.", request["AlgorithmSpecification"]["TrainingImage"])
    region = image[1] if image else "us-east-1"
    arn = f"arn:aws:sagemaker:{region}:{account}:training-job/{request['TrainingJobName']}"
    return {JOB_VARIABLE: request["TrainingJobName"], "TRAINING_JOB_ARN": arn}


def _described(channel: Request) -> Request:
    source = channel["DataSource"]["S3DataSource"]
    return {
        "TrainingInputMode": channel.get("InputMode", "File"),
        "S3DistributionType": source.get("S3DataDistributionType", "FullyReplicated"),
        "RecordWrapperType": channel.get("RecordWrapperType", "None"),
    }


def _resources(instance: str) -> Request:
    group = {"instance_group_name": "homogeneousCluster", "instance_type": instance, "hosts": [HOST]}
    return {
        "current_host": HOST,
        "current_instance_type": instance,
        "current_group_name": "homogeneousCluster",
        "hosts": [HOST],
        "instance_groups": [group],
        "network_interface_name": "eth0",
    }
