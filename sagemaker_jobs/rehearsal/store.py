"""A folder that stands in for S3: what a launch would upload, and what jobs write, at the addresses of the requests."""

import os
import shutil
from pathlib import Path

from neuron_sum.errors import AwsError
from sagemaker_jobs.aws.place import Request
from sagemaker_jobs.launch.start import Launch

GRAPHS = "graphs"
"""Of a cache of neuron-sum's: the folder of compiled graphs."""


class LocalStore:
    """Objects as files, by their s3:// addresses.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, uri: str) -> Path:
        """Where an address lies in the folder."""
        return self._folder / uri.removeprefix("s3://")

    def upload(self, launch: Launch) -> None:
        """Puts a launch's channels where the launch would; links to the files, which a container gets copies of."""
        for channel in launch.channels:
            for name, file in channel.files.items():
                there = self.path(launch.place.inputs(channel.name, channel.digest)) / name
                there.parent.mkdir(parents=True, exist_ok=True)
                there.unlink(missing_ok=True)
                there.symlink_to(file.resolve())

    def fetch(self, channel: Request, into: Path) -> None:
        """Copies what a channel of a request names, as SageMaker downloads it.

        Raises:
            AwsError: If nothing is there: the request names what the launch does not upload.
        """
        uri = channel["DataSource"]["S3DataSource"]["S3Uri"]
        there = self.path(uri)
        if there.is_file():
            shutil.copy(there, into / there.name)
        elif there.is_dir():
            shutil.copytree(there, into, dirs_exist_ok=True)
        else:
            raise AwsError(f"the channel {channel['ChannelName']} is to come from {uri}, where nothing would be")

    def model(self, request: Request) -> Path:
        """Where SageMaker writes what a job leaves in /opt/ml/model."""
        output = request["OutputDataConfig"]["S3OutputPath"].rstrip("/")
        return self.path(f"{output}/{request['TrainingJobName']}/output/model.tar.gz")

    def checkpoints(self, request: Request) -> Path:
        """What SageMaker keeps of /opt/ml/checkpoints, for all jobs with the same address."""
        return self.path(request["CheckpointConfig"]["S3Uri"])


def share_graphs(source: Path, target: Path) -> int:
    """Gives one cache's compiled graphs to another: found by their content, and never changed, they can be shared.

    Args:
        source: A cache.
        target: Another.

    Returns:
        How many were not there yet.
    """
    there = target / GRAPHS
    there.mkdir(parents=True, exist_ok=True)
    new = [path for path in (source / GRAPHS).glob("[!.]*") if path.is_file() and not (there / path.name).exists()]
    for path in new:
        whole = there / f".{path.name}.tmp-{os.getpid()}"
        try:
            whole.hardlink_to(path)
        except OSError:  # another disk
            shutil.copy(path, whole)
        whole.replace(there / path.name)
    return len(new)
