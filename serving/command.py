"""`neuron-sum package`, `serve` and `request`."""

import json
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from neuron_sum import console
from neuron_sum.errors import ArtifactError, DataError, RecipeError, RequestError, ServerError, reading

if TYPE_CHECKING:
    from neuron_sum.artifact import Artifact
    from neuron_sum.recipes.schema import ServeConfig
    from serving.client import Client
    from serving.local import LocalServer, Model

OverrideOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change a serving setting, such as serve.deadline_s=20."),
]
SignOption = Annotated[
    Path | None,
    typer.Option("--sign", metavar="KEY", help="Sign the archive with this ed25519 private key (PEM file)."),
]
VerifyOption = Annotated[
    Path | None,
    typer.Option("--verify", metavar="KEY", help="Serve only archives signed for this ed25519 public key (PEM file)."),
]
ARCHIVE = ".tar.gz"
BATCH_SIZE, CONCURRENCY = 8, 4  # the defaults of `request`
LINE_HINT = 'use lines such as {"inputs": "#Person1#: Hello."}'


def package(
    artifact: Annotated[
        Path,
        typer.Argument(
            metavar="ARTIFACT|RUN",
            help="Folder of a compiled artifact; with --container hf-vllm also of a run, with djl… only of a run.",
        ),
    ],
    overrides: OverrideOption = None,
    output: Annotated[
        Path | None, typer.Option(help="The archive to write. Default: NAME.tar.gz next to the folder.")
    ] = None,
    container: Annotated[
        Literal["own", "hf-vllm", "djl-0.30-neuronx"],
        typer.Option(
            help="neuron-sum's image, Hugging Face's vLLM image for a Llama on Inferentia2, or the last DJL container "
            "of AWS with Neuron (no longer supported)."
        ),
    ] = "own",
    sign: SignOption = None,
) -> None:
    """Pack a model with its settings into a reproducible model.tar.gz for a container."""
    from neuron_sum import files
    from neuron_sum.artifact import open_artifact
    from serving import other_containers, signing
    from serving import package as packing

    name = artifact.resolve().name
    if container != "own" and sign is not None:
        raise ArtifactError(f"--sign has no effect: {container} does not read signatures", "omit --sign")
    if container == "own":
        key = signing.read_private_key(sign) if sign is not None else None
        opened = open_artifact(artifact)
        _warn(opened)
        target = output or artifact.resolve().with_name(name + ARCHIVE)
        packing.write_archive(opened, _limits(opened, overrides), target, key)
        details, lines = dict[str, Any](), [f"next: {console.command('serve', target)}"]
        if key is not None:
            details["signed_by"] = signing.fingerprint(key.public_key())
            lines.insert(0, f"signed; fingerprint of the public key: {details['signed_by']}")
    else:
        target = output or artifact.resolve().with_name(f"{name}-{container}{ARCHIVE}")
        pack = other_containers.pack_vllm if container == "hf-vllm" else other_containers.pack_djl
        details, lines = pack(artifact, target, overrides or [])
    size, digest = target.stat().st_size, files.sha256(target)
    console.emit(
        {"archive": str(target), "bytes": size, "sha256": digest, **details},
        f"packed {target}: {console.size(size)}, sha256 {digest[:16]}…",
        *lines,
    )


def dockerfile(
    target: Annotated[Literal["cpu", "inf2"], typer.Option(help="Hardware that the image will run on.")] = "cpu",
    output: Annotated[Path | None, typer.Option(help="The folder to write. Default: image-TARGET.")] = None,
) -> None:
    """Write the serving image's build context: Dockerfile, entrypoint, exact versions and this package."""
    from serving.dockerfile import write_context

    folder = output or Path(f"image-{target}")
    write_context(target, folder)
    console.emit(
        {"folder": str(folder), "target": target},
        f"wrote {folder}; the comments in its Dockerfile explain how to run the image and what was tested",
        f"next: docker build --platform linux/amd64 --tag neuron-sum:{target} {folder}",
    )


def serve(
    targets: Annotated[
        list[Path], typer.Argument(metavar="ARTIFACT|TARBALL...", help="One or several models for one server.")
    ],
    overrides: OverrideOption = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 for any free port.")] = 8080,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not print the server's log.")] = False,
    playground: Annotated[
        bool, typer.Option("--playground", help="Serve a web page at / to try the models in.")
    ] = False,
    verify: VerifyOption = None,
) -> None:
    """Run DJL Serving on this machine until Ctrl-C."""
    from serving.local import LocalServer

    with ExitStack() as stack:
        models, limits = _models(targets, overrides, verify, stack)
        started = time.monotonic()
        on_line = None if quiet else console.note
        server = stack.enter_context(LocalServer(models, limits, port, on_line=on_line, playground=playground))
        paths = ["/invocations"] if len(models) == 1 else [f"/models/{model.name}/invoke" for model in models]
        try:
            console.emit(
                {
                    "url": server.url,
                    "paths": paths,
                    "pid": server.pid,
                    "playground": playground,
                    "token_file": str(server.token_file),
                },
                f"\nready after {time.monotonic() - started:.0f} s; press Ctrl-C to stop. Try:",
                *(_curl(server.url + path) for path in paths),
                *([f"or open {server.url}/ in a browser"] if playground else []),
                f"Changing models and adapters requires the token in {server.token_file}",
            )
            while server.running:
                time.sleep(0.2)
        except KeyboardInterrupt:
            again = _kill_on_another_signal(server)
            console.note("stopping after the accepted requests are answered; press Ctrl-C to stop immediately")
            stack.close()
            if again:
                raise
            return
        raise ServerError("DJL Serving stopped unexpectedly", "read the log above for the reason")


def _kill_on_another_signal(server: "LocalServer") -> list[int]:
    """Replaces the handlers that raise, because an exception would interrupt the clean-up; returns later signals."""
    signals: list[int] = []

    def kill(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        server.kill()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, kill)
    return signals


def _models(
    targets: Sequence[Path], overrides: list[str] | None, verify: Path | None, stack: ExitStack
) -> "tuple[list[Model], ServeConfig]":
    """A folder that the server can load for each target, and limits that are wide enough for all of them."""
    import tempfile

    from neuron_sum.artifact import artifact_name, is_artifact, open_artifact
    from neuron_sum.contents import is_file
    from serving import package as packing
    from serving import signing
    from serving.local import Model

    key = signing.read_public_key(verify) if verify is not None else None
    models: list[Model] = []
    limits: list[ServeConfig] = []
    for target in targets:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nsum-model-")))
        if is_artifact(target):
            if key is not None:
                raise ArtifactError(
                    f"{target} is not signed: only archives contain a signature",
                    f"run `{console.command('package', target, set=overrides, sign='KEY')}`, then serve the archive",
                )
            name, opened = artifact_name(target), open_artifact(target)
            _warn(opened)
            limits.append(_limits(opened, overrides))
            packing.write_folder(opened, limits[-1], folder)
        elif is_file(target):
            name = target.name.removesuffix(ARCHIVE)
            if overrides:
                raise RecipeError(
                    f"--set cannot change {target}, which contains its settings",
                    "run `neuron-sum package ARTIFACT --set KEY=VALUE`",
                )
            packed = packing.unpack(target, folder, key)
            limits.append(packed.limits)
            if key is not None:
                console.note(
                    f"{target} was signed with the key {signing.fingerprint(key)}; it contains "
                    f"{packed.manifest.source.path[:200]}, compiled by neuron-sum {packed.manifest.neuron_sum}"
                )
            else:
                console.note(
                    f"{target} contains native code, which runs with your rights. neuron-sum "
                    f"{packed.manifest.neuron_sum} compiled it from {packed.manifest.source.path[:200]}; who made it "
                    "is not verified (see --verify)"
                )
        else:
            raise ArtifactError(
                f"{str(target)[:500]} is neither an artifact nor a model.tar.gz",
                "run `neuron-sum compile RUN` for an artifact",
            )
        if name in [model.name for model in models]:
            raise ArtifactError(f"two models are named {name}", "rename one archive")
        models.append(Model(name, folder))
    of_the_server = ("deadline_s", "max_body_bytes", "max_request_characters")
    widest = {name: max(getattr(each, name) for each in limits) for name in of_the_server}
    return models, limits[0].model_copy(update=widest)


def _warn(artifact: "Artifact") -> None:
    if warning := artifact.manifest.quality_warning:
        console.warn(f"{artifact.path}: {warning}; run `{console.command('compile', 'verify', artifact.path)}`")


def _limits(artifact: "Artifact", overrides: list[str] | None) -> "ServeConfig":
    """The `serve` section of the artifact's recipe with the overrides, which may change only this section."""
    from neuron_sum.artifact import RECIPE
    from neuron_sum.recipes.loading import load_recipe

    if other := next((text for text in overrides or [] if not text.startswith(("serve.", "serve="))), None):
        raise RecipeError(
            f"--set {other}: an artifact's shapes and prompt are compiled in", "use --set only with keys of `serve`"
        )
    return load_recipe(str(artifact.path / RECIPE), overrides or []).serve


def _curl(url: str) -> str:
    body = '{"inputs": "#Person1#: Are you coming tonight?\\n#Person2#: Yes, at eight."}'
    return f"  curl {url} -H 'Content-Type: application/json' -d '{body}'"


def request(
    endpoint: Annotated[
        str,
        typer.Argument(
            metavar="ENDPOINT", help="http://127.0.0.1:8080, URL/models/NAME/invoke, or sagemaker:ENDPOINT[@REGION]."
        ),
    ],
    file: Annotated[
        Path,
        typer.Argument(
            help="Text or transcript (WebVTT, SRT, chat export) of one dialogue (- for standard input), or .jsonl of "
            '{"inputs": …} or {"dialogue": …}.'
        ),
    ] = Path("-"),
    adapter: Annotated[
        str | None, typer.Option(help="Name of an adapter on the endpoint. Default: the model's default.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Maximum new tokens, up to the compiled target length.")
    ] = None,
    num_beams: Annotated[int | None, typer.Option(help="Beam width; must be one of the compiled widths.")] = None,
    checks: Annotated[
        bool, typer.Option("--checks", help="Also print what the summary states and the dialogue does not (English).")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Dialogues per request.")] = BATCH_SIZE,
    concurrency: Annotated[int, typer.Option(min=1, help="Number of simultaneous requests.")] = CONCURRENCY,
    output: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="A .jsonl file for the answers: one line per dialogue, in order."),
    ] = None,
    target_model: Annotated[
        str | None, typer.Option(help="Model to use on a SageMaker endpoint with several models.")
    ] = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat", help="Use streamed chat completions of OpenAI's API, for an endpoint of the image hf-vllm."
        ),
    ] = False,
    playground: Annotated[
        bool, typer.Option("--playground", help="With --chat, serve a web page to try the endpoint in until Ctrl-C.")
    ] = False,
    port: Annotated[int, typer.Option(help="Port of the web page on 127.0.0.1; 0 for any free port.")] = 8081,
) -> None:
    """Send dialogues to an endpoint; retry temporary failures."""
    from neuron_sum import files
    from neuron_sum.data.transcripts import read_dialogue

    if playground:
        from serving.playground import show

        options = {
            "FILE": file != Path("-"),
            "--adapter": adapter is not None,
            "--max-new-tokens": max_new_tokens is not None,
            "--num-beams": num_beams is not None,
            "--checks": checks,
            "--batch-size": batch_size != BATCH_SIZE,
            "--concurrency": concurrency != CONCURRENCY,
            "--output": output is not None,
            "--target-model": target_model is not None,
        }
        if unused := [name for name, is_given in options.items() if is_given]:
            raise RequestError(f"--playground does not use {', '.join(unused)}", f"omit {' and '.join(unused)}")
        show(endpoint, port, chat=chat)
        return
    many = file.suffix == ".jsonl"
    live = chat and not many and output is None and not console.settings.json
    dialogues = _read_lines(file) if many else [read_dialogue(file)]
    if output is not None:
        files.check_writable(output.parent, 0)
    parameters = {
        "adapter": adapter, "max_new_tokens": max_new_tokens, "num_beams": num_beams, "checks": checks or None
    }  # fmt: skip
    with (
        _client(endpoint, target_model, batch_size, concurrency, chat=chat, live=live) as client,
        console.progress("dialogues", len(dialogues), quiet=not many) as bar,
    ):
        answers = client.summarize(dialogues, parameters, bar.advance)

    refusals = [answer.error for answer in answers if answer.error is not None and answer.answered]
    failures = [answer.error for answer in answers if answer.error is not None and not answer.answered]
    if refusals and not many:
        raise RequestError(
            f"{client.endpoint} refused the dialogue: {refusals[0].message}", "change the text or the options"
        )
    if failures and not many:
        raise RequestError(
            f"{client.endpoint} did not answer: {failures[0].message}", client.hint_for(failures[0].code)
        )
    truncated = sum(answer.truncated for answer in answers)
    if truncated:
        cut = f"{truncated} of {len(answers)} dialogues were" if many else "the dialogue was"
        console.warn(f"{cut} cut at the end to fit the longest compiled input")
    results = [answer.as_dict() for answer in answers]
    counts = {
        "dialogues": len(answers),
        "truncated": truncated,
        "refused": len(refusals),
        "unanswered": len(failures),
    }
    lines = [json.dumps(result, ensure_ascii=False) for result in results]
    if output is not None:
        files.write_text(output, "".join(f"{line}\n" for line in lines))
        console.emit({**counts, "output": str(output)}, f"wrote {output}: {len(lines)} answers")
    elif many:
        console.emit({**counts, "answers": results}, *map(Text, lines))
    else:
        found = [f"{check.text}: {check.message}" for check in answers[0].checks or ()]
        console.emit(results[0], Text("" if live else answers[0].summary_text), *map(Text, found))
    messages = [
        f"{len(errors)} of {len(answers)} dialogues were {outcome}; the first: {errors[0].message}"
        for outcome, errors in (("not answered", failures), ("refused", refusals))
        if errors
    ]
    if messages:
        hint = "read the reasons in the answers of the refused dialogues; inputs[0] is the first dialogue"
        if failures:
            hint = (
                f"put the dialogues with an error into a .jsonl and request them; {client.hint_for(failures[0].code)}"
            )
        raise RequestError("; ".join(messages), hint)


def _client(
    endpoint: str, target_model: str | None, batch_size: int, concurrency: int, *, chat: bool, live: bool
) -> "Client":
    """The client of an endpoint; with `live` it prints the text of an answer as it arrives."""
    from serving.chat import ChatClient
    from serving.client import Client

    if not chat:
        return Client(
            endpoint, target_model=target_model, batch_size=batch_size, concurrency=concurrency, on_retry=console.note
        )
    if target_model is not None:
        raise RequestError("--chat and --target-model cannot be combined", "use one of them")
    on_text = console.emit_part if live else None
    return ChatClient(endpoint, concurrency=concurrency, on_retry=console.note, on_text=on_text)


def _read_lines(file: Path) -> list[str]:
    """The dialogues of a .jsonl; the error names every line without one."""
    from neuron_sum import files, text_files

    dialogues, faults = [], []
    with text_files.open_lines(file, "utf-8", DataError) as lines, reading(file, DataError):
        for number, line in text_files.numbered(lines):
            if line is not None and not line.strip():
                continue
            try:
                content = files.parse_json(line) if line is not None else None
            except ValueError as error:
                faults.append(f"line {number} is not JSON: {error}")
                continue
            row = content if isinstance(content, dict) else {}
            dialogue = row.get("inputs", row.get("dialogue"))
            if line is None:
                faults.append(f"line {number} has more than {text_files.MAX_CHARACTERS:,} characters")
            elif "parameters" in row:
                options = "options such as --num-beams"
                faults.append(f"line {number} has parameters, which are set for all lines by {options}")
            elif not isinstance(dialogue, str):
                faults.append(f"line {number} has no text in inputs or dialogue")
            elif text_files.SURROGATE.search(dialogue):
                faults.append(f"line {number} is not UTF-8, or has half a surrogate pair")
            else:
                dialogues.append(dialogue)
    if faults:
        more = f"; and {len(faults) - 3} more lines" if len(faults) > 3 else ""
        raise DataError(f"{file}: {'; '.join(faults[:3])}{more}", LINE_HINT)
    if not dialogues:
        raise DataError(f"{file} contains no dialogue", LINE_HINT)
    return dialogues
