"""`neuron-sum aws iam`: print the least-privilege policies."""

import json
import re
from typing import Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.commands.options import (
    BucketOption,
    GroupOption,
    KeyOption,
    RegionOption,
    RoleOption,
    SubnetOption,
    isolation_of,
)


def iam(
    account_id: Annotated[
        str | None, typer.Option("--account", help="AWS account id. Default: the account of your credentials.")
    ] = None,
    bucket: BucketOption = None,
    region: RegionOption = None,
    role: RoleOption = None,
    kms_key: KeyOption = None,
    subnet: SubnetOption = None,
    security_group: GroupOption = None,
    reads: Annotated[
        list[str] | None,
        typer.Option(metavar="S3", help="S3 address of your own, s3://…, that the commands read; may be repeated."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="No effect; this command is read-only.")] = False,
) -> None:
    """Print the least-privilege policies of every role and of the user who runs these commands."""
    from sagemaker_jobs.aws.caller_policy import MANAGED_POLICY, caller_policy
    from sagemaker_jobs.aws.policies import role_policies
    from sagemaker_jobs.commands import session

    site = session.account_in(region).site if account_id is None else session.offline_context(region, account_id)
    isolation = isolation_of(kms_key, subnet, security_group, False)
    isolation.check()
    bucket_name, read_addresses = bucket or site.bucket, reads or []
    if invalid := [address for address in read_addresses if not re.match("s3://[^/]", address)]:
        raise AwsError(f"--reads {invalid[0]} is not an S3 address", "Use --reads s3://BUCKET/PREFIX/.")
    policies = {
        "roles": role_policies(site, bucket_name, isolation, read_addresses),
        "caller": caller_policy(site, bucket_name, kms_key=kms_key, role_arn=role, reads=read_addresses),
    }
    if (length := len(json.dumps(policies["caller"], separators=(",", ":")))) > MANAGED_POLICY:
        console.warn(
            f"the caller's policy has {length:,} characters, but a managed policy may have at most "
            f"{MANAGED_POLICY:,}: attach its statements as two policies"
        )
    console.emit(policies, session.as_json(policies))
