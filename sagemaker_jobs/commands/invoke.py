"""`neuron-sum aws invoke`: send dialogues to an endpoint."""

from pathlib import Path
from typing import Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError
from neuron_sum.subprocesses import cli_command
from sagemaker_jobs.launch.options import EndpointArgument, RegionOption


def invoke(
    endpoint: EndpointArgument,
    file: Annotated[
        Path, typer.Argument(help="Input file in a format of `neuron-sum request`; - is standard input.")
    ] = Path("-"),
    adapter: Annotated[
        str | None, typer.Option(help="Name of an adapter on the endpoint. Default: the endpoint's default adapter.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Maximum number of generated tokens, up to the compiled maximum.")
    ] = None,
    num_beams: Annotated[int | None, typer.Option(help="Number of beams; must be a compiled beam width.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of dialogues per request.")] = 8,
    concurrency: Annotated[int, typer.Option(min=1, help="Number of concurrent requests.")] = 4,
    output: Annotated[Path | None, typer.Option(dir_okay=False, help="A .jsonl file for the answers.")] = None,
    target_model: Annotated[str | None, typer.Option(help="Name of the model on a multi-model endpoint.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Use streamed chat completions, for an endpoint of the image hf-vllm.")
    ] = False,
    region: RegionOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command; send no request.")] = False,
) -> None:
    """Send dialogues to an endpoint of a run with `neuron-sum request`."""
    import subprocess

    from sagemaker_jobs.aws.names import Run, run_of
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.endpoint import lifecycle
    from sagemaker_jobs.endpoint.sources import ARCHIVE

    if dry_run:
        name, endpoint_region = endpoint if run_of(endpoint) else Run(endpoint, "").name("endpoint"), region or "REGION"
    else:
        account = session.account_in(region)
        found = lifecycle.find(account, endpoint)
        if found.status not in lifecycle.ANSWERS:
            raise AwsError(
                f"{found.name} does not answer requests: its status is {found.status}",
                f"Run `{account.command('status', endpoint)}`.",
            )
        name, endpoint_region = found.name, account.region
    if target_model is not None:
        target_model = target_model.removesuffix(ARCHIVE) + ARCHIVE
    options = {
        "--adapter": adapter,
        "--max-new-tokens": max_new_tokens,
        "--num-beams": num_beams,
        "--batch-size": None if chat else batch_size,
        "--concurrency": concurrency,
        "--output": output,
        "--target-model": target_model,
    }
    words = ["request", f"sagemaker:{name}@{endpoint_region}", str(file)]
    words += [word for key, value in options.items() if value is not None for word in (key, str(value))]
    words += ["--chat"] if chat else []
    if dry_run:
        console.emit({"command": ["neuron-sum", *words]}, " ".join(["neuron-sum", *words]))
        return
    flags = [*(["--json"] if console.settings.json else []), *(["--debug"] if console.settings.debug else [])]
    if code := subprocess.call(cli_command(*words, *flags)):
        raise typer.Exit(code)
