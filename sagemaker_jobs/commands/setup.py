"""`neuron-sum aws setup`: create, update, compare and delete the stack of an account and region."""

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.launch.options import EveryOption, RegionOption, RequestsOption, expand
from sagemaker_jobs.stack.template import Settings

if TYPE_CHECKING:
    from sagemaker_jobs.aws.account import Account

ROLE_IN_USE = timedelta(minutes=5)
"""Time after the deletion of an endpoint in which its role is kept: SageMaker deletes network interfaces with it
(DeleteEndpoint)."""


@expand
def setup(
    settings: Settings,
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

    if sum((template, check, delete)) > 1:
        raise AwsError("--template, --check and --delete cannot be combined", "Use one of them.")
    if artifacts and not delete:
        raise AwsError("--artifacts requires --delete", "Use both.")
    if (monthly_usd is None and email) or (monthly_usd and not email):
        raise AwsError("a budget needs --monthly-usd USD and --email ADDRESS", "Use both, or --monthly-usd 0.")
    if monthly_usd is not None and (template or check or delete):
        raise AwsError("--monthly-usd cannot be combined with --template, --check or --delete", "Omit it.")
    if delete and settings != Settings():
        raise AwsError("--delete uses no settings of the stack", "Omit them.")
    if template:
        if (kms_key := settings.kms_key) and not kms_key.startswith("arn:"):
            raise AwsError(f"--template needs the ARN of the key, not its id {kms_key!r}", "Use --kms-key ARN.")
        _print_template(region, settings)
        return
    if dry_run and not (check or delete):
        site = session.offline_context(region)
        parameters = settings.parameters(site, {})
        request = lifecycle.request_of(site, parameters)
        requests = [{"service": lifecycle.SERVICE, "operation": "create_stack", "request": request}]
        if monthly_usd:
            limit = budget.request_of(site, monthly_usd, email or "")
            requests.insert(0, {"service": "budgets", "operation": "create_budget", "request": limit})
        console.emit({"stack": NAME, "requests": requests}, session.as_json(requests))
        return
    account = session.account_in(region, every_s=every)
    if check:
        _check(account, settings)
        return
    if delete:
        _delete(account, artifacts=artifacts, dry_run=dry_run)
        return
    if monthly_usd:
        limit = budget.request_of(account.site, monthly_usd, email or "")
        settings.given(account.site)  # before anything is sent
        budget.replace(account, limit)
    elif monthly_usd is not None:
        budget.delete(account)
    outcome, parameters = lifecycle.deploy(account, settings)
    lifecycle.create_scaling_role(account)
    given = {key: value for key, value in parameters.items() if value not in ("", "true")}
    console.emit(
        {"stack": NAME, "region": account.region, "outcome": outcome, "parameters": given},
        f"the stack {NAME} in {account.region}: {outcome}",
        *(f"{key}: {value}" for key, value in given.items()),
        f"bucket: {account.site.bucket}",
        f"next: {account.command('iam')} prints the policy of its users; {account.command('image', target='cpu')}",
    )


def _print_template(region: str | None, settings: Settings) -> None:
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


def _check(account: "Account", settings: Settings) -> None:
    from sagemaker_jobs.stack import lifecycle
    from sagemaker_jobs.stack.stack import NAME, describe, parameters_of

    described = describe(account)
    if described is None:
        raise AwsError(f"no stack {NAME} in {account.region}", f"Run `{account.command('setup')}`.")
    if found := lifecycle.differences(account, described, settings):
        raise AwsError(
            f"the stack {NAME} in {account.region} differs: {'; '.join(found)}",
            f"Run `{account.command('setup')}` to update it.",
        )
    console.emit(
        {"stack": NAME, "region": account.region, "parameters": parameters_of(described)},
        f"the stack {NAME} in {account.region} is up to date",
    )


def _delete(account: "Account", *, artifacts: bool, dry_run: bool) -> None:
    """Delete the stack if nothing that uses it exists, then what is empty of the bucket and the repository."""
    from sagemaker_jobs.cleanup import artifacts as storage
    from sagemaker_jobs.cleanup import down
    from sagemaker_jobs.cleanup.registered import known_entries
    from sagemaker_jobs.cost import budget
    from sagemaker_jobs.stack import lifecycle
    from sagemaker_jobs.stack.stack import NAME, describe

    if remaining := down.remaining_resources(account, None):
        listing = ", ".join(f"{item.kind} {item.name}" for item in remaining)
        raise AwsError(f"resources still use the stack: {listing}", f"Run `{account.command('down', all=True)}` first.")
    now = datetime.now(timezone.utc)
    since, until = ((now - age).isoformat(timespec="milliseconds") for age in (ROLE_IN_USE, timedelta()))
    gone = [entry for entry in account.ledger.entries() if entry.kind == "endpoint" and entry.event == "gone"]
    if recent := [entry.name for entry in gone if since < entry.time <= until]:
        raise AwsError(
            f"{recent[0]} was deleted less than {ROLE_IN_USE.seconds // 60} minutes ago, and SageMaker may still use "
            "its role",
            "Run the command again in a few minutes.",
        )
    again = account.command("setup", delete=True, artifacts=artifacts)
    report: dict[str, Any] = {"stack": NAME, "region": account.region}
    entries = [str(entry) for entry in known_entries(account)]
    if dry_run:
        stored, there = storage.stored(account, None), describe(account) is not None
        report |= {"stack_exists": there, "artifacts": [each.as_dict() for each in stored], "registered": entries}
        text = "would delete the stack" if there else "there is no stack"
        console.emit(report, text, *map(str, stored), *(f"stays: {entry}" for entry in entries))
        return
    described = lifecycle.settled(account, again)
    kept = storage.remove_artifacts(storage.stored(account, None)) if artifacts else []
    if described is not None:
        lifecycle.delete(account, described, again)
    lifecycle.forget(account)
    budget.delete(account)
    kept += storage.delete_retained(account)
    console.emit(
        {**report, "deleted": described is not None, "kept": kept, "registered": entries},
        f"the stack {NAME} in {account.region} {'was deleted' if described else 'does not exist'}",
        *(f"kept: {each}" for each in kept),
        *(f"stays: {entry}" for entry in entries),
        *(
            [f"`{account.command('setup', delete=True, artifacts=True)}` deletes the contents"]
            if kept and not artifacts
            else []
        ),
    )
