"""Prepares ONE process to train with the code of neuronx-distributed on XLA's CPU device.

torch_xla, neuronx-distributed, optimum-neuron, PEFT and transformers are real. Only torch_neuronx, neuronxcc and
libneuronxla are replaced (tests/stand_ins/neuron, tests/support/neuron_packages.py), of which training needs only the
name of the platform: its layers, gradients and collectives are lowered by torch_xla. The process group is that of
torch_xla, of one process, so that neuronx-distributed skips collectives or reduces over one core.

The stand-in of torch_neuronx is imported first: torch_xla would mistake that of libneuronxla for a Neuron runtime.
"""

import contextlib
import os

import torch.distributed as dist
import torch_neuronx  # noqa: F401
import torch_xla.distributed.xla_backend  # noqa: F401  (brings the backend "xla")


def install() -> None:
    """Starts a process group of one, and keeps optimum-neuron off the hub."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")  # torch_xla's rendezvous reads it
    import optimum.neuron.trainers.transformers as upstream  # before the group: if there is one, it reads its rank
    from neuronx_distributed.parallel_layers import parallel_state, utils

    utils.is_pjrt_device = lambda: True  # otherwise it is only for PJRT_DEVICE=NEURON, and reads a name of torch_xla 1
    dist.init_process_group("xla", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()

    # Its cache proxy wraps that of libneuronxla, which does not exist here.
    upstream.hub_neuronx_cache = lambda **_: contextlib.nullcontext()
