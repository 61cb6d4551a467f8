"""Steps that both exporters share: checks of the output folder, settings in effect, special tokens."""

from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerFast

from compile import cache
from neuron_sum import console, files
from neuron_sum.artifact import SpecialTokens
from neuron_sum.errors import RunError
from neuron_sum.models.base import is_decoder_only
from neuron_sum.recipes.loading import differences
from neuron_sum.recipes.schema import Recipe


def check_output(output: Path, *, overwrite: bool, needed_bytes: int = 0) -> None:
    """Whether an artifact may be written there.

    Raises:
        RunError: If something is there that would be lost.
        ResourceError: If the folder or the cache cannot be written.
    """
    if output.exists() and not output.is_dir():
        raise RunError(f"{output} is a file", "choose a folder with --output")
    for folder, size in ((cache.folder(), 0), (output.resolve().parent, needed_bytes)):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        files.check_writable(there, size)
    if output.exists() and any(output.iterdir()):
        if not (output / "manifest.json").is_file():
            raise RunError(f"{output} is not empty and not an artifact", "choose another folder with --output")
        if not overwrite:
            raise RunError(f"{output} holds an artifact", "--overwrite replaces it, --output FOLDER keeps both")


def effective(recipe: Recipe, source_len: int, target_len: int, num_beams: tuple[int, ...]) -> Recipe:
    """The recipe as the artifact can follow it: lengths and beams that its buckets have, and said where they differ."""
    beams = recipe.generate.num_beams if recipe.generate.num_beams in num_beams else num_beams[-1]
    generate = {"max_new_tokens": min(recipe.generate.max_new_tokens, target_len), "num_beams": beams}
    generate["min_new_tokens"] = min(recipe.generate.min_new_tokens, generate["max_new_tokens"])
    data = {"max_source_length": min(recipe.data.max_source_length, source_len)}
    clamped = recipe.model_copy(
        update={"generate": recipe.generate.model_copy(update=generate), "data": recipe.data.model_copy(update=data)}
    )
    for key, (asked, taken) in differences(recipe, clamped).items():
        console.note(
            f"the artifact's recipe has {key} = {taken}, for that is what it is compiled for (the run: {asked})"
        )
    return clamped


def special_tokens(tokenizer: PreTrainedTokenizerFast, config: PretrainedConfig) -> SpecialTokens:
    """What steers generation; a T5 that names no start token starts with padding."""
    start = None
    if not is_decoder_only(config):
        start = tokenizer.pad_token_id if config.decoder_start_token_id is None else config.decoder_start_token_id
    return SpecialTokens(pad=tokenizer.pad_token_id, eos=tokenizer.eos_token_id, decoder_start=start)
