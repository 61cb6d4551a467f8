"""`neuron-sum aws invoke`: one request to an endpoint."""

from pathlib import Path
from typing import Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.commands.options import EndpointArgument, RegionOption


def invoke(
    endpoint: EndpointArgument,
    file: Annotated[Path, typer.Argument(help="As `neuron-sum request` takes it; - is standard input.")] = Path("-"),
    adapter: Annotated[str | None, typer.Option(help="One that the endpoint has; default: its own.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="At most what was compiled.")] = None,
    num_beams: Annotated[int | None, typer.Option(help="One of the widths that were compiled.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Dialogues in one request.")] = 8,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 4,
    output: Annotated[Path | None, typer.Option(dir_okay=False, help="A .jsonl for the answers.")] = None,
    target_model: Annotated[str | None, typer.Option(help="Which, on an endpoint with several.")] = None,
    region: RegionOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command that is started; ask nothing.")] = False,
) -> None:
    """Send dialogues to an endpoint: finds it, and starts `neuron-sum request`."""
    import subprocess
    import sys

    from sagemaker_jobs.aws.names import Run, run_of
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.endpoint import lifecycle
    from sagemaker_jobs.endpoint.sources import ARCHIVE

    if dry_run:
        name, where = endpoint if run_of(endpoint) else Run(endpoint, "").name("endpoint"), region or "REGION"
    else:
        account = session.account_in(region)
        found = lifecycle.find(account, endpoint)
        if found.status not in lifecycle.ANSWERS:
            raise AwsError(f"{found.name} does not answer: it is {found.status}", f"neuron-sum aws status {endpoint}")
        name, where = found.name, account.region
    if target_model is not None:
        target_model = target_model.removesuffix(ARCHIVE) + ARCHIVE
    options = {
        "--adapter": adapter,
        "--max-new-tokens": max_new_tokens,
        "--num-beams": num_beams,
        "--batch-size": batch_size,
        "--concurrency": concurrency,
        "--output": output,
        "--target-model": target_model,
    }
    words = ["request", f"sagemaker:{name}@{where}", str(file)]
    words += [word for key, value in options.items() if value is not None for word in (key, str(value))]
    if dry_run:
        console.emit({"command": ["neuron-sum", *words]}, " ".join(["neuron-sum", *words]))
        return
    flags = [*(["--json"] if console.settings.json else []), *(["--debug"] if console.settings.debug else [])]
    if code := subprocess.call([sys.executable, "-m", "neuron_sum", *words, *flags]):
        raise typer.Exit(code)
