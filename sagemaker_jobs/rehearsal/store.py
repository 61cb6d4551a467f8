"""Local folder that replaces S3: the uploads of a launch and the outputs of its jobs, by the requests' addresses."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from neuron_sum.errors import AwsError
from sagemaker_jobs.launch.start import Launch
from sagemaker_jobs.stack.stack import Request

GRAPHS = "graphs"
"""Folder of the compiled graphs in neuron-sum's cache."""


@dataclass(frozen=True)
class LocalStore:
    """Files that represent S3 objects, by their s3:// addresses.

    Attributes:
        folder: The folder of the files.
    """

    folder: Path

    def path(self, uri: str) -> Path:
        """The path of an address in the folder."""
        return self.folder / uri.removeprefix("s3://")

    def upload(self, launch: Launch) -> None:
        """Link the channels of a launch at the addresses it would upload to; containers get copies."""
        for channel in launch.channels:
            for name, file in channel.files.items():
                link = self.path(launch.stack.inputs(channel.name, channel.digest)) / name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)
                link.symlink_to(file.resolve())

    def fetch(self, channel: Request, into: Path) -> None:
        """Copy the files of a request's channel, as SageMaker downloads them.

        Raises:
            AwsError: If there are no files, because the launch does not upload to the address in the request.
        """
        uri = channel["DataSource"]["S3DataSource"]["S3Uri"]
        path = self.path(uri)
        if path.is_file():
            shutil.copy(path, into / path.name)
        elif path.is_dir():
            shutil.copytree(path, into, dirs_exist_ok=True)
        else:
            raise AwsError(f"the channel {channel['ChannelName']} reads {uri}, but nothing is uploaded there")

    def model(self, request: Request) -> Path:
        """The path of a job's model.tar.gz, which SageMaker creates from /opt/ml/model."""
        output = request["OutputDataConfig"]["S3OutputPath"].rstrip("/")
        return self.path(f"{output}/{request['TrainingJobName']}/output/model.tar.gz")

    def checkpoints(self, request: Request) -> Path:
        """The path of the copy of /opt/ml/checkpoints, shared by all jobs with the same address."""
        return self.path(request["CheckpointConfig"]["S3Uri"])


def share_graphs(source: Path, target: Path) -> int:
    """Share the compiled graphs of one cache with another, and return how many were missing there.

    Graphs are named by their content and never change.
    """
    folder = target / GRAPHS
    folder.mkdir(parents=True, exist_ok=True)
    new = [path for path in (source / GRAPHS).glob("[!.]*") if path.is_file() and not (folder / path.name).exists()]
    for path in new:
        temporary = folder / f".{path.name}.tmp-{os.getpid()}"
        try:
            temporary.hardlink_to(path)
        except OSError:  # another disk
            shutil.copy(path, temporary)
        temporary.replace(folder / path.name)
    return len(new)
