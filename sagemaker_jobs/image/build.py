"""Builds of the serving image: CodeBuild builds the generated Dockerfile and pushes to the repository of all runs.

An image's tag is its target and the hash of its build context, so that an existing image is not rebuilt.
"""

import json
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from neuron_sum.errors import AwsError
from sagemaker_jobs.aws import names, policies
from sagemaker_jobs.aws.names import REPOSITORY, RUN_TAG, AwsContext, Run, tags
from sagemaker_jobs.aws.place import NetworkSecurity, Request, inputs_prefix
from sagemaker_jobs.image.registry import image_uri
from sagemaker_jobs.launch.bucket import bucket_calls
from sagemaker_jobs.launch.call import Call
from sagemaker_jobs.launch.channels import Channel
from sagemaker_jobs.launch.roles import role_calls
from sagemaker_jobs.launch.start import Launch, encryption_of, place_of

BUILDER: Literal["medium", "large"] = "medium"
BUILD_MINUTES = 60
"""Defaults of a build: the CodeBuild machine, and the maximum build time in minutes."""

BUILDERS = {"medium": "BUILD_GENERAL1_MEDIUM", "large": "BUILD_GENERAL1_LARGE"}
"""CodeBuild machines: 4 CPUs and 8 GB, 8 CPUs and 16 GB; both with 128 GB of disk, which the inf2 base image needs."""

BUILDER_IMAGE = "aws/codebuild/standard:7.0"
"""The image that the build runs in; it is from AWS and contains Docker and the AWS command line."""

MINUTES = (5, 2160)
QUEUED_MINUTES = 30
"""CodeBuild's limits of the build time, and the maximum wait for a machine, which is not billed; all in minutes."""

SOURCE, ARCHIVE = "image", "context.zip"
TAG = "NEURON_SUM_TAG"
STORED_DATE = (1980, 1, 1, 0, 0, 0)
BASE = re.compile(r"^FROM\s+(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Options:
    """The command-line options of a build.

    Attributes:
        target: cpu or inf2.
        builder: A key of BUILDERS.
        max_minutes: The maximum build time in minutes.
        bucket: The name of an existing bucket; None: a new one.
        role_arn: The ARN of an existing role; None: a new one.
        kms_key: The KMS key for the uploaded context and the repository; None: keys managed by AWS.
    """

    target: str
    builder: str = BUILDER
    max_minutes: int = BUILD_MINUTES
    bucket: str | None = None
    role_arn: str | None = None
    kms_key: str | None = None


def context(target: str, existing: Path | None, scratch: Path) -> Channel:
    """The build context of the image.

    Args:
        target: cpu or inf2.
        existing: A folder written by `neuron-sum dockerfile`; None: a new one in `scratch`.
        scratch: An empty folder.

    Raises:
        AwsError: If the build context cannot be written, or has no Dockerfile.
    """
    folder = existing or scratch / "context"
    if existing is None:
        command = [sys.executable, "-m", "neuron_sum", "dockerfile", "--target", target, "--output", str(folder)]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode:
            raise AwsError(
                f"writing the build context failed: {' '.join(finished.stderr.split())[:400]}",
                "Use --context FOLDER with a folder that `neuron-sum dockerfile` wrote elsewhere.",
            )
    if not (folder / "Dockerfile").is_file():
        raise AwsError(f"{folder} has no Dockerfile", f"Run `neuron-sum dockerfile --target {target} --output FOLDER`.")
    context_files = (path for path in folder.rglob("*") if path.is_file())
    return Channel(SOURCE, {path.relative_to(folder).as_posix(): path for path in context_files})


def pack_context(found: Channel, path: Path) -> Channel:
    """Pack the context into one file for CodeBuild; the same context gives the same bytes on every machine."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, source in sorted(found.files.items()):
            entry = zipfile.ZipInfo(name, STORED_DATE)
            entry.external_attr = 0o644 << 16  # the default is 0600, but the image's user is not root
            archive.writestr(entry, source.read_bytes())
    return Channel(SOURCE, {ARCHIVE: path})


def bases(dockerfile: str) -> list[str]:
    """The base images of a Dockerfile, each once, without its build stages."""
    stages, images = set(), []
    for name, stage in BASE.findall(dockerfile):
        if name not in stages and name not in images:
            images.append(name)
        stages.add(stage)
    return images


def buildspec(uri: str, region: str, froms: list[str]) -> Request:
    """The build commands for CodeBuild; its YAML file may contain JSON.

    Args:
        uri: The image URI with its tag.
        region: The region of the repository.
        froms: The base images from `bases`.
    """
    logins = {uri.partition("/")[0]: region}
    logins |= {name.partition("/")[0]: private[2] for name in froms if (private := policies.PRIVATE_IMAGE.match(name))}
    return {
        "version": 0.2,
        # Attestations would turn the image into an index of several, which SageMaker may not accept.
        "env": {"variables": {"BUILDX_NO_DEFAULT_ATTESTATIONS": "1", "BUILDKIT_PROGRESS": "plain"}},
        "phases": {
            "pre_build": {
                "commands": [
                    f"aws ecr get-login-password --region {login_region} | "
                    f"docker login --username AWS --password-stdin {host}"
                    for host, login_region in logins.items()
                ]
            },
            # The push is in this phase, because post_build would run even after a failed build.
            "build": {"commands": [f"docker build --platform linux/amd64 --tag {uri} .", f"docker push {uri}"]},
        },
    }


def create_repository(kms_key: str | None) -> Request:
    """CreateRepository: shared by all runs, so its tag names no run; image tags are hashes, so they never move."""
    encryption = {"encryptionType": "KMS", "kmsKey": kms_key} if kms_key else {"encryptionType": "AES256"}
    return {
        "repositoryName": REPOSITORY,
        "tags": tags({RUN_TAG: "all"}),
        "imageTagMutability": "IMMUTABLE",
        "imageScanningConfiguration": {"scanOnPush": True},
        "encryptionConfiguration": encryption,
    }


def create_project(run: Run, options: Options, tag: str, *, source: str, spec: Request, role_arn: str) -> Request:
    """CreateProject.

    Args:
        run: The run that owns the project.
        options: The options of the build.
        tag: The tag of the image.
        source: The bucket/key of the archive.
        spec: The build commands from `buildspec`.
        role_arn: The role that the build assumes.

    Raises:
        AwsError: If CodeBuild would refuse the maximum build time.
    """
    least, most = MINUTES
    if not least <= options.max_minutes <= most:
        raise AwsError(
            f"CodeBuild does not accept a maximum build time of {options.max_minutes} minutes",
            f"Use --max-minutes {least} to {most}.",
        )
    name = run.name("build")
    return {
        "name": name,
        "description": f"Of the run {run.id} of neuron-sum",
        "source": {"type": "S3", "location": source, "buildspec": json.dumps(spec)},
        "artifacts": {"type": "NO_ARTIFACTS"},
        "environment": {
            "type": "LINUX_CONTAINER",
            "image": BUILDER_IMAGE,
            "computeType": BUILDERS[options.builder],
            "privilegedMode": True,  # required to run Docker in the build
            "imagePullCredentialsType": "CODEBUILD",
            "environmentVariables": [{"name": TAG, "value": tag}],  # `aws status --follow` reads it
        },
        "serviceRole": role_arn,
        "timeoutInMinutes": options.max_minutes,
        "queuedTimeoutInMinutes": QUEUED_MINUTES,
        "concurrentBuildLimit": 1,
        "logsConfig": {
            "cloudWatchLogs": {"status": "ENABLED", "groupName": names.BUILD_LOGS + name},
            "s3Logs": {"status": "DISABLED"},
        },
        **({"encryptionKey": options.kms_key} if options.kms_key else {}),
        "tags": [{"key": tag["Key"], "value": tag["Value"]} for tag in run.tags],
    }


def launch(run: Run, options: Options, found: Channel, archive: Channel, site: AwsContext) -> Launch:
    """The launch of a build; sends nothing.

    Args:
        run: A new run.
        options: The options of the build.
        found: The build context.
        archive: The build context as one file.
        site: The target account and region.

    Raises:
        AwsError: If CodeBuild would refuse the build.
    """
    role = options.role_arn or site.role_arn(run.name("build-role"))
    place = place_of(run, site, bucket=options.bucket, role_arn=role)
    froms = bases(found.files["Dockerfile"].read_text(encoding="utf-8"))
    key = inputs_prefix(archive.name, archive.digest) + ARCHIVE
    tag = tag_of(options.target, found)
    uri = image_uri(site, tag)
    project = create_project(
        run, options, tag, source=f"{place.bucket}/{key}", spec=buildspec(uri, site.region, froms), role_arn=role
    )
    policy = policies.build_policy(
        site,
        place.bucket,
        key=key,
        project=project["name"],
        private=[match.groups() for name in froms if (match := policies.PRIVATE_IMAGE.match(name))],
        kms_key=options.kms_key,
    )
    calls = (
        Call("ecr", "create_repository", create_repository(options.kms_key), "repository", REPOSITORY),
        Call("codebuild", "create_project", project, "build-project", project["name"]),
        # If the response is lost, a retry must not start a second build: CodeBuild keeps the token for five minutes.
        Call("codebuild", "start_build", {"projectName": project["name"], "idempotencyToken": run.id}),
    )
    trust = policies.build_trust_policy(site.account)
    return Launch(
        run,
        place,
        calls,
        (archive,),
        () if options.bucket else bucket_calls(place, options.kms_key),
        () if options.role_arn else role_calls(run, site.region, trust, policy, "build-role"),
        encryption_of(NetworkSecurity(kms_key=options.kms_key)),
    )


def tag_of(target: str, found: Channel) -> str:
    """The tag of an image, from its build context."""
    return f"{target}-{found.digest}"
