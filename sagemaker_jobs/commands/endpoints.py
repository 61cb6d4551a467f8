"""`neuron-sum aws deploy` and `extend`: create an endpoint and change its expiry."""

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.launch.options import (
    MAX_HOURS,
    CapOption,
    EndpointArgument,
    EndpointOptions,
    OfflineOption,
    RegionOption,
    RequestsOption,
    StartOptions,
    expand,
)

if TYPE_CHECKING:
    from sagemaker_jobs.aws.account import Account
    from sagemaker_jobs.aws.names import AwsContext
    from sagemaker_jobs.cost.plan import Item
    from sagemaker_jobs.endpoint.sources import Source
    from sagemaker_jobs.launch.start import Launch


@expand
def deploy(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="A run with a compile job, s3://…/model.tar.gz, or a model.tar.gz written by `neuron-sum package`.",
        ),
    ],
    start: StartOptions,
    hosting: EndpointOptions,
    multi_model: Annotated[
        bool, typer.Option("--multi-model", help="Several models on one CPU endpoint; each request names its model.")
    ] = False,
    image: Annotated[
        str | None,
        typer.Option(
            help="Image URI; hf-vllm or djl-0.30-neuronx for a model that was packaged for that container. "
            "Default: the newest image built by `aws image`."
        ),
    ] = None,
    shadow: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Model that gets a copy of each request to the endpoint, on as many instances again; callers get only "
            "the answers of the first SOURCE, and --capture stores those of both.",
        ),
    ] = None,
) -> None:
    """Deploy a compiled model to an endpoint that expires automatically; a failure is rolled back."""
    from neuron_sum.platform.containers import VLLM
    from sagemaker_jobs.aws.names import ANY_ACCOUNT, new_run
    from sagemaker_jobs.cleanup import rollback
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.commands.capacity import Candidates, instance_types
    from sagemaker_jobs.endpoint import capture as captures
    from sagemaker_jobs.endpoint import launch as endpoint
    from sagemaker_jobs.endpoint import lifecycle
    from sagemaker_jobs.endpoint import sources as endpoint_sources
    from sagemaker_jobs.image import registry
    from sagemaker_jobs.launch import call as calls

    hosting.check()
    if hosting.keep and start.max_usd is not None:
        raise AwsError(
            f"--keep sets no expiry, so --max-usd {start.max_usd:g} cannot be enforced",
            "Use --hours instead of --keep.",
        )
    if start.detach and hosting.max_instances is not None:
        raise AwsError(
            "--detach and --max-instances cannot be combined: autoscaling is set once the endpoint is in service",
            "Use one of them.",
        )
    if shadow is not None and multi_model:
        raise AwsError("SageMaker has no shadow variants of multi-model endpoints", "Omit --shadow or --multi-model.")
    if shadow is not None and hosting.max_instances is not None:
        raise AwsError(
            "--shadow and --max-instances cannot be combined: a shadow has a fixed number of instances, and gets every "
            "request",
            "Use --instances for the number of instances of each model.",
        )
    if len(sources) > 1 and not multi_model:
        raise AwsError(
            f"one endpoint cannot serve {len(sources)} models without --multi-model",
            "Use --multi-model, or deploy each model separately.",
        )
    types = instance_types(hosting.instance, detach=start.detach, wait_hours=hosting.capacity_wait_hours)
    if hosting.capture is not None and multi_model:
        raise AwsError("SageMaker does not capture requests of multi-model endpoints", "Omit --capture.")
    account, stack = session.caller(start)
    if hosting.capture is not None and account is not None and not start.dry_run:
        captures.check_lifecycle(account, stack)
    reader = None if start.dry_run and stack.site.account == ANY_ACCOUNT else account
    texts = sources if shadow is None else [*sources, shadow]
    models = [endpoint_sources.find_source(text, reader, stack) for text in texts]
    if image == VLLM:
        models = [endpoint_sources.inspected(source, reader) for source in models]
        endpoint_sources.check_offline(models, isolated=hosting.network_isolation)
    targets = [endpoint_sources.image_target(source, each, image) for source in models for each in types]
    if multi_model:
        _check_several(models, {*targets})
    target = endpoint_sources.common_target(targets[: len(types)], types)
    image_name = image_uri_of(image, target, reader, stack.site)
    pinned = registry.pin(reader, stack, image_name)
    copied = None if shadow is None else models.pop()
    if copied is not None and copied.address_in(stack) == models[0].address_in(stack):
        raise AwsError(
            f"--shadow {shadow} is the model that the endpoint serves", "Use another run or archive with --shadow."
        )
    run = models[0].run if not multi_model and models[0].run else new_run("models" if multi_model else models[0].name)
    attempt = 1
    with ExitStack() as starting:
        if reader is not None and models[0].run is run:
            if not start.dry_run:
                starting.enter_context(session.only_start(reader, run, "endpoint"))
            if lifecycle.describe(reader, run.name("endpoint")) is not None:
                raise AwsError(
                    f"{run.id} already has an endpoint: {run.name('endpoint')}",
                    f"Extend it with `{reader.command('extend', run.id, hours=2)}` or delete it with "
                    f"`{reader.command('down', run.id)}`.",
                )
            if not start.dry_run:
                attempt = rollback.clear_leftovers(reader, run, endpoint.PARTS)
        if copied is not None and hosting.capture is None:
            console.note(
                "without --capture, the answers of the shadow are lost: only the metrics of both can be compared"
            )
        name, variants = run.name("endpoint"), 1 if copied is None else 2

        def prepare(instance: str, failures: int) -> "Launch":
            chosen, number = replace(hosting, instance=instance), attempt + failures
            return endpoint.launch(
                run, models, chosen, pinned, stack, multi_model=multi_model, shadow=copied, attempt=number
            )

        def follow(account: "Account", launch: "Launch", item: "Item") -> "tuple[Launch, Item, str]":
            console.note(f"{name} expires {lifecycle.format_expiry(launch.ends)}")
            if start.detach:
                return launch, item, "Creating"
            lifecycle.wait(account, name, price=item.price, instances=hosting.instances * variants)
            try:
                for call in launch.later:
                    calls.create(account, call, run)
            except AwsError as error:  # not a reason to roll back
                message = f"{name} is in service, but its autoscaling failed: {error.message}"
                raise AwsError(message, error.hint) from error
            return launch, item, lifecycle.IN_SERVICE

        def suggest(*words: str, **options: object) -> str:
            return console.command("aws", *words, **options, region=stack.site.region)

        def ends_text(launch: "Launch") -> str:
            if launch.ends is None:
                return "you are billed for it until you delete it"
            return f"AWS deletes it {lifecycle.format_expiry(launch.ends)}"

        candidates = Candidates(
            "endpoint",
            prepare,
            follow,
            types,
            hosting.capacity_wait_hours,
            hours=hosting.lifetime_h or 0.0,
            roll_back=True,
            ends=ends_text,
            started=starting.close,
        )
        result = session.carry_out(candidates, account, start)
    if result is None:
        return
    details, (launch, item, status) = result
    instance, hourly = item.price.instance if item.price else "", item.usd_per_hour / item.instances
    ends, address = launch.ends, f"sagemaker:{name}@{stack.site.region}"
    captured = None if hosting.capture is None else captures.address(run, stack)
    target_model = models[0].name if multi_model else None
    next_command = suggest("invoke", run.id, "dialogue.txt", target_model=target_model, chat=image == VLLM)
    if image == registry.ENDED:
        next_command = (
            f"aws sagemaker-runtime invoke-endpoint --endpoint-name {name} --region {stack.site.region}, with complete "
            "prompts as inputs"
        )
    console.emit(
        {
            **details,
            "endpoint": name,
            "address": address,
            "instance": instance,
            "status": status,
            "expires": None if ends is None else ends.isoformat(),
            "image": image_name,
            "pinned": pinned,
            "usd_per_hour": round(hourly * hosting.instances * variants, 4),
            **({"shadow": shadow} if shadow else {}),
            **({"captured": captured} if captured else {}),
            **({"models": [source.name for source in models]} if multi_model else {}),
        },
        f"{name}: {status} on {instance}\naddress: {address}\nexpires: {lifecycle.format_expiry(ends)}",
        *([f"shadow: {shadow} gets a copy of each request; its answers are not returned"] if shadow else []),
        f"${hourly * hosting.instances * variants:.2f} an hour"
        + (f", ${item.usd_per_hour:.2f} with all instances" if launch.later else ""),
        *([f"captured: {hosting.capture} % of requests, unredacted, in {captured}"] if captured else []),
        f"next: {next_command}",
        f"      {suggest('extend', run.id, hours=2)}\n      {suggest('down', run.id)}",
    )


def extend(
    run: EndpointArgument,
    hours: Annotated[float, typer.Option(min=0.01, max=MAX_HOURS, help="Hours until the endpoint is deleted.")],
    max_usd: CapOption = None,
    region: RegionOption = None,
    offline: OfflineOption = False,
    dry_run: RequestsOption = False,
) -> None:
    """Move the expiry of an endpoint to a number of hours from now, or add one to an endpoint kept with --keep."""
    from sagemaker_jobs.aws.names import Run, run_of
    from sagemaker_jobs.commands import session, tables
    from sagemaker_jobs.cost import plan, price_list
    from sagemaker_jobs.endpoint import launch as endpoint
    from sagemaker_jobs.endpoint import lifecycle
    from sagemaker_jobs.launch import call as calls
    from sagemaker_jobs.launch.schedules import LATE_S, time_of
    from sagemaker_jobs.stack.stack import planned_stack, require_stack

    if offline and dry_run:
        which = Run(run_of(run) or run, "")
        guess = endpoint.expiry(which, planned_stack(session.offline_context(region)), hours=hours)
        session.emit_requests({"run": which.id}, [replace(guess, operation="update_schedule")])
        return
    account = session.account_in(region, dry_run=dry_run)
    found = lifecycle.find_ours(account, run)
    if found.status in (*lifecycle.FAILED, "Deleting"):
        raise AwsError(
            f"{found.name} is {found.status} and cannot be extended",
            f"Run `{account.command('down', found.run.id)}` to remove the remaining resources.",
        )
    stack, current = require_stack(account), lifecycle.expiry_at(account, found.run)
    call = replace(endpoint.expiry(found.run, stack, hours=hours), late=None)
    if current is not None:
        call = replace(call, operation="update_schedule", kind=None)
    ends = time_of(call.request)
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
    if dry_run:
        priced.check(max_usd)
        shown = tables.plan_tables(priced, "dry run: nothing was sent")
        session.emit_requests({"run": found.run.id, "plan": priced.as_dict()}, [call], *shown)
        return
    console.note_table(tables.plan_tables(priced, f"{found.name} from now")[0])
    priced.check(max_usd)
    with session.hint_at_follow(found.run.id, found.name, account.region):
        calls.create(account, call, found.run)
        now = lifecycle.describe(account, found.name)
    if now is None or now["EndpointStatus"] == "Deleting":
        raise AwsError(
            f"{found.name} was deleted while its expiry was being moved",
            f"Run `{account.command('deploy', found.run.id, hours=hours)}` to deploy it again.",
        )
    old_end_text = None if current is None else current.isoformat()
    console.emit(
        {
            "run": found.run.id,
            "endpoint": found.name,
            "ended_before": old_end_text,
            "expires": ends.isoformat(),
            "worst_usd": round(priced.worst_usd, 2),
        },
        f"{found.name} expires {lifecycle.format_expiry(ends)}; before: {lifecycle.format_expiry(current)}",
        f"maximum cost from now: ${priced.worst_usd:.2f}",
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


def image_uri_of(requested: str | None, target: str, account: "Account | None", site: "AwsContext") -> str:
    """The full name of a serving image.

    Args:
        requested: The value of --image.
        target: The kind of image that the model needs.
        account: The account that has the newest image; None in a dry run without one, which prints a placeholder.
        site: The account and region of the registry.

    Raises:
        AwsError: If there is no image, or the request fails.
    """
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
