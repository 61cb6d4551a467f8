"""Exporters: from a model to compiled graphs, with this package's own models or with optimum-neuron."""
