"""`neuron-sum aws deploy` and `extend`: create an endpoint and change its expiry."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError, Interrupted
from sagemaker_jobs.commands.options import (
    MAX_HOURS,
    BucketOption,
    CapOption,
    DetachOption,
    EndpointArgument,
    EveryOption,
    ExpiryRoleOption,
    GroupOption,
    IsolatedOption,
    KeyOption,
    OfflineOption,
    RegionOption,
    RequestsOption,
    RoleOption,
    SubnetOption,
    isolation_of,
)

if TYPE_CHECKING:
    from sagemaker_jobs.aws.account import Account
    from sagemaker_jobs.aws.names import AwsContext
    from sagemaker_jobs.endpoint.sources import Source
    from sagemaker_jobs.launch.call import Call
    from sagemaker_jobs.launch.start import Launch

HOURS = 2.0
SHORTEST_H = 0.25
"""Hours; an endpoint takes minutes to start."""


def deploy(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="A run with a compile job, s3://…/model.tar.gz, or a model.tar.gz written by `neuron-sum package`.",
        ),
    ],
    instance: Annotated[str, typer.Option(help="SageMaker instance type: ml.inf2.* or a CPU type.")] = "ml.inf2.xlarge",
    instances: Annotated[int, typer.Option(min=1, help="Initial and minimum number of instances.")] = 1,
    hours: Annotated[
        float | None,
        typer.Option(
            min=SHORTEST_H,
            max=MAX_HOURS,
            help=f"Hours after which EventBridge Scheduler deletes the endpoint. Default: {HOURS:g}.",
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="No expiry: you are billed until you delete it.")] = False,
    multi_model: Annotated[
        bool, typer.Option("--multi-model", help="Several models on one CPU endpoint; each request names its model.")
    ] = False,
    max_instances: Annotated[
        int | None, typer.Option(min=1, help="Turn on autoscaling, up to this many instances.")
    ] = None,
    invocations_per_instance: Annotated[
        float | None, typer.Option(min=1, help="Autoscaling target: requests per minute and instance.")
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            help="Image URI; hf-vllm or djl-0.30-neuronx for a model that was packaged for that container. "
            "Default: the newest image built by `aws image`."
        ),
    ] = None,
    max_usd: CapOption = None,
    bucket: BucketOption = None,
    role: RoleOption = None,
    expiry_role: ExpiryRoleOption = None,
    kms_key: KeyOption = None,
    subnet: SubnetOption = None,
    security_group: GroupOption = None,
    network_isolation: IsolatedOption = False,
    region: RegionOption = None,
    detach: DetachOption = False,
    every: EveryOption = 15.0,
    offline: OfflineOption = False,
    dry_run: RequestsOption = False,
) -> None:
    """Deploy a compiled model to an endpoint that expires automatically; a failure is rolled back."""
    from neuron_sum.platform.containers import VLLM
    from sagemaker_jobs.aws.ledger import Ledger
    from sagemaker_jobs.aws.names import ANY_ACCOUNT, new_run
    from sagemaker_jobs.aws.place import Destination
    from sagemaker_jobs.cleanup import rollback
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.cost import lifetime
    from sagemaker_jobs.endpoint import launch as endpoint
    from sagemaker_jobs.endpoint import lifecycle
    from sagemaker_jobs.endpoint import sources as endpoint_sources
    from sagemaker_jobs.image import registry
    from sagemaker_jobs.launch import call as calls

    _check_life(keep, hours, max_usd)
    if detach and max_instances is not None:
        raise AwsError(
            "--detach and --max-instances cannot be combined: autoscaling is set once the endpoint is in service",
            "Use one of them.",
        )
    if len(sources) > 1 and not multi_model:
        raise AwsError(
            f"one endpoint cannot serve {len(sources)} models without --multi-model",
            "Use --multi-model, or deploy each model separately.",
        )
    hosting = endpoint.EndpointOptions(
        instance,
        instances,
        None if keep else hours or HOURS,
        max_instances,
        invocations_per_instance,
        bucket,
        role,
        isolation_of(kms_key, subnet, security_group, network_isolation),
        expiry_role,
    )
    hosting.check()
    account, site = session.caller(region, offline=offline, dry_run=dry_run)
    reader = None if dry_run and site.account == ANY_ACCOUNT else account
    provisional = Destination(site, bucket or site.bucket, role or "")
    models = [endpoint_sources.find_source(text, reader, provisional) for text in sources]
    if image == VLLM:
        models = [endpoint_sources.inspected(source, reader) for source in models]
        endpoint_sources.check_offline(models, isolated=network_isolation)
    targets = {endpoint_sources.image_target(source, instance, image) for source in models}
    if multi_model:
        _check_several(models, targets)
    image_name = _image(image, targets.pop(), reader, site)
    run = models[0].run if not multi_model and models[0].run else new_run("models" if multi_model else models[0].name)
    existing_roles: set[str] = set()
    if reader is not None and models[0].run is run:
        if lifecycle.describe(reader, run.name("endpoint")) is not None:
            raise AwsError(
                f"{run.id} already has an endpoint: {run.name('endpoint')}",
                f"Extend it with `neuron-sum aws extend {run.id} --hours 2` or delete it with "
                f"`neuron-sum aws down {run.id}`.",
            )
        if not dry_run:
            rollback.clear_leftovers(reader, Ledger(site), run, endpoint.unpaid_names(run))
            existing_roles = rollback.existing_roles(reader, run)
    launch = endpoint.launch(
        run, models, hosting, image_name, site, now=datetime.now(timezone.utc), multi_model=multi_model
    )
    requests = endpoint.requests_of(launch)
    priced = lifetime.priced(requests, None if offline else account, None, hosting.hours or 0.0)
    [item] = [item for item in priced.items if item.kind == "endpoint"]
    assert item.price is not None  # an endpoint always has a price
    sent: list[Call] = []
    with _rolled_back_on_failure(account, launch, sent, existing_roles, every):
        ledger = session.begin(launch, priced, account, max_usd, dry_run=dry_run, on_send=sent.append)
        if ledger is None or account is None:
            return
        ends = endpoint.end_of((*launch.calls, *sent))
        console.note(f"started {item.name}; expires {lifecycle.format_expiry(ends)}; ledger: {ledger.path}")
        if not detach:
            lifecycle.wait(account, item.name, every_s=every, price=item.price, instances=hosting.instances)
            try:
                for call in launch.later:
                    calls.create(account, ledger, call, run, new_role=True)
            except AwsError as error:  # not a reason to roll back
                raise AwsError(
                    f"{item.name} is in service, but its autoscaling failed: {error.message}", error.hint
                ) from error
    status, address = "Creating" if detach else lifecycle.IN_SERVICE, f"sagemaker:{item.name}@{site.region}"
    target = f" --target-model {models[0].name}" if multi_model else ""
    target += " --chat" if image == VLLM else ""
    next_command = f"neuron-sum aws invoke {run.id} dialogue.txt{target}"
    if image == registry.ENDED:
        next_command = (
            f"aws sagemaker-runtime invoke-endpoint --endpoint-name {item.name}, with complete prompts as inputs"
        )
    console.emit(
        {
            "run": run.id,
            "endpoint": item.name,
            "region": site.region,
            "address": address,
            "status": status,
            "expires": None if ends is None else ends.isoformat(),
            "image": image_name,
            "usd_per_hour": round(item.price.cost(1, hosting.instances), 4),
            "plan": priced.as_dict(),
            **({"models": [source.name for source in models]} if multi_model else {}),
        },
        f"{item.name}: {status}\naddress: {address}\nexpires: {lifecycle.format_expiry(ends)}",
        f"${item.price.cost(1, hosting.instances):.2f} an hour"
        + (f", ${item.price.cost(1, item.instances):.2f} with all instances" if launch.later else ""),
        f"next: {next_command}",
        f"      neuron-sum aws extend {run.id} --hours 2\n      neuron-sum aws down {run.id}",
    )


def extend(
    run: EndpointArgument,
    hours: Annotated[float, typer.Option(min=0.01, max=MAX_HOURS, help="Hours until the endpoint is deleted.")],
    expiry_role: ExpiryRoleOption = None,
    max_usd: CapOption = None,
    region: RegionOption = None,
    offline: OfflineOption = False,
    dry_run: RequestsOption = False,
) -> None:
    """Move the expiry of an endpoint to a number of hours from now, or add one to an endpoint kept with --keep."""
    from sagemaker_jobs.aws.ledger import Ledger
    from sagemaker_jobs.aws.names import Run, run_of
    from sagemaker_jobs.commands import session, tables
    from sagemaker_jobs.cost import plan, price_list
    from sagemaker_jobs.endpoint import launch as endpoint
    from sagemaker_jobs.endpoint import lifecycle
    from sagemaker_jobs.endpoint.requests import create_expiry
    from sagemaker_jobs.launch import call as calls
    from sagemaker_jobs.launch.call import Call
    from sagemaker_jobs.launch.schedules import LATE_S

    ends = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(hours=hours)
    if offline and dry_run:
        which = Run(run_of(run) or run, "")
        guess = endpoint.expiry(which, session.offline_context(region), at=ends, role_arn=expiry_role).schedule
        requests = [Call("scheduler", "update_schedule", guess.request).as_dict()]
        console.emit({"run": which.id, "requests": requests}, session.as_json(requests))
        return
    account = session.account_in(region, dry_run=dry_run)
    found = lifecycle.find_ours(account, run)
    if found.status in (*lifecycle.FAILED, "Deleting"):
        raise AwsError(
            f"{found.name} is {found.status} and cannot be extended",
            f"Run `neuron-sum aws down {found.run.id}` to remove the remaining resources.",
        )
    current = lifecycle.expiry_at(account, found.run)
    instance, most = lifecycle.most_instances(account, found)
    price = price_list.price_of(instance, price_list.HOSTING, None if offline else account)
    item = plan.Item(
        "endpoint",
        found.name,
        price,
        most,
        hours + LATE_S / 3600,
        hours,
        f"the schedule, at {ends:%Y-%m-%dT%H:%M:%S} UTC, and {LATE_S} s until it calls",
    )
    priced = plan.Plan((item,))
    update_calls: tuple[Call, ...]
    if current is not None:
        update_calls = (
            Call("scheduler", "update_schedule", create_expiry(found.run, at=ends, role_arn=expiry_role or current[1])),
        )
    else:
        new_expiry = endpoint.expiry(found.run, account.site, at=ends, role_arn=expiry_role)
        update_calls = (*new_expiry.role_calls, new_expiry.schedule)
    requests = [call.as_dict() for call in update_calls]
    if dry_run:
        priced.check(max_usd)
        console.emit(
            {"run": found.run.id, "plan": priced.as_dict(), "requests": requests},
            *tables.plan_tables(priced, "dry run: nothing was sent"),
            session.as_json(requests),
        )
        return
    console.note_table(tables.plan_tables(priced, f"{found.name} from now")[0])
    priced.check(max_usd)
    with session.keep_running(found.run.id, found.name, account.region):
        for call in update_calls:
            calls.create(account, Ledger(account.site), call, found.run, new_role=True)
        now = lifecycle.describe(account, found.name)
    if now is None or now["EndpointStatus"] == "Deleting":
        raise AwsError(
            f"{found.name} was deleted while its expiry was being moved",
            f"Run `neuron-sum aws deploy {found.run.id}` to deploy it again.",
        )
    old_end = None if current is None else current[0]
    old_end_text = None if old_end is None else old_end.isoformat()
    console.emit(
        {
            "run": found.run.id,
            "endpoint": found.name,
            "ended_before": old_end_text,
            "expires": ends.isoformat(),
            "worst_usd": round(priced.worst_usd, 2),
        },
        f"{found.name} expires {lifecycle.format_expiry(ends)}; before: {lifecycle.format_expiry(old_end)}",
        f"maximum cost from now: ${priced.worst_usd:.2f}",
    )


@contextmanager
def _rolled_back_on_failure(
    account: "Account | None", launch: "Launch", sent: "list[Call]", existing_roles: set[str], every_s: float
) -> Iterator[None]:
    """Roll back if AWS refuses a request or the endpoint fails to start; Ctrl-C leaves everything to the expiry."""
    from sagemaker_jobs.aws import errors
    from sagemaker_jobs.aws.errors import Refused
    from sagemaker_jobs.cleanup import rollback
    from sagemaker_jobs.endpoint import launch as endpoint
    from sagemaker_jobs.endpoint import lifecycle

    run, region, name = launch.run, launch.place.site.region, launch.run.name("endpoint")
    try:
        yield
    except KeyboardInterrupt:
        ends = endpoint.end_of((*launch.calls, *sent))
        until = (
            "you are billed for it until you delete it"
            if ends is None
            else f"AWS deletes it {lifecycle.format_expiry(ends)}"
        )
        raise Interrupted(
            f"stopped waiting for {name}; if it started, it is billed, and {until}",
            f"Inspect it with `neuron-sum aws status {run.id}` or delete it now with `neuron-sum aws down {run.id}`.",
        ) from None
    except (Refused, lifecycle.EndpointFailed) as error:
        if account is not None:
            rollback.undo(account, launch, error, keep=existing_roles, every_s=every_s)
        raise
    except AwsError as error:
        errors.add_cleanup_hint(error, run.id, region)
        raise


def _check_life(keep: bool, hours: float | None, max_usd: float | None) -> None:
    if keep and hours is not None:
        raise AwsError(f"--keep and --hours {hours:g} cannot be combined", "Use one of them; --keep sets no expiry.")
    if keep and max_usd is not None:
        raise AwsError(
            f"--keep sets no expiry, so --max-usd {max_usd:g} cannot be enforced", "Use --hours instead of --keep."
        )


def _check_several(sources: "list[Source]", targets: set[str]) -> None:
    if targets != {"cpu"}:
        raise AwsError(
            "SageMaker's multi-model endpoints do not run on Inferentia2",
            "Use --instance ml.c7i.4xlarge or another CPU type.",
        )
    names = [source.name for source in sources]
    if duplicates := {name for name in names if names.count(name) > 1}:
        raise AwsError(
            f"two models are named {min(duplicates)}", f"Give one of them another name with {min(duplicates)}-2=SOURCE."
        )


def _image(requested: str | None, target: str, account: "Account | None", site: "AwsContext") -> str:
    from neuron_sum.platform.containers import CONTAINERS
    from neuron_sum.platform.matrix import ENDED_CONTAINERS
    from sagemaker_jobs.image import registry

    if requested == registry.ENDED:
        ended = ENDED_CONTAINERS[registry.ENDED]
        console.warn(f"{ended.name} has not been supported since {ended.ended} ({ended.ended_source})")
        return registry.ended_image(site.region)
    if requested in CONTAINERS:
        return CONTAINERS[requested].uri(site.region)
    if requested is not None:
        return requested
    if account is None:
        console.note("AWS is not queried for the newest image, so its tag is a placeholder")
        return registry.image_uri(site, f"{target}-newest")
    return registry.newest_image(account, target)
