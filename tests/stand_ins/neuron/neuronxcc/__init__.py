"""See torch_neuronx: kernels can be imported but not used."""

import torch_neuronx

__path__: list[str] = []
__getattr__ = torch_neuronx.name
