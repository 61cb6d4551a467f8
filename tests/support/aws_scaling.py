"""Patches of moto's Application Auto Scaling: its first use in an account."""

from collections.abc import Callable
from typing import Any

import moto.applicationautoscaling.responses as scaling_responses
from aws_script import ACCOUNT, REGION, Script, refuse
from moto.applicationautoscaling.models import applicationautoscaling_backends as scaling_backends

_Response = scaling_responses.ApplicationAutoScalingResponse
_register, _put = _Response.register_scalable_target, _Response.put_scaling_policy
_ROLE = f"arn:aws:iam::{ACCOUNT}:role/aws-service-role/sagemaker.application-autoscaling.amazonaws.com/x"


def patch(script: Callable[[], Script]) -> None:
    """Makes moto's scalable targets behave as in AWS."""

    def register(self: Any) -> str:
        # The first registration creates the service-linked role, which cannot be assumed at once. The provider of
        # Terraform repeats the call for this message (internal/service/appautoscaling/target.go).
        if not _of_a_test(self) and script().scaling_role_unknown > 0:
            script().scaling_role_unknown -= 1
            raise refuse("ValidationException", f"Unable to assume IAM role: {_ROLE}")
        made = _register(self)
        name, tags = self._get_param("ResourceId"), self._get_param("Tags") or {}
        for target in scaling_backends[ACCOUNT][REGION].describe_scalable_targets("sagemaker", None, None):
            if target.resource_id == name:
                target.tags = tags  # moto keeps none
        return made

    def put(self: Any) -> str:
        # The policy's alarms are created with that role; Terraform's provider repeats the call for these messages
        # (internal/service/appautoscaling/policy.go).
        if not _of_a_test(self) and script().scaling_alarms_unknown > 0:
            script().scaling_alarms_unknown -= 1
            raise refuse("FailedResourceAccessException", "The security token included in the request is invalid.")
        return _put(self)

    _Response.register_scalable_target, _Response.put_scaling_policy = register, put


def _of_a_test(self: Any) -> bool:
    return "the-test" in self.headers.get("User-Agent", "")
