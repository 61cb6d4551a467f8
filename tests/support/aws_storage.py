"""Patches of moto's buckets: they behave as in AWS."""

from typing import Any

from moto.s3.exceptions import S3ClientError
from moto.s3.models import S3Backend

_put_lifecycle = S3Backend.put_bucket_lifecycle_configuration


def patch() -> None:
    """Makes moto's buckets reject lifecycle rules as AWS does."""

    def put_lifecycle(self: Any, bucket_name: str, rules: list[dict[str, Any]]) -> None:
        # The older Prefix of a rule beside the Filter of another (ansible/ansible#53751, aws/aws-sdk-ruby#1653).
        if len({"Filter" in rule for rule in rules}) > 1:
            raise S3ClientError("InvalidRequest", "Filter element can only be used in Lifecycle V2.")
        _put_lifecycle(self, bucket_name, rules)

    S3Backend.put_bucket_lifecycle_configuration = put_lifecycle
