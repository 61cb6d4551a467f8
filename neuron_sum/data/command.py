"""The command `neuron-sum data`, which inspects a recipe's data before training."""

from typing import TYPE_CHECKING, Annotated

import typer

from neuron_sum import console
from neuron_sum.console import quote
from neuron_sum.errors import DataError, ModelError
from neuron_sum.recipes.command import Overrides, RecipeArgument, SetOption

if TYPE_CHECKING:
    from neuron_sum.data.examples import Dataset
    from neuron_sum.data.shapes import ShapeReport
    from neuron_sum.recipes.schema import Recipe


def data(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    sets: SetOption = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Skip and count bad rows instead of stopping.")] = False,
) -> None:
    """Read and check a recipe's data; print counts, lengths, the licence, an example and the cost of padding."""
    from neuron_sum.data.sources import load_dataset
    from neuron_sum.recipes.loading import load_recipe

    loaded = load_recipe(recipe, [*(overrides or []), *(sets or []), *(["data.skip_bad=true"] if skip_bad else [])])
    dataset = load_dataset(loaded.data)
    table = console.table("split", "dialogues", "references", "words per dialogue", "words per summary")
    splits: dict[str, dict[str, float]] = {}
    for split, examples in dataset.splits.items():
        references = [reference for example in examples for reference in example.references]
        row = {
            "dialogues": len(examples),
            "references": len(references),
            "dialogue_words_mean": sum(len(e.dialogue.split()) for e in examples) / max(len(examples), 1),
            "summary_words_mean": sum(len(text.split()) for text in references) / max(len(references), 1),
        }
        splits[split] = row
        table.add_row(
            split,
            f"{len(examples):,}",
            f"{len(references):,}",
            f"{row['dialogue_words_mean']:.1f}",
            f"{row['summary_words_mean']:.1f}",
        )
    first = next((examples[0] for examples in dataset.splits.values() if examples), None)
    if first is None:
        raise DataError(f"{dataset.origin} contains no examples", "check data.path and data.files")
    shapes = None
    try:
        shapes = _shapes(loaded, dataset) if dataset["train"] else None
        shapes_line = str(shapes) if shapes else "shapes: no training examples"
    except ModelError as error:  # the command is about the data; the model may be unreachable from this machine
        shapes_line = f"shapes: not counted, because the tokenizer is not available: {error.message}"
    console.emit(
        {
            "origin": dataset.origin,
            "license": dataset.license,
            "splits": splits,
            "skipped": dataset.skipped,
            "near_overlap": dataset.near_overlap,
            "shapes": shapes.as_dict() if shapes else None,
        },
        "\n".join(dataset.notes()),
        table,
        shapes_line,
        f"\nfirst prompt ({first.id}):",
        loaded.prompt.resolve().render(first.dialogue) + first.references[0],
        f"\nnext: neuron-sum train {quote(recipe)}",
    )


def _shapes(recipe: "Recipe", dataset: "Dataset") -> "ShapeReport":
    """The report on padding that `train` prints, for one process."""
    from neuron_sum.data.encoding import encode
    from neuron_sum.data.shapes import check_packing, choose_plan
    from neuron_sum.models import base as models

    tokenizer = models.load_tokenizer(recipe.model, dataset.training_texts())
    decoder_only = models.is_decoder_only(models.load_config(recipe.model, tokenizer))
    check_packing(recipe, decoder_only=decoder_only)
    training, validation = (
        encode(dataset[split], tokenizer, recipe.prompt.resolve(), recipe.data, decoder_only=decoder_only)
        for split in ("train", "validation")
    )
    return choose_plan(recipe, training, validation or None, decoder_only=decoder_only).report(training)
