"""Analysis of HLO text: the operators and types of a graph, its operations, and the bytes that it must move.

The bytes are a lower bound that depends only on the graph, by the same rules for every graph:

- a parameter is read completely, once, regardless of the number of readers; if only parts are read (gather, slice,
  dynamic-slice), only those are; if it is only passed through, nothing is read;
- an output is written completely; if it is a parameter that is passed through, the two share a buffer and nothing is
  written; if it is a parameter that columns are written into (dynamic-update-slice, scatter), only those columns are;
- intermediate results are free, as if everything were fused. A cache that is gathered by beam is thus read and written.

HLO is the form in which torch_xla passes graphs to a compiler: https://openxla.org/xla/operation_semantics.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "f4e2m1fn": 4, "f8e3m4": 8, "f8e4m3": 8, "f8e4m3fn": 8, "f8e4m3fnuz": 8, "f8e4m3b11fnuz": 8,
    "f8e5m2": 8, "f8e5m2fnuz": 8, "f8e8m0fnu": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
    "token": 0,
}  # fmt: skip
WRITES = {"dynamic-update-slice": 1, "scatter": 2}
"""Operators that change a part of their first operand, and the index of the operand with the new part."""
LOOKUPS = ("gather", "dynamic-slice", "slice")
VIEWS = ("reshape", "transpose", "bitcast", "copy", "convert")
"""The same numbers in another order or type: a reader of the view reads its operand."""
RESIZING = ("broadcast", "concatenate", "slice", "pad")
"""Also views, if they do not change the number of elements."""
UNSTORED = (*VIEWS, "parameter", "constant", "iota", "broadcast", "tuple", "get-tuple-element")
"""Results that need no separate memory."""

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,<=?]*)\]")


@dataclass(frozen=True)
class Array:
    """Type and dimensions of one result.

    Attributes:
        dtype: The name of the type in HLO.
        dims: The dimensions; for a dynamic one, its bound, or 0 without a bound.
        dynamic: Whether a dimension is dynamic.
    """

    dtype: str
    dims: tuple[int, ...]
    dynamic: bool = False

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return self.size * BITS[self.dtype] // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: The name, unique in its computation.
        opcode: The name of the operator in HLO.
        arrays: The result; several arrays for a tuple.
        operands: The names of the operands.
        attributes: The text after the operands.
        number: The number of a parameter.
        value: The text of a constant.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    number: int = 0
    value: str = ""

    @property
    def array(self) -> Array:
        """The result of an instruction with a single result."""
        return self.arrays[0]


@dataclass(frozen=True)
class Graph:
    """The entry computation, with calls inlined.

    Attributes:
        instructions: The instructions by name, operands before their users.
        root: The name of the result.
        applied: The instructions of the small computations that reduce, scatter and sort apply, by its name.
    """

    instructions: Mapping[str, Instruction]
    root: str
    applied: Mapping[str, tuple[Instruction, ...]] = field(default_factory=dict)

    @property
    def combiners(self) -> tuple[Instruction, ...]:
        """The instructions of all applied computations."""
        return tuple(node for nodes in self.applied.values() for node in nodes)

    @property
    def parameters(self) -> list[Instruction]:
        """The parameters in order of their numbers."""
        parameters = [node for node in self.instructions.values() if node.opcode == "parameter"]
        return sorted(parameters, key=lambda node: node.number)

    @property
    def outputs(self) -> list[str]:
        """The names of the results."""
        root = self.instructions[self.root]
        return list(root.operands) if root.opcode == "tuple" else [root.name]


@dataclass(frozen=True)
class Account:
    """The contents of a graph, and the costs of one call.

    Attributes:
        operators: The number of uses of each operator.
        dtypes: The number of results of each type.
        dynamic: Names of results with a dynamic dimension.
        flops: Operations of the matrix products by type of the operands; a multiplication and an addition count as two.
        read: Bytes of parameters that one call must read.
        written: Bytes of outputs that one call must write.
        parameters: Bytes of all parameters.
        activations: An upper bound of the bytes of results alive at once, in the order of the text and without fusion.
        in_place: The number of outputs that are only partly written.
    """

    operators: dict[str, int]
    dtypes: dict[str, int]
    dynamic: tuple[str, ...]
    flops: dict[str, int]
    read: int
    written: int
    parameters: int
    activations: int
    in_place: int = field(default=0)

    @property
    def moved(self) -> int:
        """Bytes read and written."""
        return self.read + self.written

    @property
    def total_flops(self) -> int:
        """Operations of all types."""
        return sum(self.flops.values())


def account(text: str) -> Account:
    """The account of one module.

    Args:
        text: The text of an HLO module, including the names of operands.

    Raises:
        ValueError: If there is no entry computation, or a type is unknown.
    """
    return account_of(parse(text))


def account_of(graph: Graph) -> Account:
    """The account of a parsed module."""
    instructions = [*graph.instructions.values(), *graph.combiners]
    written, in_place = _written(graph)
    return Account(
        operators=dict(Counter(node.opcode for node in instructions).most_common()),
        dtypes=dict(Counter(array.dtype for node in instructions for array in node.arrays).most_common()),
        dynamic=tuple(node.name for node in instructions if any(array.dynamic for array in node.arrays)),
        flops=dict(_flops(graph)),
        read=sum(bytes_read(graph).values()),
        written=written,
        parameters=sum(node.array.nbytes for node in graph.parameters),
        activations=_activations(graph),
        in_place=in_place,
    )


def parse(text: str) -> Graph:
    """The entry computation of a module, with calls inlined.

    Raises:
        ValueError: If there is no entry computation, or a type is unknown.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    roots: dict[str, str] = {}
    entry = current = None
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if header := _COMPUTATION.match(line):
            current = header[2]
            computations[current] = {}
            entry = current if header[1] else entry
        elif (match := _INSTRUCTION.match(line)) and current is not None:
            is_root, name, shape, opcode, rest = match.groups()
            computations[current][name] = _instruction(name, shape, opcode, rest)
            if is_root:
                roots[current] = name
    if entry is None or entry not in roots:
        raise ValueError("no entry computation: the text is not an HLO module")
    flat = {node.name: node for node in _inlined(computations, roots, entry, "", {})}
    called = set(re.findall(r"to_apply=%?([\w.\-]+)", " ".join(node.attributes for node in flat.values())))
    applied = {
        name: tuple(node for node in computations[name].values() if node.opcode != "parameter")
        for name in sorted(called)
    }
    return Graph(flat, roots[entry], applied)


def _instruction(name: str, shape: str, opcode: str, rest: str) -> Instruction:
    depth, end = 1, 0
    while depth and end < len(rest):
        depth += {"(": 1, ")": -1}.get(rest[end], 0)
        end += 1
    content = rest[: end - 1]
    arrays = tuple(_array(dtype, dims) for dtype, dims in _ARRAY.findall(shape))
    if opcode == "parameter":
        return Instruction(name, opcode, arrays, (), rest[end:], int(content))
    if opcode == "constant":
        return Instruction(name, opcode, arrays, (), rest[end:], value=content)
    return Instruction(name, opcode, arrays, tuple(re.findall(r"%([\w.\-]+)", content)), rest[end:])


def _array(dtype: str, dims: str) -> Array:
    if dtype not in BITS:
        raise ValueError(f"type {dtype} is not known; known types: {', '.join(BITS)}")
    sizes = tuple(int(size.lstrip("<=").replace("?", "0")) for size in dims.split(",") if size)
    return Array(dtype, sizes, "<=" in dims or "?" in dims)


def _inlined(
    computations: Mapping[str, Mapping[str, Instruction]],
    roots: Mapping[str, str],
    name: str,
    prefix: str,
    arguments: Mapping[int, str],
) -> Iterator[Instruction]:
    """The instructions of a computation with calls inlined; parameters become the operands of the caller."""
    renamed: dict[str, str] = {}
    for node in computations[name].values():
        operands = tuple(renamed[operand] for operand in node.operands)
        if node.opcode == "parameter" and arguments:
            renamed[node.name] = arguments[node.number]
        elif node.opcode == "call":
            target = re.findall(r"to_apply=%?([\w.\-]+)", node.attributes)[0]
            inner = list(_inlined(computations, roots, target, f"{prefix}{node.name}/", dict(enumerate(operands))))
            yield from inner
            # The callee's root, or the operand if the callee returns a parameter.
            root = computations[target][roots[target]]
            renamed[node.name] = operands[root.number] if root.opcode == "parameter" else inner[-1].name
        else:
            renamed[node.name] = prefix + node.name
            yield replace(node, name=prefix + node.name, operands=operands)


def _flops(graph: Graph) -> Counter[str]:
    flops: Counter[str] = Counter()
    for node in graph.instructions.values():
        if node.opcode == "dot":
            left = graph.instructions[node.operands[0]].array
            dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", node.attributes)
            shared = math.prod(left.dims[int(dim)] for dim in dims[1].split(",") if dim) if dims else 1
            flops[left.dtype] += 2 * node.array.size * shared
    return flops


def _is_view(graph: Graph, node: Instruction) -> bool:
    if node.opcode in VIEWS:
        return True
    same = len(node.operands) == 1 and graph.instructions[node.operands[0]].array.size == node.array.size
    return node.opcode in RESIZING and same


def bytes_read(graph: Graph) -> dict[str, int]:
    """The bytes of each parameter that its readers need, by name."""
    users: dict[str, list[tuple[Instruction, int]]] = defaultdict(list)
    for node in graph.instructions.values():
        for place, operand in enumerate(node.operands):
            users[operand].append((node, place))

    def readers(name: str) -> Iterator[tuple[Instruction, int]]:
        """The instructions that read the numbers of a buffer, through views and after writes into it."""
        for user, place in users[name]:
            if _is_view(graph, user) or (user.opcode in WRITES and place == 0):
                yield from readers(user.name)
            elif not (user.name == graph.root and user.opcode == "tuple"):
                yield user, place

    def elements(lookup: Instruction) -> int:
        """The elements that a lookup reads; of a slice that is only sliced again, those of the smaller slices."""
        following = [user for user, _ in users[lookup.name]]
        if following and all(user.opcode == "slice" for user in following):
            return min(lookup.array.size, total(following))
        return lookup.array.size

    def total(lookups: list[Instruction]) -> int:
        """The elements that lookups in the same tensor read; equal slices are read once."""
        once = {each.attributes if each.opcode == "slice" else each.name: each for each in lookups}
        return sum(map(elements, once.values()))

    needed = {}
    for parameter in graph.parameters:
        size, value_readers = parameter.array.nbytes, list(readers(parameter.name))
        if all(user.opcode in LOOKUPS and place == 0 for user, place in value_readers):
            rows = total([user for user, _ in value_readers])
            size = min(size, rows * BITS[parameter.array.dtype] // 8)
        needed[parameter.name] = size
    return needed


def _written(graph: Graph) -> tuple[int, int]:
    """The bytes that the outputs need, and the number of outputs that are only partly written."""
    total, in_place, returned = 0, 0, set()
    for output in graph.outputs:
        node, part = graph.instructions[output], 0
        array = node.array
        while True:
            if node.opcode in WRITES:
                part += graph.instructions[node.operands[WRITES[node.opcode]]].array.nbytes
            elif not _is_view(graph, node):
                break
            node = graph.instructions[node.operands[0]]
        # A buffer can be returned only once, and only with its type and shape.
        if node.opcode == "parameter" and node.array == array and node.name not in returned:
            returned.add(node.name)
            total += part
            in_place += part > 0
        else:
            total += array.nbytes
    return total, in_place


def _activations(graph: Graph) -> int:
    """The maximum of bytes alive, if results are computed in this order and each is freed after its last use."""
    order = list(graph.instructions.values())
    stored: dict[str, str] = {}  # name of the result that owns the memory, by name of the result that uses it
    for node in order:
        shared = node.opcode in WRITES or (_is_view(graph, node) and node.opcode != "convert")
        stored[node.name] = stored[node.operands[0]] if shared else node.name
    last = {stored[operand]: index for index, node in enumerate(order) for operand in node.operands}
    freed: dict[int, list[str]] = defaultdict(list)
    for name, index in last.items():
        freed[index].append(name)
    sizes = {
        node.name: sum(array.nbytes for array in node.arrays)
        for node in order
        if stored[node.name] == node.name and (node.opcode == "convert" or node.opcode not in UNSTORED)
    }
    alive = peak = 0
    for index, node in enumerate(order):
        alive += sizes.get(node.name, 0)
        peak = max(peak, alive)
        alive -= sum(sizes.get(name, 0) for name in freed[index])
    return peak
