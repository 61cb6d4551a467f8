"""Documented error codes of neuronx-cc that are visible in a graph before it is compiled.

The rules read the HLO that torch_xla passes to the compiler. `docs/compile.md` lists the codes that no graph shows. An
error is a code that stops the compiler; a warning is one that SDK 2.32 tolerates by default, at a loss of precision, or
that the list of AWS lacks.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from compile.preflight.hlo import VIEWS, Graph, Instruction

SOURCE = (
    "AWS Neuron documentation (aws-neuron/aws-neuron-sdk 81ce03ae, 2026-08-21), compiler/error-codes; read 2026-11-29"
)
INTEGERS = {f"{sign}{bits}" for sign in "su" for bits in (2, 4, 8, 16, 32, 64)}
WIDE = {"s32", "u32", "s64", "u64"}
DTYPES = {
    "c64": ("NCC_EVRF004", "a complex number"),
    "c128": ("NCC_EVRF004", "a complex number"),
    "f8e4m3fnuz": ("NCC_EVRF005", "a type without support"),
    "f8e4m3b11fnuz": ("NCC_EVRF005", "a type without support"),
    "f8e5m2fnuz": ("NCC_EVRF005", "a type without support"),
    "f8e4m3fn": ("NCC_ESPP047 or NCC_EVRF051", "a type without support before Trn3"),
    "f8e3m4": ("NCC_ESPP047", "a type without support [inferred]"),
    "f8e8m0fnu": ("NCC_ESPP047", "a type without support [inferred]"),
    "f4e2m1fn": ("NCC_ESPP004", "a type without support"),
    "f64": ("NCC_ESPP004", "a type that the device lacks [the code is inferred]"),
}
"""Codes of types; those of integers depend on the operator."""
UNSUPPORTED = {"triangular-solve"}
"""Operators that the documentation names as unsupported; others are compared with lists of operators (operators.py)."""
NEURON_CALLS = [
    "Erf",
    "Gelu",
    "GeluApprxTanh",
    "GeluBackward",
    "Silu",
    "SiluBackward",
    "RmsNorm",
    "Softmax",
    "SoftmaxBackward",
    "CollectiveMatmul",
    "IntMatmult",
    "ArgMax",
    "ArgMin",
    "TopK",
    "DropoutMaskV1",
    "CustomNativeKernel",
    "CustomOp",
    "DevicePrint",
    "LNCShardingConstraint",
    "TransferWithStaticRing",
    "ModuleMarkerStart-Forward",
    "ModuleMarkerStart-Backward",
    "ModuleMarkerEnd-Forward",
    "ModuleMarkerEnd-Backward",
]
CUSTOM_CALLS = {
    *(f"AwsNeuron{name}" for name in NEURON_CALLS),
    "ResizeNearest",
    "ResizeBilinear",
    "ResizeNearestGrad",
    "NeuronBoundaryMarker-Start",
    "NeuronBoundaryMarker-End",
}
"""The targets that the documentation of NCC_EHCA005 lists."""
MX_CALLS = {"QuantizeMX", "__op$block_scaled_dot"}
"""Targets with separate codes, NCC_EVRF036 to 058; they use types that only Trn3 and later support."""
LOSSY = (
    "SDK 2.32 computes it in {type} with a warning (2.26: [inferred]), and later compilers were announced to reject it"
)

Finding = tuple[str, str]
"""A code and its reason."""


@dataclass(frozen=True)
class Rejections:
    """The findings of one graph, as sentences with code, reason and instructions.

    Attributes:
        errors: The graph will not compile.
        warnings: It compiles at a loss of precision, or may not compile.
    """

    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def rejections(graph: Graph) -> Rejections:
    """Apply all rules to a graph."""
    errors: dict[Finding, list[str]] = defaultdict(list)
    warnings: dict[Finding, list[str]] = defaultdict(list)
    for node in (*graph.instructions.values(), *graph.combiners):
        for finding in _general(node):
            errors[finding].append(node.name)
    for node in graph.instructions.values():
        for finding in ERRORS[node.opcode](graph, node) if node.opcode in ERRORS else ():
            errors[finding].append(node.name)
        for finding in WARNINGS[node.opcode](graph, node) if node.opcode in WARNINGS else ():
            warnings[finding].append(node.name)
    return Rejections(_sentences(errors), _sentences(warnings))


def _sentences(findings: dict[Finding, list[str]]) -> tuple[str, ...]:
    return tuple(
        f"{code}: {reason} ({names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''})"
        for (code, reason), names in findings.items()
    )


def _general(node: Instruction) -> Iterator[Finding]:
    """Types, dimensions and operators."""
    for dtype in sorted({array.dtype for array in node.arrays} & DTYPES.keys()):
        code, reason = DTYPES[dtype]
        yield code, f"{dtype}, {reason}"
    if any(array.dynamic for array in node.arrays):
        yield "NCC_EMOD025", "a result with a dynamic dimension"
    if node.opcode in UNSUPPORTED:
        yield "NCC_EVRF001 or NCC_EUOC002", f"the operator {node.opcode} is not supported"


def _operand(graph: Graph, node: Instruction, place: int = 0) -> str:
    """The type of an operand."""
    return graph.instructions[node.operands[place]].array.dtype


def _constant(graph: Graph, node: Instruction) -> Iterator[Finding]:
    if node.array.dtype == "u64" and any(int(value) >= 2**32 for value in re.findall(r"\d+", node.value)):
        yield "NCC_ESFH002", "a u64 constant that does not fit into 32 bits"


def _custom_call(graph: Graph, node: Instruction) -> Iterator[Finding]:
    target = _attribute(node, r'custom_call_target="([^"]*)"')
    if target in MX_CALLS:
        yield "NCC_EVRF036 to NCC_EVRF058", f"a call of {target}, which needs Trn3"
    elif target not in CUSTOM_CALLS:
        yield "NCC_EHCA005 or NCC_EVRF015", f"a call of {target}, which is not among the listed targets"
    elif target == "AwsNeuronTopK":
        yield from _top_k(graph, node)


def _top_k(graph: Graph, node: Instruction) -> Iterator[Finding]:
    if (dtype := _operand(graph, node)) in WIDE:
        yield "NCC_EVRF013", f"a top-k or sort of {dtype}"


def _random(graph: Graph, node: Instruction) -> Iterator[Finding]:
    if (algorithm := _attribute(node, r"algorithm=(\w+)")) != "rng_default":
        yield "NCC_EVRF006", f"random numbers by {algorithm} instead of rng_default"


def _convolution(graph: Graph, node: Instruction) -> Iterator[Finding]:
    if _window(node, "lhs_dilate"):
        if _window(node, "rhs_dilate"):
            yield "NCC_EVRF010", "a convolution that dilates input and kernel"
        if _window(node, "stride"):
            yield "NCC_EVRF011", "a convolution with stride and dilated input"


def _reduce_window(graph: Graph, node: Instruction) -> Iterator[Finding]:
    if _window(node, "lhs_dilate"):
        yield "NCC_EVRF017", "a reduce-window that dilates its input"
    if _window(node, "rhs_dilate"):
        yield "NCC_EVRF018", "a reduce-window that dilates its window"
    if len(node.operands) != 2:
        yield "NCC_EVRF019", f"a reduce-window of {len(node.operands)} operands instead of 2"


def _shift(graph: Graph, node: Instruction) -> Iterator[Finding]:
    if (dtype := _operand(graph, node)) not in ("s32", "u32", "f32"):
        yield "NCC_EVRF022", f"an arithmetic right shift of {dtype} instead of 32 bits"


def _scatter(graph: Graph, node: Instruction) -> Iterator[Finding]:
    dtype = _operand(graph, node)
    applied = graph.applied.get(_attribute(node, r"to_apply=%?([\w.\-]+)"), ())
    if applied and (dtype in INTEGERS or dtype == "pred"):
        yield "NCC_EVRF016 or NCC_EVRF060", f"a scatter that reduces {dtype}"
    yield from _indices(graph, node, "NCC_EVRF031", r"scatter_dims_to_operand_dims=\{([\d,]*)\}")


def _gather(graph: Graph, node: Instruction) -> Iterator[Finding]:
    yield from _indices(graph, node, "NCC_EVRF056", r"start_index_map=\{([\d,]*)\}")


def _indices(graph: Graph, node: Instruction, code: str, pattern: str) -> Iterator[Finding]:
    """Indices beyond a dimension: known for iota, which the given code is about, and for constants."""
    dims = graph.instructions[node.operands[0]].array.dims
    targets = [int(dim) for dim in _attribute(node, pattern).split(",") if dim]
    indices = graph.instructions[node.operands[len(node.operands) // 2]]
    parts = indices.operands if indices.opcode == "concatenate" else (indices.name,)
    if len(parts) != len(targets):
        return
    for target, part in zip(targets, parts, strict=True):
        source = _source(graph, part)
        largest = _largest(source)
        if largest is not None and largest >= dims[target]:
            yield (
                code if source.opcode == "iota" else "NCC_ESMP002",
                f"a {node.opcode} of index {largest} in a dimension of {dims[target]}",
            )


def _source(graph: Graph, name: str) -> Instruction:
    """The instruction that the values of indices come from."""
    node = graph.instructions[name]
    if node.opcode in (*VIEWS, "broadcast") or (node.opcode == "concatenate" and len(node.operands) == 1):
        return _source(graph, node.operands[0])
    if node.opcode == "select" and node.operands[2] in graph.instructions[node.operands[1]].operands:
        return _source(graph, node.operands[2])  # torch adds the size to negative indices
    return node


def _largest(node: Instruction) -> int | None:
    """The largest value; None if it is known only at run time, or not in the text."""
    if node.opcode == "iota":
        return node.array.dims[int(_attribute(node, r"iota_dimension=(\d+)"))] - 1
    values = re.findall(r"-?\d+", node.value) if node.opcode == "constant" and "..." not in node.value else []
    return max(map(int, values), default=None)


def _dot(graph: Graph, node: Instruction) -> Iterator[Finding]:
    if (dtype := _operand(graph, node)) in ("s64", "u64"):
        yield "NCC_EVRF035", f"a matrix product of {dtype}: {LOSSY.format(type='f32')}"


def _collective(graph: Graph, node: Instruction) -> Iterator[Finding]:
    code = "NCC_EVRF061" if node.opcode == "all-reduce" else "NCC_EVRF063"
    if (dtype := _operand(graph, node)) in WIDE:
        yield code, f"{node.opcode} of {dtype}: {LOSSY.format(type='f32')}"


def _power(graph: Graph, node: Instruction) -> Iterator[Finding]:
    if (dtype := _operand(graph, node)) in ("s64", "u64"):
        yield "NCC_EVRF062", f"a power of {dtype}: {LOSSY.format(type='s32')}"


def _sort(graph: Graph, node: Instruction) -> Iterator[Finding]:
    rank = len(graph.instructions[node.operands[0]].array.dims)
    if rank != 2 or _attribute(node, r"dimensions=\{(\d+)\}") != "1":
        yield (
            "NCC_EVRF029",
            (
                f"a sort of rank {rank}: public reports for Trn2 say that only a top-k over the last of two dimensions "
                "becomes the device's top-k, and others are rejected (the code is not in the list of AWS; Inf2 and "
                "Trn1: [inferred])"
            ),
        )


def _attribute(node: Instruction, pattern: str) -> str:
    match = re.search(pattern, node.attributes)
    return match[1] if match else ""


def _window(node: Instruction, name: str) -> bool:
    """Whether a size of the window differs from 1."""
    sizes = re.search(rf"window=\{{[^}}]*\b{name}=([\dx]+)", node.attributes)
    return sizes is not None and any(size != "1" for size in sizes[1].split("x"))


ERRORS: dict[str, Callable[[Graph, Instruction], Iterator[Finding]]] = {
    "constant": _constant,
    "convolution": _convolution,
    "custom-call": _custom_call,
    "gather": _gather,
    "reduce-window": _reduce_window,
    "rng-bit-generator": _random,
    "scatter": _scatter,
    "shift-right-arithmetic": _shift,
    "sort": _top_k,
    "topk": _top_k,
}
"""Rules by operator whose findings are errors."""
WARNINGS: dict[str, Callable[[Graph, Instruction], Iterator[Finding]]] = {
    "all-reduce": _collective,
    "dot": _dot,
    "power": _power,
    "reduce-scatter": _collective,
    "sort": _sort,
}
"""Rules by operator whose findings are warnings."""
