"""Runs the training jobs of the tests' account in containers: channels from S3, model.tar.gz and log back."""

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
from aws_iam import THE_JOB
from aws_script import REGION
from aws_training import LOG_GROUP
from botocore.config import Config

from neuron_sum import files
from sagemaker_jobs.rehearsal.container import Container, Ended
from sagemaker_jobs.rehearsal.image import LocalImage
from sagemaker_jobs.rehearsal.store import share_graphs


class Runner:
    """Runs training jobs as SageMaker does; after `close` nothing runs any more.

    Args:
        url: The URL of the server.
        image: The image in which jobs run.
        folder: The folder for their files.
    """

    def __init__(self, url: str, image: LocalImage, folder: Path) -> None:
        self._image, self._folder = image, folder
        self._jobs: dict[str, _Job] = {}
        self._clients = {
            service: boto3.client(
                service,
                endpoint_url=url,
                region_name=REGION,
                aws_access_key_id="none",
                aws_secret_access_key="none",
                config=Config(user_agent_extra=THE_JOB),
            )
            for service in ("s3", "logs")
        }

    def start(self, request: dict[str, Any]) -> None:
        job = _Job(request, self._image, self._folder / request["TrainingJobName"], self._clients)
        self._jobs[request["TrainingJobName"]] = job
        job.start()

    def ended(self, name: str) -> Ended | None:
        """The result of a job; None while it runs."""
        return self._jobs[name].ended

    def stop(self, name: str) -> None:
        threading.Thread(target=self._jobs[name].container.stop).start()

    def close(self) -> None:
        for job in self._jobs.values():
            job.container.kill()
            job.join()


class _Job(threading.Thread):
    """One job, from the download of its channels to the upload of its outputs."""

    def __init__(self, request: dict[str, Any], image: LocalImage, folder: Path, clients: dict[str, Any]) -> None:
        super().__init__()
        self.ended: Ended | None = None
        self._request, self._folder, self._clients = request, folder, clients
        self._log = {"logGroupName": LOG_GROUP, "logStreamName": f"{request['TrainingJobName']}/algo-1-1700000000"}
        folder.mkdir(parents=True)
        self.container = Container(request, self._fetch, image, folder / "ml", folder / "checkpoints", self._line)

    def run(self) -> None:
        try:
            self.ended = self._run()
        except Exception as error:  # noqa: BLE001 - whatever it is, the job has failed, and the test shall see why
            self.ended = Ended("Failed", 1, f"InternalServerError: {error!r}", ())

    def _run(self) -> Ended:
        logs = self._clients["logs"]
        with suppress(logs.exceptions.ResourceAlreadyExistsException):
            logs.create_log_group(logGroupName=LOG_GROUP)
        logs.create_log_stream(**self._log)
        kept, output = self._request["CheckpointConfig"]["S3Uri"], self._request["OutputDataConfig"]["S3OutputPath"]
        checkpoints = self._folder / "checkpoints"
        checkpoints.mkdir()
        self._download(kept, checkpoints)
        share_graphs(files.cache_folder(), checkpoints / "cache")
        with self.container:
            ended = self.container.wait()
            assert ended is not None
            self._upload(checkpoints, kept)
            if ended.status == "Completed":
                made = self._folder / "output" / "model.tar.gz"
                self.container.write_model(made)
                self._upload(made.parent, f"{output}/{self.container.name}/output")
        share_graphs(checkpoints / "cache", files.cache_folder())
        return ended

    def _line(self, line: str) -> None:
        event = {"timestamp": int(time.time() * 1000), "message": line or " "}
        self._clients["logs"].put_log_events(**self._log, logEvents=[event])

    def _fetch(self, channel: dict[str, Any], into: Path) -> None:
        assert self._download(channel["DataSource"]["S3DataSource"]["S3Uri"], into), f"nothing there: {channel}"

    def _download(self, uri: str, into: Path) -> int:
        """Every object whose key begins with the address, named relative to its last folder."""
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        folder = prefix.rpartition("/")[0] + "/" if not prefix.endswith("/") else prefix
        s3, number = self._clients["s3"], 0
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                target = into / item["Key"].removeprefix(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                s3.download_file(bucket, item["Key"], str(target))
                number += 1
        return number

    def _upload(self, folder: Path, uri: str) -> None:
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        for path in folder.rglob("*"):
            if path.is_file():
                self._clients["s3"].upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder).as_posix()}")
