"""See torch_neuronx: kernels can be imported but not used."""

from importlib.metadata import version

import torch_neuronx

__path__: list[str] = []
__version__ = version("neuronx-cc")
__getattr__ = torch_neuronx.name
