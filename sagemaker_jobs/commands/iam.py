"""`neuron-sum aws iam`: print the least-privilege policies of users; the template contains those of the roles."""

from typing import Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.launch.options import RegionOption
from sagemaker_jobs.stack.template import BoundaryOption, KeyOption, Settings


def iam(
    setup: Annotated[
        bool, typer.Option("--setup", help="Print the policy of the administrator who runs `aws setup` instead.")
    ] = False,
    account_id: Annotated[
        str | None, typer.Option("--account", help="AWS account id. Default: the account of your credentials.")
    ] = None,
    region: RegionOption = None,
    kms_key: KeyOption = None,
    permissions_boundary: BoundaryOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="No effect; this command is read-only.")] = False,
) -> None:
    """Print the least-privilege policy of the user who runs these commands."""
    from sagemaker_jobs.aws.policies import MANAGED_POLICY, caller_policy, documents, setup_policy
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.stack.stack import find_stack, planned_stack

    if account_id is not None:
        stack = planned_stack(session.offline_context(region, account_id))
    else:
        account = session.account_in(region)
        stack = planned_stack(account.site)
        try:
            stack = find_stack(account) or stack
        except AwsError as error:
            console.note(f"without the settings of the stack: {error.message}")
    given = Settings(kms_key=kms_key, permissions_boundary=permissions_boundary).given(stack.site)
    key = given.get("KmsKey") or stack.kms_key
    boundary = given.get("PermissionsBoundary") or stack.permissions_boundary
    policy = (
        setup_policy(stack.site, kms_key=key, boundary=boundary)
        if setup
        else caller_policy(
            stack.site,
            kms_key=key,
            old_keys=stack.old_keys,
            reads=(*stack.reads, *stack.writes),
            repositories=stack.repositories,
        )
    )
    if setup and boundary is None:
        console.note("without --permissions-boundary, this policy is equivalent to that of an administrator")
    parts = documents(policy)
    if len(parts) > 1:
        console.note(
            f"a managed policy may have {MANAGED_POLICY:,} characters: attach each of the {len(parts)} documents"
        )
    name = "setup" if setup else "caller"
    named = {name: policy} if len(parts) == 1 else {f"{name}-{number}": part for number, part in enumerate(parts, 1)}
    console.emit(named, *map(session.as_json, parts))
