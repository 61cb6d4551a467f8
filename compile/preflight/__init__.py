"""Preflight: which operators a compilation for Neuron needs, and how long it will take."""
