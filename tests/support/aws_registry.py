"""Patches of moto's Model Registry: it behaves as in AWS, and stores the model cards, which moto drops."""

import json
from collections.abc import Callable
from typing import Any

import moto.sagemaker.responses as sagemaker_responses
from aws_builds import image_exists
from aws_script import ACCOUNT, Script, refuse
from moto.core.responses import ActionResult
from moto.s3.models import s3_backends

_Response = sagemaker_responses.SageMakerResponse
_create, _describe = _Response.create_model_package, _Response.describe_model_package


def patch(script: Callable[[], Script]) -> None:
    """Makes moto's model packages behave as in AWS."""

    def create(self: Any) -> ActionResult:
        # "In this case, you cannot supply a tag argument" (botocore, CreateModelPackage, Tags).
        if self._get_param("ModelPackageGroupName") and self._get_param("Tags"):
            raise refuse("ValidationException", "Tags cannot be set on a model version, only on its group.")
        for container in (self._get_param("InferenceSpecification") or {}).get("Containers", []):
            if "ModelDataUrl" in container and not _object_exists(container["ModelDataUrl"]):
                raise refuse("ValidationException", f"Could not find model data at {container['ModelDataUrl']}.")
            if not image_exists(container["Image"]):
                raise refuse("ValidationException", f"Requested image {container['Image']} not found.")
        made = _create(self)
        package = list(self.sagemaker_backend.model_packages.values())[-1]
        package.card, package.looks = self._get_param("ModelCard"), 0
        if package.card is not None:
            json.loads(package.card["ModelCardContent"])
        package.failing = script().package_failure
        return made

    def describe(self: Any) -> ActionResult:
        answer = _describe(self)
        package = self.sagemaker_backend.describe_model_package(self._get_param("ModelPackageName"))
        package.looks += 1
        found = {**answer.result, **({"ModelCard": package.card} if package.card is not None else {})}
        # A package is validated after the answer.
        if package.looks == 1:
            found["ModelPackageStatus"] = "InProgress"
        elif package.failing:
            found["ModelPackageStatus"] = "Failed"
            statuses = [{"Name": "validation", "Status": "Failed", "FailureReason": package.failing}]
            found["ModelPackageStatusDetails"] = {"ValidationStatuses": statuses}
        return ActionResult(found)

    _Response.create_model_package, _Response.describe_model_package = create, describe


def _object_exists(address: str) -> bool:
    bucket, _, key = address.removeprefix("s3://").partition("/")
    found = s3_backends[ACCOUNT]["aws"].buckets.get(bucket)
    return found is not None and key in found.keys
