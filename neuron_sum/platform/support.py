"""What works where, and what AWS is retiring: the platform matrix's cells, as data.

A cell says what is known and how it came to be known. What nobody has run or written down says so; nothing is inferred.
"""

from dataclasses import dataclass
from typing import Literal

from neuron_sum.platform.matrix import ENDED_CONTAINERS

Status = Literal["supported", "maintenance", "ended"]
STATUSES: tuple[Status, ...] = ("supported", "maintenance", "ended")
"""From best to worst. maintenance: critical fixes only; ended: none."""

Family = Literal["t5", "llama"]
Method = Literal["full", "lora", "prompt_tuning"]
Stage = Literal["train", "compile", "serve"]
Evidence = Literal["run on XLA:CPU", "run on a stand-in", "read", "none"]
"""Where it was seen. XLA:CPU: upstream's own training code, on a CPU in place of the NeuronCores. A stand-in:
this package's graphs, or upstream's own export and generation code, on modules in place of AWS's. Neither shows what
the compiler accepts, bf16's numerics, memory or speed."""

SDK_DOCS = "aws-neuron/aws-neuron-sdk 81ce03ae (2026-08-21), about-neuron/announcements/neuron2.x/"
OPTIMUM = "huggingface/optimum-neuron v0.4.5 (2026-02-11)"
READ = "2026-11-21"


@dataclass(frozen=True)
class Retirement:
    """Something that AWS supports less than it did.

    Attributes:
        what: What it is about.
        status: What is left.
        since: The day of the announcement that made it so.
        release: The first SDK release for which it holds.
        means: What follows for who uses it here.
        source: Who says so.
        checked: The day that was read.
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
        means="training on Trainium lives on in pinned images; native PyTorch on Neuron is a private beta",
        source=SDK_DOCS + "announce-no-support-pytorch-xla-training.rst",
    ),
    "nxd-training": Retirement(
        what="NxD Core's training API, which optimum-neuron's own Llama class is built on",
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
        means="critical fixes only, on PyTorch 2.9; it is what there is for Inf2",
        source=SDK_DOCS + "announce-maintenance-pytorch-xla-inference.rst",
    ),
    "nxd-inference": Retirement(
        what="NxD Inference and NxD Core's inference API",
        status="maintenance",
        since="2026-05-20",
        release="2.30",
        means="critical fixes to the versions of SDK 2.31.0, no new releases (said on 2026-08-12)",
        source=SDK_DOCS
        + "announce-maintenance-nxdi-nxd-core-inference.rst and announce-nxdi-maintenance-support-2-31.rst",
    ),
    "transformers-neuronx": Retirement(
        what="transformers-neuronx, with which AWS's workshop and the frozen DJL 0.30 container serve Llama",
        status="ended",
        since=ENDED_CONTAINERS["djl-0.30-neuronx"].ended,
        release="2.26",
        means="only that container is left; `neuron-sum package --container djl-0.30-neuronx` fills it",
        source=SDK_DOCS + "announce-intent-eos-tnx.rst (2025-06-24) has the release, stack.ENDED_CONTAINERS the day",
    ),
    "torch-2.8": Retirement(
        what="PyTorch 2.7 and 2.8",
        status="ended",
        since="2026-03-30",
        release="2.29",
        means="the last SDK with them is 2.28; an image pins them, and the host's driver may be newer",
        source=SDK_DOCS + "announce-no-longer-support-pytorch-2-7-2-8.rst",
    ),
    "python-3.10": Retirement(
        what="Python 3.10",
        status="ended",
        since="2026-05-20",
        release="2.30",
        means="Hugging Face's images for this row have it; AWS's own have 3.11",
        source=SDK_DOCS + "announcement-python-3-10-eol.rst",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """Whether one method on one model family goes through one stage on Neuron.

    Attributes:
        family: The model family.
        method: How it was or is to be fine-tuned.
        stage: Which step of the way.
        works: Yes, no, or None where no source says.
        evidence: Where that was seen.
        note: How, or why not.
        source: Who says so; none where nobody does.
        retirements: What AWS says of what it is built on, by name in RETIREMENTS.
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
        """The worst of its retirements."""
        left = [RETIREMENTS[name].status for name in self.retirements]
        return max(left, key=STATUSES.index) if left else "supported"


FAMILIES_OF_STAGE: dict[Stage, tuple[str, ...]] = {"train": ("trn1",), "compile": ("inf2",), "serve": ("inf2",)}
"""Which instances a stage is for. A compile for inf2 needs the compiler and no device."""

_TRAINS_XLA = f"{OPTIMUM}, docs/source/supported_architectures.mdx: any architecture that compiles and fits 16 GB"
_TRAINS_CLASS = f"{OPTIMUM}, docs/source/supported_architectures.mdx: a class of its own, tensor parallelism included"
_OWN_T5 = f"docs/compile.md; {OPTIMUM}, docs/source/supported_architectures.mdx: T5, text2text-generation"
_EXPORTS_LLAMA = f"{OPTIMUM}, docs/source/supported_architectures.mdx: Llama, text-generation"
_XLA, _LLAMA = ("pytorch-xla-training",), ("pytorch-xla-training", "nxd-training")
_INFERENCE, _NXD = ("pytorch-xla-inference",), ("pytorch-xla-inference", "nxd-inference")

CELLS = (
    Cell("t5", "full", "train", True, "run on XLA:CPU", "data parallel only", _TRAINS_XLA, _XLA),
    Cell("t5", "lora", "train", True, "run on XLA:CPU", "data parallel only, with plain PEFT", _TRAINS_XLA, _XLA),
    Cell(
        "t5", "prompt_tuning", "train", True, "run on XLA:CPU",
        "data parallel only, with plain PEFT", _TRAINS_XLA, _XLA,
    ),
    Cell(
        "llama", "full", "train", True, "run on XLA:CPU",
        "optimum-neuron's own class, seen at tensor_parallel_size 1; more needs a device", _TRAINS_CLASS, _LLAMA,
    ),
    Cell(
        "llama", "lora", "train", True, "run on XLA:CPU",
        "on all seven projections; with fewer it trains and cannot be consolidated", _TRAINS_CLASS, _LLAMA,
    ),
    Cell(
        "llama", "prompt_tuning", "train", False, "read",
        "its own class takes LoRA adapters only", f"{OPTIMUM}, optimum/neuron/peft/mapping.py: LORA alone", _LLAMA,
    ),
    Cell(
        "t5", "full", "compile", True, "run on a stand-in",
        "this package's graphs; upstream's exporter is right for greedy search at batch 1", _OWN_T5, _INFERENCE,
    ),
    Cell(
        "t5", "lora", "compile", True, "run on a stand-in",
        "merged, or in a slot of this package's graphs; upstream has no adapters at run time for T5",
        _OWN_T5, _INFERENCE,
    ),
    Cell(
        "t5", "prompt_tuning", "compile", True, "run on a stand-in",
        "compiled in, or in a slot of this package's graphs; upstream exports no soft prompts", _OWN_T5, _INFERENCE,
    ),
    Cell("llama", "full", "compile", True, "run on a stand-in", "two graphs, weights apart", _EXPORTS_LLAMA, _NXD),
    Cell(
        "llama", "lora", "compile", True, "run on a stand-in",
        "merged first; adapters at run time exist upstream for Trn2 alone", _EXPORTS_LLAMA, _NXD,
    ),
    Cell("llama", "prompt_tuning", "compile", None, "none", "upstream exports no soft prompts", None, _NXD),
    Cell(
        "t5", "full", "serve", True, "run on a stand-in",
        "this package's handler in DJL Serving, whose own has no T5", _OWN_T5, _INFERENCE,
    ),
    Cell("t5", "lora", "serve", True, "run on a stand-in", "merged, or loaded at run time", _OWN_T5, _INFERENCE),
    Cell("t5", "prompt_tuning", "serve", True, "run on a stand-in", "as LoRA", _OWN_T5, _INFERENCE),
    Cell("llama", "full", "serve", True, "run on a stand-in", "upstream's own generate()", _EXPORTS_LLAMA, _NXD),
    Cell("llama", "lora", "serve", True, "run on a stand-in", "merged", _EXPORTS_LLAMA, _NXD),
    Cell("llama", "prompt_tuning", "serve", None, "none", "nothing compiled to serve", None, _NXD),
)  # fmt: skip


def find_cell(family: str, method: str, stage: str) -> Cell:
    """The one cell of a family, a method and a stage."""
    return next(cell for cell in CELLS if (cell.family, cell.method, cell.stage) == (family, method, stage))
