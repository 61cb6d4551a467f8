"""Upstream's traps on Neuron, as data: whom each concerns, what happens without care, and what neuron-sum does."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from neuron_sum.platform.matrix import Instance

OPTIMUM = "huggingface/optimum-neuron v0.4.5, optimum/neuron/"
SMALL_HOST_GIB = 32


@dataclass(frozen=True)
class Case:
    """A recipe on an instance, in the terms of the traps.

    Attributes:
        family: t5 or llama.
        method: full, lora or prompt_tuning.
        stage: train or compile.
        instance: Where.
        gradient_checkpointing: As in the recipe.
        dtype: Of the compiled graphs.
        num_beams: The widest beam.
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
    """Something that goes wrong upstream.

    Attributes:
        name: A short name.
        affects: Whether it concerns a case.
        problem: What goes wrong.
        handling: What neuron-sum does about it, or what is left to do.
        source: Where it comes from, and how it was seen.
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
        "T5 turns to NaN in fp16",
        "no setting makes fp16; train.bf16 is autocast over fp32 weights",
        "huggingface/transformers#23918",
    ),
    UpstreamBug(
        "save-unties-the-optimizer",
        lambda case: case.stage == "train" and case.family == "t5",
        "a save in the middle gives the model new parameters that the optimizer does not know: training goes on, "
        "grad_norm is 0, nothing is learned any more, and no error is raised",
        "checkpoints are written from a copy on the CPU; the model keeps its parameters",
        OPTIMUM + "accelerate/utils/misc.py:97 (create_patched_save_pretrained); reproduced on XLA:CPU",
    ),
    UpstreamBug(
        "reduction-argument",
        lambda case: case.stage == "train" and case.family == "t5" and case.method != "full",
        "an adapter on T5 fails with: forward() got an unexpected keyword argument 'reduction'",
        "the loss is neuron-sum's own for every model, and the argument is not passed",
        OPTIMUM + "trainers/transformers.py:201; reproduced on XLA:CPU with LoRA",
    ),
    UpstreamBug(
        "loss-divided-twice",
        lambda case: case.stage == "train" and case.family == "llama",
        "with transformers' own Llama class the loss is divided by the number of tokens twice",
        "optimum-neuron's own Llama class is trained",
        OPTIMUM + "trainers/transformers.py; reproduced on XLA:CPU",
    ),
    UpstreamBug(
        "lora-targets",
        lambda case: case.stage == "train" and (case.family, case.method) == ("llama", "lora"),
        "LoRA on fewer than all seven projections trains, and cannot be consolidated (KeyError … gate_up_proj.weight)",
        "all seven are the default of method.target_modules, and the doctor refuses fewer",
        OPTIMUM + "models/training; reproduced on XLA:CPU",
    ),
    UpstreamBug(
        "shards",
        lambda case: case.stage == "train" and case.family == "llama",
        "what is saved are shards, at tensor_parallel_size 1 too; consolidating them leaves the configuration out",
        "one command ends with a plain Hugging Face folder",
        OPTIMUM + "models/training/checkpointing.py; read",
    ),
    UpstreamBug(
        "evaluation-refused",
        lambda case: case.stage == "train",
        "NeuronTrainer refuses to evaluate",
        "`neuron-sum evaluate` is a stage of its own, on what was saved",
        OPTIMUM + "trainers/transformers.py:138",
    ),
    UpstreamBug(
        "resume-refused",
        lambda case: case.stage == "train",
        "NeuronTrainer refuses resume_from_checkpoint, so an interrupted spot instance starts anew",
        "--resume is neuron-sum's own: weights, optimizer, schedule, place in the data, random state",
        OPTIMUM + "trainers/transformers.py:1096",
    ),
    UpstreamBug(
        "metrics",
        lambda case: case.stage == "train",
        "with all three metrics switched off training dies with: Unknown metric: throughput",
        "they stay on",
        OPTIMUM + "trainers/metrics/collector.py:258; reproduced on XLA:CPU",
    ),
    UpstreamBug(
        "zero-1",
        lambda case: case.stage == "train",
        "upstream shards the optimizer over the cores by default (ZeRO-1)",
        "off by default, and refused for T5, for it cannot be shown without a device",
        OPTIMUM + "trainers/training_args.py:325; read",
    ),
    UpstreamBug(
        "a-graph-a-shape",
        lambda case: case.stage == "train",
        "every new shape of a batch is compiled anew, for minutes",
        "shapes are fixed before training; the plan says how many graphs of forward and backward there will be",
        "12 shapes made 12 compiles on XLA:CPU, one shape 2",
    ),
    UpstreamBug(
        "checkpointing-t5",
        lambda case: case.stage == "train" and case.family == "t5" and case.gradient_checkpointing,
        "gradient_checkpointing on T5 uses one more of AWS's modules, which nobody has seen run here",
        "left as the recipe says; it needs a device to be shown",
        OPTIMUM + "trainers/transformers.py:849; read",
    ),
    UpstreamBug(
        "compiler-killed",
        lambda case: case.instance.host_gib <= SMALL_HOST_GIB,
        "the compiler takes host memory beside the processes; on a small host it is killed (-9, F137)",
        "compile on a larger instance, fewer graphs at a time, or with -O1; a compile cache on S3 keeps the result",
        "aws-neuron/aws-neuron-samples#10, aws-neuron/aws-neuron-sdk#706",
    ),
    UpstreamBug(
        "beams",
        lambda case: case.stage == "compile" and case.family == "t5" and case.num_beams > 1,
        "upstream's compiled T5 beam search differs from transformers', and does not export beyond batch 1",
        "graphs and a generation loop of our own",
        OPTIMUM + "generation; reproduced with a stand-in",
    ),
    UpstreamBug(
        "first-call",
        lambda case: case.stage == "compile",
        "the first call on a loaded graph is slow, and SageMaker gives up after 60 s",
        "the handler warms every bucket up at load; serve.deadline_s answers before SageMaker does",
        "aws-neuron/aws-neuron-sdk#928",
    ),
    UpstreamBug(
        "bf16-quality",
        lambda case: case.stage == "compile" and case.dtype != "fp32",
        "bf16 changes summaries: 11 to 14 % of them on a badly trained tiny model",
        "`neuron-sum compile verify` says what it costs in ROUGE, and refuses beyond --max-drop",
        "run on a CPU",
    ),
)
