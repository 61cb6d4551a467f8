"""Patches of moto's CodeBuild: builds behave as in AWS, and a successful one has pushed an image."""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import moto.codebuild.responses as codebuild_responses
import moto.ecr.responses as ecr_responses
import yaml
from aws_iam import role_may
from aws_script import ACCOUNT, REGION, Script, refuse
from moto.core.responses import ActionResult
from moto.core.utils import iso_8601_datetime_with_milliseconds
from moto.ecr.models import ecr_backends
from moto.logs.models import logs_backends
from moto.s3.models import s3_backends

from neuron_sum.platform.matrix import REGISTRY_ACCOUNTS

_Response = codebuild_responses.CodeBuildResponse
_start, _list = _Response.start_build, _Response.list_builds_for_project
_Registry = ecr_responses.ECRResponse
_batch_get_image = _Registry.batch_get_image


def published_digest(name: str) -> str:
    """The digest of an image in the registry of AWS."""
    return f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"


def image_exists(uri: str) -> bool:
    """Whether an image in the account's registry exists, by its tag or its digest; True for other registries."""
    host, _, name = uri.partition("/")
    if not host.startswith(f"{ACCOUNT}.dkr.ecr.{REGION}."):
        return True
    repository, _, digest = name.partition("@")
    repository, _, tag = repository.partition(":")
    known = ecr_backends[ACCOUNT][REGION].repositories.get(repository)
    images = [] if known is None else known.images
    return any(digest == each.get_image_digest() if digest else tag in each.image_tags for each in images)


def patch(script: Callable[[], Script]) -> None:
    """Makes moto's projects and builds behave as in AWS."""

    def start(self: Any) -> ActionResult:
        backend, name = self.codebuild_backend, self._get_param("projectName")
        # New accounts often have no concurrent builds (awslabs/landing-zone-accelerator-on-aws#1013).
        if script().builds == 0:
            text = "Cannot have more than 0 builds in queue for the account"
            raise refuse("AccountLimitExceededException", text)
        # The same token means the same build for five minutes; moto starts another.
        token = self._get_param("idempotencyToken")
        for build in backend.build_metadata_history.get(name, []):
            if token is not None and build["token"] == token:
                return ActionResult({"build": build})
        made = _start(self)
        # moto's builds have a fixed environment and source, and a log in the group `null`.
        project, build = backend.codebuild_projects[name].project_metadata, backend.build_metadata_history[name][-1]
        given = self._get_param
        build.update(
            token=token,
            looks=0,
            environment={
                **project["environment"],
                "computeType": given("computeTypeOverride"),
                "environmentVariables": given("environmentVariablesOverride"),
            },
            source={**project["source"], "location": given("sourceLocationOverride")},
            logs={},
            timeoutInMinutes=given("timeoutInMinutesOverride"),
            spec=given("buildspecOverride") or project["source"]["buildspec"],
            serviceRole=given("serviceRoleOverride") or project["serviceRole"],
            stream=given("logsConfigOverride")["cloudWatchLogs"]["streamName"],
            group=given("logsConfigOverride")["cloudWatchLogs"]["groupName"],
        )
        return made

    def describe(self: Any) -> ActionResult:
        """moto's builds succeed as soon as they are described."""
        wanted = self._get_param("ids")
        found = [
            build
            for each in self.codebuild_backend.build_metadata_history.values()
            for build in each
            if build["id"] in wanted
        ]
        for build in found if not _of_a_test(self) else []:
            build["looks"] += 1
            if build["buildStatus"] == "IN_PROGRESS":
                build["currentPhase"] = "PROVISIONING" if build["looks"] == 1 else "BUILD"
                if script().looks is not None and build["looks"] > script().looks:
                    _finish(build, script())
        return ActionResult({"builds": found})

    def stop(self: Any) -> ActionResult:
        """moto accepts a stop of a finished build."""
        [build] = [
            build
            for each in self.codebuild_backend.build_metadata_history.values()
            for build in each
            if build["id"] == self._get_param("id")
        ]
        if build["buildStatus"] == "IN_PROGRESS":
            _end(build, "STOPPED", "")
        return ActionResult({"build": build})

    def listed(self: Any) -> ActionResult:
        """AWS lists the newest first; moto the oldest."""
        made = _list(self)
        made.result["ids"] = made.result["ids"][::-1]
        return made

    def batch_get_image(self: Any) -> ActionResult:
        """moto knows one registry. The images of AWS can be pulled by every account (their repositories' policies)."""
        registry = self._get_param("registryId")
        if registry in REGISTRY_ACCOUNTS.values():
            name, [image] = self._get_param("repositoryName"), self._get_param("imageIds")
            digest = published_digest(f"{name}:{image['imageTag']}")
            return ActionResult({"images": [{"imageId": {**image, "imageDigest": digest}}], "failures": []})
        return _batch_get_image(self)

    _Registry.batch_get_image = batch_get_image
    _Response.start_build, _Response.stop_build = start, stop
    _Response.batch_get_builds, _Response.list_builds_for_project = describe, listed


def _finish(build: dict[str, Any], script: Script) -> None:
    """Runs the build's inputs and outputs: the context from S3, the image to ECR."""
    if script.build_end != "SUCCEEDED":
        _write_log(build, script.log)
        _end(build, script.build_end, script.reason)
        return
    arn = build["serviceRole"]
    bucket, _, key = build["source"]["location"].partition("/")
    found = s3_backends[ACCOUNT]["aws"].buckets.get(bucket)
    if found is None or key not in found.keys or not role_may(arn, "s3:GetObject", f"arn:aws:s3:::{bucket}/{key}"):
        _end(build, "FAILED", f"Access denied or not found: {key}", "DOWNLOAD_SOURCE")
        return
    with zipfile.ZipFile(io.BytesIO(found.keys[key].value)) as archive:
        content = hashlib.sha256(b"".join(archive.read(name) for name in archive.namelist())).hexdigest()
        assert "Dockerfile" in archive.namelist()
        # CodeBuild unpacks with the modes in the archive, COPY keeps them, and the image's user is not root
        # (aws/bedrock-agentcore-starter-toolkit#407, awslabs/aws-codebuild-jenkins-plugin#125).
        hidden = [each.filename for each in archive.infolist() if each.external_attr >> 16 & 0o444 != 0o444]
    if hidden:
        _end(build, "FAILED", f"a container that is not root may not read {hidden[0]}")
        return
    variables = {each["name"]: each["value"] for each in build["environment"]["environmentVariables"]}
    phases = yaml.safe_load(build["spec"])["phases"]
    commands = [
        re.sub(r"\$(\w+)", lambda match: variables.get(match[1], ""), each) for each in phases["build"]["commands"]
    ]
    [uri] = [command.split()[-1].strip('"') for command in commands if command.startswith("docker push ")]
    assert any(command.startswith("docker build") and f'--tag "{uri}" ' in command for command in commands)
    assert f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com" in variables["NEURON_SUM_REGISTRIES"].split()
    host, _, rest = uri.partition("/")
    repository, _, tag = rest.partition(":")
    assert host == f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
    there = ecr_backends[ACCOUNT][REGION].repositories.get(repository)
    if there is None or not role_may(arn, "ecr:PutImage", there.arn):
        _end(build, "FAILED", f"Error while executing command: docker push {uri}. Reason: exit status 1", "BUILD")
        return
    # moto uses the configuration's size for the image's.
    manifest = {
        "schemaVersion": 2,
        "config": {"size": 2_000_000_000, "digest": f"sha256:{content}"},
        "layers": [{"size": 2_000_000_000, "digest": f"sha256:{content}"}],
    }
    ecr_backends[ACCOUNT][REGION].put_image(
        repository, json.dumps(manifest), tag, "application/vnd.docker.distribution.manifest.v2+json"
    )
    _write_log(build, script.log)
    _end(build, "SUCCEEDED", "")


def _end(build: dict[str, Any], status: str, reason: str, phase: str = "BUILD") -> None:
    build["buildStatus"], build["currentPhase"], build["buildComplete"] = status, "COMPLETED", True
    build["endTime"] = iso_8601_datetime_with_milliseconds()
    contexts = [{"statusCode": "COMMAND_EXECUTION_ERROR", "message": reason}] if reason else []
    build["phases"] = [{"phaseType": phase, "phaseStatus": status, "contexts": contexts}]


def _write_log(build: dict[str, Any], lines: tuple[str, ...]) -> None:
    logs, group = logs_backends[ACCOUNT][REGION], build["group"]
    stream = f"{build['stream']}/{build['id'].partition(':')[2]}"  # the name and the build's id
    if group not in logs.groups:
        logs.create_log_group(group, {})
    logs.create_log_stream(group, stream)
    now = int(datetime.now(timezone.utc).timestamp() * 1000)
    logs.put_log_events(group, stream, [{"timestamp": now + at, "message": line} for at, line in enumerate(lines)])
    build["logs"] = {"groupName": group, "streamName": stream}


def _of_a_test(self: Any) -> bool:
    return "the-test" in self.headers.get("User-Agent", "")
