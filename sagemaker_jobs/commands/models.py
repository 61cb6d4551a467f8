"""`neuron-sum aws models`: what a multi-model endpoint can serve, more of it, and less."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.commands.options import OfflineOption, RegionOption, RequestsOption

if TYPE_CHECKING:
    from sagemaker_jobs.aws.account import Account
    from sagemaker_jobs.endpoint.lifecycle import Endpoint

UNLOADING = (
    "SageMaker documents no call that unloads it: an instance that has it loaded may answer for it until it needs the "
    "room. Stop asking for it, and never give another model its name"
)


def models(
    run: Annotated[str, typer.Argument(metavar="RUN|ENDPOINT", help="As `aws deploy --multi-model` printed it.")],
    add: Annotated[
        list[str] | None, typer.Option(metavar="SOURCE", help="As deploy takes it; may be repeated.")
    ] = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="NAME", help="May be repeated.")] = None,
    region: RegionOption = None,
    offline: OfflineOption = False,
    dry_run: RequestsOption = False,
) -> None:
    """List a multi-model endpoint's models; add and remove some while it runs."""
    from sagemaker_jobs.aws.names import Run, run_of
    from sagemaker_jobs.aws.place import Destination, NetworkSecurity
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.endpoint import launch as endpoint
    from sagemaker_jobs.endpoint import lifecycle
    from sagemaker_jobs.endpoint import sources as endpoint_sources
    from sagemaker_jobs.endpoint.sources import ARCHIVE
    from sagemaker_jobs.launch.call import Call
    from sagemaker_jobs.launch.channels import upload
    from sagemaker_jobs.launch.start import Copy, Launch, encryption_of

    account, site = session.caller(region, offline=offline, dry_run=dry_run and offline)
    there: dict[str, dict[str, Any]] = {}
    if account is None:
        which, isolation = Run(run_of(run) or run, ""), NetworkSecurity()
        place = Destination(site, site.bucket, "")
        prefix = endpoint.models_prefix(which)
    else:
        found = lifecycle.find_ours(account, run)
        which = found.run
        bucket, prefix, isolation = _where(account, found)
        place = Destination(site, bucket, "")
        there = _there(account, bucket, prefix)
    if missing := [name for name in remove or [] if account is not None and name.removesuffix(ARCHIVE) not in there]:
        raise AwsError(f"{which.id} has no model {missing[0]}", f"it has {', '.join(there) or 'none'}")
    sources = [endpoint_sources.find_source(text, account, place) for text in add or []]
    for source in sources:
        endpoint_sources.image_target(source, "ml.c7i.4xlarge", None)
        if source.name in there or [each.name for each in sources].count(source.name) > 1:
            raise AwsError(
                f"{which.id} has a model {source.name} already; what is loaded under a name may stay so",
                f"{source.name}-2=SOURCE gives it another name",
            )
    copies = tuple(Copy(source.address_in(place), f"{prefix}{source.name}{ARCHIVE}") for source in sources)
    channels = tuple(source.channel for source in sources if source.channel is not None)
    owner = {"ExpectedBucketOwner": place.site.account}
    deletes = tuple(
        Call(
            "s3",
            "delete_object",
            {"Bucket": place.bucket, "Key": f"{prefix}{name.removesuffix(ARCHIVE)}{ARCHIVE}", **owner},
        )
        for name in remove or []
    )
    made = Launch(which, place, deletes, channels, encryption=encryption_of(isolation), copies=copies)
    if dry_run or account is None:
        shown = made.as_dicts()
        console.emit({"run": which.id, "requests": shown}, session.as_json(shown))
        return
    with console.progress("uploaded bytes", sum(channel.size for channel in channels), quiet=not channels) as bar:
        for channel in channels:
            for _, size in upload(account, place.bucket, channel, made.encryption):
                bar.advance(size)
    for copy in copies:
        account.copy(copy.place, place.bucket, copy.key, {**made.encryption, **owner})
    for call in deletes:
        account.call(call.service, call.operation, **call.request)
    if deletes:
        console.warn(UNLOADING)
    there = _there(account, place.bucket, prefix)
    table = console.table("model", "size", "since", title=f"s3://{place.bucket}/{prefix}")
    for name, item in there.items():
        table.add_row(name, console.size(item["Size"]), f"{item['LastModified']:%Y-%m-%d %H:%M} UTC")
    console.emit(
        {
            "run": which.id,
            "address": f"s3://{place.bucket}/{prefix}",
            "models": [{"name": name, "bytes": item["Size"]} for name, item in there.items()],
        },
        table,
        f"next: neuron-sum aws invoke {which.id} dialogue.txt --target-model NAME",
    )


def _where(account: "Account", found: "Endpoint") -> tuple[str, str, Any]:
    """Bucket and prefix of an endpoint's models, and how they are encrypted."""
    from sagemaker_jobs.aws.place import NetworkSecurity

    name = str(found.described["EndpointConfigName"])
    config = account.call("sagemaker", "describe_endpoint_config", EndpointConfigName=name)
    [variant] = config["ProductionVariants"]
    model = account.call("sagemaker", "describe_model", ModelName=variant["ModelName"])["PrimaryContainer"]
    if model.get("Mode") != "MultiModel":
        raise AwsError(f"{found.name} serves one model", "neuron-sum aws deploy --multi-model SOURCE... makes another")
    bucket, _, prefix = model["ModelDataUrl"].removeprefix("s3://").partition("/")
    return bucket, prefix, NetworkSecurity(config.get("KmsKeyId"))


def _there(account: "Account", bucket: str, prefix: str) -> dict[str, dict[str, Any]]:
    from sagemaker_jobs.endpoint.sources import ARCHIVE

    listing = account.pages(
        "s3", "list_objects_v2", "Contents", Bucket=bucket, Prefix=prefix, ExpectedBucketOwner=account.id
    )
    return {item["Key"].removeprefix(prefix).removesuffix(ARCHIVE): item for item in listing}
