"""Supported methods per model family and stage, and retirements by AWS, as data.

A cell states what is known and its evidence. Combinations that are neither run nor documented are marked as such;
nothing is inferred.
"""

from dataclasses import dataclass
from typing import Literal

from neuron_sum.platform.matrix import ENDED_CONTAINERS

Status = Literal["supported", "maintenance", "ended"]
STATUSES: tuple[Status, ...] = ("supported", "maintenance", "ended")
"""From best to worst. maintenance: critical fixes only; ended: none."""

Family = Literal["t5", "llama", "mistral", "qwen2", "qwen3", "smollm3"]
Method = Literal["full", "lora", "prompt_tuning"]
METHODS: tuple[Method, ...] = ("full", "lora", "prompt_tuning")
Stage = Literal["train", "compile", "serve"]
Evidence = Literal["run on XLA:CPU", "run on a stand-in", "read", "none"]
"""The way a cell was verified. XLA:CPU: the training code of optimum-neuron and neuronx-distributed on a CPU instead of
NeuronCores. A stand-in: this package's graphs, or optimum-neuron's export and generation code, through ModelBuilder on
replacements of the closed compiler and runtime. Neither tests what the compiler accepts, bf16 numerics, memory or
speed."""

SDK_DOCS = "aws-neuron/aws-neuron-sdk 81ce03ae (2026-08-21), about-neuron/announcements/neuron2.x/"
OPTIMUM = "huggingface/optimum-neuron v0.4.5 (2026-02-11)"
READ = "2026-11-21"


@dataclass(frozen=True)
class Retirement:
    """A product or version for which AWS has reduced its support.

    Attributes:
        what: The product or version.
        status: The remaining support.
        since: The date of the announcement.
        release: The first SDK release that it applies to.
        means: The consequence for users of neuron-sum.
        source: The announcement.
        checked: The date on which the source was read.
    """

    what: str
    status: Status
    since: str
    release: str
    means: str
    source: str
    checked: str = READ


RETIREMENTS = {
    "pytorch-xla-training": Retirement(
        what="PyTorch/XLA for training",
        status="ended",
        since="2026-05-20",
        release="2.30",
        means="training on Trainium remains available in pinned images; native PyTorch on Neuron (TorchNeuron) is a "
        "public beta for Trn2 and Trn3 only",
        source=SDK_DOCS + "announce-no-support-pytorch-xla-training.rst; the beta: release-notes/components/"
        "torchneuron.rst of SDK 2.33.0 (2026-10-19), read 2026-11-29",
    ),
    "nxd-training": Retirement(
        what="NxD Core's training API, which the Llama class of optimum-neuron is built on",
        status="maintenance",
        since="2026-05-20",
        release="2.30",
        means="critical security fixes only",
        source=SDK_DOCS + "announce-maintenance-nxdt-nxd-core-training.rst",
    ),
    "pytorch-xla-inference": Retirement(
        what="Torch/XLA for inference on Inf2 and Trn1",
        status="maintenance",
        since="2026-06-28",
        release="2.31",
        means="critical fixes only, on PyTorch 2.9; no alternative exists for Inf2",
        source=SDK_DOCS + "announce-maintenance-pytorch-xla-inference.rst",
    ),
    "nxd-inference": Retirement(
        what="NxD Inference and NxD Core's inference API",
        status="maintenance",
        since="2026-05-20",
        release="2.30",
        means="on Inf2 and Trn1 critical fixes to the versions of SDK 2.31.0 and no new releases; on Trn2 and Trn3 "
        "support ends with SDK 2.34",
        source=SDK_DOCS
        + "announce-maintenance-nxdi-nxd-core-inference.rst and announce-nxdi-maintenance-support-2-31.rst; "
        "announce-eos-nxdi-nxd-core-inference.rst (2026-10-16), read 2026-11-29",
    ),
    "transformers-neuronx": Retirement(
        what="transformers-neuronx, with which the AWS workshop and the frozen DJL 0.30 container serve Llama",
        status="ended",
        since=ENDED_CONTAINERS["djl-0.30-neuronx"].ended,
        release="2.26",
        means="only that container remains; `neuron-sum package --container djl-0.30-neuronx` builds a package for it",
        source=SDK_DOCS + "announce-intent-eos-tnx.rst (2025-06-24) has the release, matrix.ENDED_CONTAINERS the date",
    ),
    "training-image": Retirement(
        what="the AWS image pytorch-training-neuronx",
        status="ended",
        since="2026-07-07",
        release="2.31",
        means="the last one has SDK 2.30.0; AWS refers to images of older SDKs, such as this platform's",
        source="aws-neuron/aws-neuron-sdk 81ce03ae, release-notes/components/containers.rst (2.31.0) and "
        "announce-no-longer-publish-pytorch-training-dlc.rst (2026-06-28). The tag of the last one was not found",
        checked="2026-11-29",
    ),
    "inference-image": Retirement(
        what="the AWS image pytorch-inference-neuronx",
        status="ended",
        since="2026-08-17",
        release="2.32",
        means="the last one has SDK 2.31.1; AWS refers to images of older SDKs, such as this platform's",
        source="aws-neuron/aws-neuron-sdk 81ce03ae, release-notes/components/containers.rst (2.32.0), which says "
        "2.31.0 or earlier; 2.9.0-neuronx-py312-sdk2.31.1-ubuntu24.04 is in aws/deep-learning-containers "
        "8a167b51, docs/src/data/pytorch-inference-neuronx/2.9-neuronx-sdk2.31.1.yml",
        checked="2026-11-29",
    ),
    "torch-2.8": Retirement(
        what="PyTorch 2.7 and 2.8",
        status="ended",
        since="2026-03-30",
        release="2.29",
        means="the last SDK with them is 2.28; an image pins them, and the driver of the host may be newer",
        source=SDK_DOCS + "announce-no-longer-support-pytorch-2-7-2-8.rst",
    ),
    "python-3.10": Retirement(
        what="Python 3.10",
        status="ended",
        since="2026-05-20",
        release="2.30",
        means="the Hugging Face images for this row have it; the AWS images have 3.11",
        source=SDK_DOCS + "announcement-python-3-10-eol.rst",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """Whether a fine-tuning method of a model family works in a stage on Neuron.

    Attributes:
        family: The model family.
        method: The fine-tuning method.
        stage: The stage.
        works: True, False, or None if no source states it.
        evidence: The way it was verified.
        note: The conditions under which it works, or the reason why it does not.
        source: The source of the statement; None if there is none.
        retirements: The retirements of its dependencies, by name in RETIREMENTS.
    """

    family: Family
    method: Method
    stage: Stage
    works: bool | None
    evidence: Evidence
    note: str
    source: str | None
    retirements: tuple[str, ...]

    @property
    def status(self) -> Status:
        """The worst status of its retirements."""
        statuses = [RETIREMENTS[name].status for name in self.retirements]
        return max(statuses, key=STATUSES.index) if statuses else "supported"


FAMILIES_OF_STAGE: dict[Stage, tuple[str, ...]] = {"train": ("trn1",), "compile": ("inf2",), "serve": ("inf2",)}
"""Instance families by stage. Compiling for inf2 requires the compiler but no device."""

_TRAINS_XLA = f"{OPTIMUM}, docs/source/supported_architectures.mdx: any architecture that compiles and fits 16 GB"
_TRAINS_CLASS = f"{OPTIMUM}, docs/source/supported_architectures.mdx: a dedicated class, with tensor parallelism"
_CUSTOM_T5 = f"docs/compile.md; {OPTIMUM}, docs/source/supported_architectures.mdx: T5, text2text-generation"
_NO_CLASS = f"{OPTIMUM}, optimum/neuron/models/training/auto_models.py: Granite, Llama and Qwen3"
_EXPORTS = f"{OPTIMUM}, optimum/neuron/models/inference/auto_models.py: text-generation"
_XLA, _LLAMA = ("pytorch-xla-training",), ("pytorch-xla-training", "nxd-training")
_INFERENCE, _NXD = ("pytorch-xla-inference",), ("pytorch-xla-inference", "nxd-inference")


def _decoder_only(family: Family, *, trains: bool, compiles: bool) -> tuple[Cell, ...]:
    """The cells of a decoder-only family, which optimum-neuron has a class for, or does not support."""
    training: tuple[Cell, ...]
    if trains:
        training = (
            Cell(
                family, "full", "train", True, "run on XLA:CPU",
                "the class of optimum-neuron, tested at tensor_parallel_size 1; more requires a device",
                _TRAINS_CLASS, _LLAMA,
            ),
            Cell(
                family, "lora", "train", True, "run on XLA:CPU",
                "on all seven projections; with fewer it trains but cannot be consolidated", _TRAINS_CLASS, _LLAMA,
            ),
            Cell(
                family, "prompt_tuning", "train", False, "read",
                "the class of optimum-neuron accepts only LoRA adapters",
                f"{OPTIMUM}, optimum/neuron/peft/mapping.py: only LORA", _LLAMA,
            ),
        )  # fmt: skip
    else:
        note = "optimum-neuron 0.4.5 has no class for training this family"
        training = tuple(Cell(family, method, "train", False, "read", note, _NO_CLASS, _LLAMA) for method in METHODS)
    if compiles:
        return (
            *training,
            Cell(family, "full", "compile", True, "run on a stand-in", "two graphs, separate weights", _EXPORTS, _NXD),
            Cell(
                family, "lora", "compile", True, "run on a stand-in",
                "merged first; upstream supports adapters at run time only for Trn2", _EXPORTS, _NXD,
            ),
            Cell(family, "prompt_tuning", "compile", None, "none", "upstream exports no soft prompts", None, _NXD),
            Cell(family, "full", "serve", True, "run on a stand-in", "upstream generate()", _EXPORTS, _NXD),
            Cell(family, "lora", "serve", True, "run on a stand-in", "merged", _EXPORTS, _NXD),
            Cell(family, "prompt_tuning", "serve", None, "none", "there is no compiled model to serve", None, _NXD),
        )  # fmt: skip
    note = "optimum-neuron 0.4.5 does not export this family"
    stages: tuple[Stage, ...] = ("compile", "serve")
    return (
        *training,
        *(Cell(family, method, stage, False, "read", note, _EXPORTS, _NXD) for stage in stages for method in METHODS),
    )


CELLS = (
    Cell("t5", "full", "train", True, "run on XLA:CPU", "data parallel only", _TRAINS_XLA, _XLA),
    Cell("t5", "lora", "train", True, "run on XLA:CPU", "data parallel only, with plain PEFT", _TRAINS_XLA, _XLA),
    Cell(
        "t5", "prompt_tuning", "train", True, "run on XLA:CPU",
        "data parallel only, with plain PEFT", _TRAINS_XLA, _XLA,
    ),
    Cell(
        "t5", "full", "compile", True, "run on a stand-in",
        "this package's graphs; the upstream exporter is correct for greedy search at batch 1", _CUSTOM_T5, _INFERENCE,
    ),
    Cell(
        "t5", "lora", "compile", True, "run on a stand-in",
        "merged, or in a slot of this package's graphs; upstream has no adapters at run time for T5",
        _CUSTOM_T5, _INFERENCE,
    ),
    Cell(
        "t5", "prompt_tuning", "compile", True, "run on a stand-in",
        "compiled in, or in a slot of this package's graphs; upstream exports no soft prompts", _CUSTOM_T5, _INFERENCE,
    ),
    Cell(
        "t5", "full", "serve", True, "run on a stand-in",
        "this package's handler in DJL Serving, whose bundled handler does not support T5", _CUSTOM_T5, _INFERENCE,
    ),
    Cell("t5", "lora", "serve", True, "run on a stand-in", "merged, or loaded at run time", _CUSTOM_T5, _INFERENCE),
    Cell("t5", "prompt_tuning", "serve", True, "run on a stand-in", "as LoRA", _CUSTOM_T5, _INFERENCE),
    *_decoder_only("llama", trains=True, compiles=True),
    *_decoder_only("mistral", trains=False, compiles=False),
    *_decoder_only("qwen2", trains=False, compiles=True),
    *_decoder_only("qwen3", trains=True, compiles=True),
    *_decoder_only("smollm3", trains=False, compiles=True),
)  # fmt: skip


def find_cell(family: str, method: str, stage: str) -> Cell:
    """The cell of a family, a method and a stage."""
    return next(cell for cell in CELLS if (cell.family, cell.method, cell.stage) == (family, method, stage))


def remedy(cell: Cell) -> str:
    """What works in the place of a cell that does not: another method, or another family."""
    others = [other for other in CELLS if other.works and other.stage == cell.stage]
    methods = [other.method for other in others if other.family == cell.family]
    if methods:
        return f"method={methods[-1]}"
    families = dict.fromkeys(other.family for other in others)
    where = "train.backend=torch" if cell.stage == "train" else "compile.target=cpu"
    return f"{where}, or a model of {', '.join(families)}"
