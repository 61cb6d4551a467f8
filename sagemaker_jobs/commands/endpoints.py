"""`neuron-sum aws deploy` and `extend`: an endpoint and its life."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError, Interrupted
from sagemaker_jobs.commands.options import (
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
"""An endpoint takes minutes to come up."""


def deploy(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="A run with a compile job, s3://…/model.tar.gz, or a model.tar.gz of `neuron-sum package`.",
        ),
    ],
    instance: Annotated[str, typer.Option(help="ml.inf2.*, or a CPU.")] = "ml.inf2.xlarge",
    instances: Annotated[int, typer.Option(min=1, help="How many at first, and at least.")] = 1,
    hours: Annotated[
        float | None,
        typer.Option(min=SHORTEST_H, help=f"AWS's own scheduler deletes it after so long. Default: {HOURS:g}."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="No expiry: it is paid until you end it.")] = False,
    multi_model: Annotated[
        bool, typer.Option("--multi-model", help="Several on one CPU endpoint; a request names its model.")
    ] = False,
    max_instances: Annotated[int | None, typer.Option(min=1, help="Autoscaling, up to so many.")] = None,
    invocations_per_instance: Annotated[
        float | None, typer.Option(min=1, help="For autoscaling: requests a minute that one instance shall have.")
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Default: the newest of `aws image`. djl-0.30-neuronx: AWS's frozen container.")
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
    """Put a compiled model behind an endpoint that AWS itself ends; a failure is rolled back."""
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
        raise AwsError("autoscaling is set once the endpoint is in service", "leave out --detach or --max-instances")
    if len(sources) > 1 and not multi_model:
        raise AwsError(f"{len(sources)} models for one endpoint", "--multi-model, or a deploy for each")
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
    asked = None if dry_run and site.account == ANY_ACCOUNT else account
    anywhere = Destination(site, bucket or site.bucket, role or "")
    found = [endpoint_sources.find_source(text, asked, anywhere) for text in sources]
    targets = {endpoint_sources.image_target(source, instance, image) for source in found}
    if multi_model:
        _check_several(found, targets)
    name = _image(image, targets.pop(), asked, site)
    run = found[0].run if not multi_model and found[0].run else new_run("models" if multi_model else found[0].name)
    kept_roles: set[str] = set()
    if asked is not None and found[0].run is run:
        if lifecycle.describe(asked, run.name("endpoint")) is not None:
            raise AwsError(
                f"{run.id} has an endpoint already: {run.name('endpoint')}",
                f"neuron-sum aws extend {run.id} --hours 2 prolongs it, neuron-sum aws down {run.id} ends it",
            )
        if not dry_run:
            rollback.clear_leftovers(asked, Ledger(site), run, endpoint.unpaid_names(run), console.note)
            kept_roles = rollback.existing_roles(asked, run)
    made = endpoint.launch(run, found, hosting, name, site, now=datetime.now(timezone.utc), multi_model=multi_model)
    requests = endpoint.requests_of(made)
    priced = lifetime.priced(requests, None if offline else account, None, hosting.hours or 0.0)
    [item] = [item for item in priced.items if item.kind == "endpoint"]
    assert item.price is not None  # an endpoint has one
    sent: list[Call] = []
    with _undone(account, made, sent, kept_roles, every):
        ledger = session.begin(made, priced, account, max_usd, dry_run=dry_run, on_send=sent.append)
        if ledger is None or account is None:
            return
        ends = endpoint.end_of((*made.calls, *sent))
        console.note(f"started {item.name}; it ends {lifecycle.told(ends)}; the ledger is {ledger.path}")
        if not detach:
            lifecycle.wait(
                account, item.name, console.note, every_s=every, price=item.price, instances=hosting.instances
            )
            for call in made.later:
                calls.create(account, ledger, call, run)
    status, address = "Creating" if detach else lifecycle.IN_SERVICE, f"sagemaker:{item.name}@{site.region}"
    target = f" --target-model {found[0].name}" if multi_model else ""
    asking = f"neuron-sum aws invoke {run.id} dialogue.txt{target}"
    if image == registry.ENDED:
        asking = f"aws sagemaker-runtime invoke-endpoint --endpoint-name {item.name}, with whole prompts as inputs"
    console.emit(
        {
            "run": run.id,
            "endpoint": item.name,
            "region": site.region,
            "address": address,
            "status": status,
            "expires": None if ends is None else ends.isoformat(),
            "image": name,
            "usd_per_hour": round(item.price.cost(1, hosting.instances), 4),
            "plan": priced.as_dict(),
            **({"models": [source.name for source in found]} if multi_model else {}),
        },
        f"{item.name}: {status}\naddress: {address}\nends: {lifecycle.told(ends)}",
        f"${item.price.cost(1, hosting.instances):.2f} an hour"
        + (f", ${item.price.cost(1, item.instances):.2f} with all instances" if made.later else ""),
        f"next: {asking}",
        f"      neuron-sum aws extend {run.id} --hours 2\n      neuron-sum aws down {run.id}",
    )


def extend(
    run: EndpointArgument,
    hours: Annotated[float, typer.Option(min=0.01, help="From now on.")],
    expiry_role: ExpiryRoleOption = None,
    max_usd: CapOption = None,
    region: RegionOption = None,
    offline: OfflineOption = False,
    dry_run: RequestsOption = False,
) -> None:
    """Give an endpoint another end, so many hours from now; one that was kept gets an end."""
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
        guess = endpoint.expiry(which, session.unasked_site(region), at=ends, role_arn=expiry_role).schedule
        shown = [Call("scheduler", "update_schedule", guess.request).as_dict()]
        console.emit({"run": which.id, "requests": shown}, session.as_json(shown))
        return
    account = session.account_in(region, dry_run=dry_run)
    found = lifecycle.find_ours(account, run)
    if found.status in (*lifecycle.FAILED, "Deleting"):
        raise AwsError(f"{found.name} is {found.status}", f"neuron-sum aws down {found.run.id} removes what is left")
    before = lifecycle.expiry_at(account, found.run)
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
    made: tuple[Call, ...]
    if before is not None:
        made = (
            Call("scheduler", "update_schedule", create_expiry(found.run, at=ends, role_arn=expiry_role or before[1])),
        )
    else:
        made_first = endpoint.expiry(found.run, account.site, at=ends, role_arn=expiry_role)
        made = (*made_first.role_calls, made_first.schedule)
    shown = [call.as_dict() for call in made]
    if dry_run:
        priced.check(max_usd)
        console.emit(
            {"run": found.run.id, "plan": priced.as_dict(), "requests": shown},
            *tables.plan_tables(priced, "dry run: nothing was sent"),
            session.as_json(shown),
        )
        return
    console.note_table(tables.plan_tables(priced, f"{found.name} from now on")[0])
    priced.check(max_usd)
    with session.stopping_leaves(found.run.id, found.name, account.region):
        for call in made:
            calls.create_with_new_role(account, Ledger(account.site), call, found.run)
        now = lifecycle.describe(account, found.name)
    if now is None or now["EndpointStatus"] == "Deleting":
        raise AwsError(f"{found.name} ended while its end was moved", f"neuron-sum aws deploy {found.run.id}")
    earlier = None if before is None else before[0]
    ended = None if earlier is None else earlier.isoformat()
    console.emit(
        {
            "run": found.run.id,
            "endpoint": found.name,
            "ended_before": ended,
            "expires": ends.isoformat(),
            "worst_usd": round(priced.worst_usd, 2),
        },
        f"{found.name} ends {lifecycle.told(ends)}; before: {lifecycle.told(earlier)}",
        f"at most ${priced.worst_usd:.2f} from now on",
    )


@contextmanager
def _undone(
    account: "Account | None", made: "Launch", sent: "list[Call]", kept_roles: set[str], every_s: float
) -> Iterator[None]:
    """What AWS refuses, and what does not come up, is rolled back; Ctrl-C leaves all to the expiry."""
    from sagemaker_jobs.aws import errors
    from sagemaker_jobs.aws.errors import Refused
    from sagemaker_jobs.cleanup import rollback
    from sagemaker_jobs.endpoint import launch as endpoint
    from sagemaker_jobs.endpoint import lifecycle

    run, where, name = made.run, made.place.site.region, made.run.name("endpoint")
    try:
        yield
    except KeyboardInterrupt:
        ends = endpoint.end_of((*made.calls, *sent))
        until = "nothing ends it but you" if ends is None else f"AWS deletes it {lifecycle.told(ends)}"
        raise Interrupted(
            f"left {name} as it is; if it was started, it is paid, and {until}",
            f"neuron-sum aws status {run.id} shows it, neuron-sum aws down {run.id} ends it now",
        ) from None
    except (Refused, lifecycle.EndpointFailed) as error:
        if account is not None:
            rollback.undo(account, made, error, keep=kept_roles, every_s=every_s)
        raise
    except AwsError as error:
        errors.add_cleanup_hint(error, run.id, where)
        raise


def _check_life(keep: bool, hours: float | None, max_usd: float | None) -> None:
    if keep and hours is not None:
        raise AwsError(f"both --keep and --hours {hours:g}", "--keep has no end; leave out one of the two")
    if keep and max_usd is not None:
        raise AwsError(
            f"--keep has no end, so nothing holds it under --max-usd {max_usd:g}", "--hours instead of --keep"
        )


def _check_several(sources: "list[Source]", targets: set[str]) -> None:
    if targets != {"cpu"}:
        raise AwsError(
            "SageMaker's multi-model endpoints do not run on Inferentia2", "--instance ml.c7i.4xlarge, or another CPU"
        )
    names = [source.name for source in sources]
    if twice := {name for name in names if names.count(name) > 1}:
        raise AwsError(f"two models are named {min(twice)}", f"{min(twice)}-2=SOURCE gives one another name")


def _image(given: str | None, target: str, account: "Account | None", site: "AwsContext") -> str:
    from neuron_sum.platform.matrix import ENDED_CONTAINERS
    from sagemaker_jobs.image import registry

    if given == registry.ENDED:
        ended = ENDED_CONTAINERS[registry.ENDED]
        console.warn(f"what serves in {ended.name} has had no support since {ended.ended} ({ended.ended_source})")
        return registry.ended_image(site.region)
    if given is not None:
        return given
    if account is None:
        console.note("AWS is not asked for the newest image: its tag is a guess")
        return registry.image_uri(site, f"{target}-newest")
    return registry.newest_image(account, target)
