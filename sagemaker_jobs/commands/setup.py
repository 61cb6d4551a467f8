"""`neuron-sum aws setup`: create, update, compare and delete the stack of an account and region."""

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.commands.options import BoundaryOption, EveryOption, KeyOption, RegionOption, RequestsOption

if TYPE_CHECKING:
    from sagemaker_jobs.aws.account import Account
    from sagemaker_jobs.stack.template import Settings

ROLE_IN_USE = timedelta(minutes=5)
"""Time after the deletion of an endpoint in which its role is kept: SageMaker deletes network interfaces with it
(DeleteEndpoint)."""


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
    mlflow: Annotated[
        list[str] | None,
        typer.Option(metavar="ARN", help="ARN of an MLflow tracking server for training jobs; may be repeated."),
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
    from sagemaker_jobs.cost import budget
    from sagemaker_jobs.stack import lifecycle
    from sagemaker_jobs.stack.stack import NAME
    from sagemaker_jobs.stack.template import Settings

    if sum((template, check, delete)) > 1:
        raise AwsError("--template, --check and --delete cannot be combined", "Use one of them.")
    if artifacts and not delete:
        raise AwsError("--artifacts requires --delete", "Use both.")
    if (monthly_usd is None and email) or (monthly_usd and not email):
        raise AwsError("a budget needs --monthly-usd USD and --email ADDRESS", "Use both, or --monthly-usd 0.")
    settings = Settings(kms_key, permissions_boundary, subnet, security_group, reads, writes, repository, mlflow)
    if monthly_usd is not None and (template or check or delete):
        raise AwsError("--monthly-usd cannot be combined with --template, --check or --delete", "Omit it.")
    if delete and settings != Settings():
        raise AwsError("--delete uses no settings of the stack", "Omit them.")
    if template:
        if kms_key and not kms_key.startswith("arn:"):
            raise AwsError(f"--template needs the ARN of the key, not its id {kms_key!r}", "Use --kms-key ARN.")
        _print_template(region, settings)
        return
    if dry_run and not (check or delete):
        site = session.offline_context(region)
        parameters = settings.parameters(site, {})
        request = lifecycle.request_of(site, "CREATE", parameters)
        requests = [{"service": lifecycle.SERVICE, "operation": "create_change_set", "request": request}]
        if monthly_usd:
            limit = budget.request_of(site, monthly_usd, email or "")
            requests.insert(0, {"service": "budgets", "operation": "create_budget", "request": limit})
        console.emit({"stack": NAME, "requests": requests}, session.as_json(requests))
        return
    account = session.account_in(region)
    if check:
        _check(account, settings)
        return
    if delete:
        _delete(account, artifacts=artifacts, every_s=every, dry_run=dry_run)
        return
    if monthly_usd:
        limit = budget.request_of(account.site, monthly_usd, email or "")
        settings.given(account.site)  # before anything is sent
        budget.replace(account, limit)
    elif monthly_usd is not None:
        budget.delete(account)
    outcome, parameters = lifecycle.deploy(account, settings, every_s=every)
    lifecycle.create_scaling_role(account)
    given = {key: value for key, value in parameters.items() if value not in ("", "true")}
    console.emit(
        {"stack": NAME, "region": account.region, "outcome": outcome, "parameters": given},
        f"the stack {NAME} in {account.region}: {outcome}",
        *(f"{key}: {value}" for key, value in given.items()),
        f"bucket: {account.site.bucket}",
        "next: neuron-sum aws iam prints the policy of its users; neuron-sum aws image --target cpu",
    )


def _print_template(region: str | None, settings: "Settings") -> None:
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.stack.lifecycle import SCALING_SERVICE
    from sagemaker_jobs.stack.stack import NAME
    from sagemaker_jobs.stack.template import render

    site = session.offline_context(region)
    rendered = render(site, settings.parameters(site, {}))
    console.note(
        f"for {site.region}; deploy it with aws cloudformation deploy --stack-name {NAME} --template-file FILE "
        f"--capabilities CAPABILITY_NAMED_IAM --region {site.region}, and, once per account, run "
        f"aws iam create-service-linked-role --aws-service-name {SCALING_SERVICE}"
    )
    console.emit(rendered, session.as_json(rendered))


def _check(account: "Account", settings: "Settings") -> None:
    from sagemaker_jobs.stack import lifecycle
    from sagemaker_jobs.stack.stack import NAME, describe, parameters_of

    described = describe(account)
    if described is None:
        raise AwsError(f"no stack {NAME} in {account.region}", f"Run `{lifecycle.command(account)}`.")
    if found := lifecycle.differences(account, described, settings):
        raise AwsError(
            f"the stack {NAME} in {account.region} differs: {'; '.join(found)}",
            f"Run `{lifecycle.command(account)}` to update it.",
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
    from sagemaker_jobs.cleanup.registered import known_entries
    from sagemaker_jobs.cost import budget
    from sagemaker_jobs.stack import lifecycle
    from sagemaker_jobs.stack.stack import NAME, describe

    ledger = Ledger(account.site)
    if remaining := down.remaining_resources(account, ledger, None):
        listing = ", ".join(f"{item.kind} {item.name}" for item in remaining)
        raise AwsError(f"resources still use the stack: {listing}", "Run `neuron-sum aws down --all` first.")
    now = datetime.now(timezone.utc)
    since, until = ((now - age).isoformat(timespec="milliseconds") for age in (ROLE_IN_USE, timedelta()))
    gone = [entry for entry in ledger.entries() if entry.kind == "endpoint" and entry.event == "gone"]
    if recent := [entry.name for entry in gone if since < entry.time <= until]:
        raise AwsError(
            f"{recent[0]} was deleted less than {ROLE_IN_USE.seconds // 60} minutes ago, and SageMaker may still use "
            "its role",
            "Run the command again in a few minutes.",
        )
    again = lifecycle.command(account, "--delete", *(["--artifacts"] if artifacts else []))
    bucket = account.site.bucket
    report: dict[str, Any] = {"stack": NAME, "region": account.region}
    entries = [str(entry) for entry in known_entries(account)]
    if dry_run:
        stored, there = storage.stored(account, bucket, None), describe(account) is not None
        report |= {"stack_exists": there, "artifacts": [each.as_dict() for each in stored], "registered": entries}
        text = "would delete the stack" if there else "there is no stack"
        console.emit(report, text, *map(str, stored), *(f"stays: {entry}" for entry in entries))
        return
    described = lifecycle.settled(account, again, every_s=every_s)
    kept = storage.remove_artifacts(account, bucket, None) if artifacts else []
    if described is not None:
        lifecycle.delete(account, described, again, every_s=every_s)
    lifecycle.forget(account)
    budget.delete(account)
    kept += storage.delete_retained(account, bucket)
    console.emit(
        {**report, "deleted": described is not None, "kept": kept, "registered": entries},
        f"the stack {NAME} in {account.region} {'was deleted' if described else 'does not exist'}",
        *(f"kept: {each}" for each in kept),
        *(f"stays: {entry}" for entry in entries),
        *([f"`{lifecycle.command(account, '--delete', '--artifacts')}` deletes the contents"] if kept else []),
    )
