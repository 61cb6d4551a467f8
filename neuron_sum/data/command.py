"""The command `neuron-sum data`, which inspects a recipe's data before training."""

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import DataError, ModelError
from neuron_sum.recipes.command import Overrides, RecipeArgument, SetOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from neuron_sum.data.encoding import UnknownTokens
    from neuron_sum.data.examples import Dataset
    from neuron_sum.data.shapes import ShapeReport
    from neuron_sum.prompts import Tokenizer
    from neuron_sum.recipes.schema import Recipe, Split


def data(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    sets: SetOption = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Skip and count bad rows instead of stopping.")] = False,
) -> None:
    """Read and check a recipe's data; print counts, lengths, the licence, an example and the cost of padding."""
    from neuron_sum.data.sources import load_dataset
    from neuron_sum.recipes.loading import load_recipe

    changes = [*(overrides or []), *(sets or []), *(["data.skip_bad=true"] if skip_bad else [])]
    loaded = load_recipe(recipe, changes)
    dataset = load_dataset(loaded.data, loaded.output)
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
    shapes: ShapeReport | None = None
    unknown: dict[Split, UnknownTokens] = {}
    ids: list[int] = []
    text = first.dialogue
    if not loaded.prompt.needs_tokenizer:
        text = replace(loaded.prompt.resolve(), claim=first.claim).render(first.dialogue)
    try:
        loaded, tokenizer, decoder_only = _model(loaded, dataset)
        prompt = replace(loaded.prompt.resolve(), claim=first.claim)
        ids = prompt.encode(tokenizer, [first.dialogue], loaded.data.max_source_length)[0].input_ids
        text = prompt.render(first.dialogue)
        if dataset["train"]:
            shapes, unknown = _tokens(loaded, dataset, tokenizer, decoder_only=decoder_only)
        shapes_line = str(shapes) if shapes else "shapes: no training examples"
    except ModelError as error:  # the command is about the data; the model may be unreachable from this machine
        shapes_line = f"shapes: not counted: {error.message}"
    for split, tokens in unknown.items():
        if (warning := tokens.warning(split)) is not None:
            console.warn(warning)
    console.emit(
        {
            "origin": dataset.origin,
            "license": dataset.license,
            "splits": splits,
            "skipped": dataset.skipped,
            "near_overlap": dataset.near_overlap,
            "unused": list(dataset.unused),
            "first_prompt": {"id": first.id, "text": text, "token_ids": ids},
            "shapes": shapes.as_dict() if shapes else None,
            "unknown_tokens": {split: {**asdict(tokens), "share": tokens.share} for split, tokens in unknown.items()},
        },
        "\n".join(dataset.notes()),
        table,
        shapes_line,
        *(
            [f"unknown tokens: {'; '.join(f'{split} {tokens}' for split, tokens in unknown.items())}"]
            if unknown
            else []
        ),
        f"\nfirst prompt ({first.id}):"
        if text != first.dialogue
        else f"\nfirst dialogue ({first.id}), without prompt:",
        text + ("\n\n" if text == first.dialogue else "") + first.references[0],
        *([f"\ntoken ids of this prompt ({len(ids)}): {' '.join(map(str, ids))}"] if ids else []),
        f"\nnext: {console.command('train', recipe, *changes)}",
    )


def _model(recipe: "Recipe", dataset: "Dataset") -> "tuple[Recipe, Tokenizer, bool]":
    """The recipe with the text of a chat template, the tokenizer, and whether the model is decoder-only."""
    from neuron_sum.models.chat import render_chat, token_warnings
    from neuron_sum.recipes.schema import TrainedTokenizer

    settings, needs_chat = recipe.model.tokenizer, recipe.prompt.needs_tokenizer
    if recipe.model.config is not None and isinstance(settings, TrainedTokenizer) and not needs_chat:
        # This needs no transformers, whose import takes seconds.
        from neuron_sum.models.checkpoint import read_inline
        from neuron_sum.models.families import check_family
        from neuron_sum.models.trained_tokenizer import WordTokenizer, train_tokenizer

        decoder_only = check_family(*read_inline(recipe.model)).decoder_only
        size = settings.vocab_size
        words = WordTokenizer(train_tokenizer(dataset.training_texts(), size, decoder_only=decoder_only))
        _warn(token_warnings(recipe.prompt.resolve(), words, None))
        return recipe, words, decoder_only

    from neuron_sum.models import base as models

    config = models.load_config(recipe.model)
    tokenizer = models.load_tokenizer(recipe.model, dataset.training_texts())
    rendered = render_chat(recipe, tokenizer)
    _warn(token_warnings(rendered.prompt.resolve(), tokenizer, config))
    return rendered, tokenizer, models.is_decoder_only(config)


def _warn(warnings: "Sequence[str]") -> None:
    for warning in warnings:
        console.warn(warning)


def _tokens(
    recipe: "Recipe", dataset: "Dataset", tokenizer: "Tokenizer", *, decoder_only: bool
) -> "tuple[ShapeReport, dict[Split, UnknownTokens]]":
    """The report on padding that `train` prints, for one process, and the unknown tokens of each split."""
    from neuron_sum.data.encoding import encode, unknown_tokens
    from neuron_sum.data.long_rows import training_rows
    from neuron_sum.data.shapes import check_packing, choose_plan

    check_packing(recipe, decoder_only=decoder_only)
    prompt = recipe.prompt.resolve()
    rows = {split: training_rows(each, tokenizer, prompt, recipe.data) for split, each in dataset.splits.items()}
    for split, made in rows.items():
        if (note := made.note()) is not None:
            console.note(f"{split}: {note}")
    encoded = {
        split: encode(
            made.examples, tokenizer, prompt, recipe.data, decoder_only=decoder_only, sections=recipe.output.sections
        )
        for split, made in rows.items()
    }
    validation = encoded.get("validation")
    plan = choose_plan(recipe, encoded["train"], validation or None, decoder_only=decoder_only)
    unknown = {
        split: unknown_tokens(made, rows[split].examples, tokenizer, decoder_only=decoder_only)
        for split, made in encoded.items()
    }
    return plan.report(encoded["train"]), unknown
