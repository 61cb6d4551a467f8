"""HLO text: which operators and types a graph uses, what it computes, and the bytes that it must move.

The bytes are a lower bound that follows from the graph alone, by the same rules for every graph:

- a parameter is read whole, once, however many read it; if it is only looked up (gather, dynamic-slice) its rows are,
  and if it is only passed through, nothing is;
- an output is written whole; if it is a parameter passed through, the two are one buffer and nothing is written; if it
  is a parameter into which columns are written (dynamic-update-slice, scatter), those columns are;
- what lies between is free, as if all of it were fused. A cache that is gathered by beam is so read and written.

HLO is what torch_xla hands to a compiler: https://openxla.org/xla/operation_semantics.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64,
    "f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "token": 0,
}  # fmt: skip
WRITES = {"dynamic-update-slice": 1, "scatter": 2}
"""Operators that change a part of their first operand, and which operand holds that part."""
LOOKUPS = ("gather", "dynamic-slice")
VIEWS = ("reshape", "transpose", "bitcast", "copy", "convert")
"""The same numbers in another order or type: what reads one reads its operand."""
RESIZING = ("broadcast", "concatenate", "slice", "pad")
"""Views too, where they happen to keep the number of elements."""
UNSTORED = (*VIEWS, "parameter", "constant", "iota", "broadcast", "tuple", "get-tuple-element")
"""Results that need no memory of their own."""

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\]")


@dataclass(frozen=True)
class Array:
    """Type and dimensions of one result.

    Attributes:
        dtype: HLO's name of it.
        dims: Of a dynamic dimension, its bound.
        dynamic: Whether one is.
    """

    dtype: str
    dims: tuple[int, ...]
    dynamic: bool = False

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.size * BITS[self.dtype] // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: Unique in its computation.
        opcode: HLO's name of the operator.
        arrays: Its result; several for a tuple.
        operands: Names.
        attributes: What follows the operands, as it stands.
        number: Of a parameter.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    number: int = 0

    @property
    def array(self) -> Array:
        """Its result, where it has one."""
        return self.arrays[0]


@dataclass(frozen=True)
class Graph:
    """The entry computation, with what it calls written into it.

    Attributes:
        instructions: By name, operands before what uses them.
        root: The name of its result.
        combiners: Operators of the small computations that reduce and scatter apply.
    """

    instructions: Mapping[str, Instruction]
    root: str
    combiners: tuple[Instruction, ...] = ()

    @property
    def parameters(self) -> list[Instruction]:
        """In order."""
        found = [each for each in self.instructions.values() if each.opcode == "parameter"]
        return sorted(found, key=lambda each: each.number)

    @property
    def outputs(self) -> list[str]:
        """Names of its results."""
        root = self.instructions[self.root]
        return list(root.operands) if root.opcode == "tuple" else [root.name]


@dataclass(frozen=True)
class Account:
    """What a graph is made of, and what one call costs.

    Attributes:
        operators: How often each is used.
        dtypes: How many results have each type.
        dynamic: Names of results with a dynamic dimension.
        flops: Of its matrix products, by their operands' type: a multiplication and an addition are two.
        read: Bytes of parameters that one call must read.
        written: Bytes of outputs that one call must write.
        parameters: Bytes of all parameters.
        activations: Bytes of results alive at once, in the text's order and with nothing fused: at most so many.
        in_place: Outputs of which only a part is written.
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
        """Of all types."""
        return sum(self.flops.values())


def account(text: str) -> Account:
    """Counts one module.

    Args:
        text: Of an HLO module, operands' names given.

    Raises:
        ValueError: If there is no entry computation, or a type that is not known.
    """
    graph = parse(text)
    every = [*graph.instructions.values(), *graph.combiners]
    written, in_place = _written(graph)
    return Account(
        operators=dict(Counter(each.opcode for each in every).most_common()),
        dtypes=dict(Counter(array.dtype for each in every for array in each.arrays).most_common()),
        dynamic=tuple(each.name for each in every if any(array.dynamic for array in each.arrays)),
        flops=dict(_flops(graph)),
        read=sum(bytes_read(graph).values()),
        written=written,
        parameters=sum(each.array.nbytes for each in graph.parameters),
        activations=_activations(graph),
        in_place=in_place,
    )


def parse(text: str) -> Graph:
    """The entry computation of a module; calls are replaced by what they call.

    Raises:
        ValueError: If there is no entry computation, or a type that is not known.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    roots: dict[str, str] = {}
    entry = current = None
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if opened := _COMPUTATION.match(line):
            current = opened[2]
            computations[current] = {}
            entry = current if opened[1] else entry
        elif (found := _INSTRUCTION.match(line)) and current is not None:
            is_root, name, shape, opcode, rest = found.groups()
            computations[current][name] = _instruction(name, shape, opcode, rest)
            if is_root:
                roots[current] = name
    if entry is None or entry not in roots:
        raise ValueError("no entry computation: is this HLO text?")
    flat = {each.name: each for each in _inlined(computations, roots, entry, "", {})}
    called = set(re.findall(r"to_apply=%?([\w.\-]+)", " ".join(each.attributes for each in flat.values())))
    combiners = [each for name in sorted(called) for each in computations[name].values() if each.opcode != "parameter"]
    return Graph(flat, roots[entry], tuple(combiners))


def _instruction(name: str, shape: str, opcode: str, rest: str) -> Instruction:
    depth, end = 1, 0
    while depth and end < len(rest):
        depth += {"(": 1, ")": -1}.get(rest[end], 0)
        end += 1
    inside = rest[: end - 1]
    arrays = tuple(_array(dtype, dims) for dtype, dims in _ARRAY.findall(shape))
    if opcode == "parameter":
        return Instruction(name, opcode, arrays, (), rest[end:], int(inside))
    operands = () if opcode == "constant" else tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(name, opcode, arrays, operands, rest[end:])


def _array(dtype: str, dims: str) -> Array:
    if dtype not in BITS:
        raise ValueError(f"type {dtype} is not known; there are {', '.join(BITS)}")
    sizes = tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
    return Array(dtype, sizes, "<=" in dims)


def _inlined(
    computations: Mapping[str, Mapping[str, Instruction]],
    roots: Mapping[str, str],
    name: str,
    prefix: str,
    arguments: Mapping[int, str],
) -> Iterator[Instruction]:
    """A computation's instructions with calls written out; parameters become the caller's operands."""
    renamed: dict[str, str] = {}
    for each in computations[name].values():
        operands = tuple(renamed[operand] for operand in each.operands)
        if each.opcode == "parameter" and arguments:
            renamed[each.name] = arguments[each.number]
        elif each.opcode == "call":
            target = re.findall(r"to_apply=%?([\w.\-]+)", each.attributes)[0]
            inner = list(_inlined(computations, roots, target, f"{prefix}{each.name}/", dict(enumerate(operands))))
            yield from inner
            # The callee's root, or, where it is a parameter handed back, the operand itself.
            root = computations[target][roots[target]]
            renamed[each.name] = operands[root.number] if root.opcode == "parameter" else inner[-1].name
        else:
            renamed[each.name] = prefix + each.name
            yield replace(each, name=prefix + each.name, operands=operands)


def _flops(graph: Graph) -> Counter[str]:
    found: Counter[str] = Counter()
    for each in graph.instructions.values():
        if each.opcode == "dot":
            left = graph.instructions[each.operands[0]].array
            dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", each.attributes)
            shared = math.prod(left.dims[int(dim)] for dim in dims[1].split(",") if dim) if dims else 1
            found[left.dtype] += 2 * each.array.size * shared
    return found


def _is_view(graph: Graph, each: Instruction) -> bool:
    if each.opcode in VIEWS:
        return True
    same = len(each.operands) == 1 and graph.instructions[each.operands[0]].array.size == each.array.size
    return each.opcode in RESIZING and same


def bytes_read(graph: Graph) -> dict[str, int]:
    """Bytes that each parameter's readers need of it, by its name."""
    users: dict[str, list[tuple[Instruction, int]]] = defaultdict(list)
    for each in graph.instructions.values():
        for place, operand in enumerate(each.operands):
            users[operand].append((each, place))

    def readers(name: str) -> Iterator[tuple[Instruction, int]]:
        """Whoever reads the numbers of this buffer, through views and after writes into it."""
        for user, place in users[name]:
            if _is_view(graph, user) or (user.opcode in WRITES and place == 0):
                yield from readers(user.name)
            elif not (user.name == graph.root and user.opcode == "tuple"):
                yield user, place

    needed = {}
    for parameter in graph.parameters:
        whole, found = parameter.array.nbytes, list(readers(parameter.name))
        if all(user.opcode in LOOKUPS and place == 0 for user, place in found):
            rows = sum(user.array.size for user, _ in found) * BITS[parameter.array.dtype] // 8
            whole = min(whole, rows)
        needed[parameter.name] = whole
    return needed


def _written(graph: Graph) -> tuple[int, int]:
    """Bytes that the outputs need, and how many of them are written in part."""
    total, in_place, taken = 0, 0, set()
    for output in graph.outputs:
        each, part = graph.instructions[output], 0
        array = each.array
        while True:
            if each.opcode in WRITES:
                part += graph.instructions[each.operands[WRITES[each.opcode]]].array.nbytes
            elif not _is_view(graph, each):
                break
            each = graph.instructions[each.operands[0]]
        # A buffer can be handed back only once, and only as what it was.
        if each.opcode == "parameter" and each.array == array and each.name not in taken:
            taken.add(each.name)
            total += part
            in_place += part > 0
        else:
            total += array.nbytes
    return total, in_place


def _activations(graph: Graph) -> int:
    """The most bytes alive at a time, if results are made in this order and each is dropped after its last use."""
    order = list(graph.instructions.values())
    stored: dict[str, str] = {}  # whose memory a name lies in
    for each in order:
        shared = each.opcode in WRITES or (_is_view(graph, each) and each.opcode != "convert")
        stored[each.name] = stored[each.operands[0]] if shared else each.name
    last = {stored[operand]: index for index, each in enumerate(order) for operand in each.operands}
    dies: dict[int, list[str]] = defaultdict(list)
    for name, index in last.items():
        dies[index].append(name)
    own = {
        each.name: sum(array.nbytes for array in each.arrays)
        for each in order
        if stored[each.name] == each.name and (each.opcode == "convert" or each.opcode not in UNSTORED)
    }
    alive = most = 0
    for index, each in enumerate(order):
        alive += own.get(each.name, 0)
        most = max(most, alive)
        alive -= sum(own.get(name, 0) for name in dies[index])
    return most
