"""Operators by XlaBuilder's names, as AWS's compilers list them, and by HLO's opcodes, as a graph's text has them.

The list that is published is of Inferentia1's compiler. neuronx-cc's own has the same command, but was never seen here:
whatever it does not name is worth a look, and proves nothing.
"""

import re
import shutil
import subprocess

SOURCE = (
    "AWS Neuron documentation, archive/neuron-cc/neuron-cc-ops/neuron-cc-ops-xla: of Inferentia1's compiler, advisory"
)
COMMAND = ("neuronx-cc", "list-operators", "--framework", "XLA")

PUBLISHED = {
    "Abs": "abs", "Add": "add", "Allgather": "all-gather", "Allreduce": "all-reduce", "Atan2": "atan2",
    "Batchnorm": "batch-norm-training", "Batchnormgrad": "batch-norm-grad",
    "Batchnorminference": "batch-norm-inference", "Broadcast": "broadcast", "BroadcastInDim": "broadcast",
    "Ceil": "ceil", "Clamp": "clamp", "Compare": "compare", "Concatenate": "concatenate", "Constant": "constant",
    "ConstantLiteral": "constant", "ConvertElementType": "convert", "Cos": "cosine", "Customcall": "custom-call",
    "Div": "divide", "Dot": "dot", "DotGeneral": "dot", "DynamicUpdateSlice": "dynamic-update-slice", "Eq": "compare",
    "Exp": "exponential", "Floor": "floor", "Gather": "gather", "Ge": "compare", "GetTupleElement": "get-tuple-element",
    "Gt": "compare", "Iota": "iota", "Le": "compare", "Log": "log", "LogicalAnd": "and", "LogicalNot": "not",
    "Lt": "compare", "Max": "maximum", "Min": "minimum", "Mul": "multiply", "Ne": "compare", "Neg": "negate",
    "Pad": "pad", "Pow": "power", "Reduce": "reduce", "Reshape": "reshape", "RngBitGenerator": "rng-bit-generator",
    "RngUniform": "rng", "Rsqrt": "rsqrt", "Scatter": "scatter", "Select": "select",
    "ShiftRightLogical": "shift-right-logical", "Sign": "sign", "Sin": "sine", "Slice": "slice", "Sqrt": "sqrt",
    "Sub": "subtract", "Tanh": "tanh", "Transpose": "transpose", "Tuple": "tuple",
}  # fmt: skip
"""The whole published list: the page's names, and the opcodes that they become."""
OTHERS = {
    "And": "and", "Or": "or", "LogicalOr": "or", "Not": "not", "Rem": "remainder", "Rev": "reverse",
    "BitcastConvertType": "bitcast-convert", "ConvGeneralDilated": "convolution", "Conv": "convolution",
    "Collapse": "reshape", "RngNormal": "rng",
}  # fmt: skip
"""XlaBuilder's other names that are not their opcode's: https://openxla.org/xla/operation_semantics."""
LIMITS = {
    "dynamic-update-slice": "Supports only for constant index",
    "gather": "Supports only disjoint start_index_map and remapped_offset_dims",
    "power": "Exponent argument must be a compile-time integer constant",
    "reduce": "Min, Max, Add and Mul are the only supported computations. Init_values must be constant",
    "rng-bit-generator": "Ignores user seed",
}
"""What the published list says beside an operator."""
RUN_TIME_INDEX = (
    "these graphs write\ntheir cache at a run-time index, as does optimum-neuron's own inference code "
    "(modules/kvcache/utils.py); for a compiler\nthat refuses it: compile.neuron.cache_write=where"
)
"""Beside the limit on dynamic-update-slice."""

_OPCODES = {name.lower(): opcode for name, opcode in {**PUBLISHED, **OTHERS}.items()}


def opcode(name: str) -> str:
    """HLO's opcode of an operator: ConvertElementType -> convert, ReduceWindow and reduce-window -> reduce-window.

    Args:
        name: XlaBuilder's, or the opcode itself.
    """
    kebab = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower().replace("_", "-")
    return _OPCODES.get(name.lower(), kebab)


def listed() -> frozenset[str] | None:
    """Opcodes that the compiler on PATH says it knows; None without one, or where its answer is no such list."""
    if shutil.which(COMMAND[0]) is None:
        return None
    answer = subprocess.run(COMMAND, capture_output=True, text=True, check=False).stdout
    names = frozenset(opcode(name) for name in re.findall(r"[\w-]+", answer))
    return names if {"add", "dot"} <= names else None
