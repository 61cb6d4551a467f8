"""Operators that the Neuron compilers list under XlaBuilder's names, and their opcodes in HLO text.

The published list is that of Inferentia1's compiler. neuronx-cc prints its list with the same command, which is not
tested: an operator that is missing from the list deserves attention, but may still compile.
"""

import re
import shutil
import subprocess

SOURCE = (
    "AWS Neuron documentation, archive/neuron-cc/neuron-cc-ops/neuron-cc-ops-xla: for Inferentia1's compiler, advisory"
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
"""The whole published list: the names on the page, and their opcodes."""
OTHERS = {
    "And": "and", "Or": "or", "LogicalOr": "or", "Not": "not", "Rem": "remainder", "Rev": "reverse",
    "BitcastConvertType": "bitcast-convert", "ConvGeneralDilated": "convolution", "Conv": "convolution",
    "Collapse": "reshape", "RngNormal": "rng",
}  # fmt: skip
"""Other names in XlaBuilder that differ from their opcodes: https://openxla.org/xla/operation_semantics."""
LIMITS = {
    "dynamic-update-slice": "Supports only for constant index",
    "gather": "Supports only disjoint start_index_map and remapped_offset_dims",
    "power": "Exponent argument must be a compile-time integer constant",
    "reduce": "Min, Max, Add and Mul are the only supported computations. Init_values must be constant",
    "rng-bit-generator": "Ignores user seed",
}
"""Limits of operators in the published list."""
RUN_TIME_INDEX = (
    "these graphs write\ntheir cache at a run-time index. The inference code of optimum-neuron does so for the row of "
    "a prompt, and writes a token by scatter\n(modules/kvcache/kv_cache_manager.py). If a compiler rejects it, use "
    "compile.neuron.cache_write=scatter or where"
)
"""Printed after the limit of dynamic-update-slice."""

_OPCODES = {name.lower(): opcode for name, opcode in {**PUBLISHED, **OTHERS}.items()}


def opcode(name: str) -> str:
    """The HLO opcode of an operator: ConvertElementType -> convert, ReduceWindow and reduce-window -> reduce-window.

    Args:
        name: The name in XlaBuilder, or the opcode.
    """
    kebab = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower().replace("_", "-")
    return _OPCODES.get(name.lower(), kebab)


def compiler_opcodes() -> frozenset[str] | None:
    """The opcodes that the compiler on PATH lists; None if there is no compiler or its output is not a list."""
    if shutil.which(COMMAND[0]) is None:
        return None
    output = subprocess.run(COMMAND, capture_output=True, text=True, check=False).stdout
    names = frozenset(opcode(name) for name in re.findall(r"[\w-]+", output))
    return names if {"add", "dot"} <= names else None
