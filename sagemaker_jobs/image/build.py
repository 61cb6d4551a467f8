"""The serving image, built by CodeBuild from the generated Dockerfile into the repository that all runs share.

An image's tag is its target and the hash of its build context, so what is there already is not built again.
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
"""Of an image: CodeBuild's machine, and the longest that it may take."""

BUILDERS = {"medium": "BUILD_GENERAL1_MEDIUM", "large": "BUILD_GENERAL1_LARGE"}
"""CodeBuild's machines: 4 CPUs and 8 GB, 8 CPUs and 16 GB; both with 128 GB of disk, which the inf2 base needs."""

BUILDER_IMAGE = "aws/codebuild/standard:7.0"
"""What the build runs in: AWS's own, with Docker and its command line."""

MINUTES = (5, 2160)
QUEUED_MINUTES = 30
"""CodeBuild's own limits of a build's time; and how long it may wait for a machine, which is not paid."""

MIRROR = "public.ecr.aws/docker/library/"
"""AWS's copies of Docker's official images. Docker Hub counts pulls by address, and CodeBuild's are shared."""

SOURCE, ARCHIVE = "image", "context.zip"
TAG = "NEURON_SUM_TAG"
STORED_DATE = (1980, 1, 1, 0, 0, 0)
BASE = re.compile(r"^FROM\s+(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Options:
    """What the command line says about a build.

    Attributes:
        target: cpu or inf2.
        builder: Of BUILDERS.
        max_minutes: When it is stopped at the latest.
        bucket: The caller's own; None: one is made.
        role_arn: The caller's own; None: one is made.
        kms_key: For the uploaded context and the repository; None: AWS's own keys.
    """

    target: str
    builder: str = BUILDER
    max_minutes: int = BUILD_MINUTES
    bucket: str | None = None
    role_arn: str | None = None
    kms_key: str | None = None


def context(target: str, given: Path | None, scratch: Path) -> Channel:
    """The files that the image is built from.

    Args:
        target: cpu or inf2.
        given: A folder that `neuron-sum dockerfile` wrote; None: it is written now, into scratch.
        scratch: An empty folder.

    Raises:
        AwsError: If it cannot be written, or has no Dockerfile.
    """
    folder = given or scratch / "context"
    if given is None:
        command = [sys.executable, "-m", "neuron_sum", "dockerfile", "--target", target, "--output", str(folder)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            raise AwsError(
                f"no build context: {' '.join(made.stderr.split())[:400]}",
                "--context FOLDER takes one that `neuron-sum dockerfile` wrote elsewhere",
            )
    if not (folder / "Dockerfile").is_file():
        raise AwsError(f"{folder} has no Dockerfile", f"neuron-sum dockerfile --target {target} --output FOLDER")
    inside = (path for path in folder.rglob("*") if path.is_file())
    return Channel(SOURCE, {path.relative_to(folder).as_posix(): path for path in inside})


def archived(found: Channel, path: Path) -> Channel:
    """The context as the one file that CodeBuild takes; the same context makes the same bytes on every machine."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, source in sorted(found.files.items()):
            archive.writestr(zipfile.ZipInfo(name, STORED_DATE), source.read_bytes())
    return Channel(SOURCE, {ARCHIVE: path})


def bases(dockerfile: str) -> list[str]:
    """The images that a Dockerfile starts from, each once; its own stages are none."""
    stages, found = set(), []
    for name, stage in BASE.findall(dockerfile):
        if name not in stages and name not in found:
            found.append(name)
        stages.add(stage)
    return found


def buildspec(uri: str, region: str, froms: list[str]) -> Request:
    """What CodeBuild does; YAML takes JSON.

    Args:
        uri: The image's, with its tag.
        region: Of the repository.
        froms: As `bases`.
    """
    logins = {uri.partition("/")[0]: region}
    copied = []
    for name in froms:
        if private := policies.PRIVATE_IMAGE.match(name):
            logins[name.partition("/")[0]] = private[2]
        elif re.fullmatch(r"[a-z0-9._-]+(:[\w.-]+)?", name) and name != "scratch":
            # A name without a registry is looked for among the machine's own images first.
            copied += [f"docker pull --platform linux/amd64 {MIRROR}{name}", f"docker tag {MIRROR}{name} {name}"]
    return {
        "version": 0.2,
        # Attestations would make the image an index of several, which SageMaker may not take.
        "env": {"variables": {"BUILDX_NO_DEFAULT_ATTESTATIONS": "1", "BUILDKIT_PROGRESS": "plain"}},
        "phases": {
            "pre_build": {
                "commands": [
                    *(
                        f"aws ecr get-login-password --region {where} | "
                        f"docker login --username AWS --password-stdin {host}"
                        for host, where in logins.items()
                    ),
                    *copied,
                ]
            },
            # The push is of this phase, too: post_build would come after a build that failed.
            "build": {"commands": [f"docker build --platform linux/amd64 --tag {uri} .", f"docker push {uri}"]},
        },
    }


def create_repository(kms_key: str | None) -> Request:
    """CreateRepository: for all runs, so its tag names none; a tag of an image is a hash, so it never moves."""
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
        run: Whose.
        options: How.
        tag: The image's.
        source: bucket/key of the archive.
        spec: As `buildspec`.
        role_arn: What the build runs as.

    Raises:
        AwsError: If CodeBuild would refuse the time.
    """
    least, most = MINUTES
    if not least <= options.max_minutes <= most:
        raise AwsError(f"a build of at most {options.max_minutes} minutes", f"--max-minutes {least} to {most}")
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
            "privilegedMode": True,  # Docker in it needs that
            "imagePullCredentialsType": "CODEBUILD",
            "environmentVariables": [{"name": TAG, "value": tag}],  # who comes back to the build looks for this image
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
    """Everything that is to be sent; sends nothing.

    Args:
        run: A new one.
        options: How.
        found: The context.
        archive: The same as one file.
        site: Where.

    Raises:
        AwsError: If CodeBuild would refuse it.
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
        # A reply that is lost must not start two: the same token is the same build for five minutes.
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
    """An image's tag, from the context that it is built from."""
    return f"{target}-{found.digest}"
