"""What is served: a run's compile job, an archive in S3 or a model.tar.gz of this disk; and where it fits."""

import gzip
import json
import re
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from neuron_sum import console
from neuron_sum.errors import ArtifactError, AwsError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import Refused
from sagemaker_jobs.aws.names import Run
from sagemaker_jobs.aws.place import Destination
from sagemaker_jobs.image import registry
from sagemaker_jobs.jobs import compiling, training
from sagemaker_jobs.launch.channels import Channel

ARCHIVE = ".tar.gz"
ARCHIVES = "archives"
"""What is uploaded goes to the inputs as this channel, by the hash of its content."""

MANIFEST, PROPERTIES = "artifact/manifest.json", "serving.properties"
"""Of the layout that `neuron-sum package` writes."""

ENDED_HANDLER = "djl_python.transformers_neuronx"
"""The handler in AWS's frozen container, as `package --container` names it."""

NEURON = re.compile(r"ml\.inf2\.")
CPU = re.compile(r"ml\.[cmrt]\d+[a-z-]*\.")
GRAVITON = re.compile(r"ml\.[cmrt]\d+g[a-z]*\.")
LONGEST_NAME = 200
NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*)=(.+)")


@dataclass(frozen=True)
class Source:
    """One model that is to be served.

    Attributes:
        name: For people, and on a multi-model endpoint for requests.
        target: cpu, inf2, or registry.ENDED for AWS's frozen container; None where nobody knows before it starts.
        address: In S3; None for what is uploaded first.
        channel: What is uploaded.
        run: That compiled it; None for an archive.
    """

    name: str
    target: str | None
    address: str | None = None
    channel: Channel | None = None
    run: Run | None = None

    def address_in(self, place: Destination) -> str:
        """Where in S3 it lies, once it is uploaded."""
        if self.channel is not None:
            [name] = self.channel.files
            return place.inputs(self.channel.name, self.channel.digest) + name
        assert self.address is not None  # a source is one or the other
        return self.address


def find_source(text: str, account: Account | None, place: Destination) -> Source:
    """What SOURCE means: s3://BUCKET/KEY, a file, or a run; NAME=SOURCE gives it a name.

    Args:
        text: As given.
        account: None in a dry run that asks nothing: a run's archive is then shown where it would be.
        place: Of jobs, for that.

    Raises:
        AwsError: If it is none of them, there is no such run, or it has nothing compiled.
        ArtifactError: If the file is no archive of `neuron-sum package`.
    """
    named = NAMED.fullmatch(text) if not text.startswith("s3://") and not Path(text).exists() else None
    name, given = (named[1].removesuffix(ARCHIVE), named[2]) if named else (None, text)
    if given.startswith("s3://"):
        if not given.endswith(ARCHIVE) or given.count("/") < 3:
            raise AwsError(
                f"{given} is no archive in S3", "s3://BUCKET/…/model.tar.gz, as `neuron-sum package` makes it"
            )
        if account is not None:
            _check_there(account, given)
        return Source(name or _stem(given), None, given)
    path = Path(given)
    if path.is_dir():
        raise AwsError(f"{path} is a folder", f"neuron-sum package {path}, then deploy the model.tar.gz")
    if path.is_file():
        return Source(name or _stem(path.name), target_of(path), channel=Channel(ARCHIVES, {"model" + ARCHIVE: path}))
    if given.endswith(ARCHIVE):
        raise AwsError(f"{path} is not there", "a model.tar.gz of `neuron-sum package`, s3://…, or a RUN")
    if account is None:
        run = Run(given, given)
        console.note(f"a real start asks AWS what {given} compiled; shown is where a first compile puts it")
        output = f"{place.output(run, 'compile')}/{run.name('compile')}/output"
        return Source(name or given, None, f"{output}/model{ARCHIVE}", run=run)
    run = training.find_run(account, given)
    job = training.Described(compiling.newest(account, run, "compile"))
    target = dict(zip(job.arguments, job.arguments[1:], strict=False)).get("--target")
    return Source(name or given, target, job.model, run=run)


def target_of(archive: Path) -> str:
    """Where an archive can be served: cpu, inf2, or registry.ENDED.

    Raises:
        ArtifactError: If it is none of `neuron-sum package`.
    """
    try:
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as packed:
            for member in packed:
                if member.name == PROPERTIES and ENDED_HANDLER in _text(packed.extractfile(member)):
                    return registry.ENDED
                if member.name == MANIFEST:
                    return str(json.loads(_text(packed.extractfile(member)))["target"])
    except (tarfile.TarError, zlib.error, OSError, EOFError, ValueError, KeyError) as error:
        raise ArtifactError(f"{archive} cannot be read: {error}", "neuron-sum package ARTIFACT makes one") from error
    raise ArtifactError(f"{archive} holds no {MANIFEST}", "neuron-sum package ARTIFACT makes one that does")


def image_target(source: Source, instance: str, image: str | None) -> str:
    """The kind of image that an endpoint needs, where model and instance fit.

    Args:
        source: What is served.
        instance: On what.
        image: As the command was told.

    Returns:
        cpu, inf2 or registry.ENDED.

    Raises:
        AwsError: If they do not fit.
    """
    if not instance.startswith("ml."):
        raise AwsError(f"{instance!r} is no SageMaker instance", f"did you mean ml.{instance}?")
    if GRAVITON.match(instance):
        raise AwsError(f"{instance} has an Arm processor; images and artifacts are for x86", "such as ml.c7i.4xlarge")
    offers = "inf2" if NEURON.match(instance) else "cpu" if CPU.match(instance) else None
    if offers is None:
        raise AwsError(f"nothing of ours serves on {instance}", "ml.inf2.xlarge, or a CPU such as ml.c7i.4xlarge")
    if (source.target == registry.ENDED) != (image == registry.ENDED) and source.target is not None:
        other = (
            f"--image {registry.ENDED}" if source.target == registry.ENDED else f"leave out --image {registry.ENDED}"
        )
        raise AwsError(f"{source.name} was not packed for that container", other)
    needs = "inf2" if registry.ENDED in (source.target, image) else source.target or offers
    if needs != offers:
        fitting = {"cpu": "--instance ml.c7i.4xlarge", "inf2": "--instance ml.inf2.xlarge"}.get(needs)
        made = "compile RUN" if source.run is None else f"aws compile {source.run.id}"
        compiled = f"neuron-sum {made} --target {offers}, for this instance"
        raise AwsError(
            f"{source.name} was compiled for {needs}, and {instance} is for {offers}",
            f"{fitting}; or {compiled}" if fitting else compiled,
        )
    return registry.ENDED if image == registry.ENDED else offers


def _check_there(account: Account, address: str) -> None:
    bucket, _, key = address.removeprefix("s3://").partition("/")
    try:
        account.call("s3", "head_object", Bucket=bucket, Key=key)
    except Refused as refused:
        hint = "aws s3 ls, for its address" if refused.missing else refused.hint
        raise AwsError(f"{address}: {refused.message}", hint) from refused


def _stem(name: str) -> str:
    return name.rpartition("/")[2].removesuffix(ARCHIVE)[:LONGEST_NAME]


def _text(content: IO[Any] | None) -> str:
    if content is None:
        raise ValueError("not a file")
    return str(content.read().decode("utf-8"))
