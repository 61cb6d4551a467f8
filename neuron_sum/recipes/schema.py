"""The recipe: one frozen pydantic model per stage.

A value lives here and in the line that uses it, nowhere else. loading.py reads recipes from YAML.
"""

from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from neuron_sum.prompts import PRESETS, Prompt


class MaybePath:
    """Marks a string field that may name something on disk (or, where the field says so, on a model hub)."""


PathOrHubId = Annotated[str, MaybePath()]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class Section(BaseModel):
    """What every part of a recipe is: frozen, strict, and closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class SplitFiles(Section):
    """File names inside `data.path`, where they are not train, validation and test with the format's usual ending."""

    train: str | None = None
    validation: str | None = None
    test: str | None = None


class Columns(Section):
    """Which column (CSV, TSV) or key (JSONL, hub) holds what."""

    id: str | None = None
    """The example's id; without one, the file's name and line."""
    dialogue: str = "dialogue"
    summary: str | tuple[str, ...] = "summary"
    """One column, or several references."""
    topic: str | None = None


class DataConfig(Section):
    """Where the dialogues come from and how much of them is used."""

    source: Literal["sample", "dialogsum", "samsum", "jsonl", "csv", "hub"] = "sample"
    """`sample` is bundled; `dialogsum` and `samsum` are folders in those sets' own form; `jsonl` and `csv` take
    `columns`; `hub` takes a data set id in `path` and `columns`."""
    path: PathOrHubId | None = None
    """A folder, or for `hub` a data set id such as knkarthick/dialogsum."""
    revision: str | None = None
    """For `hub`: the commit to pin."""
    files: SplitFiles = SplitFiles()
    columns: Columns = Columns()
    delimiter: str = Field(",", min_length=1, max_length=1)
    """For `csv`: "," or "\\t"."""
    encoding: str = "utf-8"
    license: str | None = None
    """The data's licence, where the source does not tell it; printed, and written into the model card."""
    max_examples: int | None = Field(None, ge=1)
    """At most so many training examples, evenly spaced over the split (the course used 125 of 12,460)."""
    max_eval_examples: int | None = Field(None, ge=1)
    """The same for validation and test."""
    max_source_length: int = Field(512, ge=8)
    """Tokens of the whole prompt; a longer dialogue is cut at its end, and counted."""
    max_target_length: int = Field(128, ge=4)
    """Tokens of the summary, end token included."""
    skip_bad: bool = False
    """Leave out bad rows and count them, instead of stopping."""

    @model_validator(mode="after")
    def _path_where_needed(self) -> "DataConfig":
        if self.source != "sample" and self.path is None:
            raise ValueError(f"data.path is needed for source {self.source!r}")
        return self


class PromptConfig(Section):
    """What the model is told around the dialogue: a preset's name or an own template, never both."""

    preset: str | None = None
    template: str | None = None
    """Text with exactly one {dialogue}."""

    @model_validator(mode="after")
    def _one_prompt(self) -> "PromptConfig":
        if (self.preset is None) == (self.template is None):
            raise ValueError("give either preset or template")
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"no preset {self.preset!r}; there are {', '.join(PRESETS)}")
        if self.template is not None and self.template.count("{dialogue}") != 1:
            raise ValueError("the template must contain {dialogue} exactly once")
        return self

    def resolve(self) -> Prompt:
        """The prompt itself."""
        return Prompt(PRESETS[self.preset] if self.preset is not None else str(self.template))


class TrainedTokenizer(Section):
    """A tokenizer trained on the training split, for models that start from nothing."""

    vocab_size: int = Field(2000, ge=300)


class ModelConfig(Section):
    """The base model: pretrained (`name_or_path`), or a configuration with random weights (`config`)."""

    name_or_path: PathOrHubId | None = None
    """A hub id such as google/flan-t5-base, or a local folder with safetensors."""
    revision: str | None = None
    config: PathOrHubId | dict[str, Any] | None = None
    """A config.json, or its content; without `vocab_size` the tokenizer's is taken."""
    tokenizer: PathOrHubId | TrainedTokenizer | None = None
    """A folder, a hub id, a SentencePiece .model file, or {vocab_size: N} to train one. Default: `name_or_path`."""
    seed: int = Field(0, ge=0)
    """Seed of the random weights."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelConfig":
        if (self.name_or_path is None) == (self.config is None):
            raise ValueError("give either name_or_path (pretrained) or config (random weights); set the other to null")
        if self.config is not None and self.tokenizer is None:
            raise ValueError(
                "random weights need a tokenizer: a folder, a .model file, or {vocab_size: N} to train one"
            )
        return self


class FullMethod(Section):
    """Every weight is trained."""

    name: Literal["full"] = "full"


class LoraMethod(Section):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685); fields carry PEFT's names."""

    name: Literal["lora"] = "lora"
    r: int = Field(32, ge=1)
    lora_alpha: int = Field(32, ge=1)
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    target_modules: tuple[str, ...] | None = None
    """Default: q and v for T5, all seven projections for Llama (fewer cannot be consolidated by optimum-neuron)."""


class PromptTuningMethod(Section):
    """A soft prompt before the input (Lester et al. 2021, arXiv:2104.08691)."""

    name: Literal["prompt_tuning"] = "prompt_tuning"
    num_virtual_tokens: int = Field(20, ge=1, le=1000)
    """20 to 100 are usual; more rarely helps."""


Method = Annotated[FullMethod | LoraMethod | PromptTuningMethod, Field(discriminator="name")]


class NeuronConfig(Section):
    """What only the neuron backend knows; the first two carry the names of NeuronTrainingArguments."""

    tensor_parallel_size: int = Field(1, ge=1)
    """NeuronCores that share one copy of a Llama; the other processes train data parallel. Needs a device to try."""
    zero_1: bool = False
    """Shard the optimizer's moments over the data parallel processes (Llama only). Needs a device to try."""
    cache_url: str | None = None
    """Where compiled graphs are kept: a folder or an s3:// address; default: the compiler's own, on this machine."""


class ShapesConfig(Section):
    """How examples become rows of tensors: any shape, or a few fixed ones, which an ahead-of-time compiler needs."""

    plan: Literal["dynamic", "fixed", "buckets", "packed"] = "dynamic"
    """dynamic: a batch is as wide as its longest example. fixed: one shape for all. buckets: a few shapes, chosen so
    that little is padded. packed: one shape, several examples in a row."""
    buckets: int = Field(4, ge=1, le=16)
    """How many shapes `buckets` chooses."""
    sizes: tuple[tuple[int, int], ...] | None = Field(None, min_length=1)
    """[source_len, target_len] of each shape, in place of what is chosen; one for fixed and packed."""

    @model_validator(mode="after")
    def _sizes_that_fit_the_plan(self) -> "ShapesConfig":
        if self.sizes is None:
            return self
        if self.plan == "dynamic":
            raise ValueError("sizes are for fixed, buckets and packed; dynamic has none")
        if self.plan != "buckets" and len(self.sizes) != 1:
            raise ValueError(f"{self.plan} has one shape: sizes=[[source_len, target_len]]")
        smaller = (0, 0)
        for size in self.sizes:
            if size == smaller or min(size) < 1 or any(new < old for new, old in zip(size, smaller, strict=True)):
                raise ValueError("each size needs two whole numbers from 1, none smaller than in the size before it")
            smaller = size
        return self


class TrainConfig(Section):
    """How the model is trained; fields carry the names of transformers' TrainingArguments."""

    backend: Literal["torch", "neuron"] = "torch"
    """torch: a CPU or GPUs. neuron: AWS Trainium, with optimum-neuron."""
    neuron: NeuronConfig = NeuronConfig()
    learning_rate: float = Field(1e-4, gt=0)
    num_train_epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps; overrides num_train_epochs."""
    per_device_train_batch_size: int = Field(8, ge=1)
    """Rows; a packed row holds several examples."""
    per_device_eval_batch_size: int = Field(8, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    weight_decay: float = Field(0.0, ge=0)
    warmup_ratio: float = Field(0.0, ge=0, lt=1)
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    label_smoothing_factor: float = Field(0.0, ge=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    bf16: bool = False
    """Autocast to bfloat16; there is no fp16, in which T5 turns to NaN (transformers#23918)."""
    gradient_checkpointing: bool = False
    shapes: ShapesConfig = ShapesConfig()
    group_by_length: bool = True
    """Batches of similar length: far less padding, the same examples. For shapes.plan dynamic, the others need none."""
    logging_steps: int = Field(10, ge=1)
    eval_steps: int | None = Field(None, ge=1)
    """Steps between validation losses; default: once an epoch."""
    save_steps: int = Field(500, ge=1)
    save_total_limit: int = Field(2, ge=2)
    """Two at least, so that a kill while one is written leaves the other."""
    report_to: tuple[Literal["tensorboard"], ...] = ()
    fsdp: bool = False
    """Shard weights, gradients and optimizer over the processes of torchrun (PyTorch FSDP2)."""
    deepspeed: PathOrHubId | None = None
    """A DeepSpeed configuration file (ZeRO), instead of fsdp."""
    seed: int = Field(42, ge=0)

    @model_validator(mode="after")
    def _one_sharding(self) -> "TrainConfig":
        if self.fsdp and self.deepspeed is not None:
            raise ValueError("fsdp and deepspeed exclude each other")
        return self

    @model_validator(mode="after")
    def _what_the_backend_has(self) -> "TrainConfig":
        if self.backend == "neuron" and self.shapes.plan == "dynamic":
            raise ValueError(
                "backend neuron needs shapes that are known before: shapes.plan = packed, buckets or fixed"
            )
        if self.backend == "neuron" and (self.fsdp or self.deepspeed is not None):
            raise ValueError(
                "backend neuron has neither fsdp nor deepspeed; neuron.zero_1 and neuron.tensor_parallel_size shard a "
                "Llama"
            )
        if self.backend != "neuron" and self.neuron != NeuronConfig():
            raise ValueError("neuron.* is for backend neuron")
        if self.neuron.tensor_parallel_size > 1 and self.label_smoothing_factor > 0:
            raise ValueError("label_smoothing_factor must be 0 where neuron.tensor_parallel_size is more than 1")
        return self


class GenerateConfig(Section):
    """How summaries are generated; fields carry the names of transformers' GenerationConfig."""

    max_new_tokens: int = Field(128, ge=1)
    min_new_tokens: int = Field(0, ge=0)
    num_beams: int = Field(1, ge=1)
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = Field(0, ge=0)
    early_stopping: bool = False
    batch_size: int = Field(8, ge=1)

    @model_validator(mode="after")
    def _room_for_the_least(self) -> "GenerateConfig":
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError("min_new_tokens must not exceed max_new_tokens")
        return self


class AdapterSlotsConfig(Section):
    """Room in the compiled graphs for adapters that are loaded, swapped and mixed without another compile."""

    slots: int = Field(4, ge=1, le=256)
    """Adapters at a time, beside none."""
    rank: int | None = Field(None, ge=0)
    """The highest LoRA rank that fits; default: the run's own, or 8; 0 for soft prompts alone."""
    target_modules: tuple[str, ...] | None = None
    """Default: the run's own, or method.target_modules' default."""
    soft_prompt_tokens: int = Field(0, ge=0, le=1000)
    """Room for soft prompts of so many tokens."""


class NeuronCompileConfig(Section):
    """What only a compile for inf2 and trn1 knows; the compiler's options carry neuronx-cc's names."""

    exporter: Literal["own", "optimum"] | None = None
    """own: this package's graphs. optimum: optimum-neuron's. Default: own for T5, optimum for Llama."""
    auto_cast: Literal["none", "matmult", "all"] = "none"
    """Which fp32 operations the compiler may compute in auto_cast_type."""
    auto_cast_type: Literal["bf16", "tf32"] = "bf16"
    optlevel: Literal[1, 2, 3] = 2
    cache_write: Literal["in_place", "where"] = "in_place"
    """How a step stores its keys and values; where rewrites the cache, for a compiler that refuses the other."""
    inline_weights: bool = False
    """Put the weights into the compiled graphs; outside, another checkpoint of the same shape needs no compile."""
    tensor_parallel_size: Literal[1, 2] = 1
    """NeuronCores that share one Llama."""
    core: int = Field(0, ge=0)
    """Where a model of one core is placed, counted among NEURON_RT_VISIBLE_CORES."""


class CompileConfig(Section):
    """What is compiled ahead of time: one bucket for every batch size and source length."""

    target: Literal["cpu", "inf2", "trn1"] = "cpu"
    """Where it will run; `--target` says so too."""
    dtype: Literal["fp32", "bf16", "int8"] = "fp32"
    """int8 (cpu alone): weights per output channel, activations per row; keys and values then are bf16."""
    kv_dtype: Literal["fp32", "bf16"] | None = None
    """Keys and values; default: fp32 for fp32, else bf16."""
    batch_sizes: tuple[int, ...] = Field((1, 8), min_length=1)
    source_lens: tuple[int, ...] | None = Field(None, min_length=1)
    """Tokens of a prompt; default: data.max_source_length. `neuron-sum compile --plan DATA` chooses from data."""
    target_len: int | None = Field(None, ge=1)
    """New tokens; default: generate.max_new_tokens."""
    num_beams: tuple[int, ...] | None = Field(None, min_length=1)
    """Beam widths; default: generate.num_beams."""
    adapters: AdapterSlotsConfig | None = None
    """Keep LoRA and soft prompts apart from the weights; default: merged and compiled in."""
    fallback: bool = False
    """Compile fp32 where the CPU lacks the instructions for dtype, instead of stopping."""
    neuron: NeuronCompileConfig = NeuronCompileConfig()

    @model_validator(mode="after")
    def _positive(self) -> "CompileConfig":
        for field in ("batch_sizes", "source_lens", "num_beams"):
            values = getattr(self, field) or ()
            if any(value < 1 for value in values) or len(set(values)) != len(values):
                raise ValueError(f"{field} must be different whole numbers from 1")
        return self

    @model_validator(mode="after")
    def _what_the_target_has(self) -> "CompileConfig":
        if self.target != "cpu" and self.dtype == "int8":
            raise ValueError(f"target {self.target} has no int8: dtype = bf16 or fp32")
        if self.target == "cpu" and self.neuron != NeuronCompileConfig():
            raise ValueError("neuron.* is for target inf2 or trn1")
        return self


class ServeConfig(Section):
    """How the endpoint behaves; `neuron-sum package` writes it into serving.properties."""

    deadline_s: float = Field(30.0, gt=0, le=55)
    """From a request's arrival to its answer; then 503. SageMaker itself gives up after 60 s."""
    queue_size: int = Field(256, ge=1, le=100_000)
    """Dialogues that may wait; beyond, 503 with Retry-After."""
    max_items: int = Field(64, ge=1)
    """Dialogues in one request."""
    max_characters: int = Field(100_000, ge=1)
    """Of one dialogue. What has more tokens than the longest bucket takes is cut, and the answer says so."""
    max_request_characters: int = Field(500_000, ge=1)
    """Of a request's body, an escape such as \\u00e4 counted as one; beyond, 413."""
    max_body_bytes: int = Field(6 * 1024 * 1024, ge=1024)
    log_text: bool = False
    """Write dialogues and summaries into the log."""


class EvaluateConfig(Section):
    """The ROUGE protocol, every part of which moves the score; printed with every result."""

    split: Split = "test"
    use_stemmer: bool = True
    references: Literal["mean", "first", "best"] = "mean"
    """With several references: the mean of all, the first alone, or the best per example."""
    sentence_splitting: Literal["punctuation", "newline"] = "punctuation"
    """What counts as a sentence for ROUGE-Lsum."""
    bootstrap_samples: int = Field(1000, ge=100)
    confidence: float = Field(0.95, gt=0, lt=1)
    seed: int = Field(42, ge=0)


class Recipe(Section):
    """A whole run: data, prompt, model, method, training, generation, compile, serving, evaluation."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """Also the name of the run's folder."""
    description: str = ""
    data: DataConfig = DataConfig()
    prompt: PromptConfig = PromptConfig(preset="course")
    model: ModelConfig
    method: Method = FullMethod()
    train: TrainConfig = TrainConfig()
    generate: GenerateConfig = GenerateConfig()
    compile: CompileConfig = CompileConfig()
    serve: ServeConfig = ServeConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _shards_whole_models(self) -> "Recipe":
        if self.train.fsdp and not isinstance(self.method, FullMethod):
            raise ValueError(
                "train.fsdp needs method full; shard an adapter's base with train.deepspeed (ZeRO) instead"
            )
        return self

    def to_yaml(self) -> str:
        """The resolved recipe, every default filled in."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
