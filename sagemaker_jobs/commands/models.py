"""`neuron-sum aws models`: list, add and remove the models of a multi-model endpoint."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.launch.options import OfflineOption, RegionOption, RequestsOption

if TYPE_CHECKING:
    from sagemaker_jobs.aws.account import Account
    from sagemaker_jobs.endpoint.lifecycle import Endpoint

UNLOADING = (
    "SageMaker has no documented call that unloads a model: an instance that has loaded it may keep serving it until "
    "it needs the memory. Stop sending requests for it, and never reuse its name for another model"
)


def models(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN|ENDPOINT", help="Run id or endpoint name, printed by `aws deploy --multi-model`."),
    ],
    add: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE", help="Model to add, in a format of `aws deploy`; may be repeated."),
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Name of a model to remove; may be repeated.")
    ] = None,
    region: RegionOption = None,
    offline: OfflineOption = False,
    dry_run: RequestsOption = False,
) -> None:
    """List the models of a multi-model endpoint; add and remove models while it runs."""
    from sagemaker_jobs.aws.names import Run, run_of
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.endpoint import launch as endpoint
    from sagemaker_jobs.endpoint import lifecycle
    from sagemaker_jobs.endpoint import sources as endpoint_sources
    from sagemaker_jobs.endpoint.sources import ARCHIVE
    from sagemaker_jobs.launch.call import Call
    from sagemaker_jobs.launch.start import Launch
    from sagemaker_jobs.launch.start import start as send
    from sagemaker_jobs.stack.stack import planned_stack, require_stack

    account = None if dry_run and offline else session.account_in(region, dry_run=dry_run)
    existing: dict[str, dict[str, Any]] = {}
    if account is None:
        target_run, stack = Run(run_of(run) or run, ""), planned_stack(session.offline_context(region))
        prefix = endpoint.models_prefix(target_run)
    else:
        stack, running = require_stack(account), lifecycle.find_ours(account, run)
        target_run, prefix = running.run, _models_prefix(account, running)
        existing = _list_models(account, prefix)
    if missing := [name for name in remove or [] if account is not None and name.removesuffix(ARCHIVE) not in existing]:
        raise AwsError(
            f"{target_run.id} has no model {missing[0]}",
            f"Use one of its models: {', '.join(existing) or 'it has none'}.",
        )
    sources = [endpoint_sources.find_source(text, account, stack) for text in add or []]
    for source in sources:
        endpoint_sources.image_target(source, "ml.c7i.4xlarge", None)
        if source.name in existing or [each.name for each in sources].count(source.name) > 1:
            raise AwsError(
                f"{target_run.id} already has a model {source.name}, and an instance may keep the old one loaded",
                f"Give the new model another name with {source.name}-2=SOURCE.",
            )
    stack.check_readable(source.address_in(stack) for source in sources)
    copies = {f"{prefix}{source.name}{ARCHIVE}": source.address_in(stack) for source in sources}
    channels = tuple(source.channel for source in sources if source.channel is not None)
    place = {"Bucket": stack.bucket, "ExpectedBucketOwner": stack.site.account}
    keys = [f"{prefix}{name.removesuffix(ARCHIVE)}{ARCHIVE}" for name in remove or []]
    deletes = tuple(Call("s3", "delete_object", {**place, "Key": key}) for key in keys)
    launch = Launch(target_run, stack, deletes, channels, copies)
    if dry_run or account is None:
        requests = launch.as_dicts()
        console.emit({"run": target_run.id, "requests": requests}, session.as_json(requests))
        return
    with console.progress("uploaded bytes", sum(channel.size for channel in channels), quiet=not channels) as bar:
        send(account, launch, bar.advance)
    if deletes:
        console.warn(UNLOADING)
    existing = _list_models(account, prefix)
    table = console.table("model", "size", "since", title=f"s3://{stack.bucket}/{prefix}")
    for name, item in existing.items():
        table.add_row(name, console.size(item["Size"]), f"{item['LastModified']:%Y-%m-%d %H:%M} UTC")
    console.emit(
        {
            "run": target_run.id,
            "address": f"s3://{stack.bucket}/{prefix}",
            "models": [{"name": name, "bytes": item["Size"]} for name, item in existing.items()],
        },
        table,
        f"next: {account.command('invoke', target_run.id, 'dialogue.txt', target_model='NAME')}",
    )


def _models_prefix(account: "Account", found: "Endpoint") -> str:
    """The prefix of an endpoint's models in the stack's bucket."""
    from sagemaker_jobs.aws.names import bucket_and_key

    name = str(found.described["EndpointConfigName"])
    config = account.call("sagemaker", "describe_endpoint_config", EndpointConfigName=name)
    variant, *_ = config["ProductionVariants"]
    model = account.call("sagemaker", "describe_model", ModelName=variant["ModelName"])["PrimaryContainer"]
    if model.get("Mode") != "MultiModel":
        raise AwsError(
            f"{found.name} is not a multi-model endpoint",
            f"Create one with `{account.command('deploy', 'SOURCE...', multi_model=True)}`.",
        )
    return bucket_and_key(model["ModelDataUrl"])[1]


def _list_models(account: "Account", prefix: str) -> dict[str, dict[str, Any]]:
    from sagemaker_jobs.endpoint.sources import ARCHIVE

    listing = account.objects(f"s3://{account.site.bucket}/{prefix}")
    return {item["Key"].removeprefix(prefix).removesuffix(ARCHIVE): item for item in listing}
