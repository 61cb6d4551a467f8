"""Adapters swapped on one running DJL Serving: are its answers those of `neuron-sum summarize`?

    python benchmarks/served_adapters.py ARTIFACT NAME=RUN... [--dialogues 12] [--batch 500]

ARTIFACT was compiled from a LoRA run with compile.adapters.slots; its own adapter is `default`. Each RUN is a LoRA run
on the same base and prompt. The dialogues are those of the test split of the artifact's recipe. All adapters answer all
of them, in turn and then mixed; then the names are swapped by updates of the running server, and all answer again. The
expected summaries are from transformers with the adapter attached, with the artifact's lengths. Finally --batch
dialogues are sent by one call of the client, eight in a request. Prints the number of equal answers, the times, and the
versions.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from neuron_sum import Summarizer, console
from neuron_sum.artifact import open_artifact
from neuron_sum.data.sources import load_dataset
from neuron_sum.recipes.schema import ServeConfig
from serving import package
from serving.client import Client
from serving.local import LocalServer, Model

TIMEOUT_S = 600.0
SERVE = ServeConfig(deadline_s=55)
"""The longest deadline: on two shared cores, a request of eight dialogues may take longer than the default."""


def main() -> None:
    """Serve the artifact, swap the adapters, compare the answers, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="artifact with adapter slots")
    parser.add_argument("adapters", nargs="+", metavar="NAME=RUN", help="LoRA runs to register")
    parser.add_argument("--dialogues", type=int, default=12, help="number of dialogues per adapter")
    parser.add_argument("--batch", type=int, default=500, help="number of dialogues in the last call")
    options = parser.parse_args()
    artifact = open_artifact(options.artifact)
    runs = {"default": artifact.manifest.source.path}
    runs.update(name.split("=", 1) for name in options.adapters)
    recipe = artifact.recipe
    dialogues = [example.dialogue for example in load_dataset(recipe.data, recipe.output)["test"]]
    chosen = dialogues[: options.dialogues]
    lengths = [
        f"data.max_source_length={recipe.data.max_source_length}",
        f"generate.max_new_tokens={recipe.generate.max_new_tokens}",
    ]
    expected = {name: Summarizer(run, overrides=lengths, progress=True).summarize(chosen) for name, run in runs.items()}
    table = console.table("answers", "equal", "time")

    def report(kind: str, found: list[str], wanted: list[str], started: float) -> None:
        same = sum(one == other for one, other in zip(found, wanted, strict=True))
        table.add_row(kind, f"{same} of {len(wanted)}", console.duration(time.monotonic() - started))

    with TemporaryDirectory() as folder:
        package.write_folder(artifact, SERVE, Path(folder))
        with (
            LocalServer([Model("model", Path(folder))], SERVE) as server,
            Client(server.url, timeout_s=TIMEOUT_S, concurrency=1) as client,
        ):

            def ask(name: str) -> list[str]:
                return [answer.summary_text for answer in client.summarize(chosen, {"adapter": name})]

            def manage(path: str, name: str, run: str) -> None:
                url = f"{server.url}/models/model/adapters{path}"
                source = str(Path(run, "adapter").resolve())
                httpx.post(
                    url, params={"name": name, "src": source}, headers=server.headers, timeout=TIMEOUT_S
                ).raise_for_status()

            others = [name for name in runs if name != "default"]
            for name in others:
                manage("", name, runs[name])
            for name in runs:
                started = time.monotonic()
                report(name, ask(name), expected[name], started)
            started = time.monotonic()
            with ThreadPoolExecutor(len(runs)) as pool:
                mixed = list(pool.map(ask, runs))
            report("all, mixed", [*chain(*mixed)], [*chain(*(expected[name] for name in runs))], started)
            turned = dict(zip(others, others[1:] + others[:1], strict=True))
            for name, other in turned.items():
                manage(f"/{name}/update", name, runs[other])
            for name, other in turned.items():
                started = time.monotonic()
                report(f"{name}, updated to {other}", ask(name), expected[other], started)
            started = time.monotonic()
            answers = client.summarize(dialogues[: options.batch])
            failed = sum(answer.error is not None for answer in answers)
            table.add_row(
                f"{len(answers)} in one call, {failed} errors", "", console.duration(time.monotonic() - started)
            )
    versions = {name: version(name) for name in ("neuron-sum", "torch", "transformers", "peft")}
    console.emit({"versions": versions}, table, f"versions: {versions}")


if __name__ == "__main__":
    main()
