"""Modules to HLO: torch_neuronx.xla_impl.trace, its structures and its protocol buffers."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_xla
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from libneuronxla import record
from torch import Tensor, nn

DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.int32, torch.bool, torch.uint8)


def messages(name: str, fields: Mapping[str, Mapping[str, tuple[int, str]]]) -> dict[str, Any]:
    """Message classes.

    Args:
        name: The package.
        fields: By message and field: the number and the type, after * if repeated; a known message, or a scalar.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"{name}.proto", package=name, syntax="proto3")
    for message, content in fields.items():
        described = file.message_type.add(name=message)
        for field, (number, kind) in content.items():
            added = described.field.add(name=field, number=number, label=3 if kind[0] == "*" else 1)
            kind = kind.lstrip("*")
            if kind.startswith("map "):
                key, value = kind.removeprefix("map ").split()
                entry = described.nested_type.add(name=f"{field.title().replace('_', '')}Entry")
                entry.options.map_entry = True
                for at, (part, scalar) in enumerate((("key", key), ("value", value)), 1):
                    entry.field.add(name=part, number=at, label=1, type=SCALARS[scalar])
                added.label, added.type, added.type_name = 3, 11, f".{name}.{message}.{entry.name}"
            elif kind in SCALARS:
                added.type = SCALARS[kind]
            else:
                added.type, added.type_name = 11, f".{name}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        message: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{name}.{message}")) for message in fields
    }


SCALARS = {"int64": 3, "int32": 5, "string": 9, "bytes": 12}
HLO = messages(
    "xla",
    {
        "FrontendAttributes": {"map": (1, "map string string")},
        "HloInstructionProto": {
            "name": (1, "string"),
            "opcode": (2, "string"),
            "parameter_number": (9, "int64"),
            "custom_call_target": (28, "string"),
            "id": (35, "int64"),
            "operand_ids": (36, "*int64"),
            "called_computation_ids": (38, "*int64"),
            "frontend_attributes": (68, "FrontendAttributes"),
        },
        "HloComputationProto": {
            "name": (1, "string"),
            "instructions": (2, "*HloInstructionProto"),
            "id": (5, "int64"),
            "root_id": (6, "int64"),
        },
        "HloModuleProto": {
            "name": (1, "string"),
            "computations": (3, "*HloComputationProto"),
            "entry_computation_id": (6, "int64"),
            "frontend_attributes": (19, "FrontendAttributes"),
        },
    },
)
"""The fields of XLA's hlo.proto that upstream reads; the others are kept as unknown fields."""
METANEFF = messages(
    "metaneff",
    {
        "MetaTensor": {
            "shape": (1, "*int64"),
            "data_type": (2, "int32"),
            "type": (3, "int32"),
            "checkpoint_key": (4, "bytes"),
            "user_input_key": (5, "bytes"),
            "parameter": (6, "int64"),
            "content": (7, "bytes"),
        },
        "MetaNeff": {
            "input_tensors": (1, "*MetaTensor"),
            "output_tensors": (2, "*MetaTensor"),
            "output_aliases_to": (3, "map int32 int32"),
            "serialized_graph_def": (4, "bytes"),
        },
    },
)
"""The file of the vendor is not public: the names are those that upstream reads, the numbers are made up."""


class Kind:
    """The types of a MetaTensor; a constant of the graph has its content."""

    USER_INPUT, INPUT_WEIGHT, INPUT_STATE, CONSTANT = range(4)


METANEFF["MetaTensor"].Type = Kind
hlo = type("hlo_pb2", (), HLO)
metaneff = type("metaneff_pb2", (), METANEFF)


class Flattener(nn.Module):
    """Selects the inputs that a graph uses.

    Args:
        layout: The index of each input.
        exclude: The indexes of unused inputs.
    """

    def __init__(self, layout: Sequence[int], exclude: Sequence[int] | None) -> None:
        super().__init__()
        self.layout, self.exclude = layout, exclude

    def forward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The used inputs."""
        return [inputs[index] for index in self.layout if index not in (self.exclude or ())]


class Packer(nn.Module):
    """Arranges outputs as the module returned them.

    Args:
        layout: The number of outputs; None for a single tensor.
        identifiers: Not used.
        constants: Not used.
    """

    def __init__(self, layout: int | None, identifiers: None = None, constants: None = None) -> None:
        super().__init__()
        self.layout, self.identifiers, self.constants = layout, identifiers, constants

    def forward(self, outputs: list[Tensor]) -> Any:
        """The outputs, or the only one."""
        return outputs[0] if self.layout is None else list(outputs)


@dataclass
class HloArtifacts:
    """The result of `generate_hlo`."""

    hlo_module: Any
    flattener: Any
    packer: Any
    metaneff: Any
    weights: Any
    constant_parameter_tensors: Any
    weight_name_to_idx: dict[str, int]


@dataclass
class NeffArtifacts:
    """The file of a compiled graph."""

    neff_filename: str


def generate_hlo(
    model: nn.Module,
    example_inputs: Mapping[str, Tensor] | Sequence[Tensor],
    input_output_aliases: Mapping[Tensor, int] | None = None,
    *,
    inline_weights_to_neff: bool,
    return_weights: bool,
    output_aliased_tensor: bool,
    cpu_backend: bool,
    preserve_parameters: bool,
    enable_aliasing: bool = False,
    treat_inputs_as_kwargs: bool = False,
) -> HloArtifacts:
    """Lowers a module with torch_xla; exactly the arguments of ModelBuilder and ModelBuilderV2 in 0.15.

    ModelBuilder passes inputs by position and the output of each parameter that it writes; ModelBuilderV2 passes
    inputs by name, and the buffers that the module assigns are written. With ModelBuilder, buffers that are not saved
    are constants of the graph.
    """
    assert cpu_backend and not inline_weights_to_neff and not return_weights and not output_aliased_tensor
    by_name = isinstance(example_inputs, Mapping)
    assert enable_aliasing == treat_inputs_as_kwargs == by_name == (input_output_aliases is None)
    named = example_inputs if by_name else {str(index): tensor for index, tensor in enumerate(example_inputs)}
    device = _on_device(model)
    with device as (own, before):
        inputs = {name: tensor.to("xla") for name, tensor in named.items()}
        outputs = model(**inputs) if by_name else model(*inputs.values())
        assigned = {name: tensor for name, tensor in model.named_buffers() if tensor is not before.get(name)}
    results = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    packer = Packer(None if isinstance(outputs, Tensor) else len(results))
    if input_output_aliases is not None:
        from neuronx_distributed.parallel_layers import parallel_state

        assigned = {device.names[id(tensor)]: results[index] for tensor, index in input_output_aliases.items()}
        results = [tensor for index, tensor in enumerate(results) if index not in input_output_aliases.values()]
        packer = Packer(None if len(results) == 1 else len(results))
        once = dict(model.named_parameters()) | dict(model.named_buffers())  # shared tensors have their first name
        before = {name: before[name] for name in model.state_dict() if name in once}
        record(
            call="trace",
            tp_degree=parallel_state.get_tensor_model_parallel_size(),
            inputs=[kind(tensor) for tensor in inputs.values()],
            aliases=[[index, *kind(tensor)] for tensor, index in input_output_aliases.items()],
        )
    for name, tensor in assigned.items():
        assert (tensor.shape, tensor.dtype) == (before[name].shape, before[name].dtype), f"{name}: {tensor.shape}"
    context = torch_xla._XLAC.lowering.LoweringContext()
    context.build([*results, *assigned.values()])
    numbers = {name: context.tensor_parameter_id(tensor) for name, tensor in inputs.items()}
    used = {name: number for name, number in numbers.items() if number >= 0}
    tensors = {name: context.tensor_parameter_id(tensor) for name, tensor in before.items()}
    assert all(tensors[name] >= 0 for name in assigned), "a buffer is assigned and not read"
    contents = {number: tensor.cpu() for number, tensor in context.parameter_id_tensor_mapping().items()}

    described = metaneff.MetaNeff(serialized_graph_def=context.hlo())
    for name, number in used.items():
        _describe(described.input_tensors.add(parameter=number, type=Kind.USER_INPUT), inputs[name])
    state = set(assigned) | (set(own) if os.environ.get("NEURON_STAND_IN_READ") == "state" else set())
    for name, number in tensors.items():
        if number >= 0:
            of = Kind.INPUT_STATE if name in state else Kind.INPUT_WEIGHT
            added = described.input_tensors.add(parameter=number, type=of, checkpoint_key=name.encode())
            _describe(added, before[name])
    for number in sorted(contents.keys() - {*used.values(), *tensors.values()}):
        added = described.input_tensors.add(parameter=number, type=Kind.CONSTANT, content=_bytes(contents[number]))
        _describe(added, contents[number])
    for tensor in [*results, *assigned.values()]:
        _describe(described.output_tensors.add(), tensor)
    places = {tensor.checkpoint_key.decode(): index for index, tensor in enumerate(described.input_tensors)}
    for index, name in enumerate(assigned, len(results)):
        described.output_aliases_to[index] = places[name]
    module = HLO["HloModuleProto"].FromString(context.hlo())
    unused = [index for index, name in enumerate(numbers) if name not in used]
    flattener = Flattener(tuple(range(len(numbers))), unused or None)
    # Upstream converts these names back where it needs them (hlo_utils.prepare_metaneff_for_wlt_hlo).
    weights = {name.replace(".", "->"): at for name, at in tensors.items() if at >= 0 and name not in state}
    return HloArtifacts(module, flattener, packer, described, None, None, weights)


def kind(tensor: Tensor) -> list[Any]:
    """Dtype and shape."""
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]


class _on_device:
    """Moves parameters and buffers to XLA's device, and back to the original tensors at the end."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self.names = model, dict[int, str]()

    def __enter__(self) -> tuple[list[str], dict[str, Tensor]]:
        self._places, before, own = [], dict[str, Tensor](), list[str]()
        moved = dict[int, Tensor]()
        for prefix, module in self._model.named_modules():
            for table in (module._parameters, module._buffers):
                for leaf, tensor in table.items():
                    if tensor is None:
                        continue
                    name = f"{prefix}.{leaf}" if prefix else leaf
                    self._places.append((table, leaf, tensor))
                    self.names.setdefault(id(tensor), name)
                    value = moved.setdefault(id(tensor), tensor.detach().to("xla"))
                    table[leaf] = nn.Parameter(value, requires_grad=False) if table is module._parameters else value
                    before[name] = table[leaf]
                    own += [name] if table is module._buffers else []
        return own, before

    def __exit__(self, *_: Any) -> None:
        for table, leaf, tensor in self._places:
            table[leaf] = tensor


def _describe(entry: Any, tensor: Tensor) -> None:
    entry.shape.extend(tensor.shape)
    entry.data_type = DTYPES.index(tensor.dtype)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def entry_computation(module: Any) -> Any:
    """The computation that a module starts with."""
    return next(each for each in module.computations if each.id == module.entry_computation_id)


TRACE = {
    "generate_hlo": generate_hlo,
    "get_torch_dtype": DTYPES.__getitem__,
    "HloArtifacts": HloArtifacts,
    "NeffArtifacts": NeffArtifacts,
    "hlo_entry_computation": entry_computation,
}
"""The names of torch_neuronx.xla_impl.trace that upstream uses here."""
