"""Upstream bugs and limits on Neuron, as data: the affected cases, the problem and how neuron-sum handles it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from neuron_sum.platform.matrix import Instance

OPTIMUM = "huggingface/optimum-neuron v0.4.5, optimum/neuron/"
SMALL_HOST_GIB = 32


@dataclass(frozen=True)
class Case:
    """The properties of a recipe on an instance type that decide which bugs affect it.

    Attributes:
        family: The model_type, such as t5 or llama.
        method: full, lora or prompt_tuning.
        stage: train or compile.
        instance: The instance type.
        gradient_checkpointing: The setting of the recipe.
        dtype: The dtype of the compiled graphs.
        num_beams: The largest beam width.
    """

    family: str
    method: str
    stage: Literal["train", "compile"]
    instance: Instance
    gradient_checkpointing: bool
    dtype: str
    num_beams: int


@dataclass(frozen=True)
class UpstreamBug:
    """A bug or limit of an upstream package.

    Attributes:
        name: A short name.
        affects: A function that returns whether the bug affects a case.
        problem: The consequence without handling.
        handling: The way neuron-sum handles it, or the remaining steps for the user.
        source: The code or issue, and how the bug was verified.
    """

    name: str
    affects: Callable[[Case], bool]
    problem: str
    handling: str
    source: str


UPSTREAM_BUGS = (
    UpstreamBug(
        "fp16",
        lambda case: case.family == "t5",
        "T5 produces NaN in fp16",
        "no setting uses fp16; train.bf16 is autocast over fp32 weights",
        "huggingface/transformers#23918",
    ),
    UpstreamBug(
        "save-unties-the-optimizer",
        lambda case: case.stage == "train" and case.family == "t5",
        "saving during training gives the model new parameters that the optimizer does not have: training continues "
        "with grad_norm 0, learns nothing more, and raises no error",
        "checkpoints are written from a copy on the CPU; the model keeps its parameters",
        OPTIMUM + "accelerate/utils/misc.py:97 (create_patched_save_pretrained); reproduced on XLA:CPU",
    ),
    UpstreamBug(
        "reduction-argument",
        lambda case: case.stage == "train" and case.family == "t5" and case.method != "full",
        "an adapter on T5 fails with: forward() got an unexpected keyword argument 'reduction'",
        "neuron-sum computes the loss for every model and does not pass the argument",
        OPTIMUM + "trainers/transformers.py:201; reproduced on XLA:CPU with LoRA",
    ),
    UpstreamBug(
        "loss-divided-twice",
        lambda case: case.stage == "train" and case.family != "t5",
        "with a decoder-only class of transformers, the loss is divided by the number of tokens twice",
        "the classes of optimum-neuron are trained",
        OPTIMUM + "trainers/transformers.py; reproduced on XLA:CPU",
    ),
    UpstreamBug(
        "lora-targets",
        lambda case: case.stage == "train" and case.family != "t5" and case.method == "lora",
        "LoRA on fewer than all seven projections trains but cannot be consolidated (KeyError … gate_up_proj.weight)",
        "method.target_modules defaults to all seven, and `neuron-sum doctor` rejects fewer",
        OPTIMUM + "models/training; reproduced on XLA:CPU",
    ),
    UpstreamBug(
        "shards",
        lambda case: case.stage == "train" and case.family != "t5",
        "shards are saved, even at tensor_parallel_size 1; consolidation omits the configuration",
        "`neuron-sum train` writes a plain Hugging Face folder",
        OPTIMUM + "models/training/checkpointing.py; read, not run",
    ),
    UpstreamBug(
        "evaluation-refused",
        lambda case: case.stage == "train",
        "NeuronTrainer does not support evaluation",
        "`neuron-sum evaluate` is a separate stage on the saved model",
        OPTIMUM + "trainers/transformers.py:138",
    ),
    UpstreamBug(
        "resume-refused",
        lambda case: case.stage == "train",
        "NeuronTrainer rejects resume_from_checkpoint, so an interrupted spot instance would restart training",
        "neuron-sum implements --resume: weights, optimizer, schedule, position in the data, random state",
        OPTIMUM + "trainers/transformers.py:1096",
    ),
    UpstreamBug(
        "metrics",
        lambda case: case.stage == "train",
        "with all three metrics switched off, training fails with: Unknown metric: throughput",
        "the metrics stay on",
        OPTIMUM + "trainers/metrics/collector.py:258; reproduced on XLA:CPU",
    ),
    UpstreamBug(
        "zero-1",
        lambda case: case.stage == "train",
        "upstream shards the optimizer over the cores by default (ZeRO-1)",
        "off by default, and rejected for T5, because it cannot be tested without a device",
        OPTIMUM + "trainers/training_args.py:325; read, not run",
    ),
    UpstreamBug(
        "a-graph-a-shape",
        lambda case: case.stage == "train",
        "every new batch shape is compiled separately, which takes minutes",
        "shapes are fixed before training; the plan states the number of forward and backward graphs",
        "12 shapes caused 12 compilations on XLA:CPU, one shape caused 2",
    ),
    UpstreamBug(
        "checkpointing-t5",
        lambda case: case.stage == "train" and case.family == "t5" and case.gradient_checkpointing,
        "gradient_checkpointing on T5 uses an additional AWS module that has not been tested here",
        "the recipe's setting is used; testing it requires a device",
        OPTIMUM + "trainers/transformers.py:849; read, not run",
    ),
    UpstreamBug(
        "compiler-killed",
        lambda case: case.instance.host_gib <= SMALL_HOST_GIB,
        "the compiler uses host memory in addition to the processes; on a small host it is killed (-9, F137)",
        "compile on a larger instance, fewer graphs at a time, or with -O1; a compile cache on S3 stores the result",
        "aws-neuron/aws-neuron-samples#10, aws-neuron/aws-neuron-sdk#706",
    ),
    UpstreamBug(
        "beams",
        lambda case: case.stage == "compile" and case.family == "t5" and case.num_beams > 1,
        "the compiled T5 beam search of optimum-neuron differs from transformers, and exports only batch 1",
        "neuron-sum uses separate graphs and a separate generation loop",
        OPTIMUM + "generation; reproduced with a stand-in",
    ),
    UpstreamBug(
        "first-call",
        lambda case: case.stage == "compile",
        "the first call of a loaded graph is slow, and SageMaker's limit is 60 s",
        "the handler warms up every bucket at load; serve.deadline_s answers before SageMaker's limit",
        "aws-neuron/aws-neuron-sdk#928",
    ),
    UpstreamBug(
        "bf16-quality",
        lambda case: case.stage == "compile" and case.dtype != "fp32",
        "bf16 changes summaries: 11 to 14 % of them with a poorly trained tiny model",
        "`neuron-sum compile verify` reports the loss in ROUGE and fails if it exceeds --max-drop",
        "run on a CPU",
    ),
)
