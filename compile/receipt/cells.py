"""The cells of a receipt and the steps that settle them, as data: what is expected, and from which source."""

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["t5", "optimum", "training"]
"""The packages that a step needs; stand-ins replace them separately."""
SizeName = Literal["full", "micro"]


@dataclass(frozen=True)
class Cell:
    """One question that only a device answers.

    Attributes:
        name: The name, the same in docs/status.md.
        expected: The result that the code relies on.
        source: The source of this expectation.
    """

    name: str
    expected: str
    source: str


@dataclass(frozen=True)
class Step:
    """A process that settles cells, in their order.

    Attributes:
        name: The name, that of its function in compile/receipt/steps.py.
        kind: The packages that it needs.
        minutes: The time limit.
        cells: The cells.
        needs: The step whose files it reads.
    """

    name: str
    kind: Kind
    minutes: float
    cells: tuple[Cell, ...]
    needs: str | None = None


NXD = "neuronx-distributed v2.26.0"
DOCS = "AWS Neuron documentation"
STEPS = (
    Step(
        "machine",
        kind="t5",
        minutes=5,
        cells=(
            Cell("driver", "in the window of the platform", "neuron_sum/platform/matrix.py"),
            Cell("packages", "all versions of one platform", "neuron_sum/platform/matrix.py"),
        ),
    ),
    Step(
        "two_layers",
        kind="t5",
        minutes=120,
        cells=(
            Cell("two-layer T5 compiles", "neuronx-cc accepts the default settings", "docs/compile.md"),
            Cell(
                "inputs by name",
                "assigned buffers are state with an aliased output; all inputs are named",
                f"{DOCS}, ModelBuilderV2, In-place buffer updates; {NXD}, trace/nxd_model.py",
            ),
            Cell(
                "copied values are read",
                "other constants and other adapters give other results",
                f"{NXD}, NxDModel.write_to_neuron_buffer",
            ),
            Cell(
                "two-layer T5 tokens",
                "equal to transformers, fp32, all batches and beams; prompts that join",
                "the same graphs on CPU",
            ),
            Cell(
                "buffers are not copied",
                "a longer source costs a step one read of its buffers",
                f"{NXD}: aliased outputs are not returned (output_aliased_tensor=False)",
            ),
        ),
    ),
    Step(
        "greedy_steps",
        kind="t5",
        minutes=120,
        cells=(
            Cell("several greedy steps compile", "neuronx-cc accepts four unrolled steps", "docs/compile.md"),
            Cell(
                "several greedy steps tokens", "equal to transformers, fp32, several distinct", "the same graphs on CPU"
            ),
            Cell(
                "several greedy steps latency",
                "a call of four steps is faster than four calls",
                "docs/compile.md: each call has a fixed cost",
            ),
        ),
    ),
    Step(
        "base",
        kind="t5",
        minutes=360,
        cells=(
            Cell("FLAN-T5-base compiles", "neuronx-cc accepts its dimensions, twelve layers", "docs/compile.md"),
            Cell("weights are present", "no weight is missing or all zero on the device", f"{NXD}, set_weights"),
            Cell("device memory", "0.9 to 1.5 times weights and buffers, once per core", "docs/compile.md, sharing"),
            Cell("FLAN-T5-base runs", "every graph loads and runs", "the same graphs on CPU"),
            Cell(
                "FLAN-T5-base tokens",
                "equal to transformers, fp32, all batches and beams; prompts that join",
                "the same graphs on CPU",
            ),
            Cell("FLAN-T5-base verify", "passed", "compile/verify.py, on a CPU"),
            Cell("FLAN-T5-base latency", "no step is faster than its floor", "bytes that a step reads / HBM bandwidth"),
        ),
    ),
    Step(
        "cores",
        kind="t5",
        minutes=60,
        cells=(
            Cell(
                "both cores",
                "two processes have at least 1.9 times the throughput of one",
                f"{DOCS}, NeuronCore-v2: a core has separate memory and engines",
            ),
        ),
        needs="base",
    ),
    Step(
        "host",
        kind="t5",
        minutes=30,
        cells=(Cell("host time per step", "at most 0.3 ms (8 x 4), 0.1 ms (8 x 1)", "docs/performance.md"),),
    ),
    Step(
        "llama",
        kind="optimum",
        minutes=180,
        cells=(
            Cell("Llama compiles", "optimum-neuron exports it", "optimum-neuron 0.4.5"),
            Cell("Llama verify", "passed", "compile/verify.py, on a CPU"),
        ),
    ),
    Step(
        "training",
        kind="training",
        minutes=120,
        cells=(
            Cell("training", "a short run of a T5 completes", "optimum-neuron 0.4.5"),
            Cell("resume", "weights of an uninterrupted run, bit for bit", "XLA's CPU device, docs/training.md"),
        ),
    ),
)
CELLS = {cell.name: cell for step in STEPS for cell in step.cells}


@dataclass(frozen=True)
class Size:
    """The models of a receipt.

    Attributes:
        t5: The configuration of the T5 models, without the number of layers.
        llama: The configuration of the Llama.
        vocabulary: The size of the trained tokenizer.
        layers: The number of layers per side of the large T5.
        two_layers: Overrides for the two-layer T5; the first source length is short and the last one long.
        greedy_steps: Overrides for the two-layer T5 with graphs of several greedy steps.
        base: Overrides for the large T5.
        llama_shape: Overrides for the Llama.
        training: Overrides for the training.
        examples: The number of dialogues to compare.
        rounds: The number of repetitions of a measurement.
        searches: The number of steps of a search on the host, and the number of searches.
    """

    t5: dict[str, Any]
    llama: dict[str, Any]
    vocabulary: int
    layers: int
    two_layers: tuple[str, ...]
    greedy_steps: tuple[str, ...]
    base: tuple[str, ...]
    llama_shape: tuple[str, ...]
    training: tuple[str, ...]
    examples: int
    rounds: int
    searches: tuple[int, int]


_T5 = {"model_type": "t5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_SLOTS = "compile.adapters={slots: 2, rank: 4, target_modules: [q, v]}"
_SEVERAL = "compile.greedy_steps=4"
_NEURON = ("train.backend=neuron", "train.shapes.plan=fixed", "train.logging_steps=1")
SIZES: dict[SizeName, Size] = {
    "full": Size(
        t5={**_T5, "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_heads": 12, "vocab_size": 32128},
        llama={
            "model_type": "llama",
            "hidden_size": 512,
            "intermediate_size": 1024,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
        },
        vocabulary=1200,
        layers=12,
        two_layers=(
            "data.max_source_length=512",
            "generate.max_new_tokens=32",
            "compile.batch_sizes=[8]",
            "compile.source_lens=[96,512]",
            _SLOTS,
        ),
        greedy_steps=(
            "data.max_source_length=512",
            "generate.max_new_tokens=32",
            "compile.batch_sizes=[8]",
            _SEVERAL,
        ),
        base=(
            "data.max_source_length=512",
            "generate.max_new_tokens=128",
            "compile.batch_sizes=[1,8]",
            "compile.num_beams=[1,4]",
        ),
        llama_shape=("generate.max_new_tokens=32", "compile.batch_sizes=[4]"),
        training=(*_NEURON, "train.max_steps=40", "train.save_steps=10"),
        examples=12,
        rounds=10,
        searches=(128, 5),
    ),
    "micro": Size(
        t5={**_T5, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_heads": 2},
        llama={
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        vocabulary=400,
        layers=3,
        two_layers=(
            "generate.max_new_tokens=6",
            "compile.batch_sizes=[1]",
            "compile.source_lens=[96,192]",
            _SLOTS,
        ),
        greedy_steps=("generate.max_new_tokens=6", "compile.batch_sizes=[1]", _SEVERAL),
        base=("generate.max_new_tokens=6", "compile.batch_sizes=[2]", "compile.num_beams=[2]"),
        llama_shape=("generate.max_new_tokens=6", "compile.batch_sizes=[2]"),
        training=(
            *_NEURON,
            "train.max_steps=12",
            "train.save_steps=3",
            "data.max_examples=32",
            "data.max_validation_examples=4",
        ),
        examples=4,
        rounds=3,
        searches=(16, 1),
    ),
}
