"""`neuron-sum aws register`: a compiled model in the Model Registry of SageMaker."""

from pathlib import Path
from typing import Annotated

import typer

from neuron_sum import console
from sagemaker_jobs.launch.options import EveryOption, OfflineOption, RegionOption, RequestsOption, StartOptions


def register(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A run with a compile job, s3://…/model.tar.gz, or a model.tar.gz written by `neuron-sum package`.",
        ),
    ],
    group: Annotated[str, typer.Option(help="Name of the model package group, which is created if necessary.")],
    scores: Annotated[
        list[Path] | None,
        typer.Option(dir_okay=False, help="metrics.json of `evaluate` or comparison.json of `compare`; repeatable."),
    ] = None,
    approve: Annotated[
        bool, typer.Option("--approve", help="Register as approved. Default: approval is pending.")
    ] = False,
    instance: Annotated[
        str | None, typer.Option(help="SageMaker instance type that the model must fit. Default: by its target.")
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(help="Image URI, or hf-vllm. Default: the newest image built by `aws image`."),
    ] = None,
    region: RegionOption = None,
    every: EveryOption = 5.0,
    offline: OfflineOption = False,
    dry_run: RequestsOption = False,
) -> None:
    """Register a model with its image, manifest, scores and card; the entry and its files survive `aws down`."""
    from sagemaker_jobs.aws.names import ANY_ACCOUNT, new_run
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.commands.endpoints import image_uri_of
    from sagemaker_jobs.endpoint import registration as registry
    from sagemaker_jobs.endpoint import sources
    from sagemaker_jobs.image import registry as images
    from sagemaker_jobs.launch.call import Call

    name = registry.group_name(group)
    given = [registry.read_scores(path) for path in scores or ()]
    account, stack = session.caller(StartOptions(region=region, every=every, offline=offline, dry_run=dry_run))
    reader = None if dry_run and stack.site.account == ANY_ACCOUNT else account
    model = sources.find_source(source, reader, stack)
    stack.check_readable([model.address_in(stack)])
    model = sources.inspected(model, reader)
    instance = instance or sources.INSTANCES.get(model.target or "", sources.INSTANCES["inf2"])
    target = sources.image_target(model, instance, image)
    pinned = images.pin(reader, stack, image_uri_of(image, target, reader, stack.site))
    registration = registry.Registration(
        name,
        model,
        model.run or new_run(model.name),
        pinned,
        "inf2" if target in images.PUBLISHED else target,
        registry.digest_of(model, reader),
        given,
        approve,
    )
    calls = [
        Call("sagemaker", "create_model_package_group", registry.create_group(name)),
        Call("sagemaker", "create_model_package", registry.create_package(registration, stack)),
    ]
    if dry_run or account is None:
        for call in calls:
            call.validate()
        session.emit_requests({"group": name}, calls)
        return
    package = registry.register(account, stack, registration)
    address = f"s3://{stack.bucket}/{registration.prefix}"
    console.emit(
        {
            "group": name,
            "version": package["ModelPackageVersion"],
            "arn": package["ModelPackageArn"],
            "approval": package["ModelApprovalStatus"],
            "run": registration.run.id,
            "image": pinned,
            "files": address,
        },
        f"registered {name} version {package['ModelPackageVersion']}: {package['ModelApprovalStatus']}",
        f"files: {address}",
        f"next: {account.command('deploy', f'{address}model.tar.gz', instance=instance, image=image)}",
    )
