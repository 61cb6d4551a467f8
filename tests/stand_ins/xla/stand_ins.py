"""Stand-ins for the modules that are only in the AWS package index, for ONE process on XLA's CPU device.

The tested code is real: torch_xla, optimum-neuron, PEFT, transformers. These modules would otherwise come with
torch-neuronx and neuronx-distributed, and optimum-neuron imports them while it trains. Every parallel size is 1, so
every layer holds the whole weight and every collective is the identity; limits of this are marked as needing a
device in docs/training.md. Each module gets a spec, because importlib.util.find_spec fails on one without.

torch_xla is imported first: it searches for libneuronxla, which has no stand-in.
"""

import contextlib
import os
import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any

import torch
import torch.distributed as dist
import torch_xla
from torch import nn


def install() -> None:
    """Puts all of them into sys.modules, starts a process group of one, and keeps optimum-neuron off the hub."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")  # torch_xla's rendezvous reads it
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    for name, names in MODULES.items():
        _module(name, names)
    import optimum.neuron.trainers.transformers as upstream

    # Its cache proxy wraps that of libneuronxla, which does not exist here.
    upstream.hub_neuronx_cache = lambda **_: contextlib.nullcontext()


def _module(name: str, names: dict[str, Any]) -> None:
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    vars(module).update(names)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


class Parallel:
    """neuronx-distributed's parallel state: one process, nothing shared."""

    initialized = False

    @classmethod
    def initialize(cls, tensor_model_parallel_size: int = 1, pipeline_model_parallel_size: int = 1, **_: Any) -> None:
        assert tensor_model_parallel_size == pipeline_model_parallel_size == 1
        cls.initialized = True


def absent(name: str) -> type:
    """A class that has no instances and cannot be instantiated."""

    def refuse(self: Any, *_: Any, **__: Any) -> None:
        raise NotImplementedError(f"{name} needs the Neuron SDK")

    return type(name, (), {"__init__": refuse})


def mark_sharded(weight: nn.Parameter, dim: int) -> None:
    """Sets the attributes of a weight that optimum-neuron reads to shard and consolidate it."""
    weight.tensor_model_parallel, weight.partition_dim, weight.partition_stride, weight.num_partitions = True, dim, 1, 1


class BaseParallelLinear(nn.Module):
    """A linear layer whose weight would be sharded; here it is complete."""

    partition_dim: int

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        init_method: Any = None,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        super().__init__()
        self.input_size = self.in_features = input_size
        self.output_size = self.out_features = output_size
        self.dtype, self.arg_init_method, self.stride = dtype, init_method, options.get("stride", 1)
        self.gather_output = options.get("gather_output", True)
        self.input_is_parallel = options.get("input_is_parallel", False)
        self.sequence_dimension = options.get("sequence_dimension")
        self.sequence_parallel_enabled = self.skip_bias_add = self.keep_master_weight = False
        self.reduce_output, self.tensor_parallel_group = True, None
        self.weight = nn.Parameter(torch.empty(output_size, input_size, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(output_size, dtype=dtype)) if bias else None
        mark_sharded(self.weight, self.partition_dim)
        self.initialize_weight_and_bias()

    def initialize_weight_and_bias(self) -> None:
        with torch.no_grad():
            (self.arg_init_method or nn.init.xavier_uniform_)(self.weight)

    init_weight_cpu = initialize_weight_and_bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(inputs, self.weight, self.bias)


class ColumnParallelLinear(BaseParallelLinear):
    """Sharded by outputs."""

    partition_dim = 0


class RowParallelLinear(BaseParallelLinear):
    """Sharded by inputs."""

    partition_dim = 1


class ParallelEmbedding(nn.Embedding):
    """Sharded by vocabulary."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        init_method: Any = None,
        dtype: torch.dtype = torch.float32,
        **_: Any,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx=padding_idx, dtype=dtype)
        self.arg_init_method = init_method
        mark_sharded(self.weight, 0)

    def init_weight_cpu(self) -> None:
        with torch.no_grad():
            (self.arg_init_method or nn.init.normal_)(self.weight)


def clip_grad_norm(parameters: list[nn.Parameter], max_norm: float, norm_type: float = 2, **_: Any) -> torch.Tensor:
    """Clips without the norm of other shards."""
    return nn.utils.clip_grad_norm_(parameters, max_norm, norm_type=norm_type, foreach=False)


def move_model_to_device(model: nn.Module, device: torch.device) -> None:
    """`.to` creates new Parameters; the attributes of sharded weights are copied to them."""
    marks = {name: dict(vars(parameter)) for name, parameter in model.named_parameters()}
    model.to(device)
    for name, parameter in model.named_parameters():
        vars(parameter).update(marks.get(name, {}))
    model.tie_weights()


def move_all_tensor_to_cpu(data: Any, convert: bool = True) -> Any:
    """Moves nested tensors to main memory; only upstream's saving, the negative control of a test, calls it."""
    torch_xla.sync()
    if isinstance(data, torch.Tensor):
        return data.cpu() if convert else data
    return type(data)((name, move_all_tensor_to_cpu(value, convert)) for name, value in data.items())


def create_local_weight(
    full_weight: torch.Tensor, partition_dim: int, per_partition_size: int, stride: int, out_weight: Any = None
) -> torch.Tensor:
    """This process's shard of a weight: the whole weight."""
    if out_weight is None:
        return full_weight
    with torch.no_grad():
        return out_weight.copy_(full_weight)


def same(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """A collective of one process."""
    return tensor


def divide(numerator: int, denominator: int) -> int:
    """Division without a remainder."""
    assert numerator % denominator == 0
    return numerator // denominator


SIZES = ("context_model", "data", "pipeline_model", "tensor_model")
LAYERS = "neuronx_distributed.parallel_layers"
MODULES: dict[str, dict[str, Any]] = {
    "torch_neuronx": {},
    "torch_neuronx.utils": {"get_platform_target": lambda *_, **__: "trn1"},
    "neuronx_distributed": {},
    "neuronx_distributed.trainer": {"save_checkpoint": absent("save_checkpoint")},
    LAYERS: {},
    f"{LAYERS}.parallel_state": {
        "initialize_model_parallel": Parallel.initialize,
        "model_parallel_is_initialized": lambda: Parallel.initialized,
        **{f"get_{size}_parallel_size": lambda: 1 for size in SIZES},
        **{f"get_{size}_parallel_rank": lambda: 0 for size in SIZES},
        **{f"get_{size}_parallel_group": lambda *_, **__: [[0]] for size in SIZES},
        **{f"get_{size}_parallel_replica_groups": lambda: [[0]] for size in SIZES},
    },
    f"{LAYERS}.layers": {
        "BaseParallelLinear": BaseParallelLinear,
        "ColumnParallelLinear": ColumnParallelLinear,
        "RowParallelLinear": RowParallelLinear,
        "ParallelEmbedding": ParallelEmbedding,
        "create_local_weight": create_local_weight,
    },
    f"{LAYERS}.mappings": {
        "gather_from_sequence_parallel_region": same,
        "scatter_to_sequence_parallel_region": same,
        "reduce_from_tensor_model_parallel_region": same,
    },
    f"{LAYERS}.grads": {"bucket_allreduce_gradients": lambda *_, **__: None, "clip_grad_norm": clip_grad_norm},
    f"{LAYERS}.utils": {
        "EmbeddingUtility": absent("EmbeddingUtility"),
        "divide": divide,
        "get_local_world_size": lambda: 1,
        "move_all_tensor_to_cpu": move_all_tensor_to_cpu,
        "move_model_to_device": move_model_to_device,
    },
    "neuronx_distributed.modules": {},
    "neuronx_distributed.modules.qkv_linear": {
        "GQAQKVColumnParallelLinear": absent("GQAQKVColumnParallelLinear"),
    },
    "neuronx_distributed.kernels": {},
    "neuronx_distributed.kernels.flash_attn": {"nki_flash_attn_func": absent("nki_flash_attn_func")},
    "neuronx_distributed.optimizer": {"NeuronZero1Optimizer": absent("NeuronZero1Optimizer")},
    "neuronx_distributed.pipeline": {"NxDPPModel": absent("NxDPPModel")},
    "neuronx_distributed.pipeline.trace": {
        "HFTracerWrapper": absent("HFTracerWrapper"),
        "NxDTracer": absent("NxDTracer"),
        "trace_model": absent("trace_model"),
    },
    "neuronx_distributed.pipeline.partition": {
        "analyze_shared_weights_across_stages": absent("analyze_shared_weights_across_stages"),
    },
    "neuronx_distributed.utils": {},
    "neuronx_distributed.utils.model_utils": {
        "LogicalNCConfig": types.SimpleNamespace(LNC_1=1, LNC_2=2),
        "get_platform_lnc": lambda: 1,
        "move_model_to_device": move_model_to_device,
    },
}
"""By module, the names that optimum-neuron 0.4.5 uses for training."""
