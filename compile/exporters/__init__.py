"""Exporters: from a model to compiled graphs, with the static graphs of this package or with optimum-neuron."""
