"""Models to serve: a run's compile job, an archive in S3 or a local model.tar.gz; and the instances that fit them."""

import gzip
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from neuron_sum import console, files
from neuron_sum.console import command
from neuron_sum.errors import ArtifactError, AwsError, reading
from neuron_sum.platform.containers import CONTAINERS, ENVIRONMENT_FILE
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import Refused
from sagemaker_jobs.aws.names import Run, bucket_and_key
from sagemaker_jobs.image import registry
from sagemaker_jobs.jobs import training
from sagemaker_jobs.launch.channels import Channel
from sagemaker_jobs.stack.stack import Stack

ARCHIVE = ".tar.gz"
ARCHIVES = "archives"
"""Channel name of uploaded archives, which are stored by the hash of their content."""

MANIFEST, PROPERTIES = "artifact/manifest.json", "serving.properties"
"""Files in an archive that `neuron-sum package` writes."""

INSTANCES = {"cpu": "ml.c7i.4xlarge", "inf2": "ml.inf2.xlarge"}
"""The smallest usual instance type of an endpoint, by the target of its model."""
PACKAGE = "Run `neuron-sum package ARTIFACT` to create an archive."
ENDED_HANDLER = "djl_python.transformers_neuronx"
"""The handler of the last DJL container with Neuron, as written by `package --container`."""

NEURON = re.compile(r"ml\.inf2\.")
CPU = re.compile(r"ml\.[cmrt]\d+[a-z-]*\.")
GRAVITON = re.compile(r"ml\.[cmrt]\d+g[a-z]*\.")
LONGEST_NAME = 200
NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*)=(.+)")

NUMBER = "[1-9][0-9]{0,8}"
MODEL = "SM_ON_MODEL"
ENVIRONMENT = {
    MODEL: "/opt/ml/model",
    "SM_ON_SERVED_MODEL_NAME": "[a-z0-9][a-z0-9._-]{0,99}",
    "SM_ON_BATCH_SIZE": NUMBER,
    "SM_ON_SEQUENCE_LENGTH": NUMBER,
    "SM_ON_TENSOR_PARALLEL_SIZE": NUMBER,
    "SM_ON_MAX_NUM_BATCHED_TOKENS": NUMBER,
    "SM_ON_ALLOW_NON_CACHED_MODEL": "",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
"""The variables that `neuron-sum package` writes, and a pattern of the values of each.

An archive is not trusted: with other variables, the container could load another model or run code.
"""


@dataclass(frozen=True)
class Source:
    """A model to serve.

    Attributes:
        name: The display name, which requests to a multi-model endpoint use.
        target: cpu, inf2, or one of registry.PUBLISHED; None if unknown before the start.
        address: The S3 address; None for a file to upload.
        channel: The file to upload.
        run: The run that compiled the model; None for an archive.
        environment: The variables that the archive's container needs.
        record: The manifest in the archive, or the record of its container; empty if the archive was not read.
        region: The region of the run.
    """

    name: str
    target: str | None
    address: str | None = None
    channel: Channel | None = None
    run: Run | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    region: str | None = None

    def address_in(self, stack: Stack) -> str:
        """The S3 address of the model, once it is uploaded."""
        if self.channel is not None:
            [name] = self.channel.files
            return stack.inputs(self.channel.name, self.channel.digest) + name
        assert self.address is not None  # a source has either a channel or an address
        return self.address


def find_source(text: str, account: Account | None, stack: Stack) -> Source:
    """Resolve SOURCE: s3://BUCKET/KEY, a file, or a run id; NAME=SOURCE gives it a name.

    Args:
        text: The command-line argument.
        account: The account to query; None in an offline dry run, which prints a run's default address instead.
        stack: The stack with the bucket, for that address.

    Raises:
        AwsError: If SOURCE is invalid, the run does not exist, or the run has no completed compile job.
        ArtifactError: If the file is not an archive written by `neuron-sum package`.
    """
    named = NAMED.fullmatch(text) if not text.startswith("s3://") and not Path(text).exists() else None
    name, location = (named[1].removesuffix(ARCHIVE), named[2]) if named else (None, text)
    if location.startswith("s3://"):
        if not location.endswith(ARCHIVE) or location.count("/") < 3:
            raise AwsError(
                f"{location} is not the S3 address of an archive",
                "Use s3://BUCKET/…/model.tar.gz, an archive written by `neuron-sum package`.",
            )
        if account is not None:
            _check_exists(account, location)
        return Source(name or _stem(location), None, location)
    path = Path(location)
    if path.is_dir():
        raise AwsError(
            f"{path} is a folder, not an archive",
            f"Run `{command('package', path)}`, then deploy its model.tar.gz.",
        )
    if path.is_file():
        channel = Channel(ARCHIVES, {"model" + ARCHIVE: path})
        target, environment, record = inspect(path, location)
        return Source(name or _stem(path.name), target, channel=channel, environment=environment, record=record)
    if location.endswith(ARCHIVE):
        raise AwsError(
            f"{path} does not exist", "Use a model.tar.gz written by `neuron-sum package`, s3://…, or a run id."
        )
    if account is None:
        run = Run(location, location)
        console.note(
            f"an actual start asks AWS for the compiled model of {location}; this is the first compile job's address"
        )
        return Source(name or location, None, stack.model(run, "compile"), run=run)
    run = training.find_run(account, location)
    job = training.newest(account, run, "compile")
    compiled_for = dict(zip(job.arguments, job.arguments[1:], strict=False)).get("--target")
    return Source(name or location, compiled_for, job.model, run=run, region=account.region)


def inspected(source: Source, account: Account | None) -> Source:
    """A source with the target, the environment and the record in the first files of its archive.

    Args:
        source: The source; returned unchanged if its archive was already read.
        account: The account to query; None in a dry run without one, which does not read an archive in S3.

    Raises:
        AwsError: If the object cannot be read.
        ArtifactError: If it is not an archive written by `neuron-sum package`.
    """
    if source.record or source.address is None:
        return source
    if account is None:
        console.note(f"an actual start reads the manifest or the container's environment from {source.address}")
        return source
    bucket, key = bucket_and_key(source.address)
    with closing(account.call("s3", "get_object", Bucket=bucket, Key=key)["Body"]) as body:
        target, environment, record = inspect(body, source.address)
    return replace(source, target=target, environment=environment, record=record)


def check_offline(sources: Iterable[Source], *, isolated: bool) -> None:
    """Refuse a checkpoint for the vLLM image without internet access: it reads Hugging Face's cache of graphs.

    Args:
        sources: Models for that image.
        isolated: Whether the containers have no network.

    Raises:
        AwsError: If a model is not precompiled.
    """
    for source in sources:
        if isolated and source.environment and "HF_HUB_OFFLINE" not in source.environment:
            raise AwsError(
                f"{source.name} is not compiled, and with --network-isolation its container cannot read the cache of "
                "compiled graphs",
                "Package an artifact of `neuron-sum compile RUN --target inf2`, or omit --network-isolation.",
            )


def inspect(archive: Path | IO[bytes], name: str) -> tuple[str, dict[str, str], dict[str, Any]]:
    """What an archive was packaged for; reads only its first files.

    Args:
        archive: The archive.
        name: Its name in errors.

    Returns:
        cpu, inf2 or one of registry.PUBLISHED; the variables of its container's environment; and the manifest of the
        artifact, or the record of the published container.

    Raises:
        ArtifactError: If the file is not an archive written by `neuron-sum package`.
    """
    with reading(name, ArtifactError, PACKAGE):
        for file, text in _first_files(archive):
            if file == PROPERTIES:
                if ENDED_HANDLER in text:
                    return registry.ENDED, {}, {"container": registry.ENDED}
                continue
            record = dict(json.loads(text))
            if file == ENVIRONMENT_FILE:
                return *_container(record, name), record
            return str(record["target"]), {}, record
    raise ArtifactError(f"{name} contains no {MANIFEST}", f"{PACKAGE[:-1]} with it.")


def _first_files(archive: Path | IO[bytes]) -> Iterator[tuple[str, str]]:
    """Yield the names and the contents of the files that describe an archive, which are its first ones."""
    with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as members:
        for member in members:
            if (file := member.name.removeprefix("./")) in (ENVIRONMENT_FILE, PROPERTIES, MANIFEST):
                yield file, _text(members.extractfile(member))


def _container(record: Mapping[str, Any], name: str) -> tuple[str, dict[str, str]]:
    """The container and the environment in an archive's record.

    Raises:
        ArtifactError: If `neuron-sum package` would not have written them.
    """
    container, environment = record["container"], dict(record["environment"])
    if container not in CONTAINERS:
        known = ", ".join(CONTAINERS)
        raise ArtifactError(f"{name} is for the container {str(container)[:80]!r}; known: {known}", PACKAGE)
    for key, value in {MODEL: None, **environment}.items():
        if not isinstance(value, str) or not re.fullmatch(ENVIRONMENT.get(key, "(?!)"), value):
            setting = f"{key[:80]}={'' if value is None else str(value)[:80]}"
            raise ArtifactError(f"{name}: `neuron-sum package` does not write {setting!r} for a container", PACKAGE)
    return container, environment


def image_target(source: Source, instance: str, image: str | None) -> str:
    """The kind of image that an endpoint needs, after checking that model and instance fit.

    Args:
        source: The model to serve.
        instance: The instance type.
        image: The value of --image.

    Returns:
        cpu, inf2 or one of registry.PUBLISHED.

    Raises:
        AwsError: If model, instance and image do not fit.
    """
    if not instance.startswith("ml."):
        raise AwsError(f"{instance!r} is not a SageMaker instance type", f"Use an ml. type, such as ml.{instance}.")
    if GRAVITON.match(instance):
        raise AwsError(
            f"{instance} has an Arm processor, but images and artifacts are for x86",
            "Use an x86 type, such as --instance ml.c7i.4xlarge.",
        )
    offers = "inf2" if NEURON.match(instance) else "cpu" if CPU.match(instance) else None
    if offers is None:
        raise AwsError(
            f"neuron-sum cannot serve on {instance}",
            "Use --instance ml.inf2.xlarge or a CPU type such as ml.c7i.4xlarge.",
        )
    requested, packaged = (each if each in registry.PUBLISHED else None for each in (image, source.target))
    if requested != packaged and source.target is not None:
        remedy = f"Omit --image {requested}." if packaged is None else f"Use --image {packaged}."
        raise AwsError(f"{source.name} was packaged for another container", remedy)
    needs = "inf2" if requested or packaged else source.target or offers
    if needs != offers:
        recompile = command("compile", "RUN", target=offers)
        if source.run is not None:
            recompile = command("aws", "compile", source.run.id, target=offers, region=source.region)
        recompile = f"`{recompile}` to compile for this instance"
        raise AwsError(
            f"{source.name} was compiled for {needs}, but {instance} is for {offers}",
            f"Use --instance {INSTANCES[needs]}, or run {recompile}." if needs in INSTANCES else f"Run {recompile}.",
        )
    return requested or offers


def common_target(targets: Sequence[str], instances: Sequence[str]) -> str:
    """The kind of image for all instance types of a list.

    Args:
        targets: The result of `image_target` for each instance type.
        instances: The instance types.

    Raises:
        AwsError: If the types need different images: one model runs on all of them only if none was compiled for it.
    """
    if len(set(targets)) > 1:
        listing = ", ".join(f"{instance} ({target})" for instance, target in zip(instances, targets, strict=True))
        raise AwsError(
            f"--instance names types that need different images and models: {listing}",
            "Use types of one kind, such as --instance ml.inf2.xlarge,ml.inf2.8xlarge.",
        )
    return targets[0]


def _check_exists(account: Account, address: str) -> None:
    bucket, key = bucket_and_key(address)
    try:
        account.call("s3", "head_object", Bucket=bucket, Key=key)
    except Refused as refused:
        hint = "Run `aws s3 ls` to check the address." if refused.missing else refused.hint
        raise AwsError(f"{address}: {refused.message}", hint) from refused


def _stem(name: str) -> str:
    return name.rpartition("/")[2].removesuffix(ARCHIVE)[:LONGEST_NAME]


def _text(content: IO[Any] | None) -> str:
    if content is None:
        raise ValueError("not a file")
    return str(content.read(files.MAX_JSON_BYTES).decode("utf-8"))
