"""`neuron-sum aws setup`: create, update, compare and delete the stack of an account and region."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.commands.options import BoundaryOption, EveryOption, KeyOption, RegionOption, RequestsOption

if TYPE_CHECKING:
    from sagemaker_jobs.aws.account import Account
    from sagemaker_jobs.stack.template import Settings


def setup(
    template: Annotated[
        bool, typer.Option("--template", help="Print the CloudFormation template for an administrator.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit with 14 if the stack is missing or differs.")
    ] = False,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete the stack; the bucket and the repository only if they are empty.")
    ] = False,
    artifacts: Annotated[
        bool, typer.Option("--artifacts", help="With --delete: first delete all models, inputs, images and logs.")
    ] = False,
    kms_key: KeyOption = None,
    permissions_boundary: BoundaryOption = None,
    subnet: Annotated[
        list[str] | None, typer.Option(help="Id of a VPC subnet for jobs and endpoints; may be repeated.")
    ] = None,
    security_group: Annotated[
        list[str] | None, typer.Option(help="Id of a security group of the same VPC; may be repeated.")
    ] = None,
    reads: Annotated[
        list[str] | None,
        typer.Option(metavar="S3", help="S3 address, s3://…, that jobs and endpoints may read; may be repeated."),
    ] = None,
    writes: Annotated[
        list[str] | None,
        typer.Option(metavar="S3", help="S3 address, s3://…, that jobs may read and write; may be repeated."),
    ] = None,
    repository: Annotated[
        list[str] | None,
        typer.Option(metavar="ARN", help="ARN of an image repository that may be pulled; may be repeated."),
    ] = None,
    monthly_usd: Annotated[
        float | None, typer.Option(min=0, help="Monthly AWS Budget in USD, which sends e-mails; 0: none.")
    ] = None,
    email: Annotated[str | None, typer.Option(help="E-mail address for the notifications of the budget.")] = None,
    region: RegionOption = None,
    every: EveryOption = 5.0,
    dry_run: RequestsOption = False,
) -> None:
    """Create or update the bucket, image repository, build project and roles of an account, as one stack.

    Omitted options keep their present values; an empty value removes one.
    """
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.stack import lifecycle
    from sagemaker_jobs.stack.stack import NAME, describe, parameters_of
    from sagemaker_jobs.stack.template import Settings, render

    if sum((template, check, delete)) > 1:
        raise AwsError("--template, --check and --delete cannot be combined", "Use one of them.")
    if artifacts and not delete:
        raise AwsError("--artifacts requires --delete", "Use both.")
    settings = Settings(
        kms_key, permissions_boundary, subnet, security_group, reads, writes, repository, monthly_usd, email
    )
    if template:
        rendered = render(session.offline_context(region))
        console.emit(rendered, session.as_json(rendered))
        return
    if dry_run and not (check or delete):
        site = session.offline_context(region)
        request = lifecycle.request_of(site, "CREATE", settings.parameters(site, {}))
        requests = [{"service": lifecycle.SERVICE, "operation": "create_change_set", "request": request}]
        console.emit({"stack": NAME, "requests": requests}, session.as_json(requests))
        return
    account = session.account_in(region)
    if check:
        _check(account, settings)
        return
    if delete:
        _delete(account, artifacts=artifacts, every_s=every, dry_run=dry_run)
        return
    outcome = lifecycle.deploy(account, settings, every_s=every)
    lifecycle.create_scaling_role(account)
    after = describe(account)
    assert after is not None  # it was just created
    parameters = {key: value for key, value in parameters_of(after).items() if value not in ("", "0")}
    console.emit(
        {"stack": NAME, "region": account.region, "outcome": outcome, "parameters": parameters},
        f"the stack {NAME} in {account.region}: {outcome}",
        *(f"{key}: {value}" for key, value in parameters.items()),
        f"bucket: {account.site.bucket}",
        "next: neuron-sum aws iam prints the policy of its users; neuron-sum aws image --target cpu",
    )


def _check(account: "Account", settings: "Settings") -> None:
    from sagemaker_jobs.stack import lifecycle
    from sagemaker_jobs.stack.stack import NAME, describe, parameters_of

    described = describe(account)
    if described is None:
        raise AwsError(f"no stack {NAME} in {account.region}", "Run `neuron-sum aws setup`.")
    if found := lifecycle.differences(account, described, settings):
        raise AwsError(
            f"the stack {NAME} in {account.region} differs: {'; '.join(found)}",
            "Run `neuron-sum aws setup` to update it.",
        )
    console.emit(
        {"stack": NAME, "region": account.region, "parameters": parameters_of(described)},
        f"the stack {NAME} in {account.region} is up to date",
    )


def _delete(account: "Account", *, artifacts: bool, every_s: float, dry_run: bool) -> None:
    """Delete the stack if nothing that uses it exists, then what is empty of the bucket and the repository."""
    from sagemaker_jobs.aws.ledger import Ledger
    from sagemaker_jobs.cleanup import artifacts as storage
    from sagemaker_jobs.cleanup import down
    from sagemaker_jobs.stack import lifecycle
    from sagemaker_jobs.stack.stack import NAME

    if remaining := down.remaining_resources(account, Ledger(account.site), None):
        listing = ", ".join(f"{item.kind} {item.name}" for item in remaining)
        raise AwsError(f"resources still use the stack: {listing}", "Run `neuron-sum aws down --all` first.")
    described = lifecycle.settled(account, every_s=every_s)
    bucket = account.site.bucket
    report: dict[str, Any] = {"stack": NAME, "region": account.region}
    stored = storage.stored(account, bucket, None)
    if dry_run:
        report["artifacts"] = [each.as_dict() for each in stored]
        console.emit(report, "would delete the stack", *map(str, stored))
        return
    kept = storage.remove_artifacts(account, bucket, None) if artifacts else []
    if described is not None:
        lifecycle.delete(account, described, every_s=every_s)
    kept += storage.delete_retained(account, bucket)
    console.emit(
        {**report, "deleted": described is not None, "kept": kept},
        f"the stack {NAME} in {account.region} {'was deleted' if described else 'does not exist'}",
        *(f"kept: {each}" for each in kept),
        *(["--delete --artifacts deletes these, too"] if kept and not artifacts else []),
    )
