"""See torch_neuronx/__init__.py."""
