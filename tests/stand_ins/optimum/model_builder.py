"""neuronx-distributed's ModelBuilder on one core: graphs as TorchScript over shared weights and state.

A compiled model is a TorchScript module that holds no weights: `nxd_model.initialize` receives those of each core
when it is loaded, and calls are routed to the graph of their inputs' shape.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from tracing import Traceable, described, record

STATE = "kv_mgr."
"""The prefix of the names that a graph writes."""


class Weights(nn.Module):
    """The weights that all graphs of a model read, and the state that they write."""

    def __init__(self, names: list[str], shapes: list[list[int]], state: list[Tensor]) -> None:
        super().__init__()
        self.names, self.shapes = names, shapes
        self.tensors: list[Tensor] = [torch.zeros(0)]
        self.state = state

    @torch.jit.export
    def initialize(self, weights: list[dict[str, Tensor]], start_rank: Tensor) -> None:
        """Sets the weights of every core, in the order of ranks."""
        assert len(weights) == 1, "compiled for one core"
        tensors: list[Tensor] = []
        for name, shape in zip(self.names, self.shapes):  # noqa: B905  TorchScript knows no strict
            assert name in weights[0], name
            assert weights[0][name].size() == shape, name
            tensors.append(weights[0][name])
        self.tensors = tensors

    def forward(self) -> Tensor:
        """Never called."""
        return torch.zeros(0)


class Routed(nn.Module):
    """A compiled model: routes inputs to the graph of their shape."""

    def __init__(self, graphs: list[torch.jit.ScriptModule], shapes: list[list[int]], weights: Weights) -> None:
        super().__init__()
        self.graphs, self.shapes = nn.ModuleList(graphs), shapes
        self.nxd_model = weights

    def forward(self, input_ids: Tensor, position_ids: Tensor, seq_ids: Tensor, sampling: Tensor) -> Tensor:
        """The first output; aliased outputs replace the state."""
        result: list[Tensor] = []
        for index, graph in enumerate(self.graphs):
            if input_ids.size() == self.shapes[index]:
                result = graph(input_ids, position_ids, seq_ids, sampling, self.nxd_model.tensors, self.nxd_model.state)
        assert len(result) > 0, "no graph was compiled for inputs of this shape"
        self.nxd_model.state = result[1:]
        return result[0]


class _Graph(nn.Module):
    """A module whose weights and state are inputs."""

    def __init__(self, module: nn.Module, names: list[str], state: list[str]) -> None:
        super().__init__()
        self.__dict__["module"] = module  # hidden from torch, otherwise its weights would also be saved
        self.names, self.state = names, state

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        seq_ids: Tensor,
        sampling: Tensor,
        tensors: list[Tensor],
        state: list[Tensor],
    ) -> list[Tensor]:
        module = self.__dict__["module"]
        for name, tensor in zip([*self.names, *self.state], [*tensors, *state], strict=True):
            path, _, leaf = name.rpartition(".")
            owner = module.get_submodule(path)
            owner._parameters.pop(leaf, None)
            owner.__dict__[leaf] = tensor  # found before any parameter
        made: list[Tensor] = module(input_ids, position_ids, seq_ids, sampling)
        return made


class ModelBuilder:
    """See optimum.neuron.models.inference.backend.pretrained_model.get_builder for the arguments."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.graphs: dict[str, tuple[Any, tuple[Tensor, ...], str]] = {}

    def add(
        self,
        key: str,
        model_instance: Any,
        example_inputs: list[tuple[Tensor, ...]],
        compiler_args: str,
        priority_model_idx: int | None,
    ) -> None:
        """Adds a graph to compile."""
        [inputs] = example_inputs
        self.graphs[key] = model_instance, inputs, compiler_args

    def trace(self, initialize_model_weights: bool) -> torch.jit.ScriptModule:
        """Compiles all of them."""
        if self.options["world_size"] != 1:
            record(graphs=list(self.graphs), tp_degree=self.options["tp_degree"])
            raise NotImplementedError("the stand-in has one core")
        traced, shapes, weights = [], [], None
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # as the real one does, over XLA
        for key, (instance, inputs, compiler_args) in self.graphs.items():
            instance.load_module()
            module, aliases = instance.get(0)
            record(
                graph=key,
                compiler_args=compiler_args,
                inputs=described(inputs),
                tp_degree=self.options["tp_degree"],
                aliases=[[index, *described([tensor])[0]] for tensor, index in aliases.items()],
                start_rank=self.options["start_rank_id"],
                workdir=self.options["compiler_workdir"],
            )
            tensors = module.state_dict()
            state = [name for name in tensors if name.startswith(STATE)]
            names = [name for name in tensors if name not in state]
            assert list(aliases.values()) == list(range(1, 1 + len(state)))
            zeros = [torch.zeros_like(tensors[name]) for name in state]
            weights = weights or Weights(names, [list(tensors[name].shape) for name in names], zeros)
            assert weights.names == names, "the graphs of a model share their weights"
            example = (*inputs, [tensors[name] for name in names], zeros)
            with torch.no_grad(), Traceable():
                traced.append(torch.jit.trace(_Graph(module, names, state).eval(), example, check_trace=False))
            shapes.append(list(inputs[0].shape))
        dist.destroy_process_group()
        assert weights is not None
        return torch.jit.script(Routed(traced, shapes, weights))

    def shard_checkpoint(self, serialize_path: str | None = None) -> list[dict[str, Tensor]]:
        """The weights of each core; written to a folder if one is given."""
        checkpoint: dict[str, Tensor] = self.options["checkpoint_loader"]()
        instance = next(iter(self.graphs.values()))[0]
        instance.load_module()
        _preshard(instance.module, checkpoint, "")
        own = instance.module.state_dict()
        kept = {name: tensor.contiguous() for name, tensor in checkpoint.items() if name in own}
        if serialize_path is not None:
            Path(serialize_path).mkdir(parents=True)
            save_file(kept, Path(serialize_path) / "tp0_sharded_checkpoint.safetensors")
        return [kept]


def _preshard(module: nn.Module, checkpoint: dict[str, Tensor], prefix: str) -> None:
    """Lets layers convert the checkpoint's weights to their form."""
    if hasattr(module, "preshard_hook"):
        module.preshard_hook(checkpoint, f"{prefix}weight")
        return
    for name, child in module.named_children():
        _preshard(child, checkpoint, f"{prefix}{name}.")
