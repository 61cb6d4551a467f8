"""Builds of the serving image: the stack's CodeBuild project builds the generated Dockerfile and pushes the image.

An image's tag is its target and the hash of its build context, so that an existing image is not rebuilt.
"""

import re
import subprocess
import zipfile
from pathlib import Path
from typing import Literal

from neuron_sum.console import command
from neuron_sum.errors import AwsError
from neuron_sum.subprocesses import cli_command
from sagemaker_jobs.aws.errors import BUILD_ELSEWHERE
from sagemaker_jobs.aws.names import BUILD_LOG_GROUP, PROJECT, Run, inputs_prefix
from sagemaker_jobs.cleanup.kinds import RUN_VARIABLE
from sagemaker_jobs.image.registry import image_uri
from sagemaker_jobs.launch.call import Call
from sagemaker_jobs.launch.channels import Channel
from sagemaker_jobs.launch.start import Launch
from sagemaker_jobs.stack.stack import PRIVATE_IMAGE, Stack
from sagemaker_jobs.stack.template import WITHOUT_BUILDS

BUILDER: Literal["medium", "large"] = "medium"
BUILD_MINUTES = 60
"""Defaults of a build: the CodeBuild machine, which has the 128 GB of disk that the inf2 base image needs, and the
maximum build time in minutes."""

MINUTES = (5, 2160)
"""CodeBuild's limits of the build time in minutes."""

SOURCE, ARCHIVE = "image", "context.zip"
TAG, REGISTRIES = "NEURON_SUM_TAG", "NEURON_SUM_REGISTRIES"
"""Environment variables that the project's commands read: the image's tag, and the registries that need a login."""
STORED_DATE = (1980, 1, 1, 0, 0, 0)
BASE = re.compile(r"^FROM\s+(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?", re.IGNORECASE | re.MULTILINE)


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
        words = cli_command("dockerfile", "--target", target, "--output", str(folder))
        finished = subprocess.run(words, capture_output=True, text=True, check=False)
        if finished.returncode:
            raise AwsError(
                f"writing the build context failed: {' '.join(finished.stderr.split())[:400]}",
                "Use --context FOLDER with a folder that `neuron-sum dockerfile` wrote elsewhere.",
            )
    if not (folder / "Dockerfile").is_file():
        raise AwsError(f"{folder} has no Dockerfile", f"Run `{command('dockerfile', target=target, output='FOLDER')}`.")
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


def start_build(
    run: Run,
    stack: Stack,
    tag: str,
    *,
    source: str,
    registries: str = "",
    builder: str = BUILDER,
    max_minutes: int = BUILD_MINUTES,
) -> Call:
    """The call that starts a build of the stack's project.

    Args:
        run: The run that owns the build.
        stack: The stack with the project.
        tag: The tag of the image.
        source: The bucket/key of the archive.
        registries: The hosts that need a login.
        builder: medium or large.
        max_minutes: The maximum build time in minutes.

    Raises:
        AwsError: If CodeBuild would refuse the maximum build time, or is not in the region.
    """
    least, most = MINUTES
    if not least <= max_minutes <= most:
        raise AwsError(
            f"CodeBuild does not accept a maximum build time of {max_minutes} minutes",
            f"Use --max-minutes {least} to {most}.",
        )
    if stack.site.region in WITHOUT_BUILDS:
        raise AwsError(f"the stack has no build project in {stack.site.region}", BUILD_ELSEWHERE)
    variables = {TAG: tag, RUN_VARIABLE: run.id, REGISTRIES: registries}
    request = {
        "projectName": PROJECT,
        "sourceLocationOverride": source,
        "computeTypeOverride": f"BUILD_GENERAL1_{builder.upper()}",
        "timeoutInMinutesOverride": max_minutes,
        "environmentVariablesOverride": [{"name": name, "value": value} for name, value in variables.items()],
        # The name of the log stream begins with that of the build, by which `down --artifacts` finds it.
        "logsConfigOverride": {
            "cloudWatchLogs": {"status": "ENABLED", "groupName": BUILD_LOG_GROUP, "streamName": run.name("build")}
        },
        # If the response is lost, a retry must not start a second build: CodeBuild keeps the token for five minutes.
        "idempotencyToken": run.id,
    }
    return Call("codebuild", "start_build", request, "build", run.name("build"))


def launch(
    run: Run, stack: Stack, target: str, found: Channel, archive: Channel, *, builder: str, max_minutes: int
) -> Launch:
    """The launch of a build; sends nothing.

    Args:
        run: A new run.
        stack: The stack with the project.
        target: cpu or inf2.
        found: The build context.
        archive: The build context as one file.
        builder: medium or large.
        max_minutes: The maximum build time in minutes.

    Raises:
        AwsError: If CodeBuild would refuse the build, or its role may not pull a base image.
    """
    froms = bases(found.files["Dockerfile"].read_text(encoding="utf-8"))
    tag = tag_of(target, found)
    private = [name.partition("/")[0] for name in froms if PRIVATE_IMAGE.match(name)]
    for name in froms:
        stack.check_image(name)
    call = start_build(
        run,
        stack,
        tag,
        builder=builder,
        max_minutes=max_minutes,
        source=f"{stack.bucket}/{inputs_prefix(archive.name, archive.digest)}{ARCHIVE}",
        registries=" ".join(dict.fromkeys([image_uri(stack.site, "").partition("/")[0], *private])),
    )
    return Launch(run, stack, (call,), (archive,))


def tag_of(target: str, found: Channel) -> str:
    """The tag of an image, from its build context."""
    return f"{target}-{found.digest}"
