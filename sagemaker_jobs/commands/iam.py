"""`neuron-sum aws iam`: the least-privilege policies."""

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
    account_id: Annotated[str | None, typer.Option("--account", help="Default: that of the credentials.")] = None,
    bucket: BucketOption = None,
    region: RegionOption = None,
    role: RoleOption = None,
    kms_key: KeyOption = None,
    subnet: SubnetOption = None,
    security_group: GroupOption = None,
    reads: Annotated[
        list[str] | None,
        typer.Option(metavar="S3", help="An address of yours, s3://…, that commands are given; may be repeated."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="The same: this command changes nothing.")] = False,
) -> None:
    """Print the least-privilege policies of every role, and of whoever runs these commands."""
    from sagemaker_jobs.aws.caller_policy import MANAGED_POLICY, caller_policy
    from sagemaker_jobs.aws.policies import role_policies
    from sagemaker_jobs.commands import session

    site = session.account_in(region).site if account_id is None else session.unasked_site(region, account_id)
    isolation = isolation_of(kms_key, subnet, security_group, False)
    isolation.check()
    name, theirs = bucket or site.bucket, reads or []
    if wrong := [address for address in theirs if not re.match("s3://[^/]", address)]:
        raise AwsError(f"--reads {wrong[0]} is no address in S3", "--reads s3://BUCKET/PREFIX/")
    made = {
        "roles": role_policies(site, name, isolation, theirs),
        "caller": caller_policy(site, name, kms_key=kms_key, role_arn=role, reads=theirs),
    }
    if (length := len(json.dumps(made["caller"], separators=(",", ":")))) > MANAGED_POLICY:
        console.warn(
            f"the caller's policy has {length:,} characters, and a managed policy may have {MANAGED_POLICY:,}: "
            "attach its statements as two"
        )
    console.emit(made, session.as_json(made))
