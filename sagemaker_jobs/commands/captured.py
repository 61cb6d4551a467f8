"""`neuron-sum aws captured`: copy the captured requests of a run, redacted, and delete them in S3."""

from pathlib import Path
from typing import Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.launch.options import RegionOption


def captured(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run id of an endpoint that was deployed with --capture.")],
    output: Annotated[Path, typer.Option(help="Folder for the files; it may have those of earlier calls.")] = Path(
        "captured"
    ),
    redact: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION", help="Function that redacts every text before the files appear in the folder."
        ),
    ] = None,
    unredacted: Annotated[bool, typer.Option("--unredacted", help="Copy the texts as they are.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Do not delete the files in S3.")] = False,
    region: RegionOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the requests; send nothing.")] = False,
) -> None:
    """Copy captured requests and answers of an endpoint from S3, redacted, and delete them there."""
    from neuron_sum.monitoring.redaction import load_hook
    from sagemaker_jobs.aws.names import Run, parse_run_id
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.endpoint import capture
    from sagemaker_jobs.stack.stack import require_stack

    owner = Run(parse_run_id(run, region), "")
    if (redact is None) != unredacted:
        raise AwsError(
            "captured requests contain the texts of users",
            "Use either --redact MODULE:FUNCTION (docs/monitoring.md, Redaction) or --unredacted.",
        )
    hook = None if redact is None else load_hook(redact)
    if dry_run:
        deletes = () if keep else (("s3", "delete_object"),)
        calls = (("s3", "list_objects_v2"), ("s3", "get_object"), *deletes)
        session.emit_reads(calls, "requests:")
        return
    account = session.account_in(region)
    stack = require_stack(account)
    fetched = capture.fetch(account, stack, owner, output, hook, keep=keep)
    for key, lines in fetched.incomplete.items():
        console.warn(
            f"{lines} lines of s3://{stack.bucket}/{key} cannot be read: they are {{}} in the copy, and S3 keeps it"
        )
    files = [str(path) for path in fetched.files]
    address = capture.address(owner, stack)
    state = "as they are" if hook is None else "redacted"
    where = "also kept" if keep else "deleted"
    variants = capture.folders_of(fetched.files, output)
    console.emit(
        {
            "run": owner.id,
            "output": str(output),
            "files": files,
            "variants": {variant: str(folder) for variant, folder in variants.items()},
            "redacted": hook is not None,
            "incomplete": fetched.incomplete,
        },
        f"copied {len(files)} files, {state}, to {output}; {where} in {address}",
        *(f"next: {console.command('watch', folder, run='RUN_FOLDER')}" for folder in [*variants.values()] or [output]),
    )
