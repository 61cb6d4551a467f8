"""What a recipe asks to be compiled: buckets, beam widths, graphs, and room for adapters."""

from collections.abc import Sequence

from neuron_sum.artifact import GRAPHS, AdapterSpec, Bucket, GraphFile
from neuron_sum.models.adapters import LORA_TARGETS
from neuron_sum.recipes.schema import CompileConfig, LoraMethod, Recipe

DEFAULT_RANK = 8
"""Of adapter slots where no LoRA was trained whose rank they could have."""


def recipe_buckets(recipe: Recipe) -> tuple[tuple[Bucket, ...], tuple[int, ...]]:
    """Every batch size with every source length, and the beam widths."""
    settings = recipe.compile
    target_len = settings.target_len or recipe.generate.max_new_tokens
    buckets = tuple(
        Bucket(batch=batch, source_len=source_len, target_len=target_len)
        for batch in sorted(settings.batch_sizes)
        for source_len in sorted(settings.source_lens or (recipe.data.max_source_length,))
    )
    return buckets, tuple(sorted(settings.num_beams or (recipe.generate.num_beams,)))


def bucket_graphs(bucket: Bucket, num_beams: Sequence[int], suffix: str = "") -> list[GraphFile]:
    """Its encode, and a step for every beam width.

    Args:
        bucket: The shape.
        num_beams: Beam widths.
        suffix: Of the files, as their target has it.
    """
    batch, source_len, target_len = bucket.batch, bucket.source_len, bucket.target_len
    stem = f"b{batch}-s{source_len}"
    steps = [
        GraphFile(
            kind="step",
            batch=batch,
            source_len=source_len,
            target_len=target_len,
            num_beams=beams,
            file=f"{GRAPHS}/step-{stem}-t{target_len}-k{beams}{suffix}",
        )
        for beams in num_beams
    ]
    encode = GraphFile(kind="encode", batch=batch, source_len=source_len, file=f"{GRAPHS}/encode-{stem}{suffix}")
    return [encode, *steps]


def adapter_room(
    settings: CompileConfig, lora: LoraMethod | None, soft_prompt_tokens: int, model_type: str
) -> tuple[AdapterSpec | None, int]:
    """Adapter slots, and the positions kept for a soft prompt.

    Args:
        settings: The recipe's compile section.
        lora: How LoRA was trained, if it was.
        soft_prompt_tokens: Of the soft prompt that training made; 0 without one.
        model_type: As transformers names it.
    """
    if (slots := settings.adapters) is None:
        return None, soft_prompt_tokens
    rank = slots.rank if slots.rank is not None else lora.r if lora else DEFAULT_RANK
    targets = slots.target_modules or (lora.target_modules if lora else None) or LORA_TARGETS[model_type]
    spec = AdapterSpec(rank=rank, slots=slots.slots + 1, target_modules=tuple(targets))
    return spec, max(soft_prompt_tokens, slots.soft_prompt_tokens)
