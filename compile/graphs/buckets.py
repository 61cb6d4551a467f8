"""The graphs that a recipe requests: buckets, beam widths, and adapter slots."""

from collections.abc import Sequence

from transformers import PretrainedConfig

from neuron_sum.artifact import GRAPHS, AdapterSpec, Bucket, GraphFile
from neuron_sum.errors import RecipeError
from neuron_sum.models.families import FAMILIES
from neuron_sum.models.rotary import check_positions
from neuron_sum.recipes.schema import CompileConfig, LoraMethod, Recipe

DEFAULT_RANK = 8
"""The rank of adapter slots if neither the recipe nor a trained LoRA specifies one."""


def recipe_buckets(recipe: Recipe) -> tuple[tuple[Bucket, ...], tuple[int, ...]]:
    """Every batch size with every source length, and the beam widths.

    Raises:
        RecipeError: If no search could use compile.greedy_steps.
    """
    settings = recipe.compile
    target_len = settings.target_len or recipe.generate.max_new_tokens
    buckets = tuple(
        Bucket(batch=batch, source_len=source_len, target_len=target_len)
        for batch in sorted(settings.batch_sizes)
        for source_len in sorted(settings.source_lens or (recipe.data.max_source_length,))
    )
    num_beams = tuple(sorted(settings.num_beams or (recipe.generate.num_beams,)))
    if settings.greedy_steps > 1 and 1 not in num_beams:
        widths = ", ".join(map(str, num_beams))
        raise RecipeError(
            f"compile.greedy_steps = {settings.greedy_steps} needs beam width 1; the beam widths are {widths}",
            f"use `--set compile.num_beams=[1,{widths.replace(' ', '')}]`, or `--set compile.greedy_steps=1`",
        )
    if settings.greedy_steps > target_len:
        raise RecipeError(
            f"compile.greedy_steps = {settings.greedy_steps} is more than the {target_len} new tokens of the buckets",
            f"use `--set compile.greedy_steps=N` with N from 1 to {target_len}, or a larger compile.target_len",
        )
    return buckets, num_beams


def check_context(config: PretrainedConfig, buckets: Sequence[Bucket], soft_prompt_tokens: int = 0) -> None:
    """Rejects buckets that are longer than the model's context.

    Args:
        config: The configuration of the base model.
        buckets: The buckets to compile.
        soft_prompt_tokens: The positions of soft prompts, or 0.

    Raises:
        RecipeError: With the sum and the limit.
    """
    source_len, target_len = (max(getattr(bucket, name) for bucket in buckets) for name in ("source_len", "target_len"))
    lengths = {"compile.source_lens": source_len, "compile.target_len": target_len}
    check_positions(config, {"soft prompt": soft_prompt_tokens, **lengths})


def bucket_graphs(bucket: Bucket, num_beams: Sequence[int], suffix: str = "", greedy_steps: int = 1) -> list[GraphFile]:
    """The encode graph of a bucket, a step graph for every beam width, and one of several greedy steps if requested.

    Args:
        bucket: The shape.
        num_beams: Beam widths.
        suffix: The file suffix of the target.
        greedy_steps: The number of greedy steps per call; 1 for no such graph.
    """
    batch, source_len, target_len = bucket.batch, bucket.source_len, bucket.target_len
    stem = f"b{batch}-s{source_len}"
    widths = [(beams, 1) for beams in num_beams] + [(1, greedy_steps)] * (greedy_steps > 1)
    steps = [
        GraphFile(
            kind="step",
            batch=batch,
            source_len=source_len,
            target_len=target_len,
            num_beams=beams,
            steps=steps,
            file=f"{GRAPHS}/step-{stem}-t{target_len}-k{beams}{f'-n{steps}' if steps > 1 else ''}{suffix}",
        )
        for beams, steps in widths
    ]
    encode = GraphFile(kind="encode", batch=batch, source_len=source_len, file=f"{GRAPHS}/encode-{stem}{suffix}")
    return [encode, *steps]


def adapter_room(
    settings: CompileConfig, lora: LoraMethod | None, soft_prompt_tokens: int, model_type: str
) -> tuple[AdapterSpec | None, int]:
    """Adapter slots, and the positions reserved for a soft prompt.

    Args:
        settings: The recipe's compile section.
        lora: The LoRA settings of the training, or None.
        soft_prompt_tokens: The length of the trained soft prompt; 0 without one.
        model_type: The model type in transformers.
    """
    if (slots := settings.adapters) is None:
        return None, soft_prompt_tokens
    rank = slots.rank if slots.rank is not None else lora.r if lora else DEFAULT_RANK
    targets = slots.target_modules or (lora.target_modules if lora else None) or FAMILIES[model_type].lora_targets
    spec = AdapterSpec(rank=rank, slots=slots.slots + 1, target_modules=tuple(targets))
    return spec, max(soft_prompt_tokens, slots.soft_prompt_tokens)
