"""Steps that both exporters share: checks of the output folder, effective settings, special tokens."""

from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerFast

from compile import cache
from neuron_sum import console, files
from neuron_sum.artifact import MANIFEST, SpecialTokens, is_manifest
from neuron_sum.errors import RunError
from neuron_sum.models.base import end_tokens, is_decoder_only
from neuron_sum.recipes.loading import differences
from neuron_sum.recipes.schema import Recipe


def check_output(output: Path, *, overwrite: bool, needed_bytes: int = 0) -> None:
    """Verifies that an artifact may be written to a folder.

    Raises:
        RunError: If existing files would be lost.
        ResourceError: If the folder or the cache cannot be written.
    """
    if output.exists() and not output.is_dir():
        raise RunError(f"{output} is a file", "choose a folder with --output FOLDER")
    for folder, size in ((cache.folder(), 0), (output.resolve().parent, needed_bytes)):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        files.check_writable(existing, size)
    if output.exists() and any(output.iterdir()):
        if not is_manifest(output / MANIFEST):
            raise RunError(f"{output} is not empty and not an artifact", "choose another folder with --output FOLDER")
        if overwrite and output.is_symlink():
            raise RunError(f"{output} is a link, which --overwrite does not follow", f"use --output {output.resolve()}")
        if not overwrite:
            raise RunError(
                f"{output} already contains an artifact",
                "replace it with --overwrite, or choose another folder with --output FOLDER",
            )


def effective_recipe(recipe: Recipe, source_len: int, target_len: int, num_beams: tuple[int, ...]) -> Recipe:
    """The recipe with the lengths and beams of the artifact's buckets; prints a note for each changed field."""
    beams = recipe.generate.num_beams if recipe.generate.num_beams in num_beams else num_beams[-1]
    generate = {"max_new_tokens": min(recipe.generate.max_new_tokens, target_len), "num_beams": beams}
    generate["min_new_tokens"] = min(recipe.generate.min_new_tokens, generate["max_new_tokens"])
    data = {"max_source_length": min(recipe.data.max_source_length, source_len)}
    clamped = recipe.model_copy(
        update={"generate": recipe.generate.model_copy(update=generate), "data": recipe.data.model_copy(update=data)}
    )
    for key, (requested, compiled) in differences(recipe, clamped).items():
        console.note(f"the artifact's recipe has {key} = {compiled}, as compiled (in the run: {requested})")
    return clamped


def special_tokens(tokenizer: PreTrainedTokenizerFast, config: PretrainedConfig) -> SpecialTokens:
    """The tokens that control generation; a T5 without a start token starts with the padding token."""
    start = None
    if not is_decoder_only(config):
        start = tokenizer.pad_token_id if config.decoder_start_token_id is None else config.decoder_start_token_id
    return SpecialTokens(pad=tokenizer.pad_token_id, ends=tuple(end_tokens(config, tokenizer)), decoder_start=start)
